/* Attention to chosen blocks, and learning to choose, on the GPU: every row of the tables that all their tests walk, in
 * fp32 and bf16, the window's dq by a kernel of its own and by atomics. Bounds: ops/blocks_device.h. */
#include "gpu/gpu.h"

#include "ops/blocks_device.h"
#include "support/check.h"

enum { SHORT = 150 /* tokens: --quick */ };

/* Lengths of training, with the blocks of a recipe: many tiles, blocks that everybody chooses. */
static const struct nsa_case long_rows[] = {
    {"T 4096, D 64", 1, 4096, 12, 12, 64, 32, 16, 64, 16, 512, 1, false, {0}, false},
    {"T 3000, D 128, documents", 2, 3000, 4, 2, 128, 32, 16, 64, 8, 512, 2, false, {300, 301, 1900}, false},
    {"T 2000, three gates", 1, 2000, 4, 1, 64, 32, 16, 64, 16, 256, 4, true, {0}, false},
};
enum { LONG_ROWS = sizeof long_rows / sizeof *long_rows };

static void run_rows(const struct ops *ops, const struct nsa_case *rows, int count) {
    for (int n = 0; n < count; n++) {
        if (!gpu_chose(rows[n].name) || (gpu_quick() && (n % 3 || rows[n].length > SHORT))) continue;
        device_blocks(ops, &rows[n], NSA_FINE | NSA_BACKWARD);
        device_blocks(ops, &rows[n], NSA_MASS | NSA_BACKWARD);
    }
}

static void run_table(const char *name) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        run_rows(ops, nsa_cases, nsa_case_count);
        run_rows(ops, block_shapes, block_shape_count);
        if (deterministic) run_rows(ops, long_rows, LONG_ROWS);
        if (deterministic && !gpu_quick() && gpu_chose(block_chunks.name))
            device_blocks(ops, &block_chunks, NSA_FINE | NSA_BACKWARD);
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

int gpu_test_blocks(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(f32_agrees), cmocka_unit_test(bf16_agrees)};
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
