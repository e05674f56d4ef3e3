/* The choice for one query by a block: scores of tokens that may lie anywhere, with the bits that index_rows.cuh gives
 * them, and the highest of keys in memory. A product's rows are the index heads of one list. */
#ifndef SQUINT_KERNELS_CUDA_INDEX_QUERY_CUH
#define SQUINT_KERNELS_CUDA_INDEX_QUERY_CUH

#include "kernels/cuda/index.cuh"

constexpr int product_heads = 16;

template <class T, int D> struct query_shape {
    using real = T;
    static constexpr int width = D, stride = D + pack_width<T>, warps = 4, threads = 32 * warps;
    static constexpr int columns = D <= 64 ? 128 : 64, groups = columns / 8 / warps;
};

template <class S> struct query_memory {
    typename S::real *queries; /* [heads, a multiple of 16][stride] */
    typename S::real *tile;    /* [columns][stride] */
    float *weights;            /* [heads] */
    float *dots;               /* [16][columns] */
    int *tokens;               /* [columns] */
};
__host__ __device__ inline int query_heads(int heads) {
    return (heads + product_heads - 1) / product_heads * product_heads;
}
template <class S> size_t query_memory_bytes(int heads) {
    return static_cast<size_t>(query_heads(heads) + S::columns) * S::stride * sizeof(typename S::real) +
           (static_cast<size_t>(heads) + (product_heads + 1) * S::columns) * sizeof(float) + 64;
}
template <class S> __device__ query_memory<S> query_memory_of(shared_cutter &cutter, int heads) {
    using T = typename S::real;
    query_memory<S> m;
    m.queries = cutter.take<T>(query_heads(heads) * S::stride);
    m.tile = cutter.take<T>(S::columns * S::stride);
    m.dots = cutter.take<float>(product_heads * S::columns);
    m.tokens = cutter.take<int>(S::columns);
    m.weights = cutter.take<float>(heads);
    return m;
}

/* Query i of sequence b, list `list`; there for all once copy_async_wait has waited and a barrier has passed. */
template <class S>
__device__ void query_load(const index_problem &p, const query_memory<S> &m, int64_t b, int64_t i, int list) {
    using T = typename S::real;
    const T *rows = attention_rows<const T>(p.r, b, static_cast<int64_t>(list) * p.heads) + i * p.r.token;
    gather_rows<S::width, S::stride>(m.queries, query_heads(p.heads), p.width, p.r.vector, rows, [&](int head) {
        return head < p.heads ? rows + head * p.r.head : static_cast<const T *>(nullptr);
    });
    copy_async_commit();
    const T *a = static_cast<const T *>(p.a) + b * p.a_batch + i * p.a_token + static_cast<int64_t>(list) * p.heads;
    for (int h = static_cast<int>(threadIdx.x); h < p.heads; h += S::threads) m.weights[h] = p.scale * to_float(a[h]);
}

/* score += what one load of keys, in the tile, adds to the token of this thread: of all heads (head −1), or of one. */
template <class S> __device__ void query_add(const index_problem &p, const query_memory<S> &m, int head, float &score) {
    using product = warp_product<typename S::real>;
    const int thread = static_cast<int>(threadIdx.x), column = warp_number() * 8 * S::groups;
    const int begin = head < 0 ? 0 : head / product_heads * product_heads;
    const int end = head < 0 ? p.heads : min(p.heads, begin + product_heads);
    for (int h = begin; h < end; h += product_heads) {
        float sums[1][S::groups][4];
        clear_sums(sums);
        const typename product::template left<1, S::width, S::stride, false> of_r(m.queries + h * S::stride);
        product::rows_by_rows(sums, of_r, m.tile + column * S::stride);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                m.dots[(e / 2 * 8 + lane_row()) * S::columns + column + n * 8 + lane_column() + e % 2] = sums[0][n][e];
        __syncthreads(); /* all heads of all columns are there */
        for (int n = head < 0 ? h : head;
             thread < S::columns && n < (head < 0 ? min(end, h + product_heads) : head + 1); n++)
            score = fmaf(m.weights[n], index_relu(m.dots[(n - h) * S::columns + thread]), score);
        if (h + product_heads < end) __syncthreads(); /* and read, before the next heads' */
    }
}

