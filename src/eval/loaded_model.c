/* See loaded_model.h. */
#include "eval/loaded_model.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "io/checkpoint.h"
#include "io/huggingface.h"
#include "model/restore.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where a model's directory really is: `path`, or path/model of a run that has trained one. */
static enum status find_directory(const char *path, char **directory) {
    bool here = false, inside = false;
    *directory = NULL;
    TRY(file_exists_in(path, "config.json", &here));
    TRY(file_exists_in(path, "model/config.json", &inside));
    return !here && inside ? file_join(path, "model", directory) : memory_copy_text(path, directory);
}

static enum status identify(const struct model *model, char text[17]) {
    uint64_t hash = 0;
    TRY(params_hash(&model->params, &hash));
    hash_text(hash, text);
    return STATUS_OK;
}

/* What a Hugging Face directory is opened with. */
struct directory_options {
    enum positions_beyond positions;
    int64_t length;
    bool bf16;
};

/* *model: the weights of a Hugging Face directory, full attention, ready to be shared. identity: as the files have it.
 */
static enum status open_directory(const struct ops *ops, const char *directory, const struct directory_options *options,
                                  struct model **out, char identity[17]) {
    struct model_config config;
    struct model *model = NULL;
    enum status status;
    TRY_GOTO(done, huggingface_read_config(directory, &config));
    config.positions_beyond = options->positions;
    TRY_GOTO(done, memory_new(1, sizeof *model, "a model", &model));
    TRY_GOTO(done, model_new(ops, &config, false, model));
    TRY_GOTO(done, huggingface_load(directory, &model->config, &model->params));
    model->bf16 = options->bf16;
    TRY_GOTO(done, identify(model, identity));
    if (options->length > 0) TRY_GOTO(done, model_extend_positions(model, options->length));
done:
    if (status != STATUS_OK) {
        model_free(model);
        free(model);
        model = NULL;
    }
    *out = model;
    return status;
}

static struct directory_options as_asked(const struct loaded_options *options) {
    return (struct directory_options){options->positions, options->positions == POSITIONS_REFUSE ? 0 : options->length,
                                      options->bf16};
}

static void close_model(struct model **model) {
    model_free(*model);
    free(*model);
    *model = NULL;
}

/* A student that squint exported: its own full-attention weights, and what its kinds added to them. */
static enum status open_exported(const struct ops *ops, const struct loaded_options *options,
                                 struct loaded_model *loaded) {
    const struct directory_options directory = as_asked(options);
    const char *path = loaded->path;
    char identity[17];
    loaded->source = LOADED_EXPORTED;
    loaded->is_student = true;
    TRY(huggingface_read_rules(path, &loaded->owned_rules, &loaded->rule_count));
    loaded->rules = loaded->owned_rules;
    TRY(open_directory(ops, path, &directory, &loaded->base, identity));
    TRY(memory_new(1, sizeof *loaded->model, "a model", &loaded->model));
    TRY(model_student(loaded->base, path, loaded->rules, loaded->rule_count, NULL, 0, false, 0, loaded->model));
    return huggingface_load_added(path, &loaded->model->params);
}

static enum status open_teacher(const struct ops *ops, const char *path, const struct directory_options *options,
                                struct loaded_model *loaded) {
    TRY(find_directory(path, &loaded->teacher_path));
    return open_directory(ops, loaded->teacher_path, options, &loaded->teacher, loaded->teacher_identity);
}

/* --- checkpoints -------------------------------------------------------------------------------------------------- */

static int64_t longest_stage(const struct config *config) {
    int64_t longest = 0;
    for (size_t i = 0; i < config->stage_count; i++) {
        if (config->stages[i].length > longest) longest = config->stages[i].length;
    }
    return longest;
}

