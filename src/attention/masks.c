/* The kind `masks`: a learned linear combination of candidate masks (docs/attention.md).
 * Options: candidates: [window(32), sinks(4), …], 1 to 8 of them; per: head | layer | model; start: numbers, one a candidate, or
 * with per: head a row of them for each head (default: the widest 1, others 0). Parameters: h.N.attn.masks.coefficients
 * [H or 1, M]; per model: attn.masks.coefficients [1,M]. */
#include "attention/kinds.h"
#include "attention/mixture.h"
#include "base/memory.h"
#include "params/values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PER_HEAD = 0, PER_LAYER, PER_MODEL };
static const char *const per_names[] = {"head", "layer", "model"};

struct masks_settings {
    struct mixture mixture; /* candidates only */
    int per;
    int64_t rows;   /* H, or 1 */
    double start[]; /* [rows,M] */
};

struct masks_bound {
    const struct param *coefficients;
    uint32_t off;  /* switched off for an audit */
    uint32_t dead; /* zero in every head when the cache was opened: decoding leaves them out */
};

static const struct {
    const char *name;
    enum candidate_kind kind;
    int arguments;
} forms[] = {
    {"full", CANDIDATE_FULL, 0},     {"window", CANDIDATE_WINDOW, 1},   {"sinks", CANDIDATE_SINKS, 1},
    {"offset", CANDIDATE_OFFSET, 1}, {"dilated", CANDIDATE_DILATED, 2}, {"stride", CANDIDATE_STRIDE, 1},
    {"blocks", CANDIDATE_BLOCKS, 1},
};

/* Reads "name", "name(a)" or "name(a,b)". */
static bool read_candidate(const char *word, struct candidate *candidate) {
    char name[16] = {0};
    long a = 0, b = 0;
    int end = 0, arguments = 0;
    if (sscanf(word, "%15[a-z]%n", name, &end) == 1 && word[end] == '\0') {
        arguments = 0;
    } else if (sscanf(word, "%15[a-z](%ld)%n", name, &a, &end) == 2 && end > 0 && word[end] == '\0') {
        arguments = 1;
    } else if (end = 0, sscanf(word, "%15[a-z](%ld ,%ld)%n", name, &a, &b, &end) == 3 && end > 0 && word[end] == '\0') {
        arguments = 2;
    } else {
        return false;
    }
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (strcmp(forms[i].name, name) != 0) continue;
        bool fits = forms[i].arguments == arguments && (arguments < 1 || (a >= 1 && a <= 1 << 24)) &&
                    (arguments < 2 || (b >= 1 && b <= 1 << 20));
        *candidate = (struct candidate){.kind = forms[i].kind, .a = (int32_t)a, .b = (int32_t)b};
        return fits;
    }
    return false;
}

static enum status read_candidates(const char *where, const struct config_attention *rule, struct mixture *mixture) {
    const struct config_option *option = options_find(rule, "candidates");
    if (!option) {
        return error_set(STATUS_USAGE, "%s:%d: attention masks: candidates: expected a list such as [window(256), sinks(4)], "
                                       "found none", where, rule->line);
    }
    if (option->count < 1 || option->count > CANDIDATES_MAX) {
        char found[24];
        snprintf(found, sizeof found, "%zu", option->count);
        return options_wrong(where, rule, option, "1 to 8 candidates", found);
    }
    for (size_t i = 0; i < option->count; i++) {
        if (read_candidate(option->words[i], &mixture->candidates[i])) continue;
        return options_wrong(where, rule, option,
                             "full, window(W), sinks(N), offset(D), dilated(W,R), stride(R) or blocks(B) with numbers from 1",
                             option->words[i]);
    }
    mixture->count = (int)option->count;
    return STATUS_OK;
}

static void start_at_widest(struct masks_settings *settings, const struct model_config *model) {
    int widest = 0;
    double most = -1;
    for (int m = 0; m < settings->mixture.count; m++) {
        double pairs = mixture_pairs(&settings->mixture, 1u << m, model->positions > 0 ? model->positions : 2048);
        if (pairs > most) {
            most = pairs;
            widest = m;
        }
    }
    for (int64_t r = 0; r < settings->rows; r++) settings->start[r * settings->mixture.count + widest] = 1;
}

static enum status read_start(const char *where, const struct config_attention *rule, const struct config_option *option,
                              struct masks_settings *settings) {
    const int64_t columns = settings->mixture.count, count = settings->rows * columns, given = (int64_t)option->count;
    if (given != columns && given != count) {
        char expected[96], found[32];
        snprintf(expected, sizeof expected, "%lld numbers, one a candidate%s", (long long)columns,
                 settings->rows > 1 ? ", or a row of them for every head" : "");
        snprintf(found, sizeof found, "%lld numbers", (long long)given);
        return options_wrong(where, rule, option, expected, found);
    }
    for (int64_t i = 0; i < count; i++) {
        const char *word = option->words[given == count ? i : i % columns];
        TRY(options_number(where, rule, option, word, -100, 100, &settings->start[i]));
    }
    return STATUS_OK;
}

