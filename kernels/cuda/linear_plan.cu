/* Linear attention: what the host knows of a problem; what every token's features lose (their maximum, hedgehog's
 * sums), and the peaks of the document so far. Knows no value. */
#include "kernels/cuda/documents.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/linear_gate.cuh"

#include <cmath>

namespace {

constexpr int scan_threads = 512;

/* Running maximum, and Σ 2^{x − maximum}, of this lane's part of a row. */
struct running_sum {
    float most, sum;
    __device__ void take(float x) {
        if (x > most) {
            sum *= exp2_quick(most - x);
            most = x;
        }
        sum += exp2_quick(x - most);
    }
    /* log2 Σ 2^x over the four lanes that hold the row. */
    __device__ float finish() const {
        const float all = quad_max(most);
        return all + log2f(quad_sum(sum * exp2_quick(most - all)));
    }
};

template <class S> struct reference_arguments {
    linear_problem p;
    linear_side side;
    int tiles; /* of S::rows tokens */
};

/* references and peaks of S::rows tokens of one head. */
template <class S> __global__ void __launch_bounds__(S::threads) find_references(reference_arguments<S> a) {
    using T = typename S::real;
    const linear_problem &p = a.p;
    const int64_t pair = blockIdx.x / a.tiles, b = pair / a.side.heads;
    const int head = static_cast<int>(pair % a.side.heads), first = static_cast<int>(blockIdx.x % a.tiles) * S::rows;
    shared_cutter cutter = {shared_memory()};
    T *x = cutter.take<T>(S::rows * S::stride), *map = cutter.take<T>(S::columns * S::stride);
    load_rows<S::rows, S::width, S::stride, S::threads>(x, attention_rows<const T>(a.side.x, b, head), a.side.x.token,
                                                        first, p.length, p.width, a.side.x.vector);
    running_sum plus[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}}, minus[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    for (int tile = 0; tile < p.part_tiles; tile++) {
        const feature_place place = place_features<S>(p, tile);
        float y[1][S::groups][4];
        map_product<S>(p, a.side, head, place, x, map, y);
#pragma unroll
        for (int n = 0; n < S::groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (place.first + n * 8 + lane_column() + e % 2 >= p.columns) continue;
                const float exponent = y[0][n][e] * (p.map_scale * log2_of_e);
                plus[e / 2].take(exponent);
                if (p.kind == FEATURE_HEDGEHOG) minus[e / 2].take(-exponent);
            }
        __syncthreads(); /* nobody reads the map any more */
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp_number() * 16 + 8 * half + lane_row(), token = first + row;
        const int64_t at = (b * a.side.heads + head) * p.length + token;
        float2 reference = make_float2(0.0f, 0.0f);
        float peak = 0.0f;
        if (p.kind == FEATURE_HEDGEHOG) {
            reference = make_float2(plus[half].finish(), minus[half].finish());
        } else {
            float squares = 0.0f;
            for (int d = static_cast<int>(threadIdx.x % 4); d < p.width; d += 4) {
                const float value = to_float(x[row * S::stride + d]);
                squares += value * value;
            }
            reference.x = quad_max(plus[half].most);
            peak = reference.x - p.map_scale * p.map_scale / 2 * log2_of_e * quad_sum(squares);
        }
        if (threadIdx.x % 4 != 0 || token >= p.length) continue;
        a.side.references[at] = reference;
        a.side.peaks[at] = peak;
    }
}

/* A stretch of tokens: the largest peak of its last document, and whether that begins in it. */
struct stretch {
    float most;
    int begins;
};
__device__ stretch join(stretch a, stretch b) {
    return b.begins ? b : stretch{fmaxf(a.most, b.most), a.begins};
}
__device__ stretch shuffle_up(stretch x, unsigned by) {
    return stretch{__shfl_up_sync(whole_warp, x.most, by), __shfl_up_sync(whole_warp, x.begins, by)};
}

/* prefix of one sequence's key head, a tile of scan_threads tokens at a time. */
__global__ void __launch_bounds__(scan_threads) scan_peaks(linear_problem p) {
    SHARED(stretch, totals, [scan_threads / 32]);
    const int64_t b = blockIdx.x / p.groups, row = static_cast<int64_t>(blockIdx.x) * p.length;
    const int lane = static_cast<int>(threadIdx.x % 32), warp = warp_number();
    stretch before = {-INFINITY, 1};
    for (int first = 0; first < p.length; first += scan_threads) {
        const int t = first + static_cast<int>(threadIdx.x);
        stretch x = {-INFINITY, 0};
        if (t < p.length) x = stretch{p.k.peaks[row + t], p.begin[b * p.length + t] == t};
#pragma unroll
        for (unsigned step = 1; step < 32; step *= 2) {
            const stretch other = shuffle_up(x, step);
            if (lane >= static_cast<int>(step)) x = join(other, x);
        }
        __syncthreads(); /* the totals of the tile before are read */
        if (lane == 31) totals[warp] = x;
        __syncthreads();
        stretch all = before;
        for (int w = 0; w < scan_threads / 32; w++) {
            if (w == warp) x = join(all, x);
            all = join(all, totals[w]);
        }
        before = all;
        if (t < p.length) p.prefix[row + t] = x.most;
    }
}

/* Both directions: the peak of the whole document. Its last token has it already, and keeps it. */
__global__ void __launch_bounds__(256) spread_peaks(linear_problem p) {
    const int64_t count = p.batch * p.groups * p.length;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < count;
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t unit = n / p.length, t = n % p.length;
        const int last = p.end[unit / p.groups * p.length + t] - 1;
        if (last != t) p.prefix[n] = p.prefix[unit * p.length + last];
    }
}

