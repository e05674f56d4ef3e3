/* The element type that the CPU kernels are written in, and the functions of one element that vectorise.
 * Compiled once per variant (cmake/kernels.cmake): `real` is float, or double under SQUINT_REAL_F64. */
#ifndef SQUINT_KERNELS_CPU_REAL_H
#define SQUINT_KERNELS_CPU_REAL_H

#include "base/tensor.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* NAME(gemm) is gemm_f32_avx2 in the variant f32_avx2: the same source gives one function a variant. */
#define NAME_PASTE(name, variant)  name##_##variant
#define NAME_EXPAND(name, variant) NAME_PASTE(name, variant)
#define NAME(name)                 NAME_EXPAND(name, SQUINT_VARIANT)

#ifdef SQUINT_REAL_F64

typedef double real;
typedef uint64_t real_bits;
enum { DTYPE_REAL = DTYPE_F64 };
#define REAL_INFINITY ((real)INFINITY)
#define REAL_LARGEST  DBL_MAX

static inline real real_exp(real x) {
    return exp(x);
}
static inline real real_tanh(real x) {
    return tanh(x);
}
static inline real real_log(real x) {
    return log(x);
}
static inline real real_sqrt(real x) {
    return sqrt(x);
}
static inline real real_abs(real x) {
    return fabs(x);
}
static inline real real_max(real a, real b) {
    return a > b ? a : b;
}
static inline real real_sigmoid(real x) {
    return 1 / (1 + exp(-x));
}

#else

typedef float real;
typedef uint32_t real_bits;
enum { DTYPE_REAL = DTYPE_F32 };
#define REAL_INFINITY INFINITY
#define REAL_LARGEST  FLT_MAX

/* e^x within 2 units in the last place; results below 1.9e-38 become 0, so that nothing denormal is computed with.
 * -inf gives 0, +inf and overflow +inf, NaN NaN. No branch, no table: a loop of it vectorises, and nothing in it
 * depends on an order of operations that -fassociative-math may change. x = n ln 2 + r; a minimax polynomial of degree
 * 6 on |r| <= ln 2 / 2; n is added to the exponent. */
static inline real real_exp(real x) {
    const real lowest = -86.9f, highest = 88.7228f;
    real bounded = x > lowest ? x : lowest; /* NaN too: it never reaches the conversion to an integer */
    bounded = bounded < highest ? bounded : highest;
    real scaled = bounded * 1.44269504f;
#ifdef __SSE4_1__
    int32_t n = (int32_t)__builtin_rintf(scaled);
#else
    int32_t n = (int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
#endif
    real multiple = (real)n;
#ifdef __FMA__
    real r = __builtin_fmaf(multiple, -0.693147182f, bounded);
    r = __builtin_fmaf(multiple, 1.90465421e-9f, r);
#else
    real r = (real)((double)bounded - (double)multiple * 0.69314718055994531);
#endif
    real q = 0.0013814466f;
    q = q * r + 0.00836878084f;
    q = q * r + 0.0416683927f;
    q = q * r + 0.166665196f;
    q = q * r + 0.49999994f;
#ifdef __FMA__
    real p = __builtin_fmaf(q * r, r, r) + 1.0f;
#else
    real p = (r + q * (r * r)) + 1.0f;
#endif
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    bits += (uint32_t)n << 23;
    /* Masks instead of conditions: a compiler may not move work behind a branch, which would keep loops from
     * vectorising. */
    uint32_t over = -(uint32_t)(x > highest), in_range = -(uint32_t)(x >= lowest), nan = -(uint32_t)(x != x);
    bits = (((bits & ~over) | (0x7f800000u & over)) & in_range) | nan;
    real result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline real real_log(real x) {
    return logf(x);
}
static inline real real_sqrt(real x) {
    return sqrtf(x);
}
static inline real real_abs(real x) {
    return fabsf(x);
}
static inline real real_max(real a, real b) {
    return a > b ? a : b;
}
static inline real real_sigmoid(real x) {
    return 1.0f / (1.0f + real_exp(-x));
}

/* tanh within 2.5 units in the last place. */
static inline real real_tanh(real x) {
    real size = fabsf(x), square = x * x;
    real e = real_exp(-2.0f * size);
    real large = copysignf((1.0f - e) / (1.0f + e), x);
    real series = 2.18694885e-2f;
    series = series * square - 5.39682540e-2f;
    series = series * square + 1.33333333e-1f;
    series = series * square - 3.33333333e-1f;
    return size < 0.25f ? x + x * (square * series) : large;
}

#endif

/* Between 0 <= a <= b: halfway in their representations, so near the geometric mean; a where nothing lies between. */
static inline real real_between(real a, real b) {
    real_bits low, high;
    memcpy(&low, &a, sizeof a);
    memcpy(&high, &b, sizeof b);
    low += (high - low) / 2;
    memcpy(&a, &low, sizeof a);
    return a;
}

/* Σ a_i b_i; the order of the sum is the compiler's, the same for equal n. */
static inline real real_dot(const real *a, const real *b, int64_t n) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* y += alpha x */
static inline void real_axpy(real alpha, const real *restrict x, real *restrict y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

/* The largest element; −inf when all are, or there is none. A reduction may begin at the least finite number (clang's
 * does, gcc's does not). */
static inline real real_row_max(const real *x, int64_t n) {
    real most = -REAL_INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    return most > -REAL_LARGEST ? most : -REAL_INFINITY;
}

/* The elements of a tensor, typed. */
static inline real *real_data(struct tensor t) {
    return t.data;
}

#endif
