/* Branches weighed by gates, and back. A team of lanes has a row: one token of one head. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/rows.cuh"

namespace {

constexpr int threads = 256;

struct gate_arguments {
    attention_view branches[GATES_MAX], d_branches[GATES_MAX], o, d_o; /* data NULL: none */
    const void *logits;                                                /* [B,T,H,columns] */
    void *dlogits;
    int64_t rows, length, heads; /* rows: B·T·H */
    int width, count, columns;
    bool complement;
};

struct gate_row {
    int64_t b, t, h;
};
__device__ gate_row row_of(const gate_arguments &a, int64_t row) {
    const int64_t token = row / a.heads;
    return gate_row{token / a.length, token % a.length, row % a.heads};
}
template <class T> __device__ T *elements_of(const attention_view &view, const gate_row &row) {
    return attention_rows<T>(view, row.b, row.h) + row.t * view.token;
}

/* The factor of branch m, from its row's logits; *slope: its derivative by the logit that it reads. */
template <class T> __device__ float gate_of(const gate_arguments &a, const T *logits, int m, float *slope) {
    const float x = to_float(logits[a.complement ? 0 : m]), g = 1.0f / (1.0f + expf(-x)), s = g / (1.0f + expf(x));
    const bool rest = a.complement && m == 0;
    *slope = rest ? -s : s;
    return rest ? 1.0f / (1.0f + expf(x)) : g;
}

/* W elements at a time, by teams of LANES lanes. */
template <class T, int W, int LANES> __global__ void __launch_bounds__(threads) mix_branches(gate_arguments a) {
    constexpr int teams = threads / LANES;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * teams + threadIdx.x / LANES; n < a.rows;
         n += static_cast<int64_t>(gridDim.x) * teams) {
        const gate_row row = row_of(a, n);
        const T *logits = static_cast<const T *>(a.logits) + n * a.columns;
        float factors[GATES_MAX] = {}, slope;
#pragma unroll
        for (int m = 0; m < GATES_MAX; m++)
            if (m < a.count && a.branches[m].data) factors[m] = gate_of(a, logits, m, &slope);
        for (int d = static_cast<int>(threadIdx.x % LANES) * W; d < a.width; d += LANES * W) {
            float sum[W] = {};
#pragma unroll
            for (int m = 0; m < GATES_MAX; m++) {
                if (m >= a.count || !a.branches[m].data) continue;
                float x[W];
                load_pack(elements_of<const T>(a.branches[m], row) + d, x);
#pragma unroll
                for (int e = 0; e < W; e++) sum[e] += factors[m] * x[e];
            }
            store_pack(elements_of<T>(a.o, row) + d, sum);
        }
    }
}

template <class T, int W, int LANES> __global__ void __launch_bounds__(threads) unmix_branches(gate_arguments a) {
    constexpr int teams = threads / LANES, in_warp = 32 / LANES;
    const int lane = static_cast<int>(threadIdx.x % LANES), team = static_cast<int>(threadIdx.x % 32 / LANES);
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams + threadIdx.x / 32 * in_warp; first < a.rows;
         first += static_cast<int64_t>(gridDim.x) * teams) { /* a warp's lanes go round together */
        const bool valid = first + team < a.rows;
        const int64_t n = valid ? first + team : 0;
        const gate_row row = row_of(a, n);
        const T *logits = static_cast<const T *>(a.logits) + n * a.columns;
        float factors[GATES_MAX] = {}, slopes[GATES_MAX] = {}, products[GATES_MAX] = {};
#pragma unroll
        for (int m = 0; m < GATES_MAX; m++)
            if (m < a.count) factors[m] = gate_of(a, logits, m, &slopes[m]);
        for (int d = lane * W; valid && d < a.width; d += LANES * W) {
            float d_o[W];
            load_pack(elements_of<const T>(a.d_o, row) + d, d_o);
#pragma unroll
            for (int m = 0; m < GATES_MAX; m++) {
                if (m >= a.count) continue;
                float x[W];
                if (a.branches[m].data) {
                    load_pack(elements_of<const T>(a.branches[m], row) + d, x);
#pragma unroll
                    for (int e = 0; e < W; e++) products[m] += d_o[e] * x[e];
                }
                if (!a.d_branches[m].data) continue;
#pragma unroll
                for (int e = 0; e < W; e++) x[e] = factors[m] * d_o[e];
                store_pack(elements_of<T>(a.d_branches[m], row) + d, x);
            }
        }
#pragma unroll
        for (int m = 0; m < GATES_MAX; m++) {
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2)
                products[m] += __shfl_xor_sync(whole_warp, products[m], step);
            products[m] *= slopes[m];
        }
        if (!valid || lane != 0) continue;
        T *to = static_cast<T *>(a.dlogits) + n * a.columns;
        if (a.complement) {
            *to = from_float<T>(products[0] + products[1]);
            continue;
        }
