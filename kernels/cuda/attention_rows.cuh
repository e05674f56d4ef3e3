/* Attention: a block that owns queries and walks the keys that they see. Which keys those are is decided here, what is
 * done with them not. */
#ifndef SQUINT_KERNELS_CUDA_ATTENTION_ROWS_CUH
#define SQUINT_KERNELS_CUDA_ATTENTION_ROWS_CUH

#include "kernels/cuda/attention_tile.cuh"

enum candidate_choice { CHOOSE_LIVE, CHOOSE_DEAD, CHOOSE_ALL };

/* A head's candidates before the queries of one block; in shared memory. Those that are not chosen have no hull, and so
 * touch no tile. */
struct row_candidates {
    float coefficients[CANDIDATES_MAX];
    attention_hull hulls[CANDIDATES_MAX];
};

/* Candidates of head h whose coefficient is not 0; *last: the last one of them. */
__device__ inline int count_live(const attention_problem &p, int64_t h, int *last) {
    int live = 0;
    for (int m = 0; m < p.count; m++) {
        if (coefficient_of(p, h, m) == 0.0f) continue;
        *last = m;
        live++;
    }
    return live;
}

/* By all threads; ends with a barrier. */
__device__ inline void open_candidates(const attention_problem &p, int64_t b, int64_t h, int first, int rows,
                                       candidate_choice choice, row_candidates &candidates) {
    const int m = static_cast<int>(threadIdx.x);
    if (m < p.count) {
        const float c = coefficient_of(p, h, m);
        candidates.coefficients[m] = c;
        const bool chosen = choice == CHOOSE_ALL || (choice == CHOOSE_DEAD) == (c == 0.0f);
        candidates.hulls[m] = chosen ? hull_of(p, b, m, first, rows) : hull_none();
    }
    __syncthreads();
}

__device__ inline bool row_touches(const attention_problem &p, const row_candidates &candidates, int m, int first,
                                   int rows, int key, int keys) {
    return hull_touches(p.rules[m], candidates.hulls[m], p.causal, first, first + rows, key, key + keys);
}

/* body(first key, its tile of k, its tile of v) for every tile of S::columns keys that some candidate touches,
 * ascending. k, v: the head's rows; v may be NULL. tiles: 2 · columns · stride elements of shared memory for each of
 * them. ready() is called once, when what the caller has loaded before (load_rows) has arrived. */
template <class S, int COUNT, class Ready, class Body>
__device__ inline void walk_keys(const attention_problem &p, const row_candidates &candidates, int first,
                                 const typename S::real *k, const typename S::real *v, typename S::real *tiles,
                                 Ready ready, Body body) {
    using T = typename S::real;
    constexpr int size = S::columns * S::stride;
    const int count = COUNT ? COUNT : p.count;
    const auto touches = [&](int tile) {
        for (int m = 0; m < count; m++)
            if (row_touches(p, candidates, m, first, S::rows, tile * S::columns, S::columns)) return true;
        return false;
    };
    const auto load = [&](int tile, int stage) {
        T *at = tiles + stage * (v ? 2 : 1) * size;
        load_rows<S::columns, S::width, S::stride, S::threads>(at, k, p.k.token, tile * S::columns, p.keys, p.width,
                                                               p.k.vector);
        if (v)
            load_rows<S::columns, S::width, S::stride, S::threads>(at + size, v, p.v.token, tile * S::columns, p.keys,
                                                                   p.width, p.v.vector);
    };
    int least = INT_MAX, most = 0;
    for (int m = 0; m < count; m++) {
        least = min(least, candidates.hulls[m].lo_min);
        most = max(most, candidates.hulls[m].hi_max);
    }
    tile_walk walk = walk_tiles(least / S::columns, (most + S::columns - 1) / S::columns);
    int tile = walk_next(walk, touches);
    if (tile >= 0) load(tile, 0);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    ready();
    for (int stage = 0; tile >= 0; stage ^= 1) {
        const int after = walk_next(walk, touches);
        if (after >= 0) load(after, stage ^ 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* this tile is there for all */
        const T *at = tiles + stage * (v ? 2 : 1) * size;
        body(tile * S::columns, at, at + size);
        __syncthreads(); /* nobody reads it any more */
        tile = after;
    }
    copy_async_wait<0>();
}

/* The block's row that this lane holds in a tile's half. */
template <class S> __device__ inline int row_of(int tile, int half) {
    return warp_number() * S::tiles * 16 + tile * 16 + 8 * half + lane_row();
}

/* Which of a lane's elements of a row, of a tile that begins at `key`, the candidate holds: bit n for element n%2 of
 * group n/2. */
template <int GROUPS>
__device__ inline unsigned held_columns(const attention_rule &rule, int lo, int count, int key, bool covered) {
    if (covered) return ~0u;
    unsigned held = 0;
#pragma unroll
    for (int n = 0; n < 2 * GROUPS; n++)
        held |= static_cast<unsigned>(span_holds(rule, lo, count, key + n / 2 * 8 + lane_column() + n % 2)) << n;
    return held;
}

/* The set of candidates that touch a tile. */
template <class S>
__device__ inline unsigned touching_rows(const attention_problem &p, const row_candidates &candidates, int first,
                                         int key) {
    unsigned touching = 0;
    for (int m = 0; m < p.count; m++)
        touching |= static_cast<unsigned>(row_touches(p, candidates, m, first, S::rows, key, S::columns)) << m;
    return touching;
}

#endif
