/* Attention's forward pass. Heads with one live candidate take one pass with running normalisers (Dao et al. 2022,
 * 2023); heads with more take a pass for every candidate's normaliser, then one for the sum of values by weights that
 * are exact without a common reference: e^{s − log Z_m} never exceeds 1. The host does not know which heads are which:
 * each kernel leaves the others' alone. */
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/tuning.cuh"

namespace {

/* By form, see tuning.cuh. */
template <class T, int D, int FORM = 0> struct forward_shape;
template <> struct forward_shape<bf16, 64, 0> { using shape = tile_shape<bf16, 64, 4, 2, 64>; };
template <> struct forward_shape<bf16, 64, 1> { using shape = tile_shape<bf16, 64, 8, 1, 64>; };
template <> struct forward_shape<bf16, 64, 2> { using shape = tile_shape<bf16, 64, 4, 1, 64>; };
template <> struct forward_shape<bf16, 128, 0> { using shape = tile_shape<bf16, 128, 4, 2, 32>; };
template <> struct forward_shape<bf16, 256, 0> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <int D> struct forward_shape<float, D, 0> { using shape = tile_shape<float, D, 4, 1, D == 256 ? 16 : 32>; };

struct forward_arguments {
    attention_problem p;
    block_order order; /* of query tiles, of sequences and heads */
    float *sums;       /* attention_sums: where to */
    bool dead;         /* attention_sums: of whom */
};

/* Nothing lives in this head: o = 0. log_sums are −inf of every candidate but `except`. */
template <class S>
__device__ void leave_dead(const attention_problem &p, int64_t b, int64_t h, int first, int except, bool clear) {
    using T = typename S::real;
    const int rows = min(S::rows, p.length - first);
    for (int m = 0; m < p.count; m++)
        for (int r = static_cast<int>(threadIdx.x); m != except && r < rows; r += S::threads)
            p.log_sums[((b * p.heads + h) * p.count + m) * p.length + first + r] = -INFINITY;
    if (!clear) return;
    T *o = attention_rows<T>(p.o, b, h);
    for (int n = static_cast<int>(threadIdx.x); n < rows * p.width; n += S::threads)
        o[(first + n / p.width) * p.o.token + n % p.width] = from_float<T>(0.0f);
}

/* scores = their exponents in base 2; −inf where the candidate does not hold the pair. spans [rows]. */
template <class S>
__device__ void mask_scores(float (&scores)[S::tiles][S::groups][4], const attention_rule &rule, const int2 *spans,
                            float scale, int key, bool covered) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) scores[tile][n][e] *= scale;
    if (covered) return;
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int2 span = spans[row_of<S>(tile, half)];
#pragma unroll
            for (int n = 0; n < S::groups; n++)
#pragma unroll
                for (int odd = 0; odd < 2; odd++)
                    if (!span_holds(rule, span.x, span.y, key + n * 8 + lane_column() + odd))
                        scores[tile][n][2 * half + odd] = -INFINITY;
        }
}

/* One live candidate or none. A block: S::rows queries of one head. */
template <class S> __global__ void __launch_bounds__(S::threads) attend_plain(forward_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const attention_problem &p = g.p;
    const block_place place = place_block(g.order);
    const int64_t b = place.pair / p.heads, h = place.pair % p.heads;
    const int first = place.tile * S::rows;
    int m = -1;
    const int live = count_live(p, h, &m);
    if (live > 1) return;
    leave_dead<S>(p, b, h, first, m, live == 0);
    if (live == 0) return;
    SHARED(row_candidates, candidates, [1]);
    SHARED(int2, spans, [S::rows]);
    const attention_rule rule = p.rules[m];
    if (threadIdx.x == 0) candidates[0].hulls[0] = hull_of(p, b, m, first, S::rows);
    for (int r = static_cast<int>(threadIdx.x); r < S::rows; r += S::threads)
        spans[r] = first + r < p.length ? p.spans[(b * p.count + m) * p.length + first + r] : make_int2(0, 0);
    __syncthreads();
    T *queries = reinterpret_cast<T *>(shared_memory());
    load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<T>(p.q, b, h), p.q.token, first,
                                                        p.length, p.width, p.q.vector);
    typename product::template left<S::tiles, S::width, S::stride, S::width <= 64> of_q(
        queries + warp_number() * S::tiles * 16 * S::stride);
    float out[S::tiles][S::width / 8][4], most[S::tiles][2], sum[S::tiles][2];
    clear_sums(out);
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) {
        most[n / 2][n % 2] = -INFINITY;
        sum[n / 2][n % 2] = 0.0f;
    }
    attention_problem one = p; /* its only candidate is the live one */
    one.rules[0] = rule;
    walk_keys<S, 1>(
        one, candidates[0], first, attention_rows<const T>(p.k, b, h / p.share),
        attention_rows<const T>(p.v, b, h / p.share), queries + S::rows * S::stride, [&] { of_q.hold(); },
        [&](int key, const T *k, const T *v) {
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(scores, of_q, k);
            mask_scores<S>(scores, rule, spans, p.scale_log2, key,
                           hull_covered(rule, candidates[0].hulls[0], key, key + S::columns));
            take_rows(scores, most, sum, out);
            product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(out, scores, v);
        });
    const float c = coefficient_of(p, h, m);
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float all = quad_sum(sum[tile][half]);
            const int i = first + row_of<S>(tile, half);
            if (threadIdx.x % 4 == 0 && i < p.length)
                p.log_sums[((b * p.heads + h) * p.count + m) * p.length + i] = natural_log_sum(most[tile][half], all);
            sum[tile][half] = all == 0.0f ? 0.0f : c / all;
        }
    store_rows<S::tiles, S::width>(attention_rows<T>(p.o, b, h), p.o.token, first + warp_number() * S::tiles * 16,
                                   p.length, 0, p.width, p.o.vector, out, sum);
}

