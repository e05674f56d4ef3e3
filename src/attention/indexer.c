/* The kind `indexer`: a small scorer chooses for every query the few tokens worth reading; attention to them is exact
 * (docs/attention.md; after the lightning indexer of DeepSeek-V3.2, 2025).
 * Options: per: layer | group | head (who shares a choice), window (w), sinks (n), tokens (k; one number, or one for each list),
 * index_heads (J), index_width (E), keys: one | each (of an index head), coarse, coarse_blocks, init: svd | random, select_weight.
 * Parameters, S lists: h.N.attn.indexer.query.{weight,bias} [S·J·E,C], key.{weight,bias} [S·K·E,C], head.{weight,bias} [S·J,C]; with
 * rotary positions the constant frequencies [E/2]. */
#include "attention/indexer.h"

#include "attention/kinds.h"
#include "base/memory.h"
#include "params/rotary.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MOST = 1 << 24, HEADS_MOST = 256, WIDTH_MOST = 1024 };

/* --- options ------------------------------------------------------------------------------------------------------ */

static int64_t lists_of(const struct model_config *model, int per) {
    return per == INDEXER_PER_LAYER ? 1 : per == INDEXER_PER_GROUP ? model->kv_heads : model->heads;
}

/* One number for all lists, or one for each. */
static enum status read_tokens(const char *where, const struct config_attention *rule, struct indexer_settings *s) {
    const struct config_option *option = options_find(rule, "tokens");
    char expected[80];
    if (option && option->count != 1 && (int64_t)option->count != s->lists) {
        char found[32];
        snprintf(expected, sizeof expected, "one number, or one for each of %lld lists", (long long)s->lists);
        snprintf(found, sizeof found, "%zu", option->count);
        return options_wrong(where, rule, option, expected, found);
    }
    for (int64_t n = 0; n < s->lists; n++) {
        double value = (double)s->tokens;
        if (option) {
            TRY(options_number(where, rule, option, option->words[option->count == 1 ? 0 : n], option->count == 1, TOKENS_MOST,
                               &value));
            if (value != floor(value))
                return options_wrong(where, rule, option, "whole numbers", option->words[option->count == 1 ? 0 : n]);
        }
        s->counts[n] = (int32_t)value;
    }
    s->tokens = 1;
    for (int64_t n = 0; n < s->lists; n++) s->tokens = s->counts[n] > s->tokens ? s->counts[n] : s->tokens;
    return STATUS_OK;
}

static enum status check(const char *where, const struct config_attention *rule, const struct model_config *model,
                         const struct indexer_settings *s) {
    const struct config_option *width = options_find(rule, "index_width");
    if (!model->causal)
        return error_set(STATUS_USAGE, "%s:%d: attention indexer: the model attends in both directions; tokens are chosen "
                                       "among those before a query", where, rule->line);
    if (!model_has_learned_positions(model) && s->width % 2)
        return error_set(STATUS_USAGE, "%s:%d: attention indexer: index_width: expected an even number, for positions are "
                                       "rotary, found %lld", where, width ? width->line : rule->line, (long long)s->width);
    return STATUS_OK;
}

static enum status read_options(const char *where, const struct config_attention *rule, const struct model_config *model,
                                struct indexer_settings *s) {
    static const char *const known[] = {"per", "window", "sinks", "tokens", "index_heads", "index_width", "keys", "coarse",
                                        "coarse_blocks", "init", "select_weight"};
    static const char *const pers[] = {"layer", "group", "head"}, *const keys[] = {"one", "each"},
                      *const inits[] = {"svd", "random"};
    *s = (struct indexer_settings){.window = 128, .sinks = 4, .tokens = 256, .heads = 4, .width = 32, .coarse_blocks = 32,
                                   .select_weight = 1};
    TRY(options_check_known(where, rule, known, sizeof known / sizeof *known));
    TRY(options_choice(where, rule, "per", pers, 3, &s->per));
    TRY(options_count(where, rule, "window", 1, TOKENS_MOST, &s->window));
    TRY(options_count(where, rule, "sinks", 0, TOKENS_MOST, &s->sinks));
    TRY(options_count(where, rule, "index_heads", 1, HEADS_MOST, &s->heads));
    TRY(options_count(where, rule, "index_width", 1, WIDTH_MOST, &s->width));
    TRY(options_choice(where, rule, "keys", keys, 2, &s->each));
    TRY(options_count(where, rule, "coarse", 0, TOKENS_MOST, &s->coarse));
    TRY(options_count(where, rule, "coarse_blocks", 1, TOKENS_MOST, &s->coarse_blocks));
    TRY(options_choice(where, rule, "init", inits, 2, &s->random));
    const struct config_option *weight = options_find(rule, "select_weight");
    if (weight && weight->count != 1) return options_wrong(where, rule, weight, "one number", "a list");
    if (weight) TRY(options_number(where, rule, weight, weight->words[0], 0, 1e6, &s->select_weight));
    s->lists = lists_of(model, s->per);
    TRY(read_tokens(where, rule, s));
    return check(where, rule, model, s);
}

