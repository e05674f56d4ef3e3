/* See linear_device.h. */
#include "tests/ops/linear_device.h"

#include "tests/ops/case_arrays.h"

#include "base/memory.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>

const struct linear_case linear_device_cases[] = {
    {"exp, T 1", 2, 1, 2, 1, 8, FEATURE_EXP, 16, 0, 0, .cuts = {0}},
    {"exp, T 7", 1, 7, 3, 3, 48, FEATURE_EXP, 24, 0, 0, .cuts = {3}},
    {"exp, T 129, documents", 2, 129, 4, 2, 8, FEATURE_EXP, 17, 0, 0, .cuts = {40, 100}, .beta = true, .chunk = 64},
    {"exp, D 64, M 272, window", 1, 150, 2, 1, 64, FEATURE_EXP, 272, 0, 20, .beta = true, .chunk = 64},
    {"exp, one map, window", 1, 140, 4, 2, 16, FEATURE_EXP, 32, 0, 33, .shared = true, .beta = true, .chunk = 64},
    {"exp, both directions", 2, 150, 2, 1, 8, FEATURE_EXP, 24, 0, 0, .cuts = {70}, .bidirectional = true, .chunk = 64},
    {"exp, repeated tokens", 1, 100, 2, 1, 8, FEATURE_EXP, 24, 0, 9, .repeated = true},
    {"exp, three segments", 1, 230, 1, 1, 8, FEATURE_EXP, 24, 0, 0, .cuts = {20}, .magnitude = 3, .chunk = 64},
    {"hedgehog, T 31, D 48", 2, 31, 2, 2, 48, FEATURE_HEDGEHOG, 48, 0, 0, .cuts = {7}},
    {"hedgehog, T 33, D 64", 1, 33, 4, 1, 64, FEATURE_HEDGEHOG, 64, 0, 16, .beta = true, .cuts = {20}},
    {"hedgehog, T 400, window 64", 1, 400, 1, 1, 64, FEATURE_HEDGEHOG, 64, 0, 64, .cuts = {133}, .beta = true},
    {"hedgehog, one-token documents", 1, 7, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 2, .cuts = {1, 2, 3, 4, 5, 6}},
    {"hedgehog, both directions", 1, 90, 2, 2, 8, FEATURE_HEDGEHOG, 8, 0, 0, .cuts = {31}, .bidirectional = true},
    {"hedgehog, window dropped", 2, 100, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 11, .no_window = true, .beta = true},
    {"hedgehog, window over all", 1, 90, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 90, .cuts = {50}},
    {"hedgehog, the window alone", 1, 90, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 5, .cuts = {50}, .near_only = true},
    {"relu, T 129, D 7", 2, 129, 2, 1, 7, FEATURE_RELU, 12, 0, 5, .bias = true, .beta = true, .cuts = {64}, .chunk = 1},
    {"relu, squeeze", 2, 140, 4, 2, 8, FEATURE_RELU, 20, 5, 9, .bias = true, .beta = true, .cuts = {70}, .chunk = 64},
    {"relu, squeeze, no window", 1, 90, 2, 1, 48, FEATURE_RELU, 33, 17, 0, .cuts = {0}, .chunk = 64},
    {"hedgehog, squeeze", 1, 70, 2, 1, 8, FEATURE_HEDGEHOG, 9, 3, 6, .cuts = {30}},
    {"exp, D 100", 1, 65, 2, 1, 100, FEATURE_EXP, 40, 0, 3, .cuts = {9}, .chunk = 64},
    {"hedgehog, D 128", 1, 129, 1, 1, 128, FEATURE_HEDGEHOG, 20, 0, 1, .beta = true, .chunk = 64},
    {"exp, D 256", 1, 66, 2, 1, 256, FEATURE_EXP, 20, 0, 2, .chunk = 64},
};
const int linear_device_case_count = sizeof linear_device_cases / sizeof *linear_device_cases;

