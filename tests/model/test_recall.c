/* Recall against plain sums over log-probabilities of each document by itself; answers that are right and wrong by
 * construction; buckets, cuts; the same figures at any number of ranks. Runs under mpirun. */
#include "support/check.h"

#include "base/rng.h"
#include "eval/recall.h"

#include <math.h>
#include <string.h>

enum { VOCABULARY = 37, DOCUMENTS = 7, LONGEST = 61, ANSWERS = 6 };

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

/* Lengths of the documents: the longest, odd ones, and one of a single token. */
static const int64_t lengths[DOCUMENTS] = {LONGEST, 9, 33, 1, 48, 17, 60};
/* Distances on both sides of every bucket's border. */
static const int64_t distances[] = {1, 127, 128, 255, 256, 511, 512, 1023, 1024, 99999};
static const int buckets[] = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4};

static struct comm *ranks;
static const struct ops *ops;
static struct model models[2];
static struct evaluate_row rows[2];
static int32_t ids[DOCUMENTS][LONGEST];
static struct recall_answer answers[DOCUMENTS][ANSWERS];
static struct recall_document documents[DOCUMENTS];
static float log_p[2][DOCUMENTS][LONGEST][VOCABULARY];

static void make_model(uint64_t seed, struct model *model) {
    CHECK_OK(model_new(ops, &shape, false, model));
    CHECK_OK(model_initialise(model, seed));
    /* Values large enough that attention matters. */
    for (int64_t i = 0; i < model->params.count; i++) {
        struct param *row = &model->params.rows[i];
        if (row->rank == 2)
            CHECK_OK(ops->fill_normal(ops, row->value, 0.3, seed, rng_substream(RNG_TEST, (uint64_t)i)));
    }
}

/* Log-probabilities behind every token of one document, alone in its batch. */
static void compute_log_p(const struct model *model, const int32_t *tokens, int64_t count, float (*out)[VOCABULARY]) {
    int32_t start[LONGEST] = {0};
    struct plan_options options = {.batch = 1, .length = count};
    struct head_options head_options = {.rows = count};
    struct batch batch = {.batch = 1, .length = count, .ids = tokens, .start = start};
    struct plan *plan = NULL;
    struct head *head = NULL;
    struct tensor hidden;
    CHECK_OK(plan_open(model, &options, &plan));
    CHECK_OK(head_open(NULL, model, &head_options, &head));
    CHECK_OK(model_forward(plan, &batch, &hidden));
    CHECK_OK(head_logits(head, hidden, 0, count, true, out[0]));
    head_close(&head);
    plan_close(&plan);
}

static int32_t argmax(const float *x) {
    int32_t best = 0;
    for (int32_t v = 1; v < VOCABULARY; v++) {
        if (x[v] > x[best]) best = v;
    }
    return best;
}

static int32_t argmin(const float *x) {
    int32_t worst = 0;
    for (int32_t v = 1; v < VOCABULARY; v++) {
        if (x[v] < x[worst]) worst = v;
    }
    return worst;
}

/* Random documents; in the first one what model 0 says at tokens 10 … 13 and 20 … 23, but for 22. */
static void make_documents(void) {
    static float behind[LONGEST][VOCABULARY];
    uint64_t drawn = 0;
    for (int d = 0; d < DOCUMENTS; d++) {
        for (int64_t t = 0; t < lengths[d]; t++) ids[d][t] = (int32_t)rng_below(17, RNG_TEST, drawn++, VOCABULARY);
        documents[d] = (struct recall_document){ids[d], lengths[d], answers[d], 0};
        for (int64_t first = 1; first + 3 <= lengths[d] && documents[d].answer_count < ANSWERS; first += 8) {
            size_t place = drawn++ % (sizeof distances / sizeof *distances);
            answers[d][documents[d].answer_count++] = (struct recall_answer){first, 1 + first % 3, distances[place]};
        }
    }
    static const int64_t said[] = {10, 11, 12, 13, 20, 21, 22, 23};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        compute_log_p(&models[0], ids[0], said[i], behind);
        const float *row = behind[said[i] - 1];
        ids[0][said[i]] = said[i] == 22 ? argmin(row) : argmax(row);
    }
    for (int m = 0; m < 2; m++) {
        for (int d = 0; d < DOCUMENTS; d++) compute_log_p(&models[m], ids[d], lengths[d], log_p[m][d]);
    }
}

