/* See ladder.h. Hidden states are compared instead of logits where that says the same: row t of the logits is a
 * function of row t of the hidden states alone. */
#include "eval/ladder.h"

#include "base/bf16.h"
#include "base/log.h"
#include "base/memory.h"
#include "eval/evaluate.h"
#include "eval/variants.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ladder {
    const struct ladder_subject *subject;
    int64_t length;                 /* T */
    int32_t *ids, *targets, *start; /* [4·T] */
};

/* A forward pass and its hidden states on the host, as they are. */
struct pass {
    struct plan *plan;
    const struct model *model;
    int64_t rows;
    size_t row_bytes;
    char *hidden; /* [rows] of row_bytes */
};

static enum status pass_open(const struct model *model, int64_t batch, int64_t length, struct pass *pass) {
    struct plan_options options = {.batch = batch, .length = length};
    *pass = (struct pass){.model = model, .rows = batch * length};
    pass->row_bytes = (size_t)model->config.width * dtype_size(model->params.ops->real);
    TRY(plan_open(model, &options, &pass->plan));
    return memory_new((size_t)pass->rows, pass->row_bytes, "hidden states", &pass->hidden);
}

static void pass_close(struct pass *pass) {
    plan_close(&pass->plan);
    free(pass->hidden);
    *pass = (struct pass){0};
}

static enum status pass_run(struct pass *pass, const struct batch *batch, struct tensor *hidden) {
    TRY(model_forward(pass->plan, batch, hidden));
    return pass->model->params.ops->download(pass->model->params.ops, *hidden, pass->hidden);
}

static double pass_value(const struct pass *pass, int64_t row, int64_t column) {
    const char *place = pass->hidden + (size_t)row * pass->row_bytes;
    if (pass->model->params.ops->real == DTYPE_F64) return ((const double *)(const void *)place)[column];
    if (pass->model->params.ops->real == DTYPE_BF16)
        return (double)bf16_to_float(((const uint16_t *)(const void *)place)[column]);
    return (double)((const float *)(const void *)place)[column];
}

/* Largest difference of two rows, as a share of the second's largest value. Not finite when either is not. */
static double row_difference(const struct pass *a, int64_t row_a, const struct pass *b, int64_t row_b) {
    double largest = 0, most = 0;
    for (int64_t c = 0; c < a->model->config.width; c++) {
        double x = pass_value(a, row_a, c), y = pass_value(b, row_b, c);
        if (!isfinite(x) || !isfinite(y)) return INFINITY;
        largest = fmax(largest, fabs(y));
        most = fmax(most, fabs(x - y));
    }
    return most > 0 ? most / largest : 0;
}

static int64_t count_nonfinite(const struct pass *pass) {
    int64_t count = 0;
    for (int64_t row = 0; row < pass->rows; row++) {
        for (int64_t c = 0; c < pass->model->config.width; c++) count += !isfinite(pass_value(pass, row, c));
    }
    return count;
}

static void judge(struct ladder_rung *rung, double value, double limit) {
    rung->value = value;
    rung->limit = limit;
    rung->result = value <= limit ? LADDER_PASS : LADDER_FAIL;
}

static void not_measured(struct ladder_rung *rung, const char *why) {
    rung->result = LADDER_NOT_MEASURED;
    snprintf(rung->measured, sizeof rung->measured, "not measured: %s", why);
}

/* What two ways to the same number may differ by. Activations in bf16 are rounded to 2^-8 of themselves behind every
 * operation: a few of those in a row of logits or hidden states; of a KL, which is about half their variance, 1e-3. */
struct bounds {
    double kl, rows;
};
static struct bounds bounds_of(const struct ladder *ladder) {
    const bool bf16 = ladder->subject->model->params.ops->real == DTYPE_BF16;
    return bf16 ? (struct bounds){1e-3, 0x1p-5} : (struct bounds){1e-6, 1e-4};
}

/* Differences of tokens that should agree within a bound. */
struct agreement {
    double bound, worst, farthest; /* farthest: of those beyond the bound */
    int64_t tokens, beyond, allowed;
};
enum { TIE_IN = 200 /* tokens: of a kind that chooses, so many agree for one whose choice hung on a rounding */ };

static void agreement_add(struct agreement *a, double difference) {
    a->tokens++;
    if (difference <= a->bound) {
        a->worst = fmax(a->worst, difference);
    } else {
        a->beyond++;
        a->farthest = isnan(difference) ? INFINITY : fmax(a->farthest, difference);
    }
}

