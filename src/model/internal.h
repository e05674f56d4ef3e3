/* What the files of model/ share: the memory of a pass, and a layer's rows found once. */
#ifndef SQUINT_MODEL_INTERNAL_H
#define SQUINT_MODEL_INTERNAL_H

#include "model/model.h"

/* Weight and bias of a linear layer, with its LoRA rows when it has them. */
struct linear {
    const struct param *weight, *bias; /* bias may be NULL */
    const struct param *lora_a, *lora_b;
};

struct layer_params {
    const struct param *norm1, *norm1_bias, *norm2, *norm2_bias;
    struct linear qkv, out, up, down;
};

/* What a layer's forward pass leaves for its backward pass. */
struct layer_saved {
    struct tensor x;           /* [N,C] the residual stream that enters */
    struct tensor mean1, rstd1; /* [N] */
    struct tensor n1;          /* [N,C] normed */
    struct tensor qkv;         /* [N,(H+2G)D], rotary positions applied */
    struct tensor o;           /* [N,H·D] */
    struct tensor middle;      /* [N,C] the residual stream after attention */
    struct tensor mean2, rstd2;
    struct tensor n2;          /* [N,C] */
    struct tensor pre;         /* [N,F] before GELU, or [N,2F] gate and up */
    struct tensor h;           /* [N,F] after the activation */
    struct tensor qkv_low, out_low; /* [N,r] LoRA's middle */
    void *attention;           /* the kind's own */
};

struct plan {
    const struct model *model;
    struct plan_options options;
    int64_t rows; /* N = B·T */
    struct attention_context context;
    bool probing;     /* passes look for what is not finite (probe.c) */
    char probed[96];  /* what they found first; "": nothing */
    struct layer_params *params;
    struct layer_saved *saved; /* [L]; with recompute all but x are one set */
    void *block;
    size_t bytes;
    struct tensor ids, positions, start; /* [N], [N], [B,T] I32 */
    int32_t *host_positions;
    struct tensor frequencies;           /* [D/2] */
    struct tensor delta;                 /* [N,C] what the last sub-layer adds to the stream */
    struct tensor final_x, final_mean, final_rstd, hidden;
    /* backward */
    struct tensor d_x, d_n, d_o, d_qkv, d_low;
    struct tensor d_kind; /* [N,C] what a kind that reads x sends back into it */
    struct tensor d_h; /* [N,F]; also h, when that is not saved: their lives do not meet. d_n is delta likewise */
    /* align */
    struct tensor sums; /* [2·L] F64 on the device: error and norm of every layer; while the plan probes, sums of what it looks at */
    struct tensor loss; /* [1] F64 on the device: the kinds' own losses since the last forward pass */
};

enum status layer_params_find(const struct model *model, int64_t layer, struct layer_params *out);
/* Rotary frequencies [D/2] into `out` (device, ops->statistic). */
enum status rope_upload_frequencies(const struct model *model, struct tensor out);

/* y [N,out] = x·Wᵀ + b (+ x·Aᵀ·Bᵀ); pre, activation: as in struct gemm. low: where LoRA's x·Aᵀ [N,r] goes. */
enum status linear_forward(const struct model *model, const struct linear *linear, struct tensor x, struct tensor y,
                           enum activation activation, struct tensor pre, struct tensor low);
/* dx [N,in] = dy·W (+ LoRA's), written, when present; gradients of what trains +=. x: the forward input (needed for weights that train). */
enum status linear_backward(const struct model *model, const struct linear *linear, struct tensor dy, struct tensor x,
                            struct tensor low, struct tensor d_low, struct tensor dx);
bool linear_trains(const struct linear *linear);
/* Has the student an own form of it, or does it compute what the teacher does? */
bool linear_is_own(const struct linear *linear);

/* Adds LoRA's rows as model->lora says; STATUS_USAGE when its rank is larger than a weight's. */
enum status lora_add(struct model *model);
/* With lora.svd: lora_a = the leading right singular vectors of the weight beside it, after the rows were initialised. */
enum status lora_start(struct model *model, uint64_t seed);

/* While the plan probes and nothing was found: is every value of x finite? `what` names the operation whose output x is; layer −1: none.
 * look_heads: x is [B,T,heads,D], and the head is named too. */
enum status probe_look(struct plan *plan, int64_t layer, const char *what, struct tensor x);
enum status probe_look_heads(struct plan *plan, int64_t layer, const char *what, struct tensor x);
enum status probe_projections(struct plan *plan, int64_t layer, struct tensor qkv, bool gradient);

/* The views of q, k, v in a fused matrix [N,(H+2G)D]. */
struct qkv_views {
    struct tensor q, k, v;
};
struct qkv_views qkv_split(const struct model_config *config, struct tensor qkv, int64_t batch, int64_t length);

/* q, k, v of one layer from its normed input, rotary positions applied. */
enum status layer_project(struct plan *plan, int64_t layer, struct tensor n1, struct tensor qkv, struct tensor low);
/* What stands in for the kind's forward pass: decoding from a cache, or aligning a student beside it. */
struct attend {
    enum status (*run)(void *user, int64_t layer, struct plan *plan);
    void *user;
    bool nothing_after; /* the network ends with the last layer's attention */
};
/* One layer, its input being x + delta (delta may be none), saved as the layer's x; leaves what it adds last in plan->delta, unless
 * `again`: the backward pass only needs what is saved. attend: NULL for the kind's own forward pass. */
enum status layer_forward(struct plan *plan, int64_t layer, struct tensor x, struct tensor delta, bool again,
                          const struct attend *attend);
/* Checks and uploads ids, positions and document starts, host [N] each. */
enum status plan_load(struct plan *plan, const int32_t *ids, const int32_t *positions, const int32_t *start);
enum status plan_load_batch(struct plan *plan, const struct batch *batch);
/* The forward pass of what is loaded. */
enum status network_forward(struct plan *plan, const struct attend *attend);
/* Fills a pass description of `layer` from the plan. */
struct attention_pass attention_pass_of(struct plan *plan, int64_t layer, struct tensor n1, struct tensor qkv, struct tensor o);

#endif
