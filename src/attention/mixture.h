/* What `full` and `masks` share: softmax attention over a list of candidate sets, its cache for decoding, its cost. */
#ifndef SQUINT_ATTENTION_MIXTURE_H
#define SQUINT_ATTENTION_MIXTURE_H

#include "attention/attention.h"

struct mixture {
    struct candidate candidates[CANDIDATES_MAX];
    int count;
    uint32_t off;                 /* candidates that are left out, a bit each: dead in every head, or switched off */
    struct tensor coefficients;   /* [H,count] or none; stride 0 in dimension 0: one row for all heads */
    struct tensor dcoefficients;  /* the same shape, or none: they do not train */
};

/* log Z of every query, kept for the backward pass: *saved. */
enum status mixture_plan(const struct attention_layer *layer, int count, struct arena *arena, int64_t batch, int64_t length,
                         void **saved);
enum status mixture_forward(const struct attention_layer *layer, const struct mixture *mixture, const struct attention_pass *pass);
enum status mixture_backward(const struct attention_layer *layer, const struct mixture *mixture,
                             const struct attention_pass *pass);

enum status mixture_cache_open(const struct attention_layer *layer, const struct mixture *mixture, const struct ops *ops,
                               int64_t batch, int64_t length, struct attention_cache **cache);
void mixture_cache_close(const struct ops *ops, struct attention_cache *cache);
enum status mixture_decode(const struct attention_layer *layer, const struct mixture *mixture, struct attention_cache *cache,
                           const struct attention_decode_pass *pass);

/* Tokens that must stay cached to decode at most `length` tokens: *ring recent ones and the first *pinned of a document. */
void mixture_reach(const struct mixture *mixture, int64_t length, int64_t *ring, int64_t *pinned);
/* Pairs that the union of the candidates in `live` (a bit each) reads, causal, in one document of `length` tokens. Exact, but
 * for long sequences of scattered candidates, where evenly spaced queries are counted. */
double mixture_pairs(const struct mixture *mixture, uint32_t live, int64_t length);
/* Density, FLOPs and cache at `length`. alive: host [H], a bit a candidate. */
void mixture_cost(const struct model_config *model, const struct mixture *mixture, const uint32_t *alive, int64_t length,
                  struct attention_cost *cost);

#endif
