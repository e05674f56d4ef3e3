/* MODEL of the command line, opened: what eval, generate, logits, export and inspect run. MODEL is one of
 *   a Hugging Face directory            config.json + safetensors: a model by itself (all layers `full`);
 *   one with squint.json                a student that squint exported: its kinds and their rows come along;
 *   a checkpoint (step-00000500)        the student (or from-scratch model) as trained, and its teacher;
 *   a run directory                     its newest checkpoint that verifies, else its model/.
 * Knows files and models; not tokenizers (it only says where the tokenizer lies). */
#ifndef SQUINT_EVAL_LOADED_MODEL_H
#define SQUINT_EVAL_LOADED_MODEL_H

#include "comm/comm.h"
#include "config/config.h"
#include "model/model.h"

enum loaded_source { LOADED_DIRECTORY = 0, LOADED_EXPORTED, LOADED_CHECKPOINT };

struct loaded_options {
    struct comm *comm;               /* every rank of it opens the same MODEL; NULL: this process alone */
    const char *teacher;             /* a Hugging Face directory in place of the recorded one; NULL: the recorded one */
    bool bf16;                       /* gemms may round their inputs to bf16 */
    enum positions_beyond positions; /* of learned positions; REFUSE: as a checkpoint's run chose */
    int64_t length; /* learned positions are made to reach it, as `positions` says; 0: the model's own */
};

struct loaded_model {
    enum loaded_source source;
    char *path;                /* what was opened: of a run directory its step directory */
    struct model *model;       /* what MODEL is; its address stays */
    struct model *teacher;     /* full attention; NULL: none recorded or asked for */
    struct model *base;        /* whose values `model` shares: the teacher, or an exported student's own; NULL: none */
    char *teacher_path;        /* directory; NULL: none */
    char *tokenizer;           /* its directory: MODEL's own, the run's, or the teacher's; NULL: none found */
    char identity[17];         /* params_hash of the model as hexadecimal digits */
    char teacher_identity[17]; /* of the teacher; "" without one */
    bool is_student;           /* its kinds are other than all `full`, or it shares a teacher's values */
    struct config config;      /* of the run; config.text NULL where MODEL is no checkpoint */
    char stage[64];            /* of a checkpoint, else "" */
    int64_t step;              /* of a checkpoint, else -1 */
    const struct config_attention *rules; /* of the kinds, as model_student takes them; belongs to this struct */
    size_t rule_count;                    /* 0: all `full` */
    struct config_attention *owned_rules; /* an exported student's; NULL: the rules belong to config */
};

/* Opens `path` on `ops` (borrowed; closed after the model). options may be NULL. STATUS_NOT_FOUND or STATUS_USAGE says
 * what `path` would have to be; STATUS_DAMAGED what is wrong in it; a teacher whose hash differs from the recorded one
 * is STATUS_USAGE and names both. */
enum status loaded_model_open(const struct ops *ops, const char *path, const struct loaded_options *options,
                              struct loaded_model *loaded);
void loaded_model_close(struct loaded_model *loaded); /* NULL-safe, twice-safe */

#endif
