/* Shape checks of the operations on blocks of keys; see check.h. */
#include "kernels/check.h"

static enum status check_sizes(const char *operation, int32_t compress, int32_t stride, int32_t block) {
    if (stride >= 1 && compress >= stride && compress % stride == 0 && block >= stride && block % stride == 0)
        return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: blocks of %d and %d every %d: expected multiples of the stride, from 1",
                     operation, compress, block, stride);
}

static enum status check_groups(const char *operation, int64_t heads, int64_t groups) {
    if (groups >= 1 && heads >= groups && heads % groups == 0) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: k: %lld query heads are no multiple of %lld key heads", operation,
                     (long long)heads, (long long)groups);
}

static enum status check_choice(const char *operation, int32_t select, int32_t select_group, int64_t heads,
                                int64_t groups) {
    const int64_t share = heads / groups;
    if (select < 3) return error_set(STATUS_SHAPE, "%s: select: expected 3 or more, found %d", operation, select);
    if (select_group >= 1 && heads % select_group == 0 && (share % select_group == 0 || select_group % share == 0))
        return STATUS_OK;
    return error_set(STATUS_SHAPE,
                     "%s: select_group: expected a divisor of %lld heads that divides or is a multiple of %lld, "
                     "found %d",
                     operation, (long long)heads, (long long)share, select_group);
}

static enum status check_compress(const struct ops *ops, const char *operation, const struct block_compress *a) {
    const enum dtype real = ops->real;
    TRY(check_sizes(operation, a->compress, a->stride, a->stride));
    TRY(check_tensor(operation, "x", a->x, real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->x.shape[0], length = a->x.shape[1], groups = a->x.shape[2], width = a->x.shape[3];
    const int64_t blocks = compressed_bound(length, a->compress, a->stride);
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "w1", a->w1, real, 2, SHAPE(2 * width, a->compress * width)));
    TRY(check_dense(operation, "b1", a->b1, real, 1, SHAPE(2 * width)));
    TRY(check_dense(operation, "w2", a->w2, real, 2, SHAPE(width, 2 * width)));
    TRY(check_dense(operation, "places", a->places, real, 2, SHAPE(a->compress, width)));
    TRY(check_dense(operation, "out", a->out, real, 4, SHAPE(batch, blocks, groups, width)));
    return check_dense(operation, "pre", a->pre, real, 4, SHAPE(batch, blocks, groups, 2 * width));
}

enum status check_block_compress(const struct ops *ops, const struct block_compress *a) {
    return check_compress(ops, "block_compress", a);
}

enum status check_block_compress_backward(const struct ops *ops, const struct block_compress_backward *a) {
    const char *operation = "block_compress_backward";
    const struct block_compress *f = &a->forward;
    TRY(check_compress(ops, operation, f));
    TRY(check_dense(operation, "d_out", a->d_out, ops->real, 4, f->out.shape));
    TRY(check_tensor(operation, "dx", a->dx, ops->real, 4, f->x.shape));
    TRY(check_optional(operation, "dw1", a->dw1, ops->parameter, 2, f->w1.shape));
    TRY(check_optional(operation, "db1", a->db1, ops->parameter, 1, f->b1.shape));
    TRY(check_optional(operation, "dw2", a->dw2, ops->parameter, 2, f->w2.shape));
    return check_optional(operation, "dplaces", a->dplaces, ops->parameter, 2, f->places.shape);
}

