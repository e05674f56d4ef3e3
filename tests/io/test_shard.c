/* Token shards: round trips, and every kind of damage with its message. */
#include "io/shard.h"

#include "base/file.h"
#include "base/hash.h"
#include "io/h5.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/scratch.h"

static void ok(enum status status) {
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error_message());
}

static void refused(const char *row, enum status status, enum status expected, const char *part) {
    if (status != expected || !strstr(error_message(), part)) {
        fail_msg("%s: expected %s with \"%s\", found %s: \"%s\"", row, status_name(expected), part, status_name(status),
                 error_message());
    }
    error_clear();
}

static struct shard_info info_of(int64_t vocabulary) {
    struct shard_info info = {.tokenizer_hash = 0xfedcba9876543210u, .vocabulary = vocabulary, .source_hash = 77};
    info.end_of_text = vocabulary - 1;
    snprintf(info.tokenizer_name, sizeof info.tokenizer_name, "gpt2");
    snprintf(info.source, sizeof info.source, "stories, größer");
    return info;
}

/* Writes `documents` documents of `length` tokens each (the last one of 1), handed over in pieces of 1,000. */
static void write_shard(const char *path, int64_t vocabulary, int documents, int length) {
    struct shard_writer *writer;
    struct shard_info info = info_of(vocabulary);
    uint32_t ids[1000];
    ok(shard_writer_open(path, &info, &writer));
    int64_t token = 0;
    for (int d = 0; d < documents; d++) {
        int n = d == documents - 1 ? 1 : length;
        for (int done = 0; done < n;) {
            int part = n - done < 1000 ? n - done : 1000;
            for (int i = 0; i < part; i++) ids[i] = (uint32_t)((token + i) * 31 % vocabulary);
            ok(shard_writer_append(writer, ids, part, done == 0));
            token += part;
            done += part;
        }
    }
    assert_int_equal(shard_writer_tokens(writer), token);
    assert_false(file_exists(path));
    ok(shard_writer_close(&writer));
    assert_null(writer);
}

static void test_round_trip(void **state) {
    (void)state;
    static const struct {
        const char *row;
        int64_t vocabulary;
        int documents, length, bytes;
    } rows[] = {
        {"one token", 512, 1, 1, 2},
        {"a few", 50257, 3, 7, 2},
        {"widest of 2 bytes", 65536, 5, 1000, 2},
        {"first of 4", 65537, 5, 1000, 4},
        {"several spools", 1009, 3, 70001, 2},
        {"Llama 3", 128256, 2, 70001, 4},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const char *path = scratch_path("round.h5");
        struct shard shard;
        (void)unlink(path);
        write_shard(path, rows[r].vocabulary, rows[r].documents, rows[r].length);
        ok(shard_open(path, &shard));
        ok(shard_verify(&shard));
        int64_t tokens = (int64_t)(rows[r].documents - 1) * rows[r].length + 1;
        assert_int_equal(shard.info.tokens, tokens);
        assert_int_equal(shard.info.documents, rows[r].documents);
        assert_int_equal(shard.info.bytes_per_token, rows[r].bytes);
        assert_int_equal(shard.info.vocabulary, rows[r].vocabulary);
        assert_int_equal(shard.info.end_of_text, rows[r].vocabulary - 1);
        assert_true(shard.info.tokenizer_hash == 0xfedcba9876543210u && shard.info.source_hash == 77);
        assert_string_equal(shard.info.tokenizer_name, "gpt2");
        assert_string_equal(shard.info.source, "stories, größer");
        int32_t *ids = malloc((size_t)tokens * sizeof *ids);
        shard_read(&shard, 0, tokens, ids);
        for (int64_t i = 0; i < tokens; i++) {
            if (ids[i] != i * 31 % rows[r].vocabulary) fail_msg("%s: token %lld", rows[r].row, (long long)i);
        }
        shard_read(&shard, tokens - 1, 1, ids);
        assert_int_equal(ids[0], (tokens - 1) * 31 % rows[r].vocabulary);
        shard_read(&shard, tokens, 0, ids);
        for (int d = 0; d < rows[r].documents; d++) {
            int64_t begin = (int64_t)d * rows[r].length;
            assert_int_equal(shard.documents[d], begin);
            assert_int_equal(shard_document_of(&shard, begin), d);
            if (d > 0) assert_int_equal(shard_document_of(&shard, begin - 1), d - 1);
        }
        size_t offset = (size_t)((const char *)shard.ids - (const char *)shard.map.data);
        if (tokens * rows[r].bytes >= 4096) assert_int_equal(offset % (1 << 20), 0);
        free(ids);
        shard_close(&shard);
        shard_close(&shard);
    }
    shard_close(NULL);
}

