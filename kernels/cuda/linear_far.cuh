/* The far part of linear attention for a block of rows: queries that read keys (KEYS false), or keys that are read by
 * queries (KEYS true: gradients). The other side's tokens are its columns, numbered as far rows. */
#ifndef SQUINT_KERNELS_CUDA_LINEAR_FAR_CUH
#define SQUINT_KERNELS_CUDA_LINEAR_FAR_CUH

#include "kernels/cuda/linear.cuh"

/* What a block of rows reads: the state at an edge (0: none), columns first … end − 1 of its own segment. */
struct far_span {
    int before, after, first, end;
};

/* first: token of the block's first row. A block of keys lies in one segment; of a block of queries the far rows that
 * lie in the next segment read pairs only. */
template <class S, bool KEYS> __device__ inline far_span far_span_of(const linear_problem &p, int64_t b, int first) {
    const int32_t *begin = p.begin + b * p.length, *end = p.end + b * p.length;
    const int shift = KEYS ? 0 : window_of(p, b), last = min(first + S::rows, p.length) - 1 - shift;
    far_span span = {0, 0, 0, 0};
    if (p.near_only || last < 0) return span;
    const int from = max(first - shift, 0), edge = from / p.segment * p.segment;
    const int next = min(edge + p.segment, p.length), begins = begin[from];
    const bool looks_back = !KEYS || !p.causal, looks_on = KEYS || !p.causal;
    if (looks_back && edge > 0 && begins < edge) span.before = edge;
    if (looks_on && next < p.length && end[last] > next) span.after = next;
    span.first = looks_back ? max(edge, begins) : from;
    span.end = looks_on ? min(next, end[last]) : last + 1;
    return span;
}

/* This lane's two rows: columns lo … hi − 1 belong to them (none: lo = hi = 0); term: what their weights have of them.
 */
struct far_lanes {
    lane_rows rows;
    int lo[2], hi[2];
    float term[2], delta[2];
};

/* records: NULL in the forward pass, where a query's term is −P. first: of the warp's rows. */
template <bool KEYS>
__device__ inline far_lanes far_lanes_of(const linear_problem &p, const linear_record *records, int64_t b, int head,
                                         int first) {
    const int32_t *begin = p.begin + b * p.length, *end = p.end + b * p.length;
    const int shift = KEYS ? 0 : window_of(p, b);
    const linear_side &side = KEYS ? p.k : p.q;
    far_lanes lanes = {};
    lanes.rows = lane_rows_of(p, side, b, head, first);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int token = lanes.rows.token[half], t = token - shift;
        lanes.term[half] = -INFINITY;
        if (token < 0 || t < 0 || p.near_only || begin[t] != begin[token]) continue;
        const int64_t at = (b * side.heads + head) * p.length + token;
        lanes.lo[half] = KEYS && p.causal ? t : begin[t];
        lanes.hi[half] = KEYS || !p.causal ? end[t] : t + 1;
        if (KEYS) {
            lanes.term[half] = side.peaks[at];
        } else if (records) {
            lanes.term[half] = records[at].term;
            lanes.delta[half] = records[at].delta;
        } else {
            lanes.term[half] = -p.prefix[(b * p.groups + head / p.share) * p.length + t];
        }
    }
    return lanes;
}

/* log2 of what the state at an edge is multiplied by for a row; −inf: the row's document does not cross it. */
template <bool KEYS>
__device__ inline float edge_exponent(const linear_problem &p, int64_t b, int group, const far_lanes &lanes, int half,
                                      const far_span &span, int edge) {
    const bool joins = edge == span.before ? lanes.lo[half] < edge && lanes.hi[half] > 0 : lanes.hi[half] > edge;
    if (!joins) return -INFINITY;
    const float peak = p.prefix[(b * p.groups + group) * p.length + edge - 1];
    return KEYS ? lanes.term[half] - peak : lanes.term[half] + peak;
}

/* The state at an edge of one unit (b · G + group): its features, and those of the value 1. */
template <class T> struct state_rows {
    const T *sums;
    const float *ones;
};
template <class S, bool KEYS>
__device__ inline state_rows<typename S::real> state_at(const linear_gradient &g, int64_t unit, const far_span &span,
                                                        int edge) {
    using T = typename S::real;
    const bool is_before = edge == span.before;
    const linear_states &states = KEYS ? (is_before ? g.rows_before : g.rows_after) : (is_before ? g.before : g.after);
    const int64_t slot = (unit * g.f.segments + edge / g.f.segment) * g.f.features;
    return state_rows<T>{static_cast<const T *>(states.sums) + slot * S::width, states.ones + slot};
}

