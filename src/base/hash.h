/* XXH3-64, for checksums and identities (not against attackers). */
#ifndef SQUINT_BASE_HASH_H
#define SQUINT_BASE_HASH_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t length);
/* The same in parts: memory for a stream, its parts in order, its hash. */
struct hash_stream;
enum status hash_stream_open(struct hash_stream **stream);
void hash_stream_start(struct hash_stream *stream);
void hash_stream_add(struct hash_stream *stream, const void *data, size_t length);
uint64_t hash_stream_end(const struct hash_stream *stream);
void hash_stream_close(struct hash_stream **stream);   /* NULL-safe */
uint64_t hash_combine(uint64_t state, uint64_t value); /* order matters */
/* *hash of a file's whole contents. */
enum status hash_file(const char *path, uint64_t *hash);
/* 16 lower-case hexadecimal digits and a NUL. */
void hash_text(uint64_t hash, char text[17]);

#endif
