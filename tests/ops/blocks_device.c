/* See blocks_device.h. */
#include "tests/ops/blocks_device.h"

#include "ops/case_arrays.h"

#include <math.h>

/* Name, B, T, H, G, D, l, d, l', n, w, select_group, apart, cuts. */
const struct nsa_case block_shapes[] = {
    {"T 65, D 64, blocks of 16", 1, 65, 2, 2, 64, 4, 2, 16, 3, 5, 1, false, {0}, false},
    {"T 129, D 256", 1, 129, 1, 1, 256, 8, 4, 32, 3, 7, 1, false, {70}, false},
    {"T 129, D 80, window only", 1, 129, 2, 1, 80, 8, 4, 8, 3, 200, 1, false, {0}, false},
    {"T 130, D 7, unaligned", 1, 130, 3, 1, 7, 4, 2, 6, 5, 4, 3, false, {40, 41}, false},
    {"T 200, D 128, three gates", 1, 200, 2, 1, 128, 16, 8, 40, 3, 30, 2, true, {0}, false},
    {"T 129, six heads, two lists, three key heads", 1, 129, 6, 3, 8, 4, 2, 8, 4, 9, 6, false, {0}, false},
    {"T 129, lists inside of key heads", 1, 129, 6, 1, 16, 4, 2, 8, 4, 9, 2, false, {64}, false},
    {"T 260, blocks longer than a tile", 1, 260, 2, 1, 16, 8, 4, 100, 3, 20, 1, true, {0}, false},
    {"T 400, many choosers", 1, 400, 2, 2, 24, 8, 4, 12, 6, 13, 1, false, {3, 170}, false},
};
const int block_shape_count = sizeof block_shapes / sizeof *block_shapes;

static void round_inputs(const struct nsa_case *row, struct nsa_arrays *x) {
    for (int n = 0; n < NSA_INPUTS; n++) case_round_bf16(x->inputs[n], nsa_count(row, n));
    for (int n = 0; n < NSA_BETWEENS; n++)
        if (n != NSA_LOG_SUMS) case_round_bf16(x->between[n], nsa_between_count(row, n));
    case_round_bf16(x->d_o, nsa_count(row, NSA_Q));
}

static void run_oracle(const struct nsa_case *row, struct nsa_arrays *x, int parts) {
    const struct ops *ops;
    CHECK_OK(ops_open("cpu-f64", &(struct ops_options){.threads = 1}, &ops));
    nsa_run(ops, row, x, parts);
    ops->close(ops);
}

void device_blocks_fill(const struct ops *ops, const struct nsa_case *row, struct nsa_arrays *x) {
    struct nsa_arrays made;
    nsa_fill(row, &made);
    nsa_fill(row, x);
    if (ops->real == DTYPE_BF16) {
        round_inputs(row, &made);
        round_inputs(row, x);
    }
    run_oracle(row, &made, NSA_ALL);
    if (ops->real == DTYPE_BF16) { /* the log sums that operations get are those of the rounded compressed keys */
        round_inputs(row, &made);
        made.feed = true;
        run_oracle(row, &made, NSA_COARSE);
    }
    nsa_give(row, &made, x);
    nsa_free(&made);
}

static void compare(const struct ops *ops, const struct nsa_case *row, const char *name, const double *expected,
                    const double *found, int64_t count) {
    const double tolerance = ops->real == DTYPE_BF16 ? BLOCKS_BF16 : BLOCKS_F32;
    double most = 0.1; /* gradients that are 0 but for rounding */
    for (int64_t n = 0; n < count; n++) most = fmax(most, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * most))
            fail_msg("%s, %s: %s[%lld]: expected %.9g, found %.9g (largest %.3g)", row->name, ops->name, name,
                     (long long)n, expected[n], found[n], most);
}

void device_blocks(const struct ops *ops, const struct nsa_case *row, int parts) {
    struct nsa_arrays expected, found;
    device_blocks_fill(ops, row, &expected);
    device_blocks_fill(ops, row, &found);
    run_oracle(row, &expected, parts);
    nsa_run(ops, row, &found, parts);
    for (int n = NSA_BRANCH + 1; n < NSA_BETWEENS; n++)
        compare(ops, row, nsa_between_names[n], expected.between[n], found.between[n], nsa_between_count(row, n));
    compare(ops, row, nsa_output_names[NSA_LOSSES], expected.outputs[NSA_LOSSES], found.outputs[NSA_LOSSES],
            nsa_output_count(row, NSA_LOSSES));
    compare(ops, row, nsa_between_names[NSA_D_COMPRESSED_K], expected.between[NSA_D_COMPRESSED_K],
            found.between[NSA_D_COMPRESSED_K], nsa_between_count(row, NSA_D_COMPRESSED_K));
    for (int n = NSA_Q; parts & NSA_BACKWARD && n <= NSA_V; n++)
        compare(ops, row, nsa_input_names[n], expected.gradients[n], found.gradients[n], nsa_count(row, n));
    nsa_free(&expected);
    nsa_free(&found);
}
