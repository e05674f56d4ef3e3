/* Checkpoints: what any number of ranks writes, any number reads; damage is named and passed over; retention.
 * Under mpirun with 1, 2 and 3 ranks. */
#include "checkpoint_model.h"

static void test_round_trip(void **state) {
    (void)state;
    const char *run = new_run("round");
    char *path, *found;
    save(run, 500);
    ok(checkpoint_path(run, 500, &path));
    check_content(path, 500);
    ok(checkpoint_verify(comm, path));
    bool is[4];
    ok(checkpoint_is_checkpoint(path, &is[0]));
    ok(checkpoint_is_run(run, &is[1]));
    ok(checkpoint_is_checkpoint(run, &is[2]));
    ok(checkpoint_is_run(path, &is[3]));
    assert_true(is[0] && is[1] && !is[2] && !is[3]);
    ok(checkpoint_find(comm, run, &found));
    assert_string_equal(found, path);
    free(found);
    ok(checkpoint_resolve(comm, run, &found));
    assert_string_equal(found, path);
    free(found);
    ok(checkpoint_resolve(comm, path, &found));
    assert_string_equal(found, path);
    free(found);
    char latest[600];
    snprintf(latest, sizeof latest, "%s/checkpoints/latest", run);
    check_content(latest, 500);
    /* The same step again, with other content, as after going back. */
    save(run, 500);
    check_content(path, 500);
    assert_int_equal(entries(run), 2); /* and latest */
    free(path);
    /* A moved checkpoint still opens: names inside are relative. */
    barrier();
    if (rank == 0) assert_int_equal(rename(scratch_path("round/checkpoints/step-00000500"), scratch_path("moved")), 0);
    barrier();
    check_content(scratch_path("moved"), 500);
    refused(checkpoint_find(comm, run, &found), STATUS_NOT_FOUND, "no checkpoint in it");
    refused(checkpoint_find(comm, scratch_path("absent"), &found), STATUS_NOT_FOUND, "absent: no checkpoint");
    refused(checkpoint_resolve(comm, scratch_path("absent"), &found), STATUS_NOT_FOUND, "found neither");
    assert_null(found);
}

/* Each rank alone writes as one of one, and what the ranks have written together is read by one: 1 -> N, N -> 1. */
static void test_other_rank_counts(void **state) {
    (void)state;
    const char *run = new_run("counts");
    struct comm *all = comm;
    int my_rank = rank, my_size = size;
    save(run, 7);
    barrier();
    if (rank == 0) {
        ok(comm_open_single(&comm));
        size = 1;
        char *path;
        ok(checkpoint_find(comm, run, &path));
        check_content(path, 7);
        free(path);
        save(run, 8);
        ok(comm_close(&comm));
    }
    comm = all;
    rank = my_rank;
    size = my_size;
    barrier();
    char *path;
    ok(checkpoint_find(comm, run, &path));
    check_content(path, 8);
    free(path);
}

static void test_reader_refuses(void **state) {
    (void)state;
    const char *run = new_run("reader");
    char *path;
    struct checkpoint *checkpoint;
    float x[8];
    int64_t integer;
    const char *text;
    save(run, 1);
    ok(checkpoint_path(run, 1, &path));
    ok(checkpoint_open(path, &checkpoint));
    refused(checkpoint_read(checkpoint, "nobody", DTYPE_F32, 0, 1, x), STATUS_NOT_FOUND, "no tensor nobody");
    refused(checkpoint_read(checkpoint, "half", DTYPE_F32, 0, 1, x), STATUS_SHAPE, "expected f32, found f16");
    refused(checkpoint_read(checkpoint, "student/layers.0.norm", DTYPE_F32, 3, 5, x), STATUS_SHAPE, "its 7 elements");
    refused(checkpoint_read(checkpoint, "student/layers.0.norm", DTYPE_F32, -1, 5, x), STATUS_SHAPE, "its 7 elements");
    refused(checkpoint_get_integer(checkpoint, "absent", &integer), STATUS_DAMAGED,
            "expected a whole number, found none");
    refused(checkpoint_get_text(checkpoint, "sample", &text), STATUS_DAMAGED, "expected a text, found a whole number");
    assert_true(checkpoint_has_attribute(checkpoint, "loss") && !checkpoint_has_attribute(checkpoint, "gain"));
    assert_int_equal(checkpoint_attribute_count(checkpoint), 6);
    assert_string_equal(checkpoint_attribute(checkpoint, 0).name, "config");
    assert_false(checkpoint_has(checkpoint, "nobody", NULL));
    assert_string_equal(checkpoint_tensor(checkpoint, 0).name, "bytes");
    assert_int_equal(checkpoint_files(checkpoint), size);
    checkpoint_close(&checkpoint);
    checkpoint_close(&checkpoint);
    checkpoint_close(NULL);
    free(path);
    refused(checkpoint_open(scratch_path("absent"), &checkpoint), STATUS_NOT_FOUND, "expected a checkpoint");
    refused(checkpoint_open(run, &checkpoint), STATUS_DAMAGED, "index.h5, found none");
}

