/* A loss or gradient that is not finite on one rank only: every rank skips the step, says whose fault it was, and ends
 * with the same bits as the others; a failure on one rank ends all with its message. Under mpirun with 1, 2 and 3
 * ranks. */
#include "support/check.h"
#include "train/run.h"

#include "tiny_ranks.h"

#include <math.h>
#include <string.h>

enum { T = 8, BATCH = 6, LAYERS = 3 };
enum deed { DEED_NONE = 0, DEED_GRADIENT, DEED_LOSS, DEED_ATTENTION, DEED_BACKWARD, DEED_FAIL, DEED_FAIL_HALFWAY };

static int rank, size;
static const struct ops *real_ops;
static struct ops ops;
static enum deed deed; /* on the last rank */

static enum status spoiled_loss(const struct ops *table, const struct loss_rows *arguments) {
    enum deed now = rank == size - 1 ? deed : DEED_NONE;
    if (now == DEED_FAIL) return error_set(STATUS_MEMORY, "no memory for a test");
    TRY(real_ops->loss_rows(table, arguments));
    if (now == DEED_GRADIENT) ((float *)arguments->gradient.data)[3] = INFINITY;
    if (now == DEED_LOSS) ((float *)arguments->ce.data)[0] = NAN;
    return STATUS_OK;
}

/* Query head 1 of the only layer gives a NaN. */
static enum status spoiled_attention(const struct ops *table, const struct attention *arguments) {
    TRY(real_ops->attention(table, arguments));
    if (rank == size - 1 && deed == DEED_ATTENTION) {
        ((float *)arguments->o.data)[2 * arguments->o.stride[1] + arguments->o.stride[2] + 1] = NAN;
    }
    return STATUS_OK;
}

/* Halfway: the other ranks, and this one, have gradients of the layers above under way. */
static enum status spoiled_backward(const struct ops *table, const struct attention_backward *arguments) {
    static int calls;
    if (rank == size - 1 && deed == DEED_FAIL_HALFWAY && calls++ % LAYERS == 1)
        return error_set(STATUS_MEMORY, "no memory halfway");
    TRY(real_ops->attention_backward(table, arguments));
    if (rank == size - 1 && deed == DEED_BACKWARD) ((float *)arguments->dk.data)[0] = INFINITY;
    return STATUS_OK;
}

static void open_all(const char *parallel, struct config *config, struct run *run, struct distill *d) {
    char recipe[2048];
    snprintf(recipe, sizeof recipe,
             "run: none\nfrom_scratch: {layers: %d, heads: 2, width: 8}\ndata: {train: %s/s.h5}\nparallel: {%s}\n"
             "stages: [{name: lm, objective: lm, train: all, length: %d, batch: %d, steps: 10, lr: 1e-2}]\n",
             LAYERS, folder, parallel, T, BATCH);
    CHECK_OK(config_parse("recipe.yaml", recipe, strlen(recipe), NULL, 0, config));
    CHECK_OK(run_open(config, comm, &ops, NULL, run));
    struct stage_memory memory;
    int64_t trained = 0;
    CHECK_OK(run_start_stage(run, 0, &trained));
    CHECK_OK(run_measure_stage(run, 0, &memory));
    *d = (struct distill){.config = config,
                          .stage = &config->stages[0],
                          .student = &run->student,
                          .comm = comm,
                          .batches = &run->batches};
    CHECK_OK(stage_open(d, &memory));
}

/* Every rank holds the same values. */
static void check_same_values(const struct params *params) {
    uint64_t hash = 0;
    CHECK_OK(params_hash(params, &hash));
    int64_t largest = (int64_t)(hash >> 1), smallest = largest;
    CHECK_OK(comm_all_reduce(comm, tensor_1d(&largest, DTYPE_I64, 1), COMM_MAX));
    CHECK_OK(comm_all_reduce(comm, tensor_1d(&smallest, DTYPE_I64, 1), COMM_MIN));
    assert_true(largest == smallest);
}

