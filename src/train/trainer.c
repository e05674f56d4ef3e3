/* See trainer.h. Decides what happens when; what a step is stands in step.c, what is kept in saving.c, what is told in
 * record.c. */
#include "train/trainer.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "eval/evaluate.h"
#include "io/checkpoint.h"
#include "io/huggingface.h"
#include "params/division.h"
#include "train/record.h"
#include "train/saving.h"
#include "train/schedule.h"
#include "train/signals.h"

#include <stdlib.h>
#include <string.h>

enum { ROLLBACKS_MAX = 3 };

struct trainer {
    struct run *run;
    const struct trainer_options *options;
    struct train_state state;
    struct distill distill;
    struct record record;
    struct step_result last;
    double last_lr;
    int64_t bad_in_row;
    int64_t rollbacks; /* since the last checkpoint that was written */
    int64_t saved;     /* total steps of the newest checkpoint; −1: none in this life */
    int lock;
};

static const struct config_stage *stage_of(const struct trainer *t) {
    return &t->run->config->stages[t->state.stage];
}

/* True on every rank when a signal asked any of them to stop. */
static enum status stop_requested(struct trainer *t, bool *stop) {
    int64_t asked = signals_stop_requested();
    TRY(comm_all_reduce(t->run->comm, tensor_1d(&asked, DTYPE_I64, 1), COMM_MAX));
    *stop = asked != 0;
    return STATUS_OK;
}

static enum status save(struct trainer *t) {
    if (t->saved == t->state.total) return STATUS_OK;
    TRY(record_sync(&t->record));
    TRY(saving_write(t->run, &t->state));
    t->saved = t->state.total;
    t->rollbacks = 0;
    return STATUS_OK;
}

static enum status evaluate(struct trainer *t, const char *label) {
    struct run *run = t->run;
    if (!run->has_valid) return STATUS_OK;
    bool with_teacher = run->has_teacher && strcmp(label, "start") == 0;
    struct evaluate_row rows[] = {{"student", &run->student}, {"teacher", &run->teacher}};
    struct evaluate_figures figures[2];
    struct evaluate_options options = {.batch = t->distill.micro_batch};
    TRY(evaluate_run(run_teacher(run), rows, with_teacher ? 2 : 1, &run->valid, &options, run->comm, figures));
    return record_evaluation(&t->record, label, &t->state, &figures[0], with_teacher ? &figures[1] : NULL);
}

/* Goes back to the newest checkpoint; the samples that did the harm are not read again. */
static enum status roll_back(struct trainer *t) {
    struct train_state before = t->state;
    bool found = false;
    if (t->rollbacks++ >= ROLLBACKS_MAX) {
        return error_set(STATUS_FAILED,
                         "step %lld: went back %d times without coming to a new checkpoint; the last fault: %s",
                         (long long)before.total, ROLLBACKS_MAX, t->last.fault);
    }
    TRY(saving_read(t->run, "auto", &t->state, &found));
    if (!found) {
        return error_set(STATUS_FAILED,
                         "step %lld: %lld steps in a row were skipped and there is no checkpoint to go back to; "
                         "the last fault: %s",
                         (long long)before.total, (long long)t->bad_in_row, t->last.fault);
    }
    if (t->state.stage == before.stage) t->state.sample = before.sample;
    t->state.skipped = before.skipped;
    t->saved = t->state.total;
    t->bad_in_row = 0;
    TRY(record_roll_back(&t->record, t->state.total));
    log_line("back     to step %lld after %lld skipped steps in a row; its samples are left out",
             (long long)t->state.total, (long long)t->run->config->train.max_bad_steps);
    return STATUS_OK;
}

