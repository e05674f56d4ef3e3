/* Learning to choose blocks, backward: with p the weights of a head's compressed blocks and dp the gradient that each
 * gets from the selection blocks that it covers, ds_c = p_c (dp_c − Σ_c p_c dp_c). Queries' gradients by tiles of
 * queries, compressed keys' by tiles of keys that nobody else adds to. */
#include "kernels/cuda/block_mass.cuh"

namespace {

struct gradient_arguments {
    mass_problem p;
    mass_chunk chunk;
};

/* Where the gradient of a query's importance lies. */
__device__ const float *gradient_row(const gradient_arguments &g, int pair, int i) {
    return g.chunk.importance + (static_cast<int64_t>(pair) * g.chunk.rows + i - g.chunk.first) * g.p.pitch;
}
/* Where Σ_c p_c dp_c of a head of a query lies. */
__device__ float *inner_place(const gradient_arguments &g, int pair, int head, int i) {
    return g.chunk.inner + (static_cast<int64_t>(pair) * g.p.together + head % g.p.together) * g.chunk.rows + i -
           g.chunk.first;
}

/* to [QUERIES][BLOCKS + 1] = dp of compressed blocks first …, of queries i … of a list; 0 where a query does not see
 * the block. query(r): of the r-th. By all of THREADS. */
template <int QUERIES, int BLOCKS, int THREADS, class Query>
__device__ void find_d_weights(const gradient_arguments &g, int pair, int i, int first, Query query, float *to) {
    for (int n = static_cast<int>(threadIdx.x); n < QUERIES * BLOCKS; n += THREADS) {
        const int r = n / BLOCKS, c = n % BLOCKS;
        const mass_query of = query(r);
        const int u = first + c - of.coarse;
        to[r * (BLOCKS + 1) + c] =
            u >= 0 && u < of.visible ? block_gradient(g.p, gradient_row(g, pair, i + r), u) : 0.0f;
    }
}

/* inner and d_own_q of a chunk. A thread block: a tile of queries of one head, twice over the blocks that they see.
 * Shared memory: queries [rows][stride], compressed keys [columns][stride], dp [rows][columns + 1]. */
template <class S> __global__ void __launch_bounds__(S::threads) gather_rows(gradient_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const mass_problem &p = g.p;
    const mass_place at = place_mass<S::rows>(p, g.chunk, p.together, blockIdx.x);
    SHARED(mass_query, rows, [S::rows]);
    if (threadIdx.x < S::rows)
        rows[threadIdx.x] = find_query(p, at.b, at.first + static_cast<int>(threadIdx.x), at.end);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *keys = cutter.take<T>(S::columns * S::stride);
    float *d_weights = cutter.take<float>(S::rows * (S::columns + 1));
    load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.own_q, at.b, at.head),
                                                        p.own_q.token, at.first, at.end, p.width, p.own_q.vector);
    __syncthreads(); /* the rows are there for all */
    const mass_query last = rows[at.end - 1 - at.first];
    const int end = last.coarse + last.visible, own = warp_number() * S::tiles * 16;
    float z[S::tiles][2], inner[S::tiles][2], dq[S::tiles][S::width / 8][4];
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) {
        const int i = at.first + own + n * 8 + lane_row();
        z[n / 2][n % 2] = i < at.end ? log2_of_e * p.log_sums[(at.b * p.heads + at.head) * p.length + i] : 0.0f;
        inner[n / 2][n % 2] = 0.0f;
    }
    clear_sums(dq);
