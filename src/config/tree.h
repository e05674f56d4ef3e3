/* A YAML document as a tree of words, each with its line, and the command line's changes to it. Knows no key. */
#ifndef SQUINT_CONFIG_TREE_H
#define SQUINT_CONFIG_TREE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

enum config_node_type { NODE_SCALAR = 0, NODE_LIST, NODE_MAP };

struct config_node {
    enum config_node_type type;
    char *key;  /* of a map's entry; NULL otherwise */
    char *text; /* of a scalar */
    bool quoted;
    int line;         /* of the recipe; 0: from the command line */
    const char *from; /* the word of the command line that set it, borrowed; NULL: the recipe */
    struct config_node *items;
    size_t count;
};

/* The one document in `text`. STATUS_USAGE names `path`, line and what is wrong: not YAML, a key twice, a key that is
 * no word, several documents, nested too deep. */
enum status config_tree_parse(const char *path, const char *text, size_t length, struct config_node *root);
/* "--a.b=value": sets, or with an empty value removes, what the path names. A list's entry is named by its index or by
 * its `name`. A value that starts with [ or { is YAML, any other is one word as it is. `word` must outlive the tree. */
enum status config_tree_override(struct config_node *root, const char *word);
void config_tree_free(struct config_node *node); /* NULL-safe, twice-safe */

const char *config_node_what(const struct config_node *node); /* "a list", "a map", "text" */
/* NULL: not there. */
const struct config_node *config_node_find(const struct config_node *map, const char *key);

#endif
