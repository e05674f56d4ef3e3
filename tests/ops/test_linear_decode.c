/* Linear attention token by token against the parallel pass, under the guard; calls that must be refused. */
#include "base/memory.h"
#include "ops/linear_case.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct linear_case cases[] = {
    {"exp", 2, 70, 4, 2, 8, FEATURE_EXP, 24, 0, 0, .cuts = {20, 50}},
    {"exp, window, one map", 2, 70, 4, 2, 8, FEATURE_EXP, 19, 0, 7, .cuts = {30}, .shared = true, .beta = true},
    {"exp, large", 1, 40, 2, 1, 8, FEATURE_EXP, 24, 0, 3, .magnitude = 8},
    {"hedgehog", 1, 129, 3, 1, 48, FEATURE_HEDGEHOG, 48, 0, 16, .cuts = {40}, .beta = true},
    {"hedgehog, no window", 2, 33, 2, 2, 8, FEATURE_HEDGEHOG, 8, 0, 0, .cuts = {5, 9}},
    {"hedgehog, window over all", 1, 33, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 40, .cuts = {20}},
    {"relu, squeeze", 2, 70, 4, 2, 8, FEATURE_RELU, 20, 5, 9, .bias = true, .beta = true, .cuts = {33}},
    {"relu, squeeze, no window", 1, 40, 2, 1, 8, FEATURE_RELU, 12, 3, 0, .cuts = {13}},
    {"the window alone", 1, 40, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 5, .cuts = {20}, .near_only = true},
    {"one token", 3, 1, 2, 1, 8, FEATURE_EXP, 16, 0, 2, .cuts = {0}},
};

static struct tensor allocate(const struct ops *ops, struct tensor t, const double *from) {
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    if (from) CHECK_OK(ops->upload(ops, t, from));
    return t;
}

static struct features features_of(const struct ops *ops, const struct linear_case *row,
                                   const struct linear_arrays *x) {
    const int64_t h = row->heads, g = row->groups, n = row->columns, r = row->hidden;
    const int64_t m = row->kind == FEATURE_HEDGEHOG ? 2 * n : n;
    double *const *in = x->in;
    struct features f = {.kind = row->kind};
    f.q_map = allocate(ops, tensor_3d(NULL, DTYPE_F64, row->shared ? 1 : h, n, row->width), in[LINEAR_Q_MAP]);
    f.k_map = allocate(ops, tensor_3d(NULL, DTYPE_F64, row->shared ? 1 : g, n, row->width), in[LINEAR_K_MAP]);
    if (row->shared) {
        f.q_map.shape[0] = h;
        f.k_map.shape[0] = g;
        f.q_map.stride[0] = f.k_map.stride[0] = 0;
    }
    if (row->bias) f.q_bias = allocate(ops, tensor_2d(NULL, DTYPE_F64, h, n), in[LINEAR_Q_BIAS]);
    if (row->bias) f.k_bias = allocate(ops, tensor_2d(NULL, DTYPE_F64, g, n), in[LINEAR_K_BIAS]);
    if (r) f.squeeze = allocate(ops, tensor_3d(NULL, DTYPE_F64, g, r, m), in[LINEAR_SQUEEZE]);
    if (r) f.excite = allocate(ops, tensor_3d(NULL, DTYPE_F64, g, m, r), in[LINEAR_EXCITE]);
    if (row->beta) f.beta = allocate(ops, tensor_1d(NULL, DTYPE_F64, h), in[LINEAR_BETA]);
    return f;
}

/* The tokens at `position` of all sequences as a view [B,heads,D] of [B,T,heads,D]. */
static struct tensor at(struct tensor all, int64_t length, int64_t heads, int64_t width, int64_t position) {
    struct tensor t = tensor_3d((double *)all.data + position * heads * width, DTYPE_F64,
                                tensor_count(all) / (length * heads * width), heads, width);
    t.stride[0] = length * heads * width;
    return t;
}

static void check_token(const struct linear_case *row, const struct linear_arrays *x, const double *found,
                        int64_t position) {
    const int64_t stride = row->heads * row->width;
    for (int64_t b = 0; b < row->batch; b++)
        for (int64_t d = 0; d < stride; d++) {
            const double expected = x->gradient[LINEAR_D_O][(b * row->length + position) * stride + d];
            if (!(fabs(expected - found[b * stride + d]) <= 1e-11 * fmax(1, fabs(expected))))
                fail_msg("%s: decoding token %lld: expected %.15g, found %.15g", row->name, (long long)position,
                         expected, found[b * stride + d]);
        }
}

