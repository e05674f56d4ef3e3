/* What the files of kind nsa's operations share: where blocks of keys lie, packed rows, and products with them.
 * Private to kernels/cpu/{block,compressed}*.c. */
#ifndef SQUINT_KERNELS_CPU_BLOCKS_H
#define SQUINT_KERNELS_CPU_BLOCKS_H

#include "kernels/cpu/attention_internal.h"

/* Where the documents of one sequence lie, and the numbers of their blocks. */
struct documents {
    const int32_t *start; /* [T] first token of each token's document */
    const int32_t *end;   /* [T] one past its last token */
    const int32_t *base;  /* [T] number in the sequence of its document's first block */
};

/* Fills end and base [B,T] for blocks of `width` tokens every `stride`; partial: a document's last block may be
 * shorter. STATUS_SHAPE names a start that is neither its token's index nor its predecessor's. */
enum status NAME(documents_find)(const char *operation, struct tensor start, int64_t width, int64_t stride,
                                 bool partial, int32_t *end, int32_t *base);

/* Blocks of `width` every `stride` that lie whole in `count` tokens. */
static inline int64_t blocks_whole(int64_t count, int64_t width, int64_t stride) {
    return count < width ? 0 : (count - width) / stride + 1;
}

static inline struct rows blocks_rows(struct tensor t, int64_t b, int64_t head) {
    return (struct rows){real_data(t) + b * t.stride[0] + head * t.stride[2], t.stride[1]};
}

/* Columns that runs of PACK_KEYS give to `count` rows. */
static inline int64_t blocks_run_columns(int64_t count) {
    return (count + PACK_KEYS - 1) / PACK_KEYS * PACK_KEYS;
}

/* `count` rows of `width`, packed as `dense` [count rounded to a run][padded] and in `runs` of PACK_KEYS rows, each
 * transposed to [width][PACK_KEYS]; zeros beyond. Either may be NULL. */
void NAME(blocks_pack)(struct rows from, int64_t count, int64_t width, real *dense, real *runs);

/* to [rows][padded] = scale · rows first … of `from`, zeros beyond `width`. */
void NAME(blocks_load)(struct rows from, int64_t first, int64_t rows, int64_t width, real scale, real *to);

/* e [rows][columns] = x [rows][pad_lanes(width)] · packed rows first … first+columns−1, from runs; first and columns
 * multiples of LANES. e's row stride: columns. */
void NAME(blocks_products)(int64_t rows, int64_t width, const real *x, const real *runs, int64_t first, int64_t columns,
                           real *e);

/* e [0, count) = e^{e − reference}; returns the sum. */
static inline real blocks_exponents(real *restrict e, int64_t count, real reference) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t u = 0; u < count; u++) {
        const real x = real_exp(e[u] - reference);
        e[u] = x;
        sum += x;
    }
    return sum;
}

/* e becomes the weights e^{e − reference}, d (the gradient of the weights) the gradient of the scores. */
static inline void blocks_gradients(real *restrict e, real *restrict d, int64_t count, real reference, real delta) {
#pragma omp simd
    for (int64_t u = 0; u < count; u++) {
        const real x = real_exp(e[u] - reference);
        e[u] = x;
        d[u] = x * (d[u] - delta);
    }
}

/* Row sums of two dense row blocks' products, into delta [rows]. */
static inline void blocks_deltas(const real *o, const real *d_o, int64_t rows, int64_t padded, real *delta) {
    for (int64_t r = 0; r < rows; r++) delta[r] = real_dot(o + r * padded, d_o + r * padded, padded);
}

/* Row i of `to` = (or +=) scale · a row of `width`. */
static inline void blocks_store(struct rows to, int64_t i, const real *from, int64_t width, real scale,
                                bool accumulate) {
    real *row = to.rows + i * to.stride;
    if (accumulate) {
        real_axpy(scale, from, row, width);
        return;
    }
    for (int64_t d = 0; d < width; d++) row[d] = scale * from[d];
}

/* How selection blocks follow from compressed ones, all in units of the stride. */
struct choosing {
    int64_t compress, stride, block; /* tokens */
    int64_t overlap, units;          /* compress / stride, block / stride */
    int64_t select;
};

static inline struct choosing choosing_of(int32_t compress, int32_t stride, int32_t block, int32_t select) {
    return (struct choosing){.compress = compress,
                             .stride = stride,
                             .block = block,
                             .overlap = compress / stride,
                             .units = block / stride,
                             .select = select};
}

/* Elements of `units` and of an importance row that `visible` compressed blocks need at most. */
static inline int64_t choosing_units(const struct choosing *c, int64_t visible) {
    return (visible + c->overlap - 1 + c->units - 1) / c->units * c->units + c->units;
}

/* units [choosing_units] += (or, first: =) factor · the weights of the visible compressed blocks, spread over the
 * strides that each covers. */
void NAME(choosing_add)(const struct choosing *c, const real *weights, int64_t visible, real factor, bool first,
                        real *units);
/* importance [blocks] of the selection blocks that some visible compressed block overlaps; returns how many. */
int64_t NAME(choosing_importance)(const struct choosing *c, const real *units, int64_t visible, real *importance);
/* chosen [select]: of the query with `place` tokens before it in its document. importance: `known` blocks, 0 beyond;
 * has room for place / block + 1 and LANES more, and is spoilt. best: room for `select`. */
void NAME(choosing_select)(const struct choosing *c, int64_t place, real *importance, int64_t known, real *best,
                           int32_t *chosen);

#endif
