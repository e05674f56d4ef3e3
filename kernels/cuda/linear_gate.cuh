/* Squeeze and excite: e_i = 2σ(excite · relu(squeeze · p_i)). squeeze · p_i is a mean over the document's keys so far
 * of squeeze · φ_k(j), so that what is summed up along a sequence has R numbers a token, not M. */
#ifndef SQUINT_KERNELS_CUDA_LINEAR_GATE_CUH
#define SQUINT_KERNELS_CUDA_LINEAR_GATE_CUH

#include "kernels/cuda/linear.cuh"

/* What gate_scan wants for `units` sequences of `length` tokens. */
size_t gate_scan_bytes(int64_t units, int64_t length, int64_t hidden);
/* Starts the kernels that fill p.hidden. memory: gate_scan_bytes. */
enum status gate_plan(const struct ops *ops, const char *operation, const linear_problem &p, char *memory);
/* tails [B,G,T,R]: for every key Σ over the rows i from it to its document's end of d_hidden_i / (i − begin + 1), all
 * query heads of the group together. memory: gate_scan_bytes. */
enum status gate_tails(const struct ops *ops, const char *operation, const linear_gradient &g, char *memory);

/* What the means give φ_k of a key and feature: squeezeᵀ · tails. */
template <class T>
__device__ inline float gate_tail(const linear_gradient &g, int64_t b, int group, int64_t j, int feature) {
    const linear_problem &p = g.f;
    const float *tail = g.tails + ((b * p.groups + group) * p.length + j) * p.hidden_width;
    const T *squeeze = static_cast<const T *>(p.squeeze) + group * p.squeeze_head + feature;
    float sum = 0.0f;
    for (int r = 0; r < p.hidden_width; r++) sum += tail[r] * to_float(squeeze[r * p.squeeze_row]);
    return sum;
}

#endif
