/* The weights that linear attention implies against the teacher's: KL(P ‖ A) of every row, and its gradients. All pairs
 * are visited. Query rows go slab by slab: of a slab's pairs two matrices exist, first the products and the teacher's
 * scores, then in the place of the products the gradients by them. Logarithms are natural here. */
#include "kernels/cuda/linear_gate.cuh"
#include "kernels/cuda/linear_gradients.cuh"

#include <cfloat>

namespace {

constexpr int64_t pairs_bytes = int64_t{128} << 20; /* of a slab's matrices */
constexpr float logarithm_most = 1e30f;

struct weights_arguments {
    linear_gradient g;
    attention_view teacher_q, teacher_k;
    float *products, *scores; /* [B·H][pair_slab][T] */
    float *losses;            /* [B,H,T] */
    int pair_first, pair_slab, tiles /* of S::rows rows */;
    float gradient_scale, gradient_most;
    bool gradients;
};

__device__ float bounded(float x, float most) {
    const float above = x > -most ? x : -most; /* NaN too */
    return above < most ? above : most;
}

/* This lane's two rows: far keys far_lo … far_hi − 1, near ones near_lo … near_hi − 1; constant: what the logarithm of
 * a far weight has of the query. */
struct pair_lanes {
    int far_lo[2], far_hi[2], near_lo[2], near_hi[2];
    float constant[2];
};
__device__ pair_lanes pair_lanes_of(const linear_problem &p, const far_lanes &far, int64_t b, int head) {
    const int window = window_of(p, b);
    pair_lanes lanes = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = far.rows.token[half];
        lanes.far_lo[half] = far.lo[half];
        lanes.far_hi[half] = far.hi[half];
        if (i < 0) continue;
        const float beta = p.beta ? p.beta[head] : 0.0f;
        lanes.constant[half] = beta + (p.q.peaks[(b * p.heads + head) * p.length + i] + p.log_constant) * log_of_2;
        if (window == 0) continue;
        lanes.near_lo[half] = max(p.begin[b * p.length + i], i - window + 1);
        lanes.near_hi[half] = i + 1;
    }
    return lanes;
}

/* log w of row `half` and key j, whose product is given. peaks: of the sequence's key head. */
__device__ float log_weight(const linear_problem &p, const pair_lanes &lanes, int half, int j, float product,
                            const float *peaks) {
    if (j >= lanes.far_hi[half]) return bounded(p.scale * product, logarithm_most);
    return bounded(lanes.constant[half] + peaks[j] * log_of_2 + logf(product >= FLT_MIN ? product : FLT_MIN),
                   logarithm_most);
}

/* body(half, key, place of the pair in the matrices) for every pair of this lane's rows among columns first … end − 1.
 */
template <class S, class Body>
__device__ void for_pairs(const pair_lanes &lanes, int64_t row, int length, int first, int end, Body body) {
    for (int column = first; column < end; column += S::columns)
#pragma unroll 1
        for (int n = 0; n < 4 * S::groups; n++) {
            const int half = n % 4 / 2, j = column + n / 4 * 8 + lane_column() + n % 2;
            const bool far = j >= lanes.far_lo[half] && j < lanes.far_hi[half],
                       near = j >= lanes.near_lo[half] && j < lanes.near_hi[half];
            if (far || near) body(half, j, (row + 8 * half + lane_row()) * length + j);
        }
}

/* products and scores of a tile of keys that begins at `column`. */
template <class S>
__device__ void tile_products(const weights_arguments &a, const far_memory<S> &memory, const far_lanes &far,
                              const pair_lanes &lanes, int64_t b, int head, int64_t row, int column, int far_end) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    const int group = head / p.share, own = warp_number() * 16 * S::stride;
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.column_x, attention_rows<const T>(p.k.x, b, group),
                                                           p.k.x.token, column, p.length, p.width, p.k.x.vector);
    load_rows<S::columns, S::width, S::stride, S::threads>(
        memory.column_value, attention_rows<const T>(a.teacher_k, b, group), a.teacher_k.token, column, p.length,
        p.width, a.teacher_k.vector);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    float dots[1][S::groups][4], near[1][S::groups][4], taught[1][S::groups][4];
    clear_sums(dots);
    clear_sums(near);
    clear_sums(taught);
    if (column < far_end) far_pairs<S, false>(p, b, head, group, column, far, memory, dots);
    warp_product<T>::rows_by_rows(near, row_product<S>(memory.rows + own), memory.column_x);
    warp_product<T>::rows_by_rows(taught, row_product<S>(memory.others + own), memory.column_value);
