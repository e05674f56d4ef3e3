/* Attention to chosen blocks, backward by keys: dk and dv of some keys of a block are sums over the queries that chose
 * it, of all heads that read the key head, in the order of lists, heads and queries. Tiles of queries are divided
 * evenly among thread blocks; whose keys are divided between several is added up from their partial sums, in ascending
 * order.
 */
#include "kernels/cuda/block_attention.cuh"

namespace {

/* Keys are rows, queries columns. out: columns of dk and dv that one thread block makes; a wider head takes several
 * (slices), which find the same weights. */
template <class S, int OUT> struct keys_shape : S { static constexpr int out = OUT, slices = S::width / OUT; };
template <class T, int D> struct keys_shape_of;
template <> struct keys_shape_of<bf16, 64> { using shape = keys_shape<tile_shape<bf16, 64, 4, 1, 64>, 64>; };
template <> struct keys_shape_of<bf16, 128> { using shape = keys_shape<tile_shape<bf16, 128, 4, 1, 32>, 128>; };
template <> struct keys_shape_of<bf16, 256> { using shape = keys_shape<tile_shape<bf16, 256, 4, 1, 32>, 128>; };
template <> struct keys_shape_of<float, 64> { using shape = keys_shape<tile_shape<float, 64, 4, 1, 32>, 64>; };
template <> struct keys_shape_of<float, 128> { using shape = keys_shape<tile_shape<float, 128, 2, 1, 32>, 128>; };
template <> struct keys_shape_of<float, 256> { using shape = keys_shape<tile_shape<float, 256, 2, 1, 16>, 128>; };

struct keys_arguments {
    block_problem p;
    attention_gradient g;
    block_chunk chunk; /* everything */
    block_items items; /* rows: b · G + key head */
    int parts;         /* thread blocks of one key head and slice */
    float *partial; /* [B · G · slices · parts][2][dk, dv][rows][out]: of the keys that the part begins in the middle
                     * of, and of those that it ends in the middle of */
};

/* What an item is about: keys first … first + rows − 1 of its block, one tile of the queries that chose it. */
struct key_item {
    int first;                /* of the block's keys */
    int item_first, item_end; /* items of these keys */
    int head, pair, tile;     /* the first head of the run, b · S + its list, the tile within their rows */
};

template <class S>
__device__ key_item open_item(const keys_arguments &a, const item_walk &walk, int64_t b, int group, int tokens) {
    const block_problem &p = a.p;
    const int pieces = (tokens + S::rows - 1) / S::rows, tiles = (walk.key_end - walk.key_first) / pieces;
    const int within = walk.item - walk.key_first, piece = within / tiles, share = p.heads / p.groups;
    key_item item = {
        piece * S::rows, walk.key_first + piece * tiles, walk.key_first + (piece + 1) * tiles, group * share, 0,
        within % tiles};
    for (;; item.head += p.run) {
        item.pair = static_cast<int>(b) * p.lists + item.head / (p.heads / p.lists);
        const int2 range = a.items.ranges[item.pair * p.documents.bound + walk.key];
        const int here =
            static_cast<int>((static_cast<int64_t>(range.y - range.x) * p.run + S::columns - 1) / S::columns);
        if (item.tile < here || item.head + p.run >= (group + 1) * share) return item;
        item.tile -= here;
    }
}

/* Scores (not scaled) and do·v, keys as rows, become weights and ds. */
template <class S>
__device__ void weigh_keys(float (&scores)[S::tiles][S::groups][4], float (&d_weights)[S::tiles][S::groups][4],
                           const chosen_row *rows, const float2 *records, float scale, int key) {
#pragma unroll
    for (int n = 0; n < 2 * S::groups; n++) {
        const int column = n / 2 * 8 + lane_column() + n % 2, keys = rows[column].columns - key;
        const float2 record = records[column];
#pragma unroll
        for (int r = 0; r < 2 * S::tiles; r++) {
            const int e = r % 2 * 2 + n % 2;
            float &score = scores[r / 2][n / 2][e], &d_weight = d_weights[r / 2][n / 2][e];
            const bool reads = warp_number() * S::tiles * 16 + r * 8 + lane_row() < keys;
            const float weight = exp2_quick(score * scale - record.x);
            score = reads ? weight : 0.0f;
            d_weight = reads ? weight * (d_weight - record.y) : 0.0f;
        }
    }
}

/* The warp's sums to a part's partial results [rows][out]. */
template <class S> __device__ void keep_sums(float *to, const float (&sums)[S::tiles][S::out / 8][4]) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < S::out / 8; n++) {
                const float pair[2] = {sums[tile][n][2 * half], sums[tile][n][2 * half + 1]};
                const int row = (warp_number() * S::tiles + tile) * 16 + 8 * half + lane_row();
                store_pack<2>(to + row * S::out + n * 8 + lane_column(), pair);
            }
}

