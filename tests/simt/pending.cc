/* Until the kernels are merged: weak stand-ins so that the table links. */
extern "C" {
#include "kernels/cuda/cuda.h"
#define PENDING(name, ...)                                                                                             \
    __attribute__((weak)) enum status cuda_##name(const struct ops *, __VA_ARGS__) {                                   \
        return error_set(STATUS_FAILED, #name " is pending");                                                          \
    }
PENDING(bias_backward, struct tensor, struct tensor)
PENDING(embedding, const struct embedding *)
PENDING(embedding_backward, const struct embedding_backward *)
PENDING(norm, const struct norm *)
PENDING(norm_backward, const struct norm_backward *)
PENDING(gelu_backward, struct tensor, struct tensor, struct tensor)
PENDING(swiglu, struct tensor, struct tensor)
PENDING(swiglu_backward, struct tensor, struct tensor, struct tensor)
PENDING(rope, const struct rope *)
PENDING(attention, const struct attention *)
PENDING(attention_backward, const struct attention_backward *)
PENDING(attention_decode, const struct attention_decode *)
PENDING(loss_rows, const struct loss_rows *)
PENDING(log_softmax, struct tensor, struct tensor)
PENDING(sum, struct tensor, struct tensor)
PENDING(sum_squares, struct tensor, struct tensor)
PENDING(sum_squared_difference, struct tensor, struct tensor, struct tensor)
PENDING(adamw, const struct adamw *)
}
