/* Gradients of token_attention and of index_learn against central differences in fp64, the choice held fixed; and what
 * index_learn does with arguments that are optional. */
#include "base/memory.h"
#include "ops/case_arrays.h"
#include "ops/index_case.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Beside those of index_cases that are short. */
static const struct index_case small[] = {
    {"a list a head", 1, 19, 4, 2, 3, 4, 2, 2, 3, 3, 3, 1, 0, 0, 1, {0}, false, 1},
    {"one list, documents", 2, 17, 4, 2, 2, 1, 3, 1, 4, 2, 2, 2, 0, 0, 0, {6, 7}, false, 1},
    {"two levels", 1, 21, 2, 1, 3, 2, 2, 1, 2, 4, 1, 0, 2, 2, 0, {2}, false, 1},
    {"sharp scores", 1, 18, 2, 1, 4, 1, 2, 2, 6, 5, 2, 1, 0, 0, 0, {0}, false, 4},
};
enum { SMALL = sizeof small / sizeof *small, LONGEST = 33 };
static const double step = 1e-6;

/* The smallest |r·u| of pairs in a document: a difference across relu's kink would show nothing. */
static double kink(const struct index_case *row, const struct index_arrays *x) {
    const int64_t heads = row->lists * row->index_heads, width = row->index_width,
                  each = row->index_heads / row->index_keys;
    double least = INFINITY;
    for (int64_t i = 0; i < row->batch * row->length; i++)
        for (int64_t j = i / row->length * row->length + x->start[i]; j <= i; j++)
            for (int64_t h = 0; h < heads; h++) {
                double dot = 0;
                for (int64_t e = 0; e < width; e++)
                    dot += x->inputs[INPUT_R][(i * heads + h) * width + e] *
                           x->inputs[INPUT_U][(j * heads + h) / each * width + e];
                least = fmin(least, fabs(dot));
            }
    return least;
}

/* Σ o·d_o by q, k, v; Σ losses, over all pairs or over those attended, by r, u, a. */
static double objective(const struct ops *ops, const struct index_case *row, struct index_arrays *x, int gradient) {
    double sum = 0;
    index_run(ops, row, x, gradient < INPUT_R ? RUN_ATTEND : RUN_LEARN);
    if (gradient < INPUT_R) {
        for (int64_t n = 0; n < index_count(row, INPUT_Q); n++) sum += x->outputs[OUTPUT_O][n] * x->d_o[n];
        return sum;
    }
    const enum output losses = gradient < INPUT_LEARNING ? OUTPUT_ALL : OUTPUT_ATTENDED;
    for (int64_t n = 0; n < index_output_count(row, losses); n++) sum += x->outputs[losses][n];
    return INDEX_GRADIENT_SCALE * sum;
}

static void check_differences(const struct ops *ops, const struct index_case *row) {
    struct index_arrays x;
    index_fill(row, &x);
    index_run(ops, row, &x, RUN_ALL);
    if (kink(row, &x) < 20 * step) fail_msg("%s: a pair lies on relu's kink: draw others", row->name);
    for (int g = 0; g < GRADIENTS; g++) {
        const int input = g < INPUT_LEARNING ? g : g - INPUT_LEARNING + INPUT_R;
        const int64_t count = index_gradient_count(row, g);
        for (int64_t i = 0; i < count; i += 1 + count / (check_dealt(1, 0) ? 300 : 100)) {
            const double before = x.inputs[input][i], found = x.gradients[g][i];
            x.inputs[input][i] = before + step;
            const double up = objective(ops, row, &x, g);
            x.inputs[input][i] = before - step;
            const double down = objective(ops, row, &x, g), expected = (up - down) / (2 * step);
            x.inputs[input][i] = before;
            if (!(fabs(expected - found) <= 1e-7 * fmax(1, fabs(expected))))
                fail_msg("%s: %s[%lld]: differences give %.9g, backward %.9g", row->name, index_gradient_names[g],
                         (long long)i, expected, found);
        }
    }
    index_free(&x);
}

static void test_differences(void **state) {
    (void)state;
    const struct ops *ops = index_open("cpu-f64", 1, NULL);
    for (int n = 0; n < SMALL; n++) check_differences(ops, &small[n]);
    for (int n = 0; n < index_case_count; n++)
        if (index_cases[n].length <= LONGEST) check_differences(ops, &index_cases[n]);
    ops->close(ops);
}

static void expect_close(const struct index_case *row, const char *name, const double *expected, const double *found,
                         int64_t count, double tolerance) {
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance))
            fail_msg("%s: %s[%lld]: expected %.12g, found %.12g", row->name, name, (long long)n, expected[n], found[n]);
}

/* A query that reads everything: attended pairs are all pairs, and every row hits with its whole mass. By choice, by
 * the window, by sinks. */
