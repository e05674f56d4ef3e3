/* The choice for 16 queries a warp: all that compete are scored tile by tile, again in every pass, and no score is ever
 * stored. A pass counts digits of scores or collects what is left of them (index.cuh); the last one writes. Knows no
 * sort of score but by name. */
#ifndef SQUINT_KERNELS_CUDA_INDEX_ROWS_CUH
#define SQUINT_KERNELS_CUDA_INDEX_ROWS_CUH

#include "kernels/cuda/index.cuh"
#include "kernels/cuda/random.cuh"

/* LEARNED: index heads of a list; POOLED: the same, of pooled blocks, whose blocks are chosen; ATTENTION: its query
 * heads; RANDOM: none. */
enum row_source { ROWS_LEARNED = 0, ROWS_POOLED, ROWS_ATTENTION, ROWS_RANDOM };

/* HEADS: how many heads are multiplied with a tile of keys at once (they share the keys). */
template <class T, int D, int HEADS, row_source SOURCE> struct row_shape {
    using real = T;
    static constexpr int width = D, heads = HEADS, stride = D + pack_width<T>, columns = 64, groups = columns / 8;
    static constexpr row_source source = SOURCE;
};
constexpr int row_warps = 4 /* at most */, warp_rows = 16;

struct row_arguments {
    index_problem p;
    attention_view queries; /* r or q, heads of all lists */
    index_keys keys;
    int heads, share; /* of a list; ATTENTION: query heads of a key head */
    int units;        /* of a tile: loads of keys that its scores take */
    int rows;         /* of a block: 16 a warp */
    int first;        /* query of the first tile, of every sequence */
    int end;          /* queries */
    block_order order;
    int32_t *out; /* [B,T,S,most], or (POOLED) [B·S,end − first,most] */
    int64_t most;
    float scale; /* of weights; ATTENTION: of exponents in base 2 */
    uint64_t seed;
};

/* Rows g and g + 8 of the warp, as lane 4·g + any sees them. */
struct row_state {
    digit_state digits;
    int low, high; /* columns that compete and must be scored */
    int used;      /* of the list */
    int start, query;
};

/* What a block keeps in shared memory, cut up alike by host and device. */
template <class S> struct row_memory {
    typename S::real *queries; /* [warp][heads][16][stride] */
    typename S::real *tiles;   /* [2][columns][stride] */
    float *weights;            /* [heads][rows]; ATTENTION: log2 of the sum of exponents */
    float *sums;               /* [heads][rows], ATTENTION only */
    unsigned *table;           /* [rows][digits] */
    int *collected;            /* [rows] */
    int *ranges;               /* [2][warps] */
};
/* Heads in memory: a multiple of what is multiplied at once. */
template <class S> __host__ __device__ constexpr int row_heads(int heads) {
    return (heads + S::heads - 1) / S::heads * S::heads;
}
template <class S> size_t row_memory_bytes(int heads, int rows) {
    const bool scored = S::source != ROWS_RANDOM, attention = S::source == ROWS_ATTENTION;
    size_t bytes =
        static_cast<size_t>(rows) * digits * sizeof(unsigned) + (static_cast<size_t>(rows) + 32) * sizeof(int);
    if (scored)
        bytes += (static_cast<size_t>(row_heads<S>(heads)) * static_cast<size_t>(rows) + 2 * S::columns) * S::stride *
                     sizeof(typename S::real) +
                 static_cast<size_t>(heads) * static_cast<size_t>(rows) * sizeof(float) * (attention ? 2 : 1);
    return bytes + 64;
}
template <class S> __device__ row_memory<S> row_memory_of(int heads, int rows) {
    using T = typename S::real;
    shared_cutter cutter = {shared_memory()};
    row_memory<S> m = {};
    m.table = cutter.take<unsigned>(rows * digits);
    m.collected = cutter.take<int>(rows);
    m.ranges = cutter.take<int>(2 * row_warps);
    if constexpr (S::source != ROWS_RANDOM) {
        m.queries = cutter.take<T>(row_heads<S>(heads) * rows * S::stride);
        m.tiles = cutter.take<T>(2 * S::columns * S::stride);
        m.weights = cutter.take<float>(heads * rows);
        if constexpr (S::source == ROWS_ATTENTION) m.sums = cutter.take<float>(heads * rows);
    }
    return m;
}