/* What any stage trains is what the student owns. */
static enum status open_student(struct loaded_model *loaded) {
    const struct config *config = &loaded->config;
    char **patterns = NULL;
    size_t count = 0, used = 0;
    for (size_t i = 0; i < config->stage_count; i++) count += config->stages[i].train_count;
    TRY(memory_new(count, sizeof *patterns, "patterns", &patterns));
    for (size_t i = 0; i < config->stage_count; i++) {
        for (size_t p = 0; p < config->stages[i].train_count; p++) patterns[used++] = config->stages[i].train[p];
    }
    enum status status = model_student(loaded->teacher, loaded->path, loaded->rules, loaded->rule_count, patterns,
                                       count, false, config->seed, loaded->model);
    free(patterns);
    return status;
}

static enum status open_taught(const struct ops *ops, const struct restore_facts *facts,
                               const struct loaded_options *options, struct loaded_model *loaded) {
    struct directory_options directory = {options->positions, longest_stage(&loaded->config), options->bf16};
    const char *path = options->teacher ? options->teacher : facts->teacher;
    if (directory.positions == POSITIONS_REFUSE) directory.positions = loaded->config.positions;
    if (options->length > directory.length && directory.positions != POSITIONS_REFUSE)
        directory.length = options->length;
    if (!file_exists(path)) {
        return error_set(STATUS_NOT_FOUND, "%s: its teacher %s is not there; name it with --teacher DIR", loaded->path,
                         path);
    }
    TRY(open_teacher(ops, path, &directory, loaded));
    uint64_t hash = strtoull(loaded->teacher_identity, NULL, 16);
    TRY(model_restore_check_teacher(loaded->path, facts, loaded->teacher_path, hash));
    loaded->base = loaded->teacher;
    loaded->is_student = true;
    loaded->rules = loaded->config.attention;
    loaded->rule_count = loaded->config.attention_count;
    return open_student(loaded);
}

static enum status open_checkpoint(const struct ops *ops, const struct loaded_options *options,
                                   struct loaded_model *loaded) {
    struct checkpoint *checkpoint = NULL;
    struct restore_facts facts;
    enum status status;
    loaded->source = LOADED_CHECKPOINT;
    TRY_GOTO(done, checkpoint_open(loaded->path, &checkpoint));
    TRY_GOTO(done, model_restore_facts(checkpoint, &facts));
    TRY_GOTO(done, config_parse(loaded->path, facts.config, strlen(facts.config), NULL, 0, &loaded->config));
    loaded->step = checkpoint_step(checkpoint);
    snprintf(loaded->stage, sizeof loaded->stage, "%s", facts.stage);
    TRY_GOTO(done, memory_new(1, sizeof *loaded->model, "a model", &loaded->model));
    if (facts.teacher) {
        TRY_GOTO(done, open_taught(ops, &facts, options, loaded));
    } else {
        TRY_GOTO(done, model_new(ops, &loaded->config.scratch, false, loaded->model));
        loaded->model->bf16 = options->bf16;
    }
    TRY_GOTO(done, model_restore(checkpoint, loaded->path, loaded->model, false));
    if (!facts.teacher) { /* a student's positions are its teacher's */
        struct model_config *model = &loaded->model->config;
        TRY_GOTO(done, identify(loaded->model, loaded->identity));
        if (options->positions != POSITIONS_REFUSE) model->positions_beyond = options->positions;
        if (model->positions_beyond != POSITIONS_REFUSE)
            TRY_GOTO(done, model_extend_positions(loaded->model, options->length));
    }
done:
    checkpoint_close(&checkpoint);
    return status;
}

/* --- all of them -------------------------------------------------------------------------------------------------- */

static enum status find_tokenizer(struct loaded_model *loaded) {
    const char *places[] = {loaded->config.text ? loaded->config.tokenizer : NULL, loaded->path, loaded->teacher_path};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (!places[i]) continue;
        bool named = i == 0, json = false, vocabulary = false;
        TRY(file_exists_in(places[i], "tokenizer.json", &json));
        TRY(file_exists_in(places[i], "vocab.json", &vocabulary));
        if (named || json || vocabulary) return memory_copy_text(places[i], &loaded->tokenizer);
    }
    return STATUS_OK;
}

