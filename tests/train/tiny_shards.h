/* Shards of a few hundred made-up tokens, with documents of uneven lengths. */
#ifndef SQUINT_TESTS_TINY_SHARDS_H
#define SQUINT_TESTS_TINY_SHARDS_H

#include "base/rng.h"
#include "io/shard.h"
#include "support/check.h"

#include <stdio.h>

/* `tokens` ids below `vocabulary`; a new document begins with token 0 and then wherever `begins` says (ends with −1).
 * Token t of the shard with `salt` is a function of both: easy to learn in part (it often repeats the token before it
 * plus one). */
static inline uint32_t tiny_token(int64_t vocabulary, uint64_t salt, int64_t t) {
    uint64_t draw = rng_below(salt, RNG_TEST, (uint64_t)t, 4);
    uint64_t value = draw ? (uint64_t)t / 3 : rng_below(salt, RNG_TEST, (uint64_t)t + (1u << 20), (uint64_t)vocabulary);
    return (uint32_t)(value % (uint64_t)vocabulary);
}

static inline void tiny_shard(const char *path, int64_t vocabulary, uint64_t tokenizer_hash, uint64_t salt,
                              int64_t tokens, const int64_t *begins) {
    struct shard_info info = {.tokenizer_name = "tiny",
                              .tokenizer_hash = tokenizer_hash,
                              .vocabulary = vocabulary,
                              .end_of_text = 0,
                              .source = "tests"};
    struct shard_writer *writer = NULL;
    CHECK_OK(shard_writer_open(path, &info, &writer));
    for (int64_t t = 0; t < tokens; t++) {
        uint32_t id = tiny_token(vocabulary, salt, t);
        bool begin = t == 0;
        for (const int64_t *b = begins; b && *b >= 0; b++) begin = begin || *b == t;
        CHECK_OK(shard_writer_append(writer, &id, 1, begin));
    }
    CHECK_OK(shard_writer_close(&writer));
}

#endif
