/* The kind `indexer` between its files: options, rows of the tensor table, cost (indexer.c); passes (indexer_pass.c); the start
 * from the teacher's own projections (indexer_start.c); decoding (indexer_decode.c). */
#ifndef SQUINT_ATTENTION_INDEXER_H
#define SQUINT_ATTENTION_INDEXER_H

#include "attention/attention.h"

enum indexer_per { INDEXER_PER_LAYER = 0, INDEXER_PER_GROUP, INDEXER_PER_HEAD };

struct indexer_settings {
    int per;                       /* enum indexer_per: who shares a choice */
    int64_t window, sinks, tokens; /* w, n, k; k: the most of any list */
    int64_t heads, width;          /* J index heads of a list, E */
    int each;                      /* a key for every index head, not one for all of a list */
    int64_t coarse, coarse_blocks; /* tokens of a block, 0: one level; blocks that are looked into */
    int random;                    /* init: random */
    double select_weight;
    int64_t lists;    /* S */
    int32_t counts[]; /* [S] k of each list */
};

/* Parts that an audit takes away. */
enum indexer_part { INDEXER_CHOICE = 0, INDEXER_BEST, INDEXER_RANDOM, INDEXER_SINKS, INDEXER_PARTS };

struct indexer_bound {
    const struct param *query, *query_bias, *key, *key_bias, *head, *head_bias;
    const struct param *frequencies; /* NULL: positions are learned */
    uint32_t off;                    /* parts that are taken away, a bit each */
    /* of the last training pass that looked */
    double hit;      /* share of the attention that falls on tokens that are read; negative: not looked at */
    double distance; /* mean, of chosen tokens, of the last queries; negative: none */
    bool looked;
};

/* Index keys of one token: K of each list. */
static inline int64_t indexer_keys(const struct indexer_settings *s) {
    return s->each ? s->heads : 1;
}
static inline bool indexer_on(const struct attention_layer *layer, enum indexer_part part) {
    return !(((const struct indexer_bound *)layer->bound)->off >> part & 1);
}
static inline int64_t indexer_sinks(const struct attention_layer *layer) {
    return indexer_on(layer, INDEXER_SINKS) ? ((const struct indexer_settings *)layer->settings)->sinks : 0;
}

/* r [N,S·J·E], u [N,S·K·E], a [N,S·J] of x [N,C], rotary positions [B,T] applied, N = B·T. */
struct indexer_vectors {
    struct tensor r, u, a;
};
enum status indexer_project(const struct attention_layer *layer, const struct ops *ops, struct tensor x,
                            struct tensor positions, const struct indexer_vectors *out);
/* Index heads of a matrix [B·T, heads·E]: [B,T,heads,E]. */
struct tensor indexer_split(const struct attention_layer *layer, struct tensor matrix, int64_t batch, int64_t length);

enum status indexer_plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length,
                         bool train, void **saved);
enum status indexer_forward(const struct attention_layer *layer, const struct attention_pass *pass);
enum status indexer_backward(const struct attention_layer *layer, const struct attention_pass *pass);

/* init: svd. */
enum status indexer_calibrate(const struct attention_layer *layer, const struct attention_pass *pass);

enum status indexer_cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                               struct attention_cache **cache);
void indexer_cache_close(const struct ops *ops, struct attention_cache *cache);
enum status indexer_decode(const struct attention_layer *layer, struct attention_cache *cache,
                           const struct attention_decode_pass *pass);

#endif
