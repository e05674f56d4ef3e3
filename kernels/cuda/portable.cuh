/* What nvcc and the host build of tests/simt spell differently, and nothing else: shared memory. Everything else that a
 * kernel uses (threadIdx, __syncthreads, shuffles, atomics, the runtime's calls) has the same name in CUDA's headers
 * and in those of tests/simt. */
#ifndef SQUINT_KERNELS_CUDA_PORTABLE_CUH
#define SQUINT_KERNELS_CUDA_PORTABLE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

/* SHARED(float, sums, [8][32]); declares an array in shared memory, not initialised. The dynamic part, aligned to 128
 * bytes, is shared_memory(). */
#ifdef SQUINT_SIMT
#define SHARED(type, name, extents)                                                                                    \
    using name##_shared_type = type extents;                                                                           \
    static char name##_shared_key;                                                                                     \
    name##_shared_type &name =                                                                                         \
        *static_cast<name##_shared_type *>(simt_static_shared(&name##_shared_key, sizeof(name##_shared_type)))
__device__ inline char *shared_memory() {
    return static_cast<char *>(simt_dynamic_shared());
}
#else
#define SHARED(type, name, extents) __shared__ type name extents
extern __shared__ __align__(128) char squint_shared_memory[];
__device__ inline char *shared_memory() {
    return squint_shared_memory;
}
#endif

#endif
