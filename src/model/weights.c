/* See weights.h. Pass p of a layer gives v_j = e_(j − p·D) to the D tokens from p·D on and 0 to all others: component d
 * of o_i then is A_i,(p·D + d), for every head. */
#include "model/weights.h"

#include "base/memory.h"
#include "model/internal.h"
#include "params/values.h"

#include <stdio.h>
#include <stdlib.h>

struct look {
    struct model *model;
    int64_t batch, length, heads, groups, width;
    void *block;                      /* device: v and o */
    struct tensor v, o;               /* [B,T,G,D], [N,H·D] */
    double *values, *outputs, *still; /* host: v; o; o at v = 0 */
    double *bent;                     /* host: the row that is held at 0 */
    float *weights;                   /* [B,H,T,T] */
    uint8_t *reads;
    model_weights_visit visit;
    void *user;
};

static enum status look_open(struct look *w) {
    const struct ops *ops = w->model->params.ops;
    const int64_t rows = w->batch * w->length, keys = w->groups * w->width, queries = w->heads * w->width;
    const size_t pairs = (size_t)(w->batch * w->heads * w->length * w->length);
    struct tensor v = tensor_4d(NULL, ops->real, w->batch, w->length, w->groups, w->width);
    struct tensor o = tensor_2d(NULL, ops->real, rows, queries);
    const size_t v_bytes = ((size_t)tensor_count(v) * dtype_size(ops->real) + 255) / 256 * 256;
    TRY(memory_new((size_t)(rows * keys), sizeof *w->values, "values", &w->values));
    TRY(memory_new((size_t)(rows * queries), sizeof *w->outputs, "attention's output", &w->outputs));
    TRY(memory_new((size_t)(rows * queries), sizeof *w->still, "attention's output", &w->still));
    TRY(memory_new(pairs, sizeof *w->weights, "attention weights", &w->weights));
    TRY(memory_new(pairs, sizeof *w->reads, "attention weights", &w->reads));
    TRY(ops->allocate(ops, v_bytes + (size_t)(rows * queries) * dtype_size(ops->real), &w->block));
    v.data = w->block;
    o.data = (char *)w->block + v_bytes;
    w->v = v;
    w->o = o;
    return STATUS_OK;
}

static void look_close(struct look *w) {
    const struct ops *ops = w->model->params.ops;
    if (w->block) ops->release(ops, w->block);
    free(w->values);
    free(w->outputs);
    free(w->still);
    free(w->weights);
    free(w->reads);
}

/* outputs = o with basis vectors for the D tokens from `first` on; first < 0: with v = 0. */
static enum status run_basis(struct look *w, const struct attention_layer *layer, const struct attention_pass *pass,
                             int64_t first, double *outputs) {
    const struct ops *ops = pass->ops;
    const int64_t keys = w->groups * w->width;
    for (int64_t n = 0; n < w->batch * w->length * keys; n++) {
        const int64_t token = n / keys % w->length, place = token - first;
        w->values[n] = first >= 0 && place >= 0 && place < w->width && n % w->width == place;
    }
    TRY(values_write(ops, w->v, w->values));
    TRY(layer->kind->forward(layer, pass));
    return values_read(ops, w->o, outputs);
}

/* One element of o, (b,h,i,d) -> place in outputs. */
static int64_t output_at(const struct look *w, int64_t b, int64_t h, int64_t i, int64_t d) {
    return ((b * w->length + i) * w->heads + h) * w->width + d;
}

/* A_ij of the D tokens from `first` on into weights, or, `only_reads`, what of it is not 0 into reads. */
static void take_columns(struct look *w, int64_t first, bool only_reads) {
    const int64_t end = first + w->width < w->length ? first + w->width : w->length;
    for (int64_t b = 0; b < w->batch; b++) {
        for (int64_t h = 0; h < w->heads; h++) {
            for (int64_t i = 0; i < w->length; i++) {
                const int64_t row = ((b * w->heads + h) * w->length + i) * w->length;
                for (int64_t j = first; j < end; j++) {
                    const int64_t at = output_at(w, b, h, i, j - first);
                    const double weight = w->outputs[at] - w->still[at];
                    if (only_reads) {
                        if (weight != 0) w->reads[row + j] = WEIGHT_READ;
                    } else {
                        w->weights[row + j] = (float)weight;
                        w->reads[row + j] = weight != 0 ? WEIGHT_READ : WEIGHT_UNREAD;
                    }
                }
            }
        }
    }
}

