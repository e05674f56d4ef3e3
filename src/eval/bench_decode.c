#include "eval/bench_decode.h"

#include "base/log.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* One kind: its layer, its cache, the tensors of one token, its latest times. */
struct run {
    struct bench_layer layer;
    struct attention_cache *cache;
    struct attention_decode_pass pass;
    void *block;
    double *token_s; /* [repeats] of the latest tokens, token t in place t % repeats */
};

struct bench {
    const struct bench_options *options;
    struct run *runs;          /* [rule_count] */
    int32_t *start, *position; /* [B] zeros; [B] this token's index */
    double *sorted;            /* [repeats] */
};

/* Runs twice: over an arena that only counts, then over one that places. */
static void place(struct run *run, const struct bench *bench, struct arena *arena) {
    const struct bench_options *o = bench->options;
    const enum dtype real = run->layer.ops->real;
    struct attention_decode_pass *p = &run->pass;
    *p = (struct attention_decode_pass){.ops = run->layer.ops, .batch = o->batch, .start = bench->start};
    p->q = arena_3d(arena, real, o->batch, o->heads, o->width);
    p->k = arena_3d(arena, real, o->batch, o->groups, o->width);
    p->v = arena_3d(arena, real, o->batch, o->groups, o->width);
    p->o = arena_3d(arena, real, o->batch, o->heads, o->width);
    p->positions = arena_1d(arena, DTYPE_I32, o->batch);
    if (run->layer.attention.kind->reads_x) p->x = arena_2d(arena, real, o->batch, run->layer.model.width);
}

static enum status open_run(struct bench *bench, int rule) {
    const struct bench_options *o = bench->options;
    const int64_t length = o->lengths[o->length_count - 1];
    struct run *run = &bench->runs[rule];
    struct arena arena = arena_sizing();
    TRY(bench_layer_open(o, rule, length, &run->layer));
    const struct ops *ops = run->layer.ops;
    place(run, bench, &arena);
    TRY(ops->allocate(ops, arena.peak, &run->block));
    arena = arena_placing(run->block, arena.peak);
    place(run, bench, &arena);
    TRY(memory_new((size_t)o->repeats, sizeof *run->token_s, "times", &run->token_s));
    return run->layer.attention.kind->cache_open(&run->layer.attention, ops, o->batch, length, &run->cache);
}

static void close_run(struct run *run) {
    const struct ops *ops = run->layer.ops;
    if (run->cache) run->layer.attention.kind->cache_close(ops, run->cache);
    if (ops) ops->release(ops, run->block);
    bench_layer_close(&run->layer);
    free(run->token_s);
}

/* Only the kind's own work is timed, not the drawing of its inputs. */
static enum status decode_token(struct run *run, const struct bench *bench, int64_t token) {
    const struct ops *ops = run->layer.ops;
    const struct attention_layer *attention = &run->layer.attention;
    struct attention_decode_pass *p = &run->pass;
    const struct tensor inputs[] = {p->q, p->k, p->v, p->x};
    for (int n = 0; n < 4; n++)
        if (tensor_present(inputs[n])) TRY(ops->fill_normal(ops, inputs[n], 1, 1, (uint64_t)(4 * token + n)));
    TRY(ops->upload(ops, p->positions, bench->position));
    p->position = token;
    TRY(ops->synchronise(ops));
    const double begin = time_now_s();
    TRY(attention->kind->decode(attention, run->cache, p));
    TRY(ops->synchronise(ops));
    run->token_s[token % bench->options->repeats] = time_now_s() - begin;
    return STATUS_OK;
}

static enum status describe(const struct bench *bench, int rule, int64_t position, struct bench_decode_row *row) {
    const struct bench_options *o = bench->options;
    const struct run *run = &bench->runs[rule];
    const int tokens = position < o->repeats ? (int)position : o->repeats;
    struct attention_cost cost;
    double sum = 0;
    TRY(run->layer.attention.kind->cost(&run->layer.attention, position, &cost));
    for (int n = 0; n < tokens; n++) sum += run->token_s[n];
    memcpy(bench->sorted, run->token_s, (size_t)tokens * sizeof *bench->sorted);
    *row = (struct bench_decode_row){
        .position = position,
        .tokens = tokens,
        .token_s = bench_median(bench->sorted, tokens),
        .mean_s = sum / tokens,
        .cache_bytes = cost.decode_bytes,
    };
    bench_layer_describe(&o->rules[rule], row->name);
    return STATUS_OK;
}

static enum status decode_all(struct bench *bench, struct bench_decode_row *rows) {
    const struct bench_options *o = bench->options;
    const int64_t last = o->lengths[o->length_count - 1];
    struct log_progress progress;
    int reached = 0;
    log_progress_start(&progress, o->name, 0, last);
    for (int64_t token = 0; token < last; token++) {
        for (int64_t b = 0; b < o->batch; b++) bench->position[b] = (int32_t)token;
        for (int n = 0; n < o->rule_count; n++) TRY(decode_token(&bench->runs[n], bench, token));
        log_progress_show(&progress, token + 1, "tokens");
        if (token + 1 < o->lengths[reached]) continue;
        for (int n = 0; n < o->rule_count; n++) TRY(describe(bench, n, token + 1, &rows[reached * o->rule_count + n]));
        reached++;
    }
    log_progress_end(&progress, last, "tokens");
    return STATUS_OK;
}

enum status bench_decode(const struct bench_options *o, struct bench_decode_row *rows) {
    struct bench bench = {.options = o};
    enum status status;
    TRY(bench_options_check(o));
    for (int n = 1; n < o->length_count; n++)
        if (o->lengths[n] <= o->lengths[n - 1])
            return error_set(STATUS_USAGE, "%s: --positions: expected rising numbers, found %lld after %lld", o->name,
                             (long long)o->lengths[n], (long long)o->lengths[n - 1]);
    TRY_GOTO(done, memory_new((size_t)o->rule_count, sizeof *bench.runs, "benchmark runs", &bench.runs));
    TRY_GOTO(done, memory_new((size_t)o->batch, sizeof *bench.start, "document starts", &bench.start));
    TRY_GOTO(done, memory_new((size_t)o->batch, sizeof *bench.position, "positions", &bench.position));
    TRY_GOTO(done, memory_new((size_t)o->repeats, sizeof *bench.sorted, "times", &bench.sorted));
    for (int n = 0; n < o->rule_count; n++) TRY_GOTO(done, open_run(&bench, n));
    TRY_GOTO(done, decode_all(&bench, rows));
done:
    for (int n = 0; bench.runs && n < o->rule_count; n++) close_run(&bench.runs[n]);
    free(bench.runs);
    free(bench.start);
    free(bench.position);
    free(bench.sorted);
    return status;
}
