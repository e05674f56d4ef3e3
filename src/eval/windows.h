/* The sequences that an evaluation reads: windows over token shards. Knows nothing of models. */
#ifndef SQUINT_EVAL_WINDOWS_H
#define SQUINT_EVAL_WINDOWS_H

#include "io/shard.h"

struct windows_options {
    int64_t length;    /* T: inputs of a window */
    int64_t stride;    /* 1 … T: from one window's first input to the next one's; T: disjoint */
    int64_t sequences; /* at most so many, spread evenly over all; 0: all */
    bool joined;       /* attention and targets run across documents */
    bool documents;    /* windows start with documents and end with them: each is cut up by itself */
};

struct window {
    int32_t shard;
    int64_t first;   /* token of the shard that is input 0 */
    int64_t inputs;  /* 1 … T that exist; the rest is padding */
    int64_t counted; /* targets of the last `counted` inputs count, so that every token counts once */
};

struct windows {
    struct windows_options options;
    struct shard *shards;
    size_t shard_count;
    struct window *windows;
    int64_t count;
};

/* Opens the shards that `paths` (names or shell patterns) name and lays windows over them. Shards must agree in
 * tokenizer hash. STATUS_USAGE: a wrong option; STATUS_NOT_FOUND, STATUS_DAMAGED: a shard's; STATUS_FAILED: no window
 * at all. */
enum status windows_open(const char *const *paths, size_t path_count, const struct windows_options *options,
                         struct windows *windows);
void windows_close(struct windows *windows);               /* NULL-safe, twice-safe */
int64_t windows_vocabulary(const struct windows *windows); /* the largest of the shards' */
/* Writes window `index` into ids, targets, start: [T] each, as struct batch (model.h) has them. Padding is a document
 * of its own of the window's last id, without targets. An index past the last gives a window that is all padding. */
void windows_read(const struct windows *windows, int64_t index, int32_t *ids, int32_t *targets, int32_t *start);

#endif
