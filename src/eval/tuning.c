/* See tuning.h. */
#include "eval/tuning.h"

#include "base/arena.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "eval/bench_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the file ----------------------------------------------------------------------------------------------------- */

/* Of a device's description what files name it by: what it is, without the versions of what drives it. */
static size_t name_length(const char *text) {
    return strcspn(text, ",");
}

static bool find_kernel(const struct ops *ops, const char *name, int *number, struct tunable *tunable) {
    for (*number = 0; ops->tunable && ops->tunable(ops, *number, tunable); ++*number)
        if (strcmp(tunable->name, name) == 0) return true;
    return false;
}

static enum status load_line(const char *path, int64_t number, const char *line, const struct ops *ops) {
    struct tuning_entry entry;
    struct tunable tunable;
    char more;
    int kernel;
    if (sscanf(line, "%47s %lld %lld %d %c", entry.kernel, (long long *)&entry.width, (long long *)&entry.length,
               &entry.form, &more) != 4)
        return error_set(STATUS_USAGE, "%s:%lld: expected `kernel width length form`, found \"%s\"", path,
                         (long long)number, line);
    if (!find_kernel(ops, entry.kernel, &kernel, &tunable))
        return error_set(STATUS_USAGE,
                         "%s:%lld: kernel %s: this program has none of that name; measure again with squint bench tune",
                         path, (long long)number, entry.kernel);
    if (tunable.forms == 1 && entry.form > 0) return STATUS_OK; /* measured in bf16: fp32 has one form */
    const enum status status = ops->set_form(ops, kernel, entry.width, entry.length, entry.form);
    return status == STATUS_OK ? status : error_prefix(status, "%s:%lld", path, (long long)number);
}

enum status tuning_load(const char *path, const struct ops *ops) {
    enum status status = STATUS_OK;
    char *text = NULL;
    size_t length;
    bool named = false;
    int64_t number = 0;
    if (!ops->tunable) return STATUS_OK;
    TRY(file_read(path, &text, &length));
    for (char *line = text, *end; *line; line = end) {
        end = line + strcspn(line, "\n");
        if (*end) *end++ = '\0';
        number++;
        line += strspn(line, " \t\r");
        if (*line == '\0' || *line == '#') continue;
        if (strncmp(line, "device ", 7) == 0) {
            const char *own = ops->describe(ops), *other = line + 7;
            named = true;
            if (name_length(own) == name_length(other) && strncmp(own, other, name_length(own)) == 0) continue;
            log_line("tuning   %s: is for %s, not used", path, other);
            goto done;
        }
        if (!named) {
            status = error_set(STATUS_USAGE, "%s:%lld: expected a line `device NAME` first, found \"%s\"", path,
                               (long long)number, line);
            goto done;
        }
        TRY_GOTO(done, load_line(path, number, line, ops));
    }
done:
    free(text);
    return status;
}

enum status tuning_apply(const struct ops *ops, const struct ops_options *options) {
    const char *path = getenv("SQUINT_TUNING");
    if (!path || !*path || (options && options->deterministic)) return STATUS_OK;
    const enum status status = tuning_load(path, ops);
    return status == STATUS_OK ? status : error_prefix(status, "SQUINT_TUNING");
}

enum status tuning_save(const char *path, const struct ops *ops, const struct tuning_entry *entries, int64_t count) {
    static const char head[] =
        "# Which form of a kernel is fastest for a head width and a length; made by squint bench tune.\n";
    const char *name = ops->describe(ops);
    const size_t room = sizeof head + strlen(name) + 16 + (size_t)count * (TUNING_NAME + 64);
    char *text = NULL;
    TRY(memory_new(room, 1, "a tuning file", &text));
    size_t used = (size_t)snprintf(text, room, "%sdevice %.*s\n", head, (int)name_length(name), name);
    for (int64_t n = 0; n < count; n++)
        used += (size_t)snprintf(text + used, room - used, "%s %lld %lld %d\n", entries[n].kernel,
                                 (long long)entries[n].width, (long long)entries[n].length, entries[n].form);
    const enum status status = file_write(path, text, used);
    free(text);
    return status;
}

/* --- measuring ---------------------------------------------------------------------------------------------------- */

/* Causal attention of random numbers, both ways. */
struct passes {
    struct attention_backward call;
    void *block;
};

static void place(struct passes *p, const struct ops *ops, const struct tuning_options *o, int64_t width,
                  int64_t length, struct arena *arena) {
    struct attention *f = &p->call.forward;
    struct tensor *tensors[] = {&f->q, &f->k, &f->v, &f->o, &p->call.d_o, &p->call.dq, &p->call.dk, &p->call.dv};
    for (size_t n = 0; n < sizeof tensors / sizeof *tensors; n++)
        *tensors[n] = arena_4d(arena, ops->real, o->batch, length, o->heads, width);
    f->start = arena_2d(arena, DTYPE_I32, o->batch, length);
    f->log_sums = arena_4d(arena, ops->statistic, o->batch, o->heads, 1, length);
}

