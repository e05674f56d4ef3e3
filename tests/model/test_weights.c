/* Which tokens a layer reads, of every kind: against softmax(q·k) made here, against the sets of tokens that the kinds'
 * definitions give, and against the kind's own output (o = A·v). Two sequences, the second of three documents; grouped
 * heads; T no multiple of D. */
#include "model/internal.h"
#include "model/weights.h"
#include "support/check.h"

#include "base/rng.h"
#include "params/values.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, HEADS = 4, GROUPS = 2, WIDTH = 6, BATCH = 2, LENGTH = 21, ROWS = BATCH * LENGTH };
enum { QKV = (HEADS + 2 * GROUPS) * WIDTH, PAIRS = BATCH * HEADS * LENGTH * LENGTH };
static const struct model_config config = {.type = MODEL_LLAMA,
                                           .layers = LAYERS,
                                           .heads = HEADS,
                                           .kv_heads = GROUPS,
                                           .head_width = WIDTH,
                                           .width = 10,
                                           .mlp_width = 14,
                                           .vocabulary = 23,
                                           .positions = 64,
                                           .norm_epsilon = 1e-5,
                                           .rope_theta = 10000,
                                           .causal = true};

struct row {
    const char *name, *kind;
    struct config_option options[8];
    size_t count;
    bool sums;  /* rows of A sum to 1 */
    bool apart; /* values of its own: A·v is not all of o */
};
static char *candidates[] = {"window(3)", "sinks(2)", "offset(6)"}, *start[] = {"0.5", "0.5", "0"},
            *signs[] = {"0.9", "0.4", "-0.3"};
static char *one[] = {"1"}, *three[] = {"3"}, *two[] = {"2"}, *four[] = {"4"}, *eight[] = {"8"}, *no[] = {"false"},
            *separate[] = {"separate"}, *per_head[] = {"head"};
#define OPTION(k, w)                                                                                                   \
    { .key = (k), .words = (w), .count = sizeof(w) / sizeof *(w) }
#define NSA OPTION("compress", three), OPTION("stride", three), OPTION("block", three), OPTION("window", two)
static struct row rows[] = {
    {"full", "full", {{0}}, 0, true, false},
    {"masks", "masks", {OPTION("candidates", candidates), OPTION("start", start)}, 2, true, false},
    {"masks with a negative coefficient",
     "masks",
     {OPTION("candidates", candidates), OPTION("start", signs)},
     2,
     false,
     false},
    {"performer", "performer", {OPTION("features", eight)}, 1, true, false},
    {"kerformer", "kerformer", {OPTION("window", three)}, 1, true, false},
    {"nsa", "nsa", {NSA, OPTION("select", four), OPTION("select_group", one)}, 6, false, false},
    {"nsa, three gates", "nsa", {NSA, OPTION("select", four), OPTION("union", no)}, 6, false, false},
    {"nsa, values apart", "nsa", {NSA, OPTION("select", four), OPTION("branch_kv", separate)}, 6, false, true},
    {"indexer",
     "indexer",
     {OPTION("window", two), OPTION("sinks", one), OPTION("tokens", three), OPTION("per", per_head)},
     4,
     true,
     false},
};
enum { STUDENTS = sizeof rows / sizeof *rows };

struct setup {
    const struct ops *ops;
    struct model teacher, student;
    struct batch batch;
    int32_t ids[ROWS], start[ROWS];
    double qkv[LAYERS][ROWS * QKV], o[LAYERS][ROWS * HEADS * WIDTH];
    float weights[LAYERS * PAIRS];
    uint8_t reads[LAYERS * PAIRS];
    int visits;
};

/* More than the starts: students that have learned. */
static void jitter(struct model *model, const char *part, double size) {
    const struct ops *ops = model->params.ops;
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        double values[4096];
        const int64_t count = tensor_count(row->value);
        if (!row->owned || row->constant || (part && !strstr(row->name, part))) continue;
        assert_true(count <= 4096);
        CHECK_OK(values_read(ops, row->value, values));
        for (int64_t e = 0; e < count; e++)
            values[e] += size * rng_normal(9, rng_substream(RNG_TEST, (uint64_t)i), (uint64_t)e);
        CHECK_OK(values_write(ops, row->value, values));
    }
}

