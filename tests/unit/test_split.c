/* The splitter: rows by hand, PCRE2 on every code point and on random texts, and the rules for foreign patterns. */
#include "data-prep/split.h"

#include "base/rng.h"
#include "data-prep/unicode.h"
#include "support/check.h"
#include "support/tokenizer_files.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Pieces joined by '|', for comparing and for reading. */
struct joined {
    char text[4096];
    size_t length;
};

static enum status join(void *context, const char *text, size_t length) {
    struct joined *joined = context;
    assert_true(joined->length + length + 2 < sizeof joined->text);
    if (joined->length) joined->text[joined->length++] = '|';
    memcpy(joined->text + joined->length, text, length);
    joined->length += length;
    joined->text[joined->length] = '\0';
    return STATUS_OK;
}

static void split_by_hand(const char *text, size_t length, struct joined *joined) {
    for (size_t at = 0; at < length;) {
        size_t end = split_gpt2(text, length, at);
        assert_true(end > at && end <= length);
        join(joined, text + at, end - at);
        at = end;
    }
}

static void rows_by_hand(void **state) {
    (void)state;
    static const struct {
        const char *text, *pieces;
    } rows[] = {
        {"", ""},
        {"a", "a"},
        {" ", " "},
        {"   ", "   "},
        {"Hello world", "Hello| world"},
        {"a  b", "a| | b"},
        {"a   b", "a|  | b"},
        {"a \n b", "a| \n| b"},
        {"a\nb", "a|\n|b"},
        {"a\n\nb", "a|\n|\n|b"},
        {"a\n ", "a|\n "},
        {"  !", " | !"},
        {"it's", "it|'s"},
        {"it'S", "it|'|S"},
        {"we'll've", "we|'ll|'ve"},
        {"'re'r", "'re|'|r"},
        {" 's", " '|s"},
        {"!'s", "!'|s"},
        {"'", "'"},
        {"'l", "'|l"},
        {"x12y", "x|12|y"},
        {" 12 .", " 12| ."},
        {"a\xC2\xA0"
         "b",
         "a|\xC2\xA0|b"},
        {"a \xC2\xA0"
         "b",
         "a| |\xC2\xA0|b"},
        {"\xE4\xB8\xAD\xC3\xA9 \xC2\xBD", "\xE4\xB8\xAD\xC3\xA9| \xC2\xBD"},
        {"e\xCC\x81", "e|\xCC\x81"},
        {"a\xFF"
         "b",
         "a|\xFF|b"},
        {"a \xFF\xFE!b", "a| \xFF\xFE!|b"},
        {"\xE2\x96", "\xE2\x96"},
        {"a\xE2\x96z", "a|\xE2\x96|z"},
        {"\xED\xA0\x80 a", "\xED\xA0\x80| a"},
        {"\xC0\xAF"
         "1",
         "\xC0\xAF|1"},
        {"\xF4\x90\x80\x80x", "\xF4\x90\x80\x80|x"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct joined found = {0};
        split_by_hand(rows[i].text, strlen(rows[i].text), &found);
        if (strcmp(found.text, rows[i].pieces) != 0) {
            fail_msg("row %zu \"%s\": expected %s, found %s", i, rows[i].text, rows[i].pieces, found.text);
        }
    }
}

/* Code points whose class Unicode 15 or 16 changed; PCRE2 10.42 has Unicode 14. */
static const uint32_t newer[][2] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D40, 0x10D65},
    {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x1123F, 0x11240}, {0x11380, 0x11389}, {0x1138B, 0x1138B},
    {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3},
    {0x116D0, 0x116E3}, {0x11BC0, 0x11BE0}, {0x11BF0, 0x11BF9}, {0x11F02, 0x11F02}, {0x11F04, 0x11F10},
    {0x11F12, 0x11F33}, {0x11F50, 0x11F59}, {0x1342F, 0x1342F}, {0x13441, 0x13446}, {0x13460, 0x143FA},
    {0x16100, 0x1611D}, {0x16130, 0x16139}, {0x16D40, 0x16D6C}, {0x16D70, 0x16D79}, {0x18CFF, 0x18CFF},
    {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1CCF0, 0x1CCF9}, {0x1D2C0, 0x1D2D3}, {0x1DF25, 0x1DF2A},
    {0x1E030, 0x1E06D}, {0x1E4D0, 0x1E4EB}, {0x1E4F0, 0x1E4F9}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5FA},
    {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF},
};

static bool is_newer(uint32_t code) {
    for (size_t i = 0; i < sizeof newer / sizeof *newer; i++) {
        if (code >= newer[i][0] && code <= newer[i][1]) return true;
    }
    return false;
}

