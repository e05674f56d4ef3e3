/* See values.h. Narrow elements and doubles share the caller's memory: widened from the last, narrowed from the first.
 */
#include "params/values.h"

#include "base/bf16.h"

enum status values_read(const struct ops *ops, struct tensor from, double *out) {
    const char *narrow = (const char *)out;
    const size_t width = dtype_size(from.dtype);
    TRY(ops->download(ops, from, out));
    for (int64_t n = tensor_count(from); from.dtype != DTYPE_F64 && n-- > 0;) {
        uint16_t half;
        float value;
        memcpy(from.dtype == DTYPE_BF16 ? (void *)&half : (void *)&value, narrow + (size_t)n * width, width);
        out[n] = (double)(from.dtype == DTYPE_BF16 ? bf16_to_float(half) : value);
    }
    return STATUS_OK;
}

enum status values_write(const struct ops *ops, struct tensor to, double *values) {
    char *narrow = (char *)values;
    const size_t width = dtype_size(to.dtype);
    for (int64_t n = 0; to.dtype != DTYPE_F64 && n < tensor_count(to); n++) {
        const float value = (float)values[n];
        const uint16_t half = bf16_from_float(value);
        memcpy(narrow + (size_t)n * width, to.dtype == DTYPE_BF16 ? (const void *)&half : (const void *)&value, width);
    }
    return ops->upload(ops, to, values);
}

enum status values_download(const struct ops *ops, struct tensor from, float *out) {
    const char *narrow = (const char *)out;
    TRY(ops->download(ops, from, out));
    for (int64_t n = tensor_count(from); from.dtype == DTYPE_BF16 && n-- > 0;) {
        uint16_t half;
        memcpy(&half, narrow + (size_t)n * sizeof half, sizeof half);
        out[n] = bf16_to_float(half);
    }
    return STATUS_OK;
}

enum status values_upload(const struct ops *ops, struct tensor to, float *values) {
    char *narrow = (char *)values;
    for (int64_t n = 0; to.dtype == DTYPE_BF16 && n < tensor_count(to); n++) {
        const uint16_t half = bf16_from_float(values[n]);
        memcpy(narrow + (size_t)n * sizeof half, &half, sizeof half);
    }
    return ops->upload(ops, to, values);
}
