/* k + SIGKILL + resume equals the straight run, bit for bit: a run is killed inside a forward pass, inside gradient
 * accumulation, inside an update, at an epoch's end and between the stages, and goes on from its newest checkpoint.
 * Also: a signal, a step that is not finite, a rollback, another teacher. Every life is a process of its own, and kills
 * itself in the middle of an operation. */
#include "base/log.h"
#include "io/checkpoint.h"
#include "io/metrics.h"
#include "support/check.h"
#include "support/scratch.h"
#include "train/trainer.h"

#include "tiny_shards.h"

#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VOCABULARY = 61, T = 16, BATCH = 4, WINDOWS = 24, EPOCH_STEPS = WINDOWS / BATCH };

/* --- one life ------------------------------------------------------------------------------------------------------
 */

enum operation { OPERATION_NONE = 0, OPERATION_LOSS, OPERATION_ADAMW, OPERATION_ATTENTION_BACKWARD };
enum deed { DEED_KILL = 0, DEED_SIGNAL, DEED_POISON };

/* What happens at which call of which operation. */
static struct {
    enum operation operation;
    enum deed deed;
    int64_t first, last; /* calls, from 1 */
    int64_t calls;
} plan;
static const struct ops *real_ops;

/* True when the call that begins now is one to spoil. */
static bool due(enum operation operation) {
    if (plan.operation != operation) return false;
    plan.calls++;
    if (plan.calls < plan.first || plan.calls > plan.last) return false;
    if (plan.deed == DEED_KILL) raise(SIGKILL);
    if (plan.deed == DEED_SIGNAL) raise(SIGUSR1);
    return plan.deed == DEED_POISON;
}

static enum status spoiled_loss(const struct ops *ops, const struct loss_rows *arguments) {
    bool poison = due(OPERATION_LOSS);
    TRY(real_ops->loss_rows(ops, arguments));
    if (poison && tensor_present(arguments->gradient)) ((float *)arguments->gradient.data)[0] = NAN;
    return STATUS_OK;
}

/* Two calls a step: before anything is updated, and when all is. */
static enum status spoiled_adamw(const struct ops *ops, const struct adamw *arguments) {
    (void)due(OPERATION_ADAMW);
    enum status status = real_ops->adamw(ops, arguments);
    (void)due(OPERATION_ADAMW);
    return status;
}

static enum status spoiled_attention_backward(const struct ops *ops, const struct attention_backward *arguments) {
    (void)due(OPERATION_ATTENTION_BACKWARD);
    return real_ops->attention_backward(ops, arguments);
}

/* The machine's free memory; the linker puts it in the place of the real one (CMakeLists.txt). */
static double memory_free = 1e12;
double __wrap_machine_memory_available(void);
double __wrap_machine_memory_available(void) {
    return memory_free;
}

static enum status live(const char *recipe, const char *const *overrides, size_t count, const char *resume) {
    enum status status = STATUS_OK;
    struct config config = {0};
    struct comm *comm = NULL;
    struct run run = {0};
    TRY_GOTO(done, comm_open_single(&comm));
    TRY_GOTO(done, ops_open("cpu", &(struct ops_options){.threads = 1, .deterministic = true}, &real_ops));
    struct ops ops = *real_ops;
    ops.loss_rows = spoiled_loss;
    ops.adamw = spoiled_adamw;
    ops.attention_backward = spoiled_attention_backward;
    log_start(0, true);
    TRY_GOTO(done, config_parse("recipe.yaml", recipe, strlen(recipe), overrides, count, &config));
    TRY_GOTO(done, run_open(&config, comm, &ops, NULL, &run));
    status = trainer_run(&run, &(struct trainer_options){.resume = resume});
    run_close(&run);
done:
    config_free(&config);
    if (real_ops) real_ops->close(real_ops);
    KEEP_FIRST(status, comm_close(&comm));
    return status;
}

struct life {
    int exit_code;      /* 128 + signal when killed */
    char message[1024]; /* of a failure */
};