/* The state's rows of a tile of features. */
template <class S>
__device__ inline void load_state(const linear_problem &p, const state_rows<typename S::real> &state, int tile,
                                  typename S::real *to) {
    load_rows<S::columns, S::width, S::stride, S::threads>(to, state.sums, S::width, tile * S::columns, p.features,
                                                           S::width, true);
}

/* A block's shared memory. x: rows of what features are made of; value: of what is added up. */
template <class S> struct far_memory {
    using T = typename S::real;
    T *rows, *others;                                  /* [S::rows][stride] */
    T *column_x, *column_value, *row_map, *column_map; /* [columns][stride] */
    T *row_phi, *column_phi;                           /* [S::rows][outer_stride], [columns][outer_stride] */
    float *terms, *deltas;                             /* [columns] */
    __device__ far_memory(char *memory, bool with_others) {
        shared_cutter cutter = {memory};
        rows = cutter.take<T>(S::rows * S::stride);
        others = with_others ? cutter.take<T>(S::rows * S::stride) : nullptr;
        column_x = cutter.take<T>(S::columns * S::stride);
        column_value = cutter.take<T>(S::columns * S::stride);
        row_map = cutter.take<T>(S::columns * S::stride);
        column_map = cutter.take<T>(S::columns * S::stride);
        row_phi = cutter.take<T>(S::rows * S::outer_stride);
        column_phi = cutter.take<T>(S::columns * S::outer_stride);
        terms = cutter.take<float>(S::columns);
        deltas = cutter.take<float>(S::columns);
    }
    static size_t bytes(bool with_others) {
        return sizeof(T) * (S::stride * ((with_others ? 2 : 1) * S::rows + 4 * S::columns) +
                            S::outer_stride * (S::rows + S::columns)) +
               2 * sizeof(float) * S::columns;
    }
};

template <class S>
using row_product = typename warp_product<typename S::real>::template left<1, S::width, S::stride, false>;

/* Columns first … of one head: what features are made of to column_x, values to column_value, terms. */
template <class S, bool KEYS>
__device__ inline void load_columns(const linear_gradient &g, int64_t b, int head, int first, int end,
                                    const far_memory<S> &memory) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const linear_side &side = KEYS ? p.q : p.k;
    const attention_view &values = KEYS ? g.d_o : p.v;
    const int shift = KEYS ? window_of(p, b) : 0;
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.column_x, attention_rows<const T>(side.x, b, head),
                                                           side.x.token, first + shift, p.length, p.width,
                                                           side.x.vector);
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.column_value,
                                                           attention_rows<const T>(values, b, head), values.token,
                                                           first + shift, p.length, p.width, values.vector);
    for (int n = static_cast<int>(threadIdx.x); n < S::columns; n += S::threads) {
        const int token = first + n + shift;
        const bool valid = first + n < end && token < p.length;
        const int64_t at = (b * side.heads + head) * p.length + token;
        linear_record record = {-INFINITY, 0.0f};
        if (valid && KEYS) record = g.records[at];
        if (valid && !KEYS) record.term = side.peaks[at];
        memory.terms[n] = record.term;
        memory.deltas[n] = record.delta;
    }
}

/* φ of the warp's rows for a tile of features, whose map lies in row_map. */
template <class S, bool KEYS>
__device__ inline void row_features(const linear_problem &p, int64_t b, int head, int tile, const far_lanes &lanes,
                                    const far_memory<S> &memory, float (&phi)[1][S::groups][4]) {
    clear_sums(phi);
    warp_product<typename S::real>::rows_by_rows(phi, row_product<S>(memory.rows + warp_number() * 16 * S::stride),
                                                 memory.row_map);
    make_features<typename S::real, S::groups, !KEYS>(p, KEYS ? p.k : p.q, b, head, place_features<S>(p, tile),
                                                      lanes.rows, phi);
}

