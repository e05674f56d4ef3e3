/* Shape checks; see check.h. */
#include "kernels/check.h"

#include <limits.h>
#include <stdio.h>

static void describe_shape(enum dtype dtype, int rank, const int64_t *shape, char *text, size_t capacity) {
    size_t used = (size_t)snprintf(text, capacity, "[");
    for (int i = 0; i < rank && used < capacity; i++) {
        const char *comma = i ? "," : "";
        int more = shape[i] == ANY ? snprintf(text + used, capacity - used, "%s*", comma)
                                   : snprintf(text + used, capacity - used, "%s%lld", comma, (long long)shape[i]);
        used += (size_t)more;
    }
    if (used < capacity) snprintf(text + used, capacity - used, "] %s", dtype_name(dtype));
}

static enum status mismatch(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                            const int64_t *shape) {
    char expected[96], found[96];
    describe_shape(dtype, rank, shape, expected, sizeof expected);
    tensor_describe(t, found, sizeof found);
    return error_set(STATUS_SHAPE, "%s: %s: expected %s, found %s", operation, argument, expected,
                     tensor_present(t) ? found : "nothing");
}

enum status check_tensor(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                         const int64_t *shape) {
    if (t.rank != rank || t.dtype != dtype) return mismatch(operation, argument, t, dtype, rank, shape);
    for (int i = 0; i < rank; i++) {
        if (t.shape[i] < 0 || (shape[i] != ANY && t.shape[i] != shape[i])) {
            return mismatch(operation, argument, t, dtype, rank, shape);
        }
    }
    if (!t.data && tensor_count(t) > 0) {
        return error_set(STATUS_SHAPE, "%s: %s: the tensor has no memory", operation, argument);
    }
    if (rank > 0 && t.shape[rank - 1] > 1 && t.stride[rank - 1] != 1) {
        return error_set(STATUS_SHAPE, "%s: %s: the last dimension must be dense, its stride is %lld", operation,
                         argument, (long long)t.stride[rank - 1]);
    }
    return STATUS_OK;
}

enum status check_dense(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                        const int64_t *shape) {
    TRY(check_tensor(operation, argument, t, dtype, rank, shape));
    if (!tensor_is_contiguous(t)) {
        return error_set(STATUS_SHAPE, "%s: %s: must be contiguous, its row stride is %lld", operation, argument,
                         (long long)t.stride[0]);
    }
    return STATUS_OK;
}

enum status check_optional(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                           const int64_t *shape) {
    return tensor_present(t) ? check_dense(operation, argument, t, dtype, rank, shape) : STATUS_OK;
}

enum status check_float(const struct ops *ops, const char *operation, const char *argument, struct tensor x) {
    if (x.rank < 1) return error_set(STATUS_SHAPE, "%s: %s: expected a tensor, found nothing", operation, argument);
    enum dtype dtype = x.dtype == ops->parameter || x.dtype == ops->statistic ? x.dtype : ops->real;
    const int64_t any[TENSOR_MAX_RANK] = {ANY, ANY, ANY, ANY};
    return check_tensor(operation, argument, x, dtype, x.rank, any);
}

enum status check_same(const char *operation, struct tensor x, struct tensor y) {
    if (!tensor_present(x)) return error_set(STATUS_SHAPE, "%s: x: expected a tensor, found nothing", operation);
    return check_tensor(operation, "y", y, x.dtype, x.rank, x.shape);
}

enum status check_copy(struct tensor from, struct tensor to) {
    if (!tensor_present(from)) return error_set(STATUS_SHAPE, "copy: from: expected a tensor, found nothing");
    TRY(check_tensor("copy", "from", from, from.dtype, from.rank, from.shape));
    TRY(check_tensor("copy", "to", to, to.dtype, from.rank, from.shape));
    const struct tensor both[] = {from, to};
    for (int i = 0; i < 2; i++) {
        if (both[i].dtype == from.dtype && both[i].dtype == to.dtype) continue;
        if (both[i].dtype != DTYPE_F32 && both[i].dtype != DTYPE_F64 && both[i].dtype != DTYPE_BF16) {
            return error_set(STATUS_SHAPE, "copy: no conversion from %s to %s", dtype_name(from.dtype),
                             dtype_name(to.dtype));
        }
    }
    return STATUS_OK;
}