#pragma unroll
    for (int n = 0; n < S::groups; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int j = column + n * 8 + lane_column() + e % 2, half = e / 2;
            const bool is_far = j >= lanes.far_lo[half] && j < lanes.far_hi[half],
                       is_near = j >= lanes.near_lo[half] && j < lanes.near_hi[half];
            if (!is_far && !is_near) continue;
            const int64_t at = (row + 8 * half + lane_row()) * p.length + j;
            a.products[at] = is_far ? dots[0][n][e] : near[0][n][e];
            a.scores[at] = bounded(p.scale * taught[0][n][e], logarithm_most);
        }
    __syncthreads(); /* nobody reads the tiles any more */
}

/* A block: S::rows queries of one head, all of their pairs. Every lane reads only what it has written itself. */
template <class S> __global__ void __launch_bounds__(S::threads) weigh_pairs(weights_arguments a) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    const int64_t pair = blockIdx.x / a.tiles, b = pair / p.heads;
    const int head = static_cast<int>(pair % p.heads), tile_row = static_cast<int>(blockIdx.x % a.tiles) * S::rows;
    const int first = a.pair_first + tile_row, last = min(first + S::rows, p.length) - 1;
    if (first >= p.length) return;
    const far_memory<S> memory(shared_memory(), true);
    load_rows<S::rows, S::width, S::stride, S::threads>(memory.rows, attention_rows<const T>(p.q.x, b, head),
                                                        p.q.x.token, first, p.length, p.width, p.q.x.vector);
    load_rows<S::rows, S::width, S::stride, S::threads>(memory.others, attention_rows<const T>(a.teacher_q, b, head),
                                                        a.teacher_q.token, first, p.length, p.width,
                                                        a.teacher_q.vector);
    const far_lanes far = far_lanes_of<false>(p, nullptr, b, head, first + warp_number() * 16);
    const pair_lanes lanes = pair_lanes_of(p, far, b, head);
    const int64_t row = pair * a.pair_slab + tile_row + warp_number() * 16;
    const int key = p.begin[b * p.length + first], end = p.causal ? last + 1 : p.end[b * p.length + last];
    const int far_end = p.causal ? last + 1 - window_of(p, b) : end;
    const float *peaks = p.k.peaks + (b * p.groups + head / p.share) * p.length;
    for (int column = key; column < end; column += S::columns)
        tile_products<S>(a, memory, far, lanes, b, head, row, column, far_end);
    float s_most[2] = {-INFINITY, -INFINITY}, l_most[2] = {-INFINITY, -INFINITY};
    for_pairs<S>(lanes, row, p.length, key, end, [&](int half, int j, int64_t at) {
        const float s = a.scores[at], l = log_weight(p, lanes, half, j, a.products[at], peaks);
        s_most[half] = fmaxf(s_most[half], s);
        l_most[half] = fmaxf(l_most[half], l);
    });
    float p_sum[2] = {}, a_sum[2] = {}, cross[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        s_most[half] = quad_max(s_most[half]);
        l_most[half] = quad_max(l_most[half]);
    }
    for_pairs<S>(lanes, row, p.length, key, end, [&](int half, int j, int64_t at) {
        const float teacher = a.scores[at] - s_most[half],
                    student = log_weight(p, lanes, half, j, a.products[at], peaks) - l_most[half];
        const float weight = exp2_quick(teacher * log2_of_e);
        p_sum[half] += weight;
        a_sum[half] += exp2_quick(student * log2_of_e);
        cross[half] += weight * (teacher - student);
    });
    float beta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        p_sum[half] = quad_sum(p_sum[half]);
        a_sum[half] = quad_sum(a_sum[half]);
        const float sum = quad_sum(cross[half]);
        const int i = far.rows.token[half];
        if (threadIdx.x % 4 == 0 && i >= 0)
            a.losses[pair * p.length + i] = sum / p_sum[half] - logf(p_sum[half]) + logf(a_sum[half]);
    }
    if (!a.gradients) return;
    for_pairs<S>(lanes, row, p.length, key, end, [&](int half, int j, int64_t at) {
        const float product = a.products[at];
        const float student = log_weight(p, lanes, half, j, product, peaks) - l_most[half];
        const float d = exp2_quick(student * log2_of_e) / a_sum[half] -
                        exp2_quick((a.scores[at] - s_most[half]) * log2_of_e) / p_sum[half];
        const bool is_far = j < lanes.far_hi[half];
        if (is_far) beta[half] += d;
        a.products[at] = !is_far              ? a.gradient_scale * p.scale * d
                         : product >= FLT_MIN ? a.gradient_scale * bounded(d / product, a.gradient_most)
                                              : 0.0f;
    });
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float sum = quad_sum(beta[half]);
        if (a.g.beta_rows && threadIdx.x % 4 == 0 && far.rows.token[half] >= 0)
            a.g.beta_rows[pair * p.length + far.rows.token[half]] = a.gradient_scale * sum;
    }
}

