/* Kernels that come in several forms: every form of attention's kernels agrees with the reference; the file that names
 * forms: written, read, refused, not used where it does not belong. */
#include "base/file.h"
#include "eval/tuning.h"
#include "ops/attention_device.h"
#include "simt/simt.h"
#include "support/check.h"
#include "support/scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct attention_case rows[] = {
    {"T 129, D 64, documents", 1, 129, 2, 1, 64, 1, {FULL}, .plain = true, .cuts = {50}},
    {"T 150, D 64, mixture", 1, 150, 2, 2, 64, 2, {WINDOW(40), DILATED(4, 9)}, .coefficients = {{1, 0.5}, {0.5, 0}}},
    {"T 131, D 48", 1, 131, 2, 1, 48, 1, {WINDOW(70)}, .plain = true},
};

static void every_form_agrees(void **state) {
    (void)state;
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table("cuda", deterministic);
        struct tunable tunable;
        for (int form = 1; form < 3; form++) {
            for (int kernel = 0; ops->tunable(ops, kernel, &tunable); kernel++) {
                assert_true(tunable.forms == 3);
                for (size_t n = 0; n < sizeof rows / sizeof *rows; n++)
                    CHECK_OK(ops->set_form(ops, kernel, rows[n].width, rows[n].length, form));
            }
            simt_set_order(form == 1 ? SIMT_REVERSE : SIMT_RANDOM, 3);
            for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) device_attention(ops, &rows[n], n, true);
        }
        ops->close(ops);
    }
}

static void fp32_has_one_form(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda-f32", true);
    struct tunable tunable;
    assert_true(ops->tunable(ops, 0, &tunable));
    assert_int_equal(tunable.forms, 1);
    assert_int_equal(ops->set_form(ops, 0, 64, 100, 1), STATUS_USAGE);
    error_clear();
    ops->close(ops);
}

static void refused(const struct ops *ops, const char *path, const char *text, const char *words) {
    CHECK_OK(file_write(path, text, strlen(text)));
    assert_int_equal(tuning_load(path, ops), STATUS_USAGE);
    if (!strstr(error_message(), words)) fail_msg("expected \"%s\" in: %s", words, error_message());
    error_clear();
}

static void files(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_path("tuning"));
    const int64_t lengths[] = {20}, widths[] = {16};
    const struct tuning_options options = {1, 1, lengths, widths, 1, 1, 1};
    struct tuning_row *measured;
    int64_t count;
    const struct ops *ops = device_table("cuda", false), *single = device_table("cuda-f32", false),
                     *cpu = device_table("cpu", false);
    CHECK_OK(tuning_measure(ops, &options, &measured, &count));
    assert_int_equal(count, 2);
    for (int n = 0; n < 2; n++) assert_true(measured[n].forms == 3 && measured[n].seconds[2] > 0);

    measured[1].best.form = 2;
    const struct tuning_entry entries[] = {measured[0].best, measured[1].best};
    CHECK_OK(tuning_save(path, ops, entries, 2));
    CHECK_OK(tuning_load(path, ops));
    CHECK_OK(tuning_load(path, single)); /* other forms than it has are passed over */
    CHECK_OK(tuning_load(path, cpu));
    refused(ops, path, "attention_keys 64 128 1\n", ":1: expected a line `device NAME` first");
    refused(ops, path, "device cuda: host fibers\n# a comment\nattention_keys 64\n",
            ":3: expected `kernel width length form`");
    refused(ops, path, "device cuda: host fibers\nattention_lock 64 128 1\n",
            ":2: kernel attention_lock: this program has none");
    refused(ops, path, "device cuda: host fibers\nattention_keys 64 128 3\n",
            ":2: kernel 1, width 64, length 128, form 3");
    static const char other[] = "device cuda: NVIDIA H200\nattention_keys 64 128 9\n";
    CHECK_OK(file_write(path, other, strlen(other)));
    CHECK_OK(tuning_load(path, ops)); /* not used, so not looked at */
    setenv("SQUINT_TUNING", path, 1);
    CHECK_OK(tuning_apply(ops, NULL));
    refused(ops, path, "device cuda: host fibers\nnothing\n", ":2: expected");
    CHECK_OK(tuning_apply(ops, &(struct ops_options){.deterministic = true}));
    assert_int_equal(tuning_apply(ops, NULL), STATUS_USAGE);
    error_clear();
    unsetenv("SQUINT_TUNING");
    struct tuning_row *none;
    assert_int_equal(tuning_measure(cpu, &options, &none, &count), STATUS_USAGE);
    error_clear();
    free(measured);
    ops->close(ops);
    single->close(single);
    cpu->close(cpu);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_form_agrees), cmocka_unit_test(fp32_has_one_form),
                                       cmocka_unit_test(files)};
    return check_exit(cmocka_run_group_tests(tests, scratch_make, scratch_remove));
}
