/* The kind `kerformer`: learned feature maps for far tokens, exact softmax weights for near ones (docs/attention.md).
 * Options: map: hedgehog | exp | relu-se; features: N (exp: default as performer's; relu-se: default 2D); hidden: R of relu-se's
 * squeeze (default 16); window: w (default 64, 0: none); window_dropout: p.
 * Parameters, h.N.attn.kerformer.…: q_map [H,N,D], k_map [G,N,D]; beta [H] with a window; relu-se: q_bias [H,N], k_bias [G,N],
 * squeeze [G,R,M], excite [G,M,R]. */
#include "attention/kinds.h"
#include "attention/feature_maps.h"
#include "base/memory.h"
#include "params/values.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAP_HEDGEHOG = 0, MAP_EXP, MAP_RELU_SE };
static const char *const map_names[] = {"hedgehog", "exp", "relu-se"};
enum { FEATURES_MOST = 65536, HIDDEN_USUAL = 16, WINDOW_USUAL = 64 };
enum { BRANCH_FAR = 1, BRANCH_WINDOW = 2 };

struct kerformer_settings {
    int map;
    int64_t features, hidden, window; /* N, R, w */
    double window_dropout;
};

enum { Q_MAP = 0, K_MAP, BETA, Q_BIAS, K_BIAS, SQUEEZE, EXCITE, ROWS };
static const char *const row_names[ROWS] = {"q_map", "k_map", "beta", "q_bias", "k_bias", "squeeze", "excite"};

struct kerformer_bound {
    const struct param *rows[ROWS]; /* NULL: the settings ask for none */
    uint32_t off;                   /* branches switched off for an audit */
};

/* An option that belongs to another map. */
static enum status refuse_for_map(const char *where, const struct config_attention *rule, const char *key, const char *maps) {
    const struct config_option *option = options_find(rule, key);
    char expected[64];
    if (!option) return STATUS_OK;
    snprintf(expected, sizeof expected, "it only with map: %s", maps);
    return options_wrong(where, rule, option, expected, option->count == 1 ? option->words[0] : "a list");
}

static enum status read_window(const char *where, const struct config_attention *rule, const struct model_config *model,
                               struct kerformer_settings *settings) {
    const struct config_option *window = options_find(rule, "window"), *dropout = options_find(rule, "window_dropout");
    settings->window = model->causal ? WINDOW_USUAL : 0;
    TRY(options_count(where, rule, "window", 0, 1 << 24, &settings->window));
    if (settings->window > 0 && !model->causal)
        return options_wrong(where, rule, window, "0 for a model that reads in both directions", window->words[0]);
    if (!dropout) return STATUS_OK;
    if (dropout->count != 1) return options_wrong(where, rule, dropout, "a number from 0 to 1", "a list");
    TRY(options_number(where, rule, dropout, dropout->words[0], 0, 1, &settings->window_dropout));
    if (settings->window_dropout > 0 && settings->window == 0)
        return options_wrong(where, rule, dropout, "0 without a window", dropout->words[0]);
    return STATUS_OK;
}

static enum status read_options(const char *where, const struct config_attention *rule, const struct model_config *model,
                                struct kerformer_settings *settings) {
    static const char *const known[] = {"map", "features", "hidden", "window", "window_dropout"};
    const int64_t width = model->head_width;
    TRY(options_check_known(where, rule, known, 5));
    TRY(options_choice(where, rule, "map", map_names, 3, &settings->map));
    if (settings->map == MAP_HEDGEHOG) TRY(refuse_for_map(where, rule, "features", "exp or relu-se"));
    if (settings->map != MAP_RELU_SE) TRY(refuse_for_map(where, rule, "hidden", "relu-se"));
    settings->features = settings->map == MAP_EXP ? feature_maps_usual(width) : settings->map == MAP_RELU_SE ? 2 * width : width;
    settings->hidden = settings->map == MAP_RELU_SE ? HIDDEN_USUAL : 0;
    TRY(options_count(where, rule, "features", 1, FEATURES_MOST, &settings->features));
    TRY(options_count(where, rule, "hidden", 1, FEATURES_MOST, &settings->hidden));
    if (settings->map == MAP_RELU_SE && !model->causal) {
        const struct config_option *map = options_find(rule, "map");
        return options_wrong(where, rule, map, "hedgehog or exp for a model that reads in both directions", "relu-se");
    }
    return read_window(where, rule, model, settings);
}

