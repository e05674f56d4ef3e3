/* The steps around the model, out of a tokenizer.json: normalizer, pre_tokenizer, decoder. A part that is not built is
 * refused by name: ignoring it would give other ids. The post_processor only adds tokens around a text, which is the
 * caller's business, and is not read. */
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"
#include "data-prep/unicode.h"

#include <stdio.h>
#include <string.h>

struct part { /* one object of the file: where it stands, and its type */
    const char *path;
    char where[128];
    const json_t *object;
    const char *type;
};

static enum status part_read(const char *path, const char *where, const json_t *object, struct part *part) {
    char found[64];
    *part = (struct part){.path = path, .object = object};
    snprintf(part->where, sizeof part->where, "%s", where);
    if (!json_is_object(object)) {
        return error_set(STATUS_DAMAGED, "%s: %s: expected an object, found %s", path, where,
                         json_describe(object, found));
    }
    TRY(json_want_text(path, where, object, "type", &part->type));
    if (!part->type) return error_set(STATUS_DAMAGED, "%s: %s.type: expected a text, found nothing", path, where);
    return STATUS_OK;
}

static enum status unsupported(const struct part *part, const char *expected) {
    return error_set(STATUS_USAGE, "%s: %s.type: expected %s, found %s: not supported", part->path, part->where,
                     expected, part->type);
}

static enum status want_text(const struct part *part, const char *key, const char **out) {
    TRY(json_want_text(part->path, part->where, part->object, key, out));
    if (*out) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: %s.%s: expected a text, found nothing", part->path, part->where, key);
}

static enum status want_bool(const struct part *part, const char *key, bool *out) {
    return json_want_bool(part->path, part->where, part->object, key, out);
}

/* Calls `read` for the object, or for each one of a Sequence. */
typedef enum status (*part_reader)(const struct part *part, struct tokenizer *tokenizer);
static enum status read_sequence(const char *path, const char *where, const json_t *object, const char *list_key,
                                 part_reader read, struct tokenizer *tokenizer) {
    struct part part;
    TRY(part_read(path, where, object, &part));
    if (strcmp(part.type, "Sequence") != 0) return read(&part, tokenizer);
    const json_t *list = json_object_get(object, list_key);
    char found[64], inner[128];
    if (!json_is_array(list)) {
        return error_set(STATUS_DAMAGED, "%s: %s.%s: expected a list, found %s", path, where, list_key,
                         json_describe(list, found));
    }
    if (json_array_size(list) > STEP_LIMIT) {
        return error_set(STATUS_USAGE, "%s: %s.%s: expected at most %d parts, found %zu: not supported", path, where,
                         list_key, STEP_LIMIT, json_array_size(list));
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        snprintf(inner, sizeof inner, "%.80s.%s[%zu]", where, list_key, i);
        TRY(part_read(path, inner, json_array_get(list, i), &part));
        TRY(read(&part, tokenizer));
    }
    return STATUS_OK;
}

/* A {"String": …} or {"Regex": …}. */
static enum status read_pattern(const struct part *part, const char **text, bool *literal) {
    const json_t *pattern = json_object_get(part->object, "pattern");
    const json_t *plain = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
    const json_t *value = plain ? plain : regex;
    char found[64];
    if (!json_is_string(value)) {
        return error_set(STATUS_DAMAGED, "%s: %s.pattern: expected a String or a Regex, found %s", part->path,
                         part->where, json_describe(value ? value : pattern, found));
    }
    *text = json_string_value(value);
    *literal = plain != NULL;
    if ((*text)[0] == '\0') {
        return error_set(STATUS_DAMAGED, "%s: %s.pattern: expected a pattern, found an empty one", part->path,
                         part->where);
    }
    return STATUS_OK;
}

static enum status read_replace(const struct part *part, struct normalizer_step *step) {
    const char *from = NULL, *to = NULL;
    bool literal = false;
    TRY(read_pattern(part, &from, &literal));
    if (!literal) {
        return error_set(STATUS_USAGE, "%s: %s.pattern: expected a String, found a Regex: not supported", part->path,
                         part->where);
    }
    TRY(want_text(part, "content", &to));
    TRY(memory_copy_text(from, &step->from));
    return memory_copy_text(to, &step->to);
}

