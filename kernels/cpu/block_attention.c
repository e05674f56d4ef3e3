/* Attention to chosen blocks and a window, forward; the walk is block_attention.h's. Rows keep a running maximum and
 * sum, and their outputs are rescaled when the maximum grows (Milakov and Gimelshein 2018). */
#include "kernels/cpu/block_attention.h"

#include <omp.h>

/* One thread's memory: its key head, packed, the chunk's rows, one tile. */
struct unit {
    struct block_rows rows;
    real *k, *v;         /* [columns][width] transposed block by block; [columns][padded] */
    real *q, *o;         /* [CHUNK_ROWS][padded] */
    real *most, *sums;   /* [CHUNK_ROWS] */
    real *tile_q, *part; /* [TILE_ROWS][padded] */
    real *e;             /* [TILE_ROWS][widest] */
};

static size_t place(const struct block_walk *w, char *memory, void *unit) {
    struct unit *x = unit;
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const int64_t chunk = at_most(CHUNK_ROWS, w->length);
    const size_t rows = NAME(block_rows_place)(w, memory, &x->rows);
    arena_take(&arena, rows);
    x->k = arena_take(&arena, (size_t)(w->columns * w->width) * sizeof(real));
    x->v = arena_take(&arena, (size_t)(w->columns * w->padded) * sizeof(real));
    x->q = arena_take(&arena, (size_t)(chunk * w->padded) * sizeof(real));
    x->o = arena_take(&arena, (size_t)(chunk * w->padded) * sizeof(real));
    x->most = arena_take(&arena, (size_t)chunk * sizeof(real));
    x->sums = arena_take(&arena, (size_t)chunk * sizeof(real));
    x->tile_q = arena_take(&arena, (size_t)(TILE_ROWS * w->padded) * sizeof(real));
    x->part = arena_take(&arena, (size_t)(TILE_ROWS * w->padded) * sizeof(real));
    x->e = arena_take(&arena, (size_t)(TILE_ROWS * w->widest) * sizeof(real));
    return arena.used;
}

/* Scores of one row become weights relative to the row's maximum so far; returns what earlier outputs are multiplied
 * with. */
static real take_row(real *e, int64_t columns, int64_t lo, int64_t hi, real *most, real *sum) {
    const real before = *most, now = real_max(before, real_row_max(e + lo, hi - lo));
    const real rescale = now > before ? real_exp(before - now) : 1;
    *most = now;
    *sum = *sum * rescale + blocks_exponents(e + lo, hi - lo, now);
    for (int64_t u = 0; u < lo; u++) e[u] = 0;
    for (int64_t u = hi; u < columns; u++) e[u] = 0;
    return rescale;
}

static void run_tile(const struct unit *x, const struct key_block *k, int64_t from, int64_t rows) {
    const struct block_walk *w = x->rows.walk;
    const int64_t padded = w->padded, columns = block_columns(k);
    const int32_t *row = x->rows.row + from, *lo = x->rows.lo + from, *hi = x->rows.hi + from;
    real rescale[TILE_ROWS];
    block_gather(row, rows, padded, x->q, x->tile_q);
    NAME(attention_gemm)
    (rows, columns, w->width, x->tile_q, padded, 1, x->k + k->place * w->width, columns, x->e, columns, false);
    for (int64_t r = 0; r < rows; r++)
        rescale[r] = take_row(x->e + r * columns, columns, lo[r], hi[r], &x->most[row[r]], &x->sums[row[r]]);
    NAME(attention_gemm)
    (rows, padded, k->count, x->e, columns, 1, x->v + k->place * padded, padded, x->part, padded, false);
    for (int64_t r = 0; r < rows; r++) {
        real *o = x->o + row[r] * padded;
        const real *part = x->part + r * padded, by = rescale[r];
#pragma omp simd
        for (int64_t d = 0; d < padded; d++) o[d] = o[d] * by + part[d];
    }
}

static void run_chunk(struct unit *x, int64_t h, int64_t first) {
    const struct block_walk *w = x->rows.walk;
    const struct block_attention *a = w->a;
    struct block_rows *rows = &x->rows;
    int64_t n = NAME(block_rows_chunk)(rows, first, w->lists ? h / (w->heads / w->lists) : 0);
    const int64_t count = rows->chunk_rows, last = first + count - 1;
    NAME(blocks_load)(blocks_rows(a->q, rows->b, h), first, count, w->width, (real)a->scale, x->q);
    memset(x->o, 0, (size_t)(count * w->padded) * sizeof(real));
    memset(x->sums, 0, (size_t)count * sizeof(real));
    for (int64_t r = 0; r < count; r++) x->most[r] = -REAL_INFINITY;
    for (; n < rows->block_count && rows->blocks[n].first <= last; n++) {
        NAME(block_rows_find)(rows, n);
        for (int64_t from = 0; from < rows->row_count; from += TILE_ROWS)
            run_tile(x, &rows->blocks[n], from, at_most(TILE_ROWS, rows->row_count - from));
    }
    const struct rows o = blocks_rows(a->o, rows->b, h);
    real *log_sums = real_data(a->log_sums) + (rows->b * w->heads + h) * w->length;
    for (int64_t r = 0; r < count; r++) {
        const bool some = x->sums[r] > 0;
        blocks_store(o, first + r, x->o + r * w->padded, w->width, some ? 1 / x->sums[r] : 0, false);
        log_sums[first + r] = some ? x->most[r] + real_log(x->sums[r]) : -REAL_INFINITY;
    }
}

enum status NAME(block_attention)(const struct ops *ops, const struct block_attention *a) {
    TRY(check_block_attention(ops, a));
    struct block_walk w;
    struct unit sizes;
    char *memory;
    size_t own;
    TRY(NAME(block_walk_open)("block_attention", ops, a, place, &sizes, &w, &memory, &own));
    const int64_t share = w.heads / w.groups;
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < w.batch * w.groups; n++) {
        struct unit x;
        place(&w, memory + own * (size_t)omp_get_thread_num(), &x);
        NAME(block_rows_sequence)(&x.rows, n / w.groups);
        NAME(block_pack)(&x.rows, blocks_rows(a->k, x.rows.b, n % w.groups), x.k, NULL);
        NAME(block_pack)(&x.rows, blocks_rows(a->v, x.rows.b, n % w.groups), NULL, x.v);
        for (int64_t h = n % w.groups * share; h < (n % w.groups + 1) * share; h++)
            for (int64_t first = 0; first < w.length; first += CHUNK_ROWS) run_chunk(&x, h, first);
    }
    return STATUS_OK;
}
