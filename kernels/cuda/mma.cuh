/* Tensor-core and asynchronous-copy instructions of sm_80 and later, one thin function each. On the host (tests/simt)
 * the same functions are carried out by the warp's fibers together (simt_mma.h). PTX ISA 8.x, "Warp-level matrix
 * instructions" and "Data movement: cp.async". */
#ifndef SQUINT_KERNELS_CUDA_MMA_CUH
#define SQUINT_KERNELS_CUDA_MMA_CUH

#include "kernels/cuda/portable.cuh"

#ifdef SQUINT_SIMT
#include "simt_mma.h"
#else

__device__ inline uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/* Four 8x8 matrices of 16-bit elements. Lane 8·m + r gives the address of row r of matrix m (16 bytes, aligned to 16,
 * in shared memory). fragment[m] of lane l then holds elements 2·(l%4), +1 of row l/4 of matrix m; _transposed: of
 * column l/4. All 32 lanes take part. */
__device__ inline void load_matrices(uint32_t (&fragment)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&fragment)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* d [16x8] f32 += a [16x16] · b [16x8], bf16. With l = lane, g = l/4, t = l%4:
 * d: {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}; a: pairs of columns {(g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8)};
 * b: pairs of rows {(2t, g), (2t+8, g)}; of a pair the lower index lies in the low half. */
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 16 bytes, aligned to 16 on both sides, from global to shared memory; zeros instead, and `from` not read, unless
 * `valid`. It has arrived once copy_async_wait has waited for its group; other threads see it after a barrier besides.
 */
__device__ inline void copy_async(void *to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
/* Ends a group: this thread's copies since the last one. */
__device__ inline void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most `pending` of this thread's latest groups are under way. */
template <int pending> __device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#endif
#endif
