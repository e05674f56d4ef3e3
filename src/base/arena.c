/* Counts and places; see arena.h. */
#include "base/arena.h"

struct arena arena_sizing(void) { return (struct arena){0}; }

struct arena arena_placing(void *block, size_t capacity) {
    return (struct arena){.block = block, .capacity = capacity};
}

void *arena_take(struct arena *arena, size_t bytes) {
    size_t rounded = (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    size_t start = arena->used;
    arena->used += rounded;
    if (arena->used > arena->peak) arena->peak = arena->used;
    if (!arena->block) return NULL;
    if (arena->used > arena->capacity) {
        arena->overflow = true;
        return NULL;
    }
    return arena->block + start;
}

struct tensor arena_tensor(struct arena *arena, enum dtype dtype, int rank, const int64_t *shape) {
    struct tensor t = tensor_reshape((struct tensor){.dtype = dtype}, rank, shape);
    t.data = arena_take(arena, tensor_bytes(t));
    return t;
}

struct tensor arena_1d(struct arena *arena, enum dtype dtype, int64_t n0) {
    return arena_tensor(arena, dtype, 1, (int64_t[]){n0});
}

struct tensor arena_2d(struct arena *arena, enum dtype dtype, int64_t n0, int64_t n1) {
    return arena_tensor(arena, dtype, 2, (int64_t[]){n0, n1});
}

struct tensor arena_3d(struct arena *arena, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2) {
    return arena_tensor(arena, dtype, 3, (int64_t[]){n0, n1, n2});
}

struct tensor arena_4d(struct arena *arena, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    return arena_tensor(arena, dtype, 4, (int64_t[]){n0, n1, n2, n3});
}

size_t arena_mark(const struct arena *arena) { return arena->used; }

void arena_release(struct arena *arena, size_t mark) { arena->used = mark; }
