/* Linear attention against itself in double, against finite differences, other chunks, other numbers of threads,
 * changed futures, token by token; and against the softmax attention that it estimates. */
#include "base/memory.h"
#include "base/rng.h"
#include "ops/linear_case.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct linear_case cases[] = {
    {"exp, T 1", 2, 1, 2, 1, 8, FEATURE_EXP, 16, 0, 0, .cuts = {0}},
    {"exp, T 7", 1, 7, 3, 3, 48, FEATURE_EXP, 24, 0, 0, .cuts = {3}},
    {"exp, T 129, documents", 2, 129, 4, 2, 8, FEATURE_EXP, 17, 0, 0, .cuts = {40, 100}, .beta = true},
    {"exp, T 1000", 1, 1000, 2, 1, 64, FEATURE_EXP, 272, 0, 0, .cuts = {500}},
    {"exp, one map, window", 1, 200, 4, 2, 16, FEATURE_EXP, 32, 0, 33, .shared = true, .beta = true},
    {"exp, both directions", 2, 150, 2, 1, 8, FEATURE_EXP, 24, 0, 0, .cuts = {70}, .bidirectional = true},
    {"exp, repeated tokens", 1, 150, 2, 1, 8, FEATURE_EXP, 24, 0, 9, .repeated = true},
    {"hedgehog, T 31", 2, 31, 2, 2, 48, FEATURE_HEDGEHOG, 48, 0, 0, .cuts = {7}},
    {"hedgehog, T 33, window", 1, 33, 4, 1, 64, FEATURE_HEDGEHOG, 64, 0, 16, .beta = true, .cuts = {20}},
    {"hedgehog, T 1000, window 64", 1, 1000, 2, 1, 64, FEATURE_HEDGEHOG, 64, 0, 64, .cuts = {333}, .beta = true},
    {"hedgehog, one-token documents", 1, 7, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 2, .cuts = {1, 2, 3, 4, 5, 6}},
    {"hedgehog, both directions", 1, 90, 2, 2, 8, FEATURE_HEDGEHOG, 8, 0, 0, .cuts = {31}, .bidirectional = true},
    {"hedgehog, window dropped", 2, 100, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 11, .no_window = true, .beta = true},
    {"hedgehog, window over all", 1, 90, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 90, .cuts = {50}},
    {"relu, T 129", 2, 129, 2, 1, 8, FEATURE_RELU, 12, 0, 5, .bias = true, .beta = true, .cuts = {64}},
    {"relu, squeeze", 2, 150, 4, 2, 8, FEATURE_RELU, 20, 5, 9, .bias = true, .beta = true, .cuts = {70}},
    {"relu, squeeze, no window", 1, 90, 2, 1, 48, FEATURE_RELU, 33, 17, 0, .cuts = {0}},
    {"hedgehog, squeeze", 1, 70, 2, 1, 8, FEATURE_HEDGEHOG, 9, 3, 6, .cuts = {30}},
};
enum { CASES = sizeof cases / sizeof *cases };

static const struct ops *open_table(const char *name, int threads, const char *isa) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = threads, .isa = isa}, &ops));
    return ops;
}

static void against_double(const char *table, const char *isa, double tolerance, int hand) {
    const struct ops *ops = open_table(table, 2, isa), *exact = open_table("cpu-f64", 2, NULL);
    for (int n = 0; n < CASES; n++) {
        if (!check_dealt(n, hand)) continue;
        struct linear_arrays expected, found;
        linear_fill(&cases[n], &expected);
        linear_fill(&cases[n], &found);
        linear_run(exact, &cases[n], &expected, true);
        linear_run(ops, &cases[n], &found, true);
        linear_compare(&cases[n], isa ? isa : table, &expected, &found, true, tolerance);
        linear_free(&expected);
        linear_free(&found);
    }
    ops->close(ops);
    exact->close(exact);
}

static void test_instructions(void **state) {
    (void)state;
    against_double("cpu", "base", 5e-5, 0);
    against_double("cpu", "avx2", 5e-5, 1);
    against_double("cpu", NULL, 5e-5, 2);
}
static void test_guarded(void **state) {
    (void)state;
    against_double("guard:cpu", NULL, 5e-5, 1);
    against_double("guard:cpu-f64", NULL, 1e-13, 2);
}

