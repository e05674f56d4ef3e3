#include "eval/bench_layer.h"

#include "eval/tuning.h"

#include <stdio.h>
#include <stdlib.h>

enum status bench_options_check(const struct bench_options *o) {
    if (o->rule_count < 1 || o->length_count < 1 || o->repeats < 1)
        return error_set(STATUS_USAGE, "%s: expected at least one kind, length and repeat, found %d, %d, %d", o->name,
                         o->rule_count, o->length_count, o->repeats);
    for (int n = 0; n < o->length_count; n++)
        if (o->lengths[n] < 1)
            return error_set(STATUS_USAGE, "%s: expected lengths of at least 1, found %lld", o->name,
                             (long long)o->lengths[n]);
    return STATUS_OK;
}

enum status bench_layer_open(const struct bench_options *o, int rule, int64_t length, struct bench_layer *layer) {
    char *added[] = {"new"}, where[64];
    int64_t elements;
    struct attention_layer *attention = &layer->attention;
    TRY(ops_open(o->table, &(struct ops_options){.threads = o->threads}, &layer->ops));
    TRY(tuning_apply(layer->ops, NULL));
    layer->model = (struct model_config){
        .type = MODEL_LLAMA,
        .layers = 1,
        .heads = o->heads,
        .kv_heads = o->groups,
        .head_width = o->width,
        .width = o->heads * o->width,
        .mlp_width = 1,
        .vocabulary = 1,
        .positions = length,
        .causal = true,
    };
    layer->params = (struct params){.ops = layer->ops};
    snprintf(where, sizeof where, "%s: --kinds", o->name);
    TRY(attention_configure(where, &o->rules[rule], 1, &layer->model, attention));
    attention->params = &layer->params;
    if (attention->kind->add_params) TRY(attention->kind->add_params(attention, &layer->params));
    TRY(params_place(&layer->params, true));
    TRY(params_initialise(&layer->params, 1, true));
    if (attention->kind->bind) TRY(attention->kind->bind(attention));
    return params_train(&layer->params, added, 1, &elements);
}

void bench_layer_close(struct bench_layer *layer) {
    if (!layer->ops) return;
    attention_free_layers(&layer->attention, 1);
    params_free(&layer->params);
    layer->ops->close(layer->ops);
    *layer = (struct bench_layer){0};
}

void bench_layer_describe(const struct config_attention *rule, char name[BENCH_NAME]) {
    size_t used = (size_t)snprintf(name, BENCH_NAME, "%s", rule->kind);
    for (size_t i = 0; i < rule->option_count && used < BENCH_NAME; i++) {
        const struct config_option *option = &rule->options[i];
        used += (size_t)snprintf(name + used, BENCH_NAME - used, "%s%s", i ? ", " : ": ", option->key);
        for (size_t w = 0; w < option->count && used < BENCH_NAME; w++)
            used += (size_t)snprintf(name + used, BENCH_NAME - used, " %s", option->words[w]);
    }
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}
