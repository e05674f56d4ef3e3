/* Which kind of attention, and how large, every layer gets (and every head, where a kind gives its heads sizes of their
 * own) under one budget for the whole student: of density, or of KL(teacher‖student). Students are untrained; knows
 * nothing of recipes or commands.
 *
 *  1. uniform: every candidate in all layers; alone: every candidate in one layer, the others `full`; one head of a
 * layer at a size, the other heads and layers reading everything.
 *  2. start: the best choice if divergences simply added up (allocate_search.h), by layers and by heads; the best of
 * these and of the uniform students, as measured whole, goes on.
 *  3. improve: moves of heads, then of layers, measured on the whole student, until none gains. */
#ifndef SQUINT_EVAL_ALLOCATE_H
#define SQUINT_EVAL_ALLOCATE_H

#include "comm/comm.h"
#include "eval/evaluate.h"

#define ALLOCATE_EVERYTHING INT64_MAX

struct allocate_options {
    bool by_density;     /* budget: of density, the least KL is sought; else of KL, the least density is sought */
    double budget;       /* above 0 */
    bool per_head;       /* heads of a kind that allows it get sizes of their own */
    int64_t evaluations; /* of step 3: students measured, at most */
    int64_t batch;       /* sequences in a forward pass; 0: 4 */
    uint64_t seed;       /* of what students' kinds draw */
    const char *where;   /* names the candidates in messages ("--kinds") */
};

struct allocate_figures {
    double density;
    double kl;                    /* on the windows of the search */
    double check_kl, check_error; /* on windows apart, with its standard error; NaN: there are none */
};

struct allocate_layer {
    struct config_attention rule; /* layers: this one; belongs to the allocation. kind NULL: left `full` */
    int64_t *sizes;     /* [H] where heads have sizes of their own (ALLOCATE_EVERYTHING: no limit); else NULL */
    double density, kl; /* of this layer alone: KL with all others `full` */
};

struct allocate_uniform {
    char *text; /* "masks:candidates=window(16)" */
    struct allocate_figures figures;
    bool within; /* the budget; only then check_kl is measured */
};

struct allocation {
    struct allocate_layer *layers; /* [L] */
    int64_t layer_count;
    struct allocate_uniform *uniforms; /* in the candidates' order, `full` left out */
    size_t uniform_count;
    int64_t best_uniform; /* within the budget; -1: none is */
    struct allocate_figures figures;
    double predicted_kl; /* the sum of the layers' own */
    int64_t evaluations; /* students measured in all */
    int64_t search_windows, check_windows;
};

/* The candidates that are tried when none are named, as `--kinds` writes them (commands/bench_kinds.h): the built-in
 * table at sizes up to `length` tokens for a teacher whose heads are `head_width` wide and, where budget > 0, the
 * widest window whose density is within it. *text: release with free(). */
enum status allocate_builtin(int64_t length, int64_t head_width, double budget, char **text);

/* rules: the candidates, each for all layers. windows: the even ones are searched on, the odd ones kept apart for the
 * check. Every rank calls it and gets the same allocation, whatever their number. STATUS_USAGE, before anything is
 * measured: a candidate that does not exist or has no density, no candidate beside `full`, or none within the budget;
 * after step 2: no KL within the budget is found. */
enum status allocate_run(const struct model *teacher, const struct config_attention *rules, size_t rule_count,
                         const struct windows *windows, const struct allocate_options *options, struct comm *comm,
                         struct allocation *out);
void allocation_free(struct allocation *allocation); /* NULL-safe members, twice-safe */

#endif
