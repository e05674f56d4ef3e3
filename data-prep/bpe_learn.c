/* Learning merges: counts of all pairs of neighbours, kept up to date where a merge changes them; a heap finds the
 * commonest. */
#include "data-prep/bpe_train.h"

#include "base/log.h"
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"
#include "data-prep/unicode.h"

#include <stdlib.h>
#include <string.h>

struct pair { /* two neighbours */
    uint64_t key;
    int64_t count;
    uint32_t *words; /* in which they are, or once were */
    uint32_t word_count, word_room;
    bool risen; /* since the heap last heard of it */
};

struct candidate {
    int64_t count;
    uint64_t key;
    uint32_t pair;
};

struct learner {
    const struct bpe_words *words;
    uint32_t *symbols;      /* all words', one after another */
    uint32_t *symbol_count; /* [words->count] left of each */
    struct pair *pairs;
    size_t pair_count, pair_room;
    uint32_t *slots; /* open addressing over keys: pair + 1, 0 free */
    size_t slot_count;
    struct candidate *heap;
    size_t heap_count, heap_room;
    uint32_t *risen; /* pairs that the heap has to hear of */
    size_t risen_count, risen_room;
};

static size_t pair_slot(const struct learner *l, uint64_t key) {
    size_t mask = l->slot_count - 1;
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    size_t slot = (hash ^ hash >> 32) & mask;
    while (l->slots[slot] && l->pairs[l->slots[slot] - 1].key != key) slot = (slot + 1) & mask;
    return slot;
}

static enum status find_pair(struct learner *l, uint64_t key, uint32_t *index) {
    if (2 * (l->pair_count + 1) > l->slot_count) {
        uint32_t *slots = NULL;
        size_t count = l->slot_count ? 2 * l->slot_count : 1 << 14;
        TRY(memory_new(count, sizeof *slots, "counting pairs", &slots));
        free(l->slots);
        l->slots = slots;
        l->slot_count = count;
        for (size_t i = 0; i < l->pair_count; i++) l->slots[pair_slot(l, l->pairs[i].key)] = (uint32_t)i + 1;
    }
    size_t slot = pair_slot(l, key);
    if (!l->slots[slot]) {
        if (l->pair_count == l->pair_room) {
            size_t room = 2 * l->pair_room + 4096;
            TRY(memory_grow(&l->pairs, room, sizeof *l->pairs, "counting pairs"));
            l->pair_room = room;
        }
        l->pairs[l->pair_count] = (struct pair){.key = key};
        l->slots[slot] = (uint32_t)++l->pair_count;
    }
    *index = l->slots[slot] - 1;
    return STATUS_OK;
}

/* The pair is seen `change` times more (or less) in `word`. */
static enum status change_pair(struct learner *l, uint64_t key, int64_t change, uint32_t word) {
    uint32_t index;
    TRY(find_pair(l, key, &index));
    struct pair *pair = &l->pairs[index];
    pair->count += change;
    if (change < 0) return STATUS_OK;
    if (!pair->word_count || pair->words[pair->word_count - 1] != word) {
        if (pair->word_count == pair->word_room) {
            uint32_t room = pair->word_room + pair->word_room / 2 + 4;
            TRY(memory_grow(&pair->words, room, sizeof *pair->words, "counting pairs"));
            pair->word_room = room;
        }
        pair->words[pair->word_count++] = word;
    }
    if (pair->risen) return STATUS_OK;
    if (l->risen_count == l->risen_room) {
        size_t room = 2 * l->risen_room + 4096;
        TRY(memory_grow(&l->risen, room, sizeof *l->risen, "counting pairs"));
        l->risen_room = room;
    }
    pair->risen = true;
    l->risen[l->risen_count++] = index;
    return STATUS_OK;
}

