/* Kernels that break a rule of CUDA each, and calls of the runtime that do: see test_harness_simt.c. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/mma.cuh"

#include <cstdio>
#include <cstdlib>

extern "C" bool faulty_run(const char *name);

namespace {

/* Written by one warp, read by the next: `to` [64]. */
__global__ void no_barrier(int *to, bool barrier) {
    SHARED(int, values, [64]);
    const int t = static_cast<int>(threadIdx.x);
    values[t] = t;
    if (barrier) __syncthreads();
    to[t] = values[(t + 32) % 64];
}
__global__ void barrier_for_some() {
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncwarp();
    }
}
__global__ void lane_is_missing() {
    if (threadIdx.x != 5) __syncwarp();
}
__global__ void lane_is_not_named() {
    __syncwarp(threadIdx.x % 2 ? 0xaaaaaaaau : 0xfffffffeu);
}
__global__ void lanes_that_are_not_there() {
    __syncwarp(0x1ffff); /* a warp of 16 threads */
}
__global__ void value_of_another_mask() {
    __shfl_sync(0x3u, 1, 2);
}
__global__ void many_masks() {
    for (unsigned n = 1; n < 12; n++)
        if (threadIdx.x <= n) __syncwarp((2u << n) - 1);
}
__global__ void large_value() {
    struct {
        char bytes[80];
    } value = {};
    __shfl_sync(whole_warp, value, 0);
}
__global__ void trapped() {
    if (threadIdx.x == 3) __trap();
}
__global__ void behind_an_array(float *to) {
    SHARED(float, values, [8]);
    float *at = values; /* of an array the compiler would know the size */
    at[threadIdx.x] = 1;
    *to = at[0];
}
__global__ void behind_dynamic_memory(float *to) {
    float *values = reinterpret_cast<float *>(shared_memory());
    values[threadIdx.x] = 1;
    *to = values[0];
}
struct everything {
    char bytes[225 << 10];
};
__global__ void much_shared_memory() {
    SHARED(everything, first, [1]);
    SHARED(everything, second, [1]);
    first[0].bytes[0] = second[0].bytes[0];
}
__global__ void copy_is_left(const float *from) {
    SHARED(float4, values, [32]);
    copy_async(&values[threadIdx.x], from, true);
    copy_async_commit();
}
__global__ void copy_is_early(const float *from, float *to) {
    SHARED(float4, values, [32]);
    copy_async(&values[threadIdx.x], from, true);
    copy_async_commit();
    *to = values[threadIdx.x].x;
    copy_async_wait<0>();
}
__global__ void copy_from_between(const float *from) {
    SHARED(float4, values, [32]);
    copy_async(&values[threadIdx.x], from + 1, true);
}
__global__ void copy_to_elsewhere(float *memory) {
    copy_async(memory, memory, true);
}
__global__ void matrix_from_between() {
    uint32_t fragment[4];
    load_matrices(fragment, shared_memory() + 2);
}

void expect(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "faulty_kernels: %s: %s\n", what, cudaGetErrorString(error));
    exit(3);
}

struct bench {
    cudaStream_t stream;
    float *memory; /* 4 KiB */
    bench() {
        void *block;
        expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
        expect(cudaMalloc(&block, 4096), "memory");
        memory = static_cast<float *>(block);
    }
    template <class... P, class... A>
    cudaError_t launch(void (*kernel)(P...), int threads, size_t shared, A... arguments) const {
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(1);
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.dynamicSmemBytes = shared;
        config.stream = stream;
        return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
    }
    template <class... P, class... A> void run(void (*kernel)(P...), int threads, size_t shared, A... arguments) const {
        expect(launch(kernel, threads, shared, arguments...), "launch");
        expect(cudaStreamSynchronize(stream), "wait");
    }
    /* Whether a thread of no_barrier saw what another has not written. */
    bool sees_unwritten(bool barrier) const {
        run(no_barrier, 64, 0, reinterpret_cast<int *>(memory), barrier);
        for (int t = 0; t < 64; t++)
            if (reinterpret_cast<int *>(memory)[t] != (t + 32) % 64) return true;
        return false;
    }
};

} // namespace

/* Does what `name` says; true where the fault shows in the result alone. */
bool faulty_run(const char *name) {
    const bench b;
    const auto is = [&](const char *other) { return strcmp(name, other) == 0; };
    float *memory = b.memory, host[4] = {};
    if (is("no barrier")) return b.sees_unwritten(false) && !b.sees_unwritten(true);
    if (is("copy read early")) {
        *memory = 1;
        b.run(copy_is_early, 1, 0, memory, memory + 8);
        return memory[8] != 1;
    }
    if (is("too much shared memory"))
        return b.launch(trapped, 32, 49 << 10) == cudaErrorInvalidConfiguration &&
               cudaFuncSetAttribute(reinterpret_cast<const void *>(trapped),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10) == cudaErrorInvalidValue;
    if (is("too many threads")) return b.launch(trapped, 1025, 0) == cudaErrorInvalidConfiguration;
    if (is("barrier for some")) b.run(barrier_for_some, 32, 0);
    if (is("lane missing")) b.run(lane_is_missing, 32, 0);
    if (is("lane not named")) b.run(lane_is_not_named, 32, 0);
    if (is("lanes not there")) b.run(lanes_that_are_not_there, 16, 0);
    if (is("value of another mask")) b.run(value_of_another_mask, 2, 0);
    if (is("many masks")) b.run(many_masks, 32, 0);
    if (is("large value")) b.run(large_value, 32, 0);
    if (is("trap")) b.run(trapped, 32, 0);
    if (is("behind an array")) b.run(behind_an_array, 32, 0, memory);
    if (is("behind dynamic memory")) b.run(behind_dynamic_memory, 32, 64, memory);
    if (is("more than a block has")) b.run(much_shared_memory, 32, 0);
    if (is("copy left")) b.run(copy_is_left, 32, 0, memory);
    if (is("copy from between")) b.run(copy_from_between, 32, 0, memory);
    if (is("copy to elsewhere")) b.run(copy_to_elsewhere, 32, 0, memory);
    if (is("matrix from between")) b.run(matrix_from_between, 32, 1024);
    if (is("free of foreign memory")) cudaFree(host);
    if (is("free of foreign pinned memory")) cudaFreeHost(host);
    if (is("copy of foreign memory")) cudaMemcpyAsync(host, host, 4, cudaMemcpyHostToDevice, b.stream);
    if (is("fill of foreign memory")) cudaMemsetAsync(host, 0, 4, b.stream);
    if (is("wait inside a capture") || is("captured copy") || is("capture inside a capture")) {
        cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeGlobal);
        if (is("captured copy")) cudaMemcpyAsync(memory, host, 4, cudaMemcpyHostToDevice, b.stream);
        if (is("capture inside a capture")) cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeGlobal);
        cudaStreamSynchronize(b.stream);
    }
    return false;
}
