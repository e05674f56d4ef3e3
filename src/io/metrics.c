/* Appends to metrics.jsonl and passes the same figures on; see metrics.h. */
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "io/events.h"
#include "io/metrics_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static const double prometheus_period_s = 5;

struct metrics {
    char *directory, *path, *prometheus;
    int file;
    int64_t length; /* bytes of whole lines */
    struct events *events;
    struct metrics_figures figures;
    struct events_scalar *scalars;
    size_t scalar_capacity;
    /* of the newest record, for the textfile */
    int64_t step;
    char stage[METRICS_NAME];
    double exported_s; /* when the textfile was written */
    bool exported;     /* … since the newest record */
};

struct metrics_record metrics_record_new(int64_t step, const char *stage) {
    const double none = METRICS_ABSENT;
    return (struct metrics_record){.step = step,
                                   .stage = stage,
                                   .loss = none,
                                   .kl = none,
                                   .ce = none,
                                   .grad_norm = none,
                                   .lr = none,
                                   .density = none,
                                   .tokens_per_s = none,
                                   .flops_per_s = none,
                                   .peak_share = none,
                                   .memory_bytes = none,
                                   .memory_peak_bytes = none,
                                   .step_s = none};
}

/* ---- opening ------------------------------------------------------------------------------------------------------
 */
/* Cuts what a run that goes on from resume_step will write again, and a torn last line. */
static enum status cut_file(struct metrics *m, int64_t resume_step) {
    int64_t size = 0;
    if (!file_exists(m->path)) return STATUS_OK;
    TRY(file_size(m->path, &size));
    if (resume_step < 0 && size > 0) {
        return error_set(STATUS_USAGE, "%s: holds the metrics of another run: resume it, or choose another directory",
                         m->path);
    }
    TRY(metrics_scan(m->path, resume_step, NULL, NULL, &m->length));
    if (m->length == size) return STATUS_OK;
    if (truncate(m->path, m->length) != 0) {
        return error_set(STATUS_IO, "%s: cannot shorten it: %s", m->path, strerror(errno));
    }
    return file_sync(m->path);
}

enum status metrics_open(const struct metrics_options *options, struct metrics **metrics) {
    enum status status = STATUS_OK;
    struct metrics *m = NULL;
    *metrics = NULL;
    TRY(memory_new(1, sizeof *m, "metrics", &m));
    m->file = -1;
    m->exported = true;
    m->exported_s = -prometheus_period_s;
    TRY_GOTO(done, file_make_directory(options->directory));
    TRY_GOTO(done, memory_copy_text(options->directory, &m->directory));
    TRY_GOTO(done, file_join(options->directory, "metrics.jsonl", &m->path));
    if (options->prometheus) TRY_GOTO(done, memory_copy_text(options->prometheus, &m->prometheus));
    TRY_GOTO(done, cut_file(m, options->resume_step));
    m->file = open(m->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (m->file < 0) {
        status = error_set(STATUS_IO, "%s: cannot open it: %s", m->path, strerror(errno));
        goto done;
    }
    int64_t first = options->resume_step < 0 ? -1 : options->resume_step + 1;
    if (options->tensorboard) status = events_open(options->directory, first, &m->events);
done:
    if (status != STATUS_OK) (void)metrics_close(&m);
    *metrics = m;
    return status;
}

/* ---- one line ------------------------------------------------------------------------------------------------------
 */
/* The shortest decimal text that reads back as the same double; null when it is not finite. */
static void put_number(FILE *line, double value) {
    char text[40];
    if (!isfinite(value)) {
        fputs("null", line);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    fputs(text, line);
}

static void put_figure(FILE *line, const char *name, double value) {
    if (value == METRICS_ABSENT) return;
    fprintf(line, ",\"%s\":", name);
    put_number(line, value);
}

static void put_text(FILE *line, const char *text) {
    json_t *value = json_string_nocheck(text);
    char *encoded = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    fputs(encoded ? encoded : "\"\"", line);
    free(encoded);
    json_decref(value);
}

/* Members from kinds. printf writes nan and inf where JSON has null. */
static void put_extra(FILE *line, const char *text) {
    static const char *const words[] = {"-nan", "nan", "-infinity", "-inf", "infinity", "inf"};
    bool quoted = false;
    fputc(',', line);
    while (*text) {
        size_t taken = 0;
        for (size_t i = 0; !quoted && taken == 0 && i < sizeof words / sizeof *words; i++) {
            if (strncasecmp(text, words[i], strlen(words[i])) == 0) taken = strlen(words[i]);
        }
        if (taken > 0) {
            fputs("null", line);
            text += taken;
            continue;
        }
        if (*text == '"') quoted = !quoted;
        if (*text == '\\' && text[1]) fputc(*text++, line);
        fputc(*text == '\n' ? ' ' : *text, line);
        text++;
    }
}

static void put_record(FILE *line, const struct metrics_record *r) {
    fprintf(line, "{\"step\":%" PRId64 ",\"stage\":", r->step);
    put_text(line, r->stage ? r->stage : "");
    const struct {
        const char *name;
        double value;
    } figures[] = {{"loss", r->loss},
                   {"kl", r->kl},
                   {"ce", r->ce},
                   {"grad_norm", r->grad_norm},
                   {"lr", r->lr},
                   {"density", r->density},
                   {"tokens_per_s", r->tokens_per_s},
                   {"flops_per_s", r->flops_per_s},
                   {"peak_share", r->peak_share},
                   {"memory_bytes", r->memory_bytes},
                   {"memory_peak_bytes", r->memory_peak_bytes},
                   {"step_s", r->step_s}};
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) put_figure(line, figures[i].name, figures[i].value);
    bool open = false;
    for (int i = 0; i < METRICS_PHASES; i++) {
        if (!r->phases[i].name) continue;
        fputs(open ? "," : ",\"seconds\":{", line);
        put_text(line, r->phases[i].name);
        fputc(':', line);
        put_number(line, r->phases[i].seconds);
        open = true;
    }
    if (open) fputc('}', line);
    if (r->extra && r->extra[0]) put_extra(line, r->extra);
    fputs("}\n", line);
}

/* *text: the line with its newline; *json: the same, parsed. */
static enum status make_line(const struct metrics *m, const struct metrics_record *record, char **text, size_t *length,
                             json_t **json) {
    FILE *line = open_memstream(text, length);
    if (!line) return error_set(STATUS_MEMORY, "no memory for a line of metrics");
    put_record(line, record);
    if (fclose(line) != 0) return error_set(STATUS_MEMORY, "no memory for a line of metrics");
    *json = metrics_parse_line(*text, *length - 1);
    if (*json) return STATUS_OK;
    return error_set(STATUS_FAILED, "%s: step %" PRId64 ": the line would not be JSON: %.200s", m->path, record->step,
                     *text);
}

/* One write, so that readers see whole lines; what a full disk cut off is taken back. */
static enum status append(struct metrics *m, const char *text, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t wrote = write(m->file, text + done, length - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) {
            const char *cause = strerror(errno);
            bool whole = ftruncate(m->file, m->length) == 0;
            return error_set(STATUS_IO, "%s: cannot write it: %s%s", m->path, cause,
                             whole ? "" : "; its last line is torn");
        }
        done += (size_t)wrote;
    }
    m->length += (int64_t)length;
    return STATUS_OK;
}

