/* The operations of the indexer: against PyTorch in float64 (tests/oracles/make_index_goldens.py), and against
 * themselves: other instruction sets, other numbers of threads, other strides, changed futures. */
#include "ops/case_arrays.h"
#include "ops/index_case.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 4, LINES = OUTPUTS + GRADIENTS };
static const struct golden {
    const char *name;
    int64_t choices[2];                /* by what is learned, by attention */
    double values[LINES][SAMPLES + 1]; /* elements, then a weighted sum: outputs, then gradients */
} goldens[] = {
#include "ops/index_goldens.inc"
};

/* The choice of fp64, which the other tables are given: near-ties may fall elsewhere in fp32. */
static void run_oracle(const struct index_case *row, struct index_arrays *x) {
    const struct ops *ops = index_open("cpu-f64", 2, NULL);
    index_fill(row, x);
    index_run(ops, row, x, RUN_ALL);
    ops->close(ops);
}

static int64_t lists_that_differ(const struct index_case *row, const int32_t *a, const int32_t *b) {
    int64_t differ = 0;
    for (int64_t n = 0; n < index_chosen_count(row); n += row->choose)
        differ += memcmp(a + n, b + n, (size_t)row->choose * sizeof *a) != 0;
    return differ;
}

/* Runs everything; the table's own choices are few lists away from the expected ones, which it then goes on with. */
static void run_given_choice(const struct ops *ops, const struct index_case *row, const char *what,
                             const struct index_arrays *expected, struct index_arrays *x) {
    const int64_t lists = row->batch * row->length * row->lists;
    index_run(ops, row, x, RUN_CHOOSE);
    const int64_t learned = lists_that_differ(row, expected->chosen, x->chosen),
                  by_attention = lists_that_differ(row, expected->by_attention, x->by_attention);
    if (learned > lists / 100 || by_attention > lists / 100)
        fail_msg("%s: %s: of %lld lists %lld that are learned and %lld by attention are others than fp64's", row->name,
                 what, (long long)lists, (long long)learned, (long long)by_attention);
    memcpy(x->chosen, expected->chosen, (size_t)index_chosen_count(row) * sizeof *x->chosen);
    index_run(ops, row, x, RUN_FED);
}

static void check_golden(const struct golden *g, int line, const char *name, const double *found, int64_t count,
                         double tolerance) {
    double sum = 0, size = 0;
    for (int64_t n = 0; n < count; n++) {
        sum += found[n] * case_draw(n, 30);
        size += found[n] * found[n];
    }
    for (int n = 0; n <= SAMPLES; n++) {
        const int64_t place = (int64_t)(((uint64_t)n * 2654435761u + 12345) % (uint64_t)count);
        const double value = n < SAMPLES ? found[place] : sum, expected = g->values[line][n];
        if (!(fabs(value - expected) <= tolerance * fmax(1, sqrt(size))))
            fail_msg("%s: %s, value %d: PyTorch has %.15g, found %.15g", g->name, name, n, expected, value);
    }
}

static void check_goldens(const struct index_case *row, const struct golden *g, const struct index_arrays *x,
                          double tolerance) {
    for (int n = 0; n < OUTPUTS; n++)
        check_golden(g, n, index_output_names[n], x->outputs[n], index_output_count(row, n), tolerance);
    for (int n = 0; n < GRADIENTS; n++)
        check_golden(g, OUTPUTS + n, index_gradient_names[n], x->gradients[n], index_gradient_count(row, n), tolerance);
}

static int64_t choice_sum(const struct index_case *row, const int32_t *chosen) {
    int64_t sum = 0;
    for (int64_t c = 0; c < index_chosen_count(row); c++) sum += chosen[c] * (c % 9973 + 1);
    return sum;
}

static void test_pytorch(void **state) {
    (void)state;
    const struct ops *ops = index_open("cpu", 2, NULL);
    const int count = sizeof goldens / sizeof *goldens;
    for (int n = 0; n < index_case_count; n++) {
        const struct index_case *row = &index_cases[n];
        struct index_arrays wide, narrow;
        assert_int_equal(n < count, row->length <= 301);
        if (n >= count) continue;
        assert_string_equal(row->name, goldens[n].name);
        run_oracle(row, &wide);
        if (choice_sum(row, wide.chosen) != goldens[n].choices[0])
            fail_msg("%s: PyTorch chose other tokens", row->name);
        if (choice_sum(row, wide.by_attention) != goldens[n].choices[1])
            fail_msg("%s: PyTorch chose other tokens by attention", row->name);
        check_goldens(row, &goldens[n], &wide, 1e-10);
        index_fill(row, &narrow);
        run_given_choice(ops, row, "cpu", &wide, &narrow);
        check_goldens(row, &goldens[n], &narrow, 2e-5 * row->magnitude);
        index_free(&wide);
        index_free(&narrow);
    }
    ops->close(ops);
}

static void agree(const char *table, const char *isa, double tolerance, int hand) {
    const struct ops *ops = index_open(table, 2, isa);
    for (int n = 0; n < index_case_count; n++) {
        if (!check_dealt(n, hand)) continue;
        const struct index_case *row = &index_cases[n];
        const char *what = isa ? isa : table;
        struct index_arrays expected, found;
        run_oracle(row, &expected);
        index_fill(row, &found);
        run_given_choice(ops, row, what, &expected, &found);
        /* A score's rounding error grows with it. */
        index_compare(row, what, &expected, &found, tolerance * row->magnitude);
        index_free(&expected);
        index_free(&found);
    }
    ops->close(ops);
}

