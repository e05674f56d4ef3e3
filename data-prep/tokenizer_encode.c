/* Text to ids: added tokens, normalizer, pre-tokenizer, then each word through the cache or the merges. */
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"
#include "data-prep/unicode.h"

#include <stdlib.h>
#include <string.h>

struct encoder { /* one call */
    const struct tokenizer *t;
    struct encoder_state *state;
    struct token_buffer *out;
    bool special;
};

static enum status state_take(struct state_pool *pool, struct encoder_state **state) {
    for (int i = 0; i < STATE_SLOTS; i++) {
        *state = atomic_exchange(&pool->idle[i], NULL);
        if (*state) return STATUS_OK;
    }
    return memory_new(1, sizeof **state, "an encoder", state);
}

static void state_free(struct encoder_state *state) {
    if (!state) return;
    bpe_cache_free(&state->cache);
    bpe_scratch_free(&state->scratch);
    free(state->symbols);
    free(state);
}

static void state_return(struct state_pool *pool, struct encoder_state *state) {
    for (int i = 0; i < STATE_SLOTS; i++) {
        struct encoder_state *none = NULL;
        if (atomic_compare_exchange_strong(&pool->idle[i], &none, state)) return;
    }
    state_free(state); /* more threads than slots */
}

void state_pool_free(struct state_pool **pool) {
    for (int i = 0; *pool && i < STATE_SLOTS; i++) state_free(atomic_load(&(*pool)->idle[i]));
    free(*pool);
    *pool = NULL;
}

static enum status grow(struct token_buffer *out, size_t more) {
    size_t capacity = 2 * (out->count + more) + 64;
    TRY(memory_grow(&out->ids, capacity, sizeof *out->ids, "token ids"));
    out->capacity = capacity;
    return STATUS_OK;
}

static inline enum status reserve(struct token_buffer *out, size_t more) {
    return __builtin_expect(out->count + more > out->capacity, 0) ? grow(out, more) : STATUS_OK;
}

static enum status append_ids(struct token_buffer *out, const uint32_t *ids, size_t count) {
    TRY(reserve(out, count));
    if (count) memcpy(out->ids + out->count, ids, count * sizeof *ids);
    out->count += count;
    return STATUS_OK;
}

/* The symbols of a word before merging. A character is its own token, or its bytes' fallback tokens, or the unknown
 * token, or nothing; in the order in which Hugging Face's tokenizers emits them. At most one symbol a byte. */
static size_t word_symbols(const struct tokenizer *t, const char *word, size_t length, uint32_t *symbols) {
    size_t count = 0;
    bool unknown = false; /* an unknown token waits to be written, to be fused with the next */
    for (size_t at = 0, bytes; at < length; at += bytes) {
        uint32_t code, id;
        bytes = 1;
        if (t->byte_level) {
            id = t->byte_token[(unsigned char)word[at]];
        } else {
            bytes = unicode_decode((const unsigned char *)word + at, length - at, &code);
            id = code == UNICODE_INVALID ? BPE_NONE : bpe_vocabulary_find(&t->vocabulary, word + at, bytes);
            if (id != BPE_NONE && id >= t->model_count) id = BPE_NONE;
        }
        if (id != BPE_NONE) {
            if (unknown) symbols[count++] = t->unknown;
            unknown = false;
            symbols[count++] = id;
            continue;
        }
        bool falls_back = t->byte_fallback && !t->byte_level;
        for (size_t i = 0; falls_back && i < bytes; i++) {
            falls_back = t->byte_token[(unsigned char)word[at + i]] != BPE_NONE;
        }
        if (falls_back) {
            for (size_t i = 0; i < bytes; i++) symbols[count++] = t->byte_token[(unsigned char)word[at + i]];
            continue;
        }
        if (t->unknown == BPE_NONE) continue;
        if (unknown && !t->fuse_unknown) symbols[count++] = t->unknown;
        unknown = true;
    }
    if (unknown) symbols[count++] = t->unknown;
    return count;
}

/* The id of a word that is a token as a whole, for tokenizers that then ask for no merges. */
static enum status whole_word(const struct tokenizer *t, const char *word, size_t length, uint32_t *id) {
    *id = BPE_NONE;
    if (!t->ignore_merges) return STATUS_OK;
    struct text spelled = {0};
    enum status status =
        t->byte_level ? bytes_to_characters(word, length, &spelled) : text_append(&spelled, word, length);
    if (status == STATUS_OK) *id = bpe_vocabulary_find(&t->vocabulary, spelled.bytes, spelled.length);
    if (*id != BPE_NONE && *id >= t->model_count) *id = BPE_NONE;
    free(spelled.bytes);
    return status;
}

