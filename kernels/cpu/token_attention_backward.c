/* The backward pass of token_attention: the same walk. A thread owns a key head, so what queries send back to a key is
 * added by one thread in ascending order of heads and queries. */
#include "kernels/cpu/tokens.h"

#include <omp.h>

struct work {
    const struct token_attention_backward *g;
    struct token_walk walk;
};

/* One thread's memory. */
struct unit {
    real *k, *v, *dk, *dv; /* [T][padded] */
    real *q, *d_o, *dq;    /* [T][padded] of one head, q times the scale */
    real *deltas;          /* [T] */
    real *e, *d;           /* [most tokens of a range] */
    int32_t *cursor;       /* [T] */
    int32_t *tokens;
};

static size_t place(const struct work *w, char *memory, struct unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const size_t reads = (size_t)token_reach_most(&w->walk.reach, w->walk.length);
    real **sequences[] = {&x->k, &x->v, &x->dk, &x->dv, &x->q, &x->d_o, &x->dq};
    for (int n = 0; n < 7; n++)
        *sequences[n] = arena_take(&arena, (size_t)(w->walk.length * w->walk.padded) * sizeof(real));
    x->deltas = arena_take(&arena, (size_t)w->walk.length * sizeof(real));
    x->e = arena_take(&arena, reads * sizeof(real));
    x->d = arena_take(&arena, reads * sizeof(real));
    x->cursor = arena_take(&arena, (size_t)w->walk.length * sizeof(int32_t));
    x->tokens = arena_take(&arena, reads * sizeof(int32_t));
    return arena.used;
}

static void take(const struct work *w, const struct unit *x, real log_sum, int64_t i, int64_t count) {
    const int64_t padded = w->walk.padded;
    const real *q = x->q + i * padded, *d_o = x->d_o + i * padded;
    NAME(token_dots)(padded, q, x->k, x->tokens, count, x->e);
    NAME(token_dots)(padded, d_o, x->v, x->tokens, count, x->d);
    blocks_gradients(x->e, x->d, count, log_sum, x->deltas[i]);
    NAME(token_gather)(padded, x->d, x->k, x->tokens, count, x->dq + i * padded);
    NAME(token_scatter)(padded, x->d, q, x->tokens, count, x->dk);
    NAME(token_scatter)(padded, x->e, d_o, x->tokens, count, x->dv);
}

static void run_head(const struct work *w, const struct unit *x, int64_t b, int64_t h) {
    const struct token_attention *a = &w->g->forward;
    const int64_t list = h / (w->walk.heads / w->walk.reach.lists);
    const struct rows dq = blocks_rows(w->g->dq, b, h);
    const real *log_sums = real_data(a->log_sums) + (b * w->walk.heads + h) * w->walk.length;
    /* o is needed for the deltas alone: dq's rows hold it meanwhile. */
    NAME(blocks_load)(blocks_rows(a->o, b, h), 0, w->walk.length, w->walk.width, 1, x->dq);
    NAME(blocks_load)(blocks_rows(w->g->d_o, b, h), 0, w->walk.length, w->walk.width, 1, x->d_o);
    blocks_deltas(x->dq, x->d_o, w->walk.length, w->walk.padded, x->deltas);
    NAME(blocks_load)(blocks_rows(a->q, b, h), 0, w->walk.length, w->walk.width, (real)a->scale, x->q);
    memset(x->dq, 0, (size_t)(w->walk.length * w->walk.padded) * sizeof(real));
    memset(x->cursor, 0, (size_t)w->walk.length * sizeof(int32_t));
    for (int64_t first = 0; first < w->walk.length; first += w->walk.range)
        for (int64_t i = first; i < w->walk.length; i++) {
            const struct token_set set = token_set_of(&w->walk.reach, b, i, list);
            const int64_t count = token_set_range(&set, first, first + w->walk.range, &x->cursor[i], x->tokens);
            if (count > 0) take(w, x, log_sums[i], i, count);
        }
    for (int64_t i = 0; i < w->walk.length; i++)
        blocks_store(dq, i, x->dq + i * w->walk.padded, w->walk.width, (real)a->scale, false);
}

static void run_unit(const struct work *w, const struct unit *x, int64_t b, int64_t group) {
    const struct token_attention *a = &w->g->forward;
    const int64_t share = w->walk.heads / w->walk.groups;
    const size_t bytes = (size_t)(w->walk.length * w->walk.padded) * sizeof(real);
    NAME(blocks_load)(blocks_rows(a->k, b, group), 0, w->walk.length, w->walk.width, 1, x->k);
    NAME(blocks_load)(blocks_rows(a->v, b, group), 0, w->walk.length, w->walk.width, 1, x->v);
    memset(x->dk, 0, bytes);
    memset(x->dv, 0, bytes);
    for (int64_t h = group * share; h < (group + 1) * share; h++) run_head(w, x, b, h);
    const struct rows dk = blocks_rows(w->g->dk, b, group), dv = blocks_rows(w->g->dv, b, group);
    for (int64_t j = 0; j < w->walk.length; j++) {
        blocks_store(dk, j, x->dk + j * w->walk.padded, w->walk.width, 1, false);
        blocks_store(dv, j, x->dv + j * w->walk.padded, w->walk.width, 1, false);
    }
}

enum status NAME(token_attention_backward)(const struct ops *ops, const struct token_attention_backward *g) {
    TRY(check_token_attention_backward(ops, g));
    const struct token_attention *a = &g->forward;
    struct work w = {.g = g};
    TRY(NAME(token_walk_open)(ops, "token_attention_backward", a, 4, &w.walk));
    struct unit sizes;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, place(&w, NULL, &sizes), &memory, &stride));
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < w.walk.batch * w.walk.groups; n++) {
        struct unit x;
        place(&w, memory + stride * (size_t)omp_get_thread_num(), &x);
        run_unit(&w, &x, n / w.walk.groups, n % w.walk.groups);
    }
    return STATUS_OK;
}
