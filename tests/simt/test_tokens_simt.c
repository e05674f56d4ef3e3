/* Attention to single tokens and learning where to look, of the CUDA table, executed on the host: in fp32 and in bf16
 * against the CPU's oracle, in several orders of threads. `test_tokens_simt TEST ROW` runs the tests of this name (*
 * stands for any letters), of tables the rows whose name starts so. Tolerances: ops/tokens_device.h. */
#include "ops/tokens_device.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <string.h>

static const char *chosen = "";

static void run_table(const char *name, const struct index_case *rows, int count, int64_t longest, int parts) {
    const struct ops *ops = index_open(name, 1, NULL), *oracle = index_open("cpu-f64", 1, NULL);
    for (int n = 0; n < count; n++) {
        if (strncmp(rows[n].name, chosen, strlen(chosen)) != 0 || rows[n].length > longest) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        tokens_agree(ops, oracle, &rows[n], parts);
    }
    ops->close(ops);
    oracle->close(oracle);
}

static void attend_f32(void **state) {
    (void)state;
    run_table("cuda-f32", tokens_shapes, tokens_shape_count, 1000, RUN_ATTEND | RUN_BACKWARD);
}
static void attend_bf16(void **state) {
    (void)state;
    run_table("cuda", tokens_shapes, tokens_shape_count, 1000, RUN_ATTEND | RUN_BACKWARD);
}

static void learn_f32(void **state) {
    (void)state;
    run_table("cuda-f32", tokens_shapes, tokens_shape_count, 200, RUN_LEARN | RUN_BACKWARD);
}
static void learn_bf16(void **state) {
    (void)state;
    run_table("cuda", tokens_shapes, tokens_shape_count, 200, RUN_LEARN | RUN_BACKWARD);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attend_f32),
        cmocka_unit_test(attend_bf16),
        cmocka_unit_test(learn_f32),
        cmocka_unit_test(learn_bf16),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