static enum status check_compressed(const struct ops *ops, const char *operation,
                                    const struct compressed_attention *a) {
    TRY(check_sizes(operation, a->compress, a->stride, a->block));
    TRY(check_tensor(operation, "q", a->q, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    const int64_t blocks = compressed_bound(length, a->compress, a->stride);
    TRY(check_tensor(operation, "k", a->k, ops->real, 4, SHAPE(batch, blocks, ANY, width)));
    TRY(check_groups(operation, heads, a->k.shape[2]));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "log_sums", a->log_sums, ops->statistic, 3, SHAPE(batch, heads, length)));
    if (tensor_present(a->o)) {
        TRY(check_tensor(operation, "v", a->v, ops->real, 4, a->k.shape));
        TRY(check_tensor(operation, "o", a->o, ops->real, 4, a->q.shape));
    }
    if (!tensor_present(a->chosen)) return STATUS_OK;
    TRY(check_choice(operation, a->select, a->select_group, heads, a->k.shape[2]));
    return check_dense(operation, "chosen", a->chosen, DTYPE_I32, 4,
                       SHAPE(batch, length, heads / a->select_group, a->select));
}

enum status check_compressed_attention(const struct ops *ops, const struct compressed_attention *a) {
    return check_compressed(ops, "compressed_attention", a);
}

enum status check_compressed_attention_backward(const struct ops *ops, const struct compressed_attention_backward *a) {
    const char *operation = "compressed_attention_backward";
    const struct compressed_attention *f = &a->forward;
    TRY(check_compressed(ops, operation, f));
    TRY(check_tensor(operation, "o", f->o, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "d_o", a->d_o, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dq", a->dq, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dk", a->dk, ops->real, 4, f->k.shape));
    return check_tensor(operation, "dv", a->dv, ops->real, 4, f->k.shape);
}

enum status check_compressed_decode(const struct ops *ops, const struct compressed_decode *a) {
    const char *operation = "compressed_decode";
    TRY(check_sizes(operation, a->compress, a->stride, a->block));
    TRY(check_tensor(operation, "q", a->q, ops->real, 3, SHAPE(ANY, ANY, ANY)));
    const int64_t batch = a->q.shape[0], heads = a->q.shape[1], width = a->q.shape[2];
    TRY(check_tensor(operation, "k", a->k, ops->real, 4, SHAPE(batch, ANY, ANY, width)));
    TRY(check_tensor(operation, "v", a->v, ops->real, 4, a->k.shape));
    TRY(check_groups(operation, heads, a->k.shape[2]));
    TRY(check_dense(operation, "places", a->places, DTYPE_I32, 2, SHAPE(batch, 3)));
    if (tensor_present(a->o)) TRY(check_tensor(operation, "o", a->o, ops->real, 3, a->q.shape));
    if (!tensor_present(a->chosen)) return STATUS_OK;
    TRY(check_choice(operation, a->select, a->select_group, heads, a->k.shape[2]));
    return check_dense(operation, "chosen", a->chosen, DTYPE_I32, 3, SHAPE(batch, heads / a->select_group, a->select));
}

static enum status check_blocks(const struct ops *ops, const char *operation, const struct block_attention *a) {
    TRY(check_sizes(operation, 1, 1, a->block));
    TRY(check_tensor(operation, "q", a->q, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    TRY(check_tensor(operation, "k", a->k, ops->real, 4, SHAPE(batch, length, ANY, width)));
    TRY(check_tensor(operation, "v", a->v, ops->real, 4, a->k.shape));
    TRY(check_groups(operation, heads, a->k.shape[2]));
    TRY(check_tensor(operation, "o", a->o, ops->real, 4, a->q.shape));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "log_sums", a->log_sums, ops->statistic, 3, SHAPE(batch, heads, length)));
    if (a->window < 0 || (a->window == 0 && !tensor_present(a->chosen)))
        return error_set(STATUS_SHAPE, "%s: window: expected 1 or more, or 0 beside chosen blocks, found %d", operation,
                         a->window);
    if (!tensor_present(a->chosen)) return STATUS_OK;
    TRY(check_dense(operation, "chosen", a->chosen, DTYPE_I32, 4, SHAPE(batch, length, ANY, ANY)));
    if (a->chosen.shape[2] >= 1 && heads % a->chosen.shape[2] == 0) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: chosen: %lld lists do not divide %lld heads", operation,
                     (long long)a->chosen.shape[2], (long long)heads);
}

