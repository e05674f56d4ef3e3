/* See restore.h. */
#include "model/restore.h"

#include "base/hash.h"
#include "base/memory.h"
#include "params/values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 3, ATTRIBUTES_MAX = 24, NAME_BYTES = 96 };
static const char *const part_names[PARTS] = {"values", "m", "v"};

static struct tensor part_of_row(const struct param *row, int part) {
    return part == 0 ? row->value : part == 1 ? row->m : row->v;
}

static struct tensor part_of_block(const struct params *params, int part) {
    return part == 0 ? params->values : part == 1 ? params->m : params->v;
}

/* --- facts -------------------------------------------------------------------------------------------------------- */

enum status model_restore_facts(const struct checkpoint *checkpoint, struct restore_facts *facts) {
    *facts = (struct restore_facts){0};
    TRY(checkpoint_get_text(checkpoint, "config", &facts->config));
    TRY(checkpoint_get_text(checkpoint, "stage", &facts->stage));
    if (!checkpoint_has_attribute(checkpoint, "teacher")) return STATUS_OK;
    const char *hash = NULL;
    char *end = NULL;
    TRY(checkpoint_get_text(checkpoint, "teacher", &facts->teacher));
    TRY(checkpoint_get_text(checkpoint, "teacher_hash", &hash));
    facts->teacher_hash = strtoull(hash, &end, 16);
    if (strlen(hash) == 16 && *end == '\0') return STATUS_OK;
    return error_set(STATUS_DAMAGED, "checkpoint: teacher_hash: expected 16 hexadecimal digits, found \"%.40s\"", hash);
}

enum status model_restore_check_teacher(const char *checkpoint, const struct restore_facts *facts, const char *path,
                                        uint64_t hash) {
    if (facts->teacher_hash == hash) return STATUS_OK;
    char expected[17], found[17];
    hash_text(facts->teacher_hash, expected);
    hash_text(hash, found);
    return error_set(STATUS_USAGE, "%s: belongs to teacher %s with hash %s; found %s with hash %s", checkpoint,
                     facts->teacher ? facts->teacher : "(none)", expected, path ? path : "(none)", found);
}

/* --- reading -------------------------------------------------------------------------------------------------------
 */

/* Checkpoints hold ops->parameter, in whatever form the table holds its values. */
static enum status check_row(const struct checkpoint *checkpoint, const char *path, const char *name,
                             const struct param *row, enum dtype dtype) {
    struct checkpoint_tensor stored;
    char expected[64], found[64];
    if (!checkpoint_has(checkpoint, name, &stored)) {
        return error_set(STATUS_USAGE, "%s: has no %s; it belongs to a run that does not train that parameter", path,
                         name);
    }
    bool same = stored.rank == row->rank && stored.dtype == dtype;
    for (int i = 0; i < row->rank && same; i++) same = stored.shape[i] == row->shape[i];
    if (same) return STATUS_OK;
    struct tensor shape = {.dtype = stored.dtype, .rank = stored.rank}, wanted = row->value;
    wanted.dtype = dtype;
    memcpy(shape.shape, stored.shape, sizeof shape.shape);
    tensor_describe(wanted, expected, sizeof expected);
    tensor_describe(shape, found, sizeof found);
    return error_set(STATUS_USAGE, "%s: %s: expected %s, found %s; it belongs to another student", path, name, expected,
                     found);
}

static enum status check_all(const struct checkpoint *checkpoint, const char *path, const struct params *params,
                             int parts) {
    char name[NAME_BYTES];
    for (int64_t i = 0; i < params->count; i++) {
        for (int part = 0; part < parts && params->rows[i].owned; part++) {
            snprintf(name, sizeof name, "%s/%s", part_names[part], params->rows[i].name);
            TRY(check_row(checkpoint, path, name, &params->rows[i], params->ops->parameter));
        }
    }
    for (size_t i = 0; i < checkpoint_tensor_count(checkpoint); i++) {
        struct checkpoint_tensor stored = checkpoint_tensor(checkpoint, i);
        if (strncmp(stored.name, "values/", 7) != 0) continue;
        const struct param *row = params_find(params, stored.name + 7);
        if (row && row->owned) continue;
        return error_set(STATUS_USAGE, "%s: has %s, which the model does not own; it belongs to another student", path,
                         stored.name);
    }
    return STATUS_OK;
}

