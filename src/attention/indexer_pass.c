/* Forward and backward passes of the kind `indexer`. */
#include "attention/indexer.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

/* What forward keeps for backward, and room for gradients inside the kind. */
struct indexer_saved {
    struct indexer_vectors index;
    struct tensor pooled;   /* [B,Nb,2·S·K,E] or none */
    struct tensor chosen;   /* [B,T,S,n] */
    struct tensor log_sums; /* [B,H,T] */
    /* train */
    struct indexer_vectors d_index;
    struct tensor losses, hits; /* [B,S,T], [1] F64 */
    int32_t counts[];           /* [S] */
};

static struct indexer_vectors take_vectors(const struct indexer_settings *s, const struct ops *ops, struct arena *arena,
                                           int64_t rows) {
    return (struct indexer_vectors){.r = arena_2d(arena, ops->real, rows, s->lists * s->heads * s->width),
                                    .u = arena_2d(arena, ops->real, rows, s->lists * indexer_keys(s) * s->width),
                                    .a = arena_2d(arena, ops->real, rows, s->lists * s->heads)};
}

enum status indexer_plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                         void **out) {
    const struct indexer_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const struct ops *ops = layer->params->ops;
    const int64_t most = s->tokens < length ? s->tokens : length;
    struct indexer_saved *p = NULL;
    TRY(memory_new(1, sizeof *p + (size_t)s->lists * sizeof *p->counts, "attention's plan", &p));
    for (int64_t n = 0; n < s->lists; n++) p->counts[n] = s->counts[n] < most ? s->counts[n] : (int32_t)most;
    p->index = take_vectors(s, ops, arena, batch * length);
    if (s->coarse > 0)
        p->pooled = arena_4d(arena, ops->real, batch, compressed_bound(length, s->coarse, s->coarse),
                             2 * s->lists * indexer_keys(s), s->width);
    p->chosen = arena_4d(arena, DTYPE_I32, batch, length, s->lists, most);
    p->log_sums = arena_3d(arena, ops->statistic, batch, m->heads, length);
    if (train) {
        p->d_index = take_vectors(s, ops, arena, batch * length);
        p->losses = arena_3d(arena, ops->statistic, batch, s->lists, length);
        p->hits = arena_1d(arena, DTYPE_F64, 1);
    }
    *out = p;
    return STATUS_OK;
}

struct tensor indexer_split(const struct attention_layer *layer, struct tensor matrix, int64_t batch, int64_t length) {
    const int64_t width = ((const struct indexer_settings *)layer->settings)->width;
    return tensor_split_heads(matrix, batch, length, matrix.shape[1] / width, width);
}

static enum status project(const struct ops *ops, struct tensor x, const struct param *weight, const struct param *bias,
                           struct tensor y) {
    const struct gemm gemm = {.a = x, .b = weight->working, .c = y, .bias = bias->working, .transpose_b = true, .alpha = 1};
    return ops->gemm(ops, &gemm);
}

/* Rotary positions on r and u, or their gradients. */
static enum status turn(const struct attention_layer *layer, const struct ops *ops, const struct indexer_vectors *index,
                        struct tensor positions, bool inverse) {
    const struct indexer_bound *bound = layer->bound;
    const struct tensor matrices[] = {index->r, index->u};
    for (int n = 0; bound->frequencies && n < 2; n++) {
        const struct rope rope = {.x = indexer_split(layer, matrices[n], positions.shape[0], positions.shape[1]),
                                  .positions = positions, .frequencies = bound->frequencies->value, .inverse = inverse};
        TRY(ops->rope(ops, &rope));
    }
    return STATUS_OK;
}

enum status indexer_project(const struct attention_layer *layer, const struct ops *ops, struct tensor x,
                            struct tensor positions, const struct indexer_vectors *out) {
    const struct indexer_bound *bound = layer->bound;
    TRY(project(ops, x, bound->query, bound->query_bias, out->r));
    TRY(project(ops, x, bound->key, bound->key_bias, out->u));
    TRY(project(ops, x, bound->head, bound->head_bias, out->a));
    return turn(layer, ops, out, positions, false);
}

/* r, u, a (or their gradients) as the operations take them. */
static struct index_scores scores_of(const struct attention_layer *layer, const struct attention_pass *pass,
                                     const struct indexer_vectors *index) {
    const struct indexer_settings *s = layer->settings;
    return (struct index_scores){
        .r = indexer_split(layer, index->r, pass->batch, pass->length),
        .u = indexer_split(layer, index->u, pass->batch, pass->length),
        .a = tensor_3d(index->a.data, index->a.dtype, pass->batch, pass->length, index->a.shape[1]),
        .lists = (int32_t)s->lists};
}

static struct token_attention attention_of(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct indexer_saved *saved = pass->saved;
    return (struct token_attention){
        .q = pass->q, .k = pass->k, .v = pass->v, .start = pass->start, .o = pass->o, .log_sums = saved->log_sums,
        .chosen = indexer_on(layer, INDEXER_CHOICE) ? saved->chosen : tensor_none(), .window = (int32_t)s->window,
        .sinks = (int32_t)indexer_sinks(layer), .scale = 1 / sqrt((double)layer->model->head_width)};
}

