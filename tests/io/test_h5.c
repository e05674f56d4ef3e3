/* The HDF5 wrapper: round trips of every type, attributes, virtual datasets, and what is said of bad files. */
#include "io/h5.h"

#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/scratch.h"

static void ok(enum status status) {
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error_message());
}

static void refused(enum status status, enum status expected, const char *part) {
    if (status != expected || !strstr(error_message(), part)) {
        fail_msg("expected %s with \"%s\", found %s: \"%s\"", status_name(expected), part, status_name(status),
                 error_message());
    }
    error_clear();
}

static const struct {
    const char *row;
    enum dtype dtype;
    int rank;
    int64_t shape[4];
} datasets[] = {
    {"one number", DTYPE_F64, 0, {0}},
    {"f32", DTYPE_F32, 1, {1009}},
    {"f64", DTYPE_F64, 2, {7, 3}},
    {"f16", DTYPE_F16, 1, {5}},
    {"bf16", DTYPE_BF16, 1, {5}},
    {"i32", DTYPE_I32, 3, {2, 3, 5}},
    {"i64", DTYPE_I64, 4, {2, 1, 3, 2}},
    {"u8", DTYPE_U8, 1, {1}},
    {"groups/in/groups/u16", DTYPE_U16, 1, {129}},
    {"u32", DTYPE_U32, 2, {1, 7}},
    {"u64", DTYPE_U64, 1, {3}},
    {"empty", DTYPE_F32, 1, {0}},
    {"empty rows", DTYPE_F32, 2, {0, 4}},
    {"large", DTYPE_U8, 1, {5 << 20}},
};
enum { DATASETS = sizeof datasets / sizeof *datasets };

static int64_t count_of(int row) {
    int64_t count = 1;
    for (int i = 0; i < datasets[row].rank; i++) count *= datasets[row].shape[i];
    return count;
}

/* Bytes that are finite numbers in every type and differ from element to element. */
static unsigned char *content(int row) {
    size_t bytes = (size_t)count_of(row) * dtype_size(datasets[row].dtype);
    unsigned char *data = malloc(bytes + 1);
    assert_non_null(data);
    for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)((i * 7 + (size_t)row) % 113);
    return data;
}

static void test_datasets(void **state) {
    (void)state;
    struct h5 *file;
    ok(h5_create(scratch_path("data.h5"), 1 << 20, &file));
    for (int r = 0; r < DATASETS; r++) {
        unsigned char *data = content(r);
        ok(h5_write(file, datasets[r].row, datasets[r].dtype, datasets[r].rank, datasets[r].shape, data));
        free(data);
    }
    assert_false(file_exists(scratch_path("data.h5")));
    ok(h5_publish(&file));
    assert_null(file);
    ok(h5_open(scratch_path("data.h5"), &file));
    struct file_map map;
    ok(file_map_open(scratch_path("data.h5"), &map));
    for (int r = 0; r < DATASETS; r++) {
        struct h5_dataset found;
        unsigned char *expected = content(r);
        size_t bytes = (size_t)count_of(r) * dtype_size(datasets[r].dtype);
        unsigned char *back = malloc(bytes + 1);
        ok(h5_dataset_find(file, datasets[r].row, &found));
        assert_int_equal(found.dtype, datasets[r].dtype == DTYPE_BF16 ? DTYPE_U16 : datasets[r].dtype);
        assert_int_equal(found.rank, datasets[r].rank);
        for (int i = 0; i < found.rank; i++) assert_int_equal(found.shape[i], datasets[r].shape[i]);
        ok(h5_read(file, datasets[r].row, datasets[r].dtype, 0, found.count, back));
        if (memcmp(back, expected, bytes) != 0) fail_msg("%s: other bytes come back", datasets[r].row);
        if (bytes > 0) assert_memory_equal((const char *)map.data + found.offset, expected, bytes);
        if (bytes >= 1 << 20) assert_int_equal(found.offset % (1 << 20), 0);
        if (bytes == 0) assert_int_equal(found.offset, -1);
        assert_false(found.is_virtual);
        free(expected);
        free(back);
    }
    file_map_close(&map);
    h5_close(&file);
    h5_close(&file);
    h5_close(NULL);
}

