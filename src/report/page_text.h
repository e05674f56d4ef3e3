/* A text that grows: a page as it is put together. The first failure sticks and later calls do nothing, so that a page
 * is written down without a look at every line; ask `status` at the end. */
#ifndef SQUINT_REPORT_PAGE_TEXT_H
#define SQUINT_REPORT_PAGE_TEXT_H

#include "base/error.h"

#include <stddef.h>

struct page_text { /* starts as zeros; end with page_text_free */
    char *bytes;
    size_t count, capacity;
    enum status status;
};

void page_text_add(struct page_text *text, const void *bytes, size_t count);
/* As printf; at most 255 bytes. */
void page_text_print(struct page_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string with its quotes, safe inside <script>: no "<" is left in it. Bytes that are not UTF-8 pass as they are;
 * a browser shows them as U+FFFD. */
void page_text_string(struct page_text *text, const char *value);
/* `count` bytes as base64, without quotes. */
void page_text_base64(struct page_text *text, const void *bytes, size_t count);
/* The same of the bytes deflated (zlib's format, which DecompressionStream("deflate") reads). */
void page_text_deflated(struct page_text *text, const void *bytes, size_t count);
void page_text_free(struct page_text *text);

#endif
