/* Linear attention of the next token, from a state of fixed size: a block has one sequence's key head and the query
 * heads that read it. Everything is fp32 but what q, k, v and the maps are stored as. */
#include "kernels/cuda/attention.cuh"

#include <cmath>

namespace {

constexpr int decode_threads = 256, decode_warps = decode_threads / 32;
constexpr int columns_most = 257, lane_columns = 9; /* of D + 1 up to columns_most: lane, lane + 32, … */
constexpr float tiny = 1e-30f, floor_of_relu = 1e-6f;

struct decode_map {
    const void *map, *bias;
    int64_t map_head, map_row, bias_head;
};

struct decode_arguments {
    attention_view q, k, v, o; /* rows of heads: `token` is not used */
    attention_view near_k, near_v;
    decode_map q_map, k_map;
    const void *squeeze, *excite;
    int64_t squeeze_head, squeeze_row, excite_head, excite_row;
    const float *beta;
    const int32_t *start;
    float *sums, *peaks, *means;
    float *scratch; /* [B·G][reals] */
    int64_t reals, position, window;
    int heads, groups, share, width, kind, columns, features, hidden;
    float scale, map_scale, log_constant;
    bool near_only;
};

__device__ float natural_exp(float x) {
    return exp2_quick(x * log2_of_e);
}

/* Σ a · b over a warp; every lane gets it. */
template <class A, class B> __device__ float warp_dot(const A *a, const B *b, int count) {
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x % 32); d < count; d += 32) sum += to_float(a[d]) * to_float(b[d]);
    return warp_sum(sum);
}

/* y [count] becomes e^{y − its maximum}, times 1 over its sum when `normal`; *most: the maximum. Returns the sum
 * before. By the block. */
__device__ float block_softmax(float *y, int64_t count, bool normal, float *most) {
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t n = threadIdx.x; n < count; n += decode_threads) largest = fmaxf(largest, y[n]);
    largest = block_max<decode_threads>(largest);
    for (int64_t n = threadIdx.x; n < count; n += decode_threads) {
        y[n] = natural_exp(y[n] - largest);
        sum += y[n];
    }
    sum = block_sum<decode_threads>(sum);
    for (int64_t n = threadIdx.x; normal && n < count; n += decode_threads) y[n] *= 1.0f / sum;
    *most = largest;
    return sum;
}

/* phi [M] of x; returns the exponent that it lost. By the block; ends with a barrier. */
template <class T>
__device__ float features_of(const decode_arguments &a, const decode_map &maps, int head, const T *x, float *phi) {
    const T *map = static_cast<const T *>(maps.map) + head * maps.map_head;
    const T *bias = static_cast<const T *>(maps.bias);
    for (int n = static_cast<int>(threadIdx.x / 32); n < a.columns; n += decode_warps) {
        const float y = a.map_scale * warp_dot(map + n * maps.map_row, x, a.width);
        if (threadIdx.x % 32 != 0) continue;
        if (a.kind == FEATURE_RELU) {
            const float shifted = y + (bias ? to_float(bias[head * maps.bias_head + n]) : 0.0f);
            phi[n] = (shifted > 0.0f ? shifted : 0.0f) + floor_of_relu;
        } else {
            phi[n] = y;
            if (a.kind == FEATURE_HEDGEHOG) phi[a.columns + n] = -y;
        }
    }
    __syncthreads();
    float lost = 0.0f, unused;
    if (a.kind == FEATURE_EXP) {
        block_softmax(phi, a.columns, false, &lost);
        lost -= a.map_scale * a.map_scale / 2 * warp_dot(x, x, a.width);
    } else if (a.kind == FEATURE_HEDGEHOG) {
        block_softmax(phi, a.columns, true, &unused);
        block_softmax(phi + a.columns, a.columns, true, &unused);
    }
    __syncthreads();
    return lost;
}