/* PCRE2 must have the Unicode of the list above; another version says nothing about ours. */
static void need_pcre2_of_14(void) {
    char version[64];
    pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
    if (strcmp(version, "14.0.0") != 0) CHECK_SKIP("PCRE2 has Unicode %s, the list of differences is for 14.0.0", version);
}

static struct split_pattern *gpt2_pattern(void) {
    struct split_pattern *pattern = NULL;
    assert_int_equal(split_pattern_open(split_gpt2_pattern, false, "test", &pattern), STATUS_OK);
    return pattern;
}

static bool same_pieces(const struct split_pattern *pattern, const char *text, size_t length) {
    struct joined ours = {0}, theirs = {0};
    split_by_hand(text, length, &ours);
    assert_int_equal(split_pattern_run(pattern, SPLIT_ISOLATED, false, text, length, join, &theirs), STATUS_OK);
    return ours.length == theirs.length && memcmp(ours.text, theirs.text, ours.length) == 0;
}

static void every_code_point(void **state) {
    (void)state;
    need_pcre2_of_14();
    static const char *const contexts[][3] = {{"a", "1", ""}, {" ", "", " !"}, {"\t", "'s ", "\n"}};
    struct split_pattern *pattern = gpt2_pattern();
    for (uint32_t code = 0; code < 0x110000; code++) {
        char text[64], character[5] = {0};
        bool same = true;
        if (code >= 0xD800 && code < 0xE000) continue;
        size_t width = unicode_encode(code, character);
        for (int i = 0; i < 3; i++) {
            size_t length = 0;
            for (int part = 0; part < 3; part++) {
                memcpy(text + length, contexts[i][part], strlen(contexts[i][part]));
                length += strlen(contexts[i][part]);
                if (part < 2) memcpy(text + length, character, width);
                length += part < 2 ? width : 0;
            }
            same = same && same_pieces(pattern, text, length);
        }
        if (same == is_newer(code)) {
            fail_msg("U+%04X: expected %s PCRE2's pieces", code, is_newer(code) ? "other than" : "exactly");
        }
    }
    split_pattern_close(&pattern);
}

static void random_texts(void **state) {
    (void)state;
    static const char *const parts[] = {"a",
                                        "Z",
                                        "s",
                                        "ll",
                                        "'",
                                        "'",
                                        "1",
                                        " ",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\t",
                                        "!",
                                        "\xC2\xA0",
                                        "\xC3\xA9",
                                        "\xE4\xB8\xAD",
                                        "\xCC\x81",
                                        "\xF0\x9F\x98\x80",
                                        "\xE3\x80\x80",
                                        "\xE1\xA0\x8E",
                                        "re",
                                        "\xC2\xBD"};
    struct split_pattern *pattern = gpt2_pattern();
    for (uint64_t row = 0; row < 20000; row++) {
        char text[256] = "";
        for (uint64_t i = 0, count = rng_below(7, RNG_TEST, row << 8, 24); i < count; i++) {
            strcat(text, parts[rng_below(7, RNG_TEST, (row << 8) + 1 + i, sizeof parts / sizeof *parts)]);
        }
        if (!same_pieces(pattern, text, strlen(text)))
            fail_msg("row %d, \"%s\": other pieces than PCRE2's", (int)row, text);
    }
    split_pattern_close(&pattern);
}

