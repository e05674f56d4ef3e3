/* The model inside a tokenizer: vocabulary, merges, what becomes of unknown characters. */
#include "base/file.h"
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status tokenizer_read_vocabulary(const char *path, const char *key, const json_t *tokens,
                                      struct tokenizer *tokenizer) {
    const char *token;
    const json_t *id;
    char found[64];
    if (!json_is_object(tokens)) {
        return error_set(STATUS_DAMAGED, "%s: %s: expected an object of tokens and ids, found %s", path, key,
                         json_describe(tokens, found));
    }
    json_object_foreach((json_t *)tokens, token, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0) {
            return error_set(STATUS_DAMAGED, "%s: %s: token \"%s\": expected an id from 0 up, found %s", path, key,
                             token, json_describe(id, found));
        }
        enum status status =
            bpe_vocabulary_add(&tokenizer->vocabulary, token, strlen(token), (uint64_t)json_integer_value(id));
        if (status != STATUS_OK) return error_prefix(status, "%s: %s", path, key);
    }
    if (!tokenizer->vocabulary.tokens) {
        return error_set(STATUS_DAMAGED, "%s: %s: expected tokens, found an empty object", path, key);
    }
    tokenizer->model_count = tokenizer->vocabulary.count;
    return STATUS_OK;
}

/* Adds the merge of two tokens as the next in rank. */
static enum status add_merge(struct tokenizer *t, const char *left, size_t left_length, const char *right,
                             size_t right_length) {
    char *whole = NULL;
    TRY(memory_new(left_length + right_length, 1, "a merge", &whole));
    memcpy(whole, left, left_length);
    memcpy(whole + left_length, right, right_length);
    uint32_t a = bpe_vocabulary_find(&t->vocabulary, left, left_length);
    uint32_t b = bpe_vocabulary_find(&t->vocabulary, right, right_length);
    uint32_t both = bpe_vocabulary_find(&t->vocabulary, whole, left_length + right_length);
    enum status status = STATUS_OK;
    if (a == BPE_NONE || b == BPE_NONE || both == BPE_NONE) {
        const char *missing = a == BPE_NONE ? left : b == BPE_NONE ? right : whole;
        size_t length = a == BPE_NONE ? left_length : b == BPE_NONE ? right_length : left_length + right_length;
        status = error_set(STATUS_DAMAGED,
                           "\"%.*s %.*s\": expected both parts and their whole in the vocabulary, found no "
                           "\"%.*s\"",
                           (int)left_length, left, (int)right_length, right, (int)length, missing);
    }
    free(whole);
    TRY(status);
    uint32_t *pair = t->merge_list + 2 * t->merge_count;
    pair[0] = a;
    pair[1] = b;
    return bpe_merges_add(&t->merges, bpe_pair(a, b), (uint32_t)t->merge_count++, both);
}

/* Adds "left right"; false: it is not two words. */
static bool add_merge_line(struct tokenizer *t, const char *line, size_t length, enum status *status) {
    const char *space = memchr(line, ' ', length);
    if (!space || space == line || space + 1 == line + length) return false;
    size_t left = (size_t)(space - line), right = length - left - 1;
    if (memchr(space + 1, ' ', right)) return false;
    *status = add_merge(t, line, left, space + 1, right);
    return true;
}

static enum status read_merges(const char *path, const json_t *merges, struct tokenizer *t) {
    char found[64];
    if (!json_is_array(merges)) {
        return error_set(STATUS_DAMAGED, "%s: model.merges: expected a list, found %s", path,
                         json_describe(merges, found));
    }
    size_t count = json_array_size(merges);
    TRY(memory_grow(&t->merge_list, 2 * count, sizeof *t->merge_list, "the merges"));
    for (size_t i = 0; i < count; i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *left = json_string_value(json_array_get(merge, 0)),
                   *right = json_string_value(json_array_get(merge, 1));
        enum status status = STATUS_OK;
        bool read = false;
        if (json_is_string(merge)) {
            read = add_merge_line(t, json_string_value(merge), json_string_length(merge), &status);
        } else if (json_array_size(merge) == 2 && left && right) {
            read = true;
            status = add_merge(t, left, strlen(left), right, strlen(right));
        }
        if (!read) {
            return error_set(STATUS_DAMAGED, "%s: model.merges[%zu]: expected two tokens, found %s", path, i,
                             json_describe(merge, found));
        }
        if (status != STATUS_OK) return error_prefix(status, "%s: model.merges[%zu]", path, i);
    }
    return STATUS_OK;
}