static void bad_rank(const char *parallel) {
    struct config config;
    struct run run;
    struct distill d;
    struct step_result result;
    struct step_settings settings = {.update = 1, .lr = 1e-2};
    uint64_t before = 0, after = 0;
    char expected[128];
    open_all(parallel, &config, &run, &d);
    CHECK_OK(params_hash(&run.student.params, &before));
    static const char *const places[] = {[DEED_GRADIENT] = "the gradient that the head sends back",
                                         [DEED_LOSS] = "",
                                         [DEED_ATTENTION] = "layer 0, head 1, full",
                                         [DEED_BACKWARD] = "layer 2, head 0, the gradient of its keys"};
    for (deed = DEED_GRADIENT; deed < DEED_FAIL; deed++) {
        CHECK_OK(distill_step(&d, &settings, &result));
        assert_true(result.skipped);
        bool in_loss = deed == DEED_LOSS || deed == DEED_ATTENTION;
        snprintf(expected, sizeof expected, in_loss ? "the loss of rank %d" : "the gradient of wte", size - 1);
        if (!strstr(result.fault, expected)) fail_msg("expected \"%s\", found \"%s\"", expected, result.fault);
        if (places[deed][0]) {
            snprintf(expected, sizeof expected, "; met first on rank %d in %s", size - 1, places[deed]);
            if (!strstr(result.fault, expected)) fail_msg("expected \"%s\", found \"%s\"", expected, result.fault);
        }
        CHECK_OK(params_hash(&run.student.params, &after));
        assert_true(before == after);
    }
    for (deed = DEED_FAIL; deed <= DEED_FAIL_HALFWAY; deed++) {
        assert_int_equal(distill_step(&d, &settings, &result), STATUS_MEMORY);
        assert_non_null(strstr(error_message(), deed == DEED_FAIL ? "no memory for a test" : "no memory halfway"));
        error_clear();
    }
    deed = DEED_NONE;
    CHECK_OK(distill_step(&d, &settings, &result));
    assert_false(result.skipped);
    CHECK_OK(params_hash(&run.student.params, &after));
    assert_true(before != after && isfinite(result.loss) && result.norm > 0);
    check_same_values(&run.student.params);
    stage_close(&d);
    run_close(&run);
    run_close(&run);
    config_free(&config);
}

static void test_bad_rank(void **state) {
    (void)state;
    bad_rank("overlap: false");
    bad_rank("bucket_mib: 0.001");
    bad_rank("bucket_mib: 0.001, zero: true, reduce: bf16");
}

/* A recipe that is wrong on one rank alone (its shard cannot be seen there) ends on all. */
static void test_missing_shard(void **state) {
    (void)state;
    struct config config;
    struct run run;
    char recipe[2048];
    snprintf(recipe, sizeof recipe,
             "run: none\nfrom_scratch: {layers: 1, heads: 2, width: 8}\ndata: {train: %s/%s.h5}\n"
             "stages: [{name: lm, objective: lm, train: all, length: %d, batch: %d, steps: 10, lr: 1e-2}]\n",
             folder, rank == size - 1 ? "nothing" : "s", T, BATCH);
    CHECK_OK(config_parse("recipe.yaml", recipe, strlen(recipe), NULL, 0, &config));
    assert_int_equal(run_open(&config, comm, &ops, NULL, &run), STATUS_NOT_FOUND);
    assert_non_null(strstr(error_message(), "nothing.h5"));
    error_clear();
    config_free(&config);
}

static int make_all(void **state) {
    (void)state;
    tiny_ranks_open("bad-rank");
    rank = comm_rank(comm);
    size = comm_size(comm);
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &real_ops));
    ops = *real_ops;
    ops.loss_rows = spoiled_loss;
    ops.attention = spoiled_attention;
    ops.attention_backward = spoiled_backward;
    return 0;
}

static int remove_all(void **state) {
    (void)state;
    real_ops->close(real_ops);
    return tiny_ranks_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bad_rank), cmocka_unit_test(test_missing_shard)};
    return cmocka_run_group_tests_name("bad_rank", tests, make_all, remove_all);
}
