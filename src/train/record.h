/* What a run tells: to people (base/log.h) and to metrics.jsonl and TensorBoard (io/metrics.h). Rank 0 writes. */
#ifndef SQUINT_TRAIN_RECORD_H
#define SQUINT_TRAIN_RECORD_H

#include "base/log.h"
#include "eval/evaluate.h"
#include "train/saving.h"

enum { RECORD_KINDS = 32768 };

struct record {
    struct run *run;
    struct metrics *metrics; /* NULL on other ranks */
    struct log_progress progress;
    double flops;   /* of a step, all ranks */
    double density; /* of the student at the stage's length, looked up every few steps; negative: not defined */
    double step_s;  /* smoothed seconds of a step; 0: none yet */
    char *kinds;    /* the kinds' own numbers, as JSON members; [RECORD_KINDS] */
};

/* Lines before the first step: ranks and device, teacher, student, data. */
void record_announce(const struct run *run);
/* "plan": memory of a stage, and how a batch is divided. */
void record_plan(const struct run *run, size_t index, const struct stage_memory *memory);

/* Opens metrics and events in the run's directory. resumed: lines of steps beyond `total` (of a life that was lost) are
 * dropped. */
enum status record_open(struct run *run, int64_t total, bool resumed, struct record *record);
/* What was recorded is on the disk: before a checkpoint that counts on it. */
enum status record_sync(struct record *record);
/* After a rollback to `total`: later lines are dropped. */
enum status record_roll_back(struct record *record, int64_t total);
enum status record_close(struct record *record); /* NULL-safe, twice-safe */
enum status record_start_stage(struct record *record, size_t index, int64_t step);
enum status record_step(struct record *record, const struct train_state *state, double lr, double seconds,
                        const struct step_result *result);
void record_end_stage(struct record *record, const struct train_state *state, const struct step_result *last,
                      double lr);
/* One evaluation. label: "start", "eval", "end". figures of the student; teacher may be NULL. */
enum status record_evaluation(struct record *record, const char *label, const struct train_state *state,
                              const struct evaluate_figures *student, const struct evaluate_figures *teacher);

#endif
