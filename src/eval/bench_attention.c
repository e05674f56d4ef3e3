#include "eval/bench_attention.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* One kind at one length: its table, its layer, its tensors, its times. */
struct run {
    const struct ops *ops;
    struct model_config model;
    struct params params;
    struct attention_layer layer;
    struct attention_pass pass;
    void *block;
    size_t bytes;
    double *forward_s, *backward_s, *processor_s; /* [repeats] */
};

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* Runs twice: over an arena that only counts, then over one that places. */
static enum status place(struct run *run, const struct bench_attention_options *o, int64_t length, struct arena *arena) {
    const enum dtype real = run->ops->real;
    const int64_t rows = o->batch * length;
    struct attention_pass *p = &run->pass;
    free(p->saved);
    *p = (struct attention_pass){.ops = run->ops, .batch = o->batch, .length = length, .context = {.progress = 1}};
    p->q = arena_4d(arena, real, o->batch, length, o->heads, o->width);
    p->k = arena_4d(arena, real, o->batch, length, o->groups, o->width);
    p->v = arena_4d(arena, real, o->batch, length, o->groups, o->width);
    p->o = arena_4d(arena, real, o->batch, length, o->heads, o->width);
    p->d_o = arena_4d(arena, real, o->batch, length, o->heads, o->width);
    p->dq = arena_4d(arena, real, o->batch, length, o->heads, o->width);
    p->dk = arena_4d(arena, real, o->batch, length, o->groups, o->width);
    p->dv = arena_4d(arena, real, o->batch, length, o->groups, o->width);
    p->start = arena_2d(arena, DTYPE_I32, o->batch, length);
    p->positions = arena_2d(arena, DTYPE_I32, o->batch, length);
    p->loss = arena_1d(arena, DTYPE_F64, 1);
    if (run->layer.kind->reads_x) p->x = arena_2d(arena, real, rows, run->model.width);
    if (run->layer.kind->reads_x) p->dx = arena_2d(arena, real, rows, run->model.width);
    return run->layer.kind->plan(&run->layer, arena, o->batch, length, true, &p->saved);
}

static enum status fill(struct run *run) {
    const struct ops *ops = run->ops;
    const struct attention_pass *p = &run->pass;
    const struct tensor inputs[] = {p->q, p->k, p->v, p->d_o, p->x};
    int32_t *numbers = NULL;
    enum status status = STATUS_OK;
    for (int n = 0; n < 5; n++)
        if (tensor_present(inputs[n])) TRY(ops->fill_normal(ops, inputs[n], 1, 1, (uint64_t)n));
    TRY(ops->fill(ops, p->loss, 0));
    TRY_GOTO(done, memory_new((size_t)tensor_count(p->start), sizeof *numbers, "documents", &numbers));
    TRY_GOTO(done, ops->upload(ops, p->start, numbers));
    for (int64_t n = 0; n < tensor_count(p->start); n++) numbers[n] = (int32_t)(n % p->length);
    TRY_GOTO(done, ops->upload(ops, p->positions, numbers));
done:
    free(numbers);
    return status;
}

/* Everything that the kind adds trains, as in a stage with train: [new]. */
static enum status make_layer(struct run *run, const struct config_attention *rule) {
    char *added[] = {"new"};
    int64_t elements;
    run->params = (struct params){.ops = run->ops};
    TRY(attention_configure("bench attention: --kinds", rule, 1, &run->model, &run->layer));
    run->layer.params = &run->params;
    if (run->layer.kind->add_params) TRY(run->layer.kind->add_params(&run->layer, &run->params));
    TRY(params_place(&run->params, true));
    TRY(params_initialise(&run->params, 1, true));
    if (run->layer.kind->bind) TRY(run->layer.kind->bind(&run->layer));
    return params_train(&run->params, added, 1, &elements);
}

static void close_run(struct run *run) {
    if (!run->ops) return;
    free(run->pass.saved);
    attention_free_layers(&run->layer, 1);
    params_free(&run->params);
    run->ops->release(run->ops, run->block);
    run->ops->close(run->ops);
    free(run->forward_s);
    free(run->backward_s);
    free(run->processor_s);
}

