/* A checkpoint's index: which tensors and attributes there are, and which rank's file holds which slice of what. */
#include "io/checkpoint_internal.h"

#include "base/hash.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void checkpoint_file_name(int64_t file, int64_t files, char text[64]) {
    snprintf(text, 64, "rank-%05" PRId64 "-of-%05" PRId64 ".h5", file, files);
}

void checkpoint_slice_name(const char *name, int64_t first, char text[H5_NAME_BYTES]) {
    snprintf(text, H5_NAME_BYTES, "slices/%s@%" PRId64, name, first);
}

/* --- in memory -------------------------------------------------------------------------------------------------- */

enum status checkpoint_index_add(struct checkpoint_index *index, const char *name, enum dtype dtype, int rank,
                                 const int64_t *shape, struct checkpoint_entry **entry) {
    size_t count = index->entry_count;
    /* Grows by doubling: at every power of two. */
    if ((count & (count - 1)) == 0) {
        TRY(memory_grow(&index->entries, count ? 2 * count : 1, sizeof *index->entries, "a checkpoint's index"));
    }
    struct checkpoint_entry *fresh = &index->entries[count];
    *fresh = (struct checkpoint_entry){.dtype = dtype, .rank = rank, .count = 1};
    for (int i = 0; i < rank; i++) {
        fresh->shape[i] = shape[i];
        fresh->count *= shape[i];
    }
    TRY(memory_copy_text(name, &fresh->name));
    index->entry_count++;
    *entry = fresh;
    return STATUS_OK;
}

enum status checkpoint_entry_add(struct checkpoint_entry *entry, int64_t first, int64_t count, int32_t file,
                                 uint64_t hash) {
    if (count == 0) return STATUS_OK;
    size_t used = entry->slice_count;
    if ((used & (used - 1)) == 0) {
        TRY(memory_grow(&entry->slices, used ? 2 * used : 1, sizeof *entry->slices, entry->name));
    }
    entry->slices[entry->slice_count++] =
        (struct checkpoint_slice){.first = first, .count = count, .file = file, .hash = hash};
    return STATUS_OK;
}

enum status checkpoint_index_add_attribute(struct checkpoint_index *index,
                                           const struct checkpoint_attribute *attribute) {
    size_t count = index->attribute_count;
    char *name = NULL, *data = NULL;
    if ((count & (count - 1)) == 0) {
        TRY(memory_grow(&index->attributes, count ? 2 * count : 1, sizeof *index->attributes, "attributes"));
    }
    enum status status = memory_copy_text(attribute->name, &name);
    if (status == STATUS_OK) status = memory_new(attribute->bytes + 1, 1, attribute->name, &data);
    if (status != STATUS_OK) {
        free(name);
        return status;
    }
    if (attribute->bytes > 0) memcpy(data, attribute->data, attribute->bytes);
    index->attributes[count] = *attribute;
    index->attributes[count].name = name;
    index->attributes[count].data = data;
    index->attribute_count++;
    return STATUS_OK;
}

void checkpoint_index_free(struct checkpoint_index *index) {
    for (size_t i = 0; i < index->entry_count; i++) {
        free(index->entries[i].name);
        free(index->entries[i].slices);
    }
    for (size_t i = 0; i < index->attribute_count; i++) {
        free((void *)index->attributes[i].name);
        free((void *)index->attributes[i].data);
    }
    free(index->entries);
    free(index->attributes);
    *index = (struct checkpoint_index){0};
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const struct checkpoint_entry *)a)->name, ((const struct checkpoint_entry *)b)->name);
}

static int compare_attributes(const void *a, const void *b) {
    return strcmp(((const struct checkpoint_attribute *)a)->name, ((const struct checkpoint_attribute *)b)->name);
}

static int compare_slices(const void *a, const void *b) {
    int64_t x = ((const struct checkpoint_slice *)a)->first, y = ((const struct checkpoint_slice *)b)->first;
    return (x > y) - (x < y);
}

