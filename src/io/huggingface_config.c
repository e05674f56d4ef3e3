/* config.json <-> struct model_config; see huggingface.h. */
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "io/huggingface_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_WIDTH = 1 << 20, LARGEST_ID = INT32_MAX };

struct reader {
    const char *path;
    const char *section; /* "" or "rope_scaling." */
    const json_t *json;
};

enum status huggingface_read_json(const char *path, json_t **json) {
    char *text = NULL;
    size_t length = 0;
    json_error_t fault;
    TRY(file_read(path, &text, &length));
    *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &fault);
    free(text);
    if (!*json) {
        return error_set(STATUS_DAMAGED, "%s: expected JSON without duplicate keys: line %d, column %d: %s", path,
                         fault.line, fault.column, fault.text);
    }
    if (json_is_object(*json)) return STATUS_OK;
    json_decref(*json);
    *json = NULL;
    return error_set(STATUS_DAMAGED, "%s: expected a JSON object, found another value", path);
}

static enum status wrong(const struct reader *reader, enum status code, const char *key, const char *expected) {
    const json_t *value = json_object_get(reader->json, key);
    char *found = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    (void)error_set(code, "%s: %s%s: expected %s, found %.200s", reader->path, reader->section, key, expected,
                    value ? (found ? found : "another value") : "no such key");
    free(found);
    return code;
}

/* NULL when the key is absent or null. */
static const json_t *look_up(const struct reader *reader, const char *key) {
    const json_t *value = json_object_get(reader->json, key);
    return json_is_null(value) ? NULL : value;
}

/* `otherwise` < 0: the key must be there. */
static enum status read_integer(const struct reader *reader, const char *key, int64_t largest, int64_t otherwise,
                                int64_t *out) {
    const json_t *value = look_up(reader, key);
    char expected[64];
    if (!value && otherwise >= 0) {
        *out = otherwise;
        return STATUS_OK;
    }
    if (json_is_integer(value) && json_integer_value(value) >= 1 && json_integer_value(value) <= largest) {
        *out = json_integer_value(value);
        return STATUS_OK;
    }
    snprintf(expected, sizeof expected, "a whole number from 1 to %" PRId64, largest);
    return wrong(reader, STATUS_DAMAGED, key, expected);
}

/* A positive number; `otherwise` NaN: the key must be there. */
static enum status read_real(const struct reader *reader, const char *key, double otherwise, double *out) {
    const json_t *value = look_up(reader, key);
    *out = value ? json_number_value(value) : otherwise;
    if ((value || !isnan(otherwise)) && isfinite(*out) && *out > 0) return STATUS_OK;
    return wrong(reader, STATUS_DAMAGED, key, "a number above 0");
}

static enum status read_flag(const struct reader *reader, const char *key, bool otherwise, bool *out) {
    const json_t *value = look_up(reader, key);
    *out = value ? json_is_true(value) : otherwise;
    return !value || json_is_boolean(value) ? STATUS_OK : wrong(reader, STATUS_DAMAGED, key, "true or false");
}

/* A setting that squint has in one way only. */
static enum status require_flag(const struct reader *reader, const char *key, bool required) {
    bool found;
    TRY(read_flag(reader, key, required, &found));
    return found == required ? STATUS_OK : wrong(reader, STATUS_USAGE, key, required ? "true" : "false");
}

/* An id, null, or a list of ids, of which the first counts. */
static enum status read_id(const struct reader *reader, const char *key, int64_t vocabulary, int64_t *out) {
    const json_t *value = look_up(reader, key);
    if (json_is_array(value)) value = json_array_get(value, 0);
    *out = -1;
    if (!value) return STATUS_OK;
    if (!json_is_integer(value)) return wrong(reader, STATUS_DAMAGED, key, "an id, a list of ids, or null");
    *out = json_integer_value(value);
    if (*out < 0 || *out >= vocabulary) {
        log_warning("%s: %s: %" PRId64 " is outside the vocabulary of %" PRId64 " and is left out", reader->path, key,
                    *out, vocabulary);
        *out = -1;
    }
    return STATUS_OK;
}

static enum status read_word(const struct reader *reader, const char *key, const char *const *allowed,
                             const char *expected) {
    const char *text = json_string_value(look_up(reader, key));
    if (!look_up(reader, key)) return STATUS_OK; /* the type's own default, which is the allowed one */
    for (int i = 0; text && allowed[i]; i++) {
        if (strcmp(text, allowed[i]) == 0) return STATUS_OK;
    }
    return wrong(reader, text ? STATUS_USAGE : STATUS_DAMAGED, key, expected);
}

