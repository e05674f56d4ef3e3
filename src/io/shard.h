/* Token shards: one HDF5 file of token ids with the places where documents begin (docs/formats.md).
 * Written by one process, read by mmap at the dataset's offset; h5py reads them without us. */
#ifndef SQUINT_IO_SHARD_H
#define SQUINT_IO_SHARD_H

#include "base/error.h"
#include "base/file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct shard_info {
    char tokenizer_name[64];  /* e.g. "gpt2" */
    uint64_t tokenizer_hash;  /* of the tokenizer's content, tokenizer_hash() */
    int64_t vocabulary;       /* V; ids are below it */
    int64_t end_of_text;      /* the id between documents; -1: none */
    char source[256];         /* where the text came from, for people */
    uint64_t source_hash;
    int64_t tokens;           /* number of ids */
    int64_t documents;        /* number of documents, at least 1 when tokens > 0 */
    uint64_t tokens_hash;     /* XXH3 of the ids as stored */
    int bytes_per_token;      /* 2 when vocabulary <= 65,536, else 4 */
};

/* --- writing ---------------------------------------------------------------------------------------------------- */
struct shard_writer;

/* Starts a shard that will appear at `path` when it is closed. `info`: tokenizer, vocabulary, end of text and source are
 * used; the rest is counted. Ids are spooled to a temporary file beside `path`, so memory does not grow with the shard. */
enum status shard_writer_open(const char *path, const struct shard_info *info, struct shard_writer **writer);
/* Appends ids; `begins_document` marks the first of them as the first token of a document.
 * STATUS_FAILED names the first id that is not below the vocabulary. */
enum status shard_writer_append(struct shard_writer *writer, const uint32_t *ids, int64_t count, bool begins_document);
int64_t shard_writer_tokens(const struct shard_writer *writer);
/* Publishes the file (temp + fsync + rename + fsync(dir)) and frees *writer. */
enum status shard_writer_close(struct shard_writer **writer);
/* Throws everything away; NULL-safe. */
void shard_writer_abort(struct shard_writer **writer);

/* --- reading ---------------------------------------------------------------------------------------------------- */
struct shard {
    char *path;
    struct shard_info info;
    struct file_map map;
    const void *ids;          /* info.tokens ids of info.bytes_per_token bytes, inside the map */
    const uint64_t *documents; /* info.documents ascending start offsets; the first is 0 */
    uint64_t *owned_documents; /* what `documents` points to */
};

/* Opens and checks structure (attributes, sizes, ascending starts; not every id). STATUS_DAMAGED says what is wrong. */
enum status shard_open(const char *path, struct shard *shard);
void shard_close(struct shard *shard); /* NULL-safe, twice-safe */
/* Reads every id: below the vocabulary, and the hash as stored. STATUS_DAMAGED names path, expected, found. */
enum status shard_verify(const struct shard *shard);
/* ids[0..count-1] = tokens first … first+count−1, which must lie inside the shard. */
void shard_read(const struct shard *shard, int64_t first, int64_t count, int32_t *ids);
/* Index of the document that holds token `token`: binary search. */
int64_t shard_document_of(const struct shard *shard, int64_t token);

#endif