#pragma unroll 1
    for (int pass = 0; pass < (p.d_own_q.data ? 2 : 1); pass++) {
        for (int first = rows[0].coarse; first < end; first += S::columns) {
            load_rows<S::columns, S::width, S::stride, S::threads>(
                keys, attention_rows<const T>(p.compressed, at.b, at.head / (p.heads / p.groups)), p.compressed.token,
                first, end, p.width, p.compressed.vector);
            find_d_weights<S::rows, S::columns, S::threads>(
                g, at.pair, at.first, first, [&](int r) { return rows[r]; }, d_weights);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads(); /* queries, keys and dp are there for all */
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(
                scores,
                typename product::template left<S::tiles, S::width, S::stride, false>(queries + own * S::stride), keys);
#pragma unroll
            for (int n = 0; n < 2 * S::tiles; n++) {
                const int r = own + n * 8 + lane_row();
                const mass_query row = rows[r];
                const float taken = pass == 1 ? inner[n / 2][n % 2] : 0.0f;
#pragma unroll
                for (int e = 0; e < 2 * S::groups; e++) {
                    const int column = e / 2 * 8 + lane_column() + e % 2, u = first + column - row.coarse;
                    float &score = scores[n / 2][e / 2][n % 2 * 2 + e % 2];
                    const float gradient = exp2_quick(score * p.scale_log2 - z[n / 2][n % 2]) *
                                           (d_weights[r * (S::columns + 1) + column] - taken);
                    score = u >= 0 && u < row.visible ? gradient : 0.0f;
                    if (pass == 0) inner[n / 2][n % 2] += score;
                }
            }
            if (pass == 1)
                product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(dq, scores, keys);
            __syncthreads(); /* nobody reads keys and dp any more */
        }
        if (pass == 1) continue;
#pragma unroll
        for (int n = 0; n < 2 * S::tiles; n++) {
            const int i = at.first + own + n * 8 + lane_row();
            inner[n / 2][n % 2] = quad_sum(inner[n / 2][n % 2]);
            if (threadIdx.x % 4 == 0 && i < at.end) *inner_place(g, at.pair, at.head, i) = inner[n / 2][n % 2];
        }
    }
    copy_async_commit();
    copy_async_wait<0>();
    if (!p.d_own_q.data) return;
    float factor[S::tiles][2];
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = p.factor;
    store_rows<S::tiles, S::width>(attention_rows<T>(p.d_own_q, at.b, at.head), p.d_own_q.token, at.first + own, at.end,
                                   0, p.width, p.d_own_q.vector, dq, factor, true);
}

/* What a column, a query of the chunk, is to the keys' kernel. */
struct mass_column {
    mass_query query;
    float z, inner;
};

/* Scores (not scaled), compressed keys as rows, become ds. d_weights [columns][rows + 1]; key: the tile's first. */
template <class S>
__device__ void weigh_keys(float (&scores)[S::tiles][S::groups][4], const mass_column *columns, const float *d_weights,
                           float scale, int key) {
#pragma unroll
    for (int e = 0; e < 2 * S::groups; e++) {
        const int column = e / 2 * 8 + lane_column() + e % 2;
        const mass_column of = columns[column];
#pragma unroll
        for (int r = 0; r < 2 * S::tiles; r++) {
            const int row = warp_number() * S::tiles * 16 + r * 8 + lane_row(), u = key + row - of.query.coarse;
            float &score = scores[r / 2][e / 2][r % 2 * 2 + e % 2];
            const float gradient =
                exp2_quick(score * scale - of.z) * (d_weights[column * (S::rows + 1) + row] - of.inner);
            score = u >= 0 && u < of.query.visible ? gradient : 0.0f;
        }
    }
}

/* d_compressed += a chunk's part. A thread block: a tile of one key head's compressed blocks, and the queries of all
 * heads that read it. Grid [sequences of the chunk][key heads][tiles]. Shared memory: keys [rows][stride], queries
 * [columns][stride], dp [columns][rows + 1]. */
