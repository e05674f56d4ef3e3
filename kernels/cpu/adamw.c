/* One AdamW step with the proximal step of an absolute-value penalty. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum status NAME(adamw)(const struct ops *ops, const struct adamw *a) {
    TRY(check_adamw(ops, a));
    const real beta1 = (real)a->beta1, beta2 = (real)a->beta2, rest1 = (real)(1 - a->beta1);
    const real rest2 = (real)(1 - a->beta2), grad_scale = (real)a->grad_scale, epsilon = (real)a->epsilon;
    const real rate = (real)(a->lr / (1 - pow(a->beta1, (double)a->step)));
    const real correction = (real)(1 / sqrt(1 - pow(a->beta2, (double)a->step)));
    const real decay = (real)(a->lr * a->decay), lr = (real)a->lr, l1 = (real)(a->lr * a->l1);
    struct pieces p = pieces_of(a->value, true);
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(a->value) > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        real *restrict x = real_data(a->value) + i * PIECE, *restrict m = real_data(a->m) + i * PIECE;
        real *restrict v = real_data(a->v) + i * PIECE;
        const real *restrict grad = real_data(a->grad) + i * PIECE;
        int64_t n = piece_width(&p, i);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            real g = grad_scale * grad[j];
            m[j] = beta1 * m[j] + rest1 * g;
            v[j] = beta2 * v[j] + rest2 * (g * g);
            x[j] = x[j] - rate * m[j] / (real_sqrt(v[j]) * correction + epsilon) - decay * x[j];
        }
        if (l1 > 0) {
            for (int64_t j = 0; j < n; j++) {
                real size = real_sqrt(v[j]) * correction + epsilon;
                real threshold = l1 / size, most = rate * real_abs(m[j]) / size + lr;
                size = real_abs(x[j]) - (threshold < most ? threshold : most);
                x[j] = size > 0 ? (x[j] < 0 ? -size : size) : (x[j] == x[j] ? 0 : x[j]);
            }
        }
    }
    return STATUS_OK;
}
