/* The text readers: documents and pieces out of every format, and one message for every fault. */
#include "base/rng.h"
#include "data-prep/reader.h"
#include "support/check.h"
#include "support/scratch.h"

#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

struct bytes {
    char *data;
    size_t length, capacity;
};

static void add(struct bytes *to, const void *data, size_t length) {
    if (to->length + length + 1 > to->capacity) {
        to->capacity = 2 * (to->length + length + 1);
        to->data = realloc(to->data, to->capacity);
    }
    memcpy(to->data + to->length, data, length);
    to->length += length;
    to->data[to->length] = '\0';
}

static void add_text(struct bytes *to, const char *text) {
    add(to, text, strlen(text));
}

static struct bytes gzip(const char *text, size_t length) {
    struct bytes packed = {malloc(length + length / 100 + 1000), 0, 0};
    z_stream stream = {0};
    assert_int_equal(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    stream.next_in = (unsigned char *)text;
    stream.avail_in = (unsigned)length;
    stream.next_out = (unsigned char *)packed.data;
    stream.avail_out = (unsigned)(length + length / 100 + 1000);
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    packed.length = stream.total_out;
    deflateEnd(&stream);
    return packed;
}

static struct bytes zstd(const char *text, size_t length) {
    struct bytes packed = {malloc(ZSTD_compressBound(length)), 0, 0};
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    packed.length = ZSTD_compress2(context, packed.data, ZSTD_compressBound(length), text, length);
    ZSTD_freeCCtx(context);
    assert_false(ZSTD_isError(packed.length));
    return packed;
}

static char *put(const char *name, const void *data, size_t length) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    fclose(file);
    return path;
}

/* Reads everything; documents joined by '|', pieces of one by '~'. */
static enum status read_all(const char *path, const struct reader_options *options, struct bytes *out, int64_t *empty) {
    struct reader *reader = NULL;
    struct reader_piece piece;
    bool more = true, inside = false, first = true;
    enum status status = reader_open(path, options, &reader);
    while (status == STATUS_OK) {
        status = reader_next(reader, &piece, &more);
        if (status != STATUS_OK || !more) break;
        assert_true(piece.length > 0);
        assert_int_equal(piece.begins, !inside);
        if (!first) add_text(out, piece.begins ? "|" : "~");
        add(out, piece.text, piece.length);
        inside = !piece.ends;
        first = false;
    }
    if (status == STATUS_OK) {
        assert_false(inside);
        if (empty) *empty = reader_empty(reader);
        assert_int_equal(reader_next(reader, &piece, &more), STATUS_OK); /* the end stays the end */
        assert_false(more);
    }
    reader_close(&reader);
    return status;
}

struct row {
    const char *name, *file, *contents;
    struct reader_options options;
    const char *expected;
    int64_t empty;
};

#define TEXT .options = {.format = READER_AUTO}

