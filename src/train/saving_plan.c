/* What was chosen of a stage's plan where the recipe says auto, as a checkpoint keeps it; see saving.h. A micro-batch
 * decides in which order sums are taken: a run that goes on with another one is not the same run bit for bit. */
#include "base/memory.h"
#include "train/saving.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIELDS = 3 /* sequences a rank, micro-batch, recompute */, LINE_BYTES = 160 };

/* The choices of this rank. */
static enum status own_fields(const struct run *run, int64_t *fields) {
    for (size_t i = 0; i < run->config->stage_count; i++) {
        int64_t first = 0;
        TRY(stage_part(&run->config->stages[i], comm_rank(run->comm), comm_size(run->comm), &first,
                       &fields[i * FIELDS]));
        fields[i * FIELDS + 1] = run->choices[i].micro_batch;
        fields[i * FIELDS + 2] = run->choices[i].recompute == RECOMPUTE_LAYER;
    }
    return STATUS_OK;
}

static void put_line(const struct config_stage *stage, const int64_t *fields, char *text, size_t capacity) {
    size_t used = strlen(text);
    if (fields[1] == 0) return;
    snprintf(text + used, capacity - used, "%s: length %lld, %lld sequences a rank: micro_batch %lld, recompute %s\n",
             stage->name, (long long)stage->length, (long long)fields[0], (long long)fields[1],
             fields[2] ? "layer" : "none");
}

enum status saving_plan_text(const struct run *run, char **text) {
    enum status status = STATUS_OK;
    size_t stages = run->config->stage_count, capacity = 2 * stages * LINE_BYTES + 1;
    int64_t *first = NULL, *last = NULL;
    *text = NULL;
    status = memory_new(stages * FIELDS, sizeof *first, "the stages' plans", &first);
    if (status == STATUS_OK) status = memory_new(stages * FIELDS, sizeof *last, "the stages' plans", &last);
    if (status == STATUS_OK) status = memory_new(capacity, 1, "the stages' plans", text);
    if (status == STATUS_OK) status = own_fields(run, first);
    TRY_GOTO(done, comm_agree(run->comm, status));
    memcpy(last, first, stages * FIELDS * sizeof *last);
    /* The parts of a batch have two sizes at most, that of the first rank and that of the last; and ranks with equal
     * parts choose alike, for all know the least memory that any of them has. */
    struct tensor of_first = tensor_1d(first, DTYPE_I64, (int64_t)stages * FIELDS);
    struct tensor of_last = tensor_1d(last, DTYPE_I64, (int64_t)stages * FIELDS);
    TRY_GOTO(done, comm_broadcast(run->comm, of_first, 0));
    TRY_GOTO(done, comm_broadcast(run->comm, of_last, comm_size(run->comm) - 1));
    for (size_t i = 0; i < stages; i++) {
        const struct config_stage *stage = &run->config->stages[i];
        put_line(stage, first + i * FIELDS, *text, capacity);
        if (last[i * FIELDS] != first[i * FIELDS]) put_line(stage, last + i * FIELDS, *text, capacity);
    }
done:
    free(first);
    free(last);
    if (status != STATUS_OK) {
        free(*text);
        *text = NULL;
    }
    return status;
}

/* A choice that was made in this life stays. */
static void adopt(struct run *run, const char *name, long long length, long long part,
                  const struct stage_choice *choice) {
    for (size_t i = 0; i < run->config->stage_count; i++) {
        const struct config_stage *stage = &run->config->stages[i];
        int64_t first = 0, own = 0;
        if (strcmp(stage->name, name) != 0 || stage->length != length || run->choices[i].micro_batch > 0) continue;
        /* Run_open has checked that every rank has its part. */
        (void)stage_part(stage, comm_rank(run->comm), comm_size(run->comm), &first, &own);
        if (own == part) run->choices[i] = *choice;
    }
}

enum status saving_plan_adopt(struct run *run, const char *path, const char *text) {
    for (const char *line = text; *line; line += strcspn(line, "\n") + (strchr(line, '\n') != NULL)) {
        char name[33], recompute[6];
        long long length = 0, part = 0, micro = 0;
        int found = sscanf(line, "%32[^:\n]: length %lld, %lld sequences a rank: micro_batch %lld, recompute %5s", name,
                           &length, &part, &micro, recompute);
        if (found != 5 || micro < 1) {
            return error_set(STATUS_DAMAGED, "%s: attribute plan: expected a stage's plan, found \"%.*s\"", path,
                             (int)strcspn(line, "\n"), line);
        }
        adopt(run, name, length, part,
              &(struct stage_choice){.micro_batch = micro,
                                     .recompute = strcmp(recompute, "layer") == 0 ? RECOMPUTE_LAYER : RECOMPUTE_NONE});
    }
    return STATUS_OK;
}
