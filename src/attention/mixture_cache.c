/* Decoding for mixtures: a ring of recent keys and values, the document's first ones pinned, and each query's list of slots. */
#include "attention/mixture.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

struct attention_cache {
    int64_t batch, ring, pinned, capacity; /* capacity: slots that one candidate can list */
    int count;
    struct tensor k, v;         /* [B, ring + pinned, G, D] */
    struct tensor slots;        /* [B,count,capacity] I32 */
    struct tensor slot_counts;  /* [B,count] I32 */
    int32_t *host_slots, *host_counts;
    void *block;
};

enum status mixture_cache_open(const struct attention_layer *layer, const struct mixture *mixture, const struct ops *ops,
                               int64_t batch, int64_t length, struct attention_cache **out) {
    const struct model_config *m = layer->model;
    enum status status = STATUS_OK;
    struct attention_cache *cache = NULL;
    TRY(memory_new(1, sizeof *cache, "a decoding cache", &cache));
    mixture_reach(mixture, length, &cache->ring, &cache->pinned);
    cache->batch = batch;
    cache->count = mixture->count;
    cache->capacity = cache->ring + cache->pinned;
    struct arena arena = arena_sizing();
    for (int round = 0; round < 2; round++) {
        if (round == 1) {
            TRY_GOTO(done, ops->allocate(ops, arena.peak, &cache->block));
            arena = arena_placing(cache->block, arena.peak);
        }
        cache->k = arena_4d(&arena, ops->real, batch, cache->capacity, m->kv_heads, m->head_width);
        cache->v = arena_4d(&arena, ops->real, batch, cache->capacity, m->kv_heads, m->head_width);
        cache->slots = arena_3d(&arena, DTYPE_I32, batch, cache->count, cache->capacity);
        cache->slot_counts = arena_2d(&arena, DTYPE_I32, batch, cache->count);
    }
    TRY_GOTO(done, memory_new((size_t)tensor_count(cache->slots), sizeof(int32_t), "slot lists", &cache->host_slots));
    TRY_GOTO(done, memory_new((size_t)tensor_count(cache->slot_counts), sizeof(int32_t), "slot counts", &cache->host_counts));
    TRY_GOTO(done, ops->fill(ops, cache->k, 0));
    TRY_GOTO(done, ops->fill(ops, cache->v, 0));
done:
    if (status != STATUS_OK) {
        mixture_cache_close(ops, cache);
        cache = NULL;
    }
    *out = cache;
    return status;
}

void mixture_cache_close(const struct ops *ops, struct attention_cache *cache) {
    if (!cache) return;
    ops->release(ops, cache->block);
    free(cache->host_slots);
    free(cache->host_counts);
    free(cache);
}

/* Writes [batch,G,D] into one slot of the sequences first … first+count−1. */
static enum status store(const struct ops *ops, struct tensor from, struct tensor cache, int64_t first, int64_t count,
                         int64_t slot) {
    struct tensor to = tensor_rows(cache, first, count);
    struct tensor place = {.data = (char *)to.data + slot * to.stride[1] * (int64_t)dtype_size(to.dtype), .dtype = to.dtype,
                           .rank = 3, .shape = {count, to.shape[2], to.shape[3]}, .stride = {to.stride[0], to.stride[2], 1}};
    return ops->copy(ops, tensor_rows(from, first, count), place);
}

struct slot_list {
    const struct attention_cache *cache;
    int64_t position, start;
    int32_t *slots;
    int32_t count;
};

static void add_token(struct slot_list *list, int64_t token) {
    const struct attention_cache *cache = list->cache;
    if (token < list->start || token > list->position) return;
    int64_t slot = token % cache->ring;
    if (token <= list->position - cache->ring) {
        if (token - list->start >= cache->pinned) return; /* out of reach: no candidate asks for it */
        slot = cache->ring + token - list->start;
    }
    list->slots[list->count++] = (int32_t)slot;
}

static void add_range(struct slot_list *list, int64_t first, int64_t end, int64_t step) {
    if (first < list->start) first += (list->start - first + step - 1) / step * step;
    for (int64_t token = first; token < end; token += step) add_token(list, token);
}

static void list_tokens(const struct candidate *c, struct slot_list *list) {
    int64_t i = list->position, start = list->start;
    switch (c->kind) {
    case CANDIDATE_FULL: add_range(list, start, i + 1, 1); break;
    case CANDIDATE_WINDOW: add_range(list, i - c->a + 1, i + 1, 1); break;
    case CANDIDATE_SINKS: add_range(list, start, start + c->a, 1); break;
    case CANDIDATE_OFFSET: add_token(list, i - c->a); break;
    case CANDIDATE_DILATED: add_range(list, i - (int64_t)c->b * (c->a - 1), i + 1, c->b); break;
    case CANDIDATE_STRIDE: add_range(list, start, i + 1, c->a); break;
    case CANDIDATE_BLOCKS: add_range(list, start + (i - start) / c->a * c->a, i + 1, 1); break;
    }
}

static enum status take_in(struct attention_cache *cache, const struct attention_decode_pass *pass) {
    const struct ops *ops = pass->ops;
    TRY(store(ops, pass->k, cache->k, 0, cache->batch, pass->position % cache->ring));
    TRY(store(ops, pass->v, cache->v, 0, cache->batch, pass->position % cache->ring));
    for (int64_t b = 0; b < cache->batch; b++) {
        int64_t depth = pass->position - pass->start[b];
        if (depth >= cache->pinned) continue;
        TRY(store(ops, pass->k, cache->k, b, 1, cache->ring + depth));
        TRY(store(ops, pass->v, cache->v, b, 1, cache->ring + depth));
    }
    return STATUS_OK;
}

enum status mixture_decode(const struct attention_layer *layer, const struct mixture *mixture, struct attention_cache *cache,
                           const struct attention_decode_pass *pass) {
    const struct ops *ops = pass->ops;
    TRY(take_in(cache, pass));
    for (int64_t b = 0; b < cache->batch; b++) {
        for (int m = 0; m < cache->count; m++) {
            int64_t row = b * cache->count + m;
            struct slot_list list = {.cache = cache, .position = pass->position, .start = pass->start[b],
                                     .slots = cache->host_slots + row * cache->capacity};
            if (!(mixture->off >> m & 1)) list_tokens(&mixture->candidates[m], &list);
            cache->host_counts[row] = list.count;
        }
    }
    TRY(ops->upload(ops, cache->slots, cache->host_slots));
    TRY(ops->upload(ops, cache->slot_counts, cache->host_counts));
    struct attention_decode decode = {
        .q = pass->q, .k = cache->k, .v = cache->v, .slots = cache->slots, .slot_counts = cache->slot_counts,
        .coefficients = mixture->coefficients, .o = pass->o, .count = cache->count, .lists = 1,
        .scale = 1.0 / sqrt((double)layer->model->head_width),
    };
    return ops->attention_decode(ops, &decode);
}