static bool before(const struct candidate *a, const struct candidate *b) {
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static enum status heap_push(struct learner *l, struct candidate item) {
    if (l->heap_count == l->heap_room) {
        size_t room = 2 * l->heap_room + 4096;
        TRY(memory_grow(&l->heap, room, sizeof *l->heap, "counting pairs"));
        l->heap_room = room;
    }
    size_t at = l->heap_count++;
    for (; at > 0 && before(&item, &l->heap[(at - 1) / 2]); at = (at - 1) / 2) l->heap[at] = l->heap[(at - 1) / 2];
    l->heap[at] = item;
    return STATUS_OK;
}

static struct candidate heap_pop(struct learner *l) {
    struct candidate top = l->heap[0], item = l->heap[--l->heap_count];
    size_t at = 0;
    for (size_t child = 1; child < l->heap_count; child = 2 * at + 1) {
        if (child + 1 < l->heap_count && before(&l->heap[child + 1], &l->heap[child])) child++;
        if (!before(&l->heap[child], &item)) break;
        l->heap[at] = l->heap[child];
        at = child;
    }
    if (l->heap_count) l->heap[at] = item;
    return top;
}

static enum status tell_heap(struct learner *l) {
    for (size_t i = 0; i < l->risen_count; i++) {
        struct pair *pair = &l->pairs[l->risen[i]];
        pair->risen = false;
        if (pair->count > 0) TRY(heap_push(l, (struct candidate){pair->count, pair->key, l->risen[i]}));
    }
    l->risen_count = 0;
    return STATUS_OK;
}

/* The commonest pair; *found = false when none is seen `least` times. Counts that have fallen are put right here. */
static enum status commonest(struct learner *l, int64_t least, uint32_t *pair, bool *found) {
    *found = false;
    while (l->heap_count) {
        struct candidate top = heap_pop(l);
        int64_t now = l->pairs[top.pair].count;
        if (now == top.count) {
            *pair = top.pair;
            *found = now >= least;
            return STATUS_OK;
        }
        if (now > 0 && now < top.count) TRY(heap_push(l, (struct candidate){now, top.key, top.pair}));
    }
    return STATUS_OK;
}

/* Replaces left·right by `id` in one word, and counts what that changes. */
static enum status merge_word(struct learner *l, uint32_t word, uint32_t left, uint32_t right, uint32_t id) {
    uint32_t *symbols = l->symbols + l->words->begin[word];
    uint32_t count = l->symbol_count[word], kept = 0;
    int64_t seen = l->words->seen[word];
    for (uint32_t i = 0; i < count; kept++) {
        if (symbols[i] != left || i + 1 == count || symbols[i + 1] != right) {
            symbols[kept] = symbols[i++];
            continue;
        }
        if (kept > 0) {
            TRY(change_pair(l, bpe_pair(symbols[kept - 1], left), -seen, word));
            TRY(change_pair(l, bpe_pair(symbols[kept - 1], id), seen, word));
        }
        if (i + 2 < count) {
            TRY(change_pair(l, bpe_pair(right, symbols[i + 2]), -seen, word));
            TRY(change_pair(l, bpe_pair(id, symbols[i + 2]), seen, word));
        }
        symbols[kept] = id;
        i += 2;
    }
    l->symbol_count[word] = kept;
    return STATUS_OK;
}

/* The id of left·right, which may have come about another way before. */
static enum status name_token(struct bpe_vocabulary *v, uint32_t left, uint32_t right, uint32_t *id) {
    struct text name = {0};
    enum status status = text_append(&name, v->bytes + v->begin[left], v->length[left]);
    if (status == STATUS_OK) status = text_append(&name, v->bytes + v->begin[right], v->length[right]);
    if (status == STATUS_OK) {
        *id = bpe_vocabulary_find(v, name.bytes, name.length);
        if (*id == BPE_NONE) {
            *id = (uint32_t)v->count;
            status = bpe_vocabulary_add(v, name.bytes, name.length, *id);
        }
    }
    free(name.bytes);
    return status;
}

static enum status merge_pair(struct learner *l, uint32_t index, struct bpe_learnt *learnt) {
    uint64_t key = l->pairs[index].key;
    uint32_t left = (uint32_t)(key >> 32), right = (uint32_t)key, id;
    TRY(name_token(&learnt->vocabulary, left, right, &id));
    TRY(memory_grow(&learnt->merges, 2 * (learnt->merge_count + 1), sizeof *learnt->merges, "the merges"));
    learnt->merges[2 * learnt->merge_count] = left;
    learnt->merges[2 * learnt->merge_count + 1] = right;
    learnt->merge_count++;
    uint32_t *words = l->pairs[index].words, count = l->pairs[index].word_count;
    l->pairs[index].words = NULL;
    l->pairs[index].word_count = l->pairs[index].word_room = 0;
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < count && status == STATUS_OK; i++) status = merge_word(l, words[i], left, right, id);
    free(words);
    l->pairs[index].count = 0;
    return status == STATUS_OK ? tell_heap(l) : status;
}

