/* States of linear attention at the edges between segments: each segment's own sum by blocks of its own, then a scan
 * over the segments. A state belongs to the document that crosses its edge and is relative to P of the last token
 * before it: of keys 2^{a_j − P} φ_k(j) [v_j, 1], of queries' gradients 2^{P + term_i} φ_q(i) [do_i, −delta_i]. */
#include "kernels/cuda/linear.cuh"

namespace {

constexpr int scan_threads = 256;

struct states_arguments {
    linear_gradient g; /* records: NULL for states of keys */
    linear_states states;
    float *own, *own_ones; /* [B·G][segments][features][P], [B·G][segments][features] */
    int blocks;            /* of S::rows features */
    bool reverse;
};

/* The map's rows of a block's S::rows features. */
template <class S>
__device__ void load_block_map(const linear_problem &p, const linear_side &side, int head, int block,
                               typename S::real *map) {
    static_assert(S::rows % S::columns == 0, "a block's features are whole tiles");
    constexpr int tiles = S::rows / S::columns;
#pragma unroll
    for (int n = 0; n < tiles; n++) {
        const int tile = block * tiles + n;
        feature_place place = place_features<S>(p, tile);
        if (tile >= p.tiles) place.first = p.columns; /* zeros */
        load_map<S>(p, side, head, place, map + n * S::columns * S::stride);
    }
}

/* What the tokens of a tile bring along, in shared memory. */
template <class S> struct token_numbers {
    float2 references[S::columns];
    float exponents[S::columns], ones[S::columns];
    int tokens[S::columns]; /* −1: does not join */
};

/* The far rows of one segment that join the state at `edge`. */
struct joining {
    int first, end, edge;
};
__device__ joining rows_that_join(const linear_problem &p, int64_t b, int segment, bool reverse) {
    const int32_t *begin = p.begin + b * p.length, *end = p.end + b * p.length;
    const int first = segment * p.segment, last = min(first + p.segment, p.length);
    if (reverse) return joining{first, min(last, end[first - 1]), first};
    return joining{max(first, begin[last - 1]), last, last};
}

template <class S, bool KEYS>
__device__ void load_numbers(const states_arguments &a, int64_t b, int head, int group, const joining &rows, int first,
                             int shift, token_numbers<S> &numbers) {
    const linear_problem &p = a.g.f;
    const linear_side &side = KEYS ? p.k : p.q;
    const float peak = p.prefix[(b * p.groups + group) * p.length + rows.edge - 1];
    for (int n = static_cast<int>(threadIdx.x); n < S::columns; n += S::threads) {
        const int t = first + n, token = t + shift;
        const int64_t at = (b * side.heads + head) * p.length + token;
        const bool valid = t < rows.end && token < p.length;
        numbers.tokens[n] = valid ? token : -1;
        numbers.references[n] = valid ? side.references[at] : make_float2(0.0f, 0.0f);
        numbers.exponents[n] = -INFINITY;
        numbers.ones[n] = KEYS ? 1.0f : 0.0f;
        if (!valid) continue;
        if (KEYS) {
            numbers.exponents[n] = side.peaks[at] - peak;
        } else {
            const linear_record record = a.g.records[at];
            numbers.exponents[n] = record.term + peak;
            numbers.ones[n] = -record.delta;
        }
    }
}

/* A segment's own sum: S::rows features of one key head, of queries over all heads that read it. */
template <class S, bool KEYS> __global__ void __launch_bounds__(S::threads) sum_segment(states_arguments a) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    const linear_side &side = KEYS ? p.k : p.q;
    const attention_view &values = KEYS ? p.v : a.g.d_o;
    const int block = static_cast<int>(blockIdx.x % a.blocks);
    const int segment = static_cast<int>(blockIdx.x / a.blocks % (p.segments - 1)) + (a.reverse ? 1 : 0);
    const int64_t unit = blockIdx.x / a.blocks / (p.segments - 1), b = unit / p.groups;
    const int group = static_cast<int>(unit % p.groups), shift = KEYS ? 0 : window_of(p, b);
    SHARED(token_numbers<S>, numbers, [1]);
    shared_cutter cutter = {shared_memory()};
    T *map = cutter.take<T>(S::rows * S::stride), *x = cutter.take<T>(S::columns * S::stride),
      *value = cutter.take<T>(S::columns * S::stride);
    const joining rows = rows_that_join(p, b, segment, a.reverse);
    const int own = block * S::rows + warp_number() * 16; /* the warp's first feature */
    const feature_place place = place_features<S>(p, own / S::columns);
    float out[1][S::width / 8][4], ones[2] = {0.0f, 0.0f};
    clear_sums(out);
    for (int member = 0; member < (KEYS ? 1 : p.share); member++) {
        const int head = KEYS ? group : group * p.share + member;
        const T *bias = static_cast<const T *>(side.bias);
        if (bias) bias += head * side.bias_head;
        load_block_map<S>(p, side, head, block, map);
        for (int first = rows.first; first < rows.end; first += S::columns) {
            load_rows<S::columns, S::width, S::stride, S::threads>(x, attention_rows<const T>(side.x, b, head),
                                                                   side.x.token, first + shift, p.length, p.width,
                                                                   side.x.vector);
            load_rows<S::columns, S::width, S::stride, S::threads>(value, attention_rows<const T>(values, b, head),
                                                                   values.token, first + shift, p.length, p.width,
                                                                   values.vector);
            load_numbers<S, KEYS>(a, b, head, group, rows, first, shift, numbers[0]);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads();
            float y[1][S::groups][4];
            clear_sums(y);
            warp_product<T>::rows_by_rows(y,
                                          typename warp_product<T>::template left<1, S::width, S::stride, false>(
                                              map + warp_number() * 16 * S::stride),
                                          x);
#pragma unroll
            for (int n = 0; n < S::groups; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int token = n * 8 + lane_column() + e % 2;
                    const int row = place.first + own % S::columns + e / 2 * 8 + lane_row();
                    float phi = 0.0f;
                    if (row < p.columns && own < p.features && numbers[0].tokens[token] >= 0) {
                        const float2 reference = numbers[0].references[token];
                        phi = feature_value(p, place.part, y[0][n][e], place.part ? reference.y : reference.x,
                                            bias ? to_float(bias[row]) : 0.0f);
                        if (!KEYS && p.excite)
                            phi *= gate_value<T>(p, b, group, numbers[0].tokens[token], place.part * p.columns + row);
                        phi = weigh(numbers[0].exponents[token], phi);
                    }
                    y[0][n][e] = phi;
                    ones[e / 2] += phi * numbers[0].ones[token];
                }
            warp_product<T>::template weights_by_rows<1, S::groups, S::width, S::stride>(out, y, value);
            __syncthreads(); /* nobody reads the tiles any more */
        }
        copy_async_commit(); /* of a map that no token was there for */
        copy_async_wait<0>();
        __syncthreads();
    }
    const int64_t slot = (unit * p.segments + segment + (a.reverse ? 0 : 1)) * p.features;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int feature = own + 8 * half + lane_row();
        const float sum = quad_sum(ones[half]);
        if (feature >= p.features) continue;
        if (threadIdx.x % 4 == 0) a.own_ones[slot + feature] = sum;
        float *to = a.own + (slot + feature) * S::width;
#pragma unroll
        for (int n = 0; n < S::width / 8; n++) {
            const float pair[2] = {out[0][n][2 * half], out[0][n][2 * half + 1]};
            store_pack<2>(to + n * 8 + lane_column(), pair);
        }
    }
}

