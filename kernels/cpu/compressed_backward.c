/* Attention to compressed keys, backward: a thread owns a sequence and key head, and walks its query heads' rows over
 * tiles of compressed blocks. */
#include "kernels/cpu/blocks.h"

#include <omp.h>

enum { ROWS = 64, COLUMNS = 256 };

struct work {
    const struct compressed_attention_backward *g;
    int64_t batch, length, heads, groups, width, padded, blocks, columns;
    int32_t *end, *base; /* [B,T] */
};

/* One thread's memory: its key head, packed, and a row block. */
struct unit {
    real *k_runs, *v_runs; /* [columns][width] in runs */
    real *k, *dk, *dv;     /* [columns][padded] */
    real *q, *o, *d_o, *dq;
    real *e, *d; /* [ROWS][COLUMNS] */
};

static size_t place(const struct work *w, char *memory, struct unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    real **packed[] = {&x->k, &x->dk, &x->dv}, **rows[] = {&x->q, &x->o, &x->d_o, &x->dq};
    x->k_runs = arena_take(&arena, (size_t)(w->columns * w->width) * sizeof(real));
    x->v_runs = arena_take(&arena, (size_t)(w->columns * w->width) * sizeof(real));
    for (int n = 0; n < 3; n++) *packed[n] = arena_take(&arena, (size_t)(w->columns * w->padded) * sizeof(real));
    for (int n = 0; n < 4; n++) *rows[n] = arena_take(&arena, (size_t)(ROWS * w->padded) * sizeof(real));
    x->e = arena_take(&arena, (size_t)(ROWS * COLUMNS) * sizeof(real));
    x->d = arena_take(&arena, (size_t)(ROWS * COLUMNS) * sizeof(real));
    return arena.used;
}

/* The rows' own columns of a tile become weights and score gradients, the others 0. */
static void tile_gradients(const struct work *w, const struct unit *x, int64_t b, int64_t h, int64_t first,
                           int64_t rows, int64_t column, int64_t columns, const real *deltas) {
    const struct compressed_attention *a = &w->g->forward;
    const int32_t *start = (const int32_t *)a->start.data + b * a->start.stride[0];
    const real *log_sums = real_data(a->log_sums) + (b * w->heads + h) * w->length;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = first + r, base = w->base[b * w->length + i];
        const int64_t stop = base + blocks_whole(i - start[i] + 1, a->compress, a->stride);
        const int64_t lo = at_most(at_least(base - column, 0), columns);
        const int64_t hi = at_least(at_most(stop - column, columns), lo);
        real *e = x->e + r * columns, *d = x->d + r * columns;
        memset(e, 0, (size_t)lo * sizeof(real));
        memset(d, 0, (size_t)lo * sizeof(real));
        blocks_gradients(e + lo, d + lo, hi - lo, log_sums[i], deltas[r]);
        memset(e + hi, 0, (size_t)(columns - hi) * sizeof(real));
        memset(d + hi, 0, (size_t)(columns - hi) * sizeof(real));
    }
}

