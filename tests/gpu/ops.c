/* Every operation that works on rows, on the GPU: on "cuda-f32" against the fp64 oracle within its case's bound, on
 * "cuda" (bf16) with inputs rounded to bf16 on both sides; from aligned memory and from an element behind it. Bounds:
 * ops/device_cases.h. */
#include "gpu/gpu.h"

#include "ops/device_cases.h"
#include "support/check.h"

#include <stdio.h>
#include <string.h>

/* GPT-2's own shapes, which the host takes too long for elsewhere: products whose algorithm cuBLASLt chooses anew,
 * grids of many blocks. Bounds grow with the depth of a sum as in op_cases.c. */
static const struct op_case large_cases[] = {
    {"gemm 1024x2304x768 bias", op_run_gemm, {1024, 2304, 768, 8}, 3e-5},
    {"gemm 1024x3072x768 bT bias gelu", op_run_gemm, {1024, 3072, 768, 2 | 8 | 16}, 3e-5},
    {"gemm 1024x768x3072 accumulate", op_run_gemm, {1024, 768, 3072, 4}, 8e-5},
    {"gemm 768x3072x1024 aT gradient", op_run_gemm, {768, 3072, 1024, 1 | 4 | 256}, 4e-5},
    {"gemm 512x50257x768 bT logits", op_run_gemm, {512, 50257, 768, 2 | 256}, 3e-5},
    {"norm layer 8192x768 delta", op_run_norm, {8192, 768, 0, 1 | 4}, 4e-6},
    {"norm_backward layer 8192x768", op_run_norm_backward, {8192, 768, 0, 7}, 1e-4},
    {"bias_backward 8192x3072", op_run_bias_backward, {8192, 3072, 3072}, 5e-5},
    {"embedding 8192x768 of 50257", op_run_embedding, {8192, 768, 50257, 0}, 2e-5},
    {"loss_rows 300x50257 all outputs", op_run_loss_rows, {300, 50257, 1 | 2 | 4 | 16, 10}, 4e-6},
    {"reductions 8192x768", op_run_reductions, {8192, 768, 768}, 1e-11},
    {"adamw 10000019", op_run_adamw, {10000019, 1000, 10, 10, 1}, 2e-6},
};

struct tables {
    struct bench oracle, got;
};

static void run_case(const struct op_case *row, const char *table, struct tables *t) {
    const bool bf16 = t->got.ops->real == DTYPE_BF16;
    const struct device_bounds bounds = device_bounds(row, bf16);
    char where[64];
    t->oracle.rounded = t->got.rounded = bf16;
    row->run(&t->oracle, row->n);
    row->run(&t->got, row->n);
    op_compare(row, table, &t->oracle, &t->got, bounds.real, bounds.other);
    bench_reset(&t->got);
    t->got.apart = 1;
    snprintf(where, sizeof where, "%s, an element apart", table);
    row->run(&t->got, row->n);
    op_compare(row, where, &t->oracle, &t->got, bounds.real, bounds.other);
    t->got.apart = 0;
    bench_reset(&t->oracle);
    bench_reset(&t->got);
}

/* --quick: of each operation the first case and every third after it, without the longest. */
static bool left_out(const struct op_case *cases, int r) {
    const struct op_case *row = &cases[r];
    int place = 0;
    if (!gpu_chose(row->name)) return true;
    if (!gpu_quick()) return false;
    while (place < r && cases[r - place - 1].run == row->run) place++;
    const bool product = row->run == op_run_gemm;
    return place % 3 != 0 || (product && row->n[0] * row->n[1] * row->n[2] > 1000000) || row->n[0] * row->n[1] > 200000;
}

static void run_cases(const struct op_case *cases, int count, const char *table) {
    struct tables t;
    bench_open(&t.oracle, "cpu-f64", NULL, 0);
    bench_open(&t.got, table, NULL, 0);
    for (int r = 0; r < count; r++)
        if (!left_out(cases, r)) run_case(&cases[r], table, &t);
    bench_close(&t.oracle);
    bench_close(&t.got);
}

static void run_table(const char *table) {
    run_cases(op_cases, op_case_count, table);
    run_cases(device_cases, device_case_count, table);
    if (!gpu_quick()) run_cases(large_cases, sizeof large_cases / sizeof *large_cases, table);
}
static void f32_agrees(void **state) {
    (void)state;
    run_table("cuda-f32");
}
static void bf16_agrees(void **state) {
    (void)state;
    run_table("cuda");
}
static void nan_is_seen(void **state) {
    (void)state;
    device_nan_is_seen("cuda");
    device_nan_is_seen("cuda-f32");
}
static void first_of_equal_counts(void **state) {
    (void)state;
    device_first_of_equal_counts("cuda");
}

int gpu_test_ops(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f32_agrees), cmocka_unit_test(bf16_agrees),
                                       cmocka_unit_test(nan_is_seen), cmocka_unit_test(first_of_equal_counts)};
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
