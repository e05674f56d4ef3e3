/* The base library: views, arenas, random numbers, files that appear whole, texts for people. */
#include "support/check.h"

#include "base/arena.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/squint-base-XXXXXX");
    return mkdtemp(folder) ? 0 : 1;
}

static int remove_folder(void **state) {
    (void)state;
    return file_remove_tree(folder) == STATUS_OK ? 0 : 1;
}

static void test_errors(void **state) {
    (void)state;
    assert_string_equal(error_message(), "");
    assert_int_equal(error_set(STATUS_USAGE, "first %d", 1), STATUS_USAGE);
    assert_int_equal(error_set(STATUS_IO, "second"), STATUS_IO);
    assert_string_equal(error_message(), "first 1"); /* the first error wins */
    error_prefix(STATUS_USAGE, "place %s", "x");
    assert_string_equal(error_message(), "place x: first 1");
    char longest[4096];
    memset(longest, 'y', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    error_prefix(STATUS_USAGE, "%s", longest);
    assert_int_equal(strlen(error_message()), 2047);
    error_clear();
    const struct {
        enum status status;
        int code;
    } codes[] = {{STATUS_OK, 0}, {STATUS_FAILED, 1}, {STATUS_USAGE, 2}, {STATUS_DAMAGED, 3}, {STATUS_STOPPED, 75},
                 {STATUS_COMM, 1}, {STATUS_MEMORY, 1}};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        assert_int_equal(status_exit_code(codes[i].status), codes[i].code);
    }
    assert_string_equal(status_name(STATUS_DAMAGED), "damaged");
    assert_string_equal(status_name((enum status)99), "unknown");
}

static void test_views(void **state) {
    (void)state;
    float data[2 * 3 * 10];
    char text[64];
    for (int i = 0; i < 60; i++) data[i] = (float)i;
    struct tensor matrix = tensor_2d(data, DTYPE_F32, 6, 10);
    struct tensor part = tensor_columns(matrix, 2, 8);
    assert_false(tensor_is_contiguous(part));
    assert_true(tensor_is_contiguous(tensor_rows(matrix, 1, 3)));
    struct tensor heads = tensor_split_heads(part, 2, 3, 4, 2); /* [2,3,4,2] */
    const float *at = (const float *)heads.data + heads.stride[0] + 2 * heads.stride[1] + 3 * heads.stride[2] + 1;
    assert_true(*at == (float)(5 * 10 + 2 + 3 * 2 + 1));
    assert_int_equal(tensor_count(heads), 48);
    assert_int_equal(tensor_bytes(tensor_1d(NULL, DTYPE_BF16, 7)), 14);
    assert_false(tensor_present(tensor_none()));
    assert_int_equal(tensor_count(tensor_none()), 0);
    assert_true(tensor_same_shape(matrix, tensor_2d(NULL, DTYPE_F64, 6, 10)));
    assert_false(tensor_same_shape(matrix, tensor_2d(NULL, DTYPE_F32, 6, 11)));
    assert_false(tensor_same_shape(matrix, tensor_3d(NULL, DTYPE_F32, 6, 10, 1)));
    struct tensor rows = tensor_as_rows(tensor_4d(data, DTYPE_F32, 2, 3, 5, 2));
    assert_int_equal(rows.shape[0], 30);
    tensor_describe(tensor_3d(NULL, DTYPE_I32, 2, 3, 4), text, sizeof text);
    assert_string_equal(text, "[2,3,4] i32");
}

static void test_arena(void **state) {
    (void)state;
    struct arena sizing = arena_sizing();
    arena_take(&sizing, 1);
    size_t mark = arena_mark(&sizing);
    assert_null(arena_2d(&sizing, DTYPE_F64, 100, 10).data);
    arena_release(&sizing, mark);
    arena_1d(&sizing, DTYPE_I32, 5);
    assert_int_equal(sizing.peak, 256 + 8192); /* 8,000 bytes rounded up */
    char *block = aligned_alloc(256, sizing.peak);
    struct arena placing = arena_placing(block, sizing.peak);
    assert_ptr_equal(arena_take(&placing, 1), block);
    assert_ptr_equal(arena_3d(&placing, DTYPE_F64, 10, 10, 10).data, block + 256);
    assert_false(placing.overflow);
    assert_null(arena_take(&placing, 1));
    assert_true(placing.overflow);
    free(block);
}

