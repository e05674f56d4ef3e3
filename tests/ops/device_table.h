/* A table as the tests of a device open it. */
#ifndef SQUINT_TESTS_OPS_DEVICE_TABLE_H
#define SQUINT_TESTS_OPS_DEVICE_TABLE_H

#include "kernels/ops.h"
#include "support/check.h"

static inline const struct ops *device_table(const char *name, bool deterministic) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = 1, .deterministic = deterministic}, &ops));
    return ops;
}

#endif
