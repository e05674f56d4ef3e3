/* See tokens_device.h. */
#include "tests/ops/tokens_device.h"

#include "ops/case_arrays.h"

#include <math.h>
#include <string.h>

/* Name, B, T, H, G, D, S, J, K, E, n, w, sinks, coarse, coarse_blocks, fewer, cuts, repeated, magnitude. */
const struct index_case tokens_shapes[] = {
    {"T 1, D 256", 1, 1, 2, 1, 256, 2, 2, 1, 8, 1, 1, 0, 0, 0, 0, {0}, false, 1},
    {"T 7, D 24, documents", 2, 7, 6, 2, 24, 3, 2, 2, 8, 2, 2, 1, 0, 0, 0, {1, 5}, false, 1},
    {"T 31, D 7, unaligned", 1, 31, 3, 1, 7, 1, 3, 1, 5, 6, 3, 2, 0, 0, 0, {0}, false, 1},
    {"T 33, D 48", 1, 33, 4, 2, 48, 2, 2, 1, 32, 9, 3, 1, 0, 0, 1, {0}, false, 1},
    {"T 64, D 64, nothing chosen", 1, 64, 2, 2, 64, 2, 1, 1, 16, 1, 9, 0, 0, 0, 1, {33}, false, 1},
    {"T 65, D 128", 1, 65, 2, 1, 128, 1, 2, 1, 64, 20, 5, 3, 0, 0, 0, {0}, false, 1},
    {"T 129, D 64", 1, 129, 4, 2, 64, 4, 2, 2, 32, 30, 17, 2, 0, 0, 4, {0}, false, 1},
    {"T 129, D 200, documents", 1, 129, 2, 2, 200, 1, 4, 1, 32, 12, 8, 4, 0, 0, 0, {1, 2, 34, 100}, false, 1},
    {"T 33, many index heads", 1, 33, 2, 1, 16, 1, 12, 12, 64, 3, 4, 1, 0, 0, 0, {0}, false, 1},
    {"T 129, far apart", 1, 129, 2, 1, 8, 2, 2, 1, 4, 9, 3, 1, 0, 0, 0, {31}, false, 60},
    {"T 390, few of many", 1, 390, 1, 1, 16, 1, 1, 1, 8, 1, 2, 1, 0, 0, 0, {170, 171, 333}, false, 1},
    /* Walks of keys that are cut into pieces: sinks; a key that all queries of one list choose and none of another. */
    {"T 1100, sinks in pieces", 1, 1100, 1, 1, 8, 1, 1, 1, 8, 2, 3, 1, 0, 0, 0, {0}, false, 1},
    {"T 600, one key for all", 1, 600, 2, 1, 8, 2, 1, 1, 8, 1, 2, 0, 0, 0, 1, {0}, true, 1},
};
const int tokens_shape_count = sizeof tokens_shapes / sizeof *tokens_shapes;

static void check(const struct index_case *row, const char *table, const char *name, const double *expected,
                  const double *found, int64_t count, double tolerance) {
    double most = 0.1;
    for (int64_t n = 0; n < count; n++) most = fmax(most, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * most))
            fail_msg("%s: %s: %s[%lld]: expected %.12g, found %.12g (largest %.3g)", row->name, table, name,
                     (long long)n, expected[n], found[n], most);
}

void tokens_agree(const struct ops *ops, const struct ops *oracle, const struct index_case *row, int parts) {
    const bool bf16 = ops->real == DTYPE_BF16;
    struct index_arrays expected, found;
    index_fill(row, &expected);
    index_fill(row, &found);
    for (int n = 0; n < INPUTS && bf16; n++) {
        case_round_bf16(expected.inputs[n], index_count(row, n));
        case_round_bf16(found.inputs[n], index_count(row, n));
    }
    if (bf16) {
        case_round_bf16(expected.d_o, index_count(row, INPUT_Q));
        case_round_bf16(found.d_o, index_count(row, INPUT_Q));
    }
    expected.dense = found.dense = row->length % 2;
    index_run(oracle, row, &expected, RUN_CHOOSE | parts);
    memcpy(found.chosen, expected.chosen, (size_t)index_chosen_count(row) * sizeof *found.chosen);
    index_run(ops, row, &found, parts);
    const double factor = row->magnitude > 1 ? row->magnitude : 1, f32 = TOKENS_F32 * factor,
                 real = bf16 ? TOKENS_BF16 : f32;
    for (int n = OUTPUT_O; n <= OUTPUT_HITS; n++) {
        const bool attends = n <= OUTPUT_LOG_SUMS;
        if (parts & (attends ? RUN_ATTEND : RUN_LEARN))
            check(row, ops->name, index_output_names[n], expected.outputs[n], found.outputs[n],
                  index_output_count(row, n), n == OUTPUT_O ? real : f32);
    }
    for (int n = 0; n < GRADIENTS && parts & RUN_BACKWARD; n++)
        if (parts & (n < INPUT_R ? RUN_ATTEND : RUN_LEARN))
            check(row, ops->name, index_gradient_names[n], expected.gradients[n], found.gradients[n],
                  index_gradient_count(row, n), real);
    index_free(&expected);
    index_free(&found);
}
