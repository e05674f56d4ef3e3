/* Students made from their codes and measured, and the tables of step 1; see allocate_internal.h. */
#include "base/memory.h"
#include "eval/allocate_internal.h"
#include "eval/variants.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = 8 }; /* students that share one pass of the teacher */

void allocator_start_progress(struct allocator *a, const char *label, int64_t total) {
    a->done = 0;
    a->total = total;
    log_progress_start(&a->progress, label, 0, total);
}

void allocator_end_progress(struct allocator *a) {
    log_progress_end(&a->progress, a->done, a->detail);
}

/* --- students ---------------------------------------------------------------------------------------------------- */

static enum status make_student(const struct allocator *a, const size_t *code, struct model *student) {
    struct config_attention *rules = NULL;
    size_t count = 0;
    enum status status = STATUS_OK;
    TRY(memory_new((size_t)a->layers, sizeof *rules, "rules of a student", &rules));
    for (int64_t l = 0; l < a->layers && status == STATUS_OK; l++) {
        const size_t *layer = code + (size_t)l * a->code_width;
        if (layer[0] == FORM_FULL) continue;
        status = code_rule(a, layer, l, &rules[count]);
        if (status == STATUS_OK) count++;
    }
    if (status == STATUS_OK) {
        status = model_student(a->teacher, a->options->where, rules, count, NULL, 0, false, a->options->seed, student);
        if (status == STATUS_OK) status = variant_calibrate(&a->search, student);
    }
    for (size_t r = 0; r < count; r++) rule_free(&rules[r]);
    free(rules);
    return status;
}

static enum status make_group(const struct allocator *a, const size_t *codes, size_t count, struct model *models,
                              struct evaluate_row *rows, size_t *made) {
    for (; *made < count; ++*made) {
        TRY(make_student(a, codes + *made * a->student_width, &models[*made]));
        rows[*made] = (struct evaluate_row){"student", &models[*made]};
    }
    return STATUS_OK;
}

static enum status measure_group(struct allocator *a, const struct windows *windows, const size_t *codes, size_t count,
                                 struct evaluate_figures *figures) {
    struct model *models = NULL;
    struct evaluate_row rows[GROUP];
    struct evaluate_options options = {.batch = a->options->batch > 0 ? a->options->batch : 4};
    size_t made = 0;
    enum status status = memory_new(GROUP, sizeof *models, "students", &models);
    if (status == STATUS_OK) status = make_group(a, codes, count, models, rows, &made);
    TRY_GOTO(done, comm_agree(a->comm, status));
    status = evaluate_run(a->teacher, rows, count, windows, &options, a->comm, figures);
done:
    for (size_t m = 0; m < made; m++) model_free(&models[m]);
    free(models);
    return status;
}

enum status allocator_measure(struct allocator *a, const struct windows *windows, const size_t *codes, size_t count,
                              double *kl, double *error, double *density) {
    struct evaluate_figures figures[GROUP];
    for (size_t first = 0; first < count; first += GROUP) {
        size_t here = count - first < GROUP ? count - first : GROUP;
        TRY(measure_group(a, windows, codes + first * a->student_width, here, figures));
        for (size_t i = 0; i < here; i++) {
            kl[first + i] = figures[i].nonfinite > 0 ? NAN : figures[i].kl;
            if (error) error[first + i] = figures[i].kl_error;
            if (density) density[first + i] = figures[i].cost.density;
        }
        a->measured += (int64_t)here;
        a->done += (int64_t)here;
        log_progress_show(&a->progress, a->done, a->detail);
    }
    return STATUS_OK;
}

/* --- candidates -------------------------------------------------------------------------------------------------- */

static enum status check_candidate(struct allocator *a, size_t c, size_t *code) {
    struct model student;
    struct attention_cost cost;
    double flops;
    const struct config_attention *rule = &a->candidates[c];
    for (int64_t l = 0; l < a->layers; l++) *code_layer(a, code, l) = c;
    TRY(make_student(a, code, &student));
    enum status status = model_cost(&student, a->search.options.length, &cost, &flops);
    model_free(&student);
    a->densities[c] = cost.density;
    if (status != STATUS_OK || cost.density >= 0) return status;
    return error_set(STATUS_USAGE,
                     "%s:%d: %s: expected a kind with a density, which is what a budget distributes; this one reads "
                     "its past as a sum",
                     a->options->where, rule->line, rule->kind);
}