/* Known answer of Philox4x32-10 from the authors' own test vectors (Random123, kat_vectors). */
static void test_random_numbers(void **state) {
    (void)state;
    uint32_t words[4];
    rng_block(0, 0, 0, words);
    assert_int_equal(words[0], 0x6627e8d5u);
    assert_int_equal(words[1], 0xe169c58du);
    assert_int_equal(words[2], 0xbc57ac4cu);
    assert_int_equal(words[3], 0x9b00dbd8u);
    rng_block(UINT64_MAX, UINT64_MAX, UINT64_MAX, words);
    assert_int_equal(words[0], 0x408f276du);
    assert_int_equal(words[1], 0x41c83b0eu);
    double mean = 0, square = 0, uniform = 0;
    const int count = 100000;
    for (int i = 0; i < count; i++) {
        double x = rng_normal(1, RNG_TEST, (uint64_t)i), u = rng_uniform(1, RNG_TEST, (uint64_t)i);
        mean += x / count;
        square += x * x / count;
        uniform += u / count;
        assert_true(u >= 0 && u < 1);
        assert_true(rng_below(1, RNG_TEST, (uint64_t)i, 7) < 7);
    }
    assert_true(fabs(mean) < 0.02 && fabs(square - 1) < 0.02 && fabs(uniform - 0.5) < 0.005);
    assert_true(rng_u64(1, rng_substream(RNG_TEST, 1), 0) != rng_u64(1, rng_substream(RNG_TEST, 2), 0));
}

static void test_permutation(void **state) {
    (void)state;
    const uint64_t counts[] = {1, 2, 3, 7, 64, 129, 1000, 4097};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        unsigned char seen[4097] = {0};
        uint64_t fixed = 0;
        for (uint64_t i = 0; i < counts[c]; i++) {
            uint64_t place = rng_permute(5, RNG_ORDER, i, counts[c]);
            assert_true(place < counts[c] && !seen[place]);
            seen[place] = 1;
            fixed += place == i;
        }
        if (counts[c] > 100) assert_true(fixed < 10); /* about one is expected */
    }
}

static void test_files(void **state) {
    (void)state;
    char *path = NULL, *data = NULL, **names = NULL;
    size_t length, count;
    int64_t bytes;
    uint64_t hash;
    char text[17];
    CHECK_OK(memory_format(&path, "%s/a/b", folder));
    CHECK_OK(file_make_directory(path));
    CHECK_OK(file_make_directory(path)); /* again is fine */
    assert_true(file_is_directory(path));
    free(path);
    CHECK_OK(file_join(folder, "a/b/x.txt", &path));
    CHECK_OK(file_write(path, "hello", 5));
    CHECK_OK(file_write(path, "hi", 2)); /* replaces */
    CHECK_OK(file_read(path, &data, &length));
    assert_int_equal(length, 2);
    assert_string_equal(data, "hi");
    CHECK_OK(file_size(path, &bytes));
    assert_int_equal(bytes, 2);
    CHECK_OK(hash_file(path, &hash));
    assert_true(hash == hash_bytes("hi", 2));
    hash_text(0xabc, text);
    assert_string_equal(text, "0000000000000abc");
    assert_true(hash_combine(1, 2) != hash_combine(2, 1));
    struct file_map map;
    CHECK_OK(file_map_open(path, &map));
    assert_memory_equal(map.data, "hi", 2);
    file_map_close(&map);
    file_map_close(&map);
    free(data);
    free(path);
    CHECK_OK(file_join(folder, "a/b/*.txt", &path));
    CHECK_OK(file_glob(path, &names, &count));
    assert_int_equal(count, 1);
    file_free_list(names, count);
    free(path);
    CHECK_OK(file_join(folder, "a/b", &path));
    CHECK_OK(file_list(path, &names, &count)); /* no temporary file stays */
    assert_int_equal(count, 1);
    assert_string_equal(names[0], "x.txt");
    file_free_list(names, count);
    CHECK_STATUS(STATUS_IO, file_read(path, &data, &length)); /* a directory */
    CHECK_OK(file_remove_tree(path));
    assert_false(file_exists(path));
    CHECK_OK(file_remove_tree(path));
    free(path);
    file_free_list(NULL, 0);
}