/* A word that the cache does not know; remembered under `key` unless that is NULL. */
static enum status encode_new(struct encoder *e, const char *word, size_t length, const uint64_t *key) {
    struct encoder_state *state = e->state;
    uint32_t id;
    size_t count = 1;
    if (length > state->symbol_room) {
        TRY(memory_grow(&state->symbols, 2 * length, sizeof *state->symbols, "a word's symbols"));
        state->symbol_room = 2 * length;
    }
    TRY(whole_word(e->t, word, length, &id));
    if (id != BPE_NONE) {
        state->symbols[0] = id;
    } else {
        count = word_symbols(e->t, word, length, state->symbols);
        TRY(bpe_merge_symbols(&e->t->merges, &state->scratch, state->symbols, &count));
    }
    if (key) TRY(bpe_cache_add(&state->cache, key, state->symbols, count));
    return append_ids(e->out, state->symbols, count);
}

/* A word as the cache keeps it: its bytes, then zeros, its length in the last byte. `readable` >= length bytes may be
 * read at `word`. */
static inline void load_key(const char *word, size_t length, size_t readable, uint64_t key[2]) {
    static const uint64_t mask[9] = {
        0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, UINT64_MAX};
    if (readable >= 16) {
        memcpy(key, word, 16);
        key[0] &= mask[length < 8 ? length : 8];
        key[1] &= mask[length < 8 ? 0 : length - 8];
    } else {
        key[0] = key[1] = 0;
        memcpy(key, word, length);
    }
    key[1] |= (uint64_t)length << 56;
}

static inline enum status encode_word(struct encoder *e, const char *word, size_t length, size_t readable) {
    if (length > BPE_CACHE_WORD) return encode_new(e, word, length, NULL);
    uint64_t key[2];
    load_key(word, length, readable, key);
    const struct bpe_cache_entry *entry = bpe_cache_find(&e->state->cache, key);
    if (!entry || entry->word[1] == 0) return encode_new(e, word, length, key);
    struct token_buffer *out = e->out;
    if (__builtin_expect(entry->count > BPE_CACHE_INLINE, 0)) {
        return append_ids(out, e->state->cache.spill + entry->ids[0], entry->count);
    }
    TRY(reserve(out, BPE_CACHE_INLINE));
    memcpy(out->ids + out->count, entry->ids, sizeof entry->ids); /* all: cheaper than asking how many */
    out->count += entry->count;
    return STATUS_OK;
}

static enum status encode_gpt2(struct encoder *e, const char *text, size_t length) {
    for (size_t at = 0; at < length;) {
        size_t end = split_gpt2(text, length, at);
        TRY(encode_word(e, text + at, end - at, length - at));
        at = end;
    }
    return STATUS_OK;
}

/* What the model takes for one word; cut where cutting cannot change an id, so that the cache helps. */
static enum status encode_piece(struct encoder *e, const char *text, size_t length) {
    const size_t marker = sizeof TOKENIZER_MARKER - 1;
    size_t begin = 0;
    for (size_t at = marker; e->t->cuts_before_marker && at + marker <= length; at++) {
        if (memcmp(text + at, TOKENIZER_MARKER, marker) != 0) continue;
        if (memcmp(text + at - marker, TOKENIZER_MARKER, marker) == 0) continue;
        TRY(encode_word(e, text + begin, at - begin, length - begin));
        begin = at;
    }
    return encode_word(e, text + begin, length - begin, length - begin);
}

struct step_sink { /* where the pieces of one pre-tokenizer step go */
    struct encoder *e;
    size_t step;
    const char *text; /* the step's whole text */
    bool first;       /* which stands at the very beginning */
};

static enum status run_step(struct encoder *e, size_t step, const char *text, size_t length, bool first);

static enum status next_step(void *context, const char *text, size_t length) {
    const struct step_sink *sink = context;
    return run_step(sink->e, sink->step + 1, text, length, sink->first && text == sink->text);
}

static enum status run_digits(struct step_sink *sink, const struct pre_step *step, const char *text, size_t length) {
    size_t begin = 0, bytes;
    bool was_number = false;
    for (size_t at = 0; at < length; at += bytes) {
        uint32_t code;
        bytes = unicode_decode((const unsigned char *)text + at, length - at, &code);
        bool number = unicode_class(code) == UNICODE_NUMBER;
        if (at > begin && (number != was_number || (number && step->individual))) {
            TRY(next_step(sink, text + begin, at - begin));
            begin = at;
        }
        was_number = number;
    }
    return next_step(sink, text + begin, length - begin);
}

