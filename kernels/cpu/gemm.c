/* Matrix products through CBLAS, in tiles of one single-threaded call each; bias and activation follow tile by tile. */
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

/* A tile's largest and smallest size. A product of a tile copies its inputs into packed form first: large and square tiles
 * copy least. */
enum { TILE_ROWS = 512, TILE_COLUMNS = 2048, TILE_ROWS_LEAST = 64, TILE_COLUMNS_LEAST = 64 };
/* Multiplications of a tile, at least: below, a parallel region costs more than it saves. More than TILES_WANTED tiles there are
 * only where they would be too large otherwise. */
enum { TILE_WORK = 1 << 22, TILES_WANTED = 4 };

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

struct tiling {
    int64_t rows, columns; /* of a tile */
    int64_t down, across;
};

/* Equal tiles, a function of the shape alone: what CBLAS adds up in which order depends on a tile's size, and the bits must not
 * depend on the number of threads. */
static struct tiling tile_evenly(int64_t rows, int64_t columns, int64_t depth) {
    struct tiling t = {.down = (rows + TILE_ROWS - 1) / TILE_ROWS, .across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS};
    while (t.down * t.across < TILES_WANTED && rows * columns * depth / (2 * t.down * t.across) >= TILE_WORK) {
        int64_t height = rows / t.down, width = columns / t.across;
        if (width >= height && width >= 2 * TILE_COLUMNS_LEAST) {
            t.across *= 2;
        } else if (height >= 2 * TILE_ROWS_LEAST) {
            t.down *= 2;
        } else {
            break;
        }
    }
    /* Whole vectors, so that no tile but the last has a ragged edge. */
    t.rows = ((rows + t.down - 1) / t.down + 15) / 16 * 16;
    t.columns = ((columns + t.across - 1) / t.across + 15) / 16 * 16;
    t.down = (rows + t.rows - 1) / t.rows;
    t.across = (columns + t.columns - 1) / t.columns;
    return t;
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
    const struct tiling tiling = small ? (struct tiling){GEMM_SMALL_ROWS, GEMM_SMALL_COLUMNS, 1,
                                                         (columns + GEMM_SMALL_COLUMNS - 1) / GEMM_SMALL_COLUMNS}
                                       : tile_evenly(rows, columns, depth);
    int64_t tiles = status != STATUS_OK || done ? 0 : tiling.down * tiling.across;
#pragma omp parallel for num_threads(ops->device->threads) schedule(dynamic) if (tiles > 1)
    for (int64_t t = 0; t < tiles; t++) {
        int64_t first = t / tiling.across * tiling.rows, start = t % tiling.across * tiling.columns;
        int64_t height = smaller(tiling.rows, rows - first), width = smaller(tiling.columns, columns - start);
        if (small)
            NAME(gemm_small)(a, start, width);
        else
            multiply(a, first, height, start, width);
        finish(a, first, height, start, width, NULL);
    }
    omp_set_num_threads(before);
    return status;
}
