/* Attention against PyTorch in float64 (tests/oracles/make_attention_goldens.py). */
#include "ops/attention_case.h"
#include "support/check.h"

#include <math.h>

enum { SAMPLES = 8, OUTPUTS = 5 };
static const struct golden {
    struct attention_case row;
    double values[OUTPUTS][SAMPLES + 2]; /* of o, dq, dk, dv, dcoefficients: elements, then two weighted sums */
} goldens[] = {
#include "ops/attention_goldens.inc"
};

/* The script's formula: a number in [-1, 1). */
static double draw(int64_t n, int64_t part) {
    return (double)((n * 7919 + part * 104729 + n / 64 * 31) % 2048 - 1024) / 1024;
}

static void check(const struct golden *g, int output, const double *found, int64_t count, double tolerance) {
    static const char *const names[OUTPUTS] = {"o", "dq", "dk", "dv", "dcoefficients"};
    double sums[2] = {0}, size = 0;
    for (int64_t n = 0; n < count; n++) {
        sums[0] += found[n] * draw(n, 5);
        sums[1] += found[n] * draw(n, 6);
        size += found[n] * found[n];
    }
    for (int n = 0; n < SAMPLES + 2; n++) {
        const int64_t place = (int64_t)(((uint64_t)n * 2654435761u + 12345) % (uint64_t)count);
        const double value = n < SAMPLES ? found[place] : sums[n - SAMPLES], expected = g->values[output][n];
        if (!(fabs(value - expected) <= tolerance * fmax(1, sqrt(size))))
            fail_msg("%s: %s, value %d: PyTorch has %.15g, found %.15g", g->row.name, names[output], n, expected,
                     value);
    }
}

static void against_pytorch(const char *table, double tolerance) {
    const struct ops *ops;
    CHECK_OK(ops_open(table, &(struct ops_options){.threads = 2}, &ops));
    for (size_t n = 0; n < sizeof goldens / sizeof *goldens; n++) {
        const struct golden *g = &goldens[n];
        const int64_t queries = case_query_count(&g->row), keys = case_key_count(&g->row);
        struct attention_arrays x;
        case_fill(&g->row, 1, &x);
        for (int64_t i = 0; i < queries; i++) {
            x.q[i] = 3 * draw(i, 1);
            x.d_o[i] = draw(i, 4);
        }
        for (int64_t i = 0; i < keys; i++) {
            x.k[i] = draw(i, 2);
            x.v[i] = draw(i, 3);
        }
        case_run(ops, &g->row, &x, true);
        check(g, 0, x.o, queries, tolerance);
        check(g, 1, x.dq, queries, tolerance);
        check(g, 2, x.dk, keys, tolerance);
        check(g, 3, x.dv, keys, tolerance);
        check(g, 4, x.dcoefficients, g->row.heads * g->row.count, tolerance);
        case_free(&x);
    }
    ops->close(ops);
}

static void test_double(void **state) {
    (void)state;
    against_pytorch("cpu-f64", 1e-13);
}
static void test_float(void **state) {
    (void)state;
    against_pytorch("cpu", 1e-5);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_double), cmocka_unit_test(test_float)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
