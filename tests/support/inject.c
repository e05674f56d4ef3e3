/* See inject.h. */
#include "support/inject.h"

#include "comm/comm.h"
#include "train/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <hdf5.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

static const char *target; /* NULL: nothing fails */
static long countdown;
static bool struck;

void inject_start(const char *function, long call) {
    struck = false;
    countdown = call;
    target = function;
}

bool inject_stop(void) {
    target = NULL;
    return struck;
}

/* Kernels' threads allocate too: the count need not be exact then, but it must not be torn. */
static bool fails(const char *name, int code) {
    if (!target || strcmp(name, target) != 0 || __atomic_fetch_sub(&countdown, 1, __ATOMIC_RELAXED) != 0) return false;
    struck = true;
    errno = code;
    return true;
}

#define WRAP(result, name, failure, code, parameters, arguments)                                                       \
    result __real_##name parameters;                                                                                   \
    result __wrap_##name parameters;                                                                                   \
    result __wrap_##name parameters {                                                                                  \
        return fails(#name, code) ? failure : __real_##name arguments;                                                 \
    }

/* The allocator. */
WRAP(void *, malloc, NULL, ENOMEM, (size_t n), (n))
WRAP(void *, calloc, NULL, ENOMEM, (size_t n, size_t size), (n, size))
WRAP(void *, realloc, NULL, ENOMEM, (void *block, size_t n), (block, n))
WRAP(char *, strdup, NULL, ENOMEM, (const char *text), (text))
WRAP(void *, aligned_alloc, NULL, ENOMEM, (size_t alignment, size_t n), (alignment, n))
WRAP(FILE *, open_memstream, NULL, ENOMEM, (char **text, size_t *n), (text, n))

/* Files. A close or flush that fails has still been done: what it wrote before it failed is there. */
WRAP(FILE *, fopen, NULL, EMFILE, (const char *path, const char *mode), (path, mode))
WRAP(size_t, fwrite, 0, ENOSPC, (const void *data, size_t size, size_t n, FILE *file), (data, size, n, file))
WRAP(ssize_t, read, -1, EIO, (int fd, void *data, size_t n), (fd, data, n))
WRAP(ssize_t, write, -1, ENOSPC, (int fd, const void *data, size_t n), (fd, data, n))
WRAP(ssize_t, pwrite, -1, ENOSPC, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
WRAP(int, ftruncate, -1, ENOSPC, (int fd, off_t n), (fd, n))
WRAP(int, rename, -1, EIO, (const char *from, const char *to), (from, to))
WRAP(int, renameat2, -1, EINVAL, (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags))
WRAP(int, mkdir, -1, EACCES, (const char *path, mode_t mode), (path, mode))
WRAP(int, flock, -1, ENOLCK, (int fd, int how), (fd, how))
WRAP(int, fstat, -1, EIO, (int fd, struct stat *info), (fd, info))
WRAP(DIR *, opendir, NULL, EMFILE, (const char *path), (path))
WRAP(int, glob, GLOB_NOSPACE, 0, (const char *pattern, int flags, int (*error)(const char *, int), glob_t *found),
     (pattern, flags, error, found))
WRAP(char *, realpath, NULL, EIO, (const char *path, char *out), (path, out))
WRAP(void *, mmap, MAP_FAILED, ENOMEM, (void *at, size_t n, int p, int f, int fd, off_t o), (at, n, p, f, fd, o))

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return fails("open", EMFILE) ? -1 : __real_open(path, flags, mode);
}

int __real_fclose(FILE *file);
int __wrap_fclose(FILE *file);
int __wrap_fclose(FILE *file) {
    bool failed = fails("fclose", ENOSPC);
    int result = __real_fclose(file);
    if (failed) errno = ENOSPC;
    return failed ? EOF : result;
}

int __real_fflush(FILE *file);
int __wrap_fflush(FILE *file);
int __wrap_fflush(FILE *file) {
    int result = __real_fflush(file);
    return fails("fflush", ENOSPC) ? EOF : result;
}

/* Otherwise does nothing: a test that runs a thousand times need not wait for a disk. */
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    (void)fd;
    return fails("fsync", EIO) ? -1 : 0;
}

