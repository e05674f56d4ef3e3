/* What a recipe leaves to be found out, and the combinations that cannot be. */
#include "config/keys.h"

#include <string.h>

enum { WEIGHTS_LENGTH_MAX = 2048 }; /* T of a stage that visits all pairs */

static int64_t longest_stage(const struct config *config) {
    int64_t longest = 0;
    for (size_t i = 0; i < config->stage_count; i++) {
        if (config->stages[i].length > longest) longest = config->stages[i].length;
    }
    return longest;
}

static void resolve_scratch(struct config *config) {
    struct model_config *m = &config->scratch;
    bool gpt2 = m->type == MODEL_GPT2;
    if (m->kv_heads < 0) m->kv_heads = m->heads;
    if (m->head_width < 0) m->head_width = m->width / m->heads;
    if (m->mlp_width < 0) m->mlp_width = gpt2 ? 4 * m->width : (8 * m->width / 3 + 15) / 16 * 16;
    if (m->positions < 0) m->positions = longest_stage(config);
    m->qkv_bias = m->output_bias = m->mlp_bias = gpt2;
    m->causal = true;
    m->positions_beyond = config->positions;
}

enum status config_resolve(struct config *config) {
    if (config->from_scratch) resolve_scratch(config);
    for (size_t i = 0; i < config->stage_count; i++) {
        struct config_stage *stage = &config->stages[i];
        if (stage->lr_end < 0) stage->lr_end = stage->lr / 10;
        if (stage->warmup_steps < 0) {
            stage->warmup_steps = config->train.warmup_steps < stage->steps ? config->train.warmup_steps : stage->steps;
        }
    }
    return STATUS_OK;
}

static enum status check_scratch(const struct config *config) {
    const struct model_config *m = &config->scratch;
    const char *path = config->path;
    if (config->teacher) {
        return error_set(STATUS_USAGE, "%s: teacher and from_scratch exclude each other; expected one of them", path);
    }
    if (config->attention_count > 0) {
        return error_set(STATUS_USAGE,
                         "%s: student.attention needs a teacher; a from_scratch model is trained with full attention",
                         path);
    }
    if (m->heads % m->kv_heads != 0) {
        return error_set(STATUS_USAGE, "%s: from_scratch.kv_heads: expected a divisor of heads %lld, found %lld", path,
                         (long long)m->heads, (long long)m->kv_heads);
    }
    if (m->head_width < 1 || (m->width % m->heads != 0 && m->head_width * m->heads == m->width / m->heads * m->heads)) {
        return error_set(STATUS_USAGE,
                         "%s: from_scratch.width: expected a multiple of heads %lld, or head_width given, found %lld",
                         path, (long long)m->heads, (long long)m->width);
    }
    if (m->type == MODEL_LLAMA && m->head_width % 2 != 0) {
        return error_set(STATUS_USAGE, "%s: from_scratch.head_width: rotary positions need an even one, found %lld",
                         path, (long long)m->head_width);
    }
    return STATUS_OK;
}

static enum status check_teacher(const struct config *config) {
    if (!config->teacher) {
        return error_set(STATUS_USAGE,
                         "%s: expected teacher: DIRECTORY, or from_scratch: {…} for objective lm; found neither",
                         config->path);
    }
    if (config->attention_count == 0) {
        return error_set(STATUS_USAGE,
                         "%s: student.attention is missing: without it the student is the teacher; expected a list "
                         "such as [{layers: all, kind: masks}]",
                         config->path);
    }
    return STATUS_OK;
}

static const char *objective_name(enum objective objective) {
    static const char *const names[] = {"lm", "attention", "kl"};
    return names[objective];
}

static enum status check_name(const struct config *config, size_t index) {
    const struct config_stage *stage = &config->stages[index];
    const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    if (stage->name[strspn(stage->name, letters)] != '\0' || strspn(stage->name, "0123456789") == strlen(stage->name) ||
        strlen(stage->name) > 32) {
        return error_set(
            STATUS_USAGE,
            "%s:%d: stages.name: expected at most 32 letters, digits, - and _, not digits alone, found \"%s\"",
            config->path, stage->line, stage->name);
    }
    for (size_t i = 0; i < index; i++) {
        if (strcmp(config->stages[i].name, stage->name) == 0) {
            return error_set(STATUS_USAGE, "%s:%d: stages.name: two stages are called \"%s\"", config->path,
                             stage->line, stage->name);
        }
    }
    return STATUS_OK;
}

