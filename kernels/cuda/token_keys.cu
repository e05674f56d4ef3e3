/* Attention to single tokens, backward: dk and dv. A block owns neighbouring keys of a key head and walks the queries
 * that read any of them: by their inverted lists, and by arithmetic those whose window or sinks hold them. Keys that
 * many read, as sinks are, would hold up everything: their walk is cut into pieces, each a block's, whose sums lie in
 * scratch memory until they are added in their order. */
#include "kernels/cuda/sort.cuh"
#include "kernels/cuda/tokens.cuh"

namespace {

/* dk and dv of a block: [TILES·16 x OUT]; parts: blocks that share a tile's columns. */
template <class Shape, int OUT> struct keys_shape : Shape {
    static constexpr int own = Shape::tiles * 16, out = OUT, parts = Shape::width / OUT;
    static constexpr int size = Shape::columns * Shape::stride;
};
template <class T, int D> struct keys_shape_of;
template <> struct keys_shape_of<bf16, 64> { using shape = keys_shape<tile_shape<bf16, 64, 4, 2, 16>, 64>; };
template <> struct keys_shape_of<bf16, 128> { using shape = keys_shape<tile_shape<bf16, 128, 4, 1, 16>, 128>; };
template <> struct keys_shape_of<bf16, 256> { using shape = keys_shape<tile_shape<bf16, 256, 4, 1, 16>, 128>; };
template <> struct keys_shape_of<float, 64> { using shape = keys_shape<tile_shape<float, 64, 4, 1, 16>, 64>; };
template <> struct keys_shape_of<float, 128> { using shape = keys_shape<tile_shape<float, 128, 4, 1, 16>, 128>; };
template <> struct keys_shape_of<float, 256> { using shape = keys_shape<tile_shape<float, 256, 2, 1, 8>, 128>; };

/* Tiles are numbered (b·G + group)·tiles + tile. A tile whose walk is cut has a slot for each piece. */
struct piece_plan {
    int *slots;    /* [tiles + 1] slots of earlier tiles */
    int2 *map;     /* [bound] tile and piece of a slot; −1: not used */
    float *sums;   /* [bound][2][own][padded width] of dk and dv */
    int64_t tiles; /* of all sequences and key heads */
    int unit, bound;
};

struct keys_arguments {
    token_problem p;
    inverted_lists lists; /* by tiles of keys; offsets NULL: none */
    piece_plan plan;
    int tiles; /* of a sequence */
};

/* slots[tile] = its pieces, 0 of a walk that is not cut. Such a walk is longer than `unit`, so that its pieces are
 * fewer than twice its length by `unit`; the lengths' sum bounds all of them (pieces_bound). */
__global__ void __launch_bounds__(128) count_pieces(keys_arguments a, int own) {
    const int64_t id = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
    if (id >= a.plan.tiles) return;
    const token_problem &p = a.p;
    const int groups = p.heads / p.share, tile = static_cast<int>(id % a.tiles);
    const int64_t group = id / a.tiles % groups, b = id / a.tiles / groups;
    const tile_reach reach = reach_of(p.sets, b, tile, own);
    int longest = reach.sinks ? reach.dense_end - reach.first : 0;
    for (int64_t h = group * p.share; h < (group + 1) * p.share && !reach.sinks; h++) {
        const int32_t *from;
        longest = max(longest, entries_of(a.lists, b * p.sets.lists + h / p.list_share, tile, &from));
    }
    const int pieces = (longest - 1) / a.plan.unit + 1;
    a.plan.slots[id] = longest > 0 && pieces > 1 ? pieces : 0;
}

/* slots become the slots of earlier tiles, map is filled. One block. */
__global__ void __launch_bounds__(sort_threads) place_pieces(piece_plan plan) {
    SHARED(int, all, [1]);
    int before = 0;
    for (int64_t first = 0; first < plan.tiles; first += sort_threads) {
        const int64_t id = first + threadIdx.x;
        const int pieces = id < plan.tiles ? plan.slots[id] : 0, sum = block_running_sum(pieces);
        const int slot = before + sum - pieces;
        if (id < plan.tiles) plan.slots[id] = slot;
        for (int piece = 0; piece < pieces; piece++) plan.map[slot + piece] = make_int2(static_cast<int>(id), piece);
        if (threadIdx.x == sort_threads - 1) *all = sum;
        __syncthreads();
        before += *all;
    }
    if (threadIdx.x == 0) plan.slots[plan.tiles] = before;
}

/* A block's share: which keys, and which of the queries. slot −1: all of them. */
struct keys_place {
    int tile, group, slot, piece;
    int64_t b;
};
/* False where there is nothing to do. */
__device__ bool find_place(const keys_arguments &a, keys_place *place) {
    const int block = static_cast<int>(blockIdx.x), groups = a.p.heads / a.p.share;
    int id = block - a.plan.bound;
    place->slot = -1;
    place->piece = 0;
    if (id < 0) { /* those of cut walks come first: they are long */
        id = a.plan.map[block].x;
        place->slot = block;
        place->piece = a.plan.map[block].y;
        if (id < 0) return false;
    } else if (a.plan.slots[id + 1] > a.plan.slots[id]) {
        return false;
    }
    place->tile = id % a.tiles;
    place->group = id / a.tiles % groups;
    place->b = id / a.tiles / groups;
    return true;
}

/* The queries of list s of a place. stops: shared [warps]. */
template <class S>
__device__ key_source open_queries(const keys_arguments &a, const keys_place &place, const tile_reach &reach, int64_t s,
                                   int *stops) {
    key_source source;
    const int32_t *from;
    const int count = entries_of(a.lists, place.b * a.p.sets.lists + s, place.tile, &from);
    source.open(a.p.sets, place.b, reach, S::own, from, count, stops, S::warps);
    if (place.slot < 0) return source;
    const int64_t low = int64_t{place.piece} * a.plan.unit, high = low + a.plan.unit;
    if (!reach.sinks)
        source.cut(low > 0 ? source.query_at(low) : 0, source.query_at(high));
    else
        source.cut(static_cast<int>(reach.first + low),
                   reach.first + high < reach.dense_end ? static_cast<int>(reach.first + high) : INT_MAX);
    return source;
}

/* A block's memory: walk_memory, keys and values [own][stride]; for each warp two stages of tiles of q and do and of
 * records. */
template <class S> struct keys_memory {
    using T = typename S::real;
    walk_memory<S> walk;
    T *keys, *values, *all_tiles, *tiles;
    attention_record *records;
    __device__ explicit keys_memory(shared_cutter cutter) : walk(cutter) {
        keys = cutter.take<T>(S::own * S::stride);
        values = cutter.take<T>(S::own * S::stride);
        all_tiles = cutter.take<T>(S::warps * 4 * S::size);
        tiles = all_tiles + warp_number() * 4 * S::size;
        records = cutter.take<attention_record>(S::warps * 2 * S::columns) + warp_number() * 2 * S::columns;
    }
    static constexpr size_t bytes = walk_memory<S>::bytes +
                                    sizeof(T) * (2 * S::own * S::stride + S::warps * 4 * S::size) +
                                    sizeof(attention_record) * S::warps * 2 * S::columns;
};

/* Rows of q and do, and records, of a tile's queries into stage `stage`. */
template <class S>
__device__ void load_queries(const token_problem &p, const keys_memory<S> &memory, int64_t b, int64_t h, int stage,
                             int at, int here) {
    using T = typename S::real;
    T *tile = memory.tiles + 2 * stage * S::size;
    const int lane = static_cast<int>(threadIdx.x % 32);
    gather_rows<S::columns, S::width, S::stride>(tile, attention_rows<const T>(p.q, b, h), p.q.token,
                                                 memory.walk.tokens, at, here, p.width, p.q.vector);
    gather_rows<S::columns, S::width, S::stride>(tile + S::size, attention_rows<const T>(p.d_o, b, h), p.d_o.token,
                                                 memory.walk.tokens, at, here, p.width, p.d_o.vector);
    const attention_record *from = p.records + (b * p.heads + h) * p.sets.length;
    if (lane < S::columns) {
        const bool valid = lane < here;
        copy_async(memory.records + stage * S::columns + lane,
                   valid ? from + memory.walk.tokens[(at + lane) % token_ring] : from, valid);
    }
}

/* Scores (keys by queries) become weights, do·v ds. */
template <class S>
__device__ void weigh_columns(float (&scores)[S::tiles][S::groups][4], float (&d_weights)[S::tiles][S::groups][4],
                              const unsigned (&words)[S::groups][2], const attention_record *records, float scale) {
#pragma unroll
    for (int n = 0; n < 2 * S::groups; n++) {
        const attention_record record = records[n / 2 * 8 + lane_column() + n % 2];
        const unsigned word = words[n / 2][n % 2];
#pragma unroll
        for (int r = 0; r < 2 * S::tiles; r++) {
            float &score = scores[r / 2][n / 2][r % 2 * 2 + n % 2],
                  &d_weight = d_weights[r / 2][n / 2][r % 2 * 2 + n % 2];
            score = word >> (r * 8 + lane_row()) & 1 ? exp2_quick(score * scale - record.z) : 0.0f;
            d_weight = score * (d_weight - record.delta);
        }
    }
}

/* dk, dv += the part of head h's queries. dk lacks the scale. */
template <class S>
__device__ void walk_head(const token_problem &p, const keys_memory<S> &memory, key_source &source, int64_t b,
                          int64_t h, int part, float (&dk)[S::tiles][S::out / 8][4],
                          float (&dv)[S::tiles][S::out / 8][4]) {
    using T = typename S::real;
    using product = warp_product<T>;
    using left = typename product::template left<S::tiles, S::width, S::stride, false>;
    token_walk<S, key_source> walk(source, memory.walk.words, memory.walk.tokens, memory.walk.bits);
    int at = 0, here = 0; /* of the tile in hand */
    for (int stage = 0;; stage ^= 1) {
        int after_at;
        const int after = walk.next(&after_at);
        if (after > 0) load_queries<S>(p, memory, b, h, stage ^ 1, after_at, after);
        copy_async_commit();
        if (here > 0) {
            copy_async_wait<1>();
            __syncwarp(); /* this tile is there for all lanes */
            const T *queries = memory.tiles + 2 * stage * S::size, *d_outs = queries + S::size;
            float scores[S::tiles][S::groups][4], d_weights[S::tiles][S::groups][4];
            unsigned words[S::groups][2];
            walk.words_of(words, at, here);
            clear_sums(scores);
            product::rows_by_rows(scores, left(memory.keys), queries);
            clear_sums(d_weights);
            product::rows_by_rows(d_weights, left(memory.values), d_outs);
            weigh_columns<S>(scores, d_weights, words, memory.records + stage * S::columns, p.scale_log2);
            product::template weights_by_rows<S::tiles, S::groups, S::out, S::stride>(dv, scores,
                                                                                      d_outs + part * S::out);
            product::template weights_by_rows<S::tiles, S::groups, S::out, S::stride>(dk, d_weights,
                                                                                      queries + part * S::out);
            __syncwarp(); /* nobody reads it any more */
        }
        if (after == 0) break;
        at = after_at;
        here = after;
    }
    copy_async_wait<0>();
}

/* A block: S::own keys of one key head, or a piece of their walk; S::out columns (blockIdx.y) of their dk and dv. */
template <class S> __global__ void __launch_bounds__(S::threads) gather_keys(keys_arguments a) {
    using T = typename S::real;
    const token_problem &p = a.p;
    const int part = static_cast<int>(blockIdx.y);
    keys_place place;
    if (!find_place(a, &place)) return;
    const keys_memory<S> memory(shared_cutter{shared_memory()});
    const tile_reach reach = reach_of(p.sets, place.b, place.tile, S::own);
    load_rows<S::own, S::width, S::stride, S::threads>(memory.keys, attention_rows<const T>(p.k, place.b, place.group),
                                                       p.k.token, reach.first, p.sets.length, p.width, p.k.vector);
    load_rows<S::own, S::width, S::stride, S::threads>(memory.values,
                                                       attention_rows<const T>(p.v, place.b, place.group), p.v.token,
                                                       reach.first, p.sets.length, p.width, p.v.vector);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    float dk[S::tiles][S::out / 8][4], dv[S::tiles][S::out / 8][4], factor[S::tiles][2];
    clear_sums(dk);
    clear_sums(dv);
    for (int64_t h = int64_t{place.group} * p.share; h < int64_t{place.group + 1} * p.share; h++) {
        key_source source = open_queries<S>(a, place, reach, h / p.list_share, memory.walk.scratch);
        walk_head<S>(p, memory, source, place.b, h, part, dk, dv);
    }
    float *sums = a.plan.sums + int64_t{place.slot} * 2 * S::own * S::width;
    const auto put = [&](const attention_view &view, int64_t of) {
        T *to = attention_rows<T>(view, place.b, place.group);
        return [&p, &reach, view, to, of, sums, slot = place.slot, part](int row, int column, float sum) {
            const int key = reach.first + row, d = part * S::out + column;
            if (slot >= 0)
                sums[(of * S::own + row) * S::width + d] = sum;
            else if (key < p.sets.length && d < p.width)
                to[key * view.token + d] = from_float<T>(sum);
        };
    };
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = p.scale;
    merge_warps<S, S::out>(dk, factor, reinterpret_cast<float *>(memory.all_tiles), put(p.dk, 0));
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = 1.0f;
    merge_warps<S, S::out>(dv, factor, reinterpret_cast<float *>(memory.all_tiles), put(p.dv, 1));
}

/* dk and dv of a tile whose walk was cut. A block a tile, at the place of its first slot. */
template <class S> __global__ void __launch_bounds__(256) add_pieces(keys_arguments a) {
    using T = typename S::real;
    const token_problem &p = a.p;
    const int2 slot = a.plan.map[blockIdx.x];
    if (slot.x < 0 || slot.y > 0) return;
    const int groups = p.heads / p.share, first = slot.x % a.tiles * S::own;
    const int64_t group = slot.x / a.tiles % groups, b = slot.x / a.tiles / groups;
    const int pieces = a.plan.slots[slot.x + 1] - a.plan.slots[slot.x];
    constexpr int64_t each = 2 * S::own * S::width;
    const float *sums = a.plan.sums + blockIdx.x * each;
    for (int n = static_cast<int>(threadIdx.x); n < each; n += 256) {
        const int d = n % S::width, row = n / S::width % S::own;
        if (first + row >= p.sets.length || d >= p.width) continue;
        const attention_view &view = n < each / 2 ? p.dk : p.dv;
        float sum = 0.0f;
        for (int piece = 0; piece < pieces; piece++) sum += sums[piece * each + n];
        attention_rows<T>(view, b, group)[(first + row) * view.token + d] = from_float<T>(sum);
    }
}

/* What the plan depends on, of the host's. */
struct keys_sizes {
    int64_t tiles, all; /* of a sequence, of everything */
    int64_t unit, bound, own, width;
    size_t slots, map, sums, lists;
};
template <class S> keys_sizes sizes_of(const struct token_attention *a) {
    const bool choice = tensor_present(a->chosen) && a->chosen.shape[3] > 0;
    const int64_t batch = a->k.shape[0], length = a->k.shape[1], groups = a->k.shape[2];
    const int64_t lists = choice ? a->chosen.shape[2] : 1, select = choice ? a->chosen.shape[3] : 0;
    const int64_t sinks = min(int64_t{a->sinks}, length), seen = lists > groups ? lists / groups : 1;
    const auto padded = [](int64_t bytes) { return static_cast<size_t>(divide_up(bytes, 256) * 256); };
    keys_sizes sizes = {};
    sizes.own = S::own;
    sizes.width = S::width;
    sizes.tiles = divide_up(length, S::own);
    sizes.all = batch * groups * sizes.tiles;
    /* Eight times what a tile's walk is long on average: sums of pieces then take about as much as k and v. */
    sizes.unit = min(8 * max(S::own * select, sinks + 2 * S::own), int64_t{INT_MAX});
    /* Lists of a key head that are cut: 2 · entries / unit. Sinks: a document has at most sinks / own + 2 tiles of
     * them; the walk of each is its length and up to own tokens before it, which is 8/7 of its length at most, as a
     * unit is 8 times own or more. */
    sizes.bound =
        batch * groups * (2 * seen * length * select / sizes.unit + 3 * (sinks / S::own + 2) * length / sizes.unit + 1);
    sizes.slots = padded((sizes.all + 1) * static_cast<int64_t>(sizeof(int)));
    sizes.map = padded(sizes.bound * static_cast<int64_t>(sizeof(int2)));
    sizes.sums = padded(sizes.bound * 2 * S::own * S::width * static_cast<int64_t>(sizeof(float)));
    sizes.lists = choice ? inverted_bytes(batch, length, lists, select, sizes.tiles) : 0;
    return sizes;
}

template <class Body> auto with_keys_shape(const struct ops *ops, int64_t width, Body body) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(static_cast<int>(width), [&](auto padded) {
            return body(typename keys_shape_of<decltype(real), decltype(padded)::value>::shape{});
        });
    });
}

} // namespace

