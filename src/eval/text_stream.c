/* See text_stream.h. The whole text is decoded anew for every id: what an id stands for depends on its neighbours, and
 * decoding costs nothing beside a model. */
#include "eval/text_stream.h"

#include "base/memory.h"

#include <stdlib.h>

size_t text_complete_bytes(const char *text, size_t length) {
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        unsigned char byte = (unsigned char)text[length - back];
        if ((byte & 0xC0) == 0x80) continue; /* inside a character: its first byte is further back */
        size_t needs = byte >= 0xF0 && byte < 0xF8   ? 4
                       : byte >= 0xE0 && byte < 0xF0 ? 3
                       : byte >= 0xC2 && byte < 0xE0 ? 2
                                                     : 1;
        return needs > back ? length - back : length;
    }
    return length;
}

static enum status flush(struct text_stream *stream, int whole) {
    char *text = NULL;
    size_t length = 0;
    TRY(stream->decode(stream->decode_context, stream->ids, stream->count, &text, &length));
    enum status status = STATUS_OK;
    size_t ready = whole ? length : text_complete_bytes(text, length);
    if (ready > stream->written) {
        status = stream->write(stream->write_context, text + stream->written, ready - stream->written);
        stream->written = ready;
    }
    free(text);
    return status;
}

enum status text_stream_add(struct text_stream *stream, uint32_t id) {
    if (stream->count == stream->capacity) {
        size_t capacity = stream->capacity ? 2 * stream->capacity : 256;
        TRY(memory_grow(&stream->ids, capacity, sizeof *stream->ids, "text"));
        stream->capacity = capacity;
    }
    stream->ids[stream->count++] = id;
    return flush(stream, 0);
}

enum status text_stream_end(struct text_stream *stream) {
    return flush(stream, 1);
}

void text_stream_free(struct text_stream *stream) {
    free(stream->ids);
    stream->ids = NULL;
    stream->count = stream->capacity = 0;
}