static void test_base(void **state) {
    (void)state;
    agree("cpu", "base", 2e-5, 0);
}
static void test_avx2(void **state) {
    (void)state;
    agree("cpu", "avx2", 2e-5, 1);
}
static void test_avx512(void **state) {
    (void)state;
    agree("cpu", "avx512", 2e-5, 2);
}
static void test_guarded(void **state) {
    (void)state;
    agree("guard:cpu", NULL, 2e-5, 1);
    agree("guard:cpu-f64", NULL, 1e-12, 2);
}

static void expect_same(const struct index_case *row, const char *what, const struct index_arrays *a,
                        const struct index_arrays *b) {
    index_expect_choice(row, what, a->chosen, b->chosen, index_chosen_count(row));
    index_expect_choice(row, what, a->by_attention, b->by_attention, index_chosen_count(row));
    for (int n = 0; n < OUTPUTS; n++)
        index_expect_bits(row, what, index_output_names[n], a->outputs[n], b->outputs[n], index_output_count(row, n));
    for (int n = 0; n < GRADIENTS; n++)
        index_expect_bits(row, what, index_gradient_names[n], a->gradients[n], b->gradients[n],
                          index_gradient_count(row, n));
}

/* The same bits with any number of threads, and from tensors that are not columns of one matrix. */
static void test_threads_and_strides(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 3};
    for (int n = 0; n < index_case_count; n++) {
        const struct index_case *row = &index_cases[n];
        struct index_arrays one, many;
        const struct ops *ops = index_open("cpu", 1, NULL);
        index_fill(row, &one);
        index_run(ops, row, &one, RUN_ALL);
        ops->close(ops);
        for (size_t t = 0; t < sizeof counts / sizeof *counts; t++) {
            char what[32];
            snprintf(what, sizeof what, "%d threads%s", counts[t], t ? "" : ", dense");
            ops = index_open("cpu", counts[t], NULL);
            index_fill(row, &many);
            many.dense = t == 0;
            index_run(ops, row, &many, RUN_ALL);
            ops->close(ops);
            expect_same(row, what, &one, &many);
            index_free(&many);
        }
        index_free(&one);
    }
}

/* Outputs of the first t tokens, one sequence; log_sums and losses are [heads,T]. */
static void expect_same_past(const struct index_case *row, const struct index_arrays *a, const struct index_arrays *b,
                             int64_t t) {
    const char *what = "a changed future";
    const int64_t chosen = index_chosen_count(row) / row->length * t;
    index_expect_choice(row, what, a->chosen, b->chosen, chosen);
    index_expect_choice(row, what, a->by_attention, b->by_attention, chosen);
    index_expect_bits(row, what, "o", a->outputs[OUTPUT_O], b->outputs[OUTPUT_O], t * row->heads * row->width);
    static const enum output by_head[] = {OUTPUT_LOG_SUMS, OUTPUT_ALL, OUTPUT_ATTENDED};
    for (int n = 0; n < 3; n++)
        for (int64_t first = 0; first < index_output_count(row, by_head[n]); first += row->length)
            index_expect_bits(row, what, index_output_names[by_head[n]], a->outputs[by_head[n]] + first,
                              b->outputs[by_head[n]] + first, t);
    const int64_t block = index_pool_block(row);
    int64_t whole = 0;
    for (int64_t i = 0; i < t; i++) whole += (i - a->start[i] + 1) % block == 0;
    index_expect_bits(row, what, "pooled", a->outputs[OUTPUT_POOLED], b->outputs[OUTPUT_POOLED],
                      whole * 2 * row->lists * row->index_keys * row->index_width);
}

/* Large numbers, then what is no number, in place of every input of the tokens from t on. */
static void change_future(const struct index_case *row, struct index_arrays *x, int64_t t, int way) {
    for (int n = 0; n < INPUTS; n++) {
        const int64_t count = index_count(row, n);
        for (int64_t i = count / row->length * t; i < count; i++)
            x->inputs[n][i] = way == 0 ? 50 - 30 * x->inputs[n][i] : way == 1 ? 1e30 * x->inputs[n][i] : (double)NAN;
    }
}

static void test_no_leak(void **state) {
    (void)state;
    const struct ops *ops = index_open("cpu", 2, NULL);
    for (int n = 0; n < index_case_count; n++) {
        const struct index_case *row = &index_cases[n];
        if (row->batch > 1 || row->length < 4) continue;
        struct index_arrays before;
        index_fill(row, &before);
        index_run(ops, row, &before, RUN_FORWARD);
        for (int part = 1; part < 4; part++)
            for (int way = 0; way < 3; way++) {
                const int64_t t = row->length * part / 4 + way;
                struct index_arrays after;
                index_fill(row, &after);
                change_future(row, &after, t, way);
                index_run(ops, row, &after, RUN_FORWARD);
                expect_same_past(row, &before, &after, t);
                index_free(&after);
            }
        index_free(&before);
    }
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pytorch), cmocka_unit_test(test_base),    cmocka_unit_test(test_avx2),
        cmocka_unit_test(test_avx512),  cmocka_unit_test(test_guarded), cmocka_unit_test(test_threads_and_strides),
        cmocka_unit_test(test_no_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
