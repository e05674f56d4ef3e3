/* Attention to chosen blocks and a window, backward: the forward pass's walk; a block's dk and dv are summed where they
 * lie, dq goes back to its rows. */
#include "kernels/cpu/block_attention.h"

#include <omp.h>

struct unit {
    struct block_rows rows;
    const struct block_attention_backward *g;
    real *k_columns, *v_columns; /* [columns][width], transposed block by block */
    real *k, *dk, *dv;           /* [columns][padded] */
    real *q, *d_o, *dq;          /* [CHUNK_ROWS][padded] */
    real *deltas;                /* [CHUNK_ROWS] */
    real *tile_q, *tile_d_o, *part;
    real *e, *d; /* [TILE_ROWS][widest] */
};

static size_t place(const struct block_walk *w, char *memory, void *unit) {
    struct unit *x = unit;
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const int64_t chunk = at_most(CHUNK_ROWS, w->length);
    const size_t first = NAME(block_rows_place)(w, memory, &x->rows);
    real **packed[] = {&x->k, &x->dk, &x->dv}, **rows[] = {&x->q, &x->d_o, &x->dq};
    real **tiles[] = {&x->tile_q, &x->tile_d_o, &x->part};
    arena_take(&arena, first);
    x->k_columns = arena_take(&arena, (size_t)(w->columns * w->width) * sizeof(real));
    x->v_columns = arena_take(&arena, (size_t)(w->columns * w->width) * sizeof(real));
    for (int n = 0; n < 3; n++) *packed[n] = arena_take(&arena, (size_t)(w->columns * w->padded) * sizeof(real));
    for (int n = 0; n < 3; n++) *rows[n] = arena_take(&arena, (size_t)(chunk * w->padded) * sizeof(real));
    for (int n = 0; n < 3; n++) *tiles[n] = arena_take(&arena, (size_t)(TILE_ROWS * w->padded) * sizeof(real));
    x->deltas = arena_take(&arena, (size_t)chunk * sizeof(real));
    x->e = arena_take(&arena, (size_t)(TILE_ROWS * w->widest) * sizeof(real));
    x->d = arena_take(&arena, (size_t)(TILE_ROWS * w->widest) * sizeof(real));
    return arena.used;
}

static void take_row(real *e, real *d, int64_t columns, int64_t lo, int64_t hi, real log_sum, real delta) {
    blocks_gradients(e + lo, d + lo, hi - lo, log_sum, delta);
    for (int64_t u = 0; u < lo; u++) e[u] = d[u] = 0;
    for (int64_t u = hi; u < columns; u++) e[u] = d[u] = 0;
}

static void run_tile(const struct unit *x, const struct key_block *k, const real *log_sums, int64_t from,
                     int64_t rows) {
    const struct block_walk *w = x->rows.walk;
    const int64_t padded = w->padded, columns = block_columns(k);
    const int32_t *row = x->rows.row + from, *lo = x->rows.lo + from, *hi = x->rows.hi + from;
    block_gather(row, rows, padded, x->q, x->tile_q);
    block_gather(row, rows, padded, x->d_o, x->tile_d_o);
    NAME(attention_gemm)
    (rows, columns, w->width, x->tile_q, padded, 1, x->k_columns + k->place * w->width, columns, x->e, columns, false);
    NAME(attention_gemm)
    (rows, columns, w->width, x->tile_d_o, padded, 1, x->v_columns + k->place * w->width, columns, x->d, columns,
     false);
    for (int64_t r = 0; r < rows; r++)
        take_row(x->e + r * columns, x->d + r * columns, columns, lo[r], hi[r], log_sums[row[r]], x->deltas[row[r]]);
    NAME(attention_gemm)
    (k->count, padded, rows, x->e, 1, columns, x->tile_d_o, padded, x->dv + k->place * padded, padded, true);
    NAME(attention_gemm)
    (k->count, padded, rows, x->d, 1, columns, x->tile_q, padded, x->dk + k->place * padded, padded, true);
    NAME(attention_gemm)
    (rows, padded, k->count, x->d, columns, 1, x->k + k->place * padded, padded, x->part, padded, false);
    for (int64_t r = 0; r < rows; r++) real_axpy(1, x->part + r * padded, x->dq + row[r] * padded, padded);
}

