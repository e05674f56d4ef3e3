/* The vocabulary, the merges, and merging. */
#include "data-prep/bpe.h"

#include "base/hash.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { FEW_SYMBOLS = 64, FIRST_SLOTS = 1024 };

static size_t text_slot(const struct bpe_vocabulary *v, const char *text, size_t length) {
    size_t mask = v->slot_count - 1, slot = hash_bytes(text, length) & mask;
    for (; v->slots[slot]; slot = (slot + 1) & mask) {
        uint32_t id = v->slots[slot] - 1;
        if (v->length[id] == length && memcmp(v->bytes + v->begin[id], text, length) == 0) break;
    }
    return slot;
}

static enum status grow_text_slots(struct bpe_vocabulary *v) {
    if (2 * (v->tokens + 1) <= v->slot_count) return STATUS_OK;
    uint32_t *old = v->slots;
    size_t count = v->slot_count ? 2 * v->slot_count : FIRST_SLOTS;
    uint32_t *slots = NULL;
    TRY(memory_new(count, sizeof *slots, "the vocabulary's index", &slots));
    v->slots = slots;
    v->slot_count = count;
    for (size_t id = 0; id < v->count; id++) {
        if (v->length[id] == BPE_NONE) continue;
        v->slots[text_slot(v, v->bytes + v->begin[id], v->length[id])] = (uint32_t)id + 1;
    }
    free(old);
    return STATUS_OK;
}

static enum status make_room(struct bpe_vocabulary *v, size_t id, size_t length) {
    if (id >= v->room) {
        size_t room = id + 1 > 2 * v->room ? id + 1 : 2 * v->room;
        TRY(memory_grow(&v->begin, room, sizeof *v->begin, "the vocabulary"));
        TRY(memory_grow(&v->length, room, sizeof *v->length, "the vocabulary"));
        v->room = room;
    }
    if (v->used + length > v->capacity) {
        size_t capacity = 2 * (v->used + length);
        TRY(memory_grow(&v->bytes, capacity, 1, "the vocabulary"));
        v->capacity = capacity;
    }
    return grow_text_slots(v);
}

enum status bpe_vocabulary_add(struct bpe_vocabulary *v, const char *text, size_t length, uint64_t id) {
    if (id >= BPE_VOCABULARY_LIMIT) {
        return error_set(STATUS_DAMAGED, "token \"%.*s\": expected an id below %d, found %llu", (int)length, text,
                         BPE_VOCABULARY_LIMIT, (unsigned long long)id);
    }
    TRY(make_room(v, id, length));
    size_t slot = text_slot(v, text, length);
    if (v->slots[slot]) {
        return error_set(STATUS_DAMAGED, "token \"%.*s\": expected it once, found it with ids %u and %llu", (int)length,
                         text, v->slots[slot] - 1, (unsigned long long)id);
    }
    if (id < v->count && v->length[id] != BPE_NONE) {
        return error_set(STATUS_DAMAGED, "id %llu: expected one token, found \"%.*s\" and \"%.*s\"",
                         (unsigned long long)id, (int)v->length[id], v->bytes + v->begin[id], (int)length, text);
    }
    for (; v->count <= id; v->count++) v->length[v->count] = BPE_NONE;
    v->begin[id] = v->used;
    v->length[id] = (uint32_t)length;
    if (length) memcpy(v->bytes + v->used, text, length);
    v->used += length;
    v->slots[slot] = (uint32_t)id + 1;
    v->tokens++;
    return STATUS_OK;
}

uint32_t bpe_vocabulary_find(const struct bpe_vocabulary *v, const char *text, size_t length) {
    if (!v->slot_count) return BPE_NONE;
    return v->slots[text_slot(v, text, length)] - 1; /* a free slot is 0: BPE_NONE */
}

void bpe_vocabulary_free(struct bpe_vocabulary *v) {
    free(v->bytes);
    free(v->begin);
    free(v->length);
    free(v->slots);
    *v = (struct bpe_vocabulary){0};
}

