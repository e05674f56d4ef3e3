/* Attention to chosen blocks, backward: the window's part by attention's own kernels under the normaliser of both
 * parts; then dq of the chosen part, by partial results of (query, head, slot) as forward; block_keys.cu makes dk and
 * dv. */
#include "kernels/cuda/block_attention.cuh"

namespace {

template <class T, int D> struct rows_shape;
template <> struct rows_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 1, 64>; };
template <> struct rows_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 64>; };
template <> struct rows_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <int D> struct rows_shape<float, D> {
    using shape = tile_shape<float, D, D == 256 ? 2 : 4, 1, D == 256 ? 16 : 32>;
};

struct rows_arguments {
    block_problem p;
    attention_view d_o, dq;
    const attention_record *records; /* [B,H,T] */
    block_chunk chunk;
    block_items items;
    int parts;   /* thread blocks of one list and run of heads */
    float *sums; /* [slots of the chunk][partial_width] Σ_j ds_ij k_j */
    bool accumulate;
};

/* Scores (not scaled) and do·v of a tile become ds. rows, records: the warp's; key: of the block. */
template <class S>
__device__ void weigh_scores(float (&scores)[S::tiles][S::groups][4], const float (&d_weights)[S::tiles][S::groups][4],
                             const chosen_row *rows, const float2 *records, float scale, int key) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = tile * 16 + 8 * half + lane_row(), columns = rows[row].columns - key - lane_column();
            const float2 record = records[row];
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++) {
                float &score = scores[tile][n / 2][2 * half + n % 2];
                const float d_score =
                    exp2_quick(score * scale - record.x) * (d_weights[tile][n / 2][2 * half + n % 2] - record.y);
                score = n / 2 * 8 + n % 2 < columns ? d_score : 0.0f;
            }
        }
}

/* A thread block: a share of the tiles of one list of the chunk and one run of its heads. Shared memory: queries and
 * their do [rows][stride], keys and values [columns][stride]. */
template <class S> __global__ void __launch_bounds__(S::threads) gather_chosen(rows_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    using left = typename product::template left<S::tiles, S::width, S::stride, false>;
    const block_problem &p = g.p;
    const int runs = p.heads / p.lists / p.run, unit = static_cast<int>(blockIdx.x) / g.parts;
    const int pair = unit / runs, list = static_cast<int>((g.chunk.first_pair + pair) % p.lists);
    const int64_t b = (g.chunk.first_pair + pair) / p.lists;
    const int first_head = (list * runs + unit % runs) * p.run, group = first_head / (p.heads / p.groups);
    SHARED(chosen_row, rows, [S::rows]);
    SHARED(float2, records, [S::rows]);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *d_outs = cutter.take<T>(S::rows * S::stride);
    T *keys = cutter.take<T>(S::columns * S::stride), *values = cutter.take<T>(S::columns * S::stride);
    const int own = warp_number() * S::tiles * 16;
    int2 tokens = make_int2(0, 0), range = make_int2(0, 0);
    int loaded = -1; /* the block's key that keys and values begin with */
    item_walk walk = walk_items(g.items.before + pair * (p.documents.bound + 1), p.documents.count[b],
                                static_cast<int>(blockIdx.x) % g.parts, g.parts);
    for (; walk.item < walk.end; walk.item++) {
        if (walk_enter(walk)) {
            tokens = block_tokens(p, b, walk.key);
            range = g.items.ranges[pair * p.documents.bound + walk.key];
            loaded = -1;
        }
        find_rows<S::rows>(p, g.chunk, pair, range, walk.item - walk.key_first, first_head, tokens, rows);
        if (threadIdx.x < S::rows) records[threadIdx.x] = row_record(p, g.records, b, rows[threadIdx.x]);
        __syncthreads(); /* rows and records are there for all */
        load_chosen<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.q, b, 0), p.q, rows,
                                                              p.width);
        load_chosen<S::rows, S::width, S::stride, S::threads>(d_outs, attention_rows<const T>(g.d_o, b, 0), g.d_o, rows,
                                                              p.width);
        float dq[S::tiles][S::width / 8][4];
        clear_sums(dq);
        for (int key = 0; key < tokens.y; key += S::columns) {
            if (key != loaded) {
                load_rows<S::columns, S::width, S::stride, S::threads>(keys, attention_rows<const T>(p.k, b, group),
                                                                       p.k.token, tokens.x + key, tokens.x + tokens.y,
                                                                       p.width, p.k.vector);
                load_rows<S::columns, S::width, S::stride, S::threads>(values, attention_rows<const T>(p.v, b, group),
                                                                       p.v.token, tokens.x + key, tokens.x + tokens.y,
                                                                       p.width, p.v.vector);
                loaded = key;
            }
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads(); /* queries, do, keys and values are there for all */
            float scores[S::tiles][S::groups][4], d_weights[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(scores, left(queries + own * S::stride), keys);
            clear_sums(d_weights);
            product::rows_by_rows(d_weights, left(d_outs + own * S::stride), values);
            weigh_scores<S>(scores, d_weights, rows + own, records + own, p.scale_log2, key);
            product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(dq, scores, keys);
            if (key + S::columns < tokens.y) __syncthreads(); /* nobody reads these keys any more */
        }
        store_partial<S::tiles, S::width>(g.sums, partial_width(p), rows + own, dq);
        __syncthreads(); /* nobody reads the tile any more */
    }
}

