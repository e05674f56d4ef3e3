/* What the operations on single tokens share: which tokens a query reads, and products with rows that lie apart in
 * memory. Private to kernels/cpu/{token,index}*.c. */
#ifndef SQUINT_KERNELS_CPU_TOKENS_H
#define SQUINT_KERNELS_CPU_TOKENS_H

#include "kernels/cpu/blocks.h"

/* What decides which tokens a query reads. */
struct token_reach {
    struct tensor start, chosen; /* chosen may be none */
    int32_t window, sinks;
    int64_t lists, most; /* S and n of chosen; most: 0 without */
};

static inline struct token_reach token_reach_of(struct tensor start, struct tensor chosen, int32_t window,
                                                int32_t sinks) {
    const bool choice = tensor_present(chosen);
    return (struct token_reach){.start = start,
                                .chosen = chosen,
                                .window = window,
                                .sinks = sinks,
                                .lists = choice ? chosen.shape[2] : 1,
                                .most = choice ? chosen.shape[3] : 0};
}

/* Tokens that one query reads at most. */
static inline int64_t token_reach_most(const struct token_reach *reach, int64_t length) {
    return at_most((int64_t)reach->window + reach->sinks + reach->most, length);
}

/* The tokens of one query: sinks [start, sinks_end), chosen, window [window_first, i]. */
struct token_set {
    int32_t start, sinks_end, window_first, query;
    const int32_t *chosen;
    int64_t most; /* of the list, which −1 may end before */
};

static inline struct token_set token_set_of(const struct token_reach *reach, int64_t b, int64_t i, int64_t list) {
    const int64_t start = ((const int32_t *)reach->start.data)[b * reach->start.stride[0] + i];
    const int64_t window_first = at_least(i + 1 - reach->window, start);
    struct token_set set = {.start = (int32_t)start,
                            .sinks_end = (int32_t)at_most(start + reach->sinks, window_first),
                            .window_first = (int32_t)window_first,
                            .query = (int32_t)i,
                            .most = reach->most};
    if (reach->most > 0) {
        const int64_t row = (b * reach->start.shape[1] + i) * reach->lists + list;
        set.chosen = (const int32_t *)reach->chosen.data + row * reach->most;
    }
    return set;
}

/* Those of the set's tokens that lie in [first, end), ascending, into `tokens`; returns how many. *cursor: place in
 * the list, moved on past `end`; 0 at a query's first range, ranges ascending. */
static inline int64_t token_set_range(const struct token_set *set, int64_t first, int64_t end, int32_t *cursor,
                                      int32_t *tokens) {
    int64_t count = 0, place = *cursor;
    for (int64_t t = at_least(first, set->start); t < at_most(set->sinks_end, end); t++) tokens[count++] = (int32_t)t;
    for (; place < set->most && set->chosen[place] >= 0 && set->chosen[place] < end; place++)
        tokens[count++] = set->chosen[place];
    for (int64_t t = at_least(first, set->window_first); t < at_most((int64_t)set->query + 1, end); t++)
        tokens[count++] = (int32_t)t;
    *cursor = (int32_t)place;
    return count;
}

/* All tokens of the set. */
static inline int64_t token_set_all(const struct token_set *set, int32_t *tokens) {
    int32_t cursor = 0;
    return token_set_range(set, 0, (int64_t)set->query + 1, &cursor, tokens);
}

/* STATUS_SHAPE names a list of `chosen` that holds anything else than ascending tokens between sinks and window, then
 * −1. start is checked before. */
enum status NAME(token_lists_check)(const struct ops *ops, const char *operation, const struct token_reach *reach);

/* What token_attention and its backward pass walk over: queries come to ranges of `range` keys one after another. */
struct token_walk {
    struct token_reach reach;
    int64_t batch, length, heads, groups, width, padded, range;
};
/* Document starts and lists checked; `rows`: rows of a token that a range holds, which decides how long it is. */
enum status NAME(token_walk_open)(const struct ops *ops, const char *operation, const struct token_attention *a,
                                  int64_t rows, struct token_walk *walk);

/* Rows of `rows` [·][padded] that lie apart: tokens[0 … count−1]. padded: a multiple of LANES.
 * token_dots: e_u = x·row_u. token_gather: y += Σ weights_u row_u. token_scatter: row_u += weights_u x, tokens differ.
 */
void NAME(token_dots)(int64_t padded, const real *x, const real *rows, const int32_t *tokens, int64_t count, real *e);
void NAME(token_gather)(int64_t padded, const real *weights, const real *rows, const int32_t *tokens, int64_t count,
                        real *y);
void NAME(token_scatter)(int64_t padded, const real *weights, const real *x, const int32_t *tokens, int64_t count,
                         real *rows);

#endif