static enum status configure(const char *where, const struct config_attention *rule, const struct model_config *model,
                             void **out) {
    static const char *const known[] = {"candidates", "per", "start"};
    enum status status = STATUS_OK;
    struct masks_settings *settings = NULL;
    size_t most = (size_t)model->heads * CANDIDATES_MAX * sizeof *settings->start;
    TRY(memory_new(1, sizeof *settings + most, "a kind's settings", &settings));
    TRY_GOTO(done, options_check_known(where, rule, known, 3));
    TRY_GOTO(done, read_candidates(where, rule, &settings->mixture));
    TRY_GOTO(done, options_choice(where, rule, "per", per_names, 3, &settings->per));
    settings->rows = settings->per == PER_HEAD ? model->heads : 1;
    const struct config_option *start = options_find(rule, "start");
    if (start) {
        TRY_GOTO(done, read_start(where, rule, start, settings));
    } else {
        start_at_widest(settings, model);
    }
done:
    if (status != STATUS_OK) {
        free(settings);
        settings = NULL;
    }
    *out = settings;
    return status;
}

/* The first candidate becomes a window over everything, alone in every head. */
static void cover(struct attention_layer *layer, int64_t length) {
    struct masks_settings *settings = layer->settings;
    settings->mixture.candidates[0] = (struct candidate){.kind = CANDIDATE_WINDOW, .a = (int32_t)length};
    for (int64_t i = 0; i < settings->rows * settings->mixture.count; i++) {
        settings->start[i] = i % settings->mixture.count == 0;
    }
}

static void row_name(const struct attention_layer *layer, char name[64]) {
    const struct masks_settings *settings = layer->settings;
    if (settings->per == PER_MODEL) {
        snprintf(name, 64, "attn.masks.coefficients");
    } else {
        snprintf(name, 64, "h.%lld.attn.masks.coefficients", (long long)layer->layer);
    }
}

static enum status add_params(const struct attention_layer *layer, struct params *params) {
    const struct masks_settings *settings = layer->settings;
    int count = settings->mixture.count;
    struct param row = {.rank = 2, .shape = {settings->rows, count},
                        .init = INIT_VALUES, .init_values = settings->start, .sparse = true, .added = true};
    row_name(layer, row.name);
    const struct param *there = settings->per == PER_MODEL ? params_find(params, row.name) : NULL;
    if (!there) return params_add(params, &row, settings->rows * count);
    if (there->shape[1] == count) return STATUS_OK;
    return error_set(STATUS_USAGE, "attention masks: per: model asks for the same candidates in every layer, found %lld and %d",
                     (long long)there->shape[1], count);
}

static enum status bind(struct attention_layer *layer) {
    struct masks_bound *bound = NULL;
    char name[64];
    row_name(layer, name);
    TRY(memory_new(1, sizeof *bound, "a kind's parameters", &bound));
    bound->coefficients = params_find(layer->params, name);
    layer->bound = bound;
    return bound->coefficients ? STATUS_OK : error_set(STATUS_FAILED, "parameter %s: not in the table", name);
}

/* One row of coefficients serves all heads by a stride of 0. */
static struct tensor for_heads(struct tensor rows, int64_t heads) {
    if (!tensor_present(rows) || rows.shape[0] == heads) return rows;
    rows.shape[0] = heads;
    rows.stride[0] = 0;
    return rows;
}

static struct mixture mixture_of(const struct attention_layer *layer) {
    const struct masks_settings *settings = layer->settings;
    const struct masks_bound *bound = layer->bound;
    struct mixture mixture = settings->mixture;
    mixture.off = bound->off;
    mixture.coefficients = for_heads(bound->coefficients->value, layer->model->heads);
    if (bound->coefficients->trained) mixture.dcoefficients = for_heads(bound->coefficients->grad, layer->model->heads);
    return mixture;
}

static enum status plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                        void **saved) {
    const struct masks_settings *settings = layer->settings;
    (void)train;
    return mixture_plan(layer, settings->mixture.count, arena, batch, length, saved);
}

static enum status forward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct mixture mixture = mixture_of(layer);
    return mixture_forward(layer, &mixture, pass);
}

static enum status backward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct mixture mixture = mixture_of(layer);
    return mixture_backward(layer, &mixture, pass);
}

