/* HDF5 files: datasets of numbers and attributes, with messages that name file and dataset. The only code that knows
 * HDF5; not for use by several threads at once (the library is not built for that).
 * Files appear whole or not at all: h5_create writes beside the path, h5_publish flushes and renames.
 * Metadata carries checksums (file format of HDF5 1.8); data does not, so its users keep hashes. */
#ifndef SQUINT_IO_H5_H
#define SQUINT_IO_H5_H

#include "base/error.h"
#include "base/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { H5_MAX_RANK = 4, H5_NAME_BYTES = 512 };

struct h5; /* an open file */

/* --- files ------------------------------------------------------------------------------------------------------ */

/* Starts a file that will appear at `path` when it is published. Datasets of `align_from` bytes or more begin at a
 * multiple of 1 MiB; 0: none does. */
enum status h5_create(const char *path, size_t align_from, struct h5 **file);
/* Writes everything out, flushes it to the disk, renames it to its path, flushes the directory; frees *file.
 * On failure nothing is left behind, and *file is freed all the same. */
enum status h5_publish(struct h5 **file);
/* Opens for reading. STATUS_NOT_FOUND; STATUS_IO; STATUS_DAMAGED: not an HDF5 file, or cut short. */
enum status h5_open(const char *path, struct h5 **file);
/* Closes a file that is read; throws one away that is being written. NULL-safe. */
void h5_close(struct h5 **file);
const char *h5_path(const struct h5 *file);
bool h5_is_hdf5(const char *path); /* whether it begins as an HDF5 file does */

/* --- datasets --------------------------------------------------------------------------------------------------- */

struct h5_dataset {
    enum dtype dtype;
    int rank; /* 0: a single number */
    int64_t shape[H5_MAX_RANK];
    int64_t count;  /* of elements */
    int64_t offset; /* bytes from the file's beginning to the elements; −1: not in one piece in this file, or empty */
    bool is_virtual;
};

/* Creates dataset `name` ("a/b": groups are made as needed), in one piece, with nothing written to it yet.
 * dtype: any; BF16 is stored as uint16, for want of such a type (its user says so in an attribute). rank ≤ H5_MAX_RANK.
 */
enum status h5_dataset_create(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape);
/* Writes elements first … first+count−1 of the flattened dataset. A dataset with more than one dimension is written in
 * whole rows (of everything but the first dimension). */
enum status h5_dataset_write(struct h5 *file, const char *name, enum dtype dtype, int64_t first, int64_t count,
                             const void *data);
/* Both at once, for the whole of it. */
enum status h5_write(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                     const void *data);
/* STATUS_NOT_FOUND: no such dataset; STATUS_DAMAGED: of a type or rank that squint does not use. */
enum status h5_dataset_find(struct h5 *file, const char *name, struct h5_dataset *dataset);
/* Elements first … first+count−1 of the flattened dataset (whole rows, as in writing), converted to `dtype`. */
enum status h5_read(struct h5 *file, const char *name, enum dtype dtype, int64_t first, int64_t count, void *data);
/* Calls `each` with the name ("a/b") of every dataset below `group` ("/": all), sorted; stops at its first failure. */
enum status h5_dataset_visit(struct h5 *file, const char *group,
                             enum status (*each)(struct h5 *file, const char *name, void *context), void *context);

/* Creates a group ("a/b": also "a", as needed), a place for attributes and datasets. */
enum status h5_group_create(struct h5 *file, const char *name);

/* --- virtual datasets ------------------------------------------------------------------------------------------- */

/* A piece of a virtual dataset: elements first … first+count−1 of the flattened whole are those of one-dimensional
 * dataset `dataset` of `file`, a name relative to the directory of the file that holds the virtual dataset. */
struct h5_source {
    const char *file, *dataset;
    int64_t first, count;
};
/* Creates dataset `name`, of rank 1 or more, that shows its sources as one. Elements that no source gives read as 0. */
enum status h5_virtual_create(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                              const struct h5_source *sources, size_t source_count);

/* --- attributes of a dataset or group ("/": of the file) -------------------------------------------------------- */

bool h5_attribute_exists(struct h5 *file, const char *object, const char *name);
enum status h5_attribute_set_i64(struct h5 *file, const char *object, const char *name, int64_t value);
enum status h5_attribute_set_u64(struct h5 *file, const char *object, const char *name, uint64_t value);
enum status h5_attribute_set_f64(struct h5 *file, const char *object, const char *name, double value);
/* UTF-8 of any length, stored as a string of fixed size: unlike one of variable size it is covered by a checksum. */
enum status h5_attribute_set_text(struct h5 *file, const char *object, const char *name, const char *value);
/* One-dimensional array of numbers; any count, also 0. */
enum status h5_attribute_set_array(struct h5 *file, const char *object, const char *name, enum dtype dtype,
                                   int64_t count, const void *values);
/* STATUS_DAMAGED names file, object and attribute when it is absent or of another type. */
enum status h5_attribute_get_i64(struct h5 *file, const char *object, const char *name, int64_t *value);
enum status h5_attribute_get_u64(struct h5 *file, const char *object, const char *name, uint64_t *value);
enum status h5_attribute_get_f64(struct h5 *file, const char *object, const char *name, double *value);
/* *value in fresh memory: release with free(). Strings of fixed or variable size, so that h5py may write them too. */
enum status h5_attribute_get_text(struct h5 *file, const char *object, const char *name, char **value);
/* *values in fresh memory: release with free(). */
enum status h5_attribute_get_array(struct h5 *file, const char *object, const char *name, enum dtype dtype,
                                   int64_t *count, void *values);

/* What an attribute holds; names come sorted. */
enum h5_attribute_type { H5_INTEGER, H5_REAL, H5_TEXT, H5_ARRAY };
enum status h5_attribute_visit(struct h5 *file, const char *object,
                               enum status (*each)(struct h5 *file, const char *name, enum h5_attribute_type type,
                                                   void *context),
                               void *context);

#endif
