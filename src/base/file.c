/* See file.h. */
#include "base/file.h"

#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status system_error(const char *action, const char *path) {
    enum status code = errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO;
    return error_set(code, "%s: cannot %s: %s", path, action, strerror(errno));
}

bool file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

bool file_is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum status file_exists_in(const char *directory, const char *name, bool *found) {
    char *path = NULL;
    *found = false;
    TRY(file_join(directory, name, &path));
    *found = file_exists(path);
    free(path);
    return STATUS_OK;
}

enum status file_size(const char *path, int64_t *bytes) {
    struct stat info;
    if (stat(path, &info) != 0) return system_error("look at it", path);
    *bytes = info.st_size;
    return STATUS_OK;
}

static enum status read_all(int fd, const char *path, char *data, size_t wanted, size_t *length) {
    size_t used = 0;
    while (used < wanted) {
        ssize_t got = read(fd, data + used, wanted - used);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return system_error("read it", path);
        if (got == 0) break;
        used += (size_t)got;
    }
    data[used] = '\0';
    *length = used;
    return STATUS_OK;
}

enum status file_read(const char *path, char **out, size_t *length) {
    enum status status = STATUS_OK;
    struct stat info;
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return system_error("open it", path);
    if (fstat(fd, &info) != 0) {
        status = system_error("look at it", path);
        goto done;
    }
    if (S_ISDIR(info.st_mode)) {
        status = error_set(STATUS_IO, "%s: is a directory, expected a file", path);
        goto done;
    }
    TRY_GOTO(done, memory_new((size_t)info.st_size + 1, 1, path, out));
    TRY_GOTO(done, read_all(fd, path, *out, (size_t)info.st_size, length));
done:
    close(fd);
    if (status != STATUS_OK) {
        free(*out);
        *out = NULL;
    }
    return status;
}

enum status file_make_directory(const char *path) {
    char partial[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof partial) return error_set(STATUS_IO, "%s: the path is too long", path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(partial, path, i);
        partial[i] = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST) return system_error("make the directory", partial);
    }
    if (!file_is_directory(path)) return error_set(STATUS_IO, "%s: exists and is not a directory", path);
    return STATUS_OK;
}

enum status file_join(const char *directory, const char *name, char **out) {
    return memory_format(out, "%s/%s", directory, name);
}

enum status file_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return system_error("open it to flush it", path);
    enum status status = STATUS_OK;
    if (fsync(fd) != 0) status = system_error("flush it to the disk", path);
    if (close(fd) != 0 && status == STATUS_OK) status = system_error("close it", path);
    return status;
}

enum status file_publish(const char *temporary, const char *path) {
    enum status status = STATUS_OK;
    char *copy = NULL;
    struct stat old;
    /* A rename would put a file in the place of a device or of a whole directory. */
    if (stat(path, &old) == 0 && !S_ISREG(old.st_mode) && !(S_ISDIR(old.st_mode) && file_is_directory(temporary))) {
        status = error_set(STATUS_USAGE, "%s: expected a regular file to write, found a device or directory", path);
        goto done;
    }
    TRY_GOTO(done, file_sync(temporary));
    TRY_GOTO(done, memory_copy_text(path, &copy));
    if (rename(temporary, path) != 0) {
        status = system_error("rename a temporary file to it", path);
        goto done;
    }
    status = file_sync(dirname(copy));
done:
    free(copy);
    if (status != STATUS_OK) (void)file_remove_tree(temporary);
    return status;
}

enum status file_write(const char *path, const void *data, size_t length) {
    enum status status = STATUS_OK;
    char *temporary = NULL;
    FILE *file = NULL;
    TRY_GOTO(done, memory_format(&temporary, "%s.tmp-%ld", path, (long)getpid()));
    file = fopen(temporary, "wbe");
    if (!file) {
        status = system_error("create it", temporary);
        goto done;
    }
    if (fwrite(data, 1, length, file) != length) status = system_error("write it", temporary);
    if (fclose(file) != 0 && status == STATUS_OK) status = system_error("write it", temporary);
    if (status == STATUS_OK) {
        status = file_publish(temporary, path);
    } else {
        (void)unlink(temporary);
    }
done:
    free(temporary);
    return status;
}

enum status file_remove_tree(const char *path) {
    struct stat info;
    if (lstat(path, &info) != 0) return errno == ENOENT ? STATUS_OK : system_error("look at it", path);
    if (!S_ISDIR(info.st_mode))
        return unlink(path) == 0 || errno == ENOENT ? STATUS_OK : system_error("remove it", path);
    char **names = NULL;
    size_t count = 0;
    enum status status = file_list(path, &names, &count);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        char *entry = NULL;
        status = file_join(path, names[i], &entry);
        if (status == STATUS_OK) status = file_remove_tree(entry);
        free(entry);
    }
    file_free_list(names, count);
    if (status == STATUS_OK && rmdir(path) != 0 && errno != ENOENT) status = system_error("remove it", path);
    return status;
}

static enum status append_copy(char ***list, size_t *count, const char *text) {
    TRY(memory_grow(list, *count + 1, sizeof **list, "a list of files"));
    TRY(memory_copy_text(text, &(*list)[*count]));
    (*count)++;
    return STATUS_OK;
}

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum status file_glob(const char *pattern, char ***paths, size_t *count) {
    glob_t found = {0};
    *paths = NULL;
    *count = 0;
    int result = glob(pattern, 0, NULL, &found);
    if (result == GLOB_NOMATCH) {
        return error_set(STATUS_NOT_FOUND, "%s: no file matches", pattern);
    }
    enum status status = result == 0              ? STATUS_OK
                         : result == GLOB_NOSPACE ? error_set(STATUS_MEMORY, "%s: no memory to list it", pattern)
                                                  : error_set(STATUS_IO, "%s: cannot be listed", pattern);
    for (size_t i = 0; result == 0 && i < found.gl_pathc && status == STATUS_OK; i++) {
        status = append_copy(paths, count, found.gl_pathv[i]);
    }
    globfree(&found);
    if (status != STATUS_OK) {
        file_free_list(*paths, *count);
        *paths = NULL;
        *count = 0;
    }
    return status;
}

enum status file_list(const char *directory, char ***names, size_t *count) {
    *names = NULL;
    *count = 0;
    DIR *stream = opendir(directory);
    if (!stream) return system_error("list it", directory);
    enum status status = STATUS_OK;
    for (struct dirent *entry; status == STATUS_OK && (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        status = append_copy(names, count, entry->d_name);
    }
    closedir(stream);
    if (status != STATUS_OK) {
        file_free_list(*names, *count);
        *names = NULL;
        *count = 0;
        return status;
    }
    if (*count > 1) qsort(*names, *count, sizeof **names, compare_texts);
    return STATUS_OK;
}

void file_free_list(char **paths, size_t count) {
    for (size_t i = 0; paths && i < count; i++) free(paths[i]);
    free(paths);
}

enum status file_map_open(const char *path, struct file_map *map) {
    *map = (struct file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return system_error("open it", path);
    enum status status = STATUS_OK;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        status = system_error("look at it", path);
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            status = system_error("map it", path);
        } else {
            *map = (struct file_map){.data = data, .bytes = (size_t)info.st_size};
        }
    }
    close(fd);
    return status;
}

void file_map_close(struct file_map *map) {
    if (map && map->data) munmap((void *)map->data, map->bytes);
    if (map) *map = (struct file_map){0};
}
