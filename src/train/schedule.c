/* See schedule.h. */
#include "train/schedule.h"

#include <math.h>

double schedule_lr(const struct config_stage *stage, enum lr_decay decay, int64_t step) {
    const double pi = 3.14159265358979323846;
    if (step < stage->warmup_steps) return stage->lr * (double)(step + 1) / (double)stage->warmup_steps;
    int64_t length = stage->steps - stage->warmup_steps;
    double done = length > 0 ? (double)(step - stage->warmup_steps) / (double)length : 1;
    if (done > 1) done = 1;
    switch (decay) {
    case LR_COSINE:
        return stage->lr_end + (stage->lr - stage->lr_end) * 0.5 * (1 + cos(pi * done));
    case LR_LINEAR:
        return stage->lr_end + (stage->lr - stage->lr_end) * (1 - done);
    default:
        return stage->lr;
    }
}
