/* Which form of a kernel serves a shape: by kernel and the power of two that the length comes to. */
#include "kernels/cuda/tuning.cuh"

namespace {

constexpr struct {
    const char *name;
    bool backward; /* its time is part of attention's backward pass, else of the forward pass */
} kernels[TUNED_KERNELS] = {{"attention_forward", false}, {"attention_keys", true}};

constexpr int64_t widest = 64;

int length_class(int64_t length) {
    int bits = 0;
    while (bits + 1 < tuned_lengths && length > int64_t{1} << bits) bits++;
    return bits;
}

} // namespace

int tuning_form(const struct ops *ops, tuned_kernel kernel, int64_t length) {
    return ops->device->forms[kernel][length_class(length)];
}

bool cuda_tunable(const struct ops *ops, int number, struct tunable *tunable) {
    if (number < 0 || number >= TUNED_KERNELS) return false;
    const bool several = ops->real == DTYPE_BF16;
    *tunable = {kernels[number].name, several ? tuned_forms : 1, kernels[number].backward};
    return true;
}

enum status cuda_set_form(const struct ops *ops, int number, int64_t width, int64_t length, int form) {
    struct tunable tunable;
    if (!cuda_tunable(ops, number, &tunable) || width < 1 || width > widest || length < 1 || form < 0 ||
        form >= tunable.forms)
        return error_set(STATUS_USAGE,
                         "kernel %d, width %lld, length %lld, form %d: expected a kernel of this device, a width of 1 "
                         "to 64, a length, and one of its forms",
                         number, static_cast<long long>(width), static_cast<long long>(length), form);
    ops->device->forms[number][length_class(length)] = static_cast<signed char>(form);
    return STATUS_OK;
}
