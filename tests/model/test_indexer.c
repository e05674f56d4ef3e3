/* The kind indexer at its start: index vectors made from the teacher's projections are its scores where they are wide enough, and the
 * best of their rank where they are not; and options that make no sense. */
#include "support/check.h"

#include "model/model.h"

#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, LENGTH = 30, ROWS = BATCH * LENGTH, WIDTH = 24, HEADS = 4, HEAD_WIDTH = 8, VOCABULARY = 29 };

static const struct model_config configs[] = {
    {.type = MODEL_GPT2, .layers = 2, .heads = HEADS, .kv_heads = HEADS, .head_width = HEAD_WIDTH, .width = WIDTH, .mlp_width = 40,
     .vocabulary = VOCABULARY, .positions = 64, .norm_epsilon = 1e-5, .tied = true, .qkv_bias = true, .output_bias = true,
     .mlp_bias = true, .causal = true},
    {.type = MODEL_LLAMA, .layers = 2, .heads = HEADS, .kv_heads = 2, .head_width = HEAD_WIDTH, .width = WIDTH, .mlp_width = 28,
     .vocabulary = VOCABULARY, .positions = 64, .norm_epsilon = 1e-5, .rope_theta = 100, .causal = true},
};

static int32_t ids[ROWS], start[ROWS];
static const struct batch batch = {.batch = BATCH, .length = LENGTH, .ids = ids, .start = start};

static void make_tokens(void) {
    for (int n = 0; n < ROWS; n++) {
        ids[n] = (int32_t)rng_below(1, RNG_TEST, (uint64_t)n, VOCABULARY);
        start[n] = n >= LENGTH && n % LENGTH >= 11 ? 11 : 0;
    }
}

/* A teacher that attends sharply, with biases where it has them, and an indexer with these options, key and word in turn. */
static void make_models(const struct ops *ops, const struct model_config *config, const char *const *words, struct model *teacher,
                        struct model *student) {
    struct config_option options[8];
    size_t count = 0;
    for (; words[2 * count]; count++)
        options[count] = (struct config_option){.key = (char *)(uintptr_t)words[2 * count],
                                                .words = (char **)(uintptr_t)&words[2 * count + 1], .count = 1};
    struct config_attention rule = {.first = 0, .last = -1, .kind = "indexer", .options = options, .option_count = count};
    CHECK_OK(model_new(ops, config, false, teacher));
    CHECK_OK(model_initialise(teacher, 5));
    for (int64_t i = 0; i < teacher->params.count; i++) {
        const struct param *row = &teacher->params.rows[i];
        if (strstr(row->name, "attn.qkv.weight")) CHECK_OK(ops->scale(ops, 20, row->value));
        if (strstr(row->name, "attn.qkv.bias")) CHECK_OK(ops->fill_normal(ops, row->value, 0.5, 3, (uint64_t)i));
    }
    CHECK_OK(model_student(teacher, "test", &rule, 1, NULL, 0, false, 7, student));
}

static void hidden_of(const struct model *model, double *out) {
    struct plan *plan = NULL;
    struct tensor hidden;
    CHECK_OK(plan_open(model, &(struct plan_options){.batch = BATCH, .length = LENGTH}, &plan));
    CHECK_OK(model_forward(plan, &batch, &hidden));
    CHECK_OK(model->params.ops->download(model->params.ops, hidden, out));
    plan_close(&plan);
}

static void switch_off(struct model *student, uint32_t parts) {
    for (int64_t l = 0; l < student->config.layers; l++)
        CHECK_OK(student->layers[l].kind->switch_off(&student->layers[l], parts));
}

static double distance(const double *a, const double *b) {
    double most = 0;
    for (int n = 0; n < ROWS * WIDTH; n++) most = fmax(most, fabs(a[n] - b[n]));
    return most;
}

/* As wide as the teacher's heads, the indexer's first choice is the one that attention itself would make; a random start's is not. */
static void test_exact(void **state) {
    (void)state;
    static const char *const cases[][15] = {
        {"per", "head", "window", "2", "sinks", "0", "tokens", "3", "index_heads", "2", "index_width", "8"},
        {"per", "head", "window", "1", "sinks", "1", "tokens", "5", "index_heads", "3", "index_width", "8", "keys", "each"},
        {"per", "head", "window", "2", "sinks", "0", "tokens", "4", "index_heads", "4", "index_width", "4", "keys", "each"},
    };
    static double chosen[ROWS * WIDTH], best[ROWS * WIDTH], before[ROWS * WIDTH];
    const struct ops *ops = NULL;
    make_tokens();
    CHECK_OK(ops_open("guard:cpu-f64", &(struct ops_options){.threads = 1}, &ops));
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++)
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct model teacher, student;
            if (c == 1 && n == 2) continue; /* two halves of a head turn at the speeds of one */
            make_models(ops, &configs[c], cases[n], &teacher, &student);
            hidden_of(&student, before);
            CHECK_OK(model_calibrate(&student, &batch));
            hidden_of(&student, chosen);
            switch_off(&student, 2);
            hidden_of(&student, best);
            if (!(distance(chosen, best) < 1e-9))
                fail_msg("model %zu, case %zu: expected the best choice's output, found %g from it", c, n, distance(chosen, best));
            assert_true(distance(before, best) > 1e-3);
            switch_off(&student, 4);
            hidden_of(&student, before);
            assert_true(distance(before, best) > 1e-3);
            model_free(&student);
            model_free(&teacher);
        }
    ops->close(ops);
}

