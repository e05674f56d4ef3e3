/* The forward pass: embeddings, layers, final norm; teacher and student alike. */
#include "model/internal.h"

static struct tensor working_of(const struct param *row) { return row ? row->working : tensor_none(); }

enum status plan_load(struct plan *plan, const int32_t *ids, const int32_t *positions, const int32_t *start) {
    const struct model_config *c = &plan->model->config;
    const struct ops *ops = plan->model->params.ops;
    for (int64_t n = 0; n < plan->rows; n++) {
        if (ids[n] < 0 || ids[n] >= c->vocabulary) {
            return error_set(STATUS_FAILED, "batch: token %lld: expected an id below %lld, found %d", (long long)n,
                             (long long)c->vocabulary, ids[n]);
        }
        if (positions[n] < 0 || (model_has_learned_positions(c) && positions[n] >= c->positions)) {
            return error_set(STATUS_USAGE, "position %d: the model has %lld learned positions; shorten the context, or set "
                                           "positions: interpolate or tile", positions[n], (long long)c->positions);
        }
    }
    TRY(ops->fill(ops, plan->loss, 0));
    TRY(ops->upload(ops, plan->ids, ids));
    TRY(ops->upload(ops, plan->start, start));
    return ops->upload(ops, plan->positions, positions);
}

enum status plan_load_batch(struct plan *plan, const struct batch *batch) {
    if (batch->batch != plan->options.batch || batch->length != plan->options.length) {
        return error_set(STATUS_SHAPE, "batch: expected %lldx%lld tokens, found %lldx%lld", (long long)plan->options.batch,
                         (long long)plan->options.length, (long long)batch->batch, (long long)batch->length);
    }
    for (int64_t n = 0; n < plan->rows; n++) {
        plan->host_positions[n] = (int32_t)(n % batch->length) - batch->start[n];
    }
    return plan_load(plan, batch->ids, plan->host_positions, batch->start);
}

static enum status embed_batch(struct plan *plan, struct tensor x) {
    const struct params *params = &plan->model->params;
    struct embedding embedding = {.ids = plan->ids, .positions = plan->positions,
                                  .table = params_find(params, "wte")->working,
                                  .position_table = working_of(params_find(params, "wpe")), .x = x};
    TRY(params->ops->embedding(params->ops, &embedding));
    return probe_look(plan, -1, "the embeddings", x);
}

enum status layer_project(struct plan *plan, int64_t layer, struct tensor n1, struct tensor qkv, struct tensor low) {
    const struct model *model = plan->model;
    const struct ops *ops = model->params.ops;
    TRY(linear_forward(model, &plan->params[layer].qkv, n1, qkv, ACTIVATION_NONE, tensor_none(), low));
    if (model_has_learned_positions(&model->config)) return STATUS_OK;
    struct qkv_views views = qkv_split(&model->config, qkv, plan->options.batch, plan->options.length);
    struct tensor positions = tensor_2d(plan->positions.data, DTYPE_I32, plan->options.batch, plan->options.length);
    struct rope rope = {.x = views.q, .positions = positions, .frequencies = plan->frequencies};
    TRY(ops->rope(ops, &rope));
    rope.x = views.k;
    return ops->rope(ops, &rope);
}

struct attention_pass attention_pass_of(struct plan *plan, int64_t layer, struct tensor n1, struct tensor qkv,
                                        struct tensor o) {
    const struct model_config *c = &plan->model->config;
    struct qkv_views views = qkv_split(c, qkv, plan->options.batch, plan->options.length);
    return (struct attention_pass){
        .ops = plan->model->params.ops, .batch = plan->options.batch, .length = plan->options.length, .x = n1,
        .q = views.q, .k = views.k, .v = views.v, .start = plan->start,
        .positions = tensor_2d(plan->positions.data, DTYPE_I32, plan->options.batch, plan->options.length),
        .o = tensor_split_heads(o, plan->options.batch, plan->options.length, c->heads, c->head_width),
        .frequencies = model_has_learned_positions(c) ? tensor_none() : plan->frequencies,
        .saved = plan->saved[layer].attention, .context = plan->context, .loss = plan->loss,
    };
}

static enum status norm_forward(const struct model *model, const struct param *weight, const struct param *bias,
                                struct tensor x, struct tensor delta, struct tensor sum, struct tensor y,
                                struct tensor mean, struct tensor rstd) {
    const struct ops *ops = model->params.ops;
    bool layer_norm = model->config.type == MODEL_GPT2;
    struct norm norm = {
        .kind = layer_norm ? NORM_LAYER : NORM_RMS, .epsilon = model->config.norm_epsilon, .x = x, .delta = delta,
        .sum = tensor_present(delta) ? sum : tensor_none(), .weight = weight->working, .bias = working_of(bias), .y = y,
        .mean = layer_norm ? mean : tensor_none(), .rstd = rstd,
    };
    return ops->norm(ops, &norm);
}