/* The key head's state at the token `position`: clear, let one token become far, take the new one in. */
template <class T> __device__ void take_in(const decode_arguments &a, int64_t b, int group, int64_t start, float *phi) {
    const int64_t unit = b * a.groups + group, values = a.width + 1, size = a.features * values;
    const T *k = attention_rows<const T>(a.k, b, group), *v = attention_rows<const T>(a.v, b, group);
    float *sums = a.sums + unit * size, *means = a.means + unit * a.features;
    T *near_k = nullptr, *near_v = nullptr;
    if (a.window) {
        near_k = attention_rows<T>(a.near_k, b, group) + a.position % a.window * a.near_k.token;
        near_v = attention_rows<T>(a.near_v, b, group) + a.position % a.window * a.near_v.token;
    }
    const bool cleared = start == a.position;
    const float before = cleared ? -INFINITY : a.peaks[unit];
    for (int64_t n = threadIdx.x; cleared && n < size; n += decode_threads) sums[n] = 0.0f;
    for (int64_t m = threadIdx.x; cleared && a.hidden && m < a.features; m += decode_threads) means[m] = 0.0f;
    float peak = before;
    if (a.position - a.window >= start) {
        const T *far_v = a.window ? near_v : v;
        const float own = features_of(a, a.k_map, group, a.window ? near_k : k, phi);
        peak = fmaxf(before, own);
        const float kept = natural_exp(before - peak), weight = natural_exp(own - peak);
        for (int64_t n = threadIdx.x; n < size; n += decode_threads) {
            const int64_t m = n / values, d = n % values;
            sums[n] = kept * sums[n] + weight * phi[m] * (d < a.width ? to_float(far_v[d]) : 1.0f);
        }
    }
    __syncthreads(); /* all have read the peak, and what the slot held */
    if (threadIdx.x == 0) a.peaks[unit] = peak;
    for (int d = static_cast<int>(threadIdx.x); a.window && d < a.width; d += decode_threads) {
        near_k[d] = k[d];
        near_v[d] = v[d];
    }
    if (a.hidden) {
        features_of(a, a.k_map, group, k, phi);
        for (int64_t m = threadIdx.x; m < a.features; m += decode_threads) means[m] += phi[m];
    }
    __syncthreads();
}

/* gates [M] = 2σ(excite · relu(squeeze · mean)). By the block; ends with a barrier. */
template <class T>
__device__ void gates_of(const decode_arguments &a, int64_t b, int group, int64_t start, float *hidden, float *gates) {
    const T *squeeze = static_cast<const T *>(a.squeeze) + group * a.squeeze_head,
            *excite = static_cast<const T *>(a.excite) + group * a.excite_head;
    const float *means = a.means + (b * a.groups + group) * a.features;
    const float inverse = 1.0f / static_cast<float>(a.position - start + 1);
    for (int r = static_cast<int>(threadIdx.x / 32); r < a.hidden; r += decode_warps) {
        const float y = inverse * warp_dot(squeeze + r * a.squeeze_row, means, a.features);
        if (threadIdx.x % 32 == 0) hidden[r] = y > 0.0f ? y : 0.0f;
    }
    __syncthreads();
    for (int m = static_cast<int>(threadIdx.x / 32); m < a.features; m += decode_warps) {
        const float y = warp_dot(excite + m * a.excite_row, hidden, a.hidden);
        if (threadIdx.x % 32 == 0) gates[m] = 2.0f / (1.0f + natural_exp(-y));
    }
    __syncthreads();
}

/* to [columns] = Σ_n weights[n] · row(n)[…] over `count` rows, by the block; row(n, d): an element. parts: of the
 * block. Ends with a barrier. */
