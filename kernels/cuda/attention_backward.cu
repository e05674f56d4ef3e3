/* Attention's backward pass: weights are made again from log Z (Dao et al. 2022), then
 *   delta_m(i) = Σ_j P_m,ij do_i·v_j,  ds_ij = Σ_m c_m P_m,ij (do_i·v_j − delta_m(i)),
 *   dq_i = scale Σ_j ds_ij k_j,  dk_j = scale Σ_i ds_ij q_i,  dv_j = Σ_i A_ij do_i.
 * Here are the deltas, dq by rows and the coefficients' gradients; attention_keys.cu makes dk and dv. What a pair needs
 * of its query lies in one record for each query, head and candidate. */
#include "kernels/cuda/attention_rows.cuh"

namespace {

template <class T, int D> struct backward_shape;
template <> struct backward_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 2, 32>; };
template <> struct backward_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 64>; };
template <> struct backward_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <int D> struct backward_shape<float, D> {
    using shape = tile_shape<float, D, D == 256 ? 2 : 4, 1, D == 256 ? 16 : 32>;
};

constexpr int row_threads = 128;

/* Of head h, candidates whose deltas are wanted: the living and, where they have sums, the dead. */
__device__ bool is_visited(const attention_gradient &g, float c) {
    return c != 0.0f || g.dead_sums;
}
/* Whether the head's only visited candidate lives: then delta is do·o / c. */
__device__ bool has_single(const attention_gradient &g, int64_t h) {
    int last;
    const int live = count_live(g.f, h, &last);
    return live == 1 && (g.f.count == 1 || !g.dead_sums);
}

/* Records of one query and head by one warp; delta where do·o gives it, else 0. rows: B·H·T. */
template <class T> __global__ void __launch_bounds__(row_threads) write_records(attention_gradient g, int64_t rows) {
    const attention_problem &p = g.f;
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * (row_threads / 32) + threadIdx.x / 32; row < rows;
         row += static_cast<int64_t>(gridDim.x) * (row_threads / 32)) {
        const int64_t i = row % p.length, h = row / p.length % p.heads, b = row / p.length / p.heads;
        float product = 0.0f;
        if (has_single(g, h)) {
            const T *o = attention_rows<const T>(p.o, b, h) + i * p.o.token,
                    *d_o = attention_rows<const T>(g.d_o, b, h) + i * g.d_o.token;
            for (int d = lane; d < p.width; d += 32) product += to_float(o[d]) * to_float(d_o[d]);
            product = warp_sum(product);
        }
        if (lane >= p.count) continue;
        const float c = coefficient_of(p, h, lane);
        const int64_t at = ((b * p.heads + h) * p.count + lane) * p.length + i;
        const int2 span = p.spans[(b * p.count + lane) * p.length + i];
        attention_record record = {INFINITY, 0.0f, span.x, span.y};
        if (is_visited(g, c)) {
            const float log_sum = c == 0.0f ? g.dead_sums[at] : p.log_sums[at];
            if (log_sum != -INFINITY) record.z = log2_of_e * log_sum;
            if (c != 0.0f) record.delta = product / c;
        }
        g.records[at] = record;
    }
}

struct rows_arguments {
    attention_gradient g;
    block_order order; /* of query tiles, of sequences and heads */
};

/* One row of a tile: scores (not scaled) and do·v. DELTAS: adds Σ_j P_m,ij do_i·v_j of this lane's columns to sums[m ·
 * sums_step]; else the scores become ds. records: of this row, S::rows apart. */
template <class S, int COUNT, bool DELTAS>
__device__ void weigh_row(float (&scores)[S::groups][4], const float (&d_weights)[S::groups][4], int half,
                          const attention_problem &p, const row_candidates &candidates, const attention_record *records,
                          int key, unsigned touching, float *sums, int sums_step) {
    const int count = COUNT ? COUNT : p.count;
    float d_scores[2 * S::groups];
#pragma unroll
    for (int n = 0; n < 2 * S::groups; n++) d_scores[n] = 0.0f;
    for (int m = 0; m < count; m++) {
        if (!(touching >> m & 1)) continue;
        const attention_record record = records[m * S::rows];
        const bool covered = hull_covered(p.rules[m], candidates.hulls[m], key, key + S::columns);
        const unsigned held = held_columns<S::groups>(p.rules[m], record.lo, record.count, key, covered);
        const float c = candidates.coefficients[m];
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++) {
            if (!(held >> n & 1)) continue;
            const float part = exp2_quick(scores[n / 2][2 * half + n % 2] * p.scale_log2 - record.z),
                        d_weight = d_weights[n / 2][2 * half + n % 2];
            if (DELTAS)
                sum += part * d_weight;
            else
                d_scores[n] += c * part * (d_weight - record.delta);
        }
        if (DELTAS) sums[m * sums_step] += sum;
    }
