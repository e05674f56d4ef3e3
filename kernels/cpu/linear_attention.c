/* Linear attention: the operations' entry points. Memory is measured, then placed; the maps are packed; then each
 * sequence and key head is one thread's work. No sum depends on which thread. */
#include "kernels/cpu/linear_attention_internal.h"

#include <omp.h>

static real *take_reals(struct arena *p, int64_t rows, int64_t columns) {
    return arena_take(p, (size_t)(rows * columns) * sizeof(real));
}

static void place_gates(struct linear_worker *w, struct arena *p, const struct linear_call *c) {
    w->running = take_reals(p, 1, c->feature_pad);
    w->phi_x = take_reals(p, c->chunk, c->feature_pad);
    w->means = take_reals(p, c->chunk, c->feature_pad);
    w->gates = take_reals(p, c->chunk, c->feature_pad);
    w->hidden = take_reals(p, c->chunk, c->hidden_pad);
    if (!c->g) return;
    w->d_gates = take_reals(p, c->chunk, c->feature_pad);
    w->starts = take_reals(p, (c->length + c->chunk - 1) / c->chunk, c->feature_pad);
    w->d_hidden = take_reals(p, c->length, c->hidden_pad);
}

static void place_near(struct linear_worker *w, struct arena *p, const struct linear_call *c) {
    w->near_k_t = take_reals(p, c->width, c->near_pad);
    w->near_v = take_reals(p, c->near_pad, c->value_pad);
    w->near_scores = take_reals(p, SUB_ROWS, c->near_pad);
    if (!c->g) return;
    w->near_k = take_reals(p, c->near_pad, c->width_pad);
    w->near_v_t = take_reals(p, c->value_pad, c->near_pad);
    w->near_dw = take_reals(p, SUB_ROWS, c->near_pad);
}

static struct linear_worker place_worker(struct arena *p, const struct linear_call *c) {
    struct linear_worker w = {0};
    const int64_t rows = c->chunk, features = c->feature_pad, values = c->value_pad;
    w.phi_k = take_reals(p, rows, features);
    w.phi_k_t = take_reals(p, features, c->chunk_pad);
    w.va = take_reals(p, rows, values);
    w.vaw = take_reals(p, rows, values);
    w.peaks = take_reals(p, 1, c->length);
    w.prefix = take_reals(p, 1, c->length);
    w.weights = take_reals(p, rows, c->chunk_pad);
    w.factors = take_reals(p, 1, rows);
    w.valid = arena_take(p, (size_t)rows * sizeof *w.valid);
    w.phi_q = take_reals(p, rows, features);
    w.q_peaks = take_reals(p, 1, rows);
    w.exponents = take_reals(p, 1, rows);
    w.pairs = take_reals(p, rows, c->chunk_pad);
    w.far = take_reals(p, rows, values);
    w.near = take_reals(p, rows, values);
    w.near_peaks = take_reals(p, 1, rows);
    w.state = take_reals(p, features, values);
    if (c->window > 0) place_near(&w, p, c);
    if (c->hidden > 0) place_gates(&w, p, c);
    if (!c->g) return w;
    w.va_t = take_reals(p, values, c->chunk_pad);
    w.d_pairs = take_reals(p, rows, c->chunk_pad);
    w.x = take_reals(p, rows, c->width_pad);
    w.x_k = take_reals(p, rows, c->width_pad);
    w.d_rows = take_reals(p, rows, values);
    w.d_far = take_reals(p, rows, values);
    w.d_scaled = take_reals(p, rows, values);
    w.d_phi = take_reals(p, rows, features);
    w.d_x = take_reals(p, rows, c->width_pad);
    w.state_t = take_reals(p, values, features);
    w.dk = take_reals(p, c->length, c->width_pad);
    w.dva = take_reals(p, c->length, values);
    return w;
}

/* A worker of linear_weights.c: C = T, every key at once, queries by blocks. */
static struct linear_worker place_weights_worker(struct arena *p, const struct linear_call *c) {
    struct linear_worker w = {0};
    const int64_t length = c->length, features = c->feature_pad, columns = c->near_pad;
    w.phi_k = take_reals(p, length, features);
    w.phi_k_t = take_reals(p, features, columns);
    w.peaks = take_reals(p, 1, length);
    w.x_k = take_reals(p, length, c->width_pad);
    w.near_k_t = take_reals(p, c->width, columns);
    w.teacher_k_t = take_reals(p, c->width, columns);
    w.teacher_scores = take_reals(p, SUB_ROWS, columns);
    w.dots = take_reals(p, SUB_ROWS, columns);
    w.near_scores = take_reals(p, SUB_ROWS, columns);
    w.phi_q = take_reals(p, SUB_ROWS, features);
    w.phi_gated = take_reals(p, SUB_ROWS, features);
    w.q_peaks = take_reals(p, 1, SUB_ROWS);
    w.d_phi_q = take_reals(p, SUB_ROWS, features);
    w.x = take_reals(p, SUB_ROWS, c->width_pad);
    w.teacher_x = take_reals(p, SUB_ROWS, c->width_pad);
    w.d_x = take_reals(p, SUB_ROWS, c->width_pad);
    w.d_phi = take_reals(p, length, features);
    w.dk = take_reals(p, length, c->width_pad);
    w.near_peaks = take_reals(p, 1, length);
    if (c->hidden > 0) place_gates(&w, p, c);
    return w;
}

