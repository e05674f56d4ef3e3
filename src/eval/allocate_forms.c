/* See allocate_forms.h; and the table of built-in candidates. */
#include "eval/allocate_forms.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- built-in candidates ----------------------------------------------------------------------------------------- */

/* Every % is the size: from `first`, times `step` (0: powers of two and those half way between), while below T / part.
 * $: the width of the teacher's heads. */
static const struct {
    const char *text;
    int64_t first, step, part;
} ladder[] = {
    {"masks:candidates=window(%)", 2, 0, 1},
    {"masks:candidates=window(%)+sinks(4):start=0.9+0.1", 8, 2, 4},
    {"nsa:compress=%:stride=%:block=%:select=4:window=%:select_group=1", 4, 4, 4},
    {"nsa:compress=%:stride=%:block=%:select=8:window=%:select_group=1", 4, 4, 4},
    {"nsa:compress=%:stride=%:block=%:select=16:window=%:select_group=1", 4, 4, 4},
    {"indexer:per=head:window=2:sinks=0:index_heads=2:index_width=$:tokens=%", 2, 0, 4},
};

static int64_t next_size(int64_t size, int64_t step) {
    if (step > 0) return size * step;
    bool power = (size & (size - 1)) == 0; /* 2, 3, 4, 6, 8, 12, … */
    return power && size > 1 ? size + size / 2 : power ? 2 * size : size / 3 * 4;
}

static void write_sized(FILE *out, const char *text, int64_t size, int64_t head_width) {
    for (; *text; text++) {
        if (*text == '%' || *text == '$') {
            fprintf(out, "%lld", (long long)(*text == '%' ? size : head_width));
        } else {
            fputc(*text, out);
        }
    }
    fputc(',', out);
}

/* The widest window with at most a share `budget` of the causal pairs of `length` tokens; 0: even one token is more. */
static int64_t widest_window(int64_t length, double budget) {
    double t = (double)length, all = t * (t + 1) / 2;
    int64_t widest = 0;
    for (int64_t w = 1; w <= length; w++) {
        double x = (double)w;
        if (x * (x + 1) / 2 + (t - x) * x > budget * all) break;
        widest = w;
    }
    return widest;
}

enum status allocate_builtin(int64_t length, int64_t head_width, double budget, char **text) {
    size_t bytes = 0;
    bool listed = false;
    *text = NULL;
    FILE *out = open_memstream(text, &bytes);
    if (!out) return error_set(STATUS_MEMORY, "no memory for the built-in candidates");
    int64_t widest = budget > 0 ? widest_window(length, budget) : 0;
    for (size_t i = 0; i < sizeof ladder / sizeof *ladder; i++) {
        for (int64_t size = ladder[i].first; size < length / ladder[i].part; size = next_size(size, ladder[i].step)) {
            write_sized(out, ladder[i].text, size, head_width);
            listed = listed || (i == 0 && size == widest);
        }
    }
    if (widest > 0 && widest < length && !listed) write_sized(out, ladder[0].text, widest, head_width);
    fputs("full", out);
    if (fclose(out) == 0) return STATUS_OK;
    free(*text);
    *text = NULL;
    return error_set(STATUS_MEMORY, "no memory for the built-in candidates");
}

/* --- rules -------------------------------------------------------------------------------------------------------- */

static enum status add_option(struct config_attention *rule, const char *key, struct config_option **option) {
    TRY(memory_grow(&rule->options, rule->option_count + 1, sizeof *rule->options, "options of a rule"));
    *option = &rule->options[rule->option_count++];
    **option = (struct config_option){.line = rule->line};
    return memory_copy_text(key, &(*option)->key);
}

static enum status add_word(struct config_option *option, const char *word) {
    TRY(memory_grow(&option->words, option->count + 1, sizeof *option->words, "words of an option"));
    option->words[option->count] = NULL;
    return memory_copy_text(word, &option->words[option->count++]);
}

/* without: a key that is left out; NULL: none. */
static enum status copy_without(const struct config_attention *rule, const char *without,
                                struct config_attention *copy) {
    *copy = (struct config_attention){.first = rule->first, .last = rule->last, .line = rule->line};
    TRY(memory_copy_text(rule->kind, &copy->kind));
    for (size_t i = 0; i < rule->option_count; i++) {
        struct config_option *option;
        if (without && strcmp(rule->options[i].key, without) == 0) continue;
        TRY(add_option(copy, rule->options[i].key, &option));
        for (size_t w = 0; w < rule->options[i].count; w++) TRY(add_word(option, rule->options[i].words[w]));
    }
    return STATUS_OK;
}

