/* squint inspect --attention: a page on which one sees what each layer reads in a text. */
#ifndef SQUINT_COMMANDS_INSPECT_ATTENTION_H
#define SQUINT_COMMANDS_INSPECT_ATTENTION_H

#include "commands/with_model.h"

struct inspect_attention {
    const char *text; /* as it is, "@FILE", or "-": standard input */
    const char *out, *tokenizer;
    struct model_options model;
    struct option_list layers; /* words as a recipe has them; none: all */
    int64_t length;            /* tokens at most; 0: not given */
    bool json;
};

/* The rows of an option table that fill it, but for `text` and `json`. */
#define INSPECT_ATTENTION_ROWS(o)                                                                                      \
    MODEL_OPTION_ROWS((o).model), {"teacher", OPTION_TEXT, &(o).model.teacher, 0, 0},                                  \
        {"out", OPTION_TEXT, &(o).out, 0, 0}, {"tokenizer", OPTION_TEXT, &(o).tokenizer, 0, 0},                        \
        {"layers", OPTION_LIST, &(o).layers, 0, 0}, {                                                                  \
        "length", OPTION_INTEGER, &(o).length, 1, 4096                                                                 \
    }

/* STATUS_USAGE names the option that is missing or wrong; the page is there as a whole or not at all. */
enum status inspect_attention_run(const struct inspect_attention *options);

#endif