enum status check_gemm(const struct ops *ops, const struct gemm *a) {
    const bool wide = a->c.dtype == ops->parameter && ops->parameter != ops->real;
    TRY(check_tensor("gemm", "c", a->c, wide ? ops->parameter : ops->real, 2, SHAPE(ANY, ANY)));
    TRY(check_tensor("gemm", "a", a->a, ops->real, 2, SHAPE(ANY, ANY)));
    int64_t m = a->c.shape[0], n = a->c.shape[1], k = a->a.shape[a->transpose_a ? 0 : 1];
    TRY(check_tensor("gemm", "a", a->a, ops->real, 2, a->transpose_a ? SHAPE(k, m) : SHAPE(m, k)));
    TRY(check_tensor("gemm", "b", a->b, ops->real, 2, a->transpose_b ? SHAPE(n, k) : SHAPE(k, n)));
    TRY(check_optional("gemm", "bias", a->bias, ops->real, 1, SHAPE(n)));
    if (tensor_present(a->pre)) TRY(check_tensor("gemm", "pre", a->pre, ops->real, 2, SHAPE(m, n)));
    const bool finished = a->activation != ACTIVATION_NONE || tensor_present(a->pre);
    if (a->accumulate && finished) return error_set(STATUS_SHAPE, "gemm: accumulate excludes an activation and pre");
    if (wide && (finished || tensor_present(a->bias))) {
        return error_set(STATUS_SHAPE, "gemm: c of another dtype than a and b excludes a bias, an activation and pre");
    }
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX || a->a.stride[0] > INT_MAX || a->b.stride[0] > INT_MAX ||
        a->c.stride[0] > INT_MAX) {
        return error_set(STATUS_SHAPE, "gemm: an extent or a row stride is larger than %d", INT_MAX);
    }
    return STATUS_OK;
}

enum status check_bias_backward(const struct ops *ops, struct tensor dy, struct tensor dbias) {
    TRY(check_tensor("bias_backward", "dy", dy, ops->real, 2, SHAPE(ANY, ANY)));
    return check_dense("bias_backward", "dbias", dbias, ops->parameter, 1, SHAPE(dy.shape[1]));
}

enum status check_embedding(const struct ops *ops, const struct embedding *a) {
    TRY(check_dense("embedding", "x", a->x, ops->real, 2, SHAPE(ANY, ANY)));
    int64_t n = a->x.shape[0], c = a->x.shape[1];
    TRY(check_dense("embedding", "ids", a->ids, DTYPE_I32, 1, SHAPE(n)));
    TRY(check_dense("embedding", "table", a->table, ops->real, 2, SHAPE(ANY, c)));
    TRY(check_optional("embedding", "position_table", a->position_table, ops->real, 2, SHAPE(ANY, c)));
    if (tensor_present(a->position_table)) {
        TRY(check_dense("embedding", "positions", a->positions, DTYPE_I32, 1, SHAPE(n)));
    }
    return STATUS_OK;
}

enum status check_embedding_backward(const struct ops *ops, const struct embedding_backward *a) {
    TRY(check_dense("embedding_backward", "dx", a->dx, ops->real, 2, SHAPE(ANY, ANY)));
    int64_t n = a->dx.shape[0], c = a->dx.shape[1];
    TRY(check_optional("embedding_backward", "dtable", a->dtable, ops->parameter, 2, SHAPE(ANY, c)));
    TRY(check_optional("embedding_backward", "dposition_table", a->dposition_table, ops->parameter, 2, SHAPE(ANY, c)));
    if (tensor_present(a->dtable)) TRY(check_dense("embedding_backward", "ids", a->ids, DTYPE_I32, 1, SHAPE(n)));
    if (tensor_present(a->dposition_table)) {
        TRY(check_dense("embedding_backward", "positions", a->positions, DTYPE_I32, 1, SHAPE(n)));
    }
    return STATUS_OK;
}