/* put(c, key) for the candidates c = first … end − 1, a tile of them every `step`; token(c) says which row of `keys`
 * each is. By all threads. */
template <class S, class Token, class Put>
__device__ void query_score(const index_problem &p, const query_memory<S> &m, const index_keys &keys, int64_t b,
                            int list, int64_t first, int64_t end, int64_t step, Token token, Put put) {
    using T = typename S::real;
    const int thread = static_cast<int>(threadIdx.x);
    for (int64_t c = first; c < end; c += step) {
        if (thread < S::columns) m.tokens[thread] = c + thread < end ? token(static_cast<int>(c) + thread) : -1;
        __syncthreads();
        float score = 0.0f;
        for (int unit = 0; unit < keys.parts * p.keys; unit++) {
            const T *from = index_key_rows<T>(keys, b, static_cast<int64_t>(list) * p.keys + unit % p.keys) +
                            unit / p.keys * keys.part;
            gather_rows<S::width, S::stride>(m.tile, S::columns, p.width, keys.vector, from, [&](int row) {
                return m.tokens[row] < 0 ? static_cast<const T *>(nullptr) : from + m.tokens[row] * keys.token;
            });
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads(); /* these keys are there for all */
            query_add<S>(p, m, p.keys == 1 ? -1 : unit % p.keys, score);
        }
        if (thread < S::columns && c + thread < end) put(c + thread, order_key(score));
    }
}

template <int THREADS> struct choose_memory {
    unsigned table[digits];
    digit_state state;
    int collected, above[THREADS / 32], equal[THREADS / 32];
};

/* emit(place, c) for the `count` highest of keys [n], c ascending, places from 0; 0 < count < n. By all of THREADS;
 * begins with a barrier. */
template <int THREADS, class Emit>
__device__ void choose_keys(const unsigned *keys, int n, int count, choose_memory<THREADS> &m, Emit emit) {
    const int thread = static_cast<int>(threadIdx.x), warp = warp_number(), lane = thread % 32;
    digit_state s = digits_of(n, count);
    for (int shift = 24; s.mode != DIGIT_DONE; shift -= 8) {
        __syncthreads(); /* the keys are there; the state is read */
        for (int d = thread; d < digits; d += THREADS) m.table[d] = 0;
        if (thread == 0) m.collected = 0;
        __syncthreads();
        for (int c = thread; c < n; c += THREADS) {
            const unsigned key = keys[c];
            if (((key ^ s.prefix) & known_bits(shift)) != 0) continue;
            if (s.mode == DIGIT_COUNT) {
                atomicAdd(&m.table[key >> shift & (digits - 1)], 1u);
            } else {
                const int place = atomicAdd(&m.collected, 1);
                if (place < digits) m.table[place] = key;
            }
        }
        __syncthreads();
        if (warp == 0) {
            s = s.mode == DIGIT_COUNT ? digit_found(s, m.table, shift) : collected_found(s, m.table);
            if (lane == 0) m.state = s;
        }
        __syncthreads();
        s = m.state;
    }
    int used = 0;
    for (int first = 0; first < n; first += THREADS) {
        const int c = first + thread;
        const unsigned key = c < n ? keys[c] : 0u;
        const bool above = c < n && key > s.prefix, equal = c < n && key == s.prefix;
        const unsigned all_above = __ballot_sync(whole_warp, above), all_equal = __ballot_sync(whole_warp, equal);
        if (lane == 0) {
            m.above[warp] = __popc(all_above);
            m.equal[warp] = __popc(all_equal);
        }
        __syncthreads();
        const unsigned lower = (1u << lane) - 1;
        int place = __popc(all_above & lower), ties = __popc(all_equal & lower), higher = 0, alike = 0;
        for (int w = 0; w < THREADS / 32; w++) {
            if (w < warp) place += m.above[w];
            if (w < warp) ties += m.equal[w];
            higher += m.above[w];
            alike += m.equal[w];
        }
        if (above || (equal && ties < s.wanted)) emit(used + place + min(ties, s.wanted), c);
        used += higher + min(alike, s.wanted);
        s.wanted -= min(alike, s.wanted);
        __syncthreads(); /* the counts are read */
    }
}

#endif
