/* Softmax attention over candidate sets: passes and costs; the cache is in mixture_cache.c. */
#include "attention/mixture.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

struct mixture_saved {
    struct tensor log_sums; /* [B,H,count,T] */
};

enum status mixture_plan(const struct attention_layer *layer, int count, struct arena *arena, int64_t batch, int64_t length,
                         void **saved) {
    struct mixture_saved *made = NULL;
    TRY(memory_new(1, sizeof *made, "attention's plan", &made));
    made->log_sums = arena_4d(arena, layer->params->ops->statistic, batch, layer->model->heads, count, length);
    *saved = made;
    return STATUS_OK;
}

static struct attention describe(const struct attention_layer *layer, const struct mixture *mixture,
                                 const struct attention_pass *pass) {
    const struct mixture_saved *saved = pass->saved;
    struct attention a = {
        .q = pass->q, .k = pass->k, .v = pass->v, .start = pass->start, .o = pass->o,
        .coefficients = mixture->coefficients, .log_sums = saved->log_sums, .count = mixture->count,
        .causal = layer->model->causal, .scale = 1.0 / sqrt((double)layer->model->head_width),
    };
    for (int m = 0; m < mixture->count; m++) {
        /* No token is that far back: an empty candidate contributes nothing and costs nothing. */
        const struct candidate nothing = {.kind = CANDIDATE_OFFSET, .a = INT32_MAX};
        a.candidates[m] = mixture->off >> m & 1 ? nothing : mixture->candidates[m];
    }
    return a;
}

enum status mixture_forward(const struct attention_layer *layer, const struct mixture *mixture,
                            const struct attention_pass *pass) {
    struct attention a = describe(layer, mixture, pass);
    return pass->ops->attention(pass->ops, &a);
}

enum status mixture_backward(const struct attention_layer *layer, const struct mixture *mixture,
                             const struct attention_pass *pass) {
    struct attention_backward b = {
        .forward = describe(layer, mixture, pass), .d_o = pass->d_o, .dq = pass->dq, .dk = pass->dk, .dv = pass->dv,
        .dcoefficients = mixture->dcoefficients,
        /* A candidate that starts at, or passes through, zero must still learn. */
        .dead_gradients = tensor_present(mixture->dcoefficients),
    };
    return pass->ops->attention_backward(pass->ops, &b);
}

void mixture_reach(const struct mixture *mixture, int64_t length, int64_t *ring, int64_t *pinned) {
    *ring = 1;
    *pinned = 0;
    for (int m = 0; m < mixture->count; m++) {
        const struct candidate *c = &mixture->candidates[m];
        int64_t reach = 0;
        if (mixture->off >> m & 1) continue;
        switch (c->kind) {
        case CANDIDATE_FULL:
        case CANDIDATE_STRIDE: reach = length; break;
        case CANDIDATE_WINDOW:
        case CANDIDATE_BLOCKS: reach = c->a; break;
        case CANDIDATE_OFFSET: reach = (int64_t)c->a + 1; break;
        case CANDIDATE_DILATED: reach = ((int64_t)c->a - 1) * c->b + 1; break;
        case CANDIDATE_SINKS: *pinned = c->a > *pinned ? c->a : *pinned; break;
        }
        if (reach > *ring) *ring = reach;
    }
    if (*ring >= length) {
        *ring = length;
        *pinned = 0;
    } else if (*pinned > length) {
        *pinned = length;
    }
}

static bool is_interval(const struct candidate *c) {
    return c->kind == CANDIDATE_FULL || c->kind == CANDIDATE_WINDOW || c->kind == CANDIDATE_SINKS ||
           c->kind == CANDIDATE_BLOCKS || (c->kind == CANDIDATE_DILATED && c->b == 1);
}

/* [*first, *end): the tokens of an interval candidate that query i reads in a document that begins at 0. */
static void interval_of(const struct candidate *c, int64_t i, int64_t *first, int64_t *end) {
    *first = 0;
    *end = i + 1;
    if (c->kind == CANDIDATE_WINDOW || c->kind == CANDIDATE_DILATED) *first = i - c->a + 1 > 0 ? i - c->a + 1 : 0;
    if (c->kind == CANDIDATE_SINKS) *end = c->a < i + 1 ? c->a : i + 1;
    if (c->kind == CANDIDATE_BLOCKS) *first = i / c->a * c->a;
}