enum status tokenizer_read_merges_file(const char *path, struct tokenizer *t) {
    struct file_map map = {0};
    TRY(file_map_open(path, &map));
    enum status status = STATUS_OK;
    const char *at = map.data, *end = at ? at + map.bytes : at;
    size_t room = 0, number = 0;
    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((stop ? stop : end) - at);
        const char *line = at;
        at += length + (stop ? 1 : 0);
        number++;
        if (length && line[length - 1] == '\r') length--;
        if (length == 0 || (length >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        if (t->merge_count == room) {
            room = 2 * room + 1024;
            TRY_GOTO(done, memory_grow(&t->merge_list, 2 * room, sizeof *t->merge_list, "the merges"));
        }
        if (!add_merge_line(t, line, length, &status)) {
            status =
                error_set(STATUS_DAMAGED, "%s: line %zu: expected two tokens and a space between them, found \"%.*s\"",
                          path, number, (int)length, line);
        } else if (status != STATUS_OK) {
            error_prefix(status, "%s: line %zu", path, number);
        }
        if (status != STATUS_OK) goto done;
    }
done:
    file_map_close(&map);
    return status;
}

/* Settings that change ids in ways that are not built. */
static enum status refuse_unsupported(const char *path, const json_t *model) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = NULL;
    char found[64];
    TRY(json_want_text(path, "model", model, "type", &type));
    if (type && strcmp(type, "BPE") != 0) {
        return error_set(STATUS_USAGE, "%s: model.type: expected BPE, found %s: not supported", path, type);
    }
    for (int i = 0; i < 2; i++) {
        const char *affix = NULL;
        TRY(json_want_text(path, "model", model, affixes[i], &affix));
        if (affix && affix[0]) {
            return error_set(STATUS_USAGE, "%s: model.%s: expected none, found \"%s\": not supported", path, affixes[i],
                             affix);
        }
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0) {
        return error_set(STATUS_USAGE, "%s: model.dropout: expected none, found %s: not supported", path,
                         json_describe(dropout, found));
    }
    return STATUS_OK;
}

enum status tokenizer_read_model(const char *path, const json_t *model, struct tokenizer *t) {
    char found[64];
    if (!json_is_object(model)) {
        return error_set(STATUS_DAMAGED, "%s: model: expected an object, found %s", path, json_describe(model, found));
    }
    TRY(refuse_unsupported(path, model));
    TRY(tokenizer_read_vocabulary(path, "model.vocab", json_object_get(model, "vocab"), t));
    TRY(read_merges(path, json_object_get(model, "merges"), t));
    TRY(json_want_bool(path, "model", model, "byte_fallback", &t->byte_fallback));
    TRY(json_want_bool(path, "model", model, "fuse_unk", &t->fuse_unknown));
    TRY(json_want_bool(path, "model", model, "ignore_merges", &t->ignore_merges));
    const char *unknown = NULL;
    TRY(json_want_text(path, "model", model, "unk_token", &unknown));
    if (unknown) {
        t->unknown = bpe_vocabulary_find(&t->vocabulary, unknown, strlen(unknown));
        if (t->unknown == BPE_NONE) {
            return error_set(STATUS_DAMAGED, "%s: model.unk_token: expected a token of the vocabulary, found \"%s\"",
                             path, unknown);
        }
    }
    return STATUS_OK;
}
