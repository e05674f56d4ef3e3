/* See device_cases.h. */
#include "tests/ops/device_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define OK(call) expect_ok(call, #call)

/* Rows shorter than a pack, than a warp, wider than what threads keep; runs of ids
 * within, across and beyond chunks and tiles; bounds as in op_cases.c. */
const struct op_case device_cases[] = {
    {"norm layer 2x3", op_run_norm, {2, 3, 0, 4}, 4e-6},
    {"norm layer 33x8 delta", op_run_norm, {33, 8, 0, 1 | 4}, 4e-6},
    {"norm rms 1x63", op_run_norm, {1, 63, 1, 0}, 4e-6},
    {"norm layer 300x64", op_run_norm, {300, 64, 0, 4}, 4e-6},
    {"norm rms 2x65 in place", op_run_norm, {2, 65, 1, 1 | 2}, 4e-6},
    {"norm layer 3x1025 delta", op_run_norm, {3, 1025, 0, 1 | 4}, 4e-6},
    {"norm rms 2x1032 delta", op_run_norm, {2, 1032, 1, 1}, 4e-6},
    {"norm layer 2x8200 in place (wider than kept)", op_run_norm, {2, 8200, 0, 1 | 2 | 4}, 4e-6},
    {"norm layer 1x8201 (wider than kept)", op_run_norm, {1, 8201, 0, 4}, 4e-6},
    {"norm_backward layer 2x3", op_run_norm_backward, {2, 3, 0, 7}, 2e-5},
    {"norm_backward layer 33x8", op_run_norm_backward, {33, 8, 0, 6}, 2e-5},
    {"norm_backward rms 300x63", op_run_norm_backward, {300, 63, 1, 3}, 2e-5},
    {"norm_backward layer 33x1025 bias", op_run_norm_backward, {33, 1025, 0, 4}, 3e-5},
    {"norm_backward layer 2x4104 (wider than kept)", op_run_norm_backward, {2, 4104, 0, 7}, 3e-5},
    {"norm_backward layer 1x4097 (wider than kept)", op_run_norm_backward, {1, 4097, 0, 6}, 3e-5},
    {"norm_backward layer 18x12296 (sums in scratch)", op_run_norm_backward, {18, 12296, 0, 6}, 3e-5},
    {"bias_backward 2x3", op_run_bias_backward, {2, 3, 3}, 1e-6},
    {"bias_backward 300x64 of 72", op_run_bias_backward, {300, 64, 72}, 1e-5},
    {"bias_backward 70x65 of 72", op_run_bias_backward, {70, 65, 72}, 1e-5},
    {"bias_backward 33x1025", op_run_bias_backward, {33, 1025, 1025}, 1e-5},
    {"embedding 2x3", op_run_embedding, {2, 3, 5, 0}, 1e-5},
    {"embedding 33x8 of 70000 (three passes)", op_run_embedding, {33, 8, 70000, 257}, 1e-5},
    {"embedding 300x64 of one id", op_run_embedding, {300, 64, 1, 2}, 2e-5},
    {"embedding 1200x8 of 300", op_run_embedding, {1200, 8, 300, 7}, 2e-5},
    {"embedding 65x1025", op_run_embedding, {65, 1025, 3, 0}, 1e-5},
    {"gelu_backward 1x1", op_run_gelu_backward, {1, 1, 0}, 2e-6},
    {"gelu_backward 33x63", op_run_gelu_backward, {33, 63, 1}, 2e-6},
    {"gelu_backward 2x1025", op_run_gelu_backward, {2, 1025, 0}, 2e-6},
    {"swiglu 2x3", op_run_swiglu, {2, 3, 0}, 2e-6},
    {"swiglu 33x8 in place", op_run_swiglu, {33, 8, 1}, 2e-6},
    {"swiglu 3x2056", op_run_swiglu, {3, 2056, 0}, 2e-6},
    {"rope 2x33x3x16", op_run_rope, {2, 33, 3, 16, 0, 4096}, 2e-6},
    {"rope 1x2x40x64 of a million", op_run_rope, {1, 2, 40, 64, 0, 1000000}, 2e-6},
    {"rope 1x300x1x6 inverse", op_run_rope, {1, 300, 1, 6, 1, 1000000}, 2e-6},
    {"loss_rows 2x1 all outputs", op_run_loss_rows, {2, 1, 1 | 2 | 4 | 16, 10}, 3e-6},
    {"loss_rows 3x7 all outputs", op_run_loss_rows, {3, 7, 1 | 2 | 4 | 8 | 16, 10}, 3e-6},
    {"loss_rows 3x8 temperature 2", op_run_loss_rows, {3, 8, 1 | 2 | 4 | 16, 20}, 3e-6},
    {"loss_rows 2x4104 in place", op_run_loss_rows, {2, 4104, 1 | 4 | 8, 10}, 3e-6},
    {"loss_rows 3x4099 large, temperature 0.5", op_run_loss_rows, {3, 4099, 1 | 2 | 4 | 16 | 64, 5}, 4e-6},
    {"loss_rows 3x1009 strided, temperature 2", op_run_loss_rows, {3, 1009, 1 | 2 | 4 | 8 | 256, 20}, 3e-6},
    {"log_softmax 2x7", op_run_log_softmax, {2, 7, 1}, 2e-6},
    {"log_softmax 2x4104", op_run_log_softmax, {2, 4104, 0}, 2e-6},
    {"reductions 1x3", op_run_reductions, {1, 3, 3}, 1e-12},
    {"reductions 33x63 of 64", op_run_reductions, {33, 63, 64}, 1e-12},
    {"reductions 300x8 of 16", op_run_reductions, {300, 8, 16}, 1e-12},
    {"reductions 3x3000 of 3008", op_run_reductions, {3, 3000, 3008}, 1e-12},
    {"adamw 3", op_run_adamw, {3, 2, 500, 10}, 2e-6},
    {"adamw 1025", op_run_adamw, {1025, 1, 0, 10}, 2e-6},
};
const int device_case_count = sizeof device_cases / sizeof device_cases[0];

