/* A directory for one test's files, removed at the end. */
#ifndef SQUINT_TESTS_SCRATCH_H
#define SQUINT_TESTS_SCRATCH_H

#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>

static char scratch[256];

/* For cmocka's group set-up. */
static inline int scratch_make(void **state) {
    const char *base = getenv("TMPDIR");
    (void)state;
    snprintf(scratch, sizeof scratch, "%s/squint-test-XXXXXX", base && base[0] ? base : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int scratch_remove(void **state) {
    (void)state;
    return file_remove_tree(scratch) == STATUS_OK ? 0 : -1;
}

/* "SCRATCH/name" in one of eight buffers that take turns. */
static inline const char *scratch_path(const char *name) {
    static char paths[8][512];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, 512, "%s/%s", scratch, name);
    return path;
}

#endif
