/* Squeeze and excite: e_i = 2σ(excite · relu(squeeze · p_i)) from the mean p_i of the document's key features so far.
 */
#include "kernels/cpu/linear_attention_internal.h"

void NAME(linear_gate_forward)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, hidden = call->hidden_pad;
    NAME(linear_features)
    (call, u->k_map, u->count, u->k.rows + u->first * u->k.stride, u->k.stride, w->phi_x, w->near_peaks);
    for (int64_t r = 0; r < u->count; r++) {
        const int64_t i = u->first + r;
        const real inverse = 1 / (real)(i - u->start[i] + 1);
        const real *phi = w->phi_x + r * features;
        real *mean = w->means + r * features;
        if (u->start[i] == i) memset(w->running, 0, (size_t)features * sizeof(real));
        for (int64_t m = 0; m < features; m++) {
            w->running[m] += phi[m];
            mean[m] = inverse * w->running[m];
        }
    }
    NAME(attention_gemm)
    (u->count, hidden, features, w->means, features, 1, u->gate->squeeze_t, hidden, w->hidden, hidden, false);
    for (int64_t n = 0; n < u->count * hidden; n++) w->hidden[n] = w->hidden[n] > 0 ? w->hidden[n] : 0;
    NAME(attention_gemm)
    (u->count, features, call->hidden, w->hidden, hidden, 1, u->gate->excite_t, features, w->gates, features, false);
#pragma omp simd
    for (int64_t n = 0; n < u->count * features; n++) w->gates[n] = 2 * real_sigmoid(w->gates[n]);
}

void NAME(linear_gate_apply)(const struct linear_unit *u, real *phi) {
    const int64_t features = u->call->feature_pad;
    const real *gates = u->worker->gates + linear_far_offset(u) * features;
    for (int64_t n = 0; n < u->far_count * features; n++) phi[n] *= gates[n];
}

void NAME(linear_gate_backward)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, hidden = call->hidden_pad;
    real *d = w->d_gates, *d_hidden = w->d_hidden + u->first * hidden;
    for (int64_t n = 0; n < u->count * features; n++) d[n] *= w->gates[n] * (1 - w->gates[n] / 2);
    NAME(attention_gemm)
    (u->count, hidden, features, d, features, 1, u->gate->excite, hidden, d_hidden, hidden, false);
    for (int64_t n = 0; n < u->count * hidden; n++) d_hidden[n] = w->hidden[n] > 0 ? d_hidden[n] : 0;
    if (u->sums->excite_t) NAME(attention_gemm)
    (call->hidden, features, u->count, w->hidden, 1, hidden, d, features, u->sums->excite_t, features, true);
    if (u->sums->squeeze) NAME(attention_gemm)
    (call->hidden, features, u->count, d_hidden, 1, hidden, w->means, features, u->sums->squeeze, features, true);
}

void NAME(linear_gate_tail)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, hidden = call->hidden_pad;
    NAME(attention_gemm)
    (u->count, features, call->hidden, w->d_hidden + u->first * hidden, hidden, 1, u->gate->squeeze, features, w->d_phi,
     features, false);
    for (int64_t r = u->count - 1; r >= 0; r--) {
        const int64_t i = u->first + r;
        const real inverse = 1 / (real)(i - u->start[i] + 1);
        real *d = w->d_phi + r * features;
        for (int64_t m = 0; m < features; m++) {
            w->running[m] += inverse * d[m];
            d[m] = w->running[m];
        }
        if (u->start[i] == i) memset(w->running, 0, (size_t)features * sizeof(real));
    }
    NAME(linear_load)(u->count, call->width, call->width_pad, u->k, u->first, w->x_k);
    NAME(linear_features_backward)
    (call, u->k_map, u->count, w->x_k, w->phi_x, w->d_phi, w->dk + u->first * call->width_pad, u->sums->k_map,
     u->sums->k_bias);
}