/* What rounding to bf16 adds to a case's own bound, in units of 2^-8 (half of the last place of a significand of 8
 * bits): to outputs in bf16, and to the others. Inputs are the same on both sides, so only what is rounded on the way
 * can reach the others. */
static const struct rounding {
    const char *operation;
    struct op_bounds real, other;
    const char *reason;
} roundings[] = {
    {"gemm",
     {1, 4},
     {0, 0},
     "c is rounded once, and before bias and GELU too where cuBLASLt does not add them: absolute times 0.3·√depth, "
     "the products' standard deviation; GELU's slope is at most 1.13"},
    {"norm_backward", {1, 0}, {0, 0}, "dx is rounded once"},
    {"norm",
     {3, 3},
     {3, 3},
     "the sum is rounded before it is normalised, which shifts y by up to |sum|·rstd·|weight|; y is rounded"},
    {"bias_backward", {0, 0}, {0, 0}, "dbias is fp32"},
    {"embedding", {1, 0}, {0, 0}, "x is rounded once, the gradients are fp32"},
    {"gelu_backward", {1, 0}, {0, 0}, "dx is rounded once"},
    {"swiglu", {1, 0}, {0, 0}, "y and dx are rounded once"},
    {"rope", {1, 0}, {0, 0}, "x is rounded once"},
    {"loss_rows", {1, 0}, {0, 0}, "the gradient is rounded once, figures are fp32"},
    {"log_softmax", {1, 0}, {0, 0}, "y is rounded once"},
    {"reductions", {0, 0}, {0, 0}, "sums are fp64"},
    {"pointwise", {2, 0}, {0, 0}, "y is rounded when it is added to, and again when it is scaled"},
    {"adamw", {1, 0}, {0, 0}, "the copy that operations read is rounded once, all else is fp32 and fp64"},
};

/* Sums in another order than the CPU's, and expf with an error of its own. */
static const double device_factor = 4;

