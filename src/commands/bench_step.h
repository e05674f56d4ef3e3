/* Time and memory of one step of distillation on random weights of a given shape. */
#ifndef SQUINT_COMMANDS_BENCH_STEP_H
#define SQUINT_COMMANDS_BENCH_STEP_H

#include "base/error.h"
#include "train/step.h"

struct bench_step_options {
    int64_t layers, heads, width, vocabulary; /* of a GPT-2 type model with mlp_width 4·width */
    int64_t batch, length, steps;             /* B, T; steps that are timed, behind some that are not */
    const char *attention;                    /* of every layer, as a recipe has it: "kind: nsa, window: 512" */
    const char *train;                        /* patterns, as a recipe has them: "new, attn" */
    const char *recompute;                    /* auto, none or layer, as a recipe has it */
    const char *precision, *device;
    int64_t threads;
    const char *temporary; /* directory for a shard of random ids */
};

struct bench_step_result {
    double seconds; /* of a step, until the device is done with it: median */
    double tokens_per_second;
    double phases[PHASES]; /* seconds: medians */
    double flops_per_second, peak_flops; /* what the step came to, and what a large matrix product does */
    double planned_bytes;                /* what stage_measure foretold */
    double peak_bytes;                   /* of this process; of a GPU what it allocated */
    double kl;                           /* of the last step */
    int64_t parameters, trained;
    char device[384];
};

enum status bench_step(const struct bench_step_options *options, struct bench_step_result *result);

#endif
