/* The whole model's backward pass against central differences in double: every parameter tensor of every type, every objective,
 * with and without recomputing, LoRA and every kind included. */
#include "support/check.h"

#include "model/model.h"

#include "base/rng.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct row {
    const char *name;
    struct model_config config;
    int64_t batch, length;
    bool documents; /* two documents in each sequence */
};

static const struct row rows[] = {
    {"gpt2 tied", {.type = MODEL_GPT2, .layers = 2, .heads = 3, .kv_heads = 3, .head_width = 4, .width = 12, .mlp_width = 20,
                   .vocabulary = 19, .positions = 16, .norm_epsilon = 1e-5, .tied = true, .qkv_bias = true, .output_bias = true,
                   .mlp_bias = true, .causal = true}, 2, 7, true},
    {"gpt2 untied, T=1", {.type = MODEL_GPT2, .layers = 1, .heads = 2, .kv_heads = 2, .head_width = 6, .width = 12, .mlp_width = 9,
                          .vocabulary = 11, .positions = 4, .norm_epsilon = 1e-5, .qkv_bias = true, .output_bias = true,
                          .mlp_bias = true, .causal = true}, 3, 1, false},
    {"llama, 4 heads over 2", {.type = MODEL_LLAMA, .layers = 2, .heads = 4, .kv_heads = 2, .head_width = 6, .width = 10,
                               .mlp_width = 14, .vocabulary = 23, .positions = 64, .norm_epsilon = 1e-5, .rope_theta = 10000,
                               .causal = true}, 2, 9, true},
    {"llama tied", {.type = MODEL_LLAMA, .layers = 1, .heads = 2, .kv_heads = 1, .head_width = 4, .width = 8, .mlp_width = 6,
                    .vocabulary = 13, .positions = 64, .norm_epsilon = 1e-6, .rope_theta = 500, .tied = true, .causal = true},
     1, 5, false},
};

struct setup {
    const struct ops *ops;
    struct model teacher, student;
    struct batch batch;
    int32_t *ids, *targets, *start;
};

static void jitter(struct model *model, double size, uint64_t seed) {
    const struct ops *ops = model->params.ops;
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        if (!row->owned) continue;
        int64_t count = tensor_count(row->value);
        double *values = malloc((size_t)count * sizeof *values);
        CHECK_OK(ops->download(ops, row->value, values));
        for (int64_t e = 0; e < count; e++) {
            values[e] += size * rng_normal(seed, rng_substream(RNG_TEST, (uint64_t)i), (uint64_t)e);
        }
        CHECK_OK(ops->upload(ops, row->value, values));
        free(values);
    }
}

static void make_batch(struct setup *s, const struct row *row) {
    int64_t n = row->batch * row->length;
    s->ids = malloc((size_t)n * sizeof *s->ids);
    s->targets = malloc((size_t)n * sizeof *s->targets);
    s->start = malloc((size_t)n * sizeof *s->start);
    for (int64_t i = 0; i < n; i++) {
        int64_t t = i % row->length, cut = row->length / 2;
        s->ids[i] = (int32_t)rng_below(1, RNG_TEST, (uint64_t)i, (uint64_t)row->config.vocabulary);
        s->targets[i] = i % 5 == 3 ? -1 : (int32_t)rng_below(2, RNG_TEST, (uint64_t)i, (uint64_t)row->config.vocabulary);
        s->start[i] = row->documents && t >= cut ? (int32_t)cut : 0;
    }
    s->batch = (struct batch){.batch = row->batch, .length = row->length, .ids = s->ids, .targets = s->targets, .start = s->start};
}

