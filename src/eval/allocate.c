/* The whole search from candidates to an allocation; see allocate.h for its steps. */
#include "eval/allocate.h"

#include "base/memory.h"
#include "eval/allocate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Every second window from `first` of the caller's. */
static enum status view_windows(const struct windows *all, int64_t first, struct windows *view) {
    *view = *all;
    view->windows = NULL;
    view->count = 0;
    TRY(memory_new((size_t)all->count, sizeof *view->windows, "windows", &view->windows));
    for (int64_t w = first; w < all->count; w += 2) view->windows[view->count++] = all->windows[w];
    return STATUS_OK;
}

static enum status list_candidates(struct allocator *a, const struct config_attention *rules, size_t count) {
    TRY(memory_new(count, sizeof *a->candidates, "candidates", &a->candidates));
    for (size_t r = 0; r < count; r++) {
        if (strcmp(rules[r].kind, "full") == 0 && rules[r].option_count == 0) {
            a->full = true;
        } else {
            a->candidates[a->candidate_count++] = rules[r];
        }
    }
    if (a->candidate_count > 0) return STATUS_OK;
    return error_set(STATUS_USAGE, "%s: expected a candidate beside full, found none", a->options->where);
}

static enum status open_allocator(struct allocator *a, const struct config_attention *rules, size_t count,
                                  const struct windows *windows) {
    a->layers = a->teacher->config.layers;
    a->heads = a->teacher->config.heads;
    a->code_width = 1 + (size_t)a->heads;
    a->student_width = (size_t)a->layers * a->code_width;
    TRY(list_candidates(a, rules, count));
    TRY(view_windows(windows, 0, &a->search));
    TRY(view_windows(windows, 1, &a->check));
    if (a->options->per_head) TRY(families_find(a->candidates, a->candidate_count, &a->families, &a->family_count));
    TRY(memory_new(a->candidate_count, sizeof *a->densities, "densities", &a->densities));
    TRY(memory_new(a->candidate_count, sizeof *a->uniform_kl, "figures of uniform students", &a->uniform_kl));
    TRY(memory_new((size_t)a->layers * a->candidate_count, sizeof *a->alone_kl, "figures of layers", &a->alone_kl));
    TRY(memory_new((size_t)a->layers, sizeof *a->pools, "options of layers", &a->pools));
    TRY(memory_new(a->family_count, sizeof *a->head_kl, "figures of heads", &a->head_kl));
    for (size_t f = 0; f < a->family_count; f++) {
        size_t figures = (size_t)(a->layers * a->heads) * a->families[f].count;
        TRY(memory_new(figures, sizeof **a->head_kl, "figures of heads", &a->head_kl[f]));
    }
    return allocator_check_candidates(a);
}

static void close_allocator(struct allocator *a) {
    for (size_t f = 0; a->head_kl && f < a->family_count; f++) free(a->head_kl[f]);
    pools_free(a->pools, a->layers);
    families_free(a->families, a->family_count);
    void *blocks[] = {a->candidates, a->densities,      a->uniform_kl,   a->alone_kl,
                      a->head_kl,    a->search.windows, a->check.windows};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

/* --- the result -------------------------------------------------------------------------------------------------- */

static enum status report_layers(struct allocator *a, size_t *code, struct allocation *out) {
    size_t *codes = NULL;
    double *kl = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new((size_t)a->layers * a->student_width, sizeof *codes, "students' codes", &codes));
    TRY_GOTO(done, memory_new((size_t)a->layers, sizeof *kl, "figures of layers", &kl));
    TRY_GOTO(done, memory_new((size_t)a->layers, sizeof *out->layers, "layers", &out->layers));
    out->layer_count = a->layers;
    for (int64_t l = 0; l < a->layers; l++) {
        size_t *alone = codes + (size_t)l * a->student_width, *layer = code_layer(a, code, l);
        code_fill_full(a, alone);
        memcpy(code_layer(a, alone, l), layer, a->code_width * sizeof *layer);
        out->layers[l].density = code_density(a, layer);
        TRY_GOTO(done, code_rule(a, layer, l, &out->layers[l].rule));
        TRY_GOTO(done, code_sizes(a, layer, &out->layers[l].sizes));
    }
    TRY_GOTO(done, allocator_measure(a, &a->search, codes, (size_t)a->layers, kl, NULL, NULL));
    for (int64_t l = 0; l < a->layers; l++) {
        out->layers[l].kl = out->layers[l].rule.kind ? kl[l] : 0;
        out->predicted_kl += out->layers[l].kl;
    }
done:
    free(codes);
    free(kl);
    return status;
}

