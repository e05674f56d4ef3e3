/* squint bench: time and memory of the parts that decide how long a run takes. */
#include "base/file.h"
#include "base/log.h"
#include "commands/bench_step.h"
#include "commands/commands.h"
#include "data-prep/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- step --------------------------------------------------------------------------------------------------------- */

static void print_step(const struct bench_step_options *o, const struct bench_step_result *r, bool json) {
    static const double mebi = 1024.0 * 1024.0;
    if (json) {
        printf("{\"bench\": \"step\", \"batch\": %lld, \"length\": %lld, \"parameters\": %lld, \"trained\": %lld, "
               "\"seconds\": %.6f, \"tokens_per_second\": %.2f, \"flops_per_second\": %.4g, \"peak_mib\": %.1f, "
               "\"planned_mib\": %.1f, \"kl\": %.6g, \"precision\": \"%s\", \"phases\": {",
               (long long)o->batch, (long long)o->length, (long long)r->parameters, (long long)r->trained, r->seconds,
               r->tokens_per_second, r->flops_per_second, r->peak_bytes / mebi, r->planned_bytes / mebi, r->kl,
               o->precision);
        for (int p = 0; p < PHASES; p++) printf("%s\"%s\": %.6f", p ? ", " : "", phase_names[p], r->phases[p]);
        printf("}}\n");
        return;
    }
    char parameters[32], trained[32], peak[16], planned[16];
    count_text(r->parameters, parameters);
    count_text(r->trained, trained);
    bytes_text(r->peak_bytes, peak);
    bytes_text(r->planned_bytes, planned);
    printf("%s  %s\n", r->device, o->precision);
    printf("step     B=%lld T=%lld, %s parameters, %s of them train\n", (long long)o->batch, (long long)o->length,
           parameters, trained);
    printf("time     %.3f s a step, %.1f tokens/s, %.1f GFLOP/s\n", r->seconds, r->tokens_per_second,
           r->flops_per_second / 1e9);
    printf("memory   %s at most, %s planned\n", peak, planned);
    for (int p = 0; p < PHASES; p++) {
        printf("  %-9s %8.4f s  %5.1f%%\n", phase_names[p], r->phases[p], 100 * r->phases[p] / r->seconds);
    }
}

static enum status run_step(int argc, char **argv) {
    const char *temporary = getenv("TMPDIR");
    struct bench_step_options o = {.layers = 12,
                                   .heads = 12,
                                   .width = 768,
                                   .vocabulary = 50257,
                                   .batch = 2,
                                   .length = 512,
                                   .steps = 5,
                                   .candidates = "window(256), sinks(4)",
                                   .train = "new, attn",
                                   .precision = "fp32",
                                   .temporary = temporary ? temporary : "/tmp"};
    struct bench_step_result result;
    bool json = false;
    const struct option table[] = {
        {"layers", OPTION_INTEGER, &o.layers, 1, 1000},
        {"heads", OPTION_INTEGER, &o.heads, 1, 1000},
        {"width", OPTION_INTEGER, &o.width, 1, 65536},
        {"vocabulary", OPTION_INTEGER, &o.vocabulary, 2, 1e7},
        {"batch", OPTION_INTEGER, &o.batch, 1, 65536},
        {"length", OPTION_INTEGER, &o.length, 1, 1e7},
        {"steps", OPTION_INTEGER, &o.steps, 1, 100000},
        {"candidates", OPTION_TEXT, &o.candidates, 0, 0},
        {"train", OPTION_TEXT, &o.train, 0, 0},
        {"precision", OPTION_TEXT, &o.precision, 0, 0},
        {"device", OPTION_TEXT, &o.device, 0, 0},
        {"threads", OPTION_INTEGER, &o.threads, 0, 4096},
        {"json", OPTION_FLAG, &json, 0, 0},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    if (o.width % o.heads != 0) {
        return error_set(STATUS_USAGE, "bench step: --width: expected a multiple of --heads, %lld, found %lld",
                         (long long)o.heads, (long long)o.width);
    }
    TRY(bench_step(&o, &result));
    print_step(&o, &result, json);
    return STATUS_OK;
}

/* --- prep --------------------------------------------------------------------------------------------------------- */

static enum status time_encoding(const struct tokenizer *tokenizer, const char *text, size_t length, int64_t repeats,
                                 double *seconds, size_t *tokens) {
    struct token_buffer ids = {0};
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < repeats && status == STATUS_OK; i++) {
        ids.count = 0;
        double started = time_now_s();
        status = tokenizer_encode(tokenizer, text, length, false, &ids);
        double took = time_now_s() - started;
        if (i == 0 || took < *seconds) *seconds = took;
    }
    *tokens = ids.count;
    token_buffer_free(&ids);
    return status;
}

