/* The backward pass of one unit. With W_ij the weights over their sum and g_i = [do_i, −do_i·o_i], dW_ij = g_i·[v_j,
 * 1]: forwards, with the state of earlier keys: dφ_q(i) = Σ_j e^{a_j − P_i} (G_i·[v_j, 1]) φ_k(j), then dq and its
 * map's gradient; backwards, with a state of later rows R = Σ_i e^{−P_i} φ_q(i) G_iᵀ: dφ_k(j) = e^{a_j} R [v_j, 1],
 * dv_j = e^{a_j} Rᵀ φ_k(j), G_i = e^{exponent − log sum} g_i. Later rows have a larger P: R is kept relative to the
 * chunk's last, so that every exponent stays below 0. Stabilisers are constants: they cancel. */
#include "kernels/cpu/linear_attention_internal.h"

/* x, d_rows, log_sums of a query head's rows. */
static void load_head(struct linear_unit *u, int64_t head) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t values = call->value_pad, width = call->width;
    const struct linear_rows o = linear_rows_of(call->a->o, u->b, head);
    NAME(linear_load)(u->count, width, call->width_pad, linear_rows_of(call->a->q, u->b, head), u->first, w->x);
    NAME(linear_load)(u->count, width, values, linear_rows_of(call->g->d_o, u->b, head), u->first, w->d_rows);
    w->log_sums = real_data(call->a->log_sums) + (u->b * call->heads + head) * call->length;
    for (int64_t r = 0; r < u->count; r++) {
        real *row = w->d_rows + r * values;
        row[width] = -real_dot(row, o.rows + (u->first + r) * o.stride, width);
    }
}

/* d_far = e^{exponent − log sum} · d_rows. */
static void scale_far(struct linear_unit *u) {
    struct linear_worker *w = u->worker;
    const int64_t values = u->call->value_pad, offset = linear_far_offset(u);
    for (int64_t f = 0; f < u->far_count; f++) {
        const real scale = linear_far_scale(w->exponents[f] - w->log_sums[u->far_first + u->window + f]);
        for (int64_t d = 0; d < values; d++) w->d_far[f * values + d] = scale * w->d_rows[(offset + f) * values + d];
    }
}

/* d_scaled = factor · d_far. */
static void weigh_far(struct linear_unit *u, const real *factors) {
    struct linear_worker *w = u->worker;
    const int64_t values = u->call->value_pad;
    for (int64_t f = 0; f < u->far_count; f++)
        for (int64_t d = 0; d < values; d++)
            w->d_scaled[f * values + d] = factors[f] > 0 ? factors[f] * w->d_far[f * values + d] : 0;
}

/* Through the gates: d_phi becomes the gradient of the features before them. */
static void gate_gradient(struct linear_unit *u) {
    struct linear_worker *w = u->worker;
    const int64_t features = u->call->feature_pad, offset = linear_far_offset(u) * features;
    for (int64_t n = 0; n < u->far_count * features; n++) {
        w->d_gates[offset + n] += w->phi_q[n] * w->d_phi[n];
        w->d_phi[n] *= w->gates[offset + n];
    }
}

/* d_x += the far part's gradient of q. */
static void far_queries_backward(struct linear_unit *u, int64_t member) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, values = call->value_pad, count = u->far_count;
    const int64_t offset = linear_far_offset(u) * call->width_pad, head = u->group * call->share + member;
    struct linear_sums *sums = u->sums;
    NAME(linear_far_queries)(u, head, false);
    scale_far(u);
    weigh_far(u, w->factors);
    if (u->state.live) NAME(attention_gemm)
    (count, features, values, w->d_scaled, values, 1, w->state_t, features, w->d_phi, features, false);
    else memset(w->d_phi, 0, (size_t)(count * features) * sizeof(real));
    if (call->a->causal) {
        NAME(linear_pairs)(u, w->d_far, values, w->va_t, w->d_pairs);
        NAME(linear_pairs_gather)(u, w->d_pairs, w->phi_k, features, w->d_phi);
    }
    if (u->gate) gate_gradient(u);
    for (int64_t f = 0; sums->betas && f < count; f++)
        sums->betas[member] += real_dot(w->phi_q + f * features, w->d_phi + f * features, features);
    NAME(linear_features_backward)
    (call, linear_q_map(call, head), count, w->x + offset, w->phi_q, w->d_phi, w->d_x + offset,
     sums->q_maps ? sums->q_maps + member * call->column_pad * call->width_pad : NULL,
     sums->q_biases ? sums->q_biases + member * call->column_pad : NULL);
}

