/* Figures of steps and evaluations, to people and to files; see record.h. */
#include "train/record.h"

#include "base/machine.h"
#include "base/memory.h"
#include "io/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_EVERY = 10 /* steps between looks at density and the kinds' own numbers */ };

static const char *stage_name(const struct record *record, const struct train_state *state) {
    return record->run->config->stages[state->stage].name;
}

static enum status open_files(struct record *record, int64_t total, bool resumed) {
    struct metrics_options options = {
        .directory = record->run->config->run, .resume_step = resumed ? total : -1, .tensorboard = true};
    return metrics_open(&options, &record->metrics);
}

enum status record_open(struct run *run, int64_t total, bool resumed, struct record *record) {
    *record = (struct record){.run = run, .density = -1};
    enum status status = memory_new(RECORD_KINDS, 1, "a metrics line", &record->kinds);
    if (status == STATUS_OK && comm_rank(run->comm) == 0) status = open_files(record, total, resumed);
    return comm_agree(run->comm, status);
}

enum status record_close(struct record *record) {
    if (!record) return STATUS_OK;
    free(record->kinds);
    record->kinds = NULL;
    return metrics_close(&record->metrics);
}

enum status record_sync(struct record *record) {
    enum status status = record->metrics ? metrics_sync(record->metrics) : STATUS_OK;
    return comm_agree(record->run->comm, status);
}

enum status record_roll_back(struct record *record, int64_t total) {
    if (!record->metrics) return STATUS_OK;
    TRY(metrics_close(&record->metrics));
    return open_files(record, total, true);
}

/* --- steps ---------------------------------------------------------------------------------------------------------
 */

/* The kinds' own numbers of every layer: "layers": {"0": {…}, …}. What does not fit is left out. */
static enum status look_at_kinds(struct record *record) {
    const struct model *student = &record->run->student;
    char layer[4096];
    size_t used = 0;
    record->kinds[0] = '\0';
    for (int64_t l = 0; l < student->config.layers; l++) {
        const struct attention_layer *attention = &student->layers[l];
        if (!attention->kind->report) continue;
        layer[0] = '\0';
        TRY(attention->kind->report(attention, layer, sizeof layer));
        if (layer[0] == '\0' || used + strlen(layer) + 64 > RECORD_KINDS) continue;
        used += (size_t)snprintf(record->kinds + used, RECORD_KINDS - used, "%s\"%lld\": {%s}",
                                 used ? ", " : "\"layers\": {", (long long)l, layer);
    }
    if (used > 0) snprintf(record->kinds + used, RECORD_KINDS - used, "}");
    return STATUS_OK;
}

static enum status look(struct record *record, size_t stage) {
    struct attention_cost cost;
    double flops = 0;
    TRY(model_cost(&record->run->student, record->run->config->stages[stage].length, &cost, &flops));
    record->density = cost.density;
    return look_at_kinds(record);
}

enum status record_start_stage(struct record *record, size_t index, int64_t step) {
    struct run *run = record->run;
    const struct config_stage *stage = &run->config->stages[index];
    record->step_s = 0;
    TRY(look(record, index));
    TRY(stage_flops(stage, run_teacher(run), &run->student, &record->flops));
    log_progress_start(&record->progress, stage->name, step, stage->steps);
    return STATUS_OK;
}

/* "kl 0.0412  |g| 0.31  lr 9.1e-04  density 0.158  21.4k tok/s  38% of peak" */
static void describe_step(const struct record *record, const struct config_stage *stage, double lr,
                          const struct step_result *result, char *text, size_t capacity) {
    static const char *const names[] = {"ce", "mse", "kl"};
    double tokens = (double)stage->batch * (double)stage->length;
    double value = stage->objective == OBJECTIVE_KL ? result->kl : result->loss;
    size_t used = (size_t)snprintf(text, capacity, "%s %.4f  |g| %.2g  lr %.1e", names[stage->objective], value,
                                   result->norm, lr);
    if (record->density >= 0 && record->run->has_teacher) {
        used += (size_t)snprintf(text + used, capacity - used, "  density %.3f", record->density);
    }
    double rate = record->step_s > 0 ? tokens / record->step_s : 0;
    used += rate >= 1000 ? (size_t)snprintf(text + used, capacity - used, "  %.1fk tok/s", rate / 1000)
                         : (size_t)snprintf(text + used, capacity - used, "  %.0f tok/s", rate);
    if (record->run->peak_flops > 0 && record->step_s > 0) {
        snprintf(text + used, capacity - used, "  %.0f%% of peak",
                 100 * record->flops / record->step_s / record->run->peak_flops);
    }
}

static double or_absent(double value, bool present) {
    return present ? value : METRICS_ABSENT;
}

