/* Attention to a window, sinks and chosen tokens, forward. A thread owns a key head; its keys are taken in ranges that
 * stay in its cache, and every query comes to each range with the tokens that it reads there. Running maximum and sum
 * as in block_attention.c. */
#include "kernels/cpu/tokens.h"

#include <omp.h>

struct work {
    const struct token_attention *a;
    struct token_walk walk;
};

/* One thread's memory. */
struct unit {
    real *k, *v;       /* [T][padded] */
    real *q, *o;       /* [T][padded] of one head, q times the scale */
    real *most, *sums; /* [T] */
    real *e;           /* [most tokens of a range] */
    int32_t *cursor;   /* [T] */
    int32_t *tokens;
};

static size_t place(const struct work *w, char *memory, struct unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const size_t rows = (size_t)(w->walk.length * w->walk.padded) * sizeof(real);
    const size_t reads = (size_t)token_reach_most(&w->walk.reach, w->walk.length);
    x->k = arena_take(&arena, rows);
    x->v = arena_take(&arena, rows);
    x->q = arena_take(&arena, rows);
    x->o = arena_take(&arena, rows);
    x->most = arena_take(&arena, (size_t)w->walk.length * sizeof(real));
    x->sums = arena_take(&arena, (size_t)w->walk.length * sizeof(real));
    x->e = arena_take(&arena, reads * sizeof(real));
    x->cursor = arena_take(&arena, (size_t)w->walk.length * sizeof(int32_t));
    x->tokens = arena_take(&arena, reads * sizeof(int32_t));
    return arena.used;
}

/* Query i takes in the `count` tokens. */
static void take(const struct work *w, const struct unit *x, int64_t i, int64_t count) {
    real *o = x->o + i * w->walk.padded;
    NAME(token_dots)(w->walk.padded, x->q + i * w->walk.padded, x->k, x->tokens, count, x->e);
    const real before = x->most[i], now = real_max(before, real_row_max(x->e, count));
    if (now > before) {
        const real rescale = real_exp(before - now);
        x->sums[i] *= rescale;
        x->most[i] = now;
        for (int64_t d = 0; d < w->walk.padded; d++) o[d] *= rescale;
    }
    x->sums[i] += blocks_exponents(x->e, count, now);
    NAME(token_gather)(w->walk.padded, x->e, x->v, x->tokens, count, o);
}

static void run_head(const struct work *w, const struct unit *x, int64_t b, int64_t h) {
    const struct token_attention *a = w->a;
    const int64_t list = h / (w->walk.heads / w->walk.reach.lists);
    const struct rows o = blocks_rows(a->o, b, h);
    real *log_sums = real_data(a->log_sums) + (b * w->walk.heads + h) * w->walk.length;
    NAME(blocks_load)(blocks_rows(a->q, b, h), 0, w->walk.length, w->walk.width, (real)a->scale, x->q);
    memset(x->o, 0, (size_t)(w->walk.length * w->walk.padded) * sizeof(real));
    memset(x->cursor, 0, (size_t)w->walk.length * sizeof(int32_t));
    for (int64_t i = 0; i < w->walk.length; i++) {
        x->most[i] = -REAL_INFINITY;
        x->sums[i] = 0;
    }
    for (int64_t first = 0; first < w->walk.length; first += w->walk.range)
        for (int64_t i = first; i < w->walk.length; i++) {
            const struct token_set set = token_set_of(&w->walk.reach, b, i, list);
            const int64_t count = token_set_range(&set, first, first + w->walk.range, &x->cursor[i], x->tokens);
            if (count > 0) take(w, x, i, count);
        }
    for (int64_t i = 0; i < w->walk.length; i++) {
        blocks_store(o, i, x->o + i * w->walk.padded, w->walk.width, 1 / x->sums[i], false);
        log_sums[i] = x->most[i] + real_log(x->sums[i]);
    }
}

enum status NAME(token_attention)(const struct ops *ops, const struct token_attention *a) {
    TRY(check_token_attention(ops, a));
    struct work w = {.a = a};
    TRY(NAME(token_walk_open)(ops, "token_attention", a, 2, &w.walk));
    struct unit sizes;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, place(&w, NULL, &sizes), &memory, &stride));
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < w.walk.batch * w.walk.groups; n++) {
        const int64_t b = n / w.walk.groups, group = n % w.walk.groups, share = w.walk.heads / w.walk.groups;
        struct unit x;
        place(&w, memory + stride * (size_t)omp_get_thread_num(), &x);
        NAME(blocks_load)(blocks_rows(a->k, b, group), 0, w.walk.length, w.walk.width, 1, x.k);
        NAME(blocks_load)(blocks_rows(a->v, b, group), 0, w.walk.length, w.walk.width, 1, x.v);
        for (int64_t h = group * share; h < (group + 1) * share; h++) run_head(&w, &x, b, h);
    }
    return STATUS_OK;
}
