/* The choice of tokens for all queries: scores of a few rows at a time, of an indexer, of attention itself or drawn. A
 * task is a row block of one list; index keys are packed before. */
#include "kernels/cpu/index.h"

#include "base/rng.h"

#include <omp.h>

struct work {
    const struct index_select *a;
    struct index_shape shape;
    struct token_reach reach;
    struct index_source_rows from;
    struct index_coarse coarse;
    struct index_attention attention;
    int64_t batch, length, most, columns, room;
    int64_t key_elements, blocks, pooled, pooled_columns; /* packed keys of a list's key head; blocks of a sequence */
    int32_t *end, *block_base, *pooled_base;              /* [B,T] */
    real *keys, *pooled_keys;                             /* [B,S] */
};

struct unit {
    struct index_queries queries;
    struct index_scratch scratch;
    real *scores; /* [INDEX_ROWS][columns] of tokens, or of pooled blocks */
    real *q, *mass_e;
};

static bool coarse_on(const struct work *w) {
    return w->a->coarse > 0 && w->a->source == INDEX_LEARNED;
}

static int64_t list_elements(const struct work *w) {
    return w->shape.keys * w->key_elements;
}

static int64_t pooled_elements(const struct work *w) {
    return 2 * w->shape.keys * w->pooled_columns * w->shape.width;
}

static size_t place(struct work *w, char *memory) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const size_t tokens = (size_t)(w->batch * w->length), lists = (size_t)(w->batch * w->shape.lists);
    w->end = arena_take(&arena, tokens * sizeof(int32_t));
    w->block_base = arena_take(&arena, tokens * sizeof(int32_t));
    w->pooled_base = arena_take(&arena, tokens * sizeof(int32_t));
    w->keys = arena_take(&arena, w->a->source == INDEX_LEARNED ? lists * (size_t)list_elements(w) * sizeof(real) : 0);
    w->pooled_keys = arena_take(&arena, coarse_on(w) ? lists * (size_t)pooled_elements(w) * sizeof(real) : 0);
    const size_t attention = (size_t)(w->batch * w->attention.groups * w->attention.run_elements) * sizeof(real);
    w->attention.runs = arena_take(&arena, w->a->source == INDEX_ATTENTION ? attention : 0);
    return arena.used;
}

static size_t place_unit(const struct work *w, char *memory, struct unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const struct index_shape *shape = &w->shape;
    const size_t rows = (size_t)(shape->heads * INDEX_ROWS), room = (size_t)pad_lanes(w->room);
    const bool attention = w->a->source == INDEX_ATTENTION;
    x->queries.r = arena_take(&arena, rows * (size_t)shape->padded * sizeof(real));
    x->queries.a = arena_take(&arena, rows * sizeof(real));
    x->scratch.e = arena_take(&arena, rows * (size_t)at_least(INDEX_COLUMNS, w->coarse.columns) * sizeof(real));
    x->scratch.scores = arena_take(&arena, room * sizeof(real));
    x->scratch.order = arena_take(&arena, room * sizeof(order_key));
    x->scratch.places = arena_take(&arena, room * sizeof(int32_t));
    x->scratch.blocks = arena_take(&arena, room * sizeof(int32_t));
    x->scratch.candidates = arena_take(&arena, room * sizeof(int32_t));
    x->scores = arena_take(&arena, (size_t)(INDEX_ROWS * w->columns) * sizeof(real));
    x->mass_e = arena_take(&arena, attention ? (size_t)(INDEX_ROWS * w->columns) * sizeof(real) : 0);
    x->q = arena_take(&arena, attention ? (size_t)(INDEX_ROWS * w->attention.padded) * sizeof(real) : 0);
    return arena.used;
}

/* Keys of list `list` of sequence b, as the choice reads them. */
static void pack_list(const struct work *w, int64_t b, int64_t list) {
    const struct index_shape *shape = &w->shape;
    real *keys = w->keys + (b * shape->lists + list) * list_elements(w);
    const int64_t n = list * shape->keys;
    for (int64_t k = 0; k < shape->keys && !coarse_on(w); k++) NAME(blocks_pack)
    (blocks_rows(w->a->scores.u, b, n + k), w->length, shape->width, NULL, keys + k * w->key_elements);
    if (!coarse_on(w)) return;
    const int32_t *end = w->end + b * w->length;
    const int64_t block = w->coarse.block, columns = w->coarse.columns;
    for (int64_t k = 0; k < shape->keys; k++) {
        const struct rows u = blocks_rows(w->a->scores.u, b, n + k);
        real *to = keys + k * w->coarse.key_elements;
        for (int64_t t = 0; t < w->length; t = end[t])
            for (int64_t first = t; first < end[t]; first += block, to += w->coarse.block_elements) {
                memset(to, 0, (size_t)(shape->width * columns) * sizeof(real));
                NAME(attention_transpose)
                (at_most(block, end[t] - first), shape->width, u.rows + first * u.stride, u.stride, to, columns);
            }
        for (int half = 0; half < 2; half++) NAME(blocks_pack)
        (blocks_rows(w->a->pooled, b, half * shape->lists * shape->keys + n + k), w->pooled, shape->width, NULL,
         w->pooled_keys + (b * shape->lists + list) * pooled_elements(w) +
             (half * shape->keys + k) * w->pooled_columns * shape->width);
    }
}

