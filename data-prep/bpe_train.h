/* Learns a byte-level BPE from texts: GPT-2's splitter, then the commonest pair of neighbours becomes a token, over and
 * over. Sennrich et al. 2016. */
#ifndef SQUINT_DATA_PREP_BPE_TRAIN_H
#define SQUINT_DATA_PREP_BPE_TRAIN_H

#include "base/error.h"
#include "data-prep/bpe.h"

#include <stddef.h>
#include <stdint.h>

/* Distinct words and how often each was seen. */
struct bpe_words {
    char *bytes;
    size_t used, capacity;
    size_t *begin;    /* [count] */
    uint32_t *length; /* [count] */
    int64_t *seen;    /* [count] */
    size_t count, room;
    uint32_t *slots; /* open addressing: word + 1, 0 free */
    size_t slot_count;
};
/* Splits a text and counts its words. A word is cut after 2^20 bytes: longer ones are no words of any language. */
enum status bpe_words_count(struct bpe_words *words, const char *text, size_t length);
void bpe_words_free(struct bpe_words *words);

/* What is learnt: the special token 0, the 256 bytes in the order of GPT-2's alphabet, then one token a merge. */
struct bpe_learnt {
    struct bpe_vocabulary vocabulary; /* in GPT-2's alphabet */
    uint32_t *merges;                 /* [2·merge_count] left, right, in the order in which they were learnt */
    size_t merge_count;
};
/* Learns merges until there are `vocabulary` tokens or no pair is seen `min_count` times. Equally common pairs: the
 * lower left id first, then the lower right id; nothing depends on the order of the texts. */
enum status bpe_learn(const struct bpe_words *words, int64_t vocabulary, int64_t min_count, struct bpe_learnt *learnt);
void bpe_learnt_free(struct bpe_learnt *learnt);
/* Writes directory/vocab.json, merges.txt, tokenizer_config.json and, last, tokenizer.json. */
enum status bpe_learnt_write(const struct bpe_learnt *learnt, const char *directory);

#define BPE_TRAIN_SPECIAL "<|endoftext|>" /* token 0 */

struct bpe_train_options {
    const char *const *inputs; /* files, directories, "-": whatever data-prep/reader.h reads */
    size_t input_count;
    const char *out;    /* directory */
    int64_t vocabulary; /* tokens, at least 257 */
    int64_t min_count;
};
/* Counts, learns, writes, with progress. Writes nothing unless all inputs could be read. A text too small for the
 * vocabulary gives a smaller one and a warning. */
enum status bpe_train(const struct bpe_train_options *options);

#endif