static bool chooses(const struct model *model) {
    for (int64_t l = 0; l < model->config.layers; l++)
        if (model->layers[l].kind->chooses) return true;
    return false;
}

/* of: "the largest logit"; where: the text so far, e.g. "over 9 tokens". */
static void judge_agreement(struct ladder_rung *rung, const struct model *model, struct agreement *a, const char *of,
                            const char *where) {
    a->allowed = chooses(model) && isfinite(a->farthest) ? a->tokens / TIE_IN : 0;
    snprintf(rung->bound, sizeof rung->bound, "%.0e of the largest %s%s", a->bound, of,
             chooses(model) ? "; at ties of a choice 1 token in 200" : "");
    int used = snprintf(rung->measured, sizeof rung->measured, "%.2e %s", a->worst, where);
    if (a->beyond > 0)
        snprintf(rung->measured + used, sizeof rung->measured - (size_t)used, "; %lld beyond, up to %.2e",
                 (long long)a->beyond, a->farthest);
    rung->value = a->beyond > a->allowed ? a->farthest : a->worst;
    rung->limit = a->bound;
    rung->result = rung->value <= rung->limit ? LADDER_PASS : LADDER_FAIL;
}

/* --- rung 1 ------------------------------------------------------------------------------------------------------- */

static enum status full_coverage(const struct ladder *ladder, struct ladder_rung *rung) {
    const struct ladder_subject *s = ladder->subject;
    struct model covered;
    struct comm *single = NULL;
    struct evaluate_figures figures;
    struct windows few = *s->windows;
    few.count = few.count < 4 ? few.count : 4;
    const double bound = bounds_of(ladder).kl;
    snprintf(rung->bound, sizeof rung->bound, "KL <= %.0e", bound);
    if (!s->teacher || s->rule_count == 0) {
        not_measured(rung, "no teacher beside the model");
        return STATUS_OK;
    }
    enum status status = model_covered(s->teacher, "ladder", s->rules, s->rule_count, ladder->length, s->seed, &covered);
    if (status == STATUS_NOT_FOUND) {
        not_measured(rung, error_message());
        error_clear();
        return STATUS_OK;
    }
    TRY(status);
    struct evaluate_row row = {"covered", &covered};
    struct evaluate_options options = {.batch = few.count};
    TRY_GOTO(done, comm_open_single(&single));
    TRY_GOTO(done, evaluate_run(s->teacher, &row, 1, &few, &options, single, &figures));
    snprintf(rung->measured, sizeof rung->measured, "KL(teacher||untrained student) %.2e over %.0f tokens", figures.kl,
             figures.tokens);
    judge(rung, fabs(figures.kl), bound);
done:
    KEEP_FIRST(status, comm_close(&single));
    model_free(&covered);
    return status;
}

/* --- rung 2 ------------------------------------------------------------------------------------------------------- */

/* Two documents from T/2 on. Changes one token; counts earlier rows, and rows of the other document, that change with
 * it. */
static enum status leaks_of(const struct ladder *ladder, struct pass *before, struct pass *after, int64_t length,
                            int64_t changed, int64_t *compared, int64_t *leaks) {
    int64_t split = length / 2, vocabulary = ladder->subject->model->config.vocabulary;
    int32_t *ids = NULL, *start = NULL;
    struct tensor hidden;
    enum status status;
    TRY_GOTO(done, memory_new((size_t)length, sizeof *ids, "ids", &ids));
    TRY_GOTO(done, memory_new((size_t)length, sizeof *start, "documents", &start));
    memcpy(ids, ladder->ids, (size_t)length * sizeof *ids);
    for (int64_t i = split; i < length; i++) start[i] = (int32_t)split;
    struct batch batch = {.batch = 1, .length = length, .ids = ids, .start = start};
    TRY_GOTO(done, pass_run(before, &batch, &hidden));
    ids[changed] = (int32_t)((ids[changed] + 1) % vocabulary);
    TRY_GOTO(done, pass_run(after, &batch, &hidden));
    for (int64_t row = 0; row < length; row++) {
        bool sees = row >= changed && (row < split) == (changed < split);
        if (sees) continue;
        size_t at = (size_t)row * before->row_bytes;
        ++*compared;
        *leaks += memcmp(before->hidden + at, after->hidden + at, before->row_bytes) != 0;
    }
done:
    free(ids);
    free(start);
    return status;
}

