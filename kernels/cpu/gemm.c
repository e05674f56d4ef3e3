/* Matrix products through CBLAS, in tiles whose bias and activation are applied while the tile is in cache.
 * The tiles depend on the shapes alone and each is one single-threaded CBLAS call: the same bits at any thread count.
 */
#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm_small.h"

#include <cblas.h>
#include <omp.h>

#ifdef SQUINT_REAL_F64
#define CBLAS_GEMM cblas_dgemm
#else
#define CBLAS_GEMM cblas_sgemm
#endif

enum { TILE_ROWS = 256, TILE_COLUMNS = 1024 };
/* Below this many multiplications a parallel region costs more than it saves. */
enum { PARALLEL_WORK = 1 << 16 };

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

/* What is left to do on rows first … first+rows−1, columns start … start+columns−1 of c: takes them from `part`
 * [rows,columns] when that is not NULL, then bias, pre and activation. */
static void finish(const struct gemm *a, int64_t first, int64_t rows, int64_t start, int64_t columns,
                   const float *part) {
    bool bias = tensor_present(a->bias), pre = tensor_present(a->pre);
    if (!part && !bias && !pre && a->activation == ACTIVATION_NONE) return;
    for (int64_t i = 0; i < rows; i++) {
        real *c = real_data(a->c) + (first + i) * a->c.stride[0] + start;
        if (part && a->accumulate) {
#pragma omp simd
            for (int64_t j = 0; j < columns; j++) c[j] += part[i * columns + j];
        } else if (part) {
#pragma omp simd
            for (int64_t j = 0; j < columns; j++) c[j] = part[i * columns + j];
        }
        finish_row(a, c, bias ? real_data(a->bias) + start : NULL,
                   pre ? real_data(a->pre) + (first + i) * a->pre.stride[0] + start : NULL, columns);
    }
}

static void multiply(const struct gemm *a, int64_t first, int64_t rows, int64_t start, int64_t columns) {
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
}

enum status NAME(gemm)(const struct ops *ops, const struct gemm *a) {
    TRY(check_gemm(ops, a));
    int64_t rows = a->c.shape[0], columns = a->c.shape[1], depth = a->a.shape[a->transpose_a ? 0 : 1];
    if (rows == 0 || columns == 0) return STATUS_OK;
    /* Libraries run on this thread alone inside a team; a team of one they do not see, so they are told. */
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    bool done = false;
    enum status status = STATUS_OK;
#ifndef SQUINT_REAL_F64
    if (a->bf16) status = bf16_gemm(ops, a, finish, &done);
#endif
    bool small = rows <= GEMM_SMALL_ROWS && !a->transpose_a;
    int64_t high = small ? GEMM_SMALL_ROWS : TILE_ROWS, wide = small ? GEMM_SMALL_COLUMNS : TILE_COLUMNS;
    int64_t down = (rows + high - 1) / high, across = (columns + wide - 1) / wide;
    int64_t tiles = status != STATUS_OK || done ? 0 : down * across;
#pragma omp parallel for num_threads(ops->device->threads) schedule(dynamic) if (rows * columns * depth > PARALLEL_WORK)
    for (int64_t t = 0; t < tiles; t++) {
        int64_t first = t / across * high, start = t % across * wide;
        int64_t height = smaller(high, rows - first), width = smaller(wide, columns - start);
        if (small)
            NAME(gemm_small)(a, start, width);
        else
            multiply(a, first, height, start, width);
        finish(a, first, height, start, width, NULL);
    }
    omp_set_num_threads(before);
    return status;
}
