/* See batches.h. */
#include "train/batches.h"

#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static enum status append_paths(char *const *patterns, size_t pattern_count, char ***paths, size_t *count) {
    for (size_t p = 0; p < pattern_count; p++) {
        char **found = NULL;
        size_t found_count = 0;
        TRY(file_glob(patterns[p], &found, &found_count));
        enum status status = memory_grow(paths, *count + found_count, sizeof **paths, "paths of shards");
        if (status != STATUS_OK) {
            file_free_list(found, found_count);
            return status;
        }
        memcpy(*paths + *count, found, found_count * sizeof *found);
        *count += found_count;
        free(found);
    }
    if (*count > 1) qsort(*paths, *count, sizeof **paths, compare_paths);
    return STATUS_OK;
}

static enum status check_tokenizer(const struct shard *first, const struct shard *shard) {
    char expected[17], found[17];
    if (shard->info.tokenizer_hash == first->info.tokenizer_hash) return STATUS_OK;
    hash_text(first->info.tokenizer_hash, expected);
    hash_text(shard->info.tokenizer_hash, found);
    return error_set(STATUS_USAGE, "%s: tokenizer: expected %s (%s) as in %s, found %s (%s)", shard->path, expected,
                     first->info.tokenizer_name, first->path, found, shard->info.tokenizer_name);
}

enum status batches_open(char *const *patterns, size_t pattern_count, bool joined, uint64_t seed,
                         struct batches *batches) {
    enum status status = STATUS_OK;
    char **paths = NULL;
    size_t count = 0;
    *batches = (struct batches){.joined = joined, .seed = seed};
    TRY_GOTO(done, append_paths(patterns, pattern_count, &paths, &count));
    TRY_GOTO(done, memory_new(count, sizeof *batches->shards, "shards", &batches->shards));
    TRY_GOTO(done, memory_new(count, sizeof *batches->ends, "shards", &batches->ends));
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && strcmp(paths[i], paths[i - 1]) == 0) continue;
        struct shard *shard = &batches->shards[batches->shard_count];
        TRY_GOTO(done, shard_open(paths[i], shard));
        batches->shard_count++;
        batches->tokens += shard->info.tokens;
        TRY_GOTO(done, check_tokenizer(&batches->shards[0], shard));
    }
done:
    file_free_list(paths, count);
    if (status != STATUS_OK) batches_close(batches);
    return status;
}

void batches_close(struct batches *batches) {
    if (!batches) return;
    for (size_t i = 0; i < batches->shard_count; i++) shard_close(&batches->shards[i]);
    free(batches->shards);
    free(batches->ends);
    *batches = (struct batches){0};
}

enum status batches_start(struct batches *batches, int64_t stage, int64_t length) {
    batches->stage = stage;
    batches->length = length;
    batches->windows = 0;
    for (size_t i = 0; i < batches->shard_count; i++) {
        int64_t tokens = batches->shards[i].info.tokens;
        batches->windows += tokens > 0 ? (tokens - 1) / length : 0; /* the last target is one token further */
        batches->ends[i] = batches->windows;
    }
    if (batches->windows > 0) return STATUS_OK;
    return error_set(
        STATUS_USAGE,
        "data.train: no shard holds a window of length %lld and the token after it; the %zu shards have %lld "
        "tokens together, the first is %s",
        (long long)length, batches->shard_count, (long long)batches->tokens, batches->shards[0].path);
}

int64_t batches_vocabulary(const struct batches *batches) {
    int64_t largest = 0;
    for (size_t i = 0; i < batches->shard_count; i++) {
        if (batches->shards[i].info.vocabulary > largest) largest = batches->shards[i].info.vocabulary;
    }
    return largest;
}

struct batches_place batches_locate(const struct batches *batches, int64_t sample) {
    int64_t epoch = sample / batches->windows;
    uint64_t stream = rng_substream(RNG_ORDER, ((uint64_t)batches->stage << 40) | (uint64_t)epoch);
    int64_t window =
        (int64_t)rng_permute(batches->seed, stream, (uint64_t)(sample % batches->windows), (uint64_t)batches->windows);
    size_t low = 0, high = batches->shard_count - 1; /* the first shard whose end is beyond the window */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (batches->ends[middle] > window) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    int64_t before = low > 0 ? batches->ends[low - 1] : 0;
    return (struct batches_place){.shard = low, .first = (window - before) * batches->length, .epoch = epoch};
}

static void read_separate(const struct shard *shard, int64_t first, int64_t length, int32_t *targets, int32_t *start) {
    int64_t document = shard_document_of(shard, first);
    int32_t begin = 0;
    for (int64_t t = 0; t < length; t++) {
        bool ends = document + 1 < shard->info.documents && (int64_t)shard->documents[document + 1] == first + t + 1;
        start[t] = begin;
        if (!ends) continue;
        targets[t] = -1;
        document++;
        begin = (int32_t)(t + 1);
    }
}

void batches_read(const struct batches *batches, int64_t first, int64_t count, int32_t *ids, int32_t *targets,
                  int32_t *start) {
    int64_t length = batches->length;
    for (int64_t i = 0; i < count; i++) {
        struct batches_place place = batches_locate(batches, first + i);
        const struct shard *shard = &batches->shards[place.shard];
        shard_read(shard, place.first, length, ids + i * length);
        shard_read(shard, place.first + 1, length, targets + i * length);
        if (batches->joined) {
            memset(start + i * length, 0, (size_t)length * sizeof *start);
        } else {
            read_separate(shard, place.first, length, targets + i * length, start + i * length);
        }
    }
}
