/* What kinds that choose do only while they train: their own loss of choosing, whose gradients are checked against central differences in
 * double, and nsa's annealing, which begins at the teacher and ends at what the options say. */
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

/* A kind, its options, key and word in turn, and in which objective its loss of choosing is looked at. */
static const struct subject {
    const char *name, *kind, *options[18];
    bool attention_stage;
} subjects[] = {
    {"nsa", "nsa", {"compress", "4", "stride", "2", "block", "2", "select", "4", "window", "3", "select_group", "2"}, true},
    {"indexer", "indexer", {"window", "2", "sinks", "1", "tokens", "3", "index_heads", "3", "index_width", "4"}, true},
    {"indexer, own keys", "indexer",
     {"per", "group", "window", "3", "tokens", "2", "index_heads", "2", "index_width", "6", "keys", "each"}, true},
    {"indexer, over what it reads", "indexer", {"per", "head", "window", "2", "sinks", "1", "tokens", "4", "index_heads", "2"}, false},
    {"indexer, over what it reads, own keys", "indexer",
     {"window", "3", "tokens", "4", "index_heads", "3", "index_width", "4", "keys", "each", "coarse", "2", "coarse_blocks", "2"}, false},
};
static const struct subject annealed = {
    "nsa, annealed", "nsa",
    {"compress", "4", "stride", "2", "block", "2", "select", "4", "window", "3", "select_group", "2", "anneal", "kl"}, false};

static void make_models(const struct ops *ops, char *const *train, size_t train_count, const struct subject *s,
                        struct model *teacher, struct model *student) {
    struct config_option options[9];
    size_t given = 0;
    for (; given < 9 && s->options[2 * given]; given++)
        options[given] = (struct config_option){.key = (char *)(uintptr_t)s->options[2 * given],
                                                .words = (char **)(uintptr_t)&s->options[2 * given + 1], .count = 1};
    struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)(uintptr_t)s->kind, .options = options,
                                    .option_count = given};
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

/* What a subject's own loss is computed with. */
struct own {
    const struct ops *ops;
    struct plan *taught, *plan; /* taught: objective attention */
    void *block;
    struct tensor d_hidden;
};

/* The layers' own losses; gradients are accumulated. Nothing else sends any back. */
static double own_loss(const struct own *own) {
    static const double ones[] = {1, 1};
    double errors[2], norms[2], loss;
    struct tensor hidden;
    if (own->taught) {
        const struct align align = {own->taught, own->plan, ones, 1e-30};
        CHECK_OK(align_load(&align, &batch));
        CHECK_OK(align_run(&align));
        CHECK_OK(align_read(&align, errors, norms));
    } else {
        CHECK_OK(model_forward(own->plan, &batch, &hidden));
        CHECK_OK(own->ops->fill(own->ops, own->d_hidden, 0));
        CHECK_OK(model_backward(own->plan, own->d_hidden));
    }
    CHECK_OK(plan_read_loss(own->plan, &loss));
    return loss;
}

/* A few elements of a row; returns how many have a gradient. */
static int check_row(const struct own *own, const struct subject *s, const struct param *row, int64_t number, const double *grads,
                     double scale) {
    const int64_t count = tensor_count(row->value);
    double *values = malloc((size_t)count * sizeof *values);
    int moved = 0;
    CHECK_OK(own->ops->download(own->ops, row->value, values));
    for (int64_t sample = 0; sample < 8; sample++) {
        const int64_t e = (int64_t)rng_below(5, RNG_TEST, (uint64_t)(sample * 977 + number), (uint64_t)count);
        const double before = values[e], step = 1e-5, found = grads[row->offset + e];
        double losses[2];
        for (int side = 0; side < 2; side++) {
            values[e] = before + (side ? step : -step);
            CHECK_OK(own->ops->upload(own->ops, row->value, values));
            losses[side] = own_loss(own);
        }
        values[e] = before;
        CHECK_OK(own->ops->upload(own->ops, row->value, values));
        const double expected = scale * (losses[1] - losses[0]) / (2 * step);
        if (!(fabs(expected - found) <= 1e-6 * fabs(expected) + 1e-8))
            fail_msg("%s: %s[%lld]: expected %.10g, found %.10g", s->name, row->name, (long long)e, expected, found);
        moved += fabs(found) > 1e-6;
    }
    free(values);
    return moved;
}

static void check_choosing(const struct ops *ops, const struct subject *s) {
    /* Objective attention: what the teacher does is fixed. Later the targets are the student's own, and no gradient reaches them. */
    static char *const patterns[] = {"new", "attn.qkv"};
    const size_t pattern_count = s->attention_stage ? 2 : 1;
    const double scale = 0.37;
    struct model teacher, student;
    struct own own = {.ops = ops};
    int64_t elements;
    int moved = 0;
    make_models(ops, patterns, pattern_count, s, &teacher, &student);
    CHECK_OK(params_train(&student.params, patterns, pattern_count, &elements));
    if (s->attention_stage)
        CHECK_OK(plan_open(&teacher, &(struct plan_options){.batch = BATCH, .length = LENGTH}, &own.taught));
    CHECK_OK(plan_open(&student, &(struct plan_options){.batch = BATCH, .length = LENGTH, .align = s->attention_stage,
                                                        .train = !s->attention_stage}, &own.plan));
    CHECK_OK(ops->allocate(ops, sizeof(double) * ROWS * WIDTH, &own.block));
    own.d_hidden = tensor_2d(own.block, DTYPE_F64, ROWS, WIDTH);
    bool steady;
    CHECK_OK(plan_set_context(own.plan,
                              &(struct attention_context){
                                  .training = true, .attention_stage = s->attention_stage, .loss_scale = scale},
                              &steady));
    CHECK_OK(ops->fill(ops, student.params.grads, 0));
    assert_true(own_loss(&own) > 0);
    double *grads = malloc((size_t)student.params.owned_elements * sizeof *grads);
    CHECK_OK(ops->download(ops, student.params.grads, grads));
    for (int64_t i = 0; i < student.params.count; i++)
        if (student.params.rows[i].trained) moved += check_row(&own, s, &student.params.rows[i], i, grads, scale);
    if (moved <= 20) fail_msg("%s: expected gradients in more than 20 elements, found %d", s->name, moved);
    free(grads);
    plan_close(&own.plan);
    plan_close(&own.taught);
    ops->release(ops, own.block);
    model_free(&student);
    model_free(&teacher);
}

static void test_choosing(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    make_tokens();
    CHECK_OK(ops_open("guard:cpu-f64", &(struct ops_options){.threads = 1}, &ops));
    for (size_t n = 0; n < sizeof subjects / sizeof *subjects; n++) check_choosing(ops, &subjects[n]);
    ops->close(ops);
}

static void hidden_of(struct plan *plan, const struct ops *ops, const struct attention_context *context, double *out) {
    struct tensor hidden;
    bool steady;
    CHECK_OK(plan_set_context(plan, context, &steady));
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
    make_models(ops, patterns, 1, &annealed, &teacher, &student);
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