static enum status read_gpt2(const struct reader *reader, struct model_config *model) {
    *model = (struct model_config){
        .type = MODEL_GPT2, .qkv_bias = true, .output_bias = true, .mlp_bias = true, .causal = true};
    TRY(read_integer(reader, "n_layer", 4096, -1, &model->layers));
    TRY(read_integer(reader, "n_head", LARGEST_WIDTH, -1, &model->heads));
    TRY(read_integer(reader, "n_embd", LARGEST_WIDTH, -1, &model->width));
    TRY(read_integer(reader, "n_positions", LARGEST_ID, -1, &model->positions));
    TRY(read_integer(reader, "vocab_size", LARGEST_ID, -1, &model->vocabulary));
    TRY(read_integer(reader, "n_inner", 4 * LARGEST_WIDTH, 4 * model->width, &model->mlp_width));
    TRY(read_real(reader, "layer_norm_epsilon", 1e-5, &model->norm_epsilon));
    TRY(read_flag(reader, "tie_word_embeddings", true, &model->tied));
    TRY(read_word(reader, "activation_function", (const char *const[]){"gelu_new", "gelu_pytorch_tanh", NULL},
                  "gelu_new or gelu_pytorch_tanh (GELU's tanh form)"));
    TRY(require_flag(reader, "scale_attn_weights", true));
    TRY(require_flag(reader, "scale_attn_by_inverse_layer_idx", false));
    TRY(require_flag(reader, "add_cross_attention", false));
    if (model->width % model->heads != 0) {
        return error_set(STATUS_DAMAGED, "%s: n_embd: expected a multiple of n_head %" PRId64 ", found %" PRId64,
                         reader->path, model->heads, model->width);
    }
    model->kv_heads = model->heads;
    model->head_width = model->width / model->heads;
    return STATUS_OK;
}

/* rope_scaling (or rope_parameters, as newer files name it): null, "default", or Llama 3's. */
static enum status read_rope(const struct reader *reader, struct model_config *model) {
    const char *key = look_up(reader, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    char section[32];
    const json_t *value = look_up(reader, key);
    struct reader rope = {.path = reader->path, .section = section, .json = value};
    snprintf(section, sizeof section, "%s.", key);
    TRY(read_real(reader, "rope_theta", 10000.0, &model->rope_theta));
    if (!value) return STATUS_OK;
    if (!json_is_object(value)) return wrong(reader, STATUS_DAMAGED, key, "an object or null");
    TRY(read_real(&rope, "rope_theta", model->rope_theta, &model->rope_theta));
    const char *type_key = look_up(&rope, "rope_type") ? "rope_type" : "type";
    TRY(read_word(&rope, type_key, (const char *const[]){"default", "llama3", NULL}, "default or llama3"));
    const char *type = json_string_value(look_up(&rope, type_key));
    if (!type && strcmp(key, "rope_scaling") == 0)
        return wrong(&rope, STATUS_DAMAGED, "rope_type", "default or llama3");
    if (!type || strcmp(type, "default") == 0) return STATUS_OK;
    TRY(read_real(&rope, "factor", NAN, &model->rope_factor));
    TRY(read_real(&rope, "low_freq_factor", NAN, &model->rope_low_factor));
    TRY(read_real(&rope, "high_freq_factor", NAN, &model->rope_high_factor));
    TRY(read_integer(&rope, "original_max_position_embeddings", LARGEST_ID, -1, &model->rope_original_positions));
    if (model->rope_high_factor > model->rope_low_factor) return STATUS_OK;
    return wrong(&rope, STATUS_DAMAGED, "high_freq_factor", "more than low_freq_factor");
}

static enum status read_llama(const struct reader *reader, struct model_config *model) {
    bool attention_bias;
    *model = (struct model_config){.type = MODEL_LLAMA, .causal = true};
    TRY(read_integer(reader, "num_hidden_layers", 4096, -1, &model->layers));
    TRY(read_integer(reader, "num_attention_heads", LARGEST_WIDTH, -1, &model->heads));
    TRY(read_integer(reader, "num_key_value_heads", LARGEST_WIDTH, model->heads, &model->kv_heads));
    TRY(read_integer(reader, "hidden_size", LARGEST_WIDTH, -1, &model->width));
    TRY(read_integer(reader, "intermediate_size", 4 * LARGEST_WIDTH, -1, &model->mlp_width));
    TRY(read_integer(reader, "vocab_size", LARGEST_ID, -1, &model->vocabulary));
    TRY(read_integer(reader, "max_position_embeddings", LARGEST_ID, -1, &model->positions));
    TRY(read_real(reader, "rms_norm_eps", 1e-6, &model->norm_epsilon));
    TRY(read_flag(reader, "tie_word_embeddings", false, &model->tied));
    TRY(read_flag(reader, "attention_bias", false, &attention_bias));
    TRY(read_flag(reader, "mlp_bias", false, &model->mlp_bias));
    TRY(read_word(reader, "hidden_act", (const char *const[]){"silu", NULL}, "silu"));
    TRY(read_rope(reader, model));
    model->qkv_bias = model->output_bias = attention_bias;
    if (model->heads % model->kv_heads != 0) {
        return error_set(STATUS_DAMAGED,
                         "%s: num_attention_heads: expected a multiple of num_key_value_heads %" PRId64
                         ", found %" PRId64,
                         reader->path, model->kv_heads, model->heads);
    }
    if (!look_up(reader, "head_dim") && model->width % model->heads != 0) {
        return error_set(STATUS_DAMAGED,
                         "%s: hidden_size: expected a multiple of num_attention_heads %" PRId64
                         " where head_dim is absent, found %" PRId64,
                         reader->path, model->heads, model->width);
    }
    TRY(read_integer(reader, "head_dim", LARGEST_WIDTH, model->width / model->heads, &model->head_width));
    if (model->head_width % 2 == 0) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: head_dim: rotary positions need an even width of a head, found %" PRId64,
                     reader->path, model->head_width);
}