/* Shared memory of the kernels of several candidates, beyond their tiles. */
template <class S> constexpr size_t spans_size(int count) {
    return static_cast<size_t>(count) * S::rows * sizeof(int2);
}

template <class S> __device__ void load_spans(const attention_problem &p, int64_t b, int first, int2 *spans) {
    for (int n = static_cast<int>(threadIdx.x); n < p.count * S::rows; n += S::threads) {
        const int m = n / S::rows, i = first + n % S::rows;
        spans[n] = i < p.length ? p.spans[(b * p.count + m) * p.length + i] : make_int2(0, 0);
    }
}

/* Takes a tile's scores (exponents, not masked) of one row, as far as the candidate holds them, into this lane's
 * running (maximum, sum). */
template <int GROUPS>
__device__ void take_part(const float (&scores)[GROUPS][4], int half, const attention_rule &rule, int2 span, int key,
                          bool covered, float2 *running) {
    const unsigned held = held_columns<GROUPS>(rule, span.x, span.y, key, covered);
    float masked[GROUPS * 2], most = running->x;
#pragma unroll
    for (int n = 0; n < 2 * GROUPS; n++) {
        masked[n] = held >> n & 1 ? scores[n / 2][2 * half + n % 2] : -INFINITY;
        most = fmaxf(most, masked[n]);
    }
    const float reference = most == -INFINITY ? 0.0f : most;
    float sum = running->y * exp2_quick(running->x - reference);
#pragma unroll
    for (int n = 0; n < 2 * GROUPS; n++) sum += exp2_quick(masked[n] - reference);
    *running = make_float2(most, sum);
}

/* log Z of chosen candidates (attention_sums). A block: S::rows queries of one head. Every lane keeps a maximum and a
 * sum of its own columns in shared memory, so that nothing is exchanged before the end. */