static enum status one_step(struct trainer *t) {
    const struct config *config = t->run->config;
    double begin = time_now_s();
    double lr = schedule_lr(stage_of(t), config->train.decay, t->state.step);
    struct step_settings settings = {.sample = t->state.sample,
                                     .update = t->state.updates + 1,
                                     .step = t->state.step,
                                     .total = t->state.total,
                                     .lr = lr};
    comm_set_step(t->run->comm, t->state.total + 1);
    if (t->run->gpu) comm_set_step(t->run->gpu, t->state.total + 1);
    TRY(distill_step(&t->distill, &settings, &t->last));
    t->last_lr = lr;
    t->state.step++;
    t->state.total++;
    t->state.sample += stage_of(t)->batch;
    if (t->last.skipped) {
        t->state.skipped++;
        t->bad_in_row++;
        if (comm_rank(t->run->comm) == 0) {
            log_warning("step %lld skipped on all ranks, not finite: %s", (long long)t->state.total, t->last.fault);
        }
    } else {
        t->state.updates++;
        t->bad_in_row = 0;
    }
    return record_step(&t->record, &t->state, lr, time_now_s() - begin, &t->last);
}

/* Steps until the stage's end, a signal or a rollback (*again: the stage of t->state begins anew). */
static enum status run_steps(struct trainer *t, bool *again) {
    const struct config *config = t->run->config;
    while (t->state.step < stage_of(t)->steps) {
        bool stop = false;
        TRY(one_step(t));
        if (t->bad_in_row >= config->train.max_bad_steps) {
            *again = true;
            return comm_agree(t->run->comm, roll_back(t));
        }
        bool last = t->state.step == stage_of(t)->steps;
        bool look = config->eval.every > 0 && t->state.total % config->eval.every == 0;
        if (look && !last)
            TRY(evaluate(t, "eval")); /* before the checkpoint: its line then counts for whoever resumes there */
        bool due = t->state.total % config->checkpoint.every == 0;
        if (due && !last && t->bad_in_row == 0) TRY(save(t));
        TRY(stop_requested(t, &stop));
        if (stop && !last) {
            TRY(save(t));
            return error_set(STATUS_STOPPED, "stopped at step %lld on request; the same command goes on from there",
                             (long long)t->state.total);
        }
    }
    return STATUS_OK;
}

static enum status open_stage(struct trainer *t) {
    struct run *run = t->run;
    size_t index = (size_t)t->state.stage;
    struct stage_memory memory;
    int64_t trained = 0;
    TRY(run_start_stage(run, index, &trained));
    TRY(run_measure_stage(run, index, &memory));
    record_plan(run, index, &memory);
    t->distill = (struct distill){.config = run->config,
                                  .stage = &run->config->stages[index],
                                  .teacher = run_teacher(run),
                                  .student = &run->student,
                                  .comm = run->comm,
                                  .gpu = run->gpu,
                                  .batches = &run->batches};
    TRY(comm_agree(run->comm, stage_open(&t->distill, &memory)));
    if (t->state.step == 0) TRY(params_reset_moments(&run->student.params));
    if (run->config->stages[index].objective == OBJECTIVE_ATTENTION) TRY(distill_calibrate(&t->distill));
    return record_start_stage(&t->record, index, t->state.step);
}

static enum status run_stage(struct trainer *t) {
    bool again = false;
    bool first_look = t->state.step == 0 && t->state.stage == 0;
    TRY(open_stage(t));
    if (first_look) TRY(evaluate(t, "start"));
    TRY(run_steps(t, &again));
    if (again) return STATUS_OK;
    record_end_stage(&t->record, &t->state, &t->last, t->last_lr);
    TRY(evaluate(t, "end"));
    t->state.stage++;
    t->state.step = t->state.sample = t->state.updates = 0;
    return save(t);
}

/* Rank 0: writes the model, unless it is there and this life has `trained` nothing. */
static enum status write_model(struct run *run, const char *path, bool trained) {
    const char *tokenizer = run->config->tokenizer;
    bool whole = false;
    TRY(huggingface_is_whole(path, tokenizer, &whole));
    if (whole && !trained) return STATUS_OK;
    struct huggingface_save what = {
        .model = &run->student.config, .params = &run->student.params, .tokenizer = tokenizer};
    TRY(file_remove_tree(path)); /* of an earlier, shorter run, or what is left of it */
    return huggingface_save(path, &what);
}