static enum status merge(struct checkpoint_entry *into, struct checkpoint_entry *from, enum status code,
                         const char *where) {
    if (into->dtype != from->dtype || into->rank != from->rank ||
        memcmp(into->shape, from->shape, sizeof into->shape) != 0) {
        char a[96], b[96];
        struct tensor x = {.dtype = into->dtype, .rank = into->rank}, y = {.dtype = from->dtype, .rank = from->rank};
        memcpy(x.shape, into->shape, sizeof x.shape);
        memcpy(y.shape, from->shape, sizeof y.shape);
        tensor_describe(x, a, sizeof a);
        tensor_describe(y, b, sizeof b);
        return error_set(code, "%s: tensor %s: expected one dtype and shape from all ranks, found %s and %s", where,
                         into->name, a, b);
    }
    for (size_t s = 0; s < from->slice_count; s++) {
        const struct checkpoint_slice *slice = &from->slices[s];
        TRY(checkpoint_entry_add(into, slice->first, slice->count, slice->file, slice->hash));
    }
    return STATUS_OK;
}

static enum status check_cover(struct checkpoint_entry *entry, enum status code, const char *where) {
    int64_t next = 0;
    if (entry->slice_count > 1) qsort(entry->slices, entry->slice_count, sizeof *entry->slices, compare_slices);
    for (size_t s = 0; s < entry->slice_count; s++) {
        const struct checkpoint_slice *slice = &entry->slices[s];
        if (slice->first != next || slice->count < 1 || slice->count > entry->count - next) {
            return error_set(code,
                             "%s: tensor %s of %" PRId64 " elements: expected a slice from %" PRId64
                             " on, found elements %" PRId64 " to %" PRId64 " of rank %" PRId32,
                             where, entry->name, entry->count, next, slice->first, slice->first + slice->count - 1,
                             slice->file);
        }
        next += slice->count;
    }
    if (next == entry->count) return STATUS_OK;
    return error_set(code,
                     "%s: tensor %s of %" PRId64 " elements: expected slices for all, found none from %" PRId64 " on",
                     where, entry->name, entry->count, next);
}

enum status checkpoint_index_finish(struct checkpoint_index *index, enum status code, const char *where) {
    size_t kept = 0;
    enum status status = STATUS_OK;
    if (index->entry_count > 1) {
        qsort(index->entries, index->entry_count, sizeof *index->entries, compare_entries);
    }
    for (size_t i = 0; i < index->entry_count; i++) {
        struct checkpoint_entry *last = kept > 0 ? &index->entries[kept - 1] : NULL, *entry = &index->entries[i];
        if (last && strcmp(last->name, entry->name) == 0) {
            if (status == STATUS_OK) status = merge(last, entry, code, where);
            free(entry->name);
            free(entry->slices);
        } else {
            index->entries[kept++] = *entry;
        }
    }
    index->entry_count = kept;
    for (size_t i = 0; i < kept && status == STATUS_OK; i++) status = check_cover(&index->entries[i], code, where);
    if (index->attribute_count > 1) {
        qsort(index->attributes, index->attribute_count, sizeof *index->attributes, compare_attributes);
    }
    for (size_t i = 1; i < index->attribute_count && status == STATUS_OK; i++) {
        if (strcmp(index->attributes[i - 1].name, index->attributes[i].name) != 0) continue;
        status = error_set(code, "%s: attribute %s is there twice", where, index->attributes[i].name);
    }
    return status;
}

