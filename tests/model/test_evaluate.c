/* Figures of an evaluation against plain sums over log-probabilities, the same at any number of ranks; samples that do
 * not depend on ranks; baselines; the ladder. Runs under mpirun. */
#include "support/check.h"
#include "support/scratch.h"

#include "base/rng.h"
#include "eval/evaluate.h"
#include "eval/generate.h"
#include "eval/ladder.h"
#include "eval/variants.h"

#include <math.h>
#include <string.h>

enum { VOCABULARY = 37, TOKENS = 151 };

static const struct model_config shape = {.type = MODEL_LLAMA,
                                          .layers = 2,
                                          .heads = 4,
                                          .kv_heads = 2,
                                          .head_width = 6,
                                          .width = 20,
                                          .mlp_width = 28,
                                          .vocabulary = VOCABULARY,
                                          .positions = 64,
                                          .norm_epsilon = 1e-5,
                                          .rope_theta = 10000,
                                          .causal = true,
                                          .begin_of_text = 1,
                                          .end_of_text = 2};

static struct comm *ranks, *alone;
static const struct ops *ops;
static struct model teacher, student;
static char shard_path[512];
static char *words[] = {"window(7)", "sinks(2)", "offset(11)"};
static char *start[] = {"0.7", "0.2", "0.1"};
static struct config_option student_options[] = {{.key = "candidates", .words = words, .count = 3},
                                                 {.key = "start", .words = start, .count = 3}};
static const struct config_attention rules[] = {
    {.first = 1, .last = 1, .kind = "masks", .options = student_options, .option_count = 2}};

static void write_shard(void) {
    static const int documents[] = {40, 1, 60, 50};
    struct shard_info info = {.vocabulary = VOCABULARY, .end_of_text = 2, .tokenizer_name = "test"};
    struct shard_writer *writer = NULL;
    uint32_t ids[TOKENS];
    int at = 0;
    for (int i = 0; i < TOKENS; i++) ids[i] = (uint32_t)rng_below(9, RNG_TEST, (uint64_t)i, VOCABULARY);
    CHECK_OK(shard_writer_open(shard_path, &info, &writer));
    for (int d = 0; d < 4; at += documents[d++]) CHECK_OK(shard_writer_append(writer, ids + at, documents[d], true));
    CHECK_OK(shard_writer_close(&writer));
}

static int set_up(void **state) {
    struct ops_options options = {.threads = 1, .deterministic = true};
    CHECK_OK(comm_open(NULL, &ranks));
    CHECK_OK(comm_open_single(&alone));
    CHECK_OK(ops_open("cpu", &options, &ops));
    CHECK_OK(model_new(ops, &shape, false, &teacher));
    CHECK_OK(model_initialise(&teacher, 3));
    /* Values large enough that attention matters. */
    for (int64_t i = 0; i < teacher.params.count; i++) {
        struct param *row = &teacher.params.rows[i];
        if (row->rank == 2) CHECK_OK(ops->fill_normal(ops, row->value, 0.3, 5, rng_substream(RNG_TEST, (uint64_t)i)));
    }
    CHECK_OK(model_student(&teacher, "test", rules, 1, NULL, 0, false, 1, &student));
    if (scratch_make(state) != 0) return -1;
    snprintf(shard_path, sizeof shard_path, "%s", scratch_path("evaluate.h5"));
    write_shard();
    return 0;
}

static int tear_down(void **state) {
    model_free(&student);
    model_free(&teacher);
    ops->close(ops);
    CHECK_OK(comm_close(&alone));
    CHECK_OK(comm_close(&ranks));
    return scratch_remove(state);
}

static void open_windows(int64_t length, int64_t stride, struct windows *windows) {
    const char *path = shard_path;
    struct windows_options options = {.length = length, .stride = stride};
    CHECK_OK(windows_open(&path, 1, &options, windows));
}

