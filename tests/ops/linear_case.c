#include "ops/linear_case.h"

#include "ops/case_arrays.h"

#include "base/memory.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const linear_names[LINEAR_INPUTS] = {"q",      "k",      "v",       "o",      "q_map", "k_map",
                                                 "q_bias", "k_bias", "squeeze", "excite", "beta"};
static const double sizes[LINEAR_INPUTS] = {1.5, 1.5, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5};

double linear_draw(int64_t n, int64_t part) {
    return (double)((n * 7919 + part * 104729 + n / 64 * 31) % 2048 - 1024) / 1024;
}

static void count_inputs(const struct linear_case *row, int64_t *counts) {
    const int64_t features = row->kind == FEATURE_HEDGEHOG ? 2 * row->columns : row->columns;
    const int64_t tokens = row->batch * row->length, gates = row->groups * row->hidden * features;
    counts[LINEAR_Q] = counts[LINEAR_D_O] = tokens * row->heads * row->width;
    counts[LINEAR_K] = counts[LINEAR_V] = tokens * row->groups * row->width;
    counts[LINEAR_Q_MAP] = (row->shared ? 1 : row->heads) * row->columns * row->width;
    counts[LINEAR_K_MAP] = (row->shared ? 1 : row->groups) * row->columns * row->width;
    counts[LINEAR_Q_BIAS] = row->bias ? row->heads * row->columns : 0;
    counts[LINEAR_K_BIAS] = row->bias ? row->groups * row->columns : 0;
    counts[LINEAR_SQUEEZE] = counts[LINEAR_EXCITE] = gates;
    counts[LINEAR_BETA] = row->beta ? row->heads : 0;
}

void linear_fill(const struct linear_case *row, struct linear_arrays *x) {
    count_inputs(row, x->counts);
    for (int n = 0; n < LINEAR_INPUTS; n++) {
        const bool scored = n == LINEAR_Q || n == LINEAR_K;
        const double size = sizes[n] * (scored && row->magnitude > 0 ? row->magnitude : 1);
        const int64_t heads = n == LINEAR_Q || n == LINEAR_D_O ? row->heads : row->groups;
        const int64_t period = row->repeated && n < LINEAR_Q_MAP ? heads * row->width : INT64_MAX;
        x->in[n] = case_new_array(x->counts[n]);
        x->gradient[n] = case_new_array(x->counts[n]);
        for (int64_t i = 0; i < x->counts[n]; i++) x->in[n][i] = size * linear_draw(i % period, n);
    }
    x->log_sums = case_new_array(row->batch * row->heads * row->length);
    x->start = case_new_start(row->batch, row->length, row->cuts);
    CHECK_OK(memory_new((size_t)row->batch, sizeof *x->no_window, "dropped windows", &x->no_window));
    for (int64_t b = 0; b < row->batch; b++) x->no_window[b] = b == 1;
}

void linear_free(struct linear_arrays *x) {
    for (int n = 0; n < LINEAR_INPUTS; n++) {
        free(x->in[n]);
        free(x->gradient[n]);
    }
    free(x->log_sums);
    free(x->start);
    free(x->no_window);
}

/* A table's copy of an array; none for an absent one. */
static struct tensor to_device(const struct ops *ops, enum dtype dtype, double *from, int64_t count) {
    if (count == 0) return tensor_none();
    struct tensor t = tensor_1d(NULL, dtype, count);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    case_move(ops, t, from, true);
    return t;
}

static void from_device(const struct ops *ops, struct tensor t, double *to) {
    if (tensor_present(t)) case_move(ops, t, to, false);
}

enum dtype linear_dtype(const struct ops *ops, int n, bool gradient) {
    if (n == LINEAR_BETA) return ops->statistic;
    return gradient && n >= LINEAR_Q_MAP ? ops->parameter : ops->real;
}

static struct tensor to_device_ids(const struct ops *ops, const int32_t *from, int64_t count) {
    struct tensor t = tensor_1d(NULL, DTYPE_I32, count);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    CHECK_OK(ops->upload(ops, t, from));
    return t;
}

