/* safetensors: what is read, what is written, and what every malformed file is told. */
#include "base/file.h"
#include "base/rng.h"
#include "io/safetensors.h"

#include "support/check.h"
#include "support/scratch.h"

#include <string.h>
#include <unistd.h>

/* A file with this header and `data` bytes 0, 1, 2, … after it. length -1: the header's true length. */
static void write_raw(const char *path, const char *header, int64_t length, int data) {
    size_t text = strlen(header);
    unsigned char *bytes = calloc(8 + text + (size_t)data + 1, 1);
    assert_non_null(bytes);
    uint64_t said = length == -1 ? text : (uint64_t)length;
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(said >> (8 * i));
    memcpy(bytes + 8, header, text);
    for (int i = 0; i < data; i++) bytes[8 + text + (size_t)i] = (unsigned char)i;
    assert_int_equal(file_write(path, bytes, 8 + text + (size_t)data), STATUS_OK);
    free(bytes);
}

#define ONE(dtype, shape, offsets) "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define ENTRY(name, begin, end)                                                                                        \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #end "],\"data_offsets\":[" #begin "," #end "]}"

static const struct malformed {
    const char *name, *header;
    int64_t length; /* said; −1: true */
    int data;
    const char *message; /* part of it */
} malformed[] = {
    {"header longer than the file", "{}", 1000, 0,
     "expected a length of at most 2 bytes (what the file holds), found 1000"},
    {"header length beyond the limit", "{}", 1ll << 40, 0, "found 1099511627776"},
    {"header length negative", "{}", INT64_MIN, 0, "found 9223372036854775808"},
    {"no header", "", 0, 4, "expected a JSON object that begins with {, found none"},
    {"header is a list", "[]", -1, 0, "expected a JSON object that begins with {, found another character"},
    {"header begins with a space", " {}", -1, 0, "begins with {, found another character"},
    {"header is cut", "{\"a\":{\"dtype\":\"F32\"", -1, 0, "expected JSON without duplicate names"},
    {"header is not UTF-8", "{\"a\xff\":{}}", -1, 0, "expected JSON"},
    {"two tensors of one name", "{" ENTRY("a", 0, 2) "," ENTRY("a", 0, 2) "}", -1, 2, "duplicate"},
    {"metadata is no object", "{\"__metadata__\":3}", -1, 0, "__metadata__: expected an object of texts"},
    {"metadata holds a number", "{\"__metadata__\":{\"a\":3}}", -1, 0, "__metadata__: expected an object of texts"},
    {"tensor is no object", "{\"a\":7}", -1, 0, "tensor a: expected an object with dtype, shape, data_offsets"},
    {"dtype absent", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "tensor a: dtype: expected F32"},
    {"dtype unknown", ONE("\"F31\"", "[1]", "[0,4]"), -1, 4, "found \"F31\""},
    {"dtype is a number", ONE("4", "[1]", "[0,4]"), -1, 4, "found no text"},
    {"shape absent", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", -1, 4, "shape: expected a list"},
    {"shape is negative", ONE("\"F32\"", "[-1]", "[0,4]"), -1, 4, "shape: expected whole numbers from 0"},
    {"shape is a fraction", ONE("\"F32\"", "[1.0]", "[0,4]"), -1, 4, "shape: expected whole numbers from 0"},
    {"shape overflows", ONE("\"F32\"", "[4294967296,4294967296]", "[0,4]"), -1, 4, "beyond 2^63"},
    {"bytes overflow", ONE("\"F64\"", "[4294967296,1073741824]", "[0,8]"), -1, 8, "its data_offsets hold 8"},
    {"nine dimensions", ONE("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), -1, 4, "at most 8 lengths, found a longer one"},
    {"offsets absent", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, "data_offsets: expected [begin, end]"},
    {"offsets are three", ONE("\"F32\"", "[1]", "[0,4,8]"), -1, 4, "data_offsets: expected [begin, end]"},
    {"offsets are reversed", ONE("\"F32\"", "[1]", "[4,0]"), -1, 4, "found [4, 0]"},
    {"offsets are negative", ONE("\"F32\"", "[1]", "[-4,0]"), -1, 4, "found [-4, 0]"},
    {"offsets leave the file", ONE("\"F32\"", "[2]", "[0,8]"), -1, 4, "<= 4 (bytes of data in the file), found [0, 8]"},
    {"bytes and shape disagree", ONE("\"F32\"", "[3]", "[0,8]"), -1, 8,
     "[3] F32 needs 12 bytes, its data_offsets hold 8"},
    {"a hole at the beginning", ONE("\"F32\"", "[1]", "[4,8]"), -1, 8,
     "right after the header, found a hole of 4 bytes"},
    {"an overlap",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
     -1, 6, "tensor b: expected its data right after a, found an overlap of 2 bytes"},
    {"a hole in the middle",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[5,7]}}",
     -1, 7, "tensor b: expected its data right after a, found a hole of 3 bytes"},
    {"bytes that no tensor holds", ONE("\"F32\"", "[1]", "[0,4]"), -1, 7,
     "expected the file to end after a, found 3 more bytes"},
};

static void refuses_malformed_files(void **state) {
    (void)state;
    const char *path = scratch_path("bad.safetensors");
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        const struct malformed *row = &malformed[i];
        struct safetensors set;
        error_clear();
        write_raw(path, row->header, row->length, row->data);
        enum status status = safetensors_open(path, &set);
        if (status != STATUS_DAMAGED || status_exit_code(status) != 3 || !strstr(error_message(), row->message) ||
            !strstr(error_message(), path)) {
            fail_msg("%s: expected STATUS_DAMAGED with \"%s\", found %s: \"%s\"", row->name, row->message,
                     status_name(status), error_message());
        }
        safetensors_close(&set);
    }
    error_clear();
    struct safetensors set;
    assert_int_equal(file_write(path, "1234567", 7), STATUS_OK);
    assert_int_equal(safetensors_open(path, &set), STATUS_DAMAGED);
    assert_non_null(strstr(error_message(), "at least 8 bytes, found 7"));
    error_clear();
    assert_int_equal(file_write(path, "", 0), STATUS_OK);
    assert_int_equal(safetensors_open(path, &set), STATUS_DAMAGED);
    error_clear();
    assert_int_equal(safetensors_open(scratch_path("none"), &set), STATUS_NOT_FOUND);
    error_clear();
}

