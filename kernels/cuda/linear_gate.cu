/* Squeeze and excite: sums along sequences, in runs of tokens: each run's own, a scan over the runs, then token by
 * token. */
#include "kernels/cuda/linear_gate.cuh"

namespace {

constexpr int run_tokens = 128, gate_threads = 128;

struct squeeze_arguments {
    linear_problem p;
    int tiles; /* of S::rows tokens */
};

/* hidden [tokens][R] = φ_k · squeezeᵀ, of S::rows tokens of one key head. */
template <class S> __global__ void __launch_bounds__(S::threads) squeeze_keys(squeeze_arguments a) {
    using T = typename S::real;
    constexpr int step = S::columns + 1;
    const linear_problem &p = a.p;
    const int64_t unit = blockIdx.x / a.tiles, b = unit / p.groups;
    const int group = static_cast<int>(unit % p.groups), first = static_cast<int>(blockIdx.x % a.tiles) * S::rows;
    shared_cutter cutter = {shared_memory()};
    T *x = cutter.take<T>(S::rows * S::stride), *map = cutter.take<T>(S::columns * S::stride);
    float *phi = cutter.take<float>(S::rows * step);
    load_rows<S::rows, S::width, S::stride, S::threads>(x, attention_rows<const T>(p.k.x, b, group), p.k.x.token, first,
                                                        p.length, p.width, p.k.x.vector);
    const lane_rows rows = lane_rows_of(p, p.k, b, group, first + warp_number() * 16);
    for (int tile = 0; tile < p.tiles; tile++) {
        const feature_place place = place_features<S>(p, tile);
        float y[1][S::groups][4];
        map_product<S>(p, p.k, group, place, x, map, y);
        make_features<T, S::groups, false>(p, p.k, b, group, place, rows, y);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                phi[(warp_number() * 16 + e / 2 * 8 + lane_row()) * step + n * 8 + lane_column() + e % 2] = y[0][n][e];
        __syncthreads();
        const int features = min(S::columns, p.columns - place.first);
        const T *squeeze =
            static_cast<const T *>(p.squeeze) + group * p.squeeze_head + place.part * p.columns + place.first;
        for (int n = static_cast<int>(threadIdx.x); n < S::rows * p.hidden_width; n += S::threads) {
            const int row = n / p.hidden_width, r = n % p.hidden_width;
            if (first + row >= p.length) break;
            float *to = p.hidden + (unit * p.length + first + row) * p.hidden_width + r;
            float sum = tile ? *to : 0.0f;
            for (int c = 0; c < features; c++) sum += phi[row * step + c] * to_float(squeeze[r * p.squeeze_row + c]);
            *to = sum;
        }
        __syncthreads(); /* nobody reads the map and φ any more */
    }
}

/* Sums along a sequence. TAILS false: of `from` from the document's first token on, the mean, then relu, in place.
 * True: of `from` of all heads of a group over their means' counts, to the document's end, to `to`. */
struct scan_arguments {
    linear_problem p;
    const float *from; /* [B,G or H,T,R] */
    float *to;         /* [B,G,T,R] */
    float *runs;       /* [B·G][runs + 1][R] */
    int count;         /* runs of a sequence */
};

template <bool TAILS> __device__ float scan_value(const scan_arguments &a, int64_t unit, int t, int r) {
    const linear_problem &p = a.p;
    if (!TAILS) return a.from[(unit * p.length + t) * p.hidden_width + r];
    const int64_t b = unit / p.groups, group = unit % p.groups;
    float sum = 0.0f;
    for (int member = 0; member < p.share; member++)
        sum += a.from[((b * p.heads + group * p.share + member) * p.length + t) * p.hidden_width + r];
    return sum / static_cast<float>(t - p.begin[b * p.length + t] + 1);
}

/* runs[n]: the sum over run n's tokens of the document that goes on behind it (TAILS: before it). A thread: one of R.
 */
template <bool TAILS> __global__ void __launch_bounds__(gate_threads) sum_runs(scan_arguments a, int64_t threads) {
    const linear_problem &p = a.p;
    const int64_t id = static_cast<int64_t>(blockIdx.x) * gate_threads + threadIdx.x;
    if (id >= threads) return;
    const int r = static_cast<int>(id % p.hidden_width), n = static_cast<int>(id / p.hidden_width % a.count);
    const int64_t unit = id / p.hidden_width / a.count;
    const int32_t *begin = p.begin + unit / p.groups * p.length, *end = p.end + unit / p.groups * p.length;
    int from = n * run_tokens, to = min(from + run_tokens, p.length);
    if (TAILS)
        to = min(to, end[from]);
    else
        from = max(from, begin[to - 1]);
    float sum = 0.0f;
    for (int t = from; t < to; t++) sum += scan_value<TAILS>(a, unit, t, r);
    a.runs[(unit * a.count + n) * p.hidden_width + r] = sum;
}

/* runs[n] becomes the sum over all tokens before run n (TAILS: behind it) of the document that crosses its edge. */
template <bool TAILS> __global__ void __launch_bounds__(gate_threads) scan_runs(scan_arguments a, int64_t threads) {
    const linear_problem &p = a.p;
    const int64_t id = static_cast<int64_t>(blockIdx.x) * gate_threads + threadIdx.x;
    if (id >= threads) return;
    const int r = static_cast<int>(id % p.hidden_width);
    const int64_t unit = id / p.hidden_width;
    const int32_t *begin = p.begin + unit / p.groups * p.length;
    float sum = 0.0f;
    for (int step = 0; step < a.count; step++) {
        const int n = TAILS ? a.count - 1 - step : step, from = n * run_tokens, to = min(from + run_tokens, p.length);
        float *run = a.runs + (unit * a.count + n) * p.hidden_width + r;
        const float own = *run;
        *run = sum;
        /* Whether one document holds the run and goes on at both ends; else what came before ends here. */
        const bool whole = TAILS ? to < p.length && begin[to] <= from : begin[to - 1] < from;
        sum = whole ? sum + own : own;
    }
}

template <bool TAILS> __global__ void __launch_bounds__(gate_threads) scan_tokens(scan_arguments a, int64_t threads) {
    const linear_problem &p = a.p;
    const int64_t id = static_cast<int64_t>(blockIdx.x) * gate_threads + threadIdx.x;
    if (id >= threads) return;
    const int r = static_cast<int>(id % p.hidden_width), n = static_cast<int>(id / p.hidden_width % a.count);
    const int64_t unit = id / p.hidden_width / a.count;
    const int32_t *begin = p.begin + unit / p.groups * p.length, *end = p.end + unit / p.groups * p.length;
    const int from = n * run_tokens, to = min(from + run_tokens, p.length);
    float sum = a.runs[(unit * a.count + n) * p.hidden_width + r];
    for (int step = 0; step < to - from; step++) {
        const int t = TAILS ? to - 1 - step : from + step;
        if (TAILS ? end[t] == t + 1 : begin[t] == t) sum = 0.0f;
        sum += scan_value<TAILS>(a, unit, t, r);
        float *at = a.to + (unit * p.length + t) * p.hidden_width + r;
        *at = TAILS ? sum : fmaxf(sum / static_cast<float>(t - begin[t] + 1), 0.0f);
    }
}

template <bool TAILS>
enum status scan(const struct ops *ops, const char *operation, const linear_problem &p, const float *from, float *to,
                 char *memory) {
    const int64_t units = p.batch * p.groups, count = divide_up(p.length, run_tokens);
    const scan_arguments a = {p, from, to, reinterpret_cast<float *>(memory), static_cast<int>(count)};
    const int64_t rows = units * p.hidden_width, all = rows * count;
    if (divide_up(all, gate_threads) > INT_MAX)
        return error_set(STATUS_SHAPE, "%s: squeeze: expected up to %d runs of sums, found %lld", operation, INT_MAX,
                         static_cast<long long>(all));
    TRY(device_launch(ops, operation, sum_runs<TAILS>, grid_over(all, gate_threads), gate_threads, 0, a, all));
    TRY(device_launch(ops, operation, scan_runs<TAILS>, grid_over(rows, gate_threads), gate_threads, 0, a, rows));
    return device_launch(ops, operation, scan_tokens<TAILS>, grid_over(all, gate_threads), gate_threads, 0, a, all);
}

} // namespace

size_t gate_scan_bytes(int64_t units, int64_t length, int64_t hidden) {
    return (static_cast<size_t>(units * divide_up(length, run_tokens) * hidden) * sizeof(float) + 255) / 256 * 256;
}

enum status gate_plan(const struct ops *ops, const char *operation, const linear_problem &p, char *memory) {
    TRY(with_linear_shape(ops, p.width, [&](auto shape) {
        using S = decltype(shape);
        const squeeze_arguments a = {p, static_cast<int>(divide_up(p.length, S::rows))};
        const size_t shared =
            (S::rows + S::columns) * S::stride * sizeof(typename S::real) + S::rows * (S::columns + 1) * sizeof(float);
        return device_launch(ops, operation, squeeze_keys<S>, dim3(static_cast<unsigned>(p.batch * p.groups * a.tiles)),
                             S::threads, shared, a);
    }));
    return scan<false>(ops, operation, p, p.hidden, p.hidden, memory);
}

enum status gate_tails(const struct ops *ops, const char *operation, const linear_gradient &g, char *memory) {
    return scan<true>(ops, operation, g.f, g.d_hidden, g.tails, memory);
}