static struct life run_life(const char *recipe, const char *const *overrides, size_t count, const char *resume) {
    struct life life = {0};
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        error_clear();
        enum status status = live(recipe, overrides, count, resume);
        ssize_t written = write(pipes[1], error_message(), strlen(error_message()));
        _exit(written < 0 ? 99 : status_exit_code(status));
    }
    close(pipes[1]);
    size_t used = 0;
    for (ssize_t got; (got = read(pipes[0], life.message + used, sizeof life.message - 1 - used)) > 0;)
        used += (size_t)got;
    close(pipes[0]);
    int state = 0;
    waitpid(child, &state, 0);
    life.exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    return life;
}

static void expect_exit(int expected, struct life life, const char *what) {
    if (life.exit_code != expected)
        fail_msg("%s: expected exit %d, found %d: %s", what, expected, life.exit_code, life.message);
}

/* --- recipes --------------------------------------------------------------------------------------------------------
 */

static char lm_recipe[2048], kl_recipe[4096];

static const char stage_format[] =
    "{name: %s, objective: %s, train: %s, length: %d, batch: %d, steps: %d, lr: %s, warmup_steps: 2%s}\n";

static void write_recipes(void) {
    char data[1024], stages[3][256];
    snprintf(data, sizeof data, "data: {train: \"%s\", valid: \"%s\"}\n", scratch_path("d-*.h5"), scratch_path("v.h5"));
    snprintf(stages[0], sizeof stages[0], stage_format, "lm", "lm", "all", T, BATCH, 14, "1e-2", "");
    snprintf(stages[1], sizeof stages[1], stage_format, "align", "attention", "new", T, BATCH, 4, "1e-2", "");
    snprintf(stages[2], sizeof stages[2], stage_format, "distil", "kl", "[new, attn.qkv, lora(2)]", T, BATCH, 14,
             "1e-3", ", l1: 0.05, ce_share: 0.25, temperature: 2");
    static const char rest[] = "train: {micro_batch: 1, weight_decay: 0.1, max_bad_steps: 3}\n"
                               "checkpoint: {every: 2, keep: 3}\neval: {every: 5, sequences: 4}\ndeterministic: true\n";
    snprintf(lm_recipe, sizeof lm_recipe,
             "run: %s\nfrom_scratch: {type: llama, layers: 2, heads: 4, kv_heads: 2, width: 16, tied: "
             "false}\n%sstages:\n  - %s%s",
             scratch_path("lm"), data, stages[0], rest);
    snprintf(kl_recipe, sizeof kl_recipe,
             "run: %s\nteacher: %s\n%sstudent: {attention: [{layers: all, kind: masks, candidates: [window(4), "
             "sinks(1)]}]}\n"
             "stages:\n  - %s  - %s%s",
             scratch_path("kl"), scratch_path("lm"), data, stages[1], stages[2], rest);
}

static int make_all(void **state) {
    if (scratch_make(state) != 0) return -1;
    tiny_shard(scratch_path("d-0.h5"), VOCABULARY, 7, 1, 16 * T + 5, (const int64_t[]){20, 21, 100, -1});
    tiny_shard(scratch_path("d-1.h5"), VOCABULARY, 7, 2, 8 * T + 1, NULL);
    tiny_shard(scratch_path("v.h5"), VOCABULARY, 7, 3, 6 * T, NULL);
    write_recipes();
    expect_exit(0, run_life(lm_recipe, NULL, 0, "auto"), "the straight lm run");
    expect_exit(0, run_life(kl_recipe, NULL, 0, "auto"), "the straight kl run");
    return 0;
}

/* --- comparing
 * -------------------------------------------------------------------------------------------------------- */

static struct checkpoint *open_last(const char *run, int64_t step) {
    char *path = NULL;
    struct checkpoint *checkpoint = NULL;
    CHECK_OK(checkpoint_path(run, step, &path));
    CHECK_OK(checkpoint_open(path, &checkpoint));
    free(path);
    return checkpoint;
}

