/* Functions of one element: GELU in its tanh form, SiLU, and their slopes. */
#ifndef SQUINT_KERNELS_CPU_ACTIVATION_H
#define SQUINT_KERNELS_CPU_ACTIVATION_H

#include "kernels/cpu/real.h"

/* (1 + tanh u) / 2 = sigmoid(2u), u = √(2/π)·(x + 0.044715 x³). */
static inline real gelu(real x) {
    real u2 = x * ((real)1.5957691216057308 + (real)0.071354816272600252 * (x * x));
    return x * real_sigmoid(u2);
}

static inline real gelu_slope(real x) {
    real square = x * x;
    real s = real_sigmoid(x * ((real)1.5957691216057308 + (real)0.071354816272600252 * square));
    real du2 = (real)1.5957691216057308 + (real)0.21406444881780076 * square;
    return s + x * du2 * (s * (1 - s));
}

#endif
