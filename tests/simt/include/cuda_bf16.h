/* Stands in for CUDA's header of this name; see cuda_runtime.h. */
#ifndef SQUINT_SIMT_CUDA_BF16_H
#define SQUINT_SIMT_CUDA_BF16_H

#include <cuda_runtime.h>

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x);
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
/* To nearest, ties to even; NaN stays NaN. */
inline __nv_bfloat16 __float2bfloat16(float x) {
    const unsigned bits = __float_as_uint(x);
    __nv_bfloat16 result;
    result.bits = (bits & 0x7fffffffu) > 0x7f800000u
                      ? static_cast<uint16_t>(0x7fff)
                      : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    return result;
}
inline __nv_bfloat16::__nv_bfloat16(float x) {
    bits = __float2bfloat16(x).bits;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16(x), __float2bfloat16(y)};
}

#endif