static void compare_checkpoints(const char *what, const char *run_a, const char *run_b, int64_t step) {
    static const char *const places[] = {"stage_index", "stage_step", "sample", "updates", "skipped"};
    struct checkpoint *a = open_last(run_a, step), *b = open_last(run_b, step);
    assert_int_equal(checkpoint_tensor_count(a), checkpoint_tensor_count(b));
    for (size_t i = 0; i < checkpoint_tensor_count(a); i++) {
        struct checkpoint_tensor tensor = checkpoint_tensor(a, i);
        float *left = malloc((size_t)tensor.count * sizeof(float)),
              *right = malloc((size_t)tensor.count * sizeof(float));
        CHECK_OK(checkpoint_read(a, tensor.name, tensor.dtype, 0, tensor.count, left));
        CHECK_OK(checkpoint_read(b, tensor.name, tensor.dtype, 0, tensor.count, right));
        if (memcmp(left, right, (size_t)tensor.count * sizeof(float)) != 0)
            fail_msg("%s: %s differs", what, tensor.name);
        free(left);
        free(right);
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int64_t left = 0, right = 1;
        CHECK_OK(checkpoint_get_integer(a, places[i], &left));
        CHECK_OK(checkpoint_get_integer(b, places[i], &right));
        if (left != right)
            fail_msg("%s: %s: expected %lld, found %lld", what, places[i], (long long)left, (long long)right);
    }
    checkpoint_close(&a);
    checkpoint_close(&b);
}

static void read_table(const char *run, struct metrics_table *table) {
    char *path = NULL;
    CHECK_OK(file_join(run, "metrics.jsonl", &path));
    CHECK_OK(metrics_read(path, table));
    free(path);
}

/* Every line of both runs has the same step, stage and figures. */
static void compare_metrics(const char *what, const char *run_a, const char *run_b) {
    static const char *const names[] = {"loss",    "kl",      "ce",      "grad_norm",      "lr",
                                        "density", "eval.kl", "eval.ce", "eval.perplexity"};
    struct metrics_table a, b;
    read_table(run_a, &a);
    read_table(run_b, &b);
    if (a.line_count != b.line_count) {
        fail_msg("%s: metrics: expected %lld lines, found %lld", what, (long long)a.line_count,
                 (long long)b.line_count);
    }
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const double *left = metrics_column(&a, names[n]), *right = metrics_column(&b, names[n]);
        assert_int_equal(left == NULL, right == NULL);
        for (int64_t i = 0; left && i < a.line_count; i++) {
            if (memcmp(&left[i], &right[i], sizeof left[i]) == 0 && a.lines[i].step == b.lines[i].step) continue;
            fail_msg("%s: metrics line %lld: %s: expected %.17g, found %.17g", what, (long long)i, names[n], left[i],
                     right[i]);
        }
    }
    metrics_table_free(&a);
    metrics_table_free(&b);
}

/* --- kills
 * ------------------------------------------------------------------------------------------------------------ */

/* Objectives lm and kl call loss_rows once a micro-step; so do evaluations. */
enum { LAYERS = 2, ADAMW_CALLS = 2, ALIGN_STEPS = 4 };

static const struct kill {
    const char *name;
    bool lm;
    enum operation operation;
    int64_t call; /* the one that never comes back */
} kills[] = {
    {"lm, in the first step", true, OPERATION_LOSS, 5},
    {"lm, inside accumulation", true, OPERATION_ATTENTION_BACKWARD, (3 * BATCH + 2) * LAYERS + 1},
    {"lm, at the epoch's end", true, OPERATION_ADAMW, EPOCH_STEPS *ADAMW_CALLS + 1},
    {"lm, after an update", true, OPERATION_ADAMW, 8 * ADAMW_CALLS + 2},
    {"lm, in the last step", true, OPERATION_ATTENTION_BACKWARD, (13 * BATCH + 2) * LAYERS + 1},
    {"kl, inside the attention stage", false, OPERATION_ATTENTION_BACKWARD, (BATCH + 2 * BATCH + 1) * LAYERS + 1},
    {"kl, inside accumulation", false, OPERATION_LOSS, 30},
    {"kl, between the stages", false, OPERATION_ADAMW, ALIGN_STEPS *ADAMW_CALLS + 1},
    {"kl, after an update", false, OPERATION_ADAMW, (ALIGN_STEPS + 5) * ADAMW_CALLS + 2},
};

