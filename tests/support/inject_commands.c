/* What only the test of whole commands exchanges, and all that it does; see inject.h. */
#include "support/inject.h"

#include "comm/comm.h"
#include "train/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

/* The allocator. */
INJECT(void *, aligned_alloc, NULL, ENOMEM, (size_t alignment, size_t n), (alignment, n))
INJECT(FILE *, open_memstream, NULL, ENOMEM, (char **text, size_t *n), (text, n))

/* Files. A close or flush that fails has still been done: what it wrote before it failed is there. */
INJECT(ssize_t, read, -1, EIO, (int fd, void *data, size_t n), (fd, data, n))
INJECT(ssize_t, write, -1, ENOSPC, (int fd, const void *data, size_t n), (fd, data, n))
INJECT(int, flock, -1, ENOLCK, (int fd, int how), (fd, how))
INJECT(int, fstat, -1, EIO, (int fd, struct stat *info), (fd, info))
INJECT(DIR *, opendir, NULL, EMFILE, (const char *path), (path))
INJECT(int, glob, GLOB_NOSPACE, 0, (const char *pattern, int flags, int (*error)(const char *, int), glob_t *found),
       (pattern, flags, error, found))
INJECT(char *, realpath, NULL, EIO, (const char *path, char *out), (path, out))

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return inject_fails("open", EMFILE) ? -1 : __real_open(path, flags, mode);
}

int __real_fclose(FILE *file);
int __wrap_fclose(FILE *file);
int __wrap_fclose(FILE *file) {
    bool failed = inject_fails("fclose", ENOSPC);
    int result = __real_fclose(file);
    if (failed) errno = ENOSPC;
    return failed ? EOF : result;
}

int __real_fflush(FILE *file);
int __wrap_fflush(FILE *file);
int __wrap_fflush(FILE *file) {
    int result = __real_fflush(file);
    return inject_fails("fflush", ENOSPC) ? EOF : result;
}

/* JSON and YAML, where they make something. */
INJECT(json_t *, json_object, NULL, 0, (void), ())
INJECT(json_t *, json_array, NULL, 0, (void), ())
INJECT(char *, json_dumps, NULL, 0, (const json_t *json, size_t flags), (json, flags))
INJECT(int, json_dumpf, -1, ENOSPC, (const json_t *json, FILE *file, size_t flags), (json, file, flags))
INJECT(int, yaml_parser_initialize, 0, 0, (yaml_parser_t * parser), (parser))

/* Ranks: another one is lost. */
#define LOST(name, parameters, arguments)                                                                              \
    enum status __real_##name parameters;                                                                              \
    enum status __wrap_##name parameters;                                                                              \
    enum status __wrap_##name parameters {                                                                             \
        return inject_fails(#name, 0) ? error_set(STATUS_COMM, #name ": rank 1 is lost") : __real_##name arguments;    \
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

const char *const inject_commands[] = {
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
