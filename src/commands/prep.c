/* squint prep: text -> token shards. Options in, data-prep/prep.h does the work. */
#include "data-prep/prep.h"
#include "base/log.h"
#include "comm/comm.h"
#include "commands/commands.h"
#include "commands/ranks.h"

#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t stop_asked;

static void ask_stop(int signal_number) {
    (void)signal_number;
    stop_asked = 1;
}

/* Turns the escapes \n, \t and \\ of a separator into bytes: shells make them hard to type. */
static void unescape(char *text) {
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (from[0] == '\\' && from[1] && strchr("nt\\", from[1])) {
            from++;
            *to++ = *from == 'n' ? '\n' : *from == 't' ? '\t' : '\\';
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
}

static enum status read_format(const char *name, enum reader_format *format) {
    static const char *const names[] = {"auto", "text", "jsonl"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *format = (enum reader_format)i;
        return STATUS_OK;
    }
    return error_set(STATUS_USAGE, "prep: --format: expected auto, text or jsonl, found \"%s\"", name);
}

static enum status work(const struct prep_options *options, bool json) {
    struct comm *comm = NULL;
    struct prep_summary summary;
    /* One rank may read standard input, or scan one large file, while the others wait. */
    enum status status = comm_open(&(struct comm_options){.deadline_s = 6 * 3600.0}, &comm);
    if (status != STATUS_OK) return status;
    int rank = comm_rank(comm);
    struct sigaction action = {.sa_handler = ask_stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    log_start(rank, false);
    status = prep_run(comm, options, &summary);
    if (status == STATUS_OK && rank == 0) {
        status = json ? prep_print_json(stdout, options, &summary) : prep_print(stdout, options, &summary);
    }
    KEEP_FIRST(status, comm_close(&comm));
    ranks_leave_message(rank, status);
    return status;
}

static enum status run(int argc, char **argv) {
    struct prep_options options = {.valid = 0.01, .seed = 1, .shard_tokens = 100000000, .stop = &stop_asked};
    struct option_list words = {0};
    const char *format = "auto", *separator = NULL;
    char *separator_bytes = NULL;
    int64_t seed = 1;
    bool json = false;
    const struct option table[] = {
        {"tokenizer", OPTION_TEXT, &options.tokenizer, 0, 0},
        {"out", OPTION_TEXT, &options.out, 0, 0},
        {"valid", OPTION_REAL, &options.valid, 0, 1},
        {"seed", OPTION_INTEGER, &seed, 0, 9e15},
        {"pack", OPTION_FLAG, &options.pack, 0, 0},
        {"shard-tokens", OPTION_INTEGER, &options.shard_tokens, 1, 1e12},
        {"format", OPTION_TEXT, &format, 0, 0},
        {"text-field", OPTION_TEXT, &options.reader.text_field, 0, 0},
        {"document-separator", OPTION_TEXT, &separator, 0, 0},
        {"wikitext", OPTION_FLAG, &options.reader.wikitext, 0, 0},
        {"no-begin-of-text", OPTION_FLAG, &options.no_begin_of_text, 0, 0},
        {"no-end-of-text", OPTION_FLAG, &options.no_end_of_text, 0, 0},
        {"force", OPTION_FLAG, &options.force, 0, 0},
        {"json", OPTION_FLAG, &json, 0, 0},
    };
    enum status status = STATUS_OK;
    TRY_GOTO(done, options_read(argc, argv, table, sizeof table / sizeof *table, &words, NULL));
    TRY_GOTO(done, read_format(format, &options.reader.format));
    if (separator) {
        separator_bytes = strdup(separator);
        if (!separator_bytes) {
            status = error_set(STATUS_MEMORY, "no memory for the document separator");
            goto done;
        }
        unescape(separator_bytes);
        options.reader.separator = separator_bytes;
    }
    options.seed = (uint64_t)seed;
    options.inputs = words.values;
    options.input_count = words.count;
    status = work(&options, json);
done:
    options_free(&words);
    free(separator_bytes);
    return status;
}

const struct command command_prep = {
    .name = "prep",
    .summary = "text -> token shards",
    .help =
        "usage: squint prep --tokenizer DIR --out PREFIX [options] INPUT...\n"
        "\n"
        "Turns text into token shards, PREFIX-train-00000.h5 … and PREFIX-valid-00000.h5 …, and says in "
        "PREFIX-prep.json how.\n"
        "INPUT is a file, a directory (every file below it), or \"-\". gzip and zstd are unpacked on the way. A name "
        "in .jsonl\n"
        "(.jsonl.gz, .jsonl.zst) has a document a line; any other file is one document unless an option below says "
        "more.\n"
        "Runs under mpirun; the bytes of the shards do not depend on the number of ranks. Interrupted, the same "
        "command goes on.\n"
        "\n"
        "  --tokenizer DIR            a Hugging Face directory or tokenizer.json\n"
        "  --out PREFIX               where the shards go, e.g. data/books\n"
        "  --valid SHARE              share of the documents for validation (0.01; 0: none, 1: all)\n"
        "  --seed N                   chooses which documents those are (1)\n"
        "  --pack                     join the documents into one stream: where they begin is not recorded\n"
        "  --shard-tokens N           tokens in a shard (100000000)\n"
        "  --format auto|text|jsonl   what the files hold, whatever their names (auto)\n"
        "  --text-field NAME          the field of a JSON line that holds the text (text)\n"
        "  --document-separator TEXT  documents are what stands between these; \\n and \\t are understood\n"
        "  --wikitext                 a document begins at a heading line \" = Title = \"\n"
        "  --no-end-of-text           leave out the end-of-text token after every document\n"
        "  --no-begin-of-text         leave out a Llama-type tokenizer's \"<s>\" before every document\n"
        "  --force                    remove what stands at PREFIX and start afresh\n"
        "  --json                     print the summary as JSON\n"
        "\n"
        "example: squint prep --tokenizer models/gpt2 --out data/wt2 --wikitext --valid 0.05 wiki.train.tokens.zst\n",
    .run = run,
};