static enum status no_leak(const struct ladder *ladder, struct ladder_rung *rung) {
    const int64_t lengths[] = {ladder->length, 129, 7, 2};
    int64_t compared = 0, leaks = 0;
    snprintf(rung->bound, sizeof rung->bound, "no bit changes");
    for (int i = 0; i < 4; i++) {
        int64_t length = lengths[i];
        if (length > ladder->length || length < 2) continue;
        const int64_t places[] = {0, 1, 16, 63, 64, length / 3, length / 2, length - 1};
        struct pass before = {0}, after = {0};
        enum status status;
        TRY_GOTO(next, pass_open(ladder->subject->model, 1, length, &before));
        TRY_GOTO(next, pass_open(ladder->subject->model, 1, length, &after));
        for (int p = 0; p < 8; p++) {
            if (places[p] < length)
                TRY_GOTO(next, leaks_of(ladder, &before, &after, length, places[p], &compared, &leaks));
        }
    next:
        pass_close(&before);
        pass_close(&after);
        TRY(status);
    }
    snprintf(rung->measured, sizeof rung->measured, "%lld of %lld rows that must not see a changed token changed",
             (long long)leaks, (long long)compared);
    judge(rung, (double)leaks, 0);
    return STATUS_OK;
}

/* --- rung 3 ------------------------------------------------------------------------------------------------------- */

static double logits_difference(const float *a, const float *b, int64_t count) {
    double largest = 0, most = 0;
    for (int64_t v = 0; v < count; v++) {
        if (!isfinite(a[v]) || !isfinite(b[v])) return INFINITY;
        largest = fmax(largest, fabs((double)b[v]));
        most = fmax(most, fabs((double)a[v] - (double)b[v]));
    }
    return most > 0 ? most / largest : 0;
}

/* Two sequences in step, whose second documents begin at different places. */
static enum status decode_against(const struct ladder *ladder, struct decoder *decoder, struct plan *plan,
                                  struct head *head, float *decoded, float *parallel,
                                  struct agreement *agreement) {
    int64_t length = ladder->length, vocabulary = ladder->subject->model->config.vocabulary;
    const int64_t breaks[2] = {2 * length / 3, length / 4};
    for (int64_t b = 0; b < 2; b++) {
        for (int64_t i = 0; i < length; i++) ladder->start[b * length + i] = i >= breaks[b] ? (int32_t)breaks[b] : 0;
    }
    struct batch batch = {.batch = 2, .length = length, .ids = ladder->ids, .start = ladder->start};
    struct tensor hidden;
    TRY(model_forward(plan, &batch, &hidden));
    for (int64_t i = 0; i < length; i++) {
        const int32_t ids[2] = {ladder->ids[i], ladder->ids[length + i]};
        const bool begins[2] = {i == breaks[0], i == breaks[1]};
        TRY(decoder_step(decoder, ids, begins, decoded));
        for (int64_t b = 0; b < 2; b++) {
            TRY(head_logits(head, hidden, b * length + i, 1, false, parallel));
            agreement_add(agreement, logits_difference(decoded + b * vocabulary, parallel, vocabulary));
        }
    }
    return STATUS_OK;
}

static enum status decoding(const struct ladder *ladder, struct ladder_rung *rung) {
    const struct model *model = ladder->subject->model;
    struct plan_options plan_options = {.batch = 2, .length = ladder->length};
    struct head_options head_options = {.rows = 2 * ladder->length};
    struct decoder *decoder = NULL;
    struct plan *plan = NULL;
    struct head *head = NULL;
    float *logits = NULL;
    struct agreement agreement = {.bound = bounds_of(ladder).rows};
    char where[80];
    size_t vocabulary = (size_t)model->config.vocabulary;
    enum status status;
    TRY_GOTO(done, memory_new(3 * vocabulary, sizeof *logits, "logits", &logits));
    TRY_GOTO(done, decoder_open(model, 2, ladder->length, &decoder));
    TRY_GOTO(done, plan_open(model, &plan_options, &plan));
    TRY_GOTO(done, head_open(NULL, model, &head_options, &head));
    TRY_GOTO(done, decode_against(ladder, decoder, plan, head, logits, logits + 2 * vocabulary, &agreement));
    snprintf(where, sizeof where, "over %lld tokens in 4 documents", (long long)agreement.tokens);
    judge_agreement(rung, model, &agreement, "logit", where);
done:
    decoder_close(&decoder);
    head_close(&head);
    plan_close(&plan);
    free(logits);
    return status;
}

