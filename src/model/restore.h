/* What training's checkpoints hold of a model, written and read: the values that a student (or a model from scratch)
 * owns, their moments, the run's config and the teacher's identity. Used by the trainer and by whoever opens a
 * checkpoint as a MODEL.
 *
 * Tensors "values/NAME", "m/NAME", "v/NAME" for every owned row; attributes:
 *   config (text)        the resolved recipe: config_parse reads it
 *   stage (text)         name of the stage that was under way, or of the last one
 *   teacher (text)       directory; teacher_hash (text, 16 hexadecimal digits): params_hash; both absent for a model
 * from scratch */
#ifndef SQUINT_MODEL_RESTORE_H
#define SQUINT_MODEL_RESTORE_H

#include "comm/comm.h"
#include "io/checkpoint.h"
#include "model/model.h"

struct restore_facts { /* texts are borrowed from the checkpoint */
    const char *config;
    const char *stage;
    const char *teacher;   /* NULL: a model from scratch */
    uint64_t teacher_hash; /* 0 without a teacher */
};
/* STATUS_DAMAGED names what is missing. */
enum status model_restore_facts(const struct checkpoint *checkpoint, struct restore_facts *facts);
/* STATUS_USAGE names `checkpoint`, the recorded teacher and hash, and `path` with its hash, when they differ. */
enum status model_restore_check_teacher(const char *checkpoint, const struct restore_facts *facts, const char *path,
                                        uint64_t hash);

/* Fills every owned row of `model` (model_student with the same rules and patterns, or model_new) from the checkpoint;
 * with `moments` m and v too. STATUS_USAGE names the row that the checkpoint lacks or has in another shape, or the
 * first row that it has beyond the model's: a student of another recipe. Nothing was changed then. */
enum status model_restore(struct checkpoint *checkpoint, const char *path, struct model *model, bool moments);

/* Saves the owned rows with moments: with ZeRO every rank what it keeps up to date, else an equal share. attributes are
 * added to those above. */
enum status model_save(struct comm *comm, const char *run_directory, int64_t step, const struct model *model,
                       const struct restore_facts *facts, const struct checkpoint_attribute *attributes,
                       size_t attribute_count);

#endif
