/* Copies with conversion, fills, scaled sums, random numbers. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

#include "base/bf16.h"
#include "base/rng.h"

#define CONVERT(from_type, to_type, expression)                                                                        \
    do {                                                                                                               \
        const from_type *x = from;                                                                                     \
        to_type *y = to;                                                                                               \
        for (int64_t i = 0; i < n; i++) y[i] = (to_type)(expression);                                                  \
    } while (0)

static void convert(const void *from, enum dtype from_dtype, void *to, enum dtype to_dtype, int64_t n) {
    if (from_dtype == to_dtype) {
        memmove(to, from, (size_t)n * dtype_size(to_dtype));
    } else if (from_dtype == DTYPE_F32) {
        if (to_dtype == DTYPE_F64)
            CONVERT(float, double, x[i]);
        else
            CONVERT(float, uint16_t, bf16_from_float(x[i]));
    } else if (from_dtype == DTYPE_F64) {
        if (to_dtype == DTYPE_F32)
            CONVERT(double, float, x[i]);
        else
            CONVERT(double, uint16_t, bf16_from_float((float)x[i]));
    } else {
        if (to_dtype == DTYPE_F32)
            CONVERT(uint16_t, float, bf16_to_float(x[i]));
        else
            CONVERT(uint16_t, double, bf16_to_float(x[i]));
    }
}

static inline char *at(struct tensor t, int64_t offset) {
    return (char *)t.data + offset * (int64_t)dtype_size(t.dtype);
}

enum status NAME(copy)(const struct ops *ops, struct tensor from, struct tensor to) {
    TRY(check_copy(from, to));
    bool flat = tensor_is_contiguous(from) && tensor_is_contiguous(to);
    struct pieces p = pieces_of(to, flat);
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(to) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        convert(at(from, piece_offset(&p, &from, flat, i)), from.dtype, at(to, piece_offset(&p, &to, flat, i)),
                to.dtype, piece_width(&p, i));
    }
    return STATUS_OK;
}

static void fill_piece(void *to, enum dtype dtype, double value, int64_t n) {
    if (dtype == DTYPE_F32) {
        float *y = to, v = (float)value;
        for (int64_t i = 0; i < n; i++) y[i] = v;
    } else if (dtype == DTYPE_F64) {
        double *y = to;
        for (int64_t i = 0; i < n; i++) y[i] = value;
    } else if (dtype == DTYPE_BF16) {
        uint16_t *y = to, v = bf16_from_float((float)value);
        for (int64_t i = 0; i < n; i++) y[i] = v;
    } else {
        int32_t *y = to, v = (int32_t)value;
        for (int64_t i = 0; i < n; i++) y[i] = v;
    }
}

enum status NAME(fill)(const struct ops *ops, struct tensor x, double value) {
    if (!tensor_present(x)) return error_set(STATUS_SHAPE, "fill: x: expected a tensor, found nothing");
    TRY(check_tensor("fill", "x", x, x.dtype, x.rank, x.shape));
    if (x.dtype != DTYPE_F32 && x.dtype != DTYPE_F64 && x.dtype != DTYPE_BF16 && x.dtype != DTYPE_I32) {
        return error_set(STATUS_SHAPE, "fill: x: expected f32, f64, bf16 or i32, found %s", dtype_name(x.dtype));
    }
    bool flat = tensor_is_contiguous(x);
    struct pieces p = pieces_of(x, flat);
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(x) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        fill_piece(at(x, piece_offset(&p, &x, flat, i)), x.dtype, value, piece_width(&p, i));
    }
    return STATUS_OK;
}

enum status NAME(add_scaled)(const struct ops *ops, double alpha, struct tensor x, struct tensor y) {
    TRY(check_float(ops, "add_scaled", "x", x));
    TRY(check_same("add_scaled", x, y));
    bool flat = tensor_is_contiguous(x) && tensor_is_contiguous(y);
    struct pieces p = pieces_of(y, flat);
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(y) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        real_axpy((real)alpha, real_data(x) + piece_offset(&p, &x, flat, i),
                  real_data(y) + piece_offset(&p, &y, flat, i), piece_width(&p, i));
    }
    return STATUS_OK;
}

enum status NAME(scale)(const struct ops *ops, double alpha, struct tensor x) {
    TRY(check_float(ops, "scale", "x", x));
    bool flat = tensor_is_contiguous(x);
    struct pieces p = pieces_of(x, flat);
    const real factor = (real)alpha;
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(x) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        real *y = real_data(x) + piece_offset(&p, &x, flat, i);
        int64_t n = piece_width(&p, i);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) y[j] *= factor;
    }
    return STATUS_OK;
}

enum status NAME(fill_normal)(const struct ops *ops, struct tensor x, double std, uint64_t seed, uint64_t stream) {
    TRY(check_float(ops, "fill_normal", "x", x));
    TRY(check_dense("fill_normal", "x", x, x.dtype, x.rank, x.shape));
    real *y = real_data(x);
    int64_t n = tensor_count(x);
#pragma omp parallel for num_threads(ops->device->threads) if (n > PARALLEL_ELEMENTS / 16)
    for (int64_t i = 0; i < n; i++) y[i] = (real)(std * rng_normal(seed, stream, (uint64_t)i));
    return STATUS_OK;
}
