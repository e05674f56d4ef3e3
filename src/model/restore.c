/* See restore.h. */
#include "model/restore.h"

#include "base/hash.h"
#include "base/memory.h"
#include "params/division.h"
#include "params/values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 3, ATTRIBUTES_MAX = 24, NAME_BYTES = 96 };
static const char *const part_names[PARTS] = {"values", "m", "v"};

static struct tensor moment_of(const struct params *params, int part) {
    return part == 1 ? params->m : params->v;
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

/* Masters are divided: this rank's part of them, and the working copy, whole. */
static enum status restore_divided(const struct params *params, const struct param *row, char *host) {
    const struct ops *ops = params->ops;
    for (int64_t s = 0; s < params->division.span_count; s++) {
        const struct span *span = &params->division.spans[s];
        int64_t first = 0, end = 0;
        if (!span_of_row(span, row, &first, &end)) continue;
        const char *from = host + (size_t)(first - row->offset) * dtype_size(ops->parameter);
        TRY(ops->upload(ops, tensor_rows(span_values(params, span), first - span->first, end - first), from));
    }
    return values_upload(ops, row->working, (float *)(void *)host);
}

static enum status restore_value(struct checkpoint *checkpoint, const struct params *params, struct param *row,
                                 const char *name, char *host) {
    const struct ops *ops = params->ops;
    const int64_t count = tensor_count(row->value);
    TRY(checkpoint_read(checkpoint, name, ops->parameter, 0, count, host));
    if (!row->value.data) return restore_divided(params, row, host);
    if (row->value.dtype == DTYPE_BF16) row->read_hash = hash_bytes(host, (size_t)count * dtype_size(ops->parameter));
    TRY(values_upload(ops, row->value, (float *)(void *)host));
    return params_wrote(params, row);
}

/* What this rank keeps of the row's moment. */
static enum status restore_moment(struct checkpoint *checkpoint, const struct params *params, const struct param *row,
                                  int part, const char *name, char *host) {
    const struct ops *ops = params->ops;
    for (int64_t s = 0; s < params->division.span_count; s++) {
        const struct span *span = &params->division.spans[s];
        int64_t first = 0, end = 0;
        if (!span_of_row(span, row, &first, &end)) continue;
        TRY(checkpoint_read(checkpoint, name, ops->parameter, first - row->offset, end - first, host));
        TRY(ops->upload(ops, tensor_rows(moment_of(params, part), span->state + first - span->first, end - first),
                        host));
    }
    return STATUS_OK;
}

enum status model_restore(struct checkpoint *checkpoint, const char *path, struct model *model, bool moments) {
    const struct params *params = &model->params;
    enum status status = STATUS_OK;
    char name[NAME_BYTES];
    char *host = NULL;
    int parts = moments ? PARTS : 1;
    TRY_GOTO(done, check_all(checkpoint, path, params, parts));
    for (int64_t i = 0; i < params->count; i++) {
        struct param *row = &params->rows[i];
        for (int part = 0; part < parts && row->owned; part++) {
            snprintf(name, sizeof name, "%s/%s", part_names[part], row->name);
            TRY_GOTO(done, memory_grow(&host, (size_t)tensor_count(row->value) * dtype_size(params->ops->parameter), 1,
                                       name));
            status = part == 0 ? restore_value(checkpoint, params, row, name, host)
                               : restore_moment(checkpoint, params, row, part, name, host);
            if (status != STATUS_OK) goto done;
        }
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
    char *host[PARTS]; /* copies of this rank's elements; NULL where the device's memory is the host's */
};

static void slices_free(struct slices *slices) {
    for (int part = 0; part < PARTS; part++) free(slices->host[part]);
    free(slices->items);
    free(slices->names);
}

/* Copies what the span has of a part behind what is there; *data: where it is in the host's memory. */
static enum status bring_span(const struct params *params, const struct span *span, int part, size_t *used, char *copy,
                              const char **data) {
    const struct ops *ops = params->ops;
    const struct tensor from = part == 0 ? span_values(params, span) : span_state(span, moment_of(params, part));
    *data = copy ? copy + *used : from.data;
    if (!copy || span->count == 0) return STATUS_OK;
    TRY(ops->download(ops, from, copy + *used));
    *used += tensor_bytes(from);
    return STATUS_OK;
}

/* The span's elements, in the host's memory at `data`, cut at the rows. */
static void add_items(const struct params *params, const struct span *span, int part, const char *data,
                      struct slices *slices) {
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        int64_t first = 0, last = 0;
        if (!row->owned || !span_of_row(span, row, &first, &last)) continue;
        char *name = slices->names[slices->count];
        snprintf(name, NAME_BYTES, "%s/%s", part_names[part], row->name);
        struct checkpoint_item *item = &slices->items[slices->count++];
        *item = (struct checkpoint_item){.name = name,
                                         .dtype = row->value.dtype,
                                         .rank = row->rank,
                                         .first = first - row->offset,
                                         .count = last - first,
                                         .data = data + (size_t)(first - span->first) * dtype_size(row->value.dtype)};
        memcpy(item->shape, row->shape, sizeof item->shape);
    }
}

static enum status slices_make(const struct params *params, const struct span *spans, int64_t span_count,
                               struct slices *slices) {
    const size_t most = (size_t)(params->count + span_count) * PARTS;
    int64_t elements = 0;
    for (int64_t s = 0; s < span_count; s++) elements += spans[s].count;
    TRY(memory_new(most, sizeof *slices->items, "a checkpoint's items", &slices->items));
    TRY(memory_new(most, sizeof *slices->names, "a checkpoint's names", &slices->names));
    for (int part = 0; part < PARTS; part++) {
        size_t used = 0;
        if (!params->ops->host_memory && elements > 0) {
            const size_t bytes = (size_t)elements * dtype_size(params->ops->parameter);
            TRY(memory_new(bytes, 1, "a checkpoint's copy", &slices->host[part]));
        }
        for (int64_t s = 0; s < span_count; s++) {
            const char *data = NULL;
            TRY(bring_span(params, &spans[s], part, &used, slices->host[part], &data));
            add_items(params, &spans[s], part, data, slices);
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
    const struct division *division = &model->params.division;
    const int64_t elements = model->params.owned_elements, rank = comm_rank(comm), size = comm_size(comm);
    const int64_t first = elements * rank / size, end = elements * (rank + 1) / size;
    const struct span share = {.first = first, .count = end - first, .state = first};
    all[count++] = checkpoint_text("config", facts->config);
    all[count++] = checkpoint_text("stage", facts->stage);
    if (facts->teacher) {
        hash_text(facts->teacher_hash, hash);
        all[count++] = checkpoint_text("teacher", facts->teacher);
        all[count++] = checkpoint_text("teacher_hash", hash);
    }
    for (size_t i = 0; i < attribute_count && count < ATTRIBUTES_MAX; i++) all[count++] = attributes[i];
    enum status status = slices_make(&model->params, division->zero ? division->spans : &share,
                                     division->zero ? division->span_count : 1, &slices);
    status = comm_agree(comm, status);
    if (status == STATUS_OK)
        status = checkpoint_save(comm, run_directory, step, slices.items, slices.count, all, count);
    slices_free(&slices);
    return status;
}
