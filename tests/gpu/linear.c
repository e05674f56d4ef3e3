/* Linear attention on the GPU: every row of the tables that all tests of its kernels walk, and lengths of training, in
 * fp32 and bf16. Bounds: ops/linear_device.h. */
#include "gpu/gpu.h"

#include "ops/linear_device.h"
#include "support/check.h"

#include <string.h>

enum { SHORT = 100 /* tokens: --quick */, ALL_PAIRS = 1100 /* tokens: the CPU visits all pairs in double */ };

/* Many segments, slabs and blocks. */
static const struct linear_case long_rows[] = {
    {"performer, T 2048", 1, 2048, 2, 2, 64, FEATURE_EXP, 272, 0, 0, .cuts = {700}},
    {"kerformer, T 2048", 1, 2048, 2, 1, 64, FEATURE_HEDGEHOG, 64, 0, 64, .cuts = {700, 701}, .beta = true},
    {"relu-se, T 1000", 2, 1000, 2, 2, 64, FEATURE_RELU, 128, 16, 64, .bias = true, .beta = true, .cuts = {300}},
    {"exp, both directions, T 1000", 1, 1000, 2, 2, 64, FEATURE_EXP, 64, 0, 0, .cuts = {300}, .bidirectional = true},
};
enum { LONG_ROWS = sizeof long_rows / sizeof *long_rows };

typedef void check_row(const struct ops *ops, const struct ops *oracle, const struct linear_case *row);
static void both_passes(const struct ops *ops, const struct ops *oracle, const struct linear_case *row) {
    linear_device_row(ops, oracle, row, true);
}
static void weights(const struct ops *ops, const struct ops *oracle, const struct linear_case *row) {
    if (!row->near_only && row->length <= ALL_PAIRS) linear_device_weights(ops, oracle, row);
}

static void run_rows(check_row *check, const struct linear_case *rows, int count) {
    static const char *const tables[] = {"cuda-f32", "cuda"};
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int t = 0; t < 2; t++) {
        const struct ops *ops = device_table(tables[t], t);
        for (int n = 0; n < count; n++)
            if (gpu_chose(rows[n].name) && !(gpu_quick() && (n % 3 != t || rows[n].length > SHORT)))
                check(ops, oracle, &rows[n]);
        ops->close(ops);
    }
    oracle->close(oracle);
}

static void passes_agree(void **state) {
    (void)state;
    run_rows(both_passes, linear_device_cases, linear_device_case_count);
    run_rows(both_passes, long_rows, LONG_ROWS);
}
static void weights_agree(void **state) {
    (void)state;
    run_rows(weights, linear_device_cases, linear_device_case_count);
    run_rows(weights, long_rows, LONG_ROWS);
}
static void decoding_agrees(void **state) {
    (void)state;
    run_rows(linear_device_decode, linear_decode_cases, linear_decode_case_count);
}

/* The same bits again. */
static void passes_repeat(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda", true);
    for (int n = 0; n < LONG_ROWS && !gpu_quick(); n++) {
        struct linear_arrays first, again;
        if (!gpu_chose(long_rows[n].name)) continue;
        linear_fill(&long_rows[n], &first);
        linear_run(ops, &long_rows[n], &first, true);
        for (int time = 0; time < 3; time++) {
            linear_fill(&long_rows[n], &again);
            linear_run(ops, &long_rows[n], &again, true);
            for (int i = 0; i < LINEAR_INPUTS; i++)
                if (memcmp(first.gradient[i], again.gradient[i], (size_t)first.counts[i] * sizeof(double)) != 0)
                    fail_msg("%s: gradient of %s has other bits", long_rows[n].name, linear_names[i]);
            linear_free(&again);
        }
        linear_free(&first);
    }
    ops->close(ops);
}

int gpu_test_linear(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(passes_agree), cmocka_unit_test(weights_agree),
                                       cmocka_unit_test(decoding_agrees), cmocka_unit_test(passes_repeat)};
    return cmocka_run_group_tests_name("linear", tests, NULL, NULL);
}