/* A model from scratch becomes a directory that can be a teacher; one that is there stays, unless this life trained. */
static enum status save_model(struct trainer *t, bool trained) {
    struct run *run = t->run;
    char *path = NULL;
    if (!run->config->from_scratch) return STATUS_OK;
    TRY(params_join_masters(&run->student.params, run->comm));
    TRY(saving_path(run, "model", &path));
    enum status status = comm_rank(run->comm) == 0 ? write_model(run, path, trained) : STATUS_OK;
    status = comm_agree(run->comm, status);
    if (status == STATUS_OK) log_line("model    %s", path);
    free(path);
    return status;
}

static enum status keep_log(const struct run *run) {
    char *path = NULL;
    TRY(saving_path(run, "log", &path));
    log_keep(path);
    free(path);
    return STATUS_OK;
}

/* Plans every stage that is still to come, so that it depends on the machine of the run's first life only: a checkpoint
 * of the first stage keeps the last one's. */
static enum status plan_stages(struct trainer *t) {
    struct run *run = t->run;
    const struct config *config = run->config;
    bool open = config->train.micro_batch == 0 || config->train.recompute == RECOMPUTE_AUTO;
    if (open && run->plan_ranks > 0 && run->plan_ranks != comm_size(run->comm)) {
        log_line("plan     the checkpoint is of %d rank%s: where the recipe says auto, micro_batch and recompute are "
                 "chosen anew",
                 run->plan_ranks, run->plan_ranks == 1 ? "" : "s");
    }
    for (size_t i = (size_t)t->state.stage; i < config->stage_count; i++) {
        struct stage_memory memory;
        int64_t trained = 0;
        TRY(run_start_stage(run, i, &trained));
        TRY(run_measure_stage(run, i, &memory));
    }
    return STATUS_OK;
}

static enum status prepare(struct trainer *t) {
    struct run *run = t->run;
    const char *resume = t->options->resume;
    bool resumed = false, own = strcmp(resume, "auto") == 0, never = strcmp(resume, "never") == 0;
    t->saved = -1;
    /* A checkpoint that does not serve is refused before the run's directory is made. */
    if (!own && !never) TRY(saving_read(run, resume, &t->state, &resumed));
    TRY(saving_lock(run, &t->lock));
    TRY(keep_log(run));
    if (own) TRY(saving_read(run, resume, &t->state, &resumed));
    if (own && resumed) {
        t->saved = t->state.total;
        TRY(checkpoint_point_latest(run->comm, run->config->run, t->state.total));
    }
    if (!own || !resumed) TRY(saving_set_aside(run, !resumed));
    TRY(saving_write_config(run));
    TRY(run_measure_peak(run->ops, run->config->precision == PRECISION_BF16, &run->peak_flops));
    TRY(comm_all_reduce(run->comm, tensor_1d(&run->peak_flops, DTYPE_F64, 1), COMM_SUM));
    record_announce(run);
    if (resumed) {
        log_line("resume   from step %lld%s", (long long)t->state.total,
                 t->state.stage == (int64_t)run->config->stage_count ? ", where all was done" : "");
    }
    if (!resumed) TRY(comm_agree(run->comm, run_calibrate(run)));
    TRY(run_divide_masters(run));
    TRY(plan_stages(t));
    TRY(record_open(run, t->state.total, resumed, &t->record));
    /* From a path: a checkpoint here at once, so that the next life goes on from it and not from the beginning. */
    return resumed ? save(t) : STATUS_OK;
}

static enum status run_all(struct trainer *t) {
    TRY(prepare(t));
    bool fresh = t->state.stage < (int64_t)t->run->config->stage_count;
    while (t->state.stage < (int64_t)t->run->config->stage_count) {
        enum status status = run_stage(t);
        stage_close(&t->distill);
        if (status != STATUS_OK) return status;
    }
    TRY(save_model(t, fresh)); /* also after a death between the last checkpoint and the model */
    log_line("done     %s", t->run->config->run);
    return STATUS_OK;
}

enum status trainer_run(struct run *run, const struct trainer_options *options) {
    struct trainer trainer = {.run = run, .options = options, .lock = -1};
    signals_watch();
    enum status status = run_all(&trainer);
    stage_close(&trainer.distill);
    KEEP_FIRST(status, record_close(&trainer.record));
    log_keep(NULL);
    saving_unlock(&trainer.lock);
    signals_restore();
    return status;
}
