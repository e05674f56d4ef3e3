/* How an evaluation's results are shown: a table for people, JSON for programs. */
#ifndef SQUINT_COMMANDS_EVAL_PRINT_H
#define SQUINT_COMMANDS_EVAL_PRINT_H

#include "commands/eval_recall.h"
#include "eval/ladder.h"
#include "eval/loaded_model.h"

#include <stdio.h>

struct eval_results {
    const struct loaded_model *loaded;
    const struct windows *windows;
    const struct evaluate_row *rows;
    const struct evaluate_figures *figures;
    size_t count;
    bool by_position;                     /* for people; JSON always has it */
    const struct ladder_rung *rungs;      /* [LADDER_RUNGS]; NULL: not climbed */
    const struct eval_recall *recall;     /* NULL: not asked for */
    const struct recall_figures *recalls; /* [count], with `recall` */
};

void eval_print(FILE *stream, const struct eval_results *results);
/* *text: to be released with free(). Figures that are not finite are null. */
enum status eval_json(const struct eval_results *results, char **text);

#endif
