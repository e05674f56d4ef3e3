/* Training batches: windows of T tokens over the shards, in an order that is a function of seed, stage and epoch alone.
 * Which rank reads a sample, and how many there are, changes nothing. Knows shards; nothing of models. */
#ifndef SQUINT_TRAIN_BATCHES_H
#define SQUINT_TRAIN_BATCHES_H

#include "io/shard.h"

struct batches {
    struct shard *shards;
    size_t shard_count;
    int64_t *ends;   /* [shard_count] windows of this shard and of those before it */
    int64_t windows; /* samples in an epoch; what is left of a shard behind its last whole window is not read */
    int64_t length;  /* T */
    int64_t tokens;  /* of all shards */
    bool joined;
    uint64_t seed;
    int64_t stage;
};

/* Opens the shards that the patterns name, each once, in the order of their paths. STATUS_NOT_FOUND: a pattern matches
 * nothing; STATUS_DAMAGED; STATUS_USAGE: shards of several tokenizers. The length and so the windows are set by
 * batches_start. */
enum status batches_open(char *const *patterns, size_t pattern_count, bool joined, uint64_t seed,
                         struct batches *batches);
void batches_close(struct batches *batches); /* NULL-safe, twice-safe */
/* Lays windows of `length` tokens for stage number `stage`. STATUS_USAGE when no shard holds one. */
enum status batches_start(struct batches *batches, int64_t stage, int64_t length);
int64_t batches_vocabulary(const struct batches *batches); /* the largest of the shards' */

/* Where sample number `sample` of the stage lies; samples go on through the epochs. */
struct batches_place {
    size_t shard;
    int64_t first; /* token */
    int64_t epoch;
};
struct batches_place batches_locate(const struct batches *batches, int64_t sample);
/* Samples first … first+count−1 of the stage into ids, targets, start: [count,T] each, as struct batch (model/model.h)
 * has them. Separate documents: attention starts at the document's first token inside the window, and the last token of
 * a document has no target (an end-of-text token belongs to the document before it). Joined: one document. */
void batches_read(const struct batches *batches, int64_t first, int64_t count, int32_t *ids, int32_t *targets,
                  int32_t *start);

#endif
