/* A text that a command is given: a file, mapped, or standard input, in memory. */
#ifndef SQUINT_COMMANDS_INPUT_H
#define SQUINT_COMMANDS_INPUT_H

#include "base/file.h"

struct input { /* starts as zeros; end with input_close */
    struct file_map map;
    char *read;
    const char *text;
    size_t length; /* bytes */
};

/* path NULL or "-": standard input. STATUS_NOT_FOUND, STATUS_IO or STATUS_MEMORY names it. */
enum status input_open(const char *path, struct input *input);
void input_close(struct input *input);

#endif
