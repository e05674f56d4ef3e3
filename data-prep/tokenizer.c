/* Opens and closes tokenizers, and answers what they are. */
#include "data-prep/tokenizer.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"
#include "data-prep/unicode.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void token_buffer_free(struct token_buffer *buffer) {
    free(buffer->ids);
    *buffer = (struct token_buffer){0};
}

static int hex_digit(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

/* <0x00> to <0xFF>: the byte; -1: another token. */
static int fallback_byte(const char *token, size_t length) {
    if (length != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>') return -1;
    int high = hex_digit(token[3]), low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

static void find_byte_tokens(struct tokenizer *t) {
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        size_t length = t->byte_level ? unicode_encode(byte_to_character((unsigned char)byte), name)
                                      : (size_t)snprintf(name, sizeof name, "<0x%02X>", byte);
        uint32_t id = bpe_vocabulary_find(&t->vocabulary, name, length);
        t->byte_token[byte] = id != BPE_NONE && id < t->model_count ? id : BPE_NONE;
    }
}

/* Whether a token that merges make holds a marker behind another character. */
static bool merge_crosses_marker(const struct tokenizer *t) {
    const size_t width = sizeof TOKENIZER_MARKER - 1;
    struct text whole = {0};
    bool crosses = false;
    for (size_t i = 0; i < 2 * t->merge_count && !crosses; i += 2) {
        whole.length = 0;
        for (int side = 0; side < 2; side++) {
            uint32_t id = t->merge_list[i + (size_t)side];
            const char *token = t->vocabulary.bytes + t->vocabulary.begin[id];
            if (text_append(&whole, token, t->vocabulary.length[id]) != STATUS_OK) crosses = true;
        }
        for (size_t at = 1; at + width <= whole.length && !crosses; at++) {
            crosses = memcmp(whole.bytes + at, TOKENIZER_MARKER, width) == 0 &&
                      (at < width || memcmp(whole.bytes + at - width, TOKENIZER_MARKER, width) != 0);
        }
    }
    free(whole.bytes);
    return crosses;
}

/* The bytes of a token inside a text. */
static enum status append_output(const struct tokenizer *t, uint32_t id, struct text *out) {
    const char *token = t->vocabulary.bytes + t->vocabulary.begin[id];
    size_t length = t->vocabulary.length[id];
    const struct decoder *decoder = &t->decoder;
    if (decoder->byte_level) return characters_to_bytes(token, length, out);
    int byte = decoder->byte_fallback ? fallback_byte(token, length) : -1;
    if (byte >= 0) return text_append(out, &(char){(char)byte}, 1);
    struct text replaced = {0};
    enum status status = text_append(&replaced, token, length);
    for (size_t i = 0; i < decoder->replace_count && status == STATUS_OK; i++) {
        struct tokenizer step = {.normalizer = {decoder->replace[i]}, .normalizer_count = 1};
        struct text next = {0};
        status = tokenizer_normalize(&step, replaced.bytes, replaced.length, &next);
        free(replaced.bytes);
        replaced = next;
    }
    if (status == STATUS_OK) status = text_append(out, replaced.bytes, replaced.length);
    free(replaced.bytes);
    return status;
}

static enum status make_output(struct tokenizer *t) {
    struct text out = {0};
    enum status status = STATUS_OK;
    TRY(memory_new(t->vocabulary.count + 1, sizeof *t->output_begin, "the tokens' bytes", &t->output_begin));
    for (size_t id = 0; id < t->vocabulary.count && status == STATUS_OK; id++) {
        t->output_begin[id] = out.length;
        if (t->vocabulary.length[id] != BPE_NONE) status = append_output(t, (uint32_t)id, &out);
    }
    t->output_begin[t->vocabulary.count] = out.length;
    t->output = out.bytes;
    return status;
}

static enum status mark_special(struct tokenizer *t) {
    TRY(memory_new(t->vocabulary.count, sizeof *t->special, "the special tokens", &t->special));
    for (int index = 0; index < 2; index++) {
        const struct added_round *round = &t->round[index];
        for (size_t i = 0; i < round->count; i++) t->special[round->tokens[i].id] |= round->tokens[i].special;
    }
    return STATUS_OK;
}

static uint64_t hash_string(uint64_t state, const char *text) {
    return hash_combine(state, text ? hash_bytes(text, strlen(text)) : 0);
}

static uint64_t hash_settings(const struct tokenizer *t, uint64_t state) {
    const struct decoder *d = &t->decoder;
    const uint64_t numbers[] = {
        t->byte_level, t->byte_fallback, t->fuse_unknown,        t->ignore_merges,         t->unknown,
        d->byte_level, d->byte_fallback, d->strips_first_marker, (uint64_t)d->strip_start, (uint64_t)d->strip_stop};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) state = hash_combine(state, numbers[i]);
    for (size_t i = 0; i < t->normalizer_count; i++) {
        state = hash_string(hash_string(state, t->normalizer[i].from), t->normalizer[i].to);
    }
    for (size_t i = 0; i < t->pre_count; i++) {
        const struct pre_step *step = &t->pre[i];
        state = hash_combine(state, (uint64_t)step->kind);
        if (step->kind == PRE_GPT2) continue;
        state = hash_combine(state, (uint64_t)step->behavior << 8 | (uint64_t)step->prepend << 4 |
                                        (uint64_t)step->individual << 1 | (uint64_t)step->inverted);
        state = hash_string(hash_string(state, step->marker), step->pattern ? split_pattern_text(step->pattern) : NULL);
    }
    for (size_t i = 0; i < d->replace_count; i++) {
        state = hash_string(hash_string(state, d->replace[i].from), d->replace[i].to);
    }
    return hash_string(state, d->strip);
}

static uint64_t hash_tokenizer(const struct tokenizer *t) {
    uint64_t state = hash_settings(t, 1); /* 1: of this way of hashing */
    for (size_t id = 0; id < t->vocabulary.count; id++) {
        bool present = t->vocabulary.length[id] != BPE_NONE;
        state = hash_combine(
            state, present ? hash_bytes(t->vocabulary.bytes + t->vocabulary.begin[id], t->vocabulary.length[id]) : 0);
    }
    state = hash_combine(state, hash_bytes(t->merge_list, 2 * t->merge_count * sizeof *t->merge_list));
    for (int index = 0; index < 2; index++) {
        const struct added_round *round = &t->round[index];
        for (size_t i = 0; i < round->count; i++) {
            const struct added_token *token = &round->tokens[i];
            uint64_t flags = (uint64_t)token->special << 2 | (uint64_t)token->strips_left << 1 | token->strips_right;
            state = hash_combine(state, (uint64_t)token->id << 8 | flags);
        }
    }
    return state;
}

/* The id of tokenizer_config.json's `key` (a text, or an object with a "content"), else of the first known name. */
static enum status find_named(const struct tokenizer *t, const char *path, const json_t *config, const char *key,
                              const char *const *names, int64_t *id) {
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    *id = -1;
    if (value && !json_is_null(value)) {
        const char *name = json_string_value(value);
        *id = name ? tokenizer_find(t, name) : -1;
        char found[64];
        if (*id >= 0) return STATUS_OK;
        return error_set(STATUS_DAMAGED, "%s: %s: expected a token of the vocabulary, found %s", path, key,
                         json_describe(value, found));
    }
    for (; *names && *id < 0; names++) *id = tokenizer_find(t, *names);
    return STATUS_OK;
}

static enum status read_config(struct tokenizer *t, const char *path, const json_t *config) {
    static const char *const ends[] = {"<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", NULL};
    static const char *const begins[] = {"<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", NULL};
    TRY(find_named(t, path, config, "eos_token", ends, &t->end_of_text));
    return find_named(t, path, config, "bos_token", begins, &t->begin_of_text);
}

/* GPT-2's own two files. Their special token and their splitter are not written down anywhere but in GPT-2. */
static enum status read_pair(const char *vocabulary_path, const char *merges_path, const char *config_path,
                             const json_t *config, struct tokenizer *t) {
    json_t *root = NULL;
    bool prefix = false;
    enum status status = STATUS_OK;
    TRY_GOTO(done, json_read_file(vocabulary_path, &root));
    TRY_GOTO(done, tokenizer_read_vocabulary(vocabulary_path, "vocabulary", root, t));
    TRY_GOTO(done, tokenizer_read_merges_file(merges_path, t));
    TRY_GOTO(done, json_want_bool(config_path, "settings", config, "add_prefix_space", &prefix));
    t->byte_level = t->decoder.byte_level = true;
    if (prefix) t->pre[t->pre_count++].kind = PRE_PREFIX_SPACE;
    t->pre[t->pre_count++].kind = PRE_GPT2;
    if (tokenizer_find(t, "<|endoftext|>") >= 0) TRY_GOTO(done, tokenizer_add_special(t, "<|endoftext|>"));
done:
    json_decref(root);
    return status;
}

/* What lies where in a tokenizer's directory. */
struct paths {
    char *json, *vocabulary, *merges, *config, *name;
};

static void paths_free(struct paths *paths) {
    free(paths->json);
    free(paths->vocabulary);
    free(paths->merges);
    free(paths->config);
    free(paths->name);
}

static enum status find_paths(const char *path, struct paths *paths) {
    char directory[PATH_MAX];
    if (!realpath(path, directory)) {
        return error_set(STATUS_NOT_FOUND, "%s: expected a tokenizer's directory or its tokenizer.json, found nothing",
                         path);
    }
    bool is_file = !file_is_directory(directory);
    if (is_file) *strrchr(directory, '/') = '\0';
    TRY(memory_copy_text(strrchr(directory, '/') ? strrchr(directory, '/') + 1 : "", &paths->name));
    TRY(file_join(is_file ? directory : path, "tokenizer_config.json", &paths->config));
    if (is_file) return memory_copy_text(path, &paths->json);
    TRY(file_join(path, "tokenizer.json", &paths->json));
    TRY(file_join(path, "vocab.json", &paths->vocabulary));
    TRY(file_join(path, "merges.txt", &paths->merges));
    if (file_exists(paths->json) || (file_exists(paths->vocabulary) && file_exists(paths->merges))) return STATUS_OK;
    return error_set(STATUS_NOT_FOUND, "%s: expected tokenizer.json, or vocab.json and merges.txt, found %s", path,
                     file_exists(paths->vocabulary) ? "vocab.json alone"
                     : file_exists(paths->merges)   ? "merges.txt alone"
                                                    : "neither");
}

static enum status finish(struct tokenizer *t) {
    find_byte_tokens(t);
    t->cuts_before_marker =
        !t->byte_level && !t->ignore_merges && tokenizer_find(t, TOKENIZER_MARKER) >= 0 && !merge_crosses_marker(t);
    TRY(make_output(t));
    TRY(mark_special(t));
    t->hash = hash_tokenizer(t);
    return memory_new(1, sizeof *t->pool, "a tokenizer", &t->pool);
}

enum status tokenizer_open(const char *path, struct tokenizer **tokenizer) {
    struct paths paths = {0};
    struct tokenizer *t = NULL;
    json_t *config = NULL;
    enum status status = STATUS_OK;
    *tokenizer = NULL;
    TRY_GOTO(done, find_paths(path, &paths));
    TRY_GOTO(done, memory_new(1, sizeof *t, "a tokenizer", &t));
    t->unknown = BPE_NONE;
    t->name = paths.name;
    paths.name = NULL;
    if (file_exists(paths.config)) TRY_GOTO(done, json_read_file(paths.config, &config));
    if (file_exists(paths.json)) {
        TRY_GOTO(done, tokenizer_read_json(paths.json, t));
    } else {
        TRY_GOTO(done, read_pair(paths.vocabulary, paths.merges, paths.config, config, t));
    }
    TRY_GOTO(done, read_config(t, paths.config, config));
    TRY_GOTO(done, finish(t));
done:
    json_decref(config);
    paths_free(&paths);
    if (status != STATUS_OK) tokenizer_close(&t);
    *tokenizer = t;
    return status;
}

static void steps_free(struct normalizer_step *steps, size_t count) {
    for (size_t i = 0; i < count; i++) {
        free(steps[i].from);
        free(steps[i].to);
    }
}

void tokenizer_close(struct tokenizer **tokenizer) {
    struct tokenizer *t = *tokenizer;
    if (!t) return;
    state_pool_free(&t->pool);
    added_round_free(&t->round[0]);
    added_round_free(&t->round[1]);
    steps_free(t->normalizer, t->normalizer_count);
    steps_free(t->decoder.replace, t->decoder.replace_count);
    for (size_t i = 0; i < t->pre_count; i++) {
        split_pattern_close(&t->pre[i].pattern);
        free(t->pre[i].marker);
    }
    bpe_vocabulary_free(&t->vocabulary);
    bpe_merges_free(&t->merges);
    free(t->merge_list);
    free(t->decoder.strip);
    free(t->special);
    free(t->output);
    free(t->output_begin);
    free(t->name);
    free(t);
    *tokenizer = NULL;
}

const char *tokenizer_name(const struct tokenizer *t) {
    return t->name;
}
uint64_t tokenizer_hash(const struct tokenizer *t) {
    return t->hash;
}
int64_t tokenizer_vocabulary(const struct tokenizer *t) {
    return (int64_t)t->vocabulary.count;
}
int64_t tokenizer_end_of_text(const struct tokenizer *t) {
    return t->end_of_text;
}
int64_t tokenizer_begin_of_text(const struct tokenizer *t) {
    return t->begin_of_text;
}

int64_t tokenizer_find(const struct tokenizer *t, const char *token) {
    uint32_t id = bpe_vocabulary_find(&t->vocabulary, token, strlen(token));
    return id == BPE_NONE ? -1 : (int64_t)id;
}
