/* Time and memory of attention against length: forward and backward of several candidate sets, taken in turns so that
 * a machine's moods touch all of them alike. Knows operations only, no model. */
#ifndef SQUINT_EVAL_BENCH_ATTENTION_H
#define SQUINT_EVAL_BENCH_ATTENTION_H

#include "kernels/ops.h"

/* One mixture of candidates; the coefficients are those of every head. */
struct bench_attention_set {
    const char *name;
    struct candidate candidates[CANDIDATES_MAX];
    double coefficients[CANDIDATES_MAX];
    int count;
};

struct bench_attention_options {
    const char *table; /* of ops_open */
    int threads;       /* 0: all */
    const struct bench_attention_set *sets;
    int set_count;
    const int64_t *lengths; /* T */
    int length_count;
    int64_t batch, heads, groups, width; /* B, H, G, D */
    int repeats;                         /* timed runs of each, after one that is not timed */
};

struct bench_attention_row {
    const char *set;
    int64_t length;
    double forward_s, backward_s; /* medians of wall time */
    double processor_s;           /* median of processor time, forward and backward, over all threads */
    size_t tensor_bytes;          /* q, k, v, o, their gradients, log sums */
    size_t scratch_bytes;         /* what the table keeps beside them */
};

/* rows: [length_count][set_count], all sets of a length side by side. Every set has a table of its own, so that
 * scratch_bytes are its own too. STATUS_USAGE: a count below one. */
enum status bench_attention(const struct bench_attention_options *options, struct bench_attention_row *rows);

#endif
