/* Attention to single tokens, backward: delta = do·o of every query, and dq by the walk of the forward pass, with
 * weights made again from log_sums. token_keys.cu makes dk and dv. */
#include "kernels/cuda/tokens.cuh"

namespace {

template <class T, int D> struct backward_shape;
template <> struct backward_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 2, 32>; };
template <> struct backward_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 16>; };
template <> struct backward_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 16>; };
template <> struct backward_shape<float, 64> { using shape = tile_shape<float, 64, 4, 1, 16>; };
template <> struct backward_shape<float, 128> { using shape = tile_shape<float, 128, 4, 1, 16>; };
template <> struct backward_shape<float, 256> { using shape = tile_shape<float, 256, 2, 1, 8>; };

constexpr int record_threads = 128;
template <class S> constexpr int own_rows = S::tiles * 16;
template <class S> constexpr int tile_size = S::columns *S::stride;

/* A warp a query and head. rows: B·H·T. */
template <class T> __global__ void __launch_bounds__(record_threads) write_records(token_problem p, int64_t rows) {
    const int lane = static_cast<int>(threadIdx.x % 32), length = p.sets.length;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * (record_threads / 32) + threadIdx.x / 32; row < rows;
         row += static_cast<int64_t>(gridDim.x) * (record_threads / 32)) {
        const int64_t i = row % length, h = row / length % p.heads, b = row / length / p.heads;
        const T *o = attention_rows<const T>(p.o, b, h) + i * p.o.token,
                *d_o = attention_rows<const T>(p.d_o, b, h) + i * p.d_o.token;
        float delta = 0.0f;
        for (int d = lane; d < p.width; d += 32) delta += to_float(o[d]) * to_float(d_o[d]);
        delta = warp_sum(delta);
        if (lane == 0) p.records[row] = attention_record{log2_of_e * p.log_sums[row], delta, 0, 0};
    }
}

/* Scores and do·v of a tile: scores become ds. records: of the block's rows. */
template <class S>
__device__ void weigh_rows(float (&scores)[S::tiles][S::groups][4], const float (&d_weights)[S::tiles][S::groups][4],
                           const unsigned (&words)[S::groups][2], const attention_record *records, float scale) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = tile * 16 + 8 * half + lane_row();
            const float z = records[row].z, delta = records[row].delta;
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++) {
                float &score = scores[tile][n / 2][2 * half + n % 2];
                score = words[n / 2][n % 2] >> row & 1
                            ? exp2_quick(score * scale - z) * (d_weights[tile][n / 2][2 * half + n % 2] - delta)
                            : 0.0f;
            }
        }
}

/* Memory of a block: walk_memory, queries and do [rows][stride], two stages of tiles of k and v for each warp, records.
 */
template <class S>
constexpr size_t backward_bytes =
    walk_memory<S>::bytes +
    sizeof(typename S::real) *
        (2 * own_rows<S> * S::stride + S::warps * 4 * tile_size<S>)+sizeof(attention_record) * own_rows<S>;

