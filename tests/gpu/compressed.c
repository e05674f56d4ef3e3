/* The compressed branch of kind nsa on the GPU: every row of the tables that all its tests walk, in fp32 and bf16, dq
 * by a kernel of its own and by atomics; gates, ties, decoding. Bounds: ops/compressed_device.h. */
#include "gpu/gpu.h"

#include "ops/attention_device.h"
#include "ops/compressed_device.h"
#include "support/check.h"

enum { SHORT = 150 /* tokens: --quick */ };

/* A length of training, with the blocks of a recipe: many tiles, several pieces of compression. */
static const struct nsa_case long_rows[] = {
    {"T 4096, D 64", 1, 4096, 12, 12, 64, 32, 16, 64, 16, 512, 1, false, {0}, false},
    {"T 3000, D 128, documents", 2, 3000, 4, 2, 128, 32, 16, 64, 8, 512, 2, false, {300, 301, 1900}, false},
};
enum { LONG_ROWS = sizeof long_rows / sizeof *long_rows };

static void run_rows(const struct ops *ops, const struct ops *oracle, const struct nsa_case *rows, int count) {
    for (int n = 0; n < count; n++) {
        if (!gpu_chose(rows[n].name) || (gpu_quick() && (n % 3 || rows[n].length > SHORT))) continue;
        compressed_row(ops, oracle, &rows[n]);
    }
}

static void run_table(const char *name) {
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        run_rows(ops, oracle, nsa_cases, nsa_case_count);
        run_rows(ops, oracle, compressed_shapes, compressed_shape_count);
        if (deterministic) run_rows(ops, oracle, long_rows, LONG_ROWS);
        ops->close(ops);
    }
    oracle->close(oracle);
}
static void f32_agrees(void **state) {
    (void)state;
    run_table("cuda-f32");
}
static void bf16_agrees(void **state) {
    (void)state;
    run_table("cuda");
}

static void others_agree(void **state) {
    (void)state;
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        if (gpu_chose("gates")) compressed_gates(ops, oracle);
        if (gpu_chose("decoding")) compressed_decoding(ops, oracle);
        if (gpu_chose("ties")) compressed_ties(ops);
        if (gpu_chose("alone")) compressed_alone(ops, &nsa_cases[7]);
        ops->close(ops);
    }
    oracle->close(oracle);
}

int gpu_test_compressed(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f32_agrees), cmocka_unit_test(bf16_agrees),
                                       cmocka_unit_test(others_agree)};
    return cmocka_run_group_tests_name("compressed", tests, NULL, NULL);
}
