/* See bench_step.h. The step is the trainer's own distill_step, on a config that is written as a recipe. */
#include "commands/bench_step.h"

#include "base/file.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/memory.h"
#include "base/rng.h"
#include "commands/device.h"
#include "eval/bench_layer.h"
#include "io/shard.h"
#include "params/division.h"
#include "train/run.h"
#include "train/stage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bench {
    const struct bench_step_options *options;
    char *shard;
    struct config config;
    const struct ops *ops;
    int64_t warm; /* steps before those that are timed: caches; on a GPU also the choice of algorithms and its clock */
    struct comm *comm;
    struct model teacher, student;
    struct batches batches;
    struct distill distill;
    struct stage_memory memory;
};

static enum status write_shard(struct bench *bench) {
    const struct bench_step_options *o = bench->options;
    struct shard_info info = {
        .vocabulary = o->vocabulary, .end_of_text = -1, .tokenizer_name = "random", .source = "random"};
    struct shard_writer *writer = NULL;
    int64_t count = (o->steps + bench->warm) * o->batch * o->length + 1;
    uint32_t *ids = NULL;
    enum status status;
    TRY_GOTO(done, memory_format(&bench->shard, "%s/squint-bench-%ld.h5", o->temporary, (long)getpid()));
    TRY_GOTO(done, memory_new((size_t)count, sizeof *ids, "random ids", &ids));
    for (int64_t i = 0; i < count; i++) {
        ids[i] = (uint32_t)rng_below(1, RNG_TEST, (uint64_t)i, (uint64_t)o->vocabulary);
    }
    TRY_GOTO(done, shard_writer_open(bench->shard, &info, &writer));
    TRY_GOTO(done, shard_writer_append(writer, ids, count, true));
    TRY_GOTO(done, shard_writer_close(&writer));
done:
    shard_writer_abort(&writer);
    free(ids);
    return status;
}

static enum status make_config(struct bench *bench) {
    const struct bench_step_options *o = bench->options;
    char *text = NULL;
    TRY(memory_format(
        &text,
        "run: %s\nteacher: random\ndata: {train: \"%s\"}\n"
        "student: {attention: [{layers: all, %s}]}\n"
        "stages: [{name: bench, objective: kl, train: [%s], length: %lld, batch: %lld, steps: %lld, lr: 1.0e-5}]\n"
        "train: {micro_batch: %lld, recompute: %s}\nprecision: %s\n",
        o->temporary, bench->shard, o->attention, o->train, (long long)o->length, (long long)o->batch,
        (long long)(o->steps + bench->warm), (long long)o->batch, o->recompute, o->precision));
    enum status status = config_parse("bench step", text, strlen(text), NULL, 0, &bench->config);
    free(text);
    return status;
}

static enum status make_models(struct bench *bench, int64_t *trained) {
    const struct bench_step_options *o = bench->options;
    const struct config_stage *stage = &bench->config.stages[0];
    struct model_config shape = {.type = MODEL_GPT2,
                                 .layers = o->layers,
                                 .heads = o->heads,
                                 .kv_heads = o->heads,
                                 .head_width = o->width / o->heads,
                                 .width = o->width,
                                 .mlp_width = 4 * o->width,
                                 .vocabulary = o->vocabulary,
                                 .positions = o->length > 1024 ? o->length : 1024,
                                 .norm_epsilon = 1e-5,
                                 .tied = true,
                                 .qkv_bias = true,
                                 .output_bias = true,
                                 .mlp_bias = true,
                                 .causal = true,
                                 .begin_of_text = -1,
                                 .end_of_text = -1};
    TRY(model_new(bench->ops, &shape, false, &bench->teacher));
    bench->teacher.bf16 = bench->config.precision == PRECISION_BF16;
    TRY(model_initialise(&bench->teacher, 1));
    TRY(model_student(&bench->teacher, "bench step", bench->config.attention, bench->config.attention_count,
                      stage->train, stage->train_count, true, 1, &bench->student));
    TRY(params_divide(&bench->student.params, &(struct division_options){.size = 1}));
    return params_train(&bench->student.params, stage->train, stage->train_count, trained);
}

