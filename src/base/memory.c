/* See memory.h. */
#include "base/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status out_of_memory(size_t count, size_t size, const char *what) {
    return error_set(STATUS_MEMORY, "no memory for %s: %zu elements of %zu bytes", what, count, size);
}

enum status memory_new(size_t count, size_t size, const char *what, void *out) {
    void *block = calloc(count ? count : 1, size ? size : 1);
    memcpy(out, &block, sizeof block);
    return block ? STATUS_OK : out_of_memory(count, size, what);
}

enum status memory_grow(void *block, size_t count, size_t size, const char *what) {
    void *old;
    memcpy(&old, block, sizeof old);
    if (size && count > SIZE_MAX / size) return out_of_memory(count, size, what);
    void *grown = realloc(old, count && size ? count * size : 1);
    if (!grown) return out_of_memory(count, size, what);
    memcpy(block, &grown, sizeof grown);
    return STATUS_OK;
}

enum status memory_copy_text(const char *text, char **out) {
    *out = strdup(text);
    return *out ? STATUS_OK : out_of_memory(strlen(text) + 1, 1, "a text");
}

/* Not vasprintf: Open MPI leaks its texts, and the leak checker's list of known leaks must not cover ours. */
enum status memory_format(char **out, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    *out = length >= 0 ? malloc((size_t)length + 1) : NULL;
    if (*out) (void)vsnprintf(*out, (size_t)length + 1, format, again);
    va_end(again);
    va_end(arguments);
    return *out ? STATUS_OK : out_of_memory(1, 1, "a text");
}