/* --- rank ----------------------------------------------------------------------------------------------------------- */

struct scores {
    double r[ROWS][HEAD_WIDTH], u[ROWS][HEAD_WIDTH], s[ROWS][ROWS];
    double x[ROWS][WIDTH];
};

static double *read_row(const struct model *model, const char *name) {
    const struct param *row = params_find(&model->params, name);
    double *values = malloc((size_t)tensor_count(row->value) * sizeof *values);
    CHECK_OK(model->params.ops->download(model->params.ops, row->value, values));
    return values;
}

/* y [ROWS][count] = x·Wᵀ + b, rows first … of W. */
static void project(const struct scores *t, const double *weight, const double *bias, int64_t first, int64_t count,
                    double y[ROWS][HEAD_WIDTH]) {
    for (int n = 0; n < ROWS; n++)
        for (int64_t d = 0; d < count; d++) {
            y[n][d] = bias[first + d];
            for (int c = 0; c < WIDTH; c++) y[n][d] += t->x[n][c] * weight[(first + d) * WIDTH + c];
        }
}

/* Sum over all pairs of the squared difference between the teacher's scores and the index's. */
static double error_of(const struct scores *t, int64_t width) {
    double sum = 0;
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < ROWS; j++) {
            double found = 0;
            for (int64_t d = 0; d < width; d++) found += t->r[i][d] * t->u[j][d];
            sum += pow(t->s[i][j] - found / sqrt((double)width), 2);
        }
    return sum;
}

/* Rank 3 of a head of 8: whichever way the index's vectors are moved, the error does not fall. A factorisation of low rank has no other
 * such place than the best. */
static void test_rank(void **state) {
    (void)state;
    enum { RANK = 3, HEAD = 2 };
    static const char *const options[] = {"per", "head", "index_heads", "2", "index_width", "3", NULL};
    static struct scores t, moved;
    static double q[ROWS][HEAD_WIDTH], k[ROWS][HEAD_WIDTH];
    const struct ops *ops = NULL;
    struct model teacher, student;
    make_tokens();
    CHECK_OK(ops_open("cpu-f64", &(struct ops_options){.threads = 1}, &ops));
    make_models(ops, &configs[0], options, &teacher, &student);
    double *weight = read_row(&student, "h.1.attn.qkv.weight"), *bias = read_row(&student, "h.1.attn.qkv.bias");
    for (int n = 0; n < ROWS * WIDTH; n++) t.x[n / WIDTH][n % WIDTH] = rng_normal(3, RNG_TEST, (uint64_t)n) + (n % WIDTH == 1);
    /* What the layer sees is made up: x, and q and k of it. */
    static double qk[2][ROWS][HEADS][HEAD_WIDTH];
    for (int side = 0; side < 2; side++)
        for (int h = 0; h < HEADS; h++) {
            project(&t, weight, bias, (side * HEADS + h) * HEAD_WIDTH, HEAD_WIDTH, side ? k : q);
            for (int n = 0; n < ROWS; n++) memcpy(qk[side][n][h], side ? k[n] : q[n], sizeof *q);
            for (int n = 0; side && h == HEAD && n < ROWS * ROWS; n++)
                for (int d = 0; d < HEAD_WIDTH; d++) t.s[n / ROWS][n % ROWS] += qk[0][n / ROWS][h][d] * k[n % ROWS][d] / sqrt(HEAD_WIDTH);
        }
    static int32_t positions[ROWS];
    const struct attention_pass pass = {
        .ops = ops, .batch = BATCH, .length = LENGTH, .x = tensor_2d(t.x, DTYPE_F64, ROWS, WIDTH),
        .q = tensor_4d(qk[0], DTYPE_F64, BATCH, LENGTH, HEADS, HEAD_WIDTH),
        .k = tensor_4d(qk[1], DTYPE_F64, BATCH, LENGTH, HEADS, HEAD_WIDTH),
        .start = tensor_2d(start, DTYPE_I32, BATCH, LENGTH), .positions = tensor_2d(positions, DTYPE_I32, BATCH, LENGTH)};
    CHECK_OK(student.layers[1].kind->calibrate(&student.layers[1], &pass));
    double *query = read_row(&student, "h.1.attn.indexer.query.weight"), *query_bias = read_row(&student, "h.1.attn.indexer.query.bias");
    double *key = read_row(&student, "h.1.attn.indexer.key.weight"), *key_bias = read_row(&student, "h.1.attn.indexer.key.bias");
    for (int n = 0; n < RANK * WIDTH; n++) /* the second index head is the first's negative */
        assert_true(query[(2 * HEAD + 1) * RANK * WIDTH + n] == -query[2 * HEAD * RANK * WIDTH + n]);
    project(&t, query, query_bias, 2 * HEAD * RANK, RANK, t.r);
    project(&t, key, key_bias, HEAD * RANK, RANK, t.u);
    const double least = error_of(&t, RANK);
    double all = 0;
    for (int n = 0; n < ROWS * ROWS; n++) all += pow(t.s[n / ROWS][n % ROWS], 2);
    assert_true(least > 1e-3 * all && least < 0.7 * all);
    for (int way = 0; way < 200; way++) {
        /* Vectors of the teacher's own, a little of them, in any combination. */
        double best = least;
        for (int side = -1; side <= 1; side += 2) {
            moved = t;
            for (int n = 0; n < ROWS; n++)
                for (int d = 0; d < RANK; d++)
                    for (int e = 0; e < HEAD_WIDTH; e++) {
                        const uint64_t draw = (uint64_t)((way * RANK + d) * HEAD_WIDTH + e);
                        moved.r[n][d] += 1e-3 * side * rng_normal(5, RNG_TEST, 2 * draw) * qk[0][n][HEAD][e];
                        moved.u[n][d] += 1e-3 * side * rng_normal(5, RNG_TEST, 2 * draw + 1) * qk[1][n][HEAD][e];
                    }
            best = fmin(best, error_of(&moved, RANK));
        }
        if (best < least * (1 - 1e-9)) fail_msg("way %d: expected at least %.12g, found %.12g", way, least, best);
    }
    double *const rows[] = {weight, bias, query, query_bias, key, key_bias};
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) free(rows[n]);
    model_free(&student);
    model_free(&teacher);
    ops->close(ops);
}