/* The largest over the block, by all threads; at: [warps]. Ends with all having read. */
__device__ inline int row_block_max(int x, int *at) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = max(x, __shfl_xor_sync(whole_warp, x, lane));
    if (threadIdx.x % 32 == 0) at[threadIdx.x / 32] = x;
    __syncthreads();
    x = at[0];
    for (int w = 1; w < static_cast<int>(blockDim.x) / 32; w++) x = max(x, at[w]);
    __syncthreads();
    return x;
}

/* Queries of all heads and their weights. */
template <class S>
__device__ void row_load_queries(const row_arguments &g, const row_memory<S> &m, int64_t b, int list, int first) {
    using T = typename S::real;
    const T *rows = attention_rows<const T>(g.queries, b, static_cast<int64_t>(list) * g.heads);
    const int held = row_heads<S>(g.heads);
    gather_rows<S::width, S::stride>(m.queries, held * g.rows, g.p.width, g.queries.vector, rows, [&](int n) {
        const int row = n / (held * warp_rows) * warp_rows + n % warp_rows, head = n / warp_rows % held;
        return head < g.heads && first + row < g.end ? rows + head * g.queries.head + (first + row) * g.queries.token
                                                     : static_cast<const T *>(nullptr);
    });
    copy_async_commit();
    for (int n = static_cast<int>(threadIdx.x); n < g.heads * g.rows; n += static_cast<int>(blockDim.x)) {
        const int row = n % g.rows, head = n / g.rows;
        if constexpr (S::source == ROWS_ATTENTION) {
            m.weights[n] = -INFINITY;
            m.sums[n] = 0.0f;
        } else {
            const T *a = static_cast<const T *>(g.p.a) + b * g.p.a_batch + static_cast<int64_t>(list) * g.heads + head;
            m.weights[n] = first + row < g.end ? g.scale * to_float(a[(first + row) * g.p.a_token]) : 0.0f;
        }
    }
}

/* scores += what one load of keys adds: of all heads, which share it, or of one. */
template <class S>
__device__ void row_add_products(const row_arguments &g, const row_memory<S> &m, int unit, const typename S::real *keys,
                                 float (&scores)[S::groups][4]) {
    using product = warp_product<typename S::real>;
    const int row = warp_number() * warp_rows + lane_row();
    const typename S::real *queries = m.queries + warp_number() * row_heads<S>(g.heads) * warp_rows * S::stride;
    constexpr int part = S::heads == 1 ? S::groups : 4; /* groups of columns at once: what fits into registers */
    const bool all = g.units == g.keys.parts;
    const int begin = all ? 0 : unit % g.p.keys, end = all ? g.heads : begin + 1;
#pragma unroll
    for (int group = 0; group < S::groups; group += part)
#pragma unroll 1
        for (int head = begin; head < end; head += S::heads) {
            float sums[S::heads][part][4];
            clear_sums(sums);
            const typename product::template left<S::heads, S::width, S::stride, false> of_r(
                queries + head * warp_rows * S::stride);
            product::rows_by_rows(sums, of_r, keys + group * 8 * S::stride);
#pragma unroll
            for (int h = 0; h < S::heads; h++) {
                if (head + h >= end) break;
                const float weights[2] = {m.weights[(head + h) * g.rows + row],
                                          m.weights[(head + h) * g.rows + row + 8]};
#pragma unroll
                for (int n = 0; n < part; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        scores[group + n][e] = fmaf(weights[e / 2], index_relu(sums[h][n][e]), scores[group + n][e]);
            }
        }
}

/* Attention's head `head`: its exponents go into its running maximum and sum (`summing`), or into the scores. */
template <class S>
__device__ void row_add_attention(const row_arguments &g, const row_memory<S> &m, const row_state (&rows)[2], int head,
                                  int first, const typename S::real *keys, bool summing,
                                  float (&scores)[S::groups][4]) {
    using product = warp_product<typename S::real>;
    float sums[1][S::groups][4];
    clear_sums(sums);
    const typename product::template left<1, S::width, S::stride, false> of_q(
        m.queries + (warp_number() * g.heads + head) * warp_rows * S::stride);
    product::rows_by_rows(sums, of_q, keys);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int at = head * g.rows + warp_number() * warp_rows + 8 * half + lane_row();
        const float before = m.weights[at];
        float most = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++) {
            float &score = sums[0][n / 2][2 * half + n % 2];
            const int column = first + n / 2 * 8 + lane_column() + n % 2;
            score = column >= rows[half].start && column <= rows[half].query ? score * g.scale : -INFINITY;
            most = fmaxf(most, score);
        }
        if (!summing) {
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++)
                scores[n / 2][2 * half + n % 2] += exp2_quick(sums[0][n / 2][2 * half + n % 2] - before);
            continue;
        }
        most = fmaxf(quad_max(most), before);
        const float reference = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++) sum += exp2_quick(sums[0][n / 2][2 * half + n % 2] - reference);
        sum = quad_sum(sum); /* all four lanes have read `before` */
        if (threadIdx.x % 4 == 0) {
            m.weights[at] = most;
            m.sums[at] = m.sums[at] * exp2_quick(before - reference) + sum;
        }
    }
}

