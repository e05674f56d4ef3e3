/* Elements as the kernels see them: storage of float or bf16, arithmetic in float; packs of 16 bytes; sums over a warp
 * and a block. */
#ifndef SQUINT_KERNELS_CUDA_REAL_CUH
#define SQUINT_KERNELS_CUDA_REAL_CUH

#include "kernels/cuda/portable.cuh"

using bf16 = __nv_bfloat16;

__device__ inline float to_float(float x) {
    return x;
}
__device__ inline float to_float(bf16 x) {
    return __bfloat162float(x);
}
__device__ inline float to_float(double x) {
    return static_cast<float>(x);
}
template <class T> __device__ inline T from_float(float x) {
    return static_cast<T>(x);
}
template <> __device__ inline bf16 from_float<bf16>(float x) {
    return __float2bfloat16(x);
}

/* N elements that are moved by one access: N · sizeof(T) is 4, 8 or 16, and the address a multiple of it. */
template <class T, int N> struct alignas(sizeof(T) * N) pack { T at[N]; };
/* Elements of T in 16 bytes. */
template <class T> constexpr int pack_width = 16 / static_cast<int>(sizeof(T));

template <int N, class T> __device__ inline void load_pack(const T *from, float (&to)[N]) {
    const pack<T, N> all = *reinterpret_cast<const pack<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = to_float(all.at[i]);
}
template <int N, class T> __device__ inline void store_pack(T *to, const float (&from)[N]) {
    pack<T, N> all;
#pragma unroll
    for (int i = 0; i < N; i++) all.at[i] = from_float<T>(from[i]);
    *reinterpret_cast<pack<T, N> *>(to) = all;
}

constexpr unsigned whole_warp = 0xffffffffu;

/* Over the 32 lanes; every lane gets the result, in a fixed order of additions. */
template <class T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(whole_warp, x, lane);
    return x;
}
template <class T> __device__ inline T warp_max(T x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        const T other = __shfl_xor_sync(whole_warp, x, lane);
        x = other > x || other != other ? other : x; /* NaN stays */
    }
    return x;
}

/* Over a block of THREADS (a multiple of 32) in one dimension; every thread gets the result. All threads must call it.
 */
template <int THREADS, class T> __device__ inline T block_sum(T x) {
    SHARED(T, parts, [THREADS / 32]);
    x = warp_sum(x);
    __syncthreads(); /* the parts of an earlier call are read */
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = parts[0];
    for (int w = 1; w < THREADS / 32; w++) sum += parts[w];
    return sum;
}
template <int THREADS, class T> __device__ inline T block_max(T x) {
    SHARED(T, parts, [THREADS / 32]);
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    T most = parts[0];
    for (int w = 1; w < THREADS / 32; w++) most = parts[w] > most || parts[w] != parts[w] ? parts[w] : most;
    return most;
}

#endif