/* Gives out what the thread block has summed for an item's keys; first_item, end_item: its share. */
template <class S>
__device__ void give_sums(const keys_arguments &a, const key_item &item, int first_item, int end_item, int2 tokens,
                          int64_t b, int group, int slice, float (&dk)[S::tiles][S::out / 8][4],
                          float (&dv)[S::tiles][S::out / 8][4]) {
    using T = typename S::real;
    const block_problem &p = a.p;
    if (item.item_first < first_item || item.item_end > end_item) {
        float *to = a.partial + (static_cast<int64_t>(blockIdx.x) * 2 + (item.item_first < first_item ? 0 : 1)) * 2 *
                                    S::rows * S::out;
        keep_sums<S>(to, dk);
        keep_sums<S>(to + S::rows * S::out, dv);
        return;
    }
    float factor[S::tiles][2];
    const int first = tokens.x + item.first + warp_number() * S::tiles * 16, end = tokens.x + tokens.y;
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = p.scale;
    store_rows<S::tiles, S::out>(attention_rows<T>(a.g.dk, b, group), a.g.dk.token, first, end, slice * S::out, p.width,
                                 a.g.dk.vector, dk, factor, true);
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = 1.0f;
    store_rows<S::tiles, S::out>(attention_rows<T>(a.g.dv, b, group), a.g.dv.token, first, end, slice * S::out, p.width,
                                 a.g.dv.vector, dv, factor, true);
}

/* A thread block: a share of the tiles of one key head. Shared memory: keys and values [rows][stride], queries and
 * their do [columns][stride]. */
template <class S> __global__ void __launch_bounds__(S::threads) gather_keys(keys_arguments a) {
    using T = typename S::real;
    using product = warp_product<T>;
    using left = typename product::template left<S::tiles, S::width, S::stride, false>;
    const block_problem &p = a.p;
    const int unit = static_cast<int>(blockIdx.x) / a.parts, slice = unit % S::slices, row = unit / S::slices;
    const int64_t b = row / p.groups;
    const int group = row % p.groups, own = warp_number() * S::tiles * 16 * S::stride;
    SHARED(chosen_row, rows, [S::columns]);
    SHARED(float2, records, [S::columns]);
    shared_cutter cutter = {shared_memory()};
    T *keys = cutter.take<T>(S::rows * S::stride), *values = cutter.take<T>(S::rows * S::stride);
    T *queries = cutter.take<T>(S::columns * S::stride), *d_outs = cutter.take<T>(S::columns * S::stride);
    float dk[S::tiles][S::out / 8][4], dv[S::tiles][S::out / 8][4];
    clear_sums(dk);
    clear_sums(dv);
    int2 tokens = make_int2(0, 0);
    item_walk walk = walk_items(a.items.before + row * (p.documents.bound + 1), p.documents.count[b],
                                static_cast<int>(blockIdx.x) % a.parts, a.parts);
    const int first_item = walk.item;
    int loaded = -1; /* the first item of the keys that are loaded */
    for (; walk.item < walk.end; walk.item++) {
        if (walk_enter(walk)) tokens = block_tokens(p, b, walk.key);
        const key_item item = open_item<S>(a, walk, b, group, tokens.y);
        find_rows<S::columns>(p, a.chunk, item.pair, a.items.ranges[item.pair * p.documents.bound + walk.key],
                              item.tile, item.head, tokens, rows);
        if (threadIdx.x < S::columns) records[threadIdx.x] = row_record(p, a.g.records, b, rows[threadIdx.x]);
        __syncthreads(); /* rows and records are there for all */
        if (item.item_first != loaded) {
            load_rows<S::rows, S::width, S::stride, S::threads>(keys, attention_rows<const T>(p.k, b, group), p.k.token,
                                                                tokens.x + item.first, tokens.x + tokens.y, p.width,
                                                                p.k.vector);
            load_rows<S::rows, S::width, S::stride, S::threads>(values, attention_rows<const T>(p.v, b, group),
                                                                p.v.token, tokens.x + item.first, tokens.x + tokens.y,
                                                                p.width, p.v.vector);
            loaded = item.item_first;
        }
        load_chosen<S::columns, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.q, b, 0), p.q, rows,
                                                                 p.width);
        load_chosen<S::columns, S::width, S::stride, S::threads>(d_outs, attention_rows<const T>(a.g.d_o, b, 0),
                                                                 a.g.d_o, rows, p.width);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads(); /* all four tiles are there for all */
        float scores[S::tiles][S::groups][4], d_weights[S::tiles][S::groups][4];
        clear_sums(scores);
        product::rows_by_rows(scores, left(keys + own), queries);
        clear_sums(d_weights);
        product::rows_by_rows(d_weights, left(values + own), d_outs);
        weigh_keys<S>(scores, d_weights, rows, records, p.scale_log2, item.first);
        product::template weights_by_rows<S::tiles, S::groups, S::out, S::stride>(dv, scores, d_outs + slice * S::out);
        product::template weights_by_rows<S::tiles, S::groups, S::out, S::stride>(dk, d_weights,
                                                                                  queries + slice * S::out);
        if (walk.item + 1 == item.item_end || walk.item + 1 == walk.end) {
            give_sums<S>(a, item, first_item, walk.end, tokens, b, group, slice, dk, dv);
            clear_sums(dk);
            clear_sums(dv);
        }
        __syncthreads(); /* nobody reads the tiles any more */
    }
}

