/* Hugging Face directories that come in: models that transformers wrote (tests/model/goldens), other ways to store
 * them, and what wrong directories are told. */
#include "io/huggingface_models.h"
#include "io/safetensors.h"
#include "support/scratch.h"

#include <math.h>

/* ---- configs ------------------------------------------------------------------------------------------------------
 */
static void reads_configs(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof golden_configs / sizeof *golden_configs; i++) {
        struct model_config model;
        CHECK_OK(huggingface_read_config(golden(golden_configs[i].name), &model));
        check_same_config(golden_configs[i].name, &model, &golden_configs[i].expected);
    }
}

#define GPT2(rest)                                                                                                     \
    "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":3,\"n_embd\":48,\"n_positions\":9,\"vocab_size\":7" rest "}"
#define LLAMA(rest)                                                                                                    \
    "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"num_attention_heads\":4,\"hidden_size\":32,\"intermediate_"   \
    "size\":8,"                                                                                                        \
    "\"vocab_size\":7,\"max_position_embeddings\":9" rest "}"
#define SCALING(rest) LLAMA(",\"rope_scaling\":{" rest "}")

static const struct bad_config {
    const char *name, *json;
    enum status status;
    const char *message;
} bad_configs[] = {
    {"empty", "", STATUS_DAMAGED, "expected JSON without duplicate keys"},
    {"a list", "[]", STATUS_DAMAGED, "expected a JSON object, found another value"},
    {"a key twice", "{\"a\":1,\"a\":2}", STATUS_DAMAGED, "expected JSON without duplicate keys"},
    {"no type", "{}", STATUS_DAMAGED, "model_type: expected \"gpt2\" or \"llama\", found no such key"},
    {"type is a number", "{\"model_type\":3}", STATUS_DAMAGED, "model_type: expected \"gpt2\" or \"llama\", found 3"},
    {"mistral", "{\"model_type\":\"mistral\"}", STATUS_USAGE, "expected \"gpt2\" or \"llama\", found \"mistral\""},
    {"quantised", GPT2(",\"quantization_config\":{\"bits\":4}"), STATUS_USAGE, "quantization_config: expected none"},
    {"gpt2: no layers", "{\"model_type\":\"gpt2\"}", STATUS_DAMAGED,
     "n_layer: expected a whole number from 1 to 4096, found no such key"},
    {"gpt2: layers are text", "{\"model_type\":\"gpt2\",\"n_layer\":\"2\"}", STATUS_DAMAGED,
     "n_layer: expected a whole number from 1 to 4096, found \"2\""},
    {"gpt2: negative layers", "{\"model_type\":\"gpt2\",\"n_layer\":-2}", STATUS_DAMAGED, "found -2"},
    {"gpt2: layers are null", "{\"model_type\":\"gpt2\",\"n_layer\":null}", STATUS_DAMAGED, "found null"},
    {"gpt2: uneven heads",
     "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":5,\"n_embd\":48,\"n_positions\":9,\"vocab_size\":7}",
     STATUS_DAMAGED, "n_embd: expected a multiple of n_head 5, found 48"},
    {"gpt2: exact GELU", GPT2(",\"activation_function\":\"gelu\""), STATUS_USAGE,
     "activation_function: expected gelu_new or gelu_pytorch_tanh (GELU's tanh form), found \"gelu\""},
    {"gpt2: activation is a number", GPT2(",\"activation_function\":1"), STATUS_DAMAGED,
     "activation_function: expected"},
    {"gpt2: unscaled attention", GPT2(",\"scale_attn_weights\":false"), STATUS_USAGE,
     "scale_attn_weights: expected true, found false"},
    {"gpt2: scaled by layer", GPT2(",\"scale_attn_by_inverse_layer_idx\":true"), STATUS_USAGE,
     "expected false, found true"},
    {"gpt2: cross attention", GPT2(",\"add_cross_attention\":true"), STATUS_USAGE,
     "add_cross_attention: expected false"},
    {"gpt2: tie is a number", GPT2(",\"tie_word_embeddings\":1"), STATUS_DAMAGED,
     "tie_word_embeddings: expected true or false, found 1"},
    {"gpt2: epsilon is zero", GPT2(",\"layer_norm_epsilon\":0"), STATUS_DAMAGED,
     "layer_norm_epsilon: expected a number above 0, found 0"},
    {"gpt2: epsilon is text", GPT2(",\"layer_norm_epsilon\":\"1e-5\""), STATUS_DAMAGED,
     "layer_norm_epsilon: expected a number above 0"},
    {"gpt2: end of text is text", GPT2(",\"eos_token_id\":\"x\""), STATUS_DAMAGED,
     "eos_token_id: expected an id, a list of ids, or null"},
    {"llama: other activation", LLAMA(",\"hidden_act\":\"gelu\""), STATUS_USAGE,
     "hidden_act: expected silu, found \"gelu\""},
    {"llama: uneven groups", LLAMA(",\"num_key_value_heads\":3"), STATUS_DAMAGED,
     "num_attention_heads: expected a multiple of num_key_value_heads 3, found 4"},
    {"llama: odd heads", LLAMA(",\"head_dim\":7"), STATUS_DAMAGED,
     "head_dim: rotary positions need an even width of a head, found 7"},
    {"llama: no width of heads",
     "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"num_attention_heads\":5,\"hidden_size\":32,"
     "\"intermediate_size\":8,\"vocab_size\":7,\"max_position_embeddings\":9}",
     STATUS_DAMAGED, "hidden_size: expected a multiple of num_attention_heads 5 where head_dim is absent, found 32"},
    {"llama: theta is null text", LLAMA(",\"rope_theta\":\"x\""), STATUS_DAMAGED,
     "rope_theta: expected a number above 0"},
    {"llama: scaling is a number", LLAMA(",\"rope_scaling\":2"), STATUS_DAMAGED,
     "rope_scaling: expected an object or null, found 2"},
    {"llama: scaling without type", SCALING("\"factor\":2.0"), STATUS_DAMAGED,
     "rope_scaling.rope_type: expected default or llama3"},
    {"llama: linear scaling", SCALING("\"type\":\"linear\",\"factor\":2.0"), STATUS_USAGE,
     "rope_scaling.type: expected default or llama3, found \"linear\""},
    {"llama: scaling without factor", SCALING("\"rope_type\":\"llama3\""), STATUS_DAMAGED,
     "rope_scaling.factor: expected a number above 0, found no such key"},
    {"llama: factors reversed",
     SCALING("\"rope_type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,\"high_freq_factor\":1,\"original_max_"
             "position_embeddings\":8"),
     STATUS_DAMAGED, "rope_scaling.high_freq_factor: expected more than low_freq_factor, found 1"},
};

