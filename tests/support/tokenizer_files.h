/* For the tokenizers' tests: folders with files in them, and cmocka in the order in which it must be included. */
#ifndef SQUINT_TESTS_SUPPORT_TOKENIZER_FILES_H
#define SQUINT_TESTS_SUPPORT_TOKENIZER_FILES_H

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"

struct folder {
    char path[64];
};

static inline struct folder folder_new(void) {
    struct folder folder = {"/tmp/squint-tokenizer-XXXXXX"};
    assert_non_null(mkdtemp(folder.path));
    return folder;
}

static inline void folder_file(const struct folder *folder, const char *name, const void *bytes, size_t length) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder->path, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

static inline void folder_json(const struct folder *folder, const char *name, const json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT);
    assert_non_null(text);
    folder_file(folder, name, text, strlen(text));
    free(text);
}

static inline void folder_remove(const struct folder *folder) {
    assert_int_equal(file_remove_tree(folder->path), STATUS_OK);
}

static inline const char *source_directory(void) {
    const char *path = getenv("SQUINT_SOURCE");
    return path ? path : ".";
}

/* out = text with the first `from` as `to`; `from` must be there. */
static inline void replace_once(const char *text, const char *from, const char *to, char *out, size_t capacity) {
    const char *place = strstr(text, from);
    assert_non_null(place);
    int used = snprintf(out, capacity, "%.*s%s%s", (int)(place - text), text, to, place + strlen(from));
    assert_true(used > 0 && (size_t)used < capacity);
}

#endif
