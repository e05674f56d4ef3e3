/* Gradients of S::rows queries or keys of one head: the near pairs', and those by features through the feature maps;
 * and dv, far and near. */
#include "kernels/cuda/linear_gate.cuh"
#include "kernels/cuda/linear_gradients.cuh"

namespace {

struct rows_arguments {
    linear_gradient g;
    int tiles; /* of S::rows rows in the slab */
};

/* This block's rows. */
struct rows_place {
    int64_t b, slab_row /* of the block's first row in d_features */;
    int head, group, first;
};

/* log2 of a query's weight sum; +inf where it has none, so that no weight comes of it. */
__device__ float log_sum_of(const linear_problem &p, int64_t at) {
    const float sum = p.log_sums[at];
    return sum == -INFINITY ? INFINITY : sum * log2_of_e;
}

/* A tile of the other side's rows for the near pairs: x, values and, of queries, their sums and deltas. */
template <class S, bool KEYS>
__device__ void load_near(const linear_gradient &g, int64_t b, int other, int column, const far_memory<S> &memory) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const attention_view &x = KEYS ? p.q.x : p.k.x, &values = KEYS ? g.d_o : p.v;
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.column_x, attention_rows<const T>(x, b, other),
                                                           x.token, column, p.length, p.width, x.vector);
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.column_value,
                                                           attention_rows<const T>(values, b, other), values.token,
                                                           column, p.length, p.width, values.vector);
    for (int n = static_cast<int>(threadIdx.x); KEYS && n < S::columns; n += S::threads) {
        const bool valid = column + n < p.length;
        const int64_t at = (b * p.heads + other) * p.length + column + n;
        memory.terms[n] = valid ? log_sum_of(p, at) : INFINITY;
        memory.deltas[n] = valid ? g.records[at].delta : 0.0f;
    }
}

/* Near columns lo … hi − 1 of each of this lane's rows; of queries their sums and deltas. */
struct near_lanes {
    int lo[2], hi[2];
    float log_sum[2], delta[2];
};
template <bool KEYS>
__device__ near_lanes near_lanes_of(const linear_gradient &g, int64_t b, int head, int first, int window) {
    const linear_problem &p = g.f;
    near_lanes lanes = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = first + 8 * half + lane_row();
        if (i >= p.length) continue;
        lanes.lo[half] = KEYS ? i : max(p.begin[b * p.length + i], i - window + 1);
        lanes.hi[half] = KEYS ? min(p.end[b * p.length + i], i + window) : i + 1;
        if (KEYS) continue;
        const int64_t at = (b * p.heads + head) * p.length + i;
        lanes.log_sum[half] = log_sum_of(p, at);
        lanes.delta[half] = g.records[at].delta;
    }
    return lanes;
}

/* d_x += the near pairs' part, or with VALUES (of keys) the gradient of their values. memory.rows and, without VALUES,
 * memory.others are under way or there. */
template <class S, bool KEYS, bool VALUES>
__device__ void near_gradient(const linear_gradient &g, const rows_place &place, const far_memory<S> &memory,
                              float (&d_x)[1][S::width / 8][4]) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const int window = window_of(p, place.b), last = min(place.first + S::rows, p.length) - 1;
    const int32_t *begin = p.begin + place.b * p.length, *end = p.end + place.b * p.length;
    if (window == 0) return;
    const int first = KEYS ? place.first : max(begin[place.first], place.first - window + 1);
    const int limit = KEYS ? min(end[last], last + window) : last + 1, own = warp_number() * 16 * S::stride;
    const near_lanes lanes = near_lanes_of<KEYS>(g, place.b, place.head, place.first + warp_number() * 16, window);
    for (int member = 0; member < (KEYS ? p.share : 1); member++)
        for (int column = first; column < limit; column += S::columns) {
            load_near<S, KEYS>(g, place.b, KEYS ? place.group * p.share + member : place.group, column, memory);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads();
            float weights[1][S::groups][4], d_weights[1][S::groups][4];
            clear_sums(weights);
            clear_sums(d_weights);
            warp_product<T>::rows_by_rows(weights, row_product<S>(memory.rows + own), memory.column_x);
            if (!VALUES)
                warp_product<T>::rows_by_rows(d_weights, row_product<S>(memory.others + own), memory.column_value);
#pragma unroll
            for (int n = 0; n < S::groups; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int at = n * 8 + lane_column() + e % 2, half = e / 2;
                    const bool held = column + at >= lanes.lo[half] && column + at < lanes.hi[half];
                    const float log_sum = KEYS ? memory.terms[at] : lanes.log_sum[half];
                    const float delta = KEYS ? memory.deltas[at] : lanes.delta[half];
                    float &weight = weights[0][n][e], &d = d_weights[0][n][e];
                    weight = held ? exp2_quick(weight * p.scale_log2 - log_sum) : 0.0f;
                    d = held && !VALUES ? p.scale * weight * (d - delta) : 0.0f;
                }
            warp_product<T>::template weights_by_rows<1, S::groups, S::width, S::stride>(
                d_x, VALUES ? weights : d_weights, VALUES ? memory.column_value : memory.column_x);
            __syncthreads(); /* nobody reads the tiles any more */
        }
}

