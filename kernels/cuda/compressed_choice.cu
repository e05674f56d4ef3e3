/* The choice of selection blocks, from weights that are made again from log_sums: no [T,Nb] is stored. A block of
 * threads owns queries of one list and walks the compressed blocks that they see, a tile at a time, all heads of the
 * list before the next tile. A tile's weights, summed over the heads, become importances of selection blocks; one that
 * a tile cuts is carried on to the next. Of the complete ones a row keeps what may be among its most important. */
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/compressed.cuh"

namespace {

template <class T, int D> struct choice_shape;
template <> struct choice_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 1, 64>; };
template <> struct choice_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 64>; };
template <> struct choice_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <int D> struct choice_shape<float, D> {
    using shape = tile_shape<float, D, D == 256 ? 2 : 4, 1, D == 256 ? 16 : 32>;
};

/* Bytes of a block's candidates, and of what edges cut, that still lie in shared memory: beside any shape's tiles
 * within the 163 KiB of an A100. */
constexpr int64_t entries_shared = 54 << 10;
constexpr int carried_most = 64; /* selection blocks that an edge between tiles may cut */

struct choice_arguments {
    attention_view q, k;
    const int32_t *begin, *base; /* [B,T] of document_blocks */
    const float *log_sums;       /* [B,H,T] */
    int32_t *chosen;             /* [B,T,lists,select] */
    unsigned *spilled;           /* candidates of the running blocks of threads; NULL: in shared memory */
    choice_sizes sizes;
    int64_t tiles, pairs; /* of queries; of sequences and lists */
    int length, keys, heads, share, lists, members /* heads of a list */, width;
    int competing /* select − 3 */, carried, capacity /* candidates that a row holds */;
    float scale_log2;
};

/* A query: its document's first compressed block, the block of tokens it lies in, and how many compressed blocks its
 * choice must look at: none where all blocks are chosen. */
struct choosing_row {
    int base, own, visible;
};

/* A block's shared memory. */
template <class S> struct choice_memory {
    typename S::real *queries, *keys; /* [1 or 2 stages][rows][stride], [2][columns][stride] */
    float *weights;                   /* [rows][columns + 1] */
    float *carry;                     /* [2][rows][carried] */
    choosing_row *rows;
    int *used;        /* [rows] candidates held */
    unsigned *least;  /* [rows] the least key that is still looked for */
    unsigned *values; /* [rows][capacity] keys of candidates, and */
    int *numbers;     /* their blocks, ascending */

    __device__ choice_memory(char *memory, const choice_arguments &a) {
        using T = typename S::real;
        shared_cutter cutter = {memory};
        queries = cutter.take<T>((a.members > 1 ? 2 : 1) * S::rows * S::stride);
        keys = cutter.take<T>(2 * S::columns * S::stride);
        weights = cutter.take<float>(S::rows * (S::columns + 1));
        carry = cutter.take<float>(2 * S::rows * a.carried);
        rows = cutter.take<choosing_row>(S::rows);
        used = cutter.take<int>(S::rows);
        least = cutter.take<unsigned>(S::rows);
        const int entries = S::rows * a.capacity;
        values =
            a.spilled ? a.spilled + static_cast<int64_t>(blockIdx.x) * 2 * entries : cutter.take<unsigned>(entries);
        numbers = a.spilled ? reinterpret_cast<int *>(values + entries) : cutter.take<int>(entries);
    }
    static size_t bytes(const choice_arguments &a) {
        const size_t rows = S::rows, tiles = (a.members > 1 ? 2 : 1) * rows + 2 * S::columns;
        const size_t each = sizeof(float) * (S::columns + 1 + 2 * static_cast<size_t>(a.carried)) +
                            sizeof(choosing_row) + 2 * sizeof(int) +
                            (a.spilled ? 0 : 2 * sizeof(int) * static_cast<size_t>(a.capacity));
        return tiles * S::stride * sizeof(typename S::real) + rows * each + 9 * 16;
    }
};

/* Which queries of which list. */
struct choice_place {
    int64_t b;
    int list, first;
};

/* The row's candidates lose all but the `competing` most important; returns how many that are. By a warp. */
__device__ int merge_candidates(int competing, int used, unsigned *values, int *numbers, unsigned *least) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const auto reaching = [&](unsigned bound) {
        int count = 0;
        for (int n = 0; n < used; n += 32)
            count += __popc(__ballot_sync(whole_warp, n + lane < used && values[n + lane] >= bound));
        return count;
    };
    const unsigned bound = find_bound(competing, reaching);
    *least = bound + 1; /* later blocks lose ties */
    return keep_largest(
        used, bound, competing - reaching(bound + 1),
        [&](int n) {
            return choice_entry{values[n], numbers[n]};
        },
        [&](int to, choice_entry entry) {
            values[to] = entry.key;
            numbers[to] = entry.block;
        });
}

