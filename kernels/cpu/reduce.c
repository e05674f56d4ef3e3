/* Sums in double precision and in an order that only the shape decides. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum reduction { REDUCE_SUM, REDUCE_SQUARES, REDUCE_DIFFERENCE };

static double reduce_piece(enum reduction kind, const real *x, const real *y, int64_t n) {
    double sum = 0;
    if (kind == REDUCE_SUM) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    } else if (kind == REDUCE_SQUARES) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) {
            double d = (double)x[i] - (double)y[i];
            sum += d * d;
        }
    }
    return sum;
}

static enum status reduce(const struct ops *ops, enum reduction kind, struct tensor x, struct tensor y,
                          struct tensor out) {
    bool flat = tensor_is_contiguous(x) && (kind != REDUCE_DIFFERENCE || tensor_is_contiguous(y));
    struct pieces p = pieces_of(x, flat);
    char *block;
    size_t stride;
    TRY(device_scratch(ops, 1, (size_t)p.count * sizeof(double), &block, &stride));
    double *partial = (double *)(void *)block;
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(x) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        const real *xs = real_data(x) + piece_offset(&p, &x, flat, i);
        const real *ys = kind == REDUCE_DIFFERENCE ? real_data(y) + piece_offset(&p, &y, flat, i) : NULL;
        partial[i] = reduce_piece(kind, xs, ys, piece_width(&p, i));
    }
    double sum = 0;
    for (int64_t i = 0; i < p.count; i++) sum += partial[i];
    *(double *)out.data = sum;
    return STATUS_OK;
}

enum status NAME(sum)(const struct ops *ops, struct tensor x, struct tensor out) {
    TRY(check_reduction(ops, "sum", x, out));
    return reduce(ops, REDUCE_SUM, x, tensor_none(), out);
}

enum status NAME(sum_squares)(const struct ops *ops, struct tensor x, struct tensor out) {
    TRY(check_reduction(ops, "sum_squares", x, out));
    return reduce(ops, REDUCE_SQUARES, x, tensor_none(), out);
}

enum status NAME(sum_squares_parts)(const struct ops *ops, struct tensor x, const struct param_part *parts,
                                    int64_t count, struct tensor out) {
    TRY(check_sum_squares_parts(ops, x, parts, count, out));
    for (int64_t p = 0; p < count; p++) {
        TRY(reduce(ops, REDUCE_SQUARES, tensor_rows(x, parts[p].first, parts[p].count), tensor_none(),
                   tensor_rows(out, p, 1)));
    }
    return STATUS_OK;
}

enum status NAME(sum_squared_difference)(const struct ops *ops, struct tensor x, struct tensor y, struct tensor out) {
    TRY(check_reduction(ops, "sum_squared_difference", x, out));
    TRY(check_same("sum_squared_difference", x, y));
    return reduce(ops, REDUCE_DIFFERENCE, x, y, out);
}
