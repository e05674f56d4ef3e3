/* Documents' blocks, packed rows and products with them: what the operations of kind nsa share. */
#include "kernels/cpu/blocks.h"

enum status NAME(documents_find)(const char *operation, struct tensor start, int64_t width, int64_t stride,
                                 bool partial, int32_t *end, int32_t *base) {
    const int64_t batch = start.shape[0], length = start.shape[1];
    TRY(device_document_ends(operation, start, end));
    for (int64_t b = 0; b < batch; b++) {
        const int32_t *row = (const int32_t *)start.data + b * start.stride[0];
        for (int64_t t = 0, next = 0, own = 0; t < length; t++) {
            if (row[t] == t) {
                const int64_t tokens = end[b * length + t] - t;
                own = next;
                next += partial ? (tokens + width - 1) / width : blocks_whole(tokens, width, stride);
            }
            base[b * length + t] = (int32_t)own;
        }
    }
    return STATUS_OK;
}

void NAME(blocks_pack)(struct rows from, int64_t count, int64_t width, real *dense, real *runs) {
    const int64_t padded = pad_lanes(width);
    for (int64_t first = 0; first < count; first += PACK_KEYS) {
        const int64_t rows = at_most(PACK_KEYS, count - first);
        const real *source = from.rows + first * from.stride;
        int64_t stride = from.stride;
        if (dense) {
            NAME(blocks_load)(from, first, rows, width, 1, dense + first * padded);
            memset(dense + (first + rows) * padded, 0, (size_t)((PACK_KEYS - rows) * padded) * sizeof(real));
            source = dense + first * padded;
            stride = padded;
        }
        if (!runs) continue;
        real *run = runs + first * width;
        NAME(attention_transpose)(rows, width, source, stride, run, PACK_KEYS);
        for (int64_t d = 0; d < width && rows < PACK_KEYS; d++)
            for (int64_t u = rows; u < PACK_KEYS; u++) run[d * PACK_KEYS + u] = 0;
    }
}

void NAME(blocks_load)(struct rows from, int64_t first, int64_t rows, int64_t width, real scale, real *to) {
    const int64_t padded = pad_lanes(width);
    for (int64_t r = 0; r < rows; r++) {
        const real *row = from.rows + (first + r) * from.stride;
        for (int64_t d = 0; d < width; d++) to[r * padded + d] = scale * row[d];
        for (int64_t d = width; d < padded; d++) to[r * padded + d] = 0;
    }
}

void NAME(blocks_products)(int64_t rows, int64_t width, const real *x, const real *runs, int64_t first, int64_t columns,
                           real *e) {
    const int64_t padded = pad_lanes(width);
    for (int64_t u = 0, n; u < columns; u += n) {
        const int64_t at = first + u, within = at % PACK_KEYS;
        n = at_most(PACK_KEYS - within, columns - u);
        NAME(attention_gemm)
        (rows, n, width, x, padded, 1, runs + (at - within) * width + within, PACK_KEYS, e + u, columns, false);
    }
}
