/* Shape checks of the operations on tokens that an indexer chooses; see check.h. */
#include "kernels/check.h"

static enum status check_least(const char *operation, const char *argument, int64_t least, int64_t found) {
    if (found >= least) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: %s: expected %lld or more, found %lld", operation, argument, (long long)least,
                     (long long)found);
}

static enum status check_lists(const char *operation, int64_t lists, int64_t heads) {
    if (lists >= 1 && heads % lists == 0) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: lists: %lld do not divide %lld heads", operation, (long long)lists,
                     (long long)heads);
}

/* Index heads of queries and of keys agree: as many for every list, or one. */
static enum status check_index_heads(const char *operation, int64_t lists, int64_t queries, int64_t keys) {
    if (lists >= 1 && queries >= lists && queries % lists == 0 && (keys == lists || keys == queries)) return STATUS_OK;
    return error_set(STATUS_SHAPE,
                     "%s: u: %lld lists and %lld index heads: expected one key a list, or one an index head, "
                     "found %lld",
                     operation, (long long)lists, (long long)queries, (long long)keys);
}

static enum status check_scores(const struct ops *ops, const char *operation, const struct index_scores *a) {
    TRY(check_tensor(operation, "r", a->r, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->r.shape[0], length = a->r.shape[1], heads = a->r.shape[2], width = a->r.shape[3];
    TRY(check_tensor(operation, "u", a->u, ops->real, 4, SHAPE(batch, length, ANY, width)));
    TRY(check_index_heads(operation, a->lists, heads, a->u.shape[2]));
    return check_tensor(operation, "a", a->a, ops->real, 3, SHAPE(batch, length, heads));
}

static enum status check_counts(const char *operation, const int32_t *counts, int64_t lists, int64_t most) {
    for (int64_t s = 0; counts && s < lists; s++) {
        if (counts[s] >= 0 && counts[s] <= most) continue;
        return error_set(STATUS_SHAPE, "%s: counts[%lld]: expected 0 … %lld, found %d", operation, (long long)s,
                         (long long)most, counts[s]);
    }
    return STATUS_OK;
}

/* Query and key heads of the attention that scores are compared with. */
static enum status check_heads(const struct ops *ops, const char *operation, struct tensor q, struct tensor k,
                               const struct index_scores *scores) {
    const int64_t batch = scores->r.shape[0], length = scores->r.shape[1];
    TRY(check_tensor(operation, "q", q, ops->real, 4, SHAPE(batch, length, ANY, ANY)));
    TRY(check_tensor(operation, "k", k, ops->real, 4, SHAPE(batch, length, ANY, q.shape[3])));
    TRY(check_lists(operation, scores->lists, q.shape[2]));
    if (k.shape[2] >= 1 && q.shape[2] % k.shape[2] == 0) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: k: %lld query heads are no multiple of %lld key heads", operation,
                     (long long)q.shape[2], (long long)k.shape[2]);
}

enum status check_index_pool(const struct ops *ops, const struct index_pool *a) {
    const char *operation = "index_pool";
    TRY(check_least(operation, "block", 1, a->block));
    TRY(check_tensor(operation, "u", a->u, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->u.shape[0], length = a->u.shape[1];
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    return check_dense(operation, "pooled", a->pooled, ops->real, 4,
                       SHAPE(batch, compressed_bound(length, a->block, a->block), 2 * a->u.shape[2], a->u.shape[3]));
}

static enum status check_coarse(const char *operation, struct tensor pooled, int32_t coarse, int32_t coarse_blocks) {
    if (!tensor_present(pooled) && coarse == 0) return STATUS_OK;
    if (!tensor_present(pooled) || coarse < 1)
        return error_set(STATUS_SHAPE, "%s: coarse: expected 0 without pooled keys, 1 or more with them, found %d",
                         operation, coarse);
    return check_least(operation, "coarse_blocks", 1, coarse_blocks);
}

enum status check_index_select(const struct ops *ops, const struct index_select *a) {
    const char *operation = "index_select";
    const struct index_scores *scores = &a->scores;
    TRY(check_scores(ops, operation, scores));
    const int64_t batch = scores->r.shape[0], length = scores->r.shape[1];
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "chosen", a->chosen, DTYPE_I32, 4, SHAPE(batch, length, scores->lists, ANY)));
    TRY(check_counts(operation, a->counts, scores->lists, a->chosen.shape[3]));
    TRY(check_least(operation, "window", 1, a->window));
    TRY(check_least(operation, "sinks", 0, a->sinks));
    TRY(check_coarse(operation, a->pooled, a->coarse, a->coarse_blocks));
    if (tensor_present(a->pooled))
        TRY(check_dense(
            operation, "pooled", a->pooled, ops->real, 4,
            SHAPE(batch, compressed_bound(length, a->coarse, a->coarse), 2 * scores->u.shape[2], scores->u.shape[3])));
    return a->source == INDEX_ATTENTION ? check_heads(ops, operation, a->q, a->k, scores) : STATUS_OK;
}

enum status check_index_decode(const struct ops *ops, const struct index_decode *a) {
    const char *operation = "index_decode";
    TRY(check_tensor(operation, "r", a->r, ops->real, 3, SHAPE(ANY, ANY, ANY)));
    const int64_t batch = a->r.shape[0], heads = a->r.shape[1], width = a->r.shape[2];
    TRY(check_tensor(operation, "u", a->u, ops->real, 4, SHAPE(batch, ANY, ANY, width)));
    TRY(check_index_heads(operation, a->lists, heads, a->u.shape[2]));
    TRY(check_tensor(operation, "a", a->a, ops->real, 2, SHAPE(batch, heads)));
    TRY(check_dense(operation, "places", a->places, DTYPE_I32, 2, SHAPE(batch, 3)));
    TRY(check_dense(operation, "chosen", a->chosen, DTYPE_I32, 3, SHAPE(batch, a->lists, ANY)));
    TRY(check_counts(operation, a->counts, a->lists, a->chosen.shape[2]));
    TRY(check_least(operation, "window", 1, a->window));
    TRY(check_least(operation, "sinks", 0, a->sinks));
    TRY(check_coarse(operation, a->pooled, a->coarse, a->coarse_blocks));
    if (!tensor_present(a->pooled)) return STATUS_OK;
    return check_dense(operation, "pooled", a->pooled, ops->real, 4, SHAPE(batch, ANY, 2 * a->u.shape[2], width));
}

static enum status check_tokens(const struct ops *ops, const char *operation, const struct token_attention *a) {
    TRY(check_tensor(operation, "q", a->q, ops->real, 4, SHAPE(ANY, ANY, ANY, ANY)));
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    TRY(check_tensor(operation, "k", a->k, ops->real, 4, SHAPE(batch, length, ANY, width)));
    TRY(check_tensor(operation, "v", a->v, ops->real, 4, a->k.shape));
    if (a->k.shape[2] < 1 || heads % a->k.shape[2])
        return error_set(STATUS_SHAPE, "%s: k: %lld query heads are no multiple of %lld key heads", operation,
                         (long long)heads, (long long)a->k.shape[2]);
    TRY(check_tensor(operation, "o", a->o, ops->real, 4, a->q.shape));
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "log_sums", a->log_sums, ops->statistic, 3, SHAPE(batch, heads, length)));
    TRY(check_least(operation, "window", 1, a->window));
    TRY(check_least(operation, "sinks", 0, a->sinks));
    if (!tensor_present(a->chosen)) return STATUS_OK;
    TRY(check_dense(operation, "chosen", a->chosen, DTYPE_I32, 4, SHAPE(batch, length, ANY, ANY)));
    return check_lists(operation, a->chosen.shape[2], heads);
}

