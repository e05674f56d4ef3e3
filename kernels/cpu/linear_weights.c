/* The weights that linear attention implies against the teacher's: one unit's KL(P ‖ A) and its gradients, by blocks of
 * query rows against every key that any of them may see. All logarithms: l_ij = β + a_q + a_j − log M + log(φ_q·φ_k) of
 * a far pair, scale · q·k of a near one; d l_ij = A_ij − P_ij; of a far pair d(φ_q·φ_k) = d l_ij / (φ_q·φ_k). The
 * exponents a that features lose are constants there: what they take from φ_q·φ_k they give back to l. */
#include "kernels/cpu/linear_attention_internal.h"

/* Products of features below SMALLEST have no logarithm worth the name. */
#ifdef SQUINT_REAL_F64
#define SMALLEST ((real)DBL_MIN)
#else
#define SMALLEST ((real)FLT_MIN)
#endif
#define LOGARITHM_MOST ((real)1e30)

static real bounded(real x, real most) {
    const real above = x > -most ? x : -most; /* NaN too: inf · 0 */
    return above < most ? above : most;
}

/* What a gradient by a product of features may be at most: T·H/G of them, times features of at most 2, are finite. Only
 * relu's features have no such bound; the products that they make are large enough unless the gates are next to 0. */
static real gradient_most(const struct linear_call *call) {
    if (call->a->features.kind == FEATURE_RELU) return 1 / TINY;
    return REAL_LARGEST / (real)(16 * call->length * call->share);
}

/* SUB_ROWS query rows of one head. Columns of its matrices are keys counted from `first`: far ones in 0 … far−1, near
 * ones in near … count−1; each row has its own part of them. */
struct block {
    int64_t head, member, row, rows;
    int64_t first, count, far, near;
};

/* Row r reads keys lo … hi−1: far ones up to `near`, near ones from there. */
struct range {
    int64_t lo, near, hi;
};

static struct range range_of(const struct linear_unit *u, const struct block *b, int64_t r) {
    const struct linear_call *call = u->call;
    const int64_t i = b->row + r, end = call->a->causal ? i + 1 : call->ends[u->b * call->length + i];
    struct range range = {.lo = u->start[i] - b->first, .hi = end - b->first};
    const int64_t near = i + 1 - u->window - b->first;
    range.near = u->window == 0 ? range.hi : near > range.lo ? near : range.lo;
    return range;
}

static struct block block_of(const struct linear_unit *u, int64_t member, int64_t row) {
    const struct linear_call *call = u->call;
    struct block b = {.head = u->group * call->share + member, .member = member, .row = row, .first = u->start[row]};
    b.rows = call->length - row < SUB_ROWS ? call->length - row : SUB_ROWS;
    b.near = INT64_MAX;
    for (int64_t r = 0; r < b.rows; r++) {
        const struct range range = range_of(u, &b, r);
        if (range.hi > b.count) b.count = range.hi;
        if (range.near > range.lo && range.near > b.far) b.far = range.near;
        if (range.near < range.hi && range.near < b.near) b.near = range.near;
    }
    if (b.near > b.count) b.near = b.count;
    return b;
}

/* to [D][Wp] = the keys of a sequence, transposed; 0 beyond the last. */
static void transpose_keys(const struct linear_call *call, struct linear_rows k, real *to) {
    memset(to, 0, (size_t)(call->width * call->near_pad) * sizeof(real));
    NAME(attention_transpose)(call->length, call->width, k.rows, k.stride, to, call->near_pad);
}

/* What all heads of the unit share: keys, their features, the gates of every row. */
static void load_keys(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t length = call->length, features = call->feature_pad;
    u->count = length;
    NAME(linear_load)(length, call->width, call->width_pad, u->k, 0, w->x_k);
    if (u->window > 0) transpose_keys(call, u->k, w->near_k_t);
    transpose_keys(call, linear_rows_of(call->weights->teacher_k, u->b, u->group), w->teacher_k_t);
    NAME(linear_features)(call, u->k_map, length, w->x_k, call->width_pad, w->phi_k, w->peaks);
    memset(w->phi_k_t, 0, (size_t)(features * call->near_pad) * sizeof(real));
    NAME(attention_transpose)(length, features, w->phi_k, features, w->phi_k_t, call->near_pad);
    memset(w->d_phi, 0, (size_t)(length * features) * sizeof(real));
    memset(w->dk, 0, (size_t)(length * call->width_pad) * sizeof(real));
    if (!u->gate) return;
    memset(w->d_gates, 0, (size_t)(length * features) * sizeof(real));
    NAME(linear_gate_forward)(u);
}