static bool sees(const struct candidate *c, int64_t i, int64_t j) {
    int64_t first, end;
    switch (c->kind) {
    case CANDIDATE_OFFSET: return i - j == c->a;
    case CANDIDATE_STRIDE: return j % c->a == 0;
    case CANDIDATE_DILATED: return (i - j) % c->b == 0 && (i - j) / c->b < c->a;
    default: interval_of(c, i, &first, &end); return j >= first && j < end;
    }
}

static bool seen_before(const struct mixture *mixture, uint32_t live, int m, int64_t i, int64_t j) {
    for (int other = 0; other < mixture->count; other++) {
        const struct candidate *c = &mixture->candidates[other];
        bool counted = is_interval(c) || other < m;
        if (other != m && counted && (live >> other & 1) && sees(c, i, j)) return true;
    }
    return false;
}

/* Tokens in the union of the intervals. */
static int64_t interval_pairs(const struct mixture *mixture, uint32_t live, int64_t i) {
    int64_t total = 0, covered = 0; /* [0, covered) is counted, walking the intervals by their first token */
    for (;;) {
        int64_t best_first = INT64_MAX, best_end = 0;
        for (int m = 0; m < mixture->count; m++) {
            if (!(live >> m & 1) || !is_interval(&mixture->candidates[m])) continue;
            int64_t first, end;
            interval_of(&mixture->candidates[m], i, &first, &end);
            if (first < covered) first = covered;
            if (first < end && (first < best_first || (first == best_first && end > best_end))) {
                best_first = first;
                best_end = end;
            }
        }
        if (best_first == INT64_MAX) return total;
        total += best_end - best_first;
        covered = best_end;
    }
}

static int64_t scattered_pairs(const struct mixture *mixture, uint32_t live, int64_t i) {
    int64_t total = 0;
    for (int m = 0; m < mixture->count; m++) {
        const struct candidate *c = &mixture->candidates[m];
        if (!(live >> m & 1) || is_interval(c)) continue;
        int64_t step = c->kind == CANDIDATE_STRIDE ? c->a : c->kind == CANDIDATE_DILATED ? c->b : c->a;
        int64_t first = c->kind == CANDIDATE_STRIDE ? i / step * step : c->kind == CANDIDATE_OFFSET ? i - c->a : i;
        int64_t count = c->kind == CANDIDATE_STRIDE ? i / step + 1 : c->kind == CANDIDATE_OFFSET ? 1 : c->a;
        for (int64_t t = 0, j = first; t < count && j >= 0; t++, j -= step) total += !seen_before(mixture, live, m, i, j);
    }
    return total;
}

double mixture_pairs(const struct mixture *mixture, uint32_t live, int64_t length) {
    int64_t queries = length < 16384 ? length : 8192;
    double total = 0;
    for (int64_t n = 0; n < queries; n++) {
        int64_t i = queries == length ? n : (int64_t)(((double)n + 0.5) * (double)length / (double)queries);
        total += (double)(interval_pairs(mixture, live, i) + scattered_pairs(mixture, live, i));
    }
    return total * (double)length / (double)queries;
}

void mixture_cost(const struct model_config *model, const struct mixture *mixture, const uint32_t *alive, int64_t length,
                  struct attention_cost *cost) {
    double pairs = 0, last = 0;
    for (int64_t h = 0; h < model->heads; h++) {
        if (h == 0 || alive[h] != alive[h - 1]) last = mixture_pairs(mixture, alive[h], length);
        pairs += last;
    }
    double causal = 0.5 * (double)length * ((double)length + 1) * (double)model->heads;
    int64_t ring, pinned;
    mixture_reach(mixture, length, &ring, &pinned);
    *cost = (struct attention_cost){
        .density = pairs / causal,
        .flops = 4.0 * (double)model->head_width * pairs / (double)length,
        .decode_bytes = 2.0 * (double)(ring + pinned) * (double)(model->kv_heads * model->head_width) * sizeof(float),
    };
}
