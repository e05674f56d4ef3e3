/* Makes and frees models: teachers, models from scratch, students that share a teacher's frozen weights. */
#include "base/memory.h"
#include "model/internal.h"
#include "params/values.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* cover: 0, or the length up to which every layer is to read everything. */
static enum status take_layers(struct model *model, const char *where, const struct config_attention *rules, size_t count,
                               int64_t cover) {
    TRY(memory_new((size_t)model->config.layers, sizeof *model->layers, "layers", &model->layers));
    TRY(attention_configure(where, rules, count, &model->config, model->layers));
    for (int64_t l = 0; l < model->config.layers; l++) {
        struct attention_layer *layer = &model->layers[l];
        layer->params = &model->params;
        if (cover > 0 && !kind_is_full(layer->kind)) {
            if (!layer->kind->cover) {
                return error_set(STATUS_NOT_FOUND, "kind %s: has no form that reads everything", layer->kind->name);
            }
            layer->kind->cover(layer, cover);
        }
        if (layer->kind->add_params) TRY(layer->kind->add_params(layer, &model->params));
    }
    return STATUS_OK;
}

static enum status bind_layers(struct model *model) {
    for (int64_t l = 0; l < model->config.layers; l++) {
        struct attention_layer *layer = &model->layers[l];
        if (layer->kind->bind) TRY(layer->kind->bind(layer));
    }
    return STATUS_OK;
}

enum status model_new(const struct ops *ops, const struct model_config *config, bool train, struct model *model) {
    enum status status = STATUS_OK;
    char *all[] = {"all"};
    *model = (struct model){.config = *config};
    TRY_GOTO(done, params_new(ops, config, &model->params));
    TRY_GOTO(done, take_layers(model, "", NULL, 0, 0));
    TRY_GOTO(done, params_own(&model->params, all, 1));
    TRY_GOTO(done, params_place(&model->params, train));
    TRY_GOTO(done, bind_layers(model));
done:
    if (status != STATUS_OK) model_free(model);
    return status;
}

enum status model_initialise(struct model *model, uint64_t seed) {
    return params_initialise(&model->params, seed, false);
}

/* What a student is made of besides its teacher. */
struct student_making {
    const char *where;
    const struct config_attention *rules;
    size_t rule_count;
    char *const *patterns;
    size_t pattern_count;
    bool train;
    int64_t cover; /* as take_layers has it */
    uint64_t seed;
};

static enum status make_student(const struct model *teacher, const struct student_making *m, struct model *student) {
    enum status status = STATUS_OK;
    *student = (struct model){.config = teacher->config, .teacher = teacher, .bf16 = teacher->bf16};
    TRY_GOTO(done, params_share(&teacher->params, &student->params));
    TRY_GOTO(done, take_layers(student, m->where, m->rules, m->rule_count, m->cover));
    TRY_GOTO(done, params_lora(m->patterns, m->pattern_count, &student->lora));
    if (student->lora.rank > 0) TRY_GOTO(done, lora_add(student));
    TRY_GOTO(done, params_own(&student->params, m->patterns, m->pattern_count));
    TRY_GOTO(done, params_place(&student->params, m->train));
    TRY_GOTO(done, params_initialise(&student->params, m->seed, true));
    TRY_GOTO(done, lora_start(student, m->seed));
    TRY_GOTO(done, bind_layers(student));
done:
    if (status != STATUS_OK) model_free(student);
    return status;
}

enum status model_student(const struct model *teacher, const char *where, const struct config_attention *rules,
                          size_t rule_count, char *const *patterns, size_t pattern_count, bool train, uint64_t seed,
                          struct model *student) {
    const struct student_making making = {.where = where, .rules = rules, .rule_count = rule_count, .patterns = patterns,
                                          .pattern_count = pattern_count, .train = train, .seed = seed};
    return make_student(teacher, &making, student);
}

enum status model_covered(const struct model *teacher, const char *where, const struct config_attention *rules, size_t rule_count,
                          int64_t length, uint64_t seed, struct model *student) {
    const struct student_making making = {.where = where, .rules = rules, .rule_count = rule_count, .cover = length, .seed = seed};
    return make_student(teacher, &making, student);
}

