/* What test_checkpoint.c saves: a made-up model whose every byte is known, cut into slices in several ways; the ranks
 * that save it. */
#ifndef SQUINT_TESTS_IO_CHECKPOINT_MODEL_H
#define SQUINT_TESTS_IO_CHECKPOINT_MODEL_H

#include "io/checkpoint.h"

#include "base/file.h"
#include "io/h5.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/scratch.h"

static struct comm *comm;
static int rank, size;

static void ok(enum status status) {
    if (status != STATUS_OK) fail_msg("rank %d: %s: %s", rank, status_name(status), error_message());
}

static void refused(enum status status, enum status expected, const char *part) {
    if (status != expected || !strstr(error_message(), part)) {
        fail_msg("rank %d: expected %s with \"%s\", found %s: \"%s\"", rank, status_name(expected), part,
                 status_name(status), error_message());
    }
    error_clear();
}

static void barrier(void) {
    ok(comm_barrier(comm));
}

/* --- a model to save -------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[4];
} tensors[] = {
    {"student/embedding.weight", DTYPE_F32, 2, {257, 48}},
    {"student/layers.0.norm", DTYPE_F32, 1, {7}},
    {"student/layers.0/deep/er", DTYPE_F32, 3, {3, 5, 7}},
    {"moment1/layers.0.norm", DTYPE_F64, 1, {7}},
    {"moment2/x", DTYPE_BF16, 4, {2, 3, 1, 5}},
    {"half", DTYPE_F16, 1, {129}},
    {"one", DTYPE_I64, 1, {1}},
    {"bytes", DTYPE_U8, 1, {1000003}},
    {"empty", DTYPE_F32, 2, {0, 4}},
};
enum { TENSORS = sizeof tensors / sizeof *tensors };

static int64_t elements(int t) {
    int64_t count = 1;
    for (int d = 0; d < tensors[t].rank; d++) count *= tensors[t].shape[d];
    return count;
}

/* Byte b of tensor t at a step: small enough that every type holds a finite number. */
static unsigned char byte_at(int t, int64_t b, int64_t step) {
    return (unsigned char)((b * 7 + t * 3 + step) % 59);
}

static unsigned char *whole(int t, int64_t step) {
    size_t bytes = (size_t)elements(t) * dtype_size(tensors[t].dtype);
    unsigned char *data = malloc(bytes + 1);
    assert_non_null(data);
    for (size_t b = 0; b < bytes; b++) data[b] = byte_at(t, (int64_t)b, step);
    return data;
}

struct saved {
    struct checkpoint_item items[2 * TENSORS];
    size_t count;
    unsigned char *data[TENSORS];
};

/* Cuts each tensor over the ranks at odd places; the first is cut in two for rank 0. */
static struct saved slices(int64_t step) {
    struct saved saved = {.count = 0};
    for (int t = 0; t < TENSORS; t++) {
        int64_t total = elements(t), begin = total * rank / size, end = total * (rank + 1) / size;
        size_t width = dtype_size(tensors[t].dtype);
        saved.data[t] = whole(t, step);
        struct checkpoint_item item = {.name = tensors[t].name, .dtype = tensors[t].dtype, .rank = tensors[t].rank};
        memcpy(item.shape, tensors[t].shape, sizeof item.shape);
        item.first = begin;
        item.count = end - begin;
        if (t == 0 && rank == 0) {
            item.count = 5;
            item.data = saved.data[t];
            saved.items[saved.count++] = item;
            item.first = 5;
            item.count = end - 5;
        }
        item.data = saved.data[t] + (size_t)item.first * width;
        saved.items[saved.count++] = item;
    }
    return saved;
}

static void free_slices(struct saved *saved) {
    for (int t = 0; t < TENSORS; t++) free(saved->data[t]);
}

static enum status save_at(const char *run, int64_t step, enum status *out) {
    struct saved saved = slices(step);
    char *config = malloc(200001);
    memset(config, 'c', 200000);
    config[200000] = '\0';
    const struct checkpoint_attribute attributes[] = {
        checkpoint_integer("sample", step * 64), checkpoint_real("loss", 0.1),        checkpoint_text("config", config),
        checkpoint_text("stage", "align"),       checkpoint_blob("state", "a\0b", 3), checkpoint_text("nothing", ""),
    };
    *out = checkpoint_save(comm, run, step, saved.items, saved.count, attributes, 6);
    free_slices(&saved);
    free(config);
    return *out;
}

static void save(const char *run, int64_t step) {
    enum status status;
    ok(save_at(run, step, &status));
}

static void check_content(const char *path, int64_t step) {
    struct checkpoint *checkpoint;
    ok(checkpoint_open(path, &checkpoint));
    assert_int_equal(checkpoint_step(checkpoint), step);
    assert_int_equal(checkpoint_tensor_count(checkpoint), TENSORS);
    for (int t = 0; t < TENSORS; t++) {
        struct checkpoint_tensor found;
        assert_true(checkpoint_has(checkpoint, tensors[t].name, &found));
        assert_int_equal(found.dtype, tensors[t].dtype);
        assert_int_equal(found.rank, tensors[t].rank);
        for (int d = 0; d < found.rank; d++) assert_int_equal(found.shape[d], tensors[t].shape[d]);
        unsigned char *expected = whole(t, step), *back = malloc((size_t)found.count * 8 + 1);
        size_t width = dtype_size(found.dtype);
        /* The whole, and ranges that begin and end inside slices. */
        int64_t ranges[][2] = {{0, found.count}, {found.count / 3, found.count / 2}, {found.count, 0}, {0, 1}};
        for (size_t r = 0; r < 4; r++) {
            int64_t first = ranges[r][0], count = ranges[r][1];
            if (first + count > found.count) continue;
            ok(checkpoint_read(checkpoint, found.name, found.dtype, first, count, back));
            assert_memory_equal(back, expected + (size_t)first * width, (size_t)count * width);
        }
        free(expected);
        free(back);
    }
    int64_t integer;
    double real;
    const char *text;
    const void *blob;
    size_t bytes;
    ok(checkpoint_get_integer(checkpoint, "sample", &integer));
    ok(checkpoint_get_real(checkpoint, "loss", &real));
    ok(checkpoint_get_text(checkpoint, "config", &text));
    assert_true(integer == step * 64 && real == 0.1 && strlen(text) == 200000);
    ok(checkpoint_get_text(checkpoint, "nothing", &text));
    assert_string_equal(text, "");
    ok(checkpoint_get_blob(checkpoint, "state", &blob, &bytes));
    assert_int_equal(bytes, 3);
    assert_memory_equal(blob, "a\0b", 3);
    checkpoint_close(&checkpoint);
}

/* Every test has its own run directory; its name is the same on every rank. */
static const char *new_run(const char *name) {
    const char *path = scratch_path(name);
    barrier();
    if (rank == 0) ok(file_make_directory(path));
    barrier();
    return path;
}

static size_t entries(const char *run) {
    char **names;
    size_t count;
    char path[600];
    snprintf(path, sizeof path, "%s/checkpoints", run);
    if (!file_is_directory(path)) return 0;
    ok(file_list(path, &names, &count));
    file_free_list(names, count);
    return count;
}

#endif