/* The pairs of this lane's rows with a tile of columns as weights: held(half, column) or 0. Rows are queries, columns
 * keys; KEYS: the other way round. row: of the lane's first; column: of the tile's first. */
template <class S, bool KEYS, class Held>
__device__ void load_pairs(const weights_arguments &a, int64_t pair, int row, int column, Held held,
                           float (&weights)[1][S::groups][4]) {
    const float *matrix = a.products + pair * a.pair_slab * a.g.f.length;
#pragma unroll
    for (int n = 0; n < S::groups; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int own = row + e / 2 * 8, other = column + n * 8 + lane_column() + e % 2;
            const int64_t i = (KEYS ? other : own) - a.pair_first, j = KEYS ? own : other;
            weights[0][n][e] = held(e / 2, other) ? matrix[i * a.g.f.length + j] : 0.0f;
        }
}

/* Queries of the slab of pairs that read one of the block's keys, or keys that the block's queries read. */
template <class S, bool KEYS>
__device__ void pair_columns(const weights_arguments &a, int64_t b, int first, int *from, int *end) {
    const linear_problem &p = a.g.f;
    const int last = min(first + S::rows, p.length) - 1;
    *from = KEYS && p.causal ? first : p.begin[b * p.length + first];
    *end = KEYS || !p.causal ? p.end[b * p.length + last] : last + 1;
    if (!KEYS) return;
    *from = max(*from, a.pair_first);
    *end = min(*end, a.pair_first + a.pair_slab);
}

/* Whether key j is a far one of the query at i, or a near one; both in one document, j <= i where causal. */
__device__ bool is_near_pair(int window, int i, int j) {
    return window > 0 && i - j < window;
}

/* Rows [lo, hi) of the other side that share the row's document and may see it, or be seen. */
template <bool KEYS> __device__ void row_range(const linear_problem &p, int64_t b, int row, int *lo, int *hi) {
    *lo = *hi = 0;
    if (row >= p.length) return;
    *lo = KEYS && p.causal ? row : p.begin[b * p.length + row];
    *hi = KEYS || !p.causal ? p.end[b * p.length + row] : row + 1;
}

struct sums_place {
    int64_t b;
    int head, group, first;
    int64_t row; /* of the block's first in d_features and d_near */
};
template <class S, bool KEYS> __device__ bool place_sums(const weights_arguments &a, int64_t block, sums_place *place) {
    const linear_problem &p = a.g.f;
    const int heads = KEYS ? p.groups : p.heads, row = static_cast<int>(block % a.tiles) * S::rows;
    const int64_t pair = block / a.tiles;
    *place = sums_place{pair / heads, static_cast<int>(pair % heads), 0, a.g.slab_first + row, pair * a.g.slab + row};
    place->group = KEYS ? place->head : place->head / p.share;
    return place->first < p.length;
}