static void test_kills(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof kills / sizeof *kills; i++) {
        const char *recipe = kills[i].lm ? lm_recipe : kl_recipe, *straight = scratch_path(kills[i].lm ? "lm" : "kl");
        const char *run = scratch_path("killed");
        char override[600];
        snprintf(override, sizeof override, "--run=%s", run);
        const char *const overrides[] = {override};
        plan.operation = kills[i].operation;
        plan.deed = DEED_KILL;
        plan.first = plan.last = kills[i].call;
        plan.calls = 0;
        expect_exit(128 + SIGKILL, run_life(recipe, overrides, 1, "auto"), kills[i].name);
        plan.operation = OPERATION_NONE;
        expect_exit(0, run_life(recipe, overrides, 1, "auto"), kills[i].name);
        compare_checkpoints(kills[i].name, straight, run, kills[i].lm ? 14 : 18);
        compare_metrics(kills[i].name, straight, run);
        CHECK_OK(file_remove_tree(run));
    }
}

/* A signal: exit 75 with a checkpoint of that step, and the same end. Twice in one run. */
static void test_signal(void **state) {
    (void)state;
    const char *run = scratch_path("stopped");
    char override[600];
    snprintf(override, sizeof override, "--run=%s", run);
    const char *const overrides[] = {override, "--checkpoint.every=1000"};
    for (int time = 0; time < 2; time++) {
        plan.operation = OPERATION_ADAMW;
        plan.deed = DEED_SIGNAL;
        plan.first = plan.last = 3 * ADAMW_CALLS + 1; /* inside the fourth step of this life */
        struct life life = run_life(lm_recipe, overrides, 2, "auto");
        expect_exit(75, life, "a signal");
        assert_non_null(strstr(life.message, time == 0 ? "stopped at step 4" : "stopped at step 8"));
    }
    plan.operation = OPERATION_NONE;
    expect_exit(0, run_life(lm_recipe, overrides, 2, "auto"), "after two signals");
    compare_checkpoints("two signals", scratch_path("lm"), run, 14);
    compare_metrics("two signals", scratch_path("lm"), run);
    CHECK_OK(file_remove_tree(run));
}

/* --- another machine ------------------------------------------------------------------------------------------------
 */

/* The least memory that every stage of `recipe` can do with, and so micro-batches of one sequence. */
static double least_memory(const char *recipe, const char *const *overrides, size_t count) {
    struct config config;
    struct comm *comm = NULL;
    struct run run;
    const struct ops *ops = NULL;
    double least = 0;
    CHECK_OK(comm_open_single(&comm));
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &ops));
    CHECK_OK(config_parse("recipe.yaml", recipe, strlen(recipe), overrides, count, &config));
    CHECK_OK(run_open(&config, comm, ops, NULL, &run));
    for (size_t i = 0; i < config.stage_count; i++) {
        struct stage_memory memory;
        int64_t trained;
        enum status status = STATUS_MEMORY;
        CHECK_OK(run_start_stage(&run, i, &trained));
        for (memory_free = 1000; status == STATUS_MEMORY; memory_free *= 1.05) {
            status = run_measure_stage(&run, i, &memory);
            error_clear();
        }
        CHECK_OK(status);
        assert_int_equal(memory.micro_batch, 1);
        least = memory_free > least ? memory_free : least;
    }
    run_close(&run);
    config_free(&config);
    ops->close(ops);
    CHECK_OK(comm_close(&comm));
    memory_free = 1e12;
    return least;
}

static bool log_says(const char *run, const char *words) {
    char *path = NULL, *text = NULL;
    size_t length = 0;
    CHECK_OK(file_join(run, "log", &path));
    CHECK_OK(file_read(path, &text, &length));
    bool says = strstr(text, words) != NULL;
    free(path);
    free(text);
    return says;
}

/* Killed in the first of two stages, and on with more or less free memory than the run began with: the micro-batches of
 * both stages stay, and so do the bits, unless they no longer fit. */