static const struct row rows[] = {
    {"a file is a document", "a.txt", "one\n\ntwo\n", TEXT, "one\n\ntwo\n", 0},
    {"no line feed at the end", "a", "one", TEXT, "one", 0},
    {"bytes that are not UTF-8 stay", "a.txt",
     "\xff\xfe"
     "a\xc3",
     TEXT,
     "\xff\xfe"
     "a\xc3",
     0},
    {"separator", "a", "one<s>two<s>three", {.separator = "<s>"}, "one|two|three", 0},
    {"separator at both ends", "a", "<s>one<s><s>two<s>", {.separator = "<s>"}, "one|two", 2},
    {"separator that nearly matches", "a", "aab<aab<<aabb", {.separator = "aabb"}, "aab<aab<<", 0},
    {"separator that overlaps itself", "a", "xaaaay", {.separator = "aaa"}, "x|ay", 0},
    {"only separators", "a", "----", {.separator = "--"}, "", 2},
    {"blank lines", "a", "one\ntwo\n\nthree\n", {.separator = "\n\n"}, "one\ntwo|three\n", 0},
    {"WikiText",
     "a",
     " \n = A = \n \n x \n = = B = = \n y \n = C = \n z \n",
     {.wikitext = true},
     " \n = A = \n \n x \n = = B = = \n y \n| = C = \n z \n",
     0},
    {"WikiText, no heading at first", "a", "preface\n = A = \nx\n", {.wikitext = true}, "preface\n| = A = \nx\n", 0},
    {"WikiText, nearly headings",
     "a",
     "x\n= A = \n = A =\n = = A = \n =  = \n = A = b\n",
     {.wikitext = true},
     "x\n= A = \n = A =\n = = A = \n =  = \n = A = b\n",
     0},
    {"WikiText, heading at the end", "a", "x\n = A = ", {.wikitext = true}, "x\n| = A = ", 0},
    {"WikiText, CRLF", "a", "x\r\n = A = \r\ny\r\n", {.wikitext = true}, "x\r\n| = A = \r\ny\r\n", 0},
    {"pieces", "a", "abcd\nefgh\nij", {.piece_bytes = 3}, "abcd~\nefgh~\nij", 0},
    {"pieces only after printable ASCII",
     "a",
     "ab \ncd\xc3\xa9\nef\n\ngh",
     {.piece_bytes = 2},
     "ab \ncd\xc3\xa9\nef~\n\ngh",
     0},
    {"a piece as long as the document", "a", "abcd", {.piece_bytes = 4}, "abcd", 0},
    {"pieces and separators", "a", "abc\ndef\n--ghi\n--", {.piece_bytes = 3, .separator = "\n--"}, "abc~\ndef|ghi", 0},
    {"pieces and WikiText",
     "a",
     "abcdef\n = A = \nx\n",
     {.piece_bytes = 3, .wikitext = true},
     "abcdef~\n| = A = \nx~\n",
     0},
    {"JSON lines", "a.jsonl", "{\"text\": \"one\"}\n\n{\"id\": 1, \"text\": \"two\\n\\u00e9\"}", TEXT,
     "one|two\n\xc3\xa9", 0},
    {"JSON lines, .ndjson and CRLF", "a.ndjson", "{\"text\": \"one\"}\r\n \t\r\n{\"text\": \"two\"}\r\n", TEXT,
     "one|two", 0},
    {"JSON lines, byte order mark", "a.jsonl", "\xEF\xBB\xBF{\"text\": \"one\"}\n", TEXT, "one", 0},
    {"JSON lines, empty text", "a.jsonl", "{\"text\": \"\"}\n{\"text\": \"x\"}\n{\"text\": \"\"}\n", TEXT, "x", 2},
    {"JSON lines, another field", "a.jsonl", "{\"body\": \"one\", \"text\": 3}\n", {.text_field = "body"}, "one", 0},
    {"JSON lines by option", "a.txt", "{\"text\": \"one\"}\n", {.format = READER_JSONL}, "one", 0},
    {"JSON lines as text", "a.jsonl", "{\"text\": \"one\"}\n", {.format = READER_TEXT}, "{\"text\": \"one\"}\n", 0},
};

static void test_documents(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *row = &rows[i];
        size_t length = strlen(row->contents);
        for (int packing = 0; packing < 3; packing++) { /* every row also as .gz and .zst */
            char name[64];
            struct bytes packed = packing == 1   ? gzip(row->contents, length)
                                  : packing == 2 ? zstd(row->contents, length)
                                                 : (struct bytes){0};
            struct bytes found = {0};
            int64_t empty = -1;
            snprintf(name, sizeof name, "%s%s", row->file, packing == 1 ? ".gz" : packing == 2 ? ".zst" : "");
            char *path = put(name, packing ? packed.data : row->contents, packing ? packed.length : length);
            enum status status = read_all(path, &row->options, &found, &empty);
            const char *text = found.data ? found.data : "";
            if (status != STATUS_OK || strcmp(text, row->expected) != 0 || empty != row->empty) {
                fail_msg("%s (%s): expected \"%s\" and %lld empty, found \"%s\" and %lld (%s)", row->name, name,
                         row->expected, (long long)row->empty, text, (long long)empty, error_message());
            }
            free(found.data);
            free(packed.data);
        }
    }
}

