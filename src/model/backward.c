/* The backward pass, and objective `attention`. No gradient is computed that nothing trained needs. */
#include "model/internal.h"

static struct tensor grad_of(const struct param *row) { return row && row->trained ? row->grad : tensor_none(); }

static bool trained(const struct param *row) { return row && row->trained; }

static enum status norm_gradient(const struct model *model, const struct param *weight, const struct param *bias,
                                 struct tensor dy, struct tensor x, struct tensor mean, struct tensor rstd,
                                 struct tensor dx, bool overwrite) {
    bool layer_norm = model->config.type == MODEL_GPT2;
    struct norm_backward norm = {
        .kind = layer_norm ? NORM_LAYER : NORM_RMS, .dy = dy, .x = x, .weight = weight->working,
        .mean = layer_norm ? mean : tensor_none(), .rstd = rstd, .dx = dx, .dweight = grad_of(weight),
        .dbias = grad_of(bias), .overwrite_dx = overwrite,
    };
    return model->params.ops->norm_backward(model->params.ops, &norm);
}

static enum status mlp_backward(struct plan *plan, int64_t layer) {
    const struct model *model = plan->model;
    const struct ops *ops = model->params.ops;
    const struct layer_params *p = &plan->params[layer];
    struct layer_saved *s = &plan->saved[layer];
    struct tensor d_up = model->config.type == MODEL_LLAMA ? s->pre : plan->d_h;
    /* Where h was not saved its memory is d_h, and down does not train. */
    TRY(linear_backward(model, &p->down, plan->d_x, s->h, tensor_none(), tensor_none(), plan->d_h));
    if (model->config.type == MODEL_LLAMA) {
        TRY(ops->swiglu_backward(ops, plan->d_h, s->pre, d_up));
    } else {
        TRY(ops->gelu_backward(ops, plan->d_h, s->pre, d_up));
    }
    TRY(linear_backward(model, &p->up, d_up, s->n2, tensor_none(), tensor_none(), plan->d_n));
    TRY(norm_gradient(model, p->norm2, p->norm2_bias, plan->d_n, s->middle, s->mean2, s->rstd2, plan->d_x, false));
    return probe_look(plan, layer, "the MLP's gradient", plan->d_x);
}

static enum status unrotate(struct plan *plan, struct tensor d_qkv) {
    const struct model *model = plan->model;
    const struct ops *ops = model->params.ops;
    if (model_has_learned_positions(&model->config)) return STATUS_OK;
    struct qkv_views views = qkv_split(&model->config, d_qkv, plan->options.batch, plan->options.length);
    struct rope rope = {.x = views.q, .frequencies = plan->frequencies, .inverse = true,
                        .positions = tensor_2d(plan->positions.data, DTYPE_I32, plan->options.batch, plan->options.length)};
    TRY(ops->rope(ops, &rope));
    rope.x = views.k;
    return ops->rope(ops, &rope);
}

/* d_o -> d_qkv through the kind and the rotary positions. forward: the pass as its forward pass had it. dx: where a kind that reads its
 * input leaves that part of the gradient, or none. */
static enum status kind_backward(struct plan *plan, int64_t layer, const struct attention_pass *forward, struct tensor dx) {
    const struct model *model = plan->model;
    const struct model_config *c = &model->config;
    struct attention_pass pass = *forward;
    struct qkv_views d = qkv_split(c, plan->d_qkv, plan->options.batch, plan->options.length);
    pass.d_o = tensor_split_heads(plan->d_o, plan->options.batch, plan->options.length, c->heads, c->head_width);
    pass.dq = d.q;
    pass.dk = d.k;
    pass.dv = d.v;
    pass.dx = dx;
    TRY(probe_look_heads(plan, layer, "the gradient of its attention's output", pass.d_o));
    TRY(model->layers[layer].kind->backward(&model->layers[layer], &pass));
    TRY(probe_projections(plan, layer, plan->d_qkv, true));
    return unrotate(plan, plan->d_qkv);
}

static enum status attention_backward(struct plan *plan, int64_t layer, bool input_needed) {
    const struct model *model = plan->model;
    const struct layer_params *p = &plan->params[layer];
    struct layer_saved *s = &plan->saved[layer];
    TRY(linear_backward(model, &p->out, plan->d_x, s->o, s->out_low, plan->d_low, plan->d_o));
    bool through_norm = input_needed || trained(p->norm1) || trained(p->norm1_bias);
    bool reads_x = model->layers[layer].kind->reads_x && through_norm;
    struct attention_pass pass = attention_pass_of(plan, layer, s->n1, s->qkv, s->o);
    TRY(kind_backward(plan, layer, &pass, reads_x ? plan->d_kind : tensor_none()));
    TRY(linear_backward(model, &p->qkv, plan->d_qkv, s->n1, s->qkv_low, plan->d_low,
                        through_norm ? plan->d_n : tensor_none()));
    if (!through_norm) return STATUS_OK;
    if (reads_x) TRY(model->params.ops->add_scaled(model->params.ops, 1, plan->d_kind, plan->d_n));
    return norm_gradient(model, p->norm1, p->norm1_bias, plan->d_n, s->x, s->mean1, s->rstd1, plan->d_x, false);
}

/* The last layer that the pass has to come to. */
static int64_t lowest_trained(const struct model *model) {
    int64_t lowest = model->config.layers;
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        int64_t layer = row->trained ? params_layer(row) : lowest;
        if (layer < lowest) lowest = layer;
    }
    return lowest > 0 ? lowest : 0;
}

