/* What the files of attention share. Private to kernels/cpu/attention*.c.
 *
 * A head's rows are cut into blocks, a block's keys into tiles; both are arithmetic progressions, so that a dilated
 * candidate is a dense window among the tokens of one residue class. Every pair of the union belongs to exactly one
 * tile: candidates are ranked in groups, and a tile of a group leaves out the pairs that a group before it holds. */
#ifndef SQUINT_KERNELS_CPU_ATTENTION_INTERNAL_H
#define SQUINT_KERNELS_CPU_ATTENTION_INTERNAL_H

#include "kernels/cpu/attention_gemm.h"
#include "kernels/cpu/attention_set.h"
#include "kernels/cpu/cpu.h"

/* One query head of one sequence: its candidates that are visited, its keys and values. */
struct attention_head {
    int count;
    struct candidate candidates[CANDIDATES_MAX];
    real coefficients[CANDIDATES_MAX];
    int index[CANDIDATES_MAX]; /* place of each visited candidate in the operation's list */
    const int32_t *start;      /* [T] first token of each token's document */
    const int32_t *end;        /* [T] one past its last token */
    bool causal;
    int64_t length, width; /* T, D */
    const real *k, *v;     /* [T] rows of D */
    int64_t k_stride, v_stride;
};

enum {
    BLOCK_ROWS = 64,
    TILE_KEYS = 320, /* columns of a tile at most */
    CUT_KEYS = 32,   /* dense tiles begin and end at multiples of it, or where their keys do */
    PACK_KEYS = 64,  /* keys of a transposed run, and of a tile of gathered keys */
};

/* Candidates that are visited by the same tiles. step: of the rows of a block (1, or a dilated candidate's). */
struct group {
    enum { GROUP_DENSE, GROUP_STRIDE, GROUP_OFFSET, GROUP_DILATED } kind;
    int64_t step;
    uint32_t owners; /* set of visited candidates */
    uint32_t prior;  /* all those of the groups before */
};

/* How a head is walked. A stage is a set of groups whose row blocks agree: stage 0 holds dense, stride and offset,
 * every dilation has its own. */
struct walk {
    struct group groups[CANDIDATES_MAX];
    int group_count;
    int stages[CANDIDATES_MAX + 1]; /* groups of stage n: stages[n] … stages[n+1]−1 */
    int stage_count;
    int block_rows; /* rows of a block, at most BLOCK_ROWS */
};

/* Keys first, first + step, …; of a diagonal, key first + r for row r. */
struct tile {
    int64_t first, step;
    int count, columns; /* keys; rounded up to LANES */
    uint32_t owners, prior;
    uint32_t inside, mixed; /* candidates that hold all of its pairs; that hold some */
    uint32_t held, partly;  /* the same of the pairs that are this tile's own */
    bool diagonal;
    bool whole;   /* every element of every row is a pair of this tile */
    size_t place; /* in the block's kept scores */
};

/* Keys and values of one sequence and key head, packed once. Transposed: for each run of PACK_KEYS keys,
 * [D][PACK_KEYS], zeros after the last. */
struct packed {
    real *k_transposed, *v_transposed;
    real *k, *v;   /* [T] rows of pad_lanes(D) */
    real *dk, *dv; /* the same */
};

/* The block in work: its geometry and its numbers. One for each thread. */
struct block {
    const struct attention_head *head;
    const struct walk *walk;
    const struct packed *packed;
    int64_t ready;  /* keys before it are packed; the others when a block first reads them */
    int64_t padded; /* pad_lanes(D) */
    /* geometry (attention_plan.c) */
    int64_t first, step;
    int rows;
    struct span spans[CANDIDATES_MAX][BLOCK_ROWS];
    struct hull {
        int64_t lo_min, lo_max, hi_min, hi_max;
        bool same_residue;
    } hulls[CANDIDATES_MAX];
    struct tile *tiles;
    int tile_count, tile_capacity;
    struct span *pieces;
    int piece_count, piece_capacity;
    size_t columns; /* of all tiles */
    bool kept;      /* the numbers of all tiles fit into the block's memory */
    /* numbers */
    real *q, *d_o, *out;                            /* [rows][padded]: scaled queries; gradient; o or dq */
    real *scores, *d_weights;                       /* [KEPT_ELEMENTS] */
    real *references;                               /* [tiles of kept blocks][BLOCK_ROWS] */
    real *gathered;                                 /* [D][PACK_KEYS] */
    real reference[BLOCK_ROWS];                     /* the exponents' common reference of each row */
    real sums[CANDIDATES_MAX][BLOCK_ROWS];          /* Σ_j M_m e^{s − reference}; of deltas: times do·v */
    real norms[CANDIDATES_MAX][BLOCK_ROWS];         /* e^{reference} / Z_m; 0 for an empty candidate */
    real factors[CANDIDATES_MAX][BLOCK_ROWS];       /* c_m · norms */
    real delta_factors[CANDIDATES_MAX][BLOCK_ROWS]; /* factors · deltas */
    real rescale[BLOCK_ROWS];
    bool slow[BLOCK_ROWS]; /* left to attention_row: all its factors are 0 */
};

enum { KEPT_ELEMENTS = 65536, KEPT_TILES = 256 };

/* Packs keys and values first … first + PACK_KEYS − 1, first a multiple of PACK_KEYS; clears their gradients. */
void NAME(attention_pack_run)(const struct attention_head *head, const struct packed *packed, int64_t first);
/* Packs what is not ready of the keys before `end`. */
void NAME(attention_pack_until)(struct block *block, int64_t end);

