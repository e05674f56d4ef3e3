/* Linear attention's forward pass: a block has S::rows queries of one head. The far part comes first, from the state
 * before its segment and the pairs inside it; then it takes the near keys into the same running softmax. */
#include "kernels/cuda/linear_far.cuh"

namespace {

struct forward_arguments {
    linear_gradient g; /* only f, before and after */
    block_order order; /* of query tiles, of sequences and heads */
};

/* A row's running softmax: maximum (base 2) and sum. */
struct row_softmax {
    float most[2], sum[2];
};

/* The far part becomes the beginning of the softmax: normalised, its logarithm the maximum. */
template <class S>
__device__ row_softmax take_far(const linear_problem &p, int64_t b, int head, const far_lanes &lanes,
                                const float (&ones)[2], float (&sums)[1][S::width / 8][4]) {
    row_softmax softmax;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float sum = quad_sum(ones[half]);
        const bool present = lanes.hi[half] > 0 && sum > linear_tiny;
        softmax.most[half] = -INFINITY;
        softmax.sum[half] = present ? 1.0f : 0.0f;
        if (present) {
            const float beta = p.beta ? p.beta[head] * log2_of_e : 0.0f;
            const float peak = p.q.peaks[(b * p.heads + head) * p.length + lanes.rows.token[half]];
            softmax.most[half] = beta + peak - lanes.term[half] + p.log_constant + log2f(sum);
        }
#pragma unroll
        for (int n = 0; n < S::width / 8; n++)
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                float &x = sums[0][n][2 * half + odd];
                x = present ? x / sum : 0.0f;
            }
    }
    return softmax;
}

/* Scores of a tile of keys that begins at `key` join a row's softmax and become weights. lo, hi: the row's near keys.
 * Returns what earlier weights are multiplied by; this lane's part of the sum is added. */
template <int GROUPS>
__device__ float take_near(float (&scores)[GROUPS][4], int half, float scale, int key, int lo, int hi, float &most,
                           float &sum) {
    float here = most;
#pragma unroll
    for (int n = 0; n < 2 * GROUPS; n++) {
        const int j = key + n / 2 * 8 + lane_column() + n % 2;
        float &score = scores[n / 2][2 * half + n % 2];
        score = j >= lo && j < hi ? score * scale : -INFINITY;
        here = fmaxf(here, score);
    }
    here = quad_max(here);
    const float reference = here == -INFINITY ? 0.0f : here, factor = exp2_quick(most - reference);
    most = here;
    sum *= factor;
#pragma unroll
    for (int n = 0; n < 2 * GROUPS; n++) {
        float &score = scores[n / 2][2 * half + n % 2];
        score = exp2_quick(score - reference);
        sum += score;
    }
    return factor;
}

template <class S>
__device__ void near_sum(const linear_problem &p, int64_t b, int head, int first, const far_memory<S> &memory,
                         row_softmax &softmax, float (&sums)[1][S::width / 8][4]) {
    using T = typename S::real;
    const int window = window_of(p, b), last = min(first + S::rows, p.length) - 1, group = head / p.share;
    const int32_t *begin = p.begin + b * p.length;
    if (window == 0) return;
    int lo[2], hi[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = first + warp_number() * 16 + 8 * half + lane_row();
        lo[half] = i < p.length ? max(begin[i], i - window + 1) : 0;
        hi[half] = i < p.length ? i + 1 : 0;
    }
    for (int key = max(begin[first], first - window + 1); key <= last; key += S::columns) {
        load_rows<S::columns, S::width, S::stride, S::threads>(memory.column_x,
                                                               attention_rows<const T>(p.k.x, b, group), p.k.x.token,
                                                               key, p.length, p.width, p.k.x.vector);
        load_rows<S::columns, S::width, S::stride, S::threads>(
            memory.column_value, attention_rows<const T>(p.v, b, group), p.v.token, key, p.length, p.width, p.v.vector);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        float scores[1][S::groups][4];
        clear_sums(scores);
        warp_product<T>::rows_by_rows(scores, row_product<S>(memory.rows + warp_number() * 16 * S::stride),
                                      memory.column_x);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float factor = take_near(scores[0], half, p.scale_log2, key, lo[half], hi[half], softmax.most[half],
                                           softmax.sum[half]);
#pragma unroll
            for (int n = 0; n < S::width / 8; n++) {
                sums[0][n][2 * half] *= factor;
                sums[0][n][2 * half + 1] *= factor;
            }
        }
        warp_product<T>::template weights_by_rows<1, S::groups, S::width, S::stride>(sums, scores, memory.column_value);
        __syncthreads(); /* nobody reads the tiles any more */
    }
}

