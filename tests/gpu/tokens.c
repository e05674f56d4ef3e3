/* Attention to single tokens and learning where to look on the GPU: every row of the tables that their tests walk, in
 * fp32 and bf16, and lengths that start many blocks; the same bits again. Bounds: ops/tokens_device.h. */
#include "gpu/gpu.h"

#include "ops/tokens_device.h"
#include "support/check.h"

#include <string.h>

enum { SHORT = 70 /* tokens: --quick */ };

/* Lengths of training: many ranges of tokens, walks of keys cut into pieces. */
static const struct index_case long_rows[] = {
    {"T 4096, D 64", 1, 4096, 4, 4, 64, 1, 4, 1, 32, 64, 128, 4, 0, 0, 0, {0}, false, 1},
    {"T 3000, D 128, documents", 2, 3000, 4, 2, 128, 2, 2, 2, 64, 100, 64, 2, 32, 8, 0, {700, 701, 1900}, false, 1},
};
enum { LONG_ROWS = sizeof long_rows / sizeof *long_rows };

static void run_rows(const struct ops *ops, const struct ops *oracle, const struct index_case *rows, int count) {
    for (int n = 0; n < count; n++) {
        if (!gpu_chose(rows[n].name) || (gpu_quick() && (n % 3 || rows[n].length > SHORT))) continue;
        tokens_agree(ops, oracle, &rows[n], RUN_ATTEND | RUN_LEARN | RUN_BACKWARD);
    }
}

static void run_table(const char *name) {
    const struct ops *ops = index_open(name, 1, NULL), *oracle = index_open("cpu-f64", 0, NULL);
    run_rows(ops, oracle, index_cases, index_case_count);
    run_rows(ops, oracle, tokens_shapes, tokens_shape_count);
    run_rows(ops, oracle, long_rows, LONG_ROWS);
    ops->close(ops);
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

/* What has run once gives the same bits again. */
static void same_bits(void **state) {
    (void)state;
    static const struct index_case rows[] = {
        {"quick", 1, 60, 2, 1, 16, 2, 2, 1, 8, 9, 6, 2, 0, 0, 0, {40}, false, 1},
        {"long", 2, 2500, 4, 2, 64, 2, 2, 1, 32, 40, 60, 4, 0, 0, 0, {900}, false, 1},
    };
    const struct index_case *row = &rows[gpu_quick() ? 0 : 1];
    const struct ops *ops = index_open("cuda", 1, NULL), *oracle = index_open("cpu-f64", 0, NULL);
    struct index_arrays x[2];
    for (int n = 0; n < 2; n++) {
        index_fill(row, &x[n]);
        if (n == 0) index_choose(oracle, row, &x[n], INDEX_LEARNED, 0);
        if (n == 1) memcpy(x[1].chosen, x[0].chosen, (size_t)index_chosen_count(row) * sizeof *x[0].chosen);
        index_run(ops, row, &x[n], RUN_FED);
    }
    for (int n = 0; n < OUTPUTS; n++)
        index_expect_bits(row, "again", index_output_names[n], x[0].outputs[n], x[1].outputs[n],
                          index_output_count(row, (enum output)n));
    for (int n = 0; n < GRADIENTS; n++)
        index_expect_bits(row, "again", index_gradient_names[n], x[0].gradients[n], x[1].gradients[n],
                          index_gradient_count(row, n));
    for (int n = 0; n < 2; n++) index_free(&x[n]);
    ops->close(ops);
    oracle->close(oracle);
}

int gpu_test_tokens(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f32_agrees), cmocka_unit_test(bf16_agrees),
                                       cmocka_unit_test(same_bits)};
    return cmocka_run_group_tests_name("tokens", tests, NULL, NULL);
}
