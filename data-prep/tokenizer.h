/* Text <-> token ids, exactly as the model's own tokenizer does it. GPT-2 type (byte-level BPE) and Llama type
 * (BPE with byte fallback, Prepend/Replace normalizers). */
#ifndef SQUINT_DATA_PREP_TOKENIZER_H
#define SQUINT_DATA_PREP_TOKENIZER_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

struct token_buffer { /* grows as needed; release with token_buffer_free */
    uint32_t *ids;
    size_t count, capacity;
};
void token_buffer_free(struct token_buffer *buffer);

/* Opens a directory (tokenizer.json, else vocab.json + merges.txt) or a tokenizer.json itself.
 * STATUS_DAMAGED names file, key, expected, found; an unsupported part of a tokenizer.json is named too (STATUS_USAGE).
 */
enum status tokenizer_open(const char *path, struct tokenizer **tokenizer);
void tokenizer_close(struct tokenizer **tokenizer); /* NULL-safe */

const char *tokenizer_name(const struct tokenizer *tokenizer); /* the directory's last part */
uint64_t
tokenizer_hash(const struct tokenizer *tokenizer); /* of vocabulary, merges and settings; not of the file's layout */
int64_t tokenizer_vocabulary(const struct tokenizer *tokenizer);  /* largest id + 1 */
int64_t tokenizer_end_of_text(const struct tokenizer *tokenizer); /* "<|endoftext|>", "</s>", ...; -1: none */
int64_t
tokenizer_begin_of_text(const struct tokenizer *tokenizer); /* "<s>" of Llama type; GPT-2: end of text; -1: none */
int64_t tokenizer_find(const struct tokenizer *tokenizer,
                       const char *token); /* id of an exact (special) token; -1: none */

/* Appends the ids of text[0..length-1] to *out. Special tokens in the text are recognised when `special` is true and
 * are ordinary text otherwise. Any bytes are allowed: what is not UTF-8 is kept as bytes. Thread-safe on one tokenizer
 * as long as each thread has its own `out`. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length, bool special,
                             struct token_buffer *out);
/* *text = the bytes of ids, NUL-terminated, *length without the NUL; release with free(). Special tokens appear as
 * their names when `special` is true, else they are left out. STATUS_USAGE names an id outside the vocabulary. */
enum status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t count, bool special,
                             char **text, size_t *length);
/* For streaming: appends the bytes of one id to *text (grown as needed), as they stand inside a text. */
enum status tokenizer_decode_one(const struct tokenizer *tokenizer, uint32_t id, char **text, size_t *length);

#endif
