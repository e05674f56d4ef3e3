/* The operations of kind nsa: against PyTorch in float64 (tests/oracles/make_nsa_goldens.py), against finite
 * differences, and against themselves: other instruction sets, other numbers of threads, changed futures, token by
 * token; the choice against a plain sort. */
#include "base/memory.h"
#include "ops/case_arrays.h"
#include "ops/nsa_case.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 4, ROWS = NSA_OUTPUTS + NSA_LEARNING };
static const struct golden {
    const char *name;
    int64_t choices;
    double values[ROWS][SAMPLES + 2]; /* elements, then two weighted sums: outputs, then gradients */
} goldens[] = {
#include "ops/nsa_goldens.inc"
};

static const struct ops *open_table(const char *name, int threads, const char *isa) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = threads, .isa = isa}, &ops));
    return ops;
}

/* Whose choice the other tables are given: near-ties may fall elsewhere in fp32. */
static void run_oracle(const struct nsa_case *row, struct nsa_arrays *x) {
    const struct ops *ops = open_table("cpu-f64", 2, NULL);
    nsa_fill(row, x);
    nsa_run(ops, row, x, NSA_ALL);
    ops->close(ops);
}

static void check_golden(const struct golden *g, int line, const char *name, const double *found, int64_t count,
                         double tolerance) {
    double sums[2] = {0}, size = 0;
    for (int64_t n = 0; n < count; n++) {
        sums[0] += found[n] * case_draw(n, 30);
        sums[1] += found[n] * case_draw(n, 31);
        size += found[n] * found[n];
    }
    for (int n = 0; n < SAMPLES + 2; n++) {
        const int64_t place = (int64_t)(((uint64_t)n * 2654435761u + 12345) % (uint64_t)count);
        const double value = n < SAMPLES ? found[place] : sums[n - SAMPLES], expected = g->values[line][n];
        if (!(fabs(value - expected) <= tolerance * fmax(1, sqrt(size))))
            fail_msg("%s: %s, value %d: PyTorch has %.15g, found %.15g", g->name, name, n, expected, value);
    }
}

static void check_goldens(const struct nsa_case *row, const struct golden *g, const struct nsa_arrays *x,
                          double tolerance) {
    for (int n = 0; n < NSA_OUTPUTS; n++)
        check_golden(g, n, nsa_output_names[n], x->outputs[n], nsa_output_count(row, n), tolerance);
    for (int n = 0; n < NSA_LEARNING; n++)
        check_golden(g, NSA_OUTPUTS + n, nsa_input_names[n], x->gradients[n], nsa_count(row, n), tolerance);
}

static void test_pytorch(void **state) {
    (void)state;
    const struct ops *ops = open_table("cpu", 2, NULL);
    assert_int_equal(nsa_case_count, sizeof goldens / sizeof *goldens);
    for (int n = 0; n < nsa_case_count; n++) {
        const struct nsa_case *row = &nsa_cases[n];
        struct nsa_arrays wide, narrow;
        int64_t sum = 0;
        assert_string_equal(row->name, goldens[n].name);
        run_oracle(row, &wide);
        for (int64_t c = 0; c < nsa_chosen_count(row); c++) sum += wide.chosen[c] * (c % 9973 + 1);
        if (sum != goldens[n].choices) fail_msg("%s: PyTorch chose other blocks", row->name);
        check_goldens(row, &goldens[n], &wide, 1e-10);
        nsa_fill(row, &narrow);
        nsa_give(row, &wide, &narrow);
        nsa_run(ops, row, &narrow, NSA_ALL);
        check_goldens(row, &goldens[n], &narrow, 1e-4);
        nsa_free(&wide);
        nsa_free(&narrow);
    }
    ops->close(ops);
}

