/* What the parts of prep share; see prep.h. */
#ifndef SQUINT_DATA_PREP_PREP_INTERNAL_H
#define SQUINT_DATA_PREP_PREP_INTERNAL_H

#include "data-prep/prep.h"
#include "data-prep/tokenizer.h"
#include "io/shard.h"

/* What the scan finds in a file; six int64_t, summed over ranks as such. */
struct prep_count {
    int64_t documents, bytes, empty, invalid, invalid_at, hash;
};
enum { PREP_COUNT_FIELDS = sizeof(struct prep_count) / sizeof(int64_t) };

struct prep {
    struct comm *comm;
    const struct prep_options *options;
    struct reader_options reader;
    struct tokenizer *tokenizer;
    int64_t begin_of_text, end_of_text; /* -1: none is written */
    char **paths;                       /* of the files to read */
    size_t file_count;
    bool standard_input;       /* one of them is a copy of standard input */
    struct prep_count *counts; /* [file_count] */
    int64_t documents, bytes, valid_documents;
    uint64_t key; /* of the text and of all settings that shape the shards */
    int64_t unit_bytes, unit_count;
    int64_t *unit_tokens[PREP_SPLITS]; /* [unit_count] */
    char *work;                        /* PREFIX.work */
    int lock;                          /* file descriptor; -1: none */
    struct prep_summary *summary;
};

/* --- prep_plan.c: what there is to do -------------------------------------------------------------------------------
 */
/* Lists and scans the files, agrees on the counts, sets key and units. Writes nothing but the copy of standard input.
 */
enum status prep_plan(struct prep *prep);
/* Which split a document (counted over all files) belongs to. */
enum prep_split prep_split_of(const struct prep *prep, int64_t document);
/* STATUS_STOPPED when options.stop says so. */
enum status prep_check_stop(const struct prep *prep);
/* "PREFIX-stdin.tmp" in fresh memory. */
enum status prep_standard_input_path(const char *out, char **path);

/* --- prep_units.c: text -> ids
 * ---------------------------------------------------------------------------------------- */
/* Tokenises the units of this rank that are not there yet. */
enum status prep_tokenise(struct prep *prep);
/* A unit's ids and the places where documents begin, mapped from its file. */
struct prep_unit {
    struct file_map map;
    int64_t tokens[PREP_SPLITS], documents[PREP_SPLITS];
    const int64_t *starts[PREP_SPLITS]; /* ascending, in tokens of the split inside the unit */
    const uint32_t *ids[PREP_SPLITS];
};
/* STATUS_NOT_FOUND, or STATUS_DAMAGED when it is not whole or not of this key. Close with file_map_close(&unit->map).
 */
enum status prep_unit_open(const struct prep *prep, int64_t index, struct prep_unit *unit);

/* --- prep_shards.c: ids -> shards -----------------------------------------------------------------------------------
 */
/* Rank 0: refuses shards of other settings, or removes all when forced; *done when record and every shard are there. */
enum status prep_check_outputs(struct prep *prep, bool *done);
/* Puts this rank's shards together; those that are there and verify are kept. */
enum status prep_assemble(struct prep *prep);
enum status prep_shard_path(const char *out, enum prep_split split, int64_t index, char **path);

/* --- prep_summary.c: what has been done
 * ------------------------------------------------------------------------------- */
enum status prep_record_path(const char *out, char **path); /* PREFIX-prep.json */
enum status prep_write_record(const struct prep *prep);

#endif
