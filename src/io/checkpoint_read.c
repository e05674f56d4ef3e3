/* Reading a checkpoint: any range of any tensor, out of the slices that any number of ranks have written. */
#include "io/checkpoint_internal.h"

#include "base/hash.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One rank's file, opened when a slice of it is first needed. Slices are read through the map. */
struct rank_file {
    struct h5 *h5;
    struct file_map map;
};

struct checkpoint {
    char *path;
    struct checkpoint_index index;
    struct rank_file *files;
};

enum status checkpoint_is_checkpoint(const char *path, bool *is) {
    return file_exists_in(path, "index.h5", is);
}

enum status checkpoint_open(const char *path, struct checkpoint **handle) {
    enum status status = STATUS_OK;
    struct checkpoint *checkpoint = NULL;
    char *index_path = NULL;
    *handle = NULL;
    if (!file_is_directory(path)) {
        return error_set(STATUS_NOT_FOUND, "%s: expected a checkpoint, found no directory of that name", path);
    }
    TRY(memory_new(1, sizeof *checkpoint, path, &checkpoint));
    TRY_GOTO(done, memory_copy_text(path, &checkpoint->path));
    TRY_GOTO(done, file_join(path, "index.h5", &index_path));
    if (!file_exists(index_path)) {
        status = error_set(STATUS_DAMAGED, "%s: expected a checkpoint with an index.h5, found none", path);
        goto done;
    }
    TRY_GOTO(done, checkpoint_index_read(index_path, &checkpoint->index));
    TRY_GOTO(done, memory_new((size_t)checkpoint->index.files, sizeof *checkpoint->files, path, &checkpoint->files));
done:
    free(index_path);
    if (status != STATUS_OK) checkpoint_close(&checkpoint);
    *handle = checkpoint;
    return status;
}

void checkpoint_close(struct checkpoint **handle) {
    if (!handle || !*handle) return;
    struct checkpoint *checkpoint = *handle;
    for (int64_t f = 0; checkpoint->files && f < checkpoint->index.files; f++) {
        h5_close(&checkpoint->files[f].h5);
        file_map_close(&checkpoint->files[f].map);
    }
    free(checkpoint->files);
    checkpoint_index_free(&checkpoint->index);
    free(checkpoint->path);
    free(checkpoint);
    *handle = NULL;
}

int64_t checkpoint_step(const struct checkpoint *checkpoint) {
    return checkpoint->index.step;
}
int checkpoint_files(const struct checkpoint *checkpoint) {
    return (int)checkpoint->index.files;
}
size_t checkpoint_tensor_count(const struct checkpoint *checkpoint) {
    return checkpoint->index.entry_count;
}

static struct checkpoint_tensor describe(const struct checkpoint_entry *entry) {
    struct checkpoint_tensor tensor = {
        .name = entry->name, .dtype = entry->dtype, .rank = entry->rank, .count = entry->count};
    memcpy(tensor.shape, entry->shape, sizeof tensor.shape);
    return tensor;
}

struct checkpoint_tensor checkpoint_tensor(const struct checkpoint *checkpoint, size_t index) {
    return describe(&checkpoint->index.entries[index]);
}

static int compare_name(const void *name, const void *entry) {
    return strcmp(name, ((const struct checkpoint_entry *)entry)->name);
}

static struct checkpoint_entry *find(const struct checkpoint *checkpoint, const char *name) {
    const struct checkpoint_index *index = &checkpoint->index;
    if (index->entry_count == 0) return NULL;
    return bsearch(name, index->entries, index->entry_count, sizeof *index->entries, compare_name);
}

bool checkpoint_has(const struct checkpoint *checkpoint, const char *name, struct checkpoint_tensor *tensor) {
    const struct checkpoint_entry *entry = find(checkpoint, name);
    if (entry && tensor) *tensor = describe(entry);
    return entry != NULL;
}

/* --- slices ----------------------------------------------------------------------------------------------------- */

static enum status expect(struct h5 *file, const char *name, int64_t expected) {
    int64_t found = 0;
    TRY(h5_attribute_get_i64(file, "/", name, &found));
    if (found == expected) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: attribute %s: expected %" PRId64 ", found %" PRId64, h5_path(file), name,
                     expected, found);
}