/* q, k, v side by side in one matrix, as a model has them; views of it. */
struct fused {
    struct tensor block, views[3];
};

static void interleave(const struct linear_case *row, double *matrix, double *const parts[3], bool out) {
    const int64_t tokens = row->batch * row->length, query = row->heads * row->width, key = row->groups * row->width;
    const int64_t all = query + 2 * key, first[3] = {0, query, query + key}, width[3] = {query, key, key};
    for (int64_t t = 0; t < tokens; t++)
        for (int n = 0; n < 3; n++)
            for (int64_t d = 0; d < width[n]; d++) {
                double *in_matrix = matrix + t * all + first[n] + d, *in_part = parts[n] + t * width[n] + d;
                *(out ? in_part : in_matrix) = *(out ? in_matrix : in_part);
            }
}

static struct fused open_fused(const struct ops *ops, const struct linear_case *row, double *const parts[3]) {
    const int64_t tokens = row->batch * row->length, query = row->heads * row->width, key = row->groups * row->width;
    double *matrix = case_new_array(tokens * (query + 2 * key));
    struct fused x;
    interleave(row, matrix, parts, false);
    x.block = to_device(ops, ops->real, matrix, tokens * (query + 2 * key));
    free(matrix);
    const struct tensor whole = tensor_2d(x.block.data, ops->real, tokens, query + 2 * key);
    for (int n = 0; n < 3; n++)
        x.views[n] = tensor_split_heads(tensor_columns(whole, n ? query + (n - 1) * key : 0, n ? key : query),
                                        row->batch, row->length, n ? row->groups : row->heads, row->width);
    return x;
}

struct features linear_features(const struct linear_case *row, const struct tensor *p) {
    const int64_t h = row->heads, g = row->groups, n = row->columns, r = row->hidden;
    const int64_t m = row->kind == FEATURE_HEDGEHOG ? 2 * n : n;
    struct features f = {.kind = row->kind};
    f.q_map = tensor_3d(p[LINEAR_Q_MAP].data, p[LINEAR_Q_MAP].dtype, h, n, row->width);
    f.k_map = tensor_3d(p[LINEAR_K_MAP].data, p[LINEAR_K_MAP].dtype, g, n, row->width);
    if (row->shared) f.q_map.stride[0] = f.k_map.stride[0] = 0;
    if (row->bias) f.q_bias = tensor_2d(p[LINEAR_Q_BIAS].data, p[LINEAR_Q_BIAS].dtype, h, n);
    if (row->bias) f.k_bias = tensor_2d(p[LINEAR_K_BIAS].data, p[LINEAR_K_BIAS].dtype, g, n);
    if (r) f.squeeze = tensor_3d(p[LINEAR_SQUEEZE].data, p[LINEAR_SQUEEZE].dtype, g, r, m);
    if (r) f.excite = tensor_3d(p[LINEAR_EXCITE].data, p[LINEAR_EXCITE].dtype, g, m, r);
    if (row->beta) f.beta = p[LINEAR_BETA];
    return f;
}