static void foreign_patterns(void **state) {
    (void)state;
    static const struct {
        const char *pattern;
        bool literal;
        enum split_behavior behavior;
        bool inverted;
        const char *text, *pieces;
    } rows[] = {
        {"-", true, SPLIT_ISOLATED, false, "a--b-", "a|-|-|b|-"},
        {"-", true, SPLIT_REMOVED, false, "a--b-", "a|b"},
        {"-", true, SPLIT_REMOVED, true, "a--b-", "-|-|-"},
        {"-", true, SPLIT_MERGED_WITH_PREVIOUS, false, "-a--b-", "-|a-|-|b-"},
        {"-", true, SPLIT_MERGED_WITH_NEXT, false, "-a--b-", "-a|-|-b|-"},
        {"-", true, SPLIT_CONTIGUOUS, false, "-a--b-", "-|a|--|b|-"},
        {".", true, SPLIT_ISOLATED, false, "a.b", "a|.|b"},
        {"\\s+", false, SPLIT_ISOLATED, false,
         "a \t\xC2\x85"
         "b",
         "a| \t\xC2\x85|b"},
        {"[^\\s]+", false, SPLIT_REMOVED, false, "a \xE1\xA0\x8E b", " | "},
        {"\\S", false, SPLIT_ISOLATED, false, "ab ", "a|b| "},
        {"\\\\s", false, SPLIT_ISOLATED, false, "a\\s s", "a|\\s| s"},
        {"x*", false, SPLIT_ISOLATED, false, "axxb", "a|xx|b"},
        {"(?=b)", false, SPLIT_ISOLATED, false,
         "a\xC3\xA9"
         "b",
         "a\xC3\xA9"
         "b"},
        {"\\p{L}+", false, SPLIT_ISOLATED, false,
         "ab\xFF"
         "cd",
         "ab|\xFF|cd"},
        {"(?i:'s)", false, SPLIT_ISOLATED, false, "a'S", "a|'S"},
        {"\\p{N}{1,3}", false, SPLIT_ISOLATED, false, "12345", "123|45"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct split_pattern *pattern = NULL;
        struct joined found = {0};
        assert_int_equal(split_pattern_open(rows[i].pattern, rows[i].literal, "test", &pattern), STATUS_OK);
        assert_string_equal(split_pattern_text(pattern), rows[i].pattern);
        assert_int_equal(split_pattern_run(pattern, rows[i].behavior, rows[i].inverted, rows[i].text,
                                           strlen(rows[i].text), join, &found),
                         STATUS_OK);
        if (strcmp(found.text, rows[i].pieces) != 0) {
            fail_msg("row %zu, %s on \"%s\": expected %s, found %s", i, rows[i].pattern, rows[i].text, rows[i].pieces,
                     found.text);
        }
        split_pattern_close(&pattern);
    }
}

static enum status refuse(void *context, const char *text, size_t length) {
    (void)text;
    (void)length;
    return --*(int *)context ? STATUS_OK : STATUS_IO;
}

static void bad_patterns(void **state) {
    (void)state;
    struct split_pattern *pattern = NULL;
    assert_int_equal(split_pattern_open("a(b", false, "here", &pattern), STATUS_USAGE);
    assert_string_equal(error_message(),
                        "here: expected a regular expression, found \"a(b\": missing closing parenthesis at "
                        "byte 3");
    error_clear();
    assert_null(pattern);
    assert_int_equal(split_pattern_open("", true, "here", &pattern), STATUS_USAGE);
    error_clear();
    /* More steps than PCRE2 allows: a message, not a hang. */
    assert_int_equal(split_pattern_open("(?:(a+)+\\1?)+$", false, "here", &pattern), STATUS_OK);
    int left = 100;
    const char slow[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    assert_int_equal(split_pattern_run(pattern, SPLIT_ISOLATED, false, slow, strlen(slow), refuse, &left),
                     STATUS_FAILED);
    assert_non_null(strstr(error_message(), "here: the pattern fails at byte 0"));
    error_clear();
    split_pattern_close(&pattern);
    split_pattern_close(&pattern);
    /* What the sink says is passed on. */
    assert_int_equal(split_pattern_open("b", true, "here", &pattern), STATUS_OK);
    for (left = 1; left <= 3; left++) {
        int calls = left;
        assert_int_equal(split_pattern_run(pattern, SPLIT_ISOLATED, false, "aba", 3, refuse, &calls), STATUS_IO);
    }
    split_pattern_close(&pattern);
}

static void utf8(void **state) {
    (void)state;
    for (uint32_t code = 0; code < 0x110000; code++) {
        char bytes[4];
        uint32_t back;
        size_t length = unicode_encode(code, bytes);
        bool surrogate = code >= 0xD800 && code < 0xE000;
        size_t read = unicode_decode((const unsigned char *)bytes, length, &back);
        assert_int_equal(back, surrogate ? UNICODE_INVALID : code);
        assert_int_equal(read, surrogate ? 1 : length);
        if (length > 1) {
            assert_int_equal(unicode_decode((const unsigned char *)bytes, length - 1, &back), 1);
            assert_int_equal(back, UNICODE_INVALID);
        }
    }
    static const char *const invalid[] = {
        "\x80", "\xC0\x80", "\xC1\xBF",  "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
        "\xFF", "\xC3z",    "\xE2\x96z", "\xF0\x9F\x98z"};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        uint32_t code;
        assert_int_equal(unicode_decode((const unsigned char *)invalid[i], strlen(invalid[i]), &code), 1);
        assert_int_equal(code, UNICODE_INVALID);
    }
    assert_int_equal(unicode_class(UNICODE_INVALID), UNICODE_OTHER);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_by_hand), cmocka_unit_test(every_code_point),
                                       cmocka_unit_test(random_texts), cmocka_unit_test(foreign_patterns),
                                       cmocka_unit_test(bad_patterns), cmocka_unit_test(utf8)};
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
