/* Gradients by features, of S::rows queries or keys and one tile of features: what the states at the segment's edges
 * give, and the segment's pairs. With G_i = 2^term_i [do_i, −delta_i]:
 *   dφ_q(i) = Σ_j 2^{a_j} (G_i · [v_j, 1]) φ_k(j),  dφ_k(j) = Σ_i 2^{a_j} (G_i · [v_j, 1]) φ_q(i)
 * The peaks P that states are relative to cancel. */
#include "kernels/cuda/linear_gradients.cuh"

namespace {

struct pairs_arguments {
    linear_gradient g;
    int tiles; /* of S::rows rows in the slab */
};

/* sums [16 x columns of features] += what the state at an edge gives the warp's rows. */
template <class S, bool KEYS>
__device__ void read_state(const linear_gradient &g, int64_t b, int group, int tile, const far_span &span, int edge,
                           const far_lanes &lanes, const far_memory<S> &memory, float (&sums)[1][S::groups][4]) {
    using T = typename S::real;
    const state_rows<T> state = state_at<S, KEYS>(g, b * g.f.groups + group, span, edge);
    load_state<S>(g.f, state, tile, memory.row_map);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    float products[1][S::groups][4];
    clear_sums(products);
    warp_product<T>::rows_by_rows(products, row_product<S>(memory.rows + warp_number() * 16 * S::stride),
                                  memory.row_map);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float exponent = edge_exponent<KEYS>(g.f, b, group, lanes, half, span, edge);
        const float one = KEYS ? 1.0f : -lanes.delta[half];
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++) {
            const float ones = state.ones[tile * S::columns + n / 2 * 8 + lane_column() + n % 2];
            sums[0][n / 2][2 * half + n % 2] += weigh(exponent, products[0][n / 2][2 * half + n % 2] + one * ones);
        }
    }
    __syncthreads(); /* nobody reads the state any more */
}

/* sums += what a tile of columns gives, whose features for the tile are in column_phi and whose values in column_value.
 */
template <class S>
__device__ void add_columns(const far_lanes &lanes, const far_memory<S> &memory, int column,
                            float (&sums)[1][S::groups][4]) {
    using T = typename S::real;
    float d_weights[1][S::groups][4];
    clear_sums(d_weights);
    warp_product<T>::rows_by_rows(d_weights, row_product<S>(memory.rows + warp_number() * 16 * S::stride),
                                  memory.column_value);
#pragma unroll
    for (int n = 0; n < S::groups; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int at = n * 8 + lane_column() + e % 2;
            const bool held = column + at >= lanes.lo[e / 2] && column + at < lanes.hi[e / 2];
            float &x = d_weights[0][n][e];
            x = held ? weigh(lanes.term[e / 2] + memory.terms[at], x - lanes.delta[e / 2] - memory.deltas[at]) : 0.0f;
        }
    warp_product<T>::template weights_by_rows<1, S::groups, S::columns, S::outer_stride>(sums, d_weights,
                                                                                         memory.column_phi);
}

/* A block: S::rows rows of the slab, one head, one tile of features. */
template <class S, bool KEYS> __global__ void __launch_bounds__(S::threads) sum_pairs(pairs_arguments a) {
    using T = typename S::real;
    const linear_gradient &g = a.g;
    const linear_problem &p = g.f;
    const int heads = KEYS ? p.groups : p.heads, tile = static_cast<int>(blockIdx.x % p.tiles);
    const int row = static_cast<int>(blockIdx.x / p.tiles % a.tiles) * S::rows, first = g.slab_first + row;
    const int64_t pair = blockIdx.x / p.tiles / a.tiles, b = pair / heads;
    const int head = static_cast<int>(pair % heads), group = KEYS ? head : head / p.share;
    if (first >= p.length) return;
    const far_memory<S> memory(shared_memory(), false);
    const attention_view &values = KEYS ? p.v : g.d_o;
    load_rows<S::rows, S::width, S::stride, S::threads>(memory.rows, attention_rows<const T>(values, b, head),
                                                        values.token, first, p.length, p.width, values.vector);
    const far_lanes lanes = far_lanes_of<KEYS>(p, g.records, b, head, first + warp_number() * 16);
    const far_span span = far_span_of<S, KEYS>(p, b, first);
    const linear_side &side = KEYS ? p.q : p.k;
    const feature_place place = place_features<S>(p, tile);
    const int shift = KEYS ? window_of(p, b) : 0;
    float sums[1][S::groups][4];
    clear_sums(sums);
    if (span.before) read_state<S, KEYS>(g, b, group, tile, span, span.before, lanes, memory, sums);
    if (span.after) read_state<S, KEYS>(g, b, group, tile, span, span.after, lanes, memory, sums);
    for (int member = 0; member < (KEYS ? p.share : 1); member++) {
        const int other = KEYS ? group * p.share + member : group;
        load_map<S>(p, side, other, place, memory.column_map);
        for (int column = span.first; column < span.end; column += S::columns) {
            load_columns<S, KEYS>(g, b, other, column, span.end, memory);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads();
            const lane_rows columns = column_rows<S>(p, side, b, other, column + shift);
            column_features<S, KEYS>(p, side, b, other, place, columns, memory.column_x, memory.column_map,
                                     memory.column_phi);
            __syncthreads(); /* the features are there */
            add_columns<S>(lanes, memory, column, sums);
            __syncthreads(); /* nobody reads the columns any more */
        }
        copy_async_commit(); /* of what no column was there for */
        copy_async_wait<0>();
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t at = pair * g.slab + row + warp_number() * 16 + 8 * half + lane_row();
        float *to = g.d_features + at * p.features + tile * S::columns;
#pragma unroll
        for (int n = 0; n < S::groups; n++) {
            const float two[2] = {sums[0][n][2 * half], sums[0][n][2 * half + 1]};
            store_pack<2>(to + n * 8 + lane_column(), two);
        }
    }
}

} // namespace

enum status linear_pairs(const struct ops *ops, const char *operation, const linear_gradient &g, bool of_keys) {
    return with_linear_shape(ops, g.f.width, [&](auto shape) {
        using S = decltype(shape);
        const pairs_arguments a = {g, static_cast<int>(divide_up(g.slab, S::rows))};
        const int64_t blocks = g.f.batch * (of_keys ? g.f.groups : g.f.heads) * a.tiles * g.f.tiles;
        if (blocks > INT_MAX)
            return error_set(STATUS_SHAPE, "%s: expected up to %d tiles of features, found %lld", operation, INT_MAX,
                             static_cast<long long>(blocks));
        const dim3 grid(static_cast<unsigned>(blocks));
        const size_t shared = far_memory<S>::bytes(false);
        if (of_keys) return device_launch(ops, operation, sum_pairs<S, true>, grid, S::threads, shared, a);
        return device_launch(ops, operation, sum_pairs<S, false>, grid, S::threads, shared, a);
    });
}