/* Draws of the columns that a row still asks for. */
template <class S>
__device__ void row_draw(const row_arguments &g, const row_state (&rows)[2], uint64_t stream, int first,
                         float (&scores)[S::groups][4]) {
#pragma unroll 1
    for (int n = 0; n < 4 * S::groups; n++) {
        const row_state &row = rows[n / 2 % 2];
        const int column = first + n / 4 * 8 + lane_column() + n % 2;
        const uint64_t own = stream + static_cast<uint64_t>(n / 2 % 2 * 8 * g.p.lists);
        if (column >= row.low && column < row.high)
            scores[n / 4][n % 4] =
                random_uniform(g.seed, own << 8 | RNG_INDEX, static_cast<uint64_t>(column)); /* rng_substream */
    }
}

/* body(first column, scores) for the tiles that hold columns first … end − 1, ascending. summing: of attention's pass
 * before all others, without body. */
template <class S, class Body>
__device__ void row_walk(const row_arguments &g, const row_memory<S> &m, const row_state (&rows)[2], int64_t b,
                         int list, int first, int end, bool summing, Body body) {
    using T = typename S::real;
    const int begin = first / S::columns, tiles = end > first ? (end + S::columns - 1) / S::columns - begin : 0;
    float scores[S::groups][4];
    if constexpr (S::source == ROWS_RANDOM) {
        const uint64_t query = static_cast<uint64_t>(b * g.p.length + rows[0].query);
        for (int tile = begin; tile < begin + tiles; tile++) {
#pragma unroll
            for (int n = 0; n < 4 * S::groups; n++) scores[n / 4][n % 4] = 0.0f;
            row_draw<S>(g, rows, query * static_cast<uint64_t>(g.p.lists) + static_cast<uint64_t>(list),
                        tile * S::columns, scores);
            body(tile * S::columns, scores);
        }
        return;
    }
    const int64_t limit = S::source == ROWS_POOLED ? g.p.pooled_length : g.p.length;
    const auto load = [&](int64_t n) {
        const int unit = static_cast<int>(n % g.units), tile = begin + static_cast<int>(n / g.units);
        const int64_t head = S::source == ROWS_ATTENTION ? (static_cast<int64_t>(list) * g.heads + unit) / g.share
                                                         : static_cast<int64_t>(list) * g.p.keys + unit % g.p.keys;
        const T *from =
            index_key_rows<T>(g.keys, b, head) + (S::source == ROWS_POOLED ? unit / g.p.keys : 0) * g.keys.part;
        gather_rows<S::width, S::stride>(
            m.tiles + n % 2 * S::columns * S::stride, S::columns, g.p.width, g.keys.vector, from, [&](int row) {
                const int64_t t = static_cast<int64_t>(tile) * S::columns + row;
                return t < limit ? from + t * g.keys.token : static_cast<const T *>(nullptr);
            });
    };
    const int64_t all = static_cast<int64_t>(tiles) * g.units;
    if (all > 0) load(0);
    copy_async_commit();
    for (int64_t n = 0; n < all; n++) {
        const int unit = static_cast<int>(n % g.units), column = (begin + static_cast<int>(n / g.units)) * S::columns;
        if (n + 1 < all) load(n + 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* these keys are there for all */
        if (unit == 0)
#pragma unroll
            for (int e = 0; e < 4 * S::groups; e++) scores[e / 4][e % 4] = 0.0f;
        const T *keys = m.tiles + n % 2 * S::columns * S::stride;
        if constexpr (S::source == ROWS_ATTENTION)
            row_add_attention<S>(g, m, rows, unit, column, keys, summing, scores);
        else
            row_add_products<S>(g, m, unit, keys, scores);
        if (unit + 1 == g.units && !summing) body(column, scores);
        __syncthreads(); /* nobody reads them any more */
    }
    copy_async_wait<0>();
}

/* A tile's scores into the tables of the rows that are not done. */
template <class S>
__device__ void row_count(const row_memory<S> &m, const row_state (&rows)[2], int first, int shift,
                          const float (&scores)[S::groups][4]) {
    const unsigned known = known_bits(shift);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const row_state &row = rows[half];
        const int at = warp_number() * warp_rows + 8 * half + lane_row();
        if (row.digits.mode == DIGIT_DONE) continue;
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++) {
            const int column = first + n / 2 * 8 + lane_column() + n % 2;
            const unsigned key = order_key(scores[n / 2][2 * half + n % 2]);
            if (column < row.low || column >= row.high || ((key ^ row.digits.prefix) & known) != 0) continue;
            if (row.digits.mode == DIGIT_COUNT) {
                atomicAdd(&m.table[at * digits + static_cast<int>(key >> shift & (digits - 1))], 1u);
            } else {
                const int place = atomicAdd(&m.collected[at], 1);
                if (place < digits) m.table[at * digits + place] = key;
            }
        }
    }
}

