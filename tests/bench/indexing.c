/* What kind indexer's parts cost: the choice (pooling of index keys, scores, the highest), attention to what was
 * chosen, its backward pass, learning where to look; in turns, medians of processor time, and the choice's share of
 * all. build/release/tests/indexing [--lengths 16384,65536] [--repeats 5] [--threads 1] [--isa avx2] [--heads 12]
 * [--groups 12]
 *       [--width 64] [--lists 1] [--index-heads 4] [--index-width 32] [--tokens 256] [--window 128] [--coarse 64]
 *       [--coarse-blocks 32]                                             without --coarse: one level */
#include "bench/parts.h"

#include <math.h>

struct options {
    struct lengths lengths;
    long repeats, threads, heads, groups, width, lists, index_heads, index_width, tokens, window, coarse, coarse_blocks;
    const char *isa;
};

struct bench {
    struct tensors *tensors;
    const struct ops *ops; /* theirs */
    const struct options *o;
    struct index_pool pool;
    struct index_select select;
    struct token_attention_backward attention;
    struct index_learn learn;
};

enum { CHOICE, ATTENTION, BACKWARD, LEARNING, PARTS };

static enum status open_scores(struct bench *x, int64_t length) {
    const struct options *o = x->o;
    const enum dtype real = x->ops->real;
    struct index_select *s = &x->select;
    struct index_learn *l = &x->learn;
    *s = (struct index_select){.scores.lists = (int32_t)o->lists,
                               .window = (int32_t)o->window,
                               .coarse = (int32_t)o->coarse,
                               .coarse_blocks = (int32_t)o->coarse_blocks};
    TRY(take_start(x->tensors, length, &s->start));
    TRY(take(x->tensors, tensor_4d(NULL, real, 1, length, o->lists * o->index_heads, o->index_width), 1, &s->scores.r));
    TRY(take(x->tensors, tensor_4d(NULL, real, 1, length, o->lists, o->index_width), 1, &s->scores.u));
    TRY(take(x->tensors, tensor_3d(NULL, real, 1, length, o->lists * o->index_heads), 1, &s->scores.a));
    TRY(take(x->tensors, tensor_4d(NULL, DTYPE_I32, 1, length, o->lists, o->tokens), 0, &s->chosen));
    if (o->coarse > 0)
        TRY(take(x->tensors,
                 tensor_4d(NULL, real, 1, compressed_bound(length, o->coarse, o->coarse), 2 * o->lists, o->index_width),
                 0, &s->pooled));
    x->pool =
        (struct index_pool){.u = s->scores.u, .start = s->start, .pooled = s->pooled, .block = (int32_t)o->coarse};
    *l = (struct index_learn){.scores = s->scores,
                              .start = s->start,
                              .chosen = s->chosen,
                              .attended = true,
                              .window = s->window,
                              .scale = 1 / sqrt((double)o->width),
                              .gradient_scale = 1};
    TRY(take(x->tensors, s->scores.r, 0, &l->d_r));
    TRY(take(x->tensors, s->scores.u, 0, &l->d_u));
    TRY(take(x->tensors, s->scores.a, 0, &l->d_a));
    return take(x->tensors, tensor_3d(NULL, x->ops->statistic, 1, o->lists, length), 0, &l->losses);
}

static enum status open_attention(struct bench *x, int64_t length) {
    const struct options *o = x->o;
    const enum dtype real = x->ops->real;
    struct token_attention_backward *g = &x->attention;
    struct token_attention *a = &g->forward;
    *a = (struct token_attention){.start = x->select.start,
                                  .chosen = x->select.chosen,
                                  .window = x->select.window,
                                  .scale = 1 / sqrt((double)o->width)};
    TRY(take(x->tensors, tensor_4d(NULL, real, 1, length, o->heads, o->width), 1, &a->q));
    TRY(take(x->tensors, tensor_4d(NULL, real, 1, length, o->groups, o->width), 1, &a->k));
    TRY(take(x->tensors, a->k, 1, &a->v));
    TRY(take(x->tensors, a->q, 0, &a->o));
    TRY(take(x->tensors, a->q, 1, &g->d_o));
    TRY(take(x->tensors, a->q, 0, &g->dq));
    TRY(take(x->tensors, a->k, 0, &g->dk));
    TRY(take(x->tensors, a->k, 0, &g->dv));
    TRY(take(x->tensors, tensor_3d(NULL, x->ops->statistic, 1, o->heads, length), 0, &a->log_sums));
    x->learn.q = a->q;
    x->learn.k = a->k;
    return STATUS_OK;
}

