/* Opens and closes a guard; see guard.h. */
#include "kernels/guard/guard.h"

#include "base/memory.h"
#include "kernels/guard/internal.h"

#include <stdio.h>
#include <stdlib.h>

static void guard_close(const struct ops *ops) {
    struct guard *guard = guard_of(ops);
    while (guard->allocations) {
        struct allocation *next = guard->allocations->next;
        guard->inner->release(guard->inner, guard->allocations->block);
        free(guard->allocations);
        guard->allocations = next;
    }
    free(guard->a.runs);
    free(guard->b.runs);
    guard->inner->close(guard->inner);
    free(guard);
}

static const char *guard_describe(const struct ops *ops) {
    const struct ops *inner = guard_of(ops)->inner;
    return inner->describe(inner);
}

static enum status guard_synchronise(const struct ops *ops) {
    struct guard *guard = guard_of(ops);
    TRY(guard->inner->synchronise(guard->inner));
    return guard_check_canaries(guard, "synchronise");
}

static size_t guard_scratch_bytes(const struct ops *ops) {
    const struct ops *inner = guard_of(ops)->inner;
    return inner->scratch_bytes(inner);
}

/* What is repeated is looked at every time. */
static enum status guard_repeat(const struct ops *ops, struct recording **recording, enum status (*work)(void *user),
                                void *user) {
    (void)ops;
    (void)recording;
    return work(user);
}

static void guard_forget(const struct ops *ops, struct recording **recording) {
    (void)ops;
    *recording = NULL;
}

static void guard_memory(const struct ops *ops, struct device_memory *memory) {
    const struct ops *inner = guard_of(ops)->inner;
    inner->memory(inner, memory);
}

enum status guard_open(const struct ops *inner, const struct ops **ops) {
    if (!inner->host_memory) {
        return error_set(STATUS_USAGE, "a guard needs a table in host memory, '%s' is not", inner->name);
    }
    struct guard *guard;
    TRY(memory_new(1, sizeof *guard, "a guard", &guard));
    guard->inner = inner;
    guard->ops = *inner; /* dtypes, and everything that is set anew below */
    snprintf(guard->name, sizeof guard->name, "guard(%s)", inner->name);
    guard->ops.name = guard->name;
    guard->ops.device = inner->device;
    guard->ops.close = guard_close;
    guard->ops.describe = guard_describe;
    guard->ops.allocate = guard_allocate;
    guard->ops.release = guard_release;
    guard->ops.synchronise = guard_synchronise;
    guard->ops.scratch_bytes = guard_scratch_bytes;
    guard->ops.memory = guard_memory;
    guard->ops.repeat = guard_repeat;
    guard->ops.forget = guard_forget;
    guard_layers(&guard->ops);
    guard_linear(&guard->ops);
    guard_blocks(&guard->ops);
    guard_index(&guard->ops);
    guard_losses(&guard->ops);
    *ops = &guard->ops;
    return STATUS_OK;
}
