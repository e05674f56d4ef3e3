/* The commands' declarations, one line a file of this folder. */
#ifndef SQUINT_COMMANDS_COMMANDS_H
#define SQUINT_COMMANDS_COMMANDS_H

#include "commands/command.h"

extern const struct command command_corpus;
extern const struct command command_doctor;
extern const struct command command_plan;
extern const struct command command_prep;
extern const struct command command_tokenizer;
extern const struct command command_allocate;
extern const struct command command_bench;
extern const struct command command_eval;
extern const struct command command_export;
extern const struct command command_generate;
extern const struct command command_inspect;
extern const struct command command_logits;
extern const struct command command_train;

#endif
