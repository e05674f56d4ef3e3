/* Documents out of text files, one interface over plain text, gzip, zstd and JSON lines. Streams: memory grows with the
 * longest document (or with the longest line, or a piece, see piece_bytes), never with the file.
 * Knows nothing of tokens. */
#ifndef SQUINT_DATA_PREP_READER_H
#define SQUINT_DATA_PREP_READER_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum reader_format {
    READER_AUTO, /* JSON lines when the name, without .gz or .zst, ends in .jsonl or .ndjson; else text */
    READER_TEXT,
    READER_JSONL
};

/* Compression is never an option: it shows in the first bytes (gzip, zstd), and a name in .gz or .zst must keep its
 * word. */
struct reader_options {
    enum reader_format format;
    const char *text_field; /* of a JSON line; NULL: "text" */
    const char *separator;  /* text only: documents are what stands between these bytes; NULL: a file is a document */
    bool wikitext;          /* text only: a document begins at a top-level heading line " = Title = " */
    size_t piece_bytes; /* text only: longer documents come in pieces of at least this size, cut before a line feed that
                           follows a printable ASCII character; 0: documents come whole. Where the cuts are
                           depends on the text alone. */
};

/* A document, or a piece of one. An empty document is left out (and counted by reader_empty). */
struct reader_piece {
    const char *text; /* belongs to the reader, valid until its next call */
    size_t length;    /* at least 1 */
    bool begins;      /* the document's first piece */
    bool ends;        /* its last piece */
};

struct reader;

/* Opens one file, or standard input when `path` is "-". STATUS_USAGE when options exclude each other or the separator
 * is empty; STATUS_NOT_FOUND or STATUS_IO name the path (a directory too: see reader_list). */
enum status reader_open(const char *path, const struct reader_options *options, struct reader **reader);
/* The next piece, or *more = false after the last. STATUS_DAMAGED names the file and the byte or line: truncated or
 * corrupt gzip/zstd, a line that is not JSON, a field that is missing or no text, a file without a single byte. */
enum status reader_next(struct reader *reader, struct reader_piece *piece, bool *more);
int64_t reader_empty(const struct reader *reader); /* empty documents left out so far */
void reader_close(struct reader **reader);         /* NULL-safe */

/* The files that `words` stand for: a file and "-" stand for themselves, a directory for all regular files below it,
 * names in order, those that begin with "." left out. Release with file_free_list. STATUS_NOT_FOUND names a word that
 * is not there; STATUS_USAGE "-" given twice; STATUS_DAMAGED a directory without files. */
enum status reader_list(const char *const *words, size_t word_count, char ***paths, size_t *count);

/* How many byte sequences of `text` are not UTF-8 (each would be one U+FFFD: the maximal subparts of Unicode 3.9);
 * *first = the place of the first when there is one. */
int64_t reader_count_invalid(const char *text, size_t length, size_t *first);

#endif
