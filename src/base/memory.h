/* Host allocations with a message on failure. Release with free(). */
#ifndef SQUINT_BASE_MEMORY_H
#define SQUINT_BASE_MEMORY_H

#include "base/error.h"

#include <stddef.h>

/* *out = `count` zeroed elements of `size` bytes (at least one byte). STATUS_MEMORY names `what`; *out is then NULL. */
enum status memory_new(size_t count, size_t size, const char *what, void *out);
/* Grows *block (may be NULL) to `count` elements, keeping its contents; on failure the old block stays valid. */
enum status memory_grow(void *block, size_t count, size_t size, const char *what);
/* *out = a copy of `text`. */
enum status memory_copy_text(const char *text, char **out);
/* *out = printf's text. */
enum status memory_format(char **out, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