static enum status write_step(struct record *record, const struct train_state *state, double lr, double seconds,
                              const struct step_result *result, bool looked) {
    struct run *run = record->run;
    const struct config_stage *stage = &run->config->stages[state->stage];
    struct metrics_record line = metrics_record_new(state->total, stage->name);
    double peak = run->peak_flops;
    struct device_memory memory;
    char extra[RECORD_KINDS + 96], own[40] = "";
    line.loss = result->loss;
    line.kl = or_absent(result->kl, stage->objective == OBJECTIVE_KL);
    line.ce = or_absent(result->ce, stage->objective != OBJECTIVE_ATTENTION);
    line.grad_norm = result->norm;
    line.lr = lr;
    line.density = or_absent(record->density, looked && record->density >= 0);
    line.tokens_per_s = (double)stage->batch * (double)stage->length / seconds;
    line.flops_per_s = record->flops / seconds;
    line.peak_share = or_absent(record->flops / seconds / peak, peak > 0);
    run->ops->memory(run->ops, &memory);
    line.memory_bytes = memory.used;
    line.memory_peak_bytes = memory.peak;
    line.step_s = seconds;
    for (int i = 0; i < PHASES; i++) {
        line.phases[i] = (struct metrics_phase){.name = phase_names[i], .seconds = result->seconds[i]};
    }
    if (result->own != 0 && isfinite(result->own)) snprintf(own, sizeof own, ", \"own\": %.10g", result->own);
    snprintf(extra, sizeof extra, "\"skipped\": %lld%s%s%s", (long long)state->skipped, own,
             looked && record->kinds[0] ? ", " : "", looked ? record->kinds : "");
    line.extra = extra;
    return metrics_write(record->metrics, &line);
}

enum status record_step(struct record *record, const struct train_state *state, double lr, double seconds,
                        const struct step_result *result) {
    const struct config_stage *stage = &record->run->config->stages[state->stage];
    bool looked =
        state->step % LOOK_EVERY == 0 || state->step == 1 || state->step == stage->steps; /* of the step alone */
    char text[256];
    record->step_s = record->step_s > 0 ? 0.9 * record->step_s + 0.1 * seconds : seconds;
    if (looked) TRY(look(record, (size_t)state->stage));
    if (!record->metrics) return STATUS_OK;
    describe_step(record, stage, lr, result, text, sizeof text);
    log_progress_show(&record->progress, state->step, text);
    return write_step(record, state, lr, seconds, result, looked);
}

void record_end_stage(struct record *record, const struct train_state *state, const struct step_result *last,
                      double lr) {
    char text[256];
    describe_step(record, &record->run->config->stages[state->stage], lr, last, text, sizeof text);
    log_progress_end(&record->progress, state->step, text);
}

/* --- evaluations ---------------------------------------------------------------------------------------------------
 */

/* JSON has no NaN. */
static void add_number(char *text, size_t capacity, const char *name, double value) {
    size_t used = strlen(text);
    if (isfinite(value)) {
        snprintf(text + used, capacity - used, "%s\"%s\": %.10g", used > 1 && text[used - 1] != '{' ? ", " : "", name,
                 value);
    } else {
        snprintf(text + used, capacity - used, "%s\"%s\": null", used > 1 && text[used - 1] != '{' ? ", " : "", name);
    }
}

static void describe_figures(char *text, size_t capacity, const char *name, const struct evaluate_figures *figures) {
    size_t used = strlen(text);
    snprintf(text + used, capacity - used, "%s\"%s\": {", used ? ", " : "", name);
    add_number(text, capacity, "tokens", figures->tokens);
    add_number(text, capacity, "ce", figures->ce);
    add_number(text, capacity, "perplexity", figures->perplexity);
    if (figures->has_teacher) {
        add_number(text, capacity, "kl", figures->kl);
        add_number(text, capacity, "kl_error", figures->kl_error);
        add_number(text, capacity, "reverse_kl", figures->reverse_kl);
        add_number(text, capacity, "agreement", figures->agreement);
    }
    used = strlen(text);
    snprintf(text + used, capacity - used, "}");
}

enum status record_evaluation(struct record *record, const char *label, const struct train_state *state,
                              const struct evaluate_figures *student, const struct evaluate_figures *teacher) {
    char text[1024] = "", beside[64] = "";
    enum status status = STATUS_OK;
    if (teacher) snprintf(beside, sizeof beside, " (teacher %.3f)", teacher->perplexity);
    if (student->has_teacher) {
        char density[32] = "";
        /* Linear kinds have none. */
        if (student->cost.density >= 0) snprintf(density, sizeof density, "  density %.3f", student->cost.density);
        log_line("%-8s kl %.4f ± %.4f  perplexity %.3f%s  agree %.1f%%%s  %.0f tokens", label, student->kl, student->kl_error,
                 student->perplexity, beside, 100 * student->agreement, density, student->tokens);
    } else {
        log_line("%-8s ce %.4f ± %.4f  perplexity %.3f  %.0f tokens", label, student->ce, student->ce_error,
                 student->perplexity, student->tokens);
    }
    if (record->metrics) {
        struct metrics_record line = metrics_record_new(state->total, stage_name(record, state));
        describe_figures(text, sizeof text, "eval", student);
        if (teacher) describe_figures(text, sizeof text, "eval_teacher", teacher);
        line.extra = text;
        status = metrics_write(record->metrics, &line);
    }
    return comm_agree(record->run->comm, status);
}