/* A block: own_rows queries of one head. */
template <class S> __global__ void __launch_bounds__(S::threads) gather_dq(token_problem p) {
    using T = typename S::real;
    using product = warp_product<T>;
    using left = typename product::template left<S::tiles, S::width, S::stride, false>;
    constexpr int R = own_rows<S>, size = tile_size<S>;
    static_assert(R * S::width * sizeof(float) <= 4 * size * sizeof(T), "the warps' sums fit into the tiles' place");
    const block_place place = place_block(p.order);
    const int64_t b = place.pair / p.heads, h = place.pair % p.heads;
    const int first = place.tile * R;
    shared_cutter cutter = {shared_memory()};
    const walk_memory<S> memory(cutter);
    T *queries = cutter.take<T>(R * S::stride), *d_outs = cutter.take<T>(R * S::stride);
    T *all_tiles = cutter.take<T>(S::warps * 4 * size), *tiles = all_tiles + warp_number() * 4 * size;
    attention_record *records = cutter.take<attention_record>(R);
    row_source source;
    source.open(p.sets, b, h / p.list_share, first, R, memory.scratch);
    for (int r = static_cast<int>(threadIdx.x); r < R; r += S::threads)
        records[r] = first + r < p.sets.length ? p.records[place.pair * p.sets.length + first + r]
                                               : attention_record{INFINITY, 0.0f, 0, 0};
    load_rows<R, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.q, b, h), p.q.token, first,
                                                  p.sets.length, p.width, p.q.vector);
    load_rows<R, S::width, S::stride, S::threads>(d_outs, attention_rows<const T>(p.d_o, b, h), p.d_o.token, first,
                                                  p.sets.length, p.width, p.d_o.vector);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const T *k = attention_rows<const T>(p.k, b, h / p.share), *v = attention_rows<const T>(p.v, b, h / p.share);
    token_walk<S, row_source> walk(source, memory.words, memory.tokens, memory.bits);
    const auto load = [&](int stage, int at, int here) {
        T *tile = tiles + 2 * stage * size;
        gather_rows<S::columns, S::width, S::stride>(tile, k, p.k.token, memory.tokens, at, here, p.width, p.k.vector);
        gather_rows<S::columns, S::width, S::stride>(tile + size, v, p.v.token, memory.tokens, at, here, p.width,
                                                     p.v.vector);
    };
    float dq[S::tiles][S::width / 8][4];
    clear_sums(dq);
    int at = 0, here = 0; /* of the tile in hand */
    for (int stage = 0;; stage ^= 1) {
        int after_at;
        const int after = walk.next(&after_at);
        if (after > 0) load(stage ^ 1, after_at, after);
        copy_async_commit();
        if (here > 0) {
            copy_async_wait<1>();
            __syncwarp(); /* this tile is there for all lanes */
            const T *tile = tiles + 2 * stage * size;
            float scores[S::tiles][S::groups][4], d_weights[S::tiles][S::groups][4];
            unsigned words[S::groups][2];
            walk.words_of(words, at, here);
            clear_sums(scores);
            product::rows_by_rows(scores, left(queries), tile);
            clear_sums(d_weights);
            product::rows_by_rows(d_weights, left(d_outs), tile + size);
            weigh_rows<S>(scores, d_weights, words, records, p.scale_log2);
            product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(dq, scores, tile);
            __syncwarp(); /* nobody reads it any more */
        }
        if (after == 0) break;
        at = after_at;
        here = after;
    }
    copy_async_wait<0>();
    float factor[S::tiles][2];
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = p.scale;
    T *to = attention_rows<T>(p.dq, b, h);
    merge_warps<S, S::width>(dq, factor, reinterpret_cast<float *>(all_tiles), [&](int row, int column, float sum) {
        if (first + row < p.sets.length && column < p.width)
            to[(first + row) * p.dq.token + column] = from_float<T>(sum);
    });
}

template <class S> enum status run_dq(const struct ops *ops, token_problem p, int64_t batch) {
    const int64_t tiles = divide_up(p.sets.length, own_rows<S>), pairs = batch * p.heads;
    if (tiles * pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "token_attention_backward: expected up to %d tiles of queries, found %lld",
                         INT_MAX, static_cast<long long>(tiles * pairs));
    p.order = order_blocks(
        tiles, pairs, int64_t{2} * p.sets.length * p.width * static_cast<int64_t>(sizeof(typename S::real)) / p.share,
        true);
    return device_launch(ops, "token_attention_backward", gather_dq<S>, dim3(static_cast<unsigned>(tiles * pairs)),
                         S::threads, backward_bytes<S>, p);
}

} // namespace

enum status cuda_token_attention_backward(const struct ops *ops, const struct token_attention_backward *a) {
    TRY(check_token_attention_backward(ops, a));
    const struct token_attention *f = &a->forward;
    const int64_t batch = f->q.shape[0], rows = batch * f->q.shape[2] * f->q.shape[1];
    const size_t bounds = tokens_bytes(f->start),
                 records = (static_cast<size_t>(rows) * sizeof(attention_record) + 255) / 256 * 256;
    token_problem p;
    void *block;
    TRY(tokens_describe("token_attention_backward", f, &p));
    TRY(device_scratch(ops, bounds + records + token_keys_bytes(ops, f), &block));
    char *memory = static_cast<char *>(block);
    TRY(tokens_open(ops, "token_attention_backward", f->start, memory, &p.sets));
    p.records = reinterpret_cast<attention_record *>(memory + bounds);
    p.d_o = attention_view_of(a->d_o);
    p.dq = attention_view_of(a->dq);
    p.dk = attention_view_of(a->dk);
    p.dv = attention_view_of(a->dv);
    return with_real(ops, [&](auto real) {
        using T = decltype(real);
        TRY(device_launch(ops, "token_attention_backward", write_records<T>, grid_over(rows, record_threads / 32),
                          record_threads, 0, p, rows));
        TRY(with_padded_width(p.width, [&](auto width) {
            return run_dq<typename backward_shape<T, decltype(width)::value>::shape>(ops, p, batch);
        }));
        return token_keys(ops, f, p, memory + bounds + records);
    });
}
