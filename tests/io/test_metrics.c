/* metrics.jsonl, TensorBoard event files, the Prometheus textfile: what is written, read back, cut and repaired.
 *     test_metrics --write DIR     a run and the run that goes on from its step 3, for check_tensorboard.py */
#include "io/events.h"
#include "io/metrics.h"
#include "support/check.h"
#include "support/scratch.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct metrics_record sample(int64_t step, const char *extra) {
    struct metrics_record record = metrics_record_new(step, "distil");
    record.loss = 1.0 / (double)(step + 1);
    record.kl = 0.1;
    record.lr = 3e-4;
    record.tokens_per_s = 21437.25;
    record.memory_bytes = 1 << 30;
    record.phases[0] = (struct metrics_phase){"forward", 0.25};
    record.phases[2] = (struct metrics_phase){"backward", 0.5 + (double)step};
    record.extra = extra;
    return record;
}

static void write_steps(const struct metrics_options *options, int64_t first, int64_t last) {
    struct metrics *metrics;
    CHECK_OK(metrics_open(options, &metrics));
    for (int64_t step = first; step <= last; step++) {
        struct metrics_record record = sample(step, "\"masks\": {\"coefficients\": [0.5, -0.25], \"live\": true}");
        CHECK_OK(metrics_write(metrics, &record));
    }
    CHECK_OK(metrics_sync(metrics));
    CHECK_OK(metrics_close(&metrics));
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */
static void reads_what_it_writes(void **state) {
    (void)state;
    const char *directory = scratch_path("plain");
    const struct metrics_options options = {.directory = directory, .resume_step = -1};
    struct metrics *metrics;
    CHECK_OK(metrics_open(&options, &metrics));
    struct metrics_record record = sample(1, "\"masks\": {\"c\": [0.5, nan, -inf]}, \"note\": \"nan \\\" inf\"");
    CHECK_OK(metrics_write(metrics, &record));
    record = metrics_record_new(2, "quoted \"stage\" \n");
    record.loss = NAN;
    record.kl = 0x1.fffffffffffffp-3;
    record.ce = -1e-310;
    record.peak_share = INFINITY;
    CHECK_OK(metrics_write(metrics, &record));
    record = metrics_record_new(0, NULL);
    CHECK_OK(metrics_write(metrics, &record));
    CHECK_OK(metrics_close(&metrics));
    CHECK_OK(metrics_close(&metrics));

    struct metrics_table table;
    char path[600];
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    CHECK_OK(metrics_read(path, &table));
    assert_int_equal(table.line_count, 3);
    assert_string_equal(table.lines[0].stage, "distil");
    assert_string_equal(table.lines[1].stage, "quoted \"stage\" \n");
    assert_string_equal(table.lines[2].stage, "");
    assert_int_equal(table.lines[1].step, 2);
    for (int64_t i = 1; i < table.name_count; i++) assert_true(strcmp(table.names[i - 1], table.names[i]) < 0);
    const struct {
        const char *name;
        double expected[3];
    } columns[] = {{"loss", {0.5, NAN, METRICS_ABSENT}},
                   {"kl", {0.1, 0x1.fffffffffffffp-3, METRICS_ABSENT}},
                   {"ce", {METRICS_ABSENT, -1e-310, METRICS_ABSENT}},
                   {"peak_share", {METRICS_ABSENT, NAN, METRICS_ABSENT}},
                   {"lr", {3e-4, METRICS_ABSENT, METRICS_ABSENT}},
                   {"memory_bytes", {1 << 30, METRICS_ABSENT, METRICS_ABSENT}},
                   {"seconds.forward", {0.25, METRICS_ABSENT, METRICS_ABSENT}},
                   {"seconds.backward", {1.5, METRICS_ABSENT, METRICS_ABSENT}},
                   {"masks.c.0", {0.5, METRICS_ABSENT, METRICS_ABSENT}},
                   {"masks.c.1", {NAN, METRICS_ABSENT, METRICS_ABSENT}},
                   {"masks.c.2", {NAN, METRICS_ABSENT, METRICS_ABSENT}}};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        const double *found = metrics_column(&table, columns[i].name);
        if (!found) fail_msg("%s: no such column", columns[i].name);
        for (int line = 0; line < 3; line++) {
            double expected = columns[i].expected[line];
            if (found[line] != expected && !(isnan(found[line]) && isnan(expected))) {
                fail_msg("%s, line %d: expected %.17g, found %.17g", columns[i].name, line, expected, found[line]);
            }
        }
    }
    assert_null(metrics_column(&table, "note"));
    assert_null(metrics_column(&table, "step"));
    metrics_table_free(&table);
    metrics_table_free(&table);
    CHECK_STATUS(STATUS_NOT_FOUND, metrics_read(scratch_path("none"), &table));
}

