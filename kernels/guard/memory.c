/* The guard's allocations: canaries on both sides, contents that show when they are used unset. */
#include "base/memory.h"
#include "kernels/guard/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CANARY_BYTES = 256, CANARY = 0xC5, UNSET = 0xFF /* a NaN in every floating dtype */ };

enum status guard_allocate(const struct ops *ops, size_t bytes, void **block) {
    struct guard *guard = guard_of(ops);
    struct allocation *made;
    *block = NULL;
    TRY(memory_new(1, sizeof *made, "an allocation of the guard", &made));
    void *all = NULL;
    enum status status = guard->inner->allocate(guard->inner, bytes + 2 * CANARY_BYTES, &all);
    if (status != STATUS_OK) {
        free(made);
        return status;
    }
    *made = (struct allocation){.block = all, .bytes = bytes, .next = guard->allocations};
    memset(made->block, CANARY, CANARY_BYTES);
    memset(made->block + CANARY_BYTES, UNSET, bytes);
    memset(made->block + CANARY_BYTES + bytes, CANARY, CANARY_BYTES);
    guard->allocations = made;
    *block = made->block + CANARY_BYTES;
    return STATUS_OK;
}

static bool intact(const char *canary) {
    for (int i = 0; i < CANARY_BYTES; i++) {
        if ((unsigned char)canary[i] != CANARY) return false;
    }
    return true;
}

/* NULL, or which side of the block is hurt. */
static const char *damage(const struct allocation *a) {
    if (!intact(a->block)) return "before";
    return intact(a->block + CANARY_BYTES + a->bytes) ? NULL : "after";
}

void guard_release(const struct ops *ops, void *block) {
    struct guard *guard = guard_of(ops);
    if (!block) return;
    struct allocation **at = &guard->allocations;
    while (*at && (*at)->block + CANARY_BYTES != (char *)block) at = &(*at)->next;
    struct allocation *found = *at;
    if (!found) {
        snprintf(guard->fault, sizeof guard->fault, "release: %p was not allocated by this table", block);
        return;
    }
    const char *side = damage(found);
    if (side) {
        snprintf(guard->fault, sizeof guard->fault, "release: memory %s a block of %zu bytes was written", side,
                 found->bytes);
    }
    *at = found->next;
    guard->inner->release(guard->inner, found->block);
    free(found);
}

enum status guard_check_canaries(struct guard *guard, const char *operation) {
    if (guard->fault[0]) return error_set(STATUS_FAILED, "guard: %s (found before %s)", guard->fault, operation);
    for (const struct allocation *a = guard->allocations; a; a = a->next) {
        const char *side = damage(a);
        if (side) {
            return error_set(STATUS_FAILED, "guard: %s wrote %s a block of %zu bytes", operation, side, a->bytes);
        }
    }
    return STATUS_OK;
}

const struct allocation *guard_find(const struct guard *guard, uintptr_t address) {
    for (const struct allocation *a = guard->allocations; a; a = a->next) {
        uintptr_t first = (uintptr_t)a->block;
        if (address >= first && address < first + a->bytes + 2 * CANARY_BYTES) return a;
    }
    return NULL;
}