static enum status open_file(struct checkpoint *checkpoint, int64_t number) {
    struct rank_file *file = &checkpoint->files[number];
    enum status status = STATUS_OK;
    char name[64], *path = NULL;
    if (file->map.data) return STATUS_OK;
    checkpoint_file_name(number, checkpoint->index.files, name);
    TRY(file_join(checkpoint->path, name, &path));
    if (!file_exists(path)) {
        status =
            error_set(STATUS_DAMAGED, "%s: expected the slices of rank %" PRId64 ", found no such file", path, number);
        goto done;
    }
    TRY_GOTO(done, h5_open(path, &file->h5));
    TRY_GOTO(done, expect(file->h5, "version", CHECKPOINT_VERSION));
    TRY_GOTO(done, expect(file->h5, "step", checkpoint->index.step));
    TRY_GOTO(done, expect(file->h5, "rank", number));
    TRY_GOTO(done, expect(file->h5, "ranks", checkpoint->index.files));
    TRY_GOTO(done, file_map_open(path, &file->map));
done:
    if (status != STATUS_OK) h5_close(&file->h5);
    free(path);
    return status;
}

/* *data = the slice's bytes in the map, after comparing their hash. */
static enum status load_slice(struct checkpoint *checkpoint, const struct checkpoint_entry *entry,
                              struct checkpoint_slice *slice, const char **data) {
    char name[H5_NAME_BYTES];
    struct h5_dataset dataset;
    if (slice->file < 0 || slice->file >= checkpoint->index.files) {
        return error_set(STATUS_DAMAGED,
                         "%s: tensor %s: expected slices of %" PRId64 " ranks, found one of rank %" PRId32,
                         checkpoint->path, entry->name, checkpoint->index.files, slice->file);
    }
    TRY(open_file(checkpoint, slice->file));
    struct rank_file *file = &checkpoint->files[slice->file];
    checkpoint_slice_name(entry->name, slice->first, name);
    enum status status = h5_dataset_find(file->h5, name, &dataset);
    if (status != STATUS_OK) return status == STATUS_NOT_FOUND ? STATUS_DAMAGED : status;
    size_t bytes = (size_t)slice->count * dtype_size(entry->dtype);
    if (dataset.count != slice->count || dtype_size(dataset.dtype) != dtype_size(entry->dtype) || dataset.offset < 0 ||
        (size_t)dataset.offset > file->map.bytes || bytes > file->map.bytes - (size_t)dataset.offset) {
        return error_set(STATUS_DAMAGED,
                         "%s: %s: expected %" PRId64 " elements of %s in one piece, found %" PRId64
                         " of %s at byte %" PRId64 " of %zu",
                         h5_path(file->h5), name, slice->count, dtype_name(entry->dtype), dataset.count,
                         dtype_name(dataset.dtype), dataset.offset, file->map.bytes);
    }
    *data = (const char *)file->map.data + dataset.offset;
    if (slice->verified) return STATUS_OK;
    uint64_t found = hash_bytes(*data, bytes);
    if (found != slice->hash) {
        return error_set(STATUS_DAMAGED, "%s: %s: expected hash %016" PRIx64 ", found %016" PRIx64, h5_path(file->h5),
                         name, slice->hash, found);
    }
    slice->verified = true;
    return STATUS_OK;
}

enum status checkpoint_read(struct checkpoint *checkpoint, const char *name, enum dtype dtype, int64_t first,
                            int64_t count, void *destination) {
    struct checkpoint_entry *entry = find(checkpoint, name);
    if (!entry) return error_set(STATUS_NOT_FOUND, "%s: no tensor %s", checkpoint->path, name);
    if (entry->dtype != dtype) {
        return error_set(STATUS_SHAPE, "%s: tensor %s: expected %s, found %s", checkpoint->path, name,
                         dtype_name(dtype), dtype_name(entry->dtype));
    }
    if (first < 0 || count < 0 || first > entry->count || count > entry->count - first) {
        return error_set(STATUS_SHAPE,
                         "%s: tensor %s: expected a range of its %" PRId64 " elements, found %" PRId64 " from %" PRId64
                         " on",
                         checkpoint->path, name, entry->count, count, first);
    }
    size_t width = dtype_size(dtype);
    for (size_t s = 0; s < entry->slice_count; s++) {
        struct checkpoint_slice *slice = &entry->slices[s];
        int64_t begin = slice->first > first ? slice->first : first;
        int64_t end = slice->first + slice->count < first + count ? slice->first + slice->count : first + count;
        const char *data;
        if (begin >= end) continue;
        TRY(load_slice(checkpoint, entry, slice, &data));
        memcpy((char *)destination + (size_t)(begin - first) * width, data + (size_t)(begin - slice->first) * width,
               (size_t)(end - begin) * width);
    }
    return STATUS_OK;
}