struct fault {
    const char *name, *file, *contents;
    size_t length; /* 0: strlen(contents) */
    struct reader_options options;
    enum status status;
    const char *message; /* a part of it */
};

static const struct fault faults[] = {
    {"empty", "a.txt", "", 0, TEXT, STATUS_DAMAGED, "a.txt: is empty"},
    {"empty .gz", "a.gz", "", 0, TEXT, STATUS_DAMAGED, "a.gz: is empty"},
    {"not gzip", "a.gz", "hello, world", 0, TEXT, STATUS_DAMAGED, "expected gzip"},
    {"not zstd", "a.zst", "hello, world", 0, TEXT, STATUS_DAMAGED, "expected zstd"},
    {"gzip under the name of zstd", "a.zst", "\x1f\x8b\x08", 0, TEXT, STATUS_DAMAGED, "expected zstd"},
    {"not JSON", "a.jsonl", "{\"text\": \"a\"}\n{\"text\": }\n", 0, TEXT, STATUS_DAMAGED,
     "a.jsonl:2: not a JSON object"},
    {"no object", "a.jsonl", "[1]\n", 0, TEXT, STATUS_DAMAGED, "a.jsonl:1: expected a JSON object"},
    {"two objects on a line", "a.jsonl", "{\"text\":\"a\"} {\"text\":\"b\"}\n", 0, TEXT, STATUS_DAMAGED, "a.jsonl:1:"},
    {"no field", "a.jsonl", "\n{\"txt\": \"a\"}\n", 0, TEXT, STATUS_DAMAGED,
     "a.jsonl:2: the field \"text\" is missing"},
    {"field is no text", "a.jsonl", "{\"text\": 5}\n", 0, TEXT, STATUS_DAMAGED, "the field \"text\" is not text"},
    {"JSON that is not UTF-8", "a.jsonl", "{\"text\": \"\xff\"}\n", 0, TEXT, STATUS_DAMAGED, "a.jsonl:1:"},
    {"JSON cut short", "a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b", 0, TEXT, STATUS_DAMAGED, "a.jsonl:2:"},
    {"empty separator", "a", "x", 0, {.separator = ""}, STATUS_USAGE, "separator is empty"},
    {"separator and WikiText", "a", "x", 0, {.separator = "x", .wikitext = true}, STATUS_USAGE, "not both"},
};

static void expect_fault(const char *name, const char *path, const struct reader_options *options, enum status expected,
                         const char *message) {
    struct bytes found = {0};
    error_clear();
    enum status status = read_all(path, options, &found, NULL);
    if (status != expected || !strstr(error_message(), message)) {
        fail_msg("%s: expected %s and \"%s\", found %s and \"%s\"", name, status_name(expected), message,
                 status_name(status), error_message());
    }
    error_clear();
    free(found.data);
}

static void test_faults(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        const struct fault *row = &faults[i];
        expect_fault(row->name, put(row->file, row->contents, row->length ? row->length : strlen(row->contents)),
                     &row->options, row->status, row->message);
    }
    const struct reader_options plain = {0};
    expect_fault("not there", "/nonexistent/file", &plain, STATUS_NOT_FOUND, "/nonexistent/file");
    expect_fault("a directory", scratch, &plain, STATUS_IO, "is a directory");
}

/* 300,000 bytes that hardly pack, longer than every buffer. */
static struct bytes long_text(void) {
    struct bytes text = {0};
    for (int i = 0; i < 300000; i++) {
        char c = "abcdefgh ijkl\nmnop=-_"[rng_below(7, RNG_TEST, (uint64_t)i, 21)];
        add(&text, &c, 1);
    }
    return text;
}