template <class S> enum status run_references(const struct ops *ops, const char *operation, const linear_problem &p) {
    for (int keys = 0; keys < 2; keys++) {
        reference_arguments<S> a = {p, keys ? p.k : p.q, static_cast<int>(divide_up(p.length, S::rows))};
        const int64_t blocks = p.batch * a.side.heads * a.tiles;
        TRY(device_launch(ops, operation, find_references<S>, dim3(static_cast<unsigned>(blocks)), S::threads,
                          (S::rows + S::columns) * S::stride * sizeof(typename S::real), a));
    }
    return STATUS_OK;
}

size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}
/* Elements of each array that the plan places, by query head or by key head. */
struct plan_counts {
    size_t queries, keys, hidden;
};
plan_counts count_of(const struct linear_attention *a) {
    const size_t tokens = static_cast<size_t>(a->q.shape[0] * a->q.shape[1]);
    const size_t keys = tokens * static_cast<size_t>(a->k.shape[2]);
    const size_t hidden = tensor_present(a->features.squeeze) ? static_cast<size_t>(a->features.squeeze.shape[1]) : 0;
    return plan_counts{tokens * static_cast<size_t>(a->q.shape[2]), keys, keys * hidden};
}

linear_side side_of(struct tensor x, struct tensor map, struct tensor bias, int64_t heads) {
    linear_side side = {};
    const int64_t size = static_cast<int64_t>(dtype_size(map.dtype));
    side.x = attention_view_of(x);
    side.map = map.data;
    side.map_head = map.stride[0];
    side.map_row = map.stride[1];
    side.map_vector = (map.stride[0] | map.stride[1] | map.shape[2]) * size % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
    side.bias = bias.data;
    side.bias_head = bias.stride[0];
    side.heads = static_cast<int>(heads);
    return side;
}

enum status check_extents(const char *operation, const struct linear_attention *a) {
    const int64_t length = a->q.shape[1], width = a->q.shape[3], columns = a->features.q_map.shape[1];
    if (width > 256)
        return error_set(STATUS_SHAPE, "%s: q: expected a head width up to 256, found %lld", operation,
                         static_cast<long long>(width));
    if (length > INT_MAX / 2 || columns > (1 << 20))
        return error_set(STATUS_SHAPE, "%s: expected up to %d tokens and %d rows of a map, found %lld and %lld",
                         operation, INT_MAX / 2, 1 << 20, static_cast<long long>(length),
                         static_cast<long long>(columns));
    return STATUS_OK;
}

void set_numbers(const struct linear_attention *a, linear_problem *p) {
    const struct features *f = &a->features;
    p->batch = a->q.shape[0];
    p->length = static_cast<int>(a->q.shape[1]);
    p->heads = static_cast<int>(a->q.shape[2]);
    p->groups = static_cast<int>(a->k.shape[2]);
    p->share = p->heads / p->groups;
    p->width = static_cast<int>(a->q.shape[3]);
    p->kind = f->kind;
    p->columns = static_cast<int>(f->q_map.shape[1]);
    p->hidden_width = tensor_present(f->squeeze) ? static_cast<int>(f->squeeze.shape[1]) : 0;
    p->window = static_cast<int>(a->window < p->length ? a->window : p->length);
    p->causal = a->causal;
    p->near_only = a->near_only;
    p->scale = static_cast<float>(a->scale);
    p->scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    p->map_scale = 1.0f;
    if (p->kind != FEATURE_EXP) return;
    p->map_scale = static_cast<float>(1 / std::sqrt(std::sqrt(static_cast<double>(p->width))));
    p->log_constant = static_cast<float>(-std::log2(static_cast<double>(p->columns)));
}

/* Far rows of a segment: so many that states take memory O(T · D), and pairs inside a segment about the time that the
 * states take. */
int segment_of(int64_t chunk, int64_t features) {
    const int64_t wanted = chunk > 0 ? divide_up(chunk, 64) : features / 64 < 2 ? 2 : features / 64;
    return static_cast<int>(64 * (wanted < 8 ? wanted : 8));
}

} // namespace

