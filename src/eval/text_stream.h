/* Ids in, text out as soon as it is whole: a character of several bytes is held back until its last byte has come.
 * Knows no tokenizer: decoding is a function of the caller's. */
#ifndef SQUINT_EVAL_TEXT_STREAM_H
#define SQUINT_EVAL_TEXT_STREAM_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct text_stream { /* zero but for the functions; end with text_stream_free */
    /* *text: the bytes of all ids together, released with free(). */
    enum status (*decode)(void *context, const uint32_t *ids, size_t count, char **text, size_t *length);
    void *decode_context;
    enum status (*write)(void *context, const char *text, size_t length);
    void *write_context;
    uint32_t *ids;
    size_t count, capacity;
    size_t written; /* bytes of the text */
};

/* Takes in one id and writes what it completes. */
enum status text_stream_add(struct text_stream *stream, uint32_t id);
/* Writes what is left, whole or not. */
enum status text_stream_end(struct text_stream *stream);
void text_stream_free(struct text_stream *stream);

/* Bytes of text[0..length−1] that do not belong to a UTF-8 character still waiting for its end. */
size_t text_complete_bytes(const char *text, size_t length);

#endif
