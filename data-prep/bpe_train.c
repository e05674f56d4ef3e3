/* Counting words, and the way from texts to a tokenizer's directory. */
#include "data-prep/bpe_train.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "data-prep/reader.h"
#include "data-prep/split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_LIMIT = 1 << 20, FIRST_SLOTS = 1 << 12, PIECE_BYTES = 1 << 22 };

static size_t word_slot(const struct bpe_words *words, const char *text, size_t length) {
    size_t mask = words->slot_count - 1, slot = hash_bytes(text, length) & mask;
    for (; words->slots[slot]; slot = (slot + 1) & mask) {
        uint32_t word = words->slots[slot] - 1;
        if (words->length[word] == length && memcmp(words->bytes + words->begin[word], text, length) == 0) break;
    }
    return slot;
}

static enum status grow_slots(struct bpe_words *words) {
    if (2 * (words->count + 1) <= words->slot_count) return STATUS_OK;
    uint32_t *slots = NULL;
    size_t count = words->slot_count ? 2 * words->slot_count : FIRST_SLOTS;
    TRY(memory_new(count, sizeof *slots, "counting words", &slots));
    free(words->slots);
    words->slots = slots;
    words->slot_count = count;
    for (size_t word = 0; word < words->count; word++) {
        words->slots[word_slot(words, words->bytes + words->begin[word], words->length[word])] = (uint32_t)word + 1;
    }
    return STATUS_OK;
}

static enum status add_word(struct bpe_words *words, const char *text, size_t length) {
    TRY(grow_slots(words));
    size_t slot = word_slot(words, text, length);
    if (words->slots[slot]) {
        words->seen[words->slots[slot] - 1]++;
        return STATUS_OK;
    }
    if (words->count == words->room) {
        size_t room = 2 * words->room + 1024;
        TRY(memory_grow(&words->begin, room, sizeof *words->begin, "counting words"));
        TRY(memory_grow(&words->length, room, sizeof *words->length, "counting words"));
        TRY(memory_grow(&words->seen, room, sizeof *words->seen, "counting words"));
        words->room = room;
    }
    if (words->used + length > words->capacity) {
        size_t capacity = 2 * (words->used + length);
        TRY(memory_grow(&words->bytes, capacity, 1, "counting words"));
        words->capacity = capacity;
    }
    if (words->count >= BPE_NONE - 1)
        return error_set(STATUS_FAILED, "counting words: expected fewer than 2^32 different ones");
    memcpy(words->bytes + words->used, text, length);
    words->begin[words->count] = words->used;
    words->length[words->count] = (uint32_t)length;
    words->seen[words->count] = 1;
    words->used += length;
    words->slots[slot] = (uint32_t)++words->count;
    return STATUS_OK;
}

enum status bpe_words_count(struct bpe_words *words, const char *text, size_t length) {
    for (size_t at = 0; at < length;) {
        size_t end = split_gpt2(text, length, at);
        if (end - at > WORD_LIMIT) end = at + WORD_LIMIT;
        TRY(add_word(words, text + at, end - at));
        at = end;
    }
    return STATUS_OK;
}

void bpe_words_free(struct bpe_words *words) {
    free(words->bytes);
    free(words->begin);
    free(words->length);
    free(words->seen);
    free(words->slots);
    *words = (struct bpe_words){0};
}

static int64_t size_of(const char *path) {
    int64_t bytes = 0;
    if (strcmp(path, "-") == 0 || !file_exists(path) || file_size(path, &bytes) == STATUS_OK) return bytes;
    error_clear(); /* it only drives the progress line; reading the file will say what is wrong */
    return 0;
}

/* Counts one file. `before`: bytes of the files before it. */
static enum status count_file(const char *path, int64_t before, struct log_progress *progress,
                              struct bpe_words *words) {
    const struct reader_options options = {.piece_bytes = PIECE_BYTES};
    struct reader *reader = NULL;
    struct reader_piece piece;
    bool more = true;
    int64_t size = size_of(path), done = 0;
    enum status status = STATUS_OK;
    TRY(reader_open(path, &options, &reader));
    for (;;) {
        TRY_GOTO(done, reader_next(reader, &piece, &more));
        if (!more) break;
        TRY_GOTO(done, bpe_words_count(words, piece.text, piece.length));
        done += (int64_t)piece.length;
        if (size && done > size) done = size; /* a compressed file gives more text than it has bytes */
        log_progress_show(progress, before + done, "bytes");
    }
done:
    reader_close(&reader);
    return status;
}

static enum status count_all(const struct bpe_train_options *options, struct bpe_words *words) {
    char **paths = NULL;
    size_t count = 0;
    enum status status = STATUS_OK;
    TRY(reader_list(options->inputs, options->input_count, &paths, &count));
    struct log_progress progress;
    int64_t total = 0, before = 0;
    for (size_t i = 0; i < count; i++) total += size_of(paths[i]);
    log_progress_start(&progress, "count", 0, total);
    for (size_t i = 0; i < count; i++) {
        TRY_GOTO(done, count_file(paths[i], before, &progress, words));
        before += size_of(paths[i]);
    }
    char different[32], detail[64];
    count_text((int64_t)words->count, different);
    snprintf(detail, sizeof detail, "bytes, %s different words", different);
    log_progress_end(&progress, before, detail);
done:
    file_free_list(paths, count);
    return status;
}

enum status bpe_train(const struct bpe_train_options *options) {
    struct bpe_words words = {0};
    struct bpe_learnt learnt = {0};
    enum status status = STATUS_OK;
    TRY_GOTO(done, count_all(options, &words));
    if (!words.count) TRY_GOTO(done, error_set(STATUS_DAMAGED, "training a tokenizer: expected text, found none"));
    TRY_GOTO(done, bpe_learn(&words, options->vocabulary, options->min_count, &learnt));
    if ((int64_t)learnt.vocabulary.count < options->vocabulary) {
        log_warning("the text has pairs for %zu tokens only, not %lld: no other is seen %lld times",
                    learnt.vocabulary.count, (long long)options->vocabulary, (long long)options->min_count);
    }
    status = bpe_learnt_write(&learnt, options->out);
done:
    bpe_learnt_free(&learnt);
    bpe_words_free(&words);
    return status;
}
