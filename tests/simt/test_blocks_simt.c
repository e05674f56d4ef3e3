/* Attention to chosen blocks, and learning to choose, of the CUDA table, executed on the host. `test_blocks_simt TEST
 * ROW` runs the tests of this name (* stands for any letters), of tables the rows whose name starts so. Tolerances:
 * ops/blocks_device.h. */
#include "ops/blocks_device.h"
#include "simt/simt.h"
#include "support/check.h"

#include <string.h>

enum { LONG = 450 /* tokens: a row that takes minutes */ };

static const char *chosen = "";
static bool is_chosen(const struct nsa_case *row) {
    return row->length <= LONG && strncmp(row->name, chosen, strlen(chosen)) == 0;
}

static const struct ops *open_table(const char *name, bool deterministic) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = 1, .deterministic = deterministic}, &ops));
    return ops;
}

static void run_rows(const struct ops *ops, const struct nsa_case *rows, int count, int parts) {
    for (int n = 0; n < count; n++) {
        if (!is_chosen(&rows[n])) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        device_blocks(ops, &rows[n], parts);
    }
}

static void run_table(const char *name, int parts) {
    const struct ops *ops = open_table(name, true);
    run_rows(ops, nsa_cases, nsa_case_count, parts);
    run_rows(ops, block_shapes, block_shape_count, parts);
    ops->close(ops);
}
static void test_forward_f32(void **state) {
    (void)state;
    run_table("cuda-f32", NSA_FINE);
}
static void test_forward_bf16(void **state) {
    (void)state;
    run_table("cuda", NSA_FINE);
}
static void test_backward_f32(void **state) {
    (void)state;
    run_table("cuda-f32", NSA_FINE | NSA_BACKWARD);
}
static void test_backward_bf16(void **state) {
    (void)state;
    run_table("cuda", NSA_FINE | NSA_BACKWARD);
}
static void test_mass_f32(void **state) {
    (void)state;
    run_table("cuda-f32", NSA_MASS | NSA_BACKWARD);
}
static void test_mass_bf16(void **state) {
    (void)state;
    run_table("cuda", NSA_MASS | NSA_BACKWARD);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward_f32),
        cmocka_unit_test(test_forward_bf16),
        cmocka_unit_test(test_backward_f32),
        cmocka_unit_test(test_backward_bf16),
        cmocka_unit_test(test_mass_f32),
        cmocka_unit_test(test_mass_bf16),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