void model_free(struct model *model) {
    if (!model) return;
    attention_free_layers(model->layers, model->layers ? model->config.layers : 0);
    free(model->layers);
    params_free(&model->params);
    *model = (struct model){0};
}

/* Row `to` of the longer table, from `count` learned rows: tiled, or between two neighbours. */
static void extend_row(const float *table, int64_t count, int64_t width, int64_t to, int64_t length,
                       enum positions_beyond how, float *row) {
    if (how == POSITIONS_TILE) {
        memcpy(row, table + to % count * width, (size_t)width * sizeof *row);
        return;
    }
    double place = (double)to * (double)(count - 1) / (double)(length - 1);
    int64_t below = (int64_t)place < count - 1 ? (int64_t)place : count - 2;
    double share = place - (double)below;
    for (int64_t c = 0; c < width; c++) {
        double a = (double)table[below * width + c], b = (double)table[(below + 1) * width + c];
        row[c] = (float)((1 - share) * a + share * b);
    }
}

enum status model_extend_positions(struct model *model, int64_t length) {
    struct model_config *config = &model->config;
    const struct ops *ops = model->params.ops;
    if (!model_has_learned_positions(config) || length <= config->positions) return STATUS_OK;
    if (config->positions_beyond == POSITIONS_REFUSE || config->positions < 2) {
        return error_set(STATUS_USAGE, "length %lld: the model has %lld learned positions; shorten it, or set positions: "
                                       "interpolate or tile", (long long)length, (long long)config->positions);
    }
    struct param *row = params_find(&model->params, "wpe");
    if (row->owned && tensor_present(row->grad)) {
        return error_set(STATUS_USAGE, "positions: a table that trains cannot be extended");
    }
    enum status status = STATUS_OK;
    int64_t count = config->positions, width = config->width;
    float *table = NULL, *longer = NULL;
    void *block = NULL;
    TRY_GOTO(done, memory_new((size_t)(count * width), sizeof *table, "positions", &table));
    TRY_GOTO(done, memory_new((size_t)(length * width), sizeof *longer, "positions", &longer));
    const enum dtype dtype = row->value.dtype;
    if (dtype == DTYPE_F64) {
        status = error_set(STATUS_FAILED, "wpe: expected f32 or bf16, found f64");
        goto done;
    }
    TRY_GOTO(done, values_download(ops, row->value, table));
    for (int64_t to = 0; to < length; to++) {
        extend_row(table, count, width, to, length, config->positions_beyond, longer + to * width);
    }
    TRY_GOTO(done, ops->allocate(ops, (size_t)(length * width) * dtype_size(dtype), &block));
    struct tensor value = tensor_2d(block, dtype, length, width);
    TRY_GOTO(done, values_upload(ops, value, longer));
    if (model->params.extra) ops->release(ops, model->params.extra);
    model->params.extra = block;
    block = NULL;
    params_move(&model->params, row, value);
    row->shape[0] = length;
    config->positions = length;
done:
    if (block) ops->release(ops, block);
    free(table);
    free(longer);
    return status;
}

enum status model_cost(const struct model *model, int64_t length, struct attention_cost *mean, double *forward_flops) {
    const struct model_config *c = &model->config;
    double flops = 0, density = 0, decode = 0;
    int64_t with_density = 0;
    for (int64_t l = 0; l < c->layers; l++) {
        struct attention_cost cost = {.density = -1};
        TRY(model->layers[l].kind->cost(&model->layers[l], length, &cost));
        flops += cost.flops;
        decode += cost.decode_bytes;
        if (cost.density < 0) continue;
        density += cost.density;
        with_density++;
    }
    *mean = (struct attention_cost){
        .density = with_density ? density / (double)with_density : -1,
        .flops = flops / (double)c->layers,
        .decode_bytes = decode / (double)c->layers,
    };
    double up = c->type == MODEL_LLAMA ? 2.0 : 1.0;
    double matrices = (double)(model_qkv_width(c) + c->heads * c->head_width) + (up + 1) * (double)c->mlp_width;
    *forward_flops = flops + 2.0 * (double)c->width * ((double)c->layers * matrices + (double)c->vocabulary);
    return STATUS_OK;
}
