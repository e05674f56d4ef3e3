/* Reads one key, or one section's keys, by their rows of the table. */
#include "base/memory.h"
#include "base/text.h"
#include "config/keys.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECTION_KEYS_MAX = 32 };

void config_node_place(const char *path, const struct config_node *node, char *text, size_t capacity) {
    if (node && node->from) {
        snprintf(text, capacity, "%s", node->from);
    } else if (node && node->line > 0) { /* an empty file has no line */
        snprintf(text, capacity, "%s:%d", path, node->line);
    } else {
        snprintf(text, capacity, "%s", path);
    }
}

static void with_or(const char *names, char *text, size_t capacity) {
    size_t used = 0;
    for (const char *c = names; *c && used + 8 < capacity; c++) {
        if (*c != '|') {
            text[used++] = *c;
            continue;
        }
        const char *joint = strchr(c + 1, '|') ? ", " : " or ";
        used += (size_t)snprintf(text + used, capacity - used, "%s", joint);
    }
    text[used] = '\0';
}

void config_key_allowed(const struct config_key *key, char *text, size_t capacity) {
    char names[128] = {0};
    if (key->names) with_or(key->names, names, sizeof names);
    switch (key->type) {
    case KEY_TEXT:
        snprintf(text, capacity, "a text");
        break;
    case KEY_TEXTS:
        snprintf(text, capacity, "a text or a list of texts");
        break;
    case KEY_SEED:
        snprintf(text, capacity, "an integer from 0 to 18446744073709551615");
        break;
    case KEY_BOOL:
        snprintf(text, capacity, "%s", key->names ? names : "true or false");
        break;
    case KEY_NAME:
        snprintf(text, capacity, "%s", names);
        break;
    default:
        snprintf(text, capacity, "%s %s %.10g to %.10g%s%s", key->type == KEY_INTEGER ? "an integer" : "a number",
                 key->above ? "above" : "from", key->minimum, key->maximum, key->names ? ", or " : "", names);
    }
}

static enum status refuse(const struct config_key *key, const char *path, const char *label,
                          const struct config_node *node) {
    char place[256], allowed[256], found[80];
    config_node_place(path, node, place, sizeof place);
    config_key_allowed(key, allowed, sizeof allowed);
    if (node->type != NODE_SCALAR) {
        snprintf(found, sizeof found, "%s", config_node_what(node));
    } else if (node->text[0] == '\0') {
        snprintf(found, sizeof found, "nothing");
    } else {
        snprintf(found, sizeof found, "\"%.60s\"", node->text);
    }
    return error_set(STATUS_USAGE, "%s: %s: expected %s, found %s", place, label, allowed, found);
}

/* Index of `word` in "a|b|c"; −1: not there. */
static int name_index(const char *names, const char *word) {
    size_t length = strlen(word);
    int index = 0;
    for (const char *name = names; name; name = strchr(name, '|') ? strchr(name, '|') + 1 : NULL, index++) {
        if (strcspn(name, "|") == length && strncmp(name, word, length) == 0) return index;
    }
    return -1;
}

static bool in_range(const struct config_key *key, double value) {
    return isfinite(value) && value <= key->maximum && (key->above ? value > key->minimum : value >= key->minimum);
}

/* Numbers and names, once the word is known; false: the word is none of what the key allows. `checked` false: a
 * fallback. */
static bool read_word(const struct config_key *key, const char *word, bool checked, void *place) {
    char *end = NULL;
    errno = 0;
    switch (key->type) {
    case KEY_INTEGER: {
        bool named = key->names && strcmp(word, key->names) == 0;
        long long value = named ? 0 : strtoll(word, &end, 10);
        if (!named && (end == word || *end != '\0' || errno != 0)) return false;
        if (!named && checked && !in_range(key, (double)value)) return false;
        *(int64_t *)place = value;
        return true;
    }
    case KEY_SEED: {
        unsigned long long value = strtoull(word, &end, 10);
        if (word[0] < '0' || word[0] > '9' || *end != '\0' || errno != 0) return false;
        *(uint64_t *)place = value;
        return true;
    }
    case KEY_REAL: {
        double value = strtod(word, &end);
        if (end == word || *end != '\0' || !isfinite(value) || (checked && !in_range(key, value))) return false;
        *(double *)place = value;
        return true;
    }
    case KEY_BOOL: {
        int index = name_index(key->names ? key->names : "false|true", word);
        if (index >= 0) *(bool *)place = index == 1;
        return index >= 0;
    }
    case KEY_NAME: {
        int index = name_index(key->names, word);
        if (index >= 0) memcpy(place, &index, sizeof index); /* an enum */
        return index >= 0;
    }
    default:
        return false;
    }
}

