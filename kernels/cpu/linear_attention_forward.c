/* The forward pass of one unit, chunk by chunk. */
#include "kernels/cpu/linear_attention_internal.h"

/* far [C][Vp]: numerators and normalisers of the far rows, relative to their exponents. */
static void far_rows(struct linear_unit *u, int64_t head) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, values = call->value_pad;
    NAME(linear_far_queries)(u, head, true);
    if (u->state.live) NAME(attention_gemm)
    (u->far_count, values, features, w->phi_q, features, 1, w->state, values, w->far, values, false);
    for (int64_t f = 0; f < u->far_count; f++)
        for (int64_t d = 0; d < values; d++) {
            real *x = &w->far[f * values + d];
            *x = w->factors[f] > 0 ? *x * w->factors[f] : 0;
        }
    if (!call->a->causal) return;
    NAME(linear_pairs)(u, w->phi_q, features, w->phi_k_t, w->pairs);
    NAME(linear_pairs_gather)(u, w->pairs, w->va, values, w->far);
}

/* to = the parts of one row, each with its share of the normaliser; *log_sum: its logarithm. */
static void finish_row(const struct linear_unit *u, int64_t r, real *to, real *log_sum) {
    const struct linear_call *call = u->call;
    const struct linear_worker *w = u->worker;
    const int64_t width = call->width, f = r - linear_far_offset(u);
    const real *far = NULL, *near = u->window > 0 ? w->near + r * call->value_pad : NULL;
    if (f >= 0 && f < u->far_count && w->valid[f]) far = w->far + f * call->value_pad;
    if (far && !(far[width] > TINY)) far = NULL;
    const real far_log = far ? w->exponents[f] + real_log(far[width]) : -REAL_INFINITY;
    const real near_log = near ? w->near_peaks[r] + real_log(near[width]) : -REAL_INFINITY;
    const real most = real_max(far_log, near_log);
    for (int64_t d = 0; d < width; d++) to[d] = 0;
    *log_sum = -REAL_INFINITY;
    if (!far && !near) return;
    *log_sum = most + real_log(real_exp(far_log - most) + real_exp(near_log - most));
    if (far) real_axpy(real_exp(far_log - *log_sum) / far[width], far, to, width);
    if (near) real_axpy(real_exp(near_log - *log_sum) / near[width], near, to, width);
}

static void all_rows(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    if (u->gate) NAME(linear_gate_forward)(u);
    if (u->near_count > 0) NAME(linear_near_keys)(u, false);
    for (int64_t member = 0; member < call->share; member++) {
        const int64_t head = u->group * call->share + member;
        const struct linear_rows o = linear_rows_of(call->a->o, u->b, head);
        real *log_sums = real_data(call->a->log_sums) + (u->b * call->heads + head) * call->length + u->first;
        if (u->far_count > 0) far_rows(u, head);
        if (u->near_count > 0) NAME(linear_near_forward)(u, head);
        for (int64_t r = 0; r < u->count; r++) finish_row(u, r, o.rows + (u->first + r) * o.stride, &log_sums[r]);
    }
}

void NAME(linear_forward_unit)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    if (call->a->causal) {
        for (int64_t first = 0; first < call->length; first += call->chunk) {
            NAME(linear_chunk)(u, first);
            if (u->far_count > 0) NAME(linear_far_keys)(u);
            all_rows(u);
            if (u->far_count > 0) NAME(linear_state_add)(u, false);
        }
        return;
    }
    for (int64_t begin = 0; begin < call->length; begin = u->end) {
        u->end = call->ends[u->b * call->length + begin];
        for (int64_t first = begin; first < u->end; first += call->chunk) {
            NAME(linear_chunk)(u, first);
            NAME(linear_far_keys)(u);
            NAME(linear_state_add)(u, false);
        }
        for (int64_t first = begin; first < u->end; first += call->chunk) {
            NAME(linear_chunk)(u, first);
            NAME(linear_far_all)(u);
            all_rows(u);
        }
    }
}
