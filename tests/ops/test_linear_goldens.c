/* Linear attention against PyTorch in float64 (tests/oracles/make_linear_goldens.py). */
#include "ops/linear_case.h"
#include "support/check.h"

#include <math.h>

enum { SAMPLES = 8 };
static const struct golden {
    struct linear_case row;
    /* of o, then the gradients of q, k, v and of each parameter: elements, then two weighted sums */
    double values[LINEAR_INPUTS][SAMPLES + 2];
} goldens[] = {
#include "ops/linear_goldens.inc"
};

/* Place of an input's gradient in a golden: o comes first. */
static int place_of(int input) {
    return input == LINEAR_D_O ? 0 : input < LINEAR_D_O ? input + 1 : input;
}

static void check(const struct golden *g, int input, const double *found, int64_t count, double tolerance) {
    double sums[2] = {0}, size = 0;
    for (int64_t n = 0; n < count; n++) {
        sums[0] += found[n] * linear_draw(n, 20);
        sums[1] += found[n] * linear_draw(n, 21);
        size += found[n] * found[n];
    }
    for (int n = 0; n < SAMPLES + 2 && count > 0; n++) {
        const int64_t place = (int64_t)(((uint64_t)n * 2654435761u + 12345) % (uint64_t)count);
        const double value = n < SAMPLES ? found[place] : sums[n - SAMPLES], expected = g->values[place_of(input)][n];
        if (!(fabs(value - expected) <= tolerance * fmax(1, sqrt(size))))
            fail_msg("%s, chunk %lld: %s, value %d: PyTorch has %.15g, found %.15g", g->row.name,
                     (long long)g->row.chunk, linear_names[input], n, expected, value);
    }
}

static void against_pytorch(const char *table, const char *isa, double tolerance) {
    static const int64_t chunks[] = {0, 1, 16, 7};
    const struct ops *ops;
    CHECK_OK(ops_open(table, &(struct ops_options){.threads = 2, .isa = isa}, &ops));
    for (size_t n = 0; n < sizeof goldens / sizeof *goldens; n++)
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            struct golden g = goldens[n];
            struct linear_arrays x;
            g.row.chunk = chunks[c];
            linear_fill(&g.row, &x);
            linear_run(ops, &g.row, &x, true);
            for (int i = 0; i < LINEAR_INPUTS; i++) check(&g, i, x.gradient[i], x.counts[i], tolerance);
            linear_free(&x);
        }
    ops->close(ops);
}

static void test_double(void **state) {
    (void)state;
    against_pytorch("guard:cpu-f64", NULL, 1e-12);
}
static void test_float(void **state) {
    (void)state;
    against_pytorch("guard:cpu", NULL, 1e-5);
}
static void test_other_instructions(void **state) {
    (void)state;
    against_pytorch("cpu", "avx2", 1e-5);
    against_pytorch("cpu", "base", 1e-5);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_double), cmocka_unit_test(test_float),
                                       cmocka_unit_test(test_other_instructions)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
