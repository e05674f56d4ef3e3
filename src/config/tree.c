/* See tree.h. The only caller of libyaml. */
#include "config/tree.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { DEPTH_MAX = 16, NODES_MAX = 100000 /* aliases of aliases multiply */ };

const char *config_node_what(const struct config_node *node) {
    switch (node->type) {
    case NODE_LIST:
        return "a list";
    case NODE_MAP:
        return "a map";
    default:
        return "text";
    }
}

const struct config_node *config_node_find(const struct config_node *map, const char *key) {
    for (size_t i = 0; i < map->count; i++) {
        if (map->items[i].key && strcmp(map->items[i].key, key) == 0) return &map->items[i];
    }
    return NULL;
}

void config_tree_free(struct config_node *node) {
    if (!node) return;
    for (size_t i = 0; i < node->count; i++) config_tree_free(&node->items[i]);
    free(node->items);
    free(node->key);
    free(node->text);
    *node = (struct config_node){0};
}

struct reading {
    const char *path;
    yaml_document_t *document;
    int depth, nodes;
};

static enum status convert(struct reading *reading, int index, struct config_node *out);

static enum status append_item(struct config_node *parent, struct config_node **item) {
    TRY(memory_grow(&parent->items, parent->count + 1, sizeof *parent->items, "a recipe"));
    *item = &parent->items[parent->count++];
    **item = (struct config_node){0};
    return STATUS_OK;
}

static enum status convert_pair(struct reading *reading, const yaml_node_pair_t *pair, struct config_node *out) {
    const yaml_node_t *key = yaml_document_get_node(reading->document, pair->key);
    int line = (int)key->start_mark.line + 1;
    if (key->type != YAML_SCALAR_NODE) {
        return error_set(STATUS_USAGE, "%s:%d: a key must be one word, found %s", reading->path, line,
                         key->type == YAML_MAPPING_NODE ? "a map" : "a list");
    }
    const char *name = (const char *)key->data.scalar.value;
    const struct config_node *before = config_node_find(out, name);
    if (before) {
        return error_set(STATUS_USAGE, "%s:%d: the key \"%s\" stands twice, first in line %d", reading->path, line,
                         name, before->line);
    }
    struct config_node *item = NULL;
    TRY(append_item(out, &item));
    TRY(convert(reading, pair->value, item));
    item->line = line; /* the key's: where a person looks */
    return memory_copy_text(name, &item->key);
}

/* Fills *out, which stays valid (and is the caller's to free) on failure too. */
static enum status convert(struct reading *reading, int index, struct config_node *out) {
    const yaml_node_t *node = yaml_document_get_node(reading->document, index);
    *out = (struct config_node){.line = (int)node->start_mark.line + 1};
    if (++reading->depth > DEPTH_MAX || ++reading->nodes > NODES_MAX) {
        return error_set(STATUS_USAGE, "%s:%d: nested deeper than %d, or more than %d entries", reading->path,
                         out->line, DEPTH_MAX, NODES_MAX);
    }
    switch (node->type) {
    case YAML_SEQUENCE_NODE:
        out->type = NODE_LIST;
        for (const yaml_node_item_t *i = node->data.sequence.items.start; i < node->data.sequence.items.top; i++) {
            struct config_node *item = NULL;
            TRY(append_item(out, &item));
            TRY(convert(reading, *i, item));
        }
        break;
    case YAML_MAPPING_NODE:
        out->type = NODE_MAP;
        for (const yaml_node_pair_t *i = node->data.mapping.pairs.start; i < node->data.mapping.pairs.top; i++) {
            TRY(convert_pair(reading, i, out));
        }
        break;
    default:
        out->quoted = node->data.scalar.style == YAML_SINGLE_QUOTED_SCALAR_STYLE ||
                      node->data.scalar.style == YAML_DOUBLE_QUOTED_SCALAR_STYLE;
        if (strlen((const char *)node->data.scalar.value) != node->data.scalar.length) {
            return error_set(STATUS_USAGE, "%s:%d: a zero byte inside a text", reading->path, out->line);
        }
        TRY(memory_copy_text((const char *)node->data.scalar.value, &out->text));
    }
    reading->depth--;
    return STATUS_OK;
}

static enum status parser_error(const char *path, const yaml_parser_t *parser) {
    if (parser->error == YAML_MEMORY_ERROR) return error_set(STATUS_MEMORY, "no memory for %s", path);
    int line = (int)parser->problem_mark.line + 1;
    if (parser->error == YAML_READER_ERROR) {
        return error_set(STATUS_USAGE, "%s: byte %zu: %s", path, parser->problem_offset, parser->problem);
    }
    return error_set(STATUS_USAGE, "%s:%d: not YAML: %s%s%s", path, line, parser->context ? parser->context : "",
                     parser->context ? ", " : "", parser->problem ? parser->problem : "unknown fault");
}