static enum status run_prep(int argc, char **argv) {
    const char *directory = NULL, *file = NULL;
    int64_t repeats = 3;
    bool json = false;
    struct tokenizer *tokenizer = NULL;
    char *text = NULL;
    size_t length = 0, tokens = 0;
    double seconds = 0;
    const struct option table[] = {
        {"tokenizer", OPTION_TEXT, &directory, 0, 0},
        {"file", OPTION_TEXT, &file, 0, 0},
        {"repeats", OPTION_INTEGER, &repeats, 1, 1000},
        {"json", OPTION_FLAG, &json, 0, 0},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    if (!directory) return error_set(STATUS_USAGE, "bench prep: --tokenizer: expected a directory, found none");
    if (!file) return error_set(STATUS_USAGE, "bench prep: --file: expected a text file, found none");
    enum status status;
    TRY_GOTO(done, tokenizer_open(directory, &tokenizer));
    TRY_GOTO(done, file_read(file, &text, &length));
    TRY_GOTO(done, time_encoding(tokenizer, text, length, repeats, &seconds, &tokens));
    double megabytes = (double)length / 1e6 / seconds;
    if (json) {
        printf("{\"bench\": \"prep\", \"bytes\": %zu, \"tokens\": %zu, \"seconds\": %.6f, \"mb_per_second\": %.2f}\n",
               length, tokens, seconds, megabytes);
    } else {
        printf("prep     %zu bytes -> %zu tokens in %.3f s: %.1f MB/s, one thread\n", length, tokens, seconds,
               megabytes);
    }
done:
    free(text);
    tokenizer_close(&tokenizer);
    return status;
}

/* --- the command -------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum status (*run)(int argc, char **argv);
} benches[] = {{"step", run_step}, {"prep", run_prep}};

static enum status run(int argc, char **argv) {
    static char name[64];
    const char *what = argc > 1 ? argv[1] : "";
    log_start(0, false);
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++) {
        if (strcmp(what, benches[i].name) != 0) continue;
        snprintf(name, sizeof name, "bench %s", what);
        argv[1] = name;
        return benches[i].run(argc - 1, argv + 1);
    }
    return error_set(STATUS_USAGE, "bench: expected step or prep, found \"%s\"; see squint bench --help", what);
}

const struct command command_bench = {
    .name = "bench",
    .summary = "time and memory of a step, of attention against length, of tokenising",
    .help = "usage: squint bench step [options]\n"
            "       squint bench prep --tokenizer DIR --file FILE [--repeats N]\n"
            "\n"
            "step: a step of distillation, teacher and student of GPT-2's shape with random weights; medians.\n"
            "  --layers 12 --heads 12 --width 768 --vocabulary 50257      the shape (GPT-2 124M)\n"
            "  --batch 2 --length 512 --steps 5                           B, T, how many steps are timed\n"
            "  --candidates \"window(256), sinks(4)\"                       the student's masks\n"
            "  --train \"new, attn\"                                        what trains, as in a recipe\n"
            "  --precision fp32|bf16   --device cpu   --threads N\n"
            "prep: how fast one thread turns a text into ids.\n"
            "  --json               figures as one line of JSON\n"
            "\n"
            "example: squint bench step --batch 2 --length 512 --json\n",
    .run = run,
};