template <class S> __global__ void __launch_bounds__(S::threads) gather_keys(gradient_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const mass_problem &p = g.p;
    const int tiles = static_cast<int>((p.places + S::rows - 1) / S::rows);
    const int tile = static_cast<int>(blockIdx.x) % tiles, group = static_cast<int>(blockIdx.x) / tiles % p.groups;
    const int64_t b = g.chunk.first_pair / p.lists + static_cast<int>(blockIdx.x) / tiles / p.groups;
    const int first = tile * S::rows, count = min(S::rows, p.coarse.count[b] - first), share = p.heads / p.groups;
    if (count <= 0) return;
    SHARED(mass_column, columns, [S::columns]);
    shared_cutter cutter = {shared_memory()};
    T *keys = cutter.take<T>(S::rows * S::stride), *queries = cutter.take<T>(S::columns * S::stride);
    float *d_weights = cutter.take<float>(S::columns * (S::rows + 1));
    load_rows<S::rows, S::width, S::stride, S::threads>(keys, attention_rows<const T>(p.compressed, b, group),
                                                        p.compressed.token, first, first + count, p.width,
                                                        p.compressed.vector);
    /* The queries that see some of them. */
    const int32_t *firsts = p.coarse.first + b * p.coarse.bound + first;
    const int chunk_end = g.chunk.first + g.chunk.rows;
    const int begin = max(g.chunk.first, firsts[0] + p.compress - 1);
    const int end = min(chunk_end, p.coarse.end[b * p.length + firsts[count - 1]]);
    const int own = warp_number() * S::tiles * 16;
    float dk[S::tiles][S::width / 8][4];
    clear_sums(dk);
    for (int head = group * share; head < (group + 1) * share; head++) {
        const int64_t pair = b * p.lists + head / p.together - g.chunk.first_pair;
        if (pair < 0 || pair >= g.chunk.pairs) continue;
        for (int i = begin; i < end; i += S::columns) {
            __syncthreads(); /* nobody reads the queries before any more */
            if (threadIdx.x < S::columns) {
                const int query = i + static_cast<int>(threadIdx.x);
                mass_column column = {find_query(p, b, query, end), 0.0f, 0.0f};
                if (query < end) {
                    column.z = log2_of_e * p.log_sums[(b * p.heads + head) * p.length + query];
                    column.inner = *inner_place(g, static_cast<int>(pair), head, query);
                }
                columns[threadIdx.x] = column;
            }
            load_rows<S::columns, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.own_q, b, head),
                                                                   p.own_q.token, i, end, p.width, p.own_q.vector);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads(); /* keys, queries and columns are there for all */
            find_d_weights<S::columns, S::rows, S::threads>(
                g, static_cast<int>(pair), i, first, [&](int r) { return columns[r].query; }, d_weights);
            __syncthreads(); /* dp is there for all */
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(
                scores, typename product::template left<S::tiles, S::width, S::stride, false>(keys + own * S::stride),
                queries);
            weigh_keys<S>(scores, columns, d_weights, p.scale_log2, first);
            product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(dk, scores, queries);
        }
    }
    copy_async_commit();
    copy_async_wait<0>();
    float factor[S::tiles][2];
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = 1.0f;
    float *to = p.d_compressed + (b * p.places * p.groups + group) * p.width;
    store_rows<S::tiles, S::width>(to, static_cast<int64_t>(p.groups) * p.width, first + own, first + count, 0, p.width,
                                   p.width % 2 == 0, dk, factor, true);
}

/* to += factor · sums [B,Nb,G,D]. */
template <class T>
__global__ void __launch_bounds__(256) add_gradients(mass_problem p, attention_view to, int64_t count) {
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < count;
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t d = n % p.width, group = n / p.width % p.groups, row = n / p.width / p.groups;
        T *at = attention_rows<T>(to, row / p.places, group) + row % p.places * to.token + d;
        if (row % p.places < p.coarse.count[row / p.places])
            *at = from_float<T>(to_float(*at) + p.factor * p.d_compressed[n]);
    }
}

template <class S> enum status run_gradients(const struct ops *ops, const gradient_arguments &g) {
    const mass_problem &p = g.p;
    const int64_t tiles = static_cast<int64_t>(g.chunk.pairs) * p.together * divide_up(g.chunk.rows, S::rows);
    constexpr size_t tiles_bytes = (S::rows + S::columns) * S::stride * sizeof(typename S::real);
    constexpr size_t of_rows = tiles_bytes + S::rows * (S::columns + 1) * sizeof(float);
    constexpr size_t of_keys = tiles_bytes + S::columns * (S::rows + 1) * sizeof(float);
    TRY(device_launch(ops, "block_mass", gather_rows<S>, grid_over(tiles, 1), S::threads, of_rows, g));
    if (!p.d_compressed) return STATUS_OK;
    const int64_t sequences = (g.chunk.first_pair + g.chunk.pairs - 1) / p.lists - g.chunk.first_pair / p.lists + 1;
    return device_launch(ops, "block_mass", gather_keys<S>,
                         grid_over(sequences * p.groups * divide_up(p.places, S::rows), 1), S::threads, of_keys, g);
}

} // namespace

enum status mass_gradients(const struct ops *ops, const mass_problem &p, const mass_chunk &chunk) {
    if (!p.d_own_q.data && !p.d_compressed) return STATUS_OK;
    gradient_arguments g = {p, chunk};
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            return run_gradients<typename mass_shape<decltype(real), decltype(width)::value>::shape>(ops, g);
        });
    });
}

enum status mass_finish(const struct ops *ops, const mass_problem &p, struct tensor d_compressed) {
    const int64_t count = p.batch * p.places * p.groups * p.width;
    return with_real(ops, [&](auto real) {
        return device_launch(ops, "block_mass", add_gradients<decltype(real)>, grid_over(count, 256), 256, 0, p,
                             attention_view_of(d_compressed), count);
    });
}