static void agree(const char *table, const char *isa, double tolerance, int hand) {
    const struct ops *ops = open_table(table, 2, isa);
    for (int n = 0; n < nsa_case_count; n++) {
        if (!check_dealt(n, hand)) continue;
        const struct nsa_case *row = &nsa_cases[n];
        struct nsa_arrays expected, found;
        run_oracle(row, &expected);
        nsa_fill(row, &found);
        nsa_give(row, &expected, &found);
        nsa_run(ops, row, &found, NSA_ALL);
        nsa_compare(row, isa ? isa : table, &expected, &found, tolerance);
        nsa_free(&expected);
        nsa_free(&found);
    }
    ops->close(ops);
}

static void test_tables(void **state) {
    (void)state;
    agree("cpu", "base", 1e-4, 0);
    agree("cpu", "avx2", 1e-4, 1);
    agree("cpu", NULL, 1e-4, 2);
}

static void test_guarded(void **state) {
    (void)state;
    agree("guard:cpu", NULL, 1e-4, 1);
    agree("guard:cpu-f64", NULL, 1e-12, 2);
}

static double loss(const struct ops *ops, const struct nsa_case *row, struct nsa_arrays *x) {
    double sum = 0;
    nsa_run(ops, row, x, NSA_FORWARD);
    for (int64_t n = 0; n < nsa_count(row, NSA_Q); n++) sum += x->outputs[NSA_O][n] * x->d_o[n];
    for (int64_t n = 0; n < nsa_output_count(row, NSA_LOSSES); n++) sum += NSA_LOSS_SCALE * x->outputs[NSA_LOSSES][n];
    return sum;
}

/* Central differences of Σ o·d_o + the losses by every element of every input, the choice held fixed. */
static void test_differences(void **state) {
    (void)state;
    static const struct nsa_case rows[] = {
        {"one softmax", 1, 19, 2, 1, 3, 4, 2, 4, 3, 3, 1, false, {0}, false},
        {"three gates, documents", 2, 17, 4, 2, 2, 4, 2, 2, 3, 2, 4, true, {6}, false},
        {"wide compressed blocks", 1, 21, 2, 2, 3, 6, 2, 4, 4, 1, 1, false, {2}, false},
    };
    const struct ops *ops = open_table("cpu-f64", 1, NULL);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const struct nsa_case *row = &rows[r];
        struct nsa_arrays x;
        nsa_fill(row, &x);
        nsa_run(ops, row, &x, NSA_ALL);
        x.feed = true;
        for (int n = 0; n < NSA_LEARNING; n++)
            for (int64_t i = 0; i < nsa_count(row, n); i++) {
                const double step = 1e-5, before = x.inputs[n][i], found = x.gradients[n][i];
                x.inputs[n][i] = before + step;
                const double up = loss(ops, row, &x);
                x.inputs[n][i] = before - step;
                const double down = loss(ops, row, &x), expected = (up - down) / (2 * step);
                x.inputs[n][i] = before;
                if (!(fabs(expected - found) <= 1e-7 * fmax(1, fabs(expected))))
                    fail_msg("%s: gradient of %s[%lld]: differences give %.9g, backward %.9g", row->name,
                             nsa_input_names[n], (long long)i, expected, found);
            }
        nsa_free(&x);
    }
    ops->close(ops);
}

static void expect_same_bits(const struct nsa_case *row, const char *what, const char *name, const double *a,
                             const double *b, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (memcmp(&a[n], &b[n], sizeof *a) != 0)
            fail_msg("%s: %s: %s[%lld]: expected %.17g, found %.17g", row->name, what, name, (long long)n, a[n], b[n]);
}

