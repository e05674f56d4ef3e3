/* Products with few rows; see gemm_small.c. */
#ifndef SQUINT_KERNELS_CPU_GEMM_SMALL_H
#define SQUINT_KERNELS_CPU_GEMM_SMALL_H

#include "kernels/cpu/real.h"
#include "kernels/ops.h"

enum { GEMM_SMALL_ROWS = 16, GEMM_SMALL_COLUMNS = 256 };

/* Columns start … start+columns−1 of c, without bias and activation; a must not be transposed. */
void NAME(gemm_small)(const struct gemm *a, int64_t start, int64_t columns);

#endif
