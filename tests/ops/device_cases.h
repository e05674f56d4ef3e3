/* What the tests of a GPU's table share, executed on the host (tests/simt) or on a GPU (tests/gpu): shapes that matter
 * to its kernels, and by how much its results may differ from the fp64 oracle's. */
#ifndef SQUINT_TESTS_OPS_DEVICE_CASES_H
#define SQUINT_TESTS_OPS_DEVICE_CASES_H

#include "tests/ops/op_cases.h"

/* To be run beside op_cases. */
extern const struct op_case device_cases[];
extern const int device_case_count;

/* For op_compare. bf16: the table's real dtype is BF16, and the inputs of the oracle are rounded to it too. Fails the
 * test when a case's operation has no bound. */
struct device_bounds {
    struct op_bounds real, other;
};
struct device_bounds device_bounds(const struct op_case *row, bool bf16);

/* A non-finite logit shows in every figure of its row, and only there. */
void device_nan_is_seen(const char *table);
/* Of equal largest logits the first counts: in a pack, in a thread's packs, among threads and among warps. */
void device_first_of_equal_counts(const char *table);

#endif
