/* What the benchmarks of attention share: what is asked of them, one layer of a kind outside of any model, and the
 * median of its times. Knows kinds only. */
#ifndef SQUINT_EVAL_BENCH_LAYER_H
#define SQUINT_EVAL_BENCH_LAYER_H

#include "attention/attention.h"

enum { BENCH_NAME = 96 };

struct bench_options {
    const char *name;                     /* of the benchmark, for messages: "bench decode" */
    const char *table;                    /* of ops_open */
    int threads;                          /* 0: all */
    const struct config_attention *rules; /* one kind each, with its options */
    int rule_count;
    const int64_t *lengths; /* T; of decoding: tokens that the cache then holds */
    int length_count;
    int64_t batch, heads, groups, width; /* B, H, G, D */
    int repeats;                         /* timed runs of each; of decoding: tokens */
};

/* One kind's layer, with a table of its own. Must stay where it was opened: its parts point at each other. */
struct bench_layer {
    const struct ops *ops;
    struct model_config model;
    struct params params;
    struct attention_layer attention;
};

/* STATUS_USAGE when no kind, length or repeat is asked for, and when a length is below one. */
enum status bench_options_check(const struct bench_options *options);
/* The layer of kind number `rule`, for sequences of at most `length` tokens; what the kind adds has its initial values
 * and trains, as in a stage with train: [new]. `layer` comes zeroed, and is released with bench_layer_close after
 * failures too. STATUS_USAGE: no such device, or what the kind says of its options. */
enum status bench_layer_open(const struct bench_options *options, int rule, int64_t length, struct bench_layer *layer);
void bench_layer_close(struct bench_layer *layer); /* safe on a zeroed one */
/* "masks: candidates window(256) sinks(4), start 0.9 0.1", cut where it does not fit. */
void bench_layer_describe(const struct config_attention *rule, char name[BENCH_NAME]);
/* Median of `count` values, at least one; sorts them. */
double bench_median(double *values, int count);

#endif