enum status config_tree_parse(const char *path, const char *text, size_t length, struct config_node *root) {
    enum status status = STATUS_OK;
    yaml_parser_t parser;
    yaml_document_t document = {0}, second = {0};
    bool loaded = false;
    *root = (struct config_node){.type = NODE_MAP};
    if (!yaml_parser_initialize(&parser)) return error_set(STATUS_MEMORY, "no memory for %s", path);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
    if (!yaml_parser_load(&parser, &document)) {
        status = parser_error(path, &parser);
        goto done;
    }
    loaded = true;
    if (yaml_document_get_root_node(&document)) {
        if (!yaml_parser_load(&parser, &second)) {
            status = parser_error(path, &parser);
            goto done;
        }
        const yaml_node_t *more = yaml_document_get_root_node(&second);
        if (more) {
            status = error_set(STATUS_USAGE, "%s:%d: a second YAML document; expected one", path,
                               (int)more->start_mark.line + 1);
        }
        yaml_document_delete(&second);
        if (status == STATUS_OK) status = convert(&(struct reading){.path = path, .document = &document}, 1, root);
    }
done:
    if (loaded) yaml_document_delete(&document);
    yaml_parser_delete(&parser);
    if (status != STATUS_OK) config_tree_free(root);
    return status;
}

static void mark_from(struct config_node *node, const char *word) {
    node->line = 0;
    node->from = word;
    for (size_t i = 0; i < node->count; i++) mark_from(&node->items[i], word);
}

static enum status set_value(struct config_node *node, const char *word, const char *value) {
    char *key = node->key;
    node->key = NULL;
    config_tree_free(node);
    enum status status = value[0] == '[' || value[0] == '{' ? config_tree_parse(word, value, strlen(value), node)
                                                            : memory_copy_text(value, &node->text);
    node->key = key;
    mark_from(node, word);
    return status;
}

static void remove_item(struct config_node *parent, struct config_node *item) {
    size_t index = (size_t)(item - parent->items);
    config_tree_free(item);
    memmove(item, item + 1, (parent->count - index - 1) * sizeof *item);
    parent->count--;
}

static struct config_node *find_in_list(struct config_node *list, const char *part) {
    char *end = NULL;
    unsigned long index = strtoul(part, &end, 10);
    if (*end == '\0' && part[0] >= '0' && part[0] <= '9') return index < list->count ? &list->items[index] : NULL;
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].type != NODE_MAP) continue;
        const struct config_node *name = config_node_find(&list->items[i], "name");
        if (name && name->text && strcmp(name->text, part) == 0) return &list->items[i];
    }
    return NULL;
}

/* The child that `part` names; a map's is made when it is not there. */
static enum status descend(struct config_node *node, const char *word, const char *part, struct config_node **child) {
    if (node->type == NODE_LIST) {
        *child = find_in_list(node, part);
        if (*child) return STATUS_OK;
        return error_set(STATUS_USAGE,
                         "%s: no entry \"%s\" in the list of %zu; name one by its index from 0 or its name", word, part,
                         node->count);
    }
    if (node->type != NODE_MAP) {
        return error_set(STATUS_USAGE, "%s: \"%s\" would lie inside a text, expected a map", word, part);
    }
    *child = NULL;
    for (size_t i = 0; i < node->count; i++) {
        if (strcmp(node->items[i].key, part) == 0) *child = &node->items[i];
    }
    if (*child) return STATUS_OK;
    TRY(append_item(node, child));
    (*child)->type = NODE_MAP;
    mark_from(*child, word);
    return memory_copy_text(part, &(*child)->key);
}

static enum status walk(struct config_node *root, const char *word, char *path, const char *value) {
    struct config_node *parent = NULL, *node = root;
    char *rest = NULL;
    for (char *part = strtok_r(path, ".", &rest); part; part = strtok_r(NULL, ".", &rest)) {
        struct config_node *child = node;
        TRY(descend(node, word, part, &child));
        parent = node;
        node = child;
    }
    if (!parent) return error_set(STATUS_USAGE, "%s: expected --key=value", word);
    if (value[0] == '\0') {
        remove_item(parent, node);
        return STATUS_OK;
    }
    return set_value(node, word, value);
}

enum status config_tree_override(struct config_node *root, const char *word) {
    const char *start = strncmp(word, "--", 2) == 0 ? word + 2 : word;
    const char *equals = strchr(start, '=');
    if (!equals || equals == start) return error_set(STATUS_USAGE, "%s: expected --key=value", word);
    char *path = NULL;
    TRY(memory_format(&path, "%.*s", (int)(equals - start), start));
    enum status status = walk(root, word, path, equals + 1);
    free(path);
    return status;
}
