/* What `performer` and `kerformer` share: attention through feature maps with an exact window, its state for decoding, its cost. */
#ifndef SQUINT_ATTENTION_FEATURE_MAPS_H
#define SQUINT_ATTENTION_FEATURE_MAPS_H

#include "attention/attention.h"

struct feature_maps {
    struct features features;  /* values */
    struct features gradients; /* of the same, each none: it does not train */
    int64_t window;            /* 0: none */
    int64_t hidden;            /* rows of squeeze; 0: none */
    bool near_only;            /* an audit: the features are switched off */
    double window_dropout;     /* share of the `attention` stage's sequences that run without their window */
};

/* N of random features when a recipe names none: ⌈D ln D⌉ (Choromanski et al. 2020, theorem 4), rounded up to a multiple of 16. */
int64_t feature_maps_usual(int64_t width);
/* M, of a map with `columns` rows. */
int64_t feature_maps_count(const struct feature_maps *maps, int64_t columns);

enum status feature_maps_plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, void **saved);
/* Do this context's passes drop windows? Then every pass brings its own draws to the device. */
bool feature_maps_drop(const struct feature_maps *maps, const struct attention_context *context);
enum status feature_maps_forward(const struct attention_layer *layer, const struct feature_maps *maps, const struct attention_pass *pass);
enum status feature_maps_backward(const struct attention_layer *layer, const struct feature_maps *maps, const struct attention_pass *pass);
/* What context.weights asks for, after feature_maps_backward: the teacher's weights' divergence from the implied ones joins pass.loss,
 * its gradients join dq, dk and the parameters'. */
enum status feature_maps_weights(const struct attention_layer *layer, const struct feature_maps *maps, const struct attention_pass *pass);

enum status feature_maps_cache_open(const struct attention_layer *layer, const struct feature_maps *maps, const struct ops *ops,
                              int64_t batch, int64_t length, struct attention_cache **cache);
void feature_maps_cache_close(const struct ops *ops, struct attention_cache *cache);
enum status feature_maps_decode(const struct attention_layer *layer, const struct feature_maps *maps, struct attention_cache *cache,
                          const struct attention_decode_pass *pass);

/* Density is not defined. FLOPs of maps, states and window; the decoding state. */
void feature_maps_cost(const struct attention_layer *layer, const struct feature_maps *maps, int64_t length, struct attention_cost *cost);

#endif