/* dq = (or +=) scale · the partial results of a chunk, in the order of the list. A warp: a head of a query. */
template <class T, int D> __global__ void __launch_bounds__(join_threads) join_dq(rows_arguments g) {
    const block_problem &p = g.p;
    constexpr int each = D / 32; /* columns of a lane: 32 apart */
    const int lane = static_cast<int>(threadIdx.x % 32), step = partial_width(p);
    const int64_t count = static_cast<int64_t>(g.chunk.pairs) * (p.heads / p.lists) * g.chunk.rows;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * (join_threads / 32) + threadIdx.x / 32; n < count;
         n += static_cast<int64_t>(gridDim.x) * (join_threads / 32)) {
        const auto [b, i, list, head] = joined_row_of(p, g.chunk, n);
        float sum[each];
#pragma unroll
        for (int k = 0; k < each; k++) sum[k] = 0.0f;
        for (int first = 0; first < p.select; first += 32) {
            const bool reads = first + lane < p.select && slot_is_read(p, b * p.length + i, list, first + lane);
            for (unsigned left = __ballot_sync(whole_warp, reads); left; left &= left - 1) {
                const int s = first + __ffs(static_cast<int>(left)) - 1;
                const float *part = g.sums + (n * p.select + s) * step;
#pragma unroll
                for (int k = 0; k < each; k++)
                    if (lane + k * 32 < p.width) sum[k] += part[lane + k * 32];
            }
        }
        T *dq = attention_rows<T>(g.dq, b, head) + i * g.dq.token;
#pragma unroll
        for (int k = 0; k < each; k++) {
            const int column = lane + k * 32;
            if (column < p.width)
                dq[column] = from_float<T>(p.scale * sum[k] + (g.accumulate ? to_float(dq[column]) : 0.0f));
        }
    }
}

/* dk = dv = 0. count: elements of one. */
template <class T>
__global__ void __launch_bounds__(256)
    clear_keys(block_problem p, attention_view dk, attention_view dv, int64_t count) {
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < count;
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t d = n % p.width, group = n / p.width % p.groups, row = n / p.width / p.groups;
        const int64_t b = row / p.length, t = row % p.length;
        attention_rows<T>(dk, b, group)[t * dk.token + d] = from_float<T>(0.0f);
        attention_rows<T>(dv, b, group)[t * dv.token + d] = from_float<T>(0.0f);
    }
}

template <class S>
enum status run_rows(const struct ops *ops, rows_arguments g, const block_chunk &most, char *memory) {
    using T = typename S::real;
    const block_problem &p = g.p;
    g.sums = reinterpret_cast<float *>(memory + block_items_bytes(p, most.pairs, false));
    return for_chunks(p, most, [&](const block_chunk &chunk) {
        const int64_t units = static_cast<int64_t>(chunk.pairs) * (p.heads / p.lists / p.run);
        int64_t most_items;
        g.chunk = chunk;
        if (p.select > 0) {
            TRY(block_items_find(ops, "block_attention_backward", p, chunk, S::rows, false, S::columns, memory,
                                 &g.items, &most_items));
            g.parts = block_parts(ops, units, most_items);
            constexpr size_t shared = (2 * S::rows + 2 * S::columns) * S::stride * sizeof(T);
            TRY(device_launch(ops, "block_attention_backward", gather_chosen<S>, grid_over(units * g.parts, 1),
                              S::threads, shared, g));
        }
        const int64_t rows = static_cast<int64_t>(chunk.pairs) * (p.heads / p.lists) * chunk.rows;
        return device_launch(ops, "block_attention_backward", join_dq<T, S::width>, grid_over(rows, join_threads / 32),
                             join_threads, 0, g);
    });
}

