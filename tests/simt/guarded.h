/* A CUDA table under the guard: on the host a GPU's memory can be read as it is. */
#ifndef SQUINT_TESTS_SIMT_GUARDED_H
#define SQUINT_TESTS_SIMT_GUARDED_H

#include "kernels/guard/guard.h"
#include "support/check.h"

/* A table of the device, and a guard around what says that its memory is the host's. Stays where it was opened. */
struct guarded {
    const struct ops *table, *guard;
    struct ops readable;
};

static inline void guarded_keep_open(const struct ops *ops) {
    (void)ops; /* the table outlives its guard */
}

static inline void guarded_open(struct guarded *g, const char *name, bool deterministic) {
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = 1, .deterministic = deterministic}, &g->table));
    g->readable = *g->table;
    g->readable.host_memory = true;
    g->readable.close = guarded_keep_open;
    CHECK_OK(guard_open(&g->readable, &g->guard));
}

static inline void guarded_close(struct guarded *g) {
    CHECK_OK(g->guard->synchronise(g->guard));
    g->guard->close(g->guard);
    g->table->close(g->table);
}

#endif