static int set_up(void **state) {
    (void)state;
    struct ops_options options = {.threads = 1, .deterministic = true};
    CHECK_OK(comm_open(NULL, &ranks));
    CHECK_OK(ops_open("cpu", &options, &ops));
    for (int m = 0; m < 2; m++) {
        make_model(3 + (uint64_t)m, &models[m]);
        rows[m] = (struct evaluate_row){m ? "second" : "first", &models[m]};
    }
    make_documents();
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    for (int m = 0; m < 2; m++) model_free(&models[m]);
    ops->close(ops);
    CHECK_OK(comm_close(&ranks));
    return 0;
}

static int bucket_of(int64_t distance) {
    for (size_t i = 0; i < sizeof distances / sizeof *distances; i++) {
        if (distances[i] == distance) return buckets[i];
    }
    fail_msg("no such distance");
    return -1;
}

struct plain {
    double answers[RECALL_BUCKETS], right[RECALL_BUCKETS], nll[RECALL_BUCKETS];
};

static struct plain plain_figures(int m, int64_t length) {
    struct plain sums = {0};
    for (int d = 0; d < DOCUMENTS; d++) {
        for (size_t i = 0; i < documents[d].answer_count; i++) {
            const struct recall_answer *answer = &answers[d][i];
            int bucket = bucket_of(answer->distance);
            bool right = true;
            if (answer->first + answer->count - 1 > length) continue;
            sums.answers[bucket] += 1;
            for (int64_t t = answer->first; t < answer->first + answer->count; t++) {
                const float *row = log_p[m][d][t - 1];
                right = right && argmax(row) == ids[d][t];
                sums.nll[bucket] -= (double)row[ids[d][t]];
            }
            sums.right[bucket] += right;
        }
    }
    return sums;
}

static void check_bucket(const char *what, int index, const struct recall_bucket *found, double count, double right,
                         double nll) {
    if (found->answers != count)
        fail_msg("%s: bucket %d: expected %.0f answers, found %.0f", what, index, count, found->answers);
    if (count == 0) return;
    if (fabs(found->accuracy - right / count) > 1e-12 || fabs(found->nll - nll / count) > 2e-5 * nll / count) {
        fail_msg("%s: bucket %d: expected %.9g right and %.9g nats, found %.9g and %.9g", what, index, right / count,
                 nll / count, found->accuracy, found->nll);
    }
}

static void run(int64_t length, int64_t batch, struct recall_figures figures[2]) {
    struct recall_options options = {.length = length, .batch = batch};
    CHECK_OK(recall_run(rows, 2, documents, DOCUMENTS, &options, ranks, figures));
}

static void test_figures(void **state) {
    (void)state;
    static const struct {
        int64_t length, batch;
    } cases[] = {{64, 0}, {60, 1}, {59, 2}, {48, 3}, {24, 5}, {1000, 7}, {3, 2}, {2, 4}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct recall_figures figures[2];
        double counted = 0;
        run(cases[c].length, cases[c].batch, figures);
        for (int m = 0; m < 2; m++) {
            struct plain plain = plain_figures(m, cases[c].length);
            double all[3] = {0};
            for (int i = 0; i < RECALL_BUCKETS; i++) {
                check_bucket(rows[m].name, i, &figures[m].buckets[i], plain.answers[i], plain.right[i], plain.nll[i]);
                all[0] += plain.answers[i], all[1] += plain.right[i], all[2] += plain.nll[i];
            }
            check_bucket(rows[m].name, -1, &figures[m].all, all[0], all[1], all[2]);
            counted = all[0];
        }
        assert_int_equal(recall_count(documents, DOCUMENTS, cases[c].length), (int64_t)counted);
    }
}