/* Keys that several parts have sums of: dk, dv += the sums of all, by a thread block in the place of the part that they
 * begin in. */
template <class S> __global__ void __launch_bounds__(S::threads) join_keys(keys_arguments a) {
    using T = typename S::real;
    const block_problem &p = a.p;
    const int part = static_cast<int>(blockIdx.x) % a.parts, unit = static_cast<int>(blockIdx.x) / a.parts;
    const int slice = unit % S::slices, row = unit / S::slices, group = row % p.groups;
    const int64_t b = row / p.groups;
    const int32_t *before = a.items.before + row * (p.documents.bound + 1);
    const int blocks = p.documents.count[b];
    const item_walk share = walk_items(before, blocks, part, a.parts);
    if (share.item == share.end) return;
    item_walk walk = share;
    walk.item = share.end - 1;
    walk_enter(walk);
    const int2 tokens = block_tokens(p, b, walk.key);
    const key_item item = open_item<S>(a, walk, b, group, tokens.y);
    if (item.item_first < share.item || item.item_end <= share.end) return;
    constexpr int64_t size = int64_t{S::rows} * S::out;
    for (int n = static_cast<int>(threadIdx.x); n < size; n += S::threads) {
        const int key = item.first + n / S::out, column = slice * S::out + n % S::out;
        if (key >= tokens.y || column >= p.width) continue;
        const float *own = a.partial + int64_t{blockIdx.x} * 4 * size + n;
        float dk = own[2 * size], dv = own[3 * size];
        for (int next = part + 1; next < a.parts; next++) {
            const item_walk other = walk_items(before, blocks, next, a.parts);
            if (other.item >= item.item_end) break;
            if (other.item == other.end) continue;
            own = a.partial + (int64_t{blockIdx.x} + next - part) * 4 * size + n;
            dk += own[0];
            dv += own[size];
        }
        T *to_k = attention_rows<T>(a.g.dk, b, group) + (tokens.x + key) * a.g.dk.token + column;
        T *to_v = attention_rows<T>(a.g.dv, b, group) + (tokens.x + key) * a.g.dv.token + column;
        *to_k = from_float<T>(to_float(*to_k) + p.scale * dk);
        *to_v = from_float<T>(to_float(*to_v) + dv);
    }
}

block_chunk whole_chunk(const block_problem &p) {
    block_chunk chunk = {};
    chunk.pairs = static_cast<int>(p.batch * p.lists);
    chunk.rows = p.length;
    return chunk;
}

template <class S>
int64_t partial_floats(const struct ops *ops, const block_problem &p, int64_t most_items, int *parts) {
    const int64_t units = p.batch * p.groups * S::slices;
    *parts = block_parts(ops, units, most_items);
    return units * *parts * 4 * S::rows * S::out;
}

template <class S>
enum status run_keys(const struct ops *ops, const block_problem &p, const attention_gradient &g, char *memory) {
    keys_arguments a = {};
    a.p = p;
    a.g = g;
    a.chunk = whole_chunk(p);
    int64_t most_items;
    TRY(block_items_find(ops, "block_attention_backward", p, a.chunk, S::columns, true, S::rows, memory, &a.items,
                         &most_items));
    partial_floats<S>(ops, p, most_items, &a.parts);
    a.partial = reinterpret_cast<float *>(memory + block_items_bytes(p, a.chunk.pairs, true));
    const dim3 grid = grid_over(p.batch * p.groups * S::slices * a.parts, 1);
    constexpr size_t shared = (2 * S::rows + 2 * S::columns) * S::stride * sizeof(typename S::real);
    TRY(device_launch(ops, "block_attention_backward", gather_keys<S>, grid, S::threads, shared, a));
    return device_launch(ops, "block_attention_backward", join_keys<S>, grid, S::threads, 0, a);
}

template <class Body> enum status with_keys_shape(const struct ops *ops, const block_problem &p, Body body) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            return body(typename keys_shape_of<decltype(real), decltype(width)::value>::shape{});
        });
    });
}

} // namespace

enum status block_keys_bytes(const struct ops *ops, const block_problem &p, size_t *bytes) {
    return with_keys_shape(ops, p, [&](auto shape) {
        using S = decltype(shape);
        int64_t most_items;
        int parts;
        TRY(block_items_most("block_attention_backward", p, whole_chunk(p), S::columns, true, S::rows, &most_items));
        *bytes = block_items_bytes(p, p.batch * p.lists, true) +
                 static_cast<size_t>(partial_floats<S>(ops, p, most_items, &parts)) * sizeof(float);
        return STATUS_OK;
    });
}

enum status block_keys(const struct ops *ops, const block_problem &p, const attention_gradient &g, char *memory) {
    return with_keys_shape(ops, p, [&](auto shape) { return run_keys<decltype(shape)>(ops, p, g, memory); });
}
