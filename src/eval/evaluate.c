/* See evaluate.h. */
#include "eval/evaluate.h"

#include "base/log.h"
#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* What is kept of every sequence and model. */
enum sum_index {
    SUM_TOKENS,
    SUM_CE,
    SUM_KL,
    SUM_REVERSE,
    SUM_AGREE,
    SUM_ENTROPY,
    SUM_TOKEN0,
    SUM_HEALTH,
    SUM_BAD,
    SUM_POSITIONS, /* tokens, CE, KL of every bucket of positions */
    SUMS = SUM_POSITIONS + 3 * EVALUATE_POSITIONS
};
enum { HEALTH_ROWS = 16 };

struct evaluated {
    struct plan *plan; /* NULL: the teacher's hidden states serve */
    struct head *head;
    bool has_teacher;
};

struct evaluation {
    const struct model *teacher;
    const struct evaluate_row *rows;
    size_t count;
    const struct windows *windows;
    int64_t batch, length, batches;
    struct plan *teacher_plan;
    struct evaluated *models;
    int32_t *ids, *targets, *start;                 /* [B,T] */
    double *kl, *reverse_kl, *ce, *agree, *entropy; /* [B·T] */
    float *logits;                                  /* [HEALTH_ROWS,V] */
    double *sums;                                   /* [windows, count, SUMS] */
};

enum status evaluate_check_fit(const struct model *model, const char *name, const struct windows *windows) {
    int64_t vocabulary = windows_vocabulary(windows);
    if (vocabulary > model->config.vocabulary) {
        return error_set(STATUS_USAGE,
                         "%s: the shards' vocabulary: expected at most the model's %lld, found %lld (%s, made with %s)",
                         name, (long long)model->config.vocabulary, (long long)vocabulary, windows->shards[0].path,
                         windows->shards[0].info.tokenizer_name);
    }
    return STATUS_OK;
}

static enum status open_models(struct evaluation *e) {
    struct plan_options plan = {.batch = e->batch, .length = e->length};
    struct head_options head = {.rows = e->batch * e->length, .statistics = true};
    if (e->teacher) {
        TRY(evaluate_check_fit(e->teacher, "teacher", e->windows));
        TRY(plan_open(e->teacher, &plan, &e->teacher_plan));
    }
    for (size_t m = 0; m < e->count; m++) {
        const struct model *model = e->rows[m].model;
        TRY(evaluate_check_fit(model, e->rows[m].name, e->windows));
        e->models[m].has_teacher = e->teacher && e->teacher != model;
        TRY(head_open(e->models[m].has_teacher ? e->teacher : NULL, model, &head, &e->models[m].head));
        if (model != e->teacher) TRY(plan_open(model, &plan, &e->models[m].plan));
    }
    return STATUS_OK;
}

static enum status open_buffers(struct evaluation *e) {
    size_t tokens = (size_t)(e->batch * e->length);
    int64_t vocabulary = 1;
    for (size_t m = 0; m < e->count; m++) {
        int64_t here = e->rows[m].model->config.vocabulary;
        if (here > vocabulary) vocabulary = here;
    }
    TRY(memory_new(tokens, sizeof *e->ids, "evaluation ids", &e->ids));
    TRY(memory_new(tokens, sizeof *e->targets, "evaluation targets", &e->targets));
    TRY(memory_new(tokens, sizeof *e->start, "evaluation documents", &e->start));
    double **columns[] = {&e->kl, &e->reverse_kl, &e->ce, &e->agree, &e->entropy};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        TRY(memory_new(tokens, sizeof(double), "evaluation rows", columns[i]));
    }
    TRY(memory_new((size_t)(HEALTH_ROWS * vocabulary), sizeof *e->logits, "evaluation logits", &e->logits));
    TRY(memory_new((size_t)e->windows->count * e->count * SUMS, sizeof *e->sums, "evaluation sums", &e->sums));
    return memory_new(e->count, sizeof *e->models, "evaluated models", &e->models);
}