static enum status open_passes(struct passes *p, const struct ops *ops, const struct tuning_options *o, int64_t width,
                               int64_t length) {
    struct arena arena = arena_sizing();
    *p = (struct passes){.call.forward = {.count = 1, .causal = true, .scale = 1 / sqrt((double)width)}};
    place(p, ops, o, width, length, &arena);
    TRY(ops->allocate(ops, arena.peak, &p->block));
    arena = arena_placing(p->block, arena.peak);
    place(p, ops, o, width, length, &arena);
    const struct tensor random[] = {p->call.forward.q, p->call.forward.k, p->call.forward.v, p->call.d_o};
    for (int n = 0; n < 4; n++) TRY(ops->fill_normal(ops, random[n], 1, 1, (uint64_t)n));
    return ops->fill(ops, p->call.forward.start, 0);
}

static enum status time_pass(const struct passes *p, const struct ops *ops, bool backward, double *seconds) {
    TRY(ops->synchronise(ops));
    const double begin = time_now_s();
    TRY(backward ? ops->attention_backward(ops, &p->call) : ops->attention(ops, &p->call.forward));
    TRY(ops->synchronise(ops));
    *seconds = time_now_s() - begin;
    return STATUS_OK;
}

enum { WARM = 2 };

/* All forms of one kernel at one shape, by turns. */
static enum status measure_kernel(const struct passes *p, const struct ops *ops, int kernel,
                                  const struct tunable *tunable, int rounds, struct tuning_row *row) {
    const int64_t width = p->call.forward.q.shape[3], length = p->call.forward.q.shape[1];
    double *times = NULL, unused;
    enum status status = STATUS_OK;
    row->forms = tunable->forms < TUNING_FORMS ? tunable->forms : TUNING_FORMS;
    row->best = (struct tuning_entry){.width = width, .length = length};
    snprintf(row->best.kernel, sizeof row->best.kernel, "%s", tunable->name);
    TRY(memory_new((size_t)(rounds * row->forms), sizeof *times, "times", &times));
    for (int round = -WARM; round < rounds; round++)
        for (int form = 0; form < row->forms; form++) {
            TRY_GOTO(done, ops->set_form(ops, kernel, width, length, form));
            TRY_GOTO(done, time_pass(p, ops, tunable->backward, round < 0 ? &unused : &times[form * rounds + round]));
        }
    for (int form = 0; form < row->forms; form++) {
        row->seconds[form] = bench_median(times + form * rounds, rounds);
        const double bound = row->best.form == 0 ? 0.98 * row->seconds[0] : row->seconds[row->best.form];
        if (form > 0 && row->seconds[form] <= bound) row->best.form = form;
    }
    TRY_GOTO(done, ops->set_form(ops, kernel, width, length,
                                 row->best.form)); /* the next kernel's time beside this one's best */
done:
    free(times);
    return status;
}

static enum status measure_shape(const struct ops *ops, const struct tuning_options *o, int64_t width, int64_t length,
                                 struct tuning_row *rows, int64_t *count) {
    struct passes passes;
    struct tunable tunable;
    enum status status;
    double unused;
    TRY_GOTO(done, open_passes(&passes, ops, o, width, length));
    TRY_GOTO(done, time_pass(&passes, ops, false, &unused)); /* what a backward pass reads */
    for (int kernel = 0; ops->tunable(ops, kernel, &tunable); kernel++) {
        if (tunable.forms < 2) continue;
        log_line("tune     %s, width %lld, %lld tokens", tunable.name, (long long)width, (long long)length);
        TRY_GOTO(done, measure_kernel(&passes, ops, kernel, &tunable, o->rounds, &rows[*count]));
        ++*count;
    }
done:
    ops->release(ops, passes.block);
    return status;
}

enum status tuning_measure(const struct ops *ops, const struct tuning_options *o, struct tuning_row **rows,
                           int64_t *count) {
    struct tunable tunable;
    int several = 0;
    *rows = NULL;
    *count = 0;
    for (int kernel = 0; ops->tunable && ops->tunable(ops, kernel, &tunable); kernel++) several += tunable.forms > 1;
    if (several == 0)
        return error_set(STATUS_USAGE, "bench tune: device %s has no kernel with several forms; expected --device cuda",
                         ops->name);
    TRY(memory_new((size_t)(several * o->length_count * o->width_count), sizeof **rows, "times", rows));
    for (int w = 0; w < o->width_count; w++)
        for (int n = 0; n < o->length_count; n++) TRY(measure_shape(ops, o, o->widths[w], o->lengths[n], *rows, count));
    return STATUS_OK;
}
