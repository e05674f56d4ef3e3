/* See inject.h. */
#include "support/inject.h"

#include <errno.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
bool inject_fails(const char *function, int code) {
    if (!target || strcmp(function, target) != 0 || __atomic_fetch_sub(&countdown, 1, __ATOMIC_RELAXED) != 0) {
        return false;
    }
    struck = true;
    errno = code;
    return true;
}

/* --- what every test exchanges ------------------------------------------------------------------------------------ */

INJECT(void *, malloc, NULL, ENOMEM, (size_t n), (n))
INJECT(void *, calloc, NULL, ENOMEM, (size_t n, size_t size), (n, size))
INJECT(void *, realloc, NULL, ENOMEM, (void *block, size_t n), (block, n))
INJECT(char *, strdup, NULL, ENOMEM, (const char *text), (text))
INJECT(FILE *, fopen, NULL, EMFILE, (const char *path, const char *mode), (path, mode))
INJECT(size_t, fwrite, 0, ENOSPC, (const void *data, size_t size, size_t n, FILE *file), (data, size, n, file))
INJECT(ssize_t, pwrite, -1, ENOSPC, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
INJECT(int, ftruncate, -1, ENOSPC, (int fd, off_t n), (fd, n))
INJECT(int, rename, -1, EIO, (const char *from, const char *to), (from, to))
INJECT(int, renameat2, -1, EINVAL, (int a, const char *from, int b, const char *to, unsigned flags),
       (a, from, b, to, flags))
INJECT(int, mkdir, -1, EACCES, (const char *path, mode_t mode), (path, mode))
INJECT(void *, mmap, MAP_FAILED, ENOMEM, (void *at, size_t n, int p, int f, int fd, off_t o), (at, n, p, f, fd, o))
INJECT(hid_t, H5Fcreate, -1, 0, (const char *path, unsigned flags, hid_t c, hid_t a), (path, flags, c, a))
INJECT(hid_t, H5Fopen, -1, 0, (const char *path, unsigned flags, hid_t a), (path, flags, a))
INJECT(hid_t, H5Dcreate2, -1, 0, (hid_t l, const char *n, hid_t t, hid_t s, hid_t a, hid_t b, hid_t c),
       (l, n, t, s, a, b, c))
INJECT(hid_t, H5Dopen2, -1, 0, (hid_t l, const char *n, hid_t a), (l, n, a))
INJECT(herr_t, H5Dwrite, -1, 0, (hid_t d, hid_t t, hid_t m, hid_t f, hid_t p, const void *x), (d, t, m, f, p, x))
INJECT(herr_t, H5Dread, -1, 0, (hid_t d, hid_t t, hid_t m, hid_t f, hid_t p, void *x), (d, t, m, f, p, x))
INJECT(herr_t, H5Awrite, -1, 0, (hid_t a, hid_t t, const void *x), (a, t, x))

/* Otherwise does nothing: a test that runs a thousand times need not wait for a disk. */
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    (void)fd;
    return inject_fails("fsync", EIO) ? -1 : 0;
}