size_t linear_plan_bytes(const struct linear_attention *a) {
    const plan_counts n = count_of(a);
    return document_blocks_bytes(a->q.shape[0], a->q.shape[1], a->q.shape[1], a->q.shape[1], true) +
           padded(n.queries * sizeof(float2)) + padded(n.keys * sizeof(float2)) + padded(n.queries * sizeof(float)) +
           2 * padded(n.keys * sizeof(float)) + padded(n.hidden * sizeof(float)) +
           (n.hidden ? gate_scan_bytes(a->q.shape[0] * a->k.shape[2], a->q.shape[1], a->features.squeeze.shape[1]) : 0);
}

enum status linear_measure(const struct ops *ops, const char *operation, const struct linear_attention *a,
                           linear_problem *p) {
    const struct features *f = &a->features;
    TRY(check_extents(operation, a));
    *p = linear_problem{};
    set_numbers(a, p);
    const int parts = p->kind == FEATURE_HEDGEHOG ? 2 : 1;
    p->q = side_of(a->q, f->q_map, f->q_bias, p->heads);
    p->k = side_of(a->k, f->k_map, f->k_bias, p->groups);
    if (tensor_present(a->v)) p->v = attention_view_of(a->v);
    if (tensor_present(a->o)) p->o = attention_view_of(a->o);
    p->log_sums = data_of<float>(a->log_sums);
    p->no_window = data_of<const int32_t>(a->no_window);
    p->beta = data_of<const float>(f->beta);
    p->squeeze = f->squeeze.data;
    p->squeeze_head = f->squeeze.stride[0];
    p->squeeze_row = f->squeeze.stride[1];
    p->excite = f->excite.data;
    p->excite_head = f->excite.stride[0];
    p->excite_row = f->excite.stride[1];
    p->segment = segment_of(a->chunk, static_cast<int64_t>(parts) * p->columns);
    p->segments = static_cast<int>(divide_up(p->length, p->segment));
    return with_linear_shape(ops, p->width, [&](auto shape) {
        p->part_tiles = static_cast<int>(divide_up(p->columns, decltype(shape)::columns));
        p->tiles = parts * p->part_tiles;
        p->features = p->tiles * decltype(shape)::columns;
        const int64_t blocks = p->batch * p->heads * divide_up(p->length, decltype(shape)::rows);
        if (blocks > INT_MAX)
            return error_set(STATUS_SHAPE, "%s: expected up to %d tiles of queries, found %lld", operation, INT_MAX,
                             static_cast<long long>(blocks));
        return STATUS_OK;
    });
}

enum status linear_plan(const struct ops *ops, const char *operation, const struct linear_attention *a, char *memory,
                        linear_problem *p) {
    const plan_counts n = count_of(a);
    const auto take = [&memory](size_t bytes) {
        char *piece = memory;
        memory += padded(bytes);
        return piece;
    };
    document_blocks documents;
    char *found = take(document_blocks_bytes(p->batch, p->length, p->length, p->length, true));
    TRY(document_blocks_find(ops, operation, a->start, p->length, p->length, true, found, &documents));
    p->begin = documents.begin;
    p->end = documents.end;
    p->q.references = reinterpret_cast<float2 *>(take(n.queries * sizeof(float2)));
    p->k.references = reinterpret_cast<float2 *>(take(n.keys * sizeof(float2)));
    p->q.peaks = reinterpret_cast<float *>(take(n.queries * sizeof(float)));
    p->k.peaks = reinterpret_cast<float *>(take(n.keys * sizeof(float)));
    p->prefix = reinterpret_cast<float *>(take(n.keys * sizeof(float)));
    p->hidden = reinterpret_cast<float *>(take(n.hidden * sizeof(float)));
    cudaStream_t stream = ops->device->stream;
    if (p->kind != FEATURE_EXP) CUDA_TRY(cudaMemsetAsync(p->prefix, 0, n.keys * sizeof(float), stream));
    if (p->kind == FEATURE_RELU) {
        CUDA_TRY(cudaMemsetAsync(p->q.references, 0, n.queries * sizeof(float2), stream));
        CUDA_TRY(cudaMemsetAsync(p->k.references, 0, n.keys * sizeof(float2), stream));
        CUDA_TRY(cudaMemsetAsync(p->q.peaks, 0, n.queries * sizeof(float), stream));
        CUDA_TRY(cudaMemsetAsync(p->k.peaks, 0, n.keys * sizeof(float), stream));
    }
    if (p->kind != FEATURE_RELU)
        TRY(with_linear_shape(ops, p->width,
                              [&](auto shape) { return run_references<decltype(shape)>(ops, operation, *p); }));
    const int64_t units = p->batch * p->groups;
    if (p->kind == FEATURE_EXP) {
        TRY(device_launch(ops, operation, scan_peaks, dim3(static_cast<unsigned>(units)), scan_threads, 0, *p));
        if (!p->causal) TRY(device_launch(ops, operation, spread_peaks, grid_over(units * p->length, 256), 256, 0, *p));
    }
    return p->hidden_width ? gate_plan(ops, operation, *p, memory) : STATUS_OK;
}