/* Of everything that the index says: HDF5's own checksums do not cover large attributes. */
static uint64_t hash_of(const struct checkpoint_index *index) {
    uint64_t hash = hash_combine((uint64_t)index->step, (uint64_t)index->files);
    for (size_t i = 0; i < index->entry_count; i++) {
        const struct checkpoint_entry *entry = &index->entries[i];
        hash = hash_combine(hash, hash_bytes(entry->name, strlen(entry->name)));
        hash = hash_combine(hash, (uint64_t)entry->dtype);
        hash = hash_combine(hash, hash_bytes(entry->shape, (size_t)entry->rank * sizeof *entry->shape));
        for (size_t s = 0; s < entry->slice_count; s++) {
            const struct checkpoint_slice *slice = &entry->slices[s];
            hash = hash_combine(hash, (uint64_t)slice->first);
            hash = hash_combine(hash, (uint64_t)slice->count);
            hash = hash_combine(hash, (uint64_t)slice->file);
            hash = hash_combine(hash, slice->hash);
        }
    }
    for (size_t i = 0; i < index->attribute_count; i++) {
        const struct checkpoint_attribute *attribute = &index->attributes[i];
        hash = hash_combine(hash, hash_bytes(attribute->name, strlen(attribute->name)));
        hash = hash_combine(hash, (uint64_t)attribute->type);
        if (attribute->type == CHECKPOINT_INTEGER) hash = hash_combine(hash, (uint64_t)attribute->integer);
        if (attribute->type == CHECKPOINT_REAL) hash = hash_combine(hash, hash_bytes(&attribute->real, 8));
        if (attribute->type == CHECKPOINT_TEXT || attribute->type == CHECKPOINT_BLOB) {
            hash = hash_combine(hash, hash_bytes(attribute->data, attribute->bytes));
        }
    }
    return hash;
}

/* --- index.h5: writing ------------------------------------------------------------------------------------------ */

/* The columns of an entry's table of slices. */
struct columns {
    int64_t *first, *count, *file;
    uint64_t *hash;
};

static enum status write_columns(struct h5 *file, const char *object, const struct checkpoint_entry *entry,
                                 const struct columns *columns) {
    int64_t n = (int64_t)entry->slice_count;
    TRY(h5_attribute_set_text(file, object, "dtype", dtype_name(entry->dtype)));
    TRY(h5_attribute_set_array(file, object, "slice_first", DTYPE_I64, n, columns->first));
    TRY(h5_attribute_set_array(file, object, "slice_count", DTYPE_I64, n, columns->count));
    TRY(h5_attribute_set_array(file, object, "slice_rank", DTYPE_I64, n, columns->file));
    return h5_attribute_set_array(file, object, "slice_hash", DTYPE_U64, n, columns->hash);
}

static enum status write_entry(struct h5 *file, const struct checkpoint_index *index,
                               const struct checkpoint_entry *entry) {
    typedef char file_name[64];
    typedef char dataset_name[H5_NAME_BYTES];
    enum status status = STATUS_OK;
    struct h5_source *sources = NULL;
    file_name *files = NULL;
    dataset_name *datasets = NULL, object;
    int64_t *numbers = NULL;
    size_t n = entry->slice_count;
    TRY_GOTO(done, memory_new(n, sizeof *sources, entry->name, &sources));
    TRY_GOTO(done, memory_new(n, sizeof *files, entry->name, &files));
    TRY_GOTO(done, memory_new(n, sizeof *datasets, entry->name, &datasets));
    TRY_GOTO(done, memory_new(4 * n, sizeof *numbers, entry->name, &numbers));
    struct columns columns = {numbers, numbers + n, numbers + 2 * n, (uint64_t *)(numbers + 3 * n)};
    for (size_t s = 0; s < n; s++) {
        const struct checkpoint_slice *slice = &entry->slices[s];
        checkpoint_file_name(slice->file, index->files, files[s]);
        checkpoint_slice_name(entry->name, slice->first, datasets[s]);
        sources[s] = (struct h5_source){files[s], datasets[s], slice->first, slice->count};
        columns.first[s] = slice->first;
        columns.count[s] = slice->count;
        columns.file[s] = slice->file;
        columns.hash[s] = slice->hash;
    }
    snprintf(object, sizeof object, "tensors/%s", entry->name);
    TRY_GOTO(done, h5_virtual_create(file, object, entry->dtype, entry->rank, entry->shape, sources, n));
    TRY_GOTO(done, write_columns(file, object, entry, &columns));
done:
    free(sources);
    free(files);
    free(datasets);
    free(numbers);
    return status;
}

