/* Tokenizers of many shapes against the ids and texts that Hugging Face's tokenizers gave for them (data/
 * tokenizer_cases.json, made by tests/oracles/tokenizer.py), and what the API promises beyond that.
 * One specimen alone: test_tokenizer "name". */
#include "base/file.h"
#include "data-prep/tokenizer.h"
#include "support/tokenizer_files.h"

#include <pthread.h>

static json_t *cases_read(void) {
    char path[PATH_MAX];
    json_error_t fault;
    snprintf(path, sizeof path, "%s/tests/unit/data/tokenizer_cases.json", source_directory());
    json_t *cases = json_load_file(path, 0, &fault);
    if (!cases) fail_msg("%s: %s", path, fault.text);
    return cases;
}

static const char *only; /* one specimen, from the command line */

/* Opens the tokenizer.json that a specimen of the file stands for. */
static struct tokenizer *specimen_open(const json_t *cases, const json_t *specimen) {
    json_t *model = json_deep_copy(
        json_object_get(json_object_get(cases, "models"), json_string_value(json_object_get(specimen, "model"))));
    json_t *root = json_deep_copy(json_object_get(specimen, "shell"));
    json_object_update(model, json_object_get(specimen, "settings"));
    json_object_set_new(root, "model", model);
    struct folder folder = folder_new();
    folder_json(&folder, "tokenizer.json", root);
    struct tokenizer *tokenizer = NULL;
    enum status status = tokenizer_open(folder.path, &tokenizer);
    if (status != STATUS_OK) {
        fail_msg("%s: %s", json_string_value(json_object_get(specimen, "name")), error_message());
    }
    folder_remove(&folder);
    json_decref(root);
    return tokenizer;
}

static int compare_ids(const char *name, const char *what, size_t index, const json_t *expected,
                       const struct token_buffer *found) {
    bool same = json_array_size(expected) == found->count;
    for (size_t i = 0; same && i < found->count; i++) {
        same = json_integer_value(json_array_get(expected, i)) == found->ids[i];
    }
    if (same) return 0;
    char *list = json_dumps(expected, 0);
    fprintf(stderr, "%s, text %zu, %s: expected %s\n  found [", name, index, what, list);
    for (size_t i = 0; i < found->count; i++) fprintf(stderr, "%u, ", found->ids[i]);
    fprintf(stderr, "]\n  run: test_tokenizer \"%s\"\n", name);
    free(list);
    return 1;
}

static int compare_text(const char *name, const char *what, size_t index, const char *expected,
                        const struct tokenizer *tokenizer, const struct token_buffer *ids, bool special) {
    char *text = NULL;
    size_t length = 0;
    assert_int_equal(tokenizer_decode(tokenizer, ids->ids, ids->count, special, &text, &length), STATUS_OK);
    bool same = length == strlen(expected) && memcmp(text, expected, length) == 0;
    if (!same) {
        fprintf(stderr, "%s, text %zu, %s: expected \"%s\", found \"%s\"\n  run: test_tokenizer \"%s\"\n", name, index,
                what, expected, text, name);
    }
    free(text);
    return !same;
}

static int check_case(const char *name, const struct tokenizer *tokenizer, size_t index, const char *text,
                      const json_t *row) {
    struct token_buffer ids = {0};
    int wrong = 0;
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), false, &ids), STATUS_OK);
    wrong += compare_ids(name, "ordinary", index, json_object_get(row, "ids"), &ids);
    wrong +=
        compare_text(name, "ordinary", index, json_string_value(json_object_get(row, "text")), tokenizer, &ids, false);
    ids.count = 0;
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), true, &ids), STATUS_OK);
    const json_t *special = json_object_get(row, "special ids");
    wrong += compare_ids(name, "special", index, special ? special : json_object_get(row, "ids"), &ids);
    if (special) {
        wrong += compare_text(name, "special shown", index, json_string_value(json_object_get(row, "special text")),
                              tokenizer, &ids, true);
        wrong += compare_text(name, "special left out", index,
                              json_string_value(json_object_get(row, "special left out")), tokenizer, &ids, false);
    }
    token_buffer_free(&ids);
    return wrong;
}

static void like_hugging_face(void **state) {
    (void)state;
    json_t *cases = cases_read(), *texts = json_object_get(cases, "texts"), *specimen, *row;
    size_t i, index;
    int wrong = 0, checked = 0;
    json_array_foreach(json_object_get(cases, "tokenizers"), i, specimen) {
        const char *name = json_string_value(json_object_get(specimen, "name"));
        if (only && strcmp(only, name) != 0) continue;
        struct tokenizer *tokenizer = specimen_open(cases, specimen);
        for (int again = 0; again < 2; again++) { /* the second time out of the cache */
            json_array_foreach(json_object_get(specimen, "cases"), index, row) {
                wrong += check_case(name, tokenizer, index, json_string_value(json_array_get(texts, index)), row);
                checked++;
            }
        }
        tokenizer_close(&tokenizer);
    }
    json_decref(cases);
    assert_true(checked > 0);
    assert_int_equal(wrong, 0);
}

