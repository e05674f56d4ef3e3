/* SIGKILL at random instants while checkpoints are saved, replaced and thinned out: every checkpoint that can be seen
 * afterwards verifies and holds what it should, and none that was there before is lost.
 * $SQUINT_KILLS: how many kills (40). Some more are dealt to one of two ranks under mpirun, where that is found. */
#include "support/check.h"

#include "base/file.h"
#include "base/rng.h"
#include "io/checkpoint.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/scratch.h"

enum { WEIGHTS = 100003, BIAS = 7, KEEP = 3 };

static float value(int64_t step, int64_t i) {
    return (float)(step * 1000 + i % 997);
}

/* --- the victim -------------------------------------------------------------------------------------------------- */

static void die(int signal_number) {
    (void)signal_number;
    kill(getpid(), SIGKILL);
}

static enum status save(struct comm *comm, const char *run, int64_t step) {
    static float weights[WEIGHTS], bias[BIAS];
    int rank = comm_rank(comm), size = comm_size(comm);
    int64_t begin = (int64_t)WEIGHTS * rank / size, end = (int64_t)WEIGHTS * (rank + 1) / size;
    for (int64_t i = 0; i < WEIGHTS; i++) weights[i] = value(step, i);
    for (int64_t i = 0; i < BIAS; i++) bias[i] = value(step, i);
    const struct checkpoint_item items[] = {
        {.name = "weights",
         .dtype = DTYPE_F32,
         .rank = 1,
         .shape = {WEIGHTS},
         .first = begin,
         .count = end - begin,
         .data = weights + begin},
        {.name = "bias",
         .dtype = DTYPE_F32,
         .rank = 1,
         .shape = {BIAS},
         .first = 0,
         .count = rank == 0 ? BIAS : 0,
         .data = bias},
    };
    const struct checkpoint_attribute attribute = checkpoint_integer("sample", step * 3);
    return checkpoint_save(comm, run, step, items, 2, &attribute, 1);
}

/* Goes on from the newest checkpoint, saves for ever (each step twice: once as a replacement), dies after `delay_us`.
 */
static int victim(const char *run, int who, long delay_us) {
    struct comm *comm = NULL;
    char *path = NULL;
    int64_t step = 0;
    enum status status = comm_open(&(struct comm_options){.deadline_s = 60}, &comm);
    if (status == STATUS_OK) status = checkpoint_clean(comm, run);
    if (status == STATUS_OK) status = checkpoint_find(comm, run, &path);
    if (status == STATUS_OK) step = strtoll(strrchr(path, '-') + 1, NULL, 10);
    if (status == STATUS_NOT_FOUND) {
        error_clear();
        status = STATUS_OK;
    }
    if (status == STATUS_OK && comm_rank(comm) == who) {
        signal(SIGALRM, die);
        setitimer(ITIMER_REAL,
                  &(struct itimerval){.it_value = {.tv_sec = delay_us / 1000000, .tv_usec = delay_us % 1000000 + 1}},
                  NULL);
    }
    while (status == STATUS_OK) {
        step++;
        status = save(comm, run, step);
        if (status == STATUS_OK) status = save(comm, run, step);
        if (status == STATUS_OK) status = checkpoint_retain(comm, run, KEEP);
    }
    fprintf(stderr, "%s\n", error_message());
    return 1;
}

/* --- the judge --------------------------------------------------------------------------------------------------- */

static struct comm *comm;

static void ok(enum status status, int kill_number) {
    if (status != STATUS_OK) fail_msg("kill %d: %s: %s", kill_number, status_name(status), error_message());
}

static void check_checkpoint(const char *run, int64_t step, int number) {
    static float weights[WEIGHTS], bias[BIAS];
    struct checkpoint *checkpoint;
    char *path;
    int64_t sample;
    ok(checkpoint_path(run, step, &path), number);
    ok(checkpoint_verify(comm, path), number);
    ok(checkpoint_open(path, &checkpoint), number);
    ok(checkpoint_read(checkpoint, "weights", DTYPE_F32, 0, WEIGHTS, weights), number);
    ok(checkpoint_read(checkpoint, "bias", DTYPE_F32, 0, BIAS, bias), number);
    ok(checkpoint_get_integer(checkpoint, "sample", &sample), number);
    assert_int_equal(sample, step * 3);
    for (int64_t i = 0; i < WEIGHTS; i++) assert_true(weights[i] == value(step, i));
    for (int64_t i = 0; i < BIAS; i++) assert_true(bias[i] == value(step, i));
    checkpoint_close(&checkpoint);
    free(path);
}

