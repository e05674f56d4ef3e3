/* The kinds' declarations, one line a kind, and what their files share for reading a recipe's options. */
#ifndef SQUINT_ATTENTION_KINDS_H
#define SQUINT_ATTENTION_KINDS_H

#include "attention/attention.h"

extern const struct kind kind_full, kind_masks, kind_performer, kind_kerformer, kind_nsa, kind_indexer;

/* NULL when the recipe does not give `key`. */
const struct config_option *options_find(const struct config_attention *rule, const char *key);
/* STATUS_USAGE names an option that is not among `known` (`count` names). */
enum status options_check_known(const char *where, const struct config_attention *rule, const char *const *known,
                                size_t count);
/* "file:line: attention NAME: key: expected …, found …" with STATUS_USAGE. */
enum status options_wrong(const char *where, const struct config_attention *rule, const struct config_option *option,
                          const char *expected, const char *found);
/* *index of the option's one word among `names`; unchanged when the option is absent. */
enum status options_choice(const char *where, const struct config_attention *rule, const char *key,
                           const char *const *names, int count, int *index);
/* One word as a number. */
enum status options_number(const char *where, const struct config_attention *rule, const struct config_option *option,
                           const char *word, double minimum, double maximum, double *value);
/* *value of the option's one word, a whole number; unchanged when the option is absent. */
enum status options_count(const char *where, const struct config_attention *rule, const char *key, int64_t minimum,
                          int64_t maximum, int64_t *value);

#endif