template <class S> __global__ void __launch_bounds__(S::threads) sum_candidates(forward_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const attention_problem &p = g.p;
    const block_place place = place_block(g.order);
    const int64_t b = place.pair / p.heads, h = place.pair % p.heads;
    const int first = place.tile * S::rows;
    int unused;
    const int live = count_live(p, h, &unused);
    if (g.dead ? live == p.count : live < 2) return;
    SHARED(row_candidates, candidates, [1]);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *tiles = cutter.take<T>(2 * S::columns * S::stride);
    int2 *spans = cutter.take<int2>(p.count * S::rows);
    float2 *running = cutter.take<float2>(p.count * S::tiles * 2 * S::threads); /* [count][row of this lane][thread] */
    load_spans<S>(p, b, first, spans);
    for (int n = 0; n < p.count * S::tiles * 2; n++)
        running[n * S::threads + static_cast<int>(threadIdx.x)] = make_float2(-INFINITY, 0.0f);
    open_candidates(p, b, h, first, S::rows, g.dead ? CHOOSE_DEAD : CHOOSE_LIVE, candidates[0]);
    load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<T>(p.q, b, h), p.q.token, first,
                                                        p.length, p.width, p.q.vector);
    typename product::template left<S::tiles, S::width, S::stride, S::width <= 64> of_q(
        queries + warp_number() * S::tiles * 16 * S::stride);
    walk_keys<S, 0>(
        p, candidates[0], first, attention_rows<const T>(p.k, b, h / p.share), static_cast<const T *>(nullptr), tiles,
        [&] { of_q.hold(); },
        [&](int key, const T *k, const T *) {
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(scores, of_q, k);
            mask_scores<S>(scores, p.rules[0], spans, p.scale_log2, key, true);
            const unsigned touching = touching_rows<S>(p, candidates[0], first, key);
            for (int m = 0; m < p.count; m++) {
                if (!(touching >> m & 1)) continue;
                const bool covered = hull_covered(p.rules[m], candidates[0].hulls[m], key, key + S::columns);
#pragma unroll
                for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        take_part(
                            scores[tile], half, p.rules[m], spans[m * S::rows + row_of<S>(tile, half)], key, covered,
                            &running[((m * S::tiles + tile) * 2 + half) * S::threads + static_cast<int>(threadIdx.x)]);
            }
        });
    for (int m = 0; m < p.count; m++)
        for (int n = 0; n < 2 * S::tiles; n++) {
            const float2 part = running[(m * S::tiles * 2 + n) * S::threads + static_cast<int>(threadIdx.x)];
            const float most = quad_max(part.x),
                        sum = quad_sum(most == -INFINITY ? part.y : part.y * exp2_quick(part.x - most));
            const int i = first + row_of<S>(n / 2, n % 2);
            if (threadIdx.x % 4 == 0 && i < p.length)
                g.sums[((b * p.heads + h) * p.count + m) * p.length + i] = natural_log_sum(most, sum);
        }
}

/* Scores of one row become weights Σ_m c_m M_m 2^{score − z_m}; z [count][rows]. `touching`: set of the candidates to
 * ask. */
template <class S>
__device__ void weigh_row(float (&scores)[S::groups][4], int half, int row, const attention_problem &p,
                          const row_candidates &candidates, const int2 *spans, const float *z, int key,
                          unsigned touching) {
    float weights[2 * S::groups];
#pragma unroll
    for (int n = 0; n < 2 * S::groups; n++) weights[n] = 0.0f;
    for (int m = 0; m < p.count; m++) {
        if (!(touching >> m & 1)) continue;
        const int2 span = spans[m * S::rows + row];
        const unsigned held = held_columns<S::groups>(
            p.rules[m], span.x, span.y, key, hull_covered(p.rules[m], candidates.hulls[m], key, key + S::columns));
        const float log_sum = z[m * S::rows + row], c = candidates.coefficients[m];
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++)
            if (held >> n & 1) weights[n] += c * exp2_quick(scores[n / 2][2 * half + n % 2] - log_sum);
    }
#pragma unroll
    for (int n = 0; n < 2 * S::groups; n++) scores[n / 2][2 * half + n % 2] = weights[n];
}

/* o from log_sums, of heads with two live candidates or more. A block: S::rows queries of one head. */
template <class S> __global__ void __launch_bounds__(S::threads) attend_mixture(forward_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const attention_problem &p = g.p;
    const block_place place = place_block(g.order);
    const int64_t b = place.pair / p.heads, h = place.pair % p.heads;
    const int first = place.tile * S::rows;
    int unused;
    if (count_live(p, h, &unused) < 2) return;
    SHARED(row_candidates, candidates, [1]);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *tiles = cutter.take<T>(4 * S::columns * S::stride);
    int2 *spans = cutter.take<int2>(p.count * S::rows);
    float *z = cutter.take<float>(p.count * S::rows);
    load_spans<S>(p, b, first, spans);
    for (int n = static_cast<int>(threadIdx.x); n < p.count * S::rows; n += S::threads) {
        const int m = n / S::rows, i = first + n % S::rows;
        z[n] = i < p.length ? log2_of_e * p.log_sums[((b * p.heads + h) * p.count + m) * p.length + i] : 0.0f;
    }
    open_candidates(p, b, h, first, S::rows, CHOOSE_LIVE, candidates[0]);
    load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<T>(p.q, b, h), p.q.token, first,
                                                        p.length, p.width, p.q.vector);
    typename product::template left<S::tiles, S::width, S::stride, false> of_q(queries + warp_number() * S::tiles * 16 *
                                                                                             S::stride);
    float out[S::tiles][S::width / 8][4];
    clear_sums(out);
    walk_keys<S, 0>(
        p, candidates[0], first, attention_rows<const T>(p.k, b, h / p.share),
        attention_rows<const T>(p.v, b, h / p.share), tiles, [] {},
        [&](int key, const T *k, const T *v) {
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(scores, of_q, k);
            mask_scores<S>(scores, p.rules[0], spans, p.scale_log2, key, true);
            const unsigned touching = touching_rows<S>(p, candidates[0], first, key);
#pragma unroll
            for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    weigh_row<S>(scores[tile], half, row_of<S>(tile, half), p, candidates[0], spans, z, key, touching);
            product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(out, scores, v);
        });
    float factor[S::tiles][2];
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = 1.0f;
    store_rows<S::tiles, S::width>(attention_rows<T>(p.o, b, h), p.o.token, first + warp_number() * S::tiles * 16,
                                   p.length, 0, p.width, p.o.vector, out, factor);
}

