/* The CPU device: threads, memory, scratch. Knows no operation. */
#include "kernels/cpu/cpu.h"

#include "base/machine.h"
#include "base/memory.h"

#include <cblas.h>
#include <malloc.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { ALIGNMENT = 256 };

static size_t round_up(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

enum status device_open(const struct ops_options *options, const char *isa, struct device **device) {
    struct device *made;
    TRY(memory_new(1, sizeof *made, "the CPU device", &made));
    made->threads = options && options->threads > 0 ? options->threads : omp_get_max_threads();
    made->deterministic = options && options->deterministic;
    /* "OpenBLAS 0.3.21 NO_LAPACKE …": the first two words. */
    const char *config = openblas_get_config();
    int length = 0;
    for (int words = 0; config[length]; length++) {
        if (config[length] == ' ' && ++words == 2) break;
    }
    snprintf(made->description, sizeof made->description, "cpu: %s, %d thread%s, %.*s%s", isa, made->threads,
             made->threads == 1 ? "" : "s", length, config, bf16_describe());
    *device = made;
    return STATUS_OK;
}

void device_close(const struct ops *ops) {
    struct device *device = ops->device;
    bf16_close(device);
    free(device->scratch);
    free(device);
    free((void *)(uintptr_t)ops); /* the table was allocated by table.c */
}

const char *device_describe(const struct ops *ops) {
    return ops->device->description;
}

enum status device_allocate(const struct ops *ops, size_t bytes, void **block) {
    (void)ops;
    *block = aligned_alloc(ALIGNMENT, round_up(bytes ? bytes : 1));
    return *block ? STATUS_OK : error_set(STATUS_MEMORY, "no memory on the CPU device for %zu bytes", bytes);
}

void device_release(const struct ops *ops, void *block) {
    if (block) bf16_forget(ops->device, block, malloc_usable_size(block));
    free(block);
}

enum status device_synchronise(const struct ops *ops) {
    (void)ops;
    return STATUS_OK;
}

static enum status check_transfer(const char *operation, struct tensor t) {
    if (tensor_present(t) && tensor_is_contiguous(t)) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: the device's tensor must be present and contiguous", operation);
}

enum status device_upload(const struct ops *ops, struct tensor to, const void *host) {
    (void)ops;
    TRY(check_transfer("upload", to));
    if (tensor_bytes(to)) memcpy(to.data, host, tensor_bytes(to));
    return STATUS_OK;
}

enum status device_download(const struct ops *ops, struct tensor from, void *host) {
    (void)ops;
    TRY(check_transfer("download", from));
    if (tensor_bytes(from)) memcpy(host, from.data, tensor_bytes(from));
    return STATUS_OK;
}

enum status device_scratch(const struct ops *ops, int pieces, size_t bytes, char **block, size_t *stride) {
    struct device *device = ops->device;
    *stride = round_up(bytes);
    size_t needed = *stride * (size_t)pieces;
    if (needed > device->scratch_capacity) {
        free(device->scratch);
        device->scratch_capacity = 0;
        device->scratch = aligned_alloc(ALIGNMENT, needed);
        if (!device->scratch) {
            return error_set(STATUS_MEMORY, "no memory for %zu bytes of scratch on the CPU", needed);
        }
        device->scratch_capacity = needed;
    }
    *block = device->scratch;
    return STATUS_OK;
}

enum status device_document_ends(const char *operation, struct tensor start, int32_t *ends) {
    const int64_t batch = start.shape[0], length = start.shape[1];
    for (int64_t b = 0; b < batch; b++) {
        const int32_t *row = (const int32_t *)start.data + b * start.stride[0];
        for (int64_t t = 0; t < length; t++)
            if (row[t] != t && (t == 0 || row[t] != row[t - 1]))
                return error_set(STATUS_SHAPE, "%s: start[%lld,%lld]: expected %lld or its predecessor's, found %d",
                                 operation, (long long)b, (long long)t, (long long)t, row[t]);
        for (int64_t t = length - 1, end = length; ends && t >= 0; t--) {
            ends[b * length + t] = (int32_t)end;
            if (row[t] == t) end = t;
        }
    }
    return STATUS_OK;
}

size_t device_scratch_bytes(const struct ops *ops) {
    return ops->device->scratch_capacity + bf16_bytes(ops->device);
}

void device_memory(const struct ops *ops, struct device_memory *memory) {
    (void)ops;
    *memory = (struct device_memory){machine_memory_available(), machine_memory_now(), machine_memory_peak()};
}

enum status device_repeat(const struct ops *ops, struct recording **recording, enum status (*work)(void *user),
                          void *user) {
    (void)ops;
    (void)recording;
    return work(user);
}

void device_forget(const struct ops *ops, struct recording **recording) {
    (void)ops;
    *recording = NULL;
}