static enum status report_uniforms(struct allocator *a, struct allocation *out) {
    TRY(memory_new(a->candidate_count, sizeof *out->uniforms, "uniform students", &out->uniforms));
    out->uniform_count = a->candidate_count;
    out->best_uniform = -1;
    for (size_t c = 0; c < a->candidate_count; c++) {
        struct allocate_uniform *uniform = &out->uniforms[c];
        TRY(rule_text(&a->candidates[c], &uniform->text));
        uniform->figures = (struct allocate_figures){a->densities[c], a->uniform_kl[c], NAN, NAN};
        struct search_measured own = allocator_weigh(a, a->densities[c], a->uniform_kl[c]), best;
        uniform->within = search_within(own.weight, a->options->budget);
        if (!uniform->within) continue;
        if (out->best_uniform >= 0)
            best = allocator_weigh(a, a->densities[out->best_uniform], a->uniform_kl[out->best_uniform]);
        if (out->best_uniform < 0 || search_better(&own, &best, a->options->budget)) out->best_uniform = (int64_t)c;
    }
    return STATUS_OK;
}

/* The allocation, and every uniform student within the budget, on windows that took no part in the search. */
static enum status check_apart(struct allocator *a, const size_t *code, struct allocation *out) {
    size_t *codes = NULL, count = 1;
    double *kl = NULL, *error = NULL;
    enum status status = STATUS_OK;
    if (a->check.count == 0) return STATUS_OK;
    TRY_GOTO(done, memory_new((1 + a->candidate_count) * a->student_width, sizeof *codes, "students' codes", &codes));
    TRY_GOTO(done, memory_new(1 + a->candidate_count, sizeof *kl, "figures of students", &kl));
    TRY_GOTO(done, memory_new(1 + a->candidate_count, sizeof *error, "figures of students", &error));
    memcpy(codes, code, a->student_width * sizeof *codes);
    for (size_t c = 0; c < a->candidate_count; c++) {
        if (!out->uniforms[c].within) continue;
        for (int64_t l = 0; l < a->layers; l++) *code_layer(a, codes + count * a->student_width, l) = c;
        count++;
    }
    allocator_start_progress(a, "check", (int64_t)count);
    TRY_GOTO(done, allocator_measure(a, &a->check, codes, count, kl, error, NULL));
    allocator_end_progress(a);
    out->figures.check_kl = kl[0];
    out->figures.check_error = error[0];
    count = 1;
    for (size_t c = 0; c < a->candidate_count; c++) {
        if (!out->uniforms[c].within) continue;
        out->uniforms[c].figures.check_kl = kl[count];
        out->uniforms[c].figures.check_error = error[count++];
    }
done:
    free(codes);
    free(kl);
    free(error);
    return status;
}

static enum status search(struct allocator *a, size_t *code, struct allocation *out) {
    struct search_measured at;
    bool by_density = a->options->by_density;
    TRY(allocator_measure_tables(a));
    TRY(allocator_make_pools(a));
    TRY(allocator_start(a, code, &at));
    TRY(allocator_improve(a, code, &at));
    out->figures =
        (struct allocate_figures){by_density ? at.weight : at.loss, by_density ? at.loss : at.weight, NAN, NAN};
    out->search_windows = a->search.count;
    out->check_windows = a->check.count;
    TRY(report_layers(a, code, out));
    TRY(report_uniforms(a, out));
    TRY(check_apart(a, code, out));
    out->evaluations = a->measured;
    return STATUS_OK;
}

enum status allocate_run(const struct model *teacher, const struct config_attention *rules, size_t rule_count,
                         const struct windows *windows, const struct allocate_options *options, struct comm *comm,
                         struct allocation *out) {
    struct allocator a = {.teacher = teacher, .options = options, .comm = comm};
    size_t *code = NULL;
    *out = (struct allocation){.best_uniform = -1};
    enum status status = open_allocator(&a, rules, rule_count, windows);
    if (status == STATUS_OK) status = memory_new(a.student_width, sizeof *code, "a student's code", &code);
    status = comm_agree(comm, status);
    if (status == STATUS_OK) status = search(&a, code, out);
    if (status != STATUS_OK) allocation_free(out);
    free(code);
    close_allocator(&a);
    return status;
}

void allocation_free(struct allocation *allocation) {
    for (int64_t l = 0; allocation->layers && l < allocation->layer_count; l++) {
        rule_free(&allocation->layers[l].rule);
        free(allocation->layers[l].sizes);
    }
    for (size_t u = 0; allocation->uniforms && u < allocation->uniform_count; u++) free(allocation->uniforms[u].text);
    free(allocation->layers);
    free(allocation->uniforms);
    *allocation = (struct allocation){.best_uniform = -1};
}