/* Groups and stages of a head's visited candidates. */
void NAME(attention_walk)(const struct attention_head *head, struct walk *walk);
/* Rows' blocks in a stage. */
int64_t NAME(attention_block_count)(const struct walk *walk, int64_t length, int stage);
/* Rows, spans and tiles of block n of a stage; false when it has no row. */
bool NAME(attention_block_plan)(struct block *block, int stage, int64_t n);
/* One past the last key that any of its rows reads, in any stage. */
int64_t NAME(attention_block_end)(const struct block *block);
/* Upper bounds for struct block's tiles and pieces at this length. */
int NAME(attention_tile_bound)(int64_t length);
int NAME(attention_piece_bound)(int64_t length);

/* Scaled rows of the block, padded with zeros; row i lies at from + i · stride. */
void NAME(attention_block_load)(const struct block *block, const real *from, int64_t stride, real scale, real *to);
/* Makes reference, norms, factors and slow from log Z_m: visited candidate m's of row i at log_sums[m][i]. */
void NAME(attention_block_prepare)(struct block *block, const real *const *log_sums);
/* e [rows][columns] = scores of a tile, −inf where the pair is not this tile's. */
void NAME(attention_tile_scores)(const struct block *block, const struct tile *tile, real *e);
/* dw [rows][columns] = do · v. */
void NAME(attention_tile_d_weights)(const struct block *block, const struct tile *tile, real *dw);
/* Takes a tile's scores into the running reference and sums; e becomes e^{score − reference}; block->rescale: what
 * earlier numbers of each row must be multiplied with. */
void NAME(attention_tile_sum)(struct block *block, const struct tile *tile, real *e);
/* e = e^{score − reference}. */
void NAME(attention_tile_exponents)(const struct block *block, const struct tile *tile, real *e);
/* e *= the pair's weight Σ_m factors (times scale[r], when not NULL). */
void NAME(attention_tile_weights)(const struct block *block, const struct tile *tile, const real *scale, real *e);
/* sums += Σ_j e · dw over each candidate. */
void NAME(attention_tile_deltas)(struct block *block, const struct tile *tile, const real *e, const real *dw);
/* e becomes the weights, dw the gradient of the scores. */
void NAME(attention_tile_gradients)(const struct block *block, const struct tile *tile, real *e, real *dw);
/* out += weights · rows (keys or values), and rows of keys += weightsᵀ · in, for keys first … last−1 only. */
void NAME(attention_tile_gather)(const struct block *block, const struct tile *tile, const real *weights,
                                 const real *rows, real *out);
void NAME(attention_tile_scatter)(const struct block *block, const struct tile *tile, const real *weights,
                                  const real *in, real *rows, int64_t first, int64_t last);

/* Row i of a tensor [B,T,heads,D] at rows + i · stride. */
struct rows {
    real *rows;
    int64_t stride;
};

/* One query, pair by pair: the exact form, for rows whose candidates lie too far apart for one common exponent.
 * q: [D], already scaled. log_sums [visited]; o [D]. Both are written; o is optional. */
void NAME(attention_row)(const struct attention_head *head, int64_t i, const real *q, real *log_sums, real *o);

/* Its backward pass. d_o: [D]; log_sums, deltas: of visited candidate m at [m][i]. dq [D]: += the gradient of the
 * scaled q; dk, dv: packed rows of `stride`, += for keys first … last−1. dq, and dk with dv, are optional. */
struct attention_row_gradient {
    const real *d_o;
    const real *const *log_sums;
    real *const *deltas;
    real *dq, *dk, *dv;
    int64_t stride;
    int64_t first, last;
};
/* deltas = Σ_j P_m,ij do_i·v_j. */
void NAME(attention_row_deltas)(const struct attention_head *head, int64_t i, const real *q,
                                const struct attention_row_gradient *g);
void NAME(attention_row_backward)(const struct attention_head *head, int64_t i, const real *q,
                                  const struct attention_row_gradient *g);

/* Whether row i is left to attention_row: beyond this distance of two candidates' log Z, a common exponent would lose
 * digits of the lesser one. The blocks and the rows of both passes decide by the same numbers. */
static inline bool row_is_slow(const struct attention_head *head, const real *const *log_sums, int64_t i, real *most) {
    real least = REAL_INFINITY;
    *most = -REAL_INFINITY;
    for (int m = 0; m < head->count; m++) {
        const real sum = log_sums[m][i];
        *most = real_max(*most, sum);
        if (sum > -REAL_INFINITY && sum < least) least = sum;
    }
    return *most - least > 60;
}

/* One head's forward pass. log_sums: row of each visited candidate; o without rows: only log_sums are made. */
struct head_forward {
    struct rows q, o;
    real scale;
    real *log_sums[CANDIDATES_MAX];
    real *references; /* [T] scratch, for heads of several stages */
};
/* Blocks first … last−1 of the only stage, or the whole head when it has several. block: head, walk, packed set. */
void NAME(attention_forward_blocks)(struct block *block, const struct head_forward *pass, int64_t first, int64_t last);

/* One head's backward pass. deltas: row of each visited candidate. dk, dv: added to the packed rows of keys
 * first_key … last_key−1. */
struct head_backward {
    struct rows q, o, d_o, dq;
    real scale;
    const real *log_sums[CANDIDATES_MAX];
    real *deltas[CANDIDATES_MAX];
    bool find_deltas, want_dq, want_dkv; /* what this call computes */
    int64_t first_key, last_key;
};
void NAME(attention_backward_blocks)(struct block *block, const struct head_backward *pass, int64_t first,
                                     int64_t last);

#endif