static enum status configure(const char *where, const struct config_attention *rule, const struct model_config *model,
                             void **out) {
    struct indexer_settings *settings = NULL;
    TRY(memory_new(1, sizeof *settings + (size_t)model->heads * sizeof *settings->counts, "a kind's settings", &settings));
    enum status status = read_options(where, rule, model, settings);
    if (status != STATUS_OK) {
        free(settings);
        settings = NULL;
    }
    *out = settings;
    return status;
}

/* A window over everything. */
static void cover(struct attention_layer *layer, int64_t length) {
    ((struct indexer_settings *)layer->settings)->window = length;
}

/* --- rows of the table -------------------------------------------------------------------------------------------- */

static enum status add_row(const struct attention_layer *layer, struct params *params, const char *part, struct param row,
                           int64_t values) {
    snprintf(row.name, sizeof row.name, "h.%lld.attn.indexer.%s", (long long)layer->layer, part);
    row.added = true;
    return params_add(params, &row, values);
}

/* Index pair p turns as the teacher's pairs of its share do, in the geometric mean; of a wider index, as pair p modulo D/2. */
static enum status add_frequencies(const struct attention_layer *layer, struct params *params) {
    const struct indexer_settings *s = layer->settings;
    const int64_t pairs = s->width / 2, teachers = layer->model->head_width / 2;
    double *values = NULL;
    TRY(memory_new((size_t)pairs, sizeof *values, "rotary frequencies", &values));
    for (int64_t p = 0; p < pairs; p++) {
        const int64_t first = pairs < teachers ? p * teachers / pairs : p % teachers;
        const int64_t end = pairs < teachers ? (p + 1) * teachers / pairs : first + 1;
        for (int64_t n = first; n < end; n++) values[p] += log(rotary_frequency(layer->model, n)) / (double)(end - first);
        values[p] = exp(values[p]);
    }
    const struct param row = {.rank = 1, .shape = {pairs}, .init = INIT_VALUES, .init_values = values, .constant = true};
    enum status status = add_row(layer, params, "frequencies", row, pairs);
    free(values);
    return status;
}

static enum status add_params(const struct attention_layer *layer, struct params *params) {
    const struct indexer_settings *s = layer->settings;
    const int64_t inputs = layer->model->width, heads = s->lists * s->heads;
    const int64_t queries = heads * s->width, keys = s->lists * indexer_keys(s) * s->width;
    const struct param random = {.rank = 2, .init = INIT_NORMAL, .init_std = 1 / sqrt((double)inputs), .decay = true};
    struct param query = random, key = random;
    query.shape[0] = queries;
    key.shape[0] = keys;
    query.shape[1] = key.shape[1] = inputs;
    TRY(add_row(layer, params, "query.weight", query, 0));
    TRY(add_row(layer, params, "query.bias", (struct param){.rank = 1, .shape = {queries}}, 0));
    TRY(add_row(layer, params, "key.weight", key, 0));
    TRY(add_row(layer, params, "key.bias", (struct param){.rank = 1, .shape = {keys}}, 0));
    TRY(add_row(layer, params, "head.weight", (struct param){.rank = 2, .shape = {heads, inputs}, .decay = true}, 0));
    TRY(add_row(layer, params, "head.bias", (struct param){.rank = 1, .shape = {heads}, .init = INIT_ONE}, 0));
    return model_has_learned_positions(layer->model) ? STATUS_OK : add_frequencies(layer, params);
}

static enum status find_row(const struct attention_layer *layer, const char *part, const struct param **row) {
    char name[64];
    snprintf(name, sizeof name, "h.%lld.attn.indexer.%s", (long long)layer->layer, part);
    *row = params_find(layer->params, name);
    return *row ? STATUS_OK : error_set(STATUS_FAILED, "parameter %s: not in the table", name);
}

