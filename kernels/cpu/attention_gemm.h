/* The small matrix product and the transpose that softmax and linear attention are made of (attention_gemm.c):
 * operands from cache, no packing. Knows no tensor. */
#ifndef SQUINT_KERNELS_CPU_ATTENTION_GEMM_H
#define SQUINT_KERNELS_CPU_ATTENTION_GEMM_H

#include "kernels/cpu/real.h"

enum { LANES = 16 /* columns of a tile and padded widths are multiples of it */ };

static inline int64_t pad_lanes(int64_t n) {
    return (n + LANES - 1) / LANES * LANES;
}

/* c [m,n] (+)= a [m,k] · b [k,n]: element (i,p) of a at a[i·a_row + p·a_column], rows of b and c are dense; n a
 * multiple of LANES. Every element is summed over p in ascending order, whatever m and n are. */
void NAME(attention_gemm)(int64_t m, int64_t n, int64_t k, const real *a, int64_t a_row, int64_t a_column,
                          const real *b, int64_t b_row, real *c, int64_t c_row, bool accumulate);

/* to [columns][rows] = from [rows][columns], transposed. */
void NAME(attention_transpose)(int64_t rows, int64_t columns, const real *from, int64_t from_row, real *to,
                               int64_t to_row);

#endif