/* HDF5. (Every call of it that shards and checkpoints make: test_io_faults.) */
WRAP(hid_t, H5Fcreate, -1, 0, (const char *path, unsigned flags, hid_t c, hid_t a), (path, flags, c, a))
WRAP(hid_t, H5Fopen, -1, 0, (const char *path, unsigned flags, hid_t a), (path, flags, a))
WRAP(hid_t, H5Dcreate2, -1, 0, (hid_t l, const char *n, hid_t t, hid_t s, hid_t a, hid_t b, hid_t c),
     (l, n, t, s, a, b, c))
WRAP(hid_t, H5Dopen2, -1, 0, (hid_t l, const char *n, hid_t a), (l, n, a))
WRAP(herr_t, H5Dwrite, -1, 0, (hid_t d, hid_t t, hid_t m, hid_t f, hid_t p, const void *x), (d, t, m, f, p, x))
WRAP(herr_t, H5Dread, -1, 0, (hid_t d, hid_t t, hid_t m, hid_t f, hid_t p, void *x), (d, t, m, f, p, x))
WRAP(herr_t, H5Awrite, -1, 0, (hid_t a, hid_t t, const void *x), (a, t, x))

/* JSON and YAML, where they make something. */
WRAP(json_t *, json_object, NULL, 0, (void), ())
WRAP(json_t *, json_array, NULL, 0, (void), ())
WRAP(char *, json_dumps, NULL, 0, (const json_t *json, size_t flags), (json, flags))
WRAP(int, json_dumpf, -1, ENOSPC, (const json_t *json, FILE *file, size_t flags), (json, file, flags))
WRAP(int, yaml_parser_initialize, 0, 0, (yaml_parser_t * parser), (parser))

/* Ranks: another one is lost. */
#define LOST(name, parameters, arguments)                                                                              \
    enum status __real_##name parameters;                                                                              \
    enum status __wrap_##name parameters;                                                                              \
    enum status __wrap_##name parameters {                                                                             \
        return fails(#name, 0) ? error_set(STATUS_COMM, #name ": rank 1 is lost") : __real_##name arguments;           \
    }
LOST(comm_all_reduce, (struct comm * comm, struct tensor data, enum comm_reduce reduce), (comm, data, reduce))
LOST(comm_broadcast, (struct comm * comm, struct tensor data, int root), (comm, data, root))
LOST(comm_all_gather, (struct comm * comm, struct tensor input, struct tensor output), (comm, input, output))
LOST(comm_barrier, (struct comm * comm), (comm))
LOST(comm_exclusive_scan, (struct comm * comm, int64_t *value), (comm, value))
LOST(comm_agree, (struct comm * comm, enum status status), (comm, status))
LOST(comm_open, (const struct comm_options *options, struct comm **comm), (options, comm))

/* Measuring a device takes a tenth of a second, a thousand times. */
enum status __wrap_run_measure_peak(const struct ops *ops, bool bf16, double *flops);
enum status __wrap_run_measure_peak(const struct ops *ops, bool bf16, double *flops) {
    (void)ops, (void)bf16;
    *flops = 1e9;
    return STATUS_OK;
}

const char *const inject_functions[] = {
    "malloc",
    "calloc",
    "realloc",
    "strdup",
    "aligned_alloc",
    "open_memstream",
    "fopen",
    "fwrite",
    "read",
    "write",
    "pwrite",
    "ftruncate",
    "rename",
    "renameat2",
    "mkdir",
    "flock",
    "fstat",
    "opendir",
    "glob",
    "realpath",
    "mmap",
    "open",
    "fclose",
    "fflush",
    "fsync",
    "H5Fcreate",
    "H5Fopen",
    "H5Dcreate2",
    "H5Dopen2",
    "H5Dwrite",
    "H5Dread",
    "H5Awrite",
    "json_object",
    "json_array",
    "json_dumps",
    "json_dumpf",
    "comm_open",
    "comm_all_reduce",
    "comm_agree",
    "comm_barrier",
    "comm_broadcast",
    "comm_all_gather",
    "comm_exclusive_scan",
    "yaml_parser_initialize",
    NULL,
};
