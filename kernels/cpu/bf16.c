/* bf16 matrix products by oneDNN, where the CPU multiplies bf16 faster than fp32. */
#include "kernels/cpu/cpu.h"

enum status bf16_gemm(const struct ops *ops, const struct gemm *arguments, bool *done) {
    (void)ops;
    (void)arguments;
    *done = false;
    return STATUS_OK;
}

size_t bf16_bytes(const struct device *device) {
    (void)device;
    return 0;
}

void bf16_close(struct device *device) {
    (void)device;
}

const char *bf16_describe(void) {
    return "";
}
