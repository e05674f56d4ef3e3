#include "eval/bench_attention.h"

#include "base/memory.h"

#include <stdlib.h>
#include <time.h>

/* One kind at one length: its layer, its tensors, its times. */
struct run {
    struct bench_layer layer;
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

/* Runs twice: over an arena that only counts, then over one that places. */
static enum status place(struct run *run, const struct bench_options *o, int64_t length, struct arena *arena) {
    const struct ops *ops = run->layer.ops;
    const enum dtype real = ops->real;
    const int64_t rows = o->batch * length;
    struct attention_pass *p = &run->pass;
    free(p->saved);
    *p = (struct attention_pass){.ops = ops, .batch = o->batch, .length = length, .context = {.progress = 1}};
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
    if (run->layer.attention.kind->reads_x) p->x = arena_2d(arena, real, rows, run->layer.model.width);
    if (run->layer.attention.kind->reads_x) p->dx = arena_2d(arena, real, rows, run->layer.model.width);
    return run->layer.attention.kind->plan(&run->layer.attention, arena, o->batch, length, true, &p->saved);
}

static enum status fill(struct run *run) {
    const struct ops *ops = run->layer.ops;
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

static void close_run(struct run *run) {
    free(run->pass.saved);
    if (run->layer.ops) run->layer.ops->release(run->layer.ops, run->block);
    bench_layer_close(&run->layer);
    free(run->forward_s);
    free(run->backward_s);
    free(run->processor_s);
}

static enum status open_run(struct run *run, const struct bench_options *o, int rule, int64_t length) {
    struct arena arena = arena_sizing();
    TRY(bench_layer_open(o, rule, length, &run->layer));
    TRY(place(run, o, length, &arena));
    run->bytes = arena.peak;
    TRY(run->layer.ops->allocate(run->layer.ops, run->bytes, &run->block));
    arena = arena_placing(run->block, run->bytes);
    TRY(place(run, o, length, &arena));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->forward_s));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->backward_s));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->processor_s));
    return fill(run);
}

/* repeat < 0: not timed. */
static enum status run_once(struct run *run, int repeat) {
    const struct ops *ops = run->layer.ops;
    const struct kind *kind = run->layer.attention.kind;
    TRY(ops->synchronise(ops));
    const double processor = seconds(CLOCK_PROCESS_CPUTIME_ID), begin = seconds(CLOCK_MONOTONIC);
    TRY(kind->forward(&run->layer.attention, &run->pass));
    TRY(ops->synchronise(ops));
    const double middle = seconds(CLOCK_MONOTONIC);
    TRY(kind->backward(&run->layer.attention, &run->pass));
    TRY(ops->synchronise(ops));
    if (repeat < 0) return STATUS_OK;
    run->forward_s[repeat] = middle - begin;
    run->backward_s[repeat] = seconds(CLOCK_MONOTONIC) - middle;
    run->processor_s[repeat] = seconds(CLOCK_PROCESS_CPUTIME_ID) - processor;
    return STATUS_OK;
}

static enum status describe(const struct bench_options *o, int rule, int64_t length, struct run *run,
                            struct bench_attention_row *row) {
    struct attention_cost cost;
    struct device_memory memory;
    TRY(run->layer.attention.kind->cost(&run->layer.attention, length, &cost));
    run->layer.ops->memory(run->layer.ops, &memory);
    *row = (struct bench_attention_row){
        .length = length,
        .forward_s = bench_median(run->forward_s, o->repeats),
        .backward_s = bench_median(run->backward_s, o->repeats),
        .processor_s = bench_median(run->processor_s, o->repeats),
        .flops = cost.flops * (double)length,
        .batch_flops = cost.flops * (double)(length * o->batch),
        .tensor_bytes = run->bytes,
        .scratch_bytes = run->layer.ops->scratch_bytes(run->layer.ops),
        .device_peak_bytes = run->layer.ops->host_memory ? 0 : memory.peak,
    };
    bench_layer_describe(&o->rules[rule], row->name);
    return STATUS_OK;
}

static enum status bench_length(const struct bench_options *o, int64_t length, struct run *runs,
                                struct bench_attention_row *rows) {
    for (int n = 0; n < o->rule_count; n++) TRY(open_run(&runs[n], o, n, length));
    /* A first run warms caches; a GPU needs some more to come to its clock. */
    const int warm = runs[0].layer.ops->host_memory ? 1 : 5;
    for (int repeat = -warm; repeat < o->repeats; repeat++)
        for (int n = 0; n < o->rule_count; n++) TRY(run_once(&runs[n], repeat));
    for (int n = 0; n < o->rule_count; n++) TRY(describe(o, n, length, &runs[n], &rows[n]));
    return STATUS_OK;
}

enum status bench_attention(const struct bench_options *options, struct bench_attention_row *rows) {
    enum status status = bench_options_check(options);
    for (int n = 0; n < options->length_count && status == STATUS_OK; n++) {
        struct run *runs;
        TRY(memory_new((size_t)options->rule_count, sizeof *runs, "benchmark runs", &runs));
        status = bench_length(options, options->lengths[n], runs, rows + n * options->rule_count);
        for (int m = 0; m < options->rule_count; m++) close_run(&runs[m]);
        free(runs);
    }
    return status;
}