static enum status bind(struct attention_layer *layer) {
    struct indexer_bound *bound = NULL;
    TRY(memory_new(1, sizeof *bound, "a kind's parameters", &bound));
    layer->bound = bound;
    TRY(find_row(layer, "query.weight", &bound->query));
    TRY(find_row(layer, "query.bias", &bound->query_bias));
    TRY(find_row(layer, "key.weight", &bound->key));
    TRY(find_row(layer, "key.bias", &bound->key_bias));
    TRY(find_row(layer, "head.weight", &bound->head));
    TRY(find_row(layer, "head.bias", &bound->head_bias));
    return model_has_learned_positions(layer->model) ? STATUS_OK : find_row(layer, "frequencies", &bound->frequencies);
}

/* --- facts -------------------------------------------------------------------------------------------------------- */

/* Index keys that the query with `rest` tokens between sinks and window is scored against, a list. */
static double scored(const struct indexer_settings *s, int64_t place) {
    const int64_t before = place + 1 - s->window; /* tokens before the window */
    if (before <= 0) return 0;
    if (s->coarse == 0) return (double)before;
    const int64_t blocks = before / s->coarse, looked = blocks < s->coarse_blocks ? blocks : s->coarse_blocks;
    return (double)(2 * blocks + looked * s->coarse + before % s->coarse);
}

static enum status cost(const struct attention_layer *layer, int64_t length, struct attention_cost *out) {
    const struct indexer_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const struct indexer_bound *bound = layer->bound;
    const bool chooses = !bound || indexer_on(layer, INDEXER_CHOICE);
    const int64_t sinks = bound ? indexer_sinks(layer) : s->sinks;
    double pairs = 0, scores = 0, tokens = (double)length;
    for (int64_t i = 0; i < length; i++) {
        const int64_t window = s->window < i + 1 ? s->window : i + 1, first = sinks < i + 1 - window ? sinks : i + 1 - window;
        const int64_t rest = i + 1 - window - first;
        double chosen = 0;
        for (int64_t n = 0; chooses && n < s->lists; n++) chosen += (double)(s->counts[n] < rest ? s->counts[n] : rest);
        pairs += (double)(window + first) + chosen / (double)s->lists;
        scores += chooses ? scored(s, i) : 0;
    }
    const double width = (double)m->head_width, vectors = (double)(s->lists * s->width);
    const double rows = vectors * (double)(s->heads + indexer_keys(s)) + (double)(s->lists * s->heads);
    const double pooled = s->coarse > 0 ? 2 * floor(tokens / (double)s->coarse) : 0;
    *out = (struct attention_cost){
        .density = pairs / (0.5 * tokens * (tokens + 1)),
        .flops = (4 * pairs * (double)m->heads * width + 2 * scores * vectors * (double)s->heads) / tokens +
                 (chooses ? 2 * (double)m->width * rows : 0),
        .decode_bytes = (2 * tokens * (double)m->kv_heads * width + (tokens + pooled) * vectors * (double)indexer_keys(s)) *
                        sizeof(float),
    };
    return STATUS_OK;
}

static enum status report(const struct attention_layer *layer, char *text, size_t capacity) {
    const struct indexer_bound *bound = layer->bound;
    text[0] = '\0';
    if (!bound->looked) return STATUS_OK;
    const char *between = "";
    size_t used = 0;
    if (bound->hit >= 0) {
        used = (size_t)snprintf(text, capacity, "\"hit_rate\": %.4f", bound->hit);
        between = ", ";
    }
    if (bound->distance >= 0 && used < capacity)
        snprintf(text + used, capacity - used, "%s\"chosen_distance\": %.1f", between, bound->distance);
    return STATUS_OK;
}

static bool branch_name(const struct attention_layer *layer, int branch, char name[ATTENTION_BRANCH_NAME]) {
    static const char *const names[INDEXER_PARTS] = {"choice", "scorer: the best choice", "scorer: a random choice", "sinks"};
    const struct indexer_settings *s = layer->settings;
    if (branch >= (s->sinks > 0 ? INDEXER_PARTS : INDEXER_SINKS)) return false;
    snprintf(name, ATTENTION_BRANCH_NAME, "%s", names[branch]);
    return true;
}

static enum status switch_off(struct attention_layer *layer, uint32_t branches) {
    ((struct indexer_bound *)layer->bound)->off = branches;
    return STATUS_OK;
}

const struct kind kind_indexer = {
    .name = "indexer", .summary = "the tokens that a learned scorer chooses, a window and sinks", .chooses = true, .reads_x = true,
    .configure = configure, .cover = cover, .add_params = add_params, .bind = bind, .calibrate = indexer_calibrate,
    .plan = indexer_plan, .forward = indexer_forward, .backward = indexer_backward, .cache_open = indexer_cache_open,
    .cache_close = indexer_cache_close, .decode = indexer_decode, .cost = cost, .report = report, .branch_name = branch_name,
    .switch_off = switch_off,
};
