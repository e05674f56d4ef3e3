/* Everything that a recipe names, opened: shards, teacher, student, held-out windows. What `train` and `plan` begin
 * with. */
#ifndef SQUINT_TRAIN_RUN_H
#define SQUINT_TRAIN_RUN_H

#include "comm/comm.h"
#include "config/config.h"
#include "eval/windows.h"
#include "model/model.h"
#include "train/batches.h"
#include "train/stage.h"

struct run {
    struct config *config; /* borrowed; run_open fills in what a from_scratch model takes from the shards */
    struct comm *comm, *gpu; /* gpu: for the device's memory; NULL: none, `comm` carries all */
    const struct ops *ops;
    struct batches batches;
    struct windows valid; /* count 0: none */
    bool has_valid;
    struct model teacher; /* has_teacher */
    struct model student; /* or the model that is trained from scratch */
    bool has_teacher;
    char *teacher_path;           /* where the teacher was found: config->teacher, or its model/ */
    uint64_t teacher_hash;        /* params_hash of the teacher, before its positions were extended; 0 without one */
    struct stage_choice *choices; /* of this rank, one a stage: made by run_measure_stage, or read from a checkpoint */
    size_t program; /* bytes of the process before the run was opened, in the memory that the device's is taken from */
    int plan_ranks;               /* how many ranks wrote the checkpoint that the run goes on from; 0: none */
    double peak_flops;            /* of matrix products, all ranks together; 0: not measured */
};

struct run_options {
    uint64_t tokenizer_hash;    /* of the tokenizer that the recipe or the teacher names; 0: unknown, not compared */
    const char *tokenizer_path; /* for the message */
    struct comm *gpu;           /* comm_open_nccl's, borrowed as comm is; NULL: none */
};

/* Every rank calls it. comm and ops are borrowed and outlive the run. Messages name file and key. Nothing is written.
 */
enum status run_open(struct config *config, struct comm *comm, const struct ops *ops, const struct run_options *options,
                     struct run *run);
void run_close(struct run *run); /* NULL-safe, twice-safe */

/* The teacher of stage's step, NULL with objective lm. */
static inline struct model *run_teacher(struct run *run) {
    return run->has_teacher ? &run->teacher : NULL;
}
/* Starts the student's rows of kinds that start from data (model_calibrate) on the first samples of the first stage. Of a run that
 * begins; the same on every rank. */
enum status run_calibrate(struct run *run);
/* Once the student's values are there (run_calibrate, or a checkpoint): params_divide_masters. Before a stage is measured. */
enum status run_divide_masters(struct run *run);
/* Sets what trains in stage `index` and the windows of its length: *trained elements. */
enum status run_start_stage(struct run *run, size_t index, int64_t *trained);
/* The memory of stage `index` on this rank, out of what is free on its machine; makes run->choices[index]. One that is
 * made already stays unless its memory is no longer there, which a line then says. After run_start_stage. Every rank
 * calls it. */
enum status run_measure_stage(struct run *run, size_t index, struct stage_memory *memory);
/* Rate of a large matrix product of this rank, in FLOP/s: the peak that shares are shares of. About 0.1 s. */
enum status run_measure_peak(const struct ops *ops, bool bf16, double *flops);
/* Where a teacher's directory really is: `path`, or path/model of a run that trained one. Release with free(). */
enum status run_find_teacher(const char *path, char **directory);

#endif
