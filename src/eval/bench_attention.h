/* Time and memory of attention against length: forward and backward of one layer of several kinds, taken in turns so
 * that a machine's moods touch all of them alike. Knows kinds only, no model. */
#ifndef SQUINT_EVAL_BENCH_ATTENTION_H
#define SQUINT_EVAL_BENCH_ATTENTION_H

#include "eval/bench_layer.h"

struct bench_attention_row {
    char name[BENCH_NAME]; /* "kerformer: window 64" */
    int64_t length;
    double forward_s, backward_s; /* medians of wall time, `repeats` runs after some that are not timed */
    double processor_s;           /* median of processor time, forward and backward, over all threads */
    double flops, batch_flops;    /* of a sequence's forward pass, as the kind counts them, and of B of them */
    size_t tensor_bytes;          /* q, k, v, o, their gradients, what the kind keeps for the backward pass */
    size_t scratch_bytes;         /* what the table keeps beside them */
    double device_peak_bytes;     /* the most that was allocated on a GPU for this kind; 0 on the host */
};

/* rows: [length_count][rule_count], all kinds of a length side by side. Every kind has a table of its own, so that
 * scratch_bytes are its own too. STATUS_USAGE: bench_options_check, or what the kind says of its options. */
enum status bench_attention(const struct bench_options *options, struct bench_attention_row *rows);

#endif
