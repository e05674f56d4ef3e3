/* safetensors files: a JSON header and raw little-endian tensors. Owns the format's rules; knows nothing of models.
 * Format: u64 header length, header (JSON object name -> {dtype, shape, data_offsets}), then the data, without holes.
 */
#ifndef SQUINT_IO_SAFETENSORS_H
#define SQUINT_IO_SAFETENSORS_H

#include "base/error.h"
#include "base/file.h"
#include "base/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_MAX_RANK = 8 };

enum safetensors_dtype {
    SAFETENSORS_F64 = 0,
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_I64,
    SAFETENSORS_I32,
    SAFETENSORS_I16,
    SAFETENSORS_I8,
    SAFETENSORS_U64,
    SAFETENSORS_U32,
    SAFETENSORS_U16,
    SAFETENSORS_U8,
    SAFETENSORS_BOOL,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2
};

struct safetensors_tensor {
    char *name;
    const char *path; /* of the file that holds it */
    enum safetensors_dtype dtype;
    int rank;
    int64_t shape[SAFETENSORS_MAX_RANK];
    int64_t count;    /* elements; 1 for a scalar */
    const void *data; /* in the map; any alignment; NULL when count is 0 */
    size_t bytes;
};

/* One file, or the files of a directory, as one list sorted by name. */
struct safetensors {
    struct safetensors_tensor *tensors;
    int64_t count;
    struct file_map *maps;
    char **paths;
    size_t file_count;
};

/* Opens one file and checks all of its structure: header length and JSON, dtypes, shapes, byte counts, offsets inside
 * the file, no overlap, no hole, no duplicate name. STATUS_DAMAGED says what, where, expected and found. */
enum status safetensors_open(const char *path, struct safetensors *set);
/* Opens `directory`/model.safetensors, or the files of model.safetensors.index.json; checks too that the index and the
 * files agree on which tensor is where. STATUS_NOT_FOUND when neither is there. */
enum status safetensors_open_directory(const char *directory, struct safetensors *set);
void safetensors_close(struct safetensors *set); /* NULL-safe, twice-safe */

/* NULL: not there. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *set, const char *name);
const char *safetensors_dtype_name(enum safetensors_dtype dtype);
size_t safetensors_dtype_size(enum safetensors_dtype dtype);
/* F32, F16, BF16 or F64. */
bool safetensors_is_real(enum safetensors_dtype dtype);
/* "[2,3] F32" into `text`. */
void safetensors_describe(const struct safetensors_tensor *tensor, char *text, size_t capacity);
/* out[i] = element first + i·step of the tensor in row-major order, i = 0 … count−1, as F32 (F64 is rounded to
 * nearest). STATUS_SHAPE when the range leaves the tensor or its dtype is not real. */
enum status safetensors_read(const struct safetensors_tensor *tensor, int64_t first, int64_t step, int64_t count,
                             float *out);
/* Tells the system that the tensor's pages of the map need not stay in memory. */
void safetensors_forget(const struct safetensors_tensor *tensor);

/* ---- writing ------------------------------------------------------------------------------------------------------
 */
struct safetensors_entry {
    const char *name;
    int rank;
    int64_t shape[SAFETENSORS_MAX_RANK];
};
struct safetensors_writer;
/* Starts PATH.tmp-PID with a header for F32 tensors in the order of `entries`; the data begins at a multiple of 64
 * bytes. The header's metadata is {"format": "pt"}. Equal entries give equal bytes. */
enum status safetensors_create(const char *path, const struct safetensors_entry *entries, int64_t count,
                               struct safetensors_writer **writer);
/* Appends the next `count` values: tensors in their order, each whole or in pieces. */
enum status safetensors_write(struct safetensors_writer *writer, const float *values, int64_t count);
/* Publishes the file when every value was written; STATUS_SHAPE (and no file) when not. Frees the writer either way. */
enum status safetensors_finish(struct safetensors_writer **writer);
/* Removes what was written; NULL-safe. */
void safetensors_discard(struct safetensors_writer **writer);

#endif