/* The states from the segments' own sums. A thread: one element of a state's [features][P], or one that is 1. */
template <class S> __global__ void __launch_bounds__(scan_threads) scan_segments(states_arguments a) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    const int64_t size = static_cast<int64_t>(p.features) * (S::width + 1);
    const int64_t blocks = (size + scan_threads - 1) / scan_threads, unit = blockIdx.x / blocks;
    const int64_t element = blockIdx.x % blocks * scan_threads + threadIdx.x;
    if (element >= size) return;
    const int64_t sums = static_cast<int64_t>(p.features) * S::width;
    const int32_t *begin = p.begin + unit / p.groups * p.length;
    const float *prefix = p.prefix + unit * p.length;
    float state = 0.0f;
    for (int n = 1; n < p.segments; n++) {
        const int edge = a.reverse ? p.segments - n : n; /* the state's; what is added lies in `from` … `to` − 1 */
        const int segment = a.reverse ? edge : edge - 1, from = segment * p.segment,
                  to = min(from + p.segment, p.length);
        const int64_t slot = unit * p.segments + edge;
        const float own =
            element < sums ? a.own[slot * sums + element] : a.own_ones[slot * p.features + element - sums];
        /* Does the document that crosses this edge hold all of the segment, and cross the other edge too? */
        const bool whole = a.reverse ? to < p.length && begin[to] < from : from > 0 && begin[to - 1] < from;
        state = own + (whole ? weigh(prefix[from - 1] - prefix[to - 1], state) : 0.0f);
        if (element < sums)
            static_cast<T *>(a.states.sums)[slot * sums + element] = from_float<T>(state);
        else
            a.states.ones[slot * p.features + element - sums] = state;
    }
}

