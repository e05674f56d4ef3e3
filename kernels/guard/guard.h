/* A table around another table (in host memory) that checks every call; see ops_open. */
#ifndef SQUINT_KERNELS_GUARD_GUARD_H
#define SQUINT_KERNELS_GUARD_GUARD_H

#include "kernels/ops.h"

/* *ops: a guard around `inner`, which it closes when it is closed. On failure `inner` stays the caller's.
 * STATUS_USAGE when `inner` is not in host memory. Not for use by several threads at once. */
enum status guard_open(const struct ops *inner, const struct ops **ops);

#endif
