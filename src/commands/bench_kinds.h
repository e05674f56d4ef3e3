/* Kinds and their options from a command line: "full,masks,kerformer:map=exp:window=0". */
#ifndef SQUINT_COMMANDS_BENCH_KINDS_H
#define SQUINT_COMMANDS_BENCH_KINDS_H

#include "config/config.h"

enum { BENCH_KINDS_MAX = 128 };

struct bench_kinds {
    struct config_attention rules[BENCH_KINDS_MAX];
    int count;
    char *text; /* what the rules point into */
};

/* Kinds are divided by commas, options begin with a colon, an option's words are divided by "+":
 * masks:candidates=window(256)+sinks(4):start=0.9+0.1. STATUS_USAGE names `command` and what is malformed; whether a
 * kind or an option exists is seen when a rule is used. Released with bench_kinds_free. */
enum status bench_kinds_read(const char *command, const char *text, struct bench_kinds *kinds);
void bench_kinds_free(struct bench_kinds *kinds); /* NULL-safe members */

#endif