static void test_empty(void **state) {
    (void)state;
    struct shard_info info = info_of(10);
    struct shard_writer *writer;
    struct shard shard;
    ok(shard_writer_open(scratch_path("empty.h5"), &info, &writer));
    ok(shard_writer_append(writer, NULL, 0, true));
    ok(shard_writer_close(&writer));
    ok(shard_open(scratch_path("empty.h5"), &shard));
    ok(shard_verify(&shard));
    assert_true(shard.info.tokens == 0 && shard.info.documents == 0);
    shard_close(&shard);
}

/* The same contents give the same bytes, whenever they are written. */
static void test_same_bytes(void **state) {
    (void)state;
    uint64_t first, second;
    write_shard(scratch_path("same.h5"), 1009, 3, 7000);
    ok(hash_file(scratch_path("same.h5"), &first));
    sleep(1);
    ok(file_remove_tree(scratch_path("same.h5")));
    write_shard(scratch_path("same.h5"), 1009, 3, 7000);
    ok(hash_file(scratch_path("same.h5"), &second));
    assert_true(first == second);
}

static void count_files(const char *directory, size_t expected) {
    char **names;
    size_t count;
    ok(file_list(directory, &names, &count));
    assert_int_equal(count, expected);
    file_free_list(names, count);
}

static void test_writer_refuses(void **state) {
    (void)state;
    struct shard_info info = info_of(10);
    struct shard_writer *writer;
    uint32_t ids[3] = {1, 9, 10};
    ok(file_make_directory(scratch_path("writer")));
    ok(shard_writer_open(scratch_path("writer/x.h5"), &info, &writer));
    ok(shard_writer_append(writer, ids, 2, false));
    refused("id", shard_writer_append(writer, ids, 3, false), STATUS_FAILED,
            "x.h5: token 4: expected an id below 10, found 10");
    shard_writer_abort(&writer);
    assert_null(writer);
    shard_writer_abort(&writer);
    shard_writer_abort(NULL);
    count_files(scratch_path("writer"), 0);
    info.vocabulary = 0;
    refused("vocabulary", shard_writer_open(scratch_path("writer/x.h5"), &info, &writer), STATUS_FAILED, "vocabulary");
    info.vocabulary = 10;
    refused("directory", shard_writer_open(scratch_path("absent/x.h5"), &info, &writer), STATUS_IO, "absent/x.h5");
    assert_null(writer);
    /* The first token begins a document even when nobody said so. */
    struct shard shard;
    ok(shard_writer_open(scratch_path("writer/x.h5"), &info, &writer));
    ok(shard_writer_append(writer, ids, 2, false));
    ok(shard_writer_close(&writer));
    count_files(scratch_path("writer"), 1);
    ok(shard_open(scratch_path("writer/x.h5"), &shard));
    assert_true(shard.info.documents == 1 && shard.documents[0] == 0);
    shard_close(&shard);
}

/* A shard written by hand, with one thing wrong. */
struct parts {
    const char *format, *skip; /* skip: an attribute that is left out */
    int64_t version, vocabulary, end_of_text, tokens_count, documents_count;
    enum dtype tokens_dtype, documents_dtype;
    uint64_t documents[3];
    uint16_t tokens[6];
    bool no_tokens, no_documents, two_dimensions, wrong_hash, wrong_documents_hash, text_vocabulary;
};

static void set_i64(struct h5 *file, const struct parts *parts, const char *name, int64_t value) {
    if (!parts->skip || strcmp(parts->skip, name) != 0) ok(h5_attribute_set_i64(file, "/", name, value));
}

static void set_text(struct h5 *file, const struct parts *parts, const char *name, const char *value) {
    if (!parts->skip || strcmp(parts->skip, name) != 0) ok(h5_attribute_set_text(file, "/", name, value));
}