static enum status read_texts(const struct config_key *key, const char *path, const char *label,
                              const struct config_node *node, void *base) {
    char ***texts = config_key_place(key, base);
    size_t *count = (size_t *)(void *)((char *)base + key->count_offset);
    size_t wanted = node->type == NODE_LIST ? node->count : 1;
    if (node->type == NODE_MAP || wanted == 0) return refuse(key, path, label, node);
    TRY(memory_new(wanted, sizeof **texts, label, texts));
    for (size_t i = 0; i < wanted; i++) {
        const struct config_node *item = node->type == NODE_LIST ? &node->items[i] : node;
        if (item->type != NODE_SCALAR || item->text[0] == '\0') return refuse(key, path, label, item);
        TRY(memory_copy_text(item->text, &(*texts)[i]));
        *count = i + 1;
    }
    return STATUS_OK;
}

enum status config_key_read(const struct config_key *key, const char *path, const char *label,
                            const struct config_node *node, void *base) {
    void *place = config_key_place(key, base);
    if (key->type == KEY_TEXTS) return read_texts(key, path, label, node, base);
    if (node->type != NODE_SCALAR || node->text[0] == '\0') return refuse(key, path, label, node);
    if (key->type == KEY_TEXT) return memory_copy_text(node->text, (char **)place);
    return read_word(key, node->text, true, place) ? STATUS_OK : refuse(key, path, label, node);
}

/* `out` [SECTION_KEYS_MAX]: the names that `section` knows. */
static size_t section_names(const char *section, const char *const *others, const char **out) {
    size_t count = 0;
    for (size_t i = 0; i < config_key_count && count < SECTION_KEYS_MAX; i++) {
        if (strcmp(config_keys[i].section, section) == 0) out[count++] = config_keys[i].name;
    }
    for (; others && *others && count < SECTION_KEYS_MAX; others++) out[count++] = *others;
    return count;
}

static enum status refuse_unknown(const char *path, const char *label, const struct config_node *node,
                                  const char *const *names, size_t count) {
    char place[256], known[512] = {0};
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], node->key) == 0) return STATUS_OK;
    }
    config_node_place(path, node, place, sizeof place);
    size_t used = 0;
    for (size_t i = 0; i < count && used < sizeof known; i++) {
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names[i]);
    }
    const char *nearest = text_nearest(node->key, names, count);
    return error_set(STATUS_USAGE, "%s: unknown key %s%s%.60s%s%s%s; known: %s", place, label, label[0] ? "." : "",
                     node->key, nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "", known);
}

enum status config_section_read(const char *section, const char *label, const char *path, const struct config_node *map,
                                const char *const *others, void *base) {
    char place[256], full[128];
    const char *names[SECTION_KEYS_MAX];
    config_node_place(path, map, place, sizeof place);
    if (map && map->type != NODE_MAP) {
        return error_set(STATUS_USAGE, "%s: %s: expected a map of keys, found %s", place, label, config_node_what(map));
    }
    size_t count = section_names(section, others, names);
    for (size_t i = 0; map && i < map->count; i++) TRY(refuse_unknown(path, label, &map->items[i], names, count));
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        if (strcmp(key->section, section) != 0) continue;
        snprintf(full, sizeof full, "%s%s%s", label, label[0] ? "." : "", key->name);
        const struct config_node *node = map ? config_node_find(map, key->name) : NULL;
        if (node) {
            TRY(config_key_read(key, path, full, node, base));
        } else if (key->required) {
            char allowed[256];
            config_key_allowed(key, allowed, sizeof allowed);
            return error_set(STATUS_USAGE, "%s: the key %s is missing; expected %s", place, full, allowed);
        } else if (key->fallback && key->type == KEY_TEXT) {
            TRY(memory_copy_text(key->fallback, (char **)config_key_place(key, base)));
        } else if (key->fallback && !read_word(key, key->fallback, false, config_key_place(key, base))) {
            return error_set(STATUS_FAILED, "%s: the table's fallback \"%s\" does not read", full, key->fallback);
        }
    }
    return STATUS_OK;
}

void config_section_free(const char *section, void *base) {
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        if (strcmp(key->section, section) != 0) continue;
        if (key->type == KEY_TEXT) {
            char **text = config_key_place(key, base);
            free(*text);
            *text = NULL;
        } else if (key->type == KEY_TEXTS) {
            char ***texts = config_key_place(key, base);
            size_t *count = (size_t *)(void *)((char *)base + key->count_offset);
            for (size_t t = 0; t < *count; t++) free((*texts)[t]);
            free(*texts);
            *texts = NULL;
            *count = 0;
        }
    }
}