static struct linear_sums place_sums(struct arena *p, const struct linear_call *c) {
    const struct linear_attention_backward *g = c->g;
    const int64_t map = c->column_pad * c->width_pad;
    struct linear_sums s = {0};
    if (tensor_present(g->gradients.q_map)) s.q_maps = take_reals(p, c->share, map);
    if (tensor_present(g->gradients.k_map)) s.k_map = take_reals(p, 1, map);
    if (tensor_present(g->gradients.q_bias)) s.q_biases = take_reals(p, c->share, c->column_pad);
    if (tensor_present(g->gradients.k_bias)) s.k_bias = take_reals(p, 1, c->column_pad);
    if (tensor_present(g->gradients.squeeze)) s.squeeze = take_reals(p, c->hidden_pad, c->feature_pad);
    if (tensor_present(g->gradients.excite)) s.excite_t = take_reals(p, c->hidden_pad, c->feature_pad);
    if (tensor_present(g->gradients.beta)) s.betas = take_reals(p, 1, c->share);
    return s;
}

static struct linear_map place_map(struct arena *p, const struct linear_call *c) {
    struct linear_map m = {.transposed = take_reals(p, c->width, c->column_pad)};
    if (c->g) m.rows = take_reals(p, c->column_pad, c->width_pad);
    if (tensor_present(c->a->features.q_bias)) m.bias = take_reals(p, 1, c->column_pad);
    return m;
}

static struct linear_gate place_gate(struct arena *p, const struct linear_call *c) {
    struct linear_gate gate = {.squeeze = take_reals(p, c->hidden_pad, c->feature_pad)};
    gate.squeeze_t = take_reals(p, c->hidden_pad, c->feature_pad);
    gate.excite = take_reals(p, c->hidden_pad, c->feature_pad);
    gate.excite_t = take_reals(p, c->hidden_pad, c->feature_pad);
    return gate;
}

static size_t place(struct linear_call *c, char *memory) {
    struct arena p = arena_placing(memory, SIZE_MAX);
    const int64_t units = c->batch * c->groups, threads = c->ops->device->threads;
    const int64_t q_maps = c->shared_q_map ? 1 : c->heads, k_maps = c->shared_k_map ? 1 : c->groups;
    c->q_maps = arena_take(&p, (size_t)q_maps * sizeof *c->q_maps);
    c->k_maps = arena_take(&p, (size_t)k_maps * sizeof *c->k_maps);
    c->gates = arena_take(&p, (size_t)c->groups * sizeof *c->gates);
    c->sums = arena_take(&p, (size_t)units * sizeof *c->sums);
    c->workers = arena_take(&p, (size_t)threads * sizeof *c->workers);
    if (!c->a->causal) c->ends = arena_take(&p, (size_t)(c->batch * c->length) * sizeof *c->ends);
    for (int64_t n = 0; n < q_maps; n++) {
        const struct linear_map map = place_map(&p, c);
        if (memory) c->q_maps[n] = map;
    }
    for (int64_t n = 0; n < k_maps; n++) {
        const struct linear_map map = place_map(&p, c);
        if (memory) c->k_maps[n] = map;
    }
    for (int64_t n = 0; c->hidden > 0 && n < c->groups; n++) {
        const struct linear_gate gate = place_gate(&p, c);
        if (memory) c->gates[n] = gate;
    }
    const size_t before = p.used;
    if (c->weights) c->losses = arena_take(&p, (size_t)units * sizeof *c->losses);
    for (int64_t n = 0; c->g && n < units; n++) {
        const struct linear_sums sums = place_sums(&p, c);
        if (memory) c->sums[n] = sums;
    }
    if (memory) memset(memory + before, 0, p.used - before);
    for (int64_t n = 0; n < threads; n++) {
        const struct linear_worker worker = c->weights ? place_weights_worker(&p, c) : place_worker(&p, c);
        if (memory) c->workers[n] = worker;
    }
    return p.used;
}