static void test_parts(void **state) {
    (void)state;
    struct h5 *file;
    float x[12], y[12] = {0};
    for (int i = 0; i < 12; i++) x[i] = (float)i;
    ok(h5_create(scratch_path("parts.h5"), 0, &file));
    ok(h5_dataset_create(file, "x", DTYPE_F32, 2, (int64_t[]){4, 3}));
    ok(h5_dataset_write(file, "x", DTYPE_F32, 6, 6, x + 6));
    ok(h5_dataset_write(file, "x", DTYPE_F32, 0, 3, x));
    ok(h5_dataset_write(file, "x", DTYPE_F32, 3, 3, x + 3));
    ok(h5_dataset_write(file, "x", DTYPE_F32, 3, 0, NULL));
    refused(h5_dataset_write(file, "x", DTYPE_F32, 1, 3, x), STATUS_SHAPE, "expected whole rows of 3 among 12");
    refused(h5_dataset_write(file, "x", DTYPE_F32, 9, 6, x), STATUS_SHAPE, "found 6 elements from 9");
    refused(h5_dataset_write(file, "x", DTYPE_F32, -3, 3, x), STATUS_SHAPE, "x:");
    refused(h5_dataset_write(file, "z", DTYPE_F32, 0, 3, x), STATUS_FAILED, "z: cannot open the dataset");
    refused(h5_dataset_create(file, "x", DTYPE_F32, 1, (int64_t[]){3}), STATUS_IO, "x: cannot create the dataset");
    refused(h5_dataset_create(file, "w", DTYPE_F32, 5, (int64_t[]){1, 1, 1, 1, 1}), STATUS_SHAPE, "at most 4");
    refused(h5_dataset_create(file, "w", DTYPE_F32, 1, (int64_t[]){-1}), STATUS_SHAPE, "dimension 0");
    ok(h5_publish(&file));
    ok(h5_open(scratch_path("parts.h5"), &file));
    ok(h5_read(file, "x", DTYPE_F32, 3, 6, y));
    assert_memory_equal(x + 3, y, 6 * sizeof *x);
    double wide[3];
    ok(h5_read(file, "x", DTYPE_F64, 9, 3, wide));
    assert_true(wide[0] == 9 && wide[2] == 11);
    ok(h5_read(file, "x", DTYPE_F32, 12, 0, NULL));
    refused(h5_read(file, "nothing", DTYPE_F32, 0, 1, y), STATUS_DAMAGED, "parts.h5: nothing: cannot open");
    struct h5_dataset found;
    refused(h5_dataset_find(file, "nothing", &found), STATUS_NOT_FOUND, "nothing");
    h5_close(&file);
}

static enum status note_attribute(struct h5 *file, const char *name, enum h5_attribute_type type, void *context) {
    (void)file;
    char *list = context;
    sprintf(list + strlen(list), "%s:%d ", name, type);
    return STATUS_OK;
}

static void test_attributes(void **state) {
    (void)state;
    struct h5 *file;
    enum { LONG = 300000 };
    char *text = malloc(LONG + 1), *back = NULL, list[256] = "";
    for (int i = 0; i < LONG; i++) text[i] = (char)('a' + i % 26);
    text[LONG] = '\0';
    uint64_t numbers[3] = {1, UINT64_MAX, 3}, *array = NULL;
    float floats[2] = {0.5f, -1};
    ok(h5_create(scratch_path("attributes.h5"), 0, &file));
    ok(h5_attribute_set_i64(file, "/", "negative", INT64_MIN));
    ok(h5_attribute_set_u64(file, "/", "hash", UINT64_MAX));
    ok(h5_attribute_set_f64(file, "/", "real", 0.1));
    ok(h5_attribute_set_text(file, "/", "text", "größer \xe2\x89\xa5"));
    ok(h5_attribute_set_text(file, "/", "empty", ""));
    ok(h5_attribute_set_text(file, "/", "long", text));
    ok(h5_attribute_set_array(file, "/", "array", DTYPE_U64, 3, numbers));
    ok(h5_attribute_set_array(file, "/", "none", DTYPE_U8, 0, NULL));
    ok(h5_write(file, "x", DTYPE_F32, 1, (int64_t[]){2}, floats));
    ok(h5_attribute_set_array(file, "x", "place", DTYPE_F32, 2, floats));
    refused(h5_attribute_set_i64(file, "/", "hash", 1), STATUS_IO, "attribute hash: cannot write it");
    refused(h5_attribute_set_i64(file, "y", "hash", 1), STATUS_IO, "y, attribute hash");
    ok(h5_publish(&file));
    ok(h5_open(scratch_path("attributes.h5"), &file));
    int64_t integer, count;
    uint64_t hash;
    double real;
    ok(h5_attribute_get_i64(file, "/", "negative", &integer));
    ok(h5_attribute_get_u64(file, "/", "hash", &hash));
    ok(h5_attribute_get_f64(file, "/", "real", &real));
    assert_true(integer == INT64_MIN && hash == UINT64_MAX && real == 0.1);
    ok(h5_attribute_get_text(file, "/", "text", &back));
    assert_string_equal(back, "größer \xe2\x89\xa5");
    free(back);
    ok(h5_attribute_get_text(file, "/", "empty", &back));
    assert_string_equal(back, "");
    free(back);
    ok(h5_attribute_get_text(file, "/", "long", &back));
    assert_string_equal(back, text);
    free(back);
    ok(h5_attribute_get_array(file, "/", "array", DTYPE_U64, &count, &array));
    assert_int_equal(count, 3);
    assert_memory_equal(array, numbers, sizeof numbers);
    free(array);
    ok(h5_attribute_get_array(file, "/", "none", DTYPE_U8, &count, &array));
    assert_int_equal(count, 0);
    free(array);
    ok(h5_attribute_visit(file, "/", note_attribute, list));
    assert_string_equal(list, "array:3 empty:2 hash:0 long:2 negative:0 none:3 real:1 text:2 ");
    assert_true(h5_attribute_exists(file, "x", "place") && !h5_attribute_exists(file, "x", "hash"));
    refused(h5_attribute_get_i64(file, "/", "absent", &integer), STATUS_DAMAGED,
            "expected attribute absent, found none");
    refused(h5_attribute_get_i64(file, "/", "text", &integer), STATUS_DAMAGED, "expected one whole number");
    refused(h5_attribute_get_f64(file, "x", "place", &real), STATUS_DAMAGED, "x, attribute place: expected one number");
    refused(h5_attribute_get_text(file, "/", "real", &back), STATUS_DAMAGED, "expected a text");
    refused(h5_attribute_get_array(file, "/", "array", DTYPE_U8, &count, &array), STATUS_DAMAGED, "an array of u8");
    h5_close(&file);
    free(text);
}

