/* Values of a contiguous device tensor on the host: F32, F64 or BF16 there, doubles or floats here. */
#ifndef SQUINT_PARAMS_VALUES_H
#define SQUINT_PARAMS_VALUES_H

#include "kernels/ops.h"

/* out [all elements of `from`]. */
enum status values_read(const struct ops *ops, struct tensor from, double *out);
/* to = values, which are lost. */
enum status values_write(const struct ops *ops, struct tensor to, double *values);
/* The same in floats (doubles of an F64 tensor pass as they are). */
enum status values_download(const struct ops *ops, struct tensor from, float *out);
enum status values_upload(const struct ops *ops, struct tensor to, float *values);

#endif
