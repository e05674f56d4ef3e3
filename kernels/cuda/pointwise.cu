/* Copies with conversion, fills, scaled sums, random numbers. */
#include "kernels/cuda/random.cuh"

namespace {

constexpr int THREADS = 256;

/* Up to four dimensions with any strides; `whole`: element i lies at i. */
struct layout {
    int64_t shape[TENSOR_MAX_RANK], stride[TENSOR_MAX_RANK];
    bool whole;
};

layout layout_of(struct tensor t) {
    layout l = {{1, 1, 1, 1}, {0, 0, 0, 0}, tensor_is_contiguous(t)};
    for (int d = 0; d < t.rank; d++) {
        l.shape[TENSOR_MAX_RANK - t.rank + d] = t.shape[d];
        l.stride[TENSOR_MAX_RANK - t.rank + d] = t.stride[d];
    }
    return l;
}

__device__ int64_t place_of(const layout &l, int64_t i) {
    if (l.whole) return i;
    int64_t place = 0;
#pragma unroll
    for (int d = TENSOR_MAX_RANK - 1; d >= 0; d--) {
        place += i % l.shape[d] * l.stride[d];
        i /= l.shape[d];
    }
    return place;
}

__device__ int64_t first_element() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ int64_t element_step() {
    return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

__device__ void convert(float x, float *y) {
    *y = x;
}
__device__ void convert(float x, double *y) {
    *y = static_cast<double>(x);
}
__device__ void convert(float x, bf16 *y) {
    *y = from_float<bf16>(x);
}
__device__ void convert(double x, float *y) {
    *y = static_cast<float>(x);
}
__device__ void convert(double x, bf16 *y) {
    *y = from_float<bf16>(static_cast<float>(x));
}
__device__ void convert(bf16 x, float *y) {
    *y = to_float(x);
}
__device__ void convert(bf16 x, double *y) {
    *y = static_cast<double>(to_float(x));
}
template <class T> __device__ void convert(T x, T *y) {
    *y = x;
}

/* to = from, count elements. */
template <class From, class To>
__global__ void copy_kernel(const From *from, To *to, layout of_from, layout of_to, int64_t count) {
    for (int64_t i = first_element(); i < count; i += element_step())
        convert(from[place_of(of_from, i)], &to[place_of(of_to, i)]);
}

template <class T> __global__ void fill_kernel(T *x, layout l, T value, int64_t count) {
    for (int64_t i = first_element(); i < count; i += element_step()) x[place_of(l, i)] = value;
}

/* y += alpha·x */
template <class T>
__global__ void add_scaled_kernel(const T *x, T *y, layout of_x, layout of_y, float alpha, int64_t count) {
    for (int64_t i = first_element(); i < count; i += element_step()) {
        T *to = &y[place_of(of_y, i)];
        *to = from_float<T>(to_float(*to) + alpha * to_float(x[place_of(of_x, i)]));
    }
}

template <class T> __global__ void scale_kernel(T *x, layout l, float alpha, int64_t count) {
    for (int64_t i = first_element(); i < count; i += element_step()) {
        T *to = &x[place_of(l, i)];
        *to = from_float<T>(alpha * to_float(*to));
    }
}

/* base/rng.c's rng_normal: Box and Muller, in double as there. */
__device__ double normal_of(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c[4];
    random_block(seed, stream, index, c);
    const uint64_t a = static_cast<uint64_t>(c[1]) << 32 | c[0], b = static_cast<uint64_t>(c[3]) << 32 | c[2];
    const double radius = sqrt(-2.0 * log((static_cast<double>(a >> 11) + 1.0) * 0x1p-53));
    return radius * cos(6.283185307179586476925 * (static_cast<double>(b >> 11) * 0x1p-53));
}

template <class T>
__global__ void normal_kernel(T *x, layout l, double std, uint64_t seed, uint64_t stream, int64_t count) {
    for (int64_t i = first_element(); i < count; i += element_step()) {
        x[place_of(l, i)] = from_float<T>(static_cast<float>(std * normal_of(seed, stream, static_cast<uint64_t>(i))));
    }
}

template <class From, class To> enum status copy_as(const struct ops *ops, struct tensor from, struct tensor to) {
    const int64_t count = tensor_count(to);
    return device_launch(ops, "copy", copy_kernel<From, To>, grid_over(count, THREADS), THREADS, 0, data_of<From>(from),
                         data_of<To>(to), layout_of(from), layout_of(to), count);
}

template <class From> enum status copy_from(const struct ops *ops, struct tensor from, struct tensor to) {
    if (to.dtype == DTYPE_F32) return copy_as<From, float>(ops, from, to);
    if (to.dtype == DTYPE_F64) return copy_as<From, double>(ops, from, to);
    return copy_as<From, bf16>(ops, from, to);
}

/* The same dtype: bits are moved, whatever they stand for. */
enum status copy_bits(const struct ops *ops, struct tensor from, struct tensor to) {
    switch (dtype_size(from.dtype)) {
    case 1:
        return copy_as<uint8_t, uint8_t>(ops, from, to);
    case 2:
        return copy_as<uint16_t, uint16_t>(ops, from, to);
    case 4:
        return copy_as<uint32_t, uint32_t>(ops, from, to);
    default:
        return copy_as<uint64_t, uint64_t>(ops, from, to);
    }
}

/* body(a zero of the tensor's type); x is F32 or BF16 (check_float). */
template <class Body> enum status with_float(struct tensor x, Body body) {
    return x.dtype == DTYPE_BF16 ? body(bf16{}) : body(float{});
}

template <class T> enum status fill_as(const struct ops *ops, struct tensor x, T value) {
    const int64_t count = tensor_count(x);
    return device_launch(ops, "fill", fill_kernel<T>, grid_over(count, THREADS), THREADS, 0, data_of<T>(x),
                         layout_of(x), value, count);
}

} // namespace

enum status cuda_copy(const struct ops *ops, struct tensor from, struct tensor to) {
    TRY(check_copy(from, to));
    if (from.dtype == to.dtype && tensor_is_contiguous(from) && tensor_is_contiguous(to)) {
        if (from.data == to.data || tensor_bytes(to) == 0) return STATUS_OK;
        return cuda_status(
            cudaMemcpyAsync(to.data, from.data, tensor_bytes(to), cudaMemcpyDeviceToDevice, ops->device->stream),
            "copy");
    }
    if (from.dtype == to.dtype) return copy_bits(ops, from, to);
    if (from.dtype == DTYPE_F32) return copy_from<float>(ops, from, to);
    if (from.dtype == DTYPE_F64) return copy_from<double>(ops, from, to);
    return copy_from<bf16>(ops, from, to);
}

enum status cuda_fill(const struct ops *ops, struct tensor x, double value) {
    if (!tensor_present(x)) return error_set(STATUS_SHAPE, "fill: x: expected a tensor, found nothing");
    TRY(check_tensor("fill", "x", x, x.dtype, x.rank, x.shape));
    switch (x.dtype) {
    case DTYPE_F32:
        return fill_as(ops, x, static_cast<float>(value));
    case DTYPE_F64:
        return fill_as(ops, x, value);
    case DTYPE_BF16:
        return fill_as(ops, x, bf16(static_cast<float>(value)));
    case DTYPE_I32:
        return fill_as(ops, x, static_cast<int32_t>(value));
    default:
        return error_set(STATUS_SHAPE, "fill: x: expected f32, f64, bf16 or i32, found %s", dtype_name(x.dtype));
    }
}

enum status cuda_add_scaled(const struct ops *ops, double alpha, struct tensor x, struct tensor y) {
    TRY(check_float(ops, "add_scaled", "x", x));
    TRY(check_same("add_scaled", x, y));
    const int64_t count = tensor_count(x);
    return with_float(x, [&](auto zero) {
        using T = decltype(zero);
        return device_launch(ops, "add_scaled", add_scaled_kernel<T>, grid_over(count, THREADS), THREADS, 0,
                             data_of<T>(x), data_of<T>(y), layout_of(x), layout_of(y), static_cast<float>(alpha),
                             count);
    });
}

enum status cuda_scale(const struct ops *ops, double alpha, struct tensor x) {
    TRY(check_float(ops, "scale", "x", x));
    const int64_t count = tensor_count(x);
    return with_float(x, [&](auto zero) {
        using T = decltype(zero);
        return device_launch(ops, "scale", scale_kernel<T>, grid_over(count, THREADS), THREADS, 0, data_of<T>(x),
                             layout_of(x), static_cast<float>(alpha), count);
    });
}

enum status cuda_fill_normal(const struct ops *ops, struct tensor x, double std, uint64_t seed, uint64_t stream) {
    TRY(check_float(ops, "fill_normal", "x", x));
    const int64_t count = tensor_count(x);
    return with_float(x, [&](auto zero) {
        using T = decltype(zero);
        return device_launch(ops, "fill_normal", normal_kernel<T>, grid_over(count, THREADS), THREADS, 0, data_of<T>(x),
                             layout_of(x), std, seed, stream, count);
    });
}
