/* Linear attention of the CUDA table, executed on the host: against the CPU's oracle in fp32 and in bf16, in several
 * orders of threads. `test_linear_simt TEST ROW` runs the tests of this name (* stands for any letters), of tables the
 * rows whose name starts so. Tolerances: ops/linear_device.h. */
#include "ops/linear_device.h"
#include "simt/simt.h"
#include "support/check.h"

#include <string.h>

static const char *chosen = "";
static bool is_chosen(const struct linear_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

static void run_table(const char *name) {
    const struct ops *ops = linear_device_table(name, true), *oracle = linear_device_table("cpu-f64", true);
    for (int n = 0; n < linear_device_case_count; n++) {
        if (!is_chosen(&linear_device_cases[n])) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        linear_device_row(ops, oracle, &linear_device_cases[n], true);
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_table_f32(void **state) {
    (void)state;
    run_table("cuda-f32");
}
static void test_table_bf16(void **state) {
    (void)state;
    run_table("cuda");
}

static void run_decode(const char *name) {
    const struct ops *ops = linear_device_table(name, true), *oracle = linear_device_table("cpu-f64", true);
    for (int n = 0; n < linear_device_case_count; n++) {
        const struct linear_case *row = &linear_device_cases[n];
        if (!is_chosen(row) || row->bidirectional || row->no_window || row->length > 150) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        linear_device_decode(ops, oracle, row);
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_decode_f32(void **state) {
    (void)state;
    run_decode("cuda-f32");
}
static void test_decode_bf16(void **state) {
    (void)state;
    run_decode("cuda");
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table_f32), cmocka_unit_test(test_table_bf16),
                                       cmocka_unit_test(test_decode_f32), cmocka_unit_test(test_decode_bf16)};
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
