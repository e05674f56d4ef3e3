/* What `train` and `plan` share: a recipe from the command line, opened under its launcher. */
#ifndef SQUINT_COMMANDS_WITH_RUN_H
#define SQUINT_COMMANDS_WITH_RUN_H

#include "commands/command.h"
#include "train/run.h"

struct with_run {
    struct config config;
    struct comm *comm, *gpu;
    const struct ops *ops;
    struct run run;
};

/* words: the recipe's path; overrides: "--a.b=c" words, which outlive `with`. On failure with_run_close is due all the
 * same. */
enum status with_run_open(const char *command, const struct option_list *words, const struct option_list *overrides,
                          struct with_run *with);
/* Closes everything; returns `status`. Who has its message: ranks.h. */
enum status with_run_close(struct with_run *with, enum status status);

#endif
