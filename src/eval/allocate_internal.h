/* What the files of allocate share: the candidates, what was measured of them, and students as codes. */
#ifndef SQUINT_EVAL_ALLOCATE_INTERNAL_H
#define SQUINT_EVAL_ALLOCATE_INTERNAL_H

#include "base/log.h"
#include "eval/allocate.h"
#include "eval/allocate_forms.h"
#include "eval/allocate_search.h"

/* A student is `code_width` numbers a layer: a form, then one rung a head (0 where the form has none). The form is the
 * number of a candidate, or candidate_count + the number of a family, or FORM_FULL. Equal students have equal codes
 * (code_settle). */
#define FORM_FULL SIZE_MAX

/* Something that a layer may be. */
struct layer_option {
    size_t *code;       /* [code_width] */
    double density, kl; /* of the layer alone; kl NaN: not measured */
};
struct layer_pool { /* by rising density */
    struct layer_option *options;
    size_t count;
};

struct allocator {
    const struct model *teacher;
    const struct allocate_options *options;
    struct comm *comm;
    struct windows search, check;        /* views of the caller's windows; own lists */
    struct config_attention *candidates; /* without `full`; copies of the caller's structs, texts borrowed */
    size_t candidate_count;
    bool full; /* is a candidate */
    struct family *families;
    size_t family_count;
    int64_t layers, heads;
    size_t code_width, student_width; /* 1 + H; L times that */
    double *densities;                /* [candidates] of a layer */
    double *uniform_kl;               /* [candidates] */
    double *alone_kl;                 /* [L,candidates] */
    double **head_kl;                 /* [families] of [L,H,rungs] */
    struct layer_pool *pools;         /* [L] */
    struct log_progress progress;
    int64_t done, total, measured;
    const char *detail; /* of the progress line */
};

/* --- allocate_measure.c --- */
/* kl, density: [count], of students codes [count, student_width], on `windows`. error: standard errors; NULL: not
 * wanted. */
enum status allocator_measure(struct allocator *a, const struct windows *windows, const size_t *codes, size_t count,
                              double *kl, double *error, double *density);
/* Steps 1: uniform, alone, by head. Fills the tables. */
enum status allocator_measure_tables(struct allocator *a);
/* Every candidate's density; checks that it exists and has one. */
enum status allocator_check_candidates(struct allocator *a);
void allocator_start_progress(struct allocator *a, const char *label, int64_t total);
void allocator_end_progress(struct allocator *a);

/* --- allocate_codes.c --- */
/* code: [student_width], every layer `full`. */
void code_fill_full(const struct allocator *a, size_t *code);
size_t *code_layer(const struct allocator *a, size_t *code, int64_t layer);
/* The layer's form and rungs as their simplest equal: all heads at one size are that candidate. */
void code_settle(const struct allocator *a, size_t *layer_code);
/* The family that the layer's heads have sizes of, written out head by head; SIZE_MAX, unchanged: of none. */
size_t code_divide(const struct allocator *a, size_t *layer_code);
bool code_in_form(const struct allocator *a,
                  const size_t *layer_code);                     /* no more different sizes than the form takes */
void code_reduce(const struct allocator *a, size_t *layer_code); /* makes it so, by smaller sizes */
double code_density(const struct allocator *a, const size_t *layer_code);
double family_density(const struct allocator *a, const struct family *family, size_t rung);
/* *sizes: [H] of the layer's heads; NULL: they have none of their own. Release with free(). */
enum status code_sizes(const struct allocator *a, const size_t *layer_code, int64_t **sizes);
/* *out: the layer's rule, to be released with rule_free; of `full` a rule without kind. */
enum status code_rule(const struct allocator *a, const size_t *layer_code, int64_t layer, struct config_attention *out);

/* --- allocate_pool.c --- */
/* Adds what is not there. */
enum status pool_add(const struct allocator *a, struct layer_pool *pool, const size_t *layer_code, double density,
                     double kl);
/* Step 1's results, and mixtures by head at several densities, become the layers' pools; what is neither lighter nor
 * better is dropped. */
enum status allocator_make_pools(struct allocator *a);
void pools_free(struct layer_pool *pools, int64_t count);
/* The best choice by heads of one family under the additive model: code [student_width]. STATUS_NOT_FOUND as
 * search_choose. */
enum status allocator_choose_heads(const struct allocator *a, size_t family, bool by_density, double budget,
                                   size_t *code);
/* The same by layers, from the pools. */
enum status allocator_choose_layers(const struct allocator *a, double budget, size_t *code);

/* --- allocate_improve.c --- */
/* Steps 2 and 3: the best student found, code [student_width] and its figures. */
enum status allocator_start(struct allocator *a, size_t *code, struct search_measured *at);
enum status allocator_improve(struct allocator *a, size_t *code, struct search_measured *at);
struct search_measured allocator_weigh(const struct allocator *a, double density, double kl);

#endif
