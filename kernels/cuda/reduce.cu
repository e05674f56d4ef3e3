/* Sums in double precision and in an order that only the shapes decide: a warp a piece of a row, a partial sum a block,
 * then one block over the partial sums. */
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/rows.cuh"

namespace {

constexpr int threads = 256, warps = threads / 32;
constexpr int64_t blocks_most = 1024; /* partial sums */
constexpr int64_t piece = 1024;       /* elements that a warp adds at a time, all in one row */

enum reduction { REDUCE_SUM, REDUCE_SQUARES, REDUCE_DIFFERENCE };

/* Where rows of `width` elements lie; a contiguous tensor is one row. */
struct row_places {
    int64_t shape[TENSOR_MAX_RANK - 1],
        stride[TENSOR_MAX_RANK - 1]; /* of the dimensions before the last, the last of them first */
};
__device__ inline int64_t row_offset(const row_places &places, int64_t row) {
    int64_t offset = 0;
#pragma unroll
    for (int i = 0; i < TENSOR_MAX_RANK - 1; i++) {
        offset += row % places.shape[i] * places.stride[i];
        row /= places.shape[i];
    }
    return offset;
}

template <class T> struct reduced {
    const T *x, *y; /* y: of REDUCE_DIFFERENCE, else not looked at */
    row_places of_x, of_y;
    int64_t width, a_row, pieces; /* elements in a row, pieces in a row, pieces in all */
};

template <reduction KIND> __device__ inline double term(float x, float y) {
    const double a = x;
    if constexpr (KIND == REDUCE_SUM) return a;
    if constexpr (KIND == REDUCE_SQUARES) return a * a;
    const double d = a - static_cast<double>(y);
    return d * d;
}

/* partial[block] = the sum over its pieces. Packs of W where they are whole, the rest of a row one by one. */
template <class T, int W, reduction KIND>
__global__ void __launch_bounds__(threads) reduce_kernel(reduced<T> a, double *partial) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    double sum = 0;
    for (int64_t p = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; p < a.pieces;
         p += static_cast<int64_t>(gridDim.x) * warps) {
        const int64_t row = p / a.a_row, first = p % a.a_row * piece;
        const int64_t n = a.width - first < piece ? a.width - first : piece;
        const T *x = a.x + row_offset(a.of_x, row) + first;
        const T *y = KIND == REDUCE_DIFFERENCE ? a.y + row_offset(a.of_y, row) + first : x;
        int64_t i = lane * W;
        for (; i + W <= n; i += 32 * W) {
            float left[W], right[W] = {};
            load_pack(x + i, left);
            if constexpr (KIND == REDUCE_DIFFERENCE) load_pack(y + i, right);
#pragma unroll
            for (int k = 0; k < W; k++) sum += term<KIND>(left[k], right[k]);
        }
        for (; i < n; i++) sum += term<KIND>(to_float(x[i]), to_float(y[i])); /* fewer than W are left, with one lane */
    }
    sum = block_sum<threads>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* out [1] = Σ partial [n]. One block. */
__global__ void __launch_bounds__(threads) reduce_partial_kernel(const double *partial, int64_t n, double *out) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += threads) sum += partial[i];
    sum = block_sum<threads>(sum);
    if (threadIdx.x == 0) out[0] = sum;
}

row_places places_of(struct tensor t, bool flat) {
    row_places places = {};
    for (int i = 0; i < TENSOR_MAX_RANK - 1; i++) {
        const int dimension = t.rank - 2 - i;
        const bool there = !flat && dimension >= 0;
        places.shape[i] = there ? t.shape[dimension] : 1;
        places.stride[i] = there ? t.stride[dimension] : 0;
    }
    return places;
}

template <class T> bool rows_in_packs(const T *data, const row_places &places) {
    for (int i = 0; i < TENSOR_MAX_RANK - 1; i++) {
        if (!in_packs(data, places.stride[i])) return false;
    }
    return true;
}

