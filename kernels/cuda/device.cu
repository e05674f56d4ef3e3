/* The device: opening it, its memory, its scratch. */
#include "kernels/cuda/device.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_map>

struct allocations {
    std::unordered_map<void *, size_t> bytes;
    std::unordered_map<const void *, size_t> shared; /* of kernels: dynamic shared memory that they may have */
};

enum status cuda_status(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return STATUS_OK;
    cudaGetLastError(); /* forgotten, unless it is one that stays */
    return error_set(error == cudaErrorMemoryAllocation ? STATUS_MEMORY : STATUS_FAILED, "cuda: %s: %s", what,
                     cudaGetErrorString(error));
}

static enum status find_device(int node_rank, int *number) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) {
        *number = node_rank % count;
        return STATUS_OK;
    }
    cudaGetLastError();
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
        return error_set(STATUS_NOT_FOUND, "cuda: no GPU is usable here (NVIDIA's driver is not installed)");
    }
    return error_set(STATUS_NOT_FOUND, "cuda: no GPU is usable here (%s)",
                     error == cudaSuccess ? "none is there" : cudaGetErrorString(error));
}

enum status device_allow_shared(struct device *device, const void *kernel, size_t shared, const char *name) {
    const size_t always = 32 << 10; /* with any arrays of ours below 48 KiB */
    if (shared <= always) return STATUS_OK;
    size_t &allowed = device->allocations->shared[kernel];
    if (shared <= allowed) return STATUS_OK;
    if (shared > device->shared_most)
        return error_set(STATUS_SHAPE, "%s: these shapes need %zu bytes of shared memory, this GPU gives a block %zu",
                         name, shared, device->shared_most);
    TRY(cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                    name));
    allowed = shared;
    return STATUS_OK;
}

static enum status open_on(struct device *device) {
    struct cudaDeviceProp properties;
    int driver = 0, runtime = 0;
    CUDA_TRY(cudaSetDevice(device->number));
    CUDA_TRY(cudaGetDeviceProperties(&properties, device->number));
    CUDA_TRY(cudaDriverGetVersion(&driver));
    CUDA_TRY(cudaRuntimeGetVersion(&runtime));
    if (properties.major < 8) {
        return error_set(STATUS_NOT_FOUND, "cuda: %s has compute capability %d.%d; expected 8.0 (Ampere) or later",
                         properties.name, properties.major, properties.minor);
    }
    if (properties.sharedMemPerBlockOptin <
        163 << 10) { /* as of 8.6, 8.9, 12.0: the tiles of attention would not fit */
        return error_set(
            STATUS_NOT_FOUND,
            "cuda: %s gives a block %zu KiB of shared memory; expected at least 163 (A100, H100 and their like)",
            properties.name, properties.sharedMemPerBlockOptin >> 10);
    }
    device->multiprocessors = properties.multiProcessorCount;
    device->shared_most = properties.sharedMemPerBlockOptin;
    CUDA_TRY(cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking));
    TRY(staging_open(device));
    TRY(blas_open(device));
    snprintf(device->description, sizeof device->description, "cuda: %.200s, %.0f GiB, CUDA %d.%d (driver %d.%d)",
             properties.name, static_cast<double>(properties.totalGlobalMem) / (1 << 30), runtime / 1000,
             runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
    return STATUS_OK;
}

static void close_device(struct device *device) {
    if (device->stream) cudaStreamSynchronize(device->stream);
    blas_close(device);
    cudaFree(device->scratch);
    staging_close(device);
    if (device->stream) cudaStreamDestroy(device->stream);
    delete device->allocations;
    free(device);
}

enum status cuda_device_open(const struct ops_options *options, struct device **out) {
    int number = 0;
    TRY(find_device(options ? options->node_rank : 0, &number));
    struct device *device = static_cast<struct device *>(calloc(1, sizeof *device));
    if (!device) return error_set(STATUS_MEMORY, "cuda: no memory for the device's description");
    device->number = number;
    device->deterministic = options && options->deterministic;
    device->allocations = new (std::nothrow) allocations();
    const enum status status = device->allocations
                                   ? open_on(device)
                                   : error_set(STATUS_MEMORY, "cuda: no memory for the device's description");
    if (status != STATUS_OK) {
        close_device(device);
        device = NULL;
    }
    *out = device;
    return status;
}

void cuda_close(const struct ops *ops) {
    if (!ops) return;
    close_device(ops->device);
    free(const_cast<struct ops *>(ops));
}

const char *cuda_describe(const struct ops *ops) {
    return ops->device->description;
}

void *cuda_stream(const struct ops *ops) {
    return ops->device->stream;
}

enum status cuda_allocate(const struct ops *ops, size_t bytes, void **block) {
    struct device *device = ops->device;
    *block = NULL;
    const cudaError_t error = cudaMalloc(block, bytes ? bytes : 1);
    if (error != cudaSuccess) {
        char what[64];
        snprintf(what, sizeof what, "allocating %zu bytes on the GPU", bytes);
        return cuda_status(error, what);
    }
    device->allocations->bytes[*block] = bytes;
    device->allocated += bytes;
    if (device->allocated > device->allocated_peak) device->allocated_peak = device->allocated;
    return STATUS_OK;
}

void cuda_release(const struct ops *ops, void *block) {
    struct device *device = ops->device;
    if (!block) return;
    cudaStreamSynchronize(device->stream);
    cudaFree(block);
    device->allocated -= device->allocations->bytes[block];
    device->allocations->bytes.erase(block);
}

void cuda_memory(const struct ops *ops, struct device_memory *memory) {
    size_t available = 0, total = 0;
    if (cudaMemGetInfo(&available, &total) != cudaSuccess) available = 0;
    memory->available = static_cast<double>(available);
    const size_t own = blas_bytes(ops->device);
    memory->used = static_cast<double>(ops->device->allocated + own);
    memory->peak = static_cast<double>(ops->device->allocated_peak + own);
}

enum status cuda_synchronise(const struct ops *ops) {
    return cuda_status(cudaStreamSynchronize(ops->device->stream), "waiting for the GPU");
}

enum status device_scratch(const struct ops *ops, size_t bytes, void **block) {
    struct device *device = ops->device;
    if (bytes > device->scratch_capacity) {
        if (device->capturing) {
            return error_set(STATUS_FAILED,
                             "cuda: work that is recorded needs more scratch memory than when it ran before");
        }
        TRY(cuda_synchronise(ops)); /* who used the old one is done */
        cuda_release(ops, device->scratch);
        device->scratch = NULL;
        device->scratch_capacity = 0;
        TRY(cuda_allocate(ops, bytes, &device->scratch));
        device->scratch_capacity = bytes;
    }
    *block = device->scratch;
    return STATUS_OK;
}

size_t cuda_scratch_bytes(const struct ops *ops) {
    return ops->device->scratch_capacity + blas_bytes(ops->device);
}
