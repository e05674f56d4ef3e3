/* Saving a checkpoint: every rank writes its slices, rank 0 the index, then the directory gets its name. */
#include "io/checkpoint_internal.h"

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALIGN_FROM = 1 << 20 };

struct checkpoint_attribute checkpoint_integer(const char *name, int64_t value) {
    return (struct checkpoint_attribute){.name = name, .type = CHECKPOINT_INTEGER, .integer = value};
}

struct checkpoint_attribute checkpoint_real(const char *name, double value) {
    return (struct checkpoint_attribute){.name = name, .type = CHECKPOINT_REAL, .real = value};
}

struct checkpoint_attribute checkpoint_text(const char *name, const char *value) {
    return (struct checkpoint_attribute){.name = name, .type = CHECKPOINT_TEXT, .data = value, .bytes = strlen(value)};
}

struct checkpoint_attribute checkpoint_blob(const char *name, const void *data, size_t bytes) {
    return (struct checkpoint_attribute){.name = name, .type = CHECKPOINT_BLOB, .data = data, .bytes = bytes};
}

enum status checkpoint_path(const char *run_directory, int64_t step, char **path) {
    return memory_format(path, "%s/checkpoints/step-%08" PRId64, run_directory, step);
}

/* --- this rank's file ------------------------------------------------------------------------------------------- */

/* One save under way. */
struct save {
    struct comm *comm;
    int64_t step;
    const struct checkpoint_item *items;
    size_t item_count;
    uint64_t *hashes; /* of the items */
    char *path, *temporary;
    char *latest, *latest_temporary; /* of rank 0 */
};

/* HDF5 reads "/" as a step into a group, and "." as the group itself. */
static bool name_is_good(const char *name) {
    size_t part = 0, length = strlen(name);
    if (length == 0 || length > CHECKPOINT_NAME_BYTES) return false;
    for (size_t i = 0; i <= length; i++) {
        if (name[i] != '/' && name[i] != '\0') continue;
        if (i == part || (i == part + 1 && name[part] == '.')) return false;
        part = i + 1;
    }
    return true;
}

static enum status check_items(const struct save *save) {
    for (size_t i = 0; i < save->item_count; i++) {
        const struct checkpoint_item *item = &save->items[i];
        int64_t total = 1;
        if (!item->name || !name_is_good(item->name)) {
            return error_set(STATUS_FAILED, "%s: \"%s\" cannot be a tensor's name", save->path,
                             item->name ? item->name : "");
        }
        bool shaped = item->rank >= 1 && item->rank <= TENSOR_MAX_RANK;
        for (int d = 0; shaped && d < item->rank; d++) {
            shaped = item->shape[d] >= 0;
            total *= item->shape[d];
        }
        if (!shaped || item->first < 0 || item->count < 0 || item->first > total || item->count > total - item->first ||
            (item->count > 0 && !item->data)) {
            return error_set(STATUS_FAILED,
                             "%s: tensor %s: expected a slice of at most %" PRId64 " elements, found %" PRId64
                             " from %" PRId64 " on",
                             save->path, item->name, shaped ? total : 0, item->count, item->first);
        }
    }
    return STATUS_OK;
}

static enum status write_slice(struct h5 *file, const struct checkpoint_item *item, uint64_t hash) {
    char name[H5_NAME_BYTES];
    checkpoint_slice_name(item->name, item->first, name);
    TRY(h5_write(file, name, item->dtype, 1, &item->count, item->data));
    TRY(h5_attribute_set_text(file, name, "dtype", dtype_name(item->dtype)));
    TRY(h5_attribute_set_array(file, name, "shape", DTYPE_I64, item->rank, item->shape));
    TRY(h5_attribute_set_i64(file, name, "first", item->first));
    return h5_attribute_set_u64(file, name, "hash", hash);
}

static enum status write_rank_file(struct save *save) {
    enum status status = STATUS_OK;
    struct h5 *file = NULL;
    char name[64], *path = NULL;
    int rank = comm_rank(save->comm), size = comm_size(save->comm);
    checkpoint_file_name(rank, size, name);
    TRY(file_join(save->temporary, name, &path));
    TRY_GOTO(done, h5_create(path, ALIGN_FROM, &file));
    TRY_GOTO(done, h5_attribute_set_text(file, "/", "format", "squint checkpoint slices"));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "version", CHECKPOINT_VERSION));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "step", save->step));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "rank", rank));
    TRY_GOTO(done, h5_attribute_set_i64(file, "/", "ranks", size));
    for (size_t i = 0; i < save->item_count; i++) {
        const struct checkpoint_item *item = &save->items[i];
        if (item->count == 0) continue;
        save->hashes[i] = hash_bytes(item->data, (size_t)item->count * dtype_size(item->dtype));
        TRY_GOTO(done, write_slice(file, item, save->hashes[i]));
    }
    status = h5_publish(&file);
