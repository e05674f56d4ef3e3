/* Column sums over rows, the same at any number of threads: the rows are cut into parts that only their number decides,
 * each part is summed on its own, and the parts are added in order. */
#ifndef SQUINT_KERNELS_CPU_PARTIAL_H
#define SQUINT_KERNELS_CPU_PARTIAL_H

#include "kernels/cpu/cpu.h"

struct partials {
    char *block;
    size_t stride;
    int64_t rows, width, count;
};

enum { PARTIALS_MAX = 32, PARTIAL_ROWS_MIN = 32 };

static inline enum status partials_make(const struct ops *ops, int64_t rows, int64_t width, struct partials *p) {
    int64_t count = (rows + PARTIAL_ROWS_MIN - 1) / PARTIAL_ROWS_MIN;
    *p = (struct partials){.rows = rows, .width = width, .count = count < PARTIALS_MAX ? count : PARTIALS_MAX};
    return device_scratch(ops, (int)p->count, (size_t)width * sizeof(real), &p->block, &p->stride);
}

static inline int64_t partials_first(const struct partials *p, int64_t part) {
    return part * p->rows / p->count;
}

/* The sums of a part, zeroed. */
static inline real *partials_start(const struct partials *p, int64_t part) {
    void *sums = p->block + (size_t)part * p->stride;
    if (p->width > 0) memset(sums, 0, (size_t)p->width * sizeof(real)); /* of no columns there may be no memory */
    return sums;
}

/* out [width] += the columns first … first+width−1 of every part, in order. */
static inline void partials_add(const struct ops *ops, const struct partials *p, int64_t first, int64_t width,
                                real *out) {
    (void)ops;
    for (int64_t part = 0; part < p->count; part++) {
        const real *sums = (const real *)(void *)(p->block + (size_t)part * p->stride) + first;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) out[c] += sums[c];
    }
}

#endif