static void write_parts(const char *path, const struct parts *parts) {
    struct h5 *file;
    uint32_t wide[6];
    for (int i = 0; i < 6; i++) wide[i] = parts->tokens[i];
    ok(h5_create(path, 0, &file));
    set_text(file, parts, "format", parts->format ? parts->format : "squint tokens");
    set_i64(file, parts, "version", parts->version);
    set_text(file, parts, "tokenizer", "t");
    set_i64(file, parts, "tokenizer_hash", 1);
    if (parts->text_vocabulary) {
        set_text(file, parts, "vocabulary", "many");
    } else {
        set_i64(file, parts, "vocabulary", parts->vocabulary);
    }
    set_i64(file, parts, "end_of_text", parts->end_of_text);
    set_text(file, parts, "source", "s");
    set_i64(file, parts, "source_hash", 1);
    set_i64(file, parts, "tokens_count", parts->tokens_count);
    set_i64(file, parts, "documents_count", parts->documents_count);
    uint64_t hash = hash_bytes(parts->tokens, sizeof parts->tokens) + parts->wrong_hash;
    if (!parts->skip || strcmp(parts->skip, "tokens_hash") != 0) {
        ok(h5_attribute_set_u64(file, "/", "tokens_hash", hash));
    }
    if (!parts->skip || strcmp(parts->skip, "documents_hash") != 0) {
        hash = hash_bytes(parts->documents, sizeof parts->documents) + parts->wrong_documents_hash;
        ok(h5_attribute_set_u64(file, "/", "documents_hash", hash));
    }
    int64_t flat[2] = {6, 0}, square[2] = {2, 3};
    const void *data = parts->tokens_dtype == DTYPE_U16 ? (const void *)parts->tokens : (const void *)wide;
    if (!parts->no_tokens) {
        ok(h5_write(file, "tokens", parts->tokens_dtype, parts->two_dimensions ? 2 : 1,
                    parts->two_dimensions ? square : flat, data));
    }
    if (!parts->no_documents) {
        ok(h5_write(file, "documents", parts->documents_dtype, 1, (int64_t[]){3}, parts->documents));
    }
    ok(h5_publish(&file));
}

static const struct parts good = {.version = 1,
                                  .vocabulary = 100,
                                  .end_of_text = -1,
                                  .tokens_count = 6,
                                  .documents_count = 3,
                                  .tokens_dtype = DTYPE_U16,
                                  .documents_dtype = DTYPE_U64,
                                  .documents = {0, 2, 5},
                                  .tokens = {1, 2, 3, 4, 5, 99}};

static void test_damage(void **state) {
    (void)state;
    struct damage {
        const char *row;
        const char *part;
        struct parts parts;
        bool opens; /* found by verify only */
    } rows[40] = {0};
    int n = 0;
    static const char *const attributes[] = {"version",         "tokenizer",   "tokenizer_hash", "vocabulary",
                                             "end_of_text",     "source",      "source_hash",    "tokens_count",
                                             "documents_count", "tokens_hash", "documents_hash"};
    static char texts[16][64];
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        snprintf(texts[i], 64, "expected attribute %s, found none", attributes[i]);
        rows[n] = (struct damage){attributes[i], texts[i], good, false};
        rows[n++].parts.skip = attributes[i];
    }
#define ROW(name, message, change, finds_late)                                                                         \
    rows[n] = (struct damage){name, message, good, finds_late};                                                        \
    rows[n++].parts.change
    ROW("no format", "expected a token shard", skip = "format", false);
    ROW("other format", "expected \"squint tokens\", found \"songs\"", format = "songs", false);
    ROW("version", "attribute version: expected 1, found 2", version = 2, false);
    ROW("vocabulary 0", "attribute vocabulary: expected 1 to", vocabulary = 0, false);
    ROW("vocabulary text", "attribute vocabulary: expected one whole number", text_vocabulary = true, false);
    ROW("end of text", "attribute end_of_text: expected -1 to 99, found 100", end_of_text = 100, false);
    ROW("count", "/tokens: expected 7 numbers of type u16", tokens_count = 7, false);
    ROW("negative count", "tokens_count: expected 0 or more, found -6", tokens_count = -6, false);
    ROW("huge count", "tokens_count: expected", tokens_count = INT64_MAX, false);
    ROW("documents count", "/documents: expected 2 numbers", documents_count = 2, false);
    ROW("dtype", "/tokens: expected 6 numbers of type u16 in one dimension, found 6 of type u32",
        tokens_dtype = DTYPE_U32, false);
    ROW("documents dtype", "/documents: expected 3 numbers of type u64", documents_dtype = DTYPE_I64, false);
    ROW("no tokens", "/tokens: cannot open", no_tokens = true, false);
    ROW("no documents", "/documents: cannot open", no_documents = true, false);
    ROW("dimensions", "in one dimension, found 6 of type u16 in 2", two_dimensions = true, false);
    ROW("descending", "entry 2: expected a start from 5 to 5, found 3", documents[1] = 4;
        rows[n - 1].parts.documents[2] = 3, false);
    ROW("late first", "entry 0: expected a start from 0 to 0, found 1", documents[0] = 1, false);
    ROW("beyond", "entry 2: expected a start from 3 to 5, found 6", documents[2] = 6, false);
    ROW("documents hash", "/documents: expected hash", wrong_documents_hash = true, false);
    ROW("id", "token 1: expected an id below 100, found 100", tokens[1] = 100, true);
    ROW("hash", "/tokens: expected hash", wrong_hash = true, true);
    for (int i = 0; i < n; i++) {
        struct shard shard;
        const char *path = scratch_path("damaged.h5");
        write_parts(path, &rows[i].parts);
        enum status status = shard_open(path, &shard);
        if (rows[i].opens) {
            ok(status);
            status = shard_verify(&shard);
        }
        refused(rows[i].row, status, STATUS_DAMAGED, rows[i].part);
        shard_close(&shard);
    }
    struct shard shard;
    write_parts(scratch_path("good.h5"), &good);
    ok(shard_open(scratch_path("good.h5"), &shard));
    ok(shard_verify(&shard));
    shard_close(&shard);
}

