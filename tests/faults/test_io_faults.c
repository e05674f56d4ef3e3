/* Every call of the system, of the allocator and of HDF5 that shards and checkpoints make fails once, in turn: each
 * time either the work is done and right, or a status with a message comes back; no crash, no leak, nothing
 * half-written. The calls are exchanged by the linker (--wrap, see CMakeLists.txt). One row by hand: test_io_faults
 * SCENARIO FUNCTION, e.g. test_io_faults "checkpoint save" fsync */
#include "base/file.h"
#include "io/checkpoint.h"
#include "io/h5.h"
#include "io/shard.h"

#include <errno.h>
#include <hdf5.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/inject.h"
#include "support/scratch.h"

/* --- failing calls ---------------------------------------------------------------------------------------------- */

/* Standard error is closed to the warnings that are meant to be: a failure says so on standard output too. */
#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        printf(__VA_ARGS__);                                                                                           \
        printf("\n");                                                                                                  \
        fail_msg(__VA_ARGS__);                                                                                         \
    } while (0)

/* Beside those of support/inject.c. */
INJECT(int, symlink, -1, EPERM, (const char *to, const char *path), (to, path))
INJECT(hid_t, H5Pcreate, -1, 0, (hid_t class), (class))
INJECT(hid_t, H5Screate, -1, 0, (H5S_class_t class), (class))
INJECT(hid_t, H5Screate_simple, -1, 0, (int rank, const hsize_t *n, const hsize_t *m), (rank, n, m))
INJECT(herr_t, H5Sselect_hyperslab, -1, 0,
       (hid_t s, H5S_seloper_t op, const hsize_t *a, const hsize_t *b, const hsize_t *c, const hsize_t *d),
       (s, op, a, b, c, d))
INJECT(hid_t, H5Tcopy, -1, 0, (hid_t type), (type))
INJECT(hid_t, H5Gcreate2, -1, 0, (hid_t l, const char *n, hid_t a, hid_t b, hid_t c), (l, n, a, b, c))
INJECT(hid_t, H5Dget_space, -1, 0, (hid_t d), (d))
INJECT(herr_t, H5Pset_virtual, -1, 0, (hid_t p, hid_t v, const char *f, const char *d, hid_t s), (p, v, f, d, s))
INJECT(hid_t, H5Acreate_by_name, -1, 0,
       (hid_t l, const char *o, const char *n, hid_t t, hid_t s, hid_t a, hid_t b, hid_t c), (l, o, n, t, s, a, b, c))
INJECT(hid_t, H5Aopen_by_name, -1, 0, (hid_t l, const char *o, const char *n, hid_t a, hid_t b), (l, o, n, a, b))
INJECT(hid_t, H5Aget_type, -1, 0, (hid_t a), (a))
INJECT(herr_t, H5Aread, -1, 0, (hid_t a, hid_t t, void *x), (a, t, x))
INJECT(hid_t, H5FDregister, -1, 0, (const H5FD_class_t *class), (class))

static const char *const functions[] = {
    "malloc",
    "calloc",
    "realloc",
    "strdup",
    "fwrite",
    "fopen",
    "pwrite",
    "ftruncate",
    "fsync",
    "rename",
    "renameat2",
    "symlink",
    "mkdir",
    "mmap",
    "H5Pcreate",
    "H5Screate",
    "H5Screate_simple",
    "H5Sselect_hyperslab",
    "H5Tcopy",
    "H5Fcreate",
    "H5Fopen",
    "H5Gcreate2",
    "H5Dcreate2",
    "H5Dopen2",
    "H5Dget_space",
    "H5Dwrite",
    "H5Dread",
    "H5Pset_virtual",
    "H5Acreate_by_name",
    "H5Awrite",
    "H5Aopen_by_name",
    "H5Aget_type",
    "H5Aread",
    "H5FDregister",
};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

/* --- scenarios -------------------------------------------------------------------------------------------------- */

static struct comm *comm;
static char run_directory[300];

static void expect_ok(enum status status) {
    if (status != STATUS_OK) FAIL("%s: %s", status_name(status), error_message());
}

static enum status write_shard(void) {
    struct shard_info info = {.tokenizer_name = "t", .vocabulary = 100000, .end_of_text = -1, .source = "s"};
    struct shard_writer *writer = NULL;
    uint32_t ids[3000];
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < 3000; i++) ids[i] = i;
    TRY_GOTO(done, shard_writer_open(scratch_path("shard.h5"), &info, &writer));
    for (int document = 0; document < 70; document++) TRY_GOTO(done, shard_writer_append(writer, ids, 30, true));
    TRY_GOTO(done, shard_writer_append(writer, ids, 3000, true));
    status = shard_writer_close(&writer);
done:
    shard_writer_abort(&writer);
    return status;
}

static enum status read_shard(void) {
    struct shard shard;
    enum status status = shard_open(scratch_path("shard.h5"), &shard);
    if (status == STATUS_OK) status = shard_verify(&shard);
    if (status == STATUS_OK) assert_int_equal(shard.info.tokens, 5100);
    shard_close(&shard);
    return status;
}

static void check_shard(bool done) {
    if (done || file_exists(scratch_path("shard.h5"))) expect_ok(read_shard());
    (void)unlink(scratch_path("shard.h5"));
}