done:
    h5_close(&file);
    free(path);
    return status;
}

/* --- the index -------------------------------------------------------------------------------------------------- */

/* An item on its way to rank 0; its name follows, padded to whole records. */
struct record {
    int64_t shape[TENSOR_MAX_RANK];
    int64_t first, count;
    uint64_t hash;
    int32_t dtype, rank;
    int64_t name_records;
};

static size_t name_records(const char *name) {
    return strlen(name) / sizeof(struct record) + 1;
}

static void pack(const struct save *save, struct record *records) {
    for (size_t i = 0; i < save->item_count; i++) {
        const struct checkpoint_item *item = &save->items[i];
        *records = (struct record){.first = item->first,
                                   .count = item->count,
                                   .hash = save->hashes[i],
                                   .dtype = (int32_t)item->dtype,
                                   .rank = item->rank,
                                   .name_records = (int64_t)name_records(item->name)};
        memcpy(records->shape, item->shape, (size_t)item->rank * sizeof *item->shape);
        memcpy(records + 1, item->name, strlen(item->name) + 1);
        records += 1 + records->name_records;
    }
}

static enum status unpack(struct checkpoint_index *index, const struct record *records, int64_t count, int rank) {
    for (int64_t i = 0; i < count; i += 1 + records[i].name_records) {
        const struct record *record = &records[i];
        struct checkpoint_entry *entry;
        TRY(checkpoint_index_add(index, (const char *)(record + 1), (enum dtype)record->dtype, record->rank,
                                 record->shape, &entry));
        TRY(checkpoint_entry_add(entry, record->first, record->count, rank, record->hash));
    }
    return STATUS_OK;
}

/* Rank 0's index gets the items of every rank. */
static enum status gather(struct save *save, struct checkpoint_index *index) {
    enum status status = STATUS_OK;
    int size = comm_size(save->comm);
    struct record *mine = NULL, *all = NULL;
    int64_t *counts = NULL, count = 0, most = 0;
    for (size_t i = 0; i < save->item_count; i++) count += 1 + (int64_t)name_records(save->items[i].name);
    status = memory_new((size_t)size, sizeof *counts, "a checkpoint's index", &counts);
    TRY_GOTO(done, comm_agree(save->comm, status));
    TRY_GOTO(done, comm_all_gather(save->comm, tensor_1d(&count, DTYPE_I64, 1), tensor_1d(counts, DTYPE_I64, size)));
    for (int r = 0; r < size; r++) most = counts[r] > most ? counts[r] : most;
    int64_t bytes = most * (int64_t)sizeof *mine;
    status = memory_new((size_t)most, sizeof *mine, "a checkpoint's index", &mine);
    if (status == STATUS_OK) {
        status = memory_new((size_t)(most * size), sizeof *all, "a checkpoint's index", &all);
    }
    TRY_GOTO(done, comm_agree(save->comm, status));
    pack(save, mine);
    TRY_GOTO(done,
             comm_all_gather(save->comm, tensor_1d(mine, DTYPE_U8, bytes), tensor_1d(all, DTYPE_U8, bytes * size)));
    for (int r = 0; r < size && comm_rank(save->comm) == 0 && status == STATUS_OK; r++) {
        status = unpack(index, all + most * r, counts[r], r);
    }
done:
    free(mine);
    free(all);
    free(counts);
    return status;
}

static enum status write_index(struct save *save, const struct checkpoint_attribute *attributes, size_t count) {
    enum status status = STATUS_OK;
    struct checkpoint_index index = {.step = save->step, .files = comm_size(save->comm)};
    char *path = NULL;
    TRY_GOTO(done, gather(save, &index));
    if (comm_rank(save->comm) != 0) goto done;
    for (size_t i = 0; i < count; i++) TRY_GOTO(done, checkpoint_index_add_attribute(&index, &attributes[i]));
    TRY_GOTO(done, checkpoint_index_finish(&index, STATUS_FAILED, save->path));
    TRY_GOTO(done, file_join(save->temporary, "index.h5", &path));
    TRY_GOTO(done, checkpoint_index_write(&index, path));
done:
    checkpoint_index_free(&index);
    free(path);
    return status;
}

/* --- the directory ---------------------------------------------------------------------------------------------- */

/* Where `latest` is, and where it is made. Known before anything is published: what comes after must not fail. */
static enum status latest_paths(const char *run_directory, char **link, char **temporary) {
    TRY(memory_format(link, "%s/checkpoints/latest", run_directory));
    return memory_format(temporary, "%s.tmp-%ld", *link, (long)getpid());
}

