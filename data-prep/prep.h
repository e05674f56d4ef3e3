/* Text files -> token shards: PREFIX-train-00000.h5 …, PREFIX-valid-00000.h5 …, and PREFIX-prep.json, which says how
 * they were made. The bytes of every shard are a function of text, tokenizer and options: not of the number of ranks,
 * nor of how often the work was interrupted.
 *
 * The way: 1. scan: every file is read once (file i by rank i mod size) and documents, bytes and what is not UTF-8 are
 * counted, so every fault of the input is found before anything is written. 2. The text is cut into units by byte
 * offset; rank r tokenises the units r, r + size, … and leaves each as a file in PREFIX.work/. 3. Shard i is put
 * together from the units by rank i mod size. A finished unit or shard that verifies is kept when the same command is
 * run again. */
#ifndef SQUINT_DATA_PREP_PREP_H
#define SQUINT_DATA_PREP_PREP_H

#include "base/error.h"
#include "comm/comm.h"
#include "data-prep/reader.h"

#include <signal.h>
#include <stdio.h>

enum prep_split { PREP_TRAIN = 0, PREP_VALID, PREP_SPLITS };

struct prep_options {
    const char *tokenizer;     /* a directory or a tokenizer.json */
    const char *out;           /* PREFIX; its folder is made when it is not there */
    const char *const *inputs; /* files, directories, "-" */
    size_t input_count;
    double
        valid; /* share of the documents that goes to validation: round(share × documents) of them, at least one and not
                  all when 0 < share < 1 and there are two; which ones is a function of (seed, document counter) */
    uint64_t seed;
    bool pack; /* one stream: where documents begin inside a shard is not recorded, so sequences run across them */
    int64_t shard_tokens;         /* a shard holds exactly so many, the last of a split what is left */
    bool no_begin_of_text;        /* else a Llama-type tokenizer's "<s>" stands before every document */
    bool no_end_of_text;          /* else the tokenizer's end of text, when it has one, stands after every document */
    bool force;                   /* removes what stands at PREFIX first, once the scan has found no fault */
    struct reader_options reader; /* piece_bytes is set by prep_run */
    const volatile sig_atomic_t *stop; /* when it becomes non-zero: STATUS_STOPPED, resumable; may be NULL */
};

struct prep_summary {
    int64_t files, documents[PREP_SPLITS], tokens[PREP_SPLITS], shards[PREP_SPLITS];
    int64_t text_bytes;
    int64_t empty_documents;   /* left out */
    int64_t invalid_utf8;      /* byte sequences that are not UTF-8, kept as bytes */
    int64_t invalid_files;     /* files that have some */
    int64_t kept_units, units; /* units found finished from an earlier run */
    bool already_done;         /* nothing was left to do */
    double seconds;
};

/* Called by every rank of `comm`. On rank 0 says what is not UTF-8 and shows progress. STATUS_USAGE: options, or
 * outputs of other settings (named) without `force`; nothing is written then, nor after any fault of the input. */
enum status prep_run(struct comm *comm, const struct prep_options *options, struct prep_summary *summary);

/* The summary for people, and as one JSON object with the shards' paths. */
enum status prep_print(FILE *stream, const struct prep_options *options, const struct prep_summary *summary);
enum status prep_print_json(FILE *stream, const struct prep_options *options, const struct prep_summary *summary);

#endif