static void refuses_wrong_configs(void **state) {
    (void)state;
    struct model_config model;
    const char *path = scratch_path("config.json");
    CHECK_STATUS(STATUS_NOT_FOUND, huggingface_read_config(scratch, &model));
    for (size_t i = 0; i < sizeof bad_configs / sizeof *bad_configs; i++) {
        const struct bad_config *row = &bad_configs[i];
        CHECK_OK(file_write(path, row->json, strlen(row->json)));
        enum status status = huggingface_read_config(scratch, &model);
        int code = row->status == STATUS_USAGE ? 2 : 3;
        if (status != row->status || status_exit_code(status) != code || !strstr(error_message(), row->message) ||
            !strstr(error_message(), path)) {
            fail_msg("%s: expected %s with \"%s\", found %s: \"%s\"", row->name, status_name(row->status), row->message,
                     status_name(status), error_message());
        }
        error_clear();
    }
    const char *newer =
        LLAMA(",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":77.0},\"eos_token_id\":[3,4],"
              "\"bos_token_id\":7");
    CHECK_OK(file_write(path, newer, strlen(newer)));
    CHECK_OK(huggingface_read_config(scratch, &model));
    assert_true(model.rope_theta == 77 && model.rope_factor == 0);
    assert_int_equal(model.end_of_text, 3);
    assert_int_equal(model.begin_of_text, -1); /* outside the vocabulary */
    assert_int_equal(model.kv_heads, 4);
    CHECK_OK(file_remove_tree(path));
}

/* ---- values ---------------------------------------------------------------------------------------------------------
 */
