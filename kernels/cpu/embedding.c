/* Rows of a table by token id, their gradients, and rotary positions. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

#include <omp.h>

enum status NAME(embedding)(const struct ops *ops, const struct embedding *a) {
    TRY(check_embedding(ops, a));
    int64_t rows = a->x.shape[0], width = a->x.shape[1];
    const int32_t *ids = a->ids.data, *positions = a->positions.data;
    bool placed = tensor_present(a->position_table);
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const real *token = real_data(a->table) + (int64_t)ids[r] * width;
        real *x = real_data(a->x) + r * width;
        if (placed) {
            const real *position = real_data(a->position_table) + (int64_t)positions[r] * width;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) x[c] = token[c] + position[c];
        } else {
            memcpy(x, token, (size_t)width * sizeof(real));
        }
    }
    return STATUS_OK;
}

/* Each thread owns columns, so every element's sum runs over n in ascending order whatever their number. */
static void scatter(const struct ops *ops, struct tensor dx, const int32_t *index, real *table) {
    int64_t rows = dx.shape[0], width = dx.shape[1];
    int64_t blocks = (width + 63) / 64;
#pragma omp parallel for num_threads(ops->device->threads) if (rows * width > PARALLEL_ELEMENTS)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * 64, n = width - first < 64 ? width - first : 64;
        for (int64_t r = 0; r < rows; r++) {
            const real *d = real_data(dx) + r * width + first;
            real *to = table + (int64_t)index[r] * width + first;
#pragma omp simd
            for (int64_t c = 0; c < n; c++) to[c] += d[c];
        }
    }
}

enum status NAME(embedding_backward)(const struct ops *ops, const struct embedding_backward *a) {
    TRY(check_embedding_backward(ops, a));
    if (tensor_present(a->dtable)) scatter(ops, a->dx, a->ids.data, real_data(a->dtable));
    if (tensor_present(a->dposition_table)) {
        scatter(ops, a->dx, a->positions.data, real_data(a->dposition_table));
    }
    return STATUS_OK;
}

enum status NAME(rope)(const struct ops *ops, const struct rope *a) {
    TRY(check_rope(ops, a));
    int64_t batch = a->x.shape[0], length = a->x.shape[1], heads = a->x.shape[2], half = a->x.shape[3] / 2;
    const int32_t *positions = a->positions.data;
    const real *frequencies = real_data(a->frequencies), sign = a->inverse ? -1 : 1;
    char *block;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, (size_t)(2 * half) * sizeof(real), &block, &stride));
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(a->x) > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < batch * length; row++) {
        real *cosine = (real *)(void *)(block + (size_t)omp_get_thread_num() * stride), *sine = cosine + half;
        for (int64_t d = 0; d < half; d++) {
            double angle = (double)positions[row] * (double)frequencies[d];
            cosine[d] = (real)cos(angle);
            sine[d] = sign * (real)sin(angle);
        }
        real *x = real_data(a->x) + row / length * a->x.stride[0] + row % length * a->x.stride[1];
        for (int64_t h = 0; h < heads; h++) {
            real *low = x + h * a->x.stride[2], *high = low + half;
#pragma omp simd
            for (int64_t d = 0; d < half; d++) {
                real u = low[d], v = high[d];
                low[d] = u * cosine[d] - v * sine[d];
                high[d] = v * cosine[d] + u * sine[d];
            }
        }
    }
    return STATUS_OK;
}
