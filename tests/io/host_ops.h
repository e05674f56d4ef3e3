/* The operations that loading and saving need, on plain host memory, so that tests of io need no kernels. */
#ifndef SQUINT_TESTS_IO_HOST_OPS_H
#define SQUINT_TESTS_IO_HOST_OPS_H

#include "kernels/ops.h"

#include <stdlib.h>
#include <string.h>

static enum status host_allocate(const struct ops *ops, size_t bytes, void **block) {
    (void)ops;
    *block = calloc(bytes ? bytes : 1, 1);
    return *block ? STATUS_OK : error_set(STATUS_MEMORY, "no memory");
}

static void host_release(const struct ops *ops, void *block) {
    (void)ops;
    free(block);
}

static enum status host_upload(const struct ops *ops, struct tensor device, const void *host) {
    (void)ops;
    memcpy(device.data, host, tensor_bytes(device));
    return STATUS_OK;
}

static enum status host_download(const struct ops *ops, struct tensor device, void *host) {
    (void)ops;
    memcpy(host, device.data, tensor_bytes(device));
    return STATUS_OK;
}

static enum status host_copy(const struct ops *ops, struct tensor from, struct tensor to) {
    (void)ops;
    memcpy(to.data, from.data, tensor_bytes(from));
    return STATUS_OK;
}

static enum status host_fill(const struct ops *ops, struct tensor x, double value) {
    (void)ops;
    for (int64_t i = 0; i < tensor_count(x); i++) {
        if (x.dtype == DTYPE_F64) {
            ((double *)x.data)[i] = value;
        } else {
            ((float *)x.data)[i] = (float)value;
        }
    }
    return STATUS_OK;
}

static const struct ops host_ops_f32 = {.name = "host",
                                        .real = DTYPE_F32,
                                        .parameter = DTYPE_F32,
                                        .statistic = DTYPE_F32,
                                        .host_memory = true,
                                        .allocate = host_allocate,
                                        .release = host_release,
                                        .upload = host_upload,
                                        .download = host_download,
                                        .copy = host_copy,
                                        .fill = host_fill};
static const struct ops host_ops_f64 = {.name = "host-f64",
                                        .real = DTYPE_F64,
                                        .parameter = DTYPE_F64,
                                        .statistic = DTYPE_F64,
                                        .host_memory = true,
                                        .allocate = host_allocate,
                                        .release = host_release,
                                        .upload = host_upload,
                                        .download = host_download,
                                        .copy = host_copy,
                                        .fill = host_fill};

#endif
