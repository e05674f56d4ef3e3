#include "eval/bench_attention.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One set at one length: its table, its tensors, its times. */
struct run {
    const struct ops *ops;
    struct attention_backward arguments;
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

static struct tensor take(struct run *run, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    char *data = run->block ? (char *)run->block + run->bytes : NULL;
    struct tensor t = tensor_4d(data, dtype, n0, n1, n2, n3);
    run->bytes += (tensor_bytes(t) + 255) / 256 * 256;
    return t;
}

/* Runs twice: without a block it only counts. */
static void place(struct run *run, const struct bench_attention_options *o, const struct bench_attention_set *set,
                  int64_t length) {
    const enum dtype real = run->ops->real, statistic = run->ops->statistic;
    struct attention_backward *g = &run->arguments;
    struct attention *a = &g->forward;
    run->bytes = 0;
    *g = (struct attention_backward){.forward = {.causal = true, .count = set->count}};
    a->scale = 1 / sqrt((double)o->width);
    memcpy(a->candidates, set->candidates, sizeof a->candidates);
    a->q = take(run, real, o->batch, length, o->heads, o->width);
    a->k = take(run, real, o->batch, length, o->groups, o->width);
    a->v = take(run, real, o->batch, length, o->groups, o->width);
    a->o = take(run, real, o->batch, length, o->heads, o->width);
    g->d_o = take(run, real, o->batch, length, o->heads, o->width);
    g->dq = take(run, real, o->batch, length, o->heads, o->width);
    g->dk = take(run, real, o->batch, length, o->groups, o->width);
    g->dv = take(run, real, o->batch, length, o->groups, o->width);
    a->log_sums = take(run, statistic, o->batch, o->heads, set->count, length);
    a->start = tensor_2d(take(run, DTYPE_I32, 1, 1, o->batch, length).data, DTYPE_I32, o->batch, length);
    a->coefficients = tensor_2d(take(run, statistic, 1, 1, o->heads, set->count).data, statistic, o->heads, set->count);
    g->dcoefficients =
        tensor_2d(take(run, statistic, 1, 1, o->heads, set->count).data, statistic, o->heads, set->count);
}

static enum status fill(struct run *run, const struct bench_attention_options *o,
                        const struct bench_attention_set *set) {
    const struct ops *ops = run->ops;
    struct attention_backward *g = &run->arguments;
    const struct tensor inputs[] = {g->forward.q, g->forward.k, g->forward.v, g->d_o};
    enum status status = STATUS_OK;
    void *coefficients = NULL;
    int32_t *start = NULL;
    for (int n = 0; n < 4; n++) TRY(ops->fill_normal(ops, inputs[n], 1, 1, (uint64_t)n));
    TRY_GOTO(done, memory_new((size_t)tensor_count(g->forward.start), sizeof *start, "document starts", &start));
    TRY_GOTO(done, ops->upload(ops, g->forward.start, start));
    TRY_GOTO(done, memory_new((size_t)(o->heads * set->count), sizeof(double), "coefficients", &coefficients));
    for (int64_t n = 0; n < o->heads * set->count; n++) {
        const double c = set->coefficients[n % set->count];
        if (ops->statistic == DTYPE_F64)
            ((double *)coefficients)[n] = c;
        else
            ((float *)coefficients)[n] = (float)c;
    }
    TRY_GOTO(done, ops->upload(ops, g->forward.coefficients, coefficients));
    TRY_GOTO(done, ops->fill(ops, g->dcoefficients, 0));
done:
    free(coefficients);
    free(start);
    return status;
}

static void close_run(struct run *run) {
    if (run->ops) {
        run->ops->release(run->ops, run->block);
        run->ops->close(run->ops);
    }
    free(run->forward_s);
    free(run->backward_s);
    free(run->processor_s);
}

static enum status open_run(struct run *run, const struct bench_attention_options *o,
                            const struct bench_attention_set *set, int64_t length) {
    TRY(ops_open(o->table, &(struct ops_options){.threads = o->threads}, &run->ops));
    place(run, o, set, length);
    TRY(run->ops->allocate(run->ops, run->bytes, &run->block));
    place(run, o, set, length);
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->forward_s));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->backward_s));
    TRY(memory_new((size_t)o->repeats, sizeof(double), "times", &run->processor_s));
    return fill(run, o, set);
}

/* repeat < 0: not timed. */
static enum status run_once(struct run *run, int repeat) {
    const struct ops *ops = run->ops;
    const double processor = seconds(CLOCK_PROCESS_CPUTIME_ID), begin = seconds(CLOCK_MONOTONIC);
    TRY(ops->attention(ops, &run->arguments.forward));
    TRY(ops->synchronise(ops));
    const double middle = seconds(CLOCK_MONOTONIC);
    TRY(ops->attention_backward(ops, &run->arguments));
    TRY(ops->synchronise(ops));
    if (repeat < 0) return STATUS_OK;
    run->forward_s[repeat] = middle - begin;
    run->backward_s[repeat] = seconds(CLOCK_MONOTONIC) - middle;
    run->processor_s[repeat] = seconds(CLOCK_PROCESS_CPUTIME_ID) - processor;
    return STATUS_OK;
}

static enum status bench_length(const struct bench_attention_options *o, int64_t length, struct run *runs,
                                struct bench_attention_row *rows) {
    for (int n = 0; n < o->set_count; n++) TRY(open_run(&runs[n], o, &o->sets[n], length));
    for (int repeat = -1; repeat < o->repeats; repeat++)
        for (int n = 0; n < o->set_count; n++) TRY(run_once(&runs[n], repeat));
    for (int n = 0; n < o->set_count; n++)
        rows[n] = (struct bench_attention_row){
            .set = o->sets[n].name,
            .length = length,
            .forward_s = median(runs[n].forward_s, o->repeats),
            .backward_s = median(runs[n].backward_s, o->repeats),
            .processor_s = median(runs[n].processor_s, o->repeats),
            .tensor_bytes = runs[n].bytes,
            .scratch_bytes = runs[n].ops->scratch_bytes(runs[n].ops),
        };
    return STATUS_OK;
}

enum status bench_attention(const struct bench_attention_options *options, struct bench_attention_row *rows) {
    if (options->set_count < 1 || options->length_count < 1 || options->repeats < 1)
        return error_set(STATUS_USAGE,
                         "bench attention: expected at least one set, length and repeat, found %d, %d, %d",
                         options->set_count, options->length_count, options->repeats);
    enum status status = STATUS_OK;
    for (int n = 0; n < options->length_count && status == STATUS_OK; n++) {
        struct run *runs;
        TRY(memory_new((size_t)options->set_count, sizeof *runs, "benchmark runs", &runs));
        status = bench_length(options, options->lengths[n], runs, rows + n * options->set_count);
        for (int m = 0; m < options->set_count; m++) close_run(&runs[m]);
        free(runs);
    }
    return status;
}
