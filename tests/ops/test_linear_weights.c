/* The implied weights' divergence from the teacher's: against PyTorch (tests/oracles/make_linear_weights_goldens.py),
 * central differences, itself in double and on other numbers of threads; 0 where student and teacher are the same;
 * finite. */
#include "ops/linear_case.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 8 };
static const struct golden {
    struct linear_case row;
    double loss;
    /* gradients of q, k, and of each parameter: elements, then two weighted sums */
    double values[LINEAR_INPUTS - 2][SAMPLES + 2];
} goldens[] = {
#include "ops/linear_weights_goldens.inc"
};
enum { GOLDENS = sizeof goldens / sizeof *goldens };

/* The goldens' weight and gradient_scale. */
static const struct linear_weights_run usual = {.weight = 1.25, .gradient_scale = 0.75, .gradients = true};

static const struct ops *open_table(const char *name, int threads, const char *isa) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = threads, .isa = isa}, &ops));
    return ops;
}

static bool is_input(int n) {
    return n != LINEAR_V && n != LINEAR_D_O;
}

static void check(const struct golden *g, int input, const double *found, int64_t count, double tolerance) {
    double sums[2] = {0}, size = 0;
    const int place_of_gradient = input < LINEAR_V ? input : input - 2;
    for (int64_t n = 0; n < count; n++) {
        sums[0] += found[n] * linear_draw(n, 20);
        sums[1] += found[n] * linear_draw(n, 21);
        size += found[n] * found[n];
    }
    for (int n = 0; n < SAMPLES + 2 && count > 0; n++) {
        const int64_t place = (int64_t)(((uint64_t)n * 2654435761u + 12345) % (uint64_t)count);
        const double value = n < SAMPLES ? found[place] : sums[n - SAMPLES];
        const double expected = g->values[place_of_gradient][n];
        if (!(fabs(value - expected) <= tolerance * fmax(0.1, sqrt(size))))
            fail_msg("%s: gradient of %s, value %d: PyTorch has %.15g, found %.15g", g->row.name, linear_names[input],
                     n, expected, value);
    }
}

static void against_pytorch(const char *table, const char *isa, double tolerance) {
    const struct ops *ops = open_table(table, 2, isa);
    for (int n = 0; n < GOLDENS; n++) {
        const struct golden *g = &goldens[n];
        struct linear_weights_run run = usual;
        struct linear_arrays x;
        run.loss = 3; /* what was there stays */
        linear_fill(&g->row, &x);
        linear_run_weights(ops, &g->row, &x, &run);
        if (!(fabs(run.loss - 3 - g->loss) <= tolerance * fmax(0.1, fabs(g->loss))))
            fail_msg("%s: loss: PyTorch has %.15g, found %.15g", g->row.name, g->loss, run.loss - 3);
        for (int i = 0; i < LINEAR_INPUTS; i++)
            if (is_input(i)) check(g, i, x.gradient[i], x.counts[i], tolerance);
        linear_free(&x);
    }
    ops->close(ops);
}

static void test_goldens_double(void **state) {
    (void)state;
    against_pytorch("guard:cpu-f64", NULL, 1e-12);
}
static void test_goldens_float(void **state) {
    (void)state;
    against_pytorch("guard:cpu", NULL, 2e-5);
    against_pytorch("cpu", "avx2", 2e-5);
    against_pytorch("cpu", "base", 2e-5);
}

static double loss_of(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x) {
    struct linear_weights_run run = {.weight = 0.9, .gradient_scale = NAN};
    linear_run_weights(ops, row, x, &run);
    return run.loss;
}