static void test_everything_attended(void **state) {
    (void)state;
    static const struct index_case rows[] = {
        {"all chosen", 2, 60, 4, 2, 8, 2, 2, 1, 6, 60, 1, 0, 0, 0, 0, {20}, false, 1},
        {"a window over everything", 2, 60, 4, 2, 8, 2, 2, 2, 6, 3, 60, 1, 0, 0, 0, {20}, false, 1},
        {"sinks over everything", 1, 60, 4, 1, 8, 1, 2, 1, 6, 3, 1, 90, 0, 0, 0, {20}, false, 1},
        {"sinks, chosen, window", 1, 60, 4, 1, 8, 4, 2, 1, 6, 50, 4, 6, 0, 0, 0, {20}, false, 1},
    };
    static const char *const table[] = {"cpu-f64", "cpu"};
    for (size_t n = 0; n < 2 * sizeof rows / sizeof *rows; n++) {
        const struct index_case *row = &rows[n / 2];
        const struct ops *ops = index_open(table[n % 2], 2, NULL);
        const double tolerance = n % 2 ? 2e-5 : 1e-13;
        struct index_arrays x;
        index_fill(row, &x);
        index_run(ops, row, &x, RUN_ALL);
        expect_close(row, "losses", x.outputs[OUTPUT_ALL], x.outputs[OUTPUT_ATTENDED],
                     index_output_count(row, OUTPUT_ALL), tolerance);
        for (int g = INPUT_R; g < INPUT_LEARNING; g++)
            expect_close(row, index_gradient_names[g], x.gradients[g], x.gradients[g + 3], index_gradient_count(row, g),
                         tolerance);
        const double hits = (double)(row->batch * row->length * row->lists);
        expect_close(row, "hits", &hits, x.outputs[OUTPUT_HITS], 1, hits * tolerance);
        index_free(&x);
        ops->close(ops);
    }
}

/* An indexer whose scores are the logarithm of what it learns, up to a constant for each query: no loss, no gradient.
 * One index head for which relu never cuts. */
static void test_learned(void **state) {
    (void)state;
    static const struct index_case row = {"learned", 1, 50, 1, 1, 4, 1, 1, 1, 4, 6, 3, 1, 0, 0, 0, {17}, false, 1};
    const struct ops *ops = index_open("cpu-f64", 2, NULL);
    struct index_arrays x;
    index_fill(&row, &x);
    for (int64_t i = 0; i < index_count(&row, INPUT_R);
         i++) { /* an offset of 10 in the last element, none of the teacher's */
        const bool last = i % 4 == 3;
        x.inputs[INPUT_R][i] = last ? 10 : x.inputs[INPUT_TEACHER_Q][i];
        x.inputs[INPUT_U][i] = last ? 10 : x.inputs[INPUT_TEACHER_K][i];
        if (last) x.inputs[INPUT_TEACHER_Q][i] = 0;
    }
    for (int64_t i = 0; i < row.length; i++) x.inputs[INPUT_A][i] = 1;
    index_run(ops, &row, &x, RUN_ALL);
    const double zero[200] = {0};
    for (int n = OUTPUT_ALL; n <= OUTPUT_ATTENDED; n++)
        expect_close(&row, index_output_names[n], zero, x.outputs[n], row.length, 1e-12);
    for (int g = INPUT_R; g < GRADIENTS; g++)
        expect_close(&row, index_gradient_names[g], zero, x.gradients[g], index_gradient_count(&row, g), 1e-12);
    index_free(&x);
    ops->close(ops);
}

/* Scores so far apart that weights vanish: losses and gradients stay numbers in fp32, and are fp64's. */
static void test_far_apart(void **state) {
    (void)state;
    static const struct index_case row = {"far apart", 1, 80, 2, 1, 8, 2, 2, 1, 4, 9, 3, 1, 0, 0, 0, {31}, false, 60};
    const struct ops *tables[] = {index_open("cpu-f64", 2, NULL), index_open("guard:cpu", 2, NULL)};
    struct index_arrays expected, found;
    index_fill(&row, &expected);
    index_fill(&row, &found);
    index_run(tables[0], &row, &expected, RUN_ALL);
    memcpy(found.chosen, expected.chosen, (size_t)index_chosen_count(&row) * sizeof *found.chosen);
    index_run(tables[1], &row, &found, RUN_FED);
    memcpy(found.outputs[OUTPUT_POOLED], expected.outputs[OUTPUT_POOLED],
           (size_t)index_output_count(&row, OUTPUT_POOLED) * sizeof(double));
    index_compare(&row, "cpu", &expected, &found, 1e-3);
    index_free(&expected);
    index_free(&found);
    for (int n = 0; n < 2; n++) tables[n]->close(tables[n]);
}

/* --- optional arguments ------------------------------------------------------------------------------------------- */

