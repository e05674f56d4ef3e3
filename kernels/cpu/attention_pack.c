/* Keys and values of one sequence and key head, packed for the tiles: dense rows, and runs of them transposed. */
#include "kernels/cpu/attention_internal.h"

/* The rows are transposed from their dense copy, where there is one: from a wide stride they would fall into few cache
 * sets. */
static void pack(const struct attention_head *head, const real *from, int64_t stride, int64_t first, real *transposed,
                 real *rows) {
    const int64_t count = at_most(PACK_KEYS, head->length - first), width = head->width, padded = pad_lanes(width);
    from += first * stride;
    if (rows) {
        rows += first * padded;
        for (int64_t j = 0; j < count; j++) {
            memcpy(rows + j * padded, from + j * stride, (size_t)width * sizeof(real));
            for (int64_t d = width; d < padded; d++) rows[j * padded + d] = 0;
        }
    }
    if (!transposed) return;
    transposed += first * width;
    NAME(attention_transpose)(count, width, rows ? rows : from, rows ? padded : stride, transposed, PACK_KEYS);
    for (int64_t d = 0; d < width; d++)
        for (int64_t u = count; u < PACK_KEYS; u++) transposed[d * PACK_KEYS + u] = 0;
}

void NAME(attention_pack_run)(const struct attention_head *head, const struct packed *packed, int64_t first) {
    const int64_t padded = pad_lanes(head->width), count = at_most(PACK_KEYS, head->length - first);
    const size_t bytes = (size_t)(count * padded) * sizeof(real);
    pack(head, head->k, head->k_stride, first, packed->k_transposed, packed->k);
    pack(head, head->v, head->v_stride, first, packed->v_transposed, packed->v);
    if (packed->dk) memset(packed->dk + first * padded, 0, bytes);
    if (packed->dv) memset(packed->dv + first * padded, 0, bytes);
}

void NAME(attention_pack_until)(struct block *block, int64_t end) {
    for (; block->ready < at_most(end, block->head->length); block->ready += PACK_KEYS)
        NAME(attention_pack_run)(block->head, block->packed, block->ready);
}
