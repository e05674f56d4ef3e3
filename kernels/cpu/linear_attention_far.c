/* The far part of a chunk: features of its keys, weights of its pairs, the state of earlier chunks. */
#include "kernels/cpu/linear_attention_internal.h"

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void NAME(linear_chunk)(struct linear_unit *u, int64_t first) {
    u->first = first;
    u->count = least(u->call->chunk, u->end - first);
    u->far_first = first - u->window > 0 ? first - u->window : 0;
    u->far_count = first + u->count - u->window - u->far_first;
    if (u->far_count < 0 || u->call->a->near_only) u->far_count = 0;
    u->near_first = first - u->window + 1 > 0 ? first - u->window + 1 : 0;
    u->near_count = u->window > 0 ? first + u->count - u->near_first : 0;
}

/* Weights of row f's pairs: e^{a_j − P} for the keys of its document up to its own. */
static void row_weights(const struct linear_unit *u, int64_t f) {
    const struct linear_worker *w = u->worker;
    const int64_t pad = u->call->chunk_pad, t = u->far_first + f;
    const int64_t lo = u->start[t] > u->far_first ? u->start[t] - u->far_first : 0;
    real *row = w->weights + f * pad;
    memset(row, 0, (size_t)pad * sizeof(real));
    if (!w->valid[f]) return;
    const real *peaks = w->peaks + u->far_first, reference = w->prefix[t];
#pragma omp simd
    for (int64_t j = lo; j <= f; j++) row[j] = real_exp(peaks[j] - reference);
}

static void load_values(const struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    NAME(linear_load)(u->far_count, call->width, call->value_pad, u->v, u->far_first, w->va);
    for (int64_t f = 0; f < u->far_count; f++) w->va[f * call->value_pad + call->width] = 1;
}

void NAME(linear_far_keys)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t count = u->far_count, first = u->far_first;
    NAME(linear_features)
    (call, u->k_map, count, u->k.rows + first * u->k.stride, u->k.stride, w->phi_k, w->peaks + first);
    NAME(attention_transpose)(count, call->feature_pad, w->phi_k, call->feature_pad, w->phi_k_t, call->chunk_pad);
    load_values(u);
    if (call->g) NAME(attention_transpose)(count, call->value_pad, w->va, call->value_pad, w->va_t, call->chunk_pad);
    for (int64_t f = 0; f < count; f++) {
        const int64_t t = first + f;
        const real before = u->start[t] < t ? w->prefix[t - 1] : -REAL_INFINITY;
        w->prefix[t] = real_max(before, w->peaks[t]);
        w->valid[f] = u->start[t] == u->start[t + u->window];
        row_weights(u, f);
        const bool carried = w->valid[f] && u->state.live && u->state.start == u->start[t];
        w->factors[f] = carried ? real_exp(u->state.peak - w->prefix[t]) : 0;
    }
}

void NAME(linear_far_all)(struct linear_unit *u) {
    for (int64_t f = 0; f < u->far_count; f++) {
        u->worker->valid[f] = true;
        u->worker->factors[f] = 1;
    }
}

void NAME(linear_far_queries)(struct linear_unit *u, int64_t head, bool gated) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const struct linear_rows q = linear_rows_of(call->a->q, u->b, head);
    const real *rows = q.rows + (u->far_first + u->window) * q.stride,
               constant = linear_beta(call, head) + call->log_scale;
    NAME(linear_features)(call, linear_q_map(call, head), u->far_count, rows, q.stride, w->phi_q, w->q_peaks);
    if (gated && u->gate) NAME(linear_gate_apply)(u, w->phi_q);
    for (int64_t f = 0; f < u->far_count; f++) {
        const real peak = call->a->causal ? w->prefix[u->far_first + f] : u->state.peak;
        w->exponents[f] = w->valid[f] ? constant + w->q_peaks[f] + peak : -REAL_INFINITY;
    }
}

void NAME(linear_pairs)(const struct linear_unit *u, const real *x, int64_t inner, const real *y, real *to) {
    const int64_t pad = u->call->chunk_pad;
    const real *weights = u->worker->weights;
    for (int64_t f = 0; f < u->far_count; f += SUB_ROWS) {
        const int64_t rows = least(SUB_ROWS, u->far_count - f), columns = pad_lanes(f + rows);
        NAME(attention_gemm)(rows, columns, inner, x + f * inner, inner, 1, y, pad, to + f * pad, pad, false);
        for (int64_t r = f; r < f + rows; r++) {
            real *row = to + r * pad;
            const real *weight = weights + r * pad;
            /* Chosen, not multiplied: what a later key makes of the product must not matter even when it overflows. */
#pragma omp simd
            for (int64_t j = 0; j < columns; j++) row[j] = weight[j] > 0 ? row[j] * weight[j] : 0;
        }
    }
}

void NAME(linear_pairs_gather)(const struct linear_unit *u, const real *pairs, const real *rows, int64_t columns,
                               real *to) {
    const int64_t pad = u->call->chunk_pad;
    for (int64_t f = 0; f < u->far_count; f += SUB_ROWS) {
        const int64_t count = least(SUB_ROWS, u->far_count - f);
        NAME(attention_gemm)
        (count, columns, f + count, pairs + f * pad, pad, 1, rows, columns, to + f * columns, columns, true);
    }
}

void NAME(linear_pairs_scatter)(const struct linear_unit *u, const real *pairs, const real *rows, int64_t columns,
                                real *to) {
    const int64_t pad = u->call->chunk_pad;
    for (int64_t f = 0; f < u->far_count; f += SUB_ROWS) {
        const int64_t count = least(SUB_ROWS, u->far_count - f);
        NAME(attention_gemm)
        (f + count, columns, count, pairs + f * pad, 1, pad, rows + f * columns, columns, to, columns, true);
    }
}

void NAME(linear_state_add)(struct linear_unit *u, bool transposed) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, values = call->value_pad, size = features * values;
    const int64_t last = u->far_first + u->far_count - 1;
    const real peak = w->prefix[last];
    real *state = transposed ? w->state_t : w->state;
    if (!u->state.live || u->state.start != u->start[last]) {
        memset(state, 0, (size_t)size * sizeof(real));
    } else if (u->state.peak != peak) {
        const real scale = real_exp(u->state.peak - peak);
        for (int64_t n = 0; n < size; n++) state[n] *= scale;
    }
    u->state = (struct linear_state){.live = true, .start = u->start[last], .peak = peak};
    for (int64_t f = 0; f < u->far_count; f++) {
        const bool belongs = u->start[u->far_first + f] == u->start[last];
        const real weight = belongs ? real_exp(w->peaks[u->far_first + f] - peak) : 0;
        for (int64_t d = 0; d < values; d++) {
            const real value = w->va[f * values + d];
            w->vaw[f * values + d] = belongs ? weight * value : 0;
        }
    }
    if (transposed) NAME(attention_gemm)
    (values, features, u->far_count, w->vaw, 1, values, w->phi_k, features, state, features, true);
    else NAME(attention_gemm)(features, values, u->far_count, w->phi_k_t, call->chunk_pad, 1, w->vaw, values, state,
                              values, true);
}
