/* See harness.h. */
#include "tests/ops/harness.h"

#include "base/bf16.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

void expect_ok(enum status status, const char *what) {
    if (status == STATUS_OK) return;
    print_error("%s: %s: %s\n", what, status_name(status), error_message());
    error_clear();
    fail();
}

void bench_open_with(struct bench *bench, const char *table, const struct ops_options *options) {
    *bench = (struct bench){0};
    expect_ok(ops_open(table, options, &bench->ops), table);
}

void bench_open(struct bench *bench, const char *table, const char *isa, int threads) {
    bench_open_with(bench, table, &(struct ops_options){.threads = threads, .isa = isa});
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
    const size_t before = (size_t)bench->apart * dtype_size(dtype);
    expect_ok(bench->ops->allocate(bench->ops, before + tensor_bytes(t), &t.data), "allocate");
    bench->blocks[bench->block_count++] = t.data;
    bench->made++;
    t.data = (char *)t.data + before;
    return t;
}

/* Element i of host memory that holds elements of this dtype. */
static void put(void *memory, enum dtype dtype, int64_t i, double value) {
    if (dtype == DTYPE_F64)
        ((double *)memory)[i] = value;
    else if (dtype == DTYPE_F32)
        ((float *)memory)[i] = (float)value;
    else if (dtype == DTYPE_BF16)
        ((uint16_t *)memory)[i] = bf16_from_float((float)value);
    else
        ((int32_t *)memory)[i] = (int32_t)value;
}

static double get(const void *memory, enum dtype dtype, int64_t i) {
    if (dtype == DTYPE_F64) return ((const double *)memory)[i];
    if (dtype == DTYPE_F32) return (double)((const float *)memory)[i];
    if (dtype == DTYPE_BF16) return (double)bf16_to_float(((const uint16_t *)memory)[i]);
    return ((const int32_t *)memory)[i];
}

static void *host_memory(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    assert_non_null(memory);
    return memory;
}

void bench_write(struct bench *bench, struct tensor t, const double *values) {
    void *memory = host_memory(tensor_bytes(t));
    for (int64_t i = 0; i < tensor_count(t); i++) put(memory, t.dtype, i, values[i]);
    expect_ok(bench->ops->upload(bench->ops, t, memory), "upload");
    free(memory);
}

void bench_set(struct bench *bench, struct tensor t, int64_t index, double value) {
    struct tensor one = tensor_1d((char *)t.data + (size_t)index * dtype_size(t.dtype), t.dtype, 1);
    bench_write(bench, one, &value);
}

static struct tensor normal(struct bench *bench, enum dtype dtype, bool rounded, int rank, const int64_t *shape,
                            double std, double shift) {
    struct tensor t = make(bench, dtype, rank, shape);
    double *values = host_memory((size_t)tensor_count(t) * sizeof *values);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        const double x = rng_normal(7, rng_substream(RNG_TEST, bench->made), (uint64_t)i);
        values[i] = (double)(float)(shift + std * x);
        if (rounded) values[i] = (double)bf16_to_float(bf16_from_float((float)values[i]));
    }
    bench_write(bench, t, values);
    free(values);
    return t;
}

struct tensor bench_normal(struct bench *bench, int rank, const int64_t *shape, double std, double shift) {
    return normal(bench, bench->ops->real, bench->rounded, rank, shape, std, shift);
}

struct tensor bench_parameter(struct bench *bench, int rank, const int64_t *shape, double std, double shift) {
    return normal(bench, bench->ops->parameter, false, rank, shape, std, shift);
}

struct tensor bench_statistic(struct bench *bench, int rank, const int64_t *shape, double std, double shift) {
    return normal(bench, bench->ops->statistic, false, rank, shape, std, shift);
}

struct tensor bench_unset(struct bench *bench, int rank, const int64_t *shape) {
    return make(bench, bench->ops->real, rank, shape);
}

struct tensor bench_unset_statistic(struct bench *bench, int rank, const int64_t *shape) {
    return make(bench, bench->ops->statistic, rank, shape);
}

struct tensor bench_doubles(struct bench *bench, int64_t n) {
    return make(bench, DTYPE_F64, 1, DIMS(n));
}

struct tensor bench_ids(struct bench *bench, int64_t n, int64_t below) {
    struct tensor t = make(bench, DTYPE_I32, 1, DIMS(n));
    double *values = host_memory((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        values[i] = (double)rng_below(7, rng_substream(RNG_TEST, bench->made), (uint64_t)i, (uint64_t)below);
    }
    bench_write(bench, t, values);
    free(values);
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

double *bench_values(struct bench *bench, struct tensor t) {
    int64_t count = tensor_count(t), span = count > 0;
    for (int d = 0; count > 0 && d < t.rank; d++) span += (t.shape[d] - 1) * t.stride[d];
    double *values = host_memory((size_t)count * sizeof *values);
    struct tensor all = tensor_1d(t.data, t.dtype, span);
    void *memory = host_memory(tensor_bytes(all));
    if (span) expect_ok(bench->ops->download(bench->ops, all, memory), "download");
    for (int64_t i = 0; i < count; i++) {
        int64_t rest = i, offset = 0;
        for (int d = t.rank - 1; d >= 0; d--) {
            offset += rest % t.shape[d] * t.stride[d];
            rest /= t.shape[d];
        }
        values[i] = get(memory, t.dtype, offset);
    }
    free(memory);
    return values;
}