/* What a caller may do wrong; in each, all ranks fail and nothing stays. */
static void test_writer_refuses(void **state) {
    (void)state;
    static float data[16];
    const struct checkpoint_item good = {.name = "x",
                                         .dtype = DTYPE_F32,
                                         .rank = 1,
                                         .shape = {12},
                                         .first = 12 * rank / size,
                                         .count = 12 * (rank + 1) / size - 12 * rank / size,
                                         .data = data};
    const char *run = new_run("writer");
    bool last = rank == size - 1;
    struct {
        const char *row, *part;
        struct checkpoint_item item;
    } rows[16];
    int n = 0;
#define ROW(name_of_row, message, change)                                                                              \
    rows[n].row = name_of_row;                                                                                         \
    rows[n].part = message;                                                                                            \
    rows[n].item = good;                                                                                               \
    if (last) rows[n].item.change;                                                                                     \
    n++
    ROW("gap at the end", "found none from 11", count--);
    ROW("beyond", "expected a slice of at most 12", count++);
    ROW("negative", "expected a slice", first = -1);
    ROW("no data", "expected a slice", data = NULL);
    ROW("rank 0", "expected a slice of at most 0", rank = 0);
    ROW("rank 5", "expected a slice of at most 0", rank = 5);
    ROW("negative shape", "expected a slice of at most 0", shape[0] = -1);
    ROW("no name", "cannot be a tensor's name", name = "");
    ROW("empty part", "cannot be a tensor's name", name = "a//b");
    ROW("slash", "cannot be a tensor's name", name = "/a");
    ROW("dot", "cannot be a tensor's name", name = "a/./b");
    if (size > 1) {
        ROW("dtype", "expected one dtype and shape from all ranks", dtype = DTYPE_I32);
        ROW("shape", "expected one dtype and shape from all ranks", shape[0] = 13);
        ROW("overlap", "expected a slice from", first--);
        ROW("another name", "tensor x of 12 elements", name = "y");
    }
    for (int i = 0; i < n; i++) {
        enum status status = checkpoint_save(comm, run, 3, &rows[i].item, 1, NULL, 0);
        if (status != STATUS_FAILED || !strstr(error_message(), rows[i].part)) {
            fail_msg("rank %d: %s: expected \"%s\", found %s: \"%s\"", rank, rows[i].row, rows[i].part,
                     status_name(status), error_message());
        }
        error_clear();
        barrier();
        assert_int_equal(entries(run), 0);
        barrier();
    }
    const struct checkpoint_attribute twice[2] = {checkpoint_integer("a", 1), checkpoint_integer("a", 2)};
    refused(checkpoint_save(comm, run, 3, &good, 1, twice, 2), STATUS_FAILED, "attribute a is there twice");
    ok(checkpoint_save(comm, run, 3, &good, 1, twice, 1));
    ok(checkpoint_save(comm, run, 4, NULL, 0, NULL, 0));
}

static void flip(const char *path, int64_t offset) {
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, offset, SEEK_SET);
    int byte = fgetc(file);
    fseek(file, offset, SEEK_SET);
    fputc(byte ^ 0x20, file);
    fclose(file);
}