/* to [rows][Wp]: columns first … last−1 of x [rows][inner] · keys [inner][Wp]. */
static void products(const struct linear_unit *u, const struct block *b, int64_t first, int64_t last, const real *x,
                     int64_t inner, int64_t x_stride, const real *keys, real *to) {
    const int64_t pad = u->call->near_pad;
    if (last > first) NAME(attention_gemm)
    (b->rows, pad_lanes(last - first), inner, x, x_stride, 1, keys + b->first + first, pad, to + first, pad, false);
}

/* Scores of teacher and student, products of features. */
static void block_products(struct linear_unit *u, const struct block *b) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const struct linear_rows q = linear_rows_of(call->a->q, u->b, b->head);
    const int64_t width = call->width, features = call->feature_pad, pad = call->width_pad;
    NAME(linear_load)(b->rows, width, pad, q, b->row, w->x);
    NAME(linear_load)
    (b->rows, width, pad, linear_rows_of(call->weights->teacher_q, u->b, b->head), b->row, w->teacher_x);
    NAME(linear_features)(call, linear_q_map(call, b->head), b->rows, w->x, pad, w->phi_q, w->q_peaks);
    for (int64_t n = 0; n < b->rows * features; n++)
        w->phi_gated[n] = u->gate ? w->gates[b->row * features + n] * w->phi_q[n] : w->phi_q[n];
    products(u, b, 0, b->count, w->teacher_x, width, pad, w->teacher_k_t, w->teacher_scores);
    products(u, b, 0, b->far, w->phi_gated, features, features, w->phi_k_t, w->dots);
    products(u, b, b->near, b->count, w->x, width, pad, w->near_k_t, w->near_scores);
}

/* log w_ij of row r in the place of its near scores. */
static void row_logarithms(const struct linear_unit *u, const struct block *b, int64_t r, struct range range) {
    const struct linear_call *call = u->call;
    const struct linear_worker *w = u->worker;
    const real *dots = w->dots + r * call->near_pad, *peaks = w->peaks + b->first;
    const real constant = linear_beta(call, b->head) + call->log_scale + w->q_peaks[r], scale = (real)call->a->scale;
    real *l = w->near_scores + r * call->near_pad;
    for (int64_t j = range.lo; j < range.near; j++)
        l[j] = bounded(constant + peaks[j] + real_log(dots[j] >= SMALLEST ? dots[j] : SMALLEST), LOGARITHM_MOST);
#pragma omp simd
    for (int64_t j = range.near; j < range.hi; j++) l[j] = bounded(scale * l[j], LOGARITHM_MOST);
}

/* KL(P ‖ A) of row r = Σ_j P (s − l) − log Σ e^s + log Σ e^l, each shifted by its maximum; then l becomes A − P. */
static real row_divergence(const struct linear_unit *u, int64_t r, struct range range) {
    const struct linear_call *call = u->call;
    const int64_t count = range.hi - range.lo, first = r * call->near_pad + range.lo;
    const real scale = (real)call->a->scale;
    real *s = u->worker->teacher_scores + first, *l = u->worker->near_scores + first;
    real p_sum = 0, a_sum = 0, cross = 0;
#pragma omp simd
    for (int64_t j = 0; j < count; j++) s[j] = bounded(scale * s[j], LOGARITHM_MOST);
    const real s_most = real_row_max(s, count), l_most = real_row_max(l, count);
#pragma omp simd reduction(+ : p_sum, a_sum, cross)
    for (int64_t j = 0; j < count; j++) {
        const real teacher = s[j] - s_most, student = l[j] - l_most;
        s[j] = real_exp(teacher);
        l[j] = real_exp(student);
        p_sum += s[j];
        a_sum += l[j];
        cross += s[j] * (teacher - student);
    }
    const real p_scale = 1 / p_sum, a_scale = 1 / a_sum;
#pragma omp simd
    for (int64_t j = 0; j < count; j++) l[j] = a_scale * l[j] - p_scale * s[j];
    return cross * p_scale - real_log(p_sum) + real_log(a_sum);
}

/* From A − P of row r: dots becomes the gradient of φ_q·φ_k, near_scores that of q·k, each 0 outside the row's range.
 */
static void row_gradient(const struct linear_unit *u, const struct block *b, int64_t r, struct range range) {
    const struct linear_call *call = u->call;
    const double scale = call->weights->gradient_scale * call->weights->weight / (double)call->heads;
    const real far_scale = (real)scale, near_scale = (real)(scale * call->a->scale);
    const real most = gradient_most(call);
    real *far = u->worker->dots + r * call->near_pad, *near = u->worker->near_scores + r * call->near_pad, sum = 0;
    for (int64_t j = range.lo; j < range.near; j++) {
        sum += near[j];
        far[j] = far[j] >= SMALLEST ? far_scale * bounded(near[j] / far[j], most) : 0;
    }
    if (u->sums->betas) u->sums->betas[b->member] += far_scale * sum;
    for (int64_t j = 0; j < range.lo; j++) far[j] = 0;
    for (int64_t j = range.near > range.lo ? range.near : range.lo; j < b->far; j++) far[j] = 0;
    for (int64_t j = b->near; j < range.near; j++) near[j] = 0;
    for (int64_t j = range.near; j < range.hi; j++) near[j] *= near_scale;
    for (int64_t j = range.hi; j < b->count; j++) near[j] = 0;
}

