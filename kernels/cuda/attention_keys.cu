/* Attention's backward pass, by keys: a block owns keys of one key head and walks the queries that see them, of all
 * query heads that read it. Its products are those of the rows' kernels with queries and keys exchanged: weights lie
 * with keys as rows, and so are the left side of dv += Aᵀ·do and dk += dsᵀ·q without leaving their registers. */
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/tuning.cuh"

namespace {

/* out: columns of dk and dv that one block makes; a wider head takes several blocks, which find the same weights. */
template <class S, int OUT> struct keys_shape : S {
    static constexpr int out = OUT, parts = S::width / OUT;
    /* Of the product for dq: queries in runs of 16, and how many warps share the columns of one. */
    static constexpr int query_tiles = S::columns / 16, sharers = S::warps / query_tiles, share = OUT / sharers;
};
/* By form, see tuning.cuh. */
template <class T, int D, int FORM = 0> struct keys_shape_of;
template <> struct keys_shape_of<bf16, 64, 0> { using shape = keys_shape<tile_shape<bf16, 64, 4, 2, 32>, 64>; };
template <> struct keys_shape_of<bf16, 64, 1> { using shape = keys_shape<tile_shape<bf16, 64, 4, 1, 32>, 64>; };
template <> struct keys_shape_of<bf16, 64, 2> { using shape = keys_shape<tile_shape<bf16, 64, 8, 1, 32>, 64>; };
template <> struct keys_shape_of<bf16, 128, 0> { using shape = keys_shape<tile_shape<bf16, 128, 4, 1, 32>, 128>; };
template <> struct keys_shape_of<bf16, 256, 0> { using shape = keys_shape<tile_shape<bf16, 256, 4, 1, 32>, 128>; };
template <> struct keys_shape_of<float, 64, 0> { using shape = keys_shape<tile_shape<float, 64, 4, 1, 32>, 64>; };
template <> struct keys_shape_of<float, 128, 0> { using shape = keys_shape<tile_shape<float, 128, 2, 1, 32>, 128>; };
template <> struct keys_shape_of<float, 256, 0> { using shape = keys_shape<tile_shape<float, 256, 2, 1, 16>, 128>; };

struct keys_arguments {
    attention_gradient g;
    block_order order; /* of key tiles, of sequences, key heads and parts */
};

/* A block's shared memory. queries and d_outs: two stages of [columns][stride], records of [count][columns]; d_scores
 * [rows][outer_stride]. */
template <class S> struct keys_memory {
    using T = typename S::real;
    T *keys, *values, *queries, *d_outs, *d_scores;
    attention_record *records;
    __device__ keys_memory(char *memory, int count) {
        shared_cutter cutter = {memory};
        keys = cutter.take<T>(S::rows * S::stride);
        values = cutter.take<T>(S::rows * S::stride);
        queries = cutter.take<T>(2 * S::columns * S::stride);
        d_outs = cutter.take<T>(2 * S::columns * S::stride);
        records = cutter.take<attention_record>(2 * count * S::columns);
        d_scores = cutter.take<T>(S::rows * S::outer_stride); /* only for dq_sums */
    }
    static size_t bytes(int count, bool with_dq) {
        return sizeof(T) * (S::stride * (2 * S::rows + 4 * S::columns) + (with_dq ? S::rows * S::outer_stride : 0)) +
               sizeof(attention_record) * 2 * static_cast<size_t>(count) * S::columns;
    }
};

/* The queries of one query head that a tile of keys is read by, as far as reach tells. */
template <class S> __device__ tile_walk walk_queries(const attention_problem &p, int h, int count, int key) {
    int reach = 0;
    for (int m = 0; m < count; m++)
        if (coefficient_of(p, h, m) != 0.0f) reach = max(reach, p.rules[m].reach);
    const int64_t at = static_cast<int64_t>(key) * p.key_step;
    const int64_t end = min(at + S::rows + reach, static_cast<int64_t>(p.length));
    const int first = static_cast<int>(p.causal ? min(at, static_cast<int64_t>(p.length)) : max(key - reach, 0));
    return walk_tiles(first / S::columns, static_cast<int>((end + S::columns - 1) / S::columns));
}

/* The set of h's live candidates of which some query of the tile sees some of the keys. */
template <class S>
__device__ unsigned touching_columns(const attention_problem &p, int b, int h, int count, int query, int key) {
    unsigned touching = 0;
    for (int m = 0; m < count; m++)
        if (coefficient_of(p, h, m) != 0.0f && hull_touches(p.rules[m], hull_of(p, b, m, query, S::columns), p.causal,
                                                            query, query + S::columns, key, key + S::rows))
            touching |= 1u << m;
    return touching;
}

/* Queries, do and records of a tile into stage `stage`. */
template <class S>
__device__ void load_queries(const attention_gradient &g, const keys_memory<S> &memory, int b, int h, int count,
                             int query, int stage) {
    using T = typename S::real;
    constexpr int size = S::columns * S::stride;
    const attention_problem &p = g.f;
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.queries + stage * size,
                                                           attention_rows<const T>(p.q, b, h), p.q.token, query,
                                                           p.length, p.width, p.q.vector);
    load_rows<S::columns, S::width, S::stride, S::threads>(memory.d_outs + stage * size,
                                                           attention_rows<const T>(g.d_o, b, h), g.d_o.token, query,
                                                           p.length, p.width, g.d_o.vector);
    const attention_record *from = g.records + (static_cast<int64_t>(b) * p.heads + h) * p.count * p.length;
    for (int n = static_cast<int>(threadIdx.x); n < count * S::columns; n += S::threads) {
        const int m = n / S::columns, i = query + n % S::columns;
        const bool valid = i < p.length; /* else zeros: weights of a do that is 0 */
        copy_async(memory.records + stage * count * S::columns + n,
                   valid ? from + static_cast<int64_t>(m) * p.length + i : from, valid);
    }
}

