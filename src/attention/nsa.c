/* The kind `nsa`: compressed blocks, chosen blocks and a window (docs/attention.md; Yuan et al. 2025, arXiv 2502.11089).
 * Options: compress (l), stride (d), block (l'), select (n), window (w), select_group, union: true | false, branch_kv: shared |
 * separate, anneal: false | attention | kl | true, select_weight. Parameters: h.N.attn.nsa.{key,value}.{w1,b1,w2,places},
 * h.N.attn.nsa.gate.{weight,bias}; of branches with keys and values of their own h.N.attn.nsa.{compressed,window}_kv.{weight,bias}. */
#include "attention/nsa.h"

#include "attention/kinds.h"
#include "base/memory.h"
#include "params/values.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const branch_names[NSA_BRANCHES] = {"compressed", "selected", "window"};

enum { TOKENS_MOST = 1 << 24 };

/* --- options ------------------------------------------------------------------------------------------------------ */

/* "file:line: attention nsa: key: reason", at the option when the recipe gives it. */
static enum status refuse(const char *where, const struct config_attention *rule, const char *key, const char *reason,
                          int64_t found) {
    const struct config_option *option = options_find(rule, key);
    return error_set(STATUS_USAGE, "%s:%d: attention nsa: %s: expected %s, found %lld", where,
                     option ? option->line : rule->line, key, reason, (long long)found);
}

static enum status check(const char *where, const struct config_attention *rule, const struct model_config *model,
                         const struct nsa_settings *s) {
    const int64_t share = model->heads / model->kv_heads;
    if (!model->causal)
        return error_set(STATUS_USAGE, "%s:%d: attention nsa: the model attends in both directions; a block is chosen for what "
                                       "comes after it", where, rule->line);
    if (s->compress % s->stride) return refuse(where, rule, "compress", "a multiple of stride", s->compress);
    if (s->block % s->stride) return refuse(where, rule, "block", "a multiple of stride", s->block);
    if (s->select == 1 || s->select == 2)
        return refuse(where, rule, "select", "0, or 3 and more: a document's first block and a query's last two are always "
                                             "among them", s->select);
    if (s->select == 0 && s->window == 0)
        return refuse(where, rule, "window", "1 or more beside select: 0, or a query would read nothing near it", s->window);
    if (model->heads % s->select_group || (share % s->select_group && s->select_group % share))
        return refuse(where, rule, "select_group", "a divisor of the query heads that divides, or is a multiple of, the heads "
                                                   "that share a key head", s->select_group);
    return STATUS_OK;
}

static void start_gates(struct nsa_settings *s, int64_t heads) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t m = 0; m < nsa_gate_columns(s); m++) s->gates[h * nsa_gate_columns(s) + m] = m == NSA_COMPRESSED ? -4 : 0;
}

static enum status read_options(const char *where, const struct config_attention *rule, const struct model_config *model,
                                struct nsa_settings *s) {
    static const char *const known[] = {"compress", "stride", "block", "select", "window", "select_group", "union", "branch_kv",
                                        "anneal", "select_weight"};
    static const char *const unions[] = {"true", "false"}, *const kvs[] = {"shared", "separate"}, *const anneals[] = {"false", "attention", "kl", "true"};
    *s = (struct nsa_settings){.compress = 32, .stride = 16, .block = 64, .select = 16, .window = 512, .select_weight = 1};
    s->select_group = model->heads / model->kv_heads;
    TRY(options_check_known(where, rule, known, sizeof known / sizeof *known));
    TRY(options_count(where, rule, "compress", 1, TOKENS_MOST, &s->compress));
    TRY(options_count(where, rule, "stride", 1, TOKENS_MOST, &s->stride));
    TRY(options_count(where, rule, "block", 1, TOKENS_MOST, &s->block));
    TRY(options_count(where, rule, "select", 0, TOKENS_MOST, &s->select));
    TRY(options_count(where, rule, "window", 0, TOKENS_MOST, &s->window));
    TRY(options_count(where, rule, "select_group", 1, TOKENS_MOST, &s->select_group));
    TRY(options_choice(where, rule, "union", unions, 2, &s->apart));
    TRY(options_choice(where, rule, "branch_kv", kvs, 2, &s->separate));
    TRY(options_choice(where, rule, "anneal", anneals, 4, &s->anneal));
    const struct config_option *weight = options_find(rule, "select_weight");
    if (weight && weight->count != 1) return options_wrong(where, rule, weight, "one number", "a list");
    if (weight) TRY(options_number(where, rule, weight, weight->words[0], 0, 1e6, &s->select_weight));
    return check(where, rule, model, s);
}

