/* Lists of choices the other way round: by what was chosen, who chose it. Knows no attention. */
#ifndef SQUINT_KERNELS_CUDA_INVERTED_CUH
#define SQUINT_KERNELS_CUDA_INVERTED_CUH

#include "kernels/cuda/device.cuh"

/* Of chosen [B,T,S,n] I32, for every pair p = b·S + s and every key, the queries that chose it, in ascending order.
 * entries[p · room + offsets[p · (keys + 1) + key] …] up to the next key's offset: query · width + the number's place
 * in its key. Both arrays lie in device memory. */
struct inverted_lists {
    const int32_t *offsets; /* [B·S, keys + 1], within the pair's own entries */
    const int32_t *entries; /* [B·S, room] */
    int64_t keys, room;     /* room: T·n */
    int width;
};

/* How numbers become keys: number + base, which must lie in 0 … limit − 1, divided by `width` (numbers of one key),
 * must lie in 0 … keys − 1. What does not, as negative numbers, is left out; what a list holds twice is there twice. */
struct inverted_rule {
    const int32_t *base;  /* [B,T], or NULL for 0 */
    const int32_t *limit; /* [B,T], or NULL for none */
    int64_t keys;
    int width;          /* 1: a key a number; then an entry is the query itself */
    bool slots = false; /* width 1: instead, an entry is query · n + the number's place in its list */
};

/* Bytes that inverted_build wants at `memory`, a multiple of 256: 4 for each number of `chosen`, offsets, and what
 * sorting some pairs at a time takes. */
size_t inverted_bytes(int64_t batch, int64_t length, int64_t lists, int64_t select, int64_t keys);
/* Starts the kernels that fill *inverted in `memory` from chosen [B,T,S,n] I32, dense, on the device. Deterministic.
 * STATUS_SHAPE where T·n, T·width or keys is not below 2^31. */
enum status inverted_build(const struct ops *ops, const char *operation, struct tensor chosen,
                           const inverted_rule &rule, void *memory, inverted_lists *inverted);

#endif
