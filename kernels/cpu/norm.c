/* LayerNorm and RMSNorm with the residual sum fused, and their backward pass. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/partial.h"
#include "kernels/cpu/rows.h"

/* One row: returns rstd, sets *mean (0 for RMS). Two passes over a row that is in cache: no cancellation. */
static real normalise(const struct norm *a, const real *restrict x, real *restrict y, real *mean, int64_t width) {
    const real *weight = real_data(a->weight), *bias = real_data(a->bias);
    real centre = 0, square = 0;
    if (a->kind == NORM_LAYER) {
#pragma omp simd reduction(+ : centre)
        for (int64_t c = 0; c < width; c++) centre += x[c];
        centre /= (real)width;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < width; c++) square += (x[c] - centre) * (x[c] - centre);
    real rstd = 1 / real_sqrt(square / (real)width + (real)a->epsilon);
    if (tensor_present(a->bias)) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) y[c] = (x[c] - centre) * rstd * weight[c] + bias[c];
    } else {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) y[c] = (x[c] - centre) * rstd * weight[c];
    }
    *mean = centre;
    return rstd;
}

enum status NAME(norm)(const struct ops *ops, const struct norm *a) {
    TRY(check_norm(ops, a));
    int64_t rows = a->x.shape[0], width = a->x.shape[1];
    bool add = tensor_present(a->delta);
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const real *x = real_data(a->x) + r * width;
        if (add) {
            const real *delta = real_data(a->delta) + r * width;
            real *sum = real_data(a->sum) + r * width;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] = x[c] + delta[c];
            x = sum;
        }
        real mean;
        real_data(a->rstd)[r] = normalise(a, x, real_data(a->y) + r * width, &mean, width);
        if (a->kind == NORM_LAYER) real_data(a->mean)[r] = mean;
    }
    return STATUS_OK;
}

/* dx of one row, and its share of dweight and dbias (either may be NULL). */
static void normalise_backward(const struct norm_backward *a, int64_t r, int64_t width, real *dweight, real *dbias) {
    const real *x = real_data(a->x) + r * width, *dy = real_data(a->dy) + r * width, *weight = real_data(a->weight);
    real *dx = real_data(a->dx) + r * width;
    const real mean = a->kind == NORM_LAYER ? real_data(a->mean)[r] : 0, rstd = real_data(a->rstd)[r];
    real sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (int64_t c = 0; c < width; c++) {
        real g = dy[c] * weight[c];
        sum += g;
        product += g * ((x[c] - mean) * rstd);
    }
    sum = a->kind == NORM_LAYER ? sum / (real)width : 0;
    product /= (real)width;
    if (a->overwrite_dx) { /* without reading dx, which may hold anything */
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            dx[c] = rstd * (dy[c] * weight[c] - sum - (x[c] - mean) * rstd * product);
        }
    } else {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            dx[c] += rstd * (dy[c] * weight[c] - sum - (x[c] - mean) * rstd * product);
        }
    }
    if (dweight) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) dweight[c] += dy[c] * ((x[c] - mean) * rstd);
    }
    if (dbias) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) dbias[c] += dy[c];
    }
}

enum status NAME(norm_backward)(const struct ops *ops, const struct norm_backward *a) {
    TRY(check_norm_backward(ops, a));
    int64_t rows = a->x.shape[0], width = a->x.shape[1];
    bool weight = tensor_present(a->dweight), bias = tensor_present(a->dbias);
    struct partials p;
    TRY(partials_make(ops, rows, (weight + bias) * width, &p));
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t part = 0; part < p.count; part++) {
        real *sums = partials_start(&p, part);
        for (int64_t r = partials_first(&p, part); r < partials_first(&p, part + 1); r++) {
            normalise_backward(a, r, width, weight ? sums : NULL, bias ? sums + weight * width : NULL);
        }
    }
    if (weight) partials_add(ops, &p, 0, width, real_data(a->dweight));
    if (bias) partials_add(ops, &p, weight * width, width, real_data(a->dbias));
    return STATUS_OK;
}

enum status NAME(bias_backward)(const struct ops *ops, struct tensor dy, struct tensor dbias) {
    TRY(check_bias_backward(ops, dy, dbias));
    int64_t rows = dy.shape[0], width = dy.shape[1];
    struct partials p;
    TRY(partials_make(ops, rows, width, &p));
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t part = 0; part < p.count; part++) {
        real *sums = partials_start(&p, part);
        for (int64_t r = partials_first(&p, part); r < partials_first(&p, part + 1); r++) {
            const real *d = real_data(dy) + r * dy.stride[0];
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sums[c] += d[c];
        }
    }
    partials_add(ops, &p, 0, width, real_data(dbias));
    return STATUS_OK;
}