/* Central differences by every element of every input. */
static void test_differences(void **state) {
    (void)state;
    static const struct linear_case rows[] = {
        {"exp", 2, 9, 2, 1, 3, FEATURE_EXP, 5, 0, 0, .cuts = {4}},
        {"exp, shared, window", 1, 11, 4, 2, 3, FEATURE_EXP, 5, 0, 3, .shared = true, .beta = true},
        {"exp, both directions", 1, 9, 2, 1, 3, FEATURE_EXP, 5, 0, 0, .cuts = {5}, .bidirectional = true},
        {"exp, large", 1, 9, 1, 1, 4, FEATURE_EXP, 6, 0, 2, .magnitude = 4},
        {"exp, more rows than a block", 1, 37, 1, 1, 3, FEATURE_EXP, 4, 0, 5, .beta = true, .cuts = {19}},
        {"hedgehog", 2, 11, 2, 1, 4, FEATURE_HEDGEHOG, 4, 0, 3, .beta = true, .cuts = {4}},
        {"hedgehog, window dropped", 2, 11, 2, 1, 4, FEATURE_HEDGEHOG, 4, 0, 3, .beta = true, .no_window = true},
        {"hedgehog, both directions", 1, 9, 2, 2, 3, FEATURE_HEDGEHOG, 3, 0, 0, .cuts = {5}, .bidirectional = true},
        {"hedgehog, squeeze", 1, 11, 2, 1, 3, FEATURE_HEDGEHOG, 3, 2, 3, .cuts = {4}},
        {"hedgehog, all near", 1, 9, 2, 1, 3, FEATURE_HEDGEHOG, 3, 0, 9, .cuts = {0}},
        {"relu", 1, 11, 2, 1, 4, FEATURE_RELU, 7, 0, 3, .bias = true, .beta = true},
        {"relu, squeeze", 2, 11, 4, 2, 3, FEATURE_RELU, 6, 2, 3, .bias = true, .beta = true, .cuts = {6}},
        {"relu, squeeze, no window", 1, 19, 2, 1, 3, FEATURE_RELU, 12, 3, 0, .bias = true},
        {"relu, T 1", 2, 1, 2, 1, 3, FEATURE_RELU, 4, 2, 0, .bias = true, .beta = true},
    };
    const struct ops *ops = open_table("cpu-f64", 1, NULL);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct linear_weights_run run = {.weight = 0.9, .gradient_scale = 0.7, .gradients = true};
        struct linear_arrays x;
        linear_fill(&rows[r], &x);
        /* Off the grid of 1/1024: a relu must not sit on its corner. Biases up: where all products of a pair's features
         * are next to nothing, their logarithm bends too much for a difference. */
        for (int64_t n = 0; n < x.counts[LINEAR_Q_BIAS]; n++) x.in[LINEAR_Q_BIAS][n] += 1;
        for (int64_t n = 0; n < x.counts[LINEAR_K_BIAS]; n++) x.in[LINEAR_K_BIAS][n] += 1;
        for (int i = 0; i < LINEAR_INPUTS; i++)
            for (int64_t n = 0; n < x.counts[i]; n++) x.in[i][n] += 0.0003 * sin((double)(n * 37 + i));
        linear_run_weights(ops, &rows[r], &x, &run);
        for (int i = 0; i < LINEAR_INPUTS; i++)
            for (int64_t n = 0; is_input(i) && n < x.counts[i]; n++) {
                const double before = x.in[i][n], step = 1e-5;
                x.in[i][n] = before + step;
                const double up = loss_of(ops, &rows[r], &x);
                x.in[i][n] = before - step;
                const double down = loss_of(ops, &rows[r], &x), expected = 0.7 * (up - down) / (2 * step);
                x.in[i][n] = before;
                if (!(fabs(expected - x.gradient[i][n]) <= 2e-7 * fmax(1, fabs(expected))))
                    fail_msg("%s: gradient of %s[%lld]: differences give %.9g, found %.9g", rows[r].name,
                             linear_names[i], (long long)n, expected, x.gradient[i][n]);
            }
        linear_free(&x);
    }
    ops->close(ops);
}

