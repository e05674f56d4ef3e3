/* Values of a device tensor, F32 or F64, as doubles on the host. */
#ifndef SQUINT_PARAMS_VALUES_H
#define SQUINT_PARAMS_VALUES_H

#include "kernels/ops.h"

/* out [all elements of `from`], which is contiguous. */
enum status values_read(const struct ops *ops, struct tensor from, double *out);
/* to, contiguous, = values, which are lost. */
enum status values_write(const struct ops *ops, struct tensor to, double *values);

#endif
