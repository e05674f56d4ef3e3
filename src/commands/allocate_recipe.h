/* An allocation as a recipe that trains. */
#ifndef SQUINT_COMMANDS_ALLOCATE_RECIPE_H
#define SQUINT_COMMANDS_ALLOCATE_RECIPE_H

#include "commands/command.h"
#include "eval/allocate.h"

struct allocate_recipe {
    const char *command;                     /* as it was called, for the comment */
    const char *run, *teacher;               /* of the recipe */
    const char *const *train, *const *valid; /* patterns of shards */
    size_t train_count, valid_count;
    bool same_data;            /* train is valid: no other shards are known */
    const char *precision;     /* NULL: the recipe's default */
    const char *positions;     /* NULL: the recipe's default */
    int64_t length;            /* T of the stages */
    const struct model *model; /* the teacher, opened */
    const struct allocate_options *options;
    const struct allocation *allocation;
};

/* *text = the whole file, read back once as config_parse reads it (`path` is for its messages). Release with free(). */
enum status allocate_recipe_write(const struct allocate_recipe *recipe, const char *path, char **text);

#endif