/* Importances from the weights of a tile that begins at block `key` of the sequence; complete ones become candidates of
 * row `row`. By a warp. */
template <class S>
__device__ void take_row(const choice_arguments &a, const choice_memory<S> &memory, int row, int key) {
    const choosing_row place = memory.rows[row];
    const choice_sizes &sizes = a.sizes;
    const int tile = key / S::columns, lane = static_cast<int>(threadIdx.x % 32);
    const int from = max(key - place.base, 0), end = min(key + S::columns - place.base, place.visible);
    if (from >= end) return;
    const float *weights = memory.weights + row * (S::columns + 1);
    const float *entering = memory.carry + (tile % 2 * S::rows + row) * a.carried;
    float *leaving = memory.carry + ((tile + 1) % 2 * S::rows + row) * a.carried;
    unsigned *values = memory.values + static_cast<int64_t>(row) * a.capacity;
    int *numbers = memory.numbers + static_cast<int64_t>(row) * a.capacity;
    int used = memory.used[row];
    unsigned least = memory.least[row];
    const int last = (end + sizes.overlap - 2) / sizes.units;
    for (int run = from / sizes.units; run <= last; run += 32) {
        const int b = run + lane;
        unsigned value = 0;
        bool complete = false;
        if (b <= last) {
            const bool begun = max(b * sizes.units - sizes.overlap + 1, 0) < from;
            const float sum = add_importance(sizes, b, from, end, begun ? entering[b % a.carried] : 0.0f,
                                             [&](int u) { return weights[u + place.base - key]; });
            complete = min((b + 1) * sizes.units, place.visible) <= end;
            if (!complete) leaving[b % a.carried] = sum;
            value = importance_key(sum);
        }
        const bool competes = complete && b >= 1 && b <= place.own - 2;
        unsigned wanted = __ballot_sync(whole_warp, competes && value >= least);
        if (wanted == 0) continue;
        if (used + __popc(wanted) > a.capacity) {
            __syncwarp(); /* the candidates are written */
            used = merge_candidates(a.competing, used, values, numbers, &least);
            wanted = __ballot_sync(whole_warp, competes && value >= least);
        }
        if (wanted >> lane & 1) {
            const int at = used + __popc(wanted & ((1u << lane) - 1));
            values[at] = value;
            numbers[at] = b;
        }
        used += __popc(wanted);
    }
    if (lane == 0) {
        memory.used[row] = used;
        memory.least[row] = least;
    }
}

/* The list of a row. By a warp. */
template <class S>
__device__ void write_row(const choice_arguments &a, const choice_memory<S> &memory, const choice_place &at, int row) {
    const int i = at.first + row, lane = static_cast<int>(threadIdx.x % 32), select = a.sizes.select;
    if (i >= a.length) return;
    const choosing_row place = memory.rows[row];
    int32_t *chosen = a.chosen + ((at.b * a.length + i) * a.lists + at.list) * select;
    unsigned *values = memory.values + static_cast<int64_t>(row) * a.capacity, least;
    int *numbers = memory.numbers + static_cast<int64_t>(row) * a.capacity;
    if (memory.used[row] > a.competing) merge_candidates(a.competing, memory.used[row], values, numbers, &least);
    __syncwarp();
    for (int s = lane; s < select; s += 32) {
        int number = s; /* all blocks, or nothing tells them apart */
        if (place.own < select) {
            if (s > place.own) number = -1;
        } else if (s >= select - 2) {
            number = place.own - (select - 1 - s);
        } else if (s > 0 && place.visible > 0) {
            number = numbers[s - 1];
        }
        chosen[s] = number;
    }
}

