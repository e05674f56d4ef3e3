/* The cache of words: short ones only, for they are nearly all. */
#include "base/memory.h"
#include "data-prep/bpe.h"

#include <stdlib.h>
#include <string.h>

/* 1,024 entries are 32 KiB; 2^18 are 8 MiB, room for the 131,072 commonest of about any text's words. */
enum { FIRST_ENTRIES = 1024, MOST_ENTRIES = 1 << 18, MOST_SPILL = 1 << 20 };

void bpe_cache_free(struct bpe_cache *cache) {
    free(cache->entries);
    free(cache->spill);
    *cache = (struct bpe_cache){0};
}

static struct bpe_cache_entry *place_of(const struct bpe_cache *cache, const uint64_t word[2]) {
    return &cache->entries[bpe_cache_find(cache, word) - cache->entries];
}

static enum status grow(struct bpe_cache *cache) {
    if (2 * (cache->used + 1) <= cache->entry_count) return STATUS_OK;
    if (cache->entry_count >= MOST_ENTRIES) {
        memset(cache->entries, 0, cache->entry_count * sizeof *cache->entries);
        cache->used = cache->spill_used = 0;
        return STATUS_OK;
    }
    struct bpe_cache grown = *cache;
    grown.entry_count = cache->entry_count ? 4 * cache->entry_count : FIRST_ENTRIES;
    TRY(memory_new(grown.entry_count, sizeof *grown.entries, "the cache of words", &grown.entries));
    for (size_t i = 0; i < cache->entry_count; i++) {
        if (cache->entries[i].word[1]) *place_of(&grown, cache->entries[i].word) = cache->entries[i];
    }
    free(cache->entries);
    *cache = grown;
    return STATUS_OK;
}

enum status bpe_cache_add(struct bpe_cache *cache, const uint64_t word[2], const uint32_t *ids, size_t count) {
    TRY(grow(cache));
    struct bpe_cache_entry entry = {{word[0], word[1]}, (uint32_t)count, {0}};
    if (count <= BPE_CACHE_INLINE) {
        if (count) memcpy(entry.ids, ids, count * sizeof *ids);
    } else {
        if (cache->spill_used + count > MOST_SPILL) return STATUS_OK; /* unremembered until the cache starts anew */
        if (cache->spill_used + count > cache->spill_room) {
            size_t room = 2 * (cache->spill_used + count);
            TRY(memory_grow(&cache->spill, room, sizeof *cache->spill, "the cache of words"));
            cache->spill_room = room;
        }
        memcpy(cache->spill + cache->spill_used, ids, count * sizeof *ids);
        entry.ids[0] = (uint32_t)cache->spill_used;
        cache->spill_used += count;
    }
    *place_of(cache, word) = entry;
    cache->used++;
    return STATUS_OK;
}