/* A window over all tokens, the teacher's own q and k: the student is the teacher. */
static void test_equality(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 7, 33, 129};
    static const char *const tables[] = {"cpu", "cpu-f64"};
    for (int t = 0; t < 2; t++) {
        const struct ops *ops = open_table(tables[t], 2, NULL);
        for (int n = 0; n < 4; n++) {
            struct linear_case row = {"equal", 2, lengths[n], 4, 2, 7, FEATURE_HEDGEHOG, 7, 0, 129, .cuts = {3, 20}};
            struct linear_arrays x;
            linear_fill(&row, &x);
            struct linear_weights_run run = {.weight = 1, .gradient_scale = 1, .own = true, .gradients = true};
            linear_run_weights(ops, &row, &x, &run);
            double largest = fabs(run.loss);
            for (int i = 0; i < LINEAR_INPUTS; i++)
                for (int64_t e = 0; e < x.counts[i]; e++) largest = fmax(largest, fabs(x.gradient[i][e]));
            if (!(largest <= 1e-6))
                fail_msg("%s, T %lld: expected no loss and no gradient, found %g and at most %g", tables[t],
                         (long long)row.length, run.loss, largest);
            row.window = 4; /* and the test can fail */
            run.loss = 0;
            linear_run_weights(ops, &row, &x, &run);
            if (row.length > 7 && !(run.loss > 0.1)) fail_msg("features equal the teacher: loss %g", run.loss);
            linear_free(&x);
        }
        ops->close(ops);
    }
}

static void expect_same_bits(const struct linear_case *row, const char *what, const char *name, const double *a,
                             const double *b, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (memcmp(&a[n], &b[n], sizeof *a) != 0)
            fail_msg("%s, %s: %s[%lld]: expected %.17g, found %.17g", row->name, what, name, (long long)n, a[n], b[n]);
}

static void test_threads(void **state) {
    (void)state;
    static const int counts[] = {2, 5};
    for (int n = 0; n < GOLDENS; n++) {
        const struct linear_case *row = &goldens[n].row;
        struct linear_weights_run one_run = usual;
        struct linear_arrays one;
        const struct ops *ops = open_table("cpu", 1, NULL);
        linear_fill(row, &one);
        linear_run_weights(ops, row, &one, &one_run);
        ops->close(ops);
        for (int t = 0; t < 2; t++) {
            char what[40];
            struct linear_weights_run run = usual;
            struct linear_arrays many;
            snprintf(what, sizeof what, "%d threads", counts[t]);
            ops = open_table("cpu", counts[t], NULL);
            linear_fill(row, &many);
            linear_run_weights(ops, row, &many, &run);
            ops->close(ops);
            expect_same_bits(row, what, "loss", &one_run.loss, &run.loss, 1);
            for (int i = 0; i < LINEAR_INPUTS; i++)
                expect_same_bits(row, what, linear_names[i], one.gradient[i], many.gradient[i], one.counts[i]);
            linear_free(&many);
        }
        linear_free(&one);
    }
}

/* Gradients are added to what is there, and one that is not wanted changes no other. */
static void test_added(void **state) {
    (void)state;
    const struct ops *ops = open_table("guard:cpu-f64", 2, NULL);
    for (int n = 0; n < GOLDENS; n++) {
        const struct linear_case *row = &goldens[n].row;
        struct linear_weights_run run = usual, some_run = usual;
        struct linear_arrays x, some;
        linear_fill(row, &x);
        linear_fill(row, &some);
        some_run.parameters = true;
        linear_run_weights(ops, row, &some, &some_run);
        linear_run_weights(ops, row, &x, &run);
        for (int i = LINEAR_Q_MAP; i < LINEAR_INPUTS; i++)
            expect_same_bits(row, "without dq and dk", linear_names[i], x.gradient[i], some.gradient[i], x.counts[i]);
        for (int64_t e = 0; e < x.counts[LINEAR_Q]; e++)
            if (some.gradient[LINEAR_Q][e] != 0) fail_msg("%s: dq was written, unasked", row->name);
        linear_run_weights(ops, row, &some, &some_run);
        linear_run_weights(ops, row, &x, &run);
        for (int i = LINEAR_Q_MAP; i < LINEAR_INPUTS; i++)
            for (int64_t e = 0; e < x.counts[i]; e++)
                if (x.gradient[i][e] != some.gradient[i][e]) fail_msg("%s: %s differs", row->name, linear_names[i]);
        assert_true(run.loss == some_run.loss);
        if (fabs(run.loss - 2 * goldens[n].loss) > 1e-10 * fabs(run.loss)) fail_msg("%s: loss not added", row->name);
        for (int64_t e = 0; e < SAMPLES; e++) {
            const int64_t place = (int64_t)(((uint64_t)e * 2654435761u + 12345) % (uint64_t)x.counts[LINEAR_Q]);
            if (fabs(x.gradient[LINEAR_Q][place] - 2 * goldens[n].values[0][e]) > 1e-10)
                fail_msg("%s: dq[%lld] not added", row->name, (long long)place);
        }
        linear_free(&x);
        linear_free(&some);
    }
    ops->close(ops);
}

