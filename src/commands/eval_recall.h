/* The corpus of `squint eval --recall`, read and tokenised: what eval/recall.h wants to be given. */
#ifndef SQUINT_COMMANDS_EVAL_RECALL_H
#define SQUINT_COMMANDS_EVAL_RECALL_H

#include "data-prep/tokenizer.h"
#include "eval/recall.h"

struct eval_recall {
    const char *path;
    struct recall_document *documents; /* those with answers; each begins with `begin` where there is one */
    size_t count;
};

/* Reads JSON lines as `squint corpus` writes them (docs/formats.md) and finds the tokens of their answers: all that
 * share a byte with one. begin: id before each document; −1: none. STATUS_NOT_FOUND, STATUS_IO: the file;
 * STATUS_DAMAGED names file, line, what was expected and found; STATUS_USAGE: a tokenizer that changes the text, so
 * that its bytes cannot be found again. Release with eval_recall_free, also after an error. */
enum status eval_recall_read(const char *path, const struct tokenizer *tokenizer, int64_t begin,
                             struct eval_recall *recall);
void eval_recall_free(struct eval_recall *recall); /* NULL-safe, twice-safe */

#endif