size_t padded(int64_t count, size_t size) {
    return (static_cast<size_t>(count) * size + 255) / 256 * 256;
}
int64_t padded_width(const linear_problem &p) {
    return p.width <= 64 ? 64 : p.width <= 128 ? 128 : 256;
}
int64_t ones_of(const linear_problem &p) {
    return p.segments > 1 ? p.batch * p.groups * p.segments * p.features : 0;
}

template <class S>
enum status run_states(const struct ops *ops, const char *operation, states_arguments a, bool of_keys) {
    const linear_problem &p = a.g.f;
    const int64_t units = p.batch * p.groups;
    a.blocks = static_cast<int>(divide_up(p.features, S::rows));
    const int64_t sums = units * (p.segments - 1) * a.blocks,
                  scans = units * divide_up(static_cast<int64_t>(p.features) * (S::width + 1), scan_threads);
    if (sums > INT_MAX || scans > INT_MAX)
        return error_set(STATUS_SHAPE, "%s: expected up to %d blocks of states, found %lld", operation, INT_MAX,
                         static_cast<long long>(sums > scans ? sums : scans));
    const size_t shared = (S::rows + 2 * S::columns) * S::stride * sizeof(typename S::real);
    const dim3 grid(static_cast<unsigned>(sums));
    if (of_keys)
        TRY(device_launch(ops, operation, sum_segment<S, true>, grid, S::threads, shared, a));
    else
        TRY(device_launch(ops, operation, sum_segment<S, false>, grid, S::threads, shared, a));
    return device_launch(ops, operation, scan_segments<S>, dim3(static_cast<unsigned>(scans)), scan_threads, 0, a);
}

} // namespace

size_t linear_own_bytes(const linear_problem &p) {
    return padded(ones_of(p) * padded_width(p), sizeof(float)) + padded(ones_of(p), sizeof(float));
}
size_t linear_states_bytes(const struct ops *ops, const linear_problem &p) {
    return padded(ones_of(p) * padded_width(p), dtype_size(ops->real)) + padded(ones_of(p), sizeof(float));
}
linear_states linear_states_place(const struct ops *ops, const linear_problem &p, char *memory) {
    return linear_states{
        memory, reinterpret_cast<float *>(memory + padded(ones_of(p) * padded_width(p), dtype_size(ops->real)))};
}

enum status linear_states_make(const struct ops *ops, const char *operation, const linear_gradient &g, bool of_keys,
                               bool reverse, char *own, const linear_states &states) {
    if (g.f.segments < 2) return STATUS_OK;
    states_arguments a = {g, states, reinterpret_cast<float *>(own), nullptr, 0, reverse};
    a.own_ones = reinterpret_cast<float *>(own + padded(ones_of(g.f) * padded_width(g.f), sizeof(float)));
    return with_linear_shape(ops, g.f.width,
                             [&](auto shape) { return run_states<decltype(shape)>(ops, operation, a, of_keys); });
}