/* Log-probabilities of one window: [T,V]. */
static void log_probabilities(const struct model *model, int64_t length, const int32_t *ids, const int32_t *begins,
                              float *out) {
    struct plan_options options = {.batch = 1, .length = length};
    struct head_options head_options = {.rows = length};
    struct batch batch = {.batch = 1, .length = length, .ids = ids, .start = begins};
    struct plan *plan = NULL;
    struct head *head = NULL;
    struct tensor hidden;
    CHECK_OK(plan_open(model, &options, &plan));
    CHECK_OK(head_open(NULL, model, &head_options, &head));
    CHECK_OK(model_forward(plan, &batch, &hidden));
    CHECK_OK(head_logits(head, hidden, 0, length, true, out));
    head_close(&head);
    plan_close(&plan);
}

static int argmax(const float *x) {
    int best = 0;
    for (int v = 1; v < VOCABULARY; v++) {
        if (x[v] > x[best]) best = v;
    }
    return best;
}

struct plain {
    double tokens, ce, kl, reverse, agree, entropy;
};

static struct plain plain_figures(const struct windows *windows) {
    struct plain sums = {0};
    static float p[64 * VOCABULARY], q[64 * VOCABULARY];
    int32_t ids[64], targets[64], begins[64];
    int64_t length = windows->options.length;
    for (int64_t w = 0; w < windows->count; w++) {
        windows_read(windows, w, ids, targets, begins);
        log_probabilities(&teacher, length, ids, begins, p);
        log_probabilities(&student, length, ids, begins, q);
        for (int64_t t = 0; t < length; t++) {
            const float *lp = p + t * VOCABULARY, *lq = q + t * VOCABULARY;
            if (targets[t] < 0) continue;
            sums.tokens += 1;
            sums.ce -= (double)lq[targets[t]];
            sums.agree += argmax(lp) == argmax(lq);
            for (int v = 0; v < VOCABULARY; v++) {
                double a = (double)lp[v], b = (double)lq[v];
                sums.kl += exp(a) * (a - b);
                sums.reverse += exp(b) * (b - a);
                sums.entropy -= exp(b) * b;
            }
        }
    }
    return sums;
}

static void check_close(const char *what, double expected, double found) {
    if (!(fabs(expected - found) <= 2e-5 * fmax(1e-2, fabs(expected))))
        fail_msg("%s: expected %.9g, found %.9g", what, expected, found);
}

static void test_figures(void **state) {
    (void)state;
    static const struct {
        int64_t length, stride, batch;
    } table[] = {{16, 16, 3}, {16, 16, 100}, {40, 7, 2}, {64, 64, 8}, {1, 1, 8}};
    for (size_t r = 0; r < sizeof table / sizeof *table; r++) {
        const struct evaluate_row rows[] = {{"teacher", &teacher}, {"student", &student}};
        const struct evaluate_options options = {.batch = table[r].batch};
        struct evaluate_figures together[2], here[2];
        struct windows windows;
        open_windows(table[r].length, table[r].stride, &windows);
        CHECK_OK(evaluate_run(&teacher, rows, 2, &windows, &options, ranks, together));
        CHECK_OK(evaluate_run(&teacher, rows, 2, &windows, &options, alone, here));
        assert_memory_equal(together, here, sizeof here); /* bit for bit, at any number of ranks */
        struct plain plain = plain_figures(&windows);
        const struct evaluate_figures *f = &here[1];
        assert_true(f->tokens == plain.tokens);
        check_close("ce", plain.ce / plain.tokens, f->ce);
        check_close("kl", plain.kl / plain.tokens, f->kl);
        check_close("reverse kl", plain.reverse / plain.tokens, f->reverse_kl);
        check_close("agreement", plain.agree / plain.tokens, f->agreement);
        check_close("entropy", plain.entropy / plain.tokens, f->entropy);
        check_close("perplexity", exp(plain.ce / plain.tokens), f->perplexity);
        assert_true(f->has_teacher && !here[0].has_teacher && f->nonfinite == 0 && f->health_rows > 0);
        if (table[r].length > 8) assert_true(f->kl > 1e-3 && f->cost.density < 1);
        windows_close(&windows);
    }
}

