/* Attention to single tokens, forward: every warp of a block takes its own share of the tokens that the block's queries
 * read, with running normalisers (Dao et al. 2022) of its own; at the end the warps' sums are brought to one maximum
 * and added. */
#include "kernels/cuda/tokens.cuh"

namespace {

template <class T, int D> struct forward_shape;
template <> struct forward_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 2, 32>; };
template <> struct forward_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 2, 16>; };
template <> struct forward_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 16>; };
template <> struct forward_shape<float, 64> { using shape = tile_shape<float, 64, 4, 1, 16>; };
template <> struct forward_shape<float, 128> { using shape = tile_shape<float, 128, 4, 1, 16>; };
template <> struct forward_shape<float, 256> { using shape = tile_shape<float, 256, 2, 1, 16>; };

/* A lane's rows: running maximum and its part of the sum. */
template <class S> struct running_rows { float most[S::tiles][2], sum[S::tiles][2]; };

/* Scores of a tile become weights relative to the running maximum; factor: what earlier ones must be multiplied by. */
template <class S>
__device__ void take_scores(float (&scores)[S::tiles][S::groups][4], const unsigned (&words)[S::groups][2], float scale,
                            running_rows<S> &running, float (&factor)[S::tiles][2]) {
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = tile * 16 + 8 * half + lane_row();
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++) {
                float &score = scores[tile][n / 2][2 * half + n % 2];
                score = words[n / 2][n % 2] >> row & 1 ? score * scale : -INFINITY;
            }
            factor[tile][half] = take_row(scores[tile], half, running.most[tile][half], running.sum[tile][half]);
        }
}

/* Memory of a block: walk_memory, queries [rows][stride], two stages of tiles of k and v for each warp, the warps'
 * maxima and sums. */
template <class S> constexpr int own_rows = S::tiles * 16;
template <class S> constexpr int tile_size = S::columns *S::stride;
template <class S>
constexpr size_t
    forward_bytes = walk_memory<S>::bytes +
                    sizeof(typename S::real) *
                        (own_rows<S> * S::stride + S::warps * 4 * tile_size<S>)+sizeof(float2) * S::warps *own_rows<S>;

/* factor: of each of this lane's rows, 1 / (sum over all warps) relative to the maximum of all; writes log_sums. By all
 * threads. */
template <class S>
__device__ void join_warps(const token_problem &p, const running_rows<S> &running, float2 *parts, int64_t pair,
                           int first, float (&factor)[S::tiles][2]) {
    constexpr int R = own_rows<S>;
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) {
        const float sum = quad_sum(running.sum[n / 2][n % 2]);
        if (threadIdx.x % 4 == 0)
            parts[warp_number() * R + n * 8 + lane_row()] = make_float2(running.most[n / 2][n % 2], sum);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) {
        const int row = n * 8 + lane_row();
        float most = -INFINITY, sum = 0.0f;
        for (int w = 0; w < S::warps; w++) most = fmaxf(most, parts[w * R + row].x);
        const float reference = most == -INFINITY ? 0.0f : most;
        for (int w = 0; w < S::warps; w++) sum += parts[w * R + row].y * exp2_quick(parts[w * R + row].x - reference);
        factor[n / 2][n % 2] = sum == 0.0f ? 0.0f : exp2_quick(running.most[n / 2][n % 2] - reference) / sum;
        if (warp_number() == 0 && threadIdx.x % 4 == 0 && first + row < p.sets.length)
            p.log_sums[pair * p.sets.length + first + row] = natural_log_sum(most, sum);
    }
}

/* A block: own_rows queries of one head. VALUES: o and log_sums; else log_sums alone. */
template <class S, bool VALUES> __global__ void __launch_bounds__(S::threads) attend_tokens(token_problem p) {
    using T = typename S::real;
    using product = warp_product<T>;
    constexpr int R = own_rows<S>, size = tile_size<S>;
    static_assert(R * S::width * sizeof(float) <= 4 * size * sizeof(T), "the warps' sums fit into the tiles' place");
    const block_place place = place_block(p.order);
    const int64_t b = place.pair / p.heads, h = place.pair % p.heads;
    const int first = place.tile * R;
    shared_cutter cutter = {shared_memory()};
    const walk_memory<S> memory(cutter);
    T *queries = cutter.take<T>(R * S::stride), *all_tiles = cutter.take<T>(S::warps * 4 * size);
    float2 *parts = cutter.take<float2>(S::warps * R);
    T *tiles = all_tiles + warp_number() * 4 * size;
    row_source source;
    source.open(p.sets, b, h / p.list_share, first, R, memory.scratch);
    load_rows<R, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.q, b, h), p.q.token, first,
                                                  p.sets.length, p.width, p.q.vector);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    typename product::template left<S::tiles, S::width, S::stride, S::width <= 64> of_q(queries);
    of_q.hold();
    const T *k = attention_rows<const T>(p.k, b, h / p.share), *v = attention_rows<const T>(p.v, b, h / p.share);
    token_walk<S, row_source> walk(source, memory.words, memory.tokens, memory.bits);
    const auto load = [&](int stage, int at, int here) {
        gather_rows<S::columns, S::width, S::stride>(tiles + 2 * stage * size, k, p.k.token, memory.tokens, at, here,
                                                     p.width, p.k.vector);
        if (VALUES)
            gather_rows<S::columns, S::width, S::stride>(tiles + (2 * stage + 1) * size, v, p.v.token, memory.tokens,
                                                         at, here, p.width, p.v.vector);
    };
    float out[S::tiles][S::width / 8][4];
    running_rows<S> running;
    clear_sums(out);
