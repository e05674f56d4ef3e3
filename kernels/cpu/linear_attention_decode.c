/* Linear attention of the next token, from a state of fixed size. One head of one sequence is one thread's work. */
#include "kernels/cpu/linear_attention_internal.h"

#include <omp.h>

/* A thread's memory. Features are not padded here. */
struct scratch {
    real *phi_k, *phi_q, *gates; /* [M] */
    real *hidden;                /* [R] */
    real *scores;                /* [window] */
    real *far;                   /* [D+1] */
};

struct map_row {
    const real *map, *bias;
    int64_t stride;
};

static struct map_row map_of(struct tensor map, struct tensor bias, int64_t head) {
    return (struct map_row){real_data(map) + head * map.stride[0],
                            tensor_present(bias) ? real_data(bias) + head * bias.stride[0] : NULL, map.stride[1]};
}

static real softmax(real *y, int64_t count) {
    const real most = real_row_max(y, count);
    real sum = 0;
    for (int64_t m = 0; m < count; m++) {
        y[m] = real_exp(y[m] - most);
        sum += y[m];
    }
    return sum;
}

/* phi [M] of x; returns the exponent that it lost. */
static real features_of(enum feature_kind kind, struct map_row map, int64_t columns, int64_t width, const real *x,
                        real *phi) {
    const real scale = kind == FEATURE_EXP ? (real)(1 / sqrt(sqrt((double)width))) : 1;
    for (int64_t m = 0; m < columns; m++) phi[m] = scale * real_dot(map.map + m * map.stride, x, width);
    if (kind == FEATURE_EXP) {
        const real most = real_row_max(phi, columns);
        for (int64_t m = 0; m < columns; m++) phi[m] = real_exp(phi[m] - most);
        return most - scale * scale / 2 * real_dot(x, x, width);
    }
    if (kind == FEATURE_RELU) {
        for (int64_t m = 0; m < columns; m++) {
            const real y = phi[m] + (map.bias ? map.bias[m] : 0);
            phi[m] = (y > 0 ? y : 0) + (real)1e-6;
        }
        return 0;
    }
    for (int64_t m = 0; m < columns; m++) phi[columns + m] = -phi[m];
    for (int part = 0; part < 2; part++) {
        const real scale_part = 1 / softmax(phi + part * columns, columns);
        for (int64_t m = 0; m < columns; m++) phi[part * columns + m] *= scale_part;
    }
    return 0;
}

struct decode_call {
    const struct linear_attention_decode *a;
    int64_t heads, groups, width, columns, features, window, hidden;
};

/* The key head's state at the token `position`: clear, let one token become far, take the new one in. */
static void take_in(const struct decode_call *c, int64_t b, int64_t group, struct scratch *s) {
    const struct linear_attention_decode *a = c->a;
    const struct features *f = &a->features;
    const int64_t values = c->width + 1, unit = b * c->groups + group;
    const int64_t start = ((const int32_t *)a->start.data)[b], slot = c->window ? a->position % c->window : 0;
    const struct map_row map = map_of(f->k_map, f->k_bias, group);
    const real *k = real_data(a->k) + b * a->k.stride[0] + group * a->k.stride[1];
    const real *v = real_data(a->v) + b * a->v.stride[0] + group * a->v.stride[1];
    real *sums = real_data(a->sums) + unit * c->features * values, *peak = real_data(a->peaks) + unit;
    real *near_k = NULL, *near_v = NULL;
    if (c->window) {
        near_k = real_data(a->near_k) + ((b * c->window + slot) * c->groups + group) * c->width;
        near_v = real_data(a->near_v) + ((b * c->window + slot) * c->groups + group) * c->width;
    }
    if (start == a->position) {
        memset(sums, 0, (size_t)(c->features * values) * sizeof(real));
        *peak = -REAL_INFINITY;
        for (int64_t m = 0; c->hidden && m < c->features; m++) real_data(a->means)[unit * c->features + m] = 0;
    }
    if (a->position - c->window >= start) {
        const real *far_k = c->window ? near_k : k, *far_v = c->window ? near_v : v;
        const real own = features_of(f->kind, map, c->columns, c->width, far_k, s->phi_k), now = real_max(*peak, own);
        const real kept = real_exp(*peak - now), weight = real_exp(own - now);
        for (int64_t m = 0; m < c->features; m++) {
            real *row = sums + m * values;
            const real x = weight * s->phi_k[m];
            for (int64_t d = 0; d < c->width; d++) row[d] = kept * row[d] + x * far_v[d];
            row[c->width] = kept * row[c->width] + x;
        }
        *peak = now;
    }
    if (c->window) {
        memcpy(near_k, k, (size_t)c->width * sizeof(real));
        memcpy(near_v, v, (size_t)c->width * sizeof(real));
    }
    if (!c->hidden) return;
    features_of(f->kind, map, c->columns, c->width, k, s->phi_k);
    real_axpy(1, s->phi_k, real_data(a->means) + unit * c->features, c->features);
}

static void gates_of(const struct decode_call *c, int64_t b, int64_t group, struct scratch *s) {
    const struct features *f = &c->a->features;
    const int64_t start = ((const int32_t *)c->a->start.data)[b], size = c->hidden * c->features;
    const real *sums = real_data(c->a->means) + (b * c->groups + group) * c->features;
    const real inverse = 1 / (real)(c->a->position - start + 1);
    for (int64_t r = 0; r < c->hidden; r++) {
        const real y = inverse * real_dot(real_data(f->squeeze) + group * size + r * c->features, sums, c->features);
        s->hidden[r] = y > 0 ? y : 0;
    }
    for (int64_t m = 0; m < c->features; m++)
        s->gates[m] =
            2 * real_sigmoid(real_dot(real_data(f->excite) + group * size + m * c->hidden, s->hidden, c->hidden));
}