void linear_run(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x, bool backward) {
    struct fused in = open_fused(ops, row, x->in);
    struct tensor p[LINEAR_INPUTS] = {0}, d[LINEAR_INPUTS] = {0};
    for (int n = LINEAR_Q_MAP; n < LINEAR_INPUTS; n++)
        p[n] = to_device(ops, linear_dtype(ops, n, false), x->in[n], x->counts[n]);
    struct tensor o = to_device(ops, ops->real, x->gradient[LINEAR_D_O], x->counts[LINEAR_D_O]);
    struct tensor sums = to_device(ops, ops->statistic, x->log_sums, row->batch * row->heads * row->length);
    struct tensor start = to_device_ids(ops, x->start, row->batch * row->length);
    struct tensor dropped = to_device_ids(ops, x->no_window, row->batch);
    struct linear_attention_backward g = {0};
    struct linear_attention *a = &g.forward;
    *a = (struct linear_attention){
        .q = in.views[0], .k = in.views[1], .v = in.views[2], .features = linear_features(row, p)};
    a->start = tensor_2d(start.data, DTYPE_I32, row->batch, row->length);
    if (row->no_window) a->no_window = dropped;
    a->o = tensor_4d(o.data, o.dtype, row->batch, row->length, row->heads, row->width);
    a->log_sums = tensor_3d(sums.data, sums.dtype, row->batch, row->heads, row->length);
    a->window = row->window;
    a->near_only = row->near_only;
    a->chunk = row->chunk;
    a->causal = !row->bidirectional;
    a->scale = 1 / sqrt((double)row->width);
    CHECK_OK(ops->linear_attention(ops, a));
    if (backward) {
        struct tensor d_o = to_device(ops, ops->real, x->in[LINEAR_D_O], x->counts[LINEAR_D_O]);
        struct fused out = open_fused(ops, row, x->gradient);
        for (int n = LINEAR_Q_MAP; n < LINEAR_INPUTS; n++)
            d[n] = to_device(ops, linear_dtype(ops, n, true), x->gradient[n], x->counts[n]);
        g.d_o = tensor_4d(d_o.data, d_o.dtype, row->batch, row->length, row->heads, row->width);
        g.dq = out.views[0];
        g.dk = out.views[1];
        g.dv = out.views[2];
        g.gradients = linear_features(row, d);
        CHECK_OK(ops->linear_attention_backward(ops, &g));
        double *matrix = case_new_array(tensor_count(out.block));
        from_device(ops, out.block, matrix);
        interleave(row, matrix, x->gradient, true);
        free(matrix);
        for (int n = LINEAR_Q_MAP; n < LINEAR_INPUTS; n++) from_device(ops, d[n], x->gradient[n]);
        ops->release(ops, out.block.data);
        ops->release(ops, d_o.data);
    }
    CHECK_OK(ops->synchronise(ops));
    from_device(ops, o, x->gradient[LINEAR_D_O]);
    from_device(ops, sums, x->log_sums);
    const struct tensor blocks[] = {in.block, o, sums, start, dropped};
    for (size_t n = 0; n < sizeof blocks / sizeof *blocks; n++) ops->release(ops, blocks[n].data);
    for (int n = 0; n < LINEAR_INPUTS; n++) {
        ops->release(ops, p[n].data);
        ops->release(ops, d[n].data);
    }
}

static struct tensor to_device_loss(const struct ops *ops, double value) {
    struct tensor t = tensor_1d(NULL, DTYPE_F64, 1);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    CHECK_OK(ops->upload(ops, t, &value));
    return t;
}

void linear_run_weights(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x,
                        struct linear_weights_run *run) {
    struct fused in = open_fused(ops, row, x->in), out = open_fused(ops, row, x->gradient);
    struct fused taught = open_fused(ops, row, (double *[]){x->in[LINEAR_D_O], x->in[LINEAR_V], x->in[LINEAR_V]});
    struct tensor p[LINEAR_INPUTS] = {0}, d[LINEAR_INPUTS] = {0};
    for (int n = LINEAR_Q_MAP; n < LINEAR_INPUTS; n++) {
        p[n] = to_device(ops, linear_dtype(ops, n, false), x->in[n], x->counts[n]);
        d[n] = to_device(ops, linear_dtype(ops, n, true), x->gradient[n], x->counts[n]);
    }
    struct tensor start = to_device_ids(ops, x->start, row->batch * row->length);
    struct tensor dropped = to_device_ids(ops, x->no_window, row->batch), loss = to_device_loss(ops, run->loss);
    struct linear_attention_weights a = {.loss = loss, .weight = run->weight, .gradient_scale = run->gradient_scale};
    a.forward = (struct linear_attention){.q = in.views[0], .k = in.views[1], .features = linear_features(row, p)};
    a.forward.start = tensor_2d(start.data, DTYPE_I32, row->batch, row->length);
    if (row->no_window) a.forward.no_window = dropped;
    a.forward.window = row->window;
    a.forward.causal = !row->bidirectional;
    a.forward.scale = 1 / sqrt((double)row->width);
    a.teacher_q = run->own ? in.views[0] : taught.views[0];
    a.teacher_k = run->own ? in.views[1] : taught.views[1];
    if (run->gradients) {
        if (!run->parameters) a.dq = out.views[0];
        if (!run->parameters) a.dk = out.views[1];
        a.gradients = linear_features(row, d);
    }
    CHECK_OK(ops->linear_attention_weights(ops, &a));
    CHECK_OK(ops->synchronise(ops));
    CHECK_OK(ops->download(ops, loss, &run->loss));
    double *matrix = case_new_array(tensor_count(out.block));
    from_device(ops, out.block, matrix);
    interleave(row, matrix, x->gradient, true);
    free(matrix);
    const struct tensor blocks[] = {in.block, out.block, taught.block, start, dropped, loss};
    for (size_t n = 0; n < sizeof blocks / sizeof *blocks; n++) ops->release(ops, blocks[n].data);
    for (int n = LINEAR_Q_MAP; n < LINEAR_INPUTS; n++) {
        from_device(ops, d[n], x->gradient[n]);
        ops->release(ops, p[n].data);
        ops->release(ops, d[n].data);
    }
}