/* Sequences that are alike give no error; the error of the mean shrinks with their number. */
static void test_errors(void **state) {
    (void)state;
    const struct evaluate_row rows[] = {{"student", &student}};
    const struct evaluate_options options = {.batch = 4};
    struct evaluate_figures f;
    struct windows windows;
    open_windows(16, 16, &windows);
    for (int64_t w = 1; w < windows.count; w++) windows.windows[w] = windows.windows[0];
    CHECK_OK(evaluate_run(&teacher, rows, 1, &windows, &options, alone, &f));
    assert_true(f.kl_error < 1e-6 && f.ce_error < 1e-5);
    windows_close(&windows);
    open_windows(16, 16, &windows);
    CHECK_OK(evaluate_run(&teacher, rows, 1, &windows, &options, alone, &f));
    assert_true(f.kl_error > 1e-5 && f.kl_error < f.kl);
    windows.count = 1;
    CHECK_OK(evaluate_run(&teacher, rows, 1, &windows, &options, alone, &f));
    assert_true(isnan(f.kl_error)); /* one sequence says nothing of its spread */
    windows_close(&windows);
}

static void test_vocabulary(void **state) {
    (void)state;
    struct model small;
    struct model_config config = shape;
    struct evaluate_figures f;
    struct windows windows;
    const struct evaluate_options options = {0};
    config.vocabulary = VOCABULARY - 1;
    CHECK_OK(model_new(ops, &config, false, &small));
    CHECK_OK(model_initialise(&small, 1));
    const struct evaluate_row rows[] = {{"student", &small}};
    open_windows(16, 16, &windows);
    assert_int_equal(evaluate_run(NULL, rows, 1, &windows, &options, alone, &f), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "vocabulary: expected at most the model's 36, found 37"));
    error_clear();
    windows_close(&windows);
    model_free(&small);
}

/* --- baselines ---------------------------------------------------------------------------------------------------- */

static void test_baselines(void **state) {
    (void)state;
    struct model untrained, nothing, window, covered;
    struct evaluate_figures f[4];
    struct windows windows;
    int64_t narrowest = 0, widest = 0;
    const struct evaluate_options options = {.batch = 4};
    open_windows(32, 32, &windows);
    CHECK_OK(variant_untrained(&teacher, rules, 1, 1, &untrained));
    CHECK_OK(variant_no_attention(&teacher, &student, &nothing));
    CHECK_OK(variant_window(&teacher, &student, 32, &narrowest, &widest, &window));
    CHECK_OK(model_covered(&teacher, "test", rules, 1, 32, 1, &covered));
    const struct evaluate_row rows[] = {
        {"untrained", &untrained}, {"none", &nothing}, {"window", &window}, {"covered", &covered}};
    CHECK_OK(evaluate_run(&teacher, rows, 4, &windows, &options, alone, f));
    assert_int_equal(narrowest, widest); /* one layer only is not full */
    assert_true(widest > 7);             /* as wide as window, sinks and offset together */
    assert_true(fabs(f[2].cost.density - f[0].cost.density) < 0.02);
    assert_true(f[1].cost.density < f[2].cost.density);
    assert_true(f[1].kl > f[2].kl && f[2].kl > 1e-4);
    assert_true(f[3].kl < 1e-6);
    assert_string_equal(nothing.layers[0].kind->name, "full"); /* what is left alone stays */
    model_free(&untrained);
    model_free(&nothing);
    model_free(&window);
    model_free(&covered);
    windows_close(&windows);
}

static void test_width(void **state) {
    (void)state;
    assert_int_equal(variant_window_width(1, 100), 100);
    assert_int_equal(variant_window_width(0, 100), 1);
    assert_int_equal(variant_window_width(0.160, 384), 32);
    assert_int_equal(variant_window_width(0.081, 384), 16);
    assert_int_equal(variant_window_width(0.5, 1), 1);
}

