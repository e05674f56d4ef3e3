/* Three steps in a row that are not finite, on two ranks with a simulated GPU each, in bf16: training goes back to its
 * checkpoint and on with other samples, also where ZeRO has divided masters and moments among the ranks: its losses are
 * then those without ZeRO. Under mpirun. */
#include "io/metrics.h"
#include "support/check.h"
#include "train/tiny_ranks.h"
#include "train/trainer.h"

#include <math.h>
#include <string.h>

enum { T = 8, BATCH = 4, STEPS = 10, KEPT = 4 /* the newest checkpoint's step before the faults */ };

static struct ops *ops;
static enum status (*real_sums)(const struct ops *, struct tensor, const struct param_part *, int64_t, struct tensor);
static int64_t calls, first, last; /* of the gradients' norm, one a step; those between meet a NaN */

static enum status spoiled_sums(const struct ops *table, struct tensor x, const struct param_part *parts, int64_t count,
                                struct tensor out) {
    calls++;
    if (calls >= first && calls <= last) {
        CHECK_OK(table->synchronise(table));
        ((float *)x.data)[parts[0].first] = NAN; /* here a GPU's memory can be written */
    }
    return real_sums(table, x, parts, count, out);
}

/* The losses [STEPS] of a run, and how many steps it skipped. */
static void train(const char *name, const char *parallel, double *losses, double *skipped) {
    char recipe[2048], path[400];
    struct config config = {0};
    struct run run = {0};
    snprintf(recipe, sizeof recipe,
             "run: %s/%s\nfrom_scratch: {layers: 2, heads: 2, width: 16}\ndata: {train: %s/s.h5}\nparallel: "
             "{bucket_mib: 0.003, %s}\n"
             "stages: [{name: lm, objective: lm, train: all, length: %d, batch: %d, steps: %d, lr: 1e-2}]\n"
             "train: {micro_batch: 1, weight_decay: 0.1, max_bad_steps: 3}\ncheckpoint: {every: 2, keep: 2}\n"
             "precision: bf16\ndeterministic: true\n",
             folder, name, folder, parallel, T, BATCH, STEPS);
    calls = 0;
    CHECK_OK(config_parse("recipe.yaml", recipe, strlen(recipe), NULL, 0, &config));
    CHECK_OK(run_open(&config, comm, ops, NULL, &run));
    CHECK_OK(trainer_run(&run, &(struct trainer_options){.resume = "auto"}));
    run_close(&run);
    config_free(&config);

    struct metrics_table table;
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", folder, name);
    CHECK_OK(metrics_read(path, &table));
    const double *loss = metrics_column(&table, "loss"), *bad = metrics_column(&table, "skipped");
    int64_t steps = 0;
    assert_true(loss && bad);
    for (int64_t i = 0; i < table.line_count; i++) {
        if (loss[i] != METRICS_ABSENT && steps < STEPS) losses[steps++] = loss[i];
        if (bad[i] != METRICS_ABSENT) *skipped = bad[i];
    }
    assert_int_equal(steps, STEPS);
    metrics_table_free(&table);
}

static void test_roll_back(void **state) {
    (void)state;
    double undisturbed[STEPS], plain[STEPS], divided[STEPS], skipped = 0;
    train("undisturbed", "zero: true", undisturbed, &skipped);
    assert_true(skipped == 0);
    first = 6;
    last = 8;
    train("plain", "zero: false", plain, &skipped);
    assert_true(skipped == 3);
    skipped = 0;
    train("divided", "zero: true", divided, &skipped);
    assert_true(skipped == 3);
    for (int n = 0; n < STEPS; n++) {
        if (!(fabs(plain[n] - divided[n]) <= 1e-6 * plain[n]))
            fail_msg("step %d: loss %.9g without ZeRO, %.9g with", n + 1, plain[n], divided[n]);
        if (n < KEPT) assert_true(undisturbed[n] == divided[n]);
    }
    assert_true(undisturbed[KEPT] != divided[KEPT]); /* other samples */
}

static int make_all(void **state) {
    const struct ops *table = NULL;
    (void)state;
    tiny_ranks_open("roll-back");
    CHECK_OK(ops_open("cuda", &(struct ops_options){.threads = 1, .deterministic = true}, &table));
    ops = (struct ops *)(uintptr_t)table;
    real_sums = ops->sum_squares_parts;
    ops->sum_squares_parts = spoiled_sums;
    return 0;
}

static int remove_all(void **state) {
    (void)state;
    ops->close(ops);
    return tiny_ranks_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_roll_back)};
    return cmocka_run_group_tests_name("roll_back", tests, make_all, remove_all);
}
