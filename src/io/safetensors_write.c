/* Writes safetensors files tensor by tensor; see safetensors.h. */
#include "base/memory.h"
#include "io/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DATA_ALIGNMENT = 64 };

struct safetensors_writer {
    char *path, *temporary;
    FILE *file;
    int64_t expected, written; /* values */
};

static int64_t entry_count(const struct safetensors_entry *entry) {
    int64_t count = 1;
    for (int i = 0; i < entry->rank; i++) count *= entry->shape[i];
    return count;
}

/* The header as JSON, padded with spaces so that the data begins aligned. *values = how many the file will hold. */
static enum status make_header(const struct safetensors_entry *entries, int64_t count, char **out, size_t *length,
                               int64_t *values) {
    enum status status = STATUS_OK;
    char *text = NULL;
    json_t *header = json_pack("{s{ss}}", "__metadata__", "format", "pt");
    *values = 0;
    for (int64_t i = 0; header && i < count; i++) {
        json_t *shape = json_array();
        for (int d = 0; d < entries[i].rank; d++) json_array_append_new(shape, json_integer(entries[i].shape[d]));
        int64_t begin = *values * 4;
        *values += entry_count(&entries[i]);
        json_t *value = json_pack("{ss so s[I,I]}", "dtype", "F32", "shape", shape, "data_offsets", (json_int_t)begin,
                                  (json_int_t)(*values * 4));
        if (json_object_get(header, entries[i].name)) {
            status = error_set(STATUS_FAILED, "safetensors: tensor %s is to be written twice", entries[i].name);
        }
        if (!value || json_object_set_new(header, entries[i].name, value) != 0) break;
    }
    if (status == STATUS_OK && header && json_object_size(header) == (size_t)count + 1) {
        text = json_dumps(header, JSON_COMPACT | JSON_PRESERVE_ORDER);
    }
    if (status == STATUS_OK && !text) status = error_set(STATUS_MEMORY, "no memory for a safetensors header");
    if (status == STATUS_OK) {
        size_t used = strlen(text);
        *length = (used + 8 + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT - 8;
        status = memory_grow(&text, *length + 1, 1, "a safetensors header");
        if (status == STATUS_OK) memset(text + used, ' ', *length - used);
    }
    json_decref(header);
    if (status != STATUS_OK) {
        free(text);
        text = NULL;
    }
    *out = text;
    return status;
}

static enum status write_bytes(struct safetensors_writer *writer, const void *data, size_t bytes) {
    if (fwrite(data, 1, bytes, writer->file) == bytes) return STATUS_OK;
    return error_set(STATUS_IO, "%s: cannot write it: %s", writer->temporary, strerror(errno));
}

enum status safetensors_create(const char *path, const struct safetensors_entry *entries, int64_t count,
                               struct safetensors_writer **writer) {
    enum status status = STATUS_OK;
    char *header = NULL;
    size_t length = 0;
    *writer = NULL;
    TRY(memory_new(1, sizeof **writer, "a safetensors writer", writer));
    TRY_GOTO(done, make_header(entries, count, &header, &length, &(*writer)->expected));
    TRY_GOTO(done, memory_copy_text(path, &(*writer)->path));
    TRY_GOTO(done, memory_format(&(*writer)->temporary, "%s.tmp-%ld", path, (long)getpid()));
    (*writer)->file = fopen((*writer)->temporary, "wbe");
    if (!(*writer)->file) {
        status = error_set(STATUS_IO, "%s: cannot create it: %s", (*writer)->temporary, strerror(errno));
        goto done;
    }
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)length >> (8 * i));
    TRY_GOTO(done, write_bytes(*writer, prefix, sizeof prefix));
    status = write_bytes(*writer, header, length);
done:
    free(header);
    if (status != STATUS_OK) safetensors_discard(writer);
    return status;
}

enum status safetensors_write(struct safetensors_writer *writer, const float *values, int64_t count) {
    writer->written += count;
    return write_bytes(writer, values, (size_t)count * sizeof *values);
}

enum status safetensors_finish(struct safetensors_writer **writer) {
    enum status status = STATUS_OK;
    struct safetensors_writer *w = *writer;
    if (w->written != w->expected) {
        status = error_set(STATUS_SHAPE, "%s: expected %" PRId64 " values to be written, found %" PRId64, w->path,
                           w->expected, w->written);
        goto done;
    }
    int closed = fclose(w->file);
    w->file = NULL;
    if (closed != 0) {
        status = error_set(STATUS_IO, "%s: cannot write it: %s", w->temporary, strerror(errno));
        goto done;
    }
    status = file_publish(w->temporary, w->path);
done:
    safetensors_discard(writer);
    return status;
}

void safetensors_discard(struct safetensors_writer **writer) {
    if (!writer || !*writer) return;
    struct safetensors_writer *w = *writer;
    if (w->file) (void)fclose(w->file);
    if (w->temporary) (void)unlink(w->temporary); /* published: no longer there */
    free(w->temporary);
    free(w->path);
    free(w);
    *writer = NULL;
}
