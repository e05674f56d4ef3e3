/* Rows in packs of 16 bytes where their places allow it, and several sums over a block at once. Knows no operation. */
#ifndef SQUINT_KERNELS_CUDA_ROWS_CUH
#define SQUINT_KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/device.cuh"

#include <type_traits>

/* Whether rows that begin every `step` elements from `data` (NULL: nothing) all begin at multiples of 16 bytes. */
template <class T> bool in_packs(const T *data, int64_t step) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && step % pack_width<T> == 0;
}

/* body(width) with the number of elements that an access moves as a constant: a pack of T, or 1. */
template <class T, class Body> enum status with_width(bool packed, Body body) {
    return packed ? body(std::integral_constant<int, pack_width<T>>{}) : body(std::integral_constant<int, 1>{});
}

/* Every x[i] becomes its sum over a block of THREADS, in a fixed order. All threads must call it. */
template <int THREADS, int N> __device__ inline void block_sums(float (&x)[N]) {
    SHARED(float, parts, [N][THREADS / 32]);
    __syncthreads(); /* the parts of an earlier call are read */
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = warp_sum(x[i]);
        if (threadIdx.x % 32 == 0) parts[i][threadIdx.x / 32] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = parts[i][0];
        for (int w = 1; w < THREADS / 32; w++) x[i] += parts[i][w];
    }
}

/* to[0 … N−1] += x, in memory of float whose alignment is that of packs when N is more than 1. */
template <int N> __device__ inline void add_floats(float *to, const float (&x)[N]) {
    constexpr int step = N % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < N; i += step) {
        float sum[step];
        load_pack(to + i, sum);
#pragma unroll
        for (int j = 0; j < step; j++) sum[j] += x[i + j];
        store_pack(to + i, sum);
    }
}

template <int N> __device__ inline void store_floats(float *to, const float (&x)[N]) {
    constexpr int step = N % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < N; i += step) {
        float part[step];
#pragma unroll
        for (int j = 0; j < step; j++) part[j] = x[i + j];
        store_pack(to + i, part);
    }
}

#endif