/* Places of the same number in both layouts, picked by hand from transformers' definition of the models. */
static const struct {
    const char *model, *ours;
    int64_t row, column;
    const char *theirs;
    int64_t their_row, their_columns, their_column;
} places[] = {
    {"gpt2-tied", "wte", 100, 47, "transformer.wte.weight", 100, 48, 47},
    {"gpt2-tied", "wpe", 28, 3, "transformer.wpe.weight", 28, 48, 3},
    {"gpt2-tied", "h.1.attn.qkv.weight", 143, 2, "transformer.h.1.attn.c_attn.weight", 2, 144, 143},
    {"gpt2-tied", "h.0.attn.qkv.bias", 50, 0, "transformer.h.0.attn.c_attn.bias", 50, 1, 0},
    {"gpt2-tied", "h.1.attn.out.weight", 1, 46, "transformer.h.1.attn.c_proj.weight", 46, 48, 1},
    {"gpt2-tied", "h.0.mlp.up.weight", 59, 5, "transformer.h.0.mlp.c_fc.weight", 5, 60, 59},
    {"gpt2-tied", "h.0.mlp.down.weight", 5, 59, "transformer.h.0.mlp.c_proj.weight", 59, 48, 5},
    {"gpt2-tied", "h.1.norm1.bias", 9, 0, "transformer.h.1.ln_1.bias", 9, 1, 0},
    {"gpt2-tied", "h.1.norm2.weight", 9, 0, "transformer.h.1.ln_2.weight", 9, 1, 0},
    {"gpt2-tied", "norm.weight", 47, 0, "transformer.ln_f.weight", 47, 1, 0},
    {"gpt2-untied", "head.weight", 99, 7, "lm_head.weight", 99, 30, 7},
    {"llama-gqa", "wte", 55, 11, "model.embed_tokens.weight", 55, 48, 11},
    {"llama-gqa", "h.1.attn.qkv.weight", 47, 1, "model.layers.1.self_attn.q_proj.weight", 47, 48, 1},
    {"llama-gqa", "h.1.attn.qkv.weight", 48, 1, "model.layers.1.self_attn.k_proj.weight", 0, 48, 1},
    {"llama-gqa", "h.1.attn.qkv.weight", 79, 46, "model.layers.1.self_attn.v_proj.weight", 15, 48, 46},
    {"llama-gqa", "h.0.attn.out.weight", 3, 40, "model.layers.0.self_attn.o_proj.weight", 3, 48, 40},
    {"llama-gqa", "h.0.mlp.up.weight", 39, 8, "model.layers.0.mlp.gate_proj.weight", 39, 48, 8},
    {"llama-gqa", "h.0.mlp.up.weight", 40, 8, "model.layers.0.mlp.up_proj.weight", 0, 48, 8},
    {"llama-gqa", "h.0.mlp.down.weight", 8, 39, "model.layers.0.mlp.down_proj.weight", 8, 40, 39},
    {"llama-gqa", "h.0.norm2.weight", 8, 0, "model.layers.0.post_attention_layernorm.weight", 8, 1, 0},
    {"llama-gqa", "head.weight", 7, 9, "lm_head.weight", 7, 48, 9},
    {"llama-tied", "h.0.attn.qkv.bias", 56, 0, "model.layers.0.self_attn.k_proj.bias", 0, 1, 0},
    {"llama-tied", "h.0.attn.qkv.weight", 84, 35, "model.layers.0.self_attn.v_proj.weight", 0, 36, 35},
    {"llama-tied", "h.0.attn.out.weight", 35, 55, "model.layers.0.self_attn.o_proj.weight", 35, 56, 55},
    {"llama-tied", "h.1.mlp.up.bias", 55, 0, "model.layers.1.mlp.up_proj.bias", 27, 1, 0},
    {"llama-tied", "norm.weight", 35, 0, "model.norm.weight", 35, 1, 0},
};

static void loads_every_layout(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct model_config model;
        struct params params;
        struct safetensors set;
        float expected;
        load(golden(places[i].model), i % 2 ? &host_ops_f32 : &host_ops_f64, &model, &params);
        CHECK_OK(safetensors_open_directory(golden(places[i].model), &set));
        int64_t index = places[i].their_row * places[i].their_columns + places[i].their_column;
        CHECK_OK(safetensors_read(safetensors_find(&set, places[i].theirs), index, 1, 1, &expected));
        double found = element(&params, places[i].ours, places[i].row, places[i].column);
        if (found != (double)expected) {
            fail_msg("%s: %s[%ld,%ld]: expected %.9g, found %.9g", places[i].model, places[i].ours, (long)places[i].row,
                     (long)places[i].column, (double)expected, found);
        }
        safetensors_close(&set);
        params_free(&params);
    }
}

static void loads_other_ways_to_store(void **state) {
    (void)state;
    assert_true(hash_of(golden("llama-sharded")) == hash_of(golden("llama-gqa")));
    static const struct {
        const char *name;
        double precision;
    } halves[] = {{"gpt2-f16", 0x1p-11}, {"gpt2-bf16", 0x1p-8}};
    struct model_config model;
    struct params exact, rounded;
    load(golden("gpt2-tied"), &host_ops_f32, &model, &exact);
    for (size_t h = 0; h < 2; h++) {
        double worst = 0;
        load(golden(halves[h].name), &host_ops_f32, &model, &rounded);
        for (int64_t i = 0; i < exact.owned_elements; i++) {
            double expected = ((float *)exact.values.data)[i], found = ((float *)rounded.values.data)[i];
            double error = fabs(found - expected) / fmax(fabs(expected), 1e-4);
            if (error > worst) worst = error;
        }
        if (!(worst > halves[h].precision / 4 && worst <= halves[h].precision)) {
            fail_msg("%s: expected a rounding error near %g, found %g", halves[h].name, halves[h].precision, worst);
        }
        params_free(&rounded);
    }
    params_free(&exact);
}

