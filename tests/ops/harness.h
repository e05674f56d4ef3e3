/* One operation run on one table: tensors filled from the counter-based generator, so that every table gets the same
 * numbers, and outputs named, so that tables can be compared. A failing call fails the cmocka test with its message. */
#ifndef SQUINT_TESTS_OPS_HARNESS_H
#define SQUINT_TESTS_OPS_HARNESS_H

#include "kernels/ops.h"

enum { BENCH_BLOCKS = 48, BENCH_OUTPUTS = 16 };

struct bench {
    const struct ops *ops;
    void *blocks[BENCH_BLOCKS];
    int block_count;
    uint64_t made; /* tensors made so far: the stream of the next one's numbers */
    const char *names[BENCH_OUTPUTS];
    struct tensor outputs[BENCH_OUTPUTS];
    int output_count;
    /* Set after bench_open: */
    bool rounded;  /* numbers of the real dtype are rounded to bf16, so that every table gets those of a bf16 one */
    int64_t apart; /* elements by which tensors begin behind the start of their aligned memory */
};

/* Fails the test with this thread's message unless status is STATUS_OK. */
void expect_ok(enum status status, const char *what);

void bench_open(struct bench *bench, const char *table, const char *isa, int threads);
void bench_open_with(struct bench *bench, const char *table, const struct ops_options *options);
void bench_close(struct bench *bench);
/* Gives the memory back and forgets the outputs; the table stays open. */
void bench_reset(struct bench *bench);

/* Contiguous tensors of the table's real, parameter, statistic dtype; elements std·N(0,1) rounded to float, + shift. */
struct tensor bench_normal(struct bench *bench, int rank, const int64_t *shape, double std, double shift);
struct tensor bench_parameter(struct bench *bench, int rank, const int64_t *shape, double std, double shift);
struct tensor bench_statistic(struct bench *bench, int rank, const int64_t *shape, double std, double shift);
/* The real and the statistic dtype with memory whose contents are not set. */
struct tensor bench_unset(struct bench *bench, int rank, const int64_t *shape);
struct tensor bench_unset_statistic(struct bench *bench, int rank, const int64_t *shape);
struct tensor bench_doubles(struct bench *bench, int64_t n);            /* [n] F64, unset */
struct tensor bench_ids(struct bench *bench, int64_t n, int64_t below); /* [n] I32, uniform in 0 … below−1 */
/* The columns first … first+width−1 of a matrix [rows, all] of normal numbers. */
struct tensor bench_columns(struct bench *bench, int64_t rows, int64_t all, int64_t first, int64_t width, double std);
void bench_output(struct bench *bench, const char *name, struct tensor t);
/* All elements of a contiguous tensor, F32, F64, BF16 or I32. */
void bench_write(struct bench *bench, struct tensor t, const double *values);
/* Element `index` of a contiguous tensor. */
void bench_set(struct bench *bench, struct tensor t, int64_t index, double value);
/* All elements of a view in order, as double; free() it. */
double *bench_values(struct bench *bench, struct tensor t);

#define DIMS(...)                                                                                                      \
    (const int64_t[]) {                                                                                                \
        __VA_ARGS__                                                                                                    \
    }

#endif