enum status checkpoint_verify(struct comm *comm, const char *path) {
    struct checkpoint *checkpoint = NULL;
    int rank = comm_rank(comm), size = comm_size(comm);
    enum status status = checkpoint_open(path, &checkpoint);
    /* Each file is one rank's to read; opening them all on one would also map them all. */
    for (int64_t f = rank; status == STATUS_OK && f < checkpoint->index.files; f += size) {
        status = open_file(checkpoint, f);
        for (size_t i = 0; status == STATUS_OK && i < checkpoint->index.entry_count; i++) {
            struct checkpoint_entry *entry = &checkpoint->index.entries[i];
            for (size_t s = 0; status == STATUS_OK && s < entry->slice_count; s++) {
                const char *data;
                if (entry->slices[s].file == f) status = load_slice(checkpoint, entry, &entry->slices[s], &data);
            }
        }
    }
    checkpoint_close(&checkpoint);
    return comm_agree(comm, status);
}

/* --- attributes ------------------------------------------------------------------------------------------------- */

size_t checkpoint_attribute_count(const struct checkpoint *checkpoint) {
    return checkpoint->index.attribute_count;
}

struct checkpoint_attribute checkpoint_attribute(const struct checkpoint *checkpoint, size_t index) {
    return checkpoint->index.attributes[index];
}

static const struct checkpoint_attribute *attribute(const struct checkpoint *checkpoint, const char *name) {
    for (size_t i = 0; i < checkpoint->index.attribute_count; i++) {
        if (strcmp(checkpoint->index.attributes[i].name, name) == 0) return &checkpoint->index.attributes[i];
    }
    return NULL;
}

bool checkpoint_has_attribute(const struct checkpoint *checkpoint, const char *name) {
    return attribute(checkpoint, name) != NULL;
}

static enum status get(const struct checkpoint *checkpoint, const char *name, enum checkpoint_attribute_type type,
                       const struct checkpoint_attribute **found) {
    static const char *const types[] = {"a whole number", "a number", "a text", "bytes"};
    *found = attribute(checkpoint, name);
    if (*found && (*found)->type == type) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: attribute %s: expected %s, found %s", checkpoint->path, name, types[type],
                     *found ? types[(*found)->type] : "none");
}

enum status checkpoint_get_integer(const struct checkpoint *checkpoint, const char *name, int64_t *value) {
    const struct checkpoint_attribute *found;
    TRY(get(checkpoint, name, CHECKPOINT_INTEGER, &found));
    *value = found->integer;
    return STATUS_OK;
}

enum status checkpoint_get_real(const struct checkpoint *checkpoint, const char *name, double *value) {
    const struct checkpoint_attribute *found;
    TRY(get(checkpoint, name, CHECKPOINT_REAL, &found));
    *value = found->real;
    return STATUS_OK;
}

enum status checkpoint_get_text(const struct checkpoint *checkpoint, const char *name, const char **value) {
    const struct checkpoint_attribute *found;
    TRY(get(checkpoint, name, CHECKPOINT_TEXT, &found));
    *value = found->data;
    return STATUS_OK;
}

enum status checkpoint_get_blob(const struct checkpoint *checkpoint, const char *name, const void **data,
                                size_t *bytes) {
    const struct checkpoint_attribute *found;
    TRY(get(checkpoint, name, CHECKPOINT_BLOB, &found));
    *data = found->data;
    *bytes = found->bytes;
    return STATUS_OK;
}
