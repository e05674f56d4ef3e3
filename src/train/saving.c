/* Checkpoints of a run; see saving.h. */
#include "train/saving.h"

#include "base/log.h"
#include "base/memory.h"
#include "io/checkpoint.h"
#include "model/restore.h"

#include <stdlib.h>
#include <string.h>

/* What of struct train_state is stored, besides the step. */
static const struct {
    const char *name;
    size_t offset;
} state_fields[] = {
    {"stage_index", offsetof(struct train_state, stage)}, {"stage_step", offsetof(struct train_state, step)},
    {"sample", offsetof(struct train_state, sample)},     {"updates", offsetof(struct train_state, updates)},
    {"skipped", offsetof(struct train_state, skipped)},   {"seconds", offsetof(struct train_state, seconds)},
};
enum { STATE_FIELDS = sizeof state_fields / sizeof *state_fields };

static int64_t *state_field(struct train_state *state, size_t index) {
    return (int64_t *)(void *)((char *)state + state_fields[index].offset);
}

enum status saving_write(const struct run *run, const struct train_state *state) {
    const struct config *config = run->config;
    struct checkpoint_attribute attributes[STATE_FIELDS + 1];
    struct train_state copy = *state;
    size_t stage = (size_t)state->stage < config->stage_count ? (size_t)state->stage : config->stage_count - 1;
    struct restore_facts facts = {.config = config->text,
                                  .stage = config->stages[stage].name,
                                  .teacher = run->teacher_path,
                                  .teacher_hash = run->teacher_hash};
    for (size_t i = 0; i < STATE_FIELDS; i++) {
        attributes[i] = checkpoint_integer(state_fields[i].name, *state_field(&copy, i));
    }
    char *plan = NULL;
    TRY(saving_plan_text(run, &plan));
    attributes[STATE_FIELDS] = checkpoint_text("plan", plan);
    enum status status =
        model_save(run->comm, config->run, state->total, &run->student, &facts, attributes, STATE_FIELDS + 1);
    free(plan);
    TRY(status);
    return checkpoint_retain(run->comm, config->run, (int)config->checkpoint.keep);
}

/* Texts of two configs line by line: the first line that differs, for a warning. */
static void warn_of_change(const char *path, const char *before, const char *now) {
    while (*before && *now) {
        size_t a = strcspn(before, "\n"), b = strcspn(now, "\n");
        if (a != b || strncmp(before, now, a) != 0) {
            log_warning("%s was made with another recipe: \"%.*s\" then, \"%.*s\" now", path, (int)a, before, (int)b,
                        now);
            return;
        }
        before += a + (before[a] == '\n');
        now += b + (now[b] == '\n');
    }
}

static enum status check_state(const struct run *run, const char *path, const struct train_state *state) {
    const struct config *config = run->config;
    int64_t stages = (int64_t)config->stage_count;
    bool inside = state->stage >= 0 && state->stage <= stages && state->step >= 0 && state->sample >= 0 &&
                  state->updates >= 0 && state->updates <= state->step && state->total >= state->step;
    if (!inside) return error_set(STATUS_DAMAGED, "%s: its place in the run is not possible", path);
    if (state->stage == stages || state->step <= config->stages[state->stage].steps) return STATUS_OK;
    return error_set(STATUS_USAGE, "%s: is at step %lld of stage %s; the recipe gives that stage %lld steps", path,
                     (long long)state->step, config->stages[state->stage].name,
                     (long long)config->stages[state->stage].steps);
}

/* Other ranks sum in another order whatever the micro-batches are: they choose for themselves. */
static enum status read_plan(struct run *run, const char *path, const struct checkpoint *checkpoint) {
    const char *plan = NULL;
    if (!checkpoint_has_attribute(checkpoint, "plan")) return STATUS_OK; /* of an earlier squint */
    TRY(checkpoint_get_text(checkpoint, "plan", &plan));
    run->plan_ranks = checkpoint_files(checkpoint);
    return run->plan_ranks == comm_size(run->comm) ? saving_plan_adopt(run, path, plan) : STATUS_OK;
}

/* Everything is read before the model is changed, as far as checks go. */
static enum status read_checkpoint(struct run *run, const char *path, struct train_state *state) {
    enum status status = STATUS_OK;
    struct checkpoint *checkpoint = NULL;
    struct restore_facts facts;
    struct train_state found = {0};
    TRY_GOTO(done, checkpoint_open(path, &checkpoint));
    TRY_GOTO(done, model_restore_facts(checkpoint, &facts));
    TRY_GOTO(done, model_restore_check_teacher(path, &facts, run->teacher_path, run->teacher_hash));
    found.total = checkpoint_step(checkpoint);
    for (size_t i = 0; i < STATE_FIELDS; i++) {
        TRY_GOTO(done, checkpoint_get_integer(checkpoint, state_fields[i].name, state_field(&found, i)));
    }
    TRY_GOTO(done, check_state(run, path, &found));
    TRY_GOTO(done, read_plan(run, path, checkpoint));
    TRY_GOTO(done, model_restore(checkpoint, path, &run->student, true));
    if (comm_rank(run->comm) == 0 && strcmp(facts.config, run->config->text) != 0) {
        warn_of_change(path, facts.config, run->config->text);
    }
    *state = found;
done:
    checkpoint_close(&checkpoint);
    return status;
}

enum status saving_read(struct run *run, const char *which, struct train_state *state, bool *found) {
    char *path = NULL;
    enum status status = STATUS_OK;
    *found = false;
    if (strcmp(which, "auto") == 0) {
        TRY(checkpoint_clean(run->comm, run->config->run));
        status = checkpoint_find(run->comm, run->config->run, &path);
        if (status == STATUS_NOT_FOUND) {
            error_clear();
            return STATUS_OK;
        }
    } else {
        status = checkpoint_resolve(run->comm, which, &path);
    }
    if (status == STATUS_OK) status = comm_agree(run->comm, read_checkpoint(run, path, state));
    *found = status == STATUS_OK;
    free(path);
    return status;
}