static enum status open_call(const struct ops *ops, const struct linear_attention *a,
                             const struct linear_attention_backward *g, const struct linear_attention_weights *weights,
                             struct linear_call *c) {
    const struct features *f = &a->features;
    *c = (struct linear_call){.ops = ops, .a = a, .g = g, .weights = weights, .map_scale = 1};
    c->parts = f->kind == FEATURE_HEDGEHOG ? 2 : 1;
    c->batch = a->q.shape[0];
    c->length = a->q.shape[1];
    c->heads = a->q.shape[2];
    c->width = a->q.shape[3];
    c->groups = a->k.shape[2];
    c->share = c->heads / c->groups;
    c->columns = f->q_map.shape[1];
    c->features = c->parts * c->columns;
    c->hidden = tensor_present(f->squeeze) ? f->squeeze.shape[1] : 0;
    c->width_pad = pad_lanes(c->width);
    c->value_pad = pad_lanes(c->width + 1);
    c->column_pad = pad_lanes(c->columns);
    c->feature_pad = c->parts * c->column_pad;
    c->hidden_pad = pad_lanes(c->hidden);
    c->window = a->window < c->length ? a->window : c->length;
    c->chunk = a->chunk > 0 ? a->chunk : CHUNK_USUAL;
    if ((weights || c->chunk > c->length) && c->length > 0) c->chunk = c->length;
    c->chunk_pad = pad_lanes(c->chunk);
    c->near_pad = pad_lanes(c->chunk + c->window) + LANES;
    if (f->kind == FEATURE_EXP) {
        c->map_scale = (real)(1 / sqrt(sqrt((double)c->width)));
        c->log_scale = (real)-log((double)c->columns);
    }
    c->shared_q_map = f->q_map.stride[0] == 0;
    c->shared_k_map = f->k_map.stride[0] == 0;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, place(c, NULL), &memory, &stride));
    place(c, memory);
    const char *operation = weights ? "linear_attention_weights" : g ? "linear_attention_backward" : "linear_attention";
    return device_document_ends(operation, a->start, c->ends);
}

static void pack_map(const struct linear_call *c, struct tensor map, struct tensor bias, int64_t head,
                     struct linear_map *to) {
    const real *from = real_data(map) + head * map.stride[0];
    memset(to->transposed, 0, (size_t)(c->width * c->column_pad) * sizeof(real));
    if (to->rows) memset(to->rows, 0, (size_t)(c->column_pad * c->width_pad) * sizeof(real));
    for (int64_t n = 0; n < c->columns; n++)
        for (int64_t d = 0; d < c->width; d++) {
            const real value = c->map_scale * from[n * map.stride[1] + d];
            to->transposed[d * c->column_pad + n] = value;
            if (to->rows) to->rows[n * c->width_pad + d] = value;
        }
    for (int64_t n = 0; to->bias && n < c->column_pad; n++)
        to->bias[n] = n < c->columns ? real_data(bias)[head * c->columns + n] : 0;
}

static void pack_gate(const struct linear_call *c, int64_t group, struct linear_gate *to) {
    const real *squeeze = real_data(c->a->features.squeeze) + group * c->hidden * c->features;
    const real *excite = real_data(c->a->features.excite) + group * c->hidden * c->features;
    const int64_t all = c->hidden_pad * c->feature_pad;
    real *blocks[] = {to->squeeze, to->squeeze_t, to->excite, to->excite_t};
    for (int n = 0; n < 4; n++) memset(blocks[n], 0, (size_t)all * sizeof(real));
    for (int64_t r = 0; r < c->hidden; r++)
        for (int64_t m = 0; m < c->features; m++) {
            const int64_t column = linear_column(c, m);
            to->squeeze[r * c->feature_pad + column] = squeeze[r * c->features + m];
            to->squeeze_t[column * c->hidden_pad + r] = squeeze[r * c->features + m];
            to->excite[column * c->hidden_pad + r] = excite[m * c->hidden + r];
            to->excite_t[r * c->feature_pad + column] = excite[m * c->hidden + r];
        }
}

static void pack(const struct linear_call *c, int64_t n) {
    const struct features *f = &c->a->features;
    if (n < c->heads && (n == 0 || !c->shared_q_map)) pack_map(c, f->q_map, f->q_bias, n, &c->q_maps[n]);
    if (n < c->groups && (n == 0 || !c->shared_k_map)) pack_map(c, f->k_map, f->k_bias, n, &c->k_maps[n]);
    if (n < c->groups && c->hidden > 0) pack_gate(c, n, &c->gates[n]);
}

