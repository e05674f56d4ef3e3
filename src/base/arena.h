/* A block of memory handed out piece by piece. The same code runs twice: over an arena without a block, which only
 * counts, then over one with a block of the counted size, which places (measure, then place). */
#ifndef SQUINT_BASE_ARENA_H
#define SQUINT_BASE_ARENA_H

#include "base/tensor.h"

enum { ARENA_ALIGNMENT = 256 };

struct arena {
    char *block;   /* NULL while sizing; may be device memory: the arena never touches it */
    size_t used;   /* bytes handed out now */
    size_t peak;   /* largest `used` so far: the size that a placing run needs */
    size_t capacity; /* bytes of block; 0 while sizing */
    bool overflow; /* set when a placing run asked for more than capacity: a defect in the planning code */
};

struct arena arena_sizing(void);
struct arena arena_placing(void *block, size_t capacity);

/* The next `bytes`, aligned to ARENA_ALIGNMENT; NULL while sizing, and when a placing arena is exhausted. */
void *arena_take(struct arena *arena, size_t bytes);
/* A contiguous tensor in the next bytes; its data is NULL while sizing. shape: `rank` extents. */
struct tensor arena_tensor(struct arena *arena, enum dtype dtype, int rank, const int64_t *shape);
struct tensor arena_1d(struct arena *arena, enum dtype dtype, int64_t n0);
struct tensor arena_2d(struct arena *arena, enum dtype dtype, int64_t n0, int64_t n1);
struct tensor arena_3d(struct arena *arena, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2);
struct tensor arena_4d(struct arena *arena, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3);

/* Scratch: what is taken after the mark is given back by the release. */
size_t arena_mark(const struct arena *arena);
void arena_release(struct arena *arena, size_t mark);

#endif