/* Rank 0: makes the temporary directory. All: learn its name. */
static enum status begin(struct save *save, const char *run_directory) {
    int64_t pid = getpid();
    TRY(comm_broadcast(save->comm, tensor_1d(&pid, DTYPE_I64, 1), 0));
    TRY(memory_format(&save->temporary, "%s/checkpoints/step-%08" PRId64 ".tmp-%" PRId64, run_directory, save->step,
                      pid));
    if (comm_rank(save->comm) != 0) return STATUS_OK;
    TRY(latest_paths(run_directory, &save->latest, &save->latest_temporary));
    TRY(file_remove_tree(save->temporary));
    return file_make_directory(save->temporary);
}

/* `latest` is a convenience for people: squint never reads it, so that it cannot be made only costs a warning. */
static void point_latest(const char *path, const char *link, const char *temporary) {
    const char *target = strrchr(path, '/') + 1;
    (void)unlink(temporary);
    if (symlink(target, temporary) == 0 && rename(temporary, link) == 0) return;
    log_warning("%s: cannot point it at %s: %s", link, target, strerror(errno));
    (void)unlink(temporary);
}

enum status checkpoint_point_latest(struct comm *comm, const char *run_directory, int64_t step) {
    enum status status = STATUS_OK;
    char *path = NULL, *link = NULL, *temporary = NULL;
    if (comm_rank(comm) == 0) {
        status = checkpoint_path(run_directory, step, &path);
        if (status == STATUS_OK) status = latest_paths(run_directory, &link, &temporary);
        if (status == STATUS_OK) point_latest(path, link, temporary);
    }
    free(path);
    free(link);
    free(temporary);
    return comm_agree(comm, status);
}

/* Gives the finished directory its name; an older one of that name goes away in the same instant where the file system
 * can exchange names, else an instant before. */
static enum status publish(struct save *save) {
    char *old = NULL, *copy = NULL;
    enum status status = STATUS_OK;
    if (!file_exists(save->path)) {
        TRY(file_publish(save->temporary, save->path));
        point_latest(save->path, save->latest, save->latest_temporary);
        return STATUS_OK;
    }
    TRY_GOTO(done, file_sync(save->temporary));
    TRY_GOTO(done, memory_copy_text(save->path, &copy));
    if (renameat2(AT_FDCWD, save->temporary, AT_FDCWD, save->path, RENAME_EXCHANGE) == 0) {
        TRY_GOTO(done, file_sync(dirname(copy)));
        point_latest(save->path, save->latest, save->latest_temporary);
        status = file_remove_tree(save->temporary);
    } else {
        TRY_GOTO(done, memory_format(&old, "%s.tmp-old-%ld", save->path, (long)getpid()));
        if (rename(save->path, old) != 0) {
            status = error_set(STATUS_IO, "%s: cannot rename it: %s", save->path, strerror(errno));
            goto done;
        }
        TRY_GOTO(done, file_publish(save->temporary, save->path));
        point_latest(save->path, save->latest, save->latest_temporary);
        status = file_remove_tree(old);
    }
done:
    free(old);
    free(copy);
    return status;
}

enum status checkpoint_save(struct comm *comm, const char *run_directory, int64_t step,
                            const struct checkpoint_item *items, size_t item_count,
                            const struct checkpoint_attribute *attributes, size_t attribute_count) {
    enum status status = STATUS_OK;
    struct save save = {.comm = comm, .step = step, .items = items, .item_count = item_count};
    bool first = comm_rank(comm) == 0;
    status = checkpoint_path(run_directory, step, &save.path);
    if (status == STATUS_OK) status = memory_new(item_count, sizeof *save.hashes, save.path, &save.hashes);
    if (status == STATUS_OK) status = check_items(&save);
    TRY_GOTO(done, comm_agree(comm, status));
    status = begin(&save, run_directory);
    TRY_GOTO(remove, comm_agree(comm, status));
    status = write_rank_file(&save);
    TRY_GOTO(remove, comm_agree(comm, status));
    status = write_index(&save, attributes, attribute_count);
    TRY_GOTO(remove, comm_agree(comm, status));
    status = first ? publish(&save) : STATUS_OK;
    TRY_GOTO(remove, comm_agree(comm, status));
remove:
    if (status != STATUS_OK && first && save.temporary) (void)file_remove_tree(save.temporary);
done:
    free(save.path);
    free(save.temporary);
    free(save.latest);
    free(save.latest_temporary);
    free(save.hashes);
    return status;
}