static void test_threads(void **state) {
    (void)state;
    static const int counts[] = {2, 3, 7};
    for (int n = 0; n < nsa_case_count; n++) {
        const struct nsa_case *row = &nsa_cases[n];
        struct nsa_arrays one, many;
        const struct ops *ops = open_table("cpu", 1, NULL);
        nsa_fill(row, &one);
        nsa_run(ops, row, &one, NSA_ALL);
        ops->close(ops);
        for (size_t t = 0; t < sizeof counts / sizeof *counts; t++) {
            char what[32];
            snprintf(what, sizeof what, "%d threads", counts[t]);
            ops = open_table("cpu", counts[t], NULL);
            nsa_fill(row, &many);
            nsa_run(ops, row, &many, NSA_ALL);
            ops->close(ops);
            assert_memory_equal(one.chosen, many.chosen, (size_t)nsa_chosen_count(row) * sizeof *one.chosen);
            for (int o = 0; o < NSA_OUTPUTS; o++)
                expect_same_bits(row, what, nsa_output_names[o], one.outputs[o], many.outputs[o],
                                 nsa_output_count(row, o));
            for (int g = 0; g < NSA_LEARNING; g++)
                expect_same_bits(row, what, nsa_input_names[g], one.gradients[g], many.gradients[g], nsa_count(row, g));
            nsa_free(&many);
        }
        nsa_free(&one);
    }
}

/* No output before token t, and no choice, knows that it was changed. */
static void test_no_leak(void **state) {
    (void)state;
    const struct ops *ops = open_table("cpu", 2, NULL);
    for (int n = 0; n < nsa_case_count; n++) {
        const struct nsa_case *row = &nsa_cases[n];
        if (row->batch > 1 || row->length < 4) continue;
        struct nsa_arrays before;
        nsa_fill(row, &before);
        nsa_run(ops, row, &before, NSA_FORWARD);
        for (int part = 1; part < 4; part++) {
            const int64_t t = row->length * part / 4, rest = row->length - t;
            struct nsa_arrays after;
            nsa_fill(row, &after);
            for (int64_t d = 0; d < rest * row->heads * row->width; d++)
                after.inputs[NSA_Q][t * row->heads * row->width + d] *= -30;
            for (int64_t d = t * row->groups * row->width; d < nsa_count(row, NSA_K); d++) {
                after.inputs[NSA_K][d] = 50 - after.inputs[NSA_K][d];
                after.inputs[NSA_V][d] = 1e6 * after.inputs[NSA_V][d] + 1;
            }
            nsa_run(ops, row, &after, NSA_FORWARD);
            expect_same_bits(row, "a changed future", "o", before.outputs[NSA_O], after.outputs[NSA_O],
                             t * row->heads * row->width);
            assert_memory_equal(before.chosen, after.chosen,
                                (size_t)(nsa_chosen_count(row) / row->length * t) * sizeof *before.chosen);
            nsa_free(&after);
        }
        nsa_free(&before);
    }
    ops->close(ops);
}

/* --- the choice --------------------------------------------------------------------------------------------------- */

static void test_choice(void **state) {
    (void)state;
    static const struct {
        const char *table, *isa;
    } tables[] = {{"cpu-f64", NULL}, {"cpu", "base"}, {"cpu", "avx2"}, {"cpu", NULL}};
    for (size_t n = 0; n < sizeof tables / sizeof *tables; n++) {
        const struct ops *ops = open_table(tables[n].table, 2, tables[n].isa);
        nsa_check_choice(ops, 700, 32, 16, 64, 4, 0);
        nsa_check_choice(ops, 2000, 32, 16, 64, 16, 0);
        nsa_check_choice(ops, 300, 2, 2, 2, 16, 0);
        nsa_check_choice(ops, 300, 2, 2, 2, 16, 3); /* many ties */
        nsa_check_choice(ops, 300, 2, 2, 2, 20, 1); /* all equal */
        nsa_check_choice(ops, 300, 2, 2, 2, 19, 0); /* 16 chosen freely, as many as vectors have lanes; then more */
        nsa_check_choice(ops, 300, 2, 2, 2, 20, 0);
        nsa_check_choice(ops, 400, 2, 2, 2, 67, 0);
        nsa_check_choice(ops, 400, 2, 2, 2, 68, 0);
        nsa_check_choice(ops, 400, 2, 2, 2, 90, 40);
        nsa_check_choice(ops, 400, 6, 2, 4, 5, 0);
        nsa_check_choice(ops, 400, 4, 4, 20, 3, 0);
        nsa_check_choice(ops, 500, 2, 1, 3, 40, 0);
        ops->close(ops);
    }
}