/* dq of the chunk's rows; what the near part and the gates give their keys. */
static void forward_rows(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, width = call->width_pad;
    if (u->gate) {
        memcpy(w->starts + u->first / call->chunk * features, w->running, (size_t)features * sizeof(real));
        memset(w->d_gates, 0, (size_t)(u->count * features) * sizeof(real));
        NAME(linear_gate_forward)(u);
    }
    if (u->near_count > 0) NAME(linear_near_keys)(u, true);
    for (int64_t member = 0; member < call->share; member++) {
        const int64_t head = u->group * call->share + member;
        const struct linear_rows dq = linear_rows_of(call->g->dq, u->b, head);
        load_head(u, head);
        if (u->near_count > 0)
            NAME(linear_near_backward)(u);
        else
            memset(w->d_x, 0, (size_t)(u->count * width) * sizeof(real));
        if (u->far_count > 0) far_queries_backward(u, member);
        for (int64_t r = 0; r < u->count; r++)
            memcpy(dq.rows + (u->first + r) * dq.stride, w->d_x + r * width, (size_t)call->width * sizeof(real));
    }
    if (u->gate) NAME(linear_gate_backward)(u);
}

/* The chunk's keys read the state of later rows: d_phi =, dva +=. */
static void later_read(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, values = call->value_pad, count = u->far_count;
    if (!u->state.live) {
        memset(w->d_phi, 0, (size_t)(count * features) * sizeof(real));
        return;
    }
    for (int64_t f = 0; f < count; f++) {
        const int64_t t = u->far_first + f;
        w->factors[f] = u->state.start == u->start[t] ? real_exp(w->peaks[t] - u->state.peak) : 0;
        for (int64_t d = 0; d < values; d++)
            w->vaw[f * values + d] = w->factors[f] > 0 ? w->factors[f] * w->va[f * values + d] : 0;
    }
    NAME(attention_transpose)(features, values, w->state, values, w->state_t, features);
    NAME(attention_gemm)
    (count, features, values, w->vaw, values, 1, w->state_t, features, w->d_phi, features, false);
    NAME(attention_gemm)(count, values, features, w->phi_k, features, 1, w->state, values, w->far, values, false);
    for (int64_t f = 0; f < count; f++)
        if (w->factors[f] > 0)
            real_axpy(w->factors[f], w->far + f * values, w->dva + (u->far_first + f) * values, values);
}

/* The state is made ready for the chunk's rows, relative to the last key before the chunk; factors: what each row joins
 * with. */
static void later_turn(struct linear_unit *u) {
    struct linear_worker *w = u->worker;
    const int64_t t = u->far_first, size = u->call->feature_pad * u->call->value_pad;
    const bool goes_on = t > 0 && u->start[t - 1] == u->start[t];
    if (goes_on && u->state.live && u->state.start == u->start[t]) {
        const real scale = real_exp(w->prefix[t - 1] - u->state.peak);
        for (int64_t n = 0; n < size; n++) w->state[n] *= scale;
    } else {
        memset(w->state, 0, (size_t)size * sizeof(real));
    }
    u->state = (struct linear_state){.live = goes_on, .start = u->start[t], .peak = goes_on ? w->prefix[t - 1] : 0};
    for (int64_t f = 0; f < u->far_count; f++) {
        const bool joins = goes_on && w->valid[f] && u->start[t + f] == u->start[t];
        w->factors[f] = joins ? real_exp(u->state.peak - w->prefix[t + f]) : 0;
    }
}

/* The chunk's rows of one head join the state and, causal, give their share to the chunk's keys. */
static void later_add(struct linear_unit *u, int64_t member) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad, values = call->value_pad, head = u->group * call->share + member;
    load_head(u, head);
    NAME(linear_far_queries)(u, head, true);
    scale_far(u);
    if (call->a->causal) {
        NAME(linear_pairs)(u, w->phi_q, features, w->phi_k_t, w->pairs);
        NAME(linear_pairs)(u, w->d_far, values, w->va_t, w->d_pairs);
        NAME(linear_pairs_scatter)(u, w->pairs, w->d_far, values, w->dva + u->far_first * values);
        NAME(linear_pairs_scatter)(u, w->d_pairs, w->phi_q, features, w->d_phi);
    }
    if (!u->state.live) return;
    weigh_far(u, w->factors);
    NAME(attention_gemm)
    (features, values, u->far_count, w->phi_q, 1, features, w->d_scaled, values, w->state, values, true);
}