/* Where model 0 was followed it is right; one token of three that is not, and the answer is wrong. */
static void test_known(void **state) {
    (void)state;
    static const struct {
        struct recall_answer answer;
        double accuracy;
    } cases[] = {{{10, 4, 300}, 1}, {{10, 1, 5}, 1},   {{20, 2, 1024}, 1}, {{20, 3, 200}, 0},
                 {{20, 4, 200}, 0}, {{22, 1, 700}, 0}, {{23, 1, 9}, 1}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct recall_answer answer = cases[c].answer;
        struct recall_document document = {ids[0], lengths[0], &answer, 1};
        struct recall_options options = {.length = 64};
        struct recall_figures figures;
        double nll = 0;
        CHECK_OK(recall_run(rows, 1, &document, 1, &options, ranks, &figures));
        for (int64_t t = answer.first; t < answer.first + answer.count; t++)
            nll -= (double)log_p[0][0][t - 1][ids[0][t]];
        check_bucket("known", (int)c, &figures.all, 1, cases[c].accuracy, nll);
        for (int i = 0; i < RECALL_BUCKETS; i++) {
            int64_t first, end;
            recall_distance_range(i, &first, &end);
            bool here = answer.distance >= first && (end < 0 || answer.distance < end);
            assert_true(figures.buckets[i].answers == (here ? 1 : 0));
            assert_true(here || isnan(figures.buckets[i].accuracy));
        }
    }
}

/* Values that are no numbers are never right, also where the answer is id 0. */
static void test_nonfinite(void **state) {
    (void)state;
    struct model broken;
    int32_t zeros[5] = {0};
    struct recall_answer answer = {2, 2, 1};
    struct recall_document document = {zeros, 5, &answer, 1};
    struct recall_options options = {.length = 5};
    struct recall_figures figures;
    make_model(5, &broken);
    const struct evaluate_row row = {"broken", &broken};
    for (int64_t i = 0; i < broken.params.count; i++) {
        struct param *p = &broken.params.rows[i];
        if (p->rank == 2) CHECK_OK(ops->fill_normal(ops, p->value, NAN, 5, rng_substream(RNG_TEST, 1)));
    }
    CHECK_OK(recall_run(&row, 1, &document, 1, &options, ranks, &figures));
    assert_true(figures.all.answers == 1 && figures.all.accuracy == 0 && isnan(figures.all.nll));
    model_free(&broken);
}

static void test_refused(void **state) {
    (void)state;
    int32_t tokens[4] = {3, 4, VOCABULARY, 5};
    struct recall_answer answer = {1, 1, 1}, at_once = {0, 1, 1}, late = {3, 2, 1};
    struct recall_document beyond = {tokens, 4, &answer, 1}, none = {ids[0], 9, &at_once, 1};
    struct recall_document cut = {ids[0], 9, &late, 1};
    struct recall_options options = {.length = 3};
    struct recall_figures figures;
    assert_int_equal(recall_run(rows, 1, &beyond, 1, &options, ranks, &figures), STATUS_USAGE);
    if (comm_rank(ranks) == 0) assert_non_null(strstr(error_message(), "token 2: expected an id below 37, found 37"));
    error_clear();
    CHECK_STATUS(STATUS_USAGE, recall_run(rows, 1, &none, 1, &options, ranks, &figures));
    CHECK_STATUS(STATUS_USAGE, recall_run(rows, 1, &cut, 1, &options, ranks, &figures));
    options.length = 4;
    CHECK_OK(recall_run(rows, 1, &cut, 1, &options, ranks, &figures));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_figures), cmocka_unit_test(test_known),
                                       cmocka_unit_test(test_nonfinite), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
