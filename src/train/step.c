/* See step.h. The order of calls is the whole story: nothing here looks into a tensor. */
#include "train/step.h"

#include "base/log.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const phase_names[PHASES] = {"data", "teacher", "student", "head", "backward", "comm", "update"};

/* distill->sums: what is added over the ranks after a step, in one reduction: sums over the rows that count, then per
 * layer Σ‖o_student − o_teacher‖² and Σ‖o_teacher‖², then a 1 in the place of every rank whose own loss is not finite.
 */
enum { SUM_KL = 0, SUM_CE, SUM_OWN, SUM_LAYERS };

static int64_t layers_of(const struct distill *d) {
    return d->student->config.layers;
}
static double *errors_of(const struct distill *d) {
    return d->sums + SUM_LAYERS;
}
static double *norms_of(const struct distill *d) {
    return d->sums + SUM_LAYERS + layers_of(d);
}
static double *faults_of(const struct distill *d) {
    return d->sums + SUM_LAYERS + 2 * layers_of(d);
}
int64_t distill_sums_count(const struct distill *d) {
    return SUM_LAYERS + 2 * layers_of(d) + comm_size(d->comm);
}

/* Adds the time since *mark to a phase. */
static void end_phase(struct step_result *result, enum phase phase, double *mark) {
    double now = time_now_s();
    result->seconds[phase] += now - *mark;
    *mark = now;
}

enum { LOOK_EVERY = 10 /* steps of a run between passes that read what kinds report */ };

/* Tells the student's kinds where the run stands. */
static enum status place_micro(struct distill *d, const struct step_settings *settings, int64_t micro) {
    struct attention_context context = {
        .training = true,
        .attention_stage = d->stage->objective == OBJECTIVE_ATTENTION,
        .weights = d->stage->weights,
        .progress = (double)settings->step / (double)d->stage->steps,
        .updates = settings->total,
        .first_sample = settings->sample + d->part_first + micro * d->micro_batch,
        .seed = d->config->seed,
        .loss_scale = 1 / ((double)d->stage->batch * (double)d->stage->length),
        .looks = micro == 0 && settings->total % LOOK_EVERY == 0,
    };
    return plan_set_context(d->student_plan, &context, &d->steady);
}

/* Reads this rank's samples, and counts the rows of all ranks that have a target: the loss is their mean. */
static enum status load_batch(struct distill *d, int64_t sample, struct step_result *result) {
    double mark = time_now_s();
    int64_t length = d->stage->length, counted = 0;
    batches_read(d->batches, sample + d->part_first, d->part, d->ids, d->targets, d->start);
    for (int64_t i = 0; i < d->part * length; i++) counted += d->targets[i] >= 0;
    end_phase(result, PHASE_DATA, &mark);
    TRY(comm_all_reduce(d->comm, tensor_1d(&counted, DTYPE_I64, 1), COMM_SUM));
    end_phase(result, PHASE_COMM, &mark);
    result->rows = counted > 0 ? (double)counted : 1; /* no target at all: a loss of 0 */
    return STATUS_OK;
}

static struct batch micro_batch_of(const struct distill *d, int64_t micro) {
    int64_t first = micro * d->micro_batch * d->stage->length;
    return (struct batch){.batch = d->micro_batch,
                          .length = d->stage->length,
                          .ids = d->ids + first,
                          .targets = d->targets + first,
                          .start = d->start + first};
}

/* A micro-step's operations by phase, as ops->repeat takes them. */
struct micro {
    struct distill *distill;
    struct head_loss loss;
    struct align align;
    struct tensor teacher_hidden, student_hidden;
    struct backward_part *part;
    bool last; /* of the step: its gradients are whole afterwards */
};

static enum status teacher_work(void *user) {
    struct micro *micro = user;
    return model_run(micro->distill->teacher_plan, &micro->teacher_hidden);
}
static enum status student_work(void *user) {
    struct micro *micro = user;
    return model_run(micro->distill->student_plan, &micro->student_hidden);
}
static enum status head_work(void *user) {
    struct micro *micro = user;
    return head_run(micro->distill->head, &micro->loss);
}
static enum status backward_work(void *user) {
    struct micro *micro = user;
    return model_backward_part(micro->distill->student_plan, micro->distill->d_hidden, micro->part->above, micro->part->lowest);
}

