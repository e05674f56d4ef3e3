/* Every allocation on the way fails once: the call says so (or does without), nothing leaks, and nothing is written.
 * Linked with --wrap for the four ways in which the sources allocate. */
#include "base/file.h"
#include "data-prep/bpe_train.h"
#include "data-prep/tokenizer.h"
#include "support/tokenizer_files.h"

static long allowed = -1; /* allocations until one fails; -1: none does */

static bool fails(void) {
    return allowed >= 0 && allowed-- == 0;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *block, size_t bytes);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t bytes) {
    return fails() ? NULL : __real_malloc(bytes);
}
void *__wrap_calloc(size_t count, size_t bytes) {
    return fails() ? NULL : __real_calloc(count, bytes);
}
void *__wrap_realloc(void *block, size_t bytes) {
    return fails() ? NULL : __real_realloc(block, bytes);
}
char *__wrap_strdup(const char *text) {
    return fails() ? NULL : __real_strdup(text);
}

static char text[6000];

static enum status use(const char *directory) {
    struct tokenizer *tokenizer = NULL;
    struct token_buffer ids = {0};
    char *back = NULL, *one = NULL;
    size_t length = 0, one_length = 0;
    enum status status = STATUS_OK;
    TRY_GOTO(done, tokenizer_open(directory, &tokenizer));
    TRY_GOTO(done, tokenizer_encode(tokenizer, text, sizeof text, true, &ids));
    TRY_GOTO(done, tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back, &length));
    TRY_GOTO(done, tokenizer_decode_one(tokenizer, ids.ids[0], &one, &one_length));
done:
    free(back);
    free(one);
    token_buffer_free(&ids);
    tokenizer_close(&tokenizer);
    return status;
}

static const char byte_level[] =
    "{\"added_tokens\":[{\"id\":5,\"content\":\"the\",\"special\":false,\"normalized\":true}],\"pre_tokenizer\":{"
    "\"type\":"
    "\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"ByteLevel\"}]},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"ignore_merges\":true,\"vocab\":{"
    "\"a\":0,"
    "\"b\":1,\"ab\":2,\"\\u0120\":3,\"\\u0120a\":4},\"merges\":[\"a b\"]}}";
static const char llama[] =
    "{\"added_tokens\":[{\"id\":5,\"content\":\"the\",\"special\":false,\"normalized\":true}],\"normalizer\":{\"type\":"
    "\"Replace\",\"pattern\":{\"String\":\"b\"},\"content\":\"a\"},\"pre_tokenizer\":{\"type\":\"Metaspace\","
    "\"replacement\":"
    "\"\\u2581\"},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
    "\"\\u2581\"},"
    "\"content\":\" \"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}]},\"model\":"
    "{\"vocab\":{\"a\":0,\"\\u2581\":1,\"\\u2581a\":2,\"aa\":3},\"merges\":[\"\\u2581 a\",\"a a\"]}}";

static void using(void **state) {
    (void)state;
    const char *const files[] = {byte_level, llama};
    for (size_t i = 0; i < sizeof text; i++) text[i] = "a b ab  the aab"[i < 3000 ? 0 : i * i % 15];
    for (int row = 0; row < 2; row++) {
        struct folder folder = folder_new();
        folder_file(&folder, "tokenizer.json", files[row], strlen(files[row]));
        enum status status = STATUS_FAILED;
        long step = 0;
        for (; step < 5000 && status != STATUS_OK; step++) {
            error_clear();
            allowed = step;
            status = use(folder.path);
            bool failed = allowed == -1;
            allowed = -1;
            if (failed && status != STATUS_MEMORY && status != STATUS_OK) {
                fail_msg("file %d, allocation %ld: expected no memory, found %s: %s", row, step, status_name(status),
                         error_message());
            }
            if (status == STATUS_MEMORY) assert_non_null(strstr(error_message(), "no memory for"));
            if (status == STATUS_OK && failed) status = STATUS_MEMORY; /* did without: go on */
        }
        assert_int_equal(status, STATUS_OK);
        assert_in_range(step, 30, 5000);
        folder_remove(&folder);
    }
}

static void training(void **state) {
    (void)state;
    struct folder folder = folder_new();
    char input[128], out[128], json[160];
    snprintf(input, sizeof input, "%s/text.txt", folder.path);
    snprintf(out, sizeof out, "%s/out", folder.path);
    snprintf(json, sizeof json, "%s/tokenizer.json", out);
    folder_file(&folder, "text.txt", text, sizeof text);
    const char *inputs[] = {input};
    const struct bpe_train_options options = {inputs, 1, out, 262, 2};
    enum status status = STATUS_FAILED;
    long step = 0;
    json_set_alloc_funcs(__wrap_malloc, free); /* what is written is made with jansson */
    for (; step < 20000 && status != STATUS_OK; step++) {
        error_clear();
        allowed = step;
        status = bpe_train(&options);
        bool failed = allowed == -1;
        allowed = -1;
        if (status != STATUS_OK && file_exists(json)) {
            fail_msg("allocation %ld: a failed training wrote %s", step, json);
        }
        if (failed && status == STATUS_OK) {
            fail_msg("allocation %ld failed, and training went on", step);
        }
    }
    assert_int_equal(status, STATUS_OK);
    assert_in_range(step, 1000, 20000);
    assert_true(file_exists(json));
    folder_remove(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(using), cmocka_unit_test(training)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
