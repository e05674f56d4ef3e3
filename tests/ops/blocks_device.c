/* See blocks_device.h. */
#include "tests/ops/blocks_device.h"

#include "ops/case_arrays.h"

#include <math.h>

/* Name, B, T, H, G, D, l, d, l', n, w, select_group, apart, cuts. */
const struct nsa_case block_shapes[] = {
    {"T 65, D 64, blocks of 16", 1, 65, 2, 2, 64, 4, 2, 16, 3, 5, 1, false, {0}, false},
    {"T 129, D 256", 1, 129, 1, 1, 256, 8, 4, 32, 3, 7, 1, false, {70}, false},
    {"T 129, D 80, window over everything", 1, 129, 2, 1, 80, 8, 4, 8, 3, 200, 1, false, {0}, false},
    {"T 130, D 7, unaligned", 1, 130, 3, 1, 7, 4, 2, 6, 5, 4, 3, false, {40, 41}, false},
    {"T 200, D 128, three gates", 1, 200, 2, 1, 128, 16, 8, 40, 3, 30, 2, true, {0}, false},
    {"T 129, six heads, one list, three key heads", 1, 129, 6, 3, 8, 4, 2, 8, 4, 9, 6, false, {0}, false},
    {"T 129, lists inside of key heads", 1, 129, 6, 1, 16, 4, 2, 8, 4, 9, 2, false, {64}, false},
    {"T 180, blocks longer than a tile", 1, 180, 2, 1, 16, 8, 4, 100, 3, 20, 1, true, {0}, false},
    {"T 400, many choosers", 1, 400, 1, 1, 24, 8, 4, 12, 6, 13, 1, false, {3, 170}, false},
};
const int block_shape_count = sizeof block_shapes / sizeof *block_shapes;

/* Lists so long that partial results of all queries together would not fit. */
const struct nsa_case block_chunks = {
    "T 130, chunks of queries and lists", 1, 130, 2, 1, 256, 4, 2, 2, 2100, 3, 1, false, {0}, false};

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

/* Inputs, and what the oracle made. Numbers that are no results lie where results go. */
static void copy_case(const struct nsa_case *row, bool bf16, const struct nsa_arrays *made, struct nsa_arrays *x) {
    nsa_fill(row, x);
    if (bf16) round_inputs(row, x);
    nsa_give(row, made, x);
    for (int n = NSA_BRANCH + 1; n < NSA_BETWEENS; n++)
        for (int64_t i = 0; i < nsa_between_count(row, n); i++) x->between[n][i] = 1024;
    for (int64_t i = 0; i < nsa_output_count(row, NSA_LOSSES); i++) x->outputs[NSA_LOSSES][i] = 1024;
}

void device_blocks_fill(const struct ops *ops, const struct nsa_case *row, struct nsa_arrays *x, int count) {
    struct nsa_arrays made;
    const bool bf16 = ops->real == DTYPE_BF16;
    nsa_fill(row, &made);
    if (bf16) round_inputs(row, &made);
    run_oracle(row, &made, NSA_COMPRESS | NSA_COARSE);
    if (bf16) { /* the log sums that operations get are those of the rounded compressed keys */
        round_inputs(row, &made);
        made.feed = true;
        run_oracle(row, &made, NSA_COARSE);
    }
    for (int64_t i = 0; i < nsa_between_count(row, NSA_D_COMPRESSED_K); i++)
        made.between[NSA_D_COMPRESSED_K][i] = floor(64 * case_draw(i, 41)) / 64;
    for (int n = 0; n < count; n++) copy_case(row, bf16, &made, &x[n]);
    nsa_free(&made);
}

static void compare(const struct ops *ops, const struct nsa_case *row, const char *name, const double *expected,
                    const double *found, int64_t count, double tolerance) {
    double most = 0.1; /* gradients that are 0 but for rounding */
    for (int64_t n = 0; n < count; n++) most = fmax(most, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * most))
            fail_msg("%s, %s: %s[%lld]: expected %.9g, found %.9g (largest %.3g)", row->name, ops->name, name,
                     (long long)n, expected[n], found[n], most);
}

void device_blocks(const struct ops *ops, const struct nsa_case *row, int parts) {
    const double tolerance = ops->real == DTYPE_BF16 ? BLOCKS_BF16 : BLOCKS_F32;
    struct nsa_arrays x[2];
    device_blocks_fill(ops, row, x, 2);
    run_oracle(row, &x[0], parts);
    nsa_run(ops, row, &x[1], parts);
    for (int n = 0; n < NSA_BETWEENS; n++)
        if (n == NSA_D_COMPRESSED_K || n > NSA_BRANCH)
            compare(ops, row, nsa_between_names[n], x[0].between[n], x[1].between[n], nsa_between_count(row, n),
                    tolerance);
    compare(ops, row, nsa_output_names[NSA_LOSSES], x[0].outputs[NSA_LOSSES], x[1].outputs[NSA_LOSSES],
            nsa_output_count(row, NSA_LOSSES), BLOCKS_F32);
    for (int n = NSA_Q; parts & NSA_BACKWARD && n <= NSA_V; n++)
        compare(ops, row, nsa_input_names[n], x[0].gradients[n], x[1].gradients[n], nsa_count(row, n), tolerance);
    for (int n = 0; n < 2; n++) nsa_free(&x[n]);
}