enum status check_norm(const struct ops *ops, const struct norm *a) {
    TRY(check_dense("norm", "x", a->x, ops->real, 2, SHAPE(ANY, ANY)));
    int64_t n = a->x.shape[0], c = a->x.shape[1];
    TRY(check_optional("norm", "delta", a->delta, ops->real, 2, SHAPE(n, c)));
    if (tensor_present(a->delta)) TRY(check_dense("norm", "sum", a->sum, ops->real, 2, SHAPE(n, c)));
    TRY(check_dense("norm", "y", a->y, ops->real, 2, SHAPE(n, c)));
    TRY(check_dense("norm", "weight", a->weight, ops->real, 1, SHAPE(c)));
    TRY(check_optional("norm", "bias", a->bias, ops->real, 1, SHAPE(c)));
    TRY(check_dense("norm", "rstd", a->rstd, ops->statistic, 1, SHAPE(n)));
    if (a->kind == NORM_LAYER) TRY(check_dense("norm", "mean", a->mean, ops->statistic, 1, SHAPE(n)));
    return STATUS_OK;
}

enum status check_norm_backward(const struct ops *ops, const struct norm_backward *a) {
    TRY(check_dense("norm_backward", "x", a->x, ops->real, 2, SHAPE(ANY, ANY)));
    int64_t n = a->x.shape[0], c = a->x.shape[1];
    TRY(check_dense("norm_backward", "dy", a->dy, ops->real, 2, SHAPE(n, c)));
    TRY(check_dense("norm_backward", "dx", a->dx, ops->real, 2, SHAPE(n, c)));
    TRY(check_dense("norm_backward", "weight", a->weight, ops->real, 1, SHAPE(c)));
    TRY(check_dense("norm_backward", "rstd", a->rstd, ops->statistic, 1, SHAPE(n)));
    if (a->kind == NORM_LAYER) TRY(check_dense("norm_backward", "mean", a->mean, ops->statistic, 1, SHAPE(n)));
    TRY(check_optional("norm_backward", "dweight", a->dweight, ops->parameter, 1, SHAPE(c)));
    return check_optional("norm_backward", "dbias", a->dbias, ops->parameter, 1, SHAPE(c));
}

enum status check_gelu_backward(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx) {
    TRY(check_dense("gelu_backward", "dy", dy, ops->real, 2, SHAPE(ANY, ANY)));
    TRY(check_dense("gelu_backward", "pre", pre, ops->real, 2, dy.shape));
    return check_dense("gelu_backward", "dx", dx, ops->real, 2, dy.shape);
}

enum status check_swiglu(const struct ops *ops, struct tensor x, struct tensor y) {
    TRY(check_dense("swiglu", "y", y, ops->real, 2, SHAPE(ANY, ANY)));
    return check_dense("swiglu", "x", x, ops->real, 2, SHAPE(y.shape[0], 2 * y.shape[1]));
}

enum status check_swiglu_backward(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx) {
    TRY(check_dense("swiglu_backward", "dy", dy, ops->real, 2, SHAPE(ANY, ANY)));
    TRY(check_dense("swiglu_backward", "x", x, ops->real, 2, SHAPE(dy.shape[0], 2 * dy.shape[1])));
    return check_dense("swiglu_backward", "dx", dx, ops->real, 2, x.shape);
}