/* values: host [rows·M] as doubles. */
static enum status read_coefficients(const struct attention_layer *layer, double **values) {
    const struct param *row = ((const struct masks_bound *)layer->bound)->coefficients;
    int64_t count = tensor_count(row->value);
    TRY(memory_new((size_t)count, sizeof **values, "coefficients", values));
    return values_read(layer->params->ops, row->value, *values);
}

/* alive: host [H], a bit a candidate whose coefficient is not zero; *any: their union. */
static enum status read_alive(const struct attention_layer *layer, uint32_t *alive, uint32_t *any) {
    const struct masks_settings *settings = layer->settings;
    const struct masks_bound *bound = layer->bound;
    double *values = NULL;
    enum status status = read_coefficients(layer, &values);
    *any = 0;
    for (int64_t h = 0; status == STATUS_OK && h < layer->model->heads; h++) {
        int64_t row = bound->coefficients->shape[0] == 1 ? 0 : h;
        alive[h] = 0;
        for (int m = 0; m < settings->mixture.count; m++) {
            if (values[row * settings->mixture.count + m] != 0) alive[h] |= 1u << m;
        }
        alive[h] &= ~bound->off;
        *any |= alive[h];
    }
    free(values);
    return status;
}

static enum status cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                              struct attention_cache **cache) {
    struct masks_bound *bound = layer->bound;
    uint32_t *alive = NULL, any;
    TRY(memory_new((size_t)layer->model->heads, sizeof *alive, "live candidates", &alive));
    enum status status = read_alive(layer, alive, &any);
    free(alive);
    if (status != STATUS_OK) return status;
    bound->dead = ~any;
    struct mixture mixture = mixture_of(layer);
    mixture.off |= bound->dead;
    return mixture_cache_open(layer, &mixture, ops, batch, length, cache);
}

static enum status decode(const struct attention_layer *layer, struct attention_cache *cache,
                          const struct attention_decode_pass *pass) {
    struct mixture mixture = mixture_of(layer);
    mixture.off |= ((const struct masks_bound *)layer->bound)->dead;
    return mixture_decode(layer, &mixture, cache, pass);
}

static enum status cost(const struct attention_layer *layer, int64_t length, struct attention_cost *out) {
    uint32_t *alive = NULL, any;
    TRY(memory_new((size_t)layer->model->heads, sizeof *alive, "live candidates", &alive));
    enum status status = read_alive(layer, alive, &any);
    if (status == STATUS_OK) {
        struct mixture mixture = mixture_of(layer);
        mixture.off |= ~any;
        mixture_cost(layer->model, &mixture, alive, length, out);
    }
    free(alive);
    return status;
}

static enum status report(const struct attention_layer *layer, char *text, size_t capacity) {
    const struct masks_settings *settings = layer->settings;
    int count = settings->mixture.count;
    int64_t rows = ((const struct masks_bound *)layer->bound)->coefficients->shape[0];
    double *values = NULL;
    TRY(read_coefficients(layer, &values));
    size_t used = (size_t)snprintf(text, capacity, "\"coefficients\": [");
    for (int m = 0; m < count && used < capacity; m++) {
        double mean = 0;
        for (int64_t r = 0; r < rows; r++) mean += values[r * count + m] / (double)rows;
        used += (size_t)snprintf(text + used, capacity - used, m ? ", %.6g" : "%.6g", mean);
    }
    int64_t zeros = 0;
    for (int64_t i = 0; i < rows * count; i++) zeros += values[i] == 0;
    if (used < capacity) {
        snprintf(text + used, capacity - used, "], \"zero_share\": %.4f", (double)zeros / (double)(rows * count));
    }
    free(values);
    return STATUS_OK;
}

static enum status switch_off(struct attention_layer *layer, uint32_t branches) {
    ((struct masks_bound *)layer->bound)->off = branches;
    return STATUS_OK;
}

/* As the recipe writes it: "window(32)". */
static bool branch_name(const struct attention_layer *layer, int branch, char name[ATTENTION_BRANCH_NAME]) {
    const struct masks_settings *settings = layer->settings;
    if (branch >= settings->mixture.count) return false;
    const struct candidate *c = &settings->mixture.candidates[branch];
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (forms[i].kind != c->kind) continue;
        static const char *const formats[] = {"%s", "%s(%d)", "%s(%d,%d)"};
        snprintf(name, ATTENTION_BRANCH_NAME, formats[forms[i].arguments], forms[i].name, c->a, c->b);
    }
    return true;
}

const struct kind kind_masks = {
    .name = "masks", .summary = "a learned mixture of candidate masks: windows, sinks, strides, blocks",
    .configure = configure, .cover = cover, .add_params = add_params, .bind = bind, .plan = plan, .forward = forward, .backward = backward,
    .cache_open = cache_open, .cache_close = mixture_cache_close, .decode = decode, .cost = cost, .report = report,
    .branch_name = branch_name, .switch_off = switch_off,
};