static enum status configure(const char *where, const struct config_attention *rule, const struct model_config *model,
                             void **out) {
    struct kerformer_settings *settings = NULL;
    TRY(memory_new(1, sizeof *settings, "a kind's settings", &settings));
    enum status status = read_options(where, rule, model, settings);
    if (status != STATUS_OK) {
        free(settings);
        settings = NULL;
    }
    *out = settings;
    return status;
}

/* A window over everything leaves nothing to the features. */
static void cover(struct attention_layer *layer, int64_t length) {
    struct kerformer_settings *settings = layer->settings;
    settings->window = length;
    settings->window_dropout = 0;
}

/* Row `which` of the table, or rank 0: the settings ask for none. */
static struct param row_of(const struct attention_layer *layer, int which) {
    const struct kerformer_settings *s = layer->settings;
    const int64_t heads = layer->model->heads, groups = layer->model->kv_heads, width = layer->model->head_width;
    const int64_t features = s->features, hidden = s->hidden;
    const enum param_init map = s->map == MAP_EXP ? INIT_ORTHOGONAL : INIT_IDENTITY;
    const bool relu = s->map == MAP_RELU_SE;
    const struct {
        bool wanted;
        struct param row;
    } rows[ROWS] = {
        [Q_MAP] = {true, {.rank = 3, .shape = {heads, features, width}, .init = map}},
        [K_MAP] = {true, {.rank = 3, .shape = {groups, features, width}, .init = map}},
        [BETA] = {s->window > 0, {.rank = 1, .shape = {heads}}},
        [Q_BIAS] = {relu, {.rank = 2, .shape = {heads, features}}},
        [K_BIAS] = {relu, {.rank = 2, .shape = {groups, features}}},
        [SQUEEZE] = {relu, {.rank = 3, .shape = {groups, hidden, features}, .init = INIT_NORMAL,
                            .init_std = 1 / sqrt((double)features)}},
        [EXCITE] = {relu, {.rank = 3, .shape = {groups, features, hidden}}},
    };
    struct param row = rows[which].wanted ? rows[which].row : (struct param){0};
    row.added = true;
    snprintf(row.name, sizeof row.name, "h.%lld.attn.kerformer.%s", (long long)layer->layer, row_names[which]);
    return row;
}

static enum status add_params(const struct attention_layer *layer, struct params *params) {
    for (int n = 0; n < ROWS; n++) {
        const struct param row = row_of(layer, n);
        if (row.rank > 0) TRY(params_add(params, &row, 0));
    }
    return STATUS_OK;
}

static enum status bind(struct attention_layer *layer) {
    struct kerformer_bound *bound = NULL;
    TRY(memory_new(1, sizeof *bound, "a kind's parameters", &bound));
    layer->bound = bound;
    for (int n = 0; n < ROWS; n++) {
        const struct param row = row_of(layer, n);
        if (row.rank == 0) continue;
        bound->rows[n] = params_find(layer->params, row.name);
        if (!bound->rows[n]) return error_set(STATUS_FAILED, "parameter %s: not in the table", row.name);
    }
    return STATUS_OK;
}

/* As operations read it: maps in ops->real, beta in ops->statistic. */
static struct tensor value_of(const struct param *row) {
    return row ? row->working : tensor_none();
}
static struct tensor grad_of(const struct param *row) {
    return row && row->trained ? row->grad : tensor_none();
}

static struct features features_of(const struct attention_layer *layer, struct tensor (*of)(const struct param *)) {
    static const enum feature_kind kinds[] = {FEATURE_HEDGEHOG, FEATURE_EXP, FEATURE_RELU};
    const struct kerformer_settings *s = layer->settings;
    const struct param *const *rows = ((const struct kerformer_bound *)layer->bound)->rows;
    return (struct features){.kind = kinds[s->map], .q_map = of(rows[Q_MAP]), .k_map = of(rows[K_MAP]),
                             .q_bias = of(rows[Q_BIAS]), .k_bias = of(rows[K_BIAS]), .squeeze = of(rows[SQUEEZE]),
                             .excite = of(rows[EXCITE])};
}

