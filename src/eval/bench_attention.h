/* Time and memory of attention against length: forward and backward of one layer of several kinds, taken in turns so that a
 * machine's moods touch all of them alike. Knows kinds only, no model. */
#ifndef SQUINT_EVAL_BENCH_ATTENTION_H
#define SQUINT_EVAL_BENCH_ATTENTION_H

#include "attention/attention.h"

enum { BENCH_NAME = 96 };

struct bench_attention_options {
    const char *table; /* of ops_open */
    int threads;       /* 0: all */
    const struct config_attention *rules; /* one kind each, with its options */
    int rule_count;
    const int64_t *lengths; /* T */
    int length_count;
    int64_t batch, heads, groups, width; /* B, H, G, D */
    int repeats;                         /* timed runs of each, after one that is not timed */
};

struct bench_attention_row {
    char name[BENCH_NAME]; /* "kerformer: window 64" */
    int64_t length;
    double forward_s, backward_s; /* medians of wall time */
    double processor_s;           /* median of processor time, forward and backward, over all threads */
    size_t tensor_bytes;          /* q, k, v, o, their gradients, what the kind keeps for the backward pass */
    size_t scratch_bytes;         /* what the table keeps beside them */
};

/* rows: [length_count][rule_count], all kinds of a length side by side. Every kind has a table of its own, so that
 * scratch_bytes are its own too. STATUS_USAGE: a count below one, or what the kind says of its options. */
enum status bench_attention(const struct bench_attention_options *options, struct bench_attention_row *rows);

#endif