/* One layer: gradient of the stream in plan->d_x, changed in place. */
static enum status layer_backward(struct plan *plan, int64_t layer, bool input_needed) {
    /* The shared set still holds the last layer's forward pass. */
    if (plan->options.recompute && layer + 1 < plan->model->config.layers) {
        TRY(layer_forward(plan, layer, plan->saved[layer].x, tensor_none(), true, NULL));
    }
    TRY(mlp_backward(plan, layer));
    return attention_backward(plan, layer, input_needed);
}

static enum status final_norm_backward(struct plan *plan, struct tensor d_hidden) {
    const struct params *params = &plan->model->params;
    TRY(probe_look(plan, -1, "the gradient that the head sends back", d_hidden));
    return norm_gradient(plan->model, params_find(params, "norm.weight"), params_find(params, "norm.bias"), d_hidden, plan->final_x,
                         plan->final_mean, plan->final_rstd, plan->d_x, true);
}

enum status model_backward_part(struct plan *plan, struct tensor d_hidden, int64_t above, int64_t lowest) {
    const struct model *model = plan->model;
    const struct params *params = &model->params;
    const struct param *wte = params_find(params, "wte"), *wpe = params_find(params, "wpe");
    const bool embeddings = trained(wte) || trained(wpe);
    const int64_t layers = model->config.layers, last = lowest_trained(model);
    if (above > layers) TRY(final_norm_backward(plan, d_hidden));
    for (int64_t l = (above < layers ? above : layers) - 1; l >= (lowest > last ? lowest : last); l--) {
        enum status status = layer_backward(plan, l, embeddings || l > last);
        if (status != STATUS_OK) return error_prefix(status, "layer %lld, backward", (long long)l);
    }
    if (!embeddings || lowest >= 0) return STATUS_OK;
    struct embedding_backward embedding = {.ids = plan->ids, .positions = plan->positions, .dx = plan->d_x,
                                           .dtable = grad_of(wte), .dposition_table = grad_of(wpe)};
    return params->ops->embedding_backward(params->ops, &embedding);
}

enum status model_backward(struct plan *plan, struct tensor d_hidden) {
    return model_backward_part(plan, d_hidden, PARAMS_TOP, -1);
}

/* --- objective `attention` ---------------------------------------------------------------------------------------- */

static struct tensor sum_of(const struct plan *plan, int64_t layer, int which) {
    return tensor_rows(plan->sums, 2 * layer + which, 1);
}

/* Does anything of the layer's attention train before its output? */
static bool layer_learns(const struct plan *plan, int64_t layer) {
    if (linear_trains(&plan->params[layer].qkv)) return true;
    const struct params *params = &plan->model->params;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (row->trained && row->added && params_layer(row) <= layer) return true;
    }
    return false;
}

/* The student's layer beside the teacher's, whose passes these are. */
static enum status align_forward(struct plan *plan, struct plan *teacher, int64_t layer, struct attention_pass *pass) {
    const struct attention_layer *attention = &plan->model->layers[layer], *taught = &teacher->model->layers[layer];
    const struct layer_saved *target = &teacher->saved[layer], *s = &plan->saved[layer];
    const bool own = linear_is_own(&plan->params[layer].qkv);
    struct attention_pass lesson = attention_pass_of(teacher, layer, target->n1, target->qkv, target->o);
    TRY(taught->kind->forward(taught, &lesson));
    if (own) TRY(layer_project(plan, layer, target->n1, s->qkv, s->qkv_low));
    *pass = attention_pass_of(plan, layer, target->n1, own ? s->qkv : target->qkv, s->o);
    pass->teacher_q = lesson.q;
    pass->teacher_k = lesson.k;
    TRY(attention->kind->forward(attention, pass));
    return probe_look_heads(plan, layer, attention->kind->name, pass->o);
}

static enum status align_layer(void *user, int64_t layer, struct plan *teacher) {
    const struct align *align = user;
    struct plan *plan = align->student;
    const struct ops *ops = plan->model->params.ops;
    const struct linear *projection = &plan->params[layer].qkv;
    const struct layer_saved *target = &teacher->saved[layer], *s = &plan->saved[layer];
    struct attention_pass pass;
    TRY(align_forward(plan, teacher, layer, &pass));
    TRY(ops->sum_squared_difference(ops, s->o, target->o, sum_of(plan, layer, 0)));
    TRY(ops->sum_squares(ops, target->o, sum_of(plan, layer, 1)));
    if (!align->denominators || !layer_learns(plan, layer)) return STATUS_OK;
    TRY(ops->copy(ops, s->o, plan->d_o));
    TRY(ops->add_scaled(ops, -1, target->o, plan->d_o));
    TRY(ops->scale(ops, 2 * align->scale / align->denominators[layer], plan->d_o));
    TRY(kind_backward(plan, layer, &pass, tensor_none()));
    if (!linear_trains(projection)) return STATUS_OK;
    return linear_backward(plan->model, projection, plan->d_qkv, target->n1, s->qkv_low, plan->d_low, tensor_none());
}

enum status align_load(const struct align *align, const struct batch *batch) {
    if (!align->student->options.align || align->teacher->rows != align->student->rows) {
        return error_set(STATUS_FAILED, "objective attention: the student's plan must be an align plan of the same size");
    }
    TRY(plan_load_batch(align->student, batch));
    return plan_load_batch(align->teacher, batch);
}

enum status align_run(const struct align *align) {
    struct align own = *align;
    struct attend attend = {.run = align_layer, .user = &own, .nothing_after = true};
    return network_forward(align->teacher, &attend);
}

enum status align_read(const struct align *align, double *errors, double *norms) {
    const struct model *model = align->student->model;
    const int64_t layers = model->config.layers;
    double sums[2 * layers];
    TRY(model->params.ops->download(model->params.ops, align->student->sums, sums));
    for (int64_t l = 0; l < layers; l++) {
        errors[l] = sums[2 * l];
        norms[l] = sums[2 * l + 1];
    }
    return STATUS_OK;
}