static void refuses_extra_that_is_no_json(void **state) {
    (void)state;
    static const char *const wrong[] = {"\"a\"", "\"a\": ", "\"a\": 1}, {", "\"loss\": 2", "a: 1"};
    const struct metrics_options options = {.directory = scratch_path("extra"), .resume_step = -1};
    struct metrics *metrics;
    CHECK_OK(metrics_open(&options, &metrics));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct metrics_record record = sample(1, wrong[i]);
        if (metrics_write(metrics, &record) != STATUS_FAILED) fail_msg("extra %s: expected STATUS_FAILED", wrong[i]);
        assert_non_null(strstr(error_message(), "the line would not be JSON"));
        error_clear();
    }
    CHECK_OK(metrics_close(&metrics));
    int64_t size = -1;
    CHECK_OK(file_size(scratch_path("extra/metrics.jsonl"), &size));
    assert_int_equal(size, 0);
}

/* What stands in the file before a run goes on from a step, and what is left of it. */
#define LINE(step) "{\"step\":" #step ",\"stage\":\"s\"}\n"
static const struct {
    const char *name, *before;
    int64_t resume_step;
    const char *after; /* NULL: refused */
    const char *message;
} cuts[] = {
    {"nothing", "", 5, "", NULL},
    {"all of it counts", LINE(1) LINE(2), 2, LINE(1) LINE(2), NULL},
    {"later steps go", LINE(1) LINE(2) LINE(2) LINE(3) LINE(4), 2, LINE(1) LINE(2) LINE(2), NULL},
    {"from the beginning", LINE(1) LINE(2), 0, "", NULL},
    {"torn last line", LINE(1) "{\"step\":2,\"sta", 9, LINE(1), NULL},
    {"whole last line without its end", LINE(1) "{\"step\":2,\"stage\":\"s\"}", 9, LINE(1), NULL},
    {"last line is no JSON", LINE(1) "{\"step\":2,\"sta\n", 9, LINE(1), NULL},
    {"last line without step", LINE(1) "{\"stage\":\"s\"}\n", 9, LINE(1), NULL},
    {"damage in the middle", LINE(1) "{\"st\n" LINE(3), 9, NULL,
     "line 2: expected a JSON object with step and stage, found {\"st"},
    {"damage beyond the step", LINE(1) LINE(4) "{\"st\n" LINE(5), 3, LINE(1), NULL},
    {"a new run over an old one", LINE(1), -1, NULL,
     "holds the metrics of another run: resume it, or choose another directory"},
    {"a new run over an empty file", "", -1, "", NULL},
};

static void cuts_what_will_be_written_again(void **state) {
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/cut/metrics.jsonl", scratch);
    CHECK_OK(file_make_directory(scratch_path("cut")));
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        const struct metrics_options options = {.directory = scratch_path("cut"), .resume_step = cuts[i].resume_step};
        struct metrics *metrics;
        char *text = NULL;
        size_t length = 0;
        CHECK_OK(file_write(path, cuts[i].before, strlen(cuts[i].before)));
        enum status status = metrics_open(&options, &metrics);
        if ((status != STATUS_OK) != !cuts[i].after || (cuts[i].message && !strstr(error_message(), cuts[i].message))) {
            fail_msg("%s: expected \"%s\", found %s: \"%s\"", cuts[i].name,
                     cuts[i].message ? cuts[i].message : "success", status_name(status), error_message());
        }
        error_clear();
        CHECK_OK(metrics_close(&metrics));
        CHECK_OK(file_read(path, &text, &length));
        const char *expected = cuts[i].after ? cuts[i].after : cuts[i].before;
        if (strcmp(text, expected) != 0)
            fail_msg("%s: expected the file \"%s\", found \"%s\"", cuts[i].name, expected, text);
        free(text);
    }
    /* Blocks that a power cut left unwritten read as zeros. */
    const char zeros[] = LINE(1) "\0\0\0\0\0\0\0";
    const struct metrics_options options = {.directory = scratch_path("cut"), .resume_step = 9};
    struct metrics *metrics;
    int64_t size = 0;
    CHECK_OK(file_write(path, zeros, sizeof zeros));
    CHECK_OK(metrics_open(&options, &metrics));
    CHECK_OK(metrics_close(&metrics));
    CHECK_OK(file_size(path, &size));
    assert_int_equal(size, strlen(zeros));
}

