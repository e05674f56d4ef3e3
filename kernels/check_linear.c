/* Shape checks of linear attention; see check.h. */
#include "kernels/check.h"

static bool both_or_neither(struct tensor a, struct tensor b) {
    return tensor_present(a) == tensor_present(b);
}

/* The maps, for `heads` query heads over `groups` key heads of `width`; *features: M. */
static enum status check_features(const struct ops *ops, const char *operation, const struct features *f, int64_t heads,
                                  int64_t groups, int64_t width, int64_t *features) {
    const enum dtype real = ops->real;
    if (f->kind < FEATURE_EXP || f->kind > FEATURE_RELU)
        return error_set(STATUS_SHAPE, "%s: features: kind %d is not defined", operation, (int)f->kind);
    TRY(check_tensor(operation, "q_map", f->q_map, real, 3, SHAPE(heads, ANY, width)));
    const int64_t rows = f->q_map.shape[1];
    if (rows < 1) return error_set(STATUS_SHAPE, "%s: q_map: expected at least one row a head, found none", operation);
    TRY(check_tensor(operation, "k_map", f->k_map, real, 3, SHAPE(groups, rows, width)));
    *features = f->kind == FEATURE_HEDGEHOG ? 2 * rows : rows;
    if (!both_or_neither(f->q_bias, f->k_bias) || (tensor_present(f->q_bias) && f->kind != FEATURE_RELU))
        return error_set(STATUS_SHAPE, "%s: q_bias and k_bias: both or neither, and only with relu features",
                         operation);
    TRY(check_optional(operation, "q_bias", f->q_bias, real, 2, SHAPE(heads, rows)));
    TRY(check_optional(operation, "k_bias", f->k_bias, real, 2, SHAPE(groups, rows)));
    if (!both_or_neither(f->squeeze, f->excite) || (tensor_present(f->squeeze) && f->kind == FEATURE_EXP))
        return error_set(STATUS_SHAPE, "%s: squeeze and excite: both or neither, and not with exp features", operation);
    TRY(check_optional(operation, "squeeze", f->squeeze, real, 3, SHAPE(groups, ANY, *features)));
    const int64_t hidden = tensor_present(f->squeeze) ? f->squeeze.shape[1] : 0;
    TRY(check_optional(operation, "excite", f->excite, real, 3, SHAPE(groups, *features, hidden)));
    return check_optional(operation, "beta", f->beta, ops->statistic, 1, SHAPE(heads));
}

static enum status check_heads(const char *operation, int64_t heads, int64_t groups) {
    if (groups >= 1 && heads % groups == 0) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: k: %lld query heads are no multiple of %lld key heads", operation,
                     (long long)heads, (long long)groups);
}