template <class T, reduction KIND>
enum status reduce(const struct ops *ops, struct tensor x, struct tensor y, struct tensor out) {
    const int64_t count = tensor_count(x);
    const bool flat = tensor_is_contiguous(x) && (KIND != REDUCE_DIFFERENCE || tensor_is_contiguous(y));
    reduced<T> a = {};
    a.x = data_of<const T>(x);
    a.y = data_of<const T>(y);
    a.of_x = places_of(x, flat);
    a.of_y = places_of(y, flat);
    a.width = flat ? count : x.shape[x.rank - 1];
    a.a_row = divide_up(a.width, piece);
    a.pieces = count > 0 ? count / a.width * a.a_row : 0;
    const int64_t blocks = divide_up(a.pieces, warps) < blocks_most ? divide_up(a.pieces, warps) : blocks_most;
    void *block = nullptr;
    TRY(device_scratch(ops, static_cast<size_t>(blocks) * sizeof(double), &block));
    double *partial = static_cast<double *>(block);
    const bool packed = rows_in_packs(a.x, a.of_x) && (KIND != REDUCE_DIFFERENCE || rows_in_packs(a.y, a.of_y));
    TRY(with_width<T>(packed, [&](auto pack) {
        constexpr int W = decltype(pack)::value;
        return device_launch(ops, "reduction", reduce_kernel<T, W, KIND>, grid_over(blocks, 1), threads, 0, a, partial);
    }));
    return device_launch(ops, "reduction of partial sums", reduce_partial_kernel, dim3(1), threads, 0, partial, blocks,
                         data_of<double>(out));
}

/* ---- squares of many parts ----------------------------------------------------------------------------------------
 */

/* partial[block] = Σ x² over the block's piece. */
template <class T>
__global__ void __launch_bounds__(threads) part_squares_kernel(const T *x, part_list list, double *partial) {
    int part;
    int64_t first;
    const int64_t count = find_piece(list, blockIdx.x, &part, &first);
    constexpr int W = pack_width<T>;
    double sum = 0;
    int64_t done = 0;
    if (reinterpret_cast<uintptr_t>(x + first) % 16 == 0) {
        for (int64_t i = threadIdx.x * W; i + W <= count; i += threads * W) {
            float elements[W];
            load_pack(x + first + i, elements);
#pragma unroll
            for (int k = 0; k < W; k++) sum += term<REDUCE_SQUARES>(elements[k], 0);
        }
        done = count / W * W;
    }
    for (int64_t i = done + threadIdx.x; i < count; i += threads)
        sum += term<REDUCE_SQUARES>(to_float(x[first + i]), 0);
    sum = block_sum<threads>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* out [parts] = the sums of each part's pieces. A block a part. */
__global__ void __launch_bounds__(threads) part_totals_kernel(const double *partial, part_list list, double *out) {
    double sum = 0;
    for (int64_t i = list.blocks[blockIdx.x] + threadIdx.x; i < list.blocks[blockIdx.x + 1]; i += threads)
        sum += partial[i];
    sum = block_sum<threads>(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <class T>
enum status squares_of_parts(const struct ops *ops, struct tensor x, const struct param_part *parts, int64_t count,
                             struct tensor out) {
    int64_t most = 0;
    for (int64_t p = 0; p < count; p++) most += divide_up(parts[p].count, part_piece);
    void *block = nullptr;
    TRY(device_scratch(ops, static_cast<size_t>(most) * sizeof(double), &block));
    double *partial = static_cast<double *>(block);
    return for_parts(parts, count, [&](const part_list &list, int64_t from) {
        TRY(device_launch(ops, "squares of parts", part_squares_kernel<T>, grid_over(list.blocks[list.parts], 1),
                          threads, 0, data_of<const T>(x), list, partial));
        return device_launch(ops, "sums of parts", part_totals_kernel, grid_over(list.parts, 1), threads, 0, partial,
                             list, data_of<double>(out) + from);
    });
}

template <reduction KIND>
enum status reduce_any(const struct ops *ops, struct tensor x, struct tensor y, struct tensor out) {
    return x.dtype == DTYPE_BF16 ? reduce<bf16, KIND>(ops, x, y, out) : reduce<float, KIND>(ops, x, y, out);
}

} // namespace

enum status cuda_sum(const struct ops *ops, struct tensor x, struct tensor out) {
    TRY(check_reduction(ops, "sum", x, out));
    return reduce_any<REDUCE_SUM>(ops, x, tensor_none(), out);
}

enum status cuda_sum_squares(const struct ops *ops, struct tensor x, struct tensor out) {
    TRY(check_reduction(ops, "sum_squares", x, out));
    return reduce_any<REDUCE_SQUARES>(ops, x, tensor_none(), out);
}

enum status cuda_sum_squared_difference(const struct ops *ops, struct tensor x, struct tensor y, struct tensor out) {
    TRY(check_reduction(ops, "sum_squared_difference", x, out));
    TRY(check_same("sum_squared_difference", x, y));
    return reduce_any<REDUCE_DIFFERENCE>(ops, x, y, out);
}

enum status cuda_sum_squares_parts(const struct ops *ops, struct tensor x, const struct param_part *parts,
                                   int64_t count, struct tensor out) {
    TRY(check_sum_squares_parts(ops, x, parts, count, out));
    return x.dtype == DTYPE_BF16 ? squares_of_parts<bf16>(ops, x, parts, count, out)
                                 : squares_of_parts<float>(ops, x, parts, count, out);
}
