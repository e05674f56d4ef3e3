/* Cuts text into the pieces that a tokenizer looks at one by one: GPT-2's split pattern by hand, and foreign patterns
 * through PCRE2. Knows nothing of tokens. */
#ifndef SQUINT_DATA_PREP_SPLIT_H
#define SQUINT_DATA_PREP_SPLIT_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

/* GPT-2's pattern, in its two usual spellings; both cut alike. Radford et al. 2019. */
extern const char *const split_gpt2_pattern, *const split_gpt2_pattern_short;

/* The end of the piece that begins at text[from], from < length. Pieces follow each other without gaps. A byte that is
 * not UTF-8 counts as a character that is neither letter, number nor space (as U+FFFD would). */
size_t split_gpt2(const char *text, size_t length, size_t from);

/* What becomes of matches; the words of Hugging Face's tokenizers. */
enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
};

struct split_pattern; /* one compiled pattern; may be shared by threads */

/* Compiles a regular expression (`literal`: a plain text). `\s` and `\S` mean Unicode's White_Space. `place` names the
 * pattern in messages. STATUS_USAGE: not a pattern that PCRE2 understands, with its message and the place in it. */
enum status split_pattern_open(const char *pattern, bool literal, const char *place, struct split_pattern **out);
const char *split_pattern_text(const struct split_pattern *pattern); /* as it was given */
void split_pattern_close(struct split_pattern **pattern);            /* NULL-safe */

/* Takes pieces one after the other; a status other than STATUS_OK ends the splitting and is passed on. */
typedef enum status (*split_sink)(void *context, const char *text, size_t length);

/* Hands text[0..length-1] to `sink` in pieces. `inverted`: what matches and what does not change places. Bytes that are
 * not UTF-8 match nothing. STATUS_FAILED when the pattern needs more steps than PCRE2 allows. */
enum status split_pattern_run(const struct split_pattern *pattern, enum split_behavior behavior, bool inverted,
                              const char *text, size_t length, split_sink sink, void *context);

#endif