enum status launch_rows(const struct ops *ops, const rows_arguments &g, const block_chunk &most, char *memory) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(g.p.width, [&](auto width) {
            using S = typename rows_shape<decltype(real), decltype(width)::value>::shape;
            return run_rows<S>(ops, g, most, memory);
        });
    });
}

enum status launch_clear(const struct ops *ops, const block_problem &p, const attention_gradient &g) {
    const int64_t count = p.batch * p.length * p.groups * p.width;
    return with_real(ops, [&](auto real) {
        return device_launch(ops, "block_attention_backward", clear_keys<decltype(real)>, grid_over(count, 256), 256, 0,
                             p, g.dk, g.dv, count);
    });
}

/* Scratch memory of a backward pass, in bytes, one behind the other; what joins rows and what joins keys are not in
 * work together and share theirs. */
struct backward_room {
    size_t window, gradient, plan, parts;
};

size_t records_bytes(const block_problem &p) {
    const size_t rows = static_cast<size_t>(p.batch * p.heads) * static_cast<size_t>(p.length);
    return (rows * sizeof(attention_record) + 255) / 256 * 256;
}

} // namespace

enum status cuda_block_attention_backward(const struct ops *ops, const struct block_attention_backward *a) {
    const char *operation = "block_attention_backward";
    TRY(check_block_attention_backward(ops, a));
    const struct attention window = block_window(&a->forward);
    const int64_t batch = window.q.shape[0];
    const bool chooses = block_chooses(&a->forward), windowed = a->forward.window > 0;
    block_problem p;
    attention_gradient g = {};
    backward_room room = {};
    TRY(block_plan(ops, operation, &a->forward, nullptr, &p));
    TRY(attention_plan(ops, operation, &window, nullptr, &g.f));
    const size_t slot = static_cast<size_t>(partial_width(p)) * sizeof(float);
    const block_chunk most = block_chunk_most(p, slot);
    room.window = attention_plan_bytes(&window);
    room.gradient = windowed ? attention_gradient_place(ops, &g, batch, false, nullptr) : records_bytes(p);
    room.plan = block_plan_bytes(&a->forward);
    if (chooses) TRY(block_keys_bytes(ops, p, &room.parts));
    const size_t of_rows =
        block_items_bytes(p, most.pairs, false) + static_cast<size_t>(block_chunk_slots(p, most)) * slot;
    if (of_rows > room.parts) room.parts = of_rows;
    void *block;
    TRY(device_scratch(ops, room.window + room.gradient + room.plan + room.parts, &block));
    char *memory = static_cast<char *>(block);
    TRY(attention_plan(ops, operation, &window, memory, &g.f));
    memory += room.window;
    g.d_o = attention_view_of(a->d_o);
    g.dq = attention_view_of(a->dq);
    g.dk = attention_view_of(a->dk);
    g.dv = attention_view_of(a->dv);
    g.accumulate_q = a->accumulate_q;
    g.accumulate_kv = a->accumulate_kv;
    if (windowed) {
        attention_gradient_place(ops, &g, batch, false, memory);
        TRY(attention_backward(ops, g, batch, tensor_none()));
        if (!chooses) return STATUS_OK;
    } else {
        g.records = reinterpret_cast<attention_record *>(memory);
        TRY(attention_records(ops, g, batch));
        if (!a->accumulate_kv) TRY(launch_clear(ops, p, g));
    }
    memory += room.gradient;
    TRY(block_plan(ops, operation, &a->forward, memory, &p));
    memory += room.plan;
    rows_arguments rows = {};
    rows.p = p;
    rows.d_o = g.d_o;
    rows.dq = g.dq;
    rows.records = g.records;
    rows.accumulate = windowed || a->accumulate_q;
    TRY(launch_rows(ops, rows, most, memory));
    return chooses ? block_keys(ops, p, g, memory) : STATUS_OK;
}