static void test_truncated(void **state) {
    (void)state;
    struct bytes text = long_text();
    const struct reader_options plain = {0};
    for (int packing = 1; packing <= 2; packing++) {
        struct bytes packed = packing == 1 ? gzip(text.data, text.length) : zstd(text.data, text.length);
        const char *name = packing == 1 ? "a.gz" : "a.zst",
                   *message = packing == 1 ? "truncated gzip" : "truncated zstd";
        const size_t lengths[] = {
            4, 5, 17, 1000, packed.length / 2, packed.length - 9, packed.length - 4, packed.length - 1};
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            expect_fault(message, put(name, packed.data, lengths[i]), &plain, STATUS_DAMAGED, message);
        }
        packed.data[packed.length / 2] ^= 4;
        expect_fault("a flipped bit", put(name, packed.data, packed.length), &plain, STATUS_DAMAGED, "damaged");
        free(packed.data);
    }
    free(text.data);
}

static void expect_text(const char *name, const char *path, const char *expected, size_t length) {
    struct bytes found = {0};
    const struct reader_options plain = {0};
    assert_int_equal(read_all(path, &plain, &found, NULL), STATUS_OK);
    if (found.length != length || memcmp(found.data, expected, length) != 0) {
        fail_msg("%s: expected %zu bytes, found %zu, or others", name, length, found.length);
    }
    free(found.data);
}

static void test_parts(void **state) {
    (void)state;
    struct bytes text = long_text(), twice = {0}, file = {0};
    add(&twice, text.data, text.length);
    add(&twice, text.data, text.length);
    struct bytes member = gzip(text.data, text.length), frame = zstd(text.data, text.length), nothing = gzip("", 0);
    add(&file, member.data, member.length);
    add(&file, member.data, member.length);
    expect_text("two gzip members", put("a.gz", file.data, file.length), twice.data, twice.length);
    add(&file, nothing.data, nothing.length);
    add(&file, "\0\0\0\0\0", 5);
    expect_text("an empty member and zero padding", put("a.gz", file.data, file.length), twice.data, twice.length);
    expect_text("gzip under any name", put("a.txt", file.data, file.length), twice.data, twice.length);
    add(&file, "x", 1);
    const struct reader_options plain = {0};
    expect_fault("something after the padding", put("a.gz", file.data, file.length), &plain, STATUS_DAMAGED,
                 "followed by something else");
    file.length = 0;
    add(&file, member.data, member.length);
    add(&file, "garbage", 7);
    expect_fault("something after a member", put("a.gz", file.data, file.length), &plain, STATUS_DAMAGED,
                 "followed by something else");
    file.length = 0;
    add(&file, "\x50\x2a\x4d\x18\x03\0\0\0xyz", 11); /* a skippable frame */
    add(&file, frame.data, frame.length);
    add(&file, frame.data, frame.length);
    expect_text("three zstd frames", put("a.zst", file.data, file.length), twice.data, twice.length);
    add(&file, "garbage", 7);
    expect_fault("something after a frame", put("a.zst", file.data, file.length), &plain, STATUS_DAMAGED,
                 "damaged zstd");
    expect_fault("no text inside", put("b.gz", nothing.data, nothing.length), &plain, STATUS_DAMAGED, "is empty");
    free(text.data), free(twice.data), free(file.data), free(member.data), free(frame.data), free(nothing.data);
}

/* Documents and pieces of a text, worked out with the whole of it in memory, straight from reader.h. */
static void expect_pieces(const char *text, size_t length, const char *separator, size_t piece_bytes,
                          struct bytes *out) {
    size_t at = 0, tail = strlen(separator);
    bool first = true;
    while (at < length) {
        const char *found = memmem(text + at, length - at, separator, tail);
        size_t end = found ? (size_t)(found - text) : length;
        size_t from = at;
        if (end > at && !first) add_text(out, "|");
        for (size_t i = at; piece_bytes && i < end; i++) {
            if (i - from >= piece_bytes && text[i] == '\n' && text[i - 1] > ' ' && text[i - 1] <= '~') {
                add(out, text + from, i - from);
                add_text(out, "~");
                from = i;
            }
        }
        add(out, text + from, end - from);
        first = first && end == at;
        at = end + tail;
    }
}

