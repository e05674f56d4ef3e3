/* Memory of a pass: one block, measured and placed by the same code; see DESIGN "measure, then place". */
#include "base/memory.h"
#include "model/internal.h"
#include "params/rotary.h"
#include "params/values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct param *find(const struct model *model, int64_t layer, const char *part) {
    char name[64];
    snprintf(name, sizeof name, "h.%lld.%s", (long long)layer, part);
    return params_find(&model->params, name);
}

static struct linear find_linear(const struct model *model, int64_t layer, const char *part) {
    char name[48];
    struct linear linear = {0};
    const struct param **places[] = {&linear.weight, &linear.bias, &linear.lora_a, &linear.lora_b};
    const char *const ends[] = {"weight", "bias", "lora_a", "lora_b"};
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s.%s", part, ends[i]);
        *places[i] = find(model, layer, name);
    }
    return linear;
}

enum status layer_params_find(const struct model *model, int64_t layer, struct layer_params *out) {
    *out = (struct layer_params){
        .norm1 = find(model, layer, "norm1.weight"), .norm1_bias = find(model, layer, "norm1.bias"),
        .norm2 = find(model, layer, "norm2.weight"), .norm2_bias = find(model, layer, "norm2.bias"),
        .qkv = find_linear(model, layer, "attn.qkv"), .out = find_linear(model, layer, "attn.out"),
        .up = find_linear(model, layer, "mlp.up"), .down = find_linear(model, layer, "mlp.down"),
    };
    if (out->norm1 && out->norm2 && out->qkv.weight && out->out.weight && out->up.weight && out->down.weight) return STATUS_OK;
    return error_set(STATUS_FAILED, "layer %lld: parameters are missing from the table", (long long)layer);
}

static bool may_train(const struct param *row) { return row && tensor_present(row->grad); }

static int64_t up_width(const struct model_config *c) {
    return c->type == MODEL_LLAMA ? 2 * c->mlp_width : c->mlp_width;
}

/* What a layer keeps besides x. */
static void take_saved(const struct plan *plan, int64_t layer, struct arena *arena, struct layer_saved *s) {
    const struct model *model = plan->model;
    const struct model_config *c = &model->config;
    enum dtype real = model->params.ops->real, statistic = model->params.ops->statistic;
    const struct layer_params *p = &plan->params[layer];
    int64_t n = plan->rows;
    bool train = plan->options.train;
    s->mean1 = arena_1d(arena, statistic, n);
    s->rstd1 = arena_1d(arena, statistic, n);
    s->mean2 = arena_1d(arena, statistic, n);
    s->rstd2 = arena_1d(arena, statistic, n);
    s->n1 = arena_2d(arena, real, n, c->width);
    s->qkv = arena_2d(arena, real, n, model_qkv_width(c));
    s->o = arena_2d(arena, real, n, c->heads * c->head_width);
    s->middle = train ? arena_2d(arena, real, n, c->width) : plan->final_x;
    /* Unless up trains, n2 is dead after it: it borrows n1 (dead by then when nothing is kept) or the final hidden states. */
    s->n2 = train && may_train(p->up.weight) ? arena_2d(arena, real, n, c->width) : train ? plan->hidden : s->n1;
    s->h = train && may_train(p->down.weight) ? arena_2d(arena, real, n, c->mlp_width) : plan->d_h;
    bool keeps_pre = train || c->type == MODEL_LLAMA;
    s->pre = keeps_pre ? arena_2d(arena, real, n, up_width(c)) : tensor_none();
    if (p->qkv.lora_a) s->qkv_low = arena_2d(arena, real, n, model->lora.rank);
    if (p->out.lora_a) s->out_low = arena_2d(arena, real, n, model->lora.rank);
}

static enum status plan_attention(struct plan *plan, int64_t layer, struct arena *arena) {
    const struct attention_layer *attention = &plan->model->layers[layer];
    free(plan->saved[layer].attention);
    plan->saved[layer].attention = NULL;
    const bool backward = plan->options.train || plan->options.align;
    return attention->kind->plan(attention, arena, plan->options.batch, plan->options.length, backward,
                                 &plan->saved[layer].attention);
}

