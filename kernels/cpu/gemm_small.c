/* Products with few rows (decoding): b is read once, straight from where it lies, where a general product would copy
 * it. */
#include "kernels/cpu/gemm_small.h"

#include "kernels/cpu/cpu.h"

/* c [columns] += Σ of four rows of b, each times its factor. */
static void add_four(const real *factors, const real *restrict b, int64_t stride, real *restrict c, int64_t columns) {
    const real f0 = factors[0], f1 = factors[1], f2 = factors[2], f3 = factors[3];
    const real *restrict b1 = b + stride, *restrict b2 = b + 2 * stride, *restrict b3 = b + 3 * stride;
#pragma omp simd
    for (int64_t j = 0; j < columns; j++) c[j] += (f0 * b[j] + f1 * b1[j]) + (f2 * b2[j] + f3 * b3[j]);
}

static void multiply_plain(const struct gemm *a, int64_t start, int64_t columns) {
    int64_t rows = a->c.shape[0], depth = a->a.shape[1], stride = a->b.stride[0];
    const real *b = real_data(a->b) + start, alpha = (real)a->alpha;
    for (int64_t k = 0; k < depth; k += 4) {
        int64_t left = depth - k;
        for (int64_t i = 0; i < rows; i++) {
            const real *from = real_data(a->a) + i * a->a.stride[0] + k;
            real *c = real_data(a->c) + i * a->c.stride[0] + start;
            if (left >= 4) {
                const real factors[4] = {alpha * from[0], alpha * from[1], alpha * from[2], alpha * from[3]};
                add_four(factors, b + k * stride, stride, c, columns);
            } else {
                for (int64_t d = 0; d < left; d++) real_axpy(alpha * from[d], b + (k + d) * stride, c, columns);
            }
        }
    }
}

/* b [columns,depth]: four dot products at a time share the reading of a row of b. */
static void multiply_transposed(const struct gemm *a, int64_t start, int64_t columns) {
    int64_t rows = a->c.shape[0], depth = a->a.shape[1], stride = a->a.stride[0];
    const real alpha = (real)a->alpha;
    for (int64_t j = start; j < start + columns; j++) {
        const real *b = real_data(a->b) + j * a->b.stride[0];
        real *c = real_data(a->c) + j;
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) {
            const real *a0 = real_data(a->a) + i * stride, *a1 = a0 + stride, *a2 = a1 + stride, *a3 = a2 + stride;
            real s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (int64_t k = 0; k < depth; k++) {
                s0 += a0[k] * b[k];
                s1 += a1[k] * b[k];
                s2 += a2[k] * b[k];
                s3 += a3[k] * b[k];
            }
            const real sums[4] = {s0, s1, s2, s3};
            for (int r = 0; r < 4; r++) c[(i + r) * a->c.stride[0]] += alpha * sums[r];
        }
        for (; i < rows; i++) {
            c[i * a->c.stride[0]] += alpha * real_dot(real_data(a->a) + i * stride, b, depth);
        }
    }
}

void NAME(gemm_small)(const struct gemm *a, int64_t start, int64_t columns) {
    for (int64_t i = 0; !a->accumulate && i < a->c.shape[0]; i++) {
        memset(real_data(a->c) + i * a->c.stride[0] + start, 0, (size_t)columns * sizeof(real));
    }
    if (a->transpose_b)
        multiply_transposed(a, start, columns);
    else
        multiply_plain(a, start, columns);
}
