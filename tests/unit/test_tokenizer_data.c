/* GPT-2's own tokenizer and a Llama-type one on real text: known counts, known ids, and the sums that two other
 * tokenizers gave (tests/oracles/tokenizer.py goldens). Skips without $SQUINT_DATA. */
#include "base/file.h"
#include "data-prep/split.h"
#include "data-prep/tokenizer.h"
#include "data-prep/unicode.h"
#include "support/tokenizer_files.h"

#include <zstd.h>

static const char *data;
static struct tokenizer *gpt2;

static char *data_path(const char *name) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", data, name);
    return path;
}

/* A file's contents, unpacked when its name ends in .zst. */
static char *data_read(const char *name, size_t *length) {
    char *bytes = NULL;
    if (file_read(data_path(name), &bytes, length) != STATUS_OK) fail_msg("%s", error_message());
    if (strcmp(name + strlen(name) - 4, ".zst") != 0) return bytes;
    unsigned long long size = ZSTD_getFrameContentSize(bytes, *length);
    size_t room = size < ((unsigned long long)1 << 32) ? (size_t)size : (size_t)1 << 26;
    char *text = malloc(room + 1);
    assert_non_null(text);
    size_t unpacked = ZSTD_decompress(text, room, bytes, *length);
    assert_false(ZSTD_isError(unpacked));
    text[unpacked] = '\0';
    *length = unpacked;
    free(bytes);
    return text;
}

static struct token_buffer encode(const struct tokenizer *tokenizer, const char *text, size_t length) {
    struct token_buffer ids = {0};
    assert_int_equal(tokenizer_encode(tokenizer, text, length, false, &ids), STATUS_OK);
    return ids;
}

static void expect_back(const char *text, size_t length, const struct token_buffer *ids) {
    char *back = NULL;
    size_t back_length = 0;
    assert_int_equal(tokenizer_decode(gpt2, ids->ids, ids->count, false, &back, &back_length), STATUS_OK);
    assert_int_equal(back_length, length);
    assert_memory_equal(back, text, length);
    free(back);
}

static void known_counts(void **state) {
    (void)state;
    static const struct {
        const char *file;
        size_t ids;
    } rows[] = {{"wikitext-2/wiki.test.raw", 286221},
                {"wikitext-2/wiki.valid.raw", 249887},
                {"wikitext-2/wiki.train.tokens.zst", 2448382}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t length;
        char *text = data_read(rows[i].file, &length);
        struct token_buffer ids = encode(gpt2, text, length);
        if (ids.count != rows[i].ids) fail_msg("%s: expected %zu ids, found %zu", rows[i].file, rows[i].ids, ids.count);
        expect_back(text, length, &ids);
        token_buffer_free(&ids);
        free(text);
    }
}

/* The usual protocol of the datasets library: a row is a line with its line feed, or nothing when the line is blank;
 * the rows are joined by blank lines. */
static void joined_rows(void **state) {
    (void)state;
    size_t length, used = 0;
    char *text = data_read("wikitext-2/wiki.test.raw", &length), *joined = malloc(3 * length);
    for (char *line = text; line < text + length;) {
        char *end = memchr(line, '\n', (size_t)(text + length - line));
        size_t bytes = end ? (size_t)(end - line) + 1 : (size_t)(text + length - line);
        if (line > text) {
            memcpy(joined + used, "\n\n", 2);
            used += 2;
        }
        bool blank = strspn(line, " \n") >= bytes;
        memcpy(joined + used, line, blank ? 0 : bytes);
        used += blank ? 0 : bytes;
        line += bytes;
    }
    struct token_buffer ids = encode(gpt2, joined, used);
    assert_int_equal(ids.count, 287644);
    token_buffer_free(&ids);
    free(joined);
    free(text);
}

static void shakespeare(void **state) {
    (void)state;
    size_t length;
    char *text = data_read("tiny_shakespeare.txt.zst", &length);
    size_t cut = length * 9 / 10; /* it is ASCII: characters are bytes */
    struct token_buffer first = encode(gpt2, text, cut), rest = encode(gpt2, text + cut, length - cut);
    assert_int_equal(first.count, 301966);
    assert_int_equal(rest.count, 36059);
    token_buffer_free(&first);
    token_buffer_free(&rest);
    free(text);
}

