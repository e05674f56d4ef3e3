/* Memory of a stage: what a step will take, chosen before anything is taken, and the opening of a stage in it. */
#ifndef SQUINT_TRAIN_STAGE_H
#define SQUINT_TRAIN_STAGE_H

#include "train/step.h"

struct stage_memory { /* bytes on this rank */
    int64_t micro_batch;
    bool recompute;
    size_t parameters; /* values of the teacher's and of the student's own rows */
    size_t optimizer;  /* gradients and moments, and gradients on their way */
    size_t teacher_plan, student_plan, head, batches;
    size_t program; /* what the process itself took before: counted by run_measure_stage, no part of what must fit into what is free */
    size_t total;
    bool fits;
};

/* What a stage's memory decides where the recipe says auto. */
struct stage_choice {
    int64_t micro_batch; /* 0: still open */
    enum recompute recompute;
};
/* Of the recipe. */
struct stage_choice stage_choice_of(const struct config *config);

/* The samples of a batch that `rank` of `size` takes: parts of equal size, the first ones one larger when they cannot
 * be. STATUS_USAGE when there are fewer samples than ranks. */
enum status stage_part(const struct config_stage *stage, int rank, int size, int64_t *first, int64_t *count);
/* Chooses micro_batch (a divisor of `part`; at most choice->micro_batch, or where that is open about 2,048 tokens,
 * 16,384 on a GPU: past that matrix products gain nothing) and recompute, so that all fits into `available` bytes (0:
 * unknown); memory->fits false: it is the least that the choice allows, and too much. travelling: gradients_bytes.
 * teacher may be NULL. */
enum status stage_measure(const struct stage_choice *choice, const struct config_stage *stage,
                          const struct model *teacher, const struct model *student, int64_t part, size_t travelling,
                          double available, struct stage_memory *memory);
/* STATUS_MEMORY with the message for a stage that does not fit. */
enum status stage_too_large(const struct stage_choice *choice, const struct config_stage *stage,
                            const struct stage_memory *memory, double available);
/* FLOPs of a step, over all ranks: matrix products and attention, forward and backward; recomputation not counted. */
enum status stage_flops(const struct config_stage *stage, const struct model *teacher, const struct model *student,
                        double *flops);

/* Takes the memory. The student's trained rows must be set (params_train). distill: config, stage, teacher, student,
 * comm, batches set by the caller. */
enum status stage_open(struct distill *distill, const struct stage_memory *memory);
void stage_close(struct distill *distill); /* NULL-safe, twice-safe */

#endif