static void test_other_memory(void **state) {
    (void)state;
    char words[3][600];
    const char *straight = scratch_path("few"), *run = scratch_path("more"), *less = scratch_path("less");
    const char *const runs[] = {straight, run, less};
    for (int i = 0; i < 3; i++) snprintf(words[i], sizeof words[i], "--run=%s", runs[i]);
    const char *overrides[] = {words[0], "--train.micro_batch="};
    double least = least_memory(kl_recipe, overrides, 2);
    memory_free = least;
    expect_exit(0, run_life(kl_recipe, overrides, 2, "auto"), "little memory, straight");
    overrides[0] = words[1];
    plan.operation = OPERATION_ATTENTION_BACKWARD;
    plan.deed = DEED_KILL;
    plan.first = plan.last = 3 * BATCH * LAYERS + 1;
    expect_exit(128 + SIGKILL, run_life(kl_recipe, overrides, 2, "auto"), "little memory");
    plan.operation = OPERATION_NONE;
    memory_free = 1e12;
    expect_exit(0, run_life(kl_recipe, overrides, 2, "auto"), "then much memory");
    compare_checkpoints("little memory, then much", straight, run, 18);
    compare_metrics("little memory, then much", straight, run);
    assert_false(log_says(run, "chosen anew"));

    overrides[0] = words[2];
    plan.operation = OPERATION_ATTENTION_BACKWARD;
    plan.first = plan.last = 3 * LAYERS + 1;
    expect_exit(128 + SIGKILL, run_life(kl_recipe, overrides, 2, "auto"), "much memory");
    plan.operation = OPERATION_NONE;
    memory_free = least;
    expect_exit(0, run_life(kl_recipe, overrides, 2, "auto"), "then little memory");
    assert_true(log_says(less, "align: micro-batch 4, as before, does not fit"));
    assert_true(log_says(less, "distil: micro-batch 4, as before, does not fit"));
    memory_free = 1e12;
    for (int i = 0; i < 3; i++) CHECK_OK(file_remove_tree(runs[i]));
}

/* --- lost files -----------------------------------------------------------------------------------------------------
 */

/* A finished run's files that can be made again are, by the same command, and a model has the same bytes. */
static void test_lost_files(void **state) {
    static const char *const lost[] = {"model", "model/model.safetensors", "model/config.json", "config.yaml",
                                       "checkpoints/latest"};
    (void)state;
    const char *run = scratch_path("lost");
    char *before = NULL, *after = NULL, override[600], model[700];
    size_t length = 0, again = 0;
    snprintf(override, sizeof override, "--run=%s", run);
    snprintf(model, sizeof model, "%s/model/model.safetensors", run);
    const char *const overrides[] = {override};
    expect_exit(0, run_life(lm_recipe, overrides, 1, "auto"), "before the loss");
    CHECK_OK(file_read(model, &before, &length));
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) {
        char path[700];
        snprintf(path, sizeof path, "%s/%s", run, lost[i]);
        if (!file_exists(path)) fail_msg("%s: expected it after a run, found nothing", path);
        CHECK_OK(file_remove_tree(path));
        expect_exit(0, run_life(lm_recipe, overrides, 1, "auto"), lost[i]);
        if (!file_exists(path)) fail_msg("%s: expected it again, found nothing", path);
        CHECK_OK(file_read(model, &after, &again));
        assert_int_equal(length, again);
        assert_memory_equal(before, after, length);
        free(after);
    }
    free(before);
    CHECK_OK(file_remove_tree(run));
}

static double last_value(const char *run, const char *name) {
    struct metrics_table table;
    read_table(run, &table);
    const double *column = metrics_column(&table, name);
    double value = NAN;
    for (int64_t i = 0; column && i < table.line_count; i++) {
        if (column[i] != METRICS_ABSENT) value = column[i];
    }
    metrics_table_free(&table);
    return value;
}

/* One bad micro-step: its step is skipped and the run goes on. Three in a row: back to the checkpoint, on with other
 * samples. */