/* --- samples ------------------------------------------------------------------------------------------------------ */

struct taken {
    int64_t next;
    int32_t ids[40][12];
    int64_t counts[40];
};

static enum status take(void *context, int64_t sample, const int32_t *ids, int64_t count) {
    struct taken *taken = context;
    assert_int_equal(sample, taken->next);
    assert_in_range(count, 1, 12);
    memcpy(taken->ids[sample], ids, (size_t)count * sizeof *ids);
    taken->counts[taken->next++] = count;
    return STATUS_OK;
}

static void test_samples(void **state) {
    (void)state;
    static struct taken together, here, other_batch;
    struct generate_health health;
    struct sample_options options = {.sampler = {.temperature = 1.3, .top_p = 1, .seed = 5},
                                     .samples = 40,
                                     .length = 12,
                                     .batch = 3,
                                     .begin = 1,
                                     .stop = {2, 1},
                                     .keep_stop = {true, false}};
    CHECK_OK(generate_samples(&student, &options, ranks, take, &together, &health));
    CHECK_OK(generate_samples(&student, &options, alone, take, &here, &health));
    if (comm_rank(ranks) == 0) assert_memory_equal(&together, &here, sizeof here);
    assert_int_equal(here.next, 40);
    options.batch = 64;
    CHECK_OK(generate_samples(&student, &options, alone, take, &other_batch, &health));
    int64_t same = 0, tokens = 0, ended = 0, begun_again = 0;
    for (int s = 0; s < 40; s++) {
        same += memcmp(here.ids[s], other_batch.ids[s], sizeof here.ids[s]) == 0;
        tokens += here.counts[s];
        assert_int_equal(here.ids[s][0], 1);
        for (int64_t i = 1; i < here.counts[s]; i++) {
            assert_int_not_equal(here.ids[s][i], 1); /* a stop that is not kept */
            if (here.ids[s][i] == 2) assert_int_equal(i, here.counts[s] - 1);
        }
        ended += here.ids[s][here.counts[s] - 1] == 2;
        begun_again += here.counts[s] < 12 && here.ids[s][here.counts[s] - 1] != 2;
    }
    assert_int_equal(health.tokens, tokens);
    assert_true(same >= 39); /* equal but for rounding at a near tie */
    assert_true(ended > 0 && begun_again > 0);
    options.begin = VOCABULARY;
    CHECK_STATUS(STATUS_USAGE, generate_samples(&student, &options, alone, take, &here, &health));
}

struct text {
    int32_t ids[64];
    int64_t count;
};

static enum status append(void *context, int32_t id) {
    struct text *text = context;
    text->ids[text->count++] = id;
    return STATUS_OK;
}

/* The cached and the parallel path choose the same, greedy and at random. */
static void test_generate(void **state) {
    (void)state;
    const int32_t prompt[] = {1, 5, 9};
    for (int temperature = 0; temperature < 2; temperature++) {
        struct text cached = {0}, parallel = {0};
        struct generate_health health;
        struct generate_options options = {
            .sampler = {.temperature = temperature, .top_p = 1, .seed = 8}, .tokens = 40, .stop = {-1, -1}};
        CHECK_OK(generate_text(&student, prompt, 3, &options, append, &cached, &health));
        assert_int_equal(cached.count, 40);
        assert_int_equal(health.tokens, 40);
        options.parallel = true;
        CHECK_OK(generate_text(&student, prompt, 3, &options, append, &parallel, &health));
        assert_memory_equal(&cached, &parallel, sizeof cached);
        options.stop[1] = cached.ids[20];
        parallel = (struct text){0};
        CHECK_OK(generate_text(&student, prompt, 3, &options, append, &parallel, &health));
        assert_true(parallel.count <= 20);
        for (int64_t i = 0; i < parallel.count; i++) assert_int_not_equal(parallel.ids[i], cached.ids[20]);
    }
    const int32_t wrong[] = {1, VOCABULARY};
    struct text text = {0};
    struct generate_health health;
    struct generate_options options = {.tokens = 4};
    CHECK_STATUS(STATUS_USAGE, generate_text(&student, wrong, 2, &options, append, &text, &health));
}

