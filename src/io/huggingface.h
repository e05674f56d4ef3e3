/* Hugging Face directories: config.json and safetensors <-> struct model_config and struct params. Owns the names and
 * layouts that transformers gives to GPT-2 and Llama type models; knows nothing of kinds but their words in
 * squint.json.
 *
 * A student is written as transformers can load it: its full-attention weights (LoRA added in) in model.safetensors,
 * and what transformers has no place for beside them: squint.json (kinds by layer) and squint.safetensors (the rows
 * that kinds added, under squint's names). */
#ifndef SQUINT_IO_HUGGINGFACE_H
#define SQUINT_IO_HUGGINGFACE_H

#include "config/config.h"
#include "params/params.h"

/* Reads `directory`/config.json (model_type gpt2 or llama). positions_beyond is left POSITIONS_REFUSE.
 * STATUS_NOT_FOUND: no such file. STATUS_DAMAGED: a key is missing or has a wrong type or value, or is at odds with
 * another. STATUS_USAGE: a model that squint does not run (another type, activation, scaling of positions); each names
 * file, key, expected and found. */
enum status huggingface_read_config(const char *directory, struct model_config *model);

/* Fills every row of a model's own table (params_new, params_place) from the directory's safetensors: F32, F16, BF16 or
 * F64 -> the table's dtype, a few MiB at a time. Names with and without "transformer." or "model." are known; buffers
 * that old files hold (attn.bias, attn.masked_bias, rotary_emb.inv_freq) are skipped; a head beside tied embeddings
 * must equal them. STATUS_DAMAGED lists the tensors that are missing, surplus, misshapen or of another dtype (then no
 * row was changed), or names one that holds NaN or infinity. */
enum status huggingface_load(const char *directory, const struct model_config *model, struct params *params);

/* A student's kinds, from `directory`/squint.json, as model_student takes them; *count 0 when the file is not there.
 * STATUS_DAMAGED names what is wrong. Release with huggingface_free_rules. */
enum status huggingface_read_rules(const char *directory, struct config_attention **rules, size_t *count);
void huggingface_free_rules(struct config_attention *rules, size_t count); /* NULL-safe */
/* Fills the rows that kinds added (param.added) from `directory`/squint.safetensors. Same faults as huggingface_load.
 */
enum status huggingface_load_added(const char *directory, struct params *params);

struct huggingface_save {
    const struct model_config *model;
    const struct params *params;          /* a teacher's or a student's table */
    const struct config_attention *rules; /* the student's kinds; rule_count 0: all `full` */
    size_t rule_count;
    const char *tokenizer; /* directory whose tokenizer files are copied; NULL: none */
    const char *teacher;   /* hash of the teacher as text, for squint.json; NULL: none */
};
/* STATUS_USAGE unless `directory` does not exist or is empty: to be asked before long work. */
enum status huggingface_check_target(const char *directory);
/* Writes a directory that appears whole or not at all; huggingface_check_target says where. */
enum status huggingface_save(const char *directory, const struct huggingface_save *what);
/* *whole: every file that huggingface_save writes of a model that attends to everything is there; none is opened. */
enum status huggingface_is_whole(const char *directory, const char *tokenizer, bool *whole);

#endif
