/* The choice of tokens for all queries of a sequence. A block has 16 queries a warp of one list; it walks the keys that
 * compete for any of them a few times, and what it found is its lists. With two levels it chooses pooled blocks so, and
 * index_choice.cu the tokens in them. */
#include "kernels/cuda/documents.cuh"
#include "kernels/cuda/index_rows.cuh"

namespace {

/* Of the row at `query`; −1: no such row. Rows whose candidates are all chosen, or none, compete for nothing. */
template <class S>
__device__ row_state open_row(const row_arguments &g, int64_t b, int list, int query, int64_t at, int64_t *place) {
    row_state row = {};
    row.start = 1; /* and query 0: an empty range */
    *place = -1;
    if (query >= g.end) return row;
    index_place tokens = index_place_of(g.p, b, query);
    row.start = tokens.start;
    row.query = query;
    *place = at * g.most;
    int64_t count = index_count(g.p, list);
    if (S::source == ROWS_POOLED) {
        const int whole = index_whole(g.p, tokens);
        tokens.low = tokens.base;
        tokens.high = tokens.base + whole;
        count = g.most;
    }
    const int n = tokens.high - tokens.low;
    if (n <= count) {
        row.used = n;
        row.digits.prefix = static_cast<unsigned>(tokens.low);
        row.digits.mode = DIGIT_DONE;
        return row;
    }
    if (count == 0) return row;
    row.low = tokens.low;
    row.high = tokens.high;
    row.digits = digits_of(n, static_cast<int>(count));
    return row;
}

/* Lists of which nothing was scored: all that compete. By one warp, for its 16 rows. */
__device__ void write_whole(const row_arguments &g, const row_state (&rows)[2], const int64_t (&places)[2]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll 1
        for (int r = 0; r < 8; r++) {
            const int used = __shfl_sync(whole_warp, rows[half].used, 4 * r);
            const int low = static_cast<int>(__shfl_sync(whole_warp, rows[half].digits.prefix, 4 * r));
            const int64_t place = __shfl_sync(whole_warp, places[half], 4 * r);
            for (int n = lane; n < used; n += 32) g.out[place + n] = low + n;
        }
}

/* −1 behind every list. */
__device__ void write_ends(const row_arguments &g, const row_state (&rows)[2], const int64_t (&places)[2]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll 1
        for (int r = 0; r < 8; r++) {
            const int used = __shfl_sync(whole_warp, rows[half].used, 4 * r);
            const int64_t place = __shfl_sync(whole_warp, places[half], 4 * r);
            for (int64_t n = used + lane; place >= 0 && n < g.most; n += 32) g.out[place + n] = -1;
        }
}

/* log2 of the sums of exponents, from running maxima and sums. */
template <class S> __device__ void close_sums(const row_arguments &g, const row_memory<S> &m) {
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < g.heads * g.rows; n += static_cast<int>(blockDim.x))
        m.weights[n] = m.sums[n] == 0.0f ? 0.0f : m.weights[n] + log2f(m.sums[n]); /* 0: no such query; NaN stays */
    __syncthreads();
}

