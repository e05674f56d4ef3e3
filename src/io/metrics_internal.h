/* What the files of metrics*.c share. */
#ifndef SQUINT_IO_METRICS_INTERNAL_H
#define SQUINT_IO_METRICS_INTERNAL_H

#include "io/metrics.h"

#include <jansson.h>

enum { METRICS_LIST_MOST = 256 }; /* elements of one list that become figures */

/* Figures of one line: names joined by ".", in the order of the line. Reused from line to line. */
struct metrics_figures {
    struct metrics_figure {
        char *name;
        double value;
    } * items;
    size_t count, capacity;
};
/* Every number of a line but its step: booleans as 0 and 1, null as NaN; texts are left out. */
enum status metrics_flatten(const json_t *line, struct metrics_figures *figures);
void metrics_figures_free(struct metrics_figures *figures);

/* *json = the object of one line, with a whole-number "step" and a text "stage"; NULL when it is not that. */
json_t *metrics_parse_line(const char *text, size_t length);
/* A file's good lines. *keep: bytes up to the torn tail or to the first line of a step beyond `last_step`.
 * each: called for every line that is kept; may be NULL. */
typedef enum status metrics_visit(void *context, const json_t *line);
enum status metrics_scan(const char *path, int64_t last_step, metrics_visit *each, void *context, int64_t *keep);

/* The whole textfile for one record. */
enum status metrics_prometheus_write(const char *path, const char *run, int64_t step, const char *stage,
                                     const struct metrics_figures *figures);

#endif
