/* Byte-pair encoding itself: a vocabulary, its merges, and merging a word's symbols; plus the cache of words that makes
 * it fast. Sennrich et al. 2016. Knows nothing of files, normalizers or special tokens. */
#ifndef SQUINT_DATA_PREP_BPE_H
#define SQUINT_DATA_PREP_BPE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BPE_NONE UINT32_MAX
enum { BPE_VOCABULARY_LIMIT = 1 << 24 };

/* Token texts by id, as the file spells them. */
struct bpe_vocabulary {
    char *bytes;
    size_t used, capacity;
    size_t *begin;    /* [count] */
    uint32_t *length; /* [count]; BPE_NONE: no token has this id */
    size_t count;     /* largest id + 1 */
    size_t room;      /* ids that begin and length have room for */
    size_t tokens;
    uint32_t *slots; /* open addressing over the texts: id + 1, 0 free */
    size_t slot_count;
};

/* Adds a token. STATUS_DAMAGED when the id or the text is there already, or the id is not below BPE_VOCABULARY_LIMIT.
 */
enum status bpe_vocabulary_add(struct bpe_vocabulary *vocabulary, const char *text, size_t length, uint64_t id);
uint32_t bpe_vocabulary_find(const struct bpe_vocabulary *vocabulary, const char *text,
                             size_t length); /* or BPE_NONE */
void bpe_vocabulary_free(struct bpe_vocabulary *vocabulary);

/* left + right -> id, lower ranks first. Open addressing over the pair. */
struct bpe_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank, id;
};
struct bpe_merges {
    struct bpe_merge *slots;
    size_t slot_count, count;
};

static inline uint64_t bpe_pair(uint32_t left, uint32_t right) {
    return (uint64_t)left << 32 | right;
}

/* Adds a merge; a pair that is there already takes the new rank and id. */
enum status bpe_merges_add(struct bpe_merges *merges, uint64_t pair, uint32_t rank, uint32_t id);
const struct bpe_merge *bpe_merges_find(const struct bpe_merges *merges, uint64_t pair); /* or NULL */
void bpe_merges_free(struct bpe_merges *merges);

/* Memory for merging, reused from word to word; one a thread. */
struct bpe_scratch {
    uint32_t *rank, *next, *previous; /* [room] */
    uint64_t *heap;
    size_t room, heap_room;
};
void bpe_scratch_free(struct bpe_scratch *scratch);

/* Applies merges to symbols[0..*count-1] in place: always the pair of lowest rank, the leftmost of equals, until none
 * is left. Time: quadratic for a few symbols, n·log n for many. */
enum status bpe_merge_symbols(const struct bpe_merges *merges, struct bpe_scratch *scratch, uint32_t *symbols,
                              size_t *count);

/* Words that have been encoded before, and their ids. Grows up to a bound, then starts anew. One a thread. */
enum { BPE_CACHE_WORD = 15, BPE_CACHE_INLINE = 3 };
struct bpe_cache_entry {
    uint64_t word[2];               /* the word's bytes, zeros, and its length in the last byte; length 0: free */
    uint32_t count;                 /* ids */
    uint32_t ids[BPE_CACHE_INLINE]; /* or ids[0] = their place in `spill` */
};
struct bpe_cache {
    struct bpe_cache_entry *entries;
    size_t entry_count, used;
    uint32_t *spill; /* ids of words with more than BPE_CACHE_INLINE */
    size_t spill_used, spill_room;
};
void bpe_cache_free(struct bpe_cache *cache);
/* Remembers a word that bpe_cache_find has not found. */
enum status bpe_cache_add(struct bpe_cache *cache, const uint64_t word[2], const uint32_t *ids, size_t count);

static inline uint64_t bpe_hash_word(const uint64_t word[2]) {
    __extension__ unsigned __int128 product =
        (unsigned __int128)(word[0] ^ 0x9E3779B97F4A7C15u) * (word[1] ^ 0xD6E8FEB86659FD93u);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The entry of `word`, or the free one where it would stand; NULL when the cache has no entries yet. */
static inline const struct bpe_cache_entry *bpe_cache_find(const struct bpe_cache *cache, const uint64_t word[2]) {
    if (!cache->entry_count) return NULL;
    size_t mask = cache->entry_count - 1, slot = bpe_hash_word(word) & mask;
    for (;; slot = (slot + 1) & mask) {
        const struct bpe_cache_entry *entry = &cache->entries[slot];
        if (entry->word[1] == word[1] && entry->word[0] == word[0]) return entry;
        if (entry->word[1] == 0) return entry;
    }
}

#endif
