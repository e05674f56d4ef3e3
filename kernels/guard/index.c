/* The guarded operations on tokens that an indexer chooses: what each reads, writes and updates, as ops.h says. */
#include "kernels/check.h"
#include "kernels/guard/internal.h"

static void add_scores(struct call *call, const struct index_scores *scores) {
    call_add(call, "r", scores->r, ACCESS_READ, NULL);
    call_add(call, "u", scores->u, ACCESS_READ, NULL);
    call_add(call, "a", scores->a, ACCESS_READ, NULL);
}

static enum status guarded_index_pool(const struct ops *ops, const struct index_pool *a) {
    struct call call = {.operation = "index_pool"};
    TRY(check_index_pool(ops, a));
    call_add(&call, "u", a->u, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "pooled", a->pooled, ACCESS_WRITE, NULL);
    GUARDED(&call, index_pool, a);
}

static enum status guarded_index_select(const struct ops *ops, const struct index_select *a) {
    struct call call = {.operation = "index_select"};
    TRY(check_index_select(ops, a));
    add_scores(&call, &a->scores);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "pooled", a->pooled, ACCESS_READ, NULL);
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_WRITE, NULL);
    GUARDED(&call, index_select, a);
}

static enum status guarded_index_decode(const struct ops *ops, const struct index_decode *a) {
    struct call call = {.operation = "index_decode"};
    TRY(check_index_decode(ops, a));
    call_add(&call, "r", a->r, ACCESS_READ, NULL);
    call_add(&call, "u", a->u, ACCESS_READ, NULL);
    call_add(&call, "a", a->a, ACCESS_READ, NULL);
    call_add(&call, "pooled", a->pooled, ACCESS_READ, NULL);
    call_add(&call, "places", a->places, ACCESS_READ, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_WRITE, NULL);
    GUARDED(&call, index_decode, a);
}

static enum status guarded_token_attention(const struct ops *ops, const struct token_attention *a) {
    struct call call = {.operation = "token_attention"};
    TRY(check_token_attention(ops, a));
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "v", a->v, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_READ, NULL);
    call_add(&call, "o", a->o, ACCESS_WRITE, NULL);
    call_add(&call, "log_sums", a->log_sums, ACCESS_WRITE, NULL);
    GUARDED(&call, token_attention, a);
}

static enum status guarded_token_attention_backward(const struct ops *ops, const struct token_attention_backward *a) {
    struct call call = {.operation = "token_attention_backward"};
    const struct token_attention *f = &a->forward;
    TRY(check_token_attention_backward(ops, a));
    call_add(&call, "q", f->q, ACCESS_READ, NULL);
    call_add(&call, "k", f->k, ACCESS_READ, NULL);
    call_add(&call, "v", f->v, ACCESS_READ, NULL);
    call_add(&call, "start", f->start, ACCESS_READ, NULL);
    call_add(&call, "chosen", f->chosen, ACCESS_READ, NULL);
    call_add(&call, "o", f->o, ACCESS_READ, NULL);
    call_add(&call, "log_sums", f->log_sums, ACCESS_READ, NULL);
    call_add(&call, "d_o", a->d_o, ACCESS_READ, NULL);
    call_add(&call, "dq", a->dq, ACCESS_WRITE, NULL);
    call_add(&call, "dk", a->dk, ACCESS_WRITE, NULL);
    call_add(&call, "dv", a->dv, ACCESS_WRITE, NULL);
    GUARDED(&call, token_attention_backward, a);
}

static enum status guarded_index_learn(const struct ops *ops, const struct index_learn *a) {
    struct call call = {.operation = "index_learn"};
    TRY(check_index_learn(ops, a));
    add_scores(&call, &a->scores);
    call_add(&call, "q", a->q, ACCESS_READ, NULL);
    call_add(&call, "k", a->k, ACCESS_READ, NULL);
    call_add(&call, "start", a->start, ACCESS_READ, NULL);
    call_add(&call, "chosen", a->chosen, ACCESS_READ, NULL);
    call_add(&call, "losses", a->losses, ACCESS_WRITE, NULL);
    call_add(&call, "loss", a->loss, ACCESS_UPDATE, NULL);
    call_add(&call, "hits", a->hits, ACCESS_UPDATE, NULL);
    call_add(&call, "d_r", a->d_r, ACCESS_WRITE, NULL);
    call_add(&call, "d_u", a->d_u, ACCESS_WRITE, NULL);
    call_add(&call, "d_a", a->d_a, ACCESS_WRITE, NULL);
    GUARDED(&call, index_learn, a);
}

void guard_index(struct ops *ops) {
    ops->index_pool = guarded_index_pool;
    ops->index_select = guarded_index_select;
    ops->index_decode = guarded_index_decode;
    ops->token_attention = guarded_token_attention;
    ops->token_attention_backward = guarded_token_attention_backward;
    ops->index_learn = guarded_index_learn;
}
