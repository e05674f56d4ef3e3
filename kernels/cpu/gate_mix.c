/* Branches weighed by gates, and back. */
#include "kernels/cpu/blocks.h"

/* The factor of branch m in one head, from that head's logits; *slope: its derivative by the logit that it reads. */
static real gate(const struct gate_mix *a, const real *logits, int m, real *slope) {
    const real g = real_sigmoid(logits[a->complement ? 0 : m]), s = g * (1 - g);
    *slope = a->complement && m == 0 ? -s : s;
    return a->complement && m == 0 ? 1 - g : g;
}

static const real *logits_of(const struct gate_mix *a, struct tensor logits, int64_t b, int64_t t, int64_t h) {
    const int64_t columns = a->complement ? 1 : a->count;
    return real_data(logits) + (b * logits.shape[1] + t) * logits.shape[2] + h * columns;
}

static real *row_of(struct tensor x, int64_t b, int64_t t, int64_t h) {
    return real_data(x) + b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
}

enum status NAME(gate_mix)(const struct ops *ops, const struct gate_mix *a) {
    TRY(check_gate_mix(ops, a));
    const int64_t length = a->o.shape[1], heads = a->o.shape[2], width = a->o.shape[3];
#pragma omp parallel for num_threads(ops->device->threads)
    for (int64_t n = 0; n < a->o.shape[0] * length; n++)
        for (int64_t h = 0; h < heads; h++) {
            real *o = row_of(a->o, n / length, n % length, h), slope;
            const real *logits = logits_of(a, a->logits, n / length, n % length, h);
            for (int64_t d = 0; d < width; d++) o[d] = 0;
            for (int m = 0; m < a->count; m++)
                if (tensor_present(a->branches[m]))
                    real_axpy(gate(a, logits, m, &slope), row_of(a->branches[m], n / length, n % length, h), o, width);
        }
    return STATUS_OK;
}

enum status NAME(gate_mix_backward)(const struct ops *ops, const struct gate_mix_backward *g) {
    TRY(check_gate_mix_backward(ops, g));
    const struct gate_mix *a = &g->forward;
    const int64_t length = a->o.shape[1], heads = a->o.shape[2], width = a->o.shape[3];
    const int64_t columns = a->complement ? 1 : a->count;
#pragma omp parallel for num_threads(ops->device->threads)
    for (int64_t n = 0; n < a->o.shape[0] * length; n++)
        for (int64_t h = 0; h < heads; h++) {
            const int64_t b = n / length, t = n % length;
            const real *logits = logits_of(a, a->logits, b, t, h), *d_o = row_of(g->d_o, b, t, h);
            real *dlogits = (real *)(uintptr_t)logits_of(a, g->dlogits, b, t, h), slope;
            for (int64_t m = 0; m < columns; m++) dlogits[m] = 0;
            for (int m = 0; m < a->count; m++) {
                const real factor = gate(a, logits, m, &slope);
                if (tensor_present(a->branches[m]))
                    dlogits[a->complement ? 0 : m] += slope * real_dot(d_o, row_of(a->branches[m], b, t, h), width);
                if (!tensor_present(g->d_branches[m])) continue;
                real *d = row_of(g->d_branches[m], b, t, h);
                for (int64_t e = 0; e < width; e++) d[e] = factor * d_o[e];
            }
        }
    return STATUS_OK;
}
