/* Reads a tokenizer.json: the order of its parts, and JSON values with messages. */
#include "data-prep/tokenizer_parts.h"

#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *json_describe(const json_t *value, char text[64]) {
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_STRING:
        snprintf(text, 64, "\"%.50s\"", json_string_value(value));
        break;
    case JSON_INTEGER:
        snprintf(text, 64, "%lld", (long long)json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(text, 64, "%g", json_real_value(value));
        break;
    case JSON_TRUE:
        snprintf(text, 64, "true");
        break;
    case JSON_FALSE:
        snprintf(text, 64, "false");
        break;
    case JSON_OBJECT:
        snprintf(text, 64, "an object");
        break;
    case JSON_ARRAY:
        snprintf(text, 64, "a list");
        break;
    default:
        snprintf(text, 64, value ? "null" : "nothing");
        break;
    }
    return text;
}

enum status json_read_file(const char *path, json_t **root) {
    *root = NULL;
    struct file_map map = {0};
    TRY(file_map_open(path, &map));
    enum status status = STATUS_OK;
    json_error_t fault;
    *root = json_loadb(map.data ? map.data : "", map.bytes, JSON_REJECT_DUPLICATES, &fault);
    if (!*root) {
        status = error_set(STATUS_DAMAGED, "%s: line %d: expected JSON: %s", path, fault.line, fault.text);
    } else if (!json_is_object(*root)) {
        char found[64];
        status = error_set(STATUS_DAMAGED, "%s: expected an object, found %s", path, json_describe(*root, found));
        json_decref(*root);
        *root = NULL;
    }
    file_map_close(&map);
    return status;
}

enum status json_want_bool(const char *path, const char *where, const json_t *object, const char *key, bool *out) {
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return STATUS_OK;
    if (!json_is_boolean(value)) {
        char found[64];
        return error_set(STATUS_DAMAGED, "%s: %s.%s: expected true or false, found %s", path, where, key,
                         json_describe(value, found));
    }
    *out = json_is_true(value);
    return STATUS_OK;
}

enum status json_want_text(const char *path, const char *where, const json_t *object, const char *key,
                           const char **out) {
    const json_t *value = json_object_get(object, key);
    *out = NULL;
    if (!value || json_is_null(value)) return STATUS_OK;
    if (!json_is_string(value)) {
        char found[64];
        return error_set(STATUS_DAMAGED, "%s: %s.%s: expected a text, found %s", path, where, key,
                         json_describe(value, found));
    }
    *out = json_string_value(value);
    return STATUS_OK;
}

enum status tokenizer_read_json(const char *path, struct tokenizer *tokenizer) {
    json_t *root = NULL;
    TRY(json_read_file(path, &root));
    enum status status = STATUS_OK;
    TRY_GOTO(done, tokenizer_read_model(path, json_object_get(root, "model"), tokenizer));
    TRY_GOTO(done, tokenizer_read_steps(path, root, tokenizer));
    TRY_GOTO(done, tokenizer_read_added(path, json_object_get(root, "added_tokens"), tokenizer));
done:
    json_decref(root);
    return status;
}
