/* The guarded operations on blocks of keys: what each reads, writes and updates, as ops.h says. */
#include "kernels/check.h"
#include "kernels/guard/internal.h"

static enum status guarded_block_compress(const struct ops *ops, const struct block_compress *a) {
    struct call call = {.operation = "block_compress"};
    TRY(check_block_compress(ops, a));
    call_add(&call, "x", a->x, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "w1", a->w1, ACCESS_READ, NULL);
    call_add(&call, "b1", a->b1, ACCESS_READ, NULL);
    call_add(&call, "w2", a->w2, ACCESS_READ, NULL);
    call_add(&call, "places", a->places, ACCESS_READ, NULL);
    call_add(&call, "out", a->out, ACCESS_WRITE, NULL);
    call_add(&call, "pre", a->pre, ACCESS_WRITE, NULL);
    GUARDED(&call, block_compress, a);
}

static enum status guarded_block_compress_backward(const struct ops *ops, const struct block_compress_backward *a) {
    struct call call = {.operation = "block_compress_backward"};
    const struct block_compress *f = &a->forward;
    TRY(check_block_compress_backward(ops, a));
    call_add(&call, "x", f->x, ACCESS_READ, NULL);
    call_add(&call, "start", f->start, ACCESS_READ, NULL);
    call_add(&call, "w1", f->w1, ACCESS_READ, NULL);
    call_add(&call, "w2", f->w2, ACCESS_READ, NULL);
    call_add(&call, "places", f->places, ACCESS_READ, NULL);
    call_add(&call, "pre", f->pre, ACCESS_READ, NULL);
    call_add(&call, "d_out", a->d_out, ACCESS_READ, NULL);
    call_add(&call, "dx", a->dx, ACCESS_UPDATE, NULL);
    call_add(&call, "dw1", a->dw1, ACCESS_UPDATE, NULL);
    call_add(&call, "db1", a->db1, ACCESS_UPDATE, NULL);
    call_add(&call, "dw2", a->dw2, ACCESS_UPDATE, NULL);
    call_add(&call, "dplaces", a->dplaces, ACCESS_UPDATE, NULL);
    GUARDED(&call, block_compress_backward, a);
}