enum status check_rope(const struct ops *ops, const struct rope *a) {
    TRY(check_tensor("rope", "x", a->x, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    if (a->x.shape[3] % 2) {
        return error_set(STATUS_SHAPE, "rope: x: the head width must be even, found %lld", (long long)a->x.shape[3]);
    }
    TRY(check_dense("rope", "positions", a->positions, DTYPE_I32, 2, a->x.shape));
    return check_dense("rope", "frequencies", a->frequencies, ops->statistic, 1, SHAPE(a->x.shape[3] / 2));
}

enum status check_loss_rows(const struct ops *ops, const struct loss_rows *a) {
    const enum dtype logits = a->student.dtype == ops->statistic ? ops->statistic : ops->real;
    TRY(check_tensor("loss_rows", "student", a->student, logits, 2, SHAPE(ANY, ANY)));
    int64_t n = a->student.shape[0];
    if (tensor_present(a->teacher)) TRY(check_tensor("loss_rows", "teacher", a->teacher, logits, 2, a->student.shape));
    TRY(check_optional("loss_rows", "targets", a->targets, DTYPE_I32, 1, SHAPE(n)));
    if (tensor_present(a->gradient))
        TRY(check_tensor("loss_rows", "gradient", a->gradient, logits, 2, a->student.shape));
    const struct {
        const char *argument;
        struct tensor t;
        bool needs_teacher, needs_targets;
    } rows[] = {{"kl", a->kl, true, false},       {"reverse_kl", a->reverse_kl, true, false},
                {"ce", a->ce, false, true},       {"teacher_ce", a->teacher_ce, true, true},
                {"agree", a->agree, true, false}, {"entropy", a->entropy, false, false}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        TRY(check_optional("loss_rows", rows[i].argument, rows[i].t, ops->statistic, 1, SHAPE(n)));
        if (!tensor_present(rows[i].t)) continue;
        if (rows[i].needs_teacher && !tensor_present(a->teacher)) {
            return error_set(STATUS_SHAPE, "loss_rows: %s needs a teacher", rows[i].argument);
        }
        if (rows[i].needs_targets && !tensor_present(a->targets)) {
            return error_set(STATUS_SHAPE, "loss_rows: %s needs targets", rows[i].argument);
        }
    }
    if (tensor_present(a->gradient) &&
        ((a->kl_weight != 0 && !tensor_present(a->teacher)) || (a->ce_weight != 0 && !tensor_present(a->targets)))) {
        return error_set(STATUS_SHAPE, "loss_rows: the gradient needs %s",
                         tensor_present(a->teacher) ? "targets" : "a teacher");
    }
    if (!(a->temperature > 0)) {
        return error_set(STATUS_SHAPE, "loss_rows: temperature: expected more than 0, found %g", a->temperature);
    }
    return STATUS_OK;
}

enum status check_log_softmax(const struct ops *ops, struct tensor x, struct tensor y) {
    const enum dtype logits = x.dtype == ops->statistic ? ops->statistic : ops->real;
    TRY(check_tensor("log_softmax", "x", x, logits, 2, SHAPE(ANY, ANY)));
    return check_tensor("log_softmax", "y", y, logits, 2, x.shape);
}

enum status check_reduction(const struct ops *ops, const char *operation, struct tensor x, struct tensor out) {
    TRY(check_float(ops, operation, "x", x));
    return check_dense(operation, "out", out, DTYPE_F64, 1, SHAPE(1));
}

static enum status check_parts(const char *operation, const struct param_part *parts, int64_t count, int64_t elements) {
    int64_t before = 0;
    for (int64_t p = 0; p < count; p++) {
        if (parts[p].first >= before && parts[p].count >= 0 && parts[p].count <= elements - parts[p].first) {
            before = parts[p].first + parts[p].count;
            continue;
        }
        return error_set(STATUS_SHAPE,
                         "%s: part %lld: expected elements from %lld on, below %lld; found %lld and %lld more",
                         operation, (long long)p, (long long)before, (long long)elements, (long long)parts[p].first,
                         (long long)parts[p].count);
    }
    return STATUS_OK;
}

enum status check_sum_squares_parts(const struct ops *ops, struct tensor x, const struct param_part *parts,
                                    int64_t count, struct tensor out) {
    TRY(check_float(ops, "sum_squares_parts", "x", x));
    TRY(check_dense("sum_squares_parts", "x", x, x.dtype, 1, SHAPE(ANY)));
    TRY(check_dense("sum_squares_parts", "out", out, DTYPE_F64, 1, SHAPE(count)));
    return check_parts("sum_squares_parts", parts, count, x.shape[0]);
}

enum status check_adamw(const struct ops *ops, const struct adamw *a) {
    TRY(check_dense("adamw", "value", a->value, ops->parameter, 1, SHAPE(ANY)));
    TRY(check_dense("adamw", "grad", a->grad, ops->parameter, 1, a->value.shape));
    TRY(check_dense("adamw", "m", a->m, ops->parameter, 1, a->value.shape));
    TRY(check_dense("adamw", "v", a->v, ops->parameter, 1, a->value.shape));
    TRY(check_optional("adamw", "working", a->working, ops->real, 1, a->value.shape));
    TRY(check_parts("adamw", a->parts, a->part_count, a->value.shape[0]));
    if (a->step < 1) {
        return error_set(STATUS_SHAPE, "adamw: step: expected at least 1, found %lld", (long long)a->step);
    }
    return STATUS_OK;
}