/* The rows' places; returns the tiles of keys that some row looks at as (first, end). By all threads. */
template <class S>
__device__ int2 open_rows(const choice_arguments &a, const choice_memory<S> &memory, const choice_place &at) {
    for (int r = static_cast<int>(threadIdx.x); r < S::rows; r += S::threads) {
        choosing_row row = {0, 0, 0};
        if (at.first + r < a.length) {
            const int64_t token = at.b * a.length + at.first + r;
            const int place = at.first + r - a.begin[token];
            row.own = place / a.sizes.block;
            if (row.own >= a.sizes.select && a.competing > 0)
                row.visible = visible_blocks(place, a.sizes.compress, a.sizes.stride);
            if (row.visible > 0) row.base = a.base[token];
        }
        memory.rows[r] = row;
        memory.used[r] = 0;
        memory.least[r] = 0;
    }
    __syncthreads();
    int low = INT_MAX, high = 0;
    for (int r = static_cast<int>(threadIdx.x % 32); r < S::rows; r += 32) {
        const choosing_row row = memory.rows[r];
        if (row.visible == 0) continue;
        low = min(low, row.base);
        high = max(high, row.base + row.visible);
    }
    low = -warp_max(-low);
    high = warp_max(high);
    return high > 0 ? make_int2(low / S::columns, (high + S::columns - 1) / S::columns) : make_int2(0, 0);
}

/* weights += e^{score − log Z} of the blocks that the rows see. log_sums: the head's. */
template <class S>
__device__ void add_weights(const choice_arguments &a, const choice_memory<S> &memory,
                            const float (&scores)[S::tiles][S::groups][4], const float *log_sums, int first, int key,
                            float (&weights)[S::tiles][S::groups][4]) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = (warp_number() * S::tiles + tile) * 16 + 8 * half + lane_row();
            const choosing_row place = memory.rows[row];
            const float z = place.visible > 0 ? log2_of_e * log_sums[first + row] : 0.0f;
#pragma unroll
            for (int n = 0; n < S::groups; n++)
#pragma unroll
                for (int odd = 0; odd < 2; odd++) {
                    const int u = key + n * 8 + lane_column() + odd - place.base;
                    if (static_cast<unsigned>(u) < static_cast<unsigned>(place.visible))
                        weights[tile][n][2 * half + odd] +=
                            exp2_quick(scores[tile][n][2 * half + odd] * a.scale_log2 - z);
                }
        }
}

/* A tile's weights, where the warp that owns the rows can read them. */
template <class S>
__device__ void store_weights(const choice_memory<S> &memory, const float (&weights)[S::tiles][S::groups][4]) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int row = (warp_number() * S::tiles + tile) * 16 + 8 * (e / 2) + lane_row();
                memory.weights[row * (S::columns + 1) + n * 8 + lane_column() + e % 2] = weights[tile][n][e];
            }
}

