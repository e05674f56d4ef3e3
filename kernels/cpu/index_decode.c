/* The choice of tokens for one query a sequence, against cached index keys: packed a document at a time, so that scores
 * have the bits of index_select. */
#include "kernels/cpu/index.h"

#include <omp.h>

struct work {
    const struct index_decode *a;
    struct index_shape shape;
    struct index_coarse coarse;
    int64_t slots, pooled, most, room;
    struct index_source_rows from;
};

struct unit {
    struct index_queries queries;
    struct index_scratch scratch;
    real *runs, *scores; /* of tokens, or of pooled blocks */
};

static int64_t scored_columns(const struct work *w) {
    return blocks_run_columns(w->a->coarse > 0 ? w->pooled : w->slots);
}

static size_t place(const struct work *w, char *memory, struct unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const struct index_shape *shape = &w->shape;
    const size_t room = (size_t)pad_lanes(w->room), columns = (size_t)scored_columns(w);
    x->queries = (struct index_queries){.rows = 1};
    x->queries.r = arena_take(&arena, (size_t)(shape->heads * shape->padded) * sizeof(real));
    x->queries.a = arena_take(&arena, (size_t)shape->heads * sizeof(real));
    x->scratch.e =
        arena_take(&arena, (size_t)(shape->heads * at_least(INDEX_COLUMNS, w->coarse.columns)) * sizeof(real));
    x->scratch.scores = arena_take(&arena, room * sizeof(real));
    x->scratch.keys = arena_take(&arena, (size_t)(shape->keys * shape->width * w->coarse.columns) * sizeof(real));
    x->scratch.order = arena_take(&arena, room * sizeof(order_key));
    x->scratch.places = arena_take(&arena, room * sizeof(int32_t));
    x->scratch.blocks = arena_take(&arena, room * sizeof(int32_t));
    x->scratch.candidates = arena_take(&arena, room * sizeof(int32_t));
    x->runs = arena_take(&arena, (size_t)(shape->keys * shape->width) * columns * sizeof(real));
    x->scores = arena_take(&arena, columns * sizeof(real));
    return arena.used;
}

/* Scores of `count` rows from `first` of a cache [B,·,N,E], heads `head` … of list's key heads. */
static void score(const struct work *w, const struct unit *x, struct tensor cache, int64_t b, int64_t head,
                  int64_t first, int64_t count, bool add) {
    const struct index_shape *shape = &w->shape;
    const int64_t columns = blocks_run_columns(count);
    for (int64_t k = 0; k < shape->keys; k++) {
        struct rows rows = blocks_rows(cache, b, head + k);
        rows.rows += first * rows.stride;
        NAME(blocks_pack)(rows, count, shape->width, NULL, x->runs + k * columns * shape->width);
    }
    NAME(index_score)
    (shape, &x->queries, x->runs, columns * shape->width, 0, pad_lanes(count), x->scratch.e, add, x->scores, columns);
}

static void choose(const struct work *w, const struct unit *x, int64_t b, int64_t list) {
    const struct index_decode *a = w->a;
    const struct index_shape *shape = &w->shape;
    const int32_t *places = (const int32_t *)a->places.data + 3 * b;
    const int64_t start = places[0], query = start + places[2], high = at_least(query + 1 - a->window, start);
    const int64_t low = at_most(start + a->sinks, high), count = a->counts ? a->counts[list] : w->most;
    const int64_t used = at_most(count, high - low), head = list * shape->keys;
    int32_t *out = (int32_t *)a->chosen.data + (b * shape->lists + list) * w->most;
    NAME(index_load)(shape, &w->from, list, b, &x->queries);
    if (a->coarse > 0) {
        const int64_t whole = (high - start) / a->coarse;
        if (whole > 0) {
            score(w, x, a->pooled, b, head, places[1], whole, false);
            score(w, x, a->pooled, b, shape->lists * shape->keys + head, places[1], whole, true);
        }
        struct index_coarse coarse = w->coarse;
        const struct index_place place_of = {.low = low, .high = high, .start = start};
        coarse.rows = blocks_rows(a->u, b, head);
        coarse.key_step = a->u.stride[2];
        NAME(index_choose_coarse)
        (shape, &coarse, &x->queries, 0, &place_of, x->scores, count, w->most, &x->scratch, out);
        return;
    }
    if (used > 0 && used < high - low) score(w, x, a->u, b, head, start, high - start, false);
    NAME(index_highest)(x->scores + (low - start), high - low, used, x->scratch.order, x->scratch.places);
    for (int64_t n = 0; n < used; n++) out[n] = (int32_t)(low + x->scratch.places[n]);
    for (int64_t n = used; n < w->most; n++) out[n] = -1;
}

enum status NAME(index_decode)(const struct ops *ops, const struct index_decode *a) {
    TRY(check_index_decode(ops, a));
    const int64_t batch = a->r.shape[0], slots = a->u.shape[1];
    struct work w = {.a = a,
                     .shape = index_shape_of(a->lists, a->r.shape[1], a->u.shape[2], a->r.shape[2]),
                     .slots = slots,
                     .room = slots,
                     .most = a->chosen.shape[2],
                     .from = {real_data(a->r), real_data(a->a), a->r.stride[0], a->r.stride[1], a->a.stride[0]}};
    if (a->coarse > 0) {
        w.pooled = a->pooled.shape[1];
        w.coarse = (struct index_coarse){.block = a->coarse,
                                         .looked = a->coarse_blocks,
                                         .columns = pad_lanes(at_most(a->coarse, at_least(slots, 1)))};
        w.room = index_coarse_room(&w.coarse, slots);
    }
    for (int64_t b = 0; b < batch; b++) {
        const int32_t *places = (const int32_t *)a->places.data + 3 * b;
        const int64_t whole = a->coarse > 0 ? at_least(places[2] + 1 - (int64_t)a->window, 0) / a->coarse : 0;
        if (places[0] >= 0 && places[1] >= 0 && places[2] >= 0 && (int64_t)places[0] + places[2] < slots &&
            (a->coarse == 0 || places[1] + whole <= w.pooled))
            continue;
        return error_set(STATUS_SHAPE,
                         "index_decode: places[%lld]: expected places in caches of %lld tokens and %lld "
                         "blocks, found %d, %d, %d",
                         (long long)b, (long long)slots, (long long)w.pooled, places[0], places[1], places[2]);
    }
    struct unit sizes;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, place(&w, NULL, &sizes), &memory, &stride));
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < batch * a->lists; n++) {
        struct unit x;
        place(&w, memory + stride * (size_t)omp_get_thread_num(), &x);
        choose(&w, &x, n / a->lists, n % a->lists);
    }
    return STATUS_OK;
}
