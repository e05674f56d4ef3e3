/* A whole run: its stages one after another, with evaluation, checkpoints, stopping, resuming and going back. */
#ifndef SQUINT_TRAIN_TRAINER_H
#define SQUINT_TRAIN_TRAINER_H

#include "train/run.h"

struct trainer_options {
    const char *resume; /* "auto": the run's newest checkpoint that verifies, when it has one; "never"; or a
                           checkpoint's path */
};

/* Trains what `run` has opened, in the run's directory. Every rank calls it. STATUS_STOPPED after a signal, with a
 * checkpoint to go on from; STATUS_USAGE when another process works in the directory, or the checkpoint belongs to
 * another teacher (both hashes are named) or another student. */
enum status trainer_run(struct run *run, const struct trainer_options *options);

#endif
