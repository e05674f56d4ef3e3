/* One attention problem as the tests of attention see it: its inputs in double, a naive T×T reference written from the
 * definitions alone, and a runner of any table. */
#ifndef SQUINT_TESTS_OPS_ATTENTION_CASE_H
#define SQUINT_TESTS_OPS_ATTENTION_CASE_H

#include "kernels/ops.h"

/* A row of a test table. Documents: case_new_start, by `cuts`. */
struct attention_case {
    const char *name;
    int64_t batch, length, heads, groups, width;
    int count;
    struct candidate candidates[CANDIDATES_MAX];
    double coefficients[2][CANDIDATES_MAX]; /* of even and of odd heads */
    int64_t cuts[8];
    bool bidirectional, plain /* no coefficients */, shared /* one row for all heads */, fused /* strided q, k, v */;
    bool dead_gradients;
    double magnitude; /* of the scores; 0: 1 */
};

/* Every array is dense, in double: q, o, d_o, dq [B,T,H,D]; k, v, dk, dv [B,T,G,D]; coefficients, dcoefficients
 * [H,count]; log_sums [B,H,count,T]. start: [B,T]. */
struct attention_arrays {
    double *q, *k, *v, *d_o, *coefficients;
    double *o, *log_sums, *dq, *dk, *dv, *dcoefficients;
    int32_t *start;
};

/* The table of awkward problems that most tests walk. */
extern const struct attention_case attention_cases[];
extern const int attention_case_count;

#define FULL                                                                                                           \
    { CANDIDATE_FULL, 0, 0 }
#define WINDOW(a)                                                                                                      \
    { CANDIDATE_WINDOW, a, 0 }
#define SINKS(a)                                                                                                       \
    { CANDIDATE_SINKS, a, 0 }
#define OFFSET(a)                                                                                                      \
    { CANDIDATE_OFFSET, a, 0 }
#define DILATED(a, b)                                                                                                  \
    { CANDIDATE_DILATED, a, b }
#define STRIDE(a)                                                                                                      \
    { CANDIDATE_STRIDE, a, 0 }
#define BLOCKS(a)                                                                                                      \
    { CANDIDATE_BLOCKS, a, 0 }

/* Whether candidate c shows key j to the query at i (ops.h). */
bool case_shows(const struct candidate *c, bool causal, const int32_t *start, int64_t i, int64_t j);

/* Inputs drawn from `seed`; outputs cleared. Released with case_free. */
void case_fill(const struct attention_case *row, uint64_t seed, struct attention_arrays *x);
void case_free(struct attention_arrays *x);
/* q, k, v and d_o become the nearest numbers that bf16 holds: what a table of bf16 gets. */
void case_round(const struct attention_case *row, struct attention_arrays *x);
/* Outputs from inputs, T×T. */
void case_reference(const struct attention_case *row, struct attention_arrays *x);
/* Outputs from inputs by a table's operations. backward false: only o and log_sums. */
void case_run(const struct ops *ops, const struct attention_case *row, struct attention_arrays *x, bool backward);
/* Prints and fails when an output of `found` differs from `expected` by more than tolerance × the array's largest. */
void case_compare(const struct attention_case *row, const char *what, const struct attention_arrays *expected,
                  const struct attention_arrays *found, double tolerance);
/* [count] in a table's memory, of F64, F32 or BF16 (rounded to nearest). Given back with ops->release. */
struct tensor case_to_device(const struct ops *ops, enum dtype dtype, const double *from, int64_t count);
void case_from_device(const struct ops *ops, struct tensor t, double *to);
/* Number of elements of q and of k. */
int64_t case_query_count(const struct attention_case *row);
int64_t case_key_count(const struct attention_case *row);

#endif
