/* The exactness ladder (docs/attention.md): what must hold of a model's attention whatever its parameters are. */
#ifndef SQUINT_EVAL_LADDER_H
#define SQUINT_EVAL_LADDER_H

#include "eval/windows.h"
#include "model/model.h"

enum { LADDER_RUNGS = 6 };
enum ladder_result { LADDER_PASS = 0, LADDER_FAIL, LADDER_NOT_MEASURED };

struct ladder_rung {
    const char *name;
    char measured[160]; /* in words */
    char bound[80];
    double value, limit; /* passes when value <= limit */
    enum ladder_result result;
};

struct ladder_subject {
    const struct model *model;
    const struct model *teacher;          /* rung 1; NULL: not measured */
    const struct config_attention *rules; /* of the model's kinds, rung 1 */
    size_t rule_count;
    const struct windows *windows; /* the texts that are used, of windows->options.length tokens each */
    uint64_t seed;
    bool untimed; /* without rung 6, which measures time */
};

/* Runs on this rank alone. A rung that fails is no failure of the function. */
enum status ladder_run(const struct ladder_subject *subject, struct ladder_rung rungs[LADDER_RUNGS]);

#endif
