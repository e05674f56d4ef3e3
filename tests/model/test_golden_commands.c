/* The program itself against numbers that others computed: squint logits and squint generate on the trained models of
 * $SQUINT_DATA (golden.json) and logits on the random models that transformers wrote (tests/model/goldens).
 * The trained models' tests skip where $SQUINT_DATA is absent. $SQUINT_OPTIONS are added to every command line, such as
 * another device: then bf16 is looked at too. */
#include "support/check.h"
#include "support/scratch.h"

#include "io/h5.h"
#include "io/safetensors.h"

#include <jansson.h>
#include <math.h>
#include <string.h>
#include <sys/wait.h>

static char data_path[512];

static const char *data(const char *name) {
    const char *base = getenv("SQUINT_DATA");
    snprintf(data_path, sizeof data_path, "%s/%s", base ? base : "", name);
    return data_path;
}

static void need_data(const char *name) {
    if (!getenv("SQUINT_DATA") || !file_exists(data(name))) CHECK_SKIP("%s is not there; set SQUINT_DATA", data(name));
}

static json_t *read_golden(const char *folder) {
    char name[256];
    json_error_t error;
    snprintf(name, sizeof name, "%s/golden.json", folder);
    json_t *golden = json_load_file(data(name), 0, &error);
    if (!golden) fail_msg("%s: %s", data(name), error.text);
    return golden;
}

