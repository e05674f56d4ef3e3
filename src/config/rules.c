/* student.attention: which layers have which kind, with the kind's own options kept as words. */
#include "base/memory.h"
#include "config/keys.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static enum status refuse_layers(const char *path, const struct config_node *node) {
    char place[256];
    config_node_place(path, node, place, sizeof place);
    return error_set(STATUS_USAGE,
                     "%s: student.attention.layers: expected all, a layer from 0, or FIRST-LAST, found %s%s%s", place,
                     node->type == NODE_SCALAR ? "\"" : config_node_what(node),
                     node->type == NODE_SCALAR ? node->text : "", node->type == NODE_SCALAR ? "\"" : "");
}

/* "all", "3", "3-5" or "3-" (to the last). */
static enum status read_layers(const char *path, const struct config_node *node, struct config_attention *rule) {
    if (node->type != NODE_SCALAR) return refuse_layers(path, node);
    rule->first = 0;
    rule->last = -1;
    if (strcmp(node->text, "all") == 0) return STATUS_OK;
    char *end = NULL;
    const char *text = node->text;
    if (text[0] < '0' || text[0] > '9') return refuse_layers(path, node);
    errno = 0;
    rule->first = rule->last = strtoll(text, &end, 10);
    if (*end == '-' && end[1] == '\0') {
        rule->last = -1;
    } else if (*end == '-' && end[1] >= '0' && end[1] <= '9') {
        rule->last = strtoll(end + 1, &end, 10);
        if (*end != '\0' || rule->last < rule->first) return refuse_layers(path, node);
    } else if (*end != '\0') {
        return refuse_layers(path, node);
    }
    return errno == 0 && rule->first < 100000 && rule->last < 100000 ? STATUS_OK : refuse_layers(path, node);
}

static int open_parentheses(const char *word) {
    int open = 0;
    for (; *word; word++) open += (*word == '(') - (*word == ')');
    return open;
}

static enum status add_word(struct config_option *option, const char *word) {
    /* A list in YAML ends a word at every comma: "dilated(16, 4)" comes as two, which are one again here. */
    if (option->count > 0 && open_parentheses(option->words[option->count - 1]) > 0) {
        char **last = &option->words[option->count - 1], *joined = NULL;
        TRY(memory_format(&joined, "%s,%s", *last, word));
        free(*last);
        *last = joined;
        return STATUS_OK;
    }
    TRY(memory_grow(&option->words, option->count + 1, sizeof *option->words, "a kind's option"));
    TRY(memory_copy_text(word, &option->words[option->count]));
    option->count++;
    return STATUS_OK;
}

static enum status read_option(const char *path, const struct config_node *node, struct config_attention *rule) {
    char place[256];
    config_node_place(path, node, place, sizeof place);
    TRY(memory_grow(&rule->options, rule->option_count + 1, sizeof *rule->options, "a kind's options"));
    struct config_option *option = &rule->options[rule->option_count++];
    *option = (struct config_option){.line = node->line};
    TRY(memory_copy_text(node->key, &option->key));
    if (node->type == NODE_MAP || (node->type == NODE_LIST && node->count == 0)) {
        return error_set(STATUS_USAGE, "%s: student.attention.%s: expected a text, a number or a list, found %s", place,
                         node->key, node->type == NODE_MAP ? "a map" : "an empty list");
    }
    for (size_t i = 0; i < (node->type == NODE_LIST ? node->count : 1); i++) {
        const struct config_node *item = node->type == NODE_LIST ? &node->items[i] : node;
        if (item->type != NODE_SCALAR || item->text[0] == '\0') {
            return error_set(STATUS_USAGE, "%s: student.attention.%s: expected a text or a number, found %s", place,
                             node->key, item->type == NODE_SCALAR ? "nothing" : config_node_what(item));
        }
        TRY(add_word(option, item->text));
    }
    return STATUS_OK;
}

static enum status read_rule(const char *path, const struct config_node *node, struct config_attention *rule) {
    char place[256];
    config_node_place(path, node, place, sizeof place);
    if (node->type != NODE_MAP) {
        return error_set(STATUS_USAGE,
                         "%s: student.attention: expected a map such as {layers: all, kind: masks}, found %s", place,
                         config_node_what(node));
    }
    rule->line = node->line;
    rule->last = -1;
    const struct config_node *kind = config_node_find(node, "kind");
    if (!kind || kind->type != NODE_SCALAR || kind->text[0] == '\0') {
        return error_set(STATUS_USAGE, "%s: student.attention: the key kind is missing or no word", place);
    }
    TRY(memory_copy_text(kind->text, &rule->kind));
    for (size_t i = 0; i < node->count; i++) {
        const struct config_node *item = &node->items[i];
        if (strcmp(item->key, "layers") == 0) {
            TRY(read_layers(path, item, rule));
        } else if (strcmp(item->key, "kind") != 0) {
            TRY(read_option(path, item, rule));
        }
    }
    return STATUS_OK;
}

enum status config_attention_read(const char *path, const struct config_node *list, struct config *config) {
    char place[256];
    config_node_place(path, list, place, sizeof place);
    if (list->type != NODE_LIST || list->count == 0) {
        return error_set(STATUS_USAGE, "%s: student.attention: expected a list of {layers: …, kind: …}, found %s",
                         place, list->type == NODE_LIST ? "an empty one" : config_node_what(list));
    }
    TRY(memory_new(list->count, sizeof *config->attention, "student.attention", &config->attention));
    config->attention_count = list->count;
    for (size_t i = 0; i < list->count; i++) TRY(read_rule(path, &list->items[i], &config->attention[i]));
    return STATUS_OK;
}

void config_attention_free(struct config *config) {
    for (size_t i = 0; i < config->attention_count; i++) {
        struct config_attention *rule = &config->attention[i];
        for (size_t o = 0; o < rule->option_count; o++) {
            for (size_t w = 0; w < rule->options[o].count; w++) free(rule->options[o].words[w]);
            free(rule->options[o].words);
            free(rule->options[o].key);
        }
        free(rule->options);
        free(rule->kind);
    }
    free(config->attention);
    config->attention = NULL;
    config->attention_count = 0;
}
