/* One AdamW step with the proximal step of an absolute-value penalty. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

struct update {
    real beta1, beta2, rest1, rest2, grad_scale, epsilon, rate, correction, decay, lr, l1;
};

static void update_piece(const struct update *u, const real *restrict grad, real *restrict x, real *restrict m,
                         real *restrict v, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        real g = u->grad_scale * grad[j];
        m[j] = u->beta1 * m[j] + u->rest1 * g;
        v[j] = u->beta2 * v[j] + u->rest2 * (g * g);
        x[j] = x[j] - u->rate * m[j] / (real_sqrt(v[j]) * u->correction + u->epsilon) - u->decay * x[j];
    }
    if (!(u->l1 > 0)) return;
    for (int64_t j = 0; j < n; j++) {
        real size = real_sqrt(v[j]) * u->correction + u->epsilon;
        real threshold = u->l1 / size, most = u->rate * real_abs(m[j]) / size + u->lr;
        size = real_abs(x[j]) - (threshold < most ? threshold : most);
        x[j] = size > 0 ? (x[j] < 0 ? -size : size) : (x[j] == x[j] ? 0 : x[j]);
    }
}

static void update_part(const struct ops *ops, const struct adamw *a, const struct param_part *part, struct update u) {
    struct pieces p = pieces_of(tensor_rows(a->value, part->first, part->count), true);
    u.decay = (real)(a->lr * part->decay);
    u.l1 = (real)(a->lr * part->l1);
#pragma omp parallel for num_threads(ops->device->threads) if (part->count > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < p.count; i++) {
        const int64_t at = part->first + i * PIECE, n = piece_width(&p, i);
        update_piece(&u, real_data(a->grad) + at, real_data(a->value) + at, real_data(a->m) + at, real_data(a->v) + at,
                     n);
        if (tensor_present(a->working)) {
            memcpy(real_data(a->working) + at, real_data(a->value) + at, (size_t)n * sizeof(real));
        }
    }
}

enum status NAME(adamw)(const struct ops *ops, const struct adamw *a) {
    TRY(check_adamw(ops, a));
    const struct update u = {
        .beta1 = (real)a->beta1,
        .beta2 = (real)a->beta2,
        .rest1 = (real)(1 - a->beta1),
        .rest2 = (real)(1 - a->beta2),
        .grad_scale = (real)a->grad_scale,
        .epsilon = (real)a->epsilon,
        .rate = (real)(a->lr / (1 - pow(a->beta1, (double)a->step))),
        .correction = (real)(1 / sqrt(1 - pow(a->beta2, (double)a->step))),
        .lr = (real)a->lr,
    };
    for (int64_t p = 0; p < a->part_count; p++) update_part(ops, a, &a->parts[p], u);
    return STATUS_OK;
}