enum status allocator_check_candidates(struct allocator *a) {
    size_t *code = NULL;
    enum status status = STATUS_OK;
    double least = a->full ? 1 : HUGE_VAL;
    TRY(memory_new(a->student_width, sizeof *code, "a student's code", &code));
    for (size_t c = 0; c < a->candidate_count && status == STATUS_OK; c++) {
        status = check_candidate(a, c, code);
        least = fmin(least, a->densities[c]);
    }
    free(code);
    if (status == STATUS_OK && a->options->by_density && !search_within(least, a->options->budget)) {
        status =
            error_set(STATUS_USAGE,
                      "allocate: --density: expected at least %.4f, the lightest candidate's at this length, found %g",
                      least, a->options->budget);
    }
    return status;
}

/* --- tables ------------------------------------------------------------------------------------------------------ */

static enum status measure_uniform(struct allocator *a, size_t *codes) {
    for (size_t c = 0; c < a->candidate_count; c++) {
        size_t *code = codes + c * a->student_width;
        memset(code, 0, a->student_width * sizeof *code);
        for (int64_t l = 0; l < a->layers; l++) *code_layer(a, code, l) = c;
    }
    allocator_start_progress(a, "uniform", (int64_t)a->candidate_count);
    TRY(allocator_measure(a, &a->search, codes, a->candidate_count, a->uniform_kl, NULL, NULL));
    allocator_end_progress(a);
    return STATUS_OK;
}

static enum status measure_alone(struct allocator *a, size_t *codes) {
    allocator_start_progress(a, "layers", a->layers * (int64_t)a->candidate_count);
    for (int64_t l = 0; l < a->layers; l++) {
        for (size_t c = 0; c < a->candidate_count; c++) {
            size_t *code = codes + c * a->student_width;
            code_fill_full(a, code);
            *code_layer(a, code, l) = c;
        }
        double *kl = a->alone_kl + (size_t)l * a->candidate_count;
        TRY(allocator_measure(a, &a->search, codes, a->candidate_count, kl, NULL, NULL));
    }
    allocator_end_progress(a);
    return STATUS_OK;
}

/* One head at each size but the last, which reads everything as all others do. */
static enum status measure_heads(struct allocator *a, size_t f, size_t *codes) {
    const struct family *family = &a->families[f];
    size_t last = family->count - 1;
    allocator_start_progress(a, "heads", a->layers * a->heads * (int64_t)last);
    for (int64_t l = 0; l < a->layers; l++) {
        for (int64_t h = 0; h < a->heads; h++) {
            double *kl = a->head_kl[f] + (size_t)(l * a->heads + h) * family->count;
            for (size_t r = 0; r < last; r++) {
                size_t *code = codes + r * a->student_width, *layer;
                code_fill_full(a, code);
                layer = code_layer(a, code, l);
                layer[0] = a->candidate_count + f;
                for (int64_t i = 0; i < a->heads; i++) layer[1 + i] = i == h ? r : last;
            }
            TRY(allocator_measure(a, &a->search, codes, last, kl, NULL, NULL));
            kl[last] = 0;
        }
    }
    allocator_end_progress(a);
    return STATUS_OK;
}

enum status allocator_measure_tables(struct allocator *a) {
    size_t *codes = NULL; /* a family's sizes without the last are candidates: there are never more of them */
    enum status status = STATUS_OK;
    TRY(memory_new(a->candidate_count * a->student_width, sizeof *codes, "students' codes", &codes));
    TRY_GOTO(done, measure_uniform(a, codes));
    TRY_GOTO(done, measure_alone(a, codes));
    for (size_t f = 0; f < a->family_count; f++) TRY_GOTO(done, measure_heads(a, f, codes));
done:
    free(codes);
    return status;
}
