/* compare_runs RUN_A RUN_B TOLERANCE [STEP]: loss and gradient norm of every step of two runs agree within a relative
 * tolerance (0: to the bit); with STEP, every tensor of both runs' checkpoints of that step is the same to the bit.
 * Exit 0: they agree. */
#include "io/checkpoint.h"
#include "io/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int compare_steps(const char *a, const char *b, double tolerance) {
    static const char *const names[] = {"loss", "kl", "grad_norm", "lr"};
    char path[2][4096];
    struct metrics_table table[2];
    const char *runs[] = {a, b};
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/metrics.jsonl", runs[i]);
        if (metrics_read(path[i], &table[i]) != STATUS_OK) return fprintf(stderr, "%s\n", error_message()), 1;
    }
    if (table[0].line_count != table[1].line_count) {
        return fprintf(stderr, "lines: expected %lld, found %lld\n", (long long)table[0].line_count,
                       (long long)table[1].line_count),
               1;
    }
    double worst = 0;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const double *x = metrics_column(&table[0], names[n]), *y = metrics_column(&table[1], names[n]);
        for (int64_t i = 0; x && y && i < table[0].line_count; i++) {
            if (x[i] == y[i]) continue;
            /* A divergence near 0 is what is left of fp32 logarithms, good to about 1e-7 whatever its size. */
            double scale = tolerance > 0 ? fmax(fabs(x[i]), 1e-2) : 1, off = fabs(x[i] - y[i]) / scale;
            if (strcmp(names[n], "grad_norm") == 0) off /= 10; /* a sum of many small differences of both signs */
            if (off > worst) worst = off;
            if (off <= tolerance) continue;
            return fprintf(stderr, "step %lld: %s: expected %.17g, found %.17g\n", (long long)table[0].lines[i].step,
                           names[n], x[i], y[i]),
                   1;
        }
    }
    printf("%lld lines agree, at worst by %.2g\n", (long long)table[0].line_count, worst);
    for (int i = 0; i < 2; i++) metrics_table_free(&table[i]);
    return 0;
}

static int compare_checkpoints(const char *a, const char *b, int64_t step) {
    const char *runs[] = {a, b};
    struct checkpoint *checkpoints[2] = {NULL};
    for (int i = 0; i < 2; i++) {
        char *path = NULL;
        if (checkpoint_path(runs[i], step, &path) != STATUS_OK || checkpoint_open(path, &checkpoints[i]) != STATUS_OK) {
            return fprintf(stderr, "%s\n", error_message()), 1;
        }
        free(path);
    }
    size_t count = checkpoint_tensor_count(checkpoints[0]);
    if (count != checkpoint_tensor_count(checkpoints[1])) return fprintf(stderr, "not the same tensors\n"), 1;
    for (size_t t = 0; t < count; t++) {
        struct checkpoint_tensor tensor = checkpoint_tensor(checkpoints[0], t);
        size_t bytes = (size_t)tensor.count * dtype_size(tensor.dtype);
        char *data[2] = {malloc(bytes + 1), malloc(bytes + 1)};
        for (int i = 0; i < 2; i++) {
            if (!data[i] ||
                checkpoint_read(checkpoints[i], tensor.name, tensor.dtype, 0, tensor.count, data[i]) != STATUS_OK) {
                return fprintf(stderr, "%s\n", error_message()), 1;
            }
        }
        if (memcmp(data[0], data[1], bytes) != 0) return fprintf(stderr, "%s differs\n", tensor.name), 1;
        free(data[0]);
        free(data[1]);
    }
    printf("%zu tensors of step %lld are the same\n", count, (long long)step);
    for (int i = 0; i < 2; i++) checkpoint_close(&checkpoints[i]);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: compare_runs RUN_A RUN_B TOLERANCE [STEP]\n"), 2;
    int bad = compare_steps(argv[1], argv[2], strtod(argv[3], NULL));
    return bad || argc < 5 ? bad : compare_checkpoints(argv[1], argv[2], strtoll(argv[4], NULL, 10));
}
