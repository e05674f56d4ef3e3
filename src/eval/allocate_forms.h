/* A candidate as text and copy, and the kinds whose heads may have sizes of their own. Knows no measurements. */
#ifndef SQUINT_EVAL_ALLOCATE_FORMS_H
#define SQUINT_EVAL_ALLOCATE_FORMS_H

#include "config/config.h"
#include "eval/allocate.h"

#include <stdbool.h>

/* A kind that takes one size for each head. A new one is a line in the table of allocate_forms.c. */
struct form {
    const char *kind;
    const char *key; /* of the option that holds the size */
    /* The one size that `rule` gives to all its heads; false: the rule is of another form. */
    bool (*read)(const struct config_attention *rule, int64_t *size);
    /* Writes into `rule` (a copy of the form's rule without `key`) what gives head h sizes[h]. */
    enum status (*write)(const int64_t *sizes, int64_t heads, struct config_attention *rule);
    size_t most; /* different sizes in one layer */
};

/* The candidates of one form that differ in nothing but their size. */
struct family {
    const struct form *form;
    const struct config_attention *base; /* one of its rules; borrowed */
    int64_t *sizes;                      /* rising; the last is ALLOCATE_EVERYTHING */
    size_t *candidates;                  /* number of the candidate of each size but the last */
    size_t count;
};

/* *families: all that have at least two sizes among `rules`, in the order of their first. Release with families_free.
 */
enum status families_find(const struct config_attention *rules, size_t count, struct family **families, size_t *found);
void families_free(struct family *families, size_t count); /* NULL-safe */
/* The rule that gives head h of layer `layer` size number rungs[h]. Release with rule_free. */
enum status family_rule(const struct family *family, const size_t *rungs, int64_t heads, int64_t layer,
                        struct config_attention *rule);

/* A copy of its own, for layer `layer` alone (-1: for the same layers). */
enum status rule_copy(const struct config_attention *rule, int64_t layer, struct config_attention *copy);
void rule_free(struct config_attention *rule); /* NULL-safe members */
/* As --kinds writes it: "masks:candidates=window(8)+sinks(4)". *text: release with free(). */
enum status rule_text(const struct config_attention *rule, char **text);

#endif