static struct feature_maps maps_of(const struct attention_layer *layer) {
    const struct kerformer_settings *s = layer->settings;
    const struct kerformer_bound *bound = layer->bound;
    struct feature_maps maps = {
        .features = features_of(layer, value_of), .gradients = features_of(layer, grad_of),
        .window = bound->off & BRANCH_WINDOW ? 0 : s->window, .hidden = s->hidden,
        .near_only = (bound->off & BRANCH_FAR) != 0, .window_dropout = s->window_dropout,
    };
    if (bound->rows[BETA]) maps.features.beta = bound->rows[BETA]->value;
    maps.gradients.beta = grad_of(bound->rows[BETA]);
    return maps;
}

static enum status plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                        void **saved) {
    (void)train;
    return feature_maps_plan(layer, arena, batch, length, saved);
}

/* Windows are dropped sequence by sequence: every pass brings its own draws to the device. */
static enum status turn(const struct attention_layer *layer, const struct attention_context *context, bool *steady) {
    const struct feature_maps maps = maps_of(layer);
    *steady = !feature_maps_drop(&maps, context);
    return STATUS_OK;
}

static enum status forward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct feature_maps maps = maps_of(layer);
    return feature_maps_forward(layer, &maps, pass);
}

static enum status backward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct feature_maps maps = maps_of(layer);
    TRY(feature_maps_backward(layer, &maps, pass));
    return pass->context.weights ? feature_maps_weights(layer, &maps, pass) : STATUS_OK;
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

/* Mean and root mean square of a row. */
static enum status read_moments(const struct attention_layer *layer, const struct param *row, double *mean, double *size) {
    const int64_t count = tensor_count(row->value);
    double *values = NULL;
    TRY(memory_new((size_t)count, sizeof *values, "a parameter's copy", &values));
    enum status status = values_read(layer->params->ops, row->value, values);
    *mean = *size = 0;
    for (int64_t n = 0; status == STATUS_OK && n < count; n++) {
        *mean += values[n] / (double)count;
        *size += values[n] * values[n] / (double)count;
    }
    *size = sqrt(*size);
    free(values);
    return status;
}

static enum status report(const struct attention_layer *layer, char *text, size_t capacity) {
    const struct kerformer_bound *bound = layer->bound;
    double mean, q_size, k_size;
    TRY(read_moments(layer, bound->rows[Q_MAP], &mean, &q_size));
    TRY(read_moments(layer, bound->rows[K_MAP], &mean, &k_size));
    const int used = snprintf(text, capacity, "\"q_map_rms\": %.6g, \"k_map_rms\": %.6g", q_size, k_size);
    if (!bound->rows[BETA] || used < 0 || (size_t)used >= capacity) return STATUS_OK;
    TRY(read_moments(layer, bound->rows[BETA], &mean, &q_size));
    snprintf(text + used, capacity - (size_t)used, ", \"beta_mean\": %.6g", mean);
    return STATUS_OK;
}

static enum status switch_off(struct attention_layer *layer, uint32_t branches) {
    ((struct kerformer_bound *)layer->bound)->off = branches;
    return STATUS_OK;
}

static bool branch_name(const struct attention_layer *layer, int branch, char name[ATTENTION_BRANCH_NAME]) {
    const struct kerformer_settings *s = layer->settings;
    /* Without a window the features are all there is: nothing to compare them with. */
    if (s->window == 0 || branch >= 2) return false;
    snprintf(name, ATTENTION_BRANCH_NAME, branch == 0 ? "far features" : "window %lld", (long long)s->window);
    return true;
}

const struct kind kind_kerformer = {
    .name = "kerformer", .summary = "learned feature maps for far tokens, an exact window for near ones; linear in length",
    .has_weights = true, .configure = configure, .cover = cover, .add_params = add_params, .bind = bind, .plan = plan, .turn = turn, .forward = forward, .backward = backward,
    .cache_open = cache_open, .cache_close = feature_maps_cache_close, .decode = decode, .cost = cost, .report = report,
    .branch_name = branch_name, .switch_off = switch_off,
};
