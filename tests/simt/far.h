/* Elements so far apart that their places need more than 32 bits, in memory that is only reserved, beside the same
 * elements near each other; and numbers that are numbers. */
#ifndef SQUINT_TESTS_SIMT_FAR_H
#define SQUINT_TESTS_SIMT_FAR_H

#include "base/tensor.h"
#include "support/check.h"

#include <math.h>
#include <sys/mman.h>

/* Room for `count` floats of which only the pages that are touched cost anything. NULL: this machine reserves no more
 * than it has. Given back with far_release. */
static inline float *far_reserve(int64_t count) {
    void *memory = mmap(NULL, (size_t)count * sizeof(float), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}
static inline void far_release(float *memory, int64_t count) {
    munmap(memory, (size_t)count * sizeof(float));
}

/* Element n of a tensor [.,.,.,.] of floats, in the order of its shape. */
static inline float *far_element(struct tensor t, int64_t n) {
    int64_t offset = 0;
    for (int i = 3; i >= 0; n /= t.shape[i--]) offset += n % t.shape[i] * t.stride[i];
    return (float *)t.data + offset;
}

/* Both hold the same numbers, and not zeros alone. */
static inline void far_expect_same(const char *name, struct tensor near, struct tensor far) {
    double size = 0;
    for (int64_t i = 0; i < tensor_count(near); i++) {
        const float a = *far_element(near, i), b = *far_element(far, i);
        size += fabs((double)a);
        if (!(a == b)) fail_msg("%s[%lld]: near %.9g, far %.9g", name, (long long)i, (double)a, (double)b);
    }
    if (!(size > 0)) fail_msg("%s: all zeros", name);
}

#endif