/* d_x = what linear_weights.cu has found of near pairs. */
template <class S>
__device__ void load_near_gradient(const linear_gradient &g, const rows_place &place,
                                   float (&d_x)[1][S::width / 8][4]) {
#pragma unroll
    for (int n = 0; n < S::width / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int64_t row = place.slab_row + warp_number() * 16 + e / 2 * 8 + lane_row();
            d_x[0][n][e] = g.d_near[row * S::width + n * 8 + lane_column() + e % 2];
        }
}

/* Rows of `to` += d_x. */
template <class S>
__device__ void add_rows(const linear_problem &p, const attention_view &to, const rows_place &place,
                         const float (&d_x)[1][S::width / 8][4]) {
    using T = typename S::real;
    T *rows = attention_rows<T>(to, place.b, place.head);
#pragma unroll
    for (int n = 0; n < S::width / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = place.first + warp_number() * 16 + e / 2 * 8 + lane_row(),
                      column = n * 8 + lane_column() + e % 2;
            if (i >= p.length || column >= p.width) continue;
            T *at = rows + i * to.token + column;
            *at = from_float<T>(to_float(*at) + d_x[0][n][e]);
        }
}

/* One element of a row's features: φ before its gate, the gate (1: none), the gradient by φ times gate. */
struct feature_gradient {
    float phi, gate, d;
};

/* half: which of the lane's rows; column: of the map; tile: of the part. */
template <class S, bool KEYS>
__device__ feature_gradient feature_gradient_of(const linear_gradient &g, const rows_place &place,
                                                const lane_rows &rows, int half, int part, int column, float y) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const linear_side &side = KEYS ? p.k : p.q;
    const T *bias = static_cast<const T *>(side.bias);
    const int64_t row = place.slab_row + warp_number() * 16 + 8 * half + lane_row();
    feature_gradient x;
    x.phi = feature_value(p, part, y, part ? rows.reference[half].y : rows.reference[half].x,
                          bias ? to_float(bias[place.head * side.bias_head + column]) : 0.0f);
    x.gate = 1.0f;
    x.d = g.d_features[row * p.features + part * p.part_tiles * S::columns + column];
    if (!p.excite) return x;
    if (KEYS)
        x.d += gate_tail<T>(g, place.b, place.group, rows.token[half], part * p.columns + column);
    else
        x.gate = gate_value<T>(p, place.b, place.group, rows.token[half], part * p.columns + column);
    return x;
}

/* y [16 x columns] = W x of a tile of the map, which is loaded to row_map. */
template <class S, bool KEYS>
__device__ void map_rows(const linear_problem &p, int head, int tile, const far_memory<S> &memory,
                         float (&y)[1][S::groups][4]) {
    load_map<S>(p, KEYS ? p.k : p.q, head, place_features<S>(p, tile), memory.row_map);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    clear_sums(y);
    warp_product<typename S::real>::rows_by_rows(y, row_product<S>(memory.rows + warp_number() * 16 * S::stride),
                                                 memory.row_map);
}

/* sums[part][half] = Σ φ · its gradient over a part of the row's features. */
template <class S, bool KEYS>
__device__ void sum_features(const linear_gradient &g, const rows_place &place, const lane_rows &rows,
                             const far_memory<S> &memory, float (&sums)[2][2]) {
    const linear_problem &p = g.f;
    const int parts = p.tiles / p.part_tiles;
    for (int tile = 0; tile < p.part_tiles; tile++) {
        float y[1][S::groups][4];
        map_rows<S, KEYS>(p, place.head, tile, memory, y);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int column = tile * S::columns + n * 8 + lane_column() + e % 2;
                if (column >= p.columns || rows.token[e / 2] < 0) continue;
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    if (part >= parts) continue;
                    const feature_gradient x =
                        feature_gradient_of<S, KEYS>(g, place, rows, e / 2, part, column, y[0][n][e]);
                    sums[part][e / 2] += x.phi * x.gate * x.d;
                }
            }
        __syncthreads(); /* nobody reads the map any more */
    }
