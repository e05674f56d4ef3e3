/* The kind `performer`: FAVOR+, an unbiased estimate of softmax attention by positive random features (docs/attention.md).
 * Options: features: N (default ⌈D ln D⌉, rounded up to a multiple of 16); redraw_every: n, a new draw every n steps of the run (0:
 * never). It learns nothing of its own: h.N.attn.performer.map [N,D], one map for the queries and keys of all heads of a layer, is drawn
 * by (seed, layer, draw) and kept in checkpoints and exports, so that whatever reads a student has the map that it trained with. */
#include "attention/kinds.h"
#include "attention/feature_maps.h"
#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { FEATURES_MOST = 65536 };

struct performer_settings {
    int64_t features, redraw_every;
};

struct performer_bound {
    const struct param *map;
    int64_t draw; /* that `map` holds; −1: what it was initialised or restored with */
};

static enum status configure(const char *where, const struct config_attention *rule, const struct model_config *model,
                             void **out) {
    static const char *const known[] = {"features", "redraw_every"};
    struct performer_settings *settings = NULL;
    enum status status = STATUS_OK;
    TRY(memory_new(1, sizeof *settings, "a kind's settings", &settings));
    settings->features = feature_maps_usual(model->head_width);
    TRY_GOTO(done, options_check_known(where, rule, known, 2));
    TRY_GOTO(done, options_count(where, rule, "features", 1, FEATURES_MOST, &settings->features));
    TRY_GOTO(done, options_count(where, rule, "redraw_every", 0, 1 << 30, &settings->redraw_every));
done:
    if (status != STATUS_OK) {
        free(settings);
        settings = NULL;
    }
    *out = settings;
    return status;
}

static void row_name(const struct attention_layer *layer, char name[64]) {
    snprintf(name, 64, "h.%lld.attn.performer.map", (long long)layer->layer);
}

static enum status add_params(const struct attention_layer *layer, struct params *params) {
    const struct performer_settings *settings = layer->settings;
    struct param row = {.rank = 2, .shape = {settings->features, layer->model->head_width}, .init = INIT_ORTHOGONAL,
                        .added = true, .constant = true};
    row_name(layer, row.name);
    return params_add(params, &row, 0);
}

static enum status bind(struct attention_layer *layer) {
    struct performer_bound *bound = NULL;
    char name[64];
    row_name(layer, name);
    TRY(memory_new(1, sizeof *bound, "a kind's parameters", &bound));
    bound->map = params_find(layer->params, name);
    bound->draw = -1;
    layer->bound = bound;
    return bound->map ? STATUS_OK : error_set(STATUS_FAILED, "parameter %s: not in the table", name);
}

/* [N,D] as [heads,N,D]: one map for all. */
static struct tensor for_heads(struct tensor map, int64_t heads) {
    struct tensor t = tensor_3d(map.data, map.dtype, heads, map.shape[0], map.shape[1]);
    t.stride[0] = 0;
    return t;
}

static struct feature_maps maps_of(const struct attention_layer *layer) {
    const struct performer_bound *bound = layer->bound;
    return (struct feature_maps){.features = {.kind = FEATURE_EXP,
                                        .q_map = for_heads(bound->map->working, layer->model->heads),
                                        .k_map = for_heads(bound->map->working, layer->model->kv_heads)}};
}

static enum status plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                        void **saved) {
    (void)train;
    return feature_maps_plan(layer, arena, batch, length, saved);
}

/* While training, the map of the draw that the run has come to; outside of it, the map that was left. The passes' operations stay the
 * same. */
static enum status turn(const struct attention_layer *layer, const struct attention_context *context, bool *steady) {
    (void)steady;
    const struct performer_settings *settings = layer->settings;
    struct performer_bound *bound = layer->bound;
    if (!context->training || settings->redraw_every == 0) return STATUS_OK;
    const int64_t draw = context->updates / settings->redraw_every;
    if (draw == bound->draw) return STATUS_OK;
    TRY(params_redraw(layer->params, bound->map, context->seed, (uint64_t)draw));
    bound->draw = draw;
    return STATUS_OK;
}

static enum status forward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct feature_maps maps = maps_of(layer);
    return feature_maps_forward(layer, &maps, pass);
}

static enum status backward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct feature_maps maps = maps_of(layer);
    return feature_maps_backward(layer, &maps, pass);
}

static enum status cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                              struct attention_cache **cache) {
    struct feature_maps maps = maps_of(layer);
    return feature_maps_cache_open(layer, &maps, ops, batch, length, cache);
}

static enum status decode(const struct attention_layer *layer, struct attention_cache *cache,
                          const struct attention_decode_pass *pass) {
    struct feature_maps maps = maps_of(layer);
    return feature_maps_decode(layer, &maps, cache, pass);
}

static enum status cost(const struct attention_layer *layer, int64_t length, struct attention_cost *out) {
    struct feature_maps maps = maps_of(layer);
    feature_maps_cost(layer, &maps, length, out);
    return STATUS_OK;
}

static enum status report(const struct attention_layer *layer, char *text, size_t capacity) {
    const struct performer_settings *settings = layer->settings;
    const struct performer_bound *bound = layer->bound;
    snprintf(text, capacity, "\"features\": %lld, \"draw\": %lld", (long long)settings->features,
             (long long)(bound->draw > 0 ? bound->draw : 0));
    return STATUS_OK;
}

const struct kind kind_performer = {
    .name = "performer", .summary = "FAVOR+: softmax attention estimated by random features, linear in length",
    .configure = configure, .add_params = add_params, .bind = bind, .plan = plan, .turn = turn, .forward = forward, .backward = backward,
    .cache_open = cache_open, .cache_close = feature_maps_cache_close, .decode = decode, .cost = cost, .report = report,
};