static struct setup *set_up(struct row *row, const char *device) {
    struct config_attention rule = {
        .first = 0, .last = -1, .kind = (char *)row->kind, .options = row->options, .option_count = row->count};
    struct setup *s = calloc(1, sizeof *s);
    CHECK_OK(ops_open(device, &(struct ops_options){.threads = 1}, &s->ops));
    CHECK_OK(model_new(s->ops, &config, false, &s->teacher));
    CHECK_OK(model_initialise(&s->teacher, 7));
    jitter(&s->teacher, NULL, 0.3);
    CHECK_OK(model_student(&s->teacher, "test", &rule, 1, NULL, 0, true, 3, &s->student));
    for (int l = 0; l < LAYERS && strcmp(row->kind, "indexer") == 0; l++) /* "scorer: the best choice" */
        CHECK_OK(s->student.layers[l].kind->switch_off(&s->student.layers[l], 2));
    for (int n = 0; n < ROWS; n++) s->ids[n] = (int32_t)rng_below(1, RNG_TEST, (uint64_t)n, 23);
    for (int t = 0; t < LENGTH; t++) s->start[LENGTH + t] = t >= 9 ? 9 : t >= 1 ? 1 : 0;
    s->batch = (struct batch){.batch = BATCH, .length = LENGTH, .ids = s->ids, .start = s->start};
    return s;
}

static void tear_down(struct setup *s) {
    model_free(&s->student);
    model_free(&s->teacher);
    s->ops->close(s->ops);
    free(s);
}

static enum status keep_layer(void *user, int64_t layer, struct plan *plan) {
    struct setup *s = user;
    struct layer_saved *saved = &plan->saved[layer];
    const struct attention_layer *attention = &plan->model->layers[layer];
    const struct attention_pass pass = attention_pass_of(plan, layer, saved->n1, saved->qkv, saved->o);
    TRY(attention->kind->forward(attention, &pass));
    TRY(s->ops->download(s->ops, saved->qkv, s->qkv[layer]));
    return s->ops->download(s->ops, saved->o, s->o[layer]);
}

/* q, k, v and o of every layer, by the forward pass that everybody else uses. */
static void keep_pass(struct setup *s) {
    const struct attend attend = {.run = keep_layer, .user = s};
    struct plan *plan = NULL;
    CHECK_OK(plan_open(&s->student, &(struct plan_options){.batch = BATCH, .length = LENGTH}, &plan));
    CHECK_OK(plan_load_batch(plan, &s->batch));
    CHECK_OK(network_forward(plan, &attend));
    plan_close(&plan);
}

static enum status keep_weights(void *user, const struct layer_weights *found) {
    struct setup *s = user;
    assert_int_equal(found->layer, s->visits++);
    assert_true(found->batch == BATCH && found->heads == HEADS && found->length == LENGTH);
    memcpy(s->weights + found->layer * PAIRS, found->weights, PAIRS * sizeof *s->weights);
    memcpy(s->reads + found->layer * PAIRS, found->reads, PAIRS * sizeof *s->reads);
    return STATUS_OK;
}

static const double *query(const struct setup *s, int l, int b, int h, int i) {
    return s->qkv[l] + (b * LENGTH + i) * QKV + h * WIDTH;
}
static const double *key(const struct setup *s, int l, int b, int h, int j) {
    return s->qkv[l] + (b * LENGTH + j) * QKV + (HEADS + h / (HEADS / GROUPS)) * WIDTH;
}
static double dot(const double *x, const double *y) {
    double sum = 0;
    for (int d = 0; d < WIDTH; d++) sum += x[d] * y[d];
    return sum / sqrt(WIDTH);
}

/* The tokens of nsa's own definition, for a compressor that has learned nothing: with blocks of three of both sorts,
 * which lie on each other, a block is as important as it is probable. */
static void nsa_set(const struct setup *s, bool alone, int l, int b, int h, int i, uint8_t reads[LENGTH]) {
    enum { BLOCK = 3, SELECT = 4, WINDOW = 2, SHARE = HEADS / GROUPS };
    const int first = s->start[b * LENGTH + i], own = (i - first) / BLOCK, visible = (i + 1 - first) / BLOCK;
    double importance[LENGTH] = {0};
    for (int other = alone ? h : h / SHARE * SHARE; other < (alone ? h + 1 : (h / SHARE + 1) * SHARE); other++) {
        double p[LENGTH], sum = 0;
        for (int c = 0; c < visible; c++) {
            double mean[WIDTH] = {0};
            for (int n = 0; n < BLOCK * WIDTH; n++)
                mean[n % WIDTH] += key(s, l, b, h, first + c * BLOCK + n / WIDTH)[n % WIDTH] / BLOCK;
            sum += p[c] = exp(dot(query(s, l, b, other, i), mean));
        }
        for (int c = 0; c < visible; c++) importance[c] += p[c] / sum;
    }
    importance[0] = 1e9;
    importance[own] = 1e8;
    if (own > 0) importance[own - 1] += 1e7;
    for (int c = 0; c < visible * BLOCK; c++) reads[first + c] = WEIGHT_SUMMARY;
    for (int n = 0; n < SELECT && n <= own; n++) {
        int best = 0;
        for (int c = 1; c <= own; c++)
            if (importance[c] > importance[best]) best = c;
        importance[best] = -1;
        for (int j = first + best * BLOCK; j < first + (best + 1) * BLOCK && j <= i; j++) reads[j] = WEIGHT_READ;
    }
    for (int j = i - WINDOW + 1; j <= i; j++)
        if (j >= first) reads[j] = WEIGHT_READ;
}