static enum status guarded_compressed_attention(const struct ops *ops, const struct compressed_attention *a) {
    struct call call = {.operation = "compressed_attention"};
    TRY(check_compressed_attention(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    call_add(&call, "log_sums", a->log_sums, ACCESS_WRITE, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_WRITE, NULL);
    GUARDED(&call, compressed_attention, a);
}

static enum status guarded_compressed_attention_backward(const struct ops *ops,
                                                         const struct compressed_attention_backward *a) {
    struct call call = {.operation = "compressed_attention_backward"};
    const struct compressed_attention *f = &a->forward;
    TRY(check_compressed_attention_backward(ops, a));
    call_add(&call, "q", f->q, ACCESS_READ, NULL);
    call_add(&call, "k", f->k, ACCESS_READ, NULL);
    call_add(&call, "v", f->v, ACCESS_READ, NULL);
    call_add(&call, "start", f->start, ACCESS_READ, NULL);
    call_add(&call, "o", f->o, ACCESS_READ, NULL);
    call_add(&call, "log_sums", f->log_sums, ACCESS_READ, NULL);
    call_add(&call, "d_o", a->d_o, ACCESS_READ, NULL);
    call_add(&call, "dq", a->dq, a->accumulate_q ? ACCESS_UPDATE : ACCESS_WRITE, NULL);
    call_add(&call, "dk", a->dk, ACCESS_WRITE, NULL);
    call_add(&call, "dv", a->dv, ACCESS_WRITE, NULL);
    GUARDED(&call, compressed_attention_backward, a);
}

static enum status guarded_compressed_decode(const struct ops *ops, const struct compressed_decode *a) {
    struct call call = {.operation = "compressed_decode"};
    TRY(check_compressed_decode(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "places", a->places, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_WRITE, NULL);
    GUARDED(&call, compressed_decode, a);
}

static enum status guarded_block_attention(const struct ops *ops, const struct block_attention *a) {
    struct call call = {.operation = "block_attention"};
    TRY(check_block_attention(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    call_add(&call, "log_sums", a->log_sums, ACCESS_WRITE, NULL);
    GUARDED(&call, block_attention, a);
}

static enum status guarded_block_attention_backward(const struct ops *ops, const struct block_attention_backward *a) {
    struct call call = {.operation = "block_attention_backward"};
    const struct block_attention *f = &a->forward;
    const enum access_kind gradient = a->accumulate_kv ? ACCESS_UPDATE : ACCESS_WRITE;
    TRY(check_block_attention_backward(ops, a));
    call_add(&call, "q", f->q, ACCESS_READ, NULL);
    call_add(&call, "k", f->k, ACCESS_READ, NULL);
    call_add(&call, "v", f->v, ACCESS_READ, NULL);
    call_add(&call, "start", f->start, ACCESS_READ, NULL);
    call_add(&call, "chosen", f->chosen, ACCESS_READ, NULL);
    call_add(&call, "o", f->o, ACCESS_READ, NULL);
    call_add(&call, "log_sums", f->log_sums, ACCESS_READ, NULL);
    call_add(&call, "d_o", a->d_o, ACCESS_READ, NULL);
    call_add(&call, "dq", a->dq, a->accumulate_q ? ACCESS_UPDATE : ACCESS_WRITE, NULL);
    call_add(&call, "dk", a->dk, gradient, NULL);
    call_add(&call, "dv", a->dv, gradient, NULL);
    GUARDED(&call, block_attention_backward, a);
}

static const char *const branch_names[GATES_MAX] = {"branch 0", "branch 1", "branch 2"};
static const char *const gradient_names[GATES_MAX] = {"d_branch 0", "d_branch 1", "d_branch 2"};

static enum status guarded_gate_mix(const struct ops *ops, const struct gate_mix *a) {
    struct call call = {.operation = "gate_mix"};
    TRY(check_gate_mix(ops, a));
    for (int m = 0; m < a->count; m++) call_add(&call, branch_names[m], a->branches[m], ACCESS_READ, NULL);
    call_add(&call, "logits", a->logits, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    GUARDED(&call, gate_mix, a);
}

static enum status guarded_gate_mix_backward(const struct ops *ops, const struct gate_mix_backward *a) {
    struct call call = {.operation = "gate_mix_backward"};
    const struct gate_mix *f = &a->forward;
    TRY(check_gate_mix_backward(ops, a));
    for (int m = 0; m < f->count; m++) call_add(&call, branch_names[m], f->branches[m], ACCESS_READ, NULL);
    call_add(&call, "logits", f->logits, ACCESS_READ, NULL);
    call_add(&call, "d_o", a->d_o, ACCESS_READ, NULL);
    for (int m = 0; m < f->count; m++) call_add(&call, gradient_names[m], a->d_branches[m], ACCESS_WRITE, NULL);
    call_add(&call, "dlogits", a->dlogits, ACCESS_WRITE, NULL);
    GUARDED(&call, gate_mix_backward, a);
}

static enum status guarded_block_mass(const struct ops *ops, const struct block_mass *a) {
    struct call call = {.operation = "block_mass"};
    TRY(check_block_mass(ops, a));
    call_add(&call, "teacher_q", a->teacher_q, ACCESS_READ, NULL);
    call_add(&call, "teacher_k", a->teacher_k, ACCESS_READ, NULL);
    call_add(&call, "own_q", a->own_q, ACCESS_READ, NULL);
    call_add(&call, "compressed", a->compressed, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "log_sums", a->log_sums, ACCESS_READ, NULL);
    call_add(&call, "losses", a->losses, ACCESS_WRITE, NULL);
    call_add(&call, "loss", a->loss, ACCESS_UPDATE, NULL);
    call_add(&call, "d_own_q", a->d_own_q, ACCESS_UPDATE, NULL);
    call_add(&call, "d_compressed", a->d_compressed, ACCESS_UPDATE, NULL);
    GUARDED(&call, block_mass, a);
}

void guard_blocks(struct ops *ops) {
    ops->block_compress = guarded_block_compress;
    ops->block_compress_backward = guarded_block_compress_backward;
    ops->compressed_attention = guarded_compressed_attention;
    ops->compressed_attention_backward = guarded_compressed_attention_backward;
    ops->compressed_decode = guarded_compressed_decode;
    ops->block_attention = guarded_block_attention;
    ops->block_attention_backward = guarded_block_attention_backward;
    ops->gate_mix = guarded_gate_mix;
    ops->gate_mix_backward = guarded_gate_mix_backward;
    ops->block_mass = guarded_block_mass;
}