size_t token_keys_bytes(const struct ops *ops, const struct token_attention *a) {
    size_t bytes = 0;
    (void)with_keys_shape(ops, a->k.shape[3], [&](auto shape) {
        const keys_sizes sizes = sizes_of<decltype(shape)>(a);
        bytes = sizes.slots + sizes.map + sizes.sums + sizes.lists;
        return STATUS_OK;
    });
    return bytes;
}

enum status token_keys(const struct ops *ops, const struct token_attention *a, const token_problem &p, void *memory) {
    const char *operation = "token_attention_backward";
    return with_keys_shape(
        ops, a->k.shape[3], [&](auto shape) -> enum status {
            using S = decltype(shape);
            const keys_sizes sizes = sizes_of<S>(a);
            if (sizes.all + sizes.bound > INT_MAX)
                return error_set(STATUS_SHAPE, "%s: expected up to %d tiles of keys, found %lld", operation, INT_MAX,
                                 static_cast<long long>(sizes.all + sizes.bound));
            char *at = static_cast<char *>(memory);
            keys_arguments arguments = {};
            arguments.p = p;
            arguments.tiles = static_cast<int>(sizes.tiles);
            piece_plan &plan = arguments.plan;
            plan.slots = reinterpret_cast<int *>(at);
            plan.map = reinterpret_cast<int2 *>(at + sizes.slots);
            plan.sums = reinterpret_cast<float *>(at + sizes.slots + sizes.map);
            plan.tiles = sizes.all;
            plan.unit = static_cast<int>(sizes.unit);
            plan.bound = static_cast<int>(sizes.bound);
            if (p.sets.chosen)
                TRY(inverted_build(ops, operation, a->chosen, inverted_rule{nullptr, nullptr, sizes.tiles, S::own},
                                   at + sizes.slots + sizes.map + sizes.sums, &arguments.lists));
            CUDA_TRY(cudaMemsetAsync(plan.map, 0xff, sizes.map, ops->device->stream));
            TRY(device_launch(ops, operation, count_pieces, grid_over(sizes.all, 128), 128, 0, arguments,
                              static_cast<int>(S::own)));
            TRY(device_launch(ops, operation, place_pieces, dim3(1), sort_threads, 0, plan));
            const dim3 grid(static_cast<unsigned>(sizes.all + sizes.bound), S::parts);
            TRY(device_launch(ops, operation, gather_keys<S>, grid, S::threads, keys_memory<S>::bytes, arguments));
            return device_launch(ops, operation, add_pieces<S>, dim3(static_cast<unsigned>(sizes.bound)), 256, 0,
                                 arguments);
        });
}