static enum status run_metaspace(struct step_sink *sink, const struct pre_step *step, const char *text, size_t length) {
    struct text marked = {0};
    enum status status = STATUS_OK;
    size_t marker = strlen(step->marker);
    bool begins = text[0] == ' ' || (length >= marker && memcmp(text, step->marker, marker) == 0);
    bool wants = step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && sink->first);
    if (wants && !begins) TRY_GOTO(done, text_append(&marked, step->marker, marker));
    for (size_t at = 0; at < length;) {
        const char *space = memchr(text + at, ' ', length - at);
        size_t end = space ? (size_t)(space - text) : length;
        TRY_GOTO(done, text_append(&marked, text + at, end - at));
        if (space) TRY_GOTO(done, text_append(&marked, step->marker, marker));
        at = end + (space ? 1 : 0);
    }
    sink->text = marked.bytes;
    status = step->pattern
                 ? split_pattern_run(step->pattern, step->behavior, false, marked.bytes, marked.length, next_step, sink)
                 : next_step(sink, marked.bytes, marked.length);
done:
    free(marked.bytes);
    return status;
}

static enum status run_prefix_space(struct step_sink *sink, const char *text, size_t length) {
    if (text[0] == ' ') return next_step(sink, text, length);
    struct text prefixed = {0};
    enum status status = text_append(&prefixed, " ", 1);
    if (status == STATUS_OK) status = text_append(&prefixed, text, length);
    sink->text = prefixed.bytes;
    if (status == STATUS_OK) status = next_step(sink, prefixed.bytes, prefixed.length);
    free(prefixed.bytes);
    return status;
}

static enum status run_step(struct encoder *e, size_t index, const char *text, size_t length, bool first) {
    if (length == 0) return STATUS_OK;
    if (index == e->t->pre_count) return encode_piece(e, text, length);
    const struct pre_step *step = &e->t->pre[index];
    struct step_sink sink = {e, index, text, first};
    switch (step->kind) {
    case PRE_PREFIX_SPACE:
        return run_prefix_space(&sink, text, length);
    case PRE_DIGITS:
        return run_digits(&sink, step, text, length);
    case PRE_METASPACE:
        return run_metaspace(&sink, step, text, length);
    case PRE_PATTERN:
        return split_pattern_run(step->pattern, step->behavior, step->inverted, text, length, next_step, &sink);
    case PRE_GPT2:
        break;
    }
    if (index + 1 == e->t->pre_count && e->t->byte_level) return encode_gpt2(e, text, length);
    for (size_t at = 0; at < length;) {
        size_t end = split_gpt2(text, length, at);
        TRY(next_step(&sink, text + at, end - at));
        at = end;
    }
    return STATUS_OK;
}

/* *out = text with every `from` as `to`. */
static enum status replace_all(const struct text *text, const char *from, const char *to, struct text *out) {
    size_t width = strlen(from), at = 0;
    while (at < text->length) {
        const char *found = memmem(text->bytes + at, text->length - at, from, width);
        size_t end = found ? (size_t)(found - text->bytes) : text->length;
        TRY(text_append(out, text->bytes + at, end - at));
        if (found) TRY(text_append(out, to, strlen(to)));
        at = end + (found ? width : 0);
    }
    return STATUS_OK;
}

enum status tokenizer_normalize(const struct tokenizer *t, const char *text, size_t length, struct text *out) {
    enum status status = STATUS_OK;
    TRY(text_append(out, text, length));
    for (size_t i = 0; i < t->normalizer_count && status == STATUS_OK && out->length; i++) {
        const struct normalizer_step *step = &t->normalizer[i];
        struct text next = {0};
        if (step->from) {
            status = replace_all(out, step->from, step->to, &next);
        } else {
            status = text_append(&next, step->to, strlen(step->to));
            if (status == STATUS_OK) status = text_append(&next, out->bytes, out->length);
        }
        free(out->bytes);
        *out = next;
    }
    return status;
}

static enum status encode_round(struct encoder *e, int index, const char *text, size_t length, bool first);

/* The text between two added tokens of a round. */
static enum status encode_between(struct encoder *e, int index, const char *text, size_t length, bool first) {
    if (length == 0) return STATUS_OK;
    if (index == 1) return run_step(e, 0, text, length, first);
    if (e->t->normalizer_count == 0) return encode_round(e, 1, text, length, first);
    struct text normal = {0};
    enum status status = tokenizer_normalize(e->t, text, length, &normal);
    if (status == STATUS_OK) status = encode_round(e, 1, normal.bytes, normal.length, first);
    free(normal.bytes);
    return status;
}

static enum status encode_round(struct encoder *e, int index, const char *text, size_t length, bool first) {
    for (size_t at = 0; at < length;) {
        size_t begin, end;
        uint32_t id = added_round_find(&e->t->round[index], text, length, at, e->special, &begin, &end);
        TRY(encode_between(e, index, text + at, begin - at, first && at == 0));
        if (id != BPE_NONE) TRY(append_ids(e->out, &id, 1));
        at = end;
    }
    return STATUS_OK;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t length, bool special,
                             struct token_buffer *out) {
    struct encoder encoder = {.t = t, .out = out, .special = special};
    TRY(state_take(t->pool, &encoder.state));
    enum status status = encode_round(&encoder, 0, text, length, true);
    state_return(t->pool, encoder.state);
    return status;
}