static enum status configure(const char *where, const struct config_attention *rule, const struct model_config *model,
                             void **out) {
    struct nsa_settings *settings = NULL;
    TRY(memory_new(1, sizeof *settings + (size_t)(model->heads * NSA_BRANCHES) * sizeof(double), "a kind's settings", &settings));
    enum status status = read_options(where, rule, model, settings);
    start_gates(settings, model->heads);
    if (status != STATUS_OK) {
        free(settings);
        settings = NULL;
    }
    *out = settings;
    return status;
}

/* --- rows of the table -------------------------------------------------------------------------------------------- */

static void row_name(const struct attention_layer *layer, const char *part, char name[64]) {
    snprintf(name, 64, "h.%lld.attn.nsa.%s", (long long)layer->layer, part);
}

static enum status add_row(const struct attention_layer *layer, struct params *params, const char *part, struct param row) {
    row_name(layer, part, row.name);
    row.added = true;
    return params_add(params, &row, row.init == INIT_VALUES ? row.shape[0] : 0);
}

static enum status add_compressor(const struct attention_layer *layer, struct params *params, const char *side) {
    const struct nsa_settings *s = layer->settings;
    const int64_t width = layer->model->head_width, inputs = s->compress * width;
    char part[32];
    snprintf(part, sizeof part, "%s.w1", side);
    TRY(add_row(layer, params, part, (struct param){.rank = 2, .shape = {2 * width, inputs}, .init = INIT_NORMAL,
                                                    .init_std = 1 / sqrt((double)inputs), .decay = true}));
    snprintf(part, sizeof part, "%s.b1", side);
    TRY(add_row(layer, params, part, (struct param){.rank = 1, .shape = {2 * width}}));
    snprintf(part, sizeof part, "%s.w2", side);
    TRY(add_row(layer, params, part, (struct param){.rank = 2, .shape = {width, 2 * width}, .decay = true}));
    snprintf(part, sizeof part, "%s.places", side);
    return add_row(layer, params, part, (struct param){.rank = 2, .shape = {s->compress, width}});
}

/* A branch's own projections of keys and values, copies of the layer's: [2·G·D, C] or, of the bias, [2·G·D]. */
static enum status add_copy(const struct attention_layer *layer, struct params *params, enum nsa_branch branch, const char *what) {
    const struct model_config *m = layer->model;
    const int64_t queries = m->heads * m->head_width, rows = 2 * m->kv_heads * m->head_width;
    char name[64], part[32];
    snprintf(name, sizeof name, "h.%lld.attn.qkv.%s", (long long)layer->layer, what);
    const struct param *from = params_find(params, name);
    if (!from) return STATUS_OK; /* a model without biases */
    const int64_t width = from->rank == 2 ? from->shape[1] : 1;
    double *values = NULL;
    TRY(memory_new((size_t)(rows * width), sizeof *values, "a copy of projections", &values));
    enum status status = values_read(params->ops, tensor_rows(from->value, queries, rows), values);
    struct param row = {.rank = from->rank, .shape = {rows, width}, .init = INIT_VALUES, .init_values = values,
                        .decay = from->decay, .added = true};
    snprintf(part, sizeof part, "%s_kv.%s", branch_names[branch], what);
    row_name(layer, part, row.name);
    if (status == STATUS_OK) status = params_add(params, &row, rows * width);
    free(values);
    return status;
}