static enum status write_attribute(struct h5 *file, const struct checkpoint_attribute *a) {
    switch (a->type) {
    case CHECKPOINT_INTEGER:
        return h5_attribute_set_i64(file, "attributes", a->name, a->integer);
    case CHECKPOINT_REAL:
        return h5_attribute_set_f64(file, "attributes", a->name, a->real);
    case CHECKPOINT_TEXT:
        return h5_attribute_set_text(file, "attributes", a->name, a->data);
    case CHECKPOINT_BLOB:
        return h5_attribute_set_array(file, "attributes", a->name, DTYPE_U8, (int64_t)a->bytes, a->data);
    }
    return STATUS_OK;
}

enum status checkpoint_index_write(const struct checkpoint_index *index, const char *path) {
    enum status status = STATUS_OK;
    struct h5 *file = NULL;
    TRY(h5_create(path, 0, &file));
    TRY_GOTO(done, h5_attribute_set_text(file, "/", "format", "squint checkpoint"));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "version", CHECKPOINT_VERSION));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "step", index->step));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "ranks", index->files));
    TRY_GOTO(done, h5_attribute_set_u64(file, "/", "index_hash", hash_of(index)));
    TRY_GOTO(done, h5_group_create(file, "tensors"));
    TRY_GOTO(done, h5_group_create(file, "attributes"));
    for (size_t i = 0; i < index->entry_count; i++) TRY_GOTO(done, write_entry(file, index, &index->entries[i]));
    for (size_t i = 0; i < index->attribute_count; i++) TRY_GOTO(done, write_attribute(file, &index->attributes[i]));
    status = h5_publish(&file);
done:
    h5_close(&file);
    return status;
}

/* --- index.h5: reading ------------------------------------------------------------------------------------------ */

static enum status read_dtype(struct h5 *file, const char *object, enum dtype *dtype) {
    char *text = NULL;
    TRY(h5_attribute_get_text(file, object, "dtype", &text));
    for (int d = DTYPE_F32; d <= DTYPE_U64; d++) {
        if (strcmp(text, dtype_name((enum dtype)d)) != 0) continue;
        *dtype = (enum dtype)d;
        free(text);
        return STATUS_OK;
    }
    enum status status = error_set(STATUS_DAMAGED, "%s: %s, attribute dtype: expected a dtype's name, found \"%s\"",
                                   h5_path(file), object, text);
    free(text);
    return status;
}

static enum status read_columns(struct h5 *file, const char *object, struct checkpoint_entry *entry) {
    enum status status = STATUS_OK;
    struct columns columns = {NULL, NULL, NULL, NULL};
    int64_t n[4] = {0};
    TRY_GOTO(done, h5_attribute_get_array(file, object, "slice_first", DTYPE_I64, &n[0], &columns.first));
    TRY_GOTO(done, h5_attribute_get_array(file, object, "slice_count", DTYPE_I64, &n[1], &columns.count));
    TRY_GOTO(done, h5_attribute_get_array(file, object, "slice_rank", DTYPE_I64, &n[2], &columns.file));
    TRY_GOTO(done, h5_attribute_get_array(file, object, "slice_hash", DTYPE_U64, &n[3], &columns.hash));
    if (n[0] != n[1] || n[0] != n[2] || n[0] != n[3]) {
        status = error_set(STATUS_DAMAGED,
                           "%s: %s: expected as many entries in each slice_ attribute, found %" PRId64 ", %" PRId64
                           ", %" PRId64 ", %" PRId64,
                           h5_path(file), object, n[0], n[1], n[2], n[3]);
        goto done;
    }
    for (int64_t s = 0; s < n[0] && status == STATUS_OK; s++) {
        status =
            checkpoint_entry_add(entry, columns.first[s], columns.count[s], (int32_t)columns.file[s], columns.hash[s]);
    }
done:
    free(columns.first);
    free(columns.count);
    free(columns.file);
    free(columns.hash);
    return status;
}

