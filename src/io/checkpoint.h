/* Checkpoints: a set of named tensors and small attributes in a directory step-00000500 that appears by rename.
 * Each rank writes one file with the slices that it owns; index.h5 shows every tensor whole. Any number of ranks reads
 * what any number has written. Knows no model, no optimizer and no device (docs/formats.md).
 * Functions with a `comm` are collective; the ranks see one file system. */
#ifndef SQUINT_IO_CHECKPOINT_H
#define SQUINT_IO_CHECKPOINT_H

#include "base/error.h"
#include "base/tensor.h"
#include "comm/comm.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- saving ----------------------------------------------------------------------------------------------------- */

/* A slice that this rank owns: elements first … first+count−1 of the flattened tensor `name`. The slices of all ranks
 * together cover each tensor exactly once. A rank may own none, one or several slices of a tensor. */
struct checkpoint_item {
    const char *name; /* e.g. "student/layers.0.attn.qkv.weight"; "/" makes groups, no part may be empty */
    enum dtype dtype;
    int rank; /* 1 to 4 */
    int64_t shape[TENSOR_MAX_RANK];
    int64_t first, count;
    const void *data; /* host memory, `count` elements; may be NULL when count is 0 */
};

enum checkpoint_attribute_type { CHECKPOINT_INTEGER, CHECKPOINT_REAL, CHECKPOINT_TEXT, CHECKPOINT_BLOB };

/* Something small beside the tensors: step, stage, sample position, config. The functions below make one. */
struct checkpoint_attribute {
    const char *name; /* no "/" */
    enum checkpoint_attribute_type type;
    int64_t integer;
    double real;
    const void *data; /* a text's or blob's bytes */
    size_t bytes;     /* of a text: without its NUL */
};
struct checkpoint_attribute checkpoint_integer(const char *name, int64_t value);
struct checkpoint_attribute checkpoint_real(const char *name, double value);
struct checkpoint_attribute checkpoint_text(const char *name, const char *value);
struct checkpoint_attribute checkpoint_blob(const char *name, const void *data, size_t bytes);

/* Writes run_directory/checkpoints/step-NNNNNNNN, flushes it to the disk, and points `latest` at it. One of the same
 * step is replaced. The attributes are rank 0's. When any rank fails (a full disk), all fail with its message, nothing
 * of the new checkpoint stays, and the old ones are untouched: the run can go on. STATUS_FAILED when the slices leave a
 * gap, overlap, or disagree on dtype or shape. */
enum status checkpoint_save(struct comm *comm, const char *run_directory, int64_t step,
                            const struct checkpoint_item *items, size_t item_count,
                            const struct checkpoint_attribute *attributes, size_t attribute_count);
/* Points `latest` at a checkpoint that is there, in case it was lost. It is for people and never read: that it cannot
 * be made is only a warning. */
enum status checkpoint_point_latest(struct comm *comm, const char *run_directory, int64_t step);
/* *path = run_directory/checkpoints/step-NNNNNNNN; release with free(). */
enum status checkpoint_path(const char *run_directory, int64_t step, char **path);

/* --- choosing, keeping ------------------------------------------------------------------------------------------- */

/* *path = the newest checkpoint of the run that verifies, the same on every rank; release with free(). Damaged ones are
 * named in a warning and passed over. STATUS_NOT_FOUND: there is none; STATUS_DAMAGED: none verifies (names the
 * newest's fault). */
enum status checkpoint_find(struct comm *comm, const char *run_directory, char **path);
/* What MODEL names: *path = `model` itself when it is a checkpoint, the result of checkpoint_find when it is a run
 * directory. STATUS_NOT_FOUND when it is neither, without looking further. */
enum status checkpoint_resolve(struct comm *comm, const char *model, char **path);
/* *is: a directory with index.h5; a directory with checkpoints/. STATUS_MEMORY when that cannot be told. */
enum status checkpoint_is_checkpoint(const char *path, bool *is);
enum status checkpoint_is_run(const char *path, bool *is);
/* Steps of the run's checkpoints, newest first, whether they verify or not; release with free(). */
enum status checkpoint_list(const char *run_directory, int64_t **steps, size_t *count);
/* Keeps the newest `keep` (at least 1) that can be opened, of which at least one verifies in full, and removes what is
 * older. When none verifies, nothing is removed. */
enum status checkpoint_retain(struct comm *comm, const char *run_directory, int keep);
/* Removes what killed saves have left behind. For a run's start, before anything is saved. */
enum status checkpoint_clean(struct comm *comm, const char *run_directory);
/* Reads everything and compares every hash, divided over the ranks; all get the same answer. STATUS_DAMAGED names the
 * file, the tensor, expected and found. */
enum status checkpoint_verify(struct comm *comm, const char *path);

/* --- reading ---------------------------------------------------------------------------------------------------- */

struct checkpoint;

struct checkpoint_tensor {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    int64_t count; /* elements */
};

/* Opens the directory and checks the index (not yet the slices). Any process, no comm. STATUS_NOT_FOUND,
 * STATUS_DAMAGED. */
enum status checkpoint_open(const char *path, struct checkpoint **checkpoint);
void checkpoint_close(struct checkpoint **checkpoint); /* NULL-safe */

int64_t checkpoint_step(const struct checkpoint *checkpoint);
int checkpoint_files(const struct checkpoint *checkpoint); /* how many ranks wrote it */
size_t checkpoint_tensor_count(const struct checkpoint *checkpoint);
struct checkpoint_tensor checkpoint_tensor(const struct checkpoint *checkpoint, size_t index); /* sorted by name */
/* false: no tensor of that name; *tensor may be NULL. */
bool checkpoint_has(const struct checkpoint *checkpoint, const char *name, struct checkpoint_tensor *tensor);
/* destination[0 … count−1] = elements first … first+count−1 of the flattened tensor, put together from the slices that
 * hold them, whose hashes are compared first (once per slice). STATUS_DAMAGED; STATUS_NOT_FOUND: no such tensor;
 * STATUS_SHAPE: another dtype, or a range outside the tensor. */
enum status checkpoint_read(struct checkpoint *checkpoint, const char *name, enum dtype dtype, int64_t first,
                            int64_t count, void *destination);

size_t checkpoint_attribute_count(const struct checkpoint *checkpoint);
/* Valid until the checkpoint is closed; a text is NUL-terminated. */
struct checkpoint_attribute checkpoint_attribute(const struct checkpoint *checkpoint, size_t index);
/* STATUS_DAMAGED names checkpoint and attribute when it is absent or of another type. */
enum status checkpoint_get_integer(const struct checkpoint *checkpoint, const char *name, int64_t *value);
enum status checkpoint_get_real(const struct checkpoint *checkpoint, const char *name, double *value);
enum status checkpoint_get_text(const struct checkpoint *checkpoint, const char *name, const char **value);
enum status checkpoint_get_blob(const struct checkpoint *checkpoint, const char *name, const void **data,
                                size_t *bytes);
bool checkpoint_has_attribute(const struct checkpoint *checkpoint, const char *name);

#endif