static enum status open_run(struct run *run, const struct bench_attention_options *o, const struct config_attention *rule,
                            int64_t length) {
    struct arena arena = arena_sizing();
    TRY(ops_open(o->table, &(struct ops_options){.threads = o->threads}, &run->ops));
    run->model = (struct model_config){.type = MODEL_LLAMA, .layers = 1, .heads = o->heads, .kv_heads = o->groups,
                                       .head_width = o->width, .width = o->heads * o->width, .mlp_width = 1,
                                       .vocabulary = 1, .positions = length, .causal = true};
    TRY(make_layer(run, rule));
    TRY(place(run, o, length, &arena));
    run->bytes = arena.peak;
    TRY(run->ops->allocate(run->ops, run->bytes, &run->block));
    arena = arena_placing(run->block, run->bytes);
    TRY(place(run, o, length, &arena));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->forward_s));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->backward_s));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->processor_s));
    return fill(run);
}

/* repeat < 0: not timed. */
static enum status run_once(struct run *run, int repeat) {
    const struct ops *ops = run->ops;
    const struct kind *kind = run->layer.kind;
    const double processor = seconds(CLOCK_PROCESS_CPUTIME_ID), begin = seconds(CLOCK_MONOTONIC);
    TRY(kind->forward(&run->layer, &run->pass));
    TRY(ops->synchronise(ops));
    const double middle = seconds(CLOCK_MONOTONIC);
    TRY(kind->backward(&run->layer, &run->pass));
    TRY(ops->synchronise(ops));
    if (repeat < 0) return STATUS_OK;
    run->forward_s[repeat] = middle - begin;
    run->backward_s[repeat] = seconds(CLOCK_MONOTONIC) - middle;
    run->processor_s[repeat] = seconds(CLOCK_PROCESS_CPUTIME_ID) - processor;
    return STATUS_OK;
}

/* "masks: candidates window(256) sinks(4), start 0.9 0.1" */
static void describe(const struct config_attention *rule, char name[BENCH_NAME]) {
    size_t used = (size_t)snprintf(name, BENCH_NAME, "%s", rule->kind);
    for (size_t i = 0; i < rule->option_count && used < BENCH_NAME; i++) {
        const struct config_option *option = &rule->options[i];
        used += (size_t)snprintf(name + used, BENCH_NAME - used, "%s%s", i ? ", " : ": ", option->key);
        for (size_t w = 0; w < option->count && used < BENCH_NAME; w++)
            used += (size_t)snprintf(name + used, BENCH_NAME - used, " %s", option->words[w]);
    }
}

static enum status bench_length(const struct bench_attention_options *o, int64_t length, struct run *runs,
                                struct bench_attention_row *rows) {
    for (int n = 0; n < o->rule_count; n++) TRY(open_run(&runs[n], o, &o->rules[n], length));
    for (int repeat = -1; repeat < o->repeats; repeat++)
        for (int n = 0; n < o->rule_count; n++) TRY(run_once(&runs[n], repeat));
    for (int n = 0; n < o->rule_count; n++) {
        rows[n] = (struct bench_attention_row){
            .length = length,
            .forward_s = median(runs[n].forward_s, o->repeats),
            .backward_s = median(runs[n].backward_s, o->repeats),
            .processor_s = median(runs[n].processor_s, o->repeats),
            .tensor_bytes = runs[n].bytes,
            .scratch_bytes = runs[n].ops->scratch_bytes(runs[n].ops),
        };
        describe(&o->rules[n], rows[n].name);
    }
    return STATUS_OK;
}

enum status bench_attention(const struct bench_attention_options *options, struct bench_attention_row *rows) {
    if (options->rule_count < 1 || options->length_count < 1 || options->repeats < 1)
        return error_set(STATUS_USAGE, "bench attention: expected at least one kind, length and repeat, found %d, %d, %d",
                         options->rule_count, options->length_count, options->repeats);
    enum status status = STATUS_OK;
    for (int n = 0; n < options->length_count && status == STATUS_OK; n++) {
        struct run *runs;
        TRY(memory_new((size_t)options->rule_count, sizeof *runs, "benchmark runs", &runs));
        status = bench_length(options, options->lengths[n], runs, rows + n * options->rule_count);
        for (int m = 0; m < options->rule_count; m++) close_run(&runs[m]);
        free(runs);
    }
    return status;
}