/* file_write waits for the disk, which a loop cannot afford. */
static void write_quickly(const char *path, const char *data, size_t length) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* Every cut of a good file is refused, and none is read past its end (under the sanitizers). */
static void refuses_every_truncation(void **state) {
    (void)state;
    const char *path = scratch_path("cut.safetensors");
    char *whole = NULL;
    size_t length = 0;
    write_raw(path, "{" ENTRY("a", 0, 4) "}", -1, 4);
    assert_int_equal(file_read(path, &whole, &length), STATUS_OK);
    for (size_t cut = 0; cut < length; cut++) {
        struct safetensors set;
        error_clear();
        write_quickly(path, whole, cut);
        assert_int_equal(safetensors_open(path, &set), STATUS_DAMAGED);
    }
    error_clear();
    free(whole);
}

/* Whatever a byte is turned into, the file is read within its bounds or refused. */
static void survives_changed_bytes(void **state) {
    (void)state;
    const char *path = scratch_path("changed.safetensors");
    char *whole = NULL;
    size_t length = 0;
    int refused = 0;
    write_raw(path,
              "{\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
              "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}",
              -1, 20);
    CHECK_OK(file_read(path, &whole, &length));
    for (uint64_t round = 0; round < 1000; round++) {
        struct safetensors set;
        float out[64];
        char *changed = malloc(length);
        assert_non_null(changed);
        memcpy(changed, whole, length);
        for (uint64_t i = 0; i <= round % 3; i++) {
            uint64_t bits = rng_u64(1, RNG_TEST, 8 * round + i);
            changed[bits % length] = i % 2 ? "0123456789[]{},:\""[bits >> 32 & 15] : (char)(bits >> 40);
        }
        write_quickly(path, changed, length);
        free(changed);
        enum status status = safetensors_open(path, &set);
        if (status != STATUS_OK && status != STATUS_DAMAGED)
            fail_msg("round %lu: %s", (unsigned long)round, error_message());
        refused += status != STATUS_OK;
        error_clear();
        for (int64_t i = 0; i < set.count; i++) {
            const struct safetensors_tensor *t = &set.tensors[i];
            if (t->count <= 64 && safetensors_is_real(t->dtype)) CHECK_OK(safetensors_read(t, 0, 1, t->count, out));
        }
        safetensors_close(&set);
    }
    assert_true(refused > 250 && refused < 1000);
    free(whole);
}