/* --- rung 4 ------------------------------------------------------------------------------------------------------- */

/* The first tokens alone against the same rows of the whole, which is cut up elsewhere. */
static enum status compare_prefix(const struct ladder *ladder, const struct pass *whole, int64_t length,
                                  struct agreement *agreement) {
    struct pass part = {0};
    struct tensor hidden;
    struct batch batch = {.batch = 1, .length = length, .ids = ladder->ids, .start = ladder->start};
    enum status status;
    TRY_GOTO(done, pass_open(ladder->subject->model, 1, length, &part));
    TRY_GOTO(done, pass_run(&part, &batch, &hidden));
    for (int64_t row = 0; row < length; row++) agreement_add(agreement, row_difference(&part, row, whole, row));
done:
    pass_close(&part);
    return status;
}

/* Odd texts must give finite numbers: one token repeated, padding alone, documents of one token. */
static enum status count_odd(const struct ladder *ladder, struct pass *pass, int64_t *nonfinite) {
    int64_t length = ladder->length;
    int32_t *ids = ladder->ids + length, *start = ladder->start + length;
    const struct batch batch = {.batch = 1, .length = length, .ids = ids, .start = start};
    struct tensor hidden;
    for (int text = 0; text < 3; text++) {
        for (int64_t i = 0; i < length; i++) {
            ids[i] = text == 0 ? ladder->ids[length / 2] : text == 1 ? 0 : ladder->ids[i];
            start[i] = text == 2 ? (int32_t)i : 0;
        }
        TRY(pass_run(pass, &batch, &hidden));
        *nonfinite += count_nonfinite(pass);
    }
    return STATUS_OK;
}

static enum status invariance(const struct ladder *ladder, struct ladder_rung *rung) {
    const int64_t lengths[] = {1, 16, 63, 64, 65, ladder->length / 2};
    struct pass whole = {0};
    struct tensor hidden;
    struct agreement agreement = {.bound = bounds_of(ladder).rows};
    char where[80];
    int64_t nonfinite = 0;
    enum status status;
    memset(ladder->start, 0, (size_t)(4 * ladder->length) * sizeof *ladder->start);
    struct batch batch = {.batch = 1, .length = ladder->length, .ids = ladder->ids, .start = ladder->start};
    TRY_GOTO(done, pass_open(ladder->subject->model, 1, ladder->length, &whole));
    TRY_GOTO(done, pass_run(&whole, &batch, &hidden));
    for (int i = 0; i < 6; i++) {
        bool fits = lengths[i] >= 1 && lengths[i] <= ladder->length;
        if (fits) TRY_GOTO(done, compare_prefix(ladder, &whole, lengths[i], &agreement));
    }
    TRY_GOTO(done, count_odd(ladder, &whole, &nonfinite));
    snprintf(where, sizeof where, "between lengths; %lld values not finite in odd texts", (long long)nonfinite);
    if (nonfinite) agreement_add(&agreement, INFINITY);
    judge_agreement(rung, ladder->subject->model, &agreement, "value, all finite", where);
done:
    pass_close(&whole);
    return status;
}

/* --- rung 6 ------------------------------------------------------------------------------------------------------- */

enum { COST_LENGTHS = 3, COST_ROUNDS = 5 };

struct cost_times {
    int64_t lengths[COST_LENGTHS];
    struct plan *plans[COST_LENGTHS];
    double seconds[COST_LENGTHS], bytes[COST_LENGTHS], flops[COST_LENGTHS];
};

/* The lengths take turns, so that a busy machine slows all of them; the fastest of each counts. */
static enum status time_rounds(const struct ladder *ladder, struct cost_times *times) {
    const struct model *model = ladder->subject->model;
    struct tensor hidden;
    for (int round = 0; round < COST_ROUNDS; round++) {
        for (int i = 0; i < COST_LENGTHS; i++) {
            struct batch batch = {.batch = 1, .length = times->lengths[i], .ids = ladder->ids, .start = ladder->start};
            double started = time_now_s();
            TRY(model_forward(times->plans[i], &batch, &hidden));
            TRY(model->params.ops->synchronise(model->params.ops));
            double took = time_now_s() - started;
            times->seconds[i] = round == 0 ? took : fmin(took, times->seconds[i]);
        }
    }
    return STATUS_OK;
}

