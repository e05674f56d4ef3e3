/* The guarded layers: for each operation what it reads, writes and updates, as ops.h says. */
#include "kernels/check.h"
#include "kernels/guard/internal.h"

static enum status guarded_gemm(const struct ops *ops, const struct gemm *a) {
    struct call call = {.operation = "gemm"};
    TRY(check_gemm(ops, a));
    call_add(&call, "a", a->a, ACCESS_READ, NULL);
    call_add(&call, "b", a->b, ACCESS_READ, NULL);
    call_add(&call, "bias", a->bias, ACCESS_READ, NULL);
    call_add(&call, "c", a->c, a->accumulate ? ACCESS_UPDATE : ACCESS_WRITE, NULL);
    call_add(&call, "pre", a->pre, ACCESS_WRITE, NULL);
    GUARDED(&call, gemm, a);
}

static enum status guarded_bias_backward(const struct ops *ops, struct tensor dy, struct tensor dbias) {
    struct call call = {.operation = "bias_backward"};
    TRY(check_bias_backward(ops, dy, dbias));
    call_add(&call, "dy", dy, ACCESS_READ, NULL);
    call_add(&call, "dbias", dbias, ACCESS_UPDATE, NULL);
    GUARDED(&call, bias_backward, dy, dbias);
}

static enum status guarded_embedding(const struct ops *ops, const struct embedding *a) {
    struct call call = {.operation = "embedding"};
    TRY(check_embedding(ops, a));
    call_add(&call, "ids", a->ids, ACCESS_READ, NULL);
    call_add(&call, "table", a->table, ACCESS_READ, NULL);
    if (tensor_present(a->position_table)) {
        call_add(&call, "positions", a->positions, ACCESS_READ, NULL);
        call_add(&call, "position_table", a->position_table, ACCESS_READ, NULL);
    }
    call_add(&call, "x", a->x, ACCESS_WRITE, NULL);
    GUARDED(&call, embedding, a);
}

static enum status guarded_embedding_backward(const struct ops *ops, const struct embedding_backward *a) {
    struct call call = {.operation = "embedding_backward"};
    TRY(check_embedding_backward(ops, a));
    call_add(&call, "dx", a->dx, ACCESS_READ, NULL);
    if (tensor_present(a->dtable)) call_add(&call, "ids", a->ids, ACCESS_READ, NULL);
    if (tensor_present(a->dposition_table)) call_add(&call, "positions", a->positions, ACCESS_READ, NULL);
    call_add(&call, "dtable", a->dtable, ACCESS_UPDATE, NULL);
    call_add(&call, "dposition_table", a->dposition_table, ACCESS_UPDATE, NULL);
    GUARDED(&call, embedding_backward, a);
}

static enum status guarded_norm(const struct ops *ops, const struct norm *a) {
    struct call call = {.operation = "norm"};
    TRY(check_norm(ops, a));
    call_add(&call, "x", a->x, ACCESS_READ, NULL);
    call_add(&call, "weight", a->weight, ACCESS_READ, NULL);
    call_add(&call, "bias", a->bias, ACCESS_READ, NULL);
    if (tensor_present(a->delta)) {
        call_add(&call, "delta", a->delta, ACCESS_READ, NULL);
        call_add(&call, "sum", a->sum, ACCESS_WRITE, "x");
    }
    call_add(&call, "y", a->y, ACCESS_WRITE, NULL);
    if (a->kind == NORM_LAYER) call_add(&call, "mean", a->mean, ACCESS_WRITE, NULL);
    call_add(&call, "rstd", a->rstd, ACCESS_WRITE, NULL);
    GUARDED(&call, norm, a);
}

static enum status guarded_norm_backward(const struct ops *ops, const struct norm_backward *a) {
    struct call call = {.operation = "norm_backward"};
    TRY(check_norm_backward(ops, a));
    call_add(&call, "dy", a->dy, ACCESS_READ, NULL);
    call_add(&call, "x", a->x, ACCESS_READ, NULL);
    call_add(&call, "weight", a->weight, ACCESS_READ, NULL);
    if (a->kind == NORM_LAYER) call_add(&call, "mean", a->mean, ACCESS_READ, NULL);
    call_add(&call, "rstd", a->rstd, ACCESS_READ, NULL);
    call_add(&call, "dx", a->dx, a->overwrite_dx ? ACCESS_WRITE : ACCESS_UPDATE, NULL);
    call_add(&call, "dweight", a->dweight, ACCESS_UPDATE, NULL);
    call_add(&call, "dbias", a->dbias, ACCESS_UPDATE, NULL);
    GUARDED(&call, norm_backward, a);
}

