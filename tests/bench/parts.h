/* What the benchmarks of single operations share: processor time, medians, the numbers of a command line, tensors, and
 * a run at every length. */
#ifndef SQUINT_TESTS_BENCH_PARTS_H
#define SQUINT_TESTS_BENCH_PARTS_H

#include "base/memory.h"
#include "kernels/ops.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LENGTHS_MAX = 16 };
struct lengths {
    int64_t values[LENGTHS_MAX];
    int count;
};

static inline double processor_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double median(double *values, long count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static inline bool read_number(const char *text, char **end, long *number) {
    *number = strtol(text, end, 10);
    return *end != text && *number > 0;
}

static inline bool read_lengths(const char *text, struct lengths *o) {
    char *end = NULL;
    long length;
    o->count = 0;
    do {
        if (o->count == LENGTHS_MAX || !read_number(text, &end, &length)) return false;
        o->values[o->count++] = length;
        text = end + 1;
    } while (*end == ',');
    return *end == 0;
}

/* names: options, the value of each its place in `numbers`, but 'l' for lengths and 'i' for isa. False: something else
 * stands there. */
static inline bool read_options(int count, char **words, const struct option *names, long *const *numbers,
                                struct lengths *lengths, const char **isa) {
    for (int name; (name = getopt_long(count, words, "", names, NULL)) != -1;) {
        char *end;
        if (name == 'i')
            *isa = optarg;
        else if (name == 'l' ? !read_lengths(optarg, lengths)
                             : name == '?' || !read_number(optarg, &end, numbers[name]) || *end)
            return false;
    }
    return optind == count;
}

enum { TENSORS_MAX = 24 };
struct tensors {
    const struct ops *ops;
    void *blocks[TENSORS_MAX];
    int count;
};

/* *out = t with memory of its own: normal numbers; std 0: undefined. */
static inline enum status take(struct tensors *x, struct tensor t, double std, struct tensor *out) {
    TRY(x->ops->allocate(x->ops, tensor_bytes(t), &t.data));
    x->blocks[x->count++] = t.data;
    *out = t;
    return std == 0 ? STATUS_OK : x->ops->fill_normal(x->ops, t, std, 1, (uint64_t)x->count);
}

/* One document of `length` tokens. */
static inline enum status take_start(struct tensors *x, int64_t length, struct tensor *start) {
    int32_t *zeros;
    TRY(take(x, tensor_2d(NULL, DTYPE_I32, 1, length), 0, start));
    TRY(memory_new((size_t)length, sizeof *zeros, "documents", &zeros));
    enum status status = x->ops->upload(x->ops, *start, zeros);
    free(zeros);
    return status;
}

/* Runs `bench` at every length, on a CPU table of its own; returns the program's exit code. */
static inline int run_lengths(const char *program, const struct lengths *lengths, int threads, const char *isa,
                              enum status (*bench)(struct tensors *x, int64_t length, const void *options),
                              const void *options) {
    enum status status = STATUS_OK;
    for (int n = 0; n < lengths->count && status == STATUS_OK; n++) {
        struct tensors x = {.ops = NULL};
        status = ops_open("cpu", &(struct ops_options){.threads = threads, .isa = isa}, &x.ops);
        if (status != STATUS_OK) break;
        status = bench(&x, lengths->values[n], options);
        while (x.count) x.ops->release(x.ops, x.blocks[--x.count]);
        x.ops->close(x.ops);
    }
    if (status != STATUS_OK) fprintf(stderr, "%s: %s\n", program, error_message());
    return status != STATUS_OK;
}

#endif