static enum status measure_cost(const struct ladder *ladder, struct cost_times *times) {
    const struct model *model = ladder->subject->model;
    enum status status;
    for (int i = 0; i < COST_LENGTHS; i++) {
        struct plan_options options = {.batch = 1, .length = times->lengths[i]};
        struct attention_cost cost;
        size_t bytes = 0;
        TRY_GOTO(done, plan_measure(model, &options, &bytes));
        TRY_GOTO(done, plan_open(model, &options, &times->plans[i]));
        TRY_GOTO(done, model_cost(model, times->lengths[i], &cost, &times->flops[i]));
        times->flops[i] *= (double)times->lengths[i];
        times->bytes[i] = (double)bytes;
    }
    status = time_rounds(ladder, times);
done:
    for (int i = 0; i < COST_LENGTHS; i++) plan_close(&times->plans[i]);
    return status;
}

/* Time may grow as the FLOP count does, memory as the length does; twice that is a failure. */
static enum status cost_growth(const struct ladder *ladder, struct ladder_rung *rung) {
    const struct model_config *config = &ladder->subject->model->config;
    bool longer = !model_has_learned_positions(config) || 4 * ladder->length <= config->positions;
    int64_t base = longer ? ladder->length : ladder->length / 4;
    struct cost_times times = {.lengths = {base, 2 * base, 4 * base}};
    snprintf(rung->bound, sizeof rung->bound, "at most twice what FLOPs and length say");
    if (base < 1) {
        not_measured(rung, "the text is too short");
        return STATUS_OK;
    }
    memset(ladder->start, 0, (size_t)(4 * ladder->length) * sizeof *ladder->start);
    for (int64_t i = ladder->length; i < 4 * base; i++) ladder->ids[i] = ladder->ids[i % ladder->length];
    TRY(measure_cost(ladder, &times));
    double time = times.seconds[2] / times.seconds[0], flops = times.flops[2] / times.flops[0];
    double memory = times.bytes[2] / times.bytes[0];
    snprintf(rung->measured, sizeof rung->measured,
             "T %lld, %lld, %lld: %.1f, %.1f, %.1f ms; FLOPs x%.1f, time x%.1f, memory x%.1f", (long long)base,
             (long long)(2 * base), (long long)(4 * base), 1e3 * times.seconds[0], 1e3 * times.seconds[1],
             1e3 * times.seconds[2], flops, time, memory);
    judge(rung, fmax(time / flops, memory / 4), 2);
    return STATUS_OK;
}

enum status ladder_run(const struct ladder_subject *subject, struct ladder_rung rungs[LADDER_RUNGS]) {
    static const char *const names[LADDER_RUNGS] = {"full coverage",     "no leak",   "decoding = parallel",
                                                    "chunks, odd texts", "gradients", "cost"};
    struct ladder ladder = {.subject = subject, .length = subject->windows->options.length};
    size_t tokens = (size_t)(4 * ladder.length);
    enum status status;
    memset(rungs, 0, LADDER_RUNGS * sizeof *rungs);
    for (int i = 0; i < LADDER_RUNGS; i++) rungs[i].name = names[i];
    TRY_GOTO(done, memory_new(tokens, sizeof *ladder.ids, "ids", &ladder.ids));
    TRY_GOTO(done, memory_new(tokens, sizeof *ladder.targets, "targets", &ladder.targets));
    TRY_GOTO(done, memory_new(tokens, sizeof *ladder.start, "documents", &ladder.start));
    for (int64_t i = 0; i < 4; i++) {
        int64_t at = i * ladder.length;
        windows_read(subject->windows, i % subject->windows->count, ladder.ids + at, ladder.targets + at,
                     ladder.start + at);
    }
    TRY_GOTO(done, full_coverage(&ladder, &rungs[0]));
    TRY_GOTO(done, no_leak(&ladder, &rungs[1]));
    TRY_GOTO(done, decoding(&ladder, &rungs[2]));
    TRY_GOTO(done, invariance(&ladder, &rungs[3]));
    not_measured(&rungs[4], "the tests do it, in double: central differences against backward");
    not_measured(&rungs[5], "not asked for");
    if (!subject->untimed) TRY_GOTO(done, cost_growth(&ladder, &rungs[5]));
done:
    free(ladder.ids);
    free(ladder.targets);
    free(ladder.start);
    return status;
}