static enum status guarded_gelu_backward(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx) {
    struct call call = {.operation = "gelu_backward"};
    TRY(check_gelu_backward(ops, dy, pre, dx));
    call_add(&call, "dy", dy, ACCESS_READ, NULL);
    call_add(&call, "pre", pre, ACCESS_READ, NULL);
    call_add(&call, "dx", dx, ACCESS_WRITE, "dy");
    GUARDED(&call, gelu_backward, dy, pre, dx);
}

static enum status guarded_swiglu(const struct ops *ops, struct tensor x, struct tensor y) {
    struct call call = {.operation = "swiglu"};
    TRY(check_swiglu(ops, x, y));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "y", y, ACCESS_WRITE, NULL);
    GUARDED(&call, swiglu, x, y);
}

static enum status guarded_swiglu_backward(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx) {
    struct call call = {.operation = "swiglu_backward"};
    TRY(check_swiglu_backward(ops, dy, x, dx));
    call_add(&call, "dy", dy, ACCESS_READ, NULL);
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "dx", dx, ACCESS_WRITE, "x");
    GUARDED(&call, swiglu_backward, dy, x, dx);
}

static enum status guarded_rope(const struct ops *ops, const struct rope *a) {
    struct call call = {.operation = "rope"};
    TRY(check_rope(ops, a));
    call_add(&call, "x", a->x, ACCESS_UPDATE, NULL);
    call_add(&call, "positions", a->positions, ACCESS_READ, NULL);
    call_add(&call, "frequencies", a->frequencies, ACCESS_READ, NULL);
    GUARDED(&call, rope, a);
}

static enum status guarded_attention(const struct ops *ops, const struct attention *a) {
    struct call call = {.operation = "attention"};
    TRY(check_attention(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "coefficients", a->coefficients, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    call_add(&call, "log_sums", a->log_sums, ACCESS_WRITE, NULL);
    GUARDED(&call, attention, a);
}

static enum status guarded_attention_backward(const struct ops *ops, const struct attention_backward *a) {
    struct call call = {.operation = "attention_backward"};
    TRY(check_attention_backward(ops, a));
    call_add(&call, "q", a->forward.q, ACCESS_READ, NULL);
    call_add(&call, "k", a->forward.k, ACCESS_READ, NULL);
    call_add(&call, "v", a->forward.v, ACCESS_READ, NULL);
    call_add(&call, "start", a->forward.start, ACCESS_READ, NULL);
    call_add(&call, "coefficients", a->forward.coefficients, ACCESS_READ, NULL);
    call_add(&call, "o", a->forward.o, ACCESS_READ, NULL);
    call_add(&call, "log_sums", a->forward.log_sums, ACCESS_READ, NULL);
    call_add(&call, "d_o", a->d_o, ACCESS_READ, NULL);
    call_add(&call, "dq", a->dq, ACCESS_WRITE, NULL);
    call_add(&call, "dk", a->dk, ACCESS_WRITE, NULL);
    call_add(&call, "dv", a->dv, ACCESS_WRITE, NULL);
    call_add(&call, "dcoefficients", a->dcoefficients, ACCESS_UPDATE, NULL);
    GUARDED(&call, attention_backward, a);
}

static enum status guarded_attention_decode(const struct ops *ops, const struct attention_decode *a) {
    struct call call = {.operation = "attention_decode"};
    TRY(check_attention_decode(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "slots", a->slots, ACCESS_READ, NULL);
    call_add(&call, "slot_counts", a->slot_counts, ACCESS_READ, NULL);
    call_add(&call, "coefficients", a->coefficients, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    GUARDED(&call, attention_decode, a);
}

static enum status guarded_slot_lists(const struct ops *ops, const struct slot_lists *a) {
    struct call call = {.operation = "slot_lists"};
    TRY(check_slot_lists(a));
    call_add(&call, "places", a->places, ACCESS_READ, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_READ, NULL);
    call_add(&call, "slots", a->slots, ACCESS_WRITE, NULL);
    call_add(&call, "slot_counts", a->slot_counts, ACCESS_WRITE, NULL);
    GUARDED(&call, slot_lists, a);
}

void guard_layers(struct ops *ops) {
    ops->gemm = guarded_gemm;
    ops->bias_backward = guarded_bias_backward;
    ops->embedding = guarded_embedding;
    ops->embedding_backward = guarded_embedding_backward;
    ops->norm = guarded_norm;
    ops->norm_backward = guarded_norm_backward;
    ops->gelu_backward = guarded_gelu_backward;
    ops->swiglu = guarded_swiglu;
    ops->swiglu_backward = guarded_swiglu_backward;
    ops->rope = guarded_rope;
    ops->attention = guarded_attention;
    ops->attention_backward = guarded_attention_backward;
    ops->attention_decode = guarded_attention_decode;
    ops->slot_lists = guarded_slot_lists;
}