/* d_x = the near pairs' share of dq; their share of dk. */
static void near_gradient(struct linear_unit *u, const struct block *b) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t pad = call->near_pad, width = call->width_pad, count = b->count - b->near;
    const int64_t key = (b->first + b->near) * width;
    memset(w->d_x, 0, (size_t)(b->rows * width) * sizeof(real));
    if (count <= 0) return;
    NAME(attention_gemm)
    (b->rows, width, count, w->near_scores + b->near, pad, 1, w->x_k + key, width, w->d_x, width, false);
    NAME(attention_gemm)
    (count, width, b->rows, w->near_scores + b->near, 1, pad, w->x, width, w->dk + key, width, true);
}

/* Far pairs: the gradient of φ_q goes to d_x and the query's map, that of φ_k is added up in d_phi. */
static void far_gradient(struct linear_unit *u, const struct block *b) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const struct linear_sums *sums = u->sums;
    const int64_t pad = call->near_pad, features = call->feature_pad, key = b->first * features;
    if (b->far == 0) return;
    NAME(attention_gemm)
    (b->rows, features, b->far, w->dots, pad, 1, w->phi_k + key, features, w->d_phi_q, features, false);
    NAME(attention_gemm)
    (b->far, features, b->rows, w->dots, 1, pad, w->phi_gated, features, w->d_phi + key, features, true);
    for (int64_t n = 0; u->gate && n < b->rows * features; n++) {
        w->d_gates[b->row * features + n] += w->phi_q[n] * w->d_phi_q[n];
        w->d_phi_q[n] *= w->gates[b->row * features + n];
    }
    NAME(linear_features_backward)
    (call, linear_q_map(call, b->head), b->rows, w->x, w->phi_q, w->d_phi_q, w->d_x,
     sums->q_maps ? sums->q_maps + b->member * call->column_pad * call->width_pad : NULL,
     sums->q_biases ? sums->q_biases + b->member * call->column_pad : NULL);
}

/* Rows first … of `to` += rows of from [count][Dp]. */
static void add_rows(const struct linear_call *call, struct linear_rows to, int64_t first, int64_t count,
                     const real *from) {
    for (int64_t r = 0; r < count; r++)
        real_axpy(1, from + r * call->width_pad, to.rows + (first + r) * to.stride, call->width);
}

static bool wants_gradients(const struct linear_attention_weights *w) {
    const struct features *d = &w->gradients;
    const struct tensor gradients[] = {w->dq,     w->dk,      d->q_map,  d->k_map, d->q_bias,
                                       d->k_bias, d->squeeze, d->excite, d->beta};
    for (size_t n = 0; n < sizeof gradients / sizeof *gradients; n++)
        if (tensor_present(gradients[n])) return true;
    return false;
}

/* d_phi and the gates' gradient -> the keys' map, squeeze, excite, dk. */
static void keys_gradient(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    NAME(linear_features_backward)
    (call, u->k_map, call->length, w->x_k, w->phi_k, w->d_phi, w->dk, u->sums->k_map, u->sums->k_bias);
    if (u->gate) {
        NAME(linear_gate_backward)(u);
        memset(w->running, 0, (size_t)call->feature_pad * sizeof(real));
        NAME(linear_gate_tail)(u);
    }
    if (tensor_present(call->weights->dk))
        add_rows(call, linear_rows_of(call->weights->dk, u->b, u->group), 0, call->length, w->dk);
}

void NAME(linear_weights_unit)(struct linear_unit *u, double *loss) {
    const struct linear_call *call = u->call;
    const struct linear_attention_weights *weights = call->weights;
    const bool gradients = wants_gradients(weights);
    load_keys(u);
    for (int64_t member = 0; member < call->share; member++)
        for (int64_t row = 0; row < call->length; row += SUB_ROWS) {
            const struct block b = block_of(u, member, row);
            block_products(u, &b);
            for (int64_t r = 0; r < b.rows; r++) {
                const struct range range = range_of(u, &b, r);
                row_logarithms(u, &b, r, range);
                *loss += (double)row_divergence(u, r, range);
                if (gradients) row_gradient(u, &b, r, range);
            }
            if (!gradients) continue;
            near_gradient(u, &b);
            far_gradient(u, &b);
            if (tensor_present(weights->dq))
                add_rows(call, linear_rows_of(weights->dq, u->b, b.head), row, b.rows, u->worker->d_x);
        }
    if (gradients) keys_gradient(u);
}
