/* The linear kinds beyond their passes: options that must be refused, what they draw, what they start at, what they cost. */
#include "support/check.h"

#include "eval/variants.h"
#include "model/model.h"

#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct model_config config = {
    .type = MODEL_LLAMA, .layers = 2, .heads = 4, .kv_heads = 2, .head_width = 8, .width = 12, .mlp_width = 16,
    .vocabulary = 23, .positions = 64, .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true};
enum { BATCH = 4, LENGTH = 24 };

struct choice {
    const char *kind, *keys[4], *words[4];
};

static struct config_attention rule_of(const struct choice *choice, struct config_option options[4]) {
    struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)choice->kind, .options = options, .line = 7};
    for (int i = 0; i < 4 && choice->keys[i]; i++) {
        options[i] = (struct config_option){.key = (char *)choice->keys[i], .words = (char **)&choice->words[i], .count = 1,
                                            .line = 7};
        rule.option_count++;
    }
    return rule;
}

static const struct {
    struct choice choice;
    bool bidirectional;
    const char *message;
} wrong[] = {
    {{"performer", {"window"}, {"3"}}, false, "attention performer: unknown option \"window\"; expected features, redraw_every"},
    {{"performer", {"features"}, {"0"}}, false, "features: expected a whole number from 1 to 65536, found \"0\""},
    {{"performer", {"redraw_every"}, {"often"}}, false, "redraw_every: expected a whole number from 0"},
    {{"kerformer", {"map"}, {"elu"}}, false, "map: expected hedgehog, exp, relu-se, found \"elu\""},
    {{"kerformer", {"features"}, {"16"}}, false, "features: expected it only with map: exp or relu-se, found \"16\""},
    {{"kerformer", {"map", "hidden"}, {"exp", "4"}}, false, "hidden: expected it only with map: relu-se, found \"4\""},
    {{"kerformer", {"window"}, {"-1"}}, false, "window: expected a whole number from 0 to 16777216, found \"-1\""},
    {{"kerformer", {"window", "window_dropout"}, {"0", "0.5"}}, false, "window_dropout: expected 0 without a window"},
    {{"kerformer", {"window_dropout"}, {"2"}}, false, "window_dropout: expected a number from 0 to 1, found \"2\""},
    {{"kerformer", {"window"}, {"8"}}, true, "window: expected 0 for a model that reads in both directions, found \"8\""},
    {{"kerformer", {"map"}, {"relu-se"}}, true, "map: expected hedgehog or exp for a model that reads in both directions"},
};

static void test_wrong_options(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct config_option options[4];
        struct config_attention rule = rule_of(&wrong[i].choice, options);
        struct model_config model = config;
        void *settings = NULL;
        model.causal = !wrong[i].bidirectional;
        enum status status = kind_find(rule.kind)->configure("recipe.yaml", &rule, &model, &settings);
        if (status != STATUS_USAGE || !strstr(error_message(), wrong[i].message) || !strstr(error_message(), "recipe.yaml:7"))
            fail_msg("expected \"%s\", found %s: %s", wrong[i].message, status_name(status), error_message());
        assert_null(settings);
        error_clear();
    }
}

/* A teacher, its student of one kind and a batch. */
struct setup {
    const struct ops *ops;
    struct model teacher, student;
    struct batch batch;
    int32_t ids[BATCH * LENGTH], start[BATCH * LENGTH];
};

static void set_up(struct setup *s, const struct choice *choice) {
    struct config_option options[4];
    struct config_attention rule = rule_of(choice, options);
    memset(s, 0, sizeof *s);
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &s->ops));
    CHECK_OK(model_new(s->ops, &config, false, &s->teacher));
    CHECK_OK(model_initialise(&s->teacher, 5));
    CHECK_OK(model_student(&s->teacher, "test", &rule, 1, NULL, 0, true, 1, &s->student));
    for (int i = 0; i < BATCH * LENGTH; i++) s->ids[i] = (int32_t)rng_below(3, RNG_TEST, (uint64_t)i, 23);
    s->batch = (struct batch){.batch = BATCH, .length = LENGTH, .ids = s->ids, .start = s->start};
}

static void tear_down(struct setup *s) {
    model_free(&s->student);
    model_free(&s->teacher);
    s->ops->close(s->ops);
}

static void forward(struct setup *s, const struct model *model, const struct attention_context *context, float *hidden) {
    struct plan_options options = {.batch = BATCH, .length = LENGTH};
    struct plan *plan = NULL;
    struct tensor out;
    CHECK_OK(plan_open(model, &options, &plan));
    bool steady;
    if (context) CHECK_OK(plan_set_context(plan, context, &steady));
    CHECK_OK(model_forward(plan, &s->batch, &out));
    CHECK_OK(s->ops->download(s->ops, out, hidden));
    plan_close(&plan);
}