static void survives_kills(void **state) {
    (void)state;
    const char *directory = scratch_path("kills");
    char path[600];
    int64_t last = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    for (int round = 0; round < 20; round++) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            const struct metrics_options options = {.directory = directory, .resume_step = last, .tensorboard = true};
            struct metrics *metrics;
            if (metrics_open(&options, &metrics) != STATUS_OK) _exit(1);
            for (int64_t step = last + 1;; step++) {
                struct metrics_record record = sample(step, NULL);
                if (metrics_write(metrics, &record) != STATUS_OK) _exit(1);
            }
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000 + round * 700000}, NULL);
        kill(child, SIGKILL);
        int result = 0;
        waitpid(child, &result, 0);
        assert_true(WIFSIGNALED(result));
        if (!file_exists(path)) continue; /* killed before it began */
        struct metrics_table table;
        CHECK_OK(metrics_read(path, &table));
        for (int64_t i = 0; i < table.line_count; i++) assert_int_equal(table.lines[i].step, i + 1);
        last = table.line_count * 2 / 3;
        metrics_table_free(&table);
    }
    assert_true(last > 0);
}

static void reports_a_full_disk(void **state) {
    (void)state;
    CHECK_OK(file_make_directory(scratch_path("full")));
    assert_int_equal(symlink("/dev/full", scratch_path("full/metrics.jsonl")), 0);
    const struct metrics_options options = {.directory = scratch_path("full"), .resume_step = -1};
    struct metrics *metrics;
    CHECK_OK(metrics_open(&options, &metrics));
    struct metrics_record record = sample(1, NULL);
    assert_int_equal(metrics_write(metrics, &record), STATUS_IO);
    assert_non_null(strstr(error_message(), "No space left"));
    error_clear();
    (void)metrics_close(&metrics); /* a device cannot be flushed: that fails as well */
    error_clear();
    const struct metrics_options nowhere = {.directory = "/proc/none", .resume_step = -1};
    CHECK_STATUS(STATUS_NOT_FOUND, metrics_open(&nowhere, &metrics));
    assert_null(metrics);
}

/* ---- Prometheus ----------------------------------------------------------------------------------------------------
 */
static void writes_a_textfile(void **state) {
    (void)state;
    const char *path = scratch_path("squint.prom");
    const struct metrics_options options = {.directory = scratch_path("prom"), .resume_step = -1, .prometheus = path};
    char *text = NULL;
    size_t length = 0;
    write_steps(&options, 1, 7);
    CHECK_OK(file_read(path, &text, &length));
    char expected[700];
    snprintf(expected, sizeof expected, "# TYPE squint_step gauge\nsquint_step{run=\"%s\",stage=\"distil\"} 7\n",
             scratch_path("prom"));
    assert_true(strncmp(text, expected, strlen(expected)) == 0); /* the newest, although the period was not over */
    assert_non_null(strstr(text, "squint_seconds_backward{"));
    assert_non_null(strstr(text, "squint_masks_coefficients_1{"));
    assert_non_null(strstr(text, "\"} -0.25\n"));
    free(text);
}

static void escapes_and_sorts_out_duplicates(void **state) {
    (void)state;
    const char *path = scratch_path("odd.prom");
    const struct metrics_options options = {.directory = scratch_path("odd"), .resume_step = -1, .prometheus = path};
    struct metrics *metrics;
    char *text = NULL;
    size_t length = 0;
    CHECK_OK(metrics_open(&options, &metrics));
    struct metrics_record record = metrics_record_new(1, "a\"b\\c\nd");
    record.extra = "\"x\": {\"y\": 1}, \"x_y\": 2, \"z\": null";
    CHECK_OK(metrics_write(metrics, &record));
    CHECK_OK(metrics_close(&metrics));
    CHECK_OK(file_read(path, &text, &length));
    assert_non_null(strstr(text, "stage=\"a\\\"b\\\\c\\nd\"} 1\n"));
    const char *first = strstr(text, "squint_x_y{");
    assert_non_null(first);
    assert_null(strstr(first + 1, "squint_x_y{"));
    assert_non_null(strstr(text, "} NaN\n"));
    free(text);
}

