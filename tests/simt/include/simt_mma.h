/* Host versions of kernels/cuda/mma.cuh: what PTX says of each instruction, carried out by the warp's lanes together.
 */
#ifndef SQUINT_SIMT_MMA_H
#define SQUINT_SIMT_MMA_H

#include <cuda_bf16.h>

/* In shared memory, aligned, and of this block's. */
const char *simt_check_shared(const void *at, size_t bytes, const char *instruction);

simt_combine simt_combine_rows, simt_combine_columns, simt_combine_products;
struct simt_operands {
    uint32_t a[4], b[2];
};

inline void simt_load_matrices(uint32_t (&fragment)[4], const void *row, simt_combine *combine) {
    const char *mine = simt_check_shared(row, 16, "ldmatrix");
    memcpy(fragment, simt_together(&mine, sizeof mine, combine), sizeof fragment);
}
inline void load_matrices(uint32_t (&fragment)[4], const void *row) {
    simt_load_matrices(fragment, row, simt_combine_rows);
}
inline void load_matrices_transposed(uint32_t (&fragment)[4], const void *row) {
    simt_load_matrices(fragment, row, simt_combine_columns);
}

inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const simt_operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    float sums[4];
    memcpy(sums, simt_together(&mine, sizeof mine, simt_combine_products), sizeof sums);
    for (unsigned e = 0; e < 4; e++) d[e] += sums[e];
}

/* The bytes arrive when they are waited for, no sooner: what is read too early is the poison. */
void copy_async(void *to, const void *from, bool valid);
void copy_async_commit();
void simt_copy_wait(int pending);
template <int pending> void copy_async_wait() {
    simt_copy_wait(pending);
}

#endif
