/* Attention on the GPU: every row of the tables that all tests of attention walk, in fp32 and bf16, dq by a kernel of
 * its own and by atomics; decoding. Bounds: ops/attention_device.h. */
#include "gpu/gpu.h"

#include "ops/attention_device.h"
#include "support/check.h"

enum { SHORT = 150 /* tokens: --quick */ };

/* Lengths of training, which walk many tiles and start many blocks. */
static const struct attention_case long_rows[] = {
    {"T 2048, D 64", 1, 2048, 2, 2, 64, 1, {FULL}, .plain = true, .fused = true},
    {"T 1500, D 128, documents, masks",
     1,
     1500,
     2,
     1,
     128,
     3,
     {WINDOW(256), SINKS(4), DILATED(16, 64)},
     .coefficients = {{1, 0.5, 0.25}, {0.5, -0.5, 1}},
     .cuts = {300, 301, 900}},
};
enum { LONG_ROWS = sizeof long_rows / sizeof *long_rows };

static void run_rows(const struct ops *ops, const struct attention_case *rows, int count) {
    for (int n = 0; n < count; n++) {
        if (!gpu_chose(rows[n].name) || (gpu_quick() && (n % 3 || rows[n].length > SHORT))) continue;
        device_attention(ops, &rows[n], (uint64_t)n, true);
    }
}

static void run_table(const char *name) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        run_rows(ops, attention_cases, attention_case_count);
        run_rows(ops, device_shapes, device_shape_count);
        run_rows(ops, long_rows, LONG_ROWS);
        ops->close(ops);
    }
}
static void f32_agrees(void **state) {
    (void)state;
    run_table("cuda-f32");
}
static void bf16_agrees(void **state) {
    (void)state;
    run_table("cuda");
}

static void decode_rows(const struct ops *ops, const struct ops *oracle, const struct attention_case *rows, int count) {
    for (int n = 0; n < count; n++) {
        const struct attention_case *row = &rows[n];
        if (row->bidirectional || !gpu_chose(row->name) || (gpu_quick() && n % 3)) continue;
        device_decode_row(ops, oracle, row, row->length - 1);
        device_decode_row(ops, oracle, row, row->length / 2);
    }
}

static void run_decode(const char *name) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    decode_rows(ops, oracle, attention_cases, attention_case_count);
    decode_rows(ops, oracle, device_shapes, device_shape_count);
    device_decode_lists(ops, oracle);
    ops->close(ops);
    oracle->close(oracle);
}
static void decode_f32(void **state) {
    (void)state;
    run_decode("cuda-f32");
}
static void decode_bf16(void **state) {
    (void)state;
    run_decode("cuda");
}

int gpu_test_attention(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f32_agrees), cmocka_unit_test(bf16_agrees),
                                       cmocka_unit_test(decode_f32), cmocka_unit_test(decode_bf16)};
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
