/* What the two files of index_learn share: over all pairs, and over those that are read. Private to
 * kernels/cpu/index_learn*.c. */
#ifndef SQUINT_KERNELS_CPU_INDEX_LEARN_H
#define SQUINT_KERNELS_CPU_INDEX_LEARN_H

#include "kernels/cpu/index.h"

struct learn_work {
    const struct index_learn *a;
    struct index_shape shape;
    struct token_reach reach;
    struct index_source_rows from;
    struct index_attention attention;
    bool gradients;
    int64_t batch, length, columns, most, share; /* most: tokens that a query reads; share: heads of a list */
    int64_t parts;                               /* tasks that the rows of a list are dealt to: of shapes alone */
    real *runs, *keys;                           /* [B,S,K] index keys in runs and as rows [T][padded] */
    real *rows;                                  /* [B,G] attention's keys as rows [T][padded], of attended */
    real *d_keys;                                /* [B,S,parts,K] as keys */
    real *hits;                                  /* [B,S,T] */
};

/* One thread's memory. */
struct learn_unit {
    struct index_queries queries;
    real *e;                  /* [J·ROWS][INDEX_COLUMNS], or (attended) [J][most] */
    real *scores, *mass;      /* [ROWS][columns], or (attended) [ROWS][most] */
    real *q, *d_r, *d_a;      /* [ROWS][attention's padded], [J][ROWS][padded], [J][ROWS] */
    real *mass_e;             /* [ROWS][columns] */
    real *d_keys;             /* of the task: [K][T][padded] */
    int32_t *tokens, *counts; /* [ROWS][most], [ROWS] */
};

/* Loss of one row of `count` pairs; its scores become gradient_scale · the gradient by them. */
real NAME(learn_row)(real gradient_scale, const real *mass, real *scores, int64_t count);

/* Rows first … first + queries.rows − 1 of list `list`, loaded: losses, and with gradients d_r, d_a (=) and d_keys
 * (+=). */
void NAME(learn_attended)(const struct learn_work *w, struct learn_unit *x, int64_t b, int64_t list, int64_t first);

/* Index keys of key head n, of all lists, of sequence b: rows [T][padded]. */
static inline const real *learn_keys(const struct learn_work *w, int64_t b, int64_t n) {
    return w->keys + (b * w->shape.lists * w->shape.keys + n) * w->length * w->shape.padded;
}

#endif
