/* What programs of several ranks under mpirun share: the ranks, and a folder of all of them with a shard, s.h5. */
#ifndef SQUINT_TESTS_TINY_RANKS_H
#define SQUINT_TESTS_TINY_RANKS_H

#include "base/file.h"
#include "base/log.h"
#include "comm/comm.h"
#include "support/check.h"
#include "train/tiny_shards.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { TINY_VOCABULARY = 31 };

static struct comm *comm;
static char folder[256];

/* For cmocka's group set-up; every rank calls both. */
static inline void tiny_ranks_open(const char *name) {
    const char *base = getenv("TMPDIR");
    CHECK_OK(comm_open(NULL, &comm));
    log_start(comm_rank(comm), true);
    snprintf(folder, sizeof folder, "%s/squint-%s-%d", base ? base : "/tmp", name, (int)getppid()); /* mpirun's */
    CHECK_OK(file_make_directory(folder));
    if (comm_rank(comm) == 0) {
        char path[300];
        snprintf(path, sizeof path, "%s/s.h5", folder);
        tiny_shard(path, TINY_VOCABULARY, 7, 1, 400, NULL);
    }
    CHECK_OK(comm_barrier(comm));
}

static inline int tiny_ranks_close(void) {
    (void)comm_barrier(comm);
    if (comm_rank(comm) == 0) (void)file_remove_tree(folder);
    return comm_close(&comm) == STATUS_OK ? 0 : -1;
}

#endif
