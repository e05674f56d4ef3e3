/* Files on a POSIX system: whole reads, maps, and publishing without ever showing half a file. */
#ifndef SQUINT_BASE_FILE_H
#define SQUINT_BASE_FILE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool file_exists(const char *path);
bool file_is_directory(const char *path);
/* *found: whether directory/name is there. STATUS_MEMORY, *found false, when that cannot be told. */
enum status file_exists_in(const char *directory, const char *name, bool *found);
/* Bytes of the file at `path`. STATUS_NOT_FOUND or STATUS_IO names it. */
enum status file_size(const char *path, int64_t *bytes);
/* *out = the whole file and a NUL after it (not counted in *length); release with free(). */
enum status file_read(const char *path, char **out, size_t *length);
/* Creates `path` and its missing parents. */
enum status file_make_directory(const char *path);
/* "dir/name" in fresh memory; release with free(). */
enum status file_join(const char *directory, const char *name, char **out);
/* Flushes a file's, or a directory's, contents to the disk. */
enum status file_sync(const char *path);
/* Flushes `temporary`, renames it to `path` and flushes the directory that holds it. After STATUS_OK the file survives
 * a power cut; on failure `path` is what it was and `temporary` is removed. Both on one file system. */
enum status file_publish(const char *temporary, const char *path);
/* Writes `length` bytes to path.tmp-PID and publishes them at `path`. */
enum status file_write(const char *path, const void *data, size_t length);
/* Removes a file, or a directory with everything in it; absent is no error. */
enum status file_remove_tree(const char *path);
/* Sorted paths that match a shell pattern; release each and the array with free(). No match: STATUS_NOT_FOUND. */
enum status file_glob(const char *pattern, char ***paths, size_t *count);
/* Sorted names of a directory's entries without "." and ".."; release each and the array with free(). */
enum status file_list(const char *directory, char ***names, size_t *count);
void file_free_list(char **paths, size_t count); /* NULL-safe */

/* A read-only map of a file. */
struct file_map {
    const void *data;
    size_t bytes;
};
enum status file_map_open(const char *path, struct file_map *map);
void file_map_close(struct file_map *map); /* NULL-safe, twice-safe */

#endif