static void decode_case(const struct ops *ops, const struct linear_case *row) {
    const int64_t features = row->kind == FEATURE_HEDGEHOG ? 2 * row->columns : row->columns;
    const int64_t tokens = row->batch * row->length, ring = row->window < row->length ? row->window : row->length;
    struct linear_arrays x;
    linear_fill(row, &x);
    linear_run(ops, row, &x, false);
    struct linear_attention_decode a = {.features = features_of(ops, row, &x), .near_only = row->near_only};
    a.scale = 1 / sqrt((double)row->width);
    struct tensor q = allocate(ops, tensor_1d(NULL, DTYPE_F64, tokens * row->heads * row->width), x.in[LINEAR_Q]);
    struct tensor k = allocate(ops, tensor_1d(NULL, DTYPE_F64, tokens * row->groups * row->width), x.in[LINEAR_K]);
    struct tensor v = allocate(ops, tensor_1d(NULL, DTYPE_F64, tokens * row->groups * row->width), x.in[LINEAR_V]);
    int32_t starts[4];
    double *found;
    CHECK_OK(memory_new((size_t)(row->batch * row->heads * row->width), sizeof *found, "outputs", &found));
    a.o = allocate(ops, tensor_3d(NULL, DTYPE_F64, row->batch, row->heads, row->width), NULL);
    a.start = allocate(ops, tensor_1d(NULL, DTYPE_I32, row->batch), NULL);
    a.sums = allocate(ops, tensor_4d(NULL, DTYPE_F64, row->batch, row->groups, features, row->width + 1), NULL);
    a.peaks = allocate(ops, tensor_2d(NULL, DTYPE_F64, row->batch, row->groups), NULL);
    if (row->hidden) a.means = allocate(ops, tensor_3d(NULL, DTYPE_F64, row->batch, row->groups, features), NULL);
    if (ring) a.near_k = allocate(ops, tensor_4d(NULL, DTYPE_F64, row->batch, ring, row->groups, row->width), NULL);
    if (ring) a.near_v = allocate(ops, tensor_4d(NULL, DTYPE_F64, row->batch, ring, row->groups, row->width), NULL);
    for (a.position = 0; a.position < row->length; a.position++) {
        for (int64_t b = 0; b < row->batch; b++) starts[b] = x.start[b * row->length + a.position];
        CHECK_OK(ops->upload(ops, a.start, starts));
        a.q = at(q, row->length, row->heads, row->width, a.position);
        a.k = at(k, row->length, row->groups, row->width, a.position);
        a.v = at(v, row->length, row->groups, row->width, a.position);
        CHECK_OK(ops->linear_attention_decode(ops, &a));
        CHECK_OK(ops->download(ops, a.o, found));
        check_token(row, &x, found, a.position);
    }
    const struct tensor blocks[] = {q,
                                    k,
                                    v,
                                    a.o,
                                    a.start,
                                    a.sums,
                                    a.peaks,
                                    a.means,
                                    a.near_k,
                                    a.near_v,
                                    a.features.q_map,
                                    a.features.k_map,
                                    a.features.q_bias,
                                    a.features.k_bias,
                                    a.features.squeeze,
                                    a.features.excite,
                                    a.features.beta};
    for (size_t n = 0; n < sizeof blocks / sizeof *blocks; n++) ops->release(ops, blocks[n].data);
    free(found);
    linear_free(&x);
}

static void test_decode(void **state) {
    (void)state;
    const struct ops *ops;
    CHECK_OK(ops_open("guard:cpu-f64", &(struct ops_options){.threads = 2}, &ops));
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) decode_case(ops, &cases[n]);
    ops->close(ops);
}

static float memory[512];
static int32_t starts[4];

static struct linear_attention good(void) {
    struct linear_attention a = {.causal = true, .scale = 1};
    a.q = a.o = tensor_4d(memory, DTYPE_F32, 1, 4, 4, 2);
    a.k = a.v = tensor_4d(memory, DTYPE_F32, 1, 4, 2, 2);
    a.start = tensor_2d(starts, DTYPE_I32, 1, 4);
    a.log_sums = tensor_3d(memory, DTYPE_F32, 1, 4, 4);
    a.features.q_map = tensor_3d(memory, DTYPE_F32, 4, 3, 2);
    a.features.k_map = tensor_3d(memory, DTYPE_F32, 2, 3, 2);
    return a;
}

