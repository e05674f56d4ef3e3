/* One AdamW step with the proximal step of an absolute-value penalty: one read and one write of each element. */
#include "kernels/cuda/rows.cuh"

#include <cmath>

namespace {

constexpr int threads = 256;

struct adamw_step {
    float *value, *m, *v; /* [n] */
    const float *grad;    /* [n] */
    int64_t n;
    float beta1, beta2, rest1, rest2, grad_scale, epsilon, rate, correction, decay, lr, l1;
};

/* One element; the order of operations is the CPU's (kernels/cpu/adamw.c). */
__device__ inline void update(const adamw_step &a, float grad, float &x, float &m, float &v) {
    const float g = a.grad_scale * grad;
    m = a.beta1 * m + a.rest1 * g;
    v = a.beta2 * v + a.rest2 * (g * g);
    const float size = sqrtf(v) * a.correction + a.epsilon;
    x = x - a.rate * m / size - a.decay * x;
    if (a.l1 > 0) {
        const float threshold = a.l1 / size, most = a.rate * fabsf(m) / size + a.lr;
        const float left = fabsf(x) - (threshold < most ? threshold : most);
        x = left > 0 ? (x < 0 ? -left : left) : (x == x ? 0 : x);
    }
}

/* W elements a thread; the last ones one by one. */
template <int W> __global__ void __launch_bounds__(threads) adamw_kernel(adamw_step a) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * threads * W;
    int64_t i = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) * W;
    for (; i + W <= a.n; i += step) {
        float x[W], m[W], v[W], grad[W];
        load_pack(a.value + i, x);
        load_pack(a.m + i, m);
        load_pack(a.v + i, v);
        load_pack(a.grad + i, grad);
#pragma unroll
        for (int k = 0; k < W; k++) update(a, grad[k], x[k], m[k], v[k]);
        store_pack(a.value + i, x);
        store_pack(a.m + i, m);
        store_pack(a.v + i, v);
    }
    for (; i < a.n; i++) update(a, a.grad[i], a.value[i], a.m[i], a.v[i]); /* fewer than W are left */
}

} // namespace

enum status cuda_adamw(const struct ops *ops, const struct adamw *a) {
    TRY(check_adamw(ops, a));
    adamw_step s = {};
    s.value = data_of<float>(a->value);
    s.m = data_of<float>(a->m);
    s.v = data_of<float>(a->v);
    s.grad = data_of<const float>(a->grad);
    s.n = tensor_count(a->value);
    s.beta1 = static_cast<float>(a->beta1);
    s.beta2 = static_cast<float>(a->beta2);
    s.rest1 = static_cast<float>(1 - a->beta1);
    s.rest2 = static_cast<float>(1 - a->beta2);
    s.grad_scale = static_cast<float>(a->grad_scale);
    s.epsilon = static_cast<float>(a->epsilon);
    s.rate = static_cast<float>(a->lr / (1 - std::pow(a->beta1, static_cast<double>(a->step))));
    s.correction = static_cast<float>(1 / std::sqrt(1 - std::pow(a->beta2, static_cast<double>(a->step))));
    s.decay = static_cast<float>(a->lr * a->decay);
    s.lr = static_cast<float>(a->lr);
    s.l1 = static_cast<float>(a->lr * a->l1);
    const bool packed = in_packs(s.value, 0) && in_packs(s.m, 0) && in_packs(s.v, 0) && in_packs(s.grad, 0);
    return with_width<float>(packed, [&](auto pack) {
        constexpr int W = decltype(pack)::value;
        return device_launch(ops, "adamw", adamw_kernel<W>, grid_over(s.n, threads * W), threads, 0, s);
    });
}
