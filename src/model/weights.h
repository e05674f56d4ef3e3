/* Which tokens a layer reads: the weights A that its attention gives to the values, of any kind.
 * Every kind's output is linear in v for fixed q, k and x: o_i = Σ_j A_ij v_j. So A is read off the kind's own forward
 * pass, with basis vectors for values; no kind has to know of this. */
#ifndef SQUINT_MODEL_WEIGHTS_H
#define SQUINT_MODEL_WEIGHTS_H

#include "model/model.h"

/* How query i reads token j: not at all (A_ij is exactly 0: no sum that makes o_i holds v_j); only as one of several
 * tokens of a summary (the blocks that kind nsa compresses); itself. */
enum weight_read { WEIGHT_UNREAD = 0, WEIGHT_SUMMARY, WEIGHT_READ };

/* One layer's, host arrays, valid during the visit. */
struct layer_weights {
    int64_t layer, batch, heads, length;
    const float *weights; /* [B,H,T,T]: A_ij, query i, token j; negative where a kind's coefficients are */
    const uint8_t *reads; /* [B,H,T,T]: enum weight_read */
};
typedef enum status (*model_weights_visit)(void *user, const struct layer_weights *weights);

/* The forward pass of `batch` (ids and start), and at every layer, first to last, visit(user, its weights). ⌈T/D⌉ + 1
 * attention passes a layer, twice that where a kind reads summaries; memory B·H·T²·5 bytes on the host. Where a
 * compressor bends the values (nsa's W₂) its weights are those of the blocks' means. Branches with values of their own
 * (nsa: branch_kv: separate) read no v: their weights are not seen, and rows sum to less.
 * Branches that were switched off for an audit are on afterwards. Errors: those of model_forward; a status of visit
 * ends it. */
enum status model_weights(struct model *model, const struct batch *batch, model_weights_visit visit, void *user);

#endif