static enum status mlp_forward(struct plan *plan, int64_t layer, bool again) {
    const struct model *model = plan->model;
    const struct ops *ops = model->params.ops;
    const struct layer_params *p = &plan->params[layer];
    struct layer_saved *s = &plan->saved[layer];
    if (model->config.type == MODEL_LLAMA) {
        TRY(linear_forward(model, &p->up, s->n2, s->pre, ACTIVATION_NONE, tensor_none(), tensor_none()));
        TRY(ops->swiglu(ops, s->pre, s->h));
    } else {
        TRY(linear_forward(model, &p->up, s->n2, s->h, ACTIVATION_GELU, s->pre, tensor_none()));
    }
    if (again) return STATUS_OK;
    TRY(probe_look(plan, layer, "the MLP's activation", s->h));
    TRY(linear_forward(model, &p->down, s->h, plan->delta, ACTIVATION_NONE, tensor_none(), tensor_none()));
    return probe_look(plan, layer, "the MLP's output", plan->delta);
}

/* gradient: of the projections, not they themselves. */
enum status probe_projections(struct plan *plan, int64_t layer, struct tensor qkv, bool gradient) {
    if (!plan->probing) return STATUS_OK;
    struct qkv_views views = qkv_split(&plan->model->config, qkv, plan->options.batch, plan->options.length);
    TRY(probe_look_heads(plan, layer, gradient ? "the gradient of its queries" : "the query projection", views.q));
    TRY(probe_look_heads(plan, layer, gradient ? "the gradient of its keys" : "the key projection", views.k));
    return probe_look_heads(plan, layer, gradient ? "the gradient of its values" : "the value projection", views.v);
}

enum status layer_forward(struct plan *plan, int64_t layer, struct tensor x, struct tensor delta, bool again,
                          const struct attend *attend) {
    const struct model *model = plan->model;
    const struct layer_params *p = &plan->params[layer];
    struct layer_saved *s = &plan->saved[layer];
    const struct attention_layer *attention = &model->layers[layer];
    TRY(norm_forward(model, p->norm1, p->norm1_bias, x, delta, s->x, s->n1, s->mean1, s->rstd1));
    TRY(probe_look(plan, layer, "the norm before attention", s->n1));
    TRY(layer_project(plan, layer, s->n1, s->qkv, s->qkv_low));
    TRY(probe_projections(plan, layer, s->qkv, false));
    if (attend) {
        TRY(attend->run(attend->user, layer, plan));
        if (attend->nothing_after && layer + 1 == model->config.layers) return STATUS_OK;
    } else {
        struct attention_pass pass = attention_pass_of(plan, layer, s->n1, s->qkv, s->o);
        TRY(attention->kind->forward(attention, &pass));
        TRY(probe_look_heads(plan, layer, attention->kind->name, pass.o));
    }
    TRY(linear_forward(model, &p->out, s->o, plan->delta, ACTIVATION_NONE, tensor_none(), s->out_low));
    TRY(probe_look(plan, layer, "the attention's output projection", plan->delta));
    TRY(norm_forward(model, p->norm2, p->norm2_bias, s->x, plan->delta, s->middle, s->n2, s->mean2, s->rstd2));
    TRY(probe_look(plan, layer, "the norm before the MLP", s->n2));
    return mlp_forward(plan, layer, again);
}

enum status network_forward(struct plan *plan, const struct attend *attend) {
    const struct model *model = plan->model;
    struct tensor x = plan->saved[0].x, delta = tensor_none();
    TRY(embed_batch(plan, x));
    for (int64_t l = 0; l < model->config.layers; l++) {
        enum status status = layer_forward(plan, l, x, delta, false, attend);
        if (status != STATUS_OK) return error_prefix(status, "layer %lld", (long long)l);
        x = plan->saved[l].middle;
        delta = plan->delta;
    }
    if (attend && attend->nothing_after) return STATUS_OK;
    TRY(norm_forward(model, params_find(&model->params, "norm.weight"), params_find(&model->params, "norm.bias"), x,
                     delta, plan->final_x, plan->hidden, plan->final_mean, plan->final_rstd));
    return probe_look(plan, -1, "the final norm", plan->hidden);
}

enum status model_load(struct plan *plan, const struct batch *batch) { return plan_load_batch(plan, batch); }

enum status model_run(struct plan *plan, struct tensor *hidden) {
    *hidden = plan->hidden;
    return network_forward(plan, NULL);
}

enum status model_forward(struct plan *plan, const struct batch *batch, struct tensor *hidden) {
    TRY(model_load(plan, batch));
    return model_run(plan, hidden);
}