static enum status note_dataset(struct h5 *file, const char *name, void *context) {
    (void)file;
    char *list = context;
    sprintf(list + strlen(list), "%s ", name);
    return strcmp(name, "stop") == 0 ? error_set(STATUS_STOPPED, "stopped") : STATUS_OK;
}

static void test_visit(void **state) {
    (void)state;
    struct h5 *file;
    char list[256] = "";
    float x = 1;
    static const char *const names[] = {"b/two", "stop", "b/one", "z", "a"};
    ok(h5_create(scratch_path("visit.h5"), 0, &file));
    for (int i = 0; i < 5; i++) ok(h5_write(file, names[i], DTYPE_F32, 0, NULL, &x));
    ok(h5_publish(&file));
    ok(h5_open(scratch_path("visit.h5"), &file));
    ok(h5_dataset_visit(file, "b", note_dataset, list));
    assert_string_equal(list, "one two ");
    list[0] = '\0';
    refused(h5_dataset_visit(file, "/", note_dataset, list), STATUS_STOPPED, "stopped");
    assert_string_equal(list, "a b/one b/two stop ");
    refused(h5_dataset_visit(file, "absent", note_dataset, list), STATUS_DAMAGED, "absent");
    h5_close(&file);
}

/* Slices that begin and end in the middle of rows, of every rank of tensor; read from another directory. */
static void test_virtual(void **state) {
    (void)state;
    static const struct {
        const char *row;
        int rank;
        int64_t shape[4];
        int64_t cuts[6]; /* slice s: [cuts[s], cuts[s+1]) */
    } rows[] = {
        {"vector", 1, {17}, {0, 5, 17, 17, 17, 17}},    {"matrix", 2, {5, 7}, {0, 3, 20, 28, 34, 35}},
        {"cube", 3, {3, 4, 5}, {0, 7, 19, 41, 59, 60}}, {"four", 4, {2, 3, 2, 3}, {0, 1, 8, 9, 29, 36}},
        {"thin", 4, {1, 1, 9, 1}, {0, 2, 3, 4, 5, 9}},  {"one slice", 2, {3, 3}, {0, 9, 9, 9, 9, 9}},
        {"one each", 1, {5}, {0, 1, 2, 3, 4, 5}},
    };
    enum { ROWS = sizeof rows / sizeof *rows };
    struct h5 *parts[2], *index;
    char name[64], directory[512];
    ok(file_make_directory(scratch_path("virtual/deep")));
    ok(h5_create(scratch_path("virtual/deep/part-0.h5"), 0, &parts[0]));
    ok(h5_create(scratch_path("virtual/deep/part-1.h5"), 0, &parts[1]));
    ok(h5_create(scratch_path("virtual/deep/index.h5"), 0, &index));
    for (int r = 0; r < ROWS; r++) {
        struct h5_source sources[5];
        static char names[5][64];
        for (int s = 0; s < 5; s++) {
            int64_t first = rows[r].cuts[s], count = rows[r].cuts[s + 1] - first;
            int32_t data[64];
            for (int64_t i = 0; i < count; i++) data[i] = (int32_t)(first + i + 100 * r);
            snprintf(names[s], sizeof names[s], "slices/%s/%d", rows[r].row, s);
            ok(h5_write(parts[s % 2], names[s], DTYPE_I32, 1, &count, data));
            sources[s] = (struct h5_source){s % 2 ? "part-1.h5" : "part-0.h5", names[s], first, count};
        }
        snprintf(name, sizeof name, "tensors/%s", rows[r].row);
        ok(h5_virtual_create(index, name, DTYPE_I32, rows[r].rank, rows[r].shape, sources, 5));
    }
    ok(h5_virtual_create(index, "nothing", DTYPE_F32, 1, (int64_t[]){3}, NULL, 0));
    refused(h5_virtual_create(index, "number", DTYPE_F32, 0, NULL, NULL, 0), STATUS_SHAPE, "number");
    ok(h5_publish(&parts[0]));
    ok(h5_publish(&parts[1]));
    ok(h5_publish(&index));
    snprintf(directory, sizeof directory, "%s", scratch_path("elsewhere"));
    assert_int_equal(rename(scratch_path("virtual"), directory), 0);
    ok(h5_open(scratch_path("elsewhere/deep/index.h5"), &index));
    for (int r = 0; r < ROWS; r++) {
        struct h5_dataset found;
        int32_t data[64];
        snprintf(name, sizeof name, "tensors/%s", rows[r].row);
        ok(h5_dataset_find(index, name, &found));
        assert_true(found.is_virtual && found.offset == -1);
        ok(h5_read(index, name, DTYPE_I32, 0, found.count, data));
        for (int64_t i = 0; i < found.count; i++) {
            if (data[i] != i + 100 * r) {
                fail_msg("%s: element %d: expected %d, found %d", rows[r].row, (int)i, (int)i + 100 * r, data[i]);
            }
        }
    }
    h5_close(&index);
}