enum status check_block_attention(const struct ops *ops, const struct block_attention *a) {
    return check_blocks(ops, "block_attention", a);
}

enum status check_block_attention_backward(const struct ops *ops, const struct block_attention_backward *a) {
    const char *operation = "block_attention_backward";
    const struct block_attention *f = &a->forward;
    TRY(check_blocks(ops, operation, f));
    TRY(check_tensor(operation, "d_o", a->d_o, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dq", a->dq, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dk", a->dk, ops->real, 4, f->k.shape));
    return check_tensor(operation, "dv", a->dv, ops->real, 4, f->k.shape);
}

static enum status check_gates(const struct ops *ops, const char *operation, const struct gate_mix *a) {
    TRY(check_tensor(operation, "o", a->o, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    if (a->count < 1 || a->count > GATES_MAX || (a->complement && a->count != 2))
        return error_set(STATUS_SHAPE, "%s: count: expected 1 to %d branches, 2 with complement, found %d", operation,
                         GATES_MAX, a->count);
    for (int m = 0; m < a->count; m++)
        if (a->complement || tensor_present(a->branches[m]))
            TRY(check_tensor(operation, "branches", a->branches[m], ops->real, 4, a->o.shape));
    const int64_t columns = a->o.shape[2] * (a->complement ? 1 : a->count);
    return check_dense(operation, "logits", a->logits, ops->real, 3, SHAPE(a->o.shape[0], a->o.shape[1], columns));
}

enum status check_gate_mix(const struct ops *ops, const struct gate_mix *a) {
    return check_gates(ops, "gate_mix", a);
}

enum status check_gate_mix_backward(const struct ops *ops, const struct gate_mix_backward *a) {
    const char *operation = "gate_mix_backward";
    const struct gate_mix *f = &a->forward;
    TRY(check_gates(ops, operation, f));
    TRY(check_tensor(operation, "d_o", a->d_o, ops->real, 4, f->o.shape));
    for (int m = 0; m < f->count; m++)
        if (tensor_present(a->d_branches[m]))
            TRY(check_tensor(operation, "d_branches", a->d_branches[m], ops->real, 4, f->o.shape));
    return check_dense(operation, "dlogits", a->dlogits, ops->real, 3, f->logits.shape);
}

enum status check_block_mass(const struct ops *ops, const struct block_mass *a) {
    const char *operation = "block_mass";
    TRY(check_sizes(operation, a->compress, a->stride, a->block));
    TRY(check_tensor(operation, "own_q", a->own_q, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->own_q.shape[0], length = a->own_q.shape[1], heads = a->own_q.shape[2];
    const int64_t width = a->own_q.shape[3], blocks = compressed_bound(length, a->compress, a->stride);
    TRY(check_tensor(operation, "teacher_q", a->teacher_q, ops->real, 4, a->own_q.shape));
    TRY(check_tensor(operation, "compressed", a->compressed, ops->real, 4, SHAPE(batch, blocks, ANY, width)));
    const int64_t groups = a->compressed.shape[2];
    TRY(check_groups(operation, heads, groups));
    TRY(check_choice(operation, 3, a->select_group, heads, groups));
    TRY(check_tensor(operation, "teacher_k", a->teacher_k, ops->real, 4, SHAPE(batch, length, groups, width)));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "log_sums", a->log_sums, ops->statistic, 3, SHAPE(batch, heads, length)));
    TRY(check_dense(operation, "losses", a->losses, ops->statistic, 3, SHAPE(batch, heads / a->select_group, length)));
    if (tensor_present(a->loss)) TRY(check_dense(operation, "loss", a->loss, DTYPE_F64, 1, SHAPE(1)));
    if (tensor_present(a->d_own_q)) TRY(check_tensor(operation, "d_own_q", a->d_own_q, ops->real, 4, a->own_q.shape));
    if (!tensor_present(a->d_compressed)) return STATUS_OK;
    return check_tensor(operation, "d_compressed", a->d_compressed, ops->real, 4, a->compressed.shape);
}
