/* The files that a command line's words stand for; see reader.h. */
#include "base/file.h"
#include "base/memory.h"
#include "data-prep/reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { DEEPEST = 64 }; /* a link that leads back up would never end */

static enum status append(char ***paths, size_t *count, const char *path) {
    TRY(memory_grow(paths, *count + 1, sizeof **paths, "a list of files"));
    TRY(memory_copy_text(path, &(*paths)[*count]));
    (*count)++;
    return STATUS_OK;
}

static enum status list_word(const char *path, int depth, char ***paths, size_t *count) {
    struct stat info;
    if (stat(path, &info) != 0) {
        return error_set(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open it: %s", path,
                         strerror(errno));
    }
    if (!S_ISDIR(info.st_mode)) return append(paths, count, path);
    if (depth >= DEEPEST) return error_set(STATUS_IO, "%s: folders inside folders, more than %d deep", path, DEEPEST);
    char **names = NULL;
    size_t name_count = 0;
    enum status status = file_list(path, &names, &name_count);
    for (size_t i = 0; i < name_count && status == STATUS_OK; i++) {
        char *inner = NULL;
        if (names[i][0] == '.') continue;
        status = file_join(path, names[i], &inner);
        if (status == STATUS_OK && (file_is_directory(inner) || (stat(inner, &info) == 0 && S_ISREG(info.st_mode)))) {
            status = list_word(inner, depth + 1, paths, count);
        }
        free(inner);
    }
    file_free_list(names, name_count);
    return status;
}

enum status reader_list(const char *const *words, size_t word_count, char ***paths, size_t *count) {
    enum status status = STATUS_OK;
    bool standard_input = false;
    *paths = NULL;
    *count = 0;
    for (size_t i = 0; i < word_count; i++) {
        size_t before = *count;
        if (strcmp(words[i], "-") == 0) {
            if (standard_input) {
                status = error_set(STATUS_USAGE, "standard input (\"-\") is given twice");
                goto done;
            }
            standard_input = true;
            TRY_GOTO(done, append(paths, count, "-"));
        } else {
            TRY_GOTO(done, list_word(words[i], 0, paths, count));
        }
        if (*count == before) {
            status = error_set(STATUS_NOT_FOUND, "%s: holds no files; expected text", words[i]);
            goto done;
        }
    }
done:
    if (status != STATUS_OK) {
        file_free_list(*paths, *count);
        *paths = NULL;
        *count = 0;
    }
    return status;
}
