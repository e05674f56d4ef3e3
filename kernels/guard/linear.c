/* Guarded linear attention: what it reads, writes and updates, as ops.h says. */
#include "kernels/check.h"
#include "kernels/guard/internal.h"

static void add_features(struct call *call, const struct features *f) {
    call_add(call, "q_map", f->q_map, ACCESS_READ, NULL);
    call_add(call, "k_map", f->k_map, ACCESS_READ, NULL);
    call_add(call, "q_bias", f->q_bias, ACCESS_READ, NULL);
    call_add(call, "k_bias", f->k_bias, ACCESS_READ, NULL);
    call_add(call, "squeeze", f->squeeze, ACCESS_READ, NULL);
    call_add(call, "excite", f->excite, ACCESS_READ, NULL);
    call_add(call, "beta", f->beta, ACCESS_READ, NULL);
}

static void add_gradients(struct call *call, const struct features *d) {
    call_add(call, "d_q_map", d->q_map, ACCESS_UPDATE, NULL);
    call_add(call, "d_k_map", d->k_map, ACCESS_UPDATE, NULL);
    call_add(call, "d_q_bias", d->q_bias, ACCESS_UPDATE, NULL);
    call_add(call, "d_k_bias", d->k_bias, ACCESS_UPDATE, NULL);
    call_add(call, "d_squeeze", d->squeeze, ACCESS_UPDATE, NULL);
    call_add(call, "d_excite", d->excite, ACCESS_UPDATE, NULL);
    call_add(call, "d_beta", d->beta, ACCESS_UPDATE, NULL);
}

/* All but v. */
static void add_pairs(struct call *call, const struct linear_attention *a) {
    call_add(call, "q", a->q, ACCESS_READ, NULL);
    call_add(call, "k", a->k, ACCESS_READ, NULL);
    call_add(call, "start", a->start, ACCESS_READ, NULL);
    call_add(call, "no_window", a->no_window, ACCESS_READ, NULL);
    add_features(call, &a->features);
}

static void add_inputs(struct call *call, const struct linear_attention *a) {
    add_pairs(call, a);
    call_add(call, "v", a->v, ACCESS_READ, NULL);
}

static enum status guarded_linear_attention(const struct ops *ops, const struct linear_attention *a) {
    struct call call = {.operation = "linear_attention"};
    TRY(check_linear_attention(ops, a));
    add_inputs(&call, a);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    call_add(&call, "log_sums", a->log_sums, ACCESS_WRITE, NULL);
    GUARDED(&call, linear_attention, a);
}

static enum status guarded_linear_attention_backward(const struct ops *ops, const struct linear_attention_backward *a) {
    struct call call = {.operation = "linear_attention_backward"};
    TRY(check_linear_attention_backward(ops, a));
    add_inputs(&call, &a->forward);
    call_add(&call, "o", a->forward.o, ACCESS_READ, NULL);
    call_add(&call, "log_sums", a->forward.log_sums, ACCESS_READ, NULL);
    call_add(&call, "d_o", a->d_o, ACCESS_READ, NULL);
    call_add(&call, "dq", a->dq, ACCESS_WRITE, NULL);
    call_add(&call, "dk", a->dk, ACCESS_WRITE, NULL);
    call_add(&call, "dv", a->dv, ACCESS_WRITE, NULL);
    add_gradients(&call, &a->gradients);
    GUARDED(&call, linear_attention_backward, a);
}

static enum status guarded_linear_attention_weights(const struct ops *ops, const struct linear_attention_weights *a) {
    struct call call = {.operation = "linear_attention_weights"};
    TRY(check_linear_attention_weights(ops, a));
    add_pairs(&call, &a->forward);
    call_add(&call, "teacher_q", a->teacher_q, ACCESS_READ, NULL);
    call_add(&call, "teacher_k", a->teacher_k, ACCESS_READ, NULL);
    call_add(&call, "loss", a->loss, ACCESS_UPDATE, NULL);
    call_add(&call, "dq", a->dq, ACCESS_UPDATE, NULL);
    call_add(&call, "dk", a->dk, ACCESS_UPDATE, NULL);
    add_gradients(&call, &a->gradients);
    GUARDED(&call, linear_attention_weights, a);
}

static enum status guarded_linear_attention_decode(const struct ops *ops, const struct linear_attention_decode *a) {
    struct call call = {.operation = "linear_attention_decode"};
    TRY(check_linear_attention_decode(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    add_features(&call, &a->features);
    call_add(&call, "sums", a->sums, ACCESS_UPDATE, NULL);
    call_add(&call, "peaks", a->peaks, ACCESS_UPDATE, NULL);
    call_add(&call, "means", a->means, ACCESS_UPDATE, NULL);
    call_add(&call, "near_k", a->near_k, ACCESS_UPDATE, NULL);
    call_add(&call, "near_v", a->near_v, ACCESS_UPDATE, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    GUARDED(&call, linear_attention_decode, a);
}

void guard_linear(struct ops *ops) {
    ops->linear_attention = guarded_linear_attention;
    ops->linear_attention_backward = guarded_linear_attention_backward;
    ops->linear_attention_weights = guarded_linear_attention_weights;
    ops->linear_attention_decode = guarded_linear_attention_decode;
}