static void test_alarm(void **state) {
    (void)state;
    const struct generate_health fine = {.tokens = 100, .longest_run = 31, .token0 = 50};
    const struct generate_health loop = {.tokens = 100, .longest_run = 32}, zeros = {.tokens = 100, .token0 = 51};
    const struct generate_health few = {.tokens = 31, .longest_run = 31, .token0 = 31};
    assert_string_equal(generate_alarm(&fine), "");
    assert_string_equal(generate_alarm(&few), "");
    assert_non_null(strstr(generate_alarm(&loop), "loop"));
    assert_non_null(strstr(generate_alarm(&zeros), "id 0"));
}

/* --- the ladder --------------------------------------------------------------------------------------------------- */

static void test_ladder(void **state) {
    (void)state;
    struct ladder_rung rungs[LADDER_RUNGS];
    struct windows windows;
    open_windows(48, 48, &windows);
    struct ladder_subject subject = {
        .model = &student, .teacher = &teacher, .rules = rules, .rule_count = 1, .windows = &windows, .seed = 1};
    CHECK_OK(ladder_run(&subject, rungs));
    for (int i = 0; i < 4; i++) {
        if (rungs[i].result != LADDER_PASS) fail_msg("rung %d, %s: %s", i + 1, rungs[i].name, rungs[i].measured);
    }
    assert_int_equal(rungs[4].result, LADDER_NOT_MEASURED);
    assert_int_not_equal(rungs[5].result, LADDER_NOT_MEASURED); /* a time: passing is for quiet machines */
    subject.teacher = NULL;
    CHECK_OK(ladder_run(&subject, rungs));
    assert_int_equal(rungs[0].result, LADDER_NOT_MEASURED);
    windows_close(&windows);
}

/* A model that yields NaN fails the rungs, and its figures say so. */
static void test_broken(void **state) {
    (void)state;
    struct model broken;
    struct ladder_rung rungs[LADDER_RUNGS];
    struct evaluate_figures f;
    struct windows windows;
    const struct evaluate_options options = {0};
    CHECK_OK(model_new(ops, &shape, false, &broken));
    CHECK_OK(model_initialise(&broken, 3));
    CHECK_OK(ops->fill(ops, params_find(&broken.params, "norm.weight")->value, NAN));
    open_windows(48, 48, &windows);
    struct ladder_subject subject = {.model = &broken, .windows = &windows};
    CHECK_OK(ladder_run(&subject, rungs));
    assert_int_equal(rungs[2].result, LADDER_FAIL);
    assert_int_equal(rungs[3].result, LADDER_FAIL);
    const struct evaluate_row rows[] = {{"model", &broken}};
    CHECK_OK(evaluate_run(NULL, rows, 1, &windows, &options, alone, &f));
    assert_true(isnan(f.ce) && f.nonfinite > f.tokens && f.token0 == 1);
    const int32_t prompt[] = {1};
    struct text text = {0};
    struct generate_health health;
    const struct generate_options generate = {.tokens = 4, .stop = {-1, -1}};
    assert_int_equal(generate_text(&broken, prompt, 1, &generate, append, &text, &health), STATUS_NONFINITE);
    assert_non_null(strstr(error_message(), "position 1: logit of id 0"));
    error_clear();
    windows_close(&windows);
    model_free(&broken);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures),   cmocka_unit_test(test_errors), cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_baselines), cmocka_unit_test(test_width),  cmocka_unit_test(test_samples),
        cmocka_unit_test(test_generate),  cmocka_unit_test(test_alarm),  cmocka_unit_test(test_ladder),
        cmocka_unit_test(test_broken),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