/* Students: a kind and its options. */
static char *mixture_words[] = {"full", "window(3)", "sinks(1)", "dilated(2,2)"}, *mixture_start[] = {"0.7", "0.4", "-0.3", "0"};
static char *hedgehog[] = {"hedgehog"}, *exponential[] = {"exp"}, *relu_se[] = {"relu-se"}, *two[] = {"2"}, *zero[] = {"0"};
static char *eight[] = {"8"}, *half[] = {"0.5"}, *one[] = {"1"}, *four[] = {"4"}, *no[] = {"false"}, *separate[] = {"separate"};
static char *by_head[] = {"head"}, *each[] = {"each"};
static struct student {
    const char *name, *kind;
    struct config_option options[7];
    size_t count;
    double jitter; /* of its parameters */
} students[] = {
    {"masks", "masks", {{.key = "candidates", .words = mixture_words, .count = 4}, {.key = "start", .words = mixture_start, .count = 4}},
     2, 0.1},
    {"performer", "performer", {{.key = "features", .words = eight, .count = 1}}, 1, 0.1},
    {"kerformer", "kerformer", {{.key = "map", .words = hedgehog, .count = 1}, {.key = "window", .words = two, .count = 1},
                                {.key = "window_dropout", .words = half, .count = 1}}, 3, 0.1},
    {"kerformer exp", "kerformer", {{.key = "map", .words = exponential, .count = 1}, {.key = "window", .words = zero, .count = 1},
                                    {.key = "features", .words = eight, .count = 1}}, 3, 0.1},
    {"kerformer relu-se", "kerformer", {{.key = "map", .words = relu_se, .count = 1}, {.key = "window", .words = two, .count = 1},
                                        {.key = "hidden", .words = two, .count = 1}}, 3, 0.1},
    {"nsa", "nsa", {{.key = "compress", .words = two, .count = 1}, {.key = "stride", .words = one, .count = 1},
                    {.key = "block", .words = two, .count = 1}, {.key = "select", .words = four, .count = 1},
                    {.key = "window", .words = two, .count = 1}}, 5, 0.3},
    {"nsa, three gates", "nsa", {{.key = "compress", .words = two, .count = 1}, {.key = "stride", .words = one, .count = 1},
                                 {.key = "block", .words = two, .count = 1}, {.key = "select", .words = four, .count = 1},
                                 {.key = "window", .words = two, .count = 1}, {.key = "union", .words = no, .count = 1}}, 6, 0.3},
    {"nsa, keys and values apart", "nsa",
     {{.key = "compress", .words = two, .count = 1}, {.key = "stride", .words = one, .count = 1},
      {.key = "block", .words = two, .count = 1}, {.key = "select", .words = four, .count = 1},
      {.key = "window", .words = two, .count = 1}, {.key = "union", .words = no, .count = 1},
      {.key = "branch_kv", .words = separate, .count = 1}}, 7, 0.3},
    {"nsa without a choice, apart", "nsa",
     {{.key = "compress", .words = two, .count = 1}, {.key = "stride", .words = one, .count = 1},
      {.key = "block", .words = two, .count = 1}, {.key = "select", .words = zero, .count = 1},
      {.key = "window", .words = two, .count = 1}, {.key = "union", .words = no, .count = 1},
      {.key = "branch_kv", .words = separate, .count = 1}}, 7, 0.3},
    {"indexer", "indexer", {{.key = "window", .words = two, .count = 1}, {.key = "sinks", .words = one, .count = 1},
                            {.key = "tokens", .words = two, .count = 1}, {.key = "index_width", .words = four, .count = 1}}, 4, 0.3},
    {"indexer, heads choose in two levels", "indexer",
     {{.key = "per", .words = by_head, .count = 1}, {.key = "window", .words = one, .count = 1}, {.key = "tokens", .words = two, .count = 1},
      {.key = "keys", .words = each, .count = 1}, {.key = "index_width", .words = two, .count = 1},
      {.key = "coarse", .words = two, .count = 1}, {.key = "coarse_blocks", .words = one, .count = 1}}, 7, 0.3},
};
enum { STUDENTS = sizeof students / sizeof *students };

static char *patterns_all[] = {"all"};
static char *patterns_new[] = {"new", "attn.qkv", "lora(2)", "norm1"};

static void set_up(struct setup *out, const struct row *row, struct student *student) {
    struct ops_options options = {.threads = 1};
    memset(out, 0, sizeof *out);
    CHECK_OK(ops_open("guard:cpu-f64", &options, &out->ops));
    CHECK_OK(model_new(out->ops, &row->config, !student, &out->teacher));
    CHECK_OK(model_initialise(&out->teacher, 7));
    jitter(&out->teacher, 0.2, 8);
    if (student) {
        struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)student->kind, .options = student->options,
                                        .option_count = student->count};
        CHECK_OK(model_student(&out->teacher, "test", &rule, 1, patterns_new, 4, true, 3, &out->student));
        jitter(&out->student, student->jitter, 9);
    }
    make_batch(out, row);
}