/* S::rows queries of one list. */
template <class S>
__device__ void choose_tile(const choice_arguments &a, const choice_memory<S> &memory, const choice_place &at) {
    using T = typename S::real;
    using product = warp_product<T>;
    constexpr int query_size = S::rows * S::stride, key_size = S::columns * S::stride;
    const int2 walk = open_rows(a, memory, at);
    const int steps = (walk.y - walk.x) * a.members; /* all heads of a tile, then the next tile */
    const auto load = [&](int step, int stage) {
        const int h = at.list * a.members + step % a.members, key = (walk.x + step / a.members) * S::columns;
        if (step == 0 || a.members > 1)
            load_rows<S::rows, S::width, S::stride, S::threads>(
                memory.queries + (a.members > 1 ? stage : 0) * query_size, attention_rows<const T>(a.q, at.b, h),
                a.q.token, at.first, a.length, a.width, a.q.vector);
        load_rows<S::columns, S::width, S::stride, S::threads>(memory.keys + stage * key_size,
                                                               attention_rows<const T>(a.k, at.b, h / a.share),
                                                               a.k.token, key, a.keys, a.width, a.k.vector);
    };
    float weights[S::tiles][S::groups][4];
    if (steps > 0) load(0, 0);
    copy_async_commit();
    for (int step = 0, stage = 0; step < steps; step++, stage ^= 1) {
        const int member = step % a.members, key = (walk.x + step / a.members) * S::columns;
        if (step + 1 < steps) load(step + 1, stage ^ 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads(); /* this tile is there for all */
        float scores[S::tiles][S::groups][4];
        clear_sums(scores);
        if (member == 0) clear_sums(weights);
        product::rows_by_rows(
            scores,
            typename product::template left<S::tiles, S::width, S::stride, false>(
                memory.queries + (a.members > 1 ? stage : 0) * query_size + warp_number() * S::tiles * 16 * S::stride),
            memory.keys + stage * key_size);
        add_weights(a, memory, scores, a.log_sums + (at.b * a.heads + at.list * a.members + member) * a.length,
                    at.first, key, weights);
        if (member == a.members - 1) {
            store_weights(memory, weights);
            __syncwarp(); /* a warp reads what it has written itself */
            for (int r = 0; r < S::tiles * 16; r++) take_row(a, memory, warp_number() * S::tiles * 16 + r, key);
            __syncwarp();
        }
        __syncthreads(); /* nobody reads it any more */
    }
    copy_async_wait<0>();
    __syncwarp();
    for (int r = 0; r < S::tiles * 16; r++) write_row(a, memory, at, warp_number() * S::tiles * 16 + r);
    __syncthreads(); /* the rows' places are read */
}

/* A block takes places blockIdx.x, + gridDim.x, …: later queries, which see more, come first. */
template <class S>
__global__ void __launch_bounds__(S::threads, S::threads == 64 ? 4 : 3) choose_blocks(choice_arguments a) {
    const choice_memory<S> memory(shared_memory(), a);
    for (int64_t n = blockIdx.x; n < a.tiles * a.pairs; n += gridDim.x) {
        const int64_t pair = n % a.pairs, tile = a.tiles - 1 - n / a.pairs;
        choose_tile(a, memory,
                    choice_place{pair / a.lists, static_cast<int>(pair % a.lists), static_cast<int>(tile) * S::rows});
    }
}

constexpr int rows_most = 64; /* of all shapes */

/* What decides how much memory the candidates take, and what edges cut (blocks that no sequence of this length can hold
 * cut nothing). A merge keeps `competing`, and 32 more must fit in. */
void size_candidates(const struct ops *ops, const struct compressed_attention *a, choice_arguments *g,
                     int64_t *spill_blocks) {
    g->sizes = choice_sizes_of(a->compress, a->stride, a->block, a->select, a->k.shape[1]);
    g->carried = a->compress > a->q.shape[1] ? 1 : (g->sizes.overlap + g->sizes.units - 2) / g->sizes.units + 1;
    g->competing = a->select - 3;
    g->capacity = g->competing + (g->competing > 32 ? g->competing : 32);
    *spill_blocks = 0;
    if ((static_cast<int64_t>(g->capacity) + g->carried) * rows_most * 8 > entries_shared)
        *spill_blocks = 2 * static_cast<int64_t>(ops->device->multiprocessors);
}

template <class S> enum status run_choice(const struct ops *ops, choice_arguments a, int64_t spill_blocks) {
    a.tiles = divide_up(a.length, S::rows);
    if (a.tiles * a.pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "compressed_attention: expected up to %d tiles of queries, found %lld", INT_MAX,
                         static_cast<long long>(a.tiles * a.pairs));
    const int64_t all = a.tiles * a.pairs, blocks = a.spilled && spill_blocks < all ? spill_blocks : all;
    return device_launch(ops, "compressed_attention", choose_blocks<S>, dim3(static_cast<unsigned>(blocks)), S::threads,
                         choice_memory<S>::bytes(a), a);
}

} // namespace

size_t compressed_choice_bytes(const struct ops *ops, const struct compressed_attention *a) {
    choice_arguments g = {};
    int64_t spill_blocks;
    size_candidates(ops, a, &g, &spill_blocks);
    return static_cast<size_t>(spill_blocks) * rows_most * static_cast<size_t>(g.capacity) * 2 * sizeof(unsigned);
}

enum status compressed_choice(const struct ops *ops, const struct compressed_attention *a, const attention_problem &p,
                              const document_blocks &blocks, void *memory) {
    choice_arguments g = {};
    int64_t spill_blocks;
    size_candidates(ops, a, &g, &spill_blocks);
    g.q = p.q;
    g.k = p.k;
    g.begin = blocks.begin;
    g.base = blocks.base;
    g.log_sums = p.log_sums;
    g.chosen = data_of<int32_t>(a->chosen);
    g.spilled = spill_blocks ? static_cast<unsigned *>(memory) : nullptr;
    g.length = p.length;
    g.keys = p.keys;
    g.heads = p.heads;
    g.share = p.share;
    g.members = a->select_group;
    g.lists = p.heads / g.members;
    g.width = p.width;
    g.pairs = a->q.shape[0] * g.lists;
    g.scale_log2 = p.scale_log2;
    if (g.carried > carried_most)
        return error_set(STATUS_SHAPE,
                         "compressed_attention: block: expected compressed blocks of %d to lie in up to %d selection "
                         "blocks, found selection blocks of %d",
                         a->compress, carried_most, a->block);
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            using S = typename choice_shape<decltype(real), decltype(width)::value>::shape;
            static_assert(S::rows <= rows_most, "candidates have room for rows_most rows");
            return run_choice<S>(ops, g, spill_blocks);
        });
    });
}
