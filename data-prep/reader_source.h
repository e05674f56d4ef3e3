/* Bytes of a file or of standard input, unpacked on the way when they are gzip or zstd. */
#ifndef SQUINT_DATA_PREP_READER_SOURCE_H
#define SQUINT_DATA_PREP_READER_SOURCE_H

#include "base/error.h"

#include <stddef.h>

struct source;

enum status source_open(const char *path, struct source **source);
/* *got = bytes written to `data`, at most `capacity`; 0 only at the end. STATUS_DAMAGED names the path and what is
 * wrong. */
enum status source_read(struct source *source, char *data, size_t capacity, size_t *got);
void source_close(struct source **source); /* NULL-safe */

#endif