static enum status start(struct learner *l, struct bpe_vocabulary *v) {
    uint32_t token[256] = {0};
    TRY(bpe_vocabulary_add(v, BPE_TRAIN_SPECIAL, strlen(BPE_TRAIN_SPECIAL), 0));
    for (uint32_t character = 0; character < 0x200; character++) {
        int byte = character_to_byte(character);
        char name[4];
        if (byte < 0) continue;
        token[byte] = (uint32_t)v->count;
        TRY(bpe_vocabulary_add(v, name, unicode_encode(character, name), v->count));
    }
    const struct bpe_words *words = l->words;
    TRY(memory_new(words->used, sizeof *l->symbols, "the words' symbols", &l->symbols));
    TRY(memory_new(words->count, sizeof *l->symbol_count, "the words' symbols", &l->symbol_count));
    for (size_t i = 0; i < words->used; i++) l->symbols[i] = token[(unsigned char)words->bytes[i]];
    for (size_t word = 0; word < words->count; word++) {
        const uint32_t *symbols = l->symbols + words->begin[word];
        l->symbol_count[word] = words->length[word];
        for (uint32_t i = 0; i + 1 < words->length[word]; i++) {
            TRY(change_pair(l, bpe_pair(symbols[i], symbols[i + 1]), words->seen[word], (uint32_t)word));
        }
    }
    return tell_heap(l);
}

static void learner_free(struct learner *l) {
    for (size_t i = 0; i < l->pair_count; i++) free(l->pairs[i].words);
    free(l->symbols);
    free(l->symbol_count);
    free(l->pairs);
    free(l->slots);
    free(l->heap);
    free(l->risen);
}

enum status bpe_learn(const struct bpe_words *words, int64_t vocabulary, int64_t min_count, struct bpe_learnt *learnt) {
    struct learner learner = {.words = words};
    struct log_progress progress;
    enum status status = STATUS_OK;
    TRY_GOTO(done, start(&learner, &learnt->vocabulary));
    int64_t first = (int64_t)learnt->vocabulary.count;
    log_progress_start(&progress, "learn", first, vocabulary);
    while ((int64_t)learnt->vocabulary.count < vocabulary) {
        uint32_t pair;
        bool found;
        TRY_GOTO(done, commonest(&learner, min_count, &pair, &found));
        if (!found) break;
        TRY_GOTO(done, merge_pair(&learner, pair, learnt));
        log_progress_show(&progress, (int64_t)learnt->vocabulary.count, "tokens");
    }
    log_progress_end(&progress, (int64_t)learnt->vocabulary.count, "tokens");
done:
    learner_free(&learner);
    return status;
}

void bpe_learnt_free(struct bpe_learnt *learnt) {
    bpe_vocabulary_free(&learnt->vocabulary);
    free(learnt->merges);
    *learnt = (struct bpe_learnt){0};
}
