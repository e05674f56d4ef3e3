/* Where the documents of a sequence lie, and the blocks of tokens that they fall into, found on the device. Knows no
 * attention. */
#ifndef SQUINT_KERNELS_CUDA_DOCUMENTS_CUH
#define SQUINT_KERNELS_CUDA_DOCUMENTS_CUH

#include "kernels/cuda/device.cuh"

/* Blocks of `width` tokens every `stride`, counted from each document's first token: only those that lie whole in it,
 * or (partial; then stride is width) its last one maybe shorter. They are numbered through a sequence, document after
 * document. All arrays lie in device memory. A start that is neither its token nor its predecessor's counts as its
 * predecessor's: the host does not read it, and nothing here leaves the tensors whatever it holds. */
struct document_blocks {
    const int32_t *begin; /* [B,T] first token of each token's document */
    const int32_t *end;   /* [B,T] one past its last */
    const int32_t *base;  /* [B,T] number of its document's first block */
    const int32_t *first; /* [B,bound] first token of each block, −1 beyond the last */
    const int32_t *count; /* [B] blocks */
    int64_t bound;        /* the most blocks that a sequence can have */
    int length, width, stride;
};

/* Bytes that document_blocks_find wants at `memory`, a multiple of 256. */
size_t document_blocks_bytes(int64_t batch, int64_t length, int64_t width, int64_t stride, bool partial);
/* Starts the kernels that fill *blocks in `memory` from start [B,T] I32, dense. */
enum status document_blocks_find(const struct ops *ops, const char *operation, struct tensor start, int64_t width,
                                 int64_t stride, bool partial, void *memory, document_blocks *blocks);

/* Blocks of `width` every `stride` that lie whole in `count` tokens. */
__host__ __device__ inline int whole_blocks(int count, int width, int stride) {
    return count < width ? 0 : (count - width) / stride + 1;
}

#endif
