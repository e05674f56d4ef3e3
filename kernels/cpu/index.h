/* What the operations of kind indexer share: scores of a few queries, the choice of the highest, softmax of attention
 * rows. Private to kernels/cpu/index*.c. */
#ifndef SQUINT_KERNELS_CPU_INDEX_H
#define SQUINT_KERNELS_CPU_INDEX_H

#include "kernels/cpu/tokens.h"

enum {
    INDEX_ROWS = 16,     /* queries that are scored together */
    INDEX_COLUMNS = 512, /* keys that are scored together */
};

/* Shape of index queries and keys. */
struct index_shape {
    int64_t lists, heads, keys, width, padded; /* S, J, K, E, E rounded up to LANES */
};

static inline struct index_shape index_shape_of(int64_t lists, int64_t queries, int64_t keys, int64_t width) {
    return (struct index_shape){lists, queries / lists, keys / lists, width, pad_lanes(width)};
}

/* A few queries of one list: r [J][rows][padded], divided by √E, and a [J][rows]. */
struct index_queries {
    int64_t rows;
    real *r, *a;
};

/* Where index queries lie: first row and head of r and of a, rows r_row and a_row apart, heads r_head. */
struct index_source_rows {
    const real *r, *a;
    int64_t r_row, r_head, a_row;
};
/* Fills r and a of list `list` with rows first … first + queries->rows − 1 of a sequence. */
void NAME(index_load)(const struct index_shape *shape, const struct index_source_rows *from, int64_t list,
                      int64_t first, const struct index_queries *queries);

/* scores [rows][row] = (or, add: +=) Σ_h a_h relu(r_h·u_h) for keys first … first + columns − 1; first and columns
 * multiples of LANES. runs: keys packed by blocks_pack, key head n at n·key_elements. e: room for J·rows·INDEX_COLUMNS.
 */
void NAME(index_score)(const struct index_shape *shape, const struct index_queries *queries, const real *runs,
                       int64_t key_elements, int64_t first, int64_t columns, real *e, bool add, real *scores,
                       int64_t row);

/* Order of floating-point numbers as that of whole numbers; what is not a number comes first, −0 is 0. */
#ifdef SQUINT_REAL_F64
typedef int64_t order_key;
#define ORDER_LEAST INT64_MIN
#else
typedef int32_t order_key;
#define ORDER_LEAST INT32_MIN
#endif
static inline order_key order_key_of(real x) {
    order_key bits;
    memcpy(&bits, &x, sizeof bits);
    bits ^= bits < 0 ? ~ORDER_LEAST : 0; /* negative numbers: the larger, the smaller */
    bits = x == 0 ? 0 : bits;
    return x == x ? bits : ORDER_LEAST;
}

/* places [count] = where the `count` highest of scores [0, n) lie, ascending; ties to the lower place. count <= n.
 * order: room for n. */
void NAME(index_highest)(const real *scores, int64_t n, int64_t count, order_key *order, int32_t *places);

/* The choice in two levels, of one sequence and list. Blocks of `block` tokens are counted from their document's first.
 */
struct index_coarse {
    int64_t block, looked; /* tokens of a block; how many blocks are looked into */
    /* Keys of the tokens, as [E][columns] a block: packed before, block n of the sequence and key head m at
     * n·block_elements
     * + m·key_elements; or (NULL) rows of the first key head, others key_step further, that are packed when they are
     * looked into. */
    const real *packed;
    int64_t columns, block_elements, key_elements;
    struct rows rows;
    int64_t key_step;
};

/* One query before its window: tokens [low, high) compete; its document's first token and (of packed) first block. */
struct index_place {
    int64_t low, high, start, first_block;
};

/* One thread's memory for choosing among `room` tokens or blocks at a time. */
struct index_scratch {
    real *e, *scores, *keys; /* [J·columns], [room], [K·E·columns] */
    order_key *order;        /* [room rounded up to LANES] */
    int32_t *places, *blocks, *candidates;
};

/* Tokens that one query's choice in two levels weighs at most. */
static inline int64_t index_coarse_room(const struct index_coarse *coarse, int64_t length) {
    return at_most(at_least((coarse->looked + 1) * coarse->block, length / coarse->block + 1), at_least(length, 1));
}

/* Chooses for row `row` of the queries. block_scores: of its document's blocks that are whole and end before `high`.
 * Tokens, ascending, into out [most], then −1. */
void NAME(index_choose_coarse)(const struct index_shape *shape, const struct index_coarse *coarse,
                               const struct index_queries *queries, int64_t row, const struct index_place *place,
                               const real *block_scores, int64_t count, int64_t most, const struct index_scratch *x,
                               int32_t *out);

/* The heads of an attention that scores are compared with, its keys packed. */
struct index_attention {
    struct tensor q, k, start;
    int64_t length, heads, groups, width, padded, run_elements;
    real scale;
    real *runs; /* [B,G] of run_elements */
};

static inline struct index_attention index_attention_of(struct tensor q, struct tensor k, struct tensor start,
                                                        double scale) {
    const int64_t length = q.shape[1], width = q.shape[3];
    return (struct index_attention){.q = q,
                                    .k = k,
                                    .start = start,
                                    .length = length,
                                    .heads = q.shape[2],
                                    .groups = k.shape[2],
                                    .width = width,
                                    .padded = pad_lanes(width),
                                    .run_elements = blocks_run_columns(length) * width,
                                    .scale = (real)scale};
}

/* mass [rows][row], from column `low` of the sequence (a multiple of LANES, up to the first row's document), = the sum
 * of the heads' softmax over all tokens of the document up to each row's own, heads `first_head` … + count − 1; 0
 * elsewhere. q: [rows][padded], e: as mass. */
void NAME(index_mass)(const struct index_attention *a, int64_t b, int64_t first_head, int64_t count, int64_t first,
                      int64_t rows, int64_t low, int64_t row, real *q, real *e, real *mass);

#endif
