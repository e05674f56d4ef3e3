/* What a run keeps between two lives: where it stands, and checkpoints of it. */
#ifndef SQUINT_TRAIN_SAVING_H
#define SQUINT_TRAIN_SAVING_H

#include "train/run.h"

/* Where a run stands, after whole steps. */
struct train_state {
    int64_t stage;   /* index of the stage that is under way or begins next; stage_count: all done */
    int64_t step;    /* steps done in the stage */
    int64_t sample;  /* samples read in the stage */
    int64_t updates; /* steps of the stage that changed the parameters: AdamW's counter */
    int64_t total;   /* steps done in the run */
    int64_t skipped; /* steps of the run that changed nothing */
    int64_t seconds; /* of work in earlier lives */
};

/* Writes checkpoint step-<total> under the run's checkpoints/ and lets old ones go. Every rank calls it. */
enum status saving_write(const struct run *run, const struct train_state *state);
/* *text = the stages' plans as far as they are chosen, for attribute `plan` of a checkpoint: a line a stage, two where
 * ranks have parts of two sizes. Every rank calls it; release with free(). */
enum status saving_plan_text(const struct run *run, char **text);
/* Makes the choices of `text` that are for stages and parts of this run's, where none is made yet. `path` is for the
 * message. */
enum status saving_plan_adopt(struct run *run, const char *path, const char *text);
/* Reads parameters, moments and *state from `which` ("auto": the newest that verifies; or a path). *found false, and
 * nothing changed, when "auto" finds none. With as many ranks as wrote it, the stages' plans too. Every rank calls it.
 */
enum status saving_read(struct run *run, const char *which, struct train_state *state, bool *found);

/* --- the run's directory: rank 0 makes it, all ranks call ----------------------------------------------------------
 */
/* Makes the directory and takes its lock, which the process holds until saving_unlock or its end. STATUS_USAGE: another
 * process holds it. */
enum status saving_lock(const struct run *run, int *lock);
void saving_unlock(int *lock);
/* What a run leaves that begins anew or from a given path: checkpoints become checkpoints.old and, with `metrics`,
 * metrics.jsonl metrics.old.jsonl. */
enum status saving_set_aside(const struct run *run, bool metrics);
/* Writes config.yaml, the recipe as it was resolved. */
enum status saving_write_config(const struct run *run);
/* "run/name" in fresh memory. */
enum status saving_path(const struct run *run, const char *name, char **path);

#endif
