/* What the kind nsa does only while it trains: its own loss of choosing, whose gradients are checked against central differences in
 * double, and annealing, which begins at the teacher and ends at what the options say. */
#include "support/check.h"

#include "model/model.h"

#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, LENGTH = 21, ROWS = BATCH * LENGTH, WIDTH = 10, VOCABULARY = 23 };

static const struct model_config config = {.type = MODEL_LLAMA, .layers = 2, .heads = 4, .kv_heads = 2, .head_width = 6,
                                           .width = WIDTH, .mlp_width = 14, .vocabulary = VOCABULARY, .positions = 64,
                                           .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true};

static int32_t ids[ROWS], start[ROWS];
static const struct batch batch = {.batch = BATCH, .length = LENGTH, .ids = ids, .start = start};

static void make_tokens(void) {
    for (int n = 0; n < ROWS; n++) {
        ids[n] = (int32_t)rng_below(1, RNG_TEST, (uint64_t)n, VOCABULARY);
        start[n] = n >= LENGTH && n % LENGTH >= 8 ? 8 : 0;
    }
}

static void make_models(const struct ops *ops, char *const *train, size_t train_count, const char *anneal,
                        struct model *teacher, struct model *student) {
    char *words[] = {"4", "2", "2", "4", "3", "2", (char *)(uintptr_t)anneal};
    const char *const keys[] = {"compress", "stride", "block", "select", "window", "select_group", "anneal"};
    struct config_option options[7];
    for (int n = 0; n < 7; n++)
        options[n] = (struct config_option){.key = (char *)(uintptr_t)keys[n], .words = &words[n], .count = 1};
    struct config_attention rule = {.first = 0, .last = -1, .kind = "nsa", .options = options, .option_count = 7};
    CHECK_OK(model_new(ops, &config, false, teacher));
    CHECK_OK(model_initialise(teacher, 7));
    CHECK_OK(model_student(teacher, "test", &rule, 1, train, train_count, train_count > 0, 3, student));
    for (int64_t i = 0; i < student->params.count; i++) {
        const struct param *row = &student->params.rows[i];
        const int64_t count = tensor_count(row->value);
        if (!row->added) continue;
        double *values = malloc((size_t)count * sizeof *values);
        for (int64_t e = 0; e < count; e++)
            values[e] = 0.4 * rng_normal(9, rng_substream(RNG_TEST, (uint64_t)i), (uint64_t)e);
        CHECK_OK(ops->upload(ops, row->value, values));
        free(values);
    }
}

/* The layers' own losses; gradients are accumulated. The alignment's own part is next to nothing. */
static double own_loss(struct plan *teacher, struct plan *student) {
    static const double ones[] = {1, 1};
    double errors[2], norms[2], loss;
    CHECK_OK(model_align(teacher, student, &batch, ones, 1e-30, errors, norms));
    CHECK_OK(plan_read_loss(student, &loss));
    return loss;
}