static enum status run_columns(struct look *w, const struct attention_layer *layer, const struct attention_pass *pass,
                               bool only_reads) {
    TRY(run_basis(w, layer, pass, -1, w->still));
    for (int64_t first = 0; first < w->length; first += w->width) {
        TRY(run_basis(w, layer, pass, first, w->outputs));
        take_columns(w, first, only_reads);
    }
    return STATUS_OK;
}

/* What is read without the summaries is read itself. */
static enum status tell_summaries(struct look *w, struct attention_layer *layer, const struct attention_pass *pass) {
    const int64_t pairs = w->batch * w->heads * w->length * w->length;
    for (int64_t n = 0; n < pairs; n++) w->reads[n] = w->reads[n] == WEIGHT_READ ? WEIGHT_SUMMARY : WEIGHT_UNREAD;
    TRY(layer->kind->switch_off(layer, layer->kind->summaries));
    enum status status = run_columns(w, layer, pass, true);
    KEEP_FIRST(status, layer->kind->switch_off(layer, 0));
    return status;
}

static enum status run_layer(struct look *w, struct attention_layer *layer, const struct attention_pass *pass) {
    const struct kind *kind = layer->kind;
    const struct ops *ops = pass->ops;
    const struct param *bends = NULL;
    char name[64];
    if (kind->bends_values) {
        snprintf(name, sizeof name, "h.%lld.attn.%s.%s", (long long)layer->layer, kind->name, kind->bends_values);
        bends = params_find(layer->params, name);
        if (!bends) return error_set(STATUS_FAILED, "parameter %s: not in the table", name);
        TRY(memory_new((size_t)tensor_count(bends->value), sizeof *w->bent, name, &w->bent));
        TRY(ops->download(ops, bends->value, w->bent));
    }
    enum status status = bends ? ops->fill(ops, bends->value, 0) : STATUS_OK;
    if (status == STATUS_OK) status = run_columns(w, layer, pass, false);
    if (status == STATUS_OK && kind->summaries) status = tell_summaries(w, layer, pass);
    if (bends) KEEP_FIRST(status, ops->upload(ops, bends->value, w->bent));
    free(w->bent);
    w->bent = NULL;
    return status;
}

static enum status look_at_layer(void *user, int64_t index, struct plan *plan) {
    struct look *w = user;
    struct attention_layer *layer = &w->model->layers[index];
    struct layer_saved *s = &plan->saved[index];
    const struct attention_pass own = attention_pass_of(plan, index, s->n1, s->qkv, s->o);
    struct attention_pass pass = own;
    pass.v = w->v;
    pass.o = tensor_split_heads(w->o, w->batch, w->length, w->heads, w->width);
    TRY(run_layer(w, layer, &pass));
    const struct layer_weights found = {index, w->batch, w->heads, w->length, w->weights, w->reads};
    TRY(w->visit(w->user, &found));
    return layer->kind->forward(layer, &own);
}

enum status model_weights(struct model *model, const struct batch *batch, model_weights_visit visit, void *user) {
    const struct model_config *c = &model->config;
    const struct plan_options options = {.batch = batch->batch, .length = batch->length};
    struct look w = {.model = model,
                     .batch = batch->batch,
                     .length = batch->length,
                     .heads = c->heads,
                     .groups = c->kv_heads,
                     .width = c->head_width,
                     .visit = visit,
                     .user = user};
    const struct attend attend = {.run = look_at_layer, .user = &w, .nothing_after = true};
    struct plan *plan = NULL;
    enum status status;
    TRY_GOTO(done, look_open(&w));
    TRY_GOTO(done, plan_open(model, &options, &plan));
    TRY_GOTO(done, plan_load_batch(plan, batch));
    TRY_GOTO(done, network_forward(plan, &attend));
done:
    plan_close(&plan);
    look_close(&w);
    return status;
}