static enum status run(struct bench *x, int part) {
    const struct ops *ops = x->ops;
    switch (part) {
    case CHOICE:
        if (x->o->coarse > 0) TRY(ops->index_pool(ops, &x->pool));
        return ops->index_select(ops, &x->select);
    case ATTENTION:
        return ops->token_attention(ops, &x->attention.forward);
    case BACKWARD:
        return ops->token_attention_backward(ops, &x->attention);
    default:
        return ops->index_learn(ops, &x->learn);
    }
}

static enum status measure(struct bench *x, int64_t length) {
    const long repeats = x->o->repeats;
    double *times, medians[PARTS], sum = 0;
    enum status status = STATUS_OK;
    TRY(memory_new((size_t)(repeats * PARTS), sizeof *times, "times", &times));
    for (long r = -1; r < repeats; r++)
        for (int part = 0; part < PARTS; part++) {
            const double begin = processor_seconds();
            TRY_GOTO(done, run(x, part));
            if (r >= 0) times[part * repeats + r] = processor_seconds() - begin;
        }
    for (int part = 0; part < PARTS; part++) sum += medians[part] = median(times + part * repeats, repeats);
    printf(
        "T=%lld: choice %.1f ms, attention %.1f ms, its backward pass %.1f ms, learning %.1f ms; choice of all %.3f\n",
        (long long)length, 1e3 * medians[CHOICE], 1e3 * medians[ATTENTION], 1e3 * medians[BACKWARD],
        1e3 * medians[LEARNING], medians[CHOICE] / sum);
    fflush(stdout);
done:
    free(times);
    return status;
}

static enum status bench_length(struct tensors *tensors, int64_t length, const void *options) {
    struct bench x = {.tensors = tensors, .ops = tensors->ops, .o = options};
    TRY(open_scores(&x, length));
    TRY(open_attention(&x, length));
    return measure(&x, length);
}

static bool read(int count, char **words, struct options *o) {
    static const struct option names[] = {
        {"lengths", 1, NULL, 'l'},   {"isa", 1, NULL, 'i'},          {"repeats", 1, NULL, 0}, {"threads", 1, NULL, 1},
        {"heads", 1, NULL, 2},       {"groups", 1, NULL, 3},         {"width", 1, NULL, 4},   {"lists", 1, NULL, 5},
        {"index-heads", 1, NULL, 6}, {"index-width", 1, NULL, 7},    {"tokens", 1, NULL, 8},  {"window", 1, NULL, 9},
        {"coarse", 1, NULL, 10},     {"coarse-blocks", 1, NULL, 11}, {NULL, 0, NULL, 0},
    };
    long *const numbers[] = {&o->repeats,     &o->threads,     &o->heads,  &o->groups, &o->width,  &o->lists,
                             &o->index_heads, &o->index_width, &o->tokens, &o->window, &o->coarse, &o->coarse_blocks};
    return read_options(count, words, names, numbers, &o->lengths, &o->isa);
}

int main(int count, char **words) {
    struct options o = {.lengths = {{16384, 65536}, 2},
                        .repeats = 5,
                        .threads = 1,
                        .heads = 12,
                        .groups = 12,
                        .width = 64,
                        .lists = 1,
                        .index_heads = 4,
                        .index_width = 32,
                        .tokens = 256,
                        .window = 128,
                        .coarse_blocks = 32};
    if (!read(count, words, &o)) {
        fprintf(stderr, "indexing: options as in the head of tests/bench/indexing.c, each a number above 0\n");
        return 2;
    }
    return run_lengths("indexing", &o.lengths, (int)o.threads, o.isa, bench_length, &o);
}
