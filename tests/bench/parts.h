/* What the benchmarks of single operations share: processor time, medians, lengths of a command line. */
#ifndef SQUINT_TESTS_BENCH_PARTS_H
#define SQUINT_TESTS_BENCH_PARTS_H

#include <stdbool.h>
#include <stdint.h>
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

#endif