static void test_file_faults(void **state) {
    (void)state;
    char *data, **names;
    size_t length, count;
    int64_t bytes;
    uint64_t hash;
    struct file_map map;
    char deep[5000];
    const char *absent = "/nowhere/at/all";
    memset(deep, 'd', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    CHECK_STATUS(STATUS_NOT_FOUND, file_read(absent, &data, &length));
    CHECK_STATUS(STATUS_NOT_FOUND, file_size(absent, &bytes));
    CHECK_STATUS(STATUS_NOT_FOUND, file_glob("/nowhere/*", &names, &count));
    CHECK_STATUS(STATUS_NOT_FOUND, file_list(absent, &names, &count));
    CHECK_STATUS(STATUS_NOT_FOUND, file_map_open(absent, &map));
    CHECK_STATUS(STATUS_NOT_FOUND, hash_file(absent, &hash));
    CHECK_STATUS(STATUS_NOT_FOUND, file_write(absent, "x", 1));
    CHECK_STATUS(STATUS_NOT_FOUND, file_sync(absent));
    CHECK_STATUS(STATUS_NOT_FOUND, file_publish(absent, "/tmp/never"));
    CHECK_STATUS(STATUS_USAGE, file_write(folder, "x", 1)); /* a directory is not replaced */
    assert_true(file_is_directory(folder));
    CHECK_STATUS(STATUS_IO, file_make_directory(deep));
    CHECK_STATUS(STATUS_IO, file_make_directory("/dev/null/x"));
    CHECK_STATUS(STATUS_IO, file_make_directory("/dev/null"));
}

static void test_texts(void **state) {
    (void)state;
    char text[32];
    const struct {
        double seconds;
        const char *text;
    } times[] = {{0, "0s"}, {59.4, "59s"}, {62, "1m 02s"}, {3600 * 3 + 240, "3h 04m"}, {-1, "0s"}, {NAN, "0s"}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        time_text(times[i].seconds, text);
        assert_string_equal(text, times[i].text);
    }
    const struct {
        double bytes;
        const char *text;
    } sizes[] = {{12, "12 B"}, {214.0 * 1048576, "214 MiB"}, {1536, "1.5 KiB"}, {11.7 * 1073741824, "12 GiB"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bytes_text(sizes[i].bytes, text);
        assert_string_equal(text, sizes[i].text);
    }
    const struct {
        int64_t count;
        const char *text;
    } counts[] = {{0, "0"}, {999, "999"}, {260032, "260,032"}, {-1234567, "-1,234,567"}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        count_text(counts[i].count, text);
        assert_string_equal(text, counts[i].text);
    }
}

static void test_memory(void **state) {
    (void)state;
    char *block = NULL;
    CHECK_OK(memory_new(0, 8, "nothing", &block));
    CHECK_OK(memory_grow(&block, 100, 8, "something"));
    CHECK_STATUS(STATUS_MEMORY, memory_grow(&block, SIZE_MAX / 2, 8, "too much"));
    assert_non_null(block); /* the old one stays */
    free(block);
    CHECK_STATUS(STATUS_MEMORY, memory_new(SIZE_MAX / 2, 8, "too much", &block));
    assert_null(block);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors), cmocka_unit_test(test_views), cmocka_unit_test(test_arena),
        cmocka_unit_test(test_random_numbers), cmocka_unit_test(test_permutation), cmocka_unit_test(test_files),
        cmocka_unit_test(test_file_faults), cmocka_unit_test(test_texts), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