/* Scores of hundreds and of more than the dtype holds, features that never meet: all stays finite. */
static void test_huge_scores(void **state) {
    (void)state;
    const struct ops *tables[] = {open_table("cpu", 2, NULL), open_table("cpu-f64", 2, NULL)};
    static const double magnitudes[] = {8, 60, 2000, 1e15};
    for (int t = 0; t < 2; t++)
        for (int n = 0; n < GOLDENS; n++)
            for (int m = 0; m < 4; m++) {
                struct linear_case row = goldens[n].row;
                struct linear_weights_run run = usual;
                struct linear_arrays x;
                row.magnitude = magnitudes[m];
                linear_fill(&row, &x);
                for (int64_t e = 0; m == 2 && e < x.counts[LINEAR_V]; e++) x.in[LINEAR_V][e] *= 1e4;
                for (int64_t e = 0; m == 3 && e < x.counts[LINEAR_D_O]; e++) x.in[LINEAR_D_O][e] *= 1e38;
                linear_run_weights(tables[t], &row, &x, &run);
                if (!isfinite(run.loss)) fail_msg("%s, magnitude %g: loss %g", row.name, row.magnitude, run.loss);
                for (int i = 0; i < LINEAR_INPUTS; i++)
                    for (int64_t e = 0; e < x.counts[i]; e++)
                        if (!isfinite(x.gradient[i][e]))
                            fail_msg("%s, magnitude %g, %s: %s[%lld] is %g", row.name, row.magnitude, tables[t]->name,
                                     linear_names[i], (long long)e, x.gradient[i][e]);
                linear_free(&x);
            }
    for (int t = 0; t < 2; t++) tables[t]->close(tables[t]);
}

/* Features that do not meet: the pair has the logarithm of the smallest normal number and no gradient but beta's. Token
 * 1 sees token 0, whose features are where its own are 0, and itself, where φ·φ = 2; the teacher gives each a half. */
static void test_floor(void **state) {
    (void)state;
    static const struct linear_case row = {"features that never meet", 1, 2, 1, 1,           1,
                                           FEATURE_HEDGEHOG,           2, 0, 0, .cuts = {0}, .beta = true};
    static const double smallest[] = {1.17549435082228751e-38, 2.2250738585072014e-308};
    for (int t = 0; t < 2; t++) {
        const struct ops *ops = open_table(t ? "guard:cpu-f64" : "guard:cpu", 1, NULL);
        const double log_smallest = log(smallest[t]), expected = -(log(2) + log_smallest) / 2;
        struct linear_weights_run run = {.weight = 1, .gradient_scale = 1, .gradients = true};
        struct linear_arrays x;
        linear_fill(&row, &x);
        for (int n = 0; n < 2; n++) {
            x.in[LINEAR_Q][n] = 400;
            x.in[LINEAR_K][n] = n ? 400 : -400;
            x.in[LINEAR_V][n] = x.in[LINEAR_D_O][n] = 0;
            x.in[LINEAR_Q_MAP][n] = x.in[LINEAR_K_MAP][n] = n ? -1 : 1;
        }
        x.in[LINEAR_BETA][0] = 0;
        linear_run_weights(ops, &row, &x, &run);
        if (!(fabs(run.loss - expected) <= 1e-5 * expected))
            fail_msg("%s, %s: expected a loss of %.9g, found %.9g", row.name, ops->name, expected, run.loss);
        for (int i = 0; i < LINEAR_INPUTS; i++)
            for (int64_t e = 0; e < x.counts[i]; e++)
                if (!(fabs(x.gradient[i][e]) <= 1e-5))
                    fail_msg("%s: gradient of %s: expected 0, found %g", row.name, linear_names[i], x.gradient[i][e]);
        linear_free(&x);
        ops->close(ops);
    }
}

