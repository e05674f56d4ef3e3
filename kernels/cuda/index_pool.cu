/* Index keys pooled over blocks of tokens: their mean and their largest elements. */
#include "kernels/cuda/documents.cuh"
#include "kernels/cuda/rows.cuh"

#include <climits>

namespace {

constexpr int threads = 128;

struct pool_arguments {
    const void *u;
    void *pooled;               /* [B,bound,2,heads·width] */
    int64_t batch, token, head; /* strides of u */
    int64_t sequences;
    document_blocks blocks;
    int heads, width;
};

/* A thread: one element of one key head of one block; neighbours read neighbours. */
template <class T> __global__ void __launch_bounds__(threads) pool_blocks(pool_arguments a) {
    const int64_t row = static_cast<int64_t>(a.heads) * a.width, count = a.sequences * a.blocks.bound * row;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; n < count;
         n += static_cast<int64_t>(gridDim.x) * threads) {
        const int64_t block = n / row, b = block / a.blocks.bound;
        const int h = static_cast<int>(n % row / a.width), e = static_cast<int>(n % a.width);
        const int first = a.blocks.first[block];
        T *to = static_cast<T *>(a.pooled) + block * 2 * row + n % row;
        if (first < 0) {
            to[0] = to[row] = from_float<T>(0.0f);
            continue;
        }
        const T *from = static_cast<const T *>(a.u) + b * a.batch + first * a.token + h * a.head + e;
        float sum = 0.0f, largest = to_float(from[0]);
#pragma unroll 4
        for (int t = 0; t < a.blocks.width; t++) {
            const float x = to_float(from[t * a.token]);
            sum += x;
            largest = x > largest ? x : largest;
        }
        to[0] = from_float<T>(sum * (1.0f / static_cast<float>(a.blocks.width)));
        to[row] = from_float<T>(largest);
    }
}

} // namespace

enum status cuda_index_pool(const struct ops *ops, const struct index_pool *a) {
    TRY(check_index_pool(ops, a));
    const int64_t length = a->u.shape[1];
    if (length > INT_MAX / 2)
        return error_set(STATUS_SHAPE, "index_pool: u: expected up to %d tokens, found %lld", INT_MAX / 2,
                         static_cast<long long>(length));
    pool_arguments g = {};
    g.sequences = a->u.shape[0];
    if (tensor_count(a->pooled) == 0) return STATUS_OK;
    void *memory;
    TRY(device_scratch(ops, document_blocks_bytes(g.sequences, length, a->block, a->block, false), &memory));
    TRY(document_blocks_find(ops, "index_pool", a->start, a->block, a->block, false, memory, &g.blocks));
    g.u = a->u.data;
    g.pooled = a->pooled.data;
    g.batch = a->u.stride[0];
    g.token = a->u.stride[1];
    g.head = a->u.stride[2];
    g.heads = static_cast<int>(a->u.shape[2]);
    g.width = static_cast<int>(a->u.shape[3]);
    return with_real(ops, [&](auto real) {
        return device_launch(ops, "index_pool", pool_blocks<decltype(real)>,
                             grid_over(tensor_count(a->pooled) / 2, threads), threads, 0, g);
    });
}