static enum status add_params(const struct attention_layer *layer, struct params *params) {
    const struct nsa_settings *s = layer->settings;
    for (enum nsa_branch n = NSA_COMPRESSED; n < NSA_BRANCHES; n++) {
        if (!nsa_own_kv(s, n)) continue;
        TRY(add_copy(layer, params, n, "weight"));
        TRY(add_copy(layer, params, n, "bias"));
    }
    const int64_t gates = layer->model->heads * nsa_gate_columns(s);
    TRY(add_compressor(layer, params, "key"));
    TRY(add_compressor(layer, params, "value"));
    TRY(add_row(layer, params, "gate.weight", (struct param){.rank = 2, .shape = {gates, layer->model->width}}));
    return add_row(layer, params, "gate.bias",
                   (struct param){.rank = 1, .shape = {gates}, .init = INIT_VALUES, .init_values = s->gates});
}

static enum status find_row(const struct attention_layer *layer, const char *part, const struct param **row) {
    char name[64];
    row_name(layer, part, name);
    *row = params_find(layer->params, name);
    return *row ? STATUS_OK : error_set(STATUS_FAILED, "parameter %s: not in the table", name);
}

/* All blocks and a window over everything, without the compressed branch. */
static void cover(struct attention_layer *layer, int64_t length) {
    struct nsa_settings *settings = layer->settings;
    const int64_t blocks = (length + settings->block - 1) / settings->block;
    settings->select = blocks > NSA_SELECT_LEAST ? blocks : NSA_SELECT_LEAST;
    settings->window = length;
    settings->anneal = NSA_ANNEAL_NEVER;
    settings->uncompressed = true;
}

static enum status bind(struct attention_layer *layer) {
    struct nsa_bound *bound = NULL;
    TRY(memory_new(1, sizeof *bound, "a kind's parameters", &bound));
    layer->bound = bound;
    if (((const struct nsa_settings *)layer->settings)->uncompressed) bound->off = 1u << NSA_COMPRESSED;
    TRY(find_row(layer, "key.w1", &bound->keys.w1));
    TRY(find_row(layer, "key.b1", &bound->keys.b1));
    TRY(find_row(layer, "key.w2", &bound->keys.w2));
    TRY(find_row(layer, "key.places", &bound->keys.places));
    TRY(find_row(layer, "value.w1", &bound->values.w1));
    TRY(find_row(layer, "value.b1", &bound->values.b1));
    TRY(find_row(layer, "value.w2", &bound->values.w2));
    TRY(find_row(layer, "value.places", &bound->values.places));
    for (enum nsa_branch n = NSA_COMPRESSED; n < NSA_BRANCHES; n++) {
        char name[64], part[32];
        if (!nsa_own_kv(layer->settings, n)) continue;
        snprintf(part, sizeof part, "%s_kv.weight", branch_names[n]);
        TRY(find_row(layer, part, &bound->kv[n]));
        snprintf(part, sizeof part, "%s_kv.bias", branch_names[n]);
        row_name(layer, part, name);
        bound->kv_bias[n] = params_find(layer->params, name);
    }
    TRY(find_row(layer, "gate.weight", &bound->gate));
    return find_row(layer, "gate.bias", &bound->gate_bias);
}

/* --- facts -------------------------------------------------------------------------------------------------------- */