static enum status open_bench(struct bench *bench, struct bench_step_result *result) {
    const struct bench_step_options *o = bench->options;
    TRY(comm_open_single(&bench->comm));
    /* As a run without `deterministic: true` has it. */
    const struct ops_options options = {.threads = o->threads > 0 ? (int)o->threads : machine_threads(1)};
    enum status status = device_choose(o->device, strcmp(o->precision, "bf16") == 0, &options, &bench->ops);
    if (status != STATUS_OK) return error_prefix(status, "bench step: --device");
    bench->warm = bench->ops->host_memory ? 1 : 3;
    TRY(write_shard(bench));
    TRY(make_config(bench));
    TRY(make_models(bench, &result->trained));
    result->parameters = params_elements(&bench->student.params);
    TRY(batches_open(bench->config.train_data, bench->config.train_data_count, true, 1, &bench->batches));
    TRY(batches_start(&bench->batches, 0, o->length));
    const struct config_stage *stage = &bench->config.stages[0];
    const struct stage_choice choice = stage_choice_of(&bench->config);
    TRY(stage_measure(&choice, stage, &bench->teacher, &bench->student, o->batch, 0, 0, &bench->memory));
    bench->distill = (struct distill){.config = &bench->config,
                                      .stage = stage,
                                      .teacher = &bench->teacher,
                                      .student = &bench->student,
                                      .comm = bench->comm,
                                      .batches = &bench->batches};
    return stage_open(&bench->distill, &bench->memory);
}

static void close_bench(struct bench *bench) {
    stage_close(&bench->distill);
    batches_close(&bench->batches);
    model_free(&bench->student);
    model_free(&bench->teacher);
    if (bench->ops) bench->ops->close(bench->ops);
    comm_close(&bench->comm);
    config_free(&bench->config);
    if (bench->shard) unlink(bench->shard);
    free(bench->shard);
}

/* seconds: [PHASES+1, steps], the last row for whole steps. */
static enum status time_steps(struct bench *bench, double *seconds, struct bench_step_result *result) {
    const int64_t steps = bench->options->steps, all = bench->warm + steps;
    const struct ops *ops = bench->ops;
    struct log_progress progress;
    log_progress_start(&progress, "bench step", 0, all);
    for (int64_t i = 0; i < all; i++) {
        struct step_settings settings = {.sample = i * bench->options->batch, .update = i + 1, .step = i, .total = i, .lr = 1e-5};
        struct step_result step;
        double started = time_now_s();
        TRY(distill_step(&bench->distill, &settings, &step));
        TRY(ops->synchronise(ops)); /* the update is still under way on a GPU */
        double took = time_now_s() - started;
        if (step.skipped) return error_set(STATUS_NONFINITE, "bench step: step %lld: %s", (long long)i, step.fault);
        result->kl = step.kl;
        log_progress_show(&progress, i + 1, "steps");
        const int64_t place = i - bench->warm;
        if (place < 0) continue;
        for (int p = 0; p < PHASES; p++) seconds[p * steps + place] = step.seconds[p];
        seconds[PHASES * steps + place] = took;
    }
    log_progress_end(&progress, all, "steps");
    return STATUS_OK;
}

enum status bench_step(const struct bench_step_options *options, struct bench_step_result *result) {
    struct bench bench = {.options = options};
    double *seconds = NULL, flops = 0;
    int64_t steps = options->steps;
    enum status status;
    *result = (struct bench_step_result){0};
    TRY_GOTO(done, memory_new((size_t)((PHASES + 1) * steps), sizeof *seconds, "times", &seconds));
    TRY_GOTO(done, open_bench(&bench, result));
    TRY_GOTO(done, time_steps(&bench, seconds, result));
    for (int p = 0; p < PHASES; p++) result->phases[p] = bench_median(seconds + p * steps, (int)steps);
    result->seconds = bench_median(seconds + PHASES * steps, (int)steps);
    result->tokens_per_second = (double)(options->batch * options->length) / result->seconds;
    TRY_GOTO(done, stage_flops(bench.distill.stage, &bench.teacher, &bench.student, &flops));
    result->flops_per_second = flops / result->seconds;
    result->planned_bytes = (double)bench.memory.total;
    struct device_memory memory;
    bench.ops->memory(bench.ops, &memory); /* before the matrices of run_measure_peak, which are no part of a step */
    result->peak_bytes = memory.peak;
    TRY_GOTO(done, run_measure_peak(bench.ops, bench.config.precision == PRECISION_BF16, &result->peak_flops));
    snprintf(result->device, sizeof result->device, "%s", bench.ops->describe(bench.ops));
done:
    free(seconds);
    close_bench(&bench);
    return status;
}
