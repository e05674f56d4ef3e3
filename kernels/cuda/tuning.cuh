/* Kernels that come in several forms, that is sizes of tiles, and which form serves a shape. A table that is empty
 * until somebody has measured: form 0 is right everywhere. Knows no kernel. */
#ifndef SQUINT_KERNELS_CUDA_TUNING_CUH
#define SQUINT_KERNELS_CUDA_TUNING_CUH

#include "kernels/cuda/device.cuh"

#include <type_traits>

/* attention_backward.cu's kernels by rows have one form: they only run where a table is never looked at
 * (deterministic), or for mixtures. */
enum tuned_kernel { TUNED_FORWARD = 0, TUNED_KEYS, TUNED_KERNELS };
constexpr int tuned_forms = 3;

/* The form of `kernel` for sequences of `length` tokens. */
int tuning_form(const struct ops *ops, tuned_kernel kernel, int64_t length);

/* body(std::integral_constant<int, form>{}). Only bf16 with heads up to 64 wide and one candidate has more than one
 * form: every form is a kernel to compile. */
template <class T, int D, class Body>
enum status with_form(const struct ops *ops, tuned_kernel kernel, int candidates, int64_t length, Body body) {
    if constexpr (std::is_same_v<T, bf16> && D == 64) {
        const int form = candidates == 1 ? tuning_form(ops, kernel, length) : 0;
        if (form == 1) return body(std::integral_constant<int, 1>{});
        if (form == 2) return body(std::integral_constant<int, 2>{});
    }
    return body(std::integral_constant<int, 0>{});
}

#endif
