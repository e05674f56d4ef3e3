/* Attention to chosen blocks, forward: the window's part goes to o and log_sums; partial results of chosen blocks are
 * found tile by tile, and joined with it. */
#include "kernels/cuda/block_attention.cuh"

namespace {

template <class T, int D> struct block_shape;
template <> struct block_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 1, 64>; };
template <> struct block_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 64>; };
template <> struct block_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <int D> struct block_shape<float, D> { using shape = tile_shape<float, D, 4, 1, D == 256 ? 16 : 32>; };

struct forward_arguments {
    block_problem p;
    block_chunk chunk;
    block_items items;
    int parts;    /* thread blocks of one list and run of heads */
    float *sums;  /* [slots of the chunk][partial_width] Σ_j 2^{e_j − most} v_j */
    float2 *most; /* [slots of the chunk] the largest exponent of base 2, Σ_j 2^{e_j − most} */
};

/* scores = their exponents in base 2; −inf where a row does not read the key. rows: the warp's; key: of the block. */
template <class S>
__device__ void mask_scores(float (&scores)[S::tiles][S::groups][4], const chosen_row *rows, float scale, int key) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int columns = rows[tile * 16 + 8 * half + lane_row()].columns - key - lane_column();
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++) {
                float &score = scores[tile][n / 2][2 * half + n % 2];
                score = n / 2 * 8 + n % 2 < columns ? score * scale : -INFINITY;
            }
        }
}

/* A thread block: a share of the tiles of one list of the chunk and one run of its heads. Shared memory: queries
 * [rows][stride], keys and values [columns][stride]. */
template <class S> __global__ void __launch_bounds__(S::threads) attend_chosen(forward_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const block_problem &p = g.p;
    const int runs = p.heads / p.lists / p.run, unit = static_cast<int>(blockIdx.x) / g.parts;
    const int pair = unit / runs, list = static_cast<int>((g.chunk.first_pair + pair) % p.lists);
    const int64_t b = (g.chunk.first_pair + pair) / p.lists;
    const int first_head = (list * runs + unit % runs) * p.run, group = first_head / (p.heads / p.groups);
    SHARED(chosen_row, rows, [S::rows]);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *keys = cutter.take<T>(S::columns * S::stride);
    T *values = cutter.take<T>(S::columns * S::stride);
    const chosen_row *own = rows + warp_number() * S::tiles * 16;
    typename product::template left<S::tiles, S::width, S::stride, S::width <= 64> of_q(
        queries + warp_number() * S::tiles * 16 * S::stride);
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
        __syncthreads(); /* the rows are there for all */
        load_chosen<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.q, b, 0), p.q, rows,
                                                              p.width);
        float out[S::tiles][S::width / 8][4], most[S::tiles][2], sum[S::tiles][2];
        clear_sums(out);
#pragma unroll
        for (int n = 0; n < 2 * S::tiles; n++) {
            most[n / 2][n % 2] = -INFINITY;
            sum[n / 2][n % 2] = 0.0f;
        }
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
            __syncthreads(); /* queries, keys and values are there for all */
            if (key == 0) of_q.hold();
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(scores, of_q, keys);
            mask_scores<S>(scores, own, p.scale_log2, key);
            take_rows(scores, most, sum, out);
            product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(out, scores, values);
            if (key + S::columns < tokens.y) __syncthreads(); /* nobody reads these keys any more */
        }
        store_partial<S::tiles, S::width>(g.sums, partial_width(p), own, out);
#pragma unroll
        for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const chosen_row &row = own[tile * 16 + 8 * half + lane_row()];
                const float all = quad_sum(sum[tile][half]);
                if (threadIdx.x % 4 == 0 && row.columns > 0) g.most[row.place] = make_float2(most[tile][half], all);
            }
        __syncthreads(); /* nobody reads the tile any more */
    }
}

/* o and log_sums of a chunk: of the window's part, which they hold (window > 0), and the partial results, in the order
 * of the list. A warp: a head of a query. */