#pragma unroll
        for (int m = 0; m < GATES_MAX; m++)
            if (m < a.count) to[m] = from_float<T>(products[m]);
    }
}

gate_arguments arguments_of(const struct gate_mix *a) {
    gate_arguments g = {};
    for (int m = 0; m < a->count; m++)
        if (tensor_present(a->branches[m])) g.branches[m] = attention_view_of(a->branches[m]);
    g.o = attention_view_of(a->o);
    g.logits = a->logits.data;
    g.length = a->o.shape[1];
    g.heads = a->o.shape[2];
    g.rows = a->o.shape[0] * g.length * g.heads;
    g.width = static_cast<int>(a->o.shape[3]);
    g.count = a->count;
    g.columns = a->complement ? 1 : a->count;
    g.complement = a->complement;
    return g;
}

/* body(elements of an access, lanes of a row's team), both as constants. */
template <class T, class Body> enum status with_team(bool packed, int width, Body body) {
    return with_width<T>(packed, [&](auto pack) {
        const int64_t packs = divide_up(width, decltype(pack)::value);
        if (packs <= 8) return body(pack, std::integral_constant<int, 8>{});
        if (packs <= 16) return body(pack, std::integral_constant<int, 16>{});
        return body(pack, std::integral_constant<int, 32>{});
    });
}

enum status check_width(const char *operation, const struct gate_mix *a) {
    if (a->o.shape[3] <= INT_MAX / 2) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: o: expected a head width up to %d, found %lld", operation, INT_MAX / 2,
                     static_cast<long long>(a->o.shape[3]));
}

} // namespace

enum status cuda_gate_mix(const struct ops *ops, const struct gate_mix *a) {
    TRY(check_gate_mix(ops, a));
    TRY(check_width("gate_mix", a));
    const gate_arguments g = arguments_of(a);
    bool packed = g.o.vector;
    for (const attention_view &view : g.branches) packed = packed && (!view.data || view.vector);
    return with_real(ops, [&](auto real) {
        using T = decltype(real);
        return with_team<T>(packed, g.width, [&](auto pack, auto lanes) {
            constexpr int W = decltype(pack)::value, LANES = decltype(lanes)::value;
            return device_launch(ops, "gate_mix", mix_branches<T, W, LANES>, grid_over(g.rows, threads / LANES),
                                 threads, 0, g);
        });
    });
}

enum status cuda_gate_mix_backward(const struct ops *ops, const struct gate_mix_backward *a) {
    TRY(check_gate_mix_backward(ops, a));
    TRY(check_width("gate_mix_backward", &a->forward));
    gate_arguments g = arguments_of(&a->forward);
    g.d_o = attention_view_of(a->d_o);
    g.dlogits = a->dlogits.data;
    bool packed = g.d_o.vector;
    for (int m = 0; m < g.count; m++) {
        if (tensor_present(a->d_branches[m])) g.d_branches[m] = attention_view_of(a->d_branches[m]);
        packed = packed && (!g.branches[m].data || g.branches[m].vector) &&
                 (!g.d_branches[m].data || g.d_branches[m].vector);
    }
    return with_real(ops, [&](auto real) {
        using T = decltype(real);
        return with_team<T>(packed, g.width, [&](auto pack, auto lanes) {
            constexpr int W = decltype(pack)::value, LANES = decltype(lanes)::value;
            return device_launch(ops, "gate_mix_backward", unmix_branches<T, W, LANES>,
                                 grid_over(g.rows, threads / LANES), threads, 0, g);
        });
    });
}