static void draw_scores(const struct work *w, int64_t b, int64_t list, int64_t i, int64_t low, int64_t high,
                        real *scores) {
    const uint64_t row = (uint64_t)((b * w->length + i) * w->shape.lists + list);
    for (int64_t j = low; j < high; j++)
        scores[j - low] = (real)rng_uniform(w->a->seed, rng_substream(RNG_INDEX, row), (uint64_t)j);
}

/* Scores of the row block, from column `low` of tokens, or (coarse) of pooled blocks. */
static void score_rows(const struct work *w, struct unit *x, int64_t b, int64_t list, int64_t first, int64_t low,
                       int64_t columns) {
    const struct index_shape *shape = &w->shape;
    const int64_t n = b * shape->lists + list, share = w->attention.heads / shape->lists;
    const int64_t half = shape->keys * w->pooled_columns * shape->width;
    switch (w->a->source) {
    case INDEX_RANDOM:
        break; /* drawn row by row */
    case INDEX_ATTENTION:
        NAME(index_mass)
        (&w->attention, b, list * share, share, first, x->queries.rows, low, w->columns, x->q, x->mass_e, x->scores);
        break;
    default:
        if (columns == 0) break;
        if (!coarse_on(w)) {
            NAME(index_score)
            (shape, &x->queries, w->keys + n * list_elements(w), w->key_elements, low, columns, x->scratch.e, false,
             x->scores, w->columns);
            break;
        }
        for (int part = 0; part < 2; part++) NAME(index_score)
        (shape, &x->queries, w->pooled_keys + n * pooled_elements(w) + part * half, half / shape->keys, low, columns,
         x->scratch.e, part == 1, x->scores, w->columns);
    }
}

/* The tokens of one row: low: first column of its scores. */
static void choose_row(const struct work *w, const struct unit *x, int64_t b, int64_t list, int64_t row,
                       const struct token_set *set, int64_t low) {
    const int64_t most = w->most, count = w->a->counts ? w->a->counts[list] : most, i = set->query;
    const int64_t at = b * w->length + i;
    real *scores = x->scores + row * w->columns;
    int32_t *out = (int32_t *)w->a->chosen.data + (at * w->shape.lists + list) * most;
    if (coarse_on(w)) {
        struct index_coarse coarse = w->coarse;
        coarse.packed = w->keys + (b * w->shape.lists + list) * list_elements(w);
        const struct index_place place_of = {
            .low = set->sinks_end, .high = set->window_first, .start = set->start, .first_block = w->block_base[at]};
        NAME(index_choose_coarse)
        (&w->shape, &coarse, &x->queries, row, &place_of, scores + (w->pooled_base[at] - low), count, most, &x->scratch,
         out);
        return;
    }
    const int64_t rest = at_least((int64_t)set->window_first - set->sinks_end, 0), used = at_most(count, rest);
    if (w->a->source == INDEX_RANDOM)
        draw_scores(w, b, list, i, set->sinks_end, set->window_first, scores);
    else
        scores += set->sinks_end - low;
    NAME(index_highest)(scores, rest, used, x->scratch.order, x->scratch.places);
    for (int64_t n = 0; n < used; n++) out[n] = set->sinks_end + x->scratch.places[n];
    for (int64_t n = used; n < most; n++) out[n] = -1;
}

static void run_rows(const struct work *w, struct unit *x, int64_t b, int64_t list, int64_t first) {
    const int64_t rows = at_most(INDEX_ROWS, w->length - first), last = first + rows - 1;
    const struct token_set one = token_set_of(&w->reach, b, first, list), end = token_set_of(&w->reach, b, last, list);
    int64_t low = one.start / LANES * LANES, high = last;
    if (coarse_on(w)) {
        low = w->pooled_base[b * w->length + first] / LANES * LANES;
        high = w->pooled_base[b * w->length + last] + (end.window_first - end.start) / w->coarse.block;
        /* An earlier document's blocks come first: rows of several documents reach from the first's to the last's. */
    }
    x->queries.rows = rows;
    if (w->a->source == INDEX_LEARNED) {
        struct index_source_rows from = w->from;
        from.r += b * w->a->scores.r.stride[0];
        from.a += b * w->a->scores.a.stride[0];
        NAME(index_load)(&w->shape, &from, list, first, &x->queries);
    }
    score_rows(w, x, b, list, first, low, high > low ? pad_lanes(high - low) : 0);
    for (int64_t r = 0; r < rows; r++) {
        const struct token_set set = token_set_of(&w->reach, b, first + r, list);
        choose_row(w, x, b, list, r, &set, low);
    }
}

