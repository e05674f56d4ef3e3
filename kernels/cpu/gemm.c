/* Matrix products through CBLAS, in tiles whose bias and activation are applied while the tile is in cache.
 * The tiles depend on the shapes alone and each is one single-threaded CBLAS call: the same bits at any thread count.
 */
#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"

#include <cblas.h>
#include <omp.h>

#ifdef SQUINT_REAL_F64
#define CBLAS_GEMM cblas_dgemm
#else
#define CBLAS_GEMM cblas_sgemm
#endif

enum { TILE_ROWS = 256, TILE_COLUMNS = 1024 };

static inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* CBLAS wants a leading dimension of at least the row's width, even of a matrix with a single row. */
static int leading(struct tensor t) {
    int64_t least = t.shape[1] > 1 ? t.shape[1] : 1;
    return (int)(t.shape[0] > 1 && t.stride[0] > least ? t.stride[0] : least);
}

static void finish_row(const struct gemm *a, real *c, const real *bias, real *pre, int64_t n) {
    if (bias) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) c[j] += bias[j];
    }
    if (pre) memcpy(pre, c, (size_t)n * sizeof(real));
    if (a->activation == ACTIVATION_GELU) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) c[j] = gelu(c[j]);
    }
}

/* Bias, pre and activation on rows first … first+rows−1, columns start … start+columns−1 of c. */
static void finish(const struct gemm *a, int64_t first, int64_t rows, int64_t start, int64_t columns) {
    bool bias = tensor_present(a->bias), pre = tensor_present(a->pre);
    if (!bias && !pre && a->activation == ACTIVATION_NONE) return;
    for (int64_t i = first; i < first + rows; i++) {
        finish_row(a, real_data(a->c) + i * a->c.stride[0] + start, bias ? real_data(a->bias) + start : NULL,
                   pre ? real_data(a->pre) + i * a->pre.stride[0] + start : NULL, columns);
    }
}

static void tile(const struct gemm *a, int64_t first, int64_t rows, int64_t start, int64_t columns) {
    int64_t depth = a->a.shape[a->transpose_a ? 0 : 1];
    const real *as = real_data(a->a) + (a->transpose_a ? first : first * a->a.stride[0]);
    const real *bs = real_data(a->b) + (a->transpose_b ? start * a->b.stride[0] : start);
    real *cs = real_data(a->c) + first * a->c.stride[0] + start;
    if (depth > 0) {
        CBLAS_GEMM(CblasRowMajor, a->transpose_a ? CblasTrans : CblasNoTrans,
                   a->transpose_b ? CblasTrans : CblasNoTrans, (int)rows, (int)columns, (int)depth, (real)a->alpha, as,
                   leading(a->a), bs, leading(a->b), a->accumulate ? 1 : 0, cs, leading(a->c));
    } else if (!a->accumulate) {
        for (int64_t i = 0; i < rows; i++) memset(cs + i * a->c.stride[0], 0, (size_t)columns * sizeof(real));
    }
    finish(a, first, rows, start, columns);
}

enum status NAME(gemm)(const struct ops *ops, const struct gemm *a) {
    TRY(check_gemm(ops, a));
    int64_t rows = a->c.shape[0], columns = a->c.shape[1];
    if (rows == 0 || columns == 0) return STATUS_OK;
    bool done = false;
#ifndef SQUINT_REAL_F64
    if (a->bf16) TRY(bf16_gemm(ops, a, &done));
#endif
    int64_t down = (rows + TILE_ROWS - 1) / TILE_ROWS, across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    /* OpenBLAS runs on this thread alone inside a team; a team of one it does not see, so it is told. */
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
#pragma omp parallel for num_threads(ops->device->threads) schedule(dynamic)
    for (int64_t t = 0; t < down * across; t++) {
        int64_t first = t / across * TILE_ROWS, start = t % across * TILE_COLUMNS;
        int64_t height = smaller(TILE_ROWS, rows - first), width = smaller(TILE_COLUMNS, columns - start);
        if (done)
            finish(a, first, height, start, width);
        else
            tile(a, first, height, start, width);
    }
    omp_set_num_threads(before);
    return STATUS_OK;
}