/* Every byte of a small shard flipped in turn: found, or of no consequence (a gap, or an address's unused bits). */
static void test_flipped_bytes(void **state) {
    (void)state;
    struct file_map map;
    struct shard whole;
    write_parts(scratch_path("small.h5"), &good);
    ok(shard_open(scratch_path("small.h5"), &whole));
    ok(file_map_open(scratch_path("small.h5"), &map));
    ok(file_write(scratch_path("flipped.h5"), map.data, map.bytes));
    int flipped = open(scratch_path("flipped.h5"), O_RDWR);
    size_t found = 0, token_bytes = sizeof good.tokens;
    size_t tokens_at = (size_t)((const char *)whole.ids - (const char *)whole.map.data);
    for (size_t i = 0; i < map.bytes; i++) {
        struct shard shard;
        const char right = ((const char *)map.data)[i], wrong = (char)(right ^ 0x10);
        assert_int_equal(pwrite(flipped, &wrong, 1, (off_t)i), 1);
        enum status status = shard_open(scratch_path("flipped.h5"), &shard);
        if (status == STATUS_OK) status = shard_verify(&shard);
        if (status == STATUS_OK) {
            if (i >= tokens_at && i < tokens_at + token_bytes) fail_msg("byte %zu of the tokens: not found", i);
            assert_memory_equal(shard.ids, good.tokens, token_bytes);
            assert_int_equal(shard.info.tokens, whole.info.tokens);
            assert_true(shard.info.tokenizer_hash == whole.info.tokenizer_hash);
            assert_memory_equal(shard.documents, whole.documents, sizeof good.documents);
        } else {
            assert_int_equal(status, STATUS_DAMAGED);
            found++;
        }
        error_clear();
        shard_close(&shard);
        assert_int_equal(pwrite(flipped, &right, 1, (off_t)i), 1);
    }
    assert_true(found > 500);
    close(flipped);
    file_map_close(&map);
    shard_close(&whole);
}

static void test_not_a_shard(void **state) {
    (void)state;
    struct shard shard;
    struct file_map map;
    ok(file_write(scratch_path("text.h5"), "once upon a time", 16));
    refused("text", shard_open(scratch_path("text.h5"), &shard), STATUS_DAMAGED, "expected an HDF5 file");
    refused("absent", shard_open(scratch_path("absent.h5"), &shard), STATUS_NOT_FOUND, "absent.h5");
    refused("directory", shard_open(scratch, &shard), STATUS_IO, "is a directory");
    write_shard(scratch_path("cut.h5"), 1000, 3, 70000);
    ok(file_map_open(scratch_path("cut.h5"), &map));
    char *copy = malloc(map.bytes);
    memcpy(copy, map.data, map.bytes);
    size_t bytes = map.bytes;
    file_map_close(&map);
    for (size_t cut = 1; cut < bytes; cut = cut * 2 + 1) {
        ok(file_write(scratch_path("cut.h5"), copy, bytes - cut));
        refused("cut", shard_open(scratch_path("cut.h5"), &shard), STATUS_DAMAGED, "cut.h5");
    }
    free(copy);
}

int main(int argc, char **argv) {
    /* For check_h5py.py. */
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        write_shard(argv[2], 1009, 3, 7000);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_empty),  cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_writer_refuses), cmocka_unit_test(test_damage), cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_not_a_shard),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
