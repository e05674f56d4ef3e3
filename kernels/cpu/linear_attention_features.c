/* Feature maps and their gradients. */
#include "kernels/cpu/linear_attention_internal.h"

void NAME(linear_load)(int64_t count, int64_t width, int64_t pad, struct linear_rows from, int64_t first, real *to) {
    for (int64_t r = 0; r < count; r++) {
        memcpy(to + r * pad, from.rows + (first + r) * from.stride, (size_t)width * sizeof(real));
        for (int64_t d = width; d < pad; d++) to[r * pad + d] = 0;
    }
}

static void exponentials(real *y, int64_t count, real sign, real reference) {
#pragma omp simd
    for (int64_t m = 0; m < count; m++) y[m] = real_exp(sign * y[m] - reference);
}

static real sum_of(const real *y, int64_t count) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t m = 0; m < count; m++) sum += y[m];
    return sum;
}

/* y = W x̂ becomes e^{y − largest}; returns the exponent's largest value, −‖x̂‖²/2 included. */
static real exp_row(const struct linear_call *call, const real *x, real *y) {
    const real most = real_row_max(y, call->columns);
    exponentials(y, call->columns, 1, most);
    const real scale = call->map_scale * call->map_scale / 2;
    return most - scale * real_dot(x, x, call->width);
}

/* Both halves of [softmax(y), softmax(−y)]. */
static void hedgehog_row(const struct linear_call *call, real *y) {
    const int64_t n = call->columns;
    real *minus = y + call->column_pad;
    memcpy(minus, y, (size_t)n * sizeof(real));
    const real most = real_row_max(y, n);
    real least = REAL_INFINITY;
    for (int64_t m = 0; m < n; m++) least = minus[m] < least ? minus[m] : least;
    exponentials(y, n, 1, most);
    exponentials(minus, n, -1, -least);
    const real plus_scale = 1 / sum_of(y, n), minus_scale = 1 / sum_of(minus, n);
    for (int64_t m = 0; m < n; m++) {
        y[m] *= plus_scale;
        minus[m] *= minus_scale;
    }
}

static const real relu_floor = (real)1e-6;

static void relu_row(const struct linear_call *call, const real *bias, real *y) {
    for (int64_t m = 0; m < call->columns; m++) {
        const real x = bias ? y[m] + bias[m] : y[m];
        y[m] = (x > 0 ? x : 0) + relu_floor;
    }
}

void NAME(linear_features)(const struct linear_call *call, const struct linear_map *map, int64_t count, const real *x,
                           int64_t x_stride, real *phi, real *peaks) {
    const int64_t n = call->columns, pad = call->column_pad, row = call->feature_pad;
    NAME(attention_gemm)(count, pad, call->width, x, x_stride, 1, map->transposed, pad, phi, row, false);
    for (int64_t r = 0; r < count; r++) {
        real *y = phi + r * row;
        peaks[r] = 0;
        switch (call->a->features.kind) {
        case FEATURE_EXP:
            peaks[r] = exp_row(call, x + r * x_stride, y);
            break;
        case FEATURE_HEDGEHOG:
            hedgehog_row(call, y);
            break;
        case FEATURE_RELU:
            relu_row(call, map->bias, y);
            break;
        }
        for (int part = 0; part < call->parts; part++)
            for (int64_t m = n; m < pad; m++) y[part * pad + m] = 0;
    }
}

/* d_phi -> dy of one row; returns Σ dy. */
static real row_backward(const struct linear_call *call, const real *phi, real *d) {
    const int64_t n = call->columns, pad = call->column_pad;
    real sum = 0;
    switch (call->a->features.kind) {
    case FEATURE_EXP:
#pragma omp simd reduction(+ : sum)
        for (int64_t m = 0; m < n; m++) {
            d[m] *= phi[m];
            sum += d[m];
        }
        break;
    case FEATURE_HEDGEHOG: {
        const real plus = real_dot(phi, d, n), minus = real_dot(phi + pad, d + pad, n);
        for (int64_t m = 0; m < n; m++) d[m] = phi[m] * (d[m] - plus) - phi[pad + m] * (d[pad + m] - minus);
        break;
    }
    case FEATURE_RELU:
        for (int64_t m = 0; m < n; m++) d[m] = phi[m] > relu_floor ? d[m] : 0;
        break;
    }
    for (int64_t m = n; m < pad; m++) d[m] = 0;
    return sum;
}

void NAME(linear_features_backward)(const struct linear_call *call, const struct linear_map *map, int64_t count,
                                    const real *x, const real *phi, real *d_phi, real *d_x, real *d_map, real *d_bias) {
    const int64_t row = call->feature_pad, pad = call->column_pad, width = call->width_pad;
    const real norm_scale = call->map_scale * call->map_scale;
    for (int64_t r = 0; r < count; r++) {
        real *d = d_phi + r * row;
        const real sum = row_backward(call, phi + r * row, d);
        /* exp: y_m − ‖x̂‖²/2 */
        if (call->a->features.kind == FEATURE_EXP) real_axpy(-norm_scale * sum, x + r * width, d_x + r * width, width);
        if (d_bias) real_axpy(1, d, d_bias, pad);
    }
    NAME(attention_gemm)(count, width, call->columns, d_phi, row, 1, map->rows, width, d_x, width, true);
    if (d_map) NAME(attention_gemm)(call->columns, width, count, d_phi, 1, row, x, width, d_map, width, true);
}
