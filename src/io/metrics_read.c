/* Reads metrics.jsonl: lines, their figures, columns; see metrics.h. */
#include "base/file.h"
#include "base/memory.h"
#include "io/metrics_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- lines ------------------------------------------------------------------------------------------------------ */
json_t *metrics_parse_line(const char *text, size_t length) {
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_integer(json_object_get(json, "step")) && json_is_string(json_object_get(json, "stage"))) return json;
    json_decref(json);
    return NULL;
}

/* True when a good line stands at or after `text`: then what came before is damage, not a torn end. */
static bool good_line_follows(const char *text, const char *end) {
    for (const char *line = text, *stop; line < end && (stop = memchr(line, '\n', (size_t)(end - line)));
         line = stop + 1) {
        json_t *json = metrics_parse_line(line, (size_t)(stop - line));
        json_decref(json);
        if (json) return true;
    }
    return false;
}

static enum status scan_lines(const char *path, const struct file_map *map, int64_t last_step, metrics_visit *each,
                              void *context, int64_t *keep) {
    enum status status = STATUS_OK;
    const char *begin = map->data, *end = begin + map->bytes, *line = begin;
    int64_t number = 1;
    for (const char *stop; status == STATUS_OK && line < end; line = stop + 1, number++) {
        stop = memchr(line, '\n', (size_t)(end - line));
        json_t *json = stop ? metrics_parse_line(line, (size_t)(stop - line)) : NULL;
        if (!json) {
            if (stop && good_line_follows(stop + 1, end)) {
                status =
                    error_set(STATUS_DAMAGED, "%s: line %lld: expected a JSON object with step and stage, found %.40s",
                              path, (long long)number, line);
            }
            break;
        }
        if (json_integer_value(json_object_get(json, "step")) > last_step) {
            json_decref(json);
            break;
        }
        if (each) status = each(context, json);
        json_decref(json);
    }
    *keep = line - begin;
    return status;
}

enum status metrics_scan(const char *path, int64_t last_step, metrics_visit *each, void *context, int64_t *keep) {
    struct file_map map;
    *keep = 0;
    TRY(file_map_open(path, &map));
    enum status status = map.bytes > 0 ? scan_lines(path, &map, last_step, each, context, keep) : STATUS_OK;
    file_map_close(&map);
    return status;
}

/* ---- figures of a line ------------------------------------------------------------------------------------------- */
static enum status add_figure(struct metrics_figures *figures, const char *name, double value) {
    if (figures->count == figures->capacity) {
        size_t capacity = 2 * figures->capacity + 32;
        TRY(memory_grow(&figures->items, capacity, sizeof *figures->items, "figures"));
        figures->capacity = capacity;
    }
    char *copy;
    TRY(memory_copy_text(name, &copy));
    figures->items[figures->count++] = (struct metrics_figure){copy, value};
    return STATUS_OK;
}

static enum status flatten(const char *name, const json_t *value, struct metrics_figures *figures) {
    char inner[256];
    const char *key;
    json_t *member;
    if (json_is_number(value)) return add_figure(figures, name, json_number_value(value));
    if (json_is_boolean(value)) return add_figure(figures, name, json_is_true(value));
    if (json_is_null(value)) return add_figure(figures, name, NAN);
    for (size_t i = 0; i < json_array_size(value) && i < METRICS_LIST_MOST; i++) {
        snprintf(inner, sizeof inner, "%s.%zu", name, i);
        TRY(flatten(inner, json_array_get(value, i), figures));
    }
    json_object_foreach((json_t *)value, key, member) {
        snprintf(inner, sizeof inner, "%s%s%s", name, name[0] ? "." : "", key);
        TRY(flatten(inner, member, figures));
    }
    return STATUS_OK;
}

static void forget_figures(struct metrics_figures *figures) {
    for (size_t i = 0; i < figures->count; i++) free(figures->items[i].name);
    figures->count = 0;
}

enum status metrics_flatten(const json_t *line, struct metrics_figures *figures) {
    const char *key;
    json_t *value;
    forget_figures(figures);
    json_object_foreach((json_t *)line, key, value) {
        if (strcmp(key, "step") != 0) TRY(flatten(key, value, figures));
    }
    return STATUS_OK;
}

void metrics_figures_free(struct metrics_figures *figures) {
    forget_figures(figures);
    free(figures->items);
    *figures = (struct metrics_figures){0};
}

