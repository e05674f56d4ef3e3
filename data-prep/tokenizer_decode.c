/* Ids to text. */
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

static enum status check_id(const struct tokenizer *t, uint32_t id) {
    if (id < t->vocabulary.count && t->vocabulary.length[id] != BPE_NONE) return STATUS_OK;
    if (id < t->vocabulary.count)
        return error_set(STATUS_USAGE, "id %u: expected an id of %s, found none with it", id, t->name);
    return error_set(STATUS_USAGE, "id %u: expected an id of %s, below %zu", id, t->name, t->vocabulary.count);
}

static enum status append_token(const struct tokenizer *t, uint32_t id, struct text *out) {
    size_t begin = t->output_begin[id];
    return text_append(out, t->output + begin, t->output_begin[id + 1] - begin);
}

/* The first token of a text, whose markers vanish; tokenizer_steps.c sees to it that they are the first thing replaced.
 */
static enum status append_first(const struct tokenizer *t, uint32_t id, struct text *out) {
    const char *token = t->vocabulary.bytes + t->vocabulary.begin[id], *marker = t->decoder.replace[0].from;
    size_t length = t->vocabulary.length[id], width = strlen(marker);
    if (!memmem(token, length, marker, width)) return append_token(t, id, out);
    for (size_t at = 0; at < length;) {
        if (at + width <= length && memcmp(token + at, marker, width) == 0) {
            at += width;
        } else {
            TRY(text_append(out, token + at++, 1));
        }
    }
    return STATUS_OK;
}

/* Cuts the decoder's character from both ends. */
static void strip(const struct decoder *decoder, struct text *text) {
    if (!decoder->strip) return;
    size_t width = strlen(decoder->strip), begin = 0;
    if (width == 0) return;
    for (int64_t i = 0; i < decoder->strip_start && text->length - begin >= width; i++) {
        if (memcmp(text->bytes + begin, decoder->strip, width) != 0) break;
        begin += width;
    }
    for (int64_t i = 0; i < decoder->strip_stop && text->length - begin >= width; i++) {
        if (memcmp(text->bytes + text->length - width, decoder->strip, width) != 0) break;
        text->length -= width;
    }
    text->length -= begin;
    memmove(text->bytes, text->bytes + begin, text->length);
    text->bytes[text->length] = '\0';
}

enum status tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t count, bool special, char **text,
                             size_t *length) {
    struct text out = {0};
    enum status status = STATUS_OK;
    bool first = true;
    *text = NULL;
    *length = 0;
    TRY_GOTO(done, text_append(&out, "", 0));
    for (size_t i = 0; i < count; i++) {
        TRY_GOTO(done, check_id(t, ids[i]));
        if (t->special[ids[i]] && !special) continue;
        bool strips = first && t->decoder.strips_first_marker;
        TRY_GOTO(done, strips ? append_first(t, ids[i], &out) : append_token(t, ids[i], &out));
        first = false;
    }
    strip(&t->decoder, &out);
    *text = out.bytes;
    *length = out.length;
    return STATUS_OK;
done:
    free(out.bytes);
    return status;
}

enum status tokenizer_decode_one(const struct tokenizer *t, uint32_t id, char **text, size_t *length) {
    TRY(check_id(t, id));
    size_t begin = t->output_begin[id], bytes = t->output_begin[id + 1] - begin;
    TRY(memory_grow(text, *length + bytes + 1, 1, "a text"));
    if (bytes) memcpy(*text + *length, t->output + begin, bytes);
    *length += bytes;
    (*text)[*length] = '\0';
    return STATUS_OK;
}