/* d_phi of the chunk's far keys -> dk, the map. */
static void keys_backward(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    NAME(linear_load)(u->far_count, call->width, call->width_pad, u->k, u->far_first, w->x_k);
    NAME(linear_features_backward)
    (call, u->k_map, u->far_count, w->x_k, w->phi_k, w->d_phi, w->dk + u->far_first * call->width_pad, u->sums->k_map,
     u->sums->k_bias);
}

static void backward_rows(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t features = call->feature_pad;
    if (u->gate) {
        const size_t bytes = (size_t)features * sizeof(real);
        /* `running` holds the later rows' sum here; the forward one is borrowed for this chunk's gates. */
        memcpy(w->d_gates, w->running, bytes);
        memcpy(w->running, w->starts + u->first / call->chunk * features, bytes);
        NAME(linear_gate_forward)(u);
        memcpy(w->running, w->d_gates, bytes);
    }
    if (u->far_count > 0) {
        NAME(linear_far_keys)(u);
        later_read(u);
        later_turn(u);
        for (int64_t member = 0; member < call->share; member++) later_add(u, member);
        keys_backward(u);
    }
    if (u->gate) NAME(linear_gate_tail)(u);
}

static void both_directions(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    for (int64_t begin = 0; begin < call->length; begin = u->end) {
        u->end = call->ends[u->b * call->length + begin];
        u->state.live = false;
        for (int64_t first = begin; first < u->end; first += call->chunk) {
            NAME(linear_chunk)(u, first);
            NAME(linear_far_keys)(u);
            NAME(linear_state_add)(u, true);
        }
        const struct linear_state whole = u->state;
        memset(w->state, 0, (size_t)(call->feature_pad * call->value_pad) * sizeof(real));
        for (int64_t first = begin; first < u->end; first += call->chunk) {
            NAME(linear_chunk)(u, first);
            NAME(linear_far_all)(u);
            forward_rows(u);
            for (int64_t member = 0; member < call->share; member++) later_add(u, member);
        }
        for (int64_t first = begin; first < u->end; first += call->chunk) {
            u->state = whole;
            NAME(linear_chunk)(u, first);
            NAME(linear_far_keys)(u);
            later_read(u);
            keys_backward(u);
        }
    }
}

static void store_keys(const struct linear_unit *u) {
    const struct linear_call *call = u->call;
    const struct linear_worker *w = u->worker;
    const struct linear_rows dk = linear_rows_of(call->g->dk, u->b, u->group);
    const struct linear_rows dv = linear_rows_of(call->g->dv, u->b, u->group);
    const size_t bytes = (size_t)call->width * sizeof(real);
    for (int64_t j = 0; j < call->length; j++) {
        memcpy(dk.rows + j * dk.stride, w->dk + j * call->width_pad, bytes);
        memcpy(dv.rows + j * dv.stride, w->dva + j * call->value_pad, bytes);
    }
}

void NAME(linear_backward_unit)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    memset(w->dk, 0, (size_t)(call->length * call->width_pad) * sizeof(real));
    memset(w->dva, 0, (size_t)(call->length * call->value_pad) * sizeof(real));
    if (!call->a->causal) {
        both_directions(u);
        store_keys(u);
        return;
    }
    for (int64_t first = 0; first < call->length; first += call->chunk) {
        NAME(linear_chunk)(u, first);
        if (u->far_count > 0) NAME(linear_far_keys)(u);
        forward_rows(u);
        if (u->far_count > 0) NAME(linear_state_add)(u, true);
    }
    u->state.live = false;
    if (u->gate) memset(w->running, 0, (size_t)call->feature_pad * sizeof(real));
    const int64_t chunks = (call->length + call->chunk - 1) / call->chunk;
    for (int64_t n = chunks - 1; n >= 0; n--) {
        NAME(linear_chunk)(u, n * call->chunk);
        backward_rows(u);
    }
    store_keys(u);
}
