/* The table of a recipe's keys: one row a key drives reading, checking, overriding, the resolved text and the
 * reference. */
#ifndef SQUINT_CONFIG_KEYS_H
#define SQUINT_CONFIG_KEYS_H

#include "config/config.h"
#include "config/tree.h"

enum key_type { KEY_TEXT = 0, KEY_TEXTS, KEY_INTEGER, KEY_SEED, KEY_REAL, KEY_BOOL, KEY_NAME };

struct config_key {
    const char *section; /* "", "data", "from_scratch", "stages" (of each entry), "train", … */
    const char *name;
    enum key_type type;
    size_t offset;        /* of the value in struct config; of a stage's in struct config_stage */
    size_t count_offset;  /* KEY_TEXTS: of its size_t */
    const char *fallback; /* as in a recipe; NULL: none; "-1": config_resolve finds it out from others */
    bool required;
    double minimum, maximum; /* of numbers */
    bool above;              /* the minimum itself is excluded */
    const char *names;       /* KEY_NAME: "a|b|c", value = index; KEY_BOOL: false's and true's; KEY_INTEGER: a word that
                                stands for 0 */
    const char *help;
};

extern const struct config_key config_keys[];
extern const size_t config_key_count;

/* Where `key` keeps its value inside `base` (a struct config or a struct config_stage). */
static inline void *config_key_place(const struct config_key *key, void *base) {
    return (char *)base + key->offset;
}

/* A place in a recipe, for messages: "recipe.yaml:12" or "--train.clip=x". */
void config_node_place(const char *path, const struct config_node *node, char *text, size_t capacity);
/* Reads `node` into its place under `base`; STATUS_USAGE names place, key, allowed, found. */
enum status config_key_read(const struct config_key *key, const char *path, const char *label,
                            const struct config_node *node, void *base);
/* Every key of `section` from `map` (NULL: all by default); refuses unknown keys, but for those named in `others`
 * (NULL-ended or NULL). */
enum status config_section_read(const char *section, const char *label, const char *path, const struct config_node *map,
                                const char *const *others, void *base);
/* Frees the texts of a section under `base`. */
void config_section_free(const char *section, void *base);
/* What a key allows, e.g. "an integer from 1 to 64 or auto". */
void config_key_allowed(const struct config_key *key, char *text, size_t capacity);

/* student.attention: the rules of the kinds. */
enum status config_attention_read(const char *path, const struct config_node *list, struct config *config);
void config_attention_free(struct config *config);

/* Values that follow from others, then the combinations that cannot be. */
enum status config_resolve(struct config *config);
enum status config_check(const struct config *config);

#endif