static void reads_every_real_dtype(void **state) {
    (void)state;
    const char *path = scratch_path("dtypes.safetensors");
    /* An odd number of bytes first, so that nothing after it is aligned. */
    const char *header = "{\"odd\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[0,3]},"
                         "\"f16\":{\"dtype\":\"F16\",\"shape\":[7],\"data_offsets\":[3,17]},"
                         "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[17,25]},"
                         "\"f64\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[25,41]},"
                         "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[41,45]},"
                         "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[45,45]}}  ";
    const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x03ff, 0x7bff, 0xfc00, 0x8000};
    const uint16_t brains[] = {0x3f80, 0xc040, 0x7f80, 0x0001};
    const double wides[] = {1.0 / 3.0, -2.5e300};
    const float scalar = 42.5f;
    write_raw(path, header, -1, 45);
    char *bytes = NULL;
    size_t length = 0;
    assert_int_equal(file_read(path, &bytes, &length), STATUS_OK);
    char *data = bytes + 8 + strlen(header);
    memcpy(data + 3, halves, sizeof halves);
    memcpy(data + 17, brains, sizeof brains);
    memcpy(data + 25, wides, sizeof wides);
    memcpy(data + 41, &scalar, sizeof scalar);
    assert_int_equal(file_write(path, bytes, length), STATUS_OK);
    free(bytes);

    struct safetensors set;
    float out[8];
    assert_int_equal(safetensors_open(path, &set), STATUS_OK);
    assert_int_equal(set.count, 6);
    const struct safetensors_tensor *tensor = safetensors_find(&set, "f16");
    assert_int_equal(safetensors_read(tensor, 0, 1, 7, out), STATUS_OK);
    const float expected[] = {1, -2, 0x1p-24f, 1023 * 0x1p-24f, 65504, -__builtin_inff(), -0.0f};
    assert_memory_equal(out, expected, sizeof expected);
    assert_int_equal(safetensors_read(tensor, 1, 3, 2, out), STATUS_OK); /* elements 1 and 4 */
    assert_true(out[0] == -2 && out[1] == 65504);
    assert_int_equal(safetensors_read(safetensors_find(&set, "bf16"), 0, 1, 4, out), STATUS_OK);
    assert_true(out[0] == 1 && out[1] == -3 && out[2] == __builtin_inff() && out[3] == 0x1p-133f);
    assert_int_equal(safetensors_read(safetensors_find(&set, "f64"), 0, 1, 2, out), STATUS_OK);
    assert_true(out[0] == (float)(1.0 / 3.0) && out[1] == -__builtin_inff());
    assert_int_equal(safetensors_find(&set, "scalar")->count, 1);
    assert_int_equal(safetensors_read(safetensors_find(&set, "scalar"), 0, 1, 1, out), STATUS_OK);
    assert_true(out[0] == 42.5f);
    assert_int_equal(safetensors_find(&set, "empty")->count, 0);
    assert_null(safetensors_find(&set, "f1"));
    assert_null(safetensors_find(&set, "zzz"));

    assert_int_equal(safetensors_read(safetensors_find(&set, "odd"), 0, 1, 3, out), STATUS_SHAPE);
    assert_non_null(strstr(error_message(), "tensor odd: expected F32, F16, BF16 or F64, found BOOL"));
    error_clear();
    const struct {
        int64_t first, step, count;
    } outside[] = {{0, 1, 8}, {7, 1, 1}, {-1, 1, 1}, {0, 0, 2}, {1, 3, 3}, {6, INT64_MAX, 2}};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        assert_int_equal(safetensors_read(tensor, outside[i].first, outside[i].step, outside[i].count, out),
                         STATUS_SHAPE);
        error_clear();
    }
    for (int64_t i = 0; i < set.count; i++) safetensors_forget(&set.tensors[i]);
    safetensors_close(&set);
    safetensors_close(&set);
    safetensors_close(NULL);
}