#pragma unroll
    for (int n = 0; n < 2 * S::groups; n++)
        if (!DELTAS) scores[n / 2][2 * half + n % 2] = d_scores[n];
}

/* A block: S::rows queries of one head. DELTAS: the records' deltas, of heads where do·o does not give them; else dq.
 * COUNT 1: one candidate; 0: any number. */
template <class S, int COUNT, bool DELTAS>
__global__ void __launch_bounds__(S::threads) gather_rows(rows_arguments arguments) {
    using T = typename S::real;
    using product = warp_product<T>;
    const attention_gradient &g = arguments.g;
    const attention_problem &p = g.f;
    const block_place place = place_block(arguments.order);
    const int64_t b = place.pair / p.heads, h = place.pair % p.heads;
    const int first = place.tile * S::rows, count = COUNT ? COUNT : p.count, thread = static_cast<int>(threadIdx.x);
    if (DELTAS && has_single(g, h)) return;
    SHARED(row_candidates, candidates, [1]);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *d_outs = cutter.take<T>(S::rows * S::stride);
    T *tiles = cutter.take<T>(4 * S::columns * S::stride);
    attention_record *records = cutter.take<attention_record>(count * S::rows);
    float *sums =
        cutter.take<float>(DELTAS ? count * S::tiles * 2 * S::threads : 0); /* [count][row of this lane][thread] */
    for (int n = thread; n < count * S::rows; n += S::threads) {
        const int i = first + n % S::rows;
        records[n] = i < p.length ? g.records[((b * p.heads + h) * count + n / S::rows) * p.length + i]
                                  : attention_record{INFINITY, 0.0f, 0, 0};
    }
    for (int n = 0; DELTAS && n < count * S::tiles * 2; n++) sums[n * S::threads + thread] = 0.0f;
    open_candidates(p, b, h, first, S::rows, DELTAS && g.dead_sums ? CHOOSE_ALL : CHOOSE_LIVE, candidates[0]);
    load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.q, b, h), p.q.token, first,
                                                        p.length, p.width, p.q.vector);
    load_rows<S::rows, S::width, S::stride, S::threads>(d_outs, attention_rows<const T>(g.d_o, b, h), g.d_o.token,
                                                        first, p.length, p.width, g.d_o.vector);
    const int own = warp_number() * S::tiles * 16 * S::stride;
    float dq[S::tiles][S::width / 8][4];
    clear_sums(dq);
    walk_keys<S, COUNT>(
        p, candidates[0], first, attention_rows<const T>(p.k, b, h / p.share),
        attention_rows<const T>(p.v, b, h / p.share), tiles, [] {},
        [&](int key, const T *k, const T *v) {
            float scores[S::tiles][S::groups][4], d_weights[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(
                scores, typename product::template left<S::tiles, S::width, S::stride, false>(queries + own), k);
            clear_sums(d_weights);
            product::rows_by_rows(
                d_weights, typename product::template left<S::tiles, S::width, S::stride, false>(d_outs + own), v);
            const unsigned touching = COUNT ? 1u : touching_rows<S>(p, candidates[0], first, key);
#pragma unroll
            for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    weigh_row<S, COUNT, DELTAS>(
                        scores[tile], d_weights[tile], half, p, candidates[0], records + row_of<S>(tile, half), key,
                        touching, sums + (tile * 2 + half) * S::threads + thread, S::tiles * 2 * S::threads);
            if constexpr (!DELTAS)
                product::template weights_by_rows<S::tiles, S::groups, S::width, S::stride>(dq, scores, k);
        });
    if constexpr (!DELTAS) {
        float factor[S::tiles][2];
#pragma unroll
        for (int n = 0; n < 2 * S::tiles; n++) factor[n / 2][n % 2] = p.scale;
        store_rows<S::tiles, S::width>(attention_rows<T>(g.dq, b, h), g.dq.token, first + warp_number() * S::tiles * 16,
                                       p.length, 0, p.width, g.dq.vector, dq, factor, g.accumulate_q);
    } else {
        for (int m = 0; m < count; m++)
            for (int n = 0; n < 2 * S::tiles; n++) {
                const float delta = quad_sum(sums[(m * S::tiles * 2 + n) * S::threads + thread]);
                const int i = first + row_of<S>(n / 2, n % 2);
                if (thread % 4 == 0 && i < p.length)
                    g.records[((b * p.heads + h) * count + m) * p.length + i].delta = delta;
            }
    }
}

