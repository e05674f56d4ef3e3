/* The stages' plans as a checkpoint keeps them: written and adopted again by every rank, whose parts of a batch may
 * have two sizes. Under mpirun with 1, 2 and 3 ranks. */
#include "support/check.h"
#include "train/saving.h"

#include "tiny_ranks.h"

#include <stdlib.h>
#include <string.h>

static const struct ops *ops;

static void open_run(struct config *config, struct run *run) {
    char recipe[1024];
    snprintf(recipe, sizeof recipe,
             "run: none\nfrom_scratch: {layers: 1, heads: 2, width: 8}\ndata: {train: %s/s.h5}\nstages:\n"
             "  - {name: first, objective: lm, train: all, length: 8, batch: 5, steps: 10, lr: 1e-2}\n"
             "  - {name: second, objective: lm, train: all, length: 16, batch: 6, steps: 10, lr: 1e-2}\n",
             folder);
    CHECK_OK(config_parse("recipe.yaml", recipe, strlen(recipe), NULL, 0, config));
    CHECK_OK(run_open(config, comm, ops, NULL, run));
}

static void test_text(void **state) {
    static const char *const expected[] = {"first: length 8, 5 sequences a rank: micro_batch 5, recompute none\n"
                                           "second: length 16, 6 sequences a rank: micro_batch 6, recompute none\n",
                                           "first: length 8, 3 sequences a rank: micro_batch 3, recompute none\n"
                                           "first: length 8, 2 sequences a rank: micro_batch 2, recompute none\n"
                                           "second: length 16, 3 sequences a rank: micro_batch 3, recompute none\n",
                                           "first: length 8, 2 sequences a rank: micro_batch 2, recompute none\n"
                                           "first: length 8, 1 sequences a rank: micro_batch 1, recompute none\n"
                                           "second: length 16, 2 sequences a rank: micro_batch 2, recompute none\n"};
    struct config config;
    struct run run;
    char *text = NULL;
    (void)state;
    open_run(&config, &run);
    CHECK_OK(saving_plan_text(&run, &text));
    assert_string_equal(text, ""); /* nothing is chosen yet */
    free(text);
    for (size_t i = 0; i < config.stage_count; i++) {
        struct stage_memory memory;
        int64_t trained = 0;
        CHECK_OK(run_start_stage(&run, i, &trained));
        CHECK_OK(run_measure_stage(&run, i, &memory));
    }
    CHECK_OK(saving_plan_text(&run, &text));
    assert_string_equal(text, expected[comm_size(comm) - 1]);
    const struct stage_choice chosen[] = {run.choices[0], run.choices[1]};
    memset(run.choices, 0, sizeof chosen);
    CHECK_OK(saving_plan_adopt(&run, "a checkpoint", text));
    for (int i = 0; i < 2; i++) { /* not as bytes: there is padding */
        assert_int_equal(run.choices[i].micro_batch, chosen[i].micro_batch);
        assert_int_equal(run.choices[i].recompute, chosen[i].recompute);
    }
    free(text);
    run_close(&run);
    config_free(&config);
}

/* Only for the same stage, length and part; only where nothing is chosen; and only what is a plan. */
static void test_adopt(void **state) {
    static const char elsewhere[] = "third: length 8, 5 sequences a rank: micro_batch 5, recompute none\n"
                                    "first: length 9, 5 sequences a rank: micro_batch 5, recompute none\n"
                                    "first: length 8, 50 sequences a rank: micro_batch 5, recompute none\n";
    static const char *const damaged[] = {"first", "first: length 8, 5 sequences a rank: micro_batch 0, recompute none",
                                          "\n\n"};
    char here[128];
    struct config config;
    struct run run;
    int64_t first = 0, part = 0;
    (void)state;
    open_run(&config, &run);
    CHECK_OK(stage_part(&config.stages[0], comm_rank(comm), comm_size(comm), &first, &part));
    CHECK_OK(saving_plan_adopt(&run, "a checkpoint", elsewhere));
    assert_int_equal(run.choices[0].micro_batch, 0);
    for (int micro = 1; micro <= 2; micro++) {
        snprintf(here, sizeof here, "first: length 8, %d sequences a rank: micro_batch %d, recompute layer", (int)part,
                 micro);
        CHECK_OK(saving_plan_adopt(&run, "a checkpoint", here));
        assert_int_equal(run.choices[0].micro_batch, 1);
        assert_int_equal(run.choices[0].recompute, RECOMPUTE_LAYER);
    }
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        CHECK_STATUS(STATUS_DAMAGED, saving_plan_adopt(&run, "a checkpoint", damaged[i]));
    }
    run_close(&run);
    config_free(&config);
}

static int make_all(void **state) {
    (void)state;
    tiny_ranks_open("plan");
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &ops));
    return 0;
}

static int remove_all(void **state) {
    (void)state;
    ops->close(ops);
    return tiny_ranks_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_adopt)};
    return cmocka_run_group_tests_name("plan", tests, make_all, remove_all);
}
