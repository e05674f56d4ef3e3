/* Shape checks of the attention operations; see check.h. */
#include "kernels/check.h"

static enum status check_count(const char *operation, int count, struct tensor coefficients) {
    if (count < 1 || count > CANDIDATES_MAX) {
        return error_set(STATUS_SHAPE, "%s: count: expected 1 to %d candidates, found %d", operation, CANDIDATES_MAX,
                         count);
    }
    if (count != 1 && !tensor_present(coefficients)) {
        return error_set(STATUS_SHAPE, "%s: %d candidates need coefficients", operation, count);
    }
    return STATUS_OK;
}

/* [heads,count], dimension 0 broadcast (stride 0) or in any row stride. */
static enum status check_coefficients(const struct ops *ops, const char *operation, const char *argument,
                                      struct tensor t, int64_t heads, int count) {
    return tensor_present(t) ? check_tensor(operation, argument, t, ops->statistic, 2, SHAPE(heads, count)) : STATUS_OK;
}

static enum status check_forward(const struct ops *ops, const char *operation, const struct attention *a) {
    const enum dtype real = ops->real;
    TRY(check_tensor(operation, "q", a->q, real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    TRY(check_tensor(operation, "k", a->k, real, 4, SHAPE(batch, length, ANY, width)));
    TRY(check_tensor(operation, "v", a->v, real, 4, a->k.shape));
    int64_t groups = a->k.shape[2];
    if (groups < 1 || heads % groups) {
        return error_set(STATUS_SHAPE, "%s: k: %lld query heads are no multiple of %lld key heads", operation,
                         (long long)heads, (long long)groups);
    }
    TRY(check_tensor(operation, "o", a->o, real, 4, a->q.shape));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_count(operation, a->count, a->coefficients));
    TRY(check_coefficients(ops, operation, "coefficients", a->coefficients, heads, a->count));
    TRY(check_dense(operation, "log_sums", a->log_sums, ops->statistic, 4, SHAPE(batch, heads, a->count, length)));
    for (int m = 0; m < a->count; m++) {
        const struct candidate *c = &a->candidates[m];
        bool needs_a = c->kind != CANDIDATE_FULL, needs_b = c->kind == CANDIDATE_DILATED;
        if (c->kind < CANDIDATE_FULL || c->kind > CANDIDATE_BLOCKS || (needs_a && c->a < 1) || (needs_b && c->b < 1)) {
            return error_set(STATUS_SHAPE, "%s: candidate %d: kind %d with a %d, b %d is not defined", operation, m,
                             (int)c->kind, (int)c->a, (int)c->b);
        }
    }
    return STATUS_OK;
}

enum status check_attention(const struct ops *ops, const struct attention *a) {
    return check_forward(ops, "attention", a);
}

enum status check_attention_backward(const struct ops *ops, const struct attention_backward *a) {
    const char *operation = "attention_backward";
    const struct attention *f = &a->forward;
    TRY(check_forward(ops, operation, f));
    TRY(check_tensor(operation, "d_o", a->d_o, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dq", a->dq, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dk", a->dk, ops->real, 4, f->k.shape));
    TRY(check_tensor(operation, "dv", a->dv, ops->real, 4, f->k.shape));
    return check_coefficients(ops, operation, "dcoefficients", a->dcoefficients, f->q.shape[2], f->count);
}

enum status check_attention_decode(const struct ops *ops, const struct attention_decode *a) {
    const char *operation = "attention_decode";
    TRY(check_tensor(operation, "q", a->q, ops->real, 3, SHAPE(ANY, ANY, ANY)));
    int64_t batch = a->q.shape[0], heads = a->q.shape[1], width = a->q.shape[2];
    TRY(check_tensor(operation, "k", a->k, ops->real, 4, SHAPE(batch, ANY, ANY, width)));
    TRY(check_tensor(operation, "v", a->v, ops->real, 4, a->k.shape));
    int64_t groups = a->k.shape[2];
    if (groups < 1 || heads % groups) {
        return error_set(STATUS_SHAPE, "%s: k: %lld query heads are no multiple of %lld key heads", operation,
                         (long long)heads, (long long)groups);
    }
    TRY(check_tensor(operation, "o", a->o, ops->real, 3, a->q.shape));
    TRY(check_count(operation, a->count, a->coefficients));
    if (a->lists < 1 || heads % a->lists) {
        return error_set(STATUS_SHAPE, "%s: lists: expected a divisor of %lld heads, found %d", operation,
                         (long long)heads, a->lists);
    }
    const int64_t rows = (int64_t)a->lists * a->count;
    TRY(check_dense(operation, "slots", a->slots, DTYPE_I32, 3, SHAPE(batch, rows, ANY)));
    TRY(check_dense(operation, "slot_counts", a->slot_counts, DTYPE_I32, 2, SHAPE(batch, rows)));
    return check_coefficients(ops, operation, "coefficients", a->coefficients, heads, a->count);
}

enum status check_slot_lists(const struct slot_lists *a) {
    const char *operation = "slot_lists";
    TRY(check_dense(operation, "slots", a->slots, DTYPE_I32, 3, SHAPE(ANY, ANY, ANY)));
    const int64_t batch = a->slots.shape[0], lists = a->slots.shape[1], capacity = a->slots.shape[2];
    TRY(check_dense(operation, "slot_counts", a->slot_counts, DTYPE_I32, 2, SHAPE(batch, lists)));
    TRY(check_dense(operation, "places", a->places, DTYPE_I32, 2, SHAPE(batch, 3)));
    if (tensor_present(a->chosen))
        TRY(check_dense(operation, "chosen", a->chosen, DTYPE_I32, 3, SHAPE(batch, lists, ANY)));
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"position", a->position}, {"block", a->block}, {"sinks", a->sinks}, {"window", a->window}};
    for (int n = 0; n < 4; n++)
        if (numbers[n].value < 0 || numbers[n].value > INT32_MAX - 1)
            return error_set(STATUS_SHAPE, "%s: %s: expected 0 … %d, found %lld", operation, numbers[n].name, INT32_MAX - 1,
                             (long long)numbers[n].value);
    const int64_t chosen = tensor_present(a->chosen) ? a->chosen.shape[2] * (a->block > 0 ? a->block : 1) : 0;
    const int64_t all = a->sinks + chosen + a->window, needed = all < a->position + 1 ? all : a->position + 1;
    if (capacity >= needed) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: slots: expected room for %lld in a list, found %lld", operation, (long long)needed,
                     (long long)capacity);
}