enum status model_restore(struct checkpoint *checkpoint, const char *path, struct model *model, bool moments) {
    const struct params *params = &model->params;
    const struct ops *ops = params->ops;
    enum status status = STATUS_OK;
    char name[NAME_BYTES];
    char *host = NULL;
    int parts = moments ? PARTS : 1;
    TRY_GOTO(done, check_all(checkpoint, path, params, parts));
    for (int64_t i = 0; i < params->count; i++) {
        struct param *row = &params->rows[i];
        for (int part = 0; part < parts && row->owned; part++) {
            const struct tensor tensor = part_of_row(row, part);
            const size_t bytes = (size_t)tensor_count(tensor) * dtype_size(ops->parameter);
            snprintf(name, sizeof name, "%s/%s", part_names[part], row->name);
            TRY_GOTO(done, memory_grow(&host, bytes, 1, name));
            TRY_GOTO(done, checkpoint_read(checkpoint, name, ops->parameter, 0, tensor_count(tensor), host));
            if (tensor.dtype == DTYPE_BF16) row->read_hash = hash_bytes(host, bytes);
            TRY_GOTO(done, values_upload(ops, tensor, (float *)(void *)host));
        }
        if (row->owned) TRY_GOTO(done, params_wrote(params, row));
    }
done:
    free(host);
    return status;
}

/* --- writing -------------------------------------------------------------------------------------------------------
 */

struct slices {
    struct checkpoint_item *items;
    char (*names)[NAME_BYTES];
    size_t count;
    char *host[PARTS]; /* copies of this rank's share; NULL where the device's memory is the host's */
};

static void slices_free(struct slices *slices) {
    for (int part = 0; part < PARTS; part++) free(slices->host[part]);
    free(slices->items);
    free(slices->names);
}

/* The elements begin … end−1 of the owned blocks, cut at the rows. Every row is named, so that an empty share says so.
 */
static enum status slices_make(const struct params *params, int64_t begin, int64_t end, struct slices *slices) {
    const struct ops *ops = params->ops;
    TRY(memory_new((size_t)params->count * PARTS, sizeof *slices->items, "a checkpoint's items", &slices->items));
    TRY(memory_new((size_t)params->count * PARTS, sizeof *slices->names, "a checkpoint's names", &slices->names));
    for (int part = 0; part < PARTS; part++) {
        struct tensor share = tensor_rows(part_of_block(params, part), begin, end - begin);
        const char *data = share.data;
        if (!ops->host_memory && end > begin) {
            TRY(memory_new(tensor_bytes(share), 1, "a checkpoint's copy", &slices->host[part]));
            TRY(ops->download(ops, share, slices->host[part]));
            data = slices->host[part];
        }
        for (int64_t i = 0; i < params->count; i++) {
            const struct param *row = &params->rows[i];
            if (!row->owned) continue;
            int64_t row_end = row->offset + tensor_count(row->value);
            int64_t first = row->offset > begin ? row->offset : begin, last = row_end < end ? row_end : end;
            if (first >= last) continue;
            char *name = slices->names[slices->count];
            snprintf(name, NAME_BYTES, "%s/%s", part_names[part], row->name);
            struct checkpoint_item *item = &slices->items[slices->count++];
            *item = (struct checkpoint_item){.name = name,
                                             .dtype = row->value.dtype,
                                             .rank = row->rank,
                                             .first = first - row->offset,
                                             .count = last - first,
                                             .data = data + (size_t)(first - begin) * dtype_size(row->value.dtype)};
            memcpy(item->shape, row->shape, sizeof item->shape);
        }
    }
    return STATUS_OK;
}

enum status model_save(struct comm *comm, const char *run_directory, int64_t step, const struct model *model,
                       const struct restore_facts *facts, const struct checkpoint_attribute *attributes,
                       size_t attribute_count) {
    struct slices slices = {0};
    struct checkpoint_attribute all[ATTRIBUTES_MAX];
    char hash[17];
    size_t count = 0;
    int64_t elements = model->params.owned_elements, rank = comm_rank(comm), size = comm_size(comm);
    all[count++] = checkpoint_text("config", facts->config);
    all[count++] = checkpoint_text("stage", facts->stage);
    if (facts->teacher) {
        hash_text(facts->teacher_hash, hash);
        all[count++] = checkpoint_text("teacher", facts->teacher);
        all[count++] = checkpoint_text("teacher_hash", hash);
    }
    for (size_t i = 0; i < attribute_count && count < ATTRIBUTES_MAX; i++) all[count++] = attributes[i];
    enum status status = slices_make(&model->params, elements * rank / size, elements * (rank + 1) / size, &slices);
    status = comm_agree(comm, status);
    if (status == STATUS_OK)
        status = checkpoint_save(comm, run_directory, step, slices.items, slices.count, all, count);
    slices_free(&slices);
    return status;
}