template <class Row>
__device__ void weighted_rows(const float *weights, int64_t count, int columns, Row row, float (*parts)[columns_most],
                              float *to) {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    float sums[lane_columns] = {};
    for (int64_t n = warp; n < count; n += decode_warps)
#pragma unroll
        for (int c = 0; c < lane_columns; c++)
            if (lane + 32 * c < columns) sums[c] += weights[n] * row(n, lane + 32 * c);
    __syncthreads(); /* an earlier call's parts are read */
#pragma unroll
    for (int c = 0; c < lane_columns; c++)
        if (lane + 32 * c < columns) parts[warp][lane + 32 * c] = sums[c];
    __syncthreads();
    for (int d = static_cast<int>(threadIdx.x); d < columns; d += decode_threads) {
        float sum = 0.0f;
        for (int w = 0; w < decode_warps; w++) sum += parts[w][d];
        to[d] = sum;
    }
    __syncthreads();
}

struct decode_memory {
    float parts[decode_warps][columns_most], far[columns_most], near[columns_most];
};

/* o of one query head. phi [M], gates [M], scores [window]: memory. */
template <class T>
__device__ void decode_query(const decode_arguments &a, int64_t b, int head, int64_t start, float *phi,
                             const float *gates, float *scores, decode_memory &memory) {
    const int group = head / a.share;
    const int64_t unit = b * a.groups + group, values = a.width + 1;
    const T *q = attention_rows<const T>(a.q, b, head);
    const float own = features_of(a, a.q_map, head, q, phi);
    for (int m = static_cast<int>(threadIdx.x); a.hidden && m < a.features; m += decode_threads) phi[m] *= gates[m];
    __syncthreads();
    const float *sums = a.sums + unit * a.features * values;
    weighted_rows(
        phi, a.features, a.width + 1, [&](int64_t m, int d) { return sums[m * values + d]; }, memory.parts, memory.far);
    const float norm = memory.far[a.width], beta = a.beta ? a.beta[head] : 0.0f;
    const bool far = !a.near_only && norm > tiny;
    const float far_log = far ? beta + own + a.log_constant + a.peaks[unit] + logf(norm) : -INFINITY;
    const int64_t first = max(a.position - a.window + 1, start), count = a.window ? a.position - first + 1 : 0;
    float near_log = -INFINITY, near_sum = 1.0f;
    if (count > 0) {
        const T *k = attention_rows<const T>(a.near_k, b, group), *v = attention_rows<const T>(a.near_v, b, group);
        for (int64_t n = threadIdx.x / 32; n < count; n += decode_warps) {
            const float score = a.scale * warp_dot(q, k + (first + n) % a.window * a.near_k.token, a.width);
            if (threadIdx.x % 32 == 0) scores[n] = score;
        }
        __syncthreads();
        float most;
        near_sum = block_softmax(scores, count, false, &most);
        near_log = most + logf(near_sum);
        __syncthreads();
        weighted_rows(
            scores, count, a.width,
            [&](int64_t n, int d) { return to_float(v[(first + n) % a.window * a.near_v.token + d]); }, memory.parts,
            memory.near);
    }
    const float most = fmaxf(far_log, near_log);
    const float log_sum = most + logf(natural_exp(far_log - most) + natural_exp(near_log - most));
    const float far_share = far ? natural_exp(far_log - log_sum) / norm : 0.0f,
                near_share = count > 0 ? natural_exp(near_log - log_sum) / near_sum : 0.0f;
    T *o = attention_rows<T>(a.o, b, head);
    for (int d = static_cast<int>(threadIdx.x); d < a.width; d += decode_threads)
        o[d] =
            from_float<T>((far ? far_share * memory.far[d] : 0.0f) + (count > 0 ? near_share * memory.near[d] : 0.0f));
    __syncthreads(); /* nobody reads the sums any more */
}

template <class T> __global__ void __launch_bounds__(decode_threads) decode_linear(decode_arguments a) {
    SHARED(decode_memory, memory, [1]);
    const int64_t unit = blockIdx.x, b = unit / a.groups;
    const int group = static_cast<int>(unit % a.groups);
    const int64_t start = max(int64_t{0}, min(static_cast<int64_t>(a.start[b]), a.position));
    float *phi = a.scratch + unit * a.reals, *gates = phi + a.features, *hidden = gates + a.features,
          *scores = hidden + a.hidden;
    take_in<T>(a, b, group, start, phi);
    if (a.hidden) gates_of<T>(a, b, group, start, hidden, gates);
    for (int member = 0; member < a.share; member++)
        decode_query<T>(a, b, group * a.share + member, start, phi, gates, scores, memory[0]);
}