/* ---- event files ---------------------------------------------------------------------------------------------------
 */
static void has_the_right_crc(void **state) {
    (void)state;
    const unsigned char zeros[32] = {0};
    unsigned char ones[32], ascending[32];
    for (int i = 0; i < 32; i++) ascending[i] = (unsigned char)i;
    memset(ones, 255, sizeof ones);
    assert_int_equal(events_crc32c("", 0), 0);
    assert_int_equal(events_crc32c("123456789", 9), 0xe3069283); /* RFC 3720, B.4 and the usual check value */
    assert_int_equal(events_crc32c(zeros, 32), 0x8a9136aa);
    assert_int_equal(events_crc32c(ones, 32), 0x62a8ab43);
    assert_int_equal(events_crc32c(ascending, 32), 0x46dd794e);
}

static uint64_t little(const unsigned char *bytes, int count) {
    uint64_t value = 0;
    for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

static uint32_t mask(uint32_t crc) {
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void frames_every_event(void **state) {
    (void)state;
    struct events *events;
    const struct events_scalar scalars[] = {{"loss", 0.5}, {"seconds/forward", NAN}};
    CHECK_OK(events_open(scratch_path("events"), 1ll << 40, &events));
    CHECK_OK(events_write(events, 300, 1.5, scalars, 2));
    CHECK_OK(events_write(events, -1, 0, scalars, 0));
    CHECK_OK(events_close(&events));
    CHECK_OK(events_close(&events));
    char **paths = NULL, *text = NULL;
    size_t count = 0, length = 0, place = 0;
    CHECK_OK(file_glob(scratch_path("events/events.out.tfevents.*"), &paths, &count));
    assert_int_equal(count, 1);
    CHECK_OK(file_read(paths[0], &text, &length));
    const unsigned char *bytes = (const unsigned char *)text;
    int records = 0;
    for (; place < length; records++) {
        size_t payload = (size_t)little(bytes + place, 8);
        assert_int_equal(little(bytes + place + 8, 4), mask(events_crc32c(bytes + place, 8)));
        assert_int_equal(little(bytes + place + 12 + payload, 4), mask(events_crc32c(bytes + place + 12, payload)));
        if (records == 2) { /* wall time 1.5, step 300, loss 0.5, NaN */
            static const unsigned char expected[] = {9,  0,  0,  0, 0,   0,   0,   0xf8, 0x3f, 16, 0xac, 2, 42,  37,
                                                     10, 11, 10, 4, 'l', 'o', 's', 's',  21,   0,  0,    0, 0x3f};
            assert_memory_equal(bytes + place + 12, expected, sizeof expected);
        }
        place += payload + 16;
    }
    assert_int_equal(place, length);
    assert_int_equal(records, 4);
    free(text);
    file_free_list(paths, count);
    CHECK_STATUS(STATUS_NOT_FOUND, events_open("/proc/none", -1, &events));
    assert_null(events);
}

/* A run of seven steps that goes on from the third to the fifth. */
static void write_two_lives(const char *directory) {
    struct metrics_options options = {.directory = directory, .resume_step = -1, .tensorboard = true};
    write_steps(&options, 0, 7);
    options.resume_step = 3;
    write_steps(&options, 4, 5);
}

static void goes_on_from_a_step(void **state) {
    (void)state;
    struct metrics_table table;
    write_two_lives(scratch_path("lives"));
    CHECK_OK(metrics_read(scratch_path("lives/metrics.jsonl"), &table));
    assert_int_equal(table.line_count, 6);
    for (int64_t i = 0; i < 6; i++) assert_int_equal(table.lines[i].step, i);
    metrics_table_free(&table);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        write_two_lives(argv[2]);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_it_writes),
        cmocka_unit_test(refuses_extra_that_is_no_json),
        cmocka_unit_test(cuts_what_will_be_written_again),
        cmocka_unit_test(survives_kills),
        cmocka_unit_test(reports_a_full_disk),
        cmocka_unit_test(writes_a_textfile),
        cmocka_unit_test(escapes_and_sorts_out_duplicates),
        cmocka_unit_test(has_the_right_crc),
        cmocka_unit_test(frames_every_event),
        cmocka_unit_test(goes_on_from_a_step),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
