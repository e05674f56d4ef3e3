/* The indexer's choice on any table: pooled keys, lists of tokens, decoding; shared by the tests that execute kernels
 * on the host and those on a GPU.
 *
 * Where scores are exact (few whole numbers, E a power of 4) a list must be the oracle's, ties and all. Where they are
 * drawn, two scores that are nearer than what a table's sums may be off can change places: then every token of a list
 * must have a score, computed here in double, that no token left out exceeds by more than that. Sums of n products, in
 * fp32 with 2^-23 of the running sum lost a step (tensor cores cut off), are off by at most n·2^-23·Σ|terms|. */
#ifndef SQUINT_TESTS_OPS_CHOICE_DEVICE_H
#define SQUINT_TESTS_OPS_CHOICE_DEVICE_H

#include "tests/ops/device_table.h"
#include "tests/ops/index_case.h"

/* What is put into r, u and a: few numbers; few with zeros of either sign; what is no number among keys, weights,
 * queries. */
enum choice_way { WAY_FEW = 0, WAY_ZEROS, WAY_KEYS, WAY_WEIGHTS, WAY_QUERIES, WAYS };
extern const char *const choice_way_names[WAYS];
void choice_put(const struct index_case *row, struct index_arrays *x, enum choice_way way);

/* Rows around the edges of tiles, of blocks and of documents; rows with several passes over the keys. */
extern const struct index_case choice_rows[];
extern const int choice_row_count;

/* Inputs as a table of this type can hold them. */
void choice_round(const struct ops *ops, const struct index_case *row, struct index_arrays *x);
/* Exact scores, by what is learned and by attention: the oracle's lists. */
void choice_exact(const struct ops *ops, const struct ops *oracle, const struct index_case *row, enum choice_way way);
/* Drawn inputs: pooled keys near the oracle's, lists whose scores are the highest. */
void choice_near(const struct ops *ops, const struct ops *oracle, const struct index_case *row);
/* Two levels with blocks for every token of a document choose what one level does. */
void choice_all_blocks(const struct ops *ops, const struct index_case *row);
/* Random lists: those of the CPU's fp32 table. */
void choice_random(const struct ops *ops, const struct ops *cpu, const struct index_case *row, uint64_t seed);
/* index_decode at every `step`-th query: what index_select chose. */
void choice_decode(const struct ops *ops, const struct index_case *row, int64_t step, bool few);

#endif
