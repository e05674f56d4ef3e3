/* The kind `nsa` between its files: options, rows of the tensor table, cost. Passes are in nsa_pass.c, decoding in
 * nsa_decode.c. */
#ifndef SQUINT_ATTENTION_NSA_H
#define SQUINT_ATTENTION_NSA_H

#include "attention/attention.h"

enum nsa_branch { NSA_COMPRESSED = 0, NSA_SELECTED, NSA_WINDOW, NSA_BRANCHES };

/* Blocks that are chosen at least: a document's first and a query's last two always are. */
enum { NSA_SELECT_LEAST = 3 };

struct nsa_settings {
    int64_t compress, stride, block; /* tokens: l, d, l' */
    int64_t select, window;          /* n blocks, w tokens; 0: without */
    int64_t select_group;            /* query heads that select together */
    int apart;                       /* union: false */
    int separate;                    /* branch_kv: separate */
    int anneal;                      /* enum nsa_anneal */
    bool uncompressed;               /* the compressed branch is off, for the ladder */
    double select_weight;
    double gates[]; /* [H·columns] where the gates' biases start */
};
enum nsa_anneal { NSA_ANNEAL_NEVER = 0, NSA_ANNEAL_ATTENTION, NSA_ANNEAL_KL, NSA_ANNEAL_ALWAYS };

/* Rows of one compressor: of keys, or of values. */
struct nsa_compressor {
    const struct param *w1, *b1, *w2, *places;
};

struct nsa_bound {
    struct nsa_compressor keys, values;
    const struct param *gate, *gate_bias;
    const struct param *kv[NSA_BRANCHES], *kv_bias[NSA_BRANCHES]; /* of branches with keys and values of their own, else NULL */
    uint32_t off; /* branches that are switched off, a bit each */
    /* Of the last training pass that looked: means over the last queries of its sequences. */
    double gate_means[NSA_BRANCHES], outside;
    bool looked;
};

/* Columns of a head's gate logits: 1 with one softmax, else one a branch. */
static inline int64_t nsa_gate_columns(const struct nsa_settings *s) {
    return s->apart ? NSA_BRANCHES : 1;
}
static inline int64_t nsa_lists(const struct attention_layer *layer) {
    return layer->model->heads / ((const struct nsa_settings *)layer->settings)->select_group;
}
static inline bool nsa_on(const struct attention_layer *layer, enum nsa_branch branch) {
    return !(((const struct nsa_bound *)layer->bound)->off >> branch & 1);
}
/* Whether a branch has keys and values of its own: `selected` keeps the layer's. */
static inline bool nsa_own_kv(const struct nsa_settings *s, enum nsa_branch branch) {
    return s->separate && (branch == NSA_COMPRESSED || (branch == NSA_WINDOW && s->apart && s->window > 0));
}
/* Whether blocks are chosen, and compressed blocks are needed at all. */
static inline bool nsa_selects(const struct attention_layer *layer) {
    return ((const struct nsa_settings *)layer->settings)->select > 0 && nsa_on(layer, NSA_SELECTED);
}
static inline bool nsa_windows(const struct attention_layer *layer) {
    return ((const struct nsa_settings *)layer->settings)->window > 0 && nsa_on(layer, NSA_WINDOW);
}

enum status nsa_plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length,
                     bool train, void **saved);
enum status nsa_turn(const struct attention_layer *layer, const struct attention_context *context, bool *steady);
enum status nsa_forward(const struct attention_layer *layer, const struct attention_pass *pass);
enum status nsa_backward(const struct attention_layer *layer, const struct attention_pass *pass);

/* out [.., D] and pre of compressed blocks of x [B,T,G,D]. */
struct block_compress nsa_compress(const struct attention_layer *layer, const struct nsa_compressor *rows,
                                   struct tensor x, struct tensor start, struct tensor out, struct tensor pre);
/* A branch's own keys and values of x [N,C], rotary positions applied: kv [N,2·G·D]. */
enum status nsa_project(const struct attention_layer *layer, const struct ops *ops, enum nsa_branch branch, struct tensor x,
                        struct tensor positions, struct tensor frequencies, struct tensor kv);
/* Its keys (part 0) or values (part 1): [B,T,G,D]. */
struct tensor nsa_kv_part(const struct attention_layer *layer, struct tensor kv, int64_t batch, int64_t length, int part);
/* logits [N,H·columns] of the gates from the layer's normed input [N,C]. */
enum status nsa_gate_logits(const struct attention_layer *layer, const struct ops *ops, struct tensor x,
                            struct tensor logits);

enum status nsa_cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                           struct attention_cache **cache);
void nsa_cache_close(const struct ops *ops, struct attention_cache *cache);
enum status nsa_decode(const struct attention_layer *layer, struct attention_cache *cache,
                       const struct attention_decode_pass *pass);

#endif
