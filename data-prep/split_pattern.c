/* Foreign split patterns, through PCRE2. */
#include "base/memory.h"
#include "data-prep/split.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct split_pattern {
    pcre2_code *code; /* NULL: a plain text */
    char *place;
    size_t length;
    char text[]; /* the pattern as it was given */
};

/* PCRE2's own \s holds U+180E, which has not been white space since Unicode 6.3. */
static enum status spell_out_spaces(const char *pattern, char **out) {
    static const char space[] = "\\p{White_Space}", other[] = "\\P{White_Space}";
    size_t used = 0;
    TRY(memory_new(strlen(pattern) * (sizeof space / 2) + sizeof space, 1, "a split pattern", out));
    for (const char *at = pattern; *at; at++) {
        if (at[0] != '\\' || at[1] == '\0') {
            (*out)[used++] = *at;
            continue;
        }
        at++;
        if (*at == 's' || *at == 'S') {
            memcpy(*out + used, *at == 's' ? space : other, sizeof space - 1);
            used += sizeof space - 1;
        } else {
            (*out)[used++] = '\\';
            (*out)[used++] = *at;
        }
    }
    return STATUS_OK;
}

static enum status compile(const char *pattern, const char *place, pcre2_code **code) {
    char *spelled = NULL;
    TRY(spell_out_spaces(pattern, &spelled));
    int fault;
    size_t at;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C;
    *code = pcre2_compile((PCRE2_SPTR)spelled, PCRE2_ZERO_TERMINATED, options, &fault, &at, NULL);
    enum status status = STATUS_OK;
    if (!*code) {
        char reason[256];
        pcre2_get_error_message(fault, (PCRE2_UCHAR *)reason, sizeof reason);
        status = error_set(STATUS_USAGE, "%s: expected a regular expression, found \"%s\": %s at byte %zu", place,
                           pattern, reason, at);
    } else {
        pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE); /* without it matching is slower, not different */
    }
    free(spelled);
    return status;
}

enum status split_pattern_open(const char *pattern, bool literal, const char *place, struct split_pattern **out) {
    *out = NULL;
    if (pattern[0] == '\0') return error_set(STATUS_USAGE, "%s: expected a pattern, found an empty one", place);
    size_t length = strlen(pattern);
    enum status status = STATUS_OK;
    struct split_pattern *made = NULL;
    TRY(memory_new(sizeof *made + length + 1, 1, "a split pattern", &made));
    made->length = length;
    memcpy(made->text, pattern, length);
    TRY_GOTO(done, memory_copy_text(place, &made->place));
    if (!literal) TRY_GOTO(done, compile(pattern, place, &made->code));
done:
    if (status != STATUS_OK) split_pattern_close(&made);
    *out = made;
    return status;
}

const char *split_pattern_text(const struct split_pattern *pattern) {
    return pattern->text;
}

void split_pattern_close(struct split_pattern **pattern) {
    if (!*pattern) return;
    pcre2_code_free((*pattern)->code);
    free((*pattern)->place);
    free(*pattern);
    *pattern = NULL;
}

/* The first match at or after `from`; *begin == length when there is none. */
static enum status next_match(const struct split_pattern *pattern, pcre2_match_data *data, const char *text,
                              size_t length, size_t from, size_t *begin, size_t *end) {
    *begin = *end = length;
    if (!pattern->code) {
        const char *found = from < length ? memmem(text + from, length - from, pattern->text, pattern->length) : NULL;
        if (found) {
            *begin = (size_t)(found - text);
            *end = *begin + pattern->length;
        }
        return STATUS_OK;
    }
    while (from < length) {
        int count = pcre2_match(pattern->code, (PCRE2_SPTR)text, length, from, 0, data, NULL);
        if (count == PCRE2_ERROR_NOMATCH) return STATUS_OK;
        if (count < 0) {
            char reason[256];
            pcre2_get_error_message(count, (PCRE2_UCHAR *)reason, sizeof reason);
            return error_set(STATUS_FAILED, "%s: the pattern fails at byte %zu of a text: %s", pattern->place, from,
                             reason);
        }
        const size_t *place = pcre2_get_ovector_pointer(data);
        if (place[1] > place[0]) {
            *begin = place[0];
            *end = place[1];
            return STATUS_OK;
        }
        from = place[0] + 1; /* an empty match cuts nothing; go on at the next character */
        while (from < length && ((unsigned char)text[from] & 0xC0) == 0x80) from++;
    }
    return STATUS_OK;
}

struct pending { /* a piece that the next one may still join */
    size_t begin, end;
    bool match;
};

static bool joins(enum split_behavior behavior, bool before, bool after) {
    switch (behavior) {
    case SPLIT_MERGED_WITH_PREVIOUS:
        return after && !before;
    case SPLIT_MERGED_WITH_NEXT:
        return before && !after;
    case SPLIT_CONTIGUOUS:
        return before == after;
    default:
        return false;
    }
}

enum status split_pattern_run(const struct split_pattern *pattern, enum split_behavior behavior, bool inverted,
                              const char *text, size_t length, split_sink sink, void *context) {
    pcre2_match_data *data = NULL;
    if (pattern->code) {
        data = pcre2_match_data_create(1, NULL);
        if (!data) return error_set(STATUS_MEMORY, "no memory for matching a split pattern");
    }
    enum status status = STATUS_OK;
    struct pending held = {0};
    size_t at = 0, begin = 0, end = 0;
    while (at < length) {
        if (at >= end) TRY_GOTO(done, next_match(pattern, data, text, length, at, &begin, &end));
        bool found = at == begin;
        size_t stop = found ? end : begin;
        bool match = found != inverted;
        if (behavior == SPLIT_REMOVED && match) {
            at = stop;
            continue;
        }
        if (held.end > held.begin && joins(behavior, held.match, match)) {
            held.end = stop;
            held.match = match;
        } else {
            if (held.end > held.begin) TRY_GOTO(done, sink(context, text + held.begin, held.end - held.begin));
            held = (struct pending){at, stop, match};
        }
        at = stop;
    }
    if (held.end > held.begin) status = sink(context, text + held.begin, held.end - held.begin);
done:
    pcre2_match_data_free(data);
    return status;
}