static void take_common(struct plan *plan, struct arena *arena) {
    const struct model_config *c = &plan->model->config;
    const struct ops *ops = plan->model->params.ops;
    int64_t n = plan->rows;
    plan->ids = arena_1d(arena, DTYPE_I32, n);
    plan->positions = arena_1d(arena, DTYPE_I32, n);
    plan->start = arena_2d(arena, DTYPE_I32, plan->options.batch, plan->options.length);
    plan->frequencies = arena_1d(arena, ops->statistic, c->head_width / 2 > 0 ? c->head_width / 2 : 1);
    plan->sums = arena_1d(arena, DTYPE_F64, 2 * c->layers);
    plan->loss = arena_1d(arena, DTYPE_F64, 1);
    plan->delta = arena_2d(arena, ops->real, n, c->width);
    plan->d_n = plan->delta;
}

static void take_network(struct plan *plan, struct arena *arena) {
    const struct model_config *c = &plan->model->config;
    const struct ops *ops = plan->model->params.ops;
    int64_t n = plan->rows;
    plan->final_x = arena_2d(arena, ops->real, n, c->width);
    plan->final_mean = arena_1d(arena, ops->statistic, n);
    plan->final_rstd = arena_1d(arena, ops->statistic, n);
    plan->hidden = arena_2d(arena, ops->real, n, c->width);
    plan->d_h = arena_2d(arena, ops->real, n, c->mlp_width);
    if (plan->options.train) plan->d_x = arena_2d(arena, ops->real, n, c->width);
    bool reads_x = false;
    for (int64_t l = 0; l < c->layers; l++) reads_x = reads_x || plan->model->layers[l].kind->reads_x;
    if (plan->options.train && reads_x) plan->d_kind = arena_2d(arena, ops->real, n, c->width);
}

static void take_attention_gradients(struct plan *plan, struct arena *arena) {
    const struct model_config *c = &plan->model->config;
    enum dtype real = plan->model->params.ops->real;
    plan->d_o = arena_2d(arena, real, plan->rows, c->heads * c->head_width);
    plan->d_qkv = arena_2d(arena, real, plan->rows, model_qkv_width(c));
    if (plan->model->lora.rank > 0) plan->d_low = arena_2d(arena, real, plan->rows, plan->model->lora.rank);
}

/* Objective `attention`: one layer at a time on the teacher's inputs. */
static enum status build_align(struct plan *plan, struct arena *arena) {
    const struct model *model = plan->model;
    const struct model_config *c = &model->config;
    enum dtype real = model->params.ops->real;
    take_common(plan, arena);
    take_attention_gradients(plan, arena);
    bool own = false; /* else the teacher's q, k, v are the student's */
    for (int64_t l = 0; l < c->layers; l++) own = own || linear_is_own(&plan->params[l].qkv);
    struct layer_saved shared = {
        .qkv = own ? arena_2d(arena, real, plan->rows, model_qkv_width(c)) : tensor_none(),
        .o = arena_2d(arena, real, plan->rows, c->heads * c->head_width),
    };
    if (model->lora.rank > 0) shared.qkv_low = arena_2d(arena, real, plan->rows, model->lora.rank);
    size_t mark = arena_mark(arena);
    for (int64_t l = 0; l < c->layers; l++) {
        void *attention = plan->saved[l].attention;
        plan->saved[l] = shared;
        plan->saved[l].attention = attention;
        arena_release(arena, mark);
        TRY(plan_attention(plan, l, arena));
    }
    return STATUS_OK;
}

static enum status build(struct plan *plan, struct arena *arena) {
    const struct model_config *c = &plan->model->config;
    enum dtype real = plan->model->params.ops->real;
    bool share = !plan->options.train || plan->options.recompute;
    if (plan->options.align) return build_align(plan, arena);
    take_common(plan, arena);
    take_network(plan, arena);
    if (plan->options.train) take_attention_gradients(plan, arena);
    struct layer_saved shared = {0};
    if (share) take_saved(plan, 0, arena, &shared);
    for (int64_t l = 0; l < c->layers; l++) {
        struct layer_saved *s = &plan->saved[l];
        void *attention = s->attention;
        *s = shared;
        s->attention = attention;
        s->x = plan->options.train ? arena_2d(arena, real, plan->rows, c->width) : plan->final_x;
        if (!share) take_saved(plan, l, arena, s);
        if (!share) TRY(plan_attention(plan, l, arena));
    }
    size_t mark = arena_mark(arena);
    for (int64_t l = 0; share && l < c->layers; l++) {
        arena_release(arena, mark);
        TRY(plan_attention(plan, l, arena));
    }
    return STATUS_OK;
}