enum status rule_copy(const struct config_attention *rule, int64_t layer, struct config_attention *copy) {
    enum status status = copy_without(rule, NULL, copy);
    if (layer >= 0) copy->first = copy->last = layer;
    if (status != STATUS_OK) rule_free(copy);
    return status;
}

void rule_free(struct config_attention *rule) {
    for (size_t i = 0; i < rule->option_count; i++) {
        for (size_t w = 0; w < rule->options[i].count; w++) free(rule->options[i].words[w]);
        free(rule->options[i].words);
        free(rule->options[i].key);
    }
    free(rule->options);
    free(rule->kind);
    *rule = (struct config_attention){0};
}

enum status rule_text(const struct config_attention *rule, char **text) {
    size_t bytes = 0;
    *text = NULL;
    FILE *out = open_memstream(text, &bytes);
    if (!out) return error_set(STATUS_MEMORY, "no memory for a candidate's name");
    fputs(rule->kind, out);
    for (size_t i = 0; i < rule->option_count; i++) {
        fprintf(out, ":%s=", rule->options[i].key);
        for (size_t w = 0; w < rule->options[i].count; w++) fprintf(out, w ? "+%s" : "%s", rule->options[i].words[w]);
    }
    if (fclose(out) == 0) return STATUS_OK;
    free(*text);
    *text = NULL;
    return error_set(STATUS_MEMORY, "no memory for a candidate's name");
}

/* --- sizes by head ------------------------------------------------------------------------------------------------ */

/* One window in every head. */
static bool read_window(const struct config_attention *rule, int64_t *size) {
    long long width = 0;
    int end = 0;
    if (rule->option_count != 1 || rule->options[0].count != 1) return false;
    const char *word = rule->options[0].words[0];
    if (sscanf(word, "window(%lld)%n", &width, &end) != 1 || end == 0 || word[end] != '\0' || width < 1) return false;
    *size = width;
    return true;
}

/* All windows of the layer as candidates, one of them with coefficient 1 in each head: the others are not computed
 * there. */
static enum status write_windows(const int64_t *sizes, int64_t heads, struct config_attention *rule) {
    struct config_option *candidates, *start;
    int64_t last = 0;
    TRY(add_option(rule, "candidates", &candidates));
    for (;;) {
        int64_t next = 0;
        char word[40];
        for (int64_t h = 0; h < heads; h++) {
            if (sizes[h] > last && (next == 0 || sizes[h] < next)) next = sizes[h];
        }
        if (next == 0) break;
        snprintf(word, sizeof word, next == ALLOCATE_EVERYTHING ? "full" : "window(%lld)", (long long)next);
        TRY(add_word(candidates, word));
        last = next;
    }
    size_t columns = candidates->count;
    if (columns == 1) return STATUS_OK;
    TRY(add_option(rule, "start", &start));
    for (int64_t h = 0; h < heads; h++) {
        size_t column = 0; /* how many smaller windows there are */
        for (int64_t i = 0; i < heads; i++) {
            bool first = sizes[i] < sizes[h];
            for (int64_t k = 0; k < i; k++) first = first && sizes[k] != sizes[i];
            column += first;
        }
        for (size_t c = 0; c < columns; c++) TRY(add_word(start, c == column ? "1" : "0"));
    }
    return STATUS_OK;
}

enum { LISTS_MOST = 1 << 24 /* tokens that an indexer's list may ask for */ };

/* An indexer whose heads choose each for itself, the same number of tokens. */
static bool read_tokens(const struct config_attention *rule, int64_t *size) {
    bool by_head = false, found = false;
    for (size_t i = 0; i < rule->option_count; i++) {
        const struct config_option *option = &rule->options[i];
        char *end = NULL;
        if (option->count != 1) continue;
        by_head = by_head || (strcmp(option->key, "per") == 0 && strcmp(option->words[0], "head") == 0);
        if (strcmp(option->key, "tokens") != 0) continue;
        *size = strtoll(option->words[0], &end, 10);
        found = *end == '\0' && *size >= 1 && *size < LISTS_MOST;
    }
    return by_head && found;
}

static enum status write_tokens(const int64_t *sizes, int64_t heads, struct config_attention *rule) {
    struct config_option *option;
    char word[24];
    TRY(add_option(rule, "tokens", &option));
    for (int64_t h = 0; h < heads; h++) {
        snprintf(word, sizeof word, "%lld", (long long)(sizes[h] < LISTS_MOST ? sizes[h] : LISTS_MOST));
        TRY(add_word(option, word));
    }
    return STATUS_OK;
}