static void tear_down(struct setup *s) {
    model_free(&s->student);
    model_free(&s->teacher);
    free(s->ids);
    free(s->targets);
    free(s->start);
    s->ops->close(s->ops);
}

/* What a pass computes: its loss, and gradients when asked for. */
struct work {
    struct setup *s;
    struct model *model; /* whose parameters are differentiated */
    struct plan *teacher_plan, *plan;
    struct head *head;
    struct tensor d_hidden;
    bool align, weights;
};
enum { OWN_SCALE = 2 }; /* of the kinds' own losses, with weights */

static double run(struct work *w, bool gradients) {
    const struct model *model = w->model;
    int64_t layers = model->config.layers;
    if (w->align) {
        double errors[8], norms[8], ones[8], loss = 0;
        for (int64_t l = 0; l < layers; l++) ones[l] = 3.0 + (double)l;
        double own = 0;
        /* A kind's own loss comes with its gradients: with weights every pass adds some, see check_row. */
        const struct align align = {w->teacher_plan, w->plan, gradients || w->weights ? ones : NULL, 1.7};
        CHECK_OK(align_load(&align, &w->s->batch));
        CHECK_OK(align_run(&align));
        CHECK_OK(align_read(&align, errors, norms));
        for (int64_t l = 0; l < layers; l++) loss += 1.7 * errors[l] / ones[l];
        if (!w->weights) return loss;
        CHECK_OK(plan_read_loss(w->plan, &own));
        assert_true(own > 1e-3 || w->s->batch.length == 1);
        return loss + OWN_SCALE * own;
    }
    struct tensor taught = tensor_none(), hidden;
    if (w->teacher_plan) CHECK_OK(model_forward(w->teacher_plan, &w->s->batch, &taught));
    CHECK_OK(model_forward(w->plan, &w->s->batch, &hidden));
    struct head_sums sums = {0};
    struct head_loss loss = {.teacher_hidden = taught, .student_hidden = hidden, .targets = w->s->targets, .temperature = 1.5,
                             .kl_weight = w->teacher_plan ? 0.8 : 0, .ce_weight = 0.6, .scale = 0.5,
                             .d_hidden = gradients ? w->d_hidden : tensor_none()};
    CHECK_OK(head_loss(w->head, &loss, &sums));
    if (gradients) CHECK_OK(model_backward(w->plan, w->d_hidden));
    return loss.scale * (loss.kl_weight * sums.kl + loss.ce_weight * sums.ce);
}

static void check_row(struct work *w, const struct param *row, const char *name) {
    const struct ops *ops = w->s->ops;
    int64_t count = tensor_count(row->value);
    double *values = malloc((size_t)count * sizeof *values), *grads = malloc((size_t)count * sizeof *grads);
    if (w->weights) {
        CHECK_OK(ops->fill(ops, w->model->params.grads, 0));
        run(w, true);
    }
    CHECK_OK(ops->download(ops, row->grad, grads));
    CHECK_OK(ops->download(ops, row->value, values));
    for (int64_t sample = 0; sample < (count < 6 ? count : 6); sample++) {
        int64_t e = count <= 6 ? sample : (int64_t)rng_below(5, RNG_TEST, (uint64_t)(sample * 977 + count), (uint64_t)count);
        const double step = 1e-5;
        double keep = values[e], loss[2];
        for (int side = 0; side < 2; side++) {
            values[e] = keep + (side ? step : -step);
            CHECK_OK(ops->upload(ops, row->value, values));
            loss[side] = run(w, false);
        }
        values[e] = keep;
        CHECK_OK(ops->upload(ops, row->value, values));
        double expected = (loss[1] - loss[0]) / (2 * step), size = fabs(expected) + fabs(grads[e]);
        /* A difference has no more digits than the loss leaves it. */
        double rounding = fmax(2e-9, 4 * DBL_EPSILON * fabs(loss[0]) / step);
        if (!(fabs(expected - grads[e]) <= 1e-6 * size + rounding)) {
            fail_msg("%s: %s[%lld]: expected %.12g, found %.12g", name, row->name, (long long)e, expected, grads[e]);
        }
    }
    free(values);
    free(grads);
}