static enum status read_normalizer(const struct part *part, struct tokenizer *t) {
    struct normalizer_step *step = &t->normalizer[t->normalizer_count];
    if (strcmp(part->type, "Replace") == 0) {
        t->normalizer_count++;
        return read_replace(part, step);
    }
    if (strcmp(part->type, "Prepend") != 0) return unsupported(part, "Prepend, Replace or a Sequence of them");
    const char *text = NULL;
    TRY(want_text(part, "prepend", &text));
    t->normalizer_count++;
    return memory_copy_text(text, &step->to);
}

static enum status read_behavior(const struct part *part, enum split_behavior *behavior) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    TRY(want_text(part, "behavior", &name));
    for (int i = 0; i < 5; i++) {
        if (strcmp(names[i], name) != 0) continue;
        *behavior = (enum split_behavior)i;
        return STATUS_OK;
    }
    return error_set(STATUS_DAMAGED,
                     "%s: %s.behavior: expected Removed, Isolated, MergedWithPrevious, MergedWithNext or "
                     "Contiguous, found \"%s\"",
                     part->path, part->where, name);
}

static enum status read_split(const struct part *part, struct pre_step *step) {
    const char *text = "";
    bool literal = false;
    TRY(read_pattern(part, &text, &literal));
    TRY(read_behavior(part, &step->behavior));
    TRY(want_bool(part, "invert", &step->inverted));
    bool gpt2 = !literal && (strcmp(text, split_gpt2_pattern) == 0 || strcmp(text, split_gpt2_pattern_short) == 0);
    if (gpt2 && step->behavior == SPLIT_ISOLATED) {
        step->kind = PRE_GPT2;
        return STATUS_OK;
    }
    char place[512];
    snprintf(place, sizeof place, "%.300s: %s.pattern", part->path, part->where);
    step->kind = PRE_PATTERN;
    return split_pattern_open(text, literal, place, &step->pattern);
}

static enum status read_scheme(const struct part *part, enum prepend_scheme *scheme) {
    const char *name = NULL;
    bool prefix = true;
    TRY(json_want_text(part->path, part->where, part->object, "prepend_scheme", &name));
    TRY(want_bool(part, "add_prefix_space", &prefix)); /* the older spelling */
    *scheme = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (!name) return STATUS_OK;
    if (strcmp(name, "always") == 0) {
        *scheme = PREPEND_ALWAYS;
    } else if (strcmp(name, "first") == 0) {
        *scheme = PREPEND_FIRST;
    } else if (strcmp(name, "never") == 0) {
        *scheme = PREPEND_NEVER;
    } else {
        return error_set(STATUS_DAMAGED, "%s: %s.prepend_scheme: expected always, first or never, found \"%s\"",
                         part->path, part->where, name);
    }
    return STATUS_OK;
}

/* The one character that stands for a space. */
static enum status read_marker(const struct part *part, char **marker) {
    const char *text = NULL;
    uint32_t code;
    TRY(want_text(part, "replacement", &text));
    if (text[0] == '\0' || unicode_decode((const unsigned char *)text, strlen(text), &code) != strlen(text)) {
        return error_set(STATUS_DAMAGED, "%s: %s.replacement: expected one character, found \"%s\"", part->path,
                         part->where, text);
    }
    return memory_copy_text(text, marker);
}

static enum status read_metaspace(const struct part *part, struct pre_step *step) {
    bool splits = true;
    step->kind = PRE_METASPACE;
    TRY(read_marker(part, &step->marker));
    TRY(read_scheme(part, &step->prepend));
    TRY(want_bool(part, "split", &splits));
    step->behavior = SPLIT_MERGED_WITH_NEXT;
    return splits ? split_pattern_open(step->marker, true, part->where, &step->pattern) : STATUS_OK;
}

