/* Passes, decoding and cost of the linear kinds. */
#include "attention/feature_maps.h"

#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

struct feature_maps_saved {
    struct tensor log_sums;  /* [B,H,T] */
    struct tensor no_window; /* [B] I32 */
    bool dropped;            /* no_window counts in this pass */
    int32_t host[];          /* [B] */
};

int64_t feature_maps_usual(int64_t width) {
    const int64_t least = (int64_t)ceil((double)width * log((double)width));
    return least < 1 ? 16 : (least + 15) / 16 * 16;
}

int64_t feature_maps_count(const struct feature_maps *maps, int64_t columns) {
    return maps->features.kind == FEATURE_HEDGEHOG ? 2 * columns : columns;
}

enum status feature_maps_plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, void **saved) {
    struct feature_maps_saved *made = NULL;
    TRY(memory_new(1, sizeof *made + (size_t)batch * sizeof *made->host, "attention's plan", &made));
    made->log_sums = arena_3d(arena, layer->params->ops->statistic, batch, layer->model->heads, length);
    made->no_window = arena_1d(arena, DTYPE_I32, batch);
    *saved = made;
    return STATUS_OK;
}

bool feature_maps_drop(const struct feature_maps *maps, const struct attention_context *context) {
    return context->training && context->attention_stage && maps->window_dropout > 0 && maps->window > 0;
}

/* Which sequences run without their window: a function of the seed, the layer and the sample alone. */
static enum status drop_windows(const struct attention_layer *layer, const struct feature_maps *maps,
                                const struct attention_pass *pass) {
    const struct attention_context *context = &pass->context;
    struct feature_maps_saved *saved = pass->saved;
    saved->dropped = feature_maps_drop(maps, context);
    if (!saved->dropped) return STATUS_OK;
    for (int64_t b = 0; b < pass->batch; b++) {
        const uint64_t stream = rng_substream(RNG_WINDOW, (uint64_t)layer->layer);
        saved->host[b] = rng_uniform(context->seed, stream, (uint64_t)(context->first_sample + b)) < maps->window_dropout;
    }
    return pass->ops->upload(pass->ops, saved->no_window, saved->host);
}

static struct linear_attention describe(const struct attention_layer *layer, const struct feature_maps *maps,
                                        const struct attention_pass *pass) {
    const struct feature_maps_saved *saved = pass->saved;
    return (struct linear_attention){
        .q = pass->q, .k = pass->k, .v = pass->v, .start = pass->start, .o = pass->o, .log_sums = saved->log_sums,
        .no_window = saved->dropped ? saved->no_window : tensor_none(), .features = maps->features,
        .window = maps->window, .causal = layer->model->causal, .near_only = maps->near_only,
        .scale = 1.0 / sqrt((double)layer->model->head_width),
    };
}

enum status feature_maps_forward(const struct attention_layer *layer, const struct feature_maps *maps, const struct attention_pass *pass) {
    TRY(drop_windows(layer, maps, pass));
    struct linear_attention a = describe(layer, maps, pass);
    return pass->ops->linear_attention(pass->ops, &a);
}

enum status feature_maps_backward(const struct attention_layer *layer, const struct feature_maps *maps, const struct attention_pass *pass) {
    struct linear_attention_backward b = {
        .forward = describe(layer, maps, pass), .d_o = pass->d_o, .dq = pass->dq, .dk = pass->dk, .dv = pass->dv,
        .gradients = maps->gradients,
    };
    return pass->ops->linear_attention_backward(pass->ops, &b);
}

enum status feature_maps_weights(const struct attention_layer *layer, const struct feature_maps *maps, const struct attention_pass *pass) {
    struct linear_attention_weights w = {
        .forward = describe(layer, maps, pass), .teacher_q = pass->teacher_q, .teacher_k = pass->teacher_k, .loss = pass->loss,
        .weight = 1, .gradient_scale = pass->context.loss_scale, .dq = pass->dq, .dk = pass->dk,
        .gradients = maps->gradients,
    };
    return pass->ops->linear_attention_weights(pass->ops, &w);
}