/* Runs `$SQUINT …` and returns its exit code; standard error goes to SCRATCH/stderr. */
static int squint(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int squint(const char *format, ...) {
    char arguments[2048], command[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    const char *program = getenv("SQUINT"), *options = getenv("SQUINT_OPTIONS");
    snprintf(command, sizeof command, "%s %s %s 2>%s", program ? program : "squint", arguments, options ? options : "",
             scratch_path("stderr"));
    int result = system(command);
    return result == -1 ? -1 : WEXITSTATUS(result);
}

static void show_failure(const char *what) {
    char *text = NULL;
    size_t length = 0;
    if (file_read(scratch_path("stderr"), &text, &length) != STATUS_OK) text = NULL;
    print_message("%s", text ? text : "");
    free(text);
    fail_msg("%s failed", what);
}

/* Log-probabilities [rows,length,vocabulary] that the program finds for ids. */
static float *logprobs_of(const char *model, const char *precision, const char *ids, int64_t rows, int64_t length,
                          int64_t *vocabulary) {
    const char *in = scratch_path("ids.json"), *out = scratch_path("logprobs.h5");
    struct h5 *file = NULL;
    struct h5_dataset dataset;
    float *values = NULL;
    CHECK_OK(file_write(in, ids, strlen(ids)));
    CHECK_OK(file_remove_tree(out));
    if (squint("logits --model %s --precision %s --ids %s --out %s", model, precision, in, out) != 0)
        show_failure("squint logits");
    CHECK_OK(h5_open(out, &file));
    CHECK_OK(h5_dataset_find(file, "logprobs", &dataset));
    assert_int_equal(dataset.dtype, DTYPE_F32);
    assert_int_equal(dataset.rank, 3);
    assert_int_equal(dataset.shape[0], rows);
    assert_int_equal(dataset.shape[1], length);
    *vocabulary = dataset.shape[2];
    values = malloc((size_t)dataset.count * sizeof *values);
    CHECK_OK(h5_read(file, "logprobs", DTYPE_F32, 0, dataset.count, values));
    h5_close(&file);
    return values;
}

/* {"ids": …} as text. */
static char *ids_text(json_t *ids) {
    json_t *root = json_object();
    json_object_set(root, "ids", ids);
    char *text = json_dumps(root, 0);
    json_decref(root);
    return text;
}

static double number_at(const json_t *list, size_t index) {
    return json_number_value(json_array_get(list, index));
}

static void check_value(const char *what, int64_t row, int64_t id, double expected, double found, double *worst) {
    double error = fabs(expected - found);
    if (error > *worst) *worst = error;
    if (!(error <= 1e-4))
        fail_msg("%s: row %d, id %d: expected %.7f, found %.7f", what, (int)row, (int)id, expected, found);
}

static void test_stories(void **state) {
    (void)state;
    need_data("stories260K/golden.json");
    json_t *golden = read_golden("stories260K"), *ids = json_object_get(golden, "ids"), *rows = json_array();
    json_array_append(rows, ids);
    char *text = ids_text(rows);
    int64_t vocabulary = 0, length = (int64_t)json_array_size(ids);
    double worst = 0;
    float *found = logprobs_of(data("stories260K"), "fp32", text, 1, length, &vocabulary);
    const json_t *first = json_object_get(golden, "first_rows_logprob"),
                 *next = json_object_get(golden, "logprob_of_next");
    assert_int_equal(vocabulary, 512);
    for (size_t t = 0; t < json_array_size(first); t++) {
        const json_t *row = json_array_get(first, t);
        assert_int_equal(json_array_size(row), vocabulary);
        for (size_t v = 0; v < json_array_size(row); v++) {
            check_value("stories260K", (int64_t)t, (int64_t)v, number_at(row, v),
                        (double)found[(int64_t)t * vocabulary + (int64_t)v], &worst);
        }
    }
    for (size_t t = 0; t < json_array_size(next); t++) {
        int64_t id = json_integer_value(json_array_get(ids, t + 1));
        check_value("stories260K next", (int64_t)t, id, number_at(next, t), (double)found[(int64_t)t * vocabulary + id],
                    &worst);
    }
    print_message("stories260K: largest difference of log-probabilities %.2e\n", worst);
    free(found);
    free(text);
    json_decref(rows);
    json_decref(golden);
}

/* In bf16: the mean divergence of the rows that are known whole. */
static void test_stories_bf16(void **state) {
    (void)state;
    need_data("stories260K/golden.json");
    json_t *golden = read_golden("stories260K"), *ids = json_object_get(golden, "ids"), *rows = json_array();
    const json_t *known = json_object_get(golden, "first_rows_logprob");
    json_array_append(rows, ids);
    char *text = ids_text(rows);
    int64_t vocabulary = 0;
    double divergence = 0;
    float *found = logprobs_of(data("stories260K"), "bf16", text, 1, (int64_t)json_array_size(ids), &vocabulary);
    const size_t count = json_array_size(known);
    for (size_t t = 0; t < count; t++) {
        const json_t *row = json_array_get(known, t);
        for (size_t v = 0; v < json_array_size(row); v++) {
            const double expected = number_at(row, v);
            divergence += exp(expected) * (expected - (double)found[t * (size_t)vocabulary + v]);
        }
    }
    print_message("stories260K in bf16: mean divergence %.2e\n", divergence / (double)count);
    assert_true(divergence / (double)count <= 1e-3);
    free(found);
    free(text);
    json_decref(rows);
    json_decref(golden);
}

/* To the letter, from the cache and without it. */
static void test_text(void **state) {
    (void)state;
    need_data("stories260K/golden.json");
    static const char *const paths[] = {"", "--parallel"};
    json_t *golden = read_golden("stories260K");
    const char *expected = json_string_value(json_object_get(golden, "text"));
    size_t tokens = json_array_size(json_object_get(golden, "ids")) - 1;
    for (int i = 0; i < 2; i++) {
        const char *out = scratch_path("text");
        char *found = NULL;
        size_t length = 0;
        /* Token by token without a cache takes a device that is executed on the host too long. */
        if (i == 1 && getenv("SQUINT_OPTIONS")) break;
        if (squint("generate --model %s --prompt '' --tokens %zu %s >%s", data("stories260K"), tokens, paths[i], out) !=
            0) {
            show_failure("squint generate");
        }
        CHECK_OK(file_read(out, &found, &length));
        assert_true(length > 0 && found[length - 1] == '\n');
        found[length - 1] = '\0';
        assert_string_equal(found, expected);
        free(found);
    }
    json_decref(golden);
}

static void log_softmax(const double *x, int64_t count, double *y) {
    double most = -INFINITY, sum = 0;
    for (int64_t v = 0; v < count; v++) most = fmax(most, x[v]);
    for (int64_t v = 0; v < count; v++) sum += exp(x[v] - most);
    for (int64_t v = 0; v < count; v++) y[v] = x[v] - most - log(sum);
}

static void test_sort(void **state) {
    (void)state;
    need_data("gpt-nano-sort/golden.json");
    json_t *golden = read_golden("gpt-nano-sort"), *ids = json_object_get(golden, "ids");
    char *text = ids_text(ids);
    int64_t rows = (int64_t)json_array_size(ids), length = (int64_t)json_array_size(json_array_get(ids, 0)),
            vocabulary = 0;
    double worst = 0, logits[8], expected[8];
    float *found = logprobs_of(data("gpt-nano-sort"), "fp32", text, rows, length, &vocabulary);
    assert_int_equal(vocabulary, 3);
    for (int64_t r = 0; r < rows * length; r++) {
        const json_t *row = json_array_get(json_array_get(json_object_get(golden, "logits"), (size_t)(r / length)),
                                           (size_t)(r % length));
        for (size_t v = 0; v < 3; v++) logits[v] = number_at(row, v);
        log_softmax(logits, 3, expected);
        for (int64_t v = 0; v < 3; v++)
            check_value("gpt-nano-sort", r, v, expected[v], (double)found[r * 3 + v], &worst);
    }
    print_message("gpt-nano-sort: largest difference of log-probabilities %.2e\n", worst);
    free(found);
    free(text);
    json_decref(golden);
}

/* Random models of transformers: GPT-2 and Llama types, tied and untied, grouped heads, scaled rotary positions. */
static void test_random(void **state) {
    (void)state;
    static const char *const models[] = {"gpt2-tied", "gpt2-untied", "llama-gqa", "llama-tied"};
    const char *source = getenv("SQUINT_SOURCE");
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        char folder[512], path[600];
        struct safetensors set;
        snprintf(folder, sizeof folder, "%s/tests/model/goldens/%s", source ? source : ".", models[m]);
        snprintf(path, sizeof path, "%s/golden.safetensors", folder);
        CHECK_OK(safetensors_open(path, &set));
        const struct safetensors_tensor *ids = safetensors_find(&set, "ids"),
                                        *logits = safetensors_find(&set, "logits");
        int64_t rows = ids->shape[0], length = ids->shape[1], v = logits->shape[2], vocabulary = 0;
        json_t *list = json_array();
        for (int64_t r = 0; r < rows; r++) {
            json_t *row = json_array();
            for (int64_t t = 0; t < length; t++) {
                int32_t id;
                memcpy(&id, (const char *)ids->data + (r * length + t) * 4, 4);
                json_array_append_new(row, json_integer(id));
            }
            json_array_append_new(list, row);
        }
        char *text = ids_text(list);
        float *found = logprobs_of(folder, "fp32", text, rows, length, &vocabulary),
              *values = malloc((size_t)logits->count * sizeof *values);
        double *wide = malloc((size_t)v * sizeof *wide), *expected = malloc((size_t)v * sizeof *expected), worst = 0;
        assert_int_equal(vocabulary, v);
        CHECK_OK(safetensors_read(logits, 0, 1, logits->count, values));
        for (int64_t r = 0; r < rows * length; r++) {
            for (int64_t i = 0; i < v; i++) wide[i] = (double)values[r * v + i];
            log_softmax(wide, v, expected);
            for (int64_t i = 0; i < v; i++) check_value(models[m], r, i, expected[i], (double)found[r * v + i], &worst);
        }
        print_message("%s: largest difference of log-probabilities %.2e\n", models[m], worst);
        free(wide);
        free(expected);
        free(values);
        free(found);
        free(text);
        json_decref(list);
        safetensors_close(&set);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stories), cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_sort), cmocka_unit_test(test_random)};
    /* The CPU's bf16 rounds products' inputs only, and not on every CPU. */
    const struct CMUnitTest device[] = {cmocka_unit_test(test_stories_bf16)};
    int failures = cmocka_run_group_tests(tests, scratch_make, scratch_remove);
    if (getenv("SQUINT_OPTIONS")) failures += cmocka_run_group_tests(device, scratch_make, scratch_remove);
    return check_exit(failures);
}
