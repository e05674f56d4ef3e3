/* See page_text.h. */
#include "report/page_text.h"

#include "base/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

void page_text_add(struct page_text *text, const void *bytes, size_t count) {
    if (text->status != STATUS_OK || count == 0) return;
    if (count > text->capacity - text->count) {
        size_t capacity = text->capacity > 0 ? text->capacity : 4096;
        while (capacity - text->count < count) capacity *= 2;
        text->status = memory_grow(&text->bytes, capacity, 1, "a page");
        if (text->status != STATUS_OK) return;
        text->capacity = capacity;
    }
    memcpy(text->bytes + text->count, bytes, count);
    text->count += count;
}

void page_text_print(struct page_text *text, const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof line) {
        if (text->status == STATUS_OK) text->status = error_set(STATUS_FAILED, "a page: a line of more than 255 bytes");
        return;
    }
    page_text_add(text, line, (size_t)length);
}

void page_text_string(struct page_text *text, const char *value) {
    page_text_add(text, "\"", 1);
    for (; *value; value++) {
        const unsigned char byte = (unsigned char)*value;
        if (byte < 0x20 || byte == '"' || byte == '\\' || byte == '<')
            page_text_print(text, "\\u%04x", byte);
        else
            page_text_add(text, value, 1);
    }
    page_text_add(text, "\"", 1);
}

void page_text_base64(struct page_text *text, const void *bytes, size_t count) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *from = bytes;
    for (size_t n = 0; n < count; n += 3) {
        const size_t left = count - n;
        const uint32_t three =
            (uint32_t)from[n] << 16 | (left > 1 ? (uint32_t)from[n + 1] << 8 : 0) | (left > 2 ? from[n + 2] : 0u);
        const char four[4] = {digits[three >> 18], digits[three >> 12 & 63], left > 1 ? digits[three >> 6 & 63] : '=',
                              left > 2 ? digits[three & 63] : '='};
        page_text_add(text, four, sizeof four);
    }
}

void page_text_deflated(struct page_text *text, const void *bytes, size_t count) {
    uLongf length = compressBound((uLong)count);
    unsigned char *deflated = NULL;
    if (text->status == STATUS_OK) text->status = memory_new(length, 1, "a page", &deflated);
    if (text->status != STATUS_OK) return;
    if (compress2(deflated, &length, bytes, (uLong)count, Z_BEST_COMPRESSION) == Z_OK)
        page_text_base64(text, deflated, length);
    else
        text->status = error_set(STATUS_MEMORY, "a page: no memory to compress it");
    free(deflated);
}

void page_text_free(struct page_text *text) {
    free(text->bytes);
    *text = (struct page_text){0};
}