static void test_choosing(void **state) {
    (void)state;
    static char *const patterns[] = {"new", "attn.qkv"};
    const double scale = 0.37;
    struct model teacher, student;
    struct plan *taught = NULL, *plan = NULL;
    const struct ops *ops = NULL;
    int64_t elements;
    int moved = 0;
    make_tokens();
    CHECK_OK(ops_open("guard:cpu-f64", &(struct ops_options){.threads = 1}, &ops));
    make_models(ops, patterns, 2, "false", &teacher, &student);
    CHECK_OK(params_train(&student.params, patterns, 2, &elements));
    CHECK_OK(plan_open(&teacher, &(struct plan_options){.batch = BATCH, .length = LENGTH}, &taught));
    CHECK_OK(plan_open(&student, &(struct plan_options){.batch = BATCH, .length = LENGTH, .align = true}, &plan));
    plan_set_context(plan, &(struct attention_context){.training = true, .attention_stage = true, .loss_scale = scale});
    CHECK_OK(ops->fill(ops, student.params.grads, 0));
    assert_true(own_loss(taught, plan) > 0);
    double *grads = malloc((size_t)student.params.owned_elements * sizeof *grads);
    CHECK_OK(ops->download(ops, student.params.grads, grads));
    for (int64_t i = 0; i < student.params.count; i++) {
        const struct param *row = &student.params.rows[i];
        const int64_t count = tensor_count(row->value);
        if (!row->trained) continue;
        double *values = malloc((size_t)count * sizeof *values);
        CHECK_OK(ops->download(ops, row->value, values));
        for (int64_t sample = 0; sample < 8; sample++) {
            const int64_t e = (int64_t)rng_below(5, RNG_TEST, (uint64_t)(sample * 977 + i), (uint64_t)count);
            const double before = values[e], step = 1e-5, found = grads[row->offset + e];
            double losses[2];
            for (int side = 0; side < 2; side++) {
                values[e] = before + (side ? step : -step);
                CHECK_OK(ops->upload(ops, row->value, values));
                losses[side] = own_loss(taught, plan);
            }
            values[e] = before;
            CHECK_OK(ops->upload(ops, row->value, values));
            const double expected = scale * (losses[1] - losses[0]) / (2 * step);
            if (!(fabs(expected - found) <= 1e-6 * fabs(expected) + 1e-8))
                fail_msg("%s[%lld]: expected %.10g, found %.10g", row->name, (long long)e, expected, found);
            moved += fabs(found) > 1e-6;
        }
        free(values);
    }
    assert_true(moved > 20);
    free(grads);
    plan_close(&plan);
    plan_close(&taught);
    model_free(&student);
    model_free(&teacher);
    ops->close(ops);
}

static void hidden_of(struct plan *plan, const struct ops *ops, const struct attention_context *context, double *out) {
    struct tensor hidden;
    plan_set_context(plan, context);
    CHECK_OK(model_forward(plan, &batch, &hidden));
    CHECK_OK(ops->download(ops, hidden, out));
}

static double distance(const double *a, const double *b) {
    double most = 0;
    for (int n = 0; n < ROWS * WIDTH; n++) most = fmax(most, fabs(a[n] - b[n]));
    return most;
}

static void test_annealing(void **state) {
    (void)state;
    static double teacher_hidden[ROWS * WIDTH], begin[ROWS * WIDTH], middle[ROWS * WIDTH], end[ROWS * WIDTH], used[ROWS * WIDTH];
    static char *const patterns[] = {"new"};
    const struct ops *ops = NULL;
    struct model teacher, student;
    struct plan *taught = NULL, *plan = NULL;
    make_tokens();
    CHECK_OK(ops_open("guard:cpu-f64", &(struct ops_options){.threads = 1}, &ops));
    make_models(ops, patterns, 1, "kl", &teacher, &student);
    for (int64_t l = 0; l < config.layers; l++) /* branch 0, compressed: off */
        CHECK_OK(student.layers[l].kind->switch_off(&student.layers[l], 1));
    CHECK_OK(plan_open(&teacher, &(struct plan_options){.batch = BATCH, .length = LENGTH}, &taught));
    CHECK_OK(plan_open(&student, &(struct plan_options){.batch = BATCH, .length = LENGTH, .train = true}, &plan));
    hidden_of(taught, ops, &(struct attention_context){.progress = 1}, teacher_hidden);
    hidden_of(plan, ops, &(struct attention_context){.training = true, .updates = 1}, begin);
    hidden_of(plan, ops, &(struct attention_context){.training = true, .updates = 1, .progress = 0.5}, middle);
    hidden_of(plan, ops, &(struct attention_context){.training = true, .updates = 1, .progress = 1}, end);
    hidden_of(plan, ops, &(struct attention_context){.progress = 0}, used);
    assert_true(distance(teacher_hidden, begin) < 1e-12);
    assert_true(distance(begin, middle) > 1e-6);
    assert_true(distance(middle, end) > 1e-6);
    assert_memory_equal(end, used, sizeof end);
    /* The other objective's stage is not annealed. */
    hidden_of(plan, ops, &(struct attention_context){.training = true, .attention_stage = true, .updates = 1}, begin);
    assert_memory_equal(end, begin, sizeof end);
    plan_close(&plan);
    plan_close(&taught);
    model_free(&student);
    model_free(&teacher);
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_choosing), cmocka_unit_test(test_annealing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