const struct linear_case linear_decode_cases[] = {
    {"exp", 2, 23, 4, 2, 8, FEATURE_EXP, 24, 0, 0, .cuts = {6, 15}},
    {"exp, window, one map", 2, 20, 4, 2, 8, FEATURE_EXP, 19, 0, 7, .cuts = {9}, .shared = true, .beta = true},
    {"exp, D 64, M 272", 1, 6, 1, 1, 64, FEATURE_EXP, 272, 0, 3, .cuts = {0}},
    {"exp, large, D 7", 1, 13, 2, 1, 7, FEATURE_EXP, 24, 0, 3, .magnitude = 8},
    {"hedgehog, D 48", 1, 30, 3, 1, 48, FEATURE_HEDGEHOG, 48, 0, 16, .cuts = {9}, .beta = true},
    {"hedgehog, no window, D 256", 2, 8, 2, 2, 256, FEATURE_HEDGEHOG, 8, 0, 0, .cuts = {3, 4}},
    {"hedgehog, window over all", 1, 17, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 40, .cuts = {10}},
    {"relu, squeeze", 2, 24, 4, 2, 8, FEATURE_RELU, 20, 5, 9, .bias = true, .beta = true, .cuts = {11}},
    {"relu, squeeze, no window", 1, 14, 2, 1, 8, FEATURE_RELU, 12, 3, 0, .cuts = {5}},
    {"the window alone", 1, 16, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 5, .cuts = {8}, .near_only = true},
    {"one token", 3, 1, 2, 1, 8, FEATURE_EXP, 16, 0, 2, .cuts = {0}},
};
const int linear_decode_case_count = sizeof linear_decode_cases / sizeof *linear_decode_cases;

static void fill(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x) {
    linear_fill(row, x);
    for (int n = 0; ops->real == DTYPE_BF16 && n < LINEAR_INPUTS; n++)
        if (n != LINEAR_BETA) case_round_bf16(x->in[n], x->counts[n]);
}

static void check_log_sums(const struct linear_case *row, const struct linear_arrays *expected,
                           const struct linear_arrays *found, double tolerance) {
    for (int64_t n = 0; n < row->batch * row->heads * row->length; n++) {
        const double a = expected->log_sums[n], b = found->log_sums[n];
        if (a != b && !(fabs(a - b) <= tolerance * fmax(1, fabs(a))))
            fail_msg("%s: log_sums[%lld]: expected %.9g, found %.9g", row->name, (long long)n, a, b);
    }
}

/* beta's gradient by a bound of its own; it is taken out of what linear_compare compares. */
static void check_beta(const struct ops *ops, const struct linear_case *row, struct linear_arrays *expected,
                       struct linear_arrays *found, double tolerance) {
    double largest = 0.2;
    for (int64_t h = 0; h < expected->counts[LINEAR_BETA]; h++)
        largest = fmax(largest, fabs(expected->gradient[LINEAR_BETA][h]));
    for (int64_t h = 0; h < expected->counts[LINEAR_BETA]; h++) {
        const double a = expected->gradient[LINEAR_BETA][h], b = found->gradient[LINEAR_BETA][h];
        if (!(fabs(a - b) <= tolerance * sqrt((double)(row->batch * row->length)) * largest))
            fail_msg("%s, %s: gradient of beta[%lld]: expected %.9g, found %.9g", row->name, ops->name, (long long)h, a,
                     b);
        found->gradient[LINEAR_BETA][h] = a;
    }
}

static void compare_gradients(const struct ops *ops, const struct linear_case *row, struct linear_arrays *expected,
                              struct linear_arrays *found) {
    const bool bf16 = ops->real == DTYPE_BF16;
    if (bf16) check_beta(ops, row, expected, found, LINEAR_BF16_GRADIENT);
    linear_compare(row, ops->name, expected, found, true, bf16 ? LINEAR_BF16_GRADIENT : LINEAR_F32);
}

void linear_device_row(const struct ops *ops, const struct ops *oracle, const struct linear_case *row, bool backward) {
    struct linear_arrays expected, found;
    const bool bf16 = ops->real == DTYPE_BF16;
    fill(ops, row, &expected);
    fill(ops, row, &found);
    linear_run(oracle, row, &expected, backward);
    linear_run(ops, row, &found, backward);
    check_log_sums(row, &expected, &found, bf16 ? LINEAR_BF16 / 2 : LINEAR_F32);
    linear_compare(row, ops->name, &expected, &found, false, bf16 ? LINEAR_BF16 : LINEAR_F32);
    if (backward) compare_gradients(ops, row, &expected, &found);
    linear_free(&expected);
    linear_free(&found);
}

void linear_device_weights(const struct ops *ops, const struct ops *oracle, const struct linear_case *row) {
    struct linear_arrays expected, found;
    const double tolerance = ops->real == DTYPE_BF16 ? LINEAR_BF16_LOSS : LINEAR_F32;
    struct linear_weights_run exact = {.weight = 1.25, .gradient_scale = 0.75, .gradients = true}, run = exact;
    fill(ops, row, &expected);
    fill(ops, row, &found);
    exact.loss = run.loss = 3; /* what was there stays */
    linear_run_weights(oracle, row, &expected, &exact);
    linear_run_weights(ops, row, &found, &run);
    if (!(fabs(exact.loss - run.loss) <= tolerance * fmax(0.1, fabs(exact.loss))))
        fail_msg("%s, %s: loss: expected %.9g, found %.9g", row->name, ops->name, exact.loss, run.loss);
    compare_gradients(ops, row, &expected, &found);
    linear_free(&expected);
    linear_free(&found);
}

