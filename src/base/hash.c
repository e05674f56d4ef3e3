/* See hash.h. */
#include "base/hash.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t length) { return XXH3_64bits(data, length); }

uint64_t hash_combine(uint64_t state, uint64_t value) {
    uint64_t pair[2] = {state, value};
    return XXH3_64bits(pair, sizeof pair);
}

enum status hash_file(const char *path, uint64_t *hash) {
    struct file_map map;
    TRY(file_map_open(path, &map));
    *hash = hash_bytes(map.data, map.bytes);
    file_map_close(&map);
    return STATUS_OK;
}

void hash_text(uint64_t hash, char text[17]) { snprintf(text, 17, "%016" PRIx64, hash); }