static enum status check_objective(const struct config *config, const struct config_stage *stage) {
    const char *path = config->path, *objective = objective_name(stage->objective);
    if (stage->objective == OBJECTIVE_LM && !config->from_scratch) {
        return error_set(STATUS_USAGE,
                         "%s:%d: stages.%s.objective: lm trains a from_scratch model; with a teacher expected "
                         "attention or kl (kl with ce_share: 1 is cross-entropy)",
                         path, stage->line, stage->name);
    }
    if (stage->objective != OBJECTIVE_LM && config->from_scratch) {
        return error_set(STATUS_USAGE,
                         "%s:%d: stages.%s.objective: %s needs a teacher; a from_scratch run has objective lm", path,
                         stage->line, stage->name, objective);
    }
    if (stage->objective != OBJECTIVE_KL && stage->temperature != 1) {
        return error_set(STATUS_USAGE, "%s:%d: stages.%s.temperature: only objective kl has one, found it with %s",
                         path, stage->line, stage->name, objective);
    }
    if (stage->objective != OBJECTIVE_KL && stage->ce_share != 0) {
        return error_set(STATUS_USAGE, "%s:%d: stages.%s.ce_share: only objective kl has one, found it with %s", path,
                         stage->line, stage->name, objective);
    }
    if (stage->objective != OBJECTIVE_ATTENTION && stage->weights) {
        return error_set(STATUS_USAGE, "%s:%d: stages.%s.weights: only objective attention has them, found true with %s",
                         path, stage->line, stage->name, objective);
    }
    if (stage->weights && stage->length > WEIGHTS_LENGTH_MAX) {
        return error_set(STATUS_USAGE, "%s:%d: stages.%s.weights: all pairs are visited; expected a length of at most %d, found %lld",
                         path, stage->line, stage->name, WEIGHTS_LENGTH_MAX, (long long)stage->length);
    }
    if (stage->objective == OBJECTIVE_LM && stage->l1 != 0) {
        return error_set(STATUS_USAGE, "%s:%d: stages.%s.l1: a from_scratch model has no sparse parameters", path,
                         stage->line, stage->name);
    }
    return STATUS_OK;
}

static enum status check_train(const struct config *config, const struct config_stage *stage) {
    for (size_t i = 0; i < stage->train_count; i++) {
        const char *pattern = stage->train[i];
        bool added = strcmp(pattern, "new") == 0 || strncmp(pattern, "lora", 4) == 0;
        if (config->from_scratch && added) {
            return error_set(STATUS_USAGE,
                             "%s:%d: stages.%s.train: \"%s\" names what a student adds; a from_scratch model has "
                             "none; expected all or parts of parameter names",
                             config->path, stage->line, stage->name, pattern);
        }
        for (size_t j = 0; j < i; j++) {
            if (strcmp(stage->train[j], pattern) == 0) {
                return error_set(STATUS_USAGE, "%s:%d: stages.%s.train: \"%s\" stands twice", config->path, stage->line,
                                 stage->name, pattern);
            }
        }
    }
    return STATUS_OK;
}

static enum status check_stage(const struct config *config, size_t index) {
    const struct config_stage *stage = &config->stages[index];
    TRY(check_name(config, index));
    TRY(check_objective(config, stage));
    TRY(check_train(config, stage));
    if (stage->warmup_steps > stage->steps) {
        return error_set(
            STATUS_USAGE, "%s:%d: stages.%s.warmup_steps: expected at most the stage's %lld steps, found %lld",
            config->path, stage->line, stage->name, (long long)stage->steps, (long long)stage->warmup_steps);
    }
    if (stage->lr_end > stage->lr) {
        return error_set(STATUS_USAGE, "%s:%d: stages.%s.lr_end: expected at most lr %g, found %g", config->path,
                         stage->line, stage->name, stage->lr, stage->lr_end);
    }
    if (config->train.micro_batch > stage->batch) {
        return error_set(
            STATUS_USAGE, "%s:%d: train.micro_batch: expected at most the batch %lld of stage %s, or auto, found %lld",
            config->path, stage->line, (long long)stage->batch, stage->name, (long long)config->train.micro_batch);
    }
    const struct model_config *m = &config->scratch;
    if (config->from_scratch && model_has_learned_positions(m) && config->positions == POSITIONS_REFUSE &&
        stage->length > m->positions) {
        return error_set(STATUS_USAGE,
                         "%s:%d: stages.%s.length: expected at most from_scratch.positions %lld, found %lld",
                         config->path, stage->line, stage->name, (long long)m->positions, (long long)stage->length);
    }
    return STATUS_OK;
}

enum status config_check(const struct config *config) {
    TRY(config->from_scratch ? check_scratch(config) : check_teacher(config));
    if (config->parallel.context > 1) {
        return error_set(STATUS_USAGE,
                         "%s: parallel.context: this version has no context parallelism; expected 1, found %lld",
                         config->path, (long long)config->parallel.context);
    }
    if (config->eval.every > 0 && config->valid_data_count == 0) {
        return error_set(STATUS_USAGE, "%s: eval.every %lld needs data.valid, found none", config->path,
                         (long long)config->eval.every);
    }
    static const char *const devices[] = {"auto", "cpu", "cuda", "guard:cpu"};
    bool known = false;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        known = known || strcmp(config->device, devices[i]) == 0;
    if (!known) {
        return error_set(STATUS_USAGE, "%s: device: expected auto, cpu, cuda or guard:cpu, found \"%s\"", config->path,
                         config->device);
    }
    for (size_t i = 0; i < config->stage_count; i++) TRY(check_stage(config, i));
    return STATUS_OK;
}
