/* What the tokenizer's files share and nobody else sees: a tokenizer taken apart. */
#ifndef SQUINT_DATA_PREP_TOKENIZER_PARTS_H
#define SQUINT_DATA_PREP_TOKENIZER_PARTS_H

#include "data-prep/bpe.h"
#include "data-prep/split.h"
#include "data-prep/tokenizer.h"

#include <jansson.h>
#include <stdatomic.h>

struct text { /* bytes that grow; release with free(bytes) */
    char *bytes;
    size_t length, capacity;
};
enum status text_append(struct text *text, const char *bytes, size_t length);

/* A token that is looked for in the text before anything else happens to it. */
struct added_token {
    char *content; /* as the file has it */
    char *pattern; /* what is looked for: the content, normalized for those of the second round */
    size_t length; /* of pattern */
    uint32_t id;
    bool special;                   /* recognised only when the caller asks for it */
    bool strips_left, strips_right; /* takes white space beside it along */
};

/* Two rounds: on the text as it is, and on normalized text. The tokens that begin with byte b are
 * tokens[first[b]] to tokens[first[b + 1] - 1], longest first. */
struct added_round {
    struct added_token *tokens;
    size_t count, first[257];
    bool ordinary; /* some are not special */
};

struct normalizer_step { /* Replace; Prepend when `from` is NULL */
    char *from, *to;
};

enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };
enum pre_step_kind { PRE_PREFIX_SPACE, PRE_GPT2, PRE_PATTERN, PRE_DIGITS, PRE_METASPACE };
struct pre_step {
    enum pre_step_kind kind;
    struct split_pattern *pattern; /* PRE_PATTERN; PRE_METASPACE: its marker, to split at, or NULL */
    enum split_behavior behavior;
    bool inverted;
    bool individual;             /* PRE_DIGITS: each by itself */
    enum prepend_scheme prepend; /* PRE_METASPACE */
    char *marker;
};

enum { STEP_LIMIT = 16, PRE_LIMIT = STEP_LIMIT + 1 }; /* a ByteLevel is two steps */

struct decoder {
    bool byte_level;
    bool byte_fallback;
    bool fused;
    bool strips_first_marker; /* Metaspace: markers in the first token vanish */
    struct normalizer_step replace[STEP_LIMIT];
    size_t replace_count;
    char *strip; /* one character, cut from the ends of the whole text; NULL: nothing is */
    int64_t strip_start, strip_stop;
};

struct encoder_state { /* one thread's memory; handed out and taken back by the tokenizer */
    struct bpe_cache cache;
    struct bpe_scratch scratch;
    uint32_t *symbols;
    size_t symbol_room;
};
enum { STATE_SLOTS = 16 };
struct state_pool {
    _Atomic(struct encoder_state *) idle[STATE_SLOTS];
};

struct tokenizer {
    char *name;
    uint64_t hash;
    struct bpe_vocabulary vocabulary;
    size_t model_count; /* ids below are the model's, from here on added tokens' */
    struct bpe_merges merges;
    uint32_t *merge_list; /* [2·merge_count] left, right by rank */
    size_t merge_count;
    bool byte_level, byte_fallback, fuse_unknown, ignore_merges;
    uint32_t unknown;         /* BPE_NONE: characters without a token are left out */
    uint32_t byte_token[256]; /* of a byte: byte-level its symbol, else its fallback <0xXX>; BPE_NONE: none */
    bool cuts_before_marker;  /* no merge goes across "x▁": a text may be cut there without changing an id */
    struct normalizer_step normalizer[STEP_LIMIT];
    size_t normalizer_count;
    struct pre_step pre[PRE_LIMIT];
    size_t pre_count;
    struct decoder decoder;
    struct added_round round[2];
    bool *special;        /* [vocabulary.count] left out of a text unless asked for */
    char *output;         /* the bytes of every id, as they stand inside a text */
    size_t *output_begin; /* [vocabulary.count + 1] */
    int64_t end_of_text, begin_of_text;
    struct state_pool *pool;
};

/* The marker of a word's beginning in Llama-type vocabularies: U+2581. */
#define TOKENIZER_MARKER "\xE2\x96\x81"

/* tokenizer_bytes.c: GPT-2's alphabet, where every byte is a printable character. */
uint32_t byte_to_character(unsigned char byte);
int character_to_byte(uint32_t character); /* -1: not of the alphabet */
/* *out += the characters of `length` bytes. */
enum status bytes_to_characters(const char *bytes, size_t length, struct text *out);
/* *out += the bytes of a token, if all its characters are of the alphabet; else the token as it is. */
enum status characters_to_bytes(const char *token, size_t length, struct text *out);

/* tokenizer_json.c: fills a tokenizer's parts from a tokenizer.json. `place` names the file. */
enum status tokenizer_read_json(const char *path, struct tokenizer *tokenizer);
/* tokenizer_model.c: vocabulary, merges and model settings; from the "model" object, or from vocab.json + merges.txt.
 */
enum status tokenizer_read_model(const char *path, const json_t *model, struct tokenizer *tokenizer);
enum status tokenizer_read_vocabulary(const char *path, const char *key, const json_t *tokens,
                                      struct tokenizer *tokenizer);
enum status tokenizer_read_merges_file(const char *path, struct tokenizer *tokenizer);
/* tokenizer_steps.c: normalizer, pre_tokenizer, decoder. */
enum status tokenizer_read_steps(const char *path, const json_t *root, struct tokenizer *tokenizer);
/* tokenizer_added.c: the added tokens. */
enum status tokenizer_read_added(const char *path, const json_t *list, struct tokenizer *tokenizer);
enum status tokenizer_add_special(struct tokenizer *tokenizer, const char *content);
void added_round_free(struct added_round *round);
/* The first added token at or after `from`: *begin, *end, its id; BPE_NONE when there is none. `last` is where the one
 * before ended. */
uint32_t added_round_find(const struct added_round *round, const char *text, size_t length, size_t from, bool special,
                          size_t *begin, size_t *end);
/* tokenizer_encode.c */
enum status tokenizer_normalize(const struct tokenizer *tokenizer, const char *text, size_t length, struct text *out);
void state_pool_free(struct state_pool **pool);

/* JSON with messages: what `object`.key is, or a message that names `path`, the key, what was expected and found.
 * Absent and null: *out = NULL and STATUS_OK. */
enum status json_read_file(const char *path, json_t **root);
enum status json_want_bool(const char *path, const char *where, const json_t *object, const char *key, bool *out);
enum status json_want_text(const char *path, const char *where, const json_t *object, const char *key,
                           const char **out);
const char *json_describe(const json_t *value, char text[64]);

#endif