static void check_model(struct setup *s, struct model *model, char *const *patterns, size_t count, bool recompute, bool align,
                        bool weights, const char *name) {
    struct work w = {.s = s, .model = model, .align = align, .weights = weights};
    int64_t elements;
    struct plan_options train = {.batch = s->batch.batch, .length = s->batch.length, .train = !align, .recompute = recompute,
                                 .align = align};
    struct plan_options only = {.batch = s->batch.batch, .length = s->batch.length};
    struct head_options head = {.rows = s->batch.batch * s->batch.length, .budget_bytes = 900};
    void *memory = NULL;
    CHECK_OK(params_train(&model->params, patterns, count, &elements));
    assert_true(elements > 0);
    CHECK_OK(plan_open(model, &train, &w.plan));
    if (model != &s->teacher) CHECK_OK(plan_open(&s->teacher, &only, &w.teacher_plan));
    CHECK_OK(head_open(w.teacher_plan ? &s->teacher : NULL, model, &head, &w.head));
    CHECK_OK(s->ops->allocate(s->ops, (size_t)(head.rows * model->config.width) * 8, &memory));
    w.d_hidden = tensor_2d(memory, s->ops->real, head.rows, model->config.width);
    CHECK_OK(s->ops->fill(s->ops, model->params.grads, 0));
    /* Windows are dropped here, of the same sequences in every pass. */
    struct attention_context context = {.training = true, .attention_stage = align, .seed = 11, .weights = weights,
                                        .loss_scale = weights ? OWN_SCALE : 0};
    bool steady;
    CHECK_OK(plan_set_context(w.plan, &context, &steady));
    run(&w, true);
    int checked = 0;
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        if (!row->trained) continue;
        /* The layers' outputs are not what these see: attn.out comes after, its LoRA too. */
        check_row(&w, row, name);
        checked++;
    }
    assert_true(checked > 3);
    s->ops->release(s->ops, memory);
    head_close(&w.head);
    plan_close(&w.plan);
    plan_close(&w.teacher_plan);
}

static void test_all_parameters(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int recompute = 0; recompute < 2; recompute++) {
            struct setup s;
            set_up(&s, &rows[i], NULL);
            check_model(&s, &s.teacher, patterns_all, 1, recompute, false, false, rows[i].name);
            tear_down(&s);
        }
    }
}

/* Where no relu feature of a pair is alive, the logarithm of its weight bends too much for a difference. */
static void lift_biases(struct model *model) {
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        double values[512];
        if (!strstr(row->name, "kerformer.q_bias") && !strstr(row->name, "kerformer.k_bias")) continue;
        const int64_t count = tensor_count(row->value);
        assert_true(count <= 512);
        CHECK_OK(model->params.ops->download(model->params.ops, row->value, values));
        for (int64_t e = 0; e < count; e++) values[e] += 1;
        CHECK_OK(model->params.ops->upload(model->params.ops, row->value, values));
    }
}

static void check_student(size_t row, size_t student, bool recompute, bool align, bool weights) {
    struct setup s;
    char name[96];
    snprintf(name, sizeof name, "%s, %s%s", rows[row].name, students[student].name, weights ? ", weights" : "");
    set_up(&s, &rows[row], &students[student]);
    if (weights) lift_biases(&s.student);
    check_model(&s, &s.student, patterns_new, align ? 3 : 4, recompute, align, weights, name);
    tear_down(&s);
}

static void test_student(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t n = 0; n < STUDENTS; n++) {
            for (int recompute = 0; recompute < 2; recompute++)
                if (check_dealt((int64_t)(i + n), recompute)) check_student(i, n, recompute, false, false);
        }
    }
}

static void test_objective_attention(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t n = 0; n < STUDENTS; n++)
            if (check_dealt((int64_t)(i + n), 2)) check_student(i, n, false, true, false);
    }
}

/* Objective `attention` with `weights`: of kinds that can. */
static void test_weights(void **state) {
    (void)state;
    int tested = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t n = 0; n < STUDENTS; n++) {
            if (!kind_find(students[n].kind)->has_weights) continue;
            check_student(i, n, false, true, true);
            tested++;
        }
    }
    assert_true(tested > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_parameters),
        cmocka_unit_test(test_student),
        cmocka_unit_test(test_objective_attention),
        cmocka_unit_test(test_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
