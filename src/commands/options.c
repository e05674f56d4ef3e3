/* Reads a command line into variables; see command.h. */
#include "base/memory.h"
#include "base/text.h"
#include "commands/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static enum status append(struct option_list *list, const char *value) {
    TRY(memory_grow(&list->values, list->count + 1, sizeof *list->values, "options"));
    list->values[list->count++] = value;
    return STATUS_OK;
}

void options_free(struct option_list *list) {
    free(list->values);
    *list = (struct option_list){0};
}

enum status options_numbers(const char *command, const char *name, const struct option_list *words, int64_t most, int capacity,
                            int64_t *values, int *count) {
    if (words->count > (size_t)capacity)
        return error_set(STATUS_USAGE, "%s: --%s: expected at most %d, found %zu", command, name, capacity, words->count);
    if (words->count) *count = (int)words->count;
    for (size_t i = 0; i < words->count; i++) {
        char *end = NULL;
        values[i] = strtoll(words->values[i], &end, 10);
        if (*end != '\0' || values[i] < 1 || values[i] > most)
            return error_set(STATUS_USAGE, "%s: --%s: expected numbers from 1 to %lld, found \"%s\"", command, name,
                             (long long)most, words->values[i]);
    }
    return STATUS_OK;
}

static enum status unknown_option(const char *command, const char *name, const struct option *options, size_t count) {
    const char *nearest = NULL;
    size_t best = 4;
    for (size_t i = 0; i < count; i++) {
        size_t distance = text_distance(name, options[i].name);
        if (distance < best) {
            best = distance;
            nearest = options[i].name;
        }
    }
    if (nearest) {
        return error_set(STATUS_USAGE, "%s: unknown option --%s; did you mean --%s?", command, name, nearest);
    }
    return error_set(STATUS_USAGE, "%s: unknown option --%s; see squint %s --help", command, name, command);
}

static enum status read_number(const char *command, const struct option *option, const char *text) {
    char *end = NULL;
    errno = 0;
    bool whole = option->type == OPTION_INTEGER;
    long long integer = whole ? strtoll(text, &end, 10) : 0;
    double real = whole ? (double)integer : strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0) {
        return error_set(STATUS_USAGE, "%s: --%s: expected %s, found \"%s\"", command, option->name,
                         whole ? "a whole number" : "a number", text);
    }
    bool limited = option->minimum != 0 || option->maximum != 0;
    if (limited && !(real >= option->minimum && real <= option->maximum)) {
        return error_set(STATUS_USAGE, "%s: --%s: expected a number from %g to %g, found \"%s\"", command, option->name,
                         option->minimum, option->maximum, text);
    }
    if (whole) {
        *(int64_t *)option->target = integer;
    } else {
        *(double *)option->target = real;
    }
    return STATUS_OK;
}

static enum status read_value(const char *command, const struct option *option, const char *value) {
    switch (option->type) {
    case OPTION_TEXT: *(const char **)option->target = value; return STATUS_OK;
    case OPTION_LIST: return append(option->target, value);
    default: return read_number(command, option, value);
    }
}

/* Handles argv[*index], an option; moves *index past the values that it takes. */
static enum status read_option(int argc, char **argv, int *index, const struct option *options, size_t count,
                               struct option_list *unknown) {
    char name[64] = {0};
    const char *word = argv[*index] + 2, *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    if (unknown && equals && memchr(word, '.', length)) return append(unknown, argv[*index]);
    memcpy(name, word, length < sizeof name ? length : sizeof name - 1);
    const struct option *option = NULL;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(options[i].name, name) == 0) option = &options[i];
    }
    if (!option && unknown && equals) return append(unknown, argv[*index]);
    if (!option) return unknown_option(argv[0], name, options, count);
    if (option->type == OPTION_FLAG) {
        if (equals) return error_set(STATUS_USAGE, "%s: --%s takes no value, found \"%s\"", argv[0], name, equals + 1);
        *(bool *)option->target = true;
        return STATUS_OK;
    }
    if (equals) return read_value(argv[0], option, equals + 1);
    int first = *index + 1;
    if (first >= argc || strncmp(argv[first], "--", 2) == 0) {
        return error_set(STATUS_USAGE, "%s: --%s: expected a value, found none", argv[0], name);
    }
    do {
        TRY(read_value(argv[0], option, argv[++*index]));
    } while (option->type == OPTION_LIST && *index + 1 < argc && strncmp(argv[*index + 1], "--", 2) != 0);
    return STATUS_OK;
}

enum status options_read(int argc, char **argv, const struct option *options, size_t option_count,
                         struct option_list *words, struct option_list *unknown) {
    bool ended = false;
    for (int i = 1; i < argc; i++) {
        if (!ended && strcmp(argv[i], "--") == 0) {
            ended = true;
        } else if (!ended && strncmp(argv[i], "--", 2) == 0) {
            TRY(read_option(argc, argv, &i, options, option_count, unknown));
        } else if (words) {
            TRY(append(words, argv[i]));
        } else {
            return error_set(STATUS_USAGE, "%s: unexpected word \"%s\"; see squint %s --help", argv[0], argv[i], argv[0]);
        }
    }
    return STATUS_OK;
}
