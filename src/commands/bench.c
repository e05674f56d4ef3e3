/* squint bench: time and memory of the parts that decide how long a run takes. */
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/bench_comm.h"
#include "commands/bench_kinds.h"
#include "commands/bench_step.h"
#include "commands/bench_tune.h"
#include "commands/commands.h"
#include "commands/device.h"
#include "data-prep/tokenizer.h"
#include "eval/bench_attention.h"
#include "eval/bench_decode.h"
#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- step --------------------------------------------------------------------------------------------------------- */

/* "123.4 GFLOP/s" */
static const char *rate_text(double flops, char text[16]) {
    snprintf(text, 16, flops < 1e12 ? "%.1f GFLOP/s" : "%.1f TFLOP/s", flops < 1e12 ? flops / 1e9 : flops / 1e12);
    return text;
}

static void print_step(const struct bench_step_options *o, const struct bench_step_result *r, bool json) {
    static const double mebi = 1024.0 * 1024.0;
    if (json) {
        printf("{\"bench\": \"step\", \"batch\": %lld, \"length\": %lld, \"parameters\": %lld, \"trained\": %lld, "
               "\"seconds\": %.6f, \"tokens_per_second\": %.2f, \"flops_per_second\": %.4g, \"peak_flops\": %.4g, "
               "\"share_of_peak\": %.4f, \"peak_mib\": %.1f, \"planned_mib\": %.1f, \"kl\": %.6g, "
               "\"precision\": \"%s\", \"device\": \"%s\", \"phases\": {",
               (long long)o->batch, (long long)o->length, (long long)r->parameters, (long long)r->trained, r->seconds,
               r->tokens_per_second, r->flops_per_second, r->peak_flops, r->flops_per_second / r->peak_flops,
               r->peak_bytes / mebi, r->planned_bytes / mebi, r->kl, o->precision, r->device);
        for (int p = 0; p < PHASES; p++)
            printf("%s\"%s\": %.6f", p ? ", " : "", phase_names[p], r->phases[p]);
        printf("}}\n");
        return;
    }
    char parameters[32], trained[32], peak[16], planned[16], rate[16], most[16];
    count_text(r->parameters, parameters);
    count_text(r->trained, trained);
    bytes_text(r->peak_bytes, peak);
    bytes_text(r->planned_bytes, planned);
    printf("%s  %s\n", r->device, o->precision);
    printf("step     B=%lld T=%lld, %s parameters, %s of them train\n", (long long)o->batch, (long long)o->length,
           parameters, trained);
    printf("time     %.*f s a step, %.1f tokens/s, %s, %.0f%% of the %s of a large matrix product\n",
           r->seconds < 1 ? 5 : 3, r->seconds, r->tokens_per_second, rate_text(r->flops_per_second, rate),
           100 * r->flops_per_second / r->peak_flops, rate_text(r->peak_flops, most));
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
                                   .attention = "kind: masks, candidates: [window(256), sinks(4)]",
                                   .recompute = "auto",
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
        {"attention", OPTION_TEXT, &o.attention, 0, 0},
        {"recompute", OPTION_TEXT, &o.recompute, 0, 0},
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

/* --- attention and decode ----------------------------------------------------------------------------------------- */

enum { LENGTHS_MAX = 16 };

/* What both of them read; the options point into the rest. */
struct layers_command {
    struct bench_options options;
    int64_t lengths[LENGTHS_MAX];
    struct bench_kinds kinds;
    const char *device;
    bool json;
};

/* The table that --device names. auto: the GPU where there is one, in bf16, which it is made for. */
static enum status find_table(const char *command, const char *device, const char **table) {
    const struct ops *ops = NULL;
    *table = device;
    if (device && strcmp(device, "auto") != 0) return STATUS_OK;
    enum status status = device_choose("auto", true, NULL, &ops);
    if (status != STATUS_OK) return error_prefix(status, "%s: --device", command);
    *table = ops->host_memory ? "cpu" : "cuda";
    ops->close(ops);
    return STATUS_OK;
}

/* `c` comes with the default lengths and repeats; released with layers_free after failures too. */
static enum status layers_read(int argc, char **argv, const char *lengths, struct layers_command *c) {
    int64_t window = 256, sinks = 4, repeats = c->options.repeats, threads = 0;
    const char *named = NULL;
    char usual[96];
    struct option_list words = {0};
    struct bench_options *o = &c->options;
    o->name = argv[0];
    o->batch = 1;
    o->heads = o->groups = 12;
    o->width = 64;
    const struct option table[] = {
        {"kinds", OPTION_TEXT, &named, 0, 0},
        {lengths, OPTION_LIST, &words, 0, 0},
        {"window", OPTION_INTEGER, &window, 1, 1 << 24},
        {"sinks", OPTION_INTEGER, &sinks, 1, 1 << 24},
        {"batch", OPTION_INTEGER, &o->batch, 1, 65536},
        {"heads", OPTION_INTEGER, &o->heads, 1, 1000},
        {"groups", OPTION_INTEGER, &o->groups, 1, 1000},
        {"width", OPTION_INTEGER, &o->width, 1, 1024},
        {"repeats", OPTION_INTEGER, &repeats, 1, 1000},
        {"threads", OPTION_INTEGER, &threads, 0, 4096},
        {"device", OPTION_TEXT, &c->device, 0, 0},
        {"json", OPTION_FLAG, &c->json, 0, 0},
    };
    enum status status;
    TRY_GOTO(done, options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    TRY_GOTO(done, options_numbers(argv[0], lengths, &words, 1 << 24, LENGTHS_MAX, c->lengths, &o->length_count));
    TRY_GOTO(done, find_table(argv[0], c->device, &o->table));
    if (o->heads % o->groups != 0) {
        status = error_set(STATUS_USAGE, "%s: --heads: expected a multiple of --groups, %lld, found %lld", argv[0],
                           (long long)o->groups, (long long)o->heads);
        goto done;
    }
    snprintf(usual, sizeof usual, "full,masks:candidates=window(%lld)+sinks(%lld):start=0.9+0.1", (long long)window,
             (long long)sinks);
    TRY_GOTO(done, bench_kinds_read(argv[0], named ? named : usual, &c->kinds));
    o->threads = (int)threads;
    o->repeats = (int)repeats;
    o->lengths = c->lengths;
    o->rules = c->kinds.rules;
    o->rule_count = c->kinds.count;
done:
    options_free(&words);
    return status;
}

static double seconds_of(const struct bench_attention_row *row) {
    return row->forward_s + row->backward_s;
}
static double bytes_of(const struct bench_attention_row *row) {
    return (double)(row->tensor_bytes + row->scratch_bytes);
}

/* Of a device's row: the rate of both passes and its share of `peak`, the rate of a large matrix product. The kind
 * counts its forward pass, two products for each pair; a backward pass has five, that is 2.5 times as much (Dao 2023).
 */
static double forward_rate(const struct bench_attention_row *row) {
    return row->batch_flops / row->forward_s;
}
static double backward_rate(const struct bench_attention_row *row) {
    return 2.5 * row->batch_flops / row->backward_s;
}
static void print_rates(const struct bench_attention_row *row, double peak, bool json) {
    if (json) {
        printf(", \"forward_flops_per_second\": %.4g, \"backward_flops_per_second\": %.4g, \"peak_bytes\": %.0f",
               forward_rate(row), backward_rate(row), row->device_peak_bytes);
        return;
    }
    char forward[16], backward[16];
    printf("  forward %s (%.0f%%), backward %s (%.0f%%)", rate_text(forward_rate(row), forward),
           100 * forward_rate(row) / peak, rate_text(backward_rate(row), backward), 100 * backward_rate(row) / peak);
}

/* *peak: 0 where the host has the device's memory. */
static enum status measure_device(const struct bench_options *o, double *peak) {
    const struct ops *ops = NULL;
    *peak = 0;
    TRY(ops_open(o->table, &(struct ops_options){.threads = o->threads}, &ops));
    enum status status = ops->host_memory ? STATUS_OK : run_measure_peak(ops, ops->real == DTYPE_BF16, peak);
    ops->close(ops);
    return status;
}

/* rows: [lengths][kinds]. Beside each row what the first kind takes over it, and how it grew from the length before:
 * time, memory, and the forward pass by the kind's own count; on a device (peak > 0) rates. */
static void print_attention(const struct bench_attention_row *rows, int lengths, int kinds, double peak, bool json) {
    static const double mebi = 1024.0 * 1024.0;
    char most[16];
    if (json) printf("{\"bench\": \"attention\", ");
    if (json && peak > 0) printf("\"peak_flops\": %.4g, ", peak);
    if (json) printf("\"rows\": [");
    if (!json && peak > 0) printf("shares are of the %s of a large matrix product\n", rate_text(peak, most));
    if (!json)
        printf("%-44s %8s %12s %12s %9s %12s %21s\n", "", "T", "forward", "backward", "first/it", "memory",
               "time, memory, count");
    for (int i = 0; i < lengths * kinds; i++) {
        const struct bench_attention_row *row = &rows[i], *first = &rows[i - i % kinds];
        const struct bench_attention_row *before = i >= kinds ? &rows[i - kinds] : NULL;
        const double ratio = seconds_of(first) / seconds_of(row);
        const double time = before ? seconds_of(row) / seconds_of(before) : 0;
        const double memory = before ? bytes_of(row) / bytes_of(before) : 0;
        const double count = before ? row->flops / before->flops : 0;
        if (json) {
            printf("%s{\"kind\": \"%s\", \"length\": %lld, \"forward_s\": %.9f, \"backward_s\": %.9f, "
                   "\"first_over_this\": %.3f, \"tensor_bytes\": %zu, \"scratch_bytes\": %zu",
                   i ? ", " : "", row->name, (long long)row->length, row->forward_s, row->backward_s, ratio,
                   row->tensor_bytes, row->scratch_bytes);
            if (before)
                printf(", \"time_growth\": %.3f, \"memory_growth\": %.3f, \"count_growth\": %.3f", time, memory, count);
            if (peak > 0) print_rates(row, peak, true);
            printf("}");
            continue;
        }
        const int places = peak > 0 ? 4 : 2; /* a GPU's passes take microseconds */
        printf("%-44.44s %8lld %10.*fms %10.*fms %8.2fx %8.2f MiB", row->name, (long long)row->length, places,
               1e3 * row->forward_s, places, 1e3 * row->backward_s, ratio, bytes_of(row) / mebi);
        if (before) printf("  %5.2fx %5.2fx %5.2fx", time, memory, count);
        if (peak > 0) print_rates(row, peak, false);
        printf("\n");
    }
    if (json) printf("]}\n");
}

static enum status run_attention(int argc, char **argv) {
    struct layers_command c = {.options = {.repeats = 3, .length_count = 4}, .lengths = {1024, 2048, 4096, 8192}};
    struct bench_attention_row *rows = NULL;
    enum status status;
    TRY_GOTO(done, layers_read(argc, argv, "lengths", &c));
    const int lengths = c.options.length_count, kinds = c.options.rule_count;
    double peak = 0;
    TRY_GOTO(done, memory_new((size_t)(lengths * kinds), sizeof *rows, "times", &rows));
    TRY_GOTO(done, bench_attention(&c.options, rows));
    TRY_GOTO(done, measure_device(&c.options, &peak));
    print_attention(rows, lengths, kinds, peak, c.json);
done:
    free(rows);
    bench_kinds_free(&c.kinds);
    return status;
}

/* rows: [positions][kinds]. Beside each row what the first kind takes over it, and what it takes over the first
 * position. */
static void print_decode(const struct bench_decode_row *rows, int positions, int kinds, bool json) {
    char cache[16];
    if (json) printf("{\"bench\": \"decode\", \"rows\": [");
    if (!json)
        printf("%-44s %9s %12s %12s %9s %9s %9s\n", "", "position", "a token", "mean", "first/it", "growth", "cache");
    for (int i = 0; i < positions * kinds; i++) {
        const struct bench_decode_row *row = &rows[i];
        const double ratio = rows[i - i % kinds].token_s / row->token_s;
        const double growth = row->token_s / rows[i % kinds].token_s;
        if (json) {
            printf("%s{\"kind\": \"%s\", \"position\": %lld, \"tokens\": %d, \"token_us\": %.3f, \"mean_us\": %.3f, "
                   "\"first_over_this\": %.3f, \"growth\": %.3f, \"cache_bytes\": %.0f}",
                   i ? ", " : "", row->name, (long long)row->position, row->tokens, 1e6 * row->token_s,
                   1e6 * row->mean_s, ratio, growth, row->cache_bytes);
            continue;
        }
        bytes_text(row->cache_bytes, cache);
        printf("%-44.44s %9lld %10.1fus %10.1fus %8.2fx %8.2fx %9s\n", row->name, (long long)row->position,
               1e6 * row->token_s, 1e6 * row->mean_s, ratio, growth, cache);
    }
    if (json) printf("]}\n");
}

static enum status run_decode(int argc, char **argv) {
    struct layers_command c = {.options = {.repeats = 64, .length_count = 2}, .lengths = {128, 16384}};
    struct bench_decode_row *rows = NULL;
    enum status status;
    TRY_GOTO(done, layers_read(argc, argv, "positions", &c));
    const int positions = c.options.length_count, kinds = c.options.rule_count;
    TRY_GOTO(done, memory_new((size_t)(positions * kinds), sizeof *rows, "times", &rows));
    TRY_GOTO(done, bench_decode(&c.options, rows));
    print_decode(rows, positions, kinds, c.json);
done:
    free(rows);
    bench_kinds_free(&c.kinds);
    return status;
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
} benches[] = {{"attention", run_attention}, {"decode", run_decode}, {"step", run_step}, {"prep", run_prep}, {"tune", bench_tune}, {"comm", bench_comm}};

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
    return error_set(STATUS_USAGE,
                     "bench: expected attention, decode, step, prep, tune or comm, found \"%s\"; see squint bench --help", what);
}

const struct command command_bench = {
    .name = "bench",
    .summary = "time and memory of a step, of attention against length, of decoding, of tokenising, of the ranks' exchange",
    .help = "usage: squint bench attention [options]\n"
            "       squint bench decode [options]\n"
            "       squint bench step [options]\n"
            "       squint bench prep --tokenizer DIR --file FILE [--repeats N]\n"
            "       squint bench tune [--out FILE] [options]\n"
            "       mpirun -np N squint bench comm [options]\n"
            "\n"
            "attention: forward and backward of one layer of several kinds, in turns; medians, what the first kind\n"
            "takes over each, and growth from the length before: of time, memory, and the forward pass as counted.\n"
            "  --kinds full,masks:candidates=window(256)+sinks(4),performer:features=272,kerformer:window=0\n"
            "                       kinds and their options; default: full, and a window with sinks:\n"
            "  --window 256 --sinks 4\n"
            "  --lengths 1024 2048 4096 8192 --batch 1 --heads 12 --groups 12 --width 64 --repeats 3\n"
            "decode: a token of one layer against a cache filled from token 0, all kinds in turns at every token;\n"
            "the median of the last tokens up to each position, what the first kind takes over it, growth from the\n"
            "first position; the mean, for no median holds what few tokens do, as completing a block of nsa's; the\n"
            "cache of one sequence.\n"
            "  --kinds, --window, --sinks, --batch, --heads, --groups, --width as above\n"
            "  --positions 128 16384 --repeats 64                         rising; how many tokens are timed\n"
            "step: a step of distillation, teacher and student of GPT-2's shape with random weights; medians.\n"
            "  --layers 12 --heads 12 --width 768 --vocabulary 50257      the shape (GPT-2 124M)\n"
            "  --batch 2 --length 512 --steps 5                           B, T, how many steps are timed\n"
            "  --attention \"kind: masks, candidates: [window(256), sinks(4)]\"   the student's, as in a recipe\n"
            "  --recompute auto|none|layer                                keep every layer, or only its input\n"
            "  --train \"new, attn\"                                        what trains, as in a recipe\n"
            "  --precision fp32|bf16\n"
            "prep: how fast one thread turns a text into ids.\n"
            "tune: kernels of a GPU that come in several sizes of tiles: medians of each, by turns; --out writes which was\n"
            "fastest where, and SQUINT_TUNING=FILE in the environment makes every command use it (no deterministic run "
            "does).\n"
            "  --lengths 1024 4096 16384 65536 --widths 64 --batch 1 --heads 12 --rounds 11\n"
            "comm: how fast the ranks move bytes: every collective at every size, the mean of some on the slowest rank;\n"
            "bytes over time, and what of it each rank's link must carry at least (bus).\n"
            "  --sizes 1024 16384 262144 4194304 67108864 --repeats 20    bytes of the whole buffer\n"
            "  --device cpu|cuda                                          over MPI (default), or over NCCL\n"
            "all:\n"
            "  --device auto|cpu|cuda --threads N                         not of prep; attention and decode on a GPU: "
            "in bf16,\n"
            "                                                             or with cuda-f32 in fp32\n"
            "  --json                                                     figures as one line of JSON\n"
            "\n"
            "example: squint bench step --batch 2 --length 512 --json\n",
    .run = run,
};