/* far [D+1]: numerator and normaliser; returns their exponent. */
static real far_part(const struct decode_call *c, int64_t b, int64_t head, const real *q, struct scratch *s) {
    const struct features *f = &c->a->features;
    const int64_t values = c->width + 1, group = head / (c->heads / c->groups), unit = b * c->groups + group;
    const real *sums = real_data(c->a->sums) + unit * c->features * values;
    const real own = features_of(f->kind, map_of(f->q_map, f->q_bias, head), c->columns, c->width, q, s->phi_q);
    const real beta = tensor_present(f->beta) ? real_data(f->beta)[head] : 0;
    for (int64_t m = 0; c->hidden && m < c->features; m++) s->phi_q[m] *= s->gates[m];
    for (int64_t d = 0; d < values; d++) s->far[d] = 0;
    for (int64_t m = 0; m < c->features; m++) real_axpy(s->phi_q[m], sums + m * values, s->far, values);
    const real constant = f->kind == FEATURE_EXP ? (real)-log((double)c->columns) : 0;
    return beta + own + constant + real_data(c->a->peaks)[unit];
}

static void decode_head(const struct decode_call *c, int64_t b, int64_t head, struct scratch *s) {
    const struct linear_attention_decode *a = c->a;
    const int64_t width = c->width, group = head / (c->heads / c->groups), row = c->groups * width;
    const int64_t start = ((const int32_t *)a->start.data)[b], from = a->position - c->window + 1;
    const int64_t first = from > start ? from : start, count = c->window ? a->position - first + 1 : 0;
    const real *q = real_data(a->q) + b * a->q.stride[0] + head * a->q.stride[1];
    real *o = real_data(a->o) + b * a->o.stride[0] + head * a->o.stride[1];
    const real exponent = far_part(c, b, head, q, s);
    const bool far = !a->near_only && s->far[width] > TINY;
    const real far_log = far ? exponent + real_log(s->far[width]) : -REAL_INFINITY;
    real near_log = -REAL_INFINITY;
    if (count > 0) {
        const real *k = real_data(a->near_k) + b * c->window * row + group * width;
        for (int64_t n = 0; n < count; n++)
            s->scores[n] = (real)a->scale * real_dot(q, k + (first + n) % c->window * row, width);
        const real most = real_row_max(s->scores, count);
        near_log = most + real_log(softmax(s->scores, count));
    }
    for (int64_t d = 0; d < width; d++) o[d] = 0;
    if (!far && count == 0) return;
    const real most = real_max(far_log, near_log);
    const real log_sum = most + real_log(real_exp(far_log - most) + real_exp(near_log - most));
    if (far) real_axpy(real_exp(far_log - log_sum) / s->far[width], s->far, o, width);
    if (count == 0) return;
    real sum = 0;
    for (int64_t n = 0; n < count; n++) sum += s->scores[n];
    const real *v = real_data(a->near_v) + b * c->window * row + group * width;
    const real share = real_exp(near_log - log_sum) / sum;
    for (int64_t n = 0; n < count; n++) real_axpy(share * s->scores[n], v + (first + n) % c->window * row, o, width);
}

static enum status check_starts(const struct linear_attention_decode *a) {
    for (int64_t b = 0; b < a->q.shape[0]; b++) {
        const int32_t start = ((const int32_t *)a->start.data)[b];
        if (start < 0 || start > a->position)
            return error_set(STATUS_SHAPE, "linear_attention_decode: start[%lld]: expected 0 … %lld, found %d",
                             (long long)b, (long long)a->position, start);
    }
    return STATUS_OK;
}

enum status NAME(linear_attention_decode)(const struct ops *ops, const struct linear_attention_decode *a) {
    TRY(check_linear_attention_decode(ops, a));
    TRY(check_starts(a));
    struct decode_call c = {.a = a, .heads = a->q.shape[1], .groups = a->k.shape[1], .width = a->q.shape[2]};
    c.columns = a->features.q_map.shape[1];
    c.features = a->features.kind == FEATURE_HEDGEHOG ? 2 * c.columns : c.columns;
    c.window = tensor_present(a->near_k) ? a->near_k.shape[1] : 0;
    c.hidden = tensor_present(a->features.squeeze) ? a->features.squeeze.shape[1] : 0;
    const int64_t share = c.heads / c.groups, reals = 3 * c.features + c.hidden + c.window + c.width + 1;
    char *block;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, (size_t)reals * sizeof(real), &block, &stride));
#pragma omp parallel num_threads(ops->device->threads)
    {
        real *mine = (real *)(void *)(block + (size_t)omp_get_thread_num() * stride);
        struct scratch s = {.phi_k = mine, .phi_q = mine + c.features, .gates = mine + 2 * c.features};
        s.hidden = mine + 3 * c.features;
        s.scores = s.hidden + c.hidden;
        s.far = s.scores + c.window;
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < a->q.shape[0] * c.groups; n++) {
            take_in(&c, n / c.groups, n % c.groups, &s);
            if (c.hidden) gates_of(&c, n / c.groups, n % c.groups, &s);
            for (int64_t member = 0; member < share; member++)
                decode_head(&c, n / c.groups, n % c.groups * share + member, &s);
        }
    }
    return STATUS_OK;
}