static size_t pair_slot(const struct bpe_merges *merges, uint64_t pair) {
    size_t mask = merges->slot_count - 1;
    uint64_t hash = pair * 0x9E3779B97F4A7C15u;
    size_t slot = (hash ^ hash >> 32) & mask;
    while (merges->slots[slot].pair != pair && merges->slots[slot].pair != UINT64_MAX) slot = (slot + 1) & mask;
    return slot;
}

enum status bpe_merges_add(struct bpe_merges *merges, uint64_t pair, uint32_t rank, uint32_t id) {
    if (2 * (merges->count + 1) > merges->slot_count) {
        struct bpe_merges grown = {.slot_count = merges->slot_count ? 2 * merges->slot_count : FIRST_SLOTS,
                                   .count = merges->count};
        TRY(memory_new(grown.slot_count, sizeof *grown.slots, "the merges", &grown.slots));
        for (size_t i = 0; i < grown.slot_count; i++) grown.slots[i].pair = UINT64_MAX;
        for (size_t i = 0; i < merges->slot_count; i++) {
            if (merges->slots[i].pair == UINT64_MAX) continue;
            grown.slots[pair_slot(&grown, merges->slots[i].pair)] = merges->slots[i];
        }
        free(merges->slots);
        *merges = grown;
    }
    struct bpe_merge *slot = &merges->slots[pair_slot(merges, pair)];
    if (slot->pair == UINT64_MAX) merges->count++;
    *slot = (struct bpe_merge){pair, rank, id};
    return STATUS_OK;
}

const struct bpe_merge *bpe_merges_find(const struct bpe_merges *merges, uint64_t pair) {
    if (!merges->slot_count) return NULL;
    const struct bpe_merge *slot = &merges->slots[pair_slot(merges, pair)];
    return slot->pair == UINT64_MAX ? NULL : slot;
}

void bpe_merges_free(struct bpe_merges *merges) {
    free(merges->slots);
    *merges = (struct bpe_merges){0};
}

void bpe_scratch_free(struct bpe_scratch *scratch) {
    free(scratch->rank);
    free(scratch->next);
    free(scratch->previous);
    free(scratch->heap);
    *scratch = (struct bpe_scratch){0};
}

/* The rank of merging two symbols; BPE_NONE: they do not merge. */
static inline uint32_t pair_rank(const struct bpe_merges *merges, uint32_t left, uint32_t right) {
    const struct bpe_merge *merge = bpe_merges_find(merges, bpe_pair(left, right));
    return merge ? merge->rank : BPE_NONE;
}

static void merge_few(const struct bpe_merges *merges, uint32_t *symbols, size_t *count) {
    uint32_t rank[FEW_SYMBOLS];
    size_t n = *count;
    for (size_t i = 0; i + 1 < n; i++) rank[i] = pair_rank(merges, symbols[i], symbols[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (rank[i] < rank[best]) best = i;
        }
        if (rank[best] == BPE_NONE) break;
        symbols[best] = bpe_merges_find(merges, bpe_pair(symbols[best], symbols[best + 1]))->id;
        n--;
        for (size_t i = best + 1; i < n; i++) symbols[i] = symbols[i + 1];
        for (size_t i = best + 1; i + 1 < n; i++) rank[i] = rank[i + 1];
        if (best > 0) rank[best - 1] = pair_rank(merges, symbols[best - 1], symbols[best]);
        if (best + 1 < n) rank[best] = pair_rank(merges, symbols[best], symbols[best + 1]);
    }
    *count = n;
}

/* A binary heap of rank << 32 | place: the least rank first, the leftmost of equals. */
struct heap {
    uint64_t *items;
    size_t count;
};

static void heap_sink(struct heap *heap, size_t at) {
    uint64_t item = heap->items[at];
    for (size_t child = 2 * at + 1; child < heap->count; child = 2 * at + 1) {
        if (child + 1 < heap->count && heap->items[child + 1] < heap->items[child]) child++;
        if (heap->items[child] >= item) break;
        heap->items[at] = heap->items[child];
        at = child;
    }
    heap->items[at] = item;
}