/* d_features of S::rows rows and one tile of features, or (block's tile p.tiles) d_near. Of keys, what earlier slabs of
 * pairs gave is added to. */
template <class S, bool KEYS, int OUT, bool NEAR, int STRIDE>
__device__ void sum_columns(const weights_arguments &a, const sums_place &place, int tile, const far_memory<S> &memory,
                            float *to, int64_t step) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    const linear_side &side = KEYS ? p.q : p.k;
    const int window = window_of(p, place.b), lane_first = place.first + warp_number() * 16 + lane_row();
    int from, end, lo[2], hi[2];
    pair_columns<S, KEYS>(a, place.b, place.first, &from, &end);
#pragma unroll
    for (int half = 0; half < 2; half++) row_range<KEYS>(p, place.b, lane_first + 8 * half, &lo[half], &hi[half]);
    float sums[1][OUT / 8][4];
    clear_sums(sums);
    for (int member = 0; member < (KEYS ? p.share : 1); member++) {
        const int other = KEYS ? place.group * p.share + member : place.group;
        const int64_t pair = place.b * p.heads + (KEYS ? other : place.head);
        const feature_place features = place_features<S>(p, NEAR ? 0 : tile);
        if (!NEAR) load_map<S>(p, side, other, features, memory.column_map);
        for (int column = from; column < end; column += S::columns) {
            load_rows<S::columns, S::width, S::stride, S::threads>(
                memory.column_x, attention_rows<const T>(side.x, place.b, other), side.x.token, column, p.length,
                p.width, side.x.vector);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads();
            if (!NEAR) {
                const lane_rows columns = column_rows<S>(p, side, place.b, other, column);
                column_features<S, KEYS>(p, side, place.b, other, features, columns, memory.column_x, memory.column_map,
                                         memory.column_phi);
                __syncthreads(); /* the features are there */
            }
            float weights[1][S::groups][4];
            load_pairs<S, KEYS>(
                a, pair, lane_first, column,
                [&](int half, int at) {
                    const int own = lane_first + 8 * half;
                    return at >= lo[half] && at < hi[half] && at < end &&
                           is_near_pair(window, KEYS ? at : own, KEYS ? own : at) == NEAR;
                },
                weights);
            warp_product<T>::template weights_by_rows<1, S::groups, OUT, STRIDE>(
                sums, weights, NEAR ? memory.column_x : memory.column_phi);
            __syncthreads(); /* nobody reads the columns any more */
        }
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < OUT / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float *at = to + (warp_number() * 16 + e / 2 * 8 + lane_row()) * step + n * 8 + lane_column() + e % 2;
            *at = sums[0][n][e] + (KEYS && a.pair_first > 0 ? *at : 0.0f);
        }
}

template <class S, bool KEYS> __global__ void __launch_bounds__(S::threads) sum_features(weights_arguments a) {
    const linear_problem &p = a.g.f;
    const int tile = static_cast<int>(blockIdx.x % p.tiles);
    sums_place place;
    if (!place_sums<S, KEYS>(a, blockIdx.x / p.tiles, &place)) return;
    const far_memory<S> memory(shared_memory(), false);
    sum_columns<S, KEYS, S::columns, false, S::outer_stride>(
        a, place, tile, memory, a.g.d_features + place.row * p.features + tile * S::columns, p.features);
}

template <class S, bool KEYS> __global__ void __launch_bounds__(S::threads) sum_near(weights_arguments a) {
    sums_place place;
    if (!place_sums<S, KEYS>(a, blockIdx.x, &place)) return;
    const far_memory<S> memory(shared_memory(), false);
    sum_columns<S, KEYS, S::width, true, S::stride>(a, place, 0, memory, a.g.d_near + place.row * S::width, S::width);
}

