/* squint plan: memory and time of a recipe, without running it. */
#include "base/log.h"
#include "commands/commands.h"
#include "commands/with_run.h"

#include <stdio.h>

struct stage_estimate {
    struct stage_memory memory;
    int64_t trained;
    double flops, seconds; /* of a step; of the stage at the measured rate */
};

static enum status estimate_stage(struct run *run, size_t index, double rate, struct stage_estimate *estimate) {
    const struct config_stage *stage = &run->config->stages[index];
    TRY(run_start_stage(run, index, &estimate->trained));
    TRY(run_measure_stage(run, index, &estimate->memory));
    TRY(stage_flops(stage, run_teacher(run), &run->student, &estimate->flops));
    estimate->seconds = (double)stage->steps * estimate->flops / rate;
    return STATUS_OK;
}

static double memory_free(const struct run *run) {
    struct device_memory memory;
    run->ops->memory(run->ops, &memory);
    return memory.available;
}

static void print_json(const struct run *run, const struct stage_estimate *estimates, double rate) {
    printf("{\"ranks\": %d, \"gemm_flops_per_s\": %.6g, \"memory_available\": %.0f, \"stages\": [",
           comm_size(run->comm), rate, memory_free(run));
    for (size_t i = 0; i < run->config->stage_count; i++) {
        const struct stage_estimate *e = &estimates[i];
        const struct stage_memory *m = &e->memory;
        printf("%s{\"name\": \"%s\", \"trained\": %lld, \"micro_batch\": %lld, \"recompute\": %s, \"windows\": %lld, "
               "\"bytes\": {\"program\": %zu, \"parameters\": %zu, \"optimizer\": %zu, \"teacher_plan\": %zu, \"student_plan\": %zu, "
               "\"head\": %zu, "
               "\"batches\": %zu, \"total\": %zu}, \"step_flops\": %.6g, \"seconds_at_least\": %.6g}",
               i ? ", " : "", run->config->stages[i].name, (long long)e->trained, (long long)m->micro_batch,
               m->recompute ? "true" : "false",
               (long long)run->batches.tokens / (long long)run->config->stages[i].length, m->program, m->parameters, m->optimizer,
               m->teacher_plan, m->student_plan, m->head, m->batches, m->total, e->flops, e->seconds);
    }
    printf("]}\n");
}

static void print_table(const struct run *run, const struct stage_estimate *estimates, double rate) {
    char available[16];
    bytes_text(memory_free(run), available);
    printf("%d rank%s, %s; %s of memory free; matrix products at %.3g GFLOP/s together\n\n", comm_size(run->comm),
           comm_size(run->comm) == 1 ? "" : "s", run->ops->describe(run->ops), available, rate / 1e9);
    printf("%-12s %13s %10s %10s %10s %10s %10s %6s %10s %12s\n", "stage", "trained", "memory", "parameters",
           "optimizer", "passes", "head", "micro", "step", "at least");
    for (size_t i = 0; i < run->config->stage_count; i++) {
        const struct stage_estimate *e = &estimates[i];
        const struct stage_memory *m = &e->memory;
        char trained[32], total[16], parameters[16], optimizer[16], passes[16], head[16], time[16], step[32];
        count_text(e->trained, trained);
        bytes_text((double)m->total, total);
        bytes_text((double)m->parameters, parameters);
        bytes_text((double)m->optimizer, optimizer);
        bytes_text((double)(m->teacher_plan + m->student_plan), passes);
        bytes_text((double)m->head, head);
        time_text(e->seconds, time);
        snprintf(step, sizeof step, "%.3g GF", e->flops / 1e9);
        printf("%-12s %13s %10s %10s %10s %10s %10s %5lld%s %10s %12s\n", run->config->stages[i].name, trained, total,
               parameters, optimizer, passes, head, (long long)m->micro_batch, m->recompute ? "r" : " ", step, time);
    }
    printf("\nmemory is a rank's; \"at least\" is the stage's FLOPs at the rate of a matrix product: small models take "
           "two to four\n"
           "times as long. r: layers are computed again in the backward pass.\n");
}

static enum status plan_all(struct run *run, bool json) {
    enum { STAGES_MAX = 64 };
    struct stage_estimate estimates[STAGES_MAX];
    double rate = 0;
    if (run->config->stage_count > STAGES_MAX) {
        return error_set(STATUS_USAGE, "plan: expected at most %d stages, found %zu", STAGES_MAX,
                         run->config->stage_count);
    }
    TRY(run_divide_masters(run));
    TRY(run_measure_peak(run->ops, run->config->precision == PRECISION_BF16, &rate));
    TRY(comm_all_reduce(run->comm, tensor_1d(&rate, DTYPE_F64, 1), COMM_SUM));
    for (size_t i = 0; i < run->config->stage_count; i++) TRY(estimate_stage(run, i, rate, &estimates[i]));
    if (comm_rank(run->comm) != 0) return STATUS_OK;
    if (json) {
        print_json(run, estimates, rate);
    } else {
        print_table(run, estimates, rate);
    }
    return STATUS_OK;
}

static enum status run_plan(int argc, char **argv) {
    struct option_list words = {0}, overrides = {0};
    struct with_run with = {0};
    bool json = false;
    const struct option options[] = {{.name = "json", .type = OPTION_FLAG, .target = &json}};
    enum status status = options_read(argc, argv, options, 1, &words, &overrides);
    if (status == STATUS_OK) {
        status = with_run_open("plan", &words, &overrides, &with);
        if (status == STATUS_OK) status = plan_all(&with.run, json);
        status = with_run_close(&with, status);
    }
    options_free(&words);
    options_free(&overrides);
    return status;
}

const struct command command_plan = {
    .name = "plan",
    .summary = "memory and time of a recipe, without running it",
    .help = "usage: squint plan RECIPE.yaml [--section.key=value ...] [--json]\n"
            "       mpirun -np N squint plan RECIPE.yaml     what each of N ranks would take\n\n"
            "Opens data and models, computes what every stage takes in memory, and how long its FLOPs take at the rate "
            "of a matrix\n"
            "product that is measured here. Writes nothing.\n\n"
            "  --json   the same as JSON\n\n"
            "example: squint plan launch/recipes/stories-masks.yaml --stages.distil.length=384\n",
    .run = run_plan,
};