/* What decides the weights of the pairs: all but v, o, log_sums. */
static enum status check_pairs(const struct ops *ops, const char *operation, const struct linear_attention *a) {
    const enum dtype real = ops->real;
    int64_t features;
    TRY(check_tensor(operation, "q", a->q, real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    TRY(check_tensor(operation, "k", a->k, real, 4, SHAPE(batch, length, ANY, width)));
    TRY(check_heads(operation, heads, a->k.shape[2]));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_optional(operation, "no_window", a->no_window, DTYPE_I32, 1, SHAPE(batch)));
    TRY(check_features(ops, operation, &a->features, heads, a->k.shape[2], width, &features));
    if (a->window < 0 || a->chunk < 0)
        return error_set(STATUS_SHAPE, "%s: window and chunk: expected at least 0, found %lld and %lld", operation,
                         (long long)a->window, (long long)a->chunk);
    if (!a->causal && (a->window > 0 || a->near_only || tensor_present(a->features.squeeze)))
        return error_set(STATUS_SHAPE, "%s: both directions: only without a window and without squeeze", operation);
    return STATUS_OK;
}

static enum status check_forward(const struct ops *ops, const char *operation, const struct linear_attention *a) {
    TRY(check_pairs(ops, operation, a));
    TRY(check_tensor(operation, "v", a->v, ops->real, 4, a->k.shape));
    TRY(check_tensor(operation, "o", a->o, ops->real, 4, a->q.shape));
    return check_dense(operation, "log_sums", a->log_sums, ops->statistic, 3,
                       SHAPE(a->q.shape[0], a->q.shape[2], a->q.shape[1]));
}

enum status check_linear_attention(const struct ops *ops, const struct linear_attention *a) {
    return check_forward(ops, "linear_attention", a);
}

/* A parameter's gradient: absent, or of the parameter's shape; dimension 0 in any stride. */
static enum status check_gradient(const struct ops *ops, const char *operation, const char *argument,
                                  struct tensor gradient, struct tensor parameter) {
    if (!tensor_present(gradient)) return STATUS_OK;
    if (!tensor_present(parameter))
        return error_set(STATUS_SHAPE, "%s: %s: the forward pass has no such parameter", operation, argument);
    return check_tensor(operation, argument, gradient, parameter.dtype == ops->real ? ops->parameter : parameter.dtype,
                        parameter.rank, parameter.shape);
}

static enum status check_gradients(const struct ops *ops, const char *operation, const struct features *d,
                                   const struct features *f) {
    TRY(check_gradient(ops, operation, "d_q_map", d->q_map, f->q_map));
    TRY(check_gradient(ops, operation, "d_k_map", d->k_map, f->k_map));
    TRY(check_gradient(ops, operation, "d_q_bias", d->q_bias, f->q_bias));
    TRY(check_gradient(ops, operation, "d_k_bias", d->k_bias, f->k_bias));
    TRY(check_gradient(ops, operation, "d_squeeze", d->squeeze, f->squeeze));
    TRY(check_gradient(ops, operation, "d_excite", d->excite, f->excite));
    return check_gradient(ops, operation, "d_beta", d->beta, f->beta);
}

enum status check_linear_attention_backward(const struct ops *ops, const struct linear_attention_backward *a) {
    const char *operation = "linear_attention_backward";
    const struct linear_attention *f = &a->forward;
    TRY(check_forward(ops, operation, f));
    TRY(check_tensor(operation, "d_o", a->d_o, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dq", a->dq, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dk", a->dk, ops->real, 4, f->k.shape));
    TRY(check_tensor(operation, "dv", a->dv, ops->real, 4, f->k.shape));
    return check_gradients(ops, operation, &a->gradients, &f->features);
}

enum status check_linear_attention_weights(const struct ops *ops, const struct linear_attention_weights *a) {
    const char *operation = "linear_attention_weights";
    const struct linear_attention *f = &a->forward;
    TRY(check_pairs(ops, operation, f));
    if (f->near_only)
        return error_set(STATUS_SHAPE, "%s: near_only: expected false, every pair needs a weight; found true",
                         operation);
    TRY(check_tensor(operation, "teacher_q", a->teacher_q, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "teacher_k", a->teacher_k, ops->real, 4, f->k.shape));
    TRY(check_dense(operation, "loss", a->loss, DTYPE_F64, 1, SHAPE(1)));
    if (tensor_present(a->dq)) TRY(check_tensor(operation, "dq", a->dq, ops->real, 4, f->q.shape));
    if (tensor_present(a->dk)) TRY(check_tensor(operation, "dk", a->dk, ops->real, 4, f->k.shape));
    return check_gradients(ops, operation, &a->gradients, &f->features);
}

enum status check_linear_attention_decode(const struct ops *ops, const struct linear_attention_decode *a) {
    const char *operation = "linear_attention_decode";
    const enum dtype real = ops->real;
    int64_t features;
    TRY(check_tensor(operation, "q", a->q, real, 3, SHAPE(ANY, ANY, ANY)));
    const int64_t batch = a->q.shape[0], heads = a->q.shape[1], width = a->q.shape[2];
    TRY(check_tensor(operation, "k", a->k, real, 3, SHAPE(batch, ANY, width)));
    const int64_t groups = a->k.shape[1];
    TRY(check_tensor(operation, "v", a->v, real, 3, a->k.shape));
    TRY(check_heads(operation, heads, groups));
    TRY(check_tensor(operation, "o", a->o, real, 3, a->q.shape));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 1, SHAPE(batch)));
    TRY(check_features(ops, operation, &a->features, heads, groups, width, &features));
    TRY(check_dense(operation, "sums", a->sums, ops->statistic, 4, SHAPE(batch, groups, features, width + 1)));
    TRY(check_dense(operation, "peaks", a->peaks, ops->statistic, 2, SHAPE(batch, groups)));
    if (tensor_present(a->features.squeeze))
        TRY(check_dense(operation, "means", a->means, ops->statistic, 3, SHAPE(batch, groups, features)));
    if (!both_or_neither(a->near_k, a->near_v))
        return error_set(STATUS_SHAPE, "%s: near_k and near_v: both or neither", operation);
    TRY(check_optional(operation, "near_k", a->near_k, real, 4, SHAPE(batch, ANY, groups, width)));
    TRY(check_optional(operation, "near_v", a->near_v, real, 4, a->near_k.shape));
    if (a->position >= 0 && (!tensor_present(a->near_k) || a->near_k.shape[1] > 0)) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: position: expected at least 0 and room for one token, found %lld", operation,
                     (long long)a->position);
}
