/* Which queries read which key blocks: cutting sequences into blocks, inverting the lists of choices. Integers, and
 * packing. */
#include "kernels/cpu/block_attention.h"

static enum status check_lists(const char *operation, const struct block_walk *walk) {
    const struct block_attention *a = walk->a;
    for (int64_t b = 0; b < walk->batch; b++) {
        const int32_t *start = (const int32_t *)a->start.data + b * a->start.stride[0];
        for (int64_t n = 0; n < walk->length * walk->lists; n++) {
            const int64_t i = n / walk->lists, own = (i - start[i]) / a->block;
            const int32_t *list = (const int32_t *)a->chosen.data + (b * walk->length * walk->lists + n) * walk->select;
            int32_t before = -1;
            for (int64_t s = 0; s < walk->select; s++) {
                const bool ended = s > 0 && list[s - 1] < 0;
                if (list[s] == -1 || (!ended && list[s] > before && list[s] <= own)) {
                    before = list[s];
                    continue;
                }
                return error_set(STATUS_SHAPE,
                                 "%s: chosen[%lld,%lld,%lld,%lld]: expected a block number above %d, up to %lld, "
                                 "or -1 to the end, found %d",
                                 operation, (long long)b, (long long)i, (long long)(n % walk->lists), (long long)s,
                                 before, (long long)own, list[s]);
            }
        }
    }
    return STATUS_OK;
}

static enum status measure(const char *operation, struct block_walk *walk, int32_t *memory) {
    const struct block_attention *a = walk->a;
    walk->end = memory;
    walk->base = memory + walk->batch * walk->length;
    TRY(NAME(documents_find)(operation, a->start, a->block, a->block, true, walk->end, walk->base));
    TRY(check_lists(operation, walk));
    for (int64_t b = 0; b < walk->batch; b++) {
        const int32_t *end = walk->end + b * walk->length;
        int64_t blocks = 0, columns = 0;
        for (int64_t t = 0; t < walk->length; t = end[t]) {
            const int64_t tokens = end[t] - t, whole = tokens / a->block;
            blocks += (tokens + a->block - 1) / a->block;
            columns += whole * pad_lanes(a->block) + pad_lanes(tokens - whole * a->block);
        }
        walk->blocks_most = at_least(blocks, walk->blocks_most);
        walk->columns = at_least(columns, walk->columns);
    }
    return STATUS_OK;
}

enum status NAME(block_walk_open)(const char *operation, const struct ops *ops, const struct block_attention *a,
                                  size_t (*place)(const struct block_walk *walk, char *memory, void *unit), void *unit,
                                  struct block_walk *walk, char **memory, size_t *bytes) {
    *walk = (struct block_walk){.ops = ops, .a = a, .batch = a->q.shape[0], .length = a->q.shape[1]};
    walk->heads = a->q.shape[2];
    walk->width = a->q.shape[3];
    walk->padded = pad_lanes(walk->width);
    walk->groups = a->k.shape[2];
    walk->widest = pad_lanes(at_most(a->block, at_least(walk->length, 1)));
    walk->lists = tensor_present(a->chosen) ? a->chosen.shape[2] : 0;
    walk->select = walk->lists ? a->chosen.shape[3] : 0;
    const size_t tokens = (size_t)(walk->batch * walk->length),
                 shared = (2 * tokens * sizeof(int32_t) + 255) / 256 * 256;
    size_t stride;
    TRY(device_scratch(ops, 1, shared, memory, &stride));
    TRY(measure(operation, walk, (int32_t *)(void *)*memory));
    *bytes = place(walk, NULL, unit);
    /* The second call may move what the first one held. */
    TRY(device_scratch(ops, 1, shared + *bytes * (size_t)ops->device->threads, memory, &stride));
    walk->end = (int32_t *)(void *)*memory;
    walk->base = walk->end + tokens;
    *memory += shared;
    return NAME(documents_find)(operation, a->start, a->block, a->block, true, walk->end, walk->base);
}

size_t NAME(block_rows_place)(const struct block_walk *walk, char *memory, struct block_rows *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const int64_t rows = at_most(CHUNK_ROWS, walk->length);
    *x = (struct block_rows){.walk = walk};
    x->blocks = arena_take(&arena, (size_t)walk->blocks_most * sizeof *x->blocks);
    x->offsets = arena_take(&arena, (size_t)(walk->blocks_most + 1) * sizeof(int32_t));
    x->choosers = arena_take(&arena, (size_t)(rows * walk->select) * sizeof(int32_t));
    x->row = arena_take(&arena, (size_t)rows * sizeof(int32_t));
    x->lo = arena_take(&arena, (size_t)rows * sizeof(int32_t));
    x->hi = arena_take(&arena, (size_t)rows * sizeof(int32_t));
    return arena.used;
}