static enum status align_work(void *user) {
    struct micro *micro = user;
    return align_run(&micro->align);
}

/* The work, recorded where the device can and the passes are alike. */
static enum status run_recorded(struct micro *micro, bool alike, struct recording **recording, enum status (*work)(void *user)) {
    const struct ops *ops = micro->distill->student->params.ops;
    return alike && !micro->distill->probing ? ops->repeat(ops, recording, work, micro) : work(micro);
}

/* A phase's time is the device's. */
static enum status run_phase(struct micro *micro, enum phase phase, enum status (*work)(void *user), struct step_result *result,
                             double *mark) {
    struct distill *d = micro->distill;
    const struct ops *ops = d->student->params.ops;
    TRY(run_recorded(micro, d->steady || phase == PHASE_TEACHER || phase == PHASE_HEAD, &d->recordings[phase], work));
    TRY(ops->synchronise(ops));
    end_phase(result, phase, mark);
    return STATUS_OK;
}

/* The backward pass; the last micro-step's gradients travel while it goes on. */
static enum status run_backward(struct micro *micro, struct step_result *result, double *mark) {
    struct distill *d = micro->distill;
    const struct ops *ops = d->student->params.ops;
    const bool send = micro->last && d->config->parallel.overlap && !d->probing;
    enum status status = STATUS_OK;
    for (int64_t p = 0; p < d->part_count && status == STATUS_OK; p++) {
        micro->part = &d->parts[p];
        status = run_recorded(micro, d->steady, &micro->part->recording, backward_work);
        if (send && status == STATUS_OK) status = gradients_ready(&d->gradients, micro->part->lowest);
    }
    TRY(status);
    TRY(ops->synchronise(ops));
    end_phase(result, PHASE_BACKWARD, mark);
    return STATUS_OK;
}

static struct head_loss loss_of(const struct distill *d, const struct batch *batch, double rows) {
    const bool lm = d->stage->objective == OBJECTIVE_LM;
    return (struct head_loss){.teacher_hidden = d->teacher ? plan_hidden(d->teacher_plan) : tensor_none(),
                              .student_hidden = plan_hidden(d->student_plan),
                              .targets = batch->targets,
                              .temperature = d->stage->temperature,
                              .kl_weight = lm ? 0 : 1 - d->stage->ce_share,
                              .ce_weight = lm ? 1 : d->stage->ce_share,
                              .scale = 1 / rows,
                              .d_hidden = d->d_hidden};
}

/* Objectives lm and kl. */
static enum status distill_micro(struct distill *d, const struct batch *batch, bool last, struct step_result *result) {
    struct micro micro = {.distill = d, .loss = loss_of(d, batch, result->rows), .last = last};
    struct head_sums sums = {0};
    double mark = time_now_s();
    if (d->teacher) TRY(model_load(d->teacher_plan, batch));
    TRY(model_load(d->student_plan, batch));
    TRY(head_load(d->head, &micro.loss));
    end_phase(result, PHASE_DATA, &mark);
    if (d->teacher) TRY(run_phase(&micro, PHASE_TEACHER, teacher_work, result, &mark));
    TRY(run_phase(&micro, PHASE_STUDENT, student_work, result, &mark));
    if (d->recorded_scale != micro.loss.scale) {
        const struct ops *ops = d->student->params.ops;
        ops->forget(ops, &d->recordings[PHASE_HEAD]);
    }
    d->recorded_scale = micro.loss.scale;
    TRY(run_phase(&micro, PHASE_HEAD, head_work, result, &mark));
    TRY(run_backward(&micro, result, &mark));
    TRY(head_read(d->head, &micro.loss, &sums));
    d->sums[SUM_KL] += sums.kl;
    d->sums[SUM_CE] += sums.ce;
    return STATUS_OK;
}

/* Objective attention: every layer by itself on the teacher's inputs. denominators: NULL while they are being found. */
static enum status align_micro(struct distill *d, const struct batch *batch, const double *denominators, double scale,
                               struct step_result *result) {
    int64_t layers = layers_of(d);
    struct micro micro = {.distill = d};
    double errors[layers], norms[layers], mark = time_now_s();
    micro.align = (struct align){d->teacher_plan, d->student_plan, denominators, scale};
    TRY(align_load(&micro.align, batch));
    end_phase(result, PHASE_DATA, &mark);
    TRY(denominators ? run_phase(&micro, PHASE_STUDENT, align_work, result, &mark) : align_work(&micro));
    TRY(align_read(&micro.align, errors, norms));
    for (int64_t l = 0; l < layers; l++) {
        errors_of(d)[l] += errors[l];
        norms_of(d)[l] += norms[l];
    }
    return STATUS_OK;
}