/* Scores and do·v of one column (element odd of group n: one query) become A and ds. */
template <class S, int COUNT>
__device__ void weigh_column(float (&scores)[S::tiles][S::groups][4], float (&d_weights)[S::tiles][S::groups][4], int n,
                             int odd, const attention_problem &p, int h, const attention_record *records, int key,
                             unsigned touching, unsigned covered) {
    const int count = COUNT ? COUNT : p.count;
    float weight[2 * S::tiles], d_score[2 * S::tiles];
#pragma unroll
    for (int r = 0; r < 2 * S::tiles; r++) weight[r] = d_score[r] = 0.0f;
    for (int m = 0; m < count; m++) {
        if (!(touching >> m & 1)) continue;
        const attention_record record = records[m * S::columns + n * 8 + lane_column() + odd];
        const float c = coefficient_of(p, h, m);
        unsigned held = ~0u;
        if (!(covered >> m & 1)) {
            held = 0;
#pragma unroll
            for (int r = 0; r < 2 * S::tiles; r++)
                held |= static_cast<unsigned>(span_holds(p.rules[m], record.lo, record.count,
                                                         key + warp_number() * S::tiles * 16 + r * 8 + lane_row()))
                        << r;
        }
#pragma unroll
        for (int r = 0; r < 2 * S::tiles; r++) {
            const int e = r % 2 * 2 + odd;
            if (!(held >> r & 1)) continue;
            const float part = c * exp2_quick(scores[r / 2][n][e] * p.scale_log2 - record.z);
            weight[r] += part;
            d_score[r] += part * (d_weights[r / 2][n][e] - record.delta);
        }
    }
#pragma unroll
    for (int r = 0; r < 2 * S::tiles; r++) {
        scores[r / 2][n][r % 2 * 2 + odd] = weight[r];
        d_weights[r / 2][n][r % 2 * 2 + odd] = d_score[r];
    }
}