/* --- token by token ----------------------------------------------------------------------------------------------- */

/* compressed_decode on the rows of a parallel pass over one document. */
static void test_decode(void **state) {
    (void)state;
    const struct ops *ops = open_table("guard:cpu-f64", 2, NULL);
    enum { LENGTH = 150, HEADS = 4, GROUPS = 2, WIDTH = 5, COMPRESS = 6, STRIDE = 3, BLOCK = 3, SELECT = 7 };
    const int64_t blocks = compressed_bound(LENGTH, COMPRESS, STRIDE);
    struct tensor t[9] = {tensor_4d(NULL, DTYPE_F64, 1, LENGTH, HEADS, WIDTH),
                          tensor_4d(NULL, DTYPE_F64, 1, blocks, GROUPS, WIDTH),
                          tensor_4d(NULL, DTYPE_F64, 1, blocks, GROUPS, WIDTH),
                          tensor_4d(NULL, DTYPE_F64, 1, LENGTH, HEADS, WIDTH),
                          tensor_3d(NULL, DTYPE_F64, 1, HEADS, LENGTH),
                          tensor_2d(NULL, DTYPE_I32, 1, LENGTH),
                          tensor_4d(NULL, DTYPE_I32, 1, LENGTH, HEADS / 2, SELECT),
                          tensor_3d(NULL, DTYPE_F64, 1, HEADS, WIDTH),
                          tensor_3d(NULL, DTYPE_I32, 1, HEADS / 2, SELECT)};
    struct tensor place = tensor_2d(NULL, DTYPE_I32, 1, 3);
    for (int n = 0; n < 9; n++) CHECK_OK(ops->allocate(ops, tensor_bytes(t[n]), &t[n].data));
    CHECK_OK(ops->allocate(ops, tensor_bytes(place), &place.data));
    for (int n = 0; n < 3; n++)
        for (int64_t i = 0; i < tensor_count(t[n]); i++) ((double *)t[n].data)[i] = 2 * case_draw(i, n);
    memset(t[5].data, 0, tensor_bytes(t[5]));
    const struct compressed_attention a = {.q = t[0],
                                           .k = t[1],
                                           .v = t[2],
                                           .o = t[3],
                                           .log_sums = t[4],
                                           .start = t[5],
                                           .chosen = t[6],
                                           .compress = COMPRESS,
                                           .stride = STRIDE,
                                           .block = BLOCK,
                                           .select = SELECT,
                                           .select_group = 2,
                                           .scale = 0.5};
    CHECK_OK(ops->compressed_attention(ops, &a));
    for (int32_t i = 0; i < LENGTH; i++) {
        const int32_t visible = i + 1 < COMPRESS ? 0 : (i + 1 - COMPRESS) / STRIDE + 1, all[3] = {0, visible, i};
        CHECK_OK(ops->upload(ops, place, all));
        struct compressed_decode d = {.k = t[1],
                                      .v = t[2],
                                      .places = place,
                                      .o = t[7],
                                      .chosen = t[8],
                                      .compress = COMPRESS,
                                      .stride = STRIDE,
                                      .block = BLOCK,
                                      .select = SELECT,
                                      .select_group = 2,
                                      .scale = 0.5};
        d.q = tensor_3d((double *)t[0].data + i * HEADS * WIDTH, DTYPE_F64, 1, HEADS, WIDTH);
        CHECK_OK(ops->compressed_decode(ops, &d));
        for (int n = 0; n < HEADS * WIDTH; n++) {
            const double expected = ((double *)t[3].data)[i * HEADS * WIDTH + n], found = ((double *)t[7].data)[n];
            if (!(fabs(expected - found) <= 1e-12))
                fail_msg("token %d: expected %.15g, found %.15g", i, expected, found);
        }
        assert_memory_equal((int32_t *)t[6].data + i * 2 * SELECT, t[8].data, 2 * SELECT * sizeof(int32_t));
    }
    const int32_t beyond[3] = {0, 3, 4}; /* three blocks are not visible to the fifth token */
    struct compressed_decode d = {.q = t[7],
                                  .k = t[1],
                                  .v = t[2],
                                  .places = place,
                                  .o = tensor_none(),
                                  .compress = COMPRESS,
                                  .stride = STRIDE,
                                  .block = BLOCK,
                                  .select = SELECT,
                                  .select_group = 2,
                                  .scale = 1};
    CHECK_OK(ops->upload(ops, place, beyond));
    CHECK_STATUS(STATUS_SHAPE, ops->compressed_decode(ops, &d));
    for (int n = 0; n < 9; n++) ops->release(ops, t[n].data);
    ops->release(ops, place.data);
    ops->close(ops);
}