static void golden_strings(void **state) {
    (void)state;
    static const char border[] = "\n__ggml_vocab_test__\n";
    size_t length, out_length;
    char *inputs = data_read("gpt2-tokenizer/golden.inp", &length),
         *outputs = data_read("gpt2-tokenizer/golden.out", &out_length);
    char *out = outputs;
    int rows = 0;
    for (char *at = inputs; at;) {
        char *next = strstr(at, border), *line = strsep(&out, "\n");
        size_t bytes = next ? (size_t)(next - at) : strlen(at);
        struct token_buffer ids = encode(gpt2, at, bytes);
        char *number = line;
        for (size_t i = 0; i < ids.count; i++) {
            unsigned long expected = strtoul(number, &number, 10);
            if (expected != ids.ids[i])
                fail_msg("string %d, id %zu: expected %lu, found %u", rows, i, expected, ids.ids[i]);
        }
        assert_int_equal(number[strspn(number, " ")], '\0');
        expect_back(at, bytes, &ids);
        token_buffer_free(&ids);
        rows++;
        at = next ? next + sizeof border - 1 : NULL;
    }
    assert_int_equal(rows, 47);
    free(inputs);
    free(outputs);
}

/* splitmix64, Steele et al. 2014. */
static uint64_t mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return value ^ value >> 31;
}

struct sum {
    uint64_t count, digest;
};

static void sum_id(struct sum *sum, uint32_t id) {
    sum->digest += mix(++sum->count * 0x9E3779B97F4A7C15u + id);
}

static void expect_sum(const char *what, struct sum found, struct sum expected) {
    if (found.count != expected.count || found.digest != expected.digest) {
        fail_msg("%s: expected %llu ids and sum %016llx, found %llu and %016llx", what,
                 (unsigned long long)expected.count, (unsigned long long)expected.digest,
                 (unsigned long long)found.count, (unsigned long long)found.digest);
    }
}

/* The sums of tokenizers 0.21.4 and of tiktoken 0.11.0, which agree. */
static const struct sum code_point_sum = {34880907, 0x0db57142b6d161b9}, bytes_sum = {7976295, 0xd1682ec12024dfa2},
                        text_sum = {1336543, 0x0ccee2cab557668b};

static void every_code_point(void **state) {
    (void)state;
    static const char *const contexts[][3] = {{"a", "1", ""}, {" ", "", " !"}, {"\t", "'s ", "\n"}};
    struct sum sum = {0};
    struct token_buffer ids = {0};
    for (uint32_t code = 0; code < 0x110000; code++) {
        char character[4];
        if (code >= 0xD800 && code < 0xE000) continue;
        size_t width = unicode_encode(code, character);
        for (int context = 0; context < 3; context++) {
            char text[32];
            size_t length = 0;
            for (int part = 0; part < 3; part++) {
                memcpy(text + length, contexts[context][part], strlen(contexts[context][part]));
                length += strlen(contexts[context][part]);
                size_t bytes = part < (context ? 2 : 1) ? width : 0;
                memcpy(text + length, character, bytes);
                length += bytes;
            }
            ids.count = 0;
            assert_int_equal(tokenizer_encode(gpt2, text, length, false, &ids), STATUS_OK);
            for (size_t i = 0; i < ids.count; i++) sum_id(&sum, ids.ids[i]);
            sum_id(&sum, UINT32_MAX);
        }
    }
    token_buffer_free(&ids);
    expect_sum("code points", sum, code_point_sum);
}