static const struct form forms[] = {
    {"masks", "candidates", read_window, write_windows, 8},
    {"indexer", "tokens", read_tokens, write_tokens, SIZE_MAX},
};

static const struct form *form_of(const struct config_attention *rule, int64_t *size) {
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (strcmp(forms[i].kind, rule->kind) == 0 && forms[i].read(rule, size)) return &forms[i];
    }
    return NULL;
}

static bool same_option(const struct config_option *a, const struct config_option *b) {
    if (strcmp(a->key, b->key) != 0 || a->count != b->count) return false;
    for (size_t w = 0; w < a->count; w++) {
        if (strcmp(a->words[w], b->words[w]) != 0) return false;
    }
    return true;
}

/* Whether every option of a but `key` stands in b too, word by word. */
static bool options_within(const struct config_attention *a, const struct config_attention *b, const char *key) {
    for (size_t i = 0; i < a->option_count; i++) {
        bool found = strcmp(a->options[i].key, key) == 0;
        for (size_t k = 0; k < b->option_count; k++) found = found || same_option(&a->options[i], &b->options[k]);
        if (!found) return false;
    }
    return true;
}

/* In its place by size; a size that is there already stays the first one's. */
static enum status add_size(struct family *family, int64_t size, size_t candidate) {
    size_t at = 0;
    while (at < family->count && family->sizes[at] < size) at++;
    if (at < family->count && family->sizes[at] == size) return STATUS_OK;
    TRY(memory_grow(&family->sizes, family->count + 1, sizeof *family->sizes, "sizes of a kind"));
    TRY(memory_grow(&family->candidates, family->count + 1, sizeof *family->candidates, "sizes of a kind"));
    size_t after = family->count - at;
    memmove(family->sizes + at + 1, family->sizes + at, after * sizeof *family->sizes);
    memmove(family->candidates + at + 1, family->candidates + at, after * sizeof *family->candidates);
    family->sizes[at] = size;
    family->candidates[at] = candidate;
    family->count++;
    return STATUS_OK;
}

static enum status add_to_family(const struct config_attention *rules, size_t candidate, struct family **families,
                                 size_t *found) {
    const struct config_attention *rule = &rules[candidate];
    int64_t size = 0;
    const struct form *form = form_of(rule, &size);
    if (!form) return STATUS_OK;
    for (size_t f = 0; f < *found; f++) {
        struct family *family = &(*families)[f];
        if (family->form != form || !options_within(rule, family->base, form->key) ||
            !options_within(family->base, rule, form->key))
            continue;
        return add_size(family, size, candidate);
    }
    TRY(memory_grow(families, *found + 1, sizeof **families, "kinds with sizes by head"));
    (*families)[*found] = (struct family){.form = form, .base = rule};
    return add_size(&(*families)[(*found)++], size, candidate);
}

enum status families_find(const struct config_attention *rules, size_t count, struct family **families, size_t *found) {
    enum status status = STATUS_OK;
    size_t kept = 0;
    *families = NULL;
    *found = 0;
    for (size_t c = 0; c < count && status == STATUS_OK; c++) status = add_to_family(rules, c, families, found);
    for (size_t f = 0; f < *found; f++) {
        struct family family = (*families)[f];
        if (family.count >= 2 && status == STATUS_OK) {
            status = add_size(&family, ALLOCATE_EVERYTHING, SIZE_MAX);
            (*families)[kept++] = family;
        } else {
            free(family.sizes);
            free(family.candidates);
        }
    }
    *found = kept;
    return status;
}

void families_free(struct family *families, size_t count) {
    for (size_t f = 0; f < count; f++) {
        free(families[f].sizes);
        free(families[f].candidates);
    }
    free(families);
}

enum status family_rule(const struct family *family, const size_t *rungs, int64_t heads, int64_t layer,
                        struct config_attention *rule) {
    int64_t *sizes = NULL;
    enum status status = copy_without(family->base, family->form->key, rule);
    rule->first = rule->last = layer;
    TRY_GOTO(done, memory_new((size_t)heads, sizeof *sizes, "sizes by head", &sizes));
    for (int64_t h = 0; h < heads; h++) sizes[h] = family->sizes[rungs[h]];
    status = family->form->write(sizes, heads, rule);
done:
    free(sizes);
    if (status != STATUS_OK) rule_free(rule);
    return status;
}
