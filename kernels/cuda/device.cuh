/* The CUDA table's insides as its kernels' launchers see them: the device, its scratch memory, the launch, errors. */
#ifndef SQUINT_KERNELS_CUDA_DEVICE_CUH
#define SQUINT_KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/real.cuh"

extern "C" {
#include "kernels/check.h"
#include "kernels/cuda/cuda.h"
}

#include "kernels/cuda/blas.cuh"

struct gemm_cache; /* gemm.cu: the library, descriptions of products, chosen algorithms, their workspace */

enum { tuned_most = 8, tuned_lengths = 25 }; /* kernels with several forms at most; classes of length */

struct device {
    int number;          /* CUDA's device ordinal */
    int multiprocessors; /* of the device */
    size_t shared_most;  /* bytes of shared memory that a block may have */
    bool deterministic;  /* no atomics whose order changes a bit */
    cudaStream_t stream; /* everything runs on it, in order */
    char description[384];
    struct allocations *allocations;  /* sizes of what is allocated */
    size_t allocated, allocated_peak; /* bytes */
    void *scratch;                    /* grows, never shrinks; see device_scratch */
    size_t scratch_capacity;
    struct staging *staging; /* pinned host memory that uploads and downloads pass through (transfer.cu) */
    bool capturing;          /* the stream is being recorded: scratch memory stays where it is */
    struct gemm_cache *gemms;
    signed char forms[tuned_most][tuned_lengths]; /* tuning.cu: of each kernel, by length */
};

/* transfer.cu */
enum status staging_open(struct device *device);
void staging_close(struct device *device); /* also of what was opened in part */

/* gemm.cu: what products need, once a device. */
enum status blas_open(struct device *device);
void blas_close(struct device *device); /* also of what was opened in part */
size_t blas_bytes(const struct device *device);

/* STATUS_OK, or STATUS_MEMORY or STATUS_FAILED with "cuda: WHAT: " and CUDA's own words. */
enum status cuda_status(cudaError_t error, const char *what);
#define CUDA_TRY(call) TRY(cuda_status(call, #call))

/* *block: at least `bytes` of device memory, aligned to 256, contents undefined. Valid until the next call of
 * device_scratch on this device: call it once an operation and cut it up. STATUS_MEMORY. */
enum status device_scratch(const struct ops *ops, size_t bytes, void **block);

/* Lets `kernel` have `shared` bytes of dynamic shared memory from now on: once for each size that is larger than
 * before, for the default of 48 KiB counts arrays too, and a recorded launch may need more than the next one.
 * STATUS_SHAPE: more than a block can have. */
enum status device_allow_shared(struct device *device, const void *kernel, size_t shared, const char *name);

/* Starts `kernel` on the device's stream: `grid` blocks (0 in any extent: nothing to do) of `threads`, `shared` bytes
 * of dynamic shared memory (more than 48 KiB is asked for here). name: for messages. */
template <class... P, class... A>
enum status device_launch(const struct ops *ops, const char *name, void (*kernel)(P...), dim3 grid, int threads,
                          size_t shared, A... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return STATUS_OK;
    TRY(device_allow_shared(ops->device, reinterpret_cast<const void *>(kernel), shared, name));
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = ops->device->stream;
    return cuda_status(cudaLaunchKernelEx(&config, kernel, P(arguments)...), name);
}

/* body(float{}) or body(bf16{}), by the table's activation type. */
template <class Body> enum status with_real(const struct ops *ops, Body body) {
    return ops->real == DTYPE_BF16 ? body(bf16{}) : body(float{});
}

/* The tensor's memory as elements of T; NULL for none. */
template <class T> T *data_of(struct tensor t) {
    return static_cast<T *>(t.data);
}

inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
/* Blocks of `each` elements for `count` of them, at most 2^31 − 1: kernels stride over what is left. */
inline dim3 grid_over(int64_t count, int64_t each) {
    const int64_t blocks = divide_up(count, each);
    return dim3(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX));
}

#endif