void NAME(block_rows_sequence)(struct block_rows *x, int64_t b) {
    const struct block_walk *walk = x->walk;
    const int32_t *end = walk->end + b * walk->length;
    int64_t count = 0, place = 0;
    for (int64_t t = 0; t < walk->length; t = end[t])
        for (int64_t first = t; first < end[t]; first += walk->a->block) {
            struct key_block *k = &x->blocks[count++];
            *k = (struct key_block){(int32_t)first, (int32_t)at_most(walk->a->block, end[t] - first), (int32_t)place};
            place += block_columns(k);
        }
    x->b = b;
    x->block_count = count;
}

int64_t NAME(block_rows_chunk)(struct block_rows *x, int64_t first, int64_t list) {
    const struct block_walk *walk = x->walk;
    const int32_t *base = walk->base + x->b * walk->length;
    const int32_t *lists = (const int32_t *)walk->a->chosen.data;
    x->chunk = first;
    x->chunk_rows = at_most(CHUNK_ROWS, walk->length - first);
    x->low_block = base[first];
    if (!walk->lists) return x->low_block;
    lists += ((x->b * walk->length + first) * walk->lists + list) * walk->select;
    const int64_t stride = walk->lists * walk->select, blocks = x->block_count - x->low_block;
    memset(x->offsets, 0, (size_t)(blocks + 1) * sizeof(int32_t));
    /* Counts, then ends, then filled from the back: offsets[n] is left at the first chooser of block n. */
    for (int64_t r = 0; r < x->chunk_rows; r++)
        for (int64_t s = 0; s < walk->select && lists[r * stride + s] >= 0; s++)
            x->offsets[base[first + r] - x->low_block + lists[r * stride + s]]++;
    for (int64_t n = 1; n <= blocks; n++) x->offsets[n] += x->offsets[n - 1];
    for (int64_t r = x->chunk_rows - 1; r >= 0; r--)
        for (int64_t s = 0; s < walk->select && lists[r * stride + s] >= 0; s++)
            x->choosers[--x->offsets[base[first + r] - x->low_block + lists[r * stride + s]]] = (int32_t)r;
    return x->low_block;
}

void NAME(block_rows_find)(struct block_rows *x, int64_t n) {
    const struct block_walk *walk = x->walk;
    const struct key_block *k = &x->blocks[n];
    const int64_t window = walk->a->window, document_end = walk->end[x->b * walk->length + k->first];
    /* Rows whose window reaches the block. */
    int64_t from = at_least(k->first - x->chunk, 0), to = from;
    if (window > 0) to = at_most(at_most(k->first + k->count - 1 + window, document_end) - x->chunk, x->chunk_rows);
    x->row_count = 0;
    for (int64_t r = from; r < to; r++) {
        const int64_t i = x->chunk + r - k->first; /* own column; columns beyond it are the future */
        x->row[x->row_count] = (int32_t)r;
        x->lo[x->row_count] = (int32_t)at_least(i - window + 1, 0);
        x->hi[x->row_count++] = (int32_t)at_most(i + 1, k->count);
    }
    if (!walk->lists) return;
    for (int64_t c = x->offsets[n - x->low_block]; c < x->offsets[n - x->low_block + 1]; c++) {
        const int64_t r = x->choosers[c];
        if (r >= from && r < to) {
            x->lo[r - from] = 0;
            continue;
        }
        x->row[x->row_count] = (int32_t)r;
        x->lo[x->row_count] = 0;
        x->hi[x->row_count++] = (int32_t)at_most(x->chunk + r - k->first + 1, k->count);
    }
}

void NAME(block_pack)(const struct block_rows *x, struct rows from, real *transposed, real *dense) {
    const int64_t width = x->walk->width, padded = x->walk->padded;
    for (int64_t n = 0; n < x->block_count; n++) {
        const struct key_block *k = &x->blocks[n];
        const int64_t columns = block_columns(k);
        const real *source = from.rows + k->first * from.stride;
        int64_t stride = from.stride;
        if (dense) {
            NAME(blocks_load)(from, k->first, k->count, width, 1, dense + k->place * padded);
            source = dense + k->place * padded;
            stride = padded;
        }
        if (!transposed) continue;
        real *to = transposed + k->place * width;
        NAME(attention_transpose)(k->count, width, source, stride, to, columns);
        for (int64_t d = 0; d < width && k->count < columns; d++)
            for (int64_t u = k->count; u < columns; u++) to[d * columns + u] = 0;
    }
}