#pragma unroll
    for (int n = 0; n < 4; n++) sums[n / 2][n % 2] = quad_sum(sums[n / 2][n % 2]);
}

/* The gradient by y of one element; what it leaves in d_features and d_gates. */
template <class S, bool KEYS>
__device__ float map_gradient(const linear_gradient &g, const rows_place &place, const lane_rows &rows, int half,
                              int column, float y, const float (&sums)[2][2]) {
    const linear_problem &p = g.f;
    const int64_t row = (place.slab_row + warp_number() * 16 + 8 * half + lane_row()) * p.features;
    float d_y = 0.0f;
    const int parts = p.tiles / p.part_tiles;
#pragma unroll
    for (int part = 0; part < 2; part++) {
        if (part >= parts) continue;
        const feature_gradient x = feature_gradient_of<S, KEYS>(g, place, rows, half, part, column, y);
        const float d = x.gate * x.d;
        if (p.kind == FEATURE_EXP) d_y = p.map_scale * x.phi * d;
        if (p.kind == FEATURE_RELU) d_y = x.phi > relu_floor ? d : 0.0f;
        if (p.kind == FEATURE_HEDGEHOG) d_y += (part ? -x.phi : x.phi) * (d - sums[part][half]);
        if (g.d_gates)
            g.d_gates[row + part * p.part_tiles * S::columns + column] =
                KEYS ? x.phi : x.phi * x.d * x.gate * (1.0f - x.gate / 2);
    }
    g.d_features[row + column] = d_y;
    return d_y;
}

/* d_x += the gradient through the features. sums: sum_features'. */
template <class S, bool KEYS>
__device__ void features_gradient(const linear_gradient &g, const rows_place &place, const lane_rows &rows,
                                  const far_memory<S> &memory, const float (&sums)[2][2],
                                  float (&d_x)[1][S::width / 8][4]) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    for (int tile = 0; tile < p.part_tiles; tile++) {
        float y[1][S::groups][4];
        map_rows<S, KEYS>(p, place.head, tile, memory, y);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int column = tile * S::columns + n * 8 + lane_column() + e % 2;
                float &x = y[0][n][e];
                x = column < p.columns && rows.token[e / 2] >= 0
                        ? map_gradient<S, KEYS>(g, place, rows, e / 2, column, x, sums)
                        : 0.0f;
            }
        warp_product<T>::template weights_by_rows<1, S::groups, S::width, S::stride>(d_x, y, memory.row_map);
        __syncthreads(); /* nobody reads the map any more */
    }
    if (p.kind != FEATURE_EXP) return;
    const T *own = memory.rows + warp_number() * 16 * S::stride; /* the gradient by −‖x̂‖²/2 */
#pragma unroll
    for (int n = 0; n < S::width / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            d_x[0][n][e] -= p.map_scale * p.map_scale * sums[0][e / 2] *
                            to_float(own[(e / 2 * 8 + lane_row()) * S::stride + n * 8 + lane_column() + e % 2]);
}

/* d_hidden of the block's queries from d_gates, which the block has written. */
template <class S> __device__ void hidden_gradient(const linear_gradient &g, const rows_place &place) {
    using T = typename S::real;
    const linear_problem &p = g.f;
    const int rows = min(S::rows, p.length - place.first), parts = p.tiles / p.part_tiles;
    const T *excite = static_cast<const T *>(p.excite) + place.group * p.excite_head;
    __syncthreads(); /* all of d_gates is there */
    for (int n = static_cast<int>(threadIdx.x); n < rows * p.hidden_width; n += S::threads) {
        const int row = n / p.hidden_width, r = n % p.hidden_width, i = place.first + row;
        const float *d = g.d_gates + (place.slab_row + row) * p.features;
        float sum = 0.0f;
        for (int part = 0; part < parts; part++)
            for (int c = 0; c < p.columns; c++)
                sum += d[part * p.part_tiles * S::columns + c] *
                       to_float(excite[(part * p.columns + c) * p.excite_row + r]);
        const float hidden = p.hidden[((place.b * p.groups + place.group) * p.length + i) * p.hidden_width + r];
        g.d_hidden[((place.b * p.heads + place.head) * p.length + i) * p.hidden_width + r] = hidden > 0.0f ? sum : 0.0f;
    }
}

/* Whether the block has rows at all. */
template <class S, bool KEYS> __device__ bool place_rows(const rows_arguments &a, rows_place *place) {
    const linear_problem &p = a.g.f;
    const int heads = KEYS ? p.groups : p.heads, row = static_cast<int>(blockIdx.x % a.tiles) * S::rows;
    const int64_t pair = blockIdx.x / a.tiles;
    const int head = static_cast<int>(pair % heads);
    *place = rows_place{pair / heads, pair * a.g.slab + row, head, KEYS ? head : head / p.share, a.g.slab_first + row};
    return place->first < p.length;
}