/* Chunks of 1, 16, 64 and all tokens agree to rounding. */
static void test_chunks(void **state) {
    (void)state;
    static const struct {
        const char *table;
        double tolerance;
    } tables[] = {{"cpu-f64", 1e-11}, {"cpu", 1e-4}};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        const struct ops *ops = open_table(tables[t].table, 2, NULL);
        for (int n = 0; n < CASES; n++) {
            const int64_t chunks[] = {1, 16, 64, cases[n].length};
            struct linear_case row = cases[n];
            struct linear_arrays expected;
            row.chunk = 32;
            linear_fill(&row, &expected);
            linear_run(ops, &row, &expected, true);
            for (int c = 0; c < 4; c++) {
                if (!check_dealt(n, c + (int)t)) continue;
                struct linear_arrays found;
                row.chunk = chunks[c];
                linear_fill(&row, &found);
                linear_run(ops, &row, &found, true);
                linear_compare(&row, tables[t].table, &expected, &found, true, tables[t].tolerance);
                linear_free(&found);
            }
            linear_free(&expected);
        }
        ops->close(ops);
    }
}

static double loss(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x) {
    linear_run(ops, row, x, false);
    double sum = 0;
    for (int64_t n = 0; n < x->counts[LINEAR_D_O]; n++) sum += x->gradient[LINEAR_D_O][n] * x->in[LINEAR_D_O][n];
    return sum;
}

/* Central differences of Σ o·d_o by every element of every input. */
static void test_differences(void **state) {
    (void)state;
    static const struct linear_case rows[] = {
        {"exp", 2, 9, 2, 1, 3, FEATURE_EXP, 5, 0, 0, .cuts = {4}, .chunk = 4},
        {"exp, shared, window", 1, 11, 4, 2, 3, FEATURE_EXP, 5, 0, 3, .shared = true, .beta = true, .chunk = 4},
        {"exp, both directions", 1, 9, 2, 1, 3, FEATURE_EXP, 5, 0, 0, .cuts = {5}, .bidirectional = true, .chunk = 2},
        {"exp, large", 1, 9, 1, 1, 4, FEATURE_EXP, 6, 0, 2, .magnitude = 6, .chunk = 4},
        {"hedgehog", 2, 11, 2, 1, 4, FEATURE_HEDGEHOG, 4, 0, 3, .beta = true, .cuts = {4}, .chunk = 4},
        {"hedgehog, window dropped", 2, 11, 2, 1, 4, FEATURE_HEDGEHOG, 4, 0, 3, .beta = true, .no_window = true},
        {"hedgehog, both directions", 1, 9, 2, 2, 3, FEATURE_HEDGEHOG, 3, 0, 0, .cuts = {5}, .bidirectional = true},
        {"relu", 1, 11, 2, 1, 4, FEATURE_RELU, 7, 0, 3, .bias = true, .beta = true, .chunk = 4},
        {"relu, squeeze", 2, 11, 4, 2, 3, FEATURE_RELU, 6, 2, 3, .bias = true, .beta = true, .cuts = {6}, .chunk = 4},
        {"relu, squeeze, no window", 1, 9, 2, 1, 3, FEATURE_RELU, 12, 3, 0, .bias = true, .chunk = 4},
    };
    const struct ops *ops = open_table("cpu-f64", 1, NULL);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct linear_arrays x;
        linear_fill(&rows[r], &x);
        /* Off the grid of 1/1024: a relu must not sit on its corner. */
        for (int i = 0; i < LINEAR_INPUTS; i++)
            for (int64_t n = 0; n < x.counts[i]; n++) x.in[i][n] += 0.0003 * sin((double)(n * 37 + i));
        linear_run(ops, &rows[r], &x, true);
        for (int i = 0; i < LINEAR_INPUTS; i++)
            for (int64_t n = 0; i != LINEAR_D_O && n < x.counts[i]; n++) {
                const double before = x.in[i][n], step = 1e-5;
                x.in[i][n] = before + step;
                const double up = loss(ops, &rows[r], &x);
                x.in[i][n] = before - step;
                const double down = loss(ops, &rows[r], &x), expected = (up - down) / (2 * step);
                x.in[i][n] = before;
                if (!(fabs(expected - x.gradient[i][n]) <= 1e-7 * fmax(1, fabs(expected))))
                    fail_msg("%s: gradient of %s[%lld]: differences give %.9g, backward %.9g", rows[r].name,
                             linear_names[i], (long long)n, expected, x.gradient[i][n]);
            }
        linear_free(&x);
    }
    ops->close(ops);
}

static void test_threads(void **state) {
    (void)state;
    static const int counts[] = {2, 3, 5, 16};
    for (int n = 0; n < CASES; n++) {
        struct linear_arrays one, many;
        const struct ops *ops = open_table("cpu", 1, NULL);
        linear_fill(&cases[n], &one);
        linear_run(ops, &cases[n], &one, true);
        ops->close(ops);
        for (size_t t = 0; t < sizeof counts / sizeof *counts; t++) {
            char what[40];
            snprintf(what, sizeof what, "%d threads", counts[t]);
            ops = open_table("cpu", counts[t], NULL);
            linear_fill(&cases[n], &many);
            linear_run(ops, &cases[n], &many, true);
            ops->close(ops);
            for (int i = 0; i < LINEAR_INPUTS; i++)
                linear_expect_bits(&cases[n], what, linear_names[i], one.gradient[i], many.gradient[i], one.counts[i]);
            linear_free(&many);
        }
        linear_free(&one);
    }
}