static enum status read_entry(struct h5 *file, const char *name, void *context) {
    struct checkpoint_index *index = context;
    struct checkpoint_entry *entry;
    struct h5_dataset dataset;
    char object[H5_NAME_BYTES];
    enum dtype dtype = DTYPE_F32;
    if (snprintf(object, sizeof object, "tensors/%s", name) >= H5_NAME_BYTES) {
        return error_set(STATUS_DAMAGED, "%s: a tensor's name is too long", h5_path(file));
    }
    TRY(h5_dataset_find(file, object, &dataset));
    TRY(read_dtype(file, object, &dtype));
    TRY(checkpoint_index_add(index, name, dtype, dataset.rank, dataset.shape, &entry));
    return read_columns(file, object, entry);
}

static enum status read_attribute(struct h5 *file, const char *name, enum h5_attribute_type type, void *context) {
    struct checkpoint_attribute attribute = {.name = name};
    void *data = NULL;
    int64_t count = 0;
    enum status status = STATUS_OK;
    switch (type) {
    case H5_INTEGER:
        attribute.type = CHECKPOINT_INTEGER;
        status = h5_attribute_get_i64(file, "attributes", name, &attribute.integer);
        break;
    case H5_REAL:
        attribute.type = CHECKPOINT_REAL;
        status = h5_attribute_get_f64(file, "attributes", name, &attribute.real);
        break;
    case H5_TEXT:
        attribute.type = CHECKPOINT_TEXT;
        status = h5_attribute_get_text(file, "attributes", name, (char **)&data);
        if (status == STATUS_OK) count = (int64_t)strlen(data);
        break;
    case H5_ARRAY:
        attribute.type = CHECKPOINT_BLOB;
        status = h5_attribute_get_array(file, "attributes", name, DTYPE_U8, &count, &data);
        break;
    }
    attribute.data = data;
    attribute.bytes = (size_t)count;
    if (status == STATUS_OK) status = checkpoint_index_add_attribute(context, &attribute);
    free(data);
    return status;
}

static enum status read_header(struct h5 *file, struct checkpoint_index *index, uint64_t *hash) {
    char *format = NULL;
    int64_t version = 0;
    TRY(h5_attribute_get_text(file, "/", "format", &format));
    bool known = strcmp(format, "squint checkpoint") == 0;
    free(format);
    if (!known) {
        return error_set(STATUS_DAMAGED, "%s: attribute format: expected \"squint checkpoint\", found another",
                         h5_path(file));
    }
    TRY(h5_attribute_get_i64(file, "/", "version", &version));
    if (version != CHECKPOINT_VERSION) {
        return error_set(STATUS_DAMAGED, "%s: attribute version: expected %d, found %" PRId64, h5_path(file),
                         CHECKPOINT_VERSION, version);
    }
    TRY(h5_attribute_get_i64(file, "/", "step", &index->step));
    TRY(h5_attribute_get_i64(file, "/", "ranks", &index->files));
    return h5_attribute_get_u64(file, "/", "index_hash", hash);
}

enum status checkpoint_index_read(const char *path, struct checkpoint_index *index) {
    enum status status = STATUS_OK;
    struct h5 *file = NULL;
    uint64_t expected = 0;
    *index = (struct checkpoint_index){0};
    TRY(h5_open(path, &file));
    TRY_GOTO(done, read_header(file, index, &expected));
    TRY_GOTO(done, h5_dataset_visit(file, "tensors", read_entry, index));
    TRY_GOTO(done, h5_attribute_visit(file, "attributes", read_attribute, index));
    TRY_GOTO(done, checkpoint_index_finish(index, STATUS_DAMAGED, path));
    uint64_t found = hash_of(index);
    if (found != expected) {
        status = error_set(STATUS_DAMAGED, "%s: expected hash %016" PRIx64 " of the index, found %016" PRIx64, path,
                           expected, found);
    }
done:
    h5_close(&file);
    return status;
}