/* The newest is damaged in every way in turn: it is named, and the one before is used. */
static void test_damage(void **state) {
    (void)state;
    static const char *const rows[] = {"flipped byte", "rank file cut", "rank file gone", "rank file of another step",
                                       "index cut",    "index gone",    "index is text",  "index flipped",
                                       "slice gone"};
    for (int r = 0; r < 9; r++) {
        char name[64], rank_file[640], index[640], other[640], *found, *path;
        snprintf(name, sizeof name, "damage-%d", r);
        char run[512];
        snprintf(run, sizeof run, "%s", new_run(name));
        save(run, 1);
        save(run, 2);
        snprintf(rank_file, sizeof rank_file, "%s/checkpoints/step-00000002/rank-%05d-of-%05d.h5", run, size - 1, size);
        snprintf(other, sizeof other, "%s/checkpoints/step-00000001/rank-%05d-of-%05d.h5", run, size - 1, size);
        snprintf(index, sizeof index, "%s/checkpoints/step-00000002/index.h5", run);
        if (rank == 0) {
            struct h5 *file;
            struct h5_dataset dataset;
            int64_t bytes;
            char slice[128];
            snprintf(slice, sizeof slice, "slices/bytes@%d", 1000003 * (size - 1) / size);
            ok(h5_open(rank_file, &file));
            ok(h5_dataset_find(file, slice, &dataset));
            h5_close(&file);
            switch (r) {
            case 0:
                flip(rank_file, dataset.offset + 1000);
                break;
            case 1:
                ok(file_size(rank_file, &bytes));
                assert_int_equal(truncate(rank_file, bytes - 5000), 0);
                break;
            case 2:
                unlink(rank_file);
                break;
            case 3:
                assert_int_equal(rename(other, rank_file), 0);
                break;
            case 4:
                assert_int_equal(truncate(index, 3000), 0);
                break;
            case 5:
                unlink(index);
                break;
            case 6:
                ok(file_write(index, "index", 5));
                break;
            case 7: {
                struct file_map map;
                ok(file_map_open(index, &map));
                /* In the long text: large attributes have no checksum of HDF5's. */
                const char *at = memmem(map.data, map.bytes, "cccccccccccccccc", 16);
                assert_non_null(at);
                int64_t offset = at - (const char *)map.data;
                file_map_close(&map);
                flip(index, offset + 5);
                break;
            }
            default:
                ok(h5_create(rank_file, 0, &file));
                ok(h5_attribute_set_i64(file, "/", "version", 1));
                ok(h5_attribute_set_i64(file, "/", "step", 2));
                ok(h5_attribute_set_i64(file, "/", "rank", size - 1));
                ok(h5_attribute_set_i64(file, "/", "ranks", size));
                ok(h5_publish(&file));
            }
        }
        barrier();
        ok(checkpoint_path(run, 2, &path));
        enum status status = checkpoint_verify(comm, path);
        if (status != STATUS_DAMAGED || !strstr(error_message(), "step-00000002")) {
            fail_msg("rank %d: %s: expected damage in step 2, found %s: \"%s\"", rank, rows[r], status_name(status),
                     error_message());
        }
        error_clear();
        if (r == 3) {
            /* Both are damaged now. */
            refused(checkpoint_find(comm, run, &found), STATUS_DAMAGED,
                    "none of its 2 checkpoints verifies; the newest: ");
        } else {
            ok(checkpoint_find(comm, run, &found));
            if (!strstr(found, "step-00000001")) fail_msg("%s: %s", rows[r], found);
            check_content(found, 1);
            free(found);
        }
        free(path);
    }
}

static size_t steps_left(const char *run, int64_t *newest) {
    int64_t *steps;
    size_t count;
    ok(checkpoint_list(run, &steps, &count));
    *newest = count ? steps[0] : -1;
    free(steps);
    return count;
}

static void damage(const char *run, int64_t step) {
    char path[640];
    barrier();
    snprintf(path, sizeof path, "%s/checkpoints/step-%08d/index.h5", run, (int)step);
    if (rank == 0) assert_int_equal(truncate(path, 1000), 0);
    barrier();
}

static void test_retention(void **state) {
    (void)state;
    char run[512], *found;
    int64_t newest;
    snprintf(run, sizeof run, "%s", new_run("retention"));
    for (int64_t step = 1; step <= 5; step++) save(run, step);
    ok(checkpoint_retain(comm, run, 3));
    barrier();
    assert_int_equal(steps_left(run, &newest), 3);
    assert_int_equal(newest, 5);
    barrier();
    /* Two damaged ones do not count: with one to keep, the good one below them stays. */
    damage(run, 5);
    damage(run, 4);
    ok(checkpoint_retain(comm, run, 1));
    ok(checkpoint_find(comm, run, &found));
    assert_non_null(strstr(found, "step-00000003"));
    free(found);
    /* None good: nothing is removed. */
    damage(run, 3);
    ok(checkpoint_retain(comm, run, 1));
    barrier();
    assert_int_equal(steps_left(run, &newest), 3);
    barrier();
    save(run, 6);
    ok(checkpoint_retain(comm, run, 1));
    barrier();
    assert_int_equal(steps_left(run, &newest), 1);
    ok(checkpoint_retain(comm, scratch_path("absent"), 1));
}

/* The newest opens, but a slice of it is damaged: the one before is the last good one, and stays. */
static void test_retention_reads_in_full(void **state) {
    (void)state;
    char run[512], path[640], *found;
    snprintf(run, sizeof run, "%s", new_run("in-full"));
    save(run, 1);
    save(run, 2);
    barrier();
    snprintf(path, sizeof path, "%s/checkpoints/step-00000002/rank-%05d-of-%05d.h5", run, 0, size);
    if (rank == 0) {
        struct h5 *file;
        struct h5_dataset dataset;
        ok(h5_open(path, &file));
        ok(h5_dataset_find(file, "slices/bytes@0", &dataset));
        h5_close(&file);
        flip(path, dataset.offset + 1000);
    }
    barrier();
    ok(checkpoint_retain(comm, run, 1));
    ok(checkpoint_find(comm, run, &found));
    assert_non_null(strstr(found, "step-00000001"));
    free(found);
}

