/* See windows.h. */
#include "eval/windows.h"

#include "base/hash.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

struct window_list {
    struct window *items;
    int64_t count, capacity;
};

static enum status list_add(struct window_list *list, struct window window) {
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 256;
        TRY(memory_grow(&list->items, (size_t)capacity, sizeof *list->items, "evaluation windows"));
        list->capacity = capacity;
    }
    list->items[list->count++] = window;
    return STATUS_OK;
}

/* Windows over tokens first … end−1, whose last one is a target only. */
static enum status cover(struct window_list *list, int32_t shard, int64_t first, int64_t end,
                         const struct windows_options *options) {
    int64_t inputs = end - 1 - first, length = options->length, covered = 0;
    for (int64_t offset = 0; covered < inputs; offset += options->stride) {
        int64_t left = inputs - offset, here = left < length ? left : length;
        struct window window = {.shard = shard, .first = first + offset, .inputs = here};
        window.counted = offset + here - covered;
        covered = offset + here;
        TRY(list_add(list, window));
    }
    return STATUS_OK;
}

static enum status cover_shard(struct window_list *list, int32_t index, const struct shard *shard,
                               const struct windows_options *options) {
    if (!options->documents) return cover(list, index, 0, shard->info.tokens, options);
    for (int64_t d = 0; d < shard->info.documents; d++) {
        int64_t first = (int64_t)shard->documents[d];
        int64_t end = d + 1 < shard->info.documents ? (int64_t)shard->documents[d + 1] : shard->info.tokens;
        TRY(cover(list, index, first, end, options));
    }
    return STATUS_OK;
}

static enum status open_shard(struct windows *windows, const char *path) {
    size_t count = windows->shard_count;
    TRY(memory_grow(&windows->shards, count + 1, sizeof *windows->shards, "shards"));
    TRY(shard_open(path, &windows->shards[count]));
    windows->shard_count = count + 1;
    const struct shard_info *first = &windows->shards[0].info, *info = &windows->shards[count].info;
    if (info->tokenizer_hash != first->tokenizer_hash) {
        char expected[17], found[17];
        hash_text(first->tokenizer_hash, expected);
        hash_text(info->tokenizer_hash, found);
        return error_set(STATUS_USAGE, "%s: tokenizer: expected %s (hash %s) as in %s, found %s (hash %s)", path,
                         first->tokenizer_name, expected, windows->shards[0].path, info->tokenizer_name, found);
    }
    return STATUS_OK;
}

static enum status open_pattern(struct windows *windows, const char *pattern) {
    char **paths = NULL;
    size_t count = 0;
    if (!strpbrk(pattern, "*?[")) return open_shard(windows, pattern);
    TRY(file_glob(pattern, &paths, &count));
    enum status status = STATUS_OK;
    for (size_t i = 0; i < count && status == STATUS_OK; i++) status = open_shard(windows, paths[i]);
    file_free_list(paths, count);
    return status;
}

/* Keeps `wanted` windows, spread evenly. */
static void thin(struct windows *windows, int64_t wanted) {
    if (wanted <= 0 || wanted >= windows->count) return;
    for (int64_t i = 0; i < wanted; i++) {
        windows->windows[i] = windows->windows[(int64_t)((__int128)i * windows->count / wanted)];
    }
    windows->count = wanted;
}

static enum status check(const struct windows_options *options) {
    if (options->length < 1) {
        return error_set(STATUS_USAGE, "length: expected at least 1, found %lld", (long long)options->length);
    }
    if (options->stride < 1 || options->stride > options->length) {
        return error_set(STATUS_USAGE, "stride: expected 1 to the length, %lld, found %lld", (long long)options->length,
                         (long long)options->stride);
    }
    return STATUS_OK;
}

enum status windows_open(const char *const *paths, size_t path_count, const struct windows_options *options,
                         struct windows *windows) {
    *windows = (struct windows){.options = *options};
    struct window_list list = {0};
    enum status status = check(options);
    for (size_t i = 0; i < path_count && status == STATUS_OK; i++) status = open_pattern(windows, paths[i]);
    for (size_t s = 0; s < windows->shard_count && status == STATUS_OK; s++) {
        status = cover_shard(&list, (int32_t)s, &windows->shards[s], options);
    }
    windows->windows = list.items;
    windows->count = list.count;
    if (status == STATUS_OK && list.count == 0) {
        status = error_set(STATUS_FAILED, "%s: no token to predict: expected a document of at least 2 tokens",
                           windows->shard_count ? windows->shards[0].path : "no shard");
    }
    if (status == STATUS_OK) {
        thin(windows, options->sequences);
    } else {
        windows_close(windows);
    }
    return status;
}

void windows_close(struct windows *windows) {
    if (!windows) return;
    for (size_t i = 0; i < windows->shard_count; i++) shard_close(&windows->shards[i]);
    free(windows->shards);
    free(windows->windows);
    *windows = (struct windows){0};
}

int64_t windows_vocabulary(const struct windows *windows) {
    int64_t largest = 0;
    for (size_t i = 0; i < windows->shard_count; i++) {
        int64_t vocabulary = windows->shards[i].info.vocabulary;
        if (vocabulary > largest) largest = vocabulary;
    }
    return largest;
}

/* start[i] of every input, and no target for the last token of a document. */
static void separate(const struct shard *shard, const struct window *window, int32_t *targets, int32_t *start) {
    int64_t document = shard_document_of(shard, window->first), begin = 0;
    for (int64_t i = 0; i < window->inputs; i++) {
        int64_t next = window->first + i + 1; /* the target's token */
        bool ends = document + 1 < shard->info.documents && (int64_t)shard->documents[document + 1] == next;
        start[i] = (int32_t)begin;
        if (!ends) continue;
        targets[i] = -1;
        begin = i + 1;
        /* Documents without tokens share an offset with the next one. */
        while (document + 1 < shard->info.documents && (int64_t)shard->documents[document + 1] == next) document++;
    }
}

void windows_read(const struct windows *windows, int64_t index, int32_t *ids, int32_t *targets, int32_t *start) {
    int64_t length = windows->options.length, inputs = 0;
    if (index < windows->count) {
        const struct window *window = &windows->windows[index];
        const struct shard *shard = &windows->shards[window->shard];
        inputs = window->inputs;
        shard_read(shard, window->first, inputs, ids);
        shard_read(shard, window->first + 1, inputs, targets);
        memset(start, 0, (size_t)inputs * sizeof *start);
        if (!windows->options.joined) separate(shard, window, targets, start);
        for (int64_t i = 0; i < inputs - window->counted; i++) targets[i] = -1;
    }
    for (int64_t i = inputs; i < length; i++) {
        ids[i] = inputs ? ids[inputs - 1] : 0;
        targets[i] = -1;
        start[i] = (int32_t)inputs;
    }
}
