/* What a command is, and how its options are read. One file a command: options -> library calls -> status. */
#ifndef SQUINT_COMMANDS_COMMAND_H
#define SQUINT_COMMANDS_COMMAND_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct command {
    const char *name;
    const char *summary; /* one line in `squint --help` */
    const char *help;    /* usage, options, one example */
    /* argv[0] is the command's name. The status becomes the exit code; main prints the message. */
    enum status (*run)(int argc, char **argv);
};

enum option_type { OPTION_FLAG, OPTION_TEXT, OPTION_INTEGER, OPTION_REAL, OPTION_LIST };

struct option_list { /* values of an option that may be given more than once, or takes several words */
    const char **values;
    size_t count;
};

struct option {
    const char *name; /* without dashes; "--name VALUE" and "--name=VALUE" both work */
    enum option_type type;
    void *target; /* bool, const char *, int64_t, double, struct option_list: keeps its value when not given */
    double minimum, maximum; /* of numbers; both 0: no limits */
};

/* Reads options into their targets and collects the other words in `words` (argv order). An OPTION_LIST takes every word
 * up to the next option. "--" ends the options. STATUS_USAGE names the unknown option (with the nearest known one), the
 * missing value, or what was expected of a number. ("--help" never arrives here: main answers it.)
 * `unknown`: when not NULL, collects "--a.b=c" words (config overrides) instead of refusing them. */
enum status options_read(int argc, char **argv, const struct option *options, size_t option_count,
                         struct option_list *words, struct option_list *unknown);
/* The words of option `name` as whole numbers from 1 to `most`, at most `capacity` of them. Without any, values and *count stay.
 * STATUS_USAGE names `command`, the option and what was found. */
enum status options_numbers(const char *command, const char *name, const struct option_list *words, int64_t most, int capacity,
                            int64_t *values, int *count);
void options_free(struct option_list *list); /* frees the array, not the words */

/* The commands, in the order of `squint --help`; ends with a row whose name is NULL. */
extern const struct command *const command_table[];

#endif
