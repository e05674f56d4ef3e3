/* Numbers of test cases and how they come into tensors: what the cases of linear attention, nsa and the indexer share.
 */
#ifndef SQUINT_TESTS_OPS_CASE_ARRAYS_H
#define SQUINT_TESTS_OPS_CASE_ARRAYS_H

#include "base/bf16.h"
#include "base/memory.h"
#include "kernels/ops.h"
#include "support/check.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* Element n of input `part`: in [-1, 1), a multiple of 2^-15; tests/oracles/draws.py has the same. */
static inline double case_draw(int64_t n, int64_t part) {
    uint64_t x = (uint64_t)n * 2654435761u + (uint64_t)part * 40503u + 12345u;
    x = (x ^ x >> 15) * 2246822519u;
    x = (x & 0xffffffffu) ^ (x & 0xffffffffu) >> 13;
    return (double)((int64_t)(x % 65536) - 32768) / 32768;
}

static inline double *case_new_array(int64_t count) {
    double *array;
    CHECK_OK(memory_new((size_t)count, sizeof *array, "a test's array", &array));
    return array;
}

/* start [B,T] of documents that begin at 0 and at the tokens of `cuts` (ends with 0), in sequence b that many later; or, where the first of
 * `cuts` is negative, at every -cuts[0]-th token. */
static inline int32_t *case_new_start(int64_t batch, int64_t length, const int64_t *cuts) {
    int32_t *start;
    CHECK_OK(memory_new((size_t)(batch * length), sizeof *start, "starts", &start));
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0, first = 0; t < length; t++) {
            if (cuts[0] < 0 && (t - b) % cuts[0] == 0) first = t;
            for (int n = 0; cuts[n] > 0; n++)
                if (t == cuts[n] + b) first = t;
            start[b * length + t] = (int32_t)first;
        }
    return start;
}

static inline bool case_all_finite(const double *array, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (!isfinite(array[n])) return false;
    return true;
}

/* Rounds to bf16 what a bf16 table and its oracle both are given. */
static inline void case_round_bf16(double *array, int64_t count) {
    for (int64_t n = 0; n < count; n++) array[n] = (double)bf16_to_float(bf16_from_float((float)array[n]));
}

/* Copies between an array and a view of any strides, dense last dimension, in memory that the host reads. */
static inline void case_move_here(struct tensor t, double *array, bool to_device) {
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
        if (t.dtype == DTYPE_BF16 && to_device) ((uint16_t *)t.data)[offset] = bf16_from_float((float)array[n]);
        if (t.dtype == DTYPE_BF16 && !to_device) array[n] = (double)bf16_to_float(((uint16_t *)t.data)[offset]);
    }
}

/* The same in the memory of any table. */
static inline void case_move(const struct ops *ops, struct tensor t, double *array, bool to_device) {
    CHECK_OK(ops->synchronise(ops));
    if (ops->host_memory) {
        case_move_here(t, array, to_device);
        return;
    }
    struct tensor here = {.dtype = t.dtype == DTYPE_BF16 ? DTYPE_F32 : t.dtype, .rank = t.rank};
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; stride *= t.shape[i--]) {
        here.shape[i] = t.shape[i];
        here.stride[i] = stride;
    }
    struct tensor there = here;
    if (tensor_count(t) == 0) return;
    CHECK_OK(memory_new(tensor_bytes(here), 1, "a copy", &here.data));
    CHECK_OK(ops->allocate(ops, tensor_bytes(there), &there.data));
    if (to_device) {
        case_move_here(here, array, true);
        CHECK_OK(ops->upload(ops, there, here.data));
        CHECK_OK(ops->copy(ops, there, t));
    } else {
        CHECK_OK(ops->copy(ops, t, there));
        CHECK_OK(ops->download(ops, there, here.data));
        case_move_here(here, array, false);
    }
    CHECK_OK(ops->synchronise(ops));
    ops->release(ops, there.data);
    free(here.data);
}

#endif
