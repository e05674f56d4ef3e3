/* squint.json and squint.safetensors: what a student has and transformers has no place for; see huggingface.h. */
#include "base/file.h"
#include "base/memory.h"
#include "io/huggingface_internal.h"
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

enum { STUDENT_FORMAT = 1 };

/* ---- writing --------------------------------------------------------------------------------------------------------
 */
static json_t *rule_json(const struct config_attention *rule) {
    json_t *options = json_object();
    for (size_t i = 0; i < rule->option_count; i++) {
        json_t *words = json_array();
        for (size_t w = 0; w < rule->options[i].count; w++)
            json_array_append_new(words, json_string(rule->options[i].words[w]));
        json_object_set_new(options, rule->options[i].key, words);
    }
    return json_pack("{sI sI ss so}", "first", (json_int_t)rule->first, "last", (json_int_t)rule->last, "kind",
                     rule->kind, "options", options);
}

static enum status write_rules(const char *directory, const struct huggingface_save *what) {
    enum status status = STATUS_OK;
    char *text = NULL, *line = NULL, *path = NULL;
    json_t *rules = json_array();
    for (size_t i = 0; i < what->rule_count; i++) json_array_append_new(rules, rule_json(&what->rules[i]));
    json_t *json =
        json_pack("{si ss? so}", "format_version", STUDENT_FORMAT, "teacher", what->teacher, "attention", rules);
    if (json && json_array_size(rules) == what->rule_count) text = json_dumps(json, JSON_INDENT(2));
    if (!text) {
        status = error_set(STATUS_MEMORY, "no memory for squint.json");
        goto done;
    }
    TRY_GOTO(done, memory_format(&line, "%s\n", text));
    TRY_GOTO(done, file_join(directory, "squint.json", &path));
    status = file_write(path, line, strlen(line));
done:
    json_decref(json);
    free(text);
    free(line);
    free(path);
    return status;
}

static enum status write_added(const char *directory, const struct params *params) {
    enum status status = STATUS_OK;
    struct safetensors_entry *entries = NULL;
    struct safetensors_writer *writer = NULL;
    float *values = NULL;
    double *wide = NULL;
    char *path = NULL;
    int64_t count = 0;
    TRY_GOTO(done, memory_new((size_t)params->count, sizeof *entries, "a list of tensors", &entries));
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->added) continue;
        entries[count].name = row->name;
        entries[count].rank = row->rank;
        memcpy(entries[count++].shape, row->shape, sizeof row->shape);
    }
    TRY_GOTO(done, file_join(directory, "squint.safetensors", &path));
    TRY_GOTO(done, safetensors_create(path, entries, count, &writer));
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        int64_t elements = tensor_count(row->value);
        if (!row->added) continue;
        TRY_GOTO(done, memory_grow(&values, (size_t)elements, sizeof *values, row->name));
        TRY_GOTO(done, memory_grow(&wide, (size_t)elements, sizeof *wide, row->name));
        TRY_GOTO(done, huggingface_download(params->ops, row->value, values, wide, elements));
        TRY_GOTO(done, safetensors_write(writer, values, elements));
    }
    status = safetensors_finish(&writer);
done:
    safetensors_discard(&writer);
    free(entries);
    free(values);
    free(wide);
    free(path);
    return status;
}

enum status huggingface_write_student(const char *directory, const struct huggingface_save *what) {
    TRY(write_rules(directory, what));
    return write_added(directory, what->params);
}

/* ---- reading --------------------------------------------------------------------------------------------------------
 */
void huggingface_free_rules(struct config_attention *rules, size_t count) {
    for (size_t i = 0; rules && i < count; i++) {
        for (size_t o = 0; o < rules[i].option_count; o++) {
            for (size_t w = 0; w < rules[i].options[o].count; w++) free(rules[i].options[o].words[w]);
            free(rules[i].options[o].words);
            free(rules[i].options[o].key);
        }
        free(rules[i].options);
        free(rules[i].kind);
    }
    free(rules);
}

static enum status read_option(const char *path, const char *key, const json_t *words, struct config_option *option) {
    TRY(memory_copy_text(key, &option->key));
    TRY(memory_new(json_array_size(words), sizeof *option->words, "options of a kind", &option->words));
    for (size_t w = 0; w < json_array_size(words); w++) {
        const char *word = json_string_value(json_array_get(words, w));
        if (!word) return error_set(STATUS_DAMAGED, "%s: attention: option %s: expected a list of texts", path, key);
        TRY(memory_copy_text(word, &option->words[w]));
        option->count++;
    }
    if (option->count > 0) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: attention: option %s: expected a list of texts, found none", path, key);
}

static enum status read_rule(const char *path, size_t index, const json_t *json, struct config_attention *rule) {
    const json_t *first = json_object_get(json, "first"), *last = json_object_get(json, "last");
    const char *kind = json_string_value(json_object_get(json, "kind"));
    json_t *options = json_object_get(json, "options");
    const char *key;
    json_t *words;
    if (!kind || !json_is_integer(first) || !json_is_integer(last) || json_integer_value(first) < 0 ||
        json_integer_value(last) < -1 || !json_is_object(options)) {
        return error_set(
            STATUS_DAMAGED,
            "%s: attention: entry %zu: expected first >= 0, last >= -1, kind, options; found something else", path,
            index);
    }
    rule->first = json_integer_value(first);
    rule->last = json_integer_value(last);
    TRY(memory_copy_text(kind, &rule->kind));
    TRY(memory_new(json_object_size(options), sizeof *rule->options, "options of a kind", &rule->options));
    json_object_foreach(options, key, words) {
        TRY(read_option(path, key, words, &rule->options[rule->option_count++]));
    }
    return STATUS_OK;
}

static enum status read_rules(const char *path, const json_t *json, struct config_attention **rules, size_t *count) {
    const json_t *version = json_object_get(json, "format_version"), *list = json_object_get(json, "attention");
    if (!json_is_integer(version) || json_integer_value(version) != STUDENT_FORMAT) {
        return error_set(STATUS_DAMAGED, "%s: format_version: expected %d, found %s", path, STUDENT_FORMAT,
                         json_is_integer(version) ? "another" : "none");
    }
    if (!json_is_array(list) || json_array_size(list) == 0) {
        return error_set(STATUS_DAMAGED, "%s: attention: expected a list of layers and kinds, found none", path);
    }
    TRY(memory_new(json_array_size(list), sizeof **rules, "kinds of layers", rules));
    for (size_t i = 0; i < json_array_size(list); i++) {
        TRY(read_rule(path, i, json_array_get(list, i), &(*rules)[(*count)++]));
    }
    return STATUS_OK;
}

enum status huggingface_read_rules(const char *directory, struct config_attention **rules, size_t *count) {
    enum status status = STATUS_OK;
    char *path = NULL;
    json_t *json = NULL;
    *rules = NULL;
    *count = 0;
    TRY_GOTO(done, file_join(directory, "squint.json", &path));
    if (!file_exists(path)) goto done;
    TRY_GOTO(done, huggingface_read_json(path, &json));
    status = read_rules(path, json, rules, count);
done:
    if (status != STATUS_OK) {
        huggingface_free_rules(*rules, *count);
        *rules = NULL;
        *count = 0;
    }
    json_decref(json);
    free(path);
    return status;
}