static void close_evaluation(struct evaluation *e) {
    for (size_t m = 0; e->models && m < e->count; m++) {
        head_close(&e->models[m].head);
        plan_close(&e->models[m].plan);
    }
    plan_close(&e->teacher_plan);
    void *blocks[] = {e->ids,   e->targets, e->start,  e->kl,   e->reverse_kl, e->ce,
                      e->agree, e->entropy, e->logits, e->sums, e->models};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

void evaluate_position_range(int index, int64_t *first, int64_t *end) {
    *first = index == 0 ? 0 : (int64_t)EVALUATE_POSITION_FIRST << (index - 1);
    *end = (int64_t)EVALUATE_POSITION_FIRST << index;
}

static int position_bucket(int64_t position) {
    int index = 0;
    while (index + 1 < EVALUATE_POSITIONS && position >= (int64_t)EVALUATE_POSITION_FIRST << index) index++;
    return index;
}

/* Adds the rows of sequence b of the batch to its sums. */
static void add_rows(const struct evaluation *e, int64_t b, bool has_teacher, double *sums) {
    for (int64_t row = b * e->length; row < (b + 1) * e->length; row++) {
        if (e->targets[row] < 0) continue;
        double all = e->ce[row] + e->entropy[row] + (has_teacher ? e->kl[row] + e->reverse_kl[row] : 0);
        sums[SUM_TOKENS] += 1;
        sums[SUM_CE] += e->ce[row];
        sums[SUM_ENTROPY] += e->entropy[row];
        double *place = sums + SUM_POSITIONS + 3 * position_bucket(row - b * e->length - e->start[row]);
        place[0] += 1;
        place[1] += e->ce[row];
        if (!isfinite(all)) sums[SUM_BAD] += 1;
        if (!has_teacher) continue;
        place[2] += e->kl[row];
        sums[SUM_KL] += e->kl[row];
        sums[SUM_REVERSE] += e->reverse_kl[row];
        sums[SUM_AGREE] += e->agree[row];
    }
}

/* A model gone wrong says one thing everywhere: looks at the logits of the last real rows of sequence b. */
static enum status add_health(const struct evaluation *e, size_t m, struct tensor hidden, int64_t b, int64_t inputs,
                              double *sums) {
    int64_t rows = inputs < HEALTH_ROWS ? inputs : HEALTH_ROWS, vocabulary = e->rows[m].model->config.vocabulary;
    TRY(head_logits(e->models[m].head, hidden, b * e->length + inputs - rows, rows, false, e->logits));
    for (int64_t row = 0; row < rows; row++) {
        const float *logits = e->logits + row * vocabulary;
        int64_t best = 0;
        for (int64_t v = 0; v < vocabulary; v++) {
            if (!isfinite(logits[v])) sums[SUM_BAD] += 1;
            if (logits[v] > logits[best]) best = v;
        }
        sums[SUM_TOKEN0] += best == 0;
        sums[SUM_HEALTH] += 1;
    }
    return STATUS_OK;
}

static enum status run_model(struct evaluation *e, size_t m, int64_t first, struct tensor teacher_hidden) {
    struct evaluated *model = &e->models[m];
    struct batch batch = {e->batch, e->length, e->ids, e->targets, e->start};
    struct tensor hidden = teacher_hidden;
    if (model->plan) TRY(model_forward(model->plan, &batch, &hidden));
    struct head_loss loss = {.teacher_hidden = model->has_teacher ? teacher_hidden : tensor_none(),
                             .student_hidden = hidden,
                             .targets = e->targets,
                             .temperature = 1,
                             .kl_weight = model->has_teacher,
                             .ce_weight = 1,
                             .scale = 1,
                             .d_hidden = tensor_none()};
    struct head_sums sums = {0};
    TRY(head_loss(model->head, &loss, &sums));
    struct head_rows rows = {.ce = e->ce, .entropy = e->entropy};
    if (model->has_teacher) {
        rows.kl = e->kl;
        rows.reverse_kl = e->reverse_kl;
        rows.agree = e->agree;
    }
    TRY(head_read_rows(model->head, &rows));
    for (int64_t b = 0; b < e->batch && first + b < e->windows->count; b++) {
        double *own = e->sums + ((size_t)(first + b) * e->count + m) * SUMS;
        add_rows(e, b, model->has_teacher, own);
        TRY(add_health(e, m, hidden, b, e->windows->windows[first + b].inputs, own));
    }
    return STATUS_OK;
}

static enum status run_batch(struct evaluation *e, int64_t index) {
    int64_t first = index * e->batch;
    for (int64_t b = 0; b < e->batch; b++) {
        size_t at = (size_t)(b * e->length);
        windows_read(e->windows, first + b, e->ids + at, e->targets + at, e->start + at);
    }
    struct batch batch = {e->batch, e->length, e->ids, e->targets, e->start};
    struct tensor teacher_hidden = tensor_none();
    if (e->teacher) TRY(model_forward(e->teacher_plan, &batch, &teacher_hidden));
    for (size_t m = 0; m < e->count; m++) TRY(run_model(e, m, first, teacher_hidden));
    return STATUS_OK;
}

/* This rank's share: every size-th batch, so that a batch holds the same sequences whatever the number of ranks. */
static enum status run_share(struct evaluation *e, const struct evaluate_options *options, const struct comm *comm) {
    struct log_progress progress;
    int rank = comm_rank(comm), size = comm_size(comm);
    if (options->label) log_progress_start(&progress, options->label, 0, e->batches);
    for (int64_t index = rank; index < e->batches; index += size) {
        TRY(run_batch(e, index));
        int64_t done = index - rank + size < e->batches ? index - rank + size : e->batches;
        if (options->label) log_progress_show(&progress, done, "batches");
    }
    if (options->label) log_progress_end(&progress, e->batches, "batches");
    return STATUS_OK;
}

/* Standard error of Σx/Σn over sequences: a ratio of sums (Cochran 1977, section 2.11). */
static double ratio_error(const struct evaluation *e, size_t m, enum sum_index which, double ratio, double tokens) {
    double squares = 0, count = (double)e->windows->count;
    if (e->windows->count < 2) return NAN;
    for (int64_t s = 0; s < e->windows->count; s++) {
        const double *sums = e->sums + ((size_t)s * e->count + m) * SUMS;
        double residual = sums[which] - ratio * sums[SUM_TOKENS];
        squares += residual * residual;
    }
    return sqrt(squares * count / (count - 1)) / tokens;
}

static enum status finish(const struct evaluation *e, size_t m, struct evaluate_figures *f) {
    double totals[SUMS] = {0};
    for (int64_t s = 0; s < e->windows->count; s++) {
        for (int i = 0; i < SUMS; i++) totals[i] += e->sums[((size_t)s * e->count + m) * SUMS + (size_t)i];
    }
    double tokens = totals[SUM_TOKENS];
    *f = (struct evaluate_figures){
        .tokens = tokens, .sequences = (double)e->windows->count, .has_teacher = e->models[m].has_teacher};
    f->ce = totals[SUM_CE] / tokens;
    f->ce_error = ratio_error(e, m, SUM_CE, f->ce, tokens);
    f->perplexity = exp(f->ce);
    f->bits = f->ce / log(2);
    f->kl = totals[SUM_KL] / tokens;
    f->kl_error = ratio_error(e, m, SUM_KL, f->kl, tokens);
    f->reverse_kl = totals[SUM_REVERSE] / tokens;
    f->reverse_kl_error = ratio_error(e, m, SUM_REVERSE, f->reverse_kl, tokens);
    f->agreement = totals[SUM_AGREE] / tokens;
    f->agreement_error = ratio_error(e, m, SUM_AGREE, f->agreement, tokens);
    f->entropy = totals[SUM_ENTROPY] / tokens;
    f->health_rows = totals[SUM_HEALTH];
    f->token0 = totals[SUM_HEALTH] > 0 ? totals[SUM_TOKEN0] / totals[SUM_HEALTH] : 0;
    f->nonfinite = totals[SUM_BAD];
    for (int i = 0; i < EVALUATE_POSITIONS; i++) {
        const double *place = totals + SUM_POSITIONS + 3 * i;
        f->positions[i] =
            (struct evaluate_position){place[0], place[1] / place[0], f->has_teacher ? place[2] / place[0] : NAN};
    }
    return model_cost(e->rows[m].model, e->length, &f->cost, &f->flops);
}

enum status evaluate_run(const struct model *teacher, const struct evaluate_row *rows, size_t count,
                         const struct windows *windows, const struct evaluate_options *options, struct comm *comm,
                         struct evaluate_figures *figures) {
    struct evaluation e = {.teacher = teacher,
                           .rows = rows,
                           .count = count,
                           .windows = windows,
                           .batch = options->batch > 0 ? options->batch : 8,
                           .length = windows->options.length};
    e.batches = (windows->count + e.batch - 1) / e.batch;
    enum status status = open_buffers(&e);
    if (status == STATUS_OK) status = open_models(&e);
    TRY_GOTO(done, comm_agree(comm, status));
    TRY_GOTO(done, comm_agree(comm, run_share(&e, options, comm)));
    /* Each sum is one rank's value and zeros from the others: exact in any order. */
    TRY_GOTO(done,
             comm_all_reduce(comm, tensor_1d(e.sums, DTYPE_F64, windows->count * (int64_t)count * SUMS), COMM_SUM));
    for (size_t m = 0; m < count; m++) TRY_GOTO(done, finish(&e, m, &figures[m]));
done:
    close_evaluation(&e);
    return status;
}