struct attention_cache {
    struct tensor sums, peaks, means, near_k, near_v; /* as ops->linear_attention_decode has them */
    struct tensor start;                              /* [B] I32 */
    void *block;
};

enum status feature_maps_cache_open(const struct attention_layer *layer, const struct feature_maps *maps, const struct ops *ops,
                              int64_t batch, int64_t length, struct attention_cache **out) {
    const struct model_config *m = layer->model;
    const int64_t ring = maps->window < length ? maps->window : length;
    const int64_t features = feature_maps_count(maps, maps->features.q_map.shape[1]);
    struct attention_cache *cache = NULL;
    struct arena arena = arena_sizing();
    enum status status = STATUS_OK;
    TRY(memory_new(1, sizeof *cache, "a decoding state", &cache));
    for (int round = 0; round < 2; round++) {
        if (round == 1) {
            TRY_GOTO(done, ops->allocate(ops, arena.peak, &cache->block));
            arena = arena_placing(cache->block, arena.peak);
        }
        cache->sums = arena_4d(&arena, ops->statistic, batch, m->kv_heads, features, m->head_width + 1);
        cache->peaks = arena_2d(&arena, ops->statistic, batch, m->kv_heads);
        if (maps->hidden > 0) cache->means = arena_3d(&arena, ops->statistic, batch, m->kv_heads, features);
        if (ring > 0) cache->near_k = arena_4d(&arena, ops->real, batch, ring, m->kv_heads, m->head_width);
        if (ring > 0) cache->near_v = arena_4d(&arena, ops->real, batch, ring, m->kv_heads, m->head_width);
        cache->start = arena_1d(&arena, DTYPE_I32, batch);
    }
done:
    if (status != STATUS_OK) {
        feature_maps_cache_close(ops, cache);
        cache = NULL;
    }
    *out = cache;
    return status;
}

void feature_maps_cache_close(const struct ops *ops, struct attention_cache *cache) {
    if (!cache) return;
    ops->release(ops, cache->block);
    free(cache);
}

enum status feature_maps_decode(const struct attention_layer *layer, const struct feature_maps *maps, struct attention_cache *cache,
                          const struct attention_decode_pass *pass) {
    TRY(pass->ops->upload(pass->ops, cache->start, pass->start));
    struct linear_attention_decode decode = {
        .q = pass->q, .k = pass->k, .v = pass->v, .o = pass->o, .start = cache->start, .sums = cache->sums,
        .peaks = cache->peaks, .means = cache->means, .near_k = cache->near_k, .near_v = cache->near_v,
        .features = maps->features, .position = pass->position, .near_only = maps->near_only,
        .scale = 1.0 / sqrt((double)layer->model->head_width),
    };
    return pass->ops->linear_attention_decode(pass->ops, &decode);
}

void feature_maps_cost(const struct attention_layer *layer, const struct feature_maps *maps, int64_t length, struct attention_cost *cost) {
    const struct model_config *m = layer->model;
    const double columns = (double)maps->features.q_map.shape[1], width = (double)m->head_width;
    const double features = (double)feature_maps_count(maps, maps->features.q_map.shape[1]), t = (double)length;
    const double window = fmin((double)maps->window, t), heads = (double)m->heads, groups = (double)m->kv_heads;
    const double pairs = window - window * (window - 1) / (2 * t); /* near tokens of a query, mean */
    /* A map of every query and key, the state read by every query and fed by every key; squeeze and excite of every token. */
    double far = (heads + groups) * (2 * columns * width + 2 * features * (width + 1));
    far += groups * 4 * features * (double)maps->hidden;
    *cost = (struct attention_cost){
        .density = -1,
        .flops = heads * 4 * width * pairs + (maps->near_only ? 0 : far),
        .decode_bytes = groups * (features * (width + 1) + (maps->hidden > 0 ? features : 0) + 2 * window * width) * sizeof(float),
    };
}