template <class S> enum status order_rows(const attention_problem &p, int64_t batch, forward_arguments *g, dim3 *grid) {
    const int64_t tiles = divide_up(p.length, S::rows), pairs = batch * p.heads;
    if (tiles * pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "attention: expected up to %d tiles of queries, found %lld", INT_MAX,
                         static_cast<long long>(tiles * pairs));
    g->p = p;
    g->order = order_blocks(tiles, pairs,
                            int64_t{2} * p.keys * p.width * static_cast<int64_t>(sizeof(typename S::real)) / p.share,
                            p.causal);
    *grid = dim3(static_cast<unsigned>(tiles * pairs));
    return STATUS_OK;
}

/* MIXTURES: of a problem with one candidate the kernel for several is not even compiled. */
template <class S, bool MIXTURES>
enum status run_forward(const struct ops *ops, const attention_problem &p, int64_t batch) {
    using T = typename S::real;
    forward_arguments g = {};
    dim3 grid;
    TRY(order_rows<S>(p, batch, &g, &grid));
    constexpr size_t tiles = (S::rows + 4 * S::columns) * S::stride * sizeof(T);
    TRY(device_launch(ops, "attention", attend_plain<S>, grid, S::threads, tiles, g));
    if constexpr (MIXTURES) {
        if (p.count == 1) return STATUS_OK;
        TRY(attention_sums(ops, p, batch, false, p.log_sums));
        const size_t statistics = spans_size<S>(p.count) + static_cast<size_t>(p.count) * S::rows * sizeof(float);
        return device_launch(ops, "attention", attend_mixture<S>, grid, S::threads, tiles + statistics, g);
    }
    return STATUS_OK;
}

template <class S>
enum status run_sums(const struct ops *ops, const attention_problem &p, int64_t batch, bool dead, float *sums) {
    forward_arguments g = {};
    dim3 grid;
    TRY(order_rows<S>(p, batch, &g, &grid));
    g.sums = sums;
    g.dead = dead;
    const size_t tiles = (S::rows + 2 * S::columns) * S::stride * sizeof(typename S::real);
    const size_t running = static_cast<size_t>(p.count) * S::tiles * 2 * S::threads * sizeof(float2);
    return device_launch(ops, "attention", sum_candidates<S>, grid, S::threads,
                         tiles + spans_size<S>(p.count) + running, g);
}

} // namespace

enum status attention_sums(const struct ops *ops, const attention_problem &p, int64_t batch, bool dead, float *sums) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            return run_sums<typename forward_shape<decltype(real), decltype(width)::value>::shape>(ops, p, batch, dead,
                                                                                                   sums);
        });
    });
}

enum status attention_forward(const struct ops *ops, const attention_problem &p, int64_t batch) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            constexpr int D = decltype(width)::value;
            return with_form<decltype(real), D>(ops, TUNED_FORWARD, p.count, p.length, [&](auto form) {
                constexpr int F = decltype(form)::value;
                return run_forward<typename forward_shape<decltype(real), D, F>::shape, F == 0>(ops, p, batch);
            });
        });
    });
}

enum status cuda_attention(const struct ops *ops, const struct attention *a) {
    TRY(check_attention(ops, a));
    void *memory;
    TRY(device_scratch(ops, attention_plan_bytes(a), &memory));
    attention_problem p;
    TRY(attention_plan(ops, "attention", a, static_cast<char *>(memory), &p));
    return attention_forward(ops, p, a->q.shape[0]);
}
