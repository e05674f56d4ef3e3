/* The indexer's choice on the GPU: exact scores give the CPU's lists, drawn ones lists whose scores are the highest;
 * two levels, attention, random lists, decoding. Bounds: ops/choice_device.h. */
#include "gpu/gpu.h"
#include "ops/choice_device.h"
#include "ops/slots_case.h"
#include "support/check.h"

enum { SHORT = 100 /* tokens: --quick */ };

/* Lengths of training: several passes over many tiles, keys of a row that do not fit into shared memory. */
static const struct index_case long_rows[] = {
    {"T 2500, default heads", 1, 2500, 2, 1, 64, 1, 4, 1, 32, 256, 128, 4, 0, 0, 0, {700}, false, 1},
    {"T 2500, two levels", 1, 2500, 2, 1, 64, 1, 4, 1, 32, 128, 64, 4, 64, 8, 0, {1999}, false, 1},
};
enum { LONG_ROWS = sizeof long_rows / sizeof *long_rows };

static bool runs(const struct index_case *row, int n) {
    return gpu_chose(row->name) && !(gpu_quick() && (n % 3 || row->length > SHORT));
}

static void near(const struct ops *ops, const struct ops *oracle, const struct index_case *rows, int count) {
    for (int n = 0; n < count; n++)
        if (runs(&rows[n], n)) choice_near(ops, oracle, &rows[n]);
}

static void run_table(const char *name) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true),
                     *cpu = device_table("cpu", true);
    for (int n = 0; n < choice_row_count; n++) {
        const struct index_case *row = &choice_rows[n];
        if (!runs(row, n)) continue;
        for (int way = 0; way < WAYS; way++) choice_exact(ops, oracle, row, (enum choice_way)way);
        choice_random(ops, cpu, row, 7);
        if (row->cuts[0]) choice_all_blocks(ops, row);
    }
    near(ops, oracle, choice_rows, choice_row_count);
    near(ops, oracle, index_cases, index_case_count);
    near(ops, oracle, long_rows, LONG_ROWS);
    ops->close(ops);
    oracle->close(oracle);
    cpu->close(cpu);
}
static void f32_agrees(void **state) {
    (void)state;
    run_table("cuda-f32");
}
static void bf16_agrees(void **state) {
    (void)state;
    run_table("cuda");
}

static void run_decode(const char *name) {
    const struct ops *ops = device_table(name, true);
    for (int n = 0; n < choice_row_count; n++) {
        if (!runs(&choice_rows[n], n)) continue;
        choice_decode(ops, &choice_rows[n], 1 + choice_rows[n].length / 9, false);
        choice_decode(ops, &choice_rows[n], 1 + choice_rows[n].length / 9, true);
    }
    for (int n = 0; n < LONG_ROWS; n++)
        if (runs(&long_rows[n], n)) choice_decode(ops, &long_rows[n], 600, false);
    ops->close(ops);
}
static void decode_f32(void **state) {
    (void)state;
    run_decode("cuda-f32");
}
static void decode_bf16(void **state) {
    (void)state;
    run_decode("cuda");
}

static void slots_agree(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda", true);
    slot_lists_agree(ops);
    slot_lists_survive(ops);
    ops->close(ops);
}

int gpu_test_choice(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f32_agrees), cmocka_unit_test(bf16_agrees),
                                       cmocka_unit_test(decode_f32), cmocka_unit_test(decode_bf16),
                                       cmocka_unit_test(slots_agree)};
    return cmocka_run_group_tests_name("choice", tests, NULL, NULL);
}