static void head_rows(const struct work *w, const struct unit *x, int64_t b, int64_t h, int64_t first, int64_t rows) {
    const struct compressed_attention *a = &w->g->forward;
    const int32_t *start = (const int32_t *)a->start.data + b * a->start.stride[0];
    const int64_t last = first + rows - 1, padded = w->padded;
    const int64_t low = w->base[b * w->length + first] / LANES * LANES;
    const int64_t high = w->base[b * w->length + last] + blocks_whole(last - start[last] + 1, a->compress, a->stride);
    real deltas[ROWS];
    NAME(blocks_load)(blocks_rows(a->q, b, h), first, rows, w->width, (real)a->scale, x->q);
    NAME(blocks_load)(blocks_rows(a->o, b, h), first, rows, w->width, 1, x->o);
    NAME(blocks_load)(blocks_rows(w->g->d_o, b, h), first, rows, w->width, 1, x->d_o);
    blocks_deltas(x->o, x->d_o, rows, padded, deltas);
    memset(x->dq, 0, (size_t)(rows * padded) * sizeof(real));
    for (int64_t column = low; column < high; column += COLUMNS) {
        const int64_t count = at_most(COLUMNS, high - column), columns = pad_lanes(count);
        NAME(blocks_products)(rows, w->width, x->q, x->k_runs, column, columns, x->e);
        NAME(blocks_products)(rows, w->width, x->d_o, x->v_runs, column, columns, x->d);
        tile_gradients(w, x, b, h, first, rows, column, columns, deltas);
        NAME(attention_gemm)
        (count, padded, rows, x->e, 1, columns, x->d_o, padded, x->dv + column * padded, padded, true);
        NAME(attention_gemm)
        (count, padded, rows, x->d, 1, columns, x->q, padded, x->dk + column * padded, padded, true);
        NAME(attention_gemm)
        (rows, padded, count, x->d, columns, 1, x->k + column * padded, padded, x->dq, padded, true);
    }
    const struct rows dq = blocks_rows(w->g->dq, b, h);
    for (int64_t r = 0; r < rows; r++)
        blocks_store(dq, first + r, x->dq + r * padded, w->width, (real)a->scale, w->g->accumulate_q);
}

static void run_unit(const struct work *w, const struct unit *x, int64_t b, int64_t group) {
    const struct compressed_attention_backward *g = w->g;
    const int64_t share = w->heads / w->groups;
    NAME(blocks_pack)(blocks_rows(g->forward.k, b, group), w->blocks, w->width, x->k, x->k_runs);
    NAME(blocks_pack)(blocks_rows(g->forward.v, b, group), w->blocks, w->width, NULL, x->v_runs);
    memset(x->dk, 0, (size_t)(w->columns * w->padded) * sizeof(real));
    memset(x->dv, 0, (size_t)(w->columns * w->padded) * sizeof(real));
    for (int64_t h = group * share; h < (group + 1) * share; h++)
        for (int64_t first = 0; first < w->length; first += ROWS)
            head_rows(w, x, b, h, first, at_most(ROWS, w->length - first));
    const struct rows dk = blocks_rows(g->dk, b, group), dv = blocks_rows(g->dv, b, group);
    for (int64_t c = 0; c < w->blocks; c++) {
        blocks_store(dk, c, x->dk + c * w->padded, w->width, 1, false);
        blocks_store(dv, c, x->dv + c * w->padded, w->width, 1, false);
    }
}

enum status NAME(compressed_attention_backward)(const struct ops *ops, const struct compressed_attention_backward *g) {
    TRY(check_compressed_attention_backward(ops, g));
    const struct compressed_attention *a = &g->forward;
    struct work w = {.g = g, .batch = a->q.shape[0], .length = a->q.shape[1], .heads = a->q.shape[2]};
    w.width = a->q.shape[3];
    w.padded = pad_lanes(w.width);
    w.groups = a->k.shape[2];
    w.blocks = a->k.shape[1];
    w.columns = blocks_run_columns(w.blocks);
    struct unit sizes;
    const size_t tokens = (size_t)(w.batch * w.length), own = place(&w, NULL, &sizes);
    char *memory;
    size_t stride, shared = (2 * tokens * sizeof(int32_t) + 255) / 256 * 256;
    TRY(device_scratch(ops, 1, shared + own * (size_t)ops->device->threads, &memory, &stride));
    w.end = (int32_t *)(void *)memory;
    w.base = w.end + tokens;
    TRY(NAME(documents_find)("compressed_attention_backward", a->start, a->compress, a->stride, false, w.end, w.base));
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < w.batch * w.groups; n++) {
        struct unit x;
        place(&w, memory + shared + own * (size_t)omp_get_thread_num(), &x);
        run_unit(&w, &x, n / w.groups, n % w.groups);
    }
    return STATUS_OK;
}
