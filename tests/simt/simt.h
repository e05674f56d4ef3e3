/* What a test may choose about the execution of kernels on the host (simt.cc). */
#ifndef SQUINT_TESTS_SIMT_SIMT_H
#define SQUINT_TESTS_SIMT_SIMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In which order the threads of a block, and the blocks of a grid, get their turns. Forward and reverse: warp after
 * warp, each as far as it comes before the next one begins. Random: thread by thread, some warps slower than others.
 * The environment's SIMT_ORDER (forward, reverse, random) is where a program starts. */
enum simt_order { SIMT_FORWARD = 0, SIMT_REVERSE, SIMT_RANDOM };
void simt_set_order(enum simt_order order, uint64_t seed);

/* Counted since the program began. */
struct simt_counts {
    uint64_t launches, blocks, threads;
    uint64_t allocations, freed; /* device memory */
    uint64_t calls;              /* of the runtime and of cuBLASLt, those that simt_fail_call counts */
};
struct simt_counts simt_counted(void);
/* Is `at` device memory that is allocated now? */
bool simt_is_device(const void *at);
/* The n-th call of the runtime and of cuBLASLt from now on that may fail does, with `error` (0: none does). */
void simt_fail_call(long n, int error);

#ifdef __cplusplus
}
#endif
#endif
