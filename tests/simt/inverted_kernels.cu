/* inverted_build as test_inverted_simt.c can call it. */
#include "kernels/cuda/inverted.cuh"

/* chosen [B,T,S,n], base and limit [B,T] (NULL: none), offsets [B·S, keys + 1], entries [B·S, T·n]: host memory. */
extern "C" enum status inverted_run(const struct ops *ops, struct tensor chosen, const int32_t *base,
                                    const int32_t *limit, int64_t keys, int width, int32_t *offsets, int32_t *entries);

enum status inverted_run(const struct ops *ops, struct tensor chosen, const int32_t *base, const int32_t *limit,
                         int64_t keys, int width, int32_t *offsets, int32_t *entries) {
    const int64_t *shape = chosen.shape, tokens = shape[0] * shape[1], pairs = shape[0] * shape[2];
    const size_t bytes = inverted_bytes(shape[0], shape[1], shape[2], shape[3], keys);
    struct tensor on_device = chosen,
                  of_tokens[2] = {tensor_1d(nullptr, DTYPE_I32, tokens), tensor_1d(nullptr, DTYPE_I32, tokens)};
    const int32_t *from[2] = {base, limit};
    void *memory = nullptr;
    inverted_lists lists = {};
    TRY(ops->allocate(ops, tensor_bytes(chosen) + 16, &on_device.data));
    TRY(ops->upload(ops, on_device, chosen.data));
    for (int n = 0; n < 2; n++) {
        if (!from[n]) continue;
        TRY(ops->allocate(ops, tensor_bytes(of_tokens[n]), &of_tokens[n].data));
        TRY(ops->upload(ops, of_tokens[n], from[n]));
    }
    TRY(ops->allocate(ops, bytes, &memory)); /* exactly: what lies behind is poisoned */
    const inverted_rule rule = {data_of<const int32_t>(of_tokens[0]), data_of<const int32_t>(of_tokens[1]), keys,
                                width};
    const enum status status = inverted_build(ops, "test", on_device, rule, memory, &lists);
    if (status == STATUS_OK) {
        TRY(ops->download(ops, tensor_1d(const_cast<int32_t *>(lists.offsets), DTYPE_I32, pairs * (keys + 1)),
                          offsets));
        if (lists.room > 0)
            TRY(ops->download(ops, tensor_1d(const_cast<int32_t *>(lists.entries), DTYPE_I32, pairs * lists.room),
                              entries));
    }
    ops->release(ops, memory);
    ops->release(ops, of_tokens[1].data);
    ops->release(ops, of_tokens[0].data);
    ops->release(ops, on_device.data);
    return status;
}