static enum status run_micro_steps(struct distill *d, const struct step_settings *settings,
                                   struct step_result *result) {
    TRY(optimizer_zero_gradients(&d->optimizer));
    memset(d->sums, 0, (size_t)distill_sums_count(d) * sizeof *d->sums);
    /* A row's mean norm times the rows of the whole batch: the same divisor for every rank and micro-step. */
    double scale = 1.0 / ((double)d->stage->batch * (double)d->stage->length);
    for (int64_t micro = 0; micro * d->micro_batch < d->part; micro++) {
        struct batch batch = micro_batch_of(d, micro);
        double own = 0;
        TRY(place_micro(d, settings, micro));
        if (d->stage->objective == OBJECTIVE_ATTENTION) {
            TRY(align_micro(d, &batch, d->denominators, scale, result));
        } else {
            TRY(distill_micro(d, &batch, (micro + 1) * d->micro_batch >= d->part, result));
        }
        TRY(plan_read_loss(d->student_plan, &own));
        d->sums[SUM_OWN] += own;
    }
    bool finite = true;
    for (int64_t i = 0; i < SUM_LAYERS + 2 * layers_of(d); i++) finite = finite && isfinite(d->sums[i]);
    faults_of(d)[comm_rank(d->comm)] = finite ? 0 : 1;
    return STATUS_OK;
}

/* Gradients and sums of all ranks. status: of this rank's passes; when they failed it still sends what the others wait for. */
static enum status reduce_over_ranks(struct distill *d, enum status status, struct step_result *result) {
    double mark = time_now_s();
    KEEP_FIRST(status, gradients_end(&d->gradients));
    TRY(comm_agree(d->comm, status));
    TRY(comm_all_reduce(d->comm, tensor_1d(d->sums, DTYPE_F64, distill_sums_count(d)), COMM_SUM));
    end_phase(result, PHASE_COMM, &mark);
    return STATUS_OK;
}

static void read_losses(const struct distill *d, struct step_result *result) {
    result->kl = result->ce = result->mse = NAN;
    result->own = d->sums[SUM_OWN] / ((double)d->stage->batch * (double)d->stage->length);
    switch (d->stage->objective) {
    case OBJECTIVE_LM:
        result->loss = result->ce = d->sums[SUM_CE] / result->rows;
        break;
    case OBJECTIVE_KL:
        result->kl = d->sums[SUM_KL] / result->rows;
        result->ce = d->sums[SUM_CE] / result->rows;
        result->loss = (1 - d->stage->ce_share) * result->kl;
        if (d->stage->ce_share > 0) result->loss += d->stage->ce_share * result->ce;
        break;
    case OBJECTIVE_ATTENTION:
        result->mse = 0;
        for (int64_t l = 0; l < layers_of(d); l++) {
            double norm = norms_of(d)[l];
            if (norm != 0) result->mse += errors_of(d)[l] / norm / (double)layers_of(d);
        }
        result->loss = result->mse;
    }
}

/* What was not finite first: the loss of a rank, else the gradient of a parameter. */
static void describe_fault(const struct distill *d, int64_t bad_row, struct step_result *result) {
    int rank = 0;
    while (rank < comm_size(d->comm) && faults_of(d)[rank] == 0) rank++;
    const char *row = bad_row >= 0 ? d->student->params.rows[bad_row].name : "none";
    if (rank < comm_size(d->comm)) {
        snprintf(result->fault, sizeof result->fault, "the loss of rank %d; first gradient: %s", rank, row);
    } else {
        snprintf(result->fault, sizeof result->fault, "the gradient of %s, with a finite loss on every rank", row);
    }
}