static enum status choose(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct indexer_saved *saved = pass->saved;
    const struct ops *ops = pass->ops;
    struct index_select select = {
        .scores = scores_of(layer, pass, &saved->index), .start = pass->start, .pooled = saved->pooled, .chosen = saved->chosen,
        .counts = saved->counts, .window = (int32_t)s->window, .sinks = (int32_t)indexer_sinks(layer),
        .coarse = (int32_t)s->coarse, .coarse_blocks = (int32_t)s->coarse_blocks, .seed = pass->context.seed,
        .scale = 1 / sqrt((double)layer->model->head_width)};
    if (!indexer_on(layer, INDEXER_RANDOM)) select.source = INDEX_RANDOM;
    if (!indexer_on(layer, INDEXER_BEST)) {
        select.source = INDEX_ATTENTION;
        select.q = pass->q;
        select.k = pass->k;
    }
    if (s->coarse > 0) {
        const struct index_pool pool = {.u = select.scores.u, .start = pass->start, .pooled = saved->pooled,
                                        .block = (int32_t)s->coarse};
        TRY(ops->index_pool(ops, &pool));
    }
    return ops->index_select(ops, &select);
}

enum status indexer_forward(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct indexer_saved *saved = pass->saved;
    if (indexer_on(layer, INDEXER_CHOICE)) {
        TRY(indexer_project(layer, pass->ops, pass->x, pass->positions, &saved->index));
        TRY(choose(layer, pass));
    }
    const struct token_attention attention = attention_of(layer, pass);
    return pass->ops->token_attention(pass->ops, &attention);
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

/* Hit rate, where it was measured, and how far back the last queries' chosen tokens lie. */
static enum status look(const struct attention_layer *layer, const struct attention_pass *pass, bool hits) {
    const struct indexer_settings *s = layer->settings;
    struct indexer_bound *bound = layer->bound;
    const struct indexer_saved *saved = pass->saved;
    const int64_t rows = pass->batch * pass->length, width = s->lists * saved->chosen.shape[3];
    double hit = 0, distance = 0;
    int64_t count = 0;
    int32_t *chosen = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new((size_t)width, sizeof *chosen, "choices", &chosen));
    for (int64_t b = 0; b < pass->batch; b++) {
        const int64_t row = (b + 1) * pass->length - 1;
        const struct tensor lines = tensor_2d(saved->chosen.data, DTYPE_I32, rows, width);
        TRY_GOTO(done, pass->ops->download(pass->ops, tensor_rows(lines, row, 1), chosen));
        for (int64_t n = 0; n < width; n++) {
            if (chosen[n] < 0) continue;
            distance += (double)(pass->length - 1 - chosen[n]);
            count++;
        }
    }
    if (hits) TRY_GOTO(done, pass->ops->download(pass->ops, saved->hits, &hit));
    bound->hit = hits ? hit / (double)(rows * s->lists) : -1;
    bound->distance = count ? distance / (double)count : -1;
    bound->looked = true;
done:
    free(chosen);
    return status;
}

static enum status row_backward(const struct ops *ops, struct tensor d, struct tensor x, const struct param *weight,
                                const struct param *bias) {
    if (weight->trained) {
        const struct gemm gemm = {.a = d, .b = x, .c = weight->grad, .transpose_a = true, .accumulate = true, .alpha = 1};
        TRY(ops->gemm(ops, &gemm));
    }
    return bias->trained ? ops->bias_backward(ops, d, bias->grad) : STATUS_OK;
}

static bool learns(const struct attention_layer *layer) {
    const struct indexer_bound *b = layer->bound;
    const struct indexer_settings *s = layer->settings;
    return s->select_weight > 0 && (b->query->trained || b->query_bias->trained || b->key->trained || b->key_bias->trained ||
                                    b->head->trained || b->head_bias->trained);
}

/* The loss of choosing, added to the pass's, and its gradients. What is imitated: the teacher's attention while layers learn one by
 * one; after that the student's own, whose projections are the teacher's or were. */
static enum status learn_to_choose(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct indexer_saved *saved = pass->saved;
    const struct indexer_bound *bound = layer->bound;
    const struct ops *ops = pass->ops;
    const bool taught = pass->context.attention_stage && tensor_present(pass->teacher_q);
    const bool looks = pass->context.looks;
    const struct index_scores d = scores_of(layer, pass, &saved->d_index);
    const double share = s->select_weight / (double)s->lists;
    const struct index_learn learn = {
        .scores = scores_of(layer, pass, &saved->index), .q = taught ? pass->teacher_q : pass->q,
        .k = taught ? pass->teacher_k : pass->k, .start = pass->start, .chosen = saved->chosen, .losses = saved->losses,
        .loss = pass->loss, .hits = taught && looks ? saved->hits : tensor_none(), .d_r = d.r, .d_u = d.u, .d_a = d.a,
        .attended = !taught, .window = (int32_t)s->window, .sinks = (int32_t)s->sinks,
        .scale = 1 / sqrt((double)layer->model->head_width), .weight = share,
        .gradient_scale = share * pass->context.loss_scale};
    TRY(ops->fill(ops, saved->hits, 0));
    TRY(ops->index_learn(ops, &learn));
    TRY(turn(layer, ops, &saved->d_index, pass->positions, true));
    TRY(row_backward(ops, saved->d_index.r, pass->x, bound->query, bound->query_bias));
    TRY(row_backward(ops, saved->d_index.u, pass->x, bound->key, bound->key_bias));
    TRY(row_backward(ops, saved->d_index.a, pass->x, bound->head, bound->head_bias));
    return looks ? look(layer, pass, taught) : STATUS_OK;
}

enum status indexer_backward(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct ops *ops = pass->ops;
    if (((const struct indexer_bound *)layer->bound)->off)
        return error_set(STATUS_FAILED, "attention indexer: a part is taken away; such a layer does not train");
    const struct token_attention_backward attention = {.forward = attention_of(layer, pass), .d_o = pass->d_o, .dq = pass->dq,
                                                       .dk = pass->dk, .dv = pass->dv};
    TRY(ops->token_attention_backward(ops, &attention));
    if (tensor_present(pass->dx)) TRY(ops->fill(ops, pass->dx, 0)); /* no gradient passes through the choice */
    return learns(layer) ? learn_to_choose(layer, pass) : STATUS_OK;
}