static const struct rounding *rounding_of(const struct op_case *row) {
    for (size_t i = 0; i < sizeof roundings / sizeof roundings[0]; i++) {
        const size_t length = strlen(roundings[i].operation);
        if (strncmp(row->name, roundings[i].operation, length) == 0 && row->name[length] == ' ') return &roundings[i];
    }
    fail_msg("%s: no bound is known for bf16", row->name);
    return NULL;
}

static struct op_bounds bounds_of(const struct op_case *row, bool bf16, struct op_bounds rounding) {
    const double unit = bf16 ? ldexp(1, -8) : 0, own = device_factor * row->bound;
    const double size = row->run == op_run_gemm ? 0.3 * sqrt((double)row->n[2]) : 1;
    return (struct op_bounds){own + rounding.relative * unit, own + rounding.absolute * unit * size};
}

struct device_bounds device_bounds(const struct op_case *row, bool bf16) {
    const struct rounding *rounding = rounding_of(row);
    return (struct device_bounds){bounds_of(row, bf16, rounding->real), bounds_of(row, bf16, rounding->other)};
}

void device_nan_is_seen(const char *table) {
    struct bench b;
    bench_open(&b, table, NULL, 1);
    struct loss_rows a = {
        .student = bench_normal(&b, 2, DIMS(3, 70), 1, 0), .temperature = 1, .kl_weight = 1, .scale = 1};
    a.teacher = bench_normal(&b, 2, DIMS(3, 70), 1, 0);
    a.gradient = bench_unset(&b, 2, DIMS(3, 70));
    a.kl = bench_unset_statistic(&b, 1, DIMS(3));
    a.reverse_kl = bench_unset_statistic(&b, 1, DIMS(3));
    bench_set(&b, a.student, 75, INFINITY);
    bench_set(&b, a.teacher, 145, INFINITY);
    OK(b.ops->loss_rows(b.ops, &a));
    double *kl = bench_values(&b, a.kl), *reverse = bench_values(&b, a.reverse_kl),
           *gradient = bench_values(&b, a.gradient);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(isfinite(kl[r]) != 0, r == 0);
        assert_int_equal(isfinite(reverse[r]) != 0, r == 0);
        assert_int_equal(isfinite(gradient[70 * r + 5]) != 0, r == 0);
    }
    free(kl);
    free(reverse);
    free(gradient);
    struct tensor out = bench_doubles(&b, 1), x = bench_normal(&b, 1, DIMS(100), 1, 0);
    bench_set(&b, x, 42, INFINITY);
    OK(b.ops->sum_squares(b.ops, x, out));
    double *sum = bench_values(&b, out);
    assert_true(isinf(*sum));
    free(sum);
    bench_close(&b);
}

void device_first_of_equal_counts(const char *table) {
    enum { WIDTH = 6000 };
    static const struct {
        int a, b; /* the student's largest logits */
    } cases[] = {{3, 5}, {3, 4100}, {17, 40}, {40, 3000}, {511, 5999}};
    enum { CASES = sizeof cases / sizeof cases[0] };
    struct bench b;
    bench_open(&b, table, NULL, 1);
    struct loss_rows a = {.student = bench_normal(&b, 2, DIMS(2 * CASES, WIDTH), 0, 0), .temperature = 1};
    a.teacher = bench_normal(&b, 2, DIMS(2 * CASES, WIDTH), 0, 0);
    a.agree = bench_unset_statistic(&b, 1, DIMS(2 * CASES));
    for (int64_t r = 0; r < 2 * CASES; r++) {
        bench_set(&b, a.student, r * WIDTH + cases[r / 2].a, 2);
        bench_set(&b, a.student, r * WIDTH + cases[r / 2].b, 2);
        bench_set(&b, a.teacher, r * WIDTH + (r % 2 ? cases[r / 2].a : cases[r / 2].b), 1);
    }
    OK(b.ops->loss_rows(b.ops, &a));
    double *agree = bench_values(&b, a.agree);
    for (int r = 0; r < 2 * CASES; r++) assert_int_equal((int)agree[r], r % 2);
    free(agree);
    bench_close(&b);
}