/* Window, sink, and of what lies between the three tokens that the head itself attends to most. */
static void indexer_set(const struct setup *s, int l, int b, int h, int i, uint8_t reads[LENGTH]) {
    const int first = s->start[b * LENGTH + i];
    reads[first] = WEIGHT_READ;
    for (int j = i - 1; j <= i; j++)
        if (j >= first) reads[j] = WEIGHT_READ;
    for (int n = 0; n < 3; n++) {
        int best = -1;
        double most = 0;
        for (int j = first + 1; j < i - 1; j++) {
            const double score = dot(query(s, l, b, h, i), key(s, l, b, h, j));
            if (reads[j] == WEIGHT_READ || (best >= 0 && score <= most)) continue;
            best = j;
            most = score;
        }
        if (best >= 0) reads[best] = WEIGHT_READ;
    }
}

static void expected_reads(const struct setup *s, const struct row *row, int l, int b, int h, int i,
                           uint8_t reads[LENGTH]) {
    const int first = s->start[b * LENGTH + i];
    const bool offset = row->count == 2 && row->options[1].words == signs;
    memset(reads, WEIGHT_UNREAD, LENGTH);
    if (strcmp(row->kind, "nsa") == 0) {
        nsa_set(s, row->options[5].words == one, l, b, h, i, reads);
        return;
    }
    if (strcmp(row->kind, "indexer") == 0) {
        indexer_set(s, l, b, h, i, reads);
        return;
    }
    for (int j = first; j <= i; j++) {
        const bool mask = i - j < 3 || j - first < 2 || (offset && i - j == 6);
        if (strcmp(row->kind, "masks") != 0 || mask) reads[j] = WEIGHT_READ;
    }
}

static void check_reads(const struct setup *s, const struct row *row) {
    for (int l = 0; l < LAYERS; l++)
        for (int n = 0; n < BATCH * HEADS * LENGTH; n++) {
            const int b = n / (HEADS * LENGTH), h = n / LENGTH % HEADS, i = n % LENGTH;
            uint8_t reads[LENGTH];
            double sum = 0;
            expected_reads(s, row, l, b, h, i, reads);
            for (int j = 0; j < LENGTH; j++) {
                const uint8_t found = s->reads[l * PAIRS + n * LENGTH + j];
                /* Blocks of values of their own are not seen. */
                const int wanted = row->apart && reads[j] == WEIGHT_SUMMARY ? WEIGHT_UNREAD : reads[j];
                if (found != wanted)
                    fail_msg("%s: layer %d, sequence %d, head %d, query %d, token %d: expected %d, found %d", row->name,
                             l, b, h, i, j, wanted, found);
                sum += (double)s->weights[l * PAIRS + n * LENGTH + j];
            }
            if (row->sums && fabs(sum - 1) > 1e-5)
                fail_msg("%s: layer %d, head %d, query %d: expected a sum of 1, found %.7f", row->name, l, h, i, sum);
        }
}

/* o_i = Σ_j A_ij v_j. */
static void check_output(const struct setup *s, const struct row *row) {
    for (int l = 0; l < LAYERS; l++)
        for (int n = 0; n < BATCH * HEADS * LENGTH * WIDTH; n++) {
            const int b = n / (HEADS * LENGTH * WIDTH), h = n / (LENGTH * WIDTH) % HEADS, i = n / WIDTH % LENGTH,
                      d = n % WIDTH;
            const float *a = s->weights + l * PAIRS + ((b * HEADS + h) * LENGTH + i) * LENGTH;
            const double found = s->o[l][((b * LENGTH + i) * HEADS + h) * WIDTH + d];
            double sum = 0;
            for (int j = 0; j < LENGTH; j++) sum += (double)a[j] * key(s, l, b, h, j)[GROUPS * WIDTH + d];
            if (fabs(sum - found) > 1e-5)
                fail_msg("%s: layer %d, head %d, query %d: A·v is %.7f, o is %.7f", row->name, l, h, i, sum, found);
        }
}