/* --- options -------------------------------------------------------------------------------------------------------- */

static void test_refusals(void **state) {
    (void)state;
    static const char *const wrong[][4] = {
        {"per", "token", NULL, NULL},     {"window", "0", NULL, NULL},     {"tokens", "0", NULL, NULL},
        {"tokens", "2.5", NULL, NULL},    {"index_width", "7", NULL, NULL}, {"index_heads", "0", NULL, NULL},
        {"keys", "two", NULL, NULL},      {"init", "zero", NULL, NULL},    {"coarse", "-1", NULL, NULL},
        {"select_weight", "x", NULL, NULL}, {"select", "4", NULL, NULL},
    };
    struct attention_layer layers[2];
    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        char *word = (char *)(uintptr_t)wrong[n][1];
        struct config_option option = {.key = (char *)(uintptr_t)wrong[n][0], .words = &word, .count = 1};
        struct config_attention rule = {.first = 0, .last = -1, .kind = "indexer", .options = &option, .option_count = 1};
        CHECK_STATUS(STATUS_USAGE, attention_configure("test", &rule, 1, &configs[1], layers));
    }
    /* tokens: one number, or one for each list. */
    static char *counts[] = {"3", "1", "0", "4"}, *head[] = {"head"};
    struct config_option options[] = {{.key = "tokens", .words = counts, .count = 3}, {.key = "per", .words = head, .count = 1}};
    struct config_attention rule = {.first = 0, .last = -1, .kind = "indexer", .options = options, .option_count = 2};
    CHECK_STATUS(STATUS_USAGE, attention_configure("test", &rule, 1, &configs[1], layers));
    options[0].count = 4;
    CHECK_OK(attention_configure("test", &rule, 1, &configs[1], layers));
    struct attention_cost cost;
    CHECK_OK(layers[0].kind->cost(&layers[0], 2000, &cost));
    /* Windows of 128 and 4 sinks, and 2 tokens in the mean. */
    const double pairs = 0.5 * 128 * 129 + (2000 - 128) * 128.0 + (2000 - 128) * 4.0 - 6 + (2000 - 132) * 2.0 - 2.25;
    if (fabs(cost.density * 0.5 * 2000 * 2001 - pairs) > 1e-6)
        fail_msg("density: expected %.3f pairs, found %.3f", pairs, cost.density * 0.5 * 2000 * 2001);
    attention_free_layers(layers, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact), cmocka_unit_test(test_rank), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
