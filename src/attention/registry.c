/* Every kind, and the choice of a kind for every layer. */
#include "attention/kinds.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct kind *const kind_table[] = {&kind_full, &kind_masks, &kind_performer, &kind_kerformer, &kind_nsa,
                                         &kind_indexer, NULL};

bool kind_is_full(const struct kind *kind) { return kind == &kind_full; }

const struct kind *kind_find(const char *name) {
    for (int i = 0; kind_table[i]; i++) {
        if (strcmp(kind_table[i]->name, name) == 0) return kind_table[i];
    }
    return NULL;
}

const struct config_option *options_find(const struct config_attention *rule, const char *key) {
    for (size_t i = 0; i < rule->option_count; i++) {
        if (strcmp(rule->options[i].key, key) == 0) return &rule->options[i];
    }
    return NULL;
}

/* "a, b, c" of names into text. */
static void join_names(const char *const *names, size_t count, char *text, size_t capacity) {
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < count && used < capacity; i++) {
        used += (size_t)snprintf(text + used, capacity - used, "%s%s", i ? ", " : "", names[i]);
    }
}

enum status options_check_known(const char *where, const struct config_attention *rule, const char *const *known,
                                size_t count) {
    char allowed[256];
    for (size_t i = 0; i < rule->option_count; i++) {
        bool found = false;
        for (size_t k = 0; k < count; k++) found = found || strcmp(rule->options[i].key, known[k]) == 0;
        if (found) continue;
        join_names(known, count, allowed, sizeof allowed);
        return error_set(STATUS_USAGE, "%s:%d: attention %s: unknown option \"%s\"; expected %s", where,
                         rule->options[i].line, rule->kind, rule->options[i].key, count ? allowed : "none");
    }
    return STATUS_OK;
}

enum status options_wrong(const char *where, const struct config_attention *rule, const struct config_option *option,
                          const char *expected, const char *found) {
    return error_set(STATUS_USAGE, "%s:%d: attention %s: %s: expected %s, found \"%s\"", where, option->line, rule->kind,
                     option->key, expected, found);
}

enum status options_choice(const char *where, const struct config_attention *rule, const char *key,
                           const char *const *names, int count, int *index) {
    const struct config_option *option = options_find(rule, key);
    if (!option) return STATUS_OK;
    for (int i = 0; option->count == 1 && i < count; i++) {
        if (strcmp(option->words[0], names[i]) != 0) continue;
        *index = i;
        return STATUS_OK;
    }
    char allowed[256];
    join_names(names, (size_t)count, allowed, sizeof allowed);
    return options_wrong(where, rule, option, allowed, option->count == 1 ? option->words[0] : "a list");
}

enum status options_number(const char *where, const struct config_attention *rule, const struct config_option *option,
                           const char *word, double minimum, double maximum, double *value) {
    char expected[96], *end = NULL;
    double number = strtod(word, &end);
    if (end == word || *end != '\0' || !(number >= minimum && number <= maximum)) {
        snprintf(expected, sizeof expected, "a number from %g to %g", minimum, maximum);
        return options_wrong(where, rule, option, expected, word);
    }
    *value = number;
    return STATUS_OK;
}

enum status options_count(const char *where, const struct config_attention *rule, const char *key, int64_t minimum,
                          int64_t maximum, int64_t *value) {
    const struct config_option *option = options_find(rule, key);
    char expected[96], *end = NULL;
    if (!option) return STATUS_OK;
    const long long number = option->count == 1 ? strtoll(option->words[0], &end, 10) : 0;
    if (option->count != 1 || end == option->words[0] || *end != '\0' || number < minimum || number > maximum) {
        snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)minimum, (long long)maximum);
        return options_wrong(where, rule, option, expected, option->count == 1 ? option->words[0] : "a list");
    }
    *value = number;
    return STATUS_OK;
}

static enum status check_rule(const char *where, const struct config_attention *rule, const struct model_config *model) {
    int64_t last = rule->last < 0 ? model->layers - 1 : rule->last;
    if (rule->first > last || last >= model->layers) {
        return error_set(STATUS_USAGE, "%s:%d: student.attention: layers %lld to %lld: the teacher has layers 0 to %lld",
                         where, rule->line, (long long)rule->first, (long long)last, (long long)(model->layers - 1));
    }
    if (kind_find(rule->kind)) return STATUS_OK;
    const char *names[16];
    size_t count = 0;
    for (int i = 0; kind_table[i] && count < 16; i++) names[count++] = kind_table[i]->name;
    char allowed[256];
    join_names(names, count, allowed, sizeof allowed);
    return error_set(STATUS_USAGE, "%s:%d: student.attention: kind: expected one of %s, found \"%s\"", where, rule->line,
                     allowed, rule->kind);
}

enum status attention_configure(const char *where, const struct config_attention *rules, size_t rule_count,
                                const struct model_config *model, struct attention_layer *layers) {
    enum status status = STATUS_OK;
    const struct config_attention left_alone = {.kind = "full"};
    memset(layers, 0, (size_t)model->layers * sizeof *layers);
    for (size_t r = 0; r < rule_count; r++) TRY_GOTO(done, check_rule(where, &rules[r], model));
    for (int64_t l = 0; l < model->layers; l++) {
        const struct config_attention *rule = &left_alone;
        for (size_t r = rule_count; r-- > 0;) {
            if (l >= rules[r].first && (rules[r].last < 0 || l <= rules[r].last)) rule = &rules[r];
        }
        layers[l] = (struct attention_layer){.kind = kind_find(rule->kind), .layer = l, .model = model};
        TRY_GOTO(done, layers[l].kind->configure(where, rule, model, &layers[l].settings));
    }
done:
    if (status != STATUS_OK) attention_free_layers(layers, model->layers);
    return status;
}

void attention_free_layers(struct attention_layer *layers, int64_t count) {
    for (int64_t l = 0; layers && l < count; l++) {
        free(layers[l].settings);
        free(layers[l].bound);
        layers[l].settings = layers[l].bound = NULL;
    }
}
