/* A Prometheus textfile of the newest record, for node_exporter's textfile collector; see metrics.h. */
#include "base/file.h"
#include "base/memory.h"
#include "io/metrics_internal.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Label values escape backslash, quote and newline. */
static void write_label(FILE *file, const char *text) {
    for (; *text; text++) {
        if (*text == '\n') {
            fputs("\\n", file);
        } else {
            if (*text == '\\' || *text == '"') fputc('\\', file);
            fputc(*text, file);
        }
    }
}

/* Metric names hold letters, digits and underscores. */
static void clean_name(const char *name, char *out, size_t capacity) {
    size_t used = 0;
    for (; *name && used + 1 < capacity; name++) out[used++] = isalnum((unsigned char)*name) ? *name : '_';
    out[used] = '\0';
}

static void write_gauge(FILE *file, const char *name, const char *run, const char *stage, double value) {
    fprintf(file, "# TYPE squint_%s gauge\nsquint_%s{run=\"", name, name);
    write_label(file, run);
    fputs("\",stage=\"", file);
    write_label(file, stage);
    if (isnan(value)) {
        fputs("\"} NaN\n", file);
    } else {
        fprintf(file, "\"} %.9g\n", value);
    }
}

enum status metrics_prometheus_write(const char *path, const char *run, int64_t step, const char *stage,
                                     const struct metrics_figures *figures) {
    char *text = NULL, name[256];
    size_t length = 0;
    FILE *file = open_memstream(&text, &length);
    json_t *written = json_object();
    if (!file || !written) {
        if (file) (void)fclose(file);
        json_decref(written);
        free(text);
        return error_set(STATUS_MEMORY, "no memory for %s", path);
    }
    write_gauge(file, "step", run, stage, (double)step);
    for (size_t i = 0; i < figures->count; i++) {
        clean_name(figures->items[i].name, name, sizeof name);
        if (json_object_get(written, name)) continue; /* the collector refuses a file that has one series twice */
        json_object_set_new(written, name, json_true());
        write_gauge(file, name, run, stage, figures->items[i].value);
    }
    bool failed = ferror(file) != 0;
    failed = fclose(file) != 0 || failed;
    enum status status = failed ? error_set(STATUS_MEMORY, "no memory for %s", path) : file_write(path, text, length);
    json_decref(written);
    free(text);
    return status;
}