void linear_compare(const struct linear_case *row, const char *what, const struct linear_arrays *expected,
                    const struct linear_arrays *found, bool backward, double tolerance) {
    for (int n = 0; n < LINEAR_INPUTS; n++) {
        double largest = 0, worst = -1;
        int64_t where = 0;
        if (!backward && n != LINEAR_D_O) continue;
        for (int64_t i = 0; i < expected->counts[n]; i++) largest = fmax(largest, fabs(expected->gradient[n][i]));
        for (int64_t i = 0; i < expected->counts[n]; i++) {
            double error = fabs(expected->gradient[n][i] - found->gradient[n][i]);
            if (isnan(error)) error = INFINITY;
            if (error <= worst) continue;
            worst = error;
            where = i;
        }
        /* Where all should cancel, what remains is a rounding error of terms that are about 1. */
        if (worst > tolerance * fmax(largest, 0.2))
            fail_msg("%s, chunk %lld, %s: %s%s[%lld]: expected %.9g, found %.9g (largest %.3g, tolerance %.1e)",
                     row->name, (long long)row->chunk, what, n == LINEAR_D_O ? "" : "gradient of ", linear_names[n],
                     (long long)where, expected->gradient[n][where], found->gradient[n][where], largest, tolerance);
    }
}

void linear_expect_bits(const struct linear_case *row, const char *what, const char *name, const double *expected,
                        const double *found, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (memcmp(&expected[n], &found[n], sizeof *expected) != 0)
            fail_msg("%s, chunk %lld: %s: %s[%lld]: expected %.17g, found %.17g", row->name, (long long)row->chunk,
                     what, name, (long long)n, expected[n], found[n]);
}

void linear_check_no_leak(const struct ops *ops, const struct linear_case *row, const struct linear_arrays *before,
                          int64_t t, double factor) {
    const int64_t query = row->heads * row->width, key = row->groups * row->width;
    struct linear_arrays after;
    linear_fill(row, &after);
    for (int64_t d = t * query; d < (t + 1) * query; d++) after.in[LINEAR_Q][d] *= -factor;
    for (int64_t d = t * key; d < (t + 1) * key; d++) {
        after.in[LINEAR_K][d] = factor * (1.7 - after.in[LINEAR_K][d]);
        after.in[LINEAR_V][d] *= 1e6;
    }
    linear_run(ops, row, &after, false);
    int64_t end = row->length;
    for (int64_t i = row->length - 1; i > t; i--)
        if (after.start[i] == i) end = i;
    const double *o = before->gradient[LINEAR_D_O], *found = after.gradient[LINEAR_D_O];
    linear_expect_bits(row, "a changed token", "o", o, found, t * query);
    /* What is not finite stays in the past of nobody, but a chunk may carry it into the next document. */
    if (factor < 1e30)
        linear_expect_bits(row, "another document", "o", o + end * query, found + end * query,
                           (row->length - end) * query);
    if (row->length > 1 && memcmp(o + t * query, found + t * query, (size_t)query * sizeof *o) == 0)
        fail_msg("%s: changing token %lld changed nothing", row->name, (long long)t);
    linear_free(&after);
}