static void test_no_leak(void **state) {
    (void)state;
    static const int64_t chunks[] = {0, 1, 16, 1000};
    static const double factors[] = {1.25, 80, 3e38};
    const struct ops *ops = open_table("cpu", 2, NULL);
    for (int n = 0; n < CASES; n++)
        for (int c = 0; c < 4; c++) {
            struct linear_case row = cases[n];
            if (row.bidirectional || row.batch > 1 || !check_dealt(n, c)) continue;
            struct linear_arrays before;
            row.chunk = chunks[c];
            linear_fill(&row, &before);
            linear_run(ops, &row, &before, false);
            const int64_t places[] = {0, 15, 16, 17, 63, 64, 65, row.length / 2, row.length - 1};
            for (int p = 0; p < 9; p++)
                for (int size = 0; size < 3 && places[p] < row.length; size++)
                    linear_check_no_leak(ops, &row, &before, places[p], factors[size]);
            linear_free(&before);
        }
    ops->close(ops);
}

/* Scores of hundreds: everything stays finite, forwards and backwards. */
static void test_huge_scores(void **state) {
    (void)state;
    const struct ops *tables[] = {open_table("cpu", 2, NULL), open_table("cpu-f64", 2, NULL)};
    static const double magnitudes[] = {8, 20, 60};
    for (int t = 0; t < 2; t++)
        for (int n = 0; n < CASES; n++)
            for (int m = 0; m < 3; m++) {
                struct linear_case row = cases[n];
                struct linear_arrays x;
                row.magnitude = magnitudes[m];
                linear_fill(&row, &x);
                linear_run(tables[t], &row, &x, true);
                for (int i = 0; i < LINEAR_INPUTS; i++)
                    for (int64_t e = 0; e < x.counts[i]; e++)
                        if (!isfinite(x.gradient[i][e]))
                            fail_msg("%s, magnitude %g, %s: %s[%lld] is %g", row.name, row.magnitude, tables[t]->name,
                                     linear_names[i], (long long)e, x.gradient[i][e]);
                linear_free(&x);
            }
    for (int t = 0; t < 2; t++) tables[t]->close(tables[t]);
}

/* FAVOR+ is an unbiased estimate of softmax attention: its error falls as 1/√m. */
static void test_error_falls(void **state) {
    (void)state;
    enum { LENGTH = 48, WIDTH = 16, DRAWS = 24 };
    static const int64_t sizes[] = {64, 256, 1024};
    const struct ops *ops = open_table("cpu-f64", 2, NULL);
    double errors[3] = {0};
    struct linear_case exact = {"softmax", 1, LENGTH, 1, 1, WIDTH, FEATURE_EXP, 1, 0, LENGTH, .magnitude = 0.4};
    struct linear_arrays softmax;
    linear_fill(&exact, &softmax);
    linear_run(ops, &exact, &softmax, false);
    for (int n = 0; n < 3; n++)
        for (int draw = 0; draw < DRAWS; draw++) {
            struct linear_case row = exact;
            struct linear_arrays x;
            row.window = 0;
            row.columns = sizes[n];
            row.shared = true;
            linear_fill(&row, &x);
            for (int64_t i = 0; i < x.counts[LINEAR_Q_MAP]; i++)
                x.in[LINEAR_Q_MAP][i] = x.in[LINEAR_K_MAP][i] =
                    rng_normal((uint64_t)draw, rng_substream(RNG_TEST, (uint64_t)n), (uint64_t)i);
            linear_run(ops, &row, &x, false);
            for (int64_t i = 0; i < x.counts[LINEAR_D_O]; i++)
                errors[n] += pow(x.gradient[LINEAR_D_O][i] - softmax.gradient[LINEAR_D_O][i], 2);
            linear_free(&x);
        }
    linear_free(&softmax);
    ops->close(ops);
    for (int n = 0; n < 2; n++) {
        const double ratio = sqrt(errors[n] / errors[n + 1]); /* four times the features: half the error */
        if (!(ratio > 1.7 && ratio < 2.4))
            fail_msg("error from %lld to %lld features: expected half, found 1/%.3g", (long long)sizes[n],
                     (long long)sizes[n + 1], ratio);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_instructions), cmocka_unit_test(test_guarded),     cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_differences),  cmocka_unit_test(test_threads),     cmocka_unit_test(test_no_leak),
        cmocka_unit_test(test_huge_scores),  cmocka_unit_test(test_error_falls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