/* How many bytes at `at` others would replace by one U+FFFD: the longest beginning of a character (Unicode, 3.9). */
static size_t invalid_length(const unsigned char *at, size_t left) {
    size_t wanted = at[0] >= 0xF0 ? 4 : at[0] >= 0xE0 ? 3 : 2, length = 1;
    if (at[0] < 0xC2 || at[0] > 0xF4) return 1;
    unsigned char low = at[0] == 0xE0 ? 0xA0 : at[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = at[0] == 0xED ? 0x9F : at[0] == 0xF4 ? 0x8F : 0xBF;
    for (; length < wanted && length < left && at[length] >= low && at[length] <= high; length++) {
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

static void random_bytes(void **state) {
    (void)state;
    enum { WORDS = 1250000, BYTES = 8 * WORDS };
    unsigned char *bytes = malloc(BYTES);
    char *lossy = malloc((size_t)3 * BYTES);
    for (uint64_t i = 0; i < WORDS; i++) {
        uint64_t word = mix(1 + (i + 1) * 0x9E3779B97F4A7C15u);
        memcpy(bytes + 8 * i, &word, 8);
    }
    struct token_buffer raw = encode(gpt2, (const char *)bytes, BYTES);
    expect_back((const char *)bytes, BYTES, &raw);
    size_t used = 0;
    for (size_t at = 0; at < BYTES;) {
        uint32_t code;
        size_t width = unicode_decode(bytes + at, BYTES - at, &code);
        memcpy(lossy + used, code == UNICODE_INVALID ? "\xEF\xBF\xBD" : (const char *)bytes + at,
               code == UNICODE_INVALID ? 3 : width);
        used += code == UNICODE_INVALID ? 3 : width;
        at += code == UNICODE_INVALID ? invalid_length(bytes + at, BYTES - at) : width;
    }
    struct token_buffer ids = encode(gpt2, lossy, used);
    struct sum sum = {0};
    for (size_t i = 0; i < ids.count; i++) sum_id(&sum, ids.ids[i]);
    expect_sum("random bytes", sum, bytes_sum);
    token_buffer_free(&ids);
    token_buffer_free(&raw);
    free(bytes);
    free(lossy);
}

static void random_text(void **state) {
    (void)state;
    static const char *const parts[32] = {"a",
                                          "Z",
                                          "s",
                                          "t",
                                          "re",
                                          "ll",
                                          "1",
                                          "9",
                                          " ",
                                          " ",
                                          "  ",
                                          "\n",
                                          "\t",
                                          "'",
                                          "'",
                                          "!",
                                          "-",
                                          "\xC2\xA0",
                                          "\xE3\x80\x80",
                                          "\xC3\xA9",
                                          "\xE4\xB8\xAD",
                                          "\xCC\x81",
                                          "\xC2\xBD",
                                          "\xD9\xA4",
                                          "\xF0\x9F\x98\x80",
                                          "\xE2\x80\xA8",
                                          "\xC2\x85",
                                          "\xE1\xA0\x8E",
                                          "\xE1\xB2\x89",
                                          "\xF0\xB1\x8D\x90",
                                          "\xEF\xBF\xBD",
                                          "the"};
    char *text = malloc(4 * 1000000);
    size_t used = 0;
    for (uint64_t i = 0; i < 1000000; i++) {
        const char *part = parts[mix(2 + (i + 1) * 0x9E3779B97F4A7C15u) & 31];
        memcpy(text + used, part, strlen(part));
        used += strlen(part);
    }
    struct token_buffer ids = encode(gpt2, text, used);
    struct sum sum = {0};
    for (size_t i = 0; i < ids.count; i++) sum_id(&sum, ids.ids[i]);
    expect_sum("random text", sum, text_sum);
    expect_back(text, used, &ids);
    token_buffer_free(&ids);
    free(text);
}

/* Every token of the vocabulary is what its own bytes merge to, but the special one. */
static void vocabulary_is_closed(void **state) {
    (void)state;
    assert_int_equal(tokenizer_vocabulary(gpt2), 50257);
    assert_int_equal(tokenizer_end_of_text(gpt2), 50256);
    assert_int_equal(tokenizer_begin_of_text(gpt2), 50256);
    const uint32_t end = 50256;
    char *text = NULL;
    size_t length;
    assert_int_equal(tokenizer_decode(gpt2, &end, 1, false, &text, &length), STATUS_OK);
    assert_int_equal(length, 0);
    free(text);
    for (uint32_t id = 0; id < 50256; id++) {
        assert_int_equal(tokenizer_decode(gpt2, &id, 1, false, &text, &length), STATUS_OK);
        struct token_buffer ids = encode(gpt2, text, length);
        if (split_gpt2(text, length, 0) == length) {
            assert_int_equal(ids.count, 1);
            assert_int_equal(ids.ids[0], id);
        }
        token_buffer_free(&ids);
        free(text);
    }
    struct token_buffer special = {0};
    assert_int_equal(tokenizer_encode(gpt2, "<|endoftext|>", 13, true, &special), STATUS_OK);
    assert_int_equal(special.count, 1);
    assert_int_equal(special.ids[0], 50256);
    token_buffer_free(&special);
}

static void both_forms(void **state) {
    (void)state;
    struct folder folder = folder_new();
    static const char *const names[] = {"vocab.json", "merges.txt"};
    for (int i = 0; i < 2; i++) {
        char from[64];
        size_t length;
        snprintf(from, sizeof from, "gpt2-tokenizer/%s", names[i]);
        char *bytes = data_read(from, &length);
        folder_file(&folder, names[i], bytes, length);
        free(bytes);
    }
    struct tokenizer *pair = NULL;
    assert_int_equal(tokenizer_open(folder.path, &pair), STATUS_OK);
    assert_true(tokenizer_hash(pair) == tokenizer_hash(gpt2));
    assert_int_equal(tokenizer_vocabulary(pair), tokenizer_vocabulary(gpt2));
    assert_int_equal(tokenizer_end_of_text(pair), 50256);
    tokenizer_close(&pair);
    folder_remove(&folder);
}

static void stories(void **state) {
    (void)state;
    struct tokenizer *tokenizer = NULL;
    json_t *golden = json_load_file(data_path("stories260K/golden.json"), 0, NULL),
           *ids = json_object_get(golden, "ids");
    const char *text = json_string_value(json_object_get(golden, "text"));
    assert_non_null(text);
    if (tokenizer_open(data_path("stories260K"), &tokenizer) != STATUS_OK) fail_msg("%s", error_message());
    assert_string_equal(tokenizer_name(tokenizer), "stories260K");
    assert_int_equal(tokenizer_begin_of_text(tokenizer), 1);
    assert_int_equal(tokenizer_end_of_text(tokenizer), 2);
    assert_int_equal(tokenizer_vocabulary(tokenizer), 512);
    struct token_buffer found = encode(tokenizer, text, strlen(text));
    assert_int_equal(found.count + 1, json_array_size(ids));
    uint32_t whole[4096] = {(uint32_t)tokenizer_begin_of_text(tokenizer)};
    for (size_t i = 0; i < found.count; i++) {
        whole[i + 1] = found.ids[i];
        assert_int_equal(found.ids[i], json_integer_value(json_array_get(ids, i + 1)));
    }
    char *back = NULL;
    size_t length;
    assert_int_equal(tokenizer_decode(tokenizer, whole, found.count + 1, false, &back, &length), STATUS_OK);
    assert_string_equal(back, text);
    free(back);
    token_buffer_free(&found);
    tokenizer_close(&tokenizer);
    json_decref(golden);
}

int main(void) {
    data = getenv("SQUINT_DATA");
    if (!data || !file_is_directory(data_path("gpt2-tokenizer"))) {
        printf("skipped: no real data at $SQUINT_DATA (%s)\n", data ? data : "not set");
        return 77;
    }
    if (tokenizer_open(data_path("gpt2-tokenizer"), &gpt2) != STATUS_OK) {
        fprintf(stderr, "%s\n", error_message());
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_counts),     cmocka_unit_test(joined_rows),
                                       cmocka_unit_test(shakespeare),      cmocka_unit_test(golden_strings),
                                       cmocka_unit_test(random_bytes),     cmocka_unit_test(random_text),
                                       cmocka_unit_test(every_code_point), cmocka_unit_test(vocabulary_is_closed),
                                       cmocka_unit_test(both_forms),       cmocka_unit_test(stories)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_close(&gpt2);
    return failed;
}
