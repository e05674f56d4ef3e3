/* The learning rate of a step. */
#ifndef SQUINT_TRAIN_SCHEDULE_H
#define SQUINT_TRAIN_SCHEDULE_H

#include "config/config.h"

/* Of the stage's step number `step`, from 0: rises linearly over the warm-up's steps (step 0: lr/warmup), then falls
 * from lr towards lr_end, which it would reach at step `steps`: half a cosine (Loshchilov and Hutter 2017), a line, or
 * not at all. */
double schedule_lr(const struct config_stage *stage, enum lr_decay decay, int64_t step);

#endif
