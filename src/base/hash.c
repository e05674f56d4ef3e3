/* See hash.h. */
#include "base/hash.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t length) { return XXH3_64bits(data, length); }

enum status hash_stream_open(struct hash_stream **stream) {
    *stream = (struct hash_stream *)XXH3_createState();
    if (!*stream) return error_set(STATUS_MEMORY, "no memory for a hash's state");
    hash_stream_start(*stream);
    return STATUS_OK;
}

void hash_stream_start(struct hash_stream *stream) { XXH3_64bits_reset((XXH3_state_t *)stream); }

void hash_stream_add(struct hash_stream *stream, const void *data, size_t length) {
    XXH3_64bits_update((XXH3_state_t *)stream, data, length);
}

uint64_t hash_stream_end(const struct hash_stream *stream) { return XXH3_64bits_digest((const XXH3_state_t *)stream); }

void hash_stream_close(struct hash_stream **stream) {
    XXH3_freeState((XXH3_state_t *)*stream);
    *stream = NULL;
}

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