template <class S> __global__ void __launch_bounds__(32 * row_warps) select_rows(row_arguments g) {
    const block_place place = place_block(g.order);
    const int64_t b = place.pair / g.p.lists;
    const int list = static_cast<int>(place.pair % g.p.lists), first = g.first + place.tile * g.rows;
    const row_memory<S> m = row_memory_of<S>(g.heads, g.rows);
    row_state rows[2];
    int64_t places[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = first + warp_number() * warp_rows + 8 * half + lane_row();
        const int64_t at = S::source == ROWS_POOLED ? place.pair * (g.end - g.first) + query - g.first
                                                    : (b * g.p.length + query) * g.p.lists + list;
        rows[half] = open_row<S>(g, b, list, query, at, &places[half]);
    }
    write_whole(g, rows, places);
    int low = INT_MAX, high = 0, start = INT_MAX, last = -1;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (rows[half].high == 0) continue;
        low = min(low, rows[half].low);
        high = max(high, rows[half].high);
        start = min(start, rows[half].start);
        last = max(last, rows[half].query);
    }
    low = -row_block_max(-low, m.ranges);
    high = row_block_max(high, m.ranges);
    if (low < high) {
        if constexpr (S::source != ROWS_RANDOM) row_load_queries<S>(g, m, b, list, first);
        if constexpr (S::source == ROWS_ATTENTION) {
            start = -row_block_max(-start, m.ranges);
            last = row_block_max(last, m.ranges);
            row_walk<S>(g, m, rows, b, list, start, last + 1, true, [](int, const float(&)[S::groups][4]) {});
            close_sums<S>(g, m);
        }
        bool writing = false;
#pragma unroll 1
        for (int shift = 24;; shift -= 8) { /* one copy of the walk: the same scores in every pass */
            for (int n = static_cast<int>(threadIdx.x); !writing && n < g.rows * digits;
                 n += static_cast<int>(blockDim.x)) {
                m.table[n] = 0;
                if (n < g.rows) m.collected[n] = 0;
            }
            __syncthreads();
            row_walk<S>(g, m, rows, b, list, low, high, false, [&](int column, const float(&scores)[S::groups][4]) {
                if (writing)
                    row_write<S>(g, rows, places, column, scores);
                else
                    row_count<S>(m, rows, column, shift, scores);
            });
            if (writing) break;
            __syncwarp();
            row_digits<S>(m, rows, shift);
            const bool left = rows[0].digits.mode != DIGIT_DONE || rows[1].digits.mode != DIGIT_DONE;
            writing = row_block_max(left, m.ranges) == 0;
        }
    }
    write_ends(g, rows, places);
}

/* Rows of a block: as many as leave room for two blocks on a multiprocessor, if any do. */
constexpr size_t shared_wanted = size_t{99} << 10;

template <class S> enum status run_rows(const struct ops *ops, row_arguments g, int64_t pairs) {
    int warps = row_warps;
    while (warps > 1 && row_memory_bytes<S>(g.heads, warps * warp_rows) > shared_wanted) warps /= 2;
    const size_t bytes = row_memory_bytes<S>(g.heads, warps * warp_rows);
    if (bytes > ops->device->shared_most)
        return error_set(STATUS_SHAPE,
                         "index_select: %d heads of a list, %d wide, need %zu bytes of shared memory, of %zu", g.heads,
                         g.p.width, bytes, ops->device->shared_most);
    g.rows = warps * warp_rows;
    const int64_t tiles = divide_up(g.end - g.first, g.rows);
    if (tiles * pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "index_select: expected up to %d tiles of queries, found %lld", INT_MAX,
                         static_cast<long long>(tiles * pairs));
    const int64_t read = S::source == ROWS_POOLED ? 2 * g.p.pooled_length : g.p.length;
    g.order = order_blocks(tiles, pairs, read * g.p.width * static_cast<int64_t>(sizeof(typename S::real)), true);
    return device_launch(ops, "index_select", select_rows<S>, dim3(static_cast<unsigned>(tiles * pairs)), 32 * warps,
                         bytes, g);
}

template <class T, row_source SOURCE>
enum status run_learned(const struct ops *ops, const row_arguments &g, int64_t pairs) {
    return with_index_width(g.p.width, [&](auto width) {
        constexpr int D = decltype(width)::value;
        if (g.p.keys > 1 || g.heads == 1) return run_rows<row_shape<T, D, 1, SOURCE>>(ops, g, pairs);
        return run_rows<row_shape<T, D, 4, SOURCE>>(ops, g, pairs);
    });
}

row_arguments learned_arguments(const index_problem &p, bool pooled) {
    row_arguments g = {};
    g.p = p;
    g.queries = p.r;
    g.keys = pooled ? p.pooled : p.u;
    g.heads = p.heads;
    g.units = g.keys.parts * p.keys;
    g.end = static_cast<int>(p.length);
    g.out = p.chosen;
    g.most = p.most;
    g.scale = p.scale;
    return g;
}