/* *loss += scale · Σ losses, in fixed order. */
__global__ void __launch_bounds__(1024) add_losses(const float *losses, int64_t count, double scale, double *loss) {
    double sum = 0.0;
    for (int64_t n = threadIdx.x; n < count; n += 1024) sum += static_cast<double>(losses[n]);
    sum = block_sum<1024>(sum);
    if (threadIdx.x == 0) *loss += scale * sum;
}

/* A call. Queries and keys have d_features and the like of their own: what keys get is added up over all slabs. */
struct weights_call {
    weights_arguments queries, keys;
    char *plan, *scan;
    linear_parameters parameters;
};

bool wants_gradients(const struct linear_attention_weights *w) {
    const struct features *d = &w->gradients;
    const struct tensor all[] = {w->dq,     w->dk,      d->q_map,  d->k_map, d->q_bias,
                                 d->k_bias, d->squeeze, d->excite, d->beta};
    for (const struct tensor &t : all)
        if (tensor_present(t)) return true;
    return false;
}

void place_side(linear_cutter &c, linear_gradient &g, int64_t heads, int64_t width) {
    const int64_t rows = g.f.batch * heads * g.slab;
    g.d_features = c.take_array<float>(rows * g.f.features);
    if (g.f.hidden_width) g.d_gates = c.take_array<float>(rows * g.f.features);
    g.d_near = c.take_array<float>(rows * width);
}

void place_weights(const struct ops *ops, const struct linear_attention_weights *w, linear_cutter &c,
                   weights_call *call) {
    weights_arguments &a = call->queries;
    linear_gradient &g = a.g;
    const linear_problem &p = g.f;
    const int64_t rows = p.batch * p.heads * p.length, width = p.width <= 64 ? 64 : p.width <= 128 ? 128 : 256;
    call->plan = c.take(linear_plan_bytes(&w->forward));
    a.products = c.take_array<float>(p.batch * p.heads * a.pair_slab * p.length);
    a.scores = c.take_array<float>(p.batch * p.heads * a.pair_slab * p.length);
    a.losses = c.take_array<float>(rows);
    if (!a.gradients) return;
    place_side(c, g, p.heads, width);
    if (tensor_present(w->gradients.beta)) g.beta_rows = c.take_array<float>(rows);
    if (p.hidden_width) {
        g.d_hidden = c.take_array<float>(rows * p.hidden_width);
        g.tails = c.take_array<float>(rows / p.share * p.hidden_width);
        call->scan = c.take(gate_scan_bytes(p.batch * p.groups, p.length, p.hidden_width));
    }
    linear_parameters_place(ops, p, p.batch * g.slab, &w->gradients, c, &call->parameters);
    const int tile = g.slab / a.tiles;
    call->keys = a;
    call->keys.tiles = static_cast<int>(divide_up(p.length, tile));
    call->keys.g.slab = call->keys.tiles * tile;
    place_side(c, call->keys.g, p.groups, width);
}

enum status measure_weights(const struct ops *ops, const char *operation, const struct linear_attention_weights *w,
                            weights_arguments *a) {
    linear_problem &p = a->g.f;
    TRY(linear_measure(ops, operation, &w->forward, &p));
    p.segment = static_cast<int>(divide_up(p.length, 64) * 64); /* one: all pairs are visited */
    p.segments = 1;
    a->teacher_q = attention_view_of(w->teacher_q);
    a->teacher_k = attention_view_of(w->teacher_k);
    if (tensor_present(w->dq)) a->g.dq = attention_view_of(w->dq);
    if (tensor_present(w->dk)) a->g.dk = attention_view_of(w->dk);
    a->gradients = wants_gradients(w);
    a->gradient_scale = static_cast<float>(w->gradient_scale * w->weight / p.heads);
    a->gradient_most = p.kind == FEATURE_RELU
                           ? 1 / linear_tiny
                           : FLT_MAX / (16.0f * static_cast<float>(p.length) * static_cast<float>(p.share));
    return with_linear_shape(ops, p.width, [&](auto shape) {
        constexpr int tile = decltype(shape)::rows;
        const int64_t row = p.batch * p.heads * p.length * 2 * static_cast<int64_t>(sizeof(float));
        const int64_t tiles = divide_up(p.length, tile), most = pairs_bytes / (row * tile);
        /* So many rows that their pairs take what T · (D + M) numbers take, or less where that is much. */
        const int64_t alike = (p.width + static_cast<int64_t>(p.features)) / tile;
        int64_t wanted = alike < most ? alike : most;
        if (wanted > tiles) wanted = tiles;
        a->tiles = static_cast<int>(wanted < 1 ? 1 : wanted);
        a->pair_slab = a->g.slab = a->tiles * tile;
        return tiles * p.batch * p.heads * p.tiles > INT_MAX
                   ? error_set(STATUS_SHAPE, "%s: expected up to %d tiles of features, found %lld", operation, INT_MAX,
                               static_cast<long long>(tiles * p.batch * p.heads * p.tiles))
                   : STATUS_OK;
    });
}