static void test_random_pieces(void **state) {
    (void)state;
    for (uint64_t trial = 0; trial < 60; trial++) {
        struct bytes text = {0}, expected = {0}, found = {0};
        uint64_t stream = rng_substream(RNG_TEST, trial);
        size_t length = 1 + rng_below(1, stream, 0, trial % 6 ? 300 : 700000);
        for (size_t i = 0; i < length; i++) {
            char c = "aab\n\n - =\xc3"[rng_below(1, stream, 10 + i, 10)];
            add(&text, &c, 1);
        }
        const char *separator = trial % 3 == 0 ? "\n\n" : trial % 3 == 1 ? "-" : "aba";
        size_t piece = trial % 4 ? rng_below(1, stream, 1, trial % 6 ? 20 : 100000) : 0;
        const struct reader_options options = {.separator = separator, .piece_bytes = piece};
        expect_pieces(text.data, text.length, separator, piece, &expected);
        struct bytes packed = gzip(text.data, text.length);
        assert_int_equal(read_all(put("a.gz", packed.data, packed.length), &options, &found, NULL), STATUS_OK);
        if (found.length != expected.length || (found.length && memcmp(found.data, expected.data, found.length) != 0)) {
            fail_msg("trial %d: %zu bytes, pieces of %zu: expected other documents", (int)trial, length, piece);
        }
        free(text.data), free(expected.data), free(found.data), free(packed.data);
    }
}

static void test_long_lines(void **state) {
    (void)state;
    struct bytes text = long_text(), file = {0}, expected = {0}, found = {0};
    for (size_t i = 0; i < text.length; i++) text.data[i] = text.data[i] == '\n' ? 'n' : text.data[i];
    for (int i = 0; i < 3; i++) {
        add_text(&file, "{\"text\": \"");
        add(&file, text.data, text.length);
        add_text(&file, "\"}\n");
        if (i) add_text(&expected, "|");
        add(&expected, text.data, text.length);
    }
    const struct reader_options plain = {0};
    struct bytes packed = zstd(file.data, file.length);
    assert_int_equal(read_all(put("a.jsonl.zst", packed.data, packed.length), &plain, &found, NULL), STATUS_OK);
    assert_int_equal(found.length, expected.length);
    assert_memory_equal(found.data, expected.data, found.length);
    free(text.data), free(file.data), free(expected.data), free(found.data), free(packed.data);
}

static void test_standard_input(void **state) {
    (void)state;
    struct bytes packed = gzip("one--two", 8), found = {0};
    const struct reader_options options = {.separator = "--"};
    int saved = dup(STDIN_FILENO);
    assert_non_null(freopen(put("in", packed.data, packed.length), "rb", stdin));
    assert_int_equal(read_all("-", &options, &found, NULL), STATUS_OK);
    assert_string_equal(found.data, "one|two");
    assert_non_null(freopen("/dev/null", "rb", stdin));
    expect_fault("nothing on standard input", "-", &options, STATUS_DAMAGED, "standard input: is empty");
    dup2(saved, STDIN_FILENO);
    close(saved);
    free(packed.data), free(found.data);
}

static void expect_list(const char *name, const char *const *words, size_t word_count, const char *expected) {
    char **paths = NULL, joined[1024] = "";
    size_t count = 0;
    if (reader_list(words, word_count, &paths, &count) != STATUS_OK) fail_msg("%s: %s", name, error_message());
    for (size_t i = 0; i < count; i++) {
        const char *path = strncmp(paths[i], scratch, strlen(scratch)) == 0 ? paths[i] + strlen(scratch) : paths[i];
        snprintf(joined + strlen(joined), sizeof joined - strlen(joined), "%s ", path);
    }
    file_free_list(paths, count);
    if (strcmp(joined, expected) != 0) fail_msg("%s: expected \"%s\", found \"%s\"", name, expected, joined);
}

