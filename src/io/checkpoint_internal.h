/* What the files checkpoint*.c share: the index, in memory and as index.h5. */
#ifndef SQUINT_IO_CHECKPOINT_INTERNAL_H
#define SQUINT_IO_CHECKPOINT_INTERNAL_H

#include "io/checkpoint.h"

#include "base/file.h"
#include "io/h5.h"

enum { CHECKPOINT_VERSION = 1, CHECKPOINT_NAME_BYTES = 400 };

struct checkpoint_slice {
    int64_t first, count;
    int32_t file;  /* the rank that wrote it */
    uint64_t hash; /* XXH3 of its bytes */
    bool verified; /* the bytes on disk had this hash */
};

struct checkpoint_entry {
    char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    int64_t count;
    struct checkpoint_slice *slices; /* by `first`, without gaps */
    size_t slice_count;
};

struct checkpoint_index {
    int64_t step;
    int64_t files;
    struct checkpoint_entry *entries; /* by name */
    size_t entry_count;
    struct checkpoint_attribute *attributes; /* by name; owns names and data */
    size_t attribute_count;
};

/* "rank-00000-of-00002.h5" */
void checkpoint_file_name(int64_t file, int64_t files, char text[64]);
/* "slices/NAME@FIRST": the dataset of a slice in its rank's file. */
void checkpoint_slice_name(const char *name, int64_t first, char text[H5_NAME_BYTES]);

/* *entry = a new entry at the end; owned by the index. */
enum status checkpoint_index_add(struct checkpoint_index *index, const char *name, enum dtype dtype, int rank,
                                 const int64_t *shape, struct checkpoint_entry **entry);
enum status checkpoint_entry_add(struct checkpoint_entry *entry, int64_t first, int64_t count, int32_t file,
                                 uint64_t hash);
/* A copy of `attribute` at the end. */
enum status checkpoint_index_add_attribute(struct checkpoint_index *index,
                                           const struct checkpoint_attribute *attribute);
/* Sorts everything, and makes one entry of those that share a name. A fault has status `code` and begins with `where`:
 * slices that leave a gap, overlap or disagree; names that are there twice. */
enum status checkpoint_index_finish(struct checkpoint_index *index, enum status code, const char *where);
void checkpoint_index_free(struct checkpoint_index *index);

/* Writes and publishes `path`. */
enum status checkpoint_index_write(const struct checkpoint_index *index, const char *path);
/* Reads and checks `path`; *index to be freed by the caller, also on failure. */
enum status checkpoint_index_read(const char *path, struct checkpoint_index *index);

#endif