/* sums += the state at an edge, read with the rows' features. */
template <class S, bool KEYS>
__device__ inline void far_read_state(const linear_gradient &g, int64_t b, int head, int group, const far_span &span,
                                      int edge, const far_lanes &lanes, const far_memory<S> &memory,
                                      float (&sums)[1][S::width / 8][4], float (&ones)[2]) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const state_rows<T> state = state_at<S, KEYS>(g, b * p.groups + group, span, edge);
    const float exponents[2] = {edge_exponent<KEYS>(p, b, group, lanes, 0, span, edge),
                                edge_exponent<KEYS>(p, b, group, lanes, 1, span, edge)};
    for (int tile = 0; tile < p.tiles; tile++) {
        load_map<S>(p, KEYS ? p.k : p.q, head, place_features<S>(p, tile), memory.row_map);
        load_state<S>(p, state, tile, memory.column_value);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        float phi[1][S::groups][4];
        row_features<S, KEYS>(p, b, head, tile, lanes, memory, phi);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float &x = phi[0][n][e];
                x = weigh(exponents[e / 2], x);
                if (!KEYS) ones[e / 2] += x * state.ones[tile * S::columns + n * 8 + lane_column() + e % 2];
            }
        warp_product<T>::template weights_by_rows<1, S::groups, S::width, S::stride>(sums, phi, memory.column_value);
        __syncthreads(); /* nobody reads the tiles any more */
    }
}

/* pairs [16 x columns] of the warp's rows = φ · φᵀ, over all features; column_x holds the columns. */
template <class S, bool KEYS>
__device__ inline void far_pairs(const linear_problem &p, int64_t b, int row_head, int column_head, int first_token,
                                 const far_lanes &lanes, const far_memory<S> &memory, float (&pairs)[1][S::groups][4]) {
    using T = typename S::real;
    const linear_side &row_side = KEYS ? p.k : p.q, &column_side = KEYS ? p.q : p.k;
    const lane_rows columns = column_rows<S>(p, column_side, b, column_head, first_token);
    T *own = memory.row_phi + warp_number() * 16 * S::outer_stride;
    clear_sums(pairs);
    for (int tile = 0; tile < p.tiles; tile++) {
        const feature_place place = place_features<S>(p, tile);
        load_map<S>(p, row_side, row_head, place, memory.row_map);
        load_map<S>(p, column_side, column_head, place, memory.column_map);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads(); /* and nobody reads the features of the tile before */
        float phi[1][S::groups][4];
        row_features<S, KEYS>(p, b, row_head, tile, lanes, memory, phi);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float pair[2] = {phi[0][n][2 * half], phi[0][n][2 * half + 1]};
                store_pack<2>(own + (8 * half + lane_row()) * S::outer_stride + n * 8 + lane_column(), pair);
            }
        column_features<S, KEYS>(p, column_side, b, column_head, place, columns, memory.column_x, memory.column_map,
                                 memory.column_phi);
        __syncthreads(); /* the features are there, nobody reads the maps any more */
        warp_product<T>::rows_by_rows(
            pairs, typename warp_product<T>::template left<1, S::columns, S::outer_stride, false>(own),
            memory.column_phi);
    }
}

/* sums [16 x P], ones += the far part of the warp's rows: the values of their columns by weights, and the weights. A
 * row's weights lack what its term leaves out. Needs memory.rows under way or there. */
template <class S, bool KEYS>
__device__ inline void far_sum(const linear_gradient &g, int64_t b, int head, int first, const far_lanes &lanes,
                               const far_memory<S> &memory, float (&sums)[1][S::width / 8][4], float (&ones)[2]) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const int group = KEYS ? head : head / p.share, shift = KEYS ? window_of(p, b) : 0;
    const far_span span = far_span_of<S, KEYS>(p, b, first);
    if (span.before) far_read_state<S, KEYS>(g, b, head, group, span, span.before, lanes, memory, sums, ones);
    if (span.after) far_read_state<S, KEYS>(g, b, head, group, span, span.after, lanes, memory, sums, ones);
    for (int member = 0; member < (KEYS ? p.share : 1); member++) {
        const int other = KEYS ? group * p.share + member : group;
        for (int column = span.first; column < span.end; column += S::columns) {
            load_columns<S, KEYS>(g, b, other, column, span.end, memory);
            float pairs[1][S::groups][4];
            far_pairs<S, KEYS>(p, b, head, other, column + shift, lanes, memory, pairs);
#pragma unroll
            for (int n = 0; n < S::groups; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int at = n * 8 + lane_column() + e % 2;
                    const bool held = column + at >= lanes.lo[e / 2] && column + at < lanes.hi[e / 2];
                    float &x = pairs[0][n][e];
                    x = held ? weigh(lanes.term[e / 2] + memory.terms[at], x) : 0.0f;
                    if (!KEYS) ones[e / 2] += x;
                }
            warp_product<T>::template weights_by_rows<1, S::groups, S::width, S::stride>(sums, pairs,
                                                                                         memory.column_value);
            __syncthreads(); /* nobody reads the columns any more */
        }
    }
}

#endif
