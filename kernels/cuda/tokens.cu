/* Attention to single tokens: a problem's description for its kernels. */
#include "kernels/cuda/documents.cuh"
#include "kernels/cuda/tokens.cuh"

enum status tokens_describe(const char *operation, const struct token_attention *a, token_problem *p) {
    const int64_t length = a->q.shape[1], width = a->q.shape[3];
    if (width > 256)
        return error_set(STATUS_SHAPE, "%s: q: expected a head width up to 256, found %lld", operation,
                         static_cast<long long>(width));
    if (length > INT_MAX / 2)
        return error_set(STATUS_SHAPE, "%s: q: expected up to %d tokens, found %lld", operation, INT_MAX / 2,
                         static_cast<long long>(length));
    *p = token_problem{};
    p->sets.length = static_cast<int>(length);
    p->sets.window = static_cast<int>(min(int64_t{a->window}, length));
    p->sets.sinks = static_cast<int>(min(int64_t{a->sinks}, length));
    p->sets.lists = 1;
    if (tensor_present(a->chosen) && a->chosen.shape[3] > 0) {
        p->sets.chosen = data_of<const int32_t>(a->chosen);
        p->sets.lists = static_cast<int>(a->chosen.shape[2]);
        p->sets.select = a->chosen.shape[3];
    }
    if (length * p->sets.select > INT_MAX)
        return error_set(STATUS_SHAPE,
                         "%s: chosen: expected less than 2^31 numbers a sequence and list, found %lld queries with "
                         "%lld each",
                         operation, static_cast<long long>(length), static_cast<long long>(p->sets.select));
    p->q = attention_view_of(a->q);
    p->k = attention_view_of(a->k);
    if (tensor_present(a->v)) p->v = attention_view_of(a->v);
    if (tensor_present(a->o)) p->o = attention_view_of(a->o);
    p->log_sums = data_of<float>(a->log_sums);
    p->heads = static_cast<int>(a->q.shape[2]);
    p->share = static_cast<int>(a->q.shape[2] / a->k.shape[2]);
    p->list_share = p->heads / p->sets.lists;
    p->width = static_cast<int>(width);
    p->scale = static_cast<float>(a->scale);
    p->scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    return STATUS_OK;
}

size_t tokens_bytes(struct tensor start) {
    return document_blocks_bytes(start.shape[0], start.shape[1], 1, 1, true);
}

enum status tokens_open(const struct ops *ops, const char *operation, struct tensor start, void *memory,
                        token_sets *sets) {
    document_blocks blocks;
    TRY(document_blocks_find(ops, operation, start, 1, 1, true, memory, &blocks));
    sets->begin = blocks.begin;
    sets->end = blocks.end;
    return STATUS_OK;
}
