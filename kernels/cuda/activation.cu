/* Backward of GELU; SwiGLU both ways; rotary positions. */
#include "kernels/cuda/rows.cuh"

namespace {

constexpr int threads = 256;

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* The slope of x·sigmoid(2u), u = √(2/π)·(x + 0.044715 x³); (1 + tanh u)/2 = sigmoid(2u). */
__device__ inline float gelu_slope(float x) {
    const float square = x * x;
    const float s = sigmoid(x * (1.5957691216057308f + 0.071354816272600252f * square));
    return s + x * (1.5957691216057308f + 0.21406444881780076f * square) * (s * (1 - s));
}

/* dx [n] = dy · gelu'(pre); dx may be dy. W elements a thread; the last ones one by one. */
template <class T, int W>
__global__ void __launch_bounds__(threads) gelu_backward_kernel(const T *dy, const T *pre, T *dx, int64_t n) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * threads * W;
    int64_t i = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * W;
    for (; i + W <= n; i += step) {
        float d[W], x[W];
        load_pack(dy + i, d);
        load_pack(pre + i, x);
#pragma unroll
        for (int k = 0; k < W; k++) d[k] *= gelu_slope(x[k]);
        store_pack(dx + i, d);
    }
    for (; i < n; i++) dx[i] = from_float<T>(to_float(dy[i]) * gelu_slope(to_float(pre[i]))); /* fewer than W are left */
}

/* y [rows,width] = silu(x[:, :width]) · x[:, width:]. Rows along blockIdx.y; W divides the width. */
template <class T, int W>
__global__ void __launch_bounds__(threads) swiglu_kernel(const T *x, T *y, int64_t rows, int64_t width) {
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * W;
    if (column >= width) return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float gate[W], up[W];
        load_pack(x + row * 2 * width + column, gate);
        load_pack(x + row * 2 * width + width + column, up);
#pragma unroll
        for (int k = 0; k < W; k++) gate[k] = gate[k] * sigmoid(gate[k]) * up[k];
        store_pack(y + row * width + column, gate);
    }
}

/* dx [rows,2·width] from dy [rows,width] and x [rows,2·width]; dx may be x. Rows along blockIdx.y; W divides the width. */
template <class T, int W>
__global__ void __launch_bounds__(threads)
    swiglu_backward_kernel(const T *dy, const T *x, T *dx, int64_t rows, int64_t width) {
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * W;
    if (column >= width) return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const int64_t at = row * 2 * width + column;
        float d[W], gate[W], up[W];
        load_pack(dy + row * width + column, d);
        load_pack(x + at, gate);
        load_pack(x + at + width, up);
#pragma unroll
        for (int k = 0; k < W; k++) {
            const float g = gate[k], s = sigmoid(g);
            gate[k] = d[k] * up[k] * (s + g * (s * (1 - s)));
            up[k] = d[k] * (g * s);
        }
        store_pack(dx + at, gate);
        store_pack(dx + at + width, up);
    }
}

template <class T> struct rope_heads {
    T *x; /* [batch,length,heads,2·half], these strides, the last 1 */
    const int32_t *positions; /* [batch,length] */
    const float *frequencies; /* [half] */
    int64_t rows, length, heads, half;
    int64_t of_batch, of_row, of_head; /* strides */
    float sign;
};

/* The angle loses its whole turns in double precision: positions reach a million, where a float's angle is off by a sixteenth of a
 * radian. Within half a turn float is exact enough. */
__device__ inline void cosine_sine(int32_t position, float frequency, float &cosine, float &sine) {
    const double turns = static_cast<double>(position) * static_cast<double>(frequency) * 0.15915494309189533577;
    sincosf(static_cast<float>((turns - rint(turns)) * 6.28318530717958647693), &sine, &cosine);
}

