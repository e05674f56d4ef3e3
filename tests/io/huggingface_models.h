/* Models of tests/model/goldens for tests of Hugging Face directories. */
#ifndef SQUINT_TESTS_IO_HUGGINGFACE_MODELS_H
#define SQUINT_TESTS_IO_HUGGINGFACE_MODELS_H

#include "io/host_ops.h"
#include "io/huggingface.h"
#include "support/check.h"

#include <stdio.h>
#include <string.h>

static inline const char *golden(const char *name) {
    static char paths[4][512];
    static unsigned next;
    const char *source = getenv("SQUINT_SOURCE");
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/tests/model/goldens/%s", source ? source : ".", name);
    return path;
}

static inline void new_table(const struct ops *ops, const struct model_config *model, struct params *params) {
    CHECK_OK(params_new(ops, model, params));
    for (int64_t i = 0; i < params->count; i++) params->rows[i].owned = true;
    CHECK_OK(params_place(params, false));
}

static inline void load(const char *directory, const struct ops *ops, struct model_config *model,
                        struct params *params) {
    CHECK_OK(huggingface_read_config(directory, model));
    new_table(ops, model, params);
    CHECK_OK(huggingface_load(directory, model, params));
}

static inline double element(const struct params *params, const char *name, int64_t row, int64_t column) {
    const struct param *param = params_find(params, name);
    if (!param) fail_msg("no parameter %s", name);
    int64_t index = row * (param->rank == 2 ? param->shape[1] : 1) + column;
    return param->value.dtype == DTYPE_F64 ? ((double *)param->value.data)[index] : ((float *)param->value.data)[index];
}

static inline uint64_t hash_of(const char *directory) {
    struct model_config model;
    struct params params;
    uint64_t hash;
    load(directory, &host_ops_f32, &model, &params);
    CHECK_OK(params_hash(&params, &hash));
    params_free(&params);
    return hash;
}

static const struct {
    const char *name;
    struct model_config expected;
} golden_configs[] = {
    {"gpt2-tied",
     {.type = MODEL_GPT2,
      .layers = 2,
      .heads = 3,
      .kv_heads = 3,
      .head_width = 16,
      .width = 48,
      .mlp_width = 60,
      .vocabulary = 101,
      .positions = 29,
      .norm_epsilon = 1e-5,
      .tied = true,
      .qkv_bias = true,
      .output_bias = true,
      .mlp_bias = true,
      .causal = true,
      .begin_of_text = 100,
      .end_of_text = 100}},
    {"gpt2-untied",
     {.type = MODEL_GPT2,
      .layers = 2,
      .heads = 3,
      .kv_heads = 3,
      .head_width = 10,
      .width = 30,
      .mlp_width = 120,
      .vocabulary = 101,
      .positions = 31,
      .norm_epsilon = 3e-5,
      .qkv_bias = true,
      .output_bias = true,
      .mlp_bias = true,
      .causal = true,
      .begin_of_text = 100,
      .end_of_text = 100}},
    {"llama-gqa",
     {.type = MODEL_LLAMA,
      .layers = 2,
      .heads = 6,
      .kv_heads = 2,
      .head_width = 8,
      .width = 48,
      .mlp_width = 40,
      .vocabulary = 101,
      .positions = 64,
      .norm_epsilon = 1e-5,
      .rope_theta = 10000,
      .causal = true,
      .begin_of_text = 1,
      .end_of_text = 2}},
    {"llama-tied",
     {.type = MODEL_LLAMA,
      .layers = 2,
      .heads = 4,
      .kv_heads = 2,
      .head_width = 14,
      .width = 36,
      .mlp_width = 28,
      .vocabulary = 101,
      .positions = 64,
      .norm_epsilon = 1e-6,
      .rope_theta = 500,
      .rope_factor = 4,
      .rope_low_factor = 1,
      .rope_high_factor = 4,
      .rope_original_positions = 16,
      .tied = true,
      .qkv_bias = true,
      .output_bias = true,
      .mlp_bias = true,
      .causal = true,
      .begin_of_text = 1,
      .end_of_text = 2}},
};

static inline void check_same_config(const char *name, const struct model_config *a, const struct model_config *b) {
    const int64_t left[] = {
        a->type,          a->layers,      a->heads,           a->kv_heads,  a->head_width,
        a->width,         a->mlp_width,   a->vocabulary,      a->positions, a->rope_original_positions,
        a->tied,          a->qkv_bias,    a->output_bias,     a->mlp_bias,  a->causal,
        a->begin_of_text, a->end_of_text, a->positions_beyond};
    const int64_t right[] = {
        b->type,          b->layers,      b->heads,           b->kv_heads,  b->head_width,
        b->width,         b->mlp_width,   b->vocabulary,      b->positions, b->rope_original_positions,
        b->tied,          b->qkv_bias,    b->output_bias,     b->mlp_bias,  b->causal,
        b->begin_of_text, b->end_of_text, b->positions_beyond};
    const double left_real[] = {a->norm_epsilon, a->rope_theta, a->rope_factor, a->rope_low_factor,
                                a->rope_high_factor};
    const double right_real[] = {b->norm_epsilon, b->rope_theta, b->rope_factor, b->rope_low_factor,
                                 b->rope_high_factor};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        if (left[i] != right[i])
            fail_msg("%s: field %zu: expected %ld, found %ld", name, i, (long)right[i], (long)left[i]);
    }
    for (size_t i = 0; i < sizeof left_real / sizeof *left_real; i++) {
        if (left_real[i] != right_real[i])
            fail_msg("%s: real field %zu: expected %g, found %g", name, i, right_real[i], left_real[i]);
    }
}

#endif