/* By attention itself. */
enum status select_attention(const struct ops *ops, const struct index_select *a, const index_problem &p,
                             int64_t pairs) {
    const int64_t heads = a->q.shape[2], width = a->q.shape[3];
    if (width > 256)
        return error_set(STATUS_SHAPE, "index_select: q: expected a head width up to 256, found %lld",
                         static_cast<long long>(width));
    row_arguments g = learned_arguments(p, false);
    const attention_view k = attention_view_of(a->k);
    g.queries = attention_view_of(a->q);
    g.keys = index_keys{k.data, k.batch, k.token, k.head, 0, 1, k.vector};
    g.heads = static_cast<int>(heads / p.lists);
    g.share = static_cast<int>(heads / a->k.shape[2]);
    g.units = g.heads;
    g.p.width = static_cast<int>(width);
    g.scale = static_cast<float>(a->scale * 1.44269504088896340736);
    return with_real(ops, [&](auto real) {
        using T = decltype(real);
        if (width <= 64) return run_rows<row_shape<T, 64, 1, ROWS_ATTENTION>>(ops, g, pairs);
        return run_rows<row_shape<T, 256, 1, ROWS_ATTENTION>>(ops, g, pairs);
    });
}

/* Queries of a sequence whose lists of blocks are in memory at once. */
constexpr int64_t blocks_bytes_most = int64_t{256} << 20;
int64_t queries_at_once(const index_problem &p, int64_t pairs) {
    const int64_t each = 64, bytes = pairs * p.looked * each * static_cast<int64_t>(sizeof(int32_t));
    const int64_t parts = bytes < blocks_bytes_most ? blocks_bytes_most / (bytes > 0 ? bytes : 1) : 1;
    const int64_t rows = parts * each;
    return rows < p.length ? rows : p.length;
}

/* In two levels, a part of the queries after the other. */
enum status select_coarse(const struct ops *ops, const struct index_select *a, index_problem p, int64_t batch) {
    const int64_t pairs = batch * p.lists, rows = queries_at_once(p, pairs);
    const size_t documents = document_blocks_bytes(batch, p.length, a->coarse, a->coarse, false);
    const size_t lists = (static_cast<size_t>(pairs * rows * p.looked) * sizeof(int32_t) + 255) / 256 * 256;
    void *memory;
    TRY(device_scratch(ops, documents + lists + index_inside_bytes(ops, p, pairs * rows), &memory));
    char *at = static_cast<char *>(memory);
    document_blocks blocks;
    TRY(document_blocks_find(ops, "index_select", a->start, a->coarse, a->coarse, false, memory, &blocks));
    p.begin = blocks.begin;
    p.base = blocks.base;
    row_arguments g = learned_arguments(p, true);
    g.out = reinterpret_cast<int32_t *>(at + documents);
    g.most = p.looked;
    for (int64_t first = 0; first < p.length; first += rows) {
        g.first = static_cast<int>(first);
        g.end = static_cast<int>(first + rows < p.length ? first + rows : p.length);
        TRY(with_real(ops, [&](auto real) { return run_learned<decltype(real), ROWS_POOLED>(ops, g, pairs); }));
        TRY(index_choose_inside(ops, "index_select", p, g.out, batch, first, g.end - first, at + documents + lists));
    }
    return STATUS_OK;
}

} // namespace

enum status cuda_index_select(const struct ops *ops, const struct index_select *a) {
    TRY(check_index_select(ops, a));
    const struct index_scores *s = &a->scores;
    const bool learned = a->source == INDEX_LEARNED;
    const int64_t batch = s->r.shape[0], pairs = batch * s->lists;
    index_problem p;
    TRY(index_problem_of("index_select", s->r, s->u, s->a, learned ? a->pooled : tensor_none(), a->chosen, a->counts,
                         s->lists, a->window, a->sinks, learned ? a->coarse : 0, a->coarse_blocks, &p));
    p.start = data_of<const int32_t>(a->start);
    if (pairs * p.length == 0) return STATUS_OK;
    if (a->source == INDEX_ATTENTION) return select_attention(ops, a, p, pairs);
    if (!learned) {
        row_arguments g = learned_arguments(p, false);
        g.seed = a->seed;
        return run_rows<row_shape<float, 32, 1, ROWS_RANDOM>>(ops, g, pairs);
    }
    if (p.block) return select_coarse(ops, a, p, batch);
    return with_real(ops, [&](auto real) {
        return run_learned<decltype(real), ROWS_LEARNED>(ops, learned_arguments(p, false), pairs);
    });
}
