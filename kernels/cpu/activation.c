/* Backward of GELU; SwiGLU both ways. */
#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum status NAME(gelu_backward)(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx) {
    TRY(check_gelu_backward(ops, dy, pre, dx));
    struct pieces p = pieces_of(dx, true);
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(dx) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        const real *d = real_data(dy) + i * PIECE, *x = real_data(pre) + i * PIECE;
        real *out = real_data(dx) + i * PIECE;
        int64_t n = piece_width(&p, i);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) out[j] = d[j] * gelu_slope(x[j]);
    }
    return STATUS_OK;
}

enum status NAME(swiglu)(const struct ops *ops, struct tensor x, struct tensor y) {
    TRY(check_swiglu(ops, x, y));
    int64_t rows = y.shape[0], width = y.shape[1];
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const real *gate = real_data(x) + r * 2 * width, *up = gate + width;
        real *out = real_data(y) + r * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) out[j] = gate[j] * real_sigmoid(gate[j]) * up[j];
    }
    return STATUS_OK;
}

enum status NAME(swiglu_backward)(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx) {
    TRY(check_swiglu_backward(ops, dy, x, dx));
    int64_t rows = dy.shape[0], width = dy.shape[1];
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const real *gate = real_data(x) + r * 2 * width, *up = gate + width, *d = real_data(dy) + r * width;
        real *dgate = real_data(dx) + r * 2 * width, *dup = dgate + width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            real g = gate[j], u = up[j], s = real_sigmoid(g);
            dgate[j] = d[j] * u * (s + g * (s * (1 - s)));
            dup[j] = d[j] * (g * s);
        }
    }
    return STATUS_OK;
}