/* dq_sums += ds · k of this block's keys and columns: d_scores is written and read by the whole block. */
template <class S>
__device__ void add_dq(const attention_gradient &g, const keys_memory<S> &memory,
                       const float (&d_scores)[S::tiles][S::groups][4], int b, int h, int query, int part) {
    using T = typename S::real;
    const attention_problem &p = g.f;
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < S::groups; n++) {
                const float pair[2] = {d_scores[tile][n][2 * half], d_scores[tile][n][2 * half + 1]};
                const int row = warp_number() * S::tiles * 16 + tile * 16 + 8 * half + lane_row();
                store_pack<2>(memory.d_scores + row * S::outer_stride + n * 8 + lane_column(), pair);
            }
    __syncthreads();
    float sums[1][S::share / 8][4];
    clear_sums(sums);
    const int run = warp_number() % S::query_tiles * 16,
              first = warp_number() / S::query_tiles * S::share + part * S::out;
    warp_product<T>::template columns_by_rows<S::rows, S::share, S::outer_stride, S::stride>(
        sums, memory.d_scores + run, memory.keys + first);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = query + run + 8 * half + lane_row();
        if (i >= p.length) continue;
        float *to = g.dq_sums + ((static_cast<int64_t>(b) * p.heads + h) * p.length + i) * p.width;
#pragma unroll
        for (int n = 0; n < S::share / 8; n++)
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const int column = first + n * 8 + lane_column() + odd;
                if (column < p.width) atomicAdd(to + column, sums[0][n][2 * half + odd]);
            }
    }
}

/* One tile of queries: dk, dv += its part. dk lacks the scale. */
template <class S, int COUNT>
__device__ void add_tile(const attention_gradient &g, const keys_memory<S> &memory, int b, int h, int query, int key,
                         int part, int stage, float (&dk)[S::tiles][S::out / 8][4],
                         float (&dv)[S::tiles][S::out / 8][4]) {
    using T = typename S::real;
    using product = warp_product<T>;
    const attention_problem &p = g.f;
    const int count = COUNT ? COUNT : p.count, own = warp_number() * S::tiles * 16 * S::stride;
    const T *queries = memory.queries + stage * S::columns * S::stride,
            *d_outs = memory.d_outs + stage * S::columns * S::stride;
    float scores[S::tiles][S::groups][4], d_weights[S::tiles][S::groups][4];
    clear_sums(scores);
    product::rows_by_rows(
        scores, typename product::template left<S::tiles, S::width, S::stride, false>(memory.keys + own), queries);
    clear_sums(d_weights);
    product::rows_by_rows(
        d_weights, typename product::template left<S::tiles, S::width, S::stride, false>(memory.values + own), d_outs);
    const unsigned touching =
        COUNT == 1 ? 1u : touching_columns<S>(p, b, h, count, query, key); /* one: the walk has asked */
    unsigned covered = 0;
    for (int m = 0; m < count; m++)
        covered |=
            static_cast<unsigned>(hull_covered(p.rules[m], hull_of(p, b, m, query, S::columns), key, key + S::rows))
            << m;
#pragma unroll
    for (int n = 0; n < S::groups; n++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++)
            weigh_column<S, COUNT>(scores, d_weights, n, odd, p, h, memory.records + stage * count * S::columns, key,
                                   touching, covered);
    product::template weights_by_rows<S::tiles, S::groups, S::out, S::stride>(dv, scores, d_outs + part * S::out);
    product::template weights_by_rows<S::tiles, S::groups, S::out, S::stride>(dk, d_weights, queries + part * S::out);
    if (g.dq_sums) add_dq(g, memory, d_weights, b, h, query, part);
}

