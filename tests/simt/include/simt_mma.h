/* Host versions of kernels/cuda/mma.cuh: what PTX says of each instruction, carried out by the warp's lanes together.
 */
#ifndef SQUINT_SIMT_MMA_H
#define SQUINT_SIMT_MMA_H

#include <cuda_bf16.h>

/* In shared memory, aligned, and of this block's. */
const char *simt_check_shared(const void *at, size_t bytes, const char *instruction);

inline void simt_load_matrices(uint32_t (&fragment)[4], const void *row, bool transposed) {
    const char *all[32], *mine = simt_check_shared(row, 16, "ldmatrix");
    simt_exchange(0xffffffffu, &mine, sizeof mine, all);
    const unsigned lane = simt_lane();
    for (unsigned m = 0; m < 4; m++) {
        uint16_t halves[2];
        for (unsigned h = 0; h < 2; h++) {
            const unsigned row_index = transposed ? 2 * (lane % 4) + h : lane / 4;
            const unsigned column = transposed ? lane / 4 : 2 * (lane % 4) + h;
            const char *from;
            memcpy(&from, all[8 * m + row_index], sizeof from);
            memcpy(&halves[h], from + 2 * column, 2);
        }
        fragment[m] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
    }
    __syncwarp(); /* nobody writes to the rows before everybody has read */
}
inline void load_matrices(uint32_t (&fragment)[4], const void *row) {
    simt_load_matrices(fragment, row, false);
}
inline void load_matrices_transposed(uint32_t (&fragment)[4], const void *row) {
    simt_load_matrices(fragment, row, true);
}

inline float simt_half(uint32_t pair, unsigned which) {
    return __uint_as_float((which ? pair >> 16 : pair) << 16);
}

inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct operands {
        uint32_t a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const char *all[32];
    simt_exchange(0xffffffffu, &mine, sizeof mine, all);
    const unsigned lane = simt_lane(), g = lane / 4, t = lane % 4;
    for (unsigned e = 0; e < 4; e++) {
        const unsigned row = g + 8 * (e / 2), column = 2 * t + e % 2;
        float sum = 0;
        for (unsigned k = 0; k < 16; k++) {
            /* a (row, k): lane 4·(row%8) + (k%8)/2, register row/8 + 2·(k/8); b (k, column): lane 4·column + (k%8)/2,
             * register k/8. */
            const operands *of_a = reinterpret_cast<const operands *>(all[4 * (row % 8) + k % 8 / 2]);
            const operands *of_b = reinterpret_cast<const operands *>(all[4 * column + k % 8 / 2]);
            sum += simt_half(of_a->a[row / 8 + 2 * (k / 8)], k % 2) * simt_half(of_b->b[k / 8], k % 2);
        }
        d[e] += sum;
    }
}

/* The bytes arrive when they are waited for, no sooner: what is read too early is the poison. */
void copy_async(void *to, const void *from, bool valid);
void copy_async_commit();
void simt_copy_wait(int pending);
template <int pending> void copy_async_wait() {
    simt_copy_wait(pending);
}

#endif