static void run_chunk(struct unit *x, int64_t h, int64_t first) {
    const struct block_walk *w = x->rows.walk;
    const struct block_attention *a = w->a;
    struct block_rows *rows = &x->rows;
    int64_t n = NAME(block_rows_chunk)(rows, first, w->lists ? h / (w->heads / w->lists) : 0);
    const int64_t count = rows->chunk_rows, last = first + count - 1;
    /* o is needed for the deltas alone: dq's rows hold it meanwhile. */
    NAME(blocks_load)(blocks_rows(a->o, rows->b, h), first, count, w->width, 1, x->dq);
    NAME(blocks_load)(blocks_rows(x->g->d_o, rows->b, h), first, count, w->width, 1, x->d_o);
    blocks_deltas(x->dq, x->d_o, count, w->padded, x->deltas);
    NAME(blocks_load)(blocks_rows(a->q, rows->b, h), first, count, w->width, (real)a->scale, x->q);
    memset(x->dq, 0, (size_t)(count * w->padded) * sizeof(real));
    const real *log_sums = real_data(a->log_sums) + (rows->b * w->heads + h) * w->length + first;
    for (; n < rows->block_count && rows->blocks[n].first <= last; n++) {
        NAME(block_rows_find)(rows, n);
        for (int64_t from = 0; from < rows->row_count; from += TILE_ROWS)
            run_tile(x, &rows->blocks[n], log_sums, from, at_most(TILE_ROWS, rows->row_count - from));
    }
    const struct rows dq = blocks_rows(x->g->dq, rows->b, h);
    for (int64_t r = 0; r < count; r++)
        blocks_store(dq, first + r, x->dq + r * w->padded, w->width, (real)a->scale, x->g->accumulate_q);
}

static void run_unit(const struct block_walk *w, struct unit *x, int64_t b, int64_t group) {
    const struct block_attention *a = w->a;
    const int64_t share = w->heads / w->groups;
    const size_t bytes = (size_t)(w->columns * w->padded) * sizeof(real);
    NAME(block_rows_sequence)(&x->rows, b);
    NAME(block_pack)(&x->rows, blocks_rows(a->k, b, group), x->k_columns, x->k);
    NAME(block_pack)(&x->rows, blocks_rows(a->v, b, group), x->v_columns, NULL);
    memset(x->dk, 0, bytes);
    memset(x->dv, 0, bytes);
    for (int64_t h = group * share; h < (group + 1) * share; h++)
        for (int64_t first = 0; first < w->length; first += CHUNK_ROWS) run_chunk(x, h, first);
    const struct rows dk = blocks_rows(x->g->dk, b, group), dv = blocks_rows(x->g->dv, b, group);
    for (int64_t n = 0; n < x->rows.block_count; n++) {
        const struct key_block *k = &x->rows.blocks[n];
        for (int64_t j = 0; j < k->count; j++) {
            blocks_store(dk, k->first + j, x->dk + (k->place + j) * w->padded, w->width, 1, x->g->accumulate_kv);
            blocks_store(dv, k->first + j, x->dv + (k->place + j) * w->padded, w->width, 1, x->g->accumulate_kv);
        }
    }
}

enum status NAME(block_attention_backward)(const struct ops *ops, const struct block_attention_backward *g) {
    TRY(check_block_attention_backward(ops, g));
    const struct block_attention *a = &g->forward;
    struct block_walk w;
    struct unit sizes;
    char *memory;
    size_t own;
    TRY(NAME(block_walk_open)("block_attention_backward", ops, a, place, &sizes, &w, &memory, &own));
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < w.batch * w.groups; n++) {
        struct unit x;
        place(&w, memory + own * (size_t)omp_get_thread_num(), &x);
        x.g = g;
        run_unit(&w, &x, n / w.groups, n % w.groups);
    }
    return STATUS_OK;
}
