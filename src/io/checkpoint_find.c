/* Choosing among a run's checkpoints, keeping some, clearing away what killed saves have left. */
#include "io/checkpoint_internal.h"

#include "base/log.h"
#include "base/memory.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum status checkpoint_is_run(const char *path, bool *is) {
    char *directory = NULL;
    *is = false;
    TRY(file_join(path, "checkpoints", &directory));
    *is = file_is_directory(directory);
    free(directory);
    return STATUS_OK;
}

/* The step of a directory's name, or −1: exactly as checkpoint_path writes it. */
static int64_t step_of(const char *name) {
    char again[64];
    if (strncmp(name, "step-", 5) != 0 || !isdigit((unsigned char)name[5])) return -1;
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(again, sizeof again, "step-%08" PRId64, step);
    return strcmp(again, name) == 0 ? step : -1;
}

static int compare_down(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Names in run_directory/checkpoints; none when it is not there. */
static enum status list_names(const char *run_directory, char **directory, char ***names, size_t *count) {
    *names = NULL;
    *count = 0;
    TRY(file_join(run_directory, "checkpoints", directory));
    return file_is_directory(*directory) ? file_list(*directory, names, count) : STATUS_OK;
}

enum status checkpoint_list(const char *run_directory, int64_t **steps, size_t *count) {
    enum status status = STATUS_OK;
    char *directory = NULL, **names = NULL;
    size_t name_count = 0;
    *steps = NULL;
    *count = 0;
    TRY_GOTO(done, list_names(run_directory, &directory, &names, &name_count));
    TRY_GOTO(done, memory_new(name_count, sizeof **steps, directory, steps));
    for (size_t i = 0; i < name_count; i++) {
        int64_t step = step_of(names[i]);
        if (step >= 0) (*steps)[(*count)++] = step;
    }
    if (*count > 1) qsort(*steps, *count, sizeof **steps, compare_down);
done:
    free(directory);
    file_free_list(names, name_count);
    return status;
}

/* Rank 0's list, on every rank: directories on a network file system may look different from each. */
static enum status list_together(struct comm *comm, const char *run_directory, int64_t **steps, int64_t *count) {
    size_t found = 0;
    enum status status = STATUS_OK;
    *steps = NULL;
    if (comm_rank(comm) == 0) status = checkpoint_list(run_directory, steps, &found);
    TRY(comm_agree(comm, status));
    *count = (int64_t)found;
    TRY(comm_broadcast(comm, tensor_1d(count, DTYPE_I64, 1), 0));
    if (comm_rank(comm) != 0) status = memory_new((size_t)*count, sizeof **steps, "the checkpoints' steps", steps);
    TRY(comm_agree(comm, status));
    return comm_broadcast(comm, tensor_1d(*steps, DTYPE_I64, *count), 0);
}

/* A checkpoint that cannot be used is passed over; anything else (a lost rank, no memory) is the caller's to know. */
static bool is_fault_of_checkpoint(enum status status) {
    return status == STATUS_DAMAGED || status == STATUS_IO || status == STATUS_NOT_FOUND;
}

static void pass_over(struct comm *comm) {
    if (comm_rank(comm) == 0) log_warning("%s; this checkpoint is passed over", error_message());
    error_clear();
}

enum status checkpoint_find(struct comm *comm, const char *run_directory, char **path) {
    enum status status = STATUS_OK;
    int64_t *steps = NULL, count = 0;
    char *fault = NULL;
    *path = NULL;
    TRY_GOTO(done, list_together(comm, run_directory, &steps, &count));
    for (int64_t i = 0; i < count; i++) {
        TRY_GOTO(done, checkpoint_path(run_directory, steps[i], path));
        status = checkpoint_verify(comm, *path);
        if (status == STATUS_OK) goto done;
        free(*path);
        *path = NULL;
        if (!is_fault_of_checkpoint(status)) goto done;
        if (!fault) TRY_GOTO(done, memory_copy_text(error_message(), &fault));
        pass_over(comm);
    }
    status = count == 0 ? error_set(STATUS_NOT_FOUND, "%s: no checkpoint in it", run_directory)
                        : error_set(STATUS_DAMAGED, "%s: none of its %" PRId64 " checkpoints verifies; the newest: %s",
                                    run_directory, count, fault);
done:
    free(fault);
    free(steps);
    return status;
}

enum status checkpoint_resolve(struct comm *comm, const char *model, char **path) {
    bool is_checkpoint = false, is_run = false;
    enum status status = STATUS_OK;
    *path = NULL;
    /* Rank 0 looks, so that all take the same way. */
    if (comm_rank(comm) == 0) {
        status = checkpoint_is_checkpoint(model, &is_checkpoint);
        if (status == STATUS_OK) status = checkpoint_is_run(model, &is_run);
    }
    TRY(comm_agree(comm, status));
    int64_t kind = is_checkpoint ? 1 : is_run ? 2 : 0;
    TRY(comm_broadcast(comm, tensor_1d(&kind, DTYPE_I64, 1), 0));
    if (kind == 1) return memory_copy_text(model, path);
    if (kind == 2) return checkpoint_find(comm, model, path);
    return error_set(STATUS_NOT_FOUND, "%s: expected a checkpoint (index.h5) or a run (checkpoints/), found neither",
                     model);
}

/* --- keeping ---------------------------------------------------------------------------------------------------- */

/* Removes by way of a name that counts as a leftover, so that a kill leaves no half of a checkpoint behind. */
static enum status remove_checkpoint(const char *path) {
    char *leftover = NULL;
    TRY(memory_format(&leftover, "%s.tmp-removed", path));
    enum status status = file_remove_tree(leftover);
    if (status == STATUS_OK && rename(path, leftover) != 0) {
        status = error_set(STATUS_IO, "%s: cannot rename it: %s", path, strerror(errno));
    }
    if (status == STATUS_OK) status = file_remove_tree(leftover);
    free(leftover);
    return status;
}

/* Whether the checkpoint counts as kept: in full for the first good one, else its index only. */
static enum status is_good(struct comm *comm, const char *path, bool in_full) {
    struct checkpoint *checkpoint = NULL;
    enum status status = STATUS_OK;
    if (in_full) return checkpoint_verify(comm, path);
    if (comm_rank(comm) == 0) status = checkpoint_open(path, &checkpoint);
    checkpoint_close(&checkpoint);
    return comm_agree(comm, status);
}

enum status checkpoint_retain(struct comm *comm, const char *run_directory, int keep) {
    enum status status = STATUS_OK;
    int64_t *steps = NULL, count = 0;
    int kept = 0;
    char *path = NULL;
    TRY_GOTO(done, list_together(comm, run_directory, &steps, &count));
    for (int64_t i = 0; i < count && count > keep; i++) {
        TRY_GOTO(done, checkpoint_path(run_directory, steps[i], &path));
        if (kept >= keep && kept > 0) {
            status = comm_rank(comm) == 0 ? remove_checkpoint(path) : STATUS_OK;
            TRY_GOTO(done, comm_agree(comm, status));
        } else {
            status = is_good(comm, path, kept == 0);
            if (status == STATUS_OK) {
                kept++;
            } else if (is_fault_of_checkpoint(status)) {
                pass_over(comm);
                status = STATUS_OK;
            } else {
                goto done;
            }
        }
        free(path);
        path = NULL;
    }
done:
    free(path);
    free(steps);
    return status;
}

enum status checkpoint_clean(struct comm *comm, const char *run_directory) {
    enum status status = STATUS_OK;
    char *directory = NULL, **names = NULL;
    size_t count = 0;
    if (comm_rank(comm) != 0) return comm_agree(comm, STATUS_OK);
    status = list_names(run_directory, &directory, &names, &count);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        char *path = NULL;
        if (!strstr(names[i], ".tmp-")) continue;
        status = file_join(directory, names[i], &path);
        if (status == STATUS_OK) status = file_remove_tree(path);
        free(path);
    }
    free(directory);
    file_free_list(names, count);
    return comm_agree(comm, status);
}
