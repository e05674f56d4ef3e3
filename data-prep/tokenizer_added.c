/* Added tokens: found in the text before the model sees it, leftmost first, the longest of those that begin together.
 */
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"
#include "data-prep/unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status append_token(struct tokenizer *t, const struct added_token *token, bool normalized) {
    struct added_round *round = &t->round[normalized];
    TRY(memory_grow(&round->tokens, round->count + 1, sizeof *round->tokens, "the added tokens"));
    struct added_token *added = &round->tokens[round->count];
    *added = *token;
    added->pattern = NULL;
    TRY(memory_copy_text(token->content, &added->content));
    round->count++;
    if (!token->special) round->ordinary = true;
    struct text pattern = {0};
    enum status status = normalized ? tokenizer_normalize(t, added->content, strlen(added->content), &pattern)
                                    : text_append(&pattern, added->content, strlen(added->content));
    added->pattern = pattern.bytes;
    added->length = pattern.length;
    if (status == STATUS_OK && pattern.length == 0) { /* normalized away: nothing to look for */
        free(added->content);
        free(added->pattern);
        round->count--;
    }
    return status;
}

static int compare_tokens(const void *a, const void *b) {
    const struct added_token *one = a, *other = b;
    unsigned char first = (unsigned char)one->pattern[0], second = (unsigned char)other->pattern[0];
    if (first != second) return first < second ? -1 : 1;
    if (one->length != other->length) return one->length > other->length ? -1 : 1;
    return one->id < other->id ? -1 : one->id > other->id;
}

static void index_round(struct added_round *round) {
    if (round->count) qsort(round->tokens, round->count, sizeof *round->tokens, compare_tokens);
    size_t at = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        round->first[byte] = at;
        while (at < round->count && (unsigned char)round->tokens[at].pattern[0] == byte) at++;
    }
    round->first[256] = at;
}

enum status tokenizer_add_special(struct tokenizer *t, const char *content) {
    struct added_token token = {.content = (char *)content, .special = true};
    token.id = bpe_vocabulary_find(&t->vocabulary, content, strlen(content));
    TRY(append_token(t, &token, true));
    index_round(&t->round[1]);
    return STATUS_OK;
}

static enum status read_token(const char *path, size_t index, const json_t *object, struct tokenizer *t) {
    char where[64], found[64];
    snprintf(where, sizeof where, "added_tokens[%zu]", index);
    const json_t *id = json_object_get(object, "id");
    const char *content = NULL;
    struct added_token token = {0};
    bool single_word = false, normalized = true;
    if (!json_is_object(object)) {
        return error_set(STATUS_DAMAGED, "%s: %s: expected an object, found %s", path, where,
                         json_describe(object, found));
    }
    if (!json_is_integer(id) || json_integer_value(id) < 0) {
        return error_set(STATUS_DAMAGED, "%s: %s.id: expected an id from 0 up, found %s", path, where,
                         json_describe(id, found));
    }
    TRY(json_want_text(path, where, object, "content", &content));
    if (!content) return error_set(STATUS_DAMAGED, "%s: %s.content: expected a text, found nothing", path, where);
    TRY(json_want_bool(path, where, object, "special", &token.special));
    normalized = !token.special;
    TRY(json_want_bool(path, where, object, "normalized", &normalized));
    TRY(json_want_bool(path, where, object, "lstrip", &token.strips_left));
    TRY(json_want_bool(path, where, object, "rstrip", &token.strips_right));
    TRY(json_want_bool(path, where, object, "single_word", &single_word));
    if (single_word) {
        return error_set(STATUS_USAGE, "%s: %s.single_word: expected false, found true: not supported", path, where);
    }
    token.id = bpe_vocabulary_find(&t->vocabulary, content, strlen(content));
    if (token.id == BPE_NONE) {
        enum status status =
            bpe_vocabulary_add(&t->vocabulary, content, strlen(content), (uint64_t)json_integer_value(id));
        if (status != STATUS_OK) return error_prefix(status, "%s: %s", path, where);
        token.id = (uint32_t)json_integer_value(id);
    } else if (token.id != json_integer_value(id)) {
        return error_set(STATUS_DAMAGED, "%s: %s: \"%s\": expected its id of the vocabulary, %u, found %lld", path,
                         where, content, token.id, (long long)json_integer_value(id));
    }
    if (content[0] == '\0') return STATUS_OK; /* nothing to look for */
    token.content = (char *)content;
    return append_token(t, &token, normalized);
}

enum status tokenizer_read_added(const char *path, const json_t *list, struct tokenizer *t) {
    char found[64];
    if (list && !json_is_null(list) && !json_is_array(list)) {
        return error_set(STATUS_DAMAGED, "%s: added_tokens: expected a list, found %s", path,
                         json_describe(list, found));
    }
    for (size_t i = 0; i < json_array_size(list); i++) TRY(read_token(path, i, json_array_get(list, i), t));
    index_round(&t->round[0]);
    index_round(&t->round[1]);
    return STATUS_OK;
}

void added_round_free(struct added_round *round) {
    for (size_t i = 0; i < round->count; i++) {
        free(round->tokens[i].content);
        free(round->tokens[i].pattern);
    }
    free(round->tokens);
    *round = (struct added_round){0};
}

/* Where the white space that ends at `at` begins, not before `least`. */
static size_t space_before(const char *text, size_t at, size_t least) {
    while (at > least) {
        size_t start = at - 1;
        while (start > least && ((unsigned char)text[start] & 0xC0) == 0x80) start--;
        uint32_t code;
        size_t bytes = unicode_decode((const unsigned char *)text + start, at - start, &code);
        if (bytes != at - start || unicode_class(code) != UNICODE_SPACE) break;
        at = start;
    }
    return at;
}

static size_t space_after(const char *text, size_t length, size_t at) {
    while (at < length) {
        uint32_t code;
        size_t bytes = unicode_decode((const unsigned char *)text + at, length - at, &code);
        if (unicode_class(code) != UNICODE_SPACE) break;
        at += bytes;
    }
    return at;
}

uint32_t added_round_find(const struct added_round *round, const char *text, size_t length, size_t from, bool special,
                          size_t *begin, size_t *end) {
    *begin = *end = length;
    if (!special && !round->ordinary) return BPE_NONE;
    for (size_t at = from; at < length; at++) {
        unsigned char byte = (unsigned char)text[at];
        for (size_t i = round->first[byte]; i < round->first[byte + 1]; i++) {
            const struct added_token *token = &round->tokens[i];
            if (token->length > length - at || memcmp(text + at, token->pattern, token->length) != 0) continue;
            if (token->special && !special) { /* ordinary text, and still the leftmost and longest here */
                at += token->length - 1;
                break;
            }
            *begin = token->strips_left ? space_before(text, at, from) : at;
            *end = at + token->length;
            if (token->strips_right) *end = space_after(text, length, *end);
            return token->id;
        }
    }
    return BPE_NONE;
}
