/* The record of a run: metrics.jsonl (the truth, one line a step), TensorBoard event files and, on request, a
 * Prometheus textfile made from the same records. One process writes (rank 0). Knows nothing of what the figures mean.
 */
#ifndef SQUINT_IO_METRICS_H
#define SQUINT_IO_METRICS_H

#include "base/error.h"

#include <float.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A figure that was not taken: its member is left out. (NaN is a figure: it is written as null and read back as NaN.)
 */
#define METRICS_ABSENT (-DBL_MAX)
enum { METRICS_PHASES = 12, METRICS_NAME = 48 };

struct metrics_phase {
    const char *name; /* e.g. "forward" */
    double seconds;
};

/* One line. Members of the JSON object have the same names; phases are the object "seconds". */
struct metrics_record {
    int64_t step;
    const char *stage;
    double loss, kl, ce, grad_norm, lr, density;
    double tokens_per_s, flops_per_s, peak_share; /* model FLOP/s, and their share of what the device can */
    double memory_bytes, memory_peak_bytes;
    double step_s;                               /* wall time of the step */
    struct metrics_phase phases[METRICS_PHASES]; /* those with a name */
    const char *extra; /* more members, as JSON ("\"a\": 1, \"b\": [2, 3]"); NULL or "": none */
};

/* A record of `step` and `stage` with every figure absent. */
struct metrics_record metrics_record_new(int64_t step, const char *stage);

struct metrics_options {
    const char *directory; /* of the run; made when it is not there. metrics.jsonl and event files lie in it */
    int64_t resume_step; /* last step that counts: what was written after it is removed. −1: a new run, the directory
                            must hold no metrics.jsonl yet */
    bool tensorboard;    /* write event files */
    const char
        *prometheus; /* path of a textfile for node_exporter; NULL: none. Rewritten at most every 5 s, and at the end */
};
struct metrics;

/* Opens for appending. A last line that was torn by a kill is removed; a line before it that is no JSON is
 * STATUS_DAMAGED with its number. STATUS_USAGE when a new run finds the metrics of another. */
enum status metrics_open(const struct metrics_options *options, struct metrics **metrics);
/* Appends one line in one write, and the same figures elsewhere. STATUS_FAILED when `extra` is not JSON. */
enum status metrics_write(struct metrics *metrics, const struct metrics_record *record);
/* Flushes metrics.jsonl to the disk: before a checkpoint that counts on it. */
enum status metrics_sync(struct metrics *metrics);
enum status metrics_close(struct metrics **metrics); /* NULL-safe, twice-safe */

/* ---- reading --------------------------------------------------------------------------------------------------------
 */
/* Every line of a metrics.jsonl as columns: what a report and tests need. */
struct metrics_line {
    int64_t step;
    char stage[METRICS_NAME];
};
struct metrics_table {
    struct metrics_line *lines;
    int64_t line_count;
    char **names;    /* of the figures, sorted: "loss", "seconds.forward"; members of objects joined by ".", elements of
                        lists    by ".0", ".1", … */
    double **values; /* [name_count][line_count]; METRICS_ABSENT where a line has none, NaN where it has null */
    int64_t name_count;
};
/* Reads `path`; ignores a torn last line. STATUS_DAMAGED names the line. */
enum status metrics_read(const char *path, struct metrics_table *table);
/* values of `name`, [line_count]; NULL: no line has it. */
const double *metrics_column(const struct metrics_table *table, const char *name);
void metrics_table_free(struct metrics_table *table); /* NULL-safe, twice-safe */

#endif
