/* The compiler's vectors, as wide as the variant's instructions, for loops that it would not vectorise well by itself.
 */
#ifndef SQUINT_KERNELS_CPU_VECTOR_H
#define SQUINT_KERNELS_CPU_VECTOR_H

#include "kernels/cpu/real.h"

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
enum { VECTOR = VECTOR_BYTES / sizeof(real) };
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* Perfect shuffles: log2(VECTOR) rounds of them transpose VECTOR vectors. */
#define LOW_2   0, 2
#define HIGH_2  1, 3
#define LOW_4   0, 4, 1, 5
#define HIGH_4  2, 6, 3, 7
#define LOW_8   0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_8  4, 12, 5, 13, 6, 14, 7, 15
#define LOW_16  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#if defined(SQUINT_REAL_F64) && defined(__AVX512F__)
#define LOW  LOW_8
#define HIGH HIGH_8
#elif defined(SQUINT_REAL_F64) && defined(__AVX__)
#define LOW  LOW_4
#define HIGH HIGH_4
#elif defined(SQUINT_REAL_F64)
#define LOW  LOW_2
#define HIGH HIGH_2
#elif defined(__AVX512F__)
#define LOW  LOW_16
#define HIGH HIGH_16
#elif defined(__AVX__)
#define LOW  LOW_8
#define HIGH HIGH_8
#else
#define LOW  LOW_4
#define HIGH HIGH_4
#endif

#endif