/* Rows of a block are orthogonal; their mean squared length is D. */
static void test_orthogonal_draws(void **state) {
    (void)state;
    enum { COLUMNS = 8, ROWS_OF_MAP = 8 * 250 + 3 };
    double *map = malloc(sizeof *map * ROWS_OF_MAP * COLUMNS), mean = 0, fourth = 0;
    CHECK_OK(params_draw_orthogonal(4, 9, ROWS_OF_MAP, COLUMNS, map));
    for (int r = 0; r < ROWS_OF_MAP; r++) {
        for (int other = r / COLUMNS * COLUMNS; other <= r; other++) {
            double sum = 0;
            for (int c = 0; c < COLUMNS; c++) sum += map[r * COLUMNS + c] * map[other * COLUMNS + c];
            if (other < r && fabs(sum) > 1e-12) fail_msg("rows %d and %d: expected 0, found %g", r, other, sum);
            if (other < r) continue;
            mean += sum / ROWS_OF_MAP;
            fourth += sum * sum / ROWS_OF_MAP;
        }
    }
    /* chi²(D): mean D, mean square D² + 2D. */
    if (fabs(mean - COLUMNS) > 0.3 || fabs(fourth - COLUMNS * (COLUMNS + 2)) > 8)
        fail_msg("lengths: expected 8 and 80, found %g and %g", mean, fourth);
    free(map);
}

/* One draw every n steps, the same whoever draws it; outside of training the last one stays. No pattern trains it. */
static void test_redraw(void **state) {
    (void)state;
    struct setup s, other;
    static const struct choice choice = {"performer", {"features", "redraw_every"}, {"16", "10"}};
    float maps[4][16 * 8], hidden[BATCH * LENGTH * 12];
    static const int64_t updates[] = {0, 9, 10, 25};
    struct attention_context context = {.training = true, .seed = 1};
    set_up(&s, &choice);
    const struct param *row = params_find(&s.student.params, "h.1.attn.performer.map");
    CHECK_OK(s.ops->download(s.ops, row->value, maps[3]));
    for (int n = 0; n < 3; n++) {
        context.updates = updates[n];
        forward(&s, &s.student, &context, hidden);
        CHECK_OK(s.ops->download(s.ops, row->value, maps[n]));
    }
    assert_memory_equal(maps[3], maps[0], sizeof maps[0]); /* the start is draw 0 */
    assert_memory_equal(maps[0], maps[1], sizeof maps[0]);
    assert_true(memcmp(maps[1], maps[2], sizeof maps[0]) != 0);
    context.updates = updates[3];
    forward(&s, &s.student, &context, hidden);
    CHECK_OK(s.ops->download(s.ops, row->value, maps[0]));
    forward(&s, &s.student, NULL, hidden);
    CHECK_OK(s.ops->download(s.ops, row->value, maps[1]));
    assert_memory_equal(maps[0], maps[1], sizeof maps[0]);
    set_up(&other, &choice);
    forward(&other, &other.student, &context, hidden);
    CHECK_OK(other.ops->download(other.ops, params_find(&other.student.params, row->name)->value, maps[2]));
    assert_memory_equal(maps[0], maps[2], sizeof maps[0]);
    static const char *const patterns[] = {"all", "new", "performer", "h.1.attn.performer.map", "*"};
    for (int n = 0; n < 5; n++) assert_false(params_match(row, patterns[n]));
    tear_down(&s);
    tear_down(&other);
}

/* Which sequences lose their window: about p of them, by sample and not by place in a batch, in the `attention` stage only. */
static void test_window_dropout(void **state) {
    (void)state;
    struct setup s;
    static const struct choice choice = {"kerformer", {"window", "window_dropout"}, {"4", "0.5"}};
    enum { SIZE = LENGTH * 12 };
    float whole[BATCH * SIZE], now[BATCH * SIZE], shifted[BATCH * SIZE];
    struct attention_context context = {.training = true, .attention_stage = true, .seed = 3};
    int dropped = 0, samples = 0;
    set_up(&s, &choice);
    for (int b = 1; b < BATCH; b++) memcpy(s.ids + b * LENGTH, s.ids, LENGTH * sizeof *s.ids);
    forward(&s, &s.student, NULL, whole);
    for (; samples < 200; samples += BATCH) {
        context.first_sample = samples;
        forward(&s, &s.student, &context, now);
        for (int b = 0; b < BATCH; b++) dropped += memcmp(now + b * SIZE, whole, SIZE * sizeof *now) != 0;
    }
    /* Either of two layers drops it: 3/4 of 200. */
    if (abs(dropped - 150) > 20) fail_msg("windows dropped in 200 samples: expected about 150, found %d", dropped);
    context.first_sample = samples - BATCH - 1;
    forward(&s, &s.student, &context, shifted);
    assert_memory_equal(shifted + SIZE, now, (BATCH - 1) * SIZE * sizeof *now);
    context.attention_stage = false;
    forward(&s, &s.student, &context, now);
    assert_memory_equal(now, whole, sizeof whole);
    tear_down(&s);
}

