/* A config as YAML that reads back to the same config, and the reference of every key. */
#include "base/memory.h"
#include "config/keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_plain(const char *word) {
    const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-()";
    return word[0] != '\0' && word[strspn(word, letters)] == '\0' && strchr("-./+(", word[0]) == NULL;
}

void config_write_word(FILE *out, const char *word) {
    if (is_plain(word)) {
        fputs(word, out);
        return;
    }
    fputc('"', out);
    for (const unsigned char *c = (const unsigned char *)word; *c; c++) {
        if (*c == '"' || *c == '\\') {
            fprintf(out, "\\%c", *c);
        } else if (*c < 32 || *c == 127) {
            fprintf(out, "\\x%02x", *c);
        } else {
            fputc(*c, out);
        }
    }
    fputc('"', out);
}

/* The shortest decimal that reads back to the same number. */
static void write_real(FILE *out, double value) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    fputs(text, out);
}

static void write_name(FILE *out, const char *names, int index) {
    for (; index > 0; index--) names = strchr(names, '|') + 1;
    fprintf(out, "%.*s", (int)strcspn(names, "|"), names);
}

static void write_words(FILE *out, char *const *words, size_t count, bool list) {
    if (list) fputc('[', out);
    for (size_t i = 0; i < count; i++) {
        if (i) fputs(", ", out);
        config_write_word(out, words[i]);
    }
    if (list) fputc(']', out);
}

static bool is_absent(const struct config_key *key, void *base) {
    void *place = config_key_place(key, base);
    if (key->type == KEY_TEXT) return *(char **)place == NULL;
    if (key->type == KEY_TEXTS) return *(size_t *)(void *)((char *)base + key->count_offset) == 0;
    return false;
}

static void write_value(FILE *out, const struct config_key *key, void *base) {
    void *place = config_key_place(key, base);
    int index = 0;
    switch (key->type) {
    case KEY_TEXT:
        config_write_word(out, *(char **)place);
        break;
    case KEY_TEXTS:
        write_words(out, *(char ***)place, *(size_t *)(void *)((char *)base + key->count_offset), true);
        break;
    case KEY_INTEGER:
        if (key->names && *(int64_t *)place == 0) {
            fputs(key->names, out);
        } else {
            fprintf(out, "%lld", (long long)*(int64_t *)place);
        }
        break;
    case KEY_SEED:
        fprintf(out, "%llu", (unsigned long long)*(uint64_t *)place);
        break;
    case KEY_REAL:
        write_real(out, *(double *)place);
        break;
    case KEY_BOOL:
        write_name(out, key->names ? key->names : "false|true", *(bool *)place);
        break;
    case KEY_NAME:
        memcpy(&index, place, sizeof index);
        write_name(out, key->names, index);
        break;
    }
}

/* One "key: value" a line behind `indent`; the first line behind `first`. */
static void write_section(FILE *out, const char *section, const char *first, const char *indent, void *base) {
    const char *lead = first;
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        if (strcmp(key->section, section) != 0 || is_absent(key, base)) continue;
        fprintf(out, "%s%s: ", lead, key->name);
        write_value(out, key, base);
        fputc('\n', out);
        lead = indent;
    }
}

static void write_rules(FILE *out, const struct config *config) {
    fputs("student:\n  attention:\n", out);
    for (size_t i = 0; i < config->attention_count; i++) {
        const struct config_attention *rule = &config->attention[i];
        fputs("    - {layers: ", out);
        if (rule->first == 0 && rule->last == -1) {
            fputs("all", out);
        } else if (rule->last == -1) {
            fprintf(out, "%lld-", (long long)rule->first);
        } else if (rule->last == rule->first) {
            fprintf(out, "%lld", (long long)rule->first);
        } else {
            fprintf(out, "%lld-%lld", (long long)rule->first, (long long)rule->last);
        }
        fputs(", kind: ", out);
        config_write_word(out, rule->kind);
        for (size_t o = 0; o < rule->option_count; o++) {
            const struct config_option *option = &rule->options[o];
            fputs(", ", out);
            config_write_word(out, option->key);
            fputs(": ", out);
            write_words(out, option->words, option->count, option->count > 1);
        }
        fputs("}\n", out);
    }
}

enum status config_write_text(struct config *config) {
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out) return error_set(STATUS_MEMORY, "no memory for the config's text");
    write_section(out, "", "", "", config);
    if (config->from_scratch) {
        fputs("from_scratch:\n", out);
        write_section(out, "from_scratch", "  ", "  ", config);
    }
    fputs("data:\n", out);
    write_section(out, "data", "  ", "  ", config);
    if (config->attention_count > 0) write_rules(out, config);
    fputs("stages:\n", out);
    for (size_t i = 0; i < config->stage_count; i++) write_section(out, "stages", "  - ", "    ", &config->stages[i]);
    static const char *const sections[] = {"train", "parallel", "checkpoint", "eval"};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        fprintf(out, "%s:\n", sections[i]);
        write_section(out, sections[i], "  ", "  ", config);
    }
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return error_set(STATUS_MEMORY, "no memory for the config's text");
    }
    free(config->text);
    config->text = text;
    return STATUS_OK;
}

enum status config_reference(char **text) {
    size_t length = 0;
    *text = NULL;
    FILE *out = open_memstream(text, &length);
    if (!out) return error_set(STATUS_MEMORY, "no memory for the reference of the keys");
    fputs("| key | allowed | default | meaning |\n| --- | --- | --- | --- |\n", out);
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char allowed[256];
        config_key_allowed(key, allowed, sizeof allowed);
        bool computed = key->fallback && strcmp(key->fallback, "-1") == 0;
        const char *fallback = key->required ? "required" : computed || !key->fallback ? "-" : key->fallback;
        if (key->type == KEY_INTEGER && key->names && strcmp(fallback, "0") == 0) fallback = key->names;
        fprintf(out, "| %s%s%s | %s | %s | %s |\n", key->section, key->section[0] ? "." : "", key->name, allowed,
                fallback, key->help);
    }
    if (fclose(out) == 0) return STATUS_OK;
    free(*text);
    *text = NULL;
    return error_set(STATUS_MEMORY, "no memory for the reference of the keys");
}
