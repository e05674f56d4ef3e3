/* How block_attention and its backward pass walk: a chunk of queries at a time, over the key blocks in ascending order,
 * each with the queries that chose it or reach it with their window. So what is scattered are rows of queries, which
 * lie in the cache, and every product is dense. Private to kernels/cpu/block_attention*.c. */
#ifndef SQUINT_KERNELS_CPU_BLOCK_ATTENTION_H
#define SQUINT_KERNELS_CPU_BLOCK_ATTENTION_H

#include "kernels/cpu/blocks.h"

enum { CHUNK_ROWS = 2048, TILE_ROWS = 64 };

struct block_walk {
    const struct ops *ops;
    const struct block_attention *a;
    int64_t batch, length, heads, groups, width, padded, lists, select; /* lists: S; 0: no choice */
    int64_t widest, columns, blocks_most; /* of a sequence: packed columns of a block, of all, number of blocks */
    int32_t *end, *base;                  /* [B,T] */
};

/* One thread's walk through one sequence. */
struct block_rows {
    const struct block_walk *walk;
    int64_t b, block_count;
    struct key_block {
        int32_t first, count; /* tokens */
        int32_t place;        /* first packed column */
    } * blocks;               /* [blocks_most] */
    /* the queries of a chunk that chose each block of it */
    int64_t chunk, chunk_rows, low_block;
    int32_t *offsets, *choosers; /* [blocks_most + 1], [CHUNK_ROWS · select] */
    /* the rows of one block, ascending: chunk row, first and one past the last column that it sees */
    int64_t row_count;
    int32_t *row, *lo, *hi; /* [CHUNK_ROWS] */
};

/* Shapes; then scratch memory for what a sequence needs: end and base are filled, lists checked, columns and
 * blocks_most found. place: one thread's bytes from a measured walk (memory NULL). *memory: the first thread's; each
 * has *bytes. */
enum status NAME(block_walk_open)(const char *operation, const struct ops *ops, const struct block_attention *a,
                                  size_t (*place)(const struct block_walk *walk, char *memory, void *unit), void *unit,
                                  struct block_walk *walk, char **memory, size_t *bytes);
size_t NAME(block_rows_place)(const struct block_walk *walk, char *memory, struct block_rows *x);
/* Cuts sequence b into its blocks. */
void NAME(block_rows_sequence)(struct block_rows *x, int64_t b);
/* Takes the chunk that begins at query `first`, for list `list`; returns the first block that any of its rows may read.
 */
int64_t NAME(block_rows_chunk)(struct block_rows *x, int64_t first, int64_t list);
/* Finds the rows of block n. */
void NAME(block_rows_find)(struct block_rows *x, int64_t n);

static inline int64_t block_columns(const struct key_block *k) {
    return pad_lanes(k->count);
}

/* A block's keys, or values, transposed [width][columns] and as rows [count][padded]; either may be NULL. */
void NAME(block_pack)(const struct block_rows *x, struct rows from, real *transposed, real *dense);

/* to [rows] = chunk rows row[0 … rows−1] of `from` [CHUNK_ROWS][padded]. */
static inline void block_gather(const int32_t *row, int64_t rows, int64_t padded, const real *from, real *to) {
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * padded, from + row[r] * padded, (size_t)padded * sizeof(real));
}

#endif