/* dq = (or +=) scale · dq_sums. */
template <class T> __global__ void __launch_bounds__(256) convert_dq(attention_gradient g, int64_t count) {
    const attention_problem &p = g.f;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < count;
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t d = n % p.width, i = n / p.width % p.length, pair = n / p.width / p.length;
        T *to = attention_rows<T>(g.dq, pair / p.heads, pair % p.heads) + i * g.dq.token + d;
        *to = from_float<T>(p.scale * g.dq_sums[n] + (g.accumulate_q ? to_float(*to) : 0.0f));
    }
}

/* partial [B,H,count] = Σ_i delta. A block: one of them. */
__global__ void __launch_bounds__(256) sum_deltas(const attention_record *records, int length, double *partial) {
    const attention_record *row = records + static_cast<int64_t>(blockIdx.x) * length;
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < length; i += 256) sum += static_cast<double>(row[i].delta);
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* dcoefficients [H,count] += Σ_b partial, in ascending order; of a stride of 0 the heads' too. Candidates that are not
 * visited have deltas of 0. rows: of dcoefficients. */
__global__ void __launch_bounds__(128)
    add_dcoefficients(const double *partial, int batch, int heads, int count, int rows, float *to, int64_t stride) {
    const int n = static_cast<int>(blockIdx.x * 128 + threadIdx.x);
    if (n >= rows * count) return;
    const int row = n / count, m = n % count, each = heads / rows;
    double sum = 0;
    for (int h = row * each; h < (row + 1) * each; h++)
        for (int64_t b = 0; b < batch; b++) sum += partial[(b * heads + h) * count + m];
    to[row * stride + m] += static_cast<float>(sum);
}

template <class S>
enum status run_rows(const struct ops *ops, const attention_gradient &g, int64_t batch, bool dq, bool deltas) {
    using T = typename S::real;
    const attention_problem &p = g.f;
    const int64_t tiles = divide_up(p.length, S::rows), pairs = batch * p.heads;
    if (tiles * pairs > INT_MAX)
        return error_set(STATUS_SHAPE, "attention_backward: expected up to %d tiles of queries, found %lld", INT_MAX,
                         static_cast<long long>(tiles * pairs));
    rows_arguments arguments = {};
    arguments.g = g;
    arguments.order =
        order_blocks(tiles, pairs, int64_t{2} * p.keys * p.width * static_cast<int64_t>(sizeof(T)) / p.share, p.causal);
    const dim3 grid(static_cast<unsigned>(tiles * pairs));
    const size_t records = static_cast<size_t>(p.count) * S::rows * sizeof(attention_record);
    const size_t shared = (2 * S::rows + 4 * S::columns) * S::stride * sizeof(T) + records;
    const size_t sums = static_cast<size_t>(p.count) * S::tiles * 2 * S::threads * sizeof(float);
    if (deltas)
        TRY(device_launch(ops, "attention_backward", gather_rows<S, 0, true>, grid, S::threads, shared + sums,
                          arguments));
    if (!dq) return STATUS_OK;
    if constexpr (std::is_same_v<T, bf16>) /* fp32 is not there for speed */
        if (p.count == 1)
            return device_launch(ops, "attention_backward", gather_rows<S, 1, false>, grid, S::threads, shared,
                                 arguments);
    return device_launch(ops, "attention_backward", gather_rows<S, 0, false>, grid, S::threads, shared, arguments);
}

enum status launch_rows(const struct ops *ops, const attention_gradient &g, int64_t batch, bool dq, bool deltas) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(g.f.width, [&](auto width) {
            return run_rows<typename backward_shape<decltype(real), decltype(width)::value>::shape>(ops, g, batch, dq,
                                                                                                    deltas);
        });
    });
}