static void test_clean(void **state) {
    (void)state;
    const char *run = new_run("clean");
    int64_t newest;
    save(run, 1);
    barrier();
    if (rank == 0) {
        ok(file_make_directory(scratch_path("clean/checkpoints/step-00000002.tmp-77")));
        ok(file_write(scratch_path("clean/checkpoints/step-00000002.tmp-77/rank-00000-of-00001.h5"), "x", 1));
        ok(file_make_directory(scratch_path("clean/checkpoints/step-00000001.tmp-removed")));
        ok(file_make_directory(scratch_path("clean/checkpoints/step-x")));
        ok(file_make_directory(scratch_path("clean/checkpoints/step-0000000009")));
    }
    barrier();
    assert_int_equal(steps_left(run, &newest), 1);
    barrier();
    ok(checkpoint_clean(comm, run));
    barrier();
    assert_int_equal(entries(run), 4); /* step 1, latest, and two that are not ours */
    ok(checkpoint_clean(comm, scratch_path("absent")));
}

/* One rank's disk is full: all fail with its message, nothing of the new one stays, the old one is good, and when there
 * is room again saving works. */
static void test_disk_full(void **state) {
    (void)state;
    static const rlim_t limits[] = {0, 100, 5000, 40000, 700000};
    const char *run = new_run("full");
    char *found;
    struct rlimit before;
    save(run, 1);
    getrlimit(RLIMIT_FSIZE, &before);
    for (int who = 0; who < size; who++) {
        for (int l = 0; l < 5; l++) {
            enum status status;
            if (limits[l] * (rlim_t)size > 1000003) continue;
            barrier();
            struct rlimit small = {limits[l], before.rlim_max};
            if (rank == who) setrlimit(RLIMIT_FSIZE, &small);
            (void)save_at(run, 2, &status);
            if (rank == who) setrlimit(RLIMIT_FSIZE, &before);
            if (status != STATUS_IO || !strstr(error_message(), "step-00000002")) {
                fail_msg("rank %d: full at %d bytes on rank %d: expected an i/o failure, found %s: \"%s\"", rank,
                         (int)limits[l], who, status_name(status), error_message());
            }
            if (rank != who) {
                char begin[32];
                snprintf(begin, sizeof begin, "rank %d: ", who);
                assert_int_equal(strncmp(error_message(), begin, strlen(begin)), 0);
            }
            error_clear();
            barrier();
            assert_int_equal(entries(run), 2); /* step 1 and latest */
        }
    }
    ok(checkpoint_find(comm, run, &found));
    check_content(found, 1);
    free(found);
    save(run, 2);
    ok(checkpoint_find(comm, run, &found));
    check_content(found, 2);
    free(found);
}

static int share_scratch(void **state) {
    int made = rank == 0 ? scratch_make(state) : 0;
    if (comm_agree(comm, made == 0 ? STATUS_OK : STATUS_FAILED) != STATUS_OK) return -1;
    return comm_broadcast(comm, tensor_1d(scratch, DTYPE_U8, sizeof scratch), 0) == STATUS_OK ? 0 : -1;
}

static int drop_scratch(void **state) {
    if (comm_barrier(comm) != STATUS_OK) return -1;
    return rank == 0 ? scratch_remove(state) : 0;
}

int main(int argc, char **argv) {
    if (comm_open(&(struct comm_options){.deadline_s = 60}, &comm) != STATUS_OK) {
        fprintf(stderr, "%s\n", error_message());
        return 1;
    }
    rank = comm_rank(comm);
    size = comm_size(comm);
    /* For check_h5py.py. */
    if (argc == 4 && strcmp(argv[1], "--write") == 0) {
        enum status status;
        (void)save_at(argv[2], atoll(argv[3]), &status);
        KEEP_FIRST(status, comm_close(&comm));
        return status != STATUS_OK;
    }
    signal(SIGXFSZ, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_other_rank_counts),
        cmocka_unit_test(test_reader_refuses),
        cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_retention),
        cmocka_unit_test(test_retention_reads_in_full),
        cmocka_unit_test(test_clean),
        cmocka_unit_test(test_disk_full),
    };
    int failures = cmocka_run_group_tests(tests, share_scratch, drop_scratch);
    return comm_close(&comm) != STATUS_OK || failures;
}
