/* What the files of attention share: the problem as every thread sees it, and one head of it.
 * Private to kernels/cpu/attention*.c. */
#ifndef SQUINT_KERNELS_CPU_ATTENTION_INTERNAL_H
#define SQUINT_KERNELS_CPU_ATTENTION_INTERNAL_H

#include "kernels/cpu/attention_set.h"
#include "kernels/cpu/cpu.h"

/* One query head of one sequence: its candidates that are visited, its keys and values. */
struct attention_head {
    int count;
    struct candidate candidates[CANDIDATES_MAX];
    real coefficients[CANDIDATES_MAX];
    int index[CANDIDATES_MAX]; /* place of each visited candidate in the operation's list */
    const int32_t *start;      /* [T] first token of each token's document */
    const int32_t *end;        /* [T] one past its last token */
    bool causal;
    int64_t length, width; /* T, D */
    const real *k, *v;     /* [T] rows of D */
    int64_t k_stride, v_stride;
};

/* One query, pair by pair: the exact form, for rows whose candidates lie too far apart for one common exponent.
 * scores: scratch [T]. q: [D], already scaled. log_sums: of visited candidate m at log_sums[m · stride]; written.
 * o: [D], written. */
void NAME(attention_row)(const struct attention_head *head, int64_t i, const real *q, real *scores, real *log_sums,
                         int64_t stride, real *o);

/* Its backward pass, for keys first … last−1 only. deltas: Σ_j P_ij do_i·v_j of visited candidate m at deltas[m ·
 * stride]: written when `find_deltas` (then first, last must cover all keys), else read. dq, dk, dv: += when not NULL
 * (dq wants the gradient of the scaled q). */
struct attention_row_gradient {
    const real *d_o;
    const real *log_sums;
    real *deltas;
    int64_t stride;
    real *dq, *dk, *dv;
    int64_t dk_stride, dv_stride;
    int64_t first, last;
    bool find_deltas;
};
void NAME(attention_row_backward)(const struct attention_head *head, int64_t i, const real *q,
                                  const struct attention_row_gradient *g);

#endif