enum status add_coefficients(const struct ops *ops, const attention_gradient &g, int64_t batch, struct tensor to) {
    const attention_problem &p = g.f;
    const int64_t sums = batch * p.heads * p.count;
    TRY(device_launch(ops, "attention_backward", sum_deltas, dim3(static_cast<unsigned>(sums)), 256, 0, g.records,
                      p.length, g.partial));
    const int rows = to.stride[0] == 0 ? 1 : p.heads;
    return device_launch(ops, "attention_backward", add_dcoefficients,
                         grid_over(static_cast<int64_t>(rows) * p.count, 128), 128, 0, g.partial,
                         static_cast<int>(batch), p.heads, p.count, rows, data_of<float>(to), to.stride[0]);
}

enum status finish_dq(const struct ops *ops, const attention_gradient &g, int64_t batch) {
    const int64_t count = batch * g.f.heads * g.f.length * g.f.width;
    return with_real(ops, [&](auto real) {
        return device_launch(ops, "attention_backward", convert_dq<decltype(real)>, grid_over(count, 256), 256, 0, g,
                             count);
    });
}

} // namespace

size_t attention_gradient_place(const struct ops *ops, attention_gradient *g, int64_t batch, bool dead, char *memory) {
    const attention_problem &p = g->f;
    const size_t pairs = static_cast<size_t>(batch * p.heads), tokens = pairs * static_cast<size_t>(p.length);
    const size_t rows = tokens * static_cast<size_t>(p.count);
    size_t used = 0;
    const auto take = [&](size_t bytes) {
        char *at = memory + used;
        used += (bytes + 255) / 256 * 256;
        return bytes ? at : nullptr;
    };
    g->records = reinterpret_cast<attention_record *>(take(rows * sizeof(attention_record)));
    g->dead_sums = reinterpret_cast<float *>(take(dead ? rows * sizeof(float) : 0));
    g->dq_sums = reinterpret_cast<float *>(
        take(ops->device->deterministic ? 0 : tokens * static_cast<size_t>(p.width) * sizeof(float)));
    g->partial = reinterpret_cast<double *>(take(pairs * static_cast<size_t>(p.count) * sizeof(double)));
    return used;
}

enum status attention_records(const struct ops *ops, const attention_gradient &g, int64_t batch) {
    const int64_t rows = batch * g.f.heads * g.f.length;
    return with_real(ops, [&](auto real) {
        return device_launch(ops, "attention_backward", write_records<decltype(real)>,
                             grid_over(rows, row_threads / 32), row_threads, 0, g, rows);
    });
}

enum status attention_backward(const struct ops *ops, const attention_gradient &g, int64_t batch,
                               struct tensor dcoefficients) {
    const attention_problem &p = g.f;
    const int64_t rows = batch * p.heads * p.length;
    if (g.dead_sums) TRY(attention_sums(ops, p, batch, true, g.dead_sums));
    TRY(attention_records(ops, g, batch));
    TRY(launch_rows(ops, g, batch, false, p.count > 1 || g.dead_sums));
    if (tensor_present(dcoefficients)) TRY(add_coefficients(ops, g, batch, dcoefficients));
    if (g.dq_sums && rows > 0)
        CUDA_TRY(
            cudaMemsetAsync(g.dq_sums, 0, static_cast<size_t>(rows * p.width) * sizeof(float), ops->device->stream));
    TRY(attention_keys(ops, g, batch));
    return g.dq_sums ? finish_dq(ops, g, batch) : launch_rows(ops, g, batch, true, false);
}

enum status cuda_attention_backward(const struct ops *ops, const struct attention_backward *a) {
    TRY(check_attention_backward(ops, a));
    const struct attention *f = &a->forward;
    const int64_t batch = f->q.shape[0];
    const bool dead = a->dead_gradients && tensor_present(f->coefficients);
    attention_gradient g = {};
    TRY(attention_plan(ops, "attention_backward", f, nullptr, &g.f));
    const size_t own = attention_gradient_place(ops, &g, batch, dead, nullptr);
    void *block;
    TRY(device_scratch(ops, own + attention_plan_bytes(f), &block));
    TRY(attention_plan(ops, "attention_backward", f, static_cast<char *>(block) + own, &g.f));
    attention_gradient_place(ops, &g, batch, dead, static_cast<char *>(block));
    g.d_o = attention_view_of(a->d_o);
    g.dq = attention_view_of(a->dq);
    g.dk = attention_view_of(a->dk);
    g.dv = attention_view_of(a->dv);
    return attention_backward(ops, g, batch, a->dcoefficients);
}
