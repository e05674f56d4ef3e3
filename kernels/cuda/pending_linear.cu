/* Operations that have no kernel yet say so when they are called. */
#include "kernels/cuda/device.cuh"

#define UNAVAILABLE(operation)                                                                                         \
    enum status cuda_##operation(const struct ops *ops, const struct operation *arguments) {                           \
        (void)arguments;                                                                                               \
        return error_set(STATUS_USAGE, #operation ": no form on %s; use --device cpu", ops->name);                     \
    }
UNAVAILABLE(linear_attention_weights)
