/* Which form of a kernel serves which shape: measuring it, the file that keeps it, and its use. */
#ifndef SQUINT_EVAL_TUNING_H
#define SQUINT_EVAL_TUNING_H

#include "kernels/ops.h"

/* A file of lines, `kernel width length form`, after comments (#) and one line `device NAME`:
 *   device cuda: NVIDIA H200
 *   attention_keys 64 32768 1
 * It says what was fastest when somebody measured (squint bench tune); everything is right without it. */

enum { TUNING_NAME = 48 };
struct tuning_entry {
    char kernel[TUNING_NAME];
    int64_t width, length;
    int form;
};

/* Sets the forms that the file at `path` names on the table. A file for another device is told in the log and changes
 * nothing. STATUS_USAGE names file, line and fault (exit code 2, before any work); STATUS_NOT_FOUND: no such file. */
enum status tuning_load(const char *path, const struct ops *ops);
/* The file that the environment's SQUINT_TUNING names, if it names one; never for a deterministic table, whose bits
 * would change with a file. */
enum status tuning_apply(const struct ops *ops, const struct ops_options *options);
/* Writes such a file for the table's device, whole or not at all. */
enum status tuning_save(const char *path, const struct ops *ops, const struct tuning_entry *entries, int64_t count);

struct tuning_options {
    int64_t batch, heads;
    const int64_t *lengths, *widths;
    int length_count, width_count, rounds; /* rounds: of all forms by turns */
};
/* One kernel and shape: the median seconds of the pass that its time is part of, by form. */
enum { TUNING_FORMS = 8 };
struct tuning_row {
    struct tuning_entry best;
    int forms;
    double seconds[TUNING_FORMS];
};
/* *rows: every kernel of the table that has several forms, at every width and length; to be released with free(). The
 * best form is the first unless another takes at most 0.98 of its time. STATUS_USAGE: the table has no such kernel. */
enum status tuning_measure(const struct ops *ops, const struct tuning_options *options, struct tuning_row **rows,
                           int64_t *count);

#endif