/* ---- columns -------------------------------------------------------------------------------------------------------
 */
struct gathering {
    struct metrics_table *table;
    struct metrics_figures figures;
    json_t *index;          /* name -> column */
    int64_t lines, columns; /* room for */
};

/* Room for one more line in every column. */
static enum status grow_lines(struct gathering *g) {
    struct metrics_table *table = g->table;
    if (table->line_count < g->lines) return STATUS_OK;
    int64_t lines = 2 * g->lines + 256;
    TRY(memory_grow(&table->lines, (size_t)lines, sizeof *table->lines, "lines of metrics"));
    for (int64_t i = 0; i < table->name_count; i++) {
        TRY(memory_grow(&table->values[i], (size_t)lines, sizeof(double), "a column of metrics"));
    }
    g->lines = lines;
    return STATUS_OK;
}

static enum status add_column(struct gathering *g, const char *name) {
    struct metrics_table *table = g->table;
    if (table->name_count == g->columns) {
        int64_t columns = 2 * g->columns + 32;
        TRY(memory_grow(&table->names, (size_t)columns, sizeof *table->names, "names of metrics"));
        TRY(memory_grow(&table->values, (size_t)columns, sizeof *table->values, "columns of metrics"));
        g->columns = columns;
    }
    double *values = NULL;
    TRY(memory_new((size_t)g->lines, sizeof *values, "a column of metrics", &values));
    for (int64_t i = 0; i < table->line_count; i++) values[i] = METRICS_ABSENT;
    enum status status = memory_copy_text(name, &table->names[table->name_count]);
    if (status != STATUS_OK) {
        free(values);
        return status;
    }
    table->values[table->name_count] = values;
    json_object_set_new(g->index, name, json_integer(table->name_count++));
    return STATUS_OK;
}

static enum status gather_line(void *context, const json_t *line) {
    struct gathering *g = context;
    struct metrics_table *table = g->table;
    TRY(grow_lines(g));
    TRY(metrics_flatten(line, &g->figures));
    for (size_t i = 0; i < g->figures.count; i++) {
        if (!json_object_get(g->index, g->figures.items[i].name)) TRY(add_column(g, g->figures.items[i].name));
    }
    struct metrics_line *to = &table->lines[table->line_count];
    to->step = json_integer_value(json_object_get(line, "step"));
    snprintf(to->stage, sizeof to->stage, "%s", json_string_value(json_object_get(line, "stage")));
    for (int64_t i = 0; i < table->name_count; i++) table->values[i][table->line_count] = METRICS_ABSENT;
    for (size_t i = 0; i < g->figures.count; i++) {
        json_int_t column = json_integer_value(json_object_get(g->index, g->figures.items[i].name));
        table->values[column][table->line_count] = g->figures.items[i].value;
    }
    table->line_count++;
    return STATUS_OK;
}

/* By name, names and columns together. Few columns: an insertion sort. */
static void sort_columns(struct metrics_table *table) {
    for (int64_t i = 1; i < table->name_count; i++) {
        for (int64_t j = i; j > 0 && strcmp(table->names[j - 1], table->names[j]) > 0; j--) {
            char *name = table->names[j];
            double *values = table->values[j];
            table->names[j] = table->names[j - 1];
            table->values[j] = table->values[j - 1];
            table->names[j - 1] = name;
            table->values[j - 1] = values;
        }
    }
}

enum status metrics_read(const char *path, struct metrics_table *table) {
    int64_t keep;
    struct gathering g = {.table = table, .index = json_object()};
    *table = (struct metrics_table){0};
    enum status status = metrics_scan(path, INT64_MAX, gather_line, &g, &keep);
    metrics_figures_free(&g.figures);
    json_decref(g.index);
    if (status != STATUS_OK) {
        metrics_table_free(table);
        return status;
    }
    sort_columns(table);
    return STATUS_OK;
}

const double *metrics_column(const struct metrics_table *table, const char *name) {
    for (int64_t i = 0; i < table->name_count; i++) {
        if (strcmp(table->names[i], name) == 0) return table->values[i];
    }
    return NULL;
}

void metrics_table_free(struct metrics_table *table) {
    if (!table) return;
    for (int64_t i = 0; i < table->name_count; i++) {
        free(table->names[i]);
        free(table->values[i]);
    }
    free(table->names);
    free(table->values);
    free(table->lines);
    *table = (struct metrics_table){0};
}