static enum status prepare(const struct model *model, const struct plan_options *options, struct plan **out) {
    enum status status = STATUS_OK;
    struct plan *plan = NULL;
    size_t layers = (size_t)model->config.layers;
    TRY(memory_new(1, sizeof *plan, "a plan", &plan));
    plan->model = model;
    plan->options = *options;
    plan->rows = options->batch * options->length;
    plan->context.progress = 1;
    TRY_GOTO(done, memory_new(layers, sizeof *plan->params, "a plan", &plan->params));
    TRY_GOTO(done, memory_new(layers, sizeof *plan->saved, "a plan", &plan->saved));
    for (size_t l = 0; l < layers; l++) TRY_GOTO(done, layer_params_find(model, (int64_t)l, &plan->params[l]));
    struct arena arena = arena_sizing();
    TRY_GOTO(done, build(plan, &arena));
    plan->bytes = arena.peak;
done:
    if (status != STATUS_OK) plan_close(&plan);
    *out = plan;
    return status;
}

enum status plan_set_context(struct plan *plan, const struct attention_context *context, bool *steady) {
    plan->context = *context;
    *steady = !context->looks;
    for (int64_t l = 0; l < plan->model->config.layers; l++) {
        const struct attention_layer *layer = &plan->model->layers[l];
        bool own = true;
        if (layer->kind->turn) TRY(layer->kind->turn(layer, context, &own));
        *steady = *steady && own;
    }
    return STATUS_OK;
}

enum status plan_read_loss(struct plan *plan, double *loss) {
    return plan->model->params.ops->download(plan->model->params.ops, plan->loss, loss);
}

struct tensor plan_hidden(const struct plan *plan) { return plan->hidden; }

enum status plan_measure(const struct model *model, const struct plan_options *options, size_t *bytes) {
    struct plan *plan = NULL;
    TRY(prepare(model, options, &plan));
    *bytes = plan->bytes;
    plan_close(&plan);
    return STATUS_OK;
}

enum status plan_open(const struct model *model, const struct plan_options *options, struct plan **out) {
    enum status status = STATUS_OK;
    struct plan *plan = NULL;
    const struct ops *ops = model->params.ops;
    TRY_GOTO(done, prepare(model, options, &plan));
    TRY_GOTO(done, memory_new((size_t)plan->rows, sizeof *plan->host_positions, "positions", &plan->host_positions));
    TRY_GOTO(done, ops->allocate(ops, plan->bytes, &plan->block));
    struct arena arena = arena_placing(plan->block, plan->bytes);
    TRY_GOTO(done, build(plan, &arena));
    if (arena.overflow) {
        status = error_set(STATUS_FAILED, "a plan measured %zu bytes and placed %zu", plan->bytes, arena.peak);
        goto done;
    }
    status = rope_upload_frequencies(model, plan->frequencies);
done:
    if (status != STATUS_OK) plan_close(&plan);
    *out = plan;
    return status;
}

void plan_close(struct plan **out) {
    struct plan *plan = *out;
    if (!plan) return;
    for (int64_t l = 0; plan->saved && l < plan->model->config.layers; l++) free(plan->saved[l].attention);
    if (plan->block) plan->model->params.ops->release(plan->model->params.ops, plan->block);
    free(plan->saved);
    free(plan->params);
    free(plan->host_positions);
    free(plan);
    *out = NULL;
}

enum status rope_upload_frequencies(const struct model *model, struct tensor out) {
    const struct model_config *c = &model->config;
    const struct ops *ops = model->params.ops;
    if (model_has_learned_positions(c)) return STATUS_OK;
    int64_t count = tensor_count(out);
    double *frequencies = NULL;
    TRY(memory_new((size_t)count, sizeof *frequencies, "rotary frequencies", &frequencies));
    for (int64_t i = 0; i < count; i++) frequencies[i] = rotary_frequency(c, i);
    enum status status = values_write(ops, out, frequencies);
    free(frequencies);
    return status;
}