static const struct safetensors_entry entries[] = {
    {"z", 2, {2, 3}}, {"a", 1, {5}}, {"scalar", 0, {0}}, {"none", 2, {0, 9}}};

static void write_entries(const char *path, int64_t pieces) {
    struct safetensors_writer *writer;
    float values[12];
    for (int i = 0; i < 12; i++) values[i] = (float)i / 3;
    assert_int_equal(safetensors_create(path, entries, 4, &writer), STATUS_OK);
    for (int64_t i = 0; i < 12; i += pieces) assert_int_equal(safetensors_write(writer, values + i, pieces), STATUS_OK);
    assert_int_equal(safetensors_finish(&writer), STATUS_OK);
    assert_null(writer);
}

static void writes_what_it_reads(void **state) {
    (void)state;
    const char *one = scratch_path("one.safetensors"), *two = scratch_path("two.safetensors");
    write_entries(one, 12);
    write_entries(two, 3);
    char *left = NULL, *right = NULL;
    size_t left_length = 0, right_length = 0;
    assert_int_equal(file_read(one, &left, &left_length), STATUS_OK);
    assert_int_equal(file_read(two, &right, &right_length), STATUS_OK);
    assert_int_equal(left_length, right_length);
    assert_memory_equal(left, right, left_length);
    assert_int_equal((left_length - 12 * sizeof(float)) % 64, 0);
    free(left);
    free(right);
    struct safetensors set;
    float out[6];
    assert_int_equal(safetensors_open(one, &set), STATUS_OK);
    assert_int_equal(set.count, 4);
    assert_int_equal(safetensors_read(safetensors_find(&set, "a"), 0, 1, 5, out), STATUS_OK);
    for (int i = 0; i < 5; i++) assert_true(out[i] == (float)(6 + i) / 3);
    assert_int_equal(safetensors_find(&set, "z")->shape[1], 3);
    safetensors_close(&set);
}

static void publishes_nothing_unfinished(void **state) {
    (void)state;
    struct safetensors_writer *writer;
    const float values[12] = {0};
    const char *path = scratch_path("part.safetensors");
    assert_int_equal(safetensors_create(path, entries, 4, &writer), STATUS_OK);
    assert_int_equal(safetensors_write(writer, values, 11), STATUS_OK);
    assert_int_equal(safetensors_finish(&writer), STATUS_SHAPE);
    assert_non_null(strstr(error_message(), "expected 12 values to be written, found 11"));
    error_clear();
    assert_int_equal(safetensors_create(path, entries, 4, &writer), STATUS_OK);
    safetensors_discard(&writer);
    safetensors_discard(&writer);
    const struct safetensors_entry twice[] = {{"a", 1, {5}}, {"a", 1, {5}}};
    assert_int_equal(safetensors_create(path, twice, 2, &writer), STATUS_FAILED);
    error_clear();
    assert_int_equal(safetensors_create("/proc/none/x.safetensors", entries, 4, &writer), STATUS_IO);
    error_clear();
    char **names = NULL;
    size_t count = 0;
    assert_int_equal(file_list(scratch, &names, &count), STATUS_OK);
    for (size_t i = 0; i < count; i++) assert_null(strstr(names[i], "part"));
    file_free_list(names, count);
}

/* /dev/full refuses every write: the fault is reported and the temporary file is gone. */
static void reports_a_full_disk(void **state) {
    (void)state;
    struct safetensors_writer *writer;
    const char *path = scratch_path("full.safetensors");
    char temporary[600];
    snprintf(temporary, sizeof temporary, "%s.tmp-%ld", path, (long)getpid());
    assert_int_equal(symlink("/dev/full", temporary), 0);
    float *values = calloc(1 << 20, sizeof *values);
    assert_non_null(values);
    const struct safetensors_entry entry = {"a", 1, {1 << 20}};
    assert_int_equal(safetensors_create(path, &entry, 1, &writer), STATUS_OK);
    enum status status = safetensors_write(writer, values, 1 << 20);
    if (status == STATUS_OK) status = safetensors_finish(&writer);
    safetensors_discard(&writer);
    free(values);
    assert_int_equal(status, STATUS_IO);
    assert_non_null(strstr(error_message(), "No space left"));
    error_clear();
    assert_false(file_exists(path));
    assert_int_equal(access(temporary, F_OK), -1);
}