static void test_bad_files(void **state) {
    (void)state;
    struct h5 *file;
    ok(file_write(scratch_path("text"), "hello, hello", 12));
    ok(file_write(scratch_path("zero"), "", 0));
    refused(h5_open(scratch_path("absent"), &file), STATUS_NOT_FOUND, "absent: cannot look at it");
    refused(h5_open(scratch_path("text"), &file), STATUS_DAMAGED, "text: expected an HDF5 file, found 12 bytes");
    refused(h5_open(scratch_path("zero"), &file), STATUS_DAMAGED, "found 0 bytes");
    refused(h5_open(scratch, &file), STATUS_IO, "is a directory");
    refused(h5_create(scratch_path("no/such/directory"), 0, &file), STATUS_IO, "No such file");
    assert_false(h5_is_hdf5(scratch_path("absent")));
    /* Cut short, or only the signature left. */
    struct file_map map;
    ok(file_map_open(scratch_path("data.h5"), &map));
    assert_true(h5_is_hdf5(scratch_path("data.h5")));
    ok(file_write(scratch_path("cut"), map.data, map.bytes - 1000));
    ok(file_write(scratch_path("signature"), map.data, 8));
    file_map_close(&map);
    refused(h5_open(scratch_path("cut"), &file), STATUS_DAMAGED, "truncated");
    refused(h5_open(scratch_path("signature"), &file), STATUS_DAMAGED, "signature: cannot open it as HDF5");
}

static void test_thrown_away(void **state) {
    (void)state;
    struct h5 *file;
    char **names;
    size_t count;
    float x[4] = {0};
    ok(file_make_directory(scratch_path("empty")));
    ok(h5_create(scratch_path("empty/x.h5"), 0, &file));
    ok(h5_write(file, "x", DTYPE_F32, 1, (int64_t[]){4}, x));
    h5_close(&file);
    ok(file_list(scratch_path("empty"), &names, &count));
    assert_int_equal(count, 0);
    file_free_list(names, count);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_datasets),    cmocka_unit_test(test_parts),   cmocka_unit_test(test_attributes),
        cmocka_unit_test(test_visit),       cmocka_unit_test(test_virtual), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_thrown_away),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