/* A thread has W pairs of one token in every gridDim.y-th head: cosines and sines are computed once for all heads. W divides half. */
template <class T, int W> __global__ void __launch_bounds__(threads) rope_kernel(rope_heads<T> a) {
    const int64_t packs = a.half / W;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < a.rows * packs;
         i += static_cast<int64_t>(gridDim.x) * threads) {
        const int64_t row = i / packs, d = i % packs * W;
        T *low = a.x + row / a.length * a.of_batch + row % a.length * a.of_row + d;
        float cosine[W], sine[W];
#pragma unroll
        for (int k = 0; k < W; k++) {
            cosine_sine(a.positions[row], a.frequencies[d + k], cosine[k], sine[k]);
            sine[k] *= a.sign;
        }
        for (int64_t head = blockIdx.y; head < a.heads; head += gridDim.y) {
            float u[W], v[W];
            load_pack(low + head * a.of_head, u);
            load_pack(low + head * a.of_head + a.half, v);
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float x = u[k], y = v[k];
                u[k] = x * cosine[k] - y * sine[k];
                v[k] = y * cosine[k] + x * sine[k];
            }
            store_pack(low + head * a.of_head, u);
            store_pack(low + head * a.of_head + a.half, v);
        }
    }
}

/* A block row for each row, as far as a grid goes. */
dim3 grid_of_rows(int64_t rows, int64_t width, int each) {
    dim3 grid = grid_over(width, static_cast<int64_t>(threads) * each);
    grid.y = static_cast<unsigned>(rows < 65535 ? rows : 65535);
    return grid;
}

} // namespace

enum status cuda_gelu_backward(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx) {
    TRY(check_gelu_backward(ops, dy, pre, dx));
    const int64_t n = tensor_count(dx);
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const T *gradient = data_of<const T>(dy), *before = data_of<const T>(pre);
        T *out = data_of<T>(dx);
        return with_width<T>(in_packs(gradient, 0) && in_packs(before, 0) && in_packs(out, 0), [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            return device_launch(ops, "gelu_backward", gelu_backward_kernel<T, W>, grid_over(n, threads * W), threads, 0, gradient,
                                 before, out, n);
        });
    });
}

enum status cuda_swiglu(const struct ops *ops, struct tensor x, struct tensor y) {
    TRY(check_swiglu(ops, x, y));
    const int64_t rows = y.shape[0], width = y.shape[1];
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const T *both = data_of<const T>(x);
        T *out = data_of<T>(y);
        return with_width<T>(in_packs(both, width) && in_packs(out, width), [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            return device_launch(ops, "swiglu", swiglu_kernel<T, W>, grid_of_rows(rows, width, W), threads, 0, both, out, rows,
                                 width);
        });
    });
}

enum status cuda_swiglu_backward(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx) {
    TRY(check_swiglu_backward(ops, dy, x, dx));
    const int64_t rows = dy.shape[0], width = dy.shape[1];
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const T *gradient = data_of<const T>(dy), *both = data_of<const T>(x);
        T *out = data_of<T>(dx);
        const bool packed = in_packs(gradient, width) && in_packs(both, width) && in_packs(out, width);
        return with_width<T>(packed, [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            return device_launch(ops, "swiglu_backward", swiglu_backward_kernel<T, W>, grid_of_rows(rows, width, W), threads, 0,
                                 gradient, both, out, rows, width);
        });
    });
}

enum status cuda_rope(const struct ops *ops, const struct rope *a) {
    TRY(check_rope(ops, a));
    const struct tensor *x = &a->x;
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const rope_heads<T> heads = {data_of<T>(*x),
                                     data_of<const int32_t>(a->positions),
                                     data_of<const float>(a->frequencies),
                                     x->shape[0] * x->shape[1],
                                     x->shape[1],
                                     x->shape[2],
                                     x->shape[3] / 2,
                                     x->stride[0],
                                     x->stride[1],
                                     x->stride[2],
                                     a->inverse ? -1.0f : 1.0f};
        const bool packed = in_packs(heads.x, heads.of_batch) && in_packs(heads.x, heads.of_row) &&
                            in_packs(heads.x, heads.of_head) && heads.half % pack_width<T> == 0;
        return with_width<T>(packed, [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            dim3 grid = grid_over(heads.rows * (heads.half / W), threads);
            /* A few tokens (decoding) would leave most of the device idle: their heads are divided. */
            const int64_t busy = divide_up(4 * ops->device->multiprocessors, grid.x > 0 ? grid.x : 1);
            const int64_t groups = heads.heads < busy ? heads.heads : busy;
            grid.y = static_cast<unsigned>(groups < 65535 ? groups : 65535);
            return device_launch(ops, "rope", rope_kernel<T, W>, grid, threads, 0, heads);
        });
    });
}