/* Repeats this rank's passes, looking at every operation: what was not finite first, "" when nothing is any more. */
static enum status probe_passes(struct distill *d, const struct step_settings *settings, double rows, char text[128]) {
    struct step_result unused = {.rows = rows};
    text[0] = '\0';
    d->probing = true;
    plan_probe(d->student_plan, true);
    if (d->teacher_plan) plan_probe(d->teacher_plan, true);
    enum status status = run_micro_steps(d, settings, &unused);
    if (d->teacher_plan && plan_probed(d->teacher_plan)[0]) {
        snprintf(text, 128, "the teacher's %s", plan_probed(d->teacher_plan));
    } else {
        snprintf(text, 128, "%s", plan_probed(d->student_plan));
    }
    plan_probe(d->student_plan, false);
    if (d->teacher_plan) plan_probe(d->teacher_plan, false);
    d->probing = false;
    return status;
}

/* Adds to result->fault where the passes first met something that is not finite, on the lowest rank that did. */
static enum status trace_fault(struct distill *d, const struct step_settings *settings, struct step_result *result) {
    char text[128] = "";
    TRY(comm_agree(d->comm, probe_passes(d, settings, result->rows, text)));
    int64_t first = text[0] ? comm_rank(d->comm) : INT64_MAX;
    TRY(comm_all_reduce(d->comm, tensor_1d(&first, DTYPE_I64, 1), COMM_MIN));
    if (first == INT64_MAX) return STATUS_OK;
    TRY(comm_broadcast(d->comm, tensor_1d(text, DTYPE_U8, sizeof text), (int)first));
    size_t used = strlen(result->fault);
    snprintf(result->fault + used, sizeof result->fault - used, "; met first on rank %lld in %s", (long long)first, text);
    return STATUS_OK;
}

static enum status clip_and_update(struct distill *d, const struct step_settings *settings,
                                   struct step_result *result) {
    double mark = time_now_s();
    int64_t bad_row = -1;
    TRY(optimizer_norm(&d->optimizer, &result->norm, &bad_row));
    if (!isfinite(result->loss) || !isfinite(result->norm)) {
        result->skipped = true;
        describe_fault(d, bad_row, result);
        return STATUS_OK;
    }
    struct optimizer_step step = {
        .lr = settings->lr, .l1 = d->stage->l1, .norm = result->norm, .update = settings->update};
    TRY(optimizer_update(&d->optimizer, d->config, &step));
    end_phase(result, PHASE_UPDATE, &mark);
    return STATUS_OK;
}

/* With ZeRO every rank has updated its own part. */
static enum status return_values(struct distill *d, struct step_result *result) {
    double mark = time_now_s();
    TRY(gradients_return_values(&d->gradients));
    end_phase(result, PHASE_COMM, &mark);
    return STATUS_OK;
}

enum status distill_step(struct distill *d, const struct step_settings *settings, struct step_result *result) {
    *result = (struct step_result){0};
    TRY(load_batch(d, settings->sample, result));
    gradients_begin(&d->gradients);
    TRY(reduce_over_ranks(d, run_micro_steps(d, settings, result), result));
    read_losses(d, result);
    TRY(comm_agree(d->comm, clip_and_update(d, settings, result)));
    return result->skipped ? trace_fault(d, settings, result) : return_values(d, result);
}

static enum status sum_norms(struct distill *d, struct step_result *unused) {
    memset(d->sums, 0, (size_t)distill_sums_count(d) * sizeof *d->sums);
    for (int64_t micro = 0; micro * d->micro_batch < d->part; micro++) {
        struct batch batch = micro_batch_of(d, micro);
        TRY(align_micro(d, &batch, NULL, 0, unused));
    }
    return STATUS_OK;
}

enum status distill_calibrate(struct distill *d) {
    struct step_result unused = {0};
    TRY(place_micro(d, &(struct step_settings){0}, 0));
    TRY(load_batch(d, 0, &unused));
    TRY(comm_agree(d->comm, sum_norms(d, &unused)));
    TRY(comm_all_reduce(d->comm, tensor_1d(d->sums, DTYPE_F64, distill_sums_count(d)), COMM_SUM));
    for (int64_t l = 0; l < layers_of(d); l++) {
        double norm = norms_of(d)[l] / ((double)d->stage->batch * (double)d->stage->length);
        if (!isfinite(norm)) {
            return error_set(STATUS_FAILED, "stage %s: the teacher's attention in layer %lld is not finite",
                             d->stage->name, (long long)l);
        }
        d->denominators[l] = norm > 0 ? norm : 1; /* a layer whose output is zero has no error to divide */
    }
    return optimizer_zero_gradients(&d->optimizer);
}