/* What the pass found, of each row of the warp. */
template <class S> __device__ void row_digits(const row_memory<S> &m, row_state (&rows)[2], int shift) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll 1
        for (int r = 0; r < 8; r++) {
            digit_state s;
            s.prefix = __shfl_sync(whole_warp, rows[half].digits.prefix, 4 * r);
            s.wanted = __shfl_sync(whole_warp, rows[half].digits.wanted, 4 * r);
            s.inside = __shfl_sync(whole_warp, rows[half].digits.inside, 4 * r);
            s.mode = __shfl_sync(whole_warp, rows[half].digits.mode, 4 * r);
            if (s.mode == DIGIT_DONE) continue;
            const unsigned *table = m.table + (warp_number() * warp_rows + 8 * half + r) * digits;
            s = s.mode == DIGIT_COUNT ? digit_found(s, table, shift) : collected_found(s, table);
            if (lane_row() == r) rows[half].digits = s;
        }
}

/* Writes those of a tile that are chosen. The four lanes of a row see the same words, and so where each token goes. */
template <class S>
__device__ void row_write(const row_arguments &g, row_state (&rows)[2], const int64_t (&places)[2], int first,
                          const float (&scores)[S::groups][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        row_state &row = rows[half];
#pragma unroll
        for (int word = 0; word < S::columns / 32; word++) {
            unsigned above = 0, equal = 0;
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const int bit = n / 2 * 8 + lane_column() + n % 2, column = first + 32 * word + bit;
                const unsigned key = order_key(scores[4 * word + n / 2][2 * half + n % 2]);
                const bool inside = column >= row.low && column < row.high;
                above |= static_cast<unsigned>(inside && key > row.digits.prefix) << bit;
                equal |= static_cast<unsigned>(inside && key == row.digits.prefix && row.digits.wanted > 0) << bit;
            }
            if (!__any_sync(whole_warp, (above | equal) != 0)) continue;
            const unsigned own = above | equal;
#pragma unroll
            for (int lane = 1; lane < 4; lane *= 2) {
                above |= __shfl_xor_sync(whole_warp, above, lane);
                equal |= __shfl_xor_sync(whole_warp, equal, lane);
            }
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const int bit = n / 2 * 8 + lane_column() + n % 2;
                if (!(own >> bit & 1)) continue;
                const unsigned lower = (1u << bit) - 1;
                const int ties = __popc(equal & lower);
                if ((equal >> bit & 1) && ties >= row.digits.wanted) continue;
                const int64_t place = row.used + __popc(above & lower) + min(ties, row.digits.wanted);
                if (place < g.most) g.out[places[half] + place] = first + 32 * word + bit;
            }
            const int ties = min(__popc(equal), row.digits.wanted);
            row.used += __popc(above) + ties;
            row.digits.wanted -= ties;
        }
    }
}

#endif
