/* What a model is made of: fields, not copies of code. Read from a Hugging Face config.json (io/huggingface) or from a
 * recipe's from_scratch (config/config). */
#ifndef SQUINT_CONFIG_MODEL_CONFIG_H
#define SQUINT_CONFIG_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

enum model_type { MODEL_GPT2 = 0, MODEL_LLAMA };
enum positions_beyond { POSITIONS_REFUSE = 0, POSITIONS_INTERPOLATE, POSITIONS_TILE };

struct model_config {
    enum model_type type;
    int64_t layers;     /* L */
    int64_t heads;      /* H query heads */
    int64_t kv_heads;   /* G key/value heads; H is a multiple */
    int64_t head_width; /* D */
    int64_t width;      /* C */
    int64_t mlp_width;  /* F */
    int64_t vocabulary; /* V */
    int64_t positions;  /* P: rows of the learned table, or the length that rotary positions were trained on */
    double norm_epsilon;
    double initial_std; /* of a model from scratch's matrices; 0: 0.02 */
    double rope_theta; /* Llama type */
    /* "llama3" scaling of rotary frequencies (0 factor: none): factor, low and high frequency factors, original length
     */
    double rope_factor, rope_low_factor, rope_high_factor;
    int64_t rope_original_positions;
    bool tied;        /* the head is the embedding */
    bool qkv_bias;    /* biases of the q, k, v projections: GPT-2 true; Llama type: attention_bias */
    bool output_bias; /* bias of the attention's output projection */
    bool mlp_bias;
    bool causal;
    int64_t begin_of_text, end_of_text; /* ids; -1: none */
    enum positions_beyond
        positions_beyond; /* how learned positions go beyond their table; a run's choice, not the model's */
};

/* GPT-2 type has learned positions, LayerNorm, GELU; Llama type rotary positions, RMSNorm, SwiGLU. */
static inline bool model_has_learned_positions(const struct model_config *c) {
    return c->type == MODEL_GPT2;
}
static inline int64_t model_qkv_width(const struct model_config *c) {
    return (c->heads + 2 * c->kv_heads) * c->head_width;
}

#endif