/* ---- wrong directories
 * ------------------------------------------------------------------------------------------------ */
/* A one-layer GPT-2 whose tensors the rows below bend. */
struct bend {
    const char *name;    /* of the row */
    const char *drop;    /* this tensor is left out */
    const char *rename;  /* … and stands under this name */
    int extend;          /* … or is this much longer in its first dimension */
    bool bare;           /* names without "transformer." */
    bool head;           /* the file has a head too */
    float head_value;    /* … with this at element 5, all else 0 as in the embedding */
    const char *message; /* NULL: loads */
};
static const struct bend bends[] = {
    {.name = "as it is"},
    {.name = "bare names", .bare = true},
    {.name = "equal head", .head = true},
    {.name = "equal head, bare names", .head = true, .bare = true},
    {.name = "another head",
     .head = true,
     .head_value = 3,
     .message = "lm_head.weight: expected none or the values of transformer.wte.weight, "
                "because config.json ties them; found 3 beside 0 at element 5"},
    {.name = "missing", .drop = "ln_f.bias", .message = "1 tensor is wrong: transformer.ln_f.bias: missing"},
    {.name = "misspelt",
     .drop = "ln_f.bias",
     .rename = "ln_f.bais",
     .message = "2 tensors are wrong: transformer.ln_f.bias: missing; transformer.ln_f.bais: surplus"},
    {.name = "misshapen vector",
     .drop = "ln_f.bias",
     .rename = "ln_f.bias",
     .extend = 1,
     .message = "transformer.ln_f.bias: expected [4], found [5] F32"},
    {.name = "misshapen matrix",
     .drop = "h.0.attn.c_attn.weight",
     .rename = "h.0.attn.c_attn.weight",
     .extend = 1,
     .message = "transformer.h.0.attn.c_attn.weight: expected [4,12], found [5,12] F32"},
    {.name = "old buffers", .drop = "", .rename = "h.0.attn.bias", .extend = 3},
    {.name = "surplus layer",
     .drop = "",
     .rename = "h.1.ln_1.weight",
     .extend = 4,
     .message = "1 tensor is wrong: transformer.h.1.ln_1.weight: surplus"},
};

static const struct {
    const char *name;
    int rank;
    int64_t shape[2];
} small[] = {{"wte.weight", 2, {7, 4}},
             {"wpe.weight", 2, {9, 4}},
             {"h.0.ln_1.weight", 1, {4}},
             {"h.0.ln_1.bias", 1, {4}},
             {"h.0.attn.c_attn.weight", 2, {4, 12}},
             {"h.0.attn.c_attn.bias", 1, {12}},
             {"h.0.attn.c_proj.weight", 2, {4, 4}},
             {"h.0.attn.c_proj.bias", 1, {4}},
             {"h.0.ln_2.weight", 1, {4}},
             {"h.0.ln_2.bias", 1, {4}},
             {"h.0.mlp.c_fc.weight", 2, {4, 16}},
             {"h.0.mlp.c_fc.bias", 1, {16}},
             {"h.0.mlp.c_proj.weight", 2, {16, 4}},
             {"h.0.mlp.c_proj.bias", 1, {4}},
             {"ln_f.weight", 1, {4}},
             {"ln_f.bias", 1, {4}}};