static void test_not_finite(void **state) {
    (void)state;
    const char *run = scratch_path("bad");
    char override[600];
    snprintf(override, sizeof override, "--run=%s", run);
    const char *const overrides[] = {override, "--data.valid=", "--eval.every=0"};
    plan.operation = OPERATION_LOSS;
    plan.deed = DEED_POISON;
    plan.first = plan.last = 5 * BATCH + 2;
    expect_exit(0, run_life(lm_recipe, overrides, 3, "auto"), "one bad step");
    assert_true(last_value(run, "skipped") == 1);
    assert_true(isfinite(last_value(run, "loss")));
    struct checkpoint *checkpoint = open_last(run, 14);
    int64_t updates = 0;
    struct checkpoint_tensor tensor = checkpoint_tensor(checkpoint, 0);
    assert_true(tensor.count > 0);
    CHECK_OK(checkpoint_get_integer(checkpoint, "updates", &updates));
    assert_int_equal(updates, 0); /* the next stage's, which has not begun */
    checkpoint_close(&checkpoint);
    CHECK_OK(file_remove_tree(run));

    plan.first = 5 * BATCH + 1;
    plan.last = 10 * BATCH; /* a skipped step's passes are repeated once, to find the fault */
    expect_exit(0, run_life(lm_recipe, overrides, 3, "auto"), "three bad steps");
    assert_true(last_value(run, "skipped") == 3);
    assert_true(isfinite(last_value(run, "loss")));
    CHECK_OK(file_remove_tree(run));

    plan.last = 1000000;
    struct life life = run_life(lm_recipe, overrides, 3, "auto");
    expect_exit(1, life, "bad for ever");
    assert_non_null(strstr(life.message, "went back 3 times"));
    CHECK_OK(file_remove_tree(run));

    plan.first = 1;
    life = run_life(lm_recipe, overrides, 3, "auto");
    expect_exit(1, life, "bad from the start");
    assert_non_null(strstr(life.message, "there is no checkpoint to go back to"));
    plan.operation = OPERATION_NONE;
    CHECK_OK(file_remove_tree(run));
}

/* --- what resuming refuses ------------------------------------------------------------------------------------------
 */

struct refusal {
    const char *name, *overrides[3], *resume, *message;
    int exit_code;
};

static void test_refusals(void **state) {
    (void)state;
    char teacher[600], other[600];
    const char *run = scratch_path("refused");
    char run_word[600];
    snprintf(run_word, sizeof run_word, "--run=%s", run);
    snprintf(other, sizeof other, "--run=%s", scratch_path("lm2"));
    snprintf(teacher, sizeof teacher, "--teacher=%s", scratch_path("lm2"));
    expect_exit(0, run_life(lm_recipe, (const char *const[]){other, "--seed=2"}, 2, "never"), "another teacher");
    char *newest = NULL;
    CHECK_OK(checkpoint_path(scratch_path("kl"), 18, &newest));
    const struct refusal rows[] = {
        {"another teacher", {teacher}, newest, "belongs to teacher", 2},
        {"another student", {"--stages.distil.train=[new, lora(2)]"}, newest, "which the model does not own", 2},
        {"a student with more",
         {"--stages.distil.train=[new, attn.qkv, mlp, lora(2)]"},
         newest,
         "has no values/h.0.mlp",
         2},
        {"another rank of LoRA", {"--stages.distil.train=[new, attn.qkv, lora(3)]"}, newest, "lora_a: expected", 2},
        {"more ranks than samples",
         {"--stages.distil.length=4096"},
         "auto",
         "no shard holds a window of length 4096",
         2},
        {"nothing there", {NULL}, scratch_path("nothing"), "nothing", 1},
        {"no such parameter", {"--stages.distil.train=[new, atn.qkv]"}, "auto", "no parameter matches \"atn.qkv\"", 2},
        {"an unknown kind", {"--student.attention.0.kind=maks"}, "auto", "maks", 2},
        {"a teacher that is not there", {"--teacher=/nonexistent"}, "auto", "/nonexistent", 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *overrides[4] = {run_word};
        size_t count = 1;
        for (int o = 0; o < 3 && rows[i].overrides[o]; o++) overrides[count++] = rows[i].overrides[o];
        struct life life = run_life(kl_recipe, overrides, count, rows[i].resume);
        if (life.exit_code != rows[i].exit_code || !strstr(life.message, rows[i].message)) {
            fail_msg("row \"%s\": expected exit %d with \"%s\", found %d: %s", rows[i].name, rows[i].exit_code,
                     rows[i].message, life.exit_code, life.message);
        }
    }
    free(newest);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kills),      cmocka_unit_test(test_signal),     cmocka_unit_test(test_other_memory),
        cmocka_unit_test(test_lost_files), cmocka_unit_test(test_not_finite), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("resume", tests, make_all, scratch_remove);
}