static void test_list(void **state) {
    (void)state;
    char path[512], hollow[512];
    const char *const inside[] = {"tree/b/z", "tree/b/a", "tree/c/.git"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, inside[i]);
        assert_int_equal(file_make_directory(path), STATUS_OK);
    }
    put("tree/b/z/2", "x", 1), put("tree/b/z/10", "x", 1), put("tree/b/a/y.txt", "x", 1), put("tree/a.txt", "x", 1);
    put("tree/c/.hidden", "x", 1), put("tree/c/.git/config", "x", 1), put("tree/B", "x", 1);
    snprintf(path, sizeof path, "%s/tree", scratch);
    snprintf(hollow, sizeof hollow, "%s/tree/c", scratch);
    expect_list("sorted", (const char *const[]){path}, 1,
                "/tree/B /tree/a.txt /tree/b/a/y.txt /tree/b/z/10 /tree/b/z/2 ");
    expect_list("in the words' order", (const char *const[]){"-", "/dev/null"}, 2, "- /dev/null ");
    const struct {
        const char *name, *words[2], *message;
        enum status status;
    } bad[] = {{"no files", {hollow, "-"}, "holds no files", STATUS_NOT_FOUND},
               {"not there", {"-", "/nonexistent/x"}, "/nonexistent/x: cannot open it", STATUS_NOT_FOUND},
               {"standard input twice", {"-", "-"}, "given twice", STATUS_USAGE}};
    for (size_t i = 0; i < 3; i++) {
        char **paths = NULL;
        size_t count = 0;
        error_clear();
        enum status status = reader_list(bad[i].words, 2, &paths, &count);
        if (status != bad[i].status || !strstr(error_message(), bad[i].message)) {
            fail_msg("%s: found %s \"%s\"", bad[i].name, status_name(status), error_message());
        }
        assert_null(paths);
        error_clear();
    }
    snprintf(path, sizeof path, "%s/tree/b/loop", scratch);
    assert_int_equal(symlink("..", path), 0);
    char **paths = NULL;
    size_t count = 0;
    assert_int_equal(reader_list((const char *const[]){path}, 1, &paths, &count), STATUS_IO);
    assert_non_null(strstr(error_message(), "deep"));
    error_clear();
}

static void test_invalid(void **state) {
    (void)state;
    static const struct {
        const char *name, *text;
        int64_t invalid;
        size_t first;
    } table[] = {
        {"ASCII", "hello, world, hello", 0, 0},
        {"two, three and four bytes", "\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80 abcdefgh", 0, 0},
        {"first and last of each length", "\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 0,
         0},
        {"around the surrogates", "\xed\x9f\xbf\xee\x80\x80", 0, 0},
        {"Unicode's example", "\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64", 6, 1},
        {"overlong", "\xc0\xaf\xe0\x80\xbf", 5, 0},
        {"surrogate", "abcdefgh\xed\xa0\x80", 3, 8},
        {"above the last code point", "\xf4\x91\x92\x93\xff", 5, 0},
        {"cut short", "abc\xf0\x9f\x98", 1, 3},
        {"Latin-1", "caf\xe9 au lait", 1, 3},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        size_t first = 0;
        int64_t invalid = reader_count_invalid(table[i].text, strlen(table[i].text), &first);
        if (invalid != table[i].invalid || first != table[i].first) {
            fail_msg("%s: expected %lld from %zu on, found %lld from %zu on", table[i].name,
                     (long long)table[i].invalid, table[i].first, (long long)invalid, first);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),      cmocka_unit_test(test_faults),        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_parts),          cmocka_unit_test(test_random_pieces), cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_standard_input), cmocka_unit_test(test_list),          cmocka_unit_test(test_invalid),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