/* Products just above the smallest number: one key's gradient is a sum of rows that each nearly fills the dtype. */
static void test_many_small_products(void **state) {
    (void)state;
    static const struct linear_case row = {"all rows miss one key", 1, 400, 1, 1,          1,
                                           FEATURE_HEDGEHOG,        2, 0,   0, .cuts = {0}};
    const struct ops *ops = open_table("cpu", 1, NULL);
    struct linear_weights_run run = {.weight = 1, .gradient_scale = 1, .gradients = true};
    struct linear_arrays x;
    linear_fill(&row, &x);
    for (int n = 0; n < 2; n++) x.in[LINEAR_Q_MAP][n] = x.in[LINEAR_K_MAP][n] = n ? -1 : 1;
    for (int64_t t = 0; t < row.length; t++) {
        x.in[LINEAR_Q][t] = 43; /* φ = [1, e^-86, e^-86, 1] */
        x.in[LINEAR_K][t] = t ? 43 : -43;
        x.in[LINEAR_D_O][t] = 10;
        x.in[LINEAR_V][t] = t ? 0 : 10; /* the teacher wants nothing else */
    }
    linear_run_weights(ops, &row, &x, &run);
    assert_true(run.loss > 80 * 399 && run.loss < 100 * 399);
    for (int i = 0; i < LINEAR_INPUTS; i++)
        for (int64_t e = 0; e < x.counts[i]; e++)
            if (!isfinite(x.gradient[i][e]))
                fail_msg("%s: gradient of %s[%lld] is %g", row.name, linear_names[i], (long long)e, x.gradient[i][e]);
    if (!(x.gradient[LINEAR_K][0] < -0.1)) fail_msg("dk[0]: expected to be drawn closer, %g", x.gradient[LINEAR_K][0]);
    linear_free(&x);
    ops->close(ops);
}

/* What the checks refuse, by name. */
static void test_refused(void **state) {
    (void)state;
    static float reals[256];
    static double sum[1];
    static int32_t start[4] = {0, 0, 0, 0};
    static const char *const expected[] = {"teacher_q", "teacher_k", "loss",    "near_only",
                                           "dq",        "dk",        "d_k_map", "d_beta"};
    const struct ops *ops = open_table("cpu", 1, NULL);
    for (int fault = -1; fault < 8; fault++) {
        struct linear_attention_weights a = {.weight = 1, .gradient_scale = 1};
        a.forward = (struct linear_attention){.q = tensor_4d(reals, DTYPE_F32, 1, 4, 2, 2),
                                              .k = tensor_4d(reals + 16, DTYPE_F32, 1, 4, 1, 2),
                                              .start = tensor_2d(start, DTYPE_I32, 1, 4),
                                              .causal = true,
                                              .scale = 1};
        a.forward.features.q_map = tensor_3d(reals + 24, DTYPE_F32, 2, 3, 2);
        a.forward.features.k_map = tensor_3d(reals + 36, DTYPE_F32, 1, 3, 2);
        a.teacher_q = fault == 0 ? a.forward.k : a.forward.q;
        a.teacher_k = fault == 1 ? a.forward.q : a.forward.k;
        a.loss = tensor_1d(sum, fault == 2 ? DTYPE_F32 : DTYPE_F64, 1);
        a.forward.near_only = fault == 3;
        if (fault == 4) a.dq = a.forward.k;
        if (fault == 5) a.dk = a.forward.q;
        if (fault == 6) a.gradients.k_map = a.forward.features.q_map;
        if (fault == 7) a.gradients.beta = tensor_1d(reals, DTYPE_F32, 2);
        error_clear();
        const enum status status = ops->linear_attention_weights(ops, &a);
        if (fault < 0) CHECK_OK(status);
        if (fault >= 0 && (status != STATUS_SHAPE || !strstr(error_message(), expected[fault])))
            fail_msg("a wrong %s: status %d, \"%s\"", expected[fault], (int)status, error_message());
    }
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens_double),
        cmocka_unit_test(test_goldens_float),
        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_equality),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_added),
        cmocka_unit_test(test_huge_scores),
        cmocka_unit_test(test_floor),
        cmocka_unit_test(test_many_small_products),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