static const char *const forward_messages[] = {
    "k: 4 query heads are no multiple of 3",
    "k_map: expected [2,3,2] f32, found [2,4,2]",
    "q_map: expected [4,*,2] f32, found nothing",
    "q_bias and k_bias: both or neither",
    "squeeze and excite: both or neither, and not with exp",
    "excite: expected [2,6,5] f32, found [2,3,5]",
    "both directions: only without a window",
    "window and chunk: expected at least 0, found -1 and 0",
    "log_sums: expected [1,4,4] f32",
    "start[0,2]: expected 2 or its predecessor's, found 1",
    "beta: expected [4]",
    "kind 7 is not defined",
};

static void spoil(struct linear_attention *a, int fault) {
    struct features *f = &a->features;
    switch (fault) {
    case 0:
        a->k = a->v = tensor_4d(memory, DTYPE_F32, 1, 4, 3, 2);
        break;
    case 1:
        f->k_map = tensor_3d(memory, DTYPE_F32, 2, 4, 2);
        break;
    case 2:
        f->q_map = tensor_none();
        break;
    case 3:
        f->q_bias = f->k_bias = tensor_2d(memory, DTYPE_F32, 4, 3);
        break;
    case 4:
        f->squeeze = f->excite = tensor_3d(memory, DTYPE_F32, 2, 5, 3);
        break;
    case 5:
        f->kind = FEATURE_HEDGEHOG;
        f->squeeze = tensor_3d(memory, DTYPE_F32, 2, 5, 6);
        f->excite = tensor_3d(memory, DTYPE_F32, 2, 3, 5);
        break;
    case 6:
        a->causal = false;
        a->window = 2;
        break;
    case 7:
        a->window = -1;
        break;
    case 8:
        a->log_sums = tensor_3d(memory, DTYPE_F32, 1, 4, 3);
        break;
    case 9:
        starts[2] = starts[3] = 1;
        break;
    case 10:
        f->beta = tensor_1d(memory, DTYPE_F32, 2);
        break;
    default:
        f->kind = (enum feature_kind)7;
    }
}

static void expect_refusal(enum status status, const char *message) {
    if (status != STATUS_SHAPE || !strstr(error_message(), message))
        fail_msg("expected \"%s\", found %s: %s", message, status_name(status), error_message());
    error_clear();
}

static void test_refusals(void **state) {
    (void)state;
    const struct ops *ops;
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &ops));
    for (int n = 0; n < (int)(sizeof forward_messages / sizeof *forward_messages); n++) {
        struct linear_attention a = good();
        spoil(&a, n);
        expect_refusal(ops->linear_attention(ops, &a), forward_messages[n]);
        memset(starts, 0, sizeof starts);
    }
    struct linear_attention_backward g = {.forward = good(), .d_o = good().q, .dq = good().q, .dk = good().k};
    g.dv = good().q;
    expect_refusal(ops->linear_attention_backward(ops, &g), "linear_attention_backward: dv: expected [1,4,2,2]");
    g.dv = good().k;
    g.gradients.q_map = tensor_3d(memory, DTYPE_F32, 4, 2, 2);
    expect_refusal(ops->linear_attention_backward(ops, &g), "d_q_map: expected [4,3,2]");
    g.gradients.q_map = tensor_none();
    g.gradients.beta = tensor_1d(memory, DTYPE_F32, 4);
    expect_refusal(ops->linear_attention_backward(ops, &g), "d_beta: the forward pass has no such parameter");
    struct linear_attention_decode d = {.features = good().features, .scale = 1};
    d.q = d.o = tensor_3d(memory, DTYPE_F32, 1, 4, 2);
    d.k = d.v = tensor_3d(memory, DTYPE_F32, 1, 2, 2);
    d.start = tensor_1d(starts, DTYPE_I32, 1);
    d.sums = tensor_4d(memory, DTYPE_F32, 1, 2, 3, 2);
    d.peaks = tensor_2d(memory, DTYPE_F32, 1, 2);
    expect_refusal(ops->linear_attention_decode(ops, &d), "sums: expected [1,2,3,3]");
    d.sums = tensor_4d(memory, DTYPE_F32, 1, 2, 3, 3);
    starts[0] = 1;
    expect_refusal(ops->linear_attention_decode(ops, &d), "start[0]: expected 0 … 0, found 1");
    d.position = -1;
    expect_refusal(ops->linear_attention_decode(ops, &d), "position: expected at least 0");
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