static enum status read_byte_level(const struct part *part, struct tokenizer *t) {
    bool prefix = true, splits = true;
    TRY(want_bool(part, "add_prefix_space", &prefix));
    TRY(want_bool(part, "use_regex", &splits));
    t->byte_level = true;
    if (prefix) t->pre[t->pre_count++].kind = PRE_PREFIX_SPACE;
    if (splits) t->pre[t->pre_count++].kind = PRE_GPT2;
    return STATUS_OK;
}

static enum status read_pre_tokenizer(const struct part *part, struct tokenizer *t) {
    if (t->byte_level) {
        return error_set(STATUS_USAGE,
                         "%s: %s: expected ByteLevel to be the last part, found %s after it: not supported", part->path,
                         part->where, part->type);
    }
    struct pre_step *step = &t->pre[t->pre_count];
    if (strcmp(part->type, "ByteLevel") == 0) return read_byte_level(part, t);
    t->pre_count++;
    if (strcmp(part->type, "Split") == 0) return read_split(part, step);
    if (strcmp(part->type, "Metaspace") == 0) return read_metaspace(part, step);
    if (strcmp(part->type, "Digits") == 0) {
        step->kind = PRE_DIGITS;
        return want_bool(part, "individual_digits", &step->individual);
    }
    return unsupported(part, "ByteLevel, Split, Digits, Metaspace or a Sequence of them");
}

static enum status read_strip(const struct part *part, struct decoder *decoder) {
    const char *content = NULL;
    const json_t *start = json_object_get(part->object, "start"), *stop = json_object_get(part->object, "stop");
    TRY(want_text(part, "content", &content));
    if (!json_is_integer(start) || !json_is_integer(stop)) {
        return error_set(STATUS_DAMAGED, "%s: %s: expected whole numbers start and stop", part->path, part->where);
    }
    decoder->strip_start = json_integer_value(start);
    decoder->strip_stop = json_integer_value(stop);
    return memory_copy_text(content, &decoder->strip);
}

static enum status read_decoder(const struct part *part, struct tokenizer *t) {
    struct decoder *decoder = &t->decoder;
    if (strcmp(part->type, "ByteLevel") == 0) {
        decoder->byte_level = true;
    } else if (strcmp(part->type, "ByteFallback") == 0) {
        decoder->byte_fallback = true;
    } else if (strcmp(part->type, "Fuse") == 0) {
        decoder->fused = true;
    } else if (strcmp(part->type, "Replace") == 0) {
        if (decoder->byte_fallback) return unsupported(part, "Replace before ByteFallback and Fuse");
        return read_replace(part, &decoder->replace[decoder->replace_count++]);
    } else if (strcmp(part->type, "Strip") == 0) {
        if (!decoder->fused || decoder->strip) return unsupported(part, "one Strip, after Fuse");
        return read_strip(part, decoder);
    } else if (strcmp(part->type, "Metaspace") == 0) {
        if (decoder->replace_count) return unsupported(part, "Metaspace before Replace");
        enum prepend_scheme scheme;
        struct normalizer_step *step = &decoder->replace[decoder->replace_count++];
        TRY(read_marker(part, &step->from));
        TRY(read_scheme(part, &scheme));
        decoder->strips_first_marker = scheme != PREPEND_NEVER;
        return memory_copy_text(" ", &step->to);
    } else {
        return unsupported(part, "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip or a Sequence of them");
    }
    return STATUS_OK;
}

enum status tokenizer_read_steps(const char *path, const json_t *root, struct tokenizer *t) {
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    const json_t *decoder = json_object_get(root, "decoder");
    if (normalizer && !json_is_null(normalizer)) {
        TRY(read_sequence(path, "normalizer", normalizer, "normalizers", read_normalizer, t));
    }
    if (pre && !json_is_null(pre))
        TRY(read_sequence(path, "pre_tokenizer", pre, "pretokenizers", read_pre_tokenizer, t));
    if ((!decoder || json_is_null(decoder)) && t->byte_level) {
        t->decoder.byte_level = true; /* the text that went in */
        return STATUS_OK;
    }
    return read_sequence(path, "decoder", decoder, "decoders", read_decoder, t);
}
