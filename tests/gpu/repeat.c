/* `deterministic`: the same inputs give the same bits again, in other memory and behind other work, whatever the order
 * in which the GPU ran its blocks. */
#include "gpu/gpu.h"

#include "ops/attention_device.h"
#include "ops/device_cases.h"
#include "support/check.h"

#include <stdio.h>
#include <string.h>

enum { TIMES = 4, LONGEST = 1200 /* tokens */ };

static void repeat_cases(const struct op_case *cases, int count, const char *table) {
    struct bench first, again;
    char where[64];
    bench_open_with(&first, table, &(struct ops_options){.deterministic = true});
    bench_open_with(&again, table, &(struct ops_options){.deterministic = true});
    for (int r = 0; r < count; r++) {
        if (!gpu_chose(cases[r].name) || (gpu_quick() && (r % 4 || cases[r].n[0] * cases[r].n[1] > 50000))) continue;
        cases[r].run(&first, cases[r].n);
        for (int time = 1; time < TIMES; time++) {
            snprintf(where, sizeof where, "%s, run %d", table, time + 1);
            cases[r].run(&again, cases[r].n);
            op_compare_bits(&cases[r], where, &first, &again);
            bench_reset(&again);
        }
        bench_reset(&first);
    }
    bench_close(&first);
    bench_close(&again);
}

static void ops_repeat(void **state) {
    (void)state;
    static const char *const tables[] = {"cuda-f32", "cuda"};
    for (int t = 0; t < 2; t++) {
        repeat_cases(op_cases, op_case_count, tables[t]);
        repeat_cases(device_cases, device_case_count, tables[t]);
    }
}

static void same(const struct attention_case *row, const char *table, const char *name, const double *a,
                 const double *b, int64_t count) {
    if (memcmp(a, b, (size_t)count * sizeof *a) != 0) fail_msg("%s, %s: %s has other bits", row->name, table, name);
}

static void repeat_row(const struct ops *ops, const struct attention_case *row, uint64_t seed) {
    struct attention_arrays first, again;
    const int64_t queries = case_query_count(row), keys = case_key_count(row), coefficients = row->heads * row->count;
    case_fill(row, seed, &first);
    case_run(ops, row, &first, true);
    for (int time = 1; time < TIMES; time++) {
        case_fill(row, seed, &again);
        case_run(ops, row, &again, true);
        same(row, ops->name, "o", first.o, again.o, queries);
        same(row, ops->name, "log_sums", first.log_sums, again.log_sums, row->batch * coefficients * row->length);
        same(row, ops->name, "dq", first.dq, again.dq, queries);
        same(row, ops->name, "dk", first.dk, again.dk, keys);
        same(row, ops->name, "dv", first.dv, again.dv, keys);
        same(row, ops->name, "dcoefficients", first.dcoefficients, again.dcoefficients, coefficients);
        case_free(&again);
    }
    case_free(&first);
}

static void repeat_rows(const struct ops *ops, const struct attention_case *rows, int count) {
    for (int n = 0; n < count; n++) {
        const int64_t longest = gpu_quick() ? 100 : LONGEST;
        if (!gpu_chose(rows[n].name) || rows[n].length > longest || (gpu_quick() && n % 3)) continue;
        repeat_row(ops, &rows[n], (uint64_t)n);
    }
}

static void attention_repeats(void **state) {
    (void)state;
    static const char *const tables[] = {"cuda-f32", "cuda"};
    for (int t = 0; t < 2; t++) {
        const struct ops *ops = device_table(tables[t], true);
        repeat_rows(ops, attention_cases, attention_case_count);
        repeat_rows(ops, device_shapes, device_shape_count);
        ops->close(ops);
    }
}

int gpu_test_repeat(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ops_repeat), cmocka_unit_test(attention_repeats)};
    return cmocka_run_group_tests_name("repeat", tests, NULL, NULL);
}