template <class S>
__device__ void load_own(const linear_problem &p, const attention_view &from, const rows_place &place,
                         typename S::real *to) {
    load_rows<S::rows, S::width, S::stride, S::threads>(
        to, attention_rows<const typename S::real>(from, place.b, place.head), from.token, place.first, p.length,
        p.width, from.vector);
}

/* dv of S::rows keys of one head. */
template <class S> __global__ void __launch_bounds__(S::threads) sum_values(rows_arguments a) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    rows_place place;
    if (!place_rows<S, true>(a, &place)) return;
    const far_memory<S> memory(shared_memory(), false);
    load_own<S>(p, p.k.x, place, memory.rows);
    copy_async_commit();
    const int first = place.first + warp_number() * 16;
    const far_lanes lanes = far_lanes_of<true>(p, a.g.records, place.b, place.head, first);
    float sums[1][S::width / 8][4], unused[2] = {};
    const float one[1][2] = {{1.0f, 1.0f}};
    clear_sums(sums);
    far_sum<S, true>(a.g, place.b, place.head, place.first, lanes, memory, sums, unused);
    near_gradient<S, true, true>(a.g, place, memory, sums);
    copy_async_wait<0>();
    store_rows<1, S::width>(attention_rows<T>(a.g.dv, place.b, place.head), a.g.dv.token, first, p.length, 0, p.width,
                            a.g.dv.vector, sums, one);
}

/* dq or dk of S::rows rows of one head. */
template <class S, bool KEYS> __global__ void __launch_bounds__(S::threads) finish_rows(rows_arguments a) {
    using T = typename S::real;
    const linear_gradient &g = a.g;
    const linear_problem &p = g.f;
    rows_place place;
    if (!place_rows<S, KEYS>(a, &place)) return;
    const far_memory<S> memory(shared_memory(), true);
    load_own<S>(p, KEYS ? p.k.x : p.q.x, place, memory.rows);
    if (!g.d_near) load_own<S>(p, KEYS ? p.v : g.d_o, place, memory.others);
    copy_async_commit();
    float d_x[1][S::width / 8][4], sums[2][2] = {};
    clear_sums(d_x);
    if (g.d_near)
        load_near_gradient<S>(g, place, d_x);
    else
        near_gradient<S, KEYS, false>(g, place, memory, d_x);
    const int first = place.first + warp_number() * 16;
    const lane_rows rows = lane_rows_of(p, KEYS ? p.k : p.q, place.b, place.head, first);
    sum_features<S, KEYS>(g, place, rows, memory, sums);
    if (!KEYS && g.beta_rows && !g.d_near && threadIdx.x % 4 == 0)
        for (int half = 0; half < 2; half++)
            if (rows.token[half] >= 0)
                g.beta_rows[(place.b * p.heads + place.head) * p.length + rows.token[half]] =
                    sums[0][half] + sums[1][half];
    features_gradient<S, KEYS>(g, place, rows, memory, sums, d_x);
    const attention_view &to = KEYS ? g.dk : g.dq;
    const float one[1][2] = {{1.0f, 1.0f}};
    if (!g.d_near)
        store_rows<1, S::width>(attention_rows<T>(to, place.b, place.head), to.token, first, p.length, 0, p.width,
                                to.vector, d_x, one);
    else if (to.data)
        add_rows<S>(p, to, place, d_x);
    if (!KEYS && p.excite) hidden_gradient<S>(g, place);
}

} // namespace

enum status linear_rows(const struct ops *ops, const char *operation, const linear_gradient &g, bool of_keys) {
    return with_linear_shape(ops, g.f.width, [&](auto shape) {
        using S = decltype(shape);
        const rows_arguments a = {g, static_cast<int>(divide_up(g.slab, S::rows))};
        const dim3 grid(static_cast<unsigned>(g.f.batch * (of_keys ? g.f.groups : g.f.heads) * a.tiles));
        const size_t shared = far_memory<S>::bytes(true);
        if (!of_keys) return device_launch(ops, operation, finish_rows<S, false>, grid, S::threads, shared, a);
        if (!g.d_near)
            TRY(device_launch(ops, operation, sum_values<S>, grid, S::threads, far_memory<S>::bytes(false), a));
        return device_launch(ops, operation, finish_rows<S, true>, grid, S::threads, shared, a);
    });
}