static struct work work_of(const struct index_select *a) {
    const struct tensor r = a->scores.r, u = a->scores.u;
    struct work w = {.a = a,
                     .shape = index_shape_of(a->scores.lists, r.shape[2], u.shape[2], r.shape[3]),
                     .reach = token_reach_of(a->start, tensor_none(), a->window, a->sinks),
                     .from = {real_data(r), real_data(a->scores.a), r.stride[1], r.stride[2], a->scores.a.stride[1]},
                     .batch = r.shape[0],
                     .length = r.shape[1],
                     .most = a->chosen.shape[3]};
    w.columns = blocks_run_columns(w.length);
    w.key_elements = w.columns * w.shape.width;
    w.room = w.length;
    if (a->source == INDEX_ATTENTION) w.attention = index_attention_of(a->q, a->k, a->start, a->scale);
    return w;
}

/* How sequences fall into blocks; the first scratch memory holds what this needs. */
static enum status measure_coarse(const struct ops *ops, struct work *w) {
    char *memory;
    size_t stride;
    int64_t blocks = 0;
    const int64_t block = w->a->coarse, width = w->shape.width;
    TRY(device_scratch(ops, 1, 2 * (size_t)(w->batch * w->length) * sizeof(int32_t), &memory, &stride));
    int32_t *end = (int32_t *)(void *)memory, *base = end + w->batch * w->length;
    TRY(NAME(documents_find)("index_select", w->a->start, block, block, true, end, base));
    for (int64_t b = 0; b < w->batch; b++) {
        int64_t own = 0;
        for (int64_t t = 0; t < w->length; t = end[b * w->length + t])
            own += (end[b * w->length + t] - t + block - 1) / block;
        blocks = at_least(own, blocks);
    }
    const int64_t columns = pad_lanes(at_most(block, at_least(w->length, 1)));
    w->coarse = (struct index_coarse){.block = block,
                                      .looked = w->a->coarse_blocks,
                                      .columns = columns,
                                      .block_elements = width * columns,
                                      .key_elements = blocks * width * columns};
    w->key_elements = w->coarse.key_elements;
    w->pooled = w->a->pooled.shape[1];
    w->pooled_columns = blocks_run_columns(w->pooled);
    w->columns = w->pooled_columns;
    w->room = index_coarse_room(&w->coarse, w->length);
    return STATUS_OK;
}

enum status NAME(index_select)(const struct ops *ops, const struct index_select *a) {
    TRY(check_index_select(ops, a));
    TRY(device_document_ends("index_select", a->start, NULL));
    struct work w = work_of(a);
    if (coarse_on(&w)) TRY(measure_coarse(ops, &w));
    struct unit sizes;
    const size_t shared = (place(&w, NULL) + 255) / 256 * 256, own = (place_unit(&w, NULL, &sizes) + 255) / 256 * 256;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, shared + own * (size_t)ops->device->threads, &memory, &stride));
    place(&w, memory);
    if (coarse_on(&w)) {
        TRY(NAME(documents_find)("index_select", a->start, a->coarse, a->coarse, true, w.end, w.block_base));
        TRY(NAME(documents_find)("index_select", a->start, a->coarse, a->coarse, false, w.end, w.pooled_base));
    }
    const int64_t parts = (w.length + INDEX_ROWS - 1) / INDEX_ROWS, lists = w.shape.lists;
#pragma omp parallel num_threads(ops->device->threads)
    {
        struct unit x;
        place_unit(&w, memory + shared + own * (size_t)omp_get_thread_num(), &x);
        if (a->source == INDEX_LEARNED) {
#pragma omp for schedule(dynamic)
            for (int64_t n = 0; n < w.batch * lists; n++) pack_list(&w, n / lists, n % lists);
        } else if (a->source == INDEX_ATTENTION) {
#pragma omp for schedule(dynamic)
            for (int64_t n = 0; n < w.batch * w.attention.groups; n++) NAME(blocks_pack)
            (blocks_rows(a->k, n / w.attention.groups, n % w.attention.groups), w.length, w.attention.width, NULL,
             w.attention.runs + n * w.attention.run_elements);
        }
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < w.batch * lists * parts; n++) /* later rows see more: they come first, for balance */
            run_rows(&w, &x, n / (lists * parts), n / parts % lists, (parts - 1 - n % parts) * INDEX_ROWS);
    }
    return STATUS_OK;
}
