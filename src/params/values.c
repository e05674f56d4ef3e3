/* See values.h. Floats and doubles share the caller's memory: widened from the last, narrowed from the first. */
#include "params/values.h"

#include <string.h>

enum status values_read(const struct ops *ops, struct tensor from, double *out) {
    const float *narrow = (const float *)(void *)out;
    TRY(ops->download(ops, from, out));
    for (int64_t n = tensor_count(from); from.dtype == DTYPE_F32 && n-- > 0;) {
        float value;
        memcpy(&value, narrow + n, sizeof value);
        out[n] = (double)value;
    }
    return STATUS_OK;
}

enum status values_write(const struct ops *ops, struct tensor to, double *values) {
    float *narrow = (float *)(void *)values;
    for (int64_t n = 0; to.dtype == DTYPE_F32 && n < tensor_count(to); n++) {
        const float value = (float)values[n];
        memcpy(narrow + n, &value, sizeof value);
    }
    return ops->upload(ops, to, values);
}
