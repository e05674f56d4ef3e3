/* One query against cached rows: a running softmax that a team of lanes keeps over the slots it reads, and the sum of
 * such parts. Which slots those are is decided elsewhere. */
#ifndef SQUINT_KERNELS_CUDA_DECODE_ROWS_CUH
#define SQUINT_KERNELS_CUDA_DECODE_ROWS_CUH

#include "kernels/cuda/attention.cuh"

constexpr int decode_threads = 128, decode_warps = decode_threads / 32;
constexpr int lane_width = 8; /* elements of a head that one lane holds */
constexpr int at_once = 4;    /* slots in flight */

/* Elements first … first + 7 of a row, zeros after column width − 1. */
template <class T>
__device__ inline void load_lane(const T *row, int first, int width, bool vector, float (&to)[lane_width]) {
    if (vector) { /* a width of whole packs */
#pragma unroll
        for (int n = 0; n < lane_width; n += pack_width<T>) {
            float part[pack_width<T>] = {};
            if (first + n < width) load_pack<pack_width<T>>(row + first + n, part);
#pragma unroll
            for (int e = 0; e < pack_width<T>; e++) to[n + e] = part[e];
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < lane_width; n++) to[n] = first + n < width ? to_float(row[first + n]) : 0.0f;
}

/* A running softmax: maximum (base 2), sum, and this lane's columns of the sum of values. */
struct running {
    float most, sum, values[lane_width];
};
__device__ inline running running_none() {
    return running{-INFINITY, 0.0f, {}};
}
/* Weight of what has `most` as its maximum beside another's. */
__device__ inline float rescale(float most, float all) {
    return all == -INFINITY ? 1.0f : exp2_quick(most - all);
}
__device__ inline void join(running &into, const running &other) {
    const float most = fmaxf(into.most, other.most), own = rescale(into.most, most), factor = rescale(other.most, most);
    into.most = most;
    into.sum = own * into.sum + factor * other.sum;
#pragma unroll
    for (int n = 0; n < lane_width; n++) into.values[n] = own * into.values[n] + factor * other.values[n];
}

/* One head's cached rows. */
template <class T> struct slot_rows {
    const T *k, *v;
    int64_t k_step, v_step, cache;
    bool k_vector, v_vector;
    int width;
    float scale_log2;
};

/* Places first, first + step, … before `end` of a list, by the LANES lanes of one team: place n is row slot_of(n) of
 * the cache, and keep(n, score) gets its exponent in base 2, in every lane. */
template <class T, int LANES, class Slot, class Keep>
__device__ inline running read_slots(const slot_rows<T> &a, int64_t first, int64_t end, int64_t step,
                                     const float (&q)[lane_width], int column, Slot slot_of, Keep keep) {
    running all = running_none();
    for (int64_t n = first; __any_sync(whole_warp, n < end); n += step * at_once) {
        bool valid[at_once];
        int64_t slot[at_once];
        float scores[at_once], most = all.most, row[lane_width];
#pragma unroll
        for (int u = 0; u < at_once; u++) {
            slot[u] = n + u * step < end ? slot_of(n + u * step) : -1;
            valid[u] =
                slot[u] >= 0 && slot[u] < a.cache; /* the host does not read the lists: a wrong slot is left out */
            if (!valid[u]) slot[u] = 0;            /* read, not used: no branch between the loads */
            scores[u] = 0.0f;
            load_lane(a.k + slot[u] * a.k_step, column, a.width, a.k_vector, row);
#pragma unroll
            for (int d = 0; d < lane_width; d++) scores[u] += q[d] * row[d];
        }
#pragma unroll
        for (int u = 0; u < at_once; u++) {
#pragma unroll
            for (int lane = LANES / 2; lane > 0; lane /= 2) scores[u] += __shfl_xor_sync(whole_warp, scores[u], lane);
            scores[u] = valid[u] ? scores[u] * a.scale_log2 : -INFINITY;
            if (valid[u]) keep(n + u * step, scores[u]);
            most = fmaxf(most, scores[u]);
        }
        const float factor = rescale(all.most, most);
        all.most = most;
        all.sum *= factor;
#pragma unroll
        for (int d = 0; d < lane_width; d++) all.values[d] *= factor;
#pragma unroll
        for (int u = 0; u < at_once; u++) {
            const float weight = valid[u] ? exp2_quick(scores[u] - most) : 0.0f;
            all.sum += weight;
            load_lane(a.v + slot[u] * a.v_step, column, a.width, a.v_vector, row);
#pragma unroll
            for (int d = 0; d < lane_width; d++) all.values[d] += valid[u] ? weight * row[d] : 0.0f;
        }
    }
    return all;
}

/* The teams' parts become one, in every lane of the first team of warp 0. */
template <int LANES> __device__ inline running join_teams(running own, running *shared) {
#pragma unroll
    for (int lane = LANES; lane < 32; lane *= 2) {
        running other;
        other.most = __shfl_xor_sync(whole_warp, own.most, lane);
        other.sum = __shfl_xor_sync(whole_warp, own.sum, lane);
#pragma unroll
        for (int n = 0; n < lane_width; n++) other.values[n] = __shfl_xor_sync(whole_warp, own.values[n], lane);
        join(own, other);
    }
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    __syncthreads(); /* an earlier call's parts are read */
    if (lane < LANES) shared[warp * LANES + lane] = own;
    __syncthreads();
    if (warp == 0 && lane < LANES)
        for (int n = 1; n < decode_warps; n++) join(own, shared[n * LANES + lane]);
    return own;
}

#endif
