/* Walking over the elements of a view in pieces of fixed size, in an order that no number of threads changes. */
#ifndef SQUINT_KERNELS_CPU_ROWS_H
#define SQUINT_KERNELS_CPU_ROWS_H

#include "base/tensor.h"

/* Pieces of at most PIECE elements, each dense in memory; a contiguous view counts as one long row. */
enum { PIECE = 4096 };

struct pieces {
    int64_t row_width, per_row, count;
};

static inline struct pieces pieces_of(struct tensor t, bool flat) {
    int64_t elements = tensor_count(t);
    int64_t width = flat || t.rank == 0 ? elements : t.shape[t.rank - 1];
    if (elements == 0) return (struct pieces){0};
    int64_t per_row = (width + PIECE - 1) / PIECE;
    return (struct pieces){.row_width = width, .per_row = per_row, .count = per_row * (elements / width)};
}

/* Elements of piece `index`. */
static inline int64_t piece_width(const struct pieces *p, int64_t index) {
    int64_t first = index % p->per_row * PIECE;
    return p->row_width - first < PIECE ? p->row_width - first : PIECE;
}

/* Offset in elements of row `row` when all but the last dimension are counted as rows. */
static inline int64_t row_offset(const struct tensor *t, int64_t row) {
    int64_t offset = 0;
    for (int i = t->rank - 2; i >= 0; i--) {
        offset += row % t->shape[i] * t->stride[i];
        row /= t->shape[i];
    }
    return offset;
}

/* Offset in elements of piece `index` of `t`. */
static inline int64_t piece_offset(const struct pieces *p, const struct tensor *t, bool flat, int64_t index) {
    if (flat) return index * PIECE;
    return row_offset(t, index / p->per_row) + index % p->per_row * PIECE;
}

/* Parallel regions are not worth their start below this many elements. */
enum { PARALLEL_ELEMENTS = 1 << 14 };

#endif