/* A block: S::rows keys of one key head, S::out columns of their dk and dv. COUNT 1: one candidate; 0: any number. */
template <class S, int COUNT> __global__ void __launch_bounds__(S::threads) gather_keys(keys_arguments arguments) {
    using T = typename S::real;
    const attention_gradient &g = arguments.g;
    const attention_problem &p = g.f;
    const block_place place = place_block(arguments.order);
    const int groups = p.heads / p.share, part = static_cast<int>(place.pair % S::parts);
    const int group = static_cast<int>(place.pair / S::parts % groups),
              b = static_cast<int>(place.pair / S::parts / groups);
    const int key = place.tile * S::rows, count = COUNT ? COUNT : p.count;
    const keys_memory<S> memory(shared_memory(), count);
    load_rows<S::rows, S::width, S::stride, S::threads>(memory.keys, attention_rows<const T>(p.k, b, group), p.k.token,
                                                        key, p.keys, p.width, p.k.vector);
    load_rows<S::rows, S::width, S::stride, S::threads>(memory.values, attention_rows<const T>(p.v, b, group),
                                                        p.v.token, key, p.keys, p.width, p.v.vector);
    float dk[S::tiles][S::out / 8][4], dv[S::tiles][S::out / 8][4];
    clear_sums(dk);
    clear_sums(dv);
    int h = group * p.share; /* of the next tile */
    tile_walk walk = walk_queries<S>(p, h, count, key);
    const auto next = [&] {
        for (;;) {
            const int tile =
                walk_next(walk, [&](int t) { return touching_columns<S>(p, b, h, count, t * S::columns, key) != 0; });
            if (tile >= 0 || h + 1 == (group + 1) * p.share) return tile;
            walk = walk_queries<S>(p, ++h, count, key);
        }
    };
    int tile = next();
    int head = h;
    if (tile >= 0) load_queries(g, memory, b, head, count, tile * S::columns, 0);
    copy_async_commit();
    for (int stage = 0; tile >= 0; stage ^= 1) {
        const int after = next();
        if (after >= 0) load_queries(g, memory, b, h, count, after * S::columns, stage ^ 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* this tile is there for all */
        add_tile<S, COUNT>(g, memory, b, head, tile * S::columns, key, part, stage, dk, dv);
        __syncthreads(); /* nobody reads it any more */
        tile = after;
        head = h;
    }
    copy_async_wait<0>();
    float factor[S::tiles][2];
    const int first = key + warp_number() * S::tiles * 16;
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = p.scale;
    store_rows<S::tiles, S::out>(attention_rows<T>(g.dk, b, group), g.dk.token, first, p.keys, part * S::out, p.width,
                                 g.dk.vector, dk, factor, g.accumulate_kv);
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = 1.0f;
    store_rows<S::tiles, S::out>(attention_rows<T>(g.dv, b, group), g.dv.token, first, p.keys, part * S::out, p.width,
                                 g.dv.vector, dv, factor, g.accumulate_kv);
}

/* MIXTURES: else there is one candidate, and the kernel for several is not even compiled. */
template <class S, bool MIXTURES>
enum status run_keys(const struct ops *ops, const attention_gradient &g, int64_t batch) {
    const attention_problem &p = g.f;
    const int64_t tiles = divide_up(p.keys, S::rows), pairs = batch * (p.heads / p.share) * S::parts;
    if (tiles * pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "attention_backward: expected up to %d tiles of keys, found %lld", INT_MAX,
                         static_cast<long long>(tiles * pairs));
    keys_arguments arguments = {};
    arguments.g = g;
    arguments.order =
        order_blocks(tiles, pairs,
                     int64_t{2} * p.length * p.width * p.share * static_cast<int64_t>(sizeof(typename S::real)), false);
    const dim3 grid(static_cast<unsigned>(tiles * pairs));
    const size_t shared = keys_memory<S>::bytes(p.count, g.dq_sums != nullptr);
    constexpr bool single = std::is_same_v<typename S::real, bf16>; /* fp32 is not there for speed */
    if constexpr (MIXTURES)
        if (p.count > 1 || !single)
            return device_launch(ops, "attention_backward", gather_keys<S, 0>, grid, S::threads, shared, arguments);
    if constexpr (single)
        return device_launch(ops, "attention_backward", gather_keys<S, 1>, grid, S::threads, shared, arguments);
    return STATUS_OK;
}

} // namespace

enum status attention_keys(const struct ops *ops, const attention_gradient &g, int64_t batch) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(g.f.width, [&](auto width) {
            constexpr int D = decltype(width)::value;
            return with_form<decltype(real), D>(ops, TUNED_KEYS, g.f.count, g.f.length, [&](auto form) {
                constexpr int F = decltype(form)::value;
                return run_keys<typename keys_shape_of<decltype(real), D, F>::shape, F == 0>(ops, g, batch);
            });
        });
    });
}