static const char small_vocabulary[] = "{\"a\":0,\"b\":1,\"c\":2,\"\\u0120\":3,\"ab\":4,\"abc\":5,\"\\u0120ab\":6,"
                                       "\"<|endoftext|>\":7,\"\\u010a\":9,\"\\u00e9\":10}";
static const char small_merges[] = "#version: 0.2\na b\n\nab c\r\n\xC4\xA0 ab\n";

static struct folder small_pair(const char *config) {
    struct folder folder = folder_new();
    folder_file(&folder, "vocab.json", small_vocabulary, strlen(small_vocabulary));
    folder_file(&folder, "merges.txt", small_merges, strlen(small_merges));
    if (config) folder_file(&folder, "tokenizer_config.json", config, strlen(config));
    return folder;
}

static void expect_ids(const struct tokenizer *tokenizer, const char *text, bool special, const char *expected) {
    struct token_buffer ids = {0};
    char found[256] = "";
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), special, &ids), STATUS_OK);
    for (size_t i = 0; i < ids.count; i++) {
        snprintf(found + strlen(found), sizeof found - strlen(found), i ? " %u" : "%u", ids.ids[i]);
    }
    token_buffer_free(&ids);
    assert_string_equal(found, expected);
}

static void two_files(void **state) {
    (void)state;
    struct folder folder = small_pair(NULL);
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_open(folder.path, &tokenizer), STATUS_OK);
    assert_string_equal(tokenizer_name(tokenizer), strrchr(folder.path, '/') + 1);
    assert_int_equal(tokenizer_vocabulary(tokenizer), 11);
    assert_int_equal(tokenizer_end_of_text(tokenizer), 7);
    assert_int_equal(tokenizer_begin_of_text(tokenizer), 7);
    assert_int_equal(tokenizer_find(tokenizer, "abc"), 5);
    assert_int_equal(tokenizer_find(tokenizer, "abcd"), -1);
    expect_ids(tokenizer, "abc ab b", false, "5 6 3 1");
    expect_ids(tokenizer, "ab<|endoftext|>ab", true, "4 7 4");
    expect_ids(tokenizer, "", true, "");
    expect_ids(tokenizer, "cab\n", false, "2 4 9");
    char *text = NULL;
    size_t length = 0;
    const uint32_t ids[] = {6, 7, 5, 10};
    assert_int_equal(tokenizer_decode(tokenizer, ids, 4, false, &text, &length), STATUS_OK);
    assert_int_equal(length, 7);
    assert_memory_equal(text, " ababc\xE9", 8);
    free(text);
    text = NULL;
    length = 0;
    for (int i = 0; i < 4; i++) assert_int_equal(tokenizer_decode_one(tokenizer, ids[i], &text, &length), STATUS_OK);
    assert_string_equal(text, " ab<|endoftext|>abc\xE9");
    assert_int_equal(tokenizer_decode_one(tokenizer, 8, &text, &length), STATUS_USAGE); /* a hole */
    assert_non_null(strstr(error_message(), "id 8"));
    error_clear();
    free(text);
    const uint32_t beyond = 11;
    assert_int_equal(tokenizer_decode(tokenizer, &beyond, 1, false, &text, &length), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "below 11"));
    error_clear();
    assert_null(text);
    tokenizer_close(&tokenizer);
    assert_null(tokenizer);
    tokenizer_close(&tokenizer);
    folder_remove(&folder);
}

static void config_beside(void **state) {
    (void)state;
    struct folder folder =
        small_pair("{\"add_prefix_space\": true, \"bos_token\": {\"content\": \"b\"}, \"eos_token\": \"c\"}");
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_open(folder.path, &tokenizer), STATUS_OK);
    expect_ids(tokenizer, "ab", false, "6");
    expect_ids(tokenizer, " ab", false, "6");
    assert_int_equal(tokenizer_begin_of_text(tokenizer), 1);
    assert_int_equal(tokenizer_end_of_text(tokenizer), 2);
    tokenizer_close(&tokenizer);
    folder_remove(&folder);
}