static void test_refusals(void **state) {
    (void)state;
    const struct ops *ops = open_table("cpu", 1, NULL);
    float x[8 * 2] = {0}, o[8 * 2], sums[8];
    int32_t start[8] = {0}, chosen[8][2] = {{0, -1}, {0, -1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {1, 3}};
    struct block_attention a = {.block = 2, .window = 2, .scale = 1};
    a.q = a.k = a.v = tensor_4d(x, DTYPE_F32, 1, 8, 1, 2);
    a.o = tensor_4d(o, DTYPE_F32, 1, 8, 1, 2);
    a.log_sums = tensor_3d(sums, DTYPE_F32, 1, 1, 8);
    a.start = tensor_2d(start, DTYPE_I32, 1, 8);
    a.chosen = tensor_4d(chosen, DTYPE_I32, 1, 8, 1, 2);
    CHECK_OK(ops->block_attention(ops, &a));
    chosen[3][1] = 2; /* begins after token 3 */
    CHECK_STATUS(STATUS_SHAPE, ops->block_attention(ops, &a));
    chosen[3][1] = 0; /* twice */
    CHECK_STATUS(STATUS_SHAPE, ops->block_attention(ops, &a));
    chosen[3][0] = -1; /* goes on behind its end */
    CHECK_STATUS(STATUS_SHAPE, ops->block_attention(ops, &a));
    chosen[3][0] = -2;
    CHECK_STATUS(STATUS_SHAPE, ops->block_attention(ops, &a));
    chosen[3][0] = 0;
    chosen[3][1] = 1;
    start[5] = 4;
    CHECK_STATUS(STATUS_SHAPE, ops->block_attention(ops, &a));
    start[5] = 0;
    a.chosen = tensor_none();
    a.window = 0;
    CHECK_STATUS(STATUS_SHAPE, ops->block_attention(ops, &a));
    struct compressed_attention c = {.q = a.q,
                                     .start = a.start,
                                     .log_sums = a.log_sums,
                                     .compress = 4,
                                     .stride = 2,
                                     .block = 2,
                                     .select = 3,
                                     .select_group = 1,
                                     .scale = 1};
    c.k = tensor_4d(x, DTYPE_F32, 1, 3, 1, 2);
    CHECK_OK(ops->compressed_attention(ops, &c));
    c.compress = 3;
    CHECK_STATUS(STATUS_SHAPE, ops->compressed_attention(ops, &c));
    c.compress = 4;
    c.select = 2;
    c.chosen = tensor_4d(chosen, DTYPE_I32, 1, 8, 1, 2);
    CHECK_STATUS(STATUS_SHAPE, ops->compressed_attention(ops, &c));
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pytorch),     cmocka_unit_test(test_tables),  cmocka_unit_test(test_guarded),
        cmocka_unit_test(test_differences), cmocka_unit_test(test_threads), cmocka_unit_test(test_no_leak),
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_decode),  cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
