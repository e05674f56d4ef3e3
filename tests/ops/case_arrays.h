/* Numbers of test cases and how they come into tensors: what the cases of nsa and of the indexer share. */
#ifndef SQUINT_TESTS_OPS_CASE_ARRAYS_H
#define SQUINT_TESTS_OPS_CASE_ARRAYS_H

#include "base/tensor.h"

#include <stdint.h>

/* Element n of input `part`: in [-1, 1), a multiple of 2^-15; tests/oracles/draws.py has the same. */
static inline double case_draw(int64_t n, int64_t part) {
    uint64_t x = (uint64_t)n * 2654435761u + (uint64_t)part * 40503u + 12345u;
    x = (x ^ x >> 15) * 2246822519u;
    x = (x & 0xffffffffu) ^ (x & 0xffffffffu) >> 13;
    return (double)((int64_t)(x % 65536) - 32768) / 32768;
}

/* Copies between an array and a view of any strides, dense last dimension, in host memory. */
static inline void case_move(struct tensor t, double *array, bool to_device) {
    for (int64_t n = 0; n < tensor_count(t); n++) {
        int64_t offset = 0, rest = n;
        for (int i = t.rank - 1; i >= 0; i--) {
            offset += rest % t.shape[i] * t.stride[i];
            rest /= t.shape[i];
        }
        if (t.dtype == DTYPE_F64 && to_device) ((double *)t.data)[offset] = array[n];
        if (t.dtype == DTYPE_F64 && !to_device) array[n] = ((double *)t.data)[offset];
        if (t.dtype == DTYPE_F32 && to_device) ((float *)t.data)[offset] = (float)array[n];
        if (t.dtype == DTYPE_F32 && !to_device) array[n] = (double)((float *)t.data)[offset];
    }
}

#endif
