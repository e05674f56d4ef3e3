/* What the files h5*.c share. With them, the only place that includes hdf5.h. */
#ifndef SQUINT_IO_H5_INTERNAL_H
#define SQUINT_IO_H5_INTERNAL_H

#include "io/h5.h"

#include <hdf5.h>

/* Where a file that is being written goes (h5_output.c): HDF5's view of it, and ours. */
struct h5_output {
    H5FD_t base;          /* first: HDF5 knows no more than this */
    haddr_t end_of_space; /* what HDF5 has handed out */
    haddr_t end_of_file;  /* what has been written, or dropped */
    int fd;
    bool in_use;  /* by an open file of HDF5's */
    int error;    /* errno of the first write that failed; 0: none */
    bool dropped; /* nothing more is to be written */
};

/* Lets a file that is created with property list `access` be written through `output`. */
bool h5_output_use(hid_t access, struct h5_output *output);

struct h5 {
    char *path;
    char *temporary; /* where a file that is being written lies; NULL for one that is read */
    hid_t id;
    struct h5_output output;
};

/* "PATH: dataset NAME: cannot ACTION: what HDF5 says". To be called before any other
 * function of HDF5, each of which forgets the last fault. `object`: "" for the file itself. */
enum status h5_failure(enum status code, const struct h5 *file, const char *object, const char *action);
/* STATUS_IO when a write to the file has failed. */
enum status h5_written(const struct h5 *file);

/* The type of an element in memory and in a file; release with H5Tclose. */
hid_t h5_memory_type(enum dtype dtype);
hid_t h5_file_type(enum dtype dtype);
/* *dtype of a file's type; false: none that squint uses. */
bool h5_dtype_of(hid_t type, enum dtype *dtype);

/* 'close(id)' for an id that may not have been opened. */
#define H5_CLOSE(close, id)                                                                                            \
    do {                                                                                                               \
        if ((id) >= 0) (void)close(id);                                                                                \
    } while (0)

#endif