static struct tensor place(const struct ops *ops, struct tensor t, double *from) {
    if (tensor_count(t) == 0) return tensor_none();
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    if (from) case_move(ops, t, from, true);
    return t;
}

/* The tokens at `position` of all sequences as a view [B,heads,D] of [B,T,heads,D]. */
static struct tensor token_of(struct tensor all, const struct linear_case *row, int64_t heads, int64_t position) {
    struct tensor t = tensor_3d((char *)all.data + (size_t)(position * heads * row->width) * dtype_size(all.dtype),
                                all.dtype, row->batch, heads, row->width);
    t.stride[0] = row->length * heads * row->width;
    return t;
}

static void check_token(const struct ops *ops, const struct linear_case *row, const struct linear_arrays *x,
                        const double *found, int64_t position, double tolerance) {
    const int64_t width = row->heads * row->width;
    for (int64_t n = 0; n < row->batch * width; n++) {
        const double expected = x->gradient[LINEAR_D_O][(n / width * row->length + position) * width + n % width];
        if (!(fabs(expected - found[n]) <= tolerance))
            fail_msg("%s, %s: decoding token %lld: o[%lld]: expected %.9g, found %.9g", row->name, ops->name,
                     (long long)position, (long long)n, expected, found[n]);
    }
}

void linear_device_decode(const struct ops *ops, const struct ops *oracle, const struct linear_case *row) {
    enum { BATCH_MOST = 4 };
    const int64_t features = (row->kind == FEATURE_HEDGEHOG ? 2 : 1) * row->columns, batch = row->batch;
    const int64_t ring = row->window < row->length ? row->window : row->length;
    struct linear_arrays x;
    struct tensor p[LINEAR_INPUTS] = {0};
    fill(ops, row, &x);
    linear_run(oracle, row, &x, false);
    for (int n = 0; n < LINEAR_INPUTS; n++)
        if (n != LINEAR_D_O) p[n] = place(ops, tensor_1d(NULL, linear_dtype(ops, n, false), x.counts[n]), x.in[n]);
    struct linear_attention_decode a = {.features = linear_features(row, p), .near_only = row->near_only};
    const struct tensor o = place(ops, tensor_3d(NULL, ops->real, batch, row->heads, row->width), NULL);
    int32_t starts[BATCH_MOST];
    double *found;
    CHECK_OK(memory_new((size_t)tensor_count(o), sizeof *found, "outputs", &found));
    a.scale = 1 / sqrt((double)row->width);
    a.o = o;
    a.start = place(ops, tensor_1d(NULL, DTYPE_I32, batch), NULL);
    a.sums = place(ops, tensor_4d(NULL, ops->statistic, batch, row->groups, features, row->width + 1), NULL);
    a.peaks = place(ops, tensor_2d(NULL, ops->statistic, batch, row->groups), NULL);
    if (row->hidden) a.means = place(ops, tensor_3d(NULL, ops->statistic, batch, row->groups, features), NULL);
    if (ring) a.near_k = place(ops, tensor_4d(NULL, ops->real, batch, ring, row->groups, row->width), NULL);
    if (ring) a.near_v = place(ops, tensor_4d(NULL, ops->real, batch, ring, row->groups, row->width), NULL);
    for (a.position = 0; a.position < row->length; a.position++) {
        for (int64_t b = 0; b < batch; b++) starts[b] = x.start[b * row->length + a.position];
        CHECK_OK(ops->upload(ops, a.start, starts));
        a.q = token_of(p[LINEAR_Q], row, row->heads, a.position);
        a.k = token_of(p[LINEAR_K], row, row->groups, a.position);
        a.v = token_of(p[LINEAR_V], row, row->groups, a.position);
        CHECK_OK(ops->linear_attention_decode(ops, &a));
        case_move(ops, o, found, false);
        /* Features and state stay fp32: bf16 rounds nothing but the result. */
        check_token(ops, row, &x, found, a.position, ops->real == DTYPE_BF16 ? 0x1p-8 : LINEAR_F32);
    }
    const struct tensor blocks[] = {o, a.start, a.sums, a.peaks, a.means, a.near_k, a.near_v};
    for (size_t n = 0; n < sizeof blocks / sizeof *blocks; n++) ops->release(ops, blocks[n].data);
    for (int n = 0; n < LINEAR_INPUTS; n++) ops->release(ops, p[n].data);
    free(found);
    linear_free(&x);
}