static void check_softmax(const struct setup *s) {
    for (int l = 0; l < LAYERS; l++)
        for (int n = 0; n < BATCH * HEADS * LENGTH; n++) {
            const int b = n / (HEADS * LENGTH), h = n / LENGTH % HEADS, i = n % LENGTH,
                      first = s->start[b * LENGTH + i];
            double sum = 0;
            for (int j = first; j <= i; j++) sum += exp(dot(query(s, l, b, h, i), key(s, l, b, h, j)));
            for (int j = 0; j < LENGTH; j++) {
                const double wanted = j < first || j > i ? 0 : exp(dot(query(s, l, b, h, i), key(s, l, b, h, j))) / sum;
                const double found = (double)s->weights[l * PAIRS + n * LENGTH + j];
                if (fabs(found - wanted) > 1e-6)
                    fail_msg("layer %d, head %d, query %d, token %d: expected %.7f, found %.7f", l, h, i, j, wanted,
                             found);
            }
        }
}

static void test_kinds(void **state) {
    (void)state;
    for (int n = 0; n < STUDENTS; n++) {
        struct setup *s = set_up(&rows[n], "guard:cpu-f64");
        keep_pass(s);
        CHECK_OK(model_weights(&s->student, &s->batch, keep_weights, s));
        assert_int_equal(s->visits, LAYERS);
        check_reads(s, &rows[n]);
        if (!rows[n].apart) check_output(s, &rows[n]);
        if (n == 0) check_softmax(s);
        tear_down(s);
    }
}

/* In floats a token that is not read is still exactly that. */
static void test_floats(void **state) {
    (void)state;
    for (int n = 0; n < STUDENTS; n++) {
        struct setup *s = set_up(&rows[n], "cpu"), *exact = set_up(&rows[n], "cpu-f64");
        CHECK_OK(model_weights(&s->student, &s->batch, keep_weights, s));
        CHECK_OK(model_weights(&exact->student, &exact->batch, keep_weights, exact));
        assert_memory_equal(s->reads, exact->reads, sizeof s->reads);
        for (int e = 0; e < LAYERS * PAIRS; e++)
            if (fabsf(s->weights[e] - exact->weights[e]) > 1e-5f)
                fail_msg("%s: element %d: expected %g, found %g", rows[n].name, e, (double)exact->weights[e],
                         (double)s->weights[e]);
        tear_down(exact);
        tear_down(s);
    }
}

/* A values' compressor that has learned: nothing of the future is seen through it, rows sum as before, and it is what
 * it was afterwards, to the last bit of the model's output. */
static void test_bent_values(void **state) {
    (void)state;
    struct setup *s = set_up(&rows[5], "cpu-f64");
    static double hidden[2][ROWS * 10], compressor[2][2 * WIDTH * WIDTH];
    const struct param *row = params_find(&s->student.params, "h.1.attn.nsa.value.w2");
    jitter(&s->student, "value", 0.5);
    for (int n = 0; n < 2; n++) {
        struct plan *plan = NULL;
        struct tensor out;
        CHECK_OK(plan_open(&s->student, &(struct plan_options){.batch = BATCH, .length = LENGTH}, &plan));
        CHECK_OK(model_forward(plan, &s->batch, &out));
        CHECK_OK(s->ops->download(s->ops, out, hidden[n]));
        CHECK_OK(s->ops->download(s->ops, row->value, compressor[n]));
        plan_close(&plan);
        if (n == 0) CHECK_OK(model_weights(&s->student, &s->batch, keep_weights, s));
    }
    assert_memory_equal(hidden[0], hidden[1], sizeof hidden[0]);
    assert_memory_equal(compressor[0], compressor[1], sizeof compressor[0]);
    keep_pass(s);
    check_reads(s, &rows[5]);
    for (int n = 0; n < LAYERS * BATCH * HEADS * LENGTH; n++) {
        const int i = n % LENGTH, b = n / (LENGTH * HEADS) % BATCH;
        double sum = 0;
        for (int j = 0; j < LENGTH; j++) sum += (double)s->weights[n * LENGTH + j];
        if (i - s->start[b * LENGTH + i] >= 2 && fabs(sum - 1) > 1e-6)
            fail_msg("query %d: expected a sum of 1, found %g", i, sum);
    }
    tear_down(s);
}

static enum status refuse(void *user, const struct layer_weights *found) {
    ++*(int *)user;
    return error_set(STATUS_FAILED, "layer %d: enough", (int)found->layer);
}

static void test_visit_ends(void **state) {
    (void)state;
    struct setup *s = set_up(&rows[5], "cpu");
    int visits = 0;
    CHECK_STATUS(STATUS_FAILED, model_weights(&s->student, &s->batch, refuse, &visits));
    assert_int_equal(visits, 1);
    tear_down(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kinds), cmocka_unit_test(test_floats),
                                       cmocka_unit_test(test_bent_values), cmocka_unit_test(test_visit_ends)};
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
