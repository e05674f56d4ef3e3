/* squint corpus: the sample corpus as JSON lines. Options in, data-prep/corpus.h does the work. */
#include "data-prep/corpus.h"
#include "base/log.h"
#include "commands/commands.h"

#include <string.h>

static enum status run(int argc, char **argv) {
    const char *out = NULL;
    double megabytes = 8;
    int64_t seed = 1;
    struct corpus_options options = {0};
    struct corpus_summary summary;
    const struct option table[] = {
        {"out", OPTION_TEXT, &out, 0, 0},
        {"megabytes", OPTION_REAL, &megabytes, 1e-6, 1e6},
        {"documents", OPTION_INTEGER, &options.documents, 1, 1e12},
        {"seed", OPTION_INTEGER, &seed, 0, 9e15},
        {"first", OPTION_INTEGER, &options.first, 0, 1e12},
        {"shortest", OPTION_INTEGER, &options.shape.shortest, 100, 1e9},
        {"longest", OPTION_INTEGER, &options.shape.longest, 100, 1e9},
        {"asked", OPTION_INTEGER, &options.shape.asked, 1, 1000},
        {"facts", OPTION_INTEGER, &options.shape.facts, 1, CORPUS_FACTS_MAX},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    if (!out)
        return error_set(STATUS_USAGE, "corpus: --out: expected a file such as corpus.jsonl, or \"-\", found none");
    options.seed = (uint64_t)seed;
    options.bytes = (int64_t)(megabytes * 1e6);
    TRY(corpus_write(out, &options, &summary));
    char bytes[32], documents[32], recalls[32];
    count_text(summary.bytes, bytes);
    count_text(summary.documents, documents);
    count_text(summary.recalls, recalls);
    log_line("%s: %s bytes of text in %s documents, %s answers to recall", out, bytes, documents, recalls);
    return STATUS_OK;
}

const struct command command_corpus = {
    .name = "corpus",
    .summary = "a sample corpus of simple stories",
    .help =
        "usage: squint corpus --out FILE.jsonl [options]\n"
        "\n"
        "Writes made-up stories as JSON lines, for trying squint without a download. People, things and places are "
        "introduced\n"
        "early and asked for late: \"recall\" of every line has the answers' places, in bytes of \"text\", and how "
        "far back the\n"
        "story gave them away. Document i depends on seed, i and these numbers alone.\n"
        "\n"
        "  --out FILE.jsonl  where to write; \"-\": standard output\n"
        "  --megabytes N     how much text (8)\n"
        "  --documents N     how many documents, instead\n"
        "  --seed N          another corpus (1)\n"
        "  --first N         index of the first document (0); a range that was not trained on is a fair test\n"
        "  --shortest BYTES  how long the shortest story is meant to be (550)\n"
        "  --longest BYTES   and the longest (7000); what a long story asks for at its end lies as far back as it "
        "is long\n"
        "  --facts N         things to remember in a story, at most 24 (2 and one for every 1000 bytes, at most 8)\n"
        "  --asked N         how often a story's end asks for each (1)\n"
        "\n"
        "example: squint corpus --out corpus.jsonl --megabytes 4 && squint prep --tokenizer tok --out data/corpus "
        "corpus.jsonl\n",
    .run = run,
};
