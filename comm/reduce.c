/* The arithmetic of reductions: rank order, element by element. */
#include "comm/comm_internal.h"

#include "base/bf16.h"

#include <string.h>

enum { BLOCK = 2048 }; /* elements that stay in the first-level cache while the sources pass by */

#define SUM(a, b)         ((a) + (b))
#define MAX_INTEGER(a, b) ((a) > (b) ? (a) : (b))
#define MIN_INTEGER(a, b) ((a) < (b) ? (a) : (b))
/* (a != a) is true of NaN only, and keeps it. */
#define MAX_REAL(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define MIN_REAL(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))

#define DEFINE_REDUCE(name, type, combine)                                                                             \
    static void name(int64_t count, int source_count, const void *const *sources, void *output) {                      \
        type sum[BLOCK];                                                                                               \
        for (int64_t first = 0; first < count; first += BLOCK) {                                                       \
            int64_t n = count - first < BLOCK ? count - first : BLOCK;                                                 \
            memcpy(sum, (const type *)sources[0] + first, (size_t)n * sizeof(type));                                   \
            for (int s = 1; s < source_count; s++) {                                                                   \
                const type *x = (const type *)sources[s] + first;                                                      \
                for (int64_t i = 0; i < n; i++) sum[i] = combine(sum[i], x[i]);                                        \
            }                                                                                                          \
            memcpy((type *)output + first, sum, (size_t)n * sizeof(type));                                             \
        }                                                                                                              \
    }

/* Sums of integers wrap around instead of being undefined. */
DEFINE_REDUCE(sum_f32, float, SUM)
DEFINE_REDUCE(sum_f64, double, SUM)
DEFINE_REDUCE(sum_i32, uint32_t, SUM)
DEFINE_REDUCE(sum_i64, uint64_t, SUM)
DEFINE_REDUCE(max_f32, float, MAX_REAL)
DEFINE_REDUCE(max_f64, double, MAX_REAL)
DEFINE_REDUCE(max_i32, int32_t, MAX_INTEGER)
DEFINE_REDUCE(max_i64, int64_t, MAX_INTEGER)
DEFINE_REDUCE(min_f32, float, MIN_REAL)
DEFINE_REDUCE(min_f64, double, MIN_REAL)
DEFINE_REDUCE(min_i32, int32_t, MIN_INTEGER)
DEFINE_REDUCE(min_i64, int64_t, MIN_INTEGER)

/* BF16 is combined in single precision and rounded once. */
#define DEFINE_REDUCE_BF16(name, combine)                                                                              \
    static void name(int64_t count, int source_count, const void *const *sources, void *output) {                      \
        float sum[BLOCK];                                                                                              \
        for (int64_t first = 0; first < count; first += BLOCK) {                                                       \
            int64_t n = count - first < BLOCK ? count - first : BLOCK;                                                 \
            for (int s = 0; s < source_count; s++) {                                                                   \
                const uint16_t *x = (const uint16_t *)sources[s] + first;                                              \
                for (int64_t i = 0; i < n; i++) {                                                                      \
                    float value = bf16_to_float(x[i]);                                                                 \
                    sum[i] = s == 0 ? value : combine(sum[i], value);                                                  \
                }                                                                                                      \
            }                                                                                                          \
            for (int64_t i = 0; i < n; i++) ((uint16_t *)output + first)[i] = bf16_from_float(sum[i]);                 \
        }                                                                                                              \
    }

DEFINE_REDUCE_BF16(sum_bf16, SUM)
DEFINE_REDUCE_BF16(max_bf16, MAX_REAL)
DEFINE_REDUCE_BF16(min_bf16, MIN_REAL)

void comm_reduce_sources(enum dtype dtype, enum comm_reduce reduce, int64_t count, int source_count,
                         const void *const *sources, void *output) {
    typedef void reducer(int64_t, int, const void *const *, void *);
    static reducer *const table[5][3] = {
        {sum_f32, max_f32, min_f32}, {sum_f64, max_f64, min_f64},    {sum_i32, max_i32, min_i32},
        {sum_i64, max_i64, min_i64}, {sum_bf16, max_bf16, min_bf16},
    };
    int row = dtype == DTYPE_F32 ? 0 : dtype == DTYPE_F64 ? 1 : dtype == DTYPE_I32 ? 2 : dtype == DTYPE_I64 ? 3 : 4;
    table[row][reduce](count, source_count, sources, output);
}