/* Tokens that the query with `place` tokens before it reads, at most: as if no block but its own two lay in the window. */
static void count_tokens(const struct attention_layer *layer, int64_t place, int64_t *chosen, int64_t *window, int64_t *either) {
    const struct nsa_settings *s = layer->settings;
    const int64_t all = place + 1, own = place / s->block;
    const int64_t near = own > 0 ? all - (own - 1) * s->block : all; /* tokens of the query's own two blocks */
    const int64_t others = nsa_selects(layer) ? (s->select - 2) * s->block : 0;
    *window = nsa_windows(layer) ? (s->window < all ? s->window : all) : 0;
    *chosen = nsa_selects(layer) ? (near + others < all ? near + others : all) : 0;
    const int64_t close = nsa_selects(layer) && near > *window ? near : *window;
    *either = close + others < all ? close + others : all;
}

static enum status cost(const struct attention_layer *layer, int64_t length, struct attention_cost *out) {
    const struct nsa_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const bool coarse = nsa_on(layer, NSA_COMPRESSED), scores = coarse || nsa_selects(layer);
    double exact = 0, distinct = 0, compressed = 0, tokens = (double)length, width = (double)m->head_width;
    for (int64_t i = 0; i < length; i++) {
        int64_t chosen, window, either;
        count_tokens(layer, i, &chosen, &window, &either);
        distinct += (double)either;
        exact += (double)(s->apart ? chosen + window : either);
        if (scores && i + 1 >= s->compress) compressed += (double)((i + 1 - s->compress) / s->stride + 1);
    }
    const double blocks = length < s->compress ? 0 : (double)((length - s->compress) / s->stride + 1);
    const double a_block = 2 * (2 * width * (double)s->compress * width + 2 * width * width); /* of one compressor */
    *out = (struct attention_cost){
        .density = (distinct + compressed) / (0.5 * tokens * (tokens + 1)),
        .flops = ((double)m->heads * width * (4 * exact + (coarse ? 4 : 2) * compressed) +
                  (scores ? (coarse ? 2 : 1) * (double)m->kv_heads * blocks * a_block : 0)) / tokens,
        .decode_bytes = 2 * (tokens * (1 + nsa_own_kv(s, NSA_COMPRESSED) + nsa_own_kv(s, NSA_WINDOW)) + blocks) * (double)m->kv_heads * width * sizeof(float),
    };
    return STATUS_OK;
}

static enum status report(const struct attention_layer *layer, char *text, size_t capacity) {
    const struct nsa_settings *s = layer->settings;
    const struct nsa_bound *bound = layer->bound;
    text[0] = '\0';
    if (!bound->looked) return STATUS_OK;
    size_t used = (size_t)snprintf(text, capacity, "\"gates\": [");
    for (int64_t m = 0; m < nsa_gate_columns(s) && used < capacity; m++)
        used += (size_t)snprintf(text + used, capacity - used, m ? ", %.4g" : "%.4g", bound->gate_means[m]);
    if (used < capacity) snprintf(text + used, capacity - used, "], \"chosen_outside_window\": %.4f", bound->outside);
    return STATUS_OK;
}

static bool branch_name(const struct attention_layer *layer, int branch, char name[ATTENTION_BRANCH_NAME]) {
    (void)layer;
    if (branch >= NSA_BRANCHES) return false;
    snprintf(name, ATTENTION_BRANCH_NAME, "%s", branch_names[branch]);
    return true;
}

static enum status switch_off(struct attention_layer *layer, uint32_t branches) {
    ((struct nsa_bound *)layer->bound)->off = branches;
    return STATUS_OK;
}

const struct kind kind_nsa = {
    .name = "nsa", .summary = "compressed blocks, the blocks that they single out, and a window", .chooses = true, .reads_x = true,
    .bends_values = "value.w2", .summaries = 1u << NSA_COMPRESSED,
    .configure = configure, .cover = cover, .add_params = add_params, .bind = bind, .plan = nsa_plan, .turn = nsa_turn, .forward = nsa_forward,
    .backward = nsa_backward, .cache_open = nsa_cache_open, .cache_close = nsa_cache_close, .decode = nsa_decode, .cost = cost,
    .report = report, .branch_name = branch_name, .switch_off = switch_off,
};
