/* Every operation at awkward shapes: fp32 on each instruction set against the fp64 oracle, within the bound of its row;
 * the same bits with 1, 2 and 3 threads; all of it under the guard. `test_op_agree NAME` runs the rows whose name
 * starts so. */
#include "support/check.h"
#include "tests/ops/op_cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK(call) expect_ok(call, #call)

static const char *chosen = "";

static void tables_agree(void **state) {
    (void)state;
    static const char *const isas[] = {"base", "avx2", "avx512"};
    enum { ISAS = 3, THREADS = 3 };
    struct bench oracle, tables[ISAS][THREADS];
    bench_open(&oracle, "guard:cpu-f64", NULL, 2);
    for (int i = 0; i < ISAS * THREADS; i++) {
        bench_open(&tables[i / THREADS][i % THREADS], "guard:cpu", isas[i / THREADS], i % THREADS + 1);
    }
    for (int r = 0; r < op_case_count; r++) {
        const struct op_case *row = &op_cases[r];
        if (strncmp(row->name, chosen, strlen(chosen)) != 0) continue;
        row->run(&oracle, row->n);
        for (int i = 0; i < ISAS; i++) {
            if (!check_dealt(r, i)) continue;
            for (int t = 0; t < THREADS; t++) row->run(&tables[i][t], row->n);
            const struct op_bounds bounds = {row->bound, row->bound};
            op_compare(row, isas[i], &oracle, &tables[i][0], bounds, bounds);
            for (int t = 1; t < THREADS; t++) op_compare_bits(row, isas[i], &tables[i][0], &tables[i][t]);
            for (int t = 0; t < THREADS; t++) bench_reset(&tables[i][t]);
        }
        bench_reset(&oracle);
    }
    for (int i = 0; i < ISAS * THREADS; i++) bench_close(&tables[i / THREADS][i % THREADS]);
    bench_close(&oracle);
}

/* The oracle itself gives the same bits at any number of threads. */
static void oracle_repeats(void **state) {
    (void)state;
    struct bench one, three;
    bench_open(&one, "cpu-f64", NULL, 1);
    bench_open(&three, "cpu-f64", NULL, 3);
    for (int r = 0; r < op_case_count; r++) {
        op_cases[r].run(&one, op_cases[r].n);
        op_cases[r].run(&three, op_cases[r].n);
        op_compare_bits(&op_cases[r], "f64", &one, &three);
        bench_reset(&one);
        bench_reset(&three);
    }
    bench_close(&one);
    bench_close(&three);
}

/* Every pair of dtypes, values that bf16 holds exactly, ties to even, and NaN. */
static void copies_convert(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "guard:cpu", NULL, 1);
    static const float from[] = {0, 1, -2.5f, 1.00390625f, 1.01171875f, INFINITY, -INFINITY, 3.4e38f, NAN};
    static const float want[] = {0, 1, -2.5f, 1.0f, 1.015625f, INFINITY, -INFINITY, INFINITY, NAN};
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F64, DTYPE_BF16};
    enum { COUNT = sizeof from / sizeof from[0] };
    for (int i = 0; i < 9; i++) {
        float f32[COUNT], back[COUNT];
        double first[COUNT], second[COUNT];
        memcpy(f32, from, sizeof from);
        struct tensor source = tensor_1d(f32, DTYPE_F32, COUNT), end = tensor_1d(back, DTYPE_F32, COUNT);
        struct tensor a = tensor_1d(first, dtypes[i / 3], COUNT), z = tensor_1d(second, dtypes[i % 3], COUNT);
        OK(b.ops->copy(b.ops, source, a));
        OK(b.ops->copy(b.ops, a, z));
        OK(b.ops->copy(b.ops, z, end));
        bool rounded = a.dtype == DTYPE_BF16 || z.dtype == DTYPE_BF16;
        for (int j = 0; j < COUNT; j++) {
            float expected = rounded ? want[j] : from[j];
            if (isnan(expected))
                assert_true(isnan(back[j]));
            else
                assert_true(back[j] == expected);
        }
    }
    bench_close(&b);
}

/* A non-finite logit shows in every figure of its row. */
static void nan_is_seen(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "guard:cpu", NULL, 1);
    struct loss_rows a = {
        .student = bench_normal(&b, 2, DIMS(2, 70), 1, 0), .temperature = 1, .kl_weight = 1, .scale = 1};
    a.teacher = bench_normal(&b, 2, DIMS(2, 70), 1, 0);
    a.gradient = bench_unset(&b, 2, DIMS(2, 70));
    a.kl = bench_unset_statistic(&b, 1, DIMS(2));
    bench_set(&b, a.student, 75, NAN);
    OK(b.ops->loss_rows(b.ops, &a));
    double *kl = bench_values(&b, a.kl), *gradient = bench_values(&b, a.gradient);
    assert_true(isfinite(kl[0]));
    assert_true(isnan(kl[1]));
    assert_true(isfinite(gradient[5]));
    assert_true(isnan(gradient[75]));
    free(kl);
    free(gradient);
    struct tensor out = bench_doubles(&b, 1), x = bench_normal(&b, 1, DIMS(100), 1, 0);
    bench_set(&b, x, 42, INFINITY);
    OK(b.ops->sum_squares(b.ops, x, out));
    assert_true(isinf(*(double *)out.data));
    bench_close(&b);
}

int main(int argc, char **argv) {
    if (argc > 1) chosen = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_agree),
        cmocka_unit_test(oracle_repeats),
        cmocka_unit_test(copies_convert),
        cmocka_unit_test(nan_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