#pragma unroll
    for (int n = 0; n < 2 * S::tiles; n++) {
        running.most[n / 2][n % 2] = -INFINITY;
        running.sum[n / 2][n % 2] = 0.0f;
    }
    int at = 0, here = 0; /* of the tile in hand */
    for (int stage = 0;; stage ^= 1) {
        int after_at;
        const int after = walk.next(&after_at);
        if (after > 0) load(stage ^ 1, after_at, after);
        copy_async_commit();
        if (here > 0) {
            copy_async_wait<1>();
            __syncwarp(); /* this tile is there for all lanes */
            float scores[S::tiles][S::groups][4], factor[S::tiles][2];
            unsigned words[S::groups][2];
            walk.words_of(words, at, here);
            clear_sums(scores);
            product::rows_by_rows(scores, of_q, tiles + 2 * stage * size);
            take_scores<S>(scores, words, p.scale_log2, running, factor);
            if constexpr (VALUES) {
#pragma unroll
                for (int n = 0; n < S::tiles * (S::width / 8) * 4; n++)
                    out[n / (S::width / 2)][n / 4 % (S::width / 8)][n % 4] *= factor[n / (S::width / 2)][n % 4 / 2];
                product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(
                    out, scores, tiles + (2 * stage + 1) * size);
            }
            __syncwarp(); /* nobody reads it any more */
        }
        if (after == 0) break;
        at = after_at;
        here = after;
    }
    copy_async_wait<0>();
    float factor[S::tiles][2];
    join_warps<S>(p, running, parts, place.pair, first, factor);
    if constexpr (VALUES) {
        T *o = attention_rows<T>(p.o, b, h);
        merge_warps<S, S::width>(out, factor, reinterpret_cast<float *>(all_tiles),
                                 [&](int row, int column, float sum) {
                                     if (first + row < p.sets.length && column < p.width)
                                         o[(first + row) * p.o.token + column] = from_float<T>(sum);
                                 });
    }
}

template <class S>
enum status run_forward(const struct ops *ops, const char *operation, token_problem p, int64_t batch) {
    const int64_t tiles = divide_up(p.sets.length, own_rows<S>), pairs = batch * p.heads;
    if (tiles * pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "%s: expected up to %d tiles of queries, found %lld", operation, INT_MAX,
                         static_cast<long long>(tiles * pairs));
    p.order = order_blocks(
        tiles, pairs, int64_t{2} * p.sets.length * p.width * static_cast<int64_t>(sizeof(typename S::real)) / p.share,
        true);
    const dim3 grid(static_cast<unsigned>(tiles * pairs));
    if (p.o.data) return device_launch(ops, operation, attend_tokens<S, true>, grid, S::threads, forward_bytes<S>, p);
    return device_launch(ops, operation, attend_tokens<S, false>, grid, S::threads, forward_bytes<S>, p);
}

} // namespace

enum status token_rows(const struct ops *ops, const char *operation, const token_problem &p, int64_t batch) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(p.width, [&](auto width) {
            return run_forward<typename forward_shape<decltype(real), decltype(width)::value>::shape>(ops, operation, p,
                                                                                                      batch);
        });
    });
}

enum status cuda_token_attention(const struct ops *ops, const struct token_attention *a) {
    TRY(check_token_attention(ops, a));
    token_problem p;
    void *memory;
    TRY(tokens_describe("token_attention", a, &p));
    TRY(device_scratch(ops, tokens_bytes(a->start), &memory));
    TRY(tokens_open(ops, "token_attention", a->start, memory, &p.sets));
    return token_rows(ops, "token_attention", p, a->q.shape[0]);
}