static const struct bad_index {
    const char *name, *json, *message;
} bad_indices[] = {
    {"not JSON", "{", "model.safetensors.index.json: expected JSON"},
    {"no weight_map", "{\"metadata\":{}}", "expected an object weight_map, found none"},
    {"a path that leaves the directory", "{\"weight_map\":{\"a\":\"../x.safetensors\"}}",
     "files in the same directory, found \"../x"},
    {"a hidden file", "{\"weight_map\":{\"a\":\"..\"}}", "files in the same directory, found \"..\""},
    {"a file that is no text", "{\"weight_map\":{\"a\":1}}", "found \"(no text)\""},
    {"a file that is not there", "{\"weight_map\":{\"a\":\"three.safetensors\"}}", "three.safetensors: cannot open it"},
    {"a tensor in no file",
     "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"two.safetensors\"}}",
     "weight_map: c: expected in two.safetensors, found no such tensor in any file"},
    {"a tensor in another file", "{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}}",
     "weight_map: a: expected in two.safetensors, found one.safetensors"},
    {"a tensor that the index lacks", "{\"weight_map\":{\"a\":\"one.safetensors\",\"d\":\"four.safetensors\"}}",
     "weight_map: has no entry for tensor e of"},
    {"a tensor in two files", "{\"weight_map\":{\"a\":\"one.safetensors\",\"x\":\"five.safetensors\"}}",
     "tensor a: is in"},
};

static void reads_several_files(void **state) {
    (void)state;
    char path[600];
    struct safetensors set;
    const char *directory = scratch_path("sharded");
    assert_int_equal(file_make_directory(directory), STATUS_OK);
    assert_int_equal(safetensors_open_directory(directory, &set), STATUS_NOT_FOUND);
    assert_non_null(
        strstr(error_message(), "expected model.safetensors or model.safetensors.index.json, found neither"));
    error_clear();
    static const struct {
        const char *file, *header;
        int data;
    } files[] = {{"one", "{" ENTRY("a", 0, 2) "}", 2},
                 {"two", "{" ENTRY("b", 0, 3) "}", 3},
                 {"four", "{" ENTRY("d", 0, 1) ",\"e\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2},
                 {"five", "{" ENTRY("a", 0, 2) "}", 2}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s.safetensors", directory, files[i].file);
        write_raw(path, files[i].header, -1, files[i].data);
    }
    snprintf(path, sizeof path, "%s/pytorch_model.bin", directory);
    assert_int_equal(file_write(path, "", 0), STATUS_OK);
    assert_int_equal(safetensors_open_directory(directory, &set), STATUS_NOT_FOUND);
    assert_non_null(strstr(error_message(), "pytorch_model.bin is not read"));
    error_clear();
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    for (size_t i = 0; i < sizeof bad_indices / sizeof *bad_indices; i++) {
        const struct bad_index *row = &bad_indices[i];
        assert_int_equal(file_write(path, row->json, strlen(row->json)), STATUS_OK);
        enum status status = safetensors_open_directory(directory, &set);
        if (status != STATUS_DAMAGED || !strstr(error_message(), row->message)) {
            fail_msg("%s: expected \"%s\", found %s: \"%s\"", row->name, row->message, status_name(status),
                     error_message());
        }
        error_clear();
    }
    const char *good = "{\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}";
    assert_int_equal(file_write(path, good, strlen(good)), STATUS_OK);
    assert_int_equal(safetensors_open_directory(directory, &set), STATUS_OK);
    assert_int_equal(set.count, 2);
    assert_string_equal(set.tensors[0].name, "a");
    assert_int_equal(set.tensors[1].bytes, 3);
    safetensors_close(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_malformed_files), cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(survives_changed_bytes),  cmocka_unit_test(reads_every_real_dtype),
        cmocka_unit_test(writes_what_it_reads),    cmocka_unit_test(publishes_nothing_unfinished),
        cmocka_unit_test(reports_a_full_disk),     cmocka_unit_test(reads_several_files),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
