/* See harness.h. */
#include "tests/ops/harness.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void expect_ok(enum status status, const char *what) {
    if (status == STATUS_OK) return;
    print_error("%s: %s: %s\n", what, status_name(status), error_message());
    error_clear();
    fail();
}

void bench_open(struct bench *bench, const char *table, const char *isa, int threads) {
    *bench = (struct bench){0};
    expect_ok(ops_open(table, &(struct ops_options){.threads = threads, .isa = isa}, &bench->ops), table);
}

void bench_reset(struct bench *bench) {
    for (int i = 0; i < bench->block_count; i++) bench->ops->release(bench->ops, bench->blocks[i]);
    bench->block_count = bench->output_count = 0;
    bench->made = 0;
}

void bench_close(struct bench *bench) {
    bench_reset(bench);
    expect_ok(bench->ops->synchronise(bench->ops), "closing");
    bench->ops->close(bench->ops);
}

static struct tensor make(struct bench *bench, enum dtype dtype, int rank, const int64_t *shape) {
    assert_true(bench->block_count < BENCH_BLOCKS);
    struct tensor t = tensor_1d(NULL, dtype, 0);
    t = tensor_reshape(t, rank, shape);
    expect_ok(bench->ops->allocate(bench->ops, tensor_bytes(t), &t.data), "allocate");
    bench->blocks[bench->block_count++] = t.data;
    bench->made++;
    return t;
}

void bench_set(struct tensor t, int64_t index, double value) {
    if (t.dtype == DTYPE_F64)
        ((double *)t.data)[index] = value;
    else
        ((float *)t.data)[index] = (float)value;
}

struct tensor bench_normal(struct bench *bench, int rank, const int64_t *shape, double std, double shift) {
    struct tensor t = make(bench, bench->ops->real, rank, shape);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        bench_set(t, i,
                  (double)(float)(shift + std * rng_normal(7, rng_substream(RNG_TEST, bench->made), (uint64_t)i)));
    }
    return t;
}

struct tensor bench_unset(struct bench *bench, int rank, const int64_t *shape) {
    return make(bench, bench->ops->real, rank, shape);
}

struct tensor bench_scalar(struct bench *bench) {
    return make(bench, DTYPE_F64, 1, DIMS(1));
}

struct tensor bench_ids(struct bench *bench, int64_t n, int64_t below) {
    struct tensor t = make(bench, DTYPE_I32, 1, DIMS(n));
    for (int64_t i = 0; i < n; i++) {
        ((int32_t *)t.data)[i] =
            (int32_t)rng_below(7, rng_substream(RNG_TEST, bench->made), (uint64_t)i, (uint64_t)below);
    }
    return t;
}

struct tensor bench_columns(struct bench *bench, int64_t rows, int64_t all, int64_t first, int64_t width, double std) {
    return tensor_columns(bench_normal(bench, 2, DIMS(rows, all), std, 0), first, width);
}

void bench_output(struct bench *bench, const char *name, struct tensor t) {
    assert_true(bench->output_count < BENCH_OUTPUTS);
    bench->names[bench->output_count] = name;
    bench->outputs[bench->output_count++] = t;
}

double *bench_values(struct tensor t) {
    int64_t count = tensor_count(t), width = t.shape[t.rank - 1];
    double *values = malloc(sizeof *values * (size_t)(count ? count : 1));
    assert_non_null(values);
    for (int64_t i = 0; i < count; i++) {
        int64_t rest = i / width, offset = i % width;
        for (int d = t.rank - 2; d >= 0; d--) {
            offset += rest % t.shape[d] * t.stride[d];
            rest /= t.shape[d];
        }
        values[i] = t.dtype == DTYPE_F64 ? ((double *)t.data)[offset] : (double)((float *)t.data)[offset];
    }
    return values;
}
