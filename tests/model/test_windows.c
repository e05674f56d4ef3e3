/* Windows over shards: every token counts once, and windows hold what a plain reading of the shard says. */
#include "support/check.h"
#include "support/scratch.h"

#include "base/memory.h"
#include "eval/windows.h"

#include <string.h>

enum { DOCUMENTS = 6 };

static const struct {
    const char *name;
    int documents[DOCUMENTS]; /* their lengths; 0 ends the list */
    int length, stride;
    bool joined, each;
} rows[] = {
    {"one document, exact", {13}, 4, 4, false, false},
    {"one document, a rest", {15}, 4, 4, false, false},
    {"shorter than a window", {5}, 64, 64, false, false},
    {"two tokens", {2}, 8, 8, false, false},
    {"T = 1", {6, 3}, 1, 1, false, false},
    {"documents", {5, 1, 9, 2, 30}, 7, 7, false, false},
    {"documents joined", {5, 1, 9, 2, 30}, 7, 7, true, false},
    {"documents by themselves", {5, 1, 9, 2, 30}, 7, 7, false, true},
    {"strided", {40}, 8, 3, false, false},
    {"strided by one", {21}, 8, 1, false, false},
    {"strided over documents", {11, 7, 22}, 8, 5, false, false},
    {"strided, joined", {11, 7, 22}, 8, 5, true, false},
    {"strided, by themselves", {11, 7, 22}, 8, 5, false, true},
};

/* Token i has id i: ids tell where they come from. */
static int write_shard(const char *path, const int *documents, uint64_t tokenizer) {
    struct shard_info info = {
        .vocabulary = 1000, .end_of_text = -1, .tokenizer_name = "test", .tokenizer_hash = tokenizer};
    struct shard_writer *writer = NULL;
    uint32_t next = 0;
    CHECK_OK(shard_writer_open(path, &info, &writer));
    for (int d = 0; d < DOCUMENTS && documents[d]; d++) {
        for (int i = 0; i < documents[d]; i++, next++) CHECK_OK(shard_writer_append(writer, &next, 1, i == 0));
    }
    CHECK_OK(shard_writer_close(&writer));
    return (int)next;
}

static int document_start(const int *documents, int token) {
    int start = 0;
    for (int d = 0; start + documents[d] <= token; d++) start += documents[d];
    return start;
}

static void check_row(size_t r) {
    const char *name = rows[r].name, *path = scratch_path("windows.h5");
    int tokens = write_shard(path, rows[r].documents, 1), length = rows[r].length;
    struct windows_options options = {
        .length = length, .stride = rows[r].stride, .joined = rows[r].joined, .documents = rows[r].each};
    struct windows windows;
    int32_t ids[64], targets[64], start[64];
    int counted[128] = {0};
    CHECK_OK(windows_open(&path, 1, &options, &windows));
    assert_int_equal(windows_vocabulary(&windows), 1000);
    for (int64_t w = 0; w <= windows.count; w++) { /* one past the last: padding */
        windows_read(&windows, w, ids, targets, start);
        int64_t inputs = w < windows.count ? windows.windows[w].inputs : 0;
        for (int i = 0; i < length; i++) {
            if (i >= inputs) {
                if (targets[i] != -1 || start[i] != inputs) fail_msg("%s: window %d: padding at %d", name, (int)w, i);
                continue;
            }
            int first = ids[0], document = rows[r].joined ? 0 : document_start(rows[r].documents, ids[i]);
            int begins = document > first ? document - first : 0;
            if (ids[i] != first + i)
                fail_msg("%s: window %d, %d: expected id %d, found %d", name, (int)w, i, first + i, ids[i]);
            if (start[i] != begins)
                fail_msg("%s: window %d, %d: expected start %d, found %d", name, (int)w, i, begins, start[i]);
            if (targets[i] < 0) continue;
            if (targets[i] != ids[i] + 1) fail_msg("%s: window %d, %d: target %d", name, (int)w, i, targets[i]);
            counted[targets[i]]++;
        }
    }
    for (int t = 0; t < tokens; t++) {
        bool first = rows[r].joined ? t == 0 : document_start(rows[r].documents, t) == t;
        if (counted[t] != !first) fail_msg("%s: token %d counted %d times", name, t, counted[t]);
    }
    windows_close(&windows);
    windows_close(&windows);
}

static void test_coverage(void **state) {
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) check_row(r);
}

static void test_thinning(void **state) {
    (void)state;
    static const int document[DOCUMENTS] = {101};
    const char *path = scratch_path("thin.h5");
    struct windows_options options = {.length = 10, .stride = 10, .sequences = 3};
    struct windows windows;
    write_shard(path, document, 1);
    CHECK_OK(windows_open(&path, 1, &options, &windows));
    assert_int_equal(windows.count, 3);
    assert_int_equal(windows.windows[0].first, 0);
    assert_int_equal(windows.windows[1].first, 30);
    assert_int_equal(windows.windows[2].first, 60);
    windows_close(&windows);
}

static void test_patterns(void **state) {
    (void)state;
    static const int document[DOCUMENTS] = {11};
    char pattern[512];
    const char *paths[1] = {pattern};
    struct windows_options options = {.length = 10, .stride = 10};
    struct windows windows;
    write_shard(scratch_path("many-0.h5"), document, 1);
    write_shard(scratch_path("many-1.h5"), document, 1);
    snprintf(pattern, sizeof pattern, "%s", scratch_path("many-*.h5"));
    CHECK_OK(windows_open(paths, 1, &options, &windows));
    assert_int_equal(windows.shard_count, 2);
    assert_int_equal(windows.count, 2);
    windows_close(&windows);
    write_shard(scratch_path("many-2.h5"), document, 2);
    assert_int_equal(windows_open(paths, 1, &options, &windows), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "many-2.h5: tokenizer"));
    error_clear();
}

static void test_refusals(void **state) {
    (void)state;
    static const int one[DOCUMENTS] = {1, 1, 1}, some[DOCUMENTS] = {9};
    const char *path = scratch_path("refuse.h5"), *absent = scratch_path("absent.h5"),
               *pattern = scratch_path("absent-*.h5");
    struct windows windows;
    struct windows_options options = {.length = 4, .stride = 4, .documents = true};
    write_shard(path, one, 1);
    CHECK_STATUS(STATUS_FAILED, windows_open(&path, 1, &options, &windows)); /* nothing to predict */
    write_shard(path, some, 1);
    options.stride = 5;
    CHECK_STATUS(STATUS_USAGE, windows_open(&path, 1, &options, &windows));
    options.stride = 0;
    CHECK_STATUS(STATUS_USAGE, windows_open(&path, 1, &options, &windows));
    options = (struct windows_options){.length = 0, .stride = 0};
    CHECK_STATUS(STATUS_USAGE, windows_open(&path, 1, &options, &windows));
    options = (struct windows_options){.length = 4, .stride = 4};
    CHECK_STATUS(STATUS_NOT_FOUND, windows_open(&absent, 1, &options, &windows));
    CHECK_STATUS(STATUS_NOT_FOUND, windows_open(&pattern, 1, &options, &windows));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_coverage), cmocka_unit_test(test_thinning),
                                       cmocka_unit_test(test_patterns), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