/* Of a run directory its newest checkpoint; every rank takes part. */
static enum status resolve(const char *path, struct comm *comm, struct loaded_model *loaded) {
    struct comm *single = NULL;
    bool run = false, model = false;
    TRY(checkpoint_is_run(path, &run));
    TRY(file_exists_in(path, "config.json", &model));
    if (!run || model) return find_directory(path, &loaded->path);
    if (!comm) TRY(comm_open_single(&single));
    enum status status = checkpoint_resolve(comm ? comm : single, path, &loaded->path);
    KEEP_FIRST(status, comm_close(&single));
    return status;
}

static enum status open_any(const struct ops *ops, const struct loaded_options *options, struct loaded_model *loaded) {
    const char *path = loaded->path;
    const struct directory_options directory = as_asked(options);
    bool checkpoint = false, exported = false, model = false;
    if (!file_exists(path)) {
        return error_set(STATUS_NOT_FOUND,
                         "%s: expected a Hugging Face directory, a checkpoint or a run directory, found nothing", path);
    }
    TRY(checkpoint_is_checkpoint(path, &checkpoint));
    TRY(file_exists_in(path, "squint.json", &exported));
    TRY(file_exists_in(path, "config.json", &model));
    if (checkpoint) return open_checkpoint(ops, options, loaded);
    if (exported) return open_exported(ops, options, loaded);
    if (model) return open_directory(ops, path, &directory, &loaded->model, loaded->identity);
    return error_set(STATUS_USAGE,
                     "%s: expected a Hugging Face directory (config.json), a checkpoint (index.h5) or a run directory "
                     "(checkpoints/), found none of them",
                     path);
}

static enum status check_teacher(const struct loaded_model *loaded) {
    if (!loaded->teacher || loaded->teacher->config.vocabulary == loaded->model->config.vocabulary) return STATUS_OK;
    return error_set(STATUS_USAGE, "%s: vocabulary: expected %lld as in %s, found %lld", loaded->teacher_path,
                     (long long)loaded->model->config.vocabulary, loaded->path,
                     (long long)loaded->teacher->config.vocabulary);
}

enum status loaded_model_open(const struct ops *ops, const char *path, const struct loaded_options *options,
                              struct loaded_model *loaded) {
    static const struct loaded_options none = {0};
    enum status status;
    if (!options) options = &none;
    const struct directory_options directory = as_asked(options);
    *loaded = (struct loaded_model){.step = -1};
    TRY_GOTO(done, resolve(path, options->comm, loaded));
    TRY_GOTO(done, open_any(ops, options, loaded));
    if (options->teacher && !loaded->teacher) TRY_GOTO(done, open_teacher(ops, options->teacher, &directory, loaded));
    TRY_GOTO(done, check_teacher(loaded));
    if (!loaded->identity[0]) TRY_GOTO(done, identify(loaded->model, loaded->identity));
    TRY_GOTO(done, find_tokenizer(loaded));
done:
    if (status != STATUS_OK) loaded_model_close(loaded);
    return status;
}

void loaded_model_close(struct loaded_model *loaded) {
    if (!loaded) return;
    if (loaded->base == loaded->teacher) loaded->base = NULL;
    if (loaded->model == loaded->teacher) loaded->model = NULL;
    if (loaded->model) close_model(&loaded->model);
    if (loaded->base) close_model(&loaded->base);
    if (loaded->teacher) close_model(&loaded->teacher);
    huggingface_free_rules(loaded->owned_rules, loaded->owned_rules ? loaded->rule_count : 0);
    config_free(&loaded->config);
    free(loaded->path);
    free(loaded->teacher_path);
    free(loaded->tokenizer);
    *loaded = (struct loaded_model){.step = -1};
}