enum { SMALL = sizeof small / sizeof *small };
static const char small_config[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":1,\"n_head\":2,\"n_embd\":4,\"n_positions\":9,\"vocab_size\":7}";

static int bend_tensors(const struct bend *bend, struct safetensors_entry *entries, char names[][64]) {
    int count = 0;
    for (int i = 0; i <= SMALL; i++) {
        bool last = i == SMALL, dropped = bend->drop && !last && strcmp(small[i].name, bend->drop) == 0;
        if (last && !(bend->rename && bend->drop[0] == '\0')) break;
        if (dropped && !bend->rename) continue;
        const char *name = last || dropped ? bend->rename : small[i].name;
        snprintf(names[count], 64, "%s%s", bend->bare ? "" : "transformer.", name);
        entries[count] = (struct safetensors_entry){.name = names[count], .rank = last ? 1 : small[i].rank};
        entries[count].shape[0] = (last ? 0 : small[i].shape[0]) + (last || dropped ? bend->extend : 0);
        entries[count++].shape[1] = last ? 0 : small[i].shape[1];
    }
    if (bend->head) entries[count++] = (struct safetensors_entry){"lm_head.weight", 2, {7, 4}};
    return count;
}

static void write_bent(const struct bend *bend) {
    struct safetensors_entry entries[SMALL + 2];
    char names[SMALL + 2][64];
    struct safetensors_writer *writer;
    int count = bend_tensors(bend, entries, names);
    float values[256] = {0};
    CHECK_OK(safetensors_create(scratch_path("model.safetensors"), entries, count, &writer));
    for (int i = 0; i < count; i++) {
        values[5] = bend->head && i == count - 1 ? bend->head_value : 0;
        CHECK_OK(
            safetensors_write(writer, values, entries[i].shape[0] * (entries[i].rank == 2 ? entries[i].shape[1] : 1)));
    }
    CHECK_OK(safetensors_finish(&writer));
}

static void names_every_wrong_tensor(void **state) {
    (void)state;
    struct model_config model;
    CHECK_OK(file_write(scratch_path("config.json"), small_config, strlen(small_config)));
    CHECK_OK(huggingface_read_config(scratch, &model));
    for (size_t i = 0; i < sizeof bends / sizeof *bends; i++) {
        struct params params;
        new_table(&host_ops_f32, &model, &params);
        CHECK_OK(host_fill(&host_ops_f32, params.values, 8));
        write_bent(&bends[i]);
        enum status status = huggingface_load(scratch, &model, &params);
        enum status expected = bends[i].message ? STATUS_DAMAGED : STATUS_OK;
        if (status != expected || (bends[i].message && !strstr(error_message(), bends[i].message))) {
            fail_msg("%s: expected %s \"%s\", found %s: \"%s\"", bends[i].name, status_name(expected),
                     bends[i].message ? bends[i].message : "", status_name(status), error_message());
        }
        /* All of the values or none. */
        for (int64_t e = 0; e < params.owned_elements; e++)
            assert_true(((float *)params.values.data)[e] == (status ? 8 : 0));
        error_clear();
        params_free(&params);
    }
}

/* Against another model nearly everything is wrong: the message stays short and says how much more there is. */
static void shortens_a_long_list(void **state) {
    (void)state;
    struct model_config model;
    struct params params;
    CHECK_OK(huggingface_read_config(golden("llama-gqa"), &model));
    new_table(&host_ops_f32, &model, &params);
    assert_int_equal(huggingface_load(golden("gpt2-tied"), &model, &params), STATUS_DAMAGED);
    assert_non_null(strstr(error_message(), "49 tensors are wrong: model.embed_tokens.weight: missing; "));
    assert_non_null(strstr(error_message(), "; and 41 more"));
    error_clear();
    params_free(&params);
}

/* A value that no model can run on is found on the way in, wherever it is. */
static void refuses_values_that_are_not_finite(void **state) {
    (void)state;
    const struct safetensors_entry entries[] = {{"wte.weight", 2, {7, 4}}};
    struct model_config model;
    CHECK_OK(file_write(scratch_path("config.json"), small_config, strlen(small_config)));
    CHECK_OK(huggingface_read_config(scratch, &model));
    for (int i = 0; i < 2; i++) {
        struct params params;
        struct safetensors_writer *writer;
        float values[28] = {0};
        values[27 * i] = i ? NAN : -INFINITY;
        CHECK_OK(safetensors_create(scratch_path("model.safetensors"), entries, 1, &writer));
        CHECK_OK(safetensors_write(writer, values, 28));
        CHECK_OK(safetensors_finish(&writer));
        new_table(&host_ops_f32, &model, &params);
        params.count = 1; /* the embedding is enough of a model */
        assert_int_equal(huggingface_load(scratch, &model, &params), STATUS_DAMAGED);
        assert_non_null(strstr(error_message(), "tensor wte.weight: expected finite values, found "));
        error_clear();
        params_free(&params);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_configs),
        cmocka_unit_test(refuses_wrong_configs),
        cmocka_unit_test(loads_every_layout),
        cmocka_unit_test(loads_other_ways_to_store),
        cmocka_unit_test(names_every_wrong_tensor),
        cmocka_unit_test(shortens_a_long_list),
        cmocka_unit_test(refuses_values_that_are_not_finite),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