static int leftovers(const char *run) {
    char directory[600], **names;
    size_t count;
    int found = 0;
    snprintf(directory, sizeof directory, "%s/checkpoints", run);
    if (!file_is_directory(directory)) return 0;
    ok(file_list(directory, &names, &count), -1);
    for (size_t i = 0; i < count; i++) found += strstr(names[i], ".tmp-") != NULL;
    file_free_list(names, count);
    return found;
}

/* Starts the victim alone, or under mpirun with two ranks, and waits for its death. */
static void murder(const char *run, bool two_ranks, int who, long delay_us) {
    char self[512], who_text[16], delay[32];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(length > 0);
    self[length] = '\0';
    snprintf(who_text, sizeof who_text, "%d", who);
    snprintf(delay, sizeof delay, "%ld", delay_us);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (two_ranks) {
            if (!freopen("/dev/null", "w", stderr)) _exit(99); /* mpirun's report of the death that we ordered */
            execlp("mpirun", "mpirun", "-np", "2", "--oversubscribe", self, "save", run, who_text, delay, (char *)NULL);
            _exit(98);
        }
        execl(self, self, "save", run, who_text, delay, (char *)NULL);
        _exit(98);
    }
    int outcome;
    assert_int_equal(waitpid(child, &outcome, 0), child);
    if (two_ranks) {
        if (!WIFEXITED(outcome) || WEXITSTATUS(outcome) != 137) fail_msg("mpirun: outcome %x", (unsigned)outcome);
    } else if (!WIFSIGNALED(outcome) || WTERMSIG(outcome) != SIGKILL) {
        fail_msg("expected a death by SIGKILL, found outcome %x", (unsigned)outcome);
    }
}

static void kill_many(const char *run, int kills, bool two_ranks) {
    int64_t newest = 0, *steps;
    size_t count;
    int interrupted = 0;
    ok(file_make_directory(run), -1);
    for (int k = 0; k < kills; k++) {
        long longest_us = two_ranks ? 300000 : 150000;
        long delay_us = (long)rng_below(1, RNG_TEST, (uint64_t)k, (uint64_t)longest_us);
        murder(run, two_ranks, two_ranks ? k % 2 : 0, delay_us);
        interrupted += leftovers(run) > 0;
        ok(checkpoint_list(run, &steps, &count), k);
        if (newest > 0 && (count == 0 || steps[0] < newest)) {
            fail_msg("kill %d after %ld us: step %lld was there before and is lost", k, delay_us, (long long)newest);
        }
        for (size_t i = 0; i < count; i++) check_checkpoint(run, steps[i], k);
        if (count > 0) newest = steps[0];
        free(steps);
    }
    printf("%d kills%s, %d of them inside a save; %lld steps saved\n", kills, two_ranks ? " of one of two ranks" : "",
           interrupted, (long long)newest);
    /* Otherwise the test has shown nothing. */
    if (kills >= 20) assert_true(interrupted > kills / 10);
    assert_true(newest > 0);
    ok(checkpoint_clean(comm, run), -1);
    assert_int_equal(leftovers(run), 0);
}

static void test_one_rank(void **state) {
    (void)state;
    const char *text = getenv("SQUINT_KILLS");
    int kills = text && atoi(text) > 0 ? atoi(text) : 40;
    kill_many(scratch_path("alone"), kills, false);
}

static void test_two_ranks(void **state) {
    (void)state;
    if (system("command -v mpirun >/dev/null 2>&1") != 0) {
        CHECK_SKIP("no mpirun");
    }
    kill_many(scratch_path("two"), 4, true);
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "save") == 0) return victim(argv[2], atoi(argv[3]), atol(argv[4]));
    if (comm_open_single(&comm) != STATUS_OK) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_rank), cmocka_unit_test(test_two_ranks)};
    int failures = cmocka_run_group_tests(tests, scratch_make, scratch_remove);
    if (comm_close(&comm) != STATUS_OK) failures++;
    return check_exit(failures);
}