enum { TOKENS = 12, HEADS = 2 };
static double memory[8][TOKENS * HEADS * 4];
static int32_t start[TOKENS], chosen[TOKENS][2][2];

/* Two lists of one index head, E of 4; lists hold nothing. */
static struct index_learn example(void) {
    struct index_learn a = {.window = 3, .sinks = 1, .scale = 0.5, .weight = 2, .gradient_scale = 1};
    for (int n = 0; n < 4; n++)
        for (int i = 0; i < TOKENS * HEADS * 4; i++) memory[n][i] = 2 * case_draw(i, 70 + n);
    for (int i = 0; i < TOKENS * 4; i++) ((int32_t *)chosen)[i] = -1;
    a.scores.r = tensor_4d(memory[0], DTYPE_F64, 1, TOKENS, HEADS, 4);
    a.scores.u = tensor_4d(memory[1], DTYPE_F64, 1, TOKENS, HEADS, 4);
    a.scores.a = tensor_3d(memory[2], DTYPE_F64, 1, TOKENS, HEADS);
    a.scores.lists = 2;
    a.q = a.scores.u;
    a.k = tensor_4d(memory[3], DTYPE_F64, 1, TOKENS, HEADS, 4);
    a.start = tensor_2d(start, DTYPE_I32, 1, TOKENS);
    a.losses = tensor_3d(memory[4], DTYPE_F64, 1, HEADS, TOKENS);
    return a;
}

/* Losses alone. Lists that are absent are lists that hold nothing; all pairs without hits do not look at lists, window
 * and sinks. */
static void test_optional(void **state) {
    (void)state;
    const struct ops *ops = index_open("cpu-f64", 1, NULL);
    for (int attended = 0; attended < 2; attended++) {
        struct index_learn a = example();
        double kept[HEADS * TOKENS], first = 1, second = 1;
        a.attended = attended;
        a.chosen = tensor_4d(chosen, DTYPE_I32, 1, TOKENS, 2, 2);
        a.hits = tensor_1d(&first, DTYPE_F64, 1);
        CHECK_OK(ops->index_learn(ops, &a));
        memcpy(kept, memory[4], sizeof kept);
        memset(memory[4], 0xff, sizeof kept);
        a.chosen = tensor_none();
        a.hits = tensor_1d(&second, DTYPE_F64, 1);
        CHECK_OK(ops->index_learn(ops, &a));
        assert_memory_equal(kept, memory[4], sizeof kept);
        assert_true(first == second);
        assert_true(attended ? first == 1 : first > 1 && first < 1 + HEADS * TOKENS);
        if (attended) continue;
        a.hits = tensor_none();
        a.chosen = tensor_4d(chosen, DTYPE_I32, 1, TOKENS, 2, 2);
        for (int32_t reach = 0; reach > -200; reach -= 100) {
            a.window = a.sinks = reach;
            chosen[0][0][0] = TOKENS;
            memset(memory[4], 0xff, sizeof kept);
            CHECK_OK(ops->index_learn(ops, &a));
            assert_memory_equal(kept, memory[4], sizeof kept);
        }
    }
    ops->close(ops);
}

/* `loss` and `hits` are added to, gradients overwritten. */
static void test_accumulates(void **state) {
    (void)state;
    const struct ops *ops = index_open("cpu-f64", 1, NULL);
    struct index_learn a = example();
    double loss = 0, hits = 0, once[2], kept[TOKENS * HEADS * 4];
    a.loss = tensor_1d(&loss, DTYPE_F64, 1);
    a.hits = tensor_1d(&hits, DTYPE_F64, 1);
    a.d_r = tensor_4d(memory[5], DTYPE_F64, 1, TOKENS, HEADS, 4);
    a.d_u = tensor_4d(memory[6], DTYPE_F64, 1, TOKENS, HEADS, 4);
    a.d_a = tensor_3d(memory[7], DTYPE_F64, 1, TOKENS, HEADS);
    CHECK_OK(ops->index_learn(ops, &a));
    once[0] = loss;
    once[1] = hits;
    memcpy(kept, memory[6], sizeof kept);
    CHECK_OK(ops->index_learn(ops, &a));
    assert_true(once[0] > 0 && once[1] > 0 && loss == 2 * once[0] && hits == 2 * once[1]);
    assert_memory_equal(kept, memory[6], sizeof kept);
    a.gradient_scale = -2;
    CHECK_OK(ops->index_learn(ops, &a));
    for (int i = 0; i < TOKENS * HEADS * 4; i++) assert_true(fabs(memory[6][i] + 2 * kept[i]) <= 1e-14);
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differences), cmocka_unit_test(test_everything_attended),
        cmocka_unit_test(test_learned),     cmocka_unit_test(test_far_apart),
        cmocka_unit_test(test_optional),    cmocka_unit_test(test_accumulates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