/* Queries and keys start with one map: exp features estimate softmax attention before they have learned. */
static void test_starts(void **state) {
    (void)state;
    struct setup s;
    static const struct choice exponential = {"kerformer", {"map", "features"}, {"exp", "24"}};
    static const struct choice hedgehog = {"kerformer", {NULL}, {NULL}};
    float q[4 * 24 * 8], k[2 * 24 * 8];
    set_up(&s, &exponential);
    CHECK_OK(s.ops->download(s.ops, params_find(&s.student.params, "h.0.attn.kerformer.q_map")->value, q));
    CHECK_OK(s.ops->download(s.ops, params_find(&s.student.params, "h.0.attn.kerformer.k_map")->value, k));
    for (int h = 0; h < 4; h++) assert_memory_equal(q + h * 24 * 8, k, 24 * 8 * sizeof *k);
    tear_down(&s);
    set_up(&s, &hedgehog);
    CHECK_OK(s.ops->download(s.ops, params_find(&s.student.params, "h.1.attn.kerformer.k_map")->value, k));
    for (int i = 0; i < 2 * 8 * 8; i++) assert_true(k[i] == (i / 8 % 8 == i % 8 ? 1 : 0));
    tear_down(&s);
}

/* A window over everything is the teacher, whatever the features. */
static void test_covered(void **state) {
    (void)state;
    struct setup s;
    static const struct choice choices[] = {{"kerformer", {"window_dropout"}, {"0.5"}},
                                            {"kerformer", {"map", "window"}, {"relu-se", "3"}},
                                            {"kerformer", {"map"}, {"exp"}}};
    float expected[BATCH * LENGTH * 12], found[BATCH * LENGTH * 12];
    for (int n = 0; n < 3; n++) {
        struct config_option options[4];
        struct config_attention rule = rule_of(&choices[n], options);
        struct model covered;
        set_up(&s, &choices[n]);
        CHECK_OK(model_covered(&s.teacher, "test", &rule, 1, LENGTH, 1, &covered));
        forward(&s, &s.teacher, NULL, expected);
        forward(&s, &covered, NULL, found);
        for (int i = 0; i < BATCH * LENGTH * 12; i++)
            if (!(fabsf(found[i] - expected[i]) <= 1e-5f))
                fail_msg("choice %d, %d: expected %g, found %g", n, i, (double)expected[i], (double)found[i]);
        model_free(&covered);
        tear_down(&s);
    }
    static const struct choice performer = {"performer", {NULL}, {NULL}};
    struct config_option options[4];
    struct config_attention rule = rule_of(&performer, options);
    set_up(&s, &performer);
    struct model covered;
    CHECK_STATUS(STATUS_NOT_FOUND, model_covered(&s.teacher, "test", &rule, 1, LENGTH, 1, &covered));
    tear_down(&s);
}

/* Twice the length costs twice, and the state of decoding does not grow. */
static void test_cost(void **state) {
    (void)state;
    static const struct choice choices[] = {{"performer", {NULL}, {NULL}}, {"kerformer", {"window"}, {"16"}}};
    for (int n = 0; n < 2; n++) {
        struct setup s;
        struct attention_cost near, far;
        char text[256];
        set_up(&s, &choices[n]);
        const struct attention_layer *layer = &s.student.layers[0];
        CHECK_OK(layer->kind->cost(layer, 1 << 14, &near));
        CHECK_OK(layer->kind->cost(layer, 1 << 15, &far));
        assert_true(near.density < 0 && far.flops < 1.001 * near.flops && far.flops > 1000);
        assert_true(near.decode_bytes == far.decode_bytes);
        /* performer, D 8: 32 features of 8 + 1 numbers for each of 2 key heads; hedgehog: 16 features and a ring of 16. */
        assert_true(near.decode_bytes == (n == 0 ? 2 * 32 * 9 * 4 : 2 * (16 * 9 + 2 * 16 * 8) * 4));
        CHECK_OK(layer->kind->report(layer, text, sizeof text));
        assert_non_null(strstr(text, n == 0 ? "\"features\": 32" : "\"beta_mean\": 0"));
        tear_down(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_options), cmocka_unit_test(test_orthogonal_draws), cmocka_unit_test(test_redraw),
        cmocka_unit_test(test_window_dropout), cmocka_unit_test(test_starts), cmocka_unit_test(test_covered),
        cmocka_unit_test(test_cost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