static enum status save(int64_t step) {
    static float weights[5][7];
    const struct checkpoint_item items[] = {
        {.name = "a/weights", .dtype = DTYPE_F32, .rank = 2, .shape = {5, 7}, .first = 0, .count = 11, .data = weights},
        {.name = "a/weights",
         .dtype = DTYPE_F32,
         .rank = 2,
         .shape = {5, 7},
         .first = 11,
         .count = 24,
         .data = (float *)weights + 11},
        {.name = "half", .dtype = DTYPE_F16, .rank = 1, .shape = {3}, .first = 0, .count = 3, .data = weights},
    };
    const struct checkpoint_attribute attributes[] = {checkpoint_integer("sample", step), checkpoint_real("loss", 0.5),
                                                      checkpoint_text("config", "a: 1"),
                                                      checkpoint_blob("state", "xyz", 3)};
    for (int i = 0; i < 35; i++) ((float *)weights)[i] = (float)(step * 100 + i);
    return checkpoint_save(comm, run_directory, step, items, 3, attributes, 4);
}

static enum status save_new(void) {
    return save(5);
}
static enum status save_again(void) {
    return save(3);
}

static enum status read_checkpoint(void) {
    struct checkpoint *checkpoint = NULL;
    float weights[35];
    char *path = NULL;
    int64_t sample;
    enum status status = STATUS_OK;
    TRY_GOTO(done, checkpoint_resolve(comm, run_directory, &path));
    TRY_GOTO(done, checkpoint_open(path, &checkpoint));
    TRY_GOTO(done, checkpoint_read(checkpoint, "a/weights", DTYPE_F32, 0, 35, weights));
    TRY_GOTO(done, checkpoint_get_integer(checkpoint, "sample", &sample));
    for (int i = 0; i < 35; i++) assert_true(weights[i] == (float)(sample * 100 + i));
    assert_int_equal(sample, checkpoint_step(checkpoint));
done:
    checkpoint_close(&checkpoint);
    free(path);
    return status;
}

static enum status retain_and_clean(void) {
    TRY(checkpoint_retain(comm, run_directory, 1));
    return checkpoint_clean(comm, run_directory);
}

/* Two good checkpoints, steps 2 and 3. */
static void two_checkpoints(void) {
    char directory[400];
    snprintf(directory, sizeof directory, "%s/checkpoints", run_directory);
    expect_ok(file_remove_tree(directory));
    expect_ok(save(2));
    expect_ok(save(3));
}

/* Whatever is there verifies, and it is not nothing. */
static void check_run(bool done) {
    int64_t *steps;
    size_t count;
    (void)done;
    expect_ok(checkpoint_list(run_directory, &steps, &count));
    assert_true(count >= 1);
    for (size_t i = 0; i < count; i++) {
        char *path;
        expect_ok(checkpoint_path(run_directory, steps[i], &path));
        expect_ok(checkpoint_verify(comm, path));
        free(path);
    }
    free(steps);
    expect_ok(read_checkpoint());
}

static void some_shard(void) {
    expect_ok(write_shard());
}
static void nothing(void) {}

static const struct {
    const char *name;
    void (*prepare)(void);
    enum status (*work)(void);
    void (*check)(bool done);
} scenarios[] = {
    {"shard write", nothing, write_shard, check_shard},
    {"shard read", some_shard, read_shard, check_shard},
    {"checkpoint save", two_checkpoints, save_new, check_run},
    {"checkpoint replace", two_checkpoints, save_again, check_run},
    {"checkpoint read", two_checkpoints, read_checkpoint, check_run},
    {"checkpoint retain", two_checkpoints, retain_and_clean, check_run},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

/* --- every call in turn ----------------------------------------------------------------------------------------- */

static const char *only_scenario, *only_function;

static void run_row(int s, int f) {
    for (long call = 0;; call++) {
        scenarios[s].prepare();
        inject_start(functions[f], call);
        enum status status = scenarios[s].work();
        bool struck = inject_stop(), done = status == STATUS_OK, silent = !done && error_message()[0] == '\0';
        if (only_scenario && !done)
            printf("%s %ld: %s: %s\n", functions[f], call, status_name(status), error_message());
        if (silent)
            FAIL("%s: %s fails at call %ld: %s without a message", scenarios[s].name, functions[f], call,
                 status_name(status));
        if (!struck && !done) FAIL("%s: fails with nothing failing: %s", scenarios[s].name, error_message());
        error_clear();
        scenarios[s].check(done);
        if (!struck) return;
    }
}

static void test_scenario(void **state) {
    int s = (int)(intptr_t)*state;
    for (int f = 0; f < FUNCTIONS; f++) {
        if (!only_function || strcmp(only_function, functions[f]) == 0) run_row(s, f);
    }
}

int main(int argc, char **argv) {
    only_scenario = argc > 1 ? argv[1] : NULL;
    only_function = argc > 2 ? argv[2] : NULL;
    struct CMUnitTest tests[SCENARIOS];
    size_t count = 0;
    for (int s = 0; s < SCENARIOS; s++) {
        if (only_scenario && strcmp(only_scenario, scenarios[s].name) != 0) continue;
        tests[count++] = (struct CMUnitTest){scenarios[s].name, test_scenario, NULL, NULL, (void *)(intptr_t)s};
    }
    /* Thousands of saves: flushing them to a real disk would take minutes. */
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
    if (scratch_make(NULL) != 0 || comm_open_single(&comm) != STATUS_OK) return 1;
    snprintf(run_directory, sizeof run_directory, "%s/run", scratch);
    /* Most of what is passed over here is meant to be. */
    if (!only_scenario && !freopen("/dev/null", "w", stderr)) return 1;
    int failures = _cmocka_run_group_tests("faults", tests, count, NULL, NULL);
    (void)comm_close(&comm);
    return scratch_remove(NULL) != 0 || failures;
}