decode_map map_of(struct tensor map, struct tensor bias) {
    return decode_map{map.data, bias.data, map.stride[0], map.stride[1], bias.stride[0]};
}

decode_arguments arguments_of(const struct linear_attention_decode *a) {
    const struct features *f = &a->features;
    decode_arguments g = {};
    g.q = view_of_heads(a->q);
    g.k = view_of_heads(a->k);
    g.v = view_of_heads(a->v);
    g.o = view_of_heads(a->o);
    if (tensor_present(a->near_k)) {
        g.near_k = attention_view_of(a->near_k);
        g.near_v = attention_view_of(a->near_v);
        g.window = a->near_k.shape[1];
    }
    g.q_map = map_of(f->q_map, f->q_bias);
    g.k_map = map_of(f->k_map, f->k_bias);
    g.squeeze = f->squeeze.data;
    g.squeeze_head = f->squeeze.stride[0];
    g.squeeze_row = f->squeeze.stride[1];
    g.excite = f->excite.data;
    g.excite_head = f->excite.stride[0];
    g.excite_row = f->excite.stride[1];
    g.beta = data_of<const float>(f->beta);
    g.start = data_of<const int32_t>(a->start);
    g.sums = data_of<float>(a->sums);
    g.peaks = data_of<float>(a->peaks);
    g.means = data_of<float>(a->means);
    g.position = a->position;
    g.heads = static_cast<int>(a->q.shape[1]);
    g.groups = static_cast<int>(a->k.shape[1]);
    g.share = g.heads / g.groups;
    g.width = static_cast<int>(a->q.shape[2]);
    g.kind = f->kind;
    g.columns = static_cast<int>(f->q_map.shape[1]);
    g.features = (f->kind == FEATURE_HEDGEHOG ? 2 : 1) * g.columns;
    g.hidden = tensor_present(f->squeeze) ? static_cast<int>(f->squeeze.shape[1]) : 0;
    g.scale = static_cast<float>(a->scale);
    g.map_scale = 1.0f;
    g.near_only = a->near_only;
    g.reals = 2 * static_cast<int64_t>(g.features) + g.hidden + g.window;
    if (f->kind != FEATURE_EXP) return g;
    g.map_scale = static_cast<float>(1 / std::sqrt(std::sqrt(static_cast<double>(g.width))));
    g.log_constant = static_cast<float>(-std::log(static_cast<double>(g.columns)));
    return g;
}

} // namespace

enum status cuda_linear_attention_decode(const struct ops *ops, const struct linear_attention_decode *a) {
    TRY(check_linear_attention_decode(ops, a));
    const int64_t units = a->q.shape[0] * a->k.shape[1], width = a->q.shape[2];
    if (width >= columns_most)
        return error_set(STATUS_SHAPE, "linear_attention_decode: q: expected a head width up to %d, found %lld",
                         columns_most - 1, static_cast<long long>(width));
    if (units > INT_MAX || a->features.q_map.shape[1] > (1 << 20))
        return error_set(STATUS_SHAPE, "linear_attention_decode: expected up to %d heads and %d rows of a map", INT_MAX,
                         1 << 20);
    decode_arguments g = arguments_of(a);
    void *memory;
    TRY(device_scratch(ops, static_cast<size_t>(units * g.reals) * sizeof(float), &memory));
    g.scratch = static_cast<float *>(memory);
    return with_real(ops, [&](auto real) {
        return device_launch(ops, "linear_attention_decode", decode_linear<decltype(real)>,
                             dim3(static_cast<unsigned>(units)), decode_threads, 0, g);
    });
}