enum status check_token_attention(const struct ops *ops, const struct token_attention *a) {
    return check_tokens(ops, "token_attention", a);
}

enum status check_token_attention_backward(const struct ops *ops, const struct token_attention_backward *a) {
    const char *operation = "token_attention_backward";
    const struct token_attention *f = &a->forward;
    TRY(check_tokens(ops, operation, f));
    TRY(check_tensor(operation, "d_o", a->d_o, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dq", a->dq, ops->real, 4, f->q.shape));
    TRY(check_tensor(operation, "dk", a->dk, ops->real, 4, f->k.shape));
    return check_tensor(operation, "dv", a->dv, ops->real, 4, f->k.shape);
}

enum status check_index_learn(const struct ops *ops, const struct index_learn *a) {
    const char *operation = "index_learn";
    const struct index_scores *scores = &a->scores;
    TRY(check_scores(ops, operation, scores));
    TRY(check_heads(ops, operation, a->q, a->k, scores));
    const int64_t batch = scores->r.shape[0], length = scores->r.shape[1];
    TRY(check_dense(operation, "start", a->start, DTYPE_I32, 2, SHAPE(batch, length)));
    TRY(check_dense(operation, "losses", a->losses, ops->statistic, 3, SHAPE(batch, scores->lists, length)));
    if (tensor_present(a->loss)) TRY(check_dense(operation, "loss", a->loss, DTYPE_F64, 1, SHAPE(1)));
    if (tensor_present(a->hits)) TRY(check_dense(operation, "hits", a->hits, DTYPE_F64, 1, SHAPE(1)));
    if (a->attended || tensor_present(a->hits)) {
        TRY(check_least(operation, "window", 1, a->window));
        TRY(check_least(operation, "sinks", 0, a->sinks));
    }
    if (tensor_present(a->chosen))
        TRY(check_dense(operation, "chosen", a->chosen, DTYPE_I32, 4, SHAPE(batch, length, scores->lists, ANY)));
    if (!tensor_present(a->d_r) && !tensor_present(a->d_u) && !tensor_present(a->d_a)) return STATUS_OK;
    TRY(check_tensor(operation, "d_r", a->d_r, ops->real, 4, scores->r.shape));
    TRY(check_tensor(operation, "d_u", a->d_u, ops->real, 4, scores->u.shape));
    return check_tensor(operation, "d_a", a->d_a, ops->real, 3, scores->a.shape);
}
