#include "commands/bench_kinds.h"

#include "base/error.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* A comma inside parentheses belongs to a word: window and sinks of dilated(8,4). */
static char *next_kind(char **rest) {
    char *begin = *rest;
    int depth = 0;
    if (!begin) return NULL;
    for (char *at = begin; *at; at++) {
        depth += (*at == '(') - (*at == ')');
        if (*at != ',' || depth > 0) continue;
        *at = '\0';
        *rest = at + 1;
        return begin;
    }
    *rest = NULL;
    return begin;
}

static enum status read_option(const char *command, char *text, struct config_option *option) {
    char *equals = strchr(text, '='), *rest;
    if (!equals || equals == text || !equals[1])
        return error_set(STATUS_USAGE, "%s: --kinds: expected KIND:KEY=WORD, found option \"%s\"", command, text);
    *equals = '\0';
    option->key = text;
    for (char *word = strtok_r(equals + 1, "+", &rest); word; word = strtok_r(NULL, "+", &rest)) {
        TRY(memory_grow(&option->words, option->count + 1, sizeof *option->words, "words of an option"));
        option->words[option->count++] = word;
    }
    return STATUS_OK;
}

static enum status read_kind(const char *command, char *text, struct config_attention *rule) {
    char *rest, *name = strtok_r(text, ":", &rest);
    if (!name)
        return error_set(STATUS_USAGE, "%s: --kinds: expected names of kinds, found nothing between commas", command);
    *rule = (struct config_attention){.first = 0, .last = -1, .kind = name};
    for (char *word = strtok_r(NULL, ":", &rest); word; word = strtok_r(NULL, ":", &rest)) {
        TRY(memory_grow(&rule->options, rule->option_count + 1, sizeof *rule->options, "options of a kind"));
        struct config_option *option = &rule->options[rule->option_count++];
        *option = (struct config_option){0};
        TRY(read_option(command, word, option));
    }
    return STATUS_OK;
}

enum status bench_kinds_read(const char *command, const char *text, struct bench_kinds *kinds) {
    char *rest = NULL;
    *kinds = (struct bench_kinds){0};
    TRY(memory_copy_text(text, &kinds->text));
    rest = kinds->text;
    for (char *word = next_kind(&rest); word; word = next_kind(&rest)) {
        if (kinds->count == BENCH_KINDS_MAX)
            return error_set(STATUS_USAGE, "%s: --kinds: expected at most %d", command, BENCH_KINDS_MAX);
        struct config_attention *rule = &kinds->rules[kinds->count++];
        TRY(read_kind(command, word, rule));
        rule->line = kinds->count; /* what messages name in place of a recipe's line */
        for (size_t i = 0; i < rule->option_count; i++) rule->options[i].line = rule->line;
    }
    return STATUS_OK;
}

void bench_kinds_free(struct bench_kinds *kinds) {
    for (int n = 0; n < kinds->count; n++) {
        for (size_t i = 0; i < kinds->rules[n].option_count; i++) free(kinds->rules[n].options[i].words);
        free(kinds->rules[n].options);
    }
    free(kinds->text);
    *kinds = (struct bench_kinds){0};
}
