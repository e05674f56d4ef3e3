/* XXH3-64, for checksums and identities (not against attackers). */
#ifndef SQUINT_BASE_HASH_H
#define SQUINT_BASE_HASH_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t length);
uint64_t hash_combine(uint64_t state, uint64_t value); /* order matters */
/* *hash of a file's whole contents. */
enum status hash_file(const char *path, uint64_t *hash);
/* 16 lower-case hexadecimal digits and a NUL. */
void hash_text(uint64_t hash, char text[17]);

#endif