template <class S> __global__ void __launch_bounds__(S::threads) attend_linear(forward_arguments a) {
    using T = typename S::real;
    const linear_problem &p = a.g.f;
    const block_place place = place_block(a.order);
    const int64_t b = place.pair / p.heads;
    const int head = static_cast<int>(place.pair % p.heads), first = place.tile * S::rows;
    const far_memory<S> memory(shared_memory(), false);
    load_rows<S::rows, S::width, S::stride, S::threads>(memory.rows, attention_rows<const T>(p.q.x, b, head),
                                                        p.q.x.token, first, p.length, p.width, p.q.x.vector);
    copy_async_commit();
    const far_lanes lanes = far_lanes_of<false>(p, nullptr, b, head, first + warp_number() * 16);
    float sums[1][S::width / 8][4], ones[2] = {0.0f, 0.0f};
    clear_sums(sums);
    far_sum<S, false>(a.g, b, head, first, lanes, memory, sums, ones);
    row_softmax softmax = take_far<S>(p, b, head, lanes, ones, sums);
#pragma unroll
    for (int half = 0; half < 2; half++) /* a sum that lanes hold in parts */
        if (threadIdx.x % 4 != 0) softmax.sum[half] = 0.0f;
    near_sum<S>(p, b, head, first, memory, softmax, sums);
    copy_async_wait<0>();
    float factor[1][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float sum = quad_sum(softmax.sum[half]);
        const int i = first + warp_number() * 16 + 8 * half + lane_row();
        if (threadIdx.x % 4 == 0 && i < p.length)
            p.log_sums[(b * p.heads + head) * p.length + i] =
                sum == 0.0f ? -INFINITY : (softmax.most[half] + log2f(sum)) * log_of_2;
        factor[0][half] = sum == 0.0f ? 0.0f : 1.0f / sum;
    }
    store_rows<1, S::width>(attention_rows<T>(p.o, b, head), p.o.token, first + warp_number() * 16, p.length, 0,
                            p.width, p.o.vector, sums, factor);
}

template <class S> enum status run_forward(const struct ops *ops, const linear_gradient &g) {
    const linear_problem &p = g.f;
    const int64_t tiles = divide_up(p.length, S::rows), pairs = p.batch * p.heads;
    forward_arguments a = {g, order_blocks(tiles, pairs, 0, p.causal)};
    return device_launch(ops, "linear_attention", attend_linear<S>, dim3(static_cast<unsigned>(tiles * pairs)),
                         S::threads, far_memory<S>::bytes(false), a);
}

} // namespace

enum status cuda_linear_attention(const struct ops *ops, const struct linear_attention *a) {
    const char *operation = "linear_attention";
    TRY(check_linear_attention(ops, a));
    if (tensor_count(a->q) == 0) return STATUS_OK;
    linear_gradient g = {};
    TRY(linear_measure(ops, operation, a, &g.f));
    const size_t plan = linear_plan_bytes(a), states = linear_states_bytes(ops, g.f), own = linear_own_bytes(g.f);
    void *memory;
    TRY(device_scratch(ops, plan + own + (a->causal ? 1 : 2) * states, &memory));
    char *at = static_cast<char *>(memory), *sums = at + plan, *placed = sums + own;
    TRY(linear_plan(ops, operation, a, at, &g.f));
    g.before = linear_states_place(ops, g.f, placed);
    if (!a->near_only) TRY(linear_states_make(ops, operation, g, true, false, sums, g.before));
    if (!a->causal) {
        g.after = linear_states_place(ops, g.f, placed + states);
        TRY(linear_states_make(ops, operation, g, true, true, sums, g.after));
    }
    return with_linear_shape(ops, g.f.width, [&](auto shape) { return run_forward<decltype(shape)>(ops, g); });
}