template <class S, bool KEYS>
enum status sum_side(const struct ops *ops, const char *operation, const weights_arguments &a) {
    const linear_problem &p = a.g.f;
    const int64_t blocks = p.batch * (KEYS ? p.groups : p.heads) * a.tiles;
    const size_t shared = far_memory<S>::bytes(false);
    TRY(device_launch(ops, operation, sum_features<S, KEYS>, dim3(static_cast<unsigned>(blocks * p.tiles)), S::threads,
                      shared, a));
    return device_launch(ops, operation, sum_near<S, KEYS>, dim3(static_cast<unsigned>(blocks)), S::threads, shared, a);
}

template <class S> enum status run_weights(const struct ops *ops, const char *operation, weights_call *call) {
    weights_arguments &a = call->queries, &keys = call->keys;
    const linear_problem &p = a.g.f;
    for (int first = 0; first < p.length; first += a.pair_slab) {
        a.pair_first = a.g.slab_first = first;
        TRY(device_launch(ops, operation, weigh_pairs<S>, dim3(static_cast<unsigned>(p.batch * p.heads * a.tiles)),
                          S::threads, far_memory<S>::bytes(true), a));
        if (a.gradients) {
            keys.pair_first = first;
            TRY((sum_side<S, false>(ops, operation, a)));
            TRY(linear_rows(ops, operation, a.g, false));
            TRY(linear_parameters_add(ops, operation, a.g, call->parameters, false));
            TRY((sum_side<S, true>(ops, operation, keys)));
        }
        if (p.length - first <= a.pair_slab) break; /* no number beyond the last token */
    }
    return STATUS_OK;
}

} // namespace

enum status cuda_linear_attention_weights(const struct ops *ops, const struct linear_attention_weights *w) {
    const char *operation = "linear_attention_weights";
    TRY(check_linear_attention_weights(ops, w));
    if (tensor_count(w->forward.q) == 0) return STATUS_OK;
    weights_call call = {};
    TRY(measure_weights(ops, operation, w, &call.queries));
    linear_cutter sizing = {};
    place_weights(ops, w, sizing, &call);
    void *memory;
    TRY(device_scratch(ops, sizing.used, &memory));
    linear_cutter placing = {static_cast<char *>(memory), 0};
    place_weights(ops, w, placing, &call);
    const linear_problem &p = call.queries.g.f;
    TRY(linear_plan(ops, operation, &w->forward, call.plan, &call.queries.g.f));
    call.keys.g.f = p;
    TRY(linear_parameters_open(ops, call.parameters));
    TRY(with_linear_shape(ops, p.width,
                          [&](auto shape) { return run_weights<decltype(shape)>(ops, operation, &call); }));
    TRY(device_launch(ops, operation, add_losses, dim3(1), 1024, 0, call.queries.losses, p.batch * p.heads * p.length,
                      w->weight / p.heads, data_of<double>(w->loss)));
    if (!call.queries.gradients) return STATUS_OK;
    if (p.hidden_width) TRY(gate_tails(ops, operation, call.queries.g, call.scan));
    TRY(linear_rows(ops, operation, call.keys.g, true));
    TRY(linear_parameters_add(ops, operation, call.keys.g, call.parameters, true));
    return linear_parameters_finish(ops, operation, call.queries.g, call.parameters, &w->gradients);
}