enum status huggingface_read_config(const char *directory, struct model_config *model) {
    enum status status = STATUS_OK;
    char *path = NULL;
    json_t *json = NULL;
    TRY_GOTO(done, file_join(directory, "config.json", &path));
    TRY_GOTO(done, huggingface_read_json(path, &json));
    struct reader reader = {.path = path, .section = "", .json = json};
    const char *type = json_string_value(json_object_get(json, "model_type"));
    if (look_up(&reader, "quantization_config")) {
        status = wrong(&reader, STATUS_USAGE, "quantization_config", "none (weights as F32, F16, BF16 or F64)");
    } else if (type && strcmp(type, "gpt2") == 0) {
        status = read_gpt2(&reader, model);
    } else if (type && strcmp(type, "llama") == 0) {
        status = read_llama(&reader, model);
    } else {
        status = wrong(&reader, type ? STATUS_USAGE : STATUS_DAMAGED, "model_type", "\"gpt2\" or \"llama\"");
    }
    if (status != STATUS_OK) goto done;
    TRY_GOTO(done, read_id(&reader, "bos_token_id", model->vocabulary, &model->begin_of_text));
    TRY_GOTO(done, read_id(&reader, "eos_token_id", model->vocabulary, &model->end_of_text));
done:
    json_decref(json);
    free(path);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */
static json_t *id_or_null(int64_t id) {
    return id >= 0 ? json_integer(id) : json_null();
}

static json_t *gpt2_json(const struct model_config *m) {
    return json_pack("{s[s] ss sI sI sI sI sI sI sf ss}", "architectures", "GPT2LMHeadModel", "model_type", "gpt2",
                     "n_layer", (json_int_t)m->layers, "n_head", (json_int_t)m->heads, "n_embd", (json_int_t)m->width,
                     "n_inner", (json_int_t)m->mlp_width, "n_positions", (json_int_t)m->positions, "vocab_size",
                     (json_int_t)m->vocabulary, "layer_norm_epsilon", m->norm_epsilon, "activation_function",
                     "gelu_new");
}

static json_t *llama_json(const struct model_config *m) {
    json_t *scaling = json_null();
    if (m->rope_factor > 0) {
        scaling = json_pack("{ss sf sf sf sI}", "rope_type", "llama3", "factor", m->rope_factor, "low_freq_factor",
                            m->rope_low_factor, "high_freq_factor", m->rope_high_factor,
                            "original_max_position_embeddings", (json_int_t)m->rope_original_positions);
    }
    return json_pack("{s[s] ss sI sI sI sI sI sI sI sI sf sf so sb sb ss}", "architectures", "LlamaForCausalLM",
                     "model_type", "llama", "num_hidden_layers", (json_int_t)m->layers, "num_attention_heads",
                     (json_int_t)m->heads, "num_key_value_heads", (json_int_t)m->kv_heads, "head_dim",
                     (json_int_t)m->head_width, "hidden_size", (json_int_t)m->width, "intermediate_size",
                     (json_int_t)m->mlp_width, "vocab_size", (json_int_t)m->vocabulary, "max_position_embeddings",
                     (json_int_t)m->positions, "rms_norm_eps", m->norm_epsilon, "rope_theta", m->rope_theta,
                     "rope_scaling", scaling, "attention_bias", m->qkv_bias, "mlp_bias", m->mlp_bias, "hidden_act",
                     "silu");
}

enum status huggingface_write_config(const char *directory, const struct model_config *model) {
    enum status status = STATUS_OK;
    char *path = NULL, *text = NULL, *line = NULL;
    json_t *json = model->type == MODEL_GPT2 ? gpt2_json(model) : llama_json(model);
    json_t *rest =
        json_pack("{sb so so ss}", "tie_word_embeddings", model->tied, "bos_token_id", id_or_null(model->begin_of_text),
                  "eos_token_id", id_or_null(model->end_of_text), "torch_dtype", "float32");
    if (json && rest && json_object_update(json, rest) == 0)
        text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (!text) {
        status = error_set(STATUS_MEMORY, "no memory for config.json");
        goto done;
    }
    TRY_GOTO(done, memory_format(&line, "%s\n", text));
    TRY_GOTO(done, file_join(directory, "config.json", &path));
    status = file_write(path, line, strlen(line));
done:
    json_decref(json);
    json_decref(rest);
    free(text);
    free(line);
    free(path);
    return status;
}
