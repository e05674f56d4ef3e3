/* One AdamW step with the proximal step of an absolute-value penalty, over all parts at once: one read and one write of
 * each element, and the copy that operations read written beside it. */
#include "kernels/cuda/parts.cuh"

#include <cmath>

namespace {

constexpr int threads = 256;

template <class T> struct adamw_step {
    float *value, *m, *v; /* [n] */
    const float *grad;    /* [n] */
    T *working;           /* [n] or NULL */
    float beta1, beta2, rest1, rest2, grad_scale, epsilon, rate, correction, lr;
};

/* One element; the order of operations is the CPU's (kernels/cpu/adamw.c). decay, l1: times lr. */
template <class T>
__device__ inline void update(const adamw_step<T> &a, float decay, float l1, float grad, float &x, float &m, float &v) {
    const float g = a.grad_scale * grad;
    m = a.beta1 * m + a.rest1 * g;
    v = a.beta2 * v + a.rest2 * (g * g);
    const float size = sqrtf(v) * a.correction + a.epsilon;
    x = x - a.rate * m / size - decay * x;
    if (l1 > 0) {
        const float threshold = l1 / size, most = a.rate * fabsf(m) / size + a.lr;
        const float left = fabsf(x) - (threshold < most ? threshold : most);
        x = left > 0 ? (x < 0 ? -left : left) : (x == x ? 0 : x);
    }
}

/* W neighbours, the first of them at i. */
template <class T, int W> __device__ inline void update_pack(const adamw_step<T> &a, float decay, float l1, int64_t i) {
    float x[W], m[W], v[W], grad[W];
    load_pack(a.value + i, x);
    load_pack(a.m + i, m);
    load_pack(a.v + i, v);
    load_pack(a.grad + i, grad);
#pragma unroll
    for (int k = 0; k < W; k++) update(a, decay, l1, grad[k], x[k], m[k], v[k]);
    store_pack(a.value + i, x);
    store_pack(a.m + i, m);
    store_pack(a.v + i, v);
    if (a.working) store_pack(a.working + i, x);
}

/* packed: the tensors begin at multiples of 16 bytes, so that element i does when i is a multiple of 4. */
template <class T>
__global__ void __launch_bounds__(threads) adamw_kernel(adamw_step<T> a, part_list list, bool packed) {
    int part;
    int64_t first;
    const int64_t count = find_piece(list, blockIdx.x, &part, &first);
    const float decay = a.lr * list.decay[part], l1 = a.lr * list.l1[part];
    int64_t done = 0;
    if (packed && first % 4 == 0) {
        for (int64_t i = threadIdx.x * 4; i + 4 <= count; i += threads * 4) update_pack<T, 4>(a, decay, l1, first + i);
        done = count / 4 * 4;
    }
    for (int64_t i = done + threadIdx.x; i < count; i += threads) update_pack<T, 1>(a, decay, l1, first + i);
}

template <class T> bool at_pack(const T *data) {
    return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
}

template <class T> enum status step(const struct ops *ops, const struct adamw *a) {
    adamw_step<T> s = {};
    s.value = data_of<float>(a->value);
    s.m = data_of<float>(a->m);
    s.v = data_of<float>(a->v);
    s.grad = data_of<const float>(a->grad);
    s.working = tensor_present(a->working) ? data_of<T>(a->working) : nullptr;
    s.beta1 = static_cast<float>(a->beta1);
    s.beta2 = static_cast<float>(a->beta2);
    s.rest1 = static_cast<float>(1 - a->beta1);
    s.rest2 = static_cast<float>(1 - a->beta2);
    s.grad_scale = static_cast<float>(a->grad_scale);
    s.epsilon = static_cast<float>(a->epsilon);
    s.rate = static_cast<float>(a->lr / (1 - std::pow(a->beta1, static_cast<double>(a->step))));
    s.correction = static_cast<float>(1 / std::sqrt(1 - std::pow(a->beta2, static_cast<double>(a->step))));
    s.lr = static_cast<float>(a->lr);
    const bool packed = at_pack(s.value) && at_pack(s.m) && at_pack(s.v) && at_pack(s.grad) && at_pack(s.working);
    return for_parts(a->parts, a->part_count, [&](const part_list &list, int64_t) {
        return device_launch(ops, "adamw", adamw_kernel<T>, grid_over(list.blocks[list.parts], 1), threads, 0, s, list,
                             packed);
    });
}

} // namespace

enum status cuda_adamw(const struct ops *ops, const struct adamw *a) {
    TRY(check_adamw(ops, a));
    return with_real(ops, [&](auto zero) { return step<decltype(zero)>(ops, a); });
}
