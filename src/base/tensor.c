/* Shapes and strides of views; no data is touched. */
#include "base/tensor.h"

#include <stdio.h>
#include <string.h>

size_t dtype_size(enum dtype dtype) {
    static const size_t sizes[] = {4, 8, 2, 2, 4, 2, 4, 8, 1, 8};
    return sizes[dtype];
}

const char *dtype_name(enum dtype dtype) {
    static const char *const names[] = {"f32", "f64", "bf16", "f16", "i32", "u16", "u32", "i64", "u8", "u64"};
    return names[dtype];
}

static struct tensor contiguous(void *data, enum dtype dtype, int rank, const int64_t *shape) {
    struct tensor t = {.data = data, .dtype = dtype, .rank = rank};
    int64_t stride = 1;
    for (int i = rank - 1; i >= 0; i--) {
        t.shape[i] = shape[i];
        t.stride[i] = stride;
        stride *= shape[i];
    }
    return t;
}

struct tensor tensor_1d(void *data, enum dtype dtype, int64_t n0) {
    return contiguous(data, dtype, 1, (int64_t[]){n0});
}

struct tensor tensor_2d(void *data, enum dtype dtype, int64_t n0, int64_t n1) {
    return contiguous(data, dtype, 2, (int64_t[]){n0, n1});
}

struct tensor tensor_3d(void *data, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2) {
    return contiguous(data, dtype, 3, (int64_t[]){n0, n1, n2});
}

struct tensor tensor_4d(void *data, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    return contiguous(data, dtype, 4, (int64_t[]){n0, n1, n2, n3});
}

struct tensor tensor_none(void) {
    return (struct tensor){0};
}

bool tensor_present(struct tensor t) {
    return t.rank > 0;
}

int64_t tensor_count(struct tensor t) {
    if (t.rank == 0) return 0;
    int64_t count = 1;
    for (int i = 0; i < t.rank; i++) count *= t.shape[i];
    return count;
}

size_t tensor_bytes(struct tensor t) {
    return (size_t)tensor_count(t) * dtype_size(t.dtype);
}

bool tensor_is_contiguous(struct tensor t) {
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; i--) {
        if (t.shape[i] != 1 && t.stride[i] != stride) return false;
        stride *= t.shape[i];
    }
    return true;
}

bool tensor_same_shape(struct tensor a, struct tensor b) {
    if (a.rank != b.rank) return false;
    for (int i = 0; i < a.rank; i++) {
        if (a.shape[i] != b.shape[i]) return false;
    }
    return true;
}

static void *advance(struct tensor t, int64_t elements) {
    return t.data ? (char *)t.data + elements * (int64_t)dtype_size(t.dtype) : NULL;
}

struct tensor tensor_rows(struct tensor t, int64_t first, int64_t count) {
    t.data = advance(t, first * t.stride[0]);
    t.shape[0] = count;
    return t;
}

struct tensor tensor_columns(struct tensor t, int64_t first, int64_t count) {
    t.data = advance(t, first);
    t.shape[t.rank - 1] = count;
    return t;
}

struct tensor tensor_slot(struct tensor cache, int64_t first, int64_t count, int64_t slot) {
    const int64_t offset = first * cache.stride[0] + slot * cache.stride[1];
    return (struct tensor){.data = (char *)cache.data + offset * (int64_t)dtype_size(cache.dtype),
                           .dtype = cache.dtype,
                           .rank = 3,
                           .shape = {count, cache.shape[2], cache.shape[3]},
                           .stride = {cache.stride[0], cache.stride[2], 1}};
}

struct tensor tensor_reshape(struct tensor t, int rank, const int64_t *shape) {
    return contiguous(t.data, t.dtype, rank, shape);
}

struct tensor tensor_split_heads(struct tensor matrix, int64_t batch, int64_t length, int64_t heads, int64_t width) {
    struct tensor t = {.data = matrix.data, .dtype = matrix.dtype, .rank = 4};
    int64_t row = matrix.stride[0];
    memcpy(t.shape, (int64_t[]){batch, length, heads, width}, sizeof t.shape);
    memcpy(t.stride, (int64_t[]){length * row, row, width, 1}, sizeof t.stride);
    return t;
}

struct tensor tensor_as_rows(struct tensor t) {
    int64_t columns = t.shape[t.rank - 1];
    int64_t rows = 1;
    for (int i = 0; i + 1 < t.rank; i++) rows *= t.shape[i];
    return tensor_2d(t.data, t.dtype, rows, columns);
}

void tensor_describe(struct tensor t, char *text, size_t capacity) {
    size_t used = (size_t)snprintf(text, capacity, "[");
    for (int i = 0; i < t.rank && used < capacity; i++) {
        used += (size_t)snprintf(text + used, capacity - used, i ? ",%lld" : "%lld", (long long)t.shape[i]);
    }
    if (used < capacity) snprintf(text + used, capacity - used, "] %s", dtype_name(t.dtype));
}
