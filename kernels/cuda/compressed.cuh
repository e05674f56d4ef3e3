/* What the files of attention to compressed blocks share: the problem that they hand to attention's kernels, and how
 * selection blocks follow from compressed ones. */
#ifndef SQUINT_KERNELS_CUDA_COMPRESSED_CUH
#define SQUINT_KERNELS_CUDA_COMPRESSED_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/documents.cuh"

/* In units of the stride: a compressed block covers `overlap`, a selection block `units` of them. Block u of a document
 * shares |[u, u + overlap) ∩ [b·units, (b + 1)·units)| strides with its selection block b. */
struct choice_sizes {
    int compress, stride, block, select; /* tokens, tokens, tokens, blocks */
    int overlap, units;
};

/* blocks: compressed ones that a document can have. No more units than they cover: all then lie in block 0. */
inline choice_sizes choice_sizes_of(int32_t compress, int32_t stride, int32_t block, int32_t select, int64_t blocks) {
    const int64_t overlap = compress / stride, units = block / stride, most = blocks + overlap;
    return choice_sizes{
        compress, stride, block, select, static_cast<int>(overlap), static_cast<int>(units < most ? units : most)};
}

/* How many compressed blocks the query with `place` tokens before it in its document sees. */
__device__ inline int visible_blocks(int place, int compress, int stride) {
    return whole_blocks(place + 1, compress, stride);
}

/* Σ over block b's compressed blocks in [from, end) of weight(u) · what they share, added to `sum` in ascending order:
 * where a walk over the blocks is cut does not change a bit. */
template <class Weight>
__device__ inline float add_importance(const choice_sizes &c, int b, int from, int end, float sum, Weight weight) {
    const int left = b * c.units, right = left + c.units;
    for (int u = max(left - c.overlap + 1, from); u < min(right, end); u++)
        sum += static_cast<float>(min(u + c.overlap, right) - max(u, left)) * weight(u);
    return sum;
}

/* Importance as a number that is compared: the larger, the more important; what is not a number is least. */
__device__ inline unsigned importance_key(float x) {
    return x >= 0.0f ? __float_as_uint(x) + 1 : 0;
}

/* The largest t for which reaching(t), a count that falls with t, is at least `count`; 0 when there is none. Keys of
 * importance_key lie below 2^31. */
template <class Reaching> __device__ inline unsigned find_bound(int count, Reaching reaching) {
    unsigned bound = 0;
    for (int bit = 30; bit >= 0; bit--) {
        const unsigned higher = bound | 1u << bit;
        if (reaching(higher) >= count) bound = higher;
    }
    return bound;
}

/* A candidate: its key, its number. */
struct choice_entry {
    unsigned key;
    int block;
};

/* Of `used` entries, by ascending block, those whose key is above the bound, and the first `ties` of those
 * whose key is the bound: store(place, entry) with places from 0; returns how many. entry(n) is read before anything is
 * stored at or before place n. By a warp. */
template <class Entry, class Store>
__device__ inline int keep_largest(int used, unsigned bound, int ties, Entry entry, Store store) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const unsigned before = (1u << lane) - 1;
    int kept = 0;
    for (int n = 0; n < used; n += 32) {
        const bool there = n + lane < used;
        const choice_entry one = there ? entry(n + lane) : choice_entry{0, 0};
        const unsigned equal = __ballot_sync(whole_warp, there && one.key == bound);
        const bool fits = one.key > bound || (one.key == bound && __popc(equal & before) < ties);
        const unsigned keep = __ballot_sync(whole_warp, there && fits);
        __syncwarp(); /* all have read their entry */
        if (keep >> lane & 1) store(kept + __popc(keep & before), one);
        ties = max(ties - __popc(equal), 0);
        kept += __popc(keep);
        __syncwarp();
    }
    return kept;
}

/* The choice of a planned problem whose log_sums are there (compressed_choice.cu). `memory`: as many bytes as
 * compressed_choice_bytes says, aligned to 256. STATUS_SHAPE: blocks that overlap too much, too many tiles. */
size_t compressed_choice_bytes(const struct ops *ops, const struct compressed_attention *a);
enum status compressed_choice(const struct ops *ops, const struct compressed_attention *a, const attention_problem &p,
                              const document_blocks &blocks, void *memory);

#endif