template <class T, int D> __global__ void __launch_bounds__(join_threads) join_parts(forward_arguments g) {
    const block_problem &p = g.p;
    constexpr int each = D / 32; /* columns of a lane: 32 apart */
    const int lane = static_cast<int>(threadIdx.x % 32), step = partial_width(p);
    const int64_t count = static_cast<int64_t>(g.chunk.pairs) * (p.heads / p.lists) * g.chunk.rows;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * (join_threads / 32) + threadIdx.x / 32; n < count;
         n += static_cast<int64_t>(gridDim.x) * (join_threads / 32)) {
        const auto [b, i, list, head] = joined_row_of(p, g.chunk, n);
        const int64_t row = b * p.length + i;
        T *o = attention_rows<T>(p.o, b, head) + i * p.o.token;
        float *log_sum = p.log_sums + (b * p.heads + head) * p.length + i;
        const float of_window = p.window > 0 ? *log_sum * log2_of_e : -INFINITY;
        float most = of_window;
        for (int s = lane; s < p.select; s += 32)
            if (slot_is_read(p, row, list, s)) most = fmaxf(most, g.most[n * p.select + s].x);
        most = warp_max(most);
        const float reference = most == -INFINITY ? 0.0f : most;
        float out[each], sum = p.window > 0 ? exp2_quick(of_window - reference) : 0.0f;
#pragma unroll
        for (int k = 0; k < each; k++)
            out[k] = p.window > 0 && lane + k * 32 < p.width ? sum * to_float(o[lane + k * 32]) : 0.0f;
        for (int first = 0; first < p.select; first += 32) {
            float weight = 0.0f, own = 0.0f;
            const bool reads = first + lane < p.select && slot_is_read(p, row, list, first + lane);
            if (reads) {
                const float2 part = g.most[n * p.select + first + lane];
                weight = exp2_quick(part.x - reference);
                own = weight * part.y;
            }
            sum += warp_sum(own);
            for (unsigned left = __ballot_sync(whole_warp, reads); left; left &= left - 1) {
                const int s = __ffs(static_cast<int>(left)) - 1;
                const float factor = __shfl_sync(whole_warp, weight, s);
                const float *part = g.sums + (n * p.select + first + s) * step;
#pragma unroll
                for (int k = 0; k < each; k++)
                    if (lane + k * 32 < p.width) out[k] += factor * part[lane + k * 32];
            }
        }
        const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
        for (int k = 0; k < each; k++)
            if (lane + k * 32 < p.width) o[lane + k * 32] = from_float<T>(factor * out[k]);
        if (lane == 0) *log_sum = natural_log_sum(reference, sum);
    }
}

template <class S>
enum status run_chosen(const struct ops *ops, const block_problem &p, const block_chunk &most, char *memory) {
    using T = typename S::real;
    const size_t items = block_items_bytes(p, most.pairs, false),
                 slots = static_cast<size_t>(block_chunk_slots(p, most));
    forward_arguments g = {};
    g.p = p;
    g.most = reinterpret_cast<float2 *>(memory + items);
    g.sums = reinterpret_cast<float *>(memory + items + (slots * sizeof(float2) + 255) / 256 * 256);
    return for_chunks(p, most, [&](const block_chunk &chunk) {
        const int64_t units = static_cast<int64_t>(chunk.pairs) * (p.heads / p.lists / p.run);
        int64_t most_items;
        g.chunk = chunk;
        if (p.select > 0) {
            TRY(block_items_find(ops, "block_attention", p, chunk, S::rows, false, S::columns, memory, &g.items,
                                 &most_items));
            g.parts = block_parts(ops, units, most_items);
            constexpr size_t shared = (S::rows + 2 * S::columns) * S::stride * sizeof(T);
            TRY(device_launch(ops, "block_attention", attend_chosen<S>, grid_over(units * g.parts, 1), S::threads,
                              shared, g));
        }
        const int64_t rows = static_cast<int64_t>(chunk.pairs) * (p.heads / p.lists) * chunk.rows;
        return device_launch(ops, "block_attention", join_parts<T, S::width>, grid_over(rows, join_threads / 32),
                             join_threads, 0, g);
    });
}

/* Bytes of one slot's partial result. */
size_t slot_bytes(const block_problem &p) {
    return static_cast<size_t>(partial_width(p)) * sizeof(float) + sizeof(float2);
}

} // namespace

enum status cuda_block_attention(const struct ops *ops, const struct block_attention *a) {
    TRY(check_block_attention(ops, a));
    const int64_t batch = a->q.shape[0];
    const struct attention window = block_window(a);
    block_problem p;
    TRY(block_plan(ops, "block_attention", a, nullptr, &p));
    const bool joins = p.select > 0 || p.window == 0;
    const block_chunk most = block_chunk_most(p, slot_bytes(p));
    const size_t of_window = p.window > 0 ? attention_plan_bytes(&window) : 0, of_plan = block_plan_bytes(a);
    const size_t of_parts = static_cast<size_t>(block_chunk_slots(p, most)) * slot_bytes(p) + 512;
    void *block;
    TRY(device_scratch(ops, of_window + of_plan + block_items_bytes(p, most.pairs, false) + of_parts, &block));
    char *memory = static_cast<char *>(block);
    if (p.window > 0) {
        attention_problem of;
        TRY(attention_plan(ops, "block_attention", &window, memory, &of));
        TRY(attention_forward(ops, of, batch));
    }
    if (!joins) return STATUS_OK;
    TRY(block_plan(ops, "block_attention", a, memory + of_window, &p));
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            using S = typename block_shape<decltype(real), decltype(width)::value>::shape;
            return run_chosen<S>(ops, p, most, memory + of_window + of_plan);
        });
    });
}