static struct linear_unit open_unit(const struct linear_call *c, int64_t n) {
    struct linear_unit u = {.call = c, .worker = &c->workers[omp_get_thread_num()], .b = n / c->groups};
    const struct tensor no_window = c->a->no_window;
    u.group = n % c->groups;
    u.window = tensor_present(no_window) && ((const int32_t *)no_window.data)[u.b] ? 0 : c->window;
    u.start = (const int32_t *)c->a->start.data + u.b * c->length;
    u.k = linear_rows_of(c->a->k, u.b, u.group);
    if (!c->weights) u.v = linear_rows_of(c->a->v, u.b, u.group);
    u.k_map = &c->k_maps[c->shared_k_map ? 0 : u.group];
    u.gate = c->hidden > 0 ? &c->gates[u.group] : NULL;
    u.sums = &c->sums[n];
    u.end = c->length;
    return u;
}

static void run_units(const struct linear_call *c) {
#pragma omp parallel num_threads(c->ops->device->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < c->heads; n++) pack(c, n);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < c->batch * c->groups; n++) {
            struct linear_unit u = open_unit(c, n);
            if (c->weights)
                NAME(linear_weights_unit)(&u, &c->losses[n]);
            else if (c->g)
                NAME(linear_backward_unit)(&u);
            else
                NAME(linear_forward_unit)(&u);
        }
    }
}

enum status NAME(linear_attention)(const struct ops *ops, const struct linear_attention *a) {
    TRY(check_linear_attention(ops, a));
    struct linear_call c;
    TRY(open_call(ops, a, NULL, NULL, &c));
    run_units(&c);
    return STATUS_OK;
}

/* Rows of `to` += scale · rows of `from`. */
static void add_rows(int64_t rows, int64_t columns, real scale, const real *from, int64_t from_row, real *to,
                     int64_t to_row) {
    for (int64_t r = 0; r < rows; r++) real_axpy(scale, from + r * from_row, to + r * to_row, columns);
}

static real *row_of(struct tensor t, int64_t head) {
    return real_data(t) + head * t.stride[0];
}

/* One unit's gradients, called in the units' order. */
static void add_sums(const struct linear_call *c, int64_t n) {
    const struct linear_attention_backward *g = c->g;
    const struct linear_sums *s = &c->sums[n];
    const int64_t group = n % c->groups, map = c->column_pad * c->width_pad;
    const real scale = c->map_scale;
    for (int64_t member = 0; member < c->share; member++) {
        const int64_t head = group * c->share + member;
        if (s->q_maps)
            add_rows(c->columns, c->width, scale, s->q_maps + member * map, c->width_pad, row_of(g->gradients.q_map, head),
                     g->gradients.q_map.stride[1]);
        if (s->q_biases) real_axpy(1, s->q_biases + member * c->column_pad, row_of(g->gradients.q_bias, head), c->columns);
        if (s->betas) *row_of(g->gradients.beta, head) += s->betas[member];
    }
    if (s->k_map)
        add_rows(c->columns, c->width, scale, s->k_map, c->width_pad, row_of(g->gradients.k_map, group), g->gradients.k_map.stride[1]);
    if (s->k_bias) real_axpy(1, s->k_bias, row_of(g->gradients.k_bias, group), c->columns);
    for (int64_t m = 0; m < c->features; m++)
        for (int64_t r = 0; r < c->hidden; r++) {
            const int64_t from = r * c->feature_pad + linear_column(c, m);
            if (s->squeeze) row_of(g->gradients.squeeze, group)[r * g->gradients.squeeze.stride[1] + m] += s->squeeze[from];
            if (s->excite_t) row_of(g->gradients.excite, group)[m * g->gradients.excite.stride[1] + r] += s->excite_t[from];
        }
}

enum status NAME(linear_attention_backward)(const struct ops *ops, const struct linear_attention_backward *g) {
    TRY(check_linear_attention_backward(ops, g));
    struct linear_call c;
    TRY(open_call(ops, &g->forward, g, NULL, &c));
    run_units(&c);
    for (int64_t n = 0; n < c.batch * c.groups; n++) add_sums(&c, n);
    return STATUS_OK;
}

enum status NAME(linear_attention_weights)(const struct ops *ops, const struct linear_attention_weights *w) {
    TRY(check_linear_attention_weights(ops, w));
    const struct linear_attention_backward g = {
        .forward = w->forward, .dq = w->dq, .dk = w->dk, .gradients = w->gradients};
    struct linear_call c;
    double loss = 0;
    TRY(open_call(ops, &g.forward, &g, w, &c));
    run_units(&c);
    for (int64_t n = 0; n < c.batch * c.groups; n++) {
        add_sums(&c, n);
        loss += c.losses[n];
    }
    if (c.heads > 0) *(double *)w->loss.data += w->weight / (double)c.heads * loss;
    return STATUS_OK;
}