static void heap_push(struct heap *heap, uint64_t item) {
    size_t at = heap->count++;
    for (; at > 0 && heap->items[(at - 1) / 2] > item; at = (at - 1) / 2) heap->items[at] = heap->items[(at - 1) / 2];
    heap->items[at] = item;
}

static uint64_t heap_pop(struct heap *heap) {
    uint64_t top = heap->items[0];
    heap->items[0] = heap->items[--heap->count];
    if (heap->count) heap_sink(heap, 0);
    return top;
}

static enum status scratch_room(struct bpe_scratch *scratch, size_t count) {
    if (count >= BPE_NONE) {
        return error_set(STATUS_FAILED, "a word without a place to cut: expected fewer than 2^32 symbols, found %zu",
                         count);
    }
    if (count <= scratch->room) return STATUS_OK;
    size_t room = count + count / 2;
    TRY(memory_grow(&scratch->rank, room, sizeof *scratch->rank, "merging a long word"));
    TRY(memory_grow(&scratch->next, room, sizeof *scratch->next, "merging a long word"));
    TRY(memory_grow(&scratch->previous, room, sizeof *scratch->previous, "merging a long word"));
    TRY(memory_grow(&scratch->heap, 3 * room, sizeof *scratch->heap, "merging a long word"));
    scratch->room = room;
    return STATUS_OK;
}

/* Notes the rank of the pair at `left` and queues it. An item of the heap whose rank is not the one noted is stale: a
 * symbol only ever grows to the right, so equal rank and place mean the same pair. */
static void note_pair(const struct bpe_merges *merges, struct bpe_scratch *scratch, struct heap *heap,
                      const uint32_t *symbols, uint32_t left, uint32_t right) {
    scratch->rank[left] = pair_rank(merges, symbols[left], symbols[right]);
    if (scratch->rank[left] != BPE_NONE) heap_push(heap, (uint64_t)scratch->rank[left] << 32 | left);
}

static enum status merge_many(const struct bpe_merges *merges, struct bpe_scratch *scratch, uint32_t *symbols,
                              size_t *count) {
    uint32_t n = (uint32_t)*count;
    TRY(scratch_room(scratch, *count));
    struct heap heap = {scratch->heap, 0};
    uint32_t *rank = scratch->rank, *next = scratch->next, *previous = scratch->previous;
    for (uint32_t i = 0; i < n; i++) {
        next[i] = i + 1;
        previous[i] = i ? i - 1 : BPE_NONE;
        rank[i] = i + 1 < n ? pair_rank(merges, symbols[i], symbols[i + 1]) : BPE_NONE;
        if (rank[i] != BPE_NONE) heap.items[heap.count++] = (uint64_t)rank[i] << 32 | i;
    }
    for (size_t i = heap.count / 2; i-- > 0;) heap_sink(&heap, i);
    while (heap.count) {
        uint64_t top = heap_pop(&heap);
        uint32_t left = (uint32_t)top;
        if (rank[left] != top >> 32) continue;
        uint32_t right = next[left];
        symbols[left] = bpe_merges_find(merges, bpe_pair(symbols[left], symbols[right]))->id;
        rank[right] = rank[left] = BPE_NONE;
        next[left] = next[right];
        if (next[left] < n) {
            previous[next[left]] = left;
            note_pair(merges, scratch, &heap, symbols, left, next[left]);
        }
        if (previous[left] != BPE_NONE) note_pair(merges, scratch, &heap, symbols, previous[left], left);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i < n; i = next[i]) symbols[kept++] = symbols[i];
    *count = kept;
    return STATUS_OK;
}

enum status bpe_merge_symbols(const struct bpe_merges *merges, struct bpe_scratch *scratch, uint32_t *symbols,
                              size_t *count) {
    if (*count > FEW_SYMBOLS) return merge_many(merges, scratch, symbols, count);
    merge_few(merges, symbols, count);
    return STATUS_OK;
}
