/* Every operation that reads tokens at T = 2^20: lists, offsets and counts at the length that squint is for. Heads are
 * narrow and few, so that a host executes the kernels too; where every pair of a document is looked at, documents are
 * short. What an operation does with elements more than 2^31 apart is asked elsewhere (tests/simt, far). */
#include "gpu/gpu.h"

#include "ops/attention_device.h"
#include "ops/blocks_device.h"
#include "ops/choice_device.h"
#include "ops/compressed_device.h"
#include "ops/linear_device.h"
#include "ops/tokens_device.h"
#include "support/check.h"

#include <stdio.h>

enum { MILLION = 1 << 20 };

static const struct attention_case attention_rows[] = {
    {"masks",
     1,
     MILLION,
     1,
     1,
     8,
     2,
     {{CANDIDATE_WINDOW, 9, 0}, {CANDIDATE_SINKS, 2, 0}},
     .coefficients = {{0.75, 0.25}}},
};
static const struct linear_case linear_rows[] = {
    {"performer", 1, MILLION, 1, 1, 8, FEATURE_EXP, 16, 0, 0, .cuts = {0}},
    {"kerformer", 1, MILLION, 1, 1, 8, FEATURE_HEDGEHOG, 8, 0, 9, .cuts = {1001, 1000000}, .beta = true},
};
/* Name, B, T, H, G, D, l, d, l', n, w, select_group, apart, cuts, repeated. */
static const struct nsa_case nsa_row = {"nsa", 1, MILLION, 1, 1, 8, 4, 4, 8, 4, 7, 1, false, {-133}, false};
/* Name, B, T, H, G, D, S, J, K, E, n, w, sinks, coarse, coarse_blocks, fewer, cuts, repeated, magnitude. */
static const struct index_case token_row = {"indexer", 1, MILLION, 1, 1, 8, 1,      1,     1, 4,
                                            3,         5, 1,       0, 0, 0, {-133}, false, 1};
static const struct index_case coarse_row = {"coarse", 1, MILLION, 1,  1, 8, 1,      1,     1, 4,
                                             3,        5, 1,       16, 2, 0, {-133}, false, 1};

static const struct ops *ops, *oracle;

static void masks(void **state) {
    (void)state;
    const struct attention_case *row = &attention_rows[0];
    struct attention_arrays expected, found;
    case_fill(row, 3, &expected);
    case_fill(row, 3, &found);
    case_run(oracle, row, &expected, true);
    case_run(ops, row, &found, true);
    case_compare(row, ops->name, &expected, &found, ATTENTION_F32);
    case_free(&expected);
    case_free(&found);
}
static void linear(void **state) {
    (void)state;
    for (int n = 0; n < 2; n++) linear_device_row(ops, oracle, &linear_rows[n], true);
}
static void compressed(void **state) {
    (void)state;
    compressed_row(ops, oracle, &nsa_row);
}
static void blocks(void **state) {
    (void)state;
    device_blocks(ops, &nsa_row, NSA_FINE | NSA_BACKWARD);
    device_blocks(ops, &nsa_row, NSA_MASS | NSA_BACKWARD);
}
static void choice(void **state) {
    (void)state;
    choice_near(ops, oracle, &coarse_row);
}
static void tokens(void **state) {
    (void)state;
    tokens_agree(ops, oracle, &token_row, RUN_ATTEND | RUN_LEARN | RUN_BACKWARD);
}

static int open_tables(void **state) {
    (void)state;
    ops = device_table("cuda-f32", true);
    oracle = device_table("cpu-f64", true);
    return 0;
}
static int close_tables(void **state) {
    (void)state;
    ops->close(ops);
    oracle->close(oracle);
    return 0;
}

int gpu_test_million(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(masks),  cmocka_unit_test(linear), cmocka_unit_test(compressed),
                                       cmocka_unit_test(blocks), cmocka_unit_test(choice), cmocka_unit_test(tokens)};
    char names[64];
    snprintf(names, sizeof names, "%s*", gpu_choice.chosen);
    cmocka_set_test_filter(names);
    return cmocka_run_group_tests_name("million", tests, open_tables, close_tables);
}
