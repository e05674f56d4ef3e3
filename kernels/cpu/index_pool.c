/* Index keys pooled over blocks of tokens: their mean and their largest elements. */
#include "kernels/cpu/index.h"

static void pool_block(const real *u, int64_t u_row, int64_t tokens, int64_t width, real *mean, real *largest) {
    for (int64_t d = 0; d < width; d++) {
        mean[d] = 0;
        largest[d] = u[d];
    }
    for (int64_t t = 0; t < tokens; t++) {
        const real *row = u + t * u_row;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) {
            mean[d] += row[d];
            largest[d] = row[d] > largest[d] ? row[d] : largest[d];
        }
    }
    for (int64_t d = 0; d < width; d++) mean[d] *= 1 / (real)tokens;
}

enum status NAME(index_pool)(const struct ops *ops, const struct index_pool *a) {
    TRY(check_index_pool(ops, a));
    const int64_t batch = a->u.shape[0], length = a->u.shape[1], heads = a->u.shape[2], width = a->u.shape[3];
    const int64_t places = a->pooled.shape[1];
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, 2 * (size_t)(batch * length) * sizeof(int32_t), &memory, &stride));
    int32_t *end = (int32_t *)(void *)memory, *base = end + batch * length;
    TRY(NAME(documents_find)("index_pool", a->start, a->block, a->block, false, end, base));
#pragma omp parallel for collapse(2) num_threads(ops->device->threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++) {
            const struct rows u = blocks_rows(a->u, b, h);
            real *to = real_data(a->pooled) + (b * places * 2 * heads + h) * width;
            int64_t n = 0;
            for (int64_t t = 0; t < length; t = end[b * length + t])
                for (int64_t first = t; first + a->block <= end[b * length + t]; first += a->block, n++) {
                    real *mean = to + n * 2 * heads * width;
                    pool_block(u.rows + first * u.stride, u.stride, a->block, width, mean, mean + heads * width);
                }
            for (; n < places; n++)
                for (int64_t d = 0; d < width; d++)
                    to[n * 2 * heads * width + d] = to[(n * 2 + 1) * heads * width + d] = 0;
        }
    return STATUS_OK;
}
