/* See loaded_model.h. */
#include "eval/loaded_model.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "io/huggingface.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool has_file(const char *directory, const char *name) {
    char *path = NULL;
    bool found = file_join(directory, name, &path) == STATUS_OK && file_exists(path);
    free(path);
    return found;
}

/* *model: the weights of a Hugging Face directory, full attention, ready to be shared. */
static enum status open_directory(const struct ops *ops, const char *directory, const struct loaded_options *options,
                                  struct model **out) {
    struct model_config config;
    struct model *model = NULL;
    enum status status;
    TRY_GOTO(done, huggingface_read_config(directory, &config));
    config.positions_beyond = options->positions;
    TRY_GOTO(done, memory_new(1, sizeof *model, "a model", &model));
    TRY_GOTO(done, model_new(ops, &config, false, model));
    TRY_GOTO(done, huggingface_load(directory, &model->config, &model->params));
    model->bf16 = options->bf16;
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

static void close_model(struct model **model) {
    model_free(*model);
    free(*model);
    *model = NULL;
}

static enum status identify(const struct model *model, char text[17]) {
    uint64_t hash = 0;
    TRY(params_hash(&model->params, &hash));
    hash_text(hash, text);
    return STATUS_OK;
}

/* A student that squint exported: its own full-attention weights, and what its kinds added to them. */
static enum status open_exported(const struct ops *ops, const struct loaded_options *options,
                                 struct loaded_model *loaded) {
    char *path = loaded->path;
    loaded->source = LOADED_EXPORTED;
    loaded->is_student = true;
    TRY(huggingface_read_rules(path, &loaded->owned_rules, &loaded->rule_count));
    loaded->rules = loaded->owned_rules;
    TRY(open_directory(ops, path, options, &loaded->base));
    TRY(memory_new(1, sizeof *loaded->model, "a model", &loaded->model));
    TRY(model_student(loaded->base, path, loaded->rules, loaded->rule_count, NULL, 0, false, 0, loaded->model));
    return huggingface_load_added(path, &loaded->model->params);
}

static enum status open_teacher(const struct ops *ops, const char *directory, const struct loaded_options *options,
                                struct loaded_model *loaded) {
    TRY(open_directory(ops, directory, options, &loaded->teacher));
    TRY(memory_copy_text(directory, &loaded->teacher_path));
    if (loaded->teacher->config.vocabulary == loaded->model->config.vocabulary) return STATUS_OK;
    return error_set(STATUS_USAGE, "%s: vocabulary: expected %lld as in %s, found %lld", directory,
                     (long long)loaded->model->config.vocabulary, loaded->path,
                     (long long)loaded->teacher->config.vocabulary);
}

static enum status find_tokenizer(struct loaded_model *loaded) {
    const char *places[] = {loaded->config.text ? loaded->config.tokenizer : NULL, loaded->path, loaded->teacher_path};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (!places[i]) continue;
        bool named = i == 0;
        if (named || has_file(places[i], "tokenizer.json") || has_file(places[i], "vocab.json")) {
            return memory_copy_text(places[i], &loaded->tokenizer);
        }
    }
    return STATUS_OK;
}

static enum status open_any(const struct ops *ops, const char *path, const struct loaded_options *options,
                            struct loaded_model *loaded) {
    if (!file_exists(path)) {
        return error_set(STATUS_NOT_FOUND,
                         "%s: expected a Hugging Face directory, a checkpoint or a run directory, found nothing", path);
    }
    if (has_file(path, "config.json")) {
        if (has_file(path, "squint.json")) return open_exported(ops, options, loaded);
        return open_directory(ops, path, options, &loaded->model);
    }
    return error_set(STATUS_USAGE,
                     "%s: expected a Hugging Face directory (config.json), a checkpoint (index.h5) or a run directory "
                     "(checkpoints/step-...), found none of them",
                     path);
}

enum status loaded_model_open(const struct ops *ops, const char *path, const struct loaded_options *options,
                              struct loaded_model *loaded) {
    static const struct loaded_options none = {0};
    enum status status;
    if (!options) options = &none;
    *loaded = (struct loaded_model){.step = -1};
    TRY_GOTO(done, memory_copy_text(path, &loaded->path));
    TRY_GOTO(done, open_any(ops, path, options, loaded));
    if (options->teacher && !loaded->teacher) TRY_GOTO(done, open_teacher(ops, options->teacher, options, loaded));
    TRY_GOTO(done, identify(loaded->model, loaded->identity));
    if (loaded->teacher) TRY_GOTO(done, identify(loaded->teacher, loaded->teacher_identity));
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