/* The hash is of what a tokenizer does, not of how its file is laid out; and it sees every part. */
static void hash_of_meaning(void **state) {
    (void)state;
    static const struct {
        const char *name, *from, *to;
        bool same;
    } rows[] = {
        {"as it is", "", "", true},
        {"white space", "\"model\":", "  \"model\":\n\t", true},
        {"order of keys", "\"a\":0,\"b\":1", "\"b\":1,\"a\":0", true},
        {"merges as pairs", "\"a b\"", "[\"a\",\"b\"]", true},
        {"another id", "\"c\":2", "\"c\":8", false},
        {"another merge", "\"a b\",\"ab c\"", "\"ab c\",\"a b\"", false},
        {"prefix space", "\"add_prefix_space\":false", "\"add_prefix_space\":true", false},
        {"unknown token", "\"unk_token\":null", "\"unk_token\":\"c\"", false},
        {"special or not", "\"special\":true", "\"special\":false", false},
        {"strips", "\"lstrip\":false", "\"lstrip\":true", false},
    };
    static const char whole[] =
        "{\"added_tokens\":[{\"id\":7,\"content\":\"<|endoftext|>\",\"special\":true,\"normalized\":true,\"lstrip\":"
        "false}],"
        "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"unk_token\":null,\"vocab\":%s,\"merges\":"
        "[\"a b\",\"ab c\",\"\\u0120 ab\"]}}";
    struct folder pair = small_pair(NULL);
    struct tokenizer *reference = NULL;
    assert_int_equal(tokenizer_open(pair.path, &reference), STATUS_OK);
    char json[4096];
    snprintf(json, sizeof json, whole, small_vocabulary);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char changed[4096];
        replace_once(json, rows[i].from, rows[i].to, changed, sizeof changed);
        struct folder folder = folder_new();
        struct tokenizer *tokenizer = NULL;
        folder_file(&folder, "tokenizer.json", changed, strlen(changed));
        if (tokenizer_open(folder.path, &tokenizer) != STATUS_OK) fail_msg("%s: %s", rows[i].name, error_message());
        if ((tokenizer_hash(tokenizer) == tokenizer_hash(reference)) != rows[i].same) {
            fail_msg("%s: expected %s hash", rows[i].name, rows[i].same ? "the same" : "another");
        }
        tokenizer_close(&tokenizer);
        folder_remove(&folder);
    }
    tokenizer_close(&reference);
    folder_remove(&pair);
}

/* All 256 bytes, alone and in pairs, come back as they were, whatever is not UTF-8. */
static void any_bytes(void **state) {
    (void)state;
    json_t *cases = cases_read(), *specimen;
    char bytes[2 * 65536];
    for (unsigned i = 0; i < 65536; i++) {
        bytes[2 * i] = (char)(i >> 8);
        bytes[2 * i + 1] = (char)i;
    }
    size_t i;
    json_array_foreach(json_object_get(cases, "tokenizers"), i, specimen) {
        const char *name = json_string_value(json_object_get(specimen, "name"));
        if (strcmp(name, "gpt2") != 0 && strcmp(name, "llama3 split") != 0 && strcmp(name, "llama") != 0) continue;
        struct tokenizer *tokenizer = specimen_open(cases, specimen);
        for (size_t length = 1; length <= sizeof bytes; length = length < 16 ? length + 1 : length * 2) {
            struct token_buffer ids = {0};
            char *text = NULL;
            size_t back = 0;
            assert_int_equal(tokenizer_encode(tokenizer, bytes + sizeof bytes - length, length, false, &ids),
                             STATUS_OK);
            assert_int_equal(tokenizer_decode(tokenizer, ids.ids, ids.count, true, &text, &back), STATUS_OK);
            if (back != length || memcmp(text, bytes + sizeof bytes - length, length) != 0) {
                fail_msg("%s: %zu bytes do not come back", name, length);
            }
            free(text);
            token_buffer_free(&ids);
        }
        tokenizer_close(&tokenizer);
    }
    json_decref(cases);
}

struct job {
    const struct tokenizer *tokenizer;
    const char *text;
    size_t length;
    struct token_buffer ids;
    enum status status;
};

static void *encode_often(void *argument) {
    struct job *job = argument;
    for (int i = 0; i < 50 && job->status == STATUS_OK; i++) {
        job->ids.count = 0;
        job->status = tokenizer_encode(job->tokenizer, job->text, job->length, false, &job->ids);
    }
    return NULL;
}

static void threads_share(void **state) {
    (void)state;
    enum { THREADS = 20 }; /* more than a tokenizer keeps states for */
    json_t *cases = cases_read();
    struct tokenizer *tokenizer = specimen_open(cases, json_array_get(json_object_get(cases, "tokenizers"), 0));
    static char text[THREADS * 400];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)("the house, river's 12 \n"[i * i % 23]);
    pthread_t threads[THREADS];
    struct job jobs[THREADS] = {0};
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){tokenizer, text + 100 * i, 400 + 13 * (size_t)i, {0}, STATUS_OK};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &jobs[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(jobs[i].status, STATUS_OK);
        struct tokenizer *fresh = specimen_open(cases, json_array_get(json_object_get(cases, "tokenizers"), 0));
        struct token_buffer alone = {0};
        assert_int_equal(tokenizer_encode(fresh, jobs[i].text, jobs[i].length, false, &alone), STATUS_OK);
        assert_int_equal(alone.count, jobs[i].ids.count);
        assert_memory_equal(alone.ids, jobs[i].ids.ids, alone.count * sizeof *alone.ids);
        token_buffer_free(&alone);
        token_buffer_free(&jobs[i].ids);
        tokenizer_close(&fresh);
    }
    tokenizer_close(&tokenizer);
    json_decref(cases);
}

int main(int argc, char **argv) {
    only = argc > 1 ? argv[1] : NULL;
    const struct CMUnitTest tests[] = {cmocka_unit_test(like_hugging_face), cmocka_unit_test(two_files),
                                       cmocka_unit_test(config_beside),     cmocka_unit_test(hash_of_meaning),
                                       cmocka_unit_test(any_bytes),         cmocka_unit_test(threads_share)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
