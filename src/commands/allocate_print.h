/* How an allocation is shown: tables and bars for people, JSON for programs. */
#ifndef SQUINT_COMMANDS_ALLOCATE_PRINT_H
#define SQUINT_COMMANDS_ALLOCATE_PRINT_H

#include "eval/allocate.h"

#include <stdio.h>

struct allocate_results {
    const char *teacher;
    const struct allocate_options *options;
    const struct allocation *allocation;
    const char *recipe; /* its text */
    int64_t heads, length;
};

/* STATUS_MEMORY. */
enum status allocate_print(FILE *stream, const struct allocate_results *results);
/* *text: to be released with free(). Figures that are not finite are null. STATUS_MEMORY. */
enum status allocate_json(const struct allocate_results *results, char **text);

#endif
