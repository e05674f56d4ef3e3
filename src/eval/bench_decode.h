/* Time of decoding against position: one layer's attention to a cache that grows token by token, several kinds in turns
 * at every token so that a machine's moods touch all of them alike. Knows kinds only, no model. */
#ifndef SQUINT_EVAL_BENCH_DECODE_H
#define SQUINT_EVAL_BENCH_DECODE_H

#include "eval/bench_layer.h"

struct bench_decode_row {
    char name[BENCH_NAME]; /* "nsa: window 512" */
    int64_t position;      /* tokens in the cache, the last one that is timed with them */
    int tokens;            /* how many are timed, ending there: `repeats`, or all when there are fewer */
    double token_s;        /* median of wall time, of all B sequences' token */
    double mean_s;         /* of the same tokens: with what only some of them do, as nsa's when a block completes */
    double cache_bytes;    /* of one sequence at this position, as the kind counts them */
};

/* options->lengths: positions, rising; every cache is opened for the last of them and filled from its first token with
 * random q, k, v, x, the same for all kinds. rows: [length_count][rule_count], all kinds of a position side by side.
 * Shows its progress. STATUS_USAGE: bench_options_check, positions that do not rise, or what the kind says of its
 * options. */
enum status bench_decode(const struct bench_options *options, struct bench_decode_row *rows);

#endif