/* "seconds.forward" is "seconds/forward" to TensorBoard, which groups by the part before the slash. */
static enum status write_events(struct metrics *m, int64_t step) {
    struct metrics_figures *figures = &m->figures;
    if (!m->events || figures->count == 0) return STATUS_OK;
    if (figures->count > m->scalar_capacity) {
        TRY(memory_grow(&m->scalars, figures->count, sizeof *m->scalars, "scalars"));
        m->scalar_capacity = figures->count;
    }
    for (size_t i = 0; i < figures->count; i++) {
        for (char *dot = figures->items[i].name; (dot = strchr(dot, '.')); dot++) *dot = '/';
        m->scalars[i] = (struct events_scalar){figures->items[i].name, figures->items[i].value};
    }
    return events_write(m->events, step, 0, m->scalars, figures->count);
}

static enum status export(struct metrics *m, bool now) {
    if (!m->prometheus || m->exported) return STATUS_OK;
    if (!now && time_now_s() - m->exported_s < prometheus_period_s) return STATUS_OK;
    m->exported = true;
    m->exported_s = time_now_s();
    return metrics_prometheus_write(m->prometheus, m->directory, m->step, m->stage, &m->figures);
}

enum status metrics_write(struct metrics *metrics, const struct metrics_record *record) {
    enum status status = STATUS_OK;
    char *text = NULL;
    size_t length = 0;
    json_t *json = NULL;
    TRY_GOTO(done, make_line(metrics, record, &text, &length, &json));
    TRY_GOTO(done, append(metrics, text, length));
    TRY_GOTO(done, metrics_flatten(json, &metrics->figures));
    TRY_GOTO(done, write_events(metrics, record->step));
    metrics->step = record->step;
    snprintf(metrics->stage, sizeof metrics->stage, "%s", record->stage ? record->stage : "");
    metrics->exported = false;
    status = export(metrics, false);
done:
    json_decref(json);
    free(text);
    return status;
}

enum status metrics_sync(struct metrics *metrics) {
    if (fsync(metrics->file) == 0) return STATUS_OK;
    return error_set(STATUS_IO, "%s: cannot flush it to the disk: %s", metrics->path, strerror(errno));
}

enum status metrics_close(struct metrics **metrics) {
    enum status status = STATUS_OK;
    struct metrics *m = metrics ? *metrics : NULL;
    if (!m) return status;
    KEEP_FIRST(status, export(m, true));
    KEEP_FIRST(status, events_close(&m->events));
    if (m->file >= 0) {
        KEEP_FIRST(status, metrics_sync(m));
        (void)close(m->file);
    }
    metrics_figures_free(&m->figures);
    free(m->scalars);
    free(m->directory);
    free(m->path);
    free(m->prometheus);
    free(m);
    *metrics = NULL;
    return status;
}
