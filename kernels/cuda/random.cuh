/* base/rng.c's counter-based random numbers on the device: the same words for the same (seed, stream, index). */
#ifndef SQUINT_KERNELS_CUDA_RANDOM_CUH
#define SQUINT_KERNELS_CUDA_RANDOM_CUH

#include "kernels/cuda/device.cuh"

extern "C" {
#include "base/rng.h"
}

/* rng_block: Philox4x32-10 (Salmon et al. 2011). */
__device__ inline void random_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t (&c)[4]) {
    c[0] = static_cast<uint32_t>(index);
    c[1] = static_cast<uint32_t>(index >> 32);
    c[2] = static_cast<uint32_t>(stream);
    c[3] = static_cast<uint32_t>(stream >> 32);
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c[0], p1 = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
        const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0],
                       n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1];
        c[0] = n0;
        c[1] = static_cast<uint32_t>(p1);
        c[2] = n2;
        c[3] = static_cast<uint32_t>(p0);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
}

/* rng_uniform, rounded to float once. */
__device__ inline float random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c[4];
    random_block(seed, stream, index, c);
    return static_cast<float>((static_cast<uint64_t>(c[1]) << 32 | c[0]) >> 11) * 0x1p-53f;
}

#endif
