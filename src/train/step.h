/* One step of training: what happens between a batch of tokens and the student's new values. */
#ifndef SQUINT_TRAIN_STEP_H
#define SQUINT_TRAIN_STEP_H

#include "comm/comm.h"
#include "config/config.h"
#include "model/model.h"
#include "train/batches.h"
#include "train/gradients.h"
#include "train/optimizer.h"

enum phase {
    PHASE_DATA = 0,
    PHASE_TEACHER,
    PHASE_STUDENT,
    PHASE_HEAD,
    PHASE_BACKWARD,
    PHASE_COMM,
    PHASE_UPDATE,
    PHASES
};
extern const char *const phase_names[PHASES];

/* A part of the backward pass (model_backward_part) after which buckets of gradients are complete. */
struct backward_part {
    int64_t above, lowest;
    struct recording *recording;
};

/* One stage in the making on this rank; opened by train/stage.h. */
struct distill {
    const struct config *config;
    const struct config_stage *stage;
    struct model *teacher; /* NULL: objective lm */
    struct model *student;
    struct comm *comm, *gpu; /* gpu: for gradients in the device's memory; NULL: they go over `comm` */
    struct batches *batches;
    struct optimizer optimizer;
    struct plan *teacher_plan, *student_plan;
    struct head *head;
    struct tensor d_hidden;         /* [micro·T,C] */
    int64_t part_first, part;       /* this rank's samples of a batch: which, how many */
    int64_t micro_batch;            /* divides part */
    int32_t *ids, *targets, *start; /* [part,T] of this step */
    double *sums;                   /* what the ranks add up after a step, see step.c */
    struct gradients gradients;
    struct backward_part *parts; /* of the backward pass, in order */
    int64_t part_count;
    struct recording *recordings[PHASES]; /* of a micro-step's phases; the backward pass's are its parts' */
    double recorded_scale;                /* of the loss, in the head's recording */
    bool steady;                          /* this micro-step's passes start the same operations as another's */
    bool probing;                         /* passes look for what is not finite: nothing is recorded */
    double *denominators; /* [L] objective attention: a row's mean ‖o_teacher‖², the same through the whole stage */
};

struct step_settings {
    int64_t sample; /* number in the stage of the batch's first sample */
    int64_t update; /* from 1 in every stage: updates made, this one included */
    int64_t step;   /* of the stage, from 0 */
    int64_t total;  /* steps of the whole run before this one */
    double lr;
};

struct step_result {
    double loss, kl, ce; /* means over the rows that count, of all ranks; NaN where the objective has none */
    double mse; /* objective attention: mean over the layers of Σ‖o_student − o_teacher‖² / Σ‖o_teacher‖² */
    double own;      /* mean over all rows of the kinds' own losses, weighted, summed over the layers; not part of loss */
    double norm;     /* of the gradient, before clipping */
    double rows;     /* that count, of all ranks */
    bool skipped;    /* loss or norm not finite: nothing was changed */
    char fault[320]; /* what was not finite first, when skipped: rank, parameter, operation, layer, head */
    double seconds[PHASES]; /* comm: what is not hidden by the backward pass */
};

/* Teacher forward, student forward, loss, backward, sum over the ranks, clipping and AdamW. Every rank calls it and
 * gets the same result. A step whose loss or gradient is not finite on any rank changes nothing on any, and is
 * STATUS_OK with `skipped`. */
enum status distill_step(struct distill *distill, const struct step_settings *settings, struct step_result *result);
/* Objective attention: finds the denominators from the batch that starts with sample 0 of the stage, so that they are a
 * function of teacher and data alone. Every rank calls it. Gradients are zero afterwards. */
enum status distill_calibrate(struct distill *distill);
/* Elements of distill->sums. */
int64_t distill_sums_count(const struct distill *distill);

#endif
