/* Owns the rows and the memory behind them; see params.h. */
#include "params/params.h"

#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"
#include "params/division.h"

#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double initial_std(const struct model_config *model) {
    return model->initial_std > 0 ? model->initial_std : 0.02; /* Radford et al. 2019 */
}

enum status params_add(struct params *params, const struct param *row, int64_t init_values_count) {
    if (params_find(params, row->name)) {
        return error_set(STATUS_FAILED, "parameter %s: exists already", row->name);
    }
    TRY(memory_grow(&params->rows, (size_t)params->count + 1, sizeof *params->rows, "the tensor table"));
    struct param *copy = &params->rows[params->count];
    *copy = *row;
    copy->offset = -1;
    copy->init_values = NULL;
    if (init_values_count > 0) {
        double *values = NULL;
        TRY(memory_new((size_t)init_values_count, sizeof *values, row->name, &values));
        memcpy(values, row->init_values, (size_t)init_values_count * sizeof *values);
        copy->init_values = values;
    }
    params->count++;
    return STATUS_OK;
}

static enum status add_row(struct params *params, const char *name, int64_t rows, int64_t columns, enum param_init init,
                           double std) {
    struct param row = {.init = init, .init_std = std, .rank = rows > 0 ? 2 : 1, .decay = rows > 0};
    memcpy(row.shape, rows > 0 ? (int64_t[]){rows, columns, 0, 0} : (int64_t[]){columns, 0, 0, 0}, sizeof row.shape);
    snprintf(row.name, sizeof row.name, "%s", name);
    return params_add(params, &row, 0);
}

/* A linear layer's weight [out,in] and, when `bias`, its bias [out]. */
static enum status add_linear(struct params *params, int64_t layer, const char *part, int64_t out, int64_t in, bool bias,
                              double std) {
    char name[64];
    snprintf(name, sizeof name, "h.%lld.%s.weight", (long long)layer, part);
    TRY(add_row(params, name, out, in, INIT_NORMAL, std));
    if (!bias) return STATUS_OK;
    snprintf(name, sizeof name, "h.%lld.%s.bias", (long long)layer, part);
    return add_row(params, name, 0, out, INIT_ZERO, 0);
}

static enum status add_norm(struct params *params, const char *part, const struct model_config *model) {
    char name[64];
    snprintf(name, sizeof name, "%s.weight", part);
    TRY(add_row(params, name, 0, model->width, INIT_ONE, 0));
    if (model->type != MODEL_GPT2) return STATUS_OK;
    snprintf(name, sizeof name, "%s.bias", part);
    return add_row(params, name, 0, model->width, INIT_ZERO, 0);
}

static enum status add_layer(struct params *params, const struct model_config *m, int64_t layer) {
    char part[64];
    double std = initial_std(m), residual_std = std / sqrt(2.0 * (double)m->layers);
    snprintf(part, sizeof part, "h.%lld.norm1", (long long)layer);
    TRY(add_norm(params, part, m));
    TRY(add_linear(params, layer, "attn.qkv", model_qkv_width(m), m->width, m->qkv_bias, std));
    TRY(add_linear(params, layer, "attn.out", m->width, m->heads * m->head_width, m->output_bias, residual_std));
    snprintf(part, sizeof part, "h.%lld.norm2", (long long)layer);
    TRY(add_norm(params, part, m));
    int64_t up = m->type == MODEL_LLAMA ? 2 * m->mlp_width : m->mlp_width;
    TRY(add_linear(params, layer, "mlp.up", up, m->width, m->mlp_bias, std));
    return add_linear(params, layer, "mlp.down", m->width, m->mlp_width, m->mlp_bias, residual_std);
}

enum status params_new(const struct ops *ops, const struct model_config *model, struct params *params) {
    *params = (struct params){.ops = ops};
    enum status status = STATUS_OK;
    TRY_GOTO(done, add_row(params, "wte", model->vocabulary, model->width, INIT_NORMAL, initial_std(model)));
    if (model_has_learned_positions(model)) {
        TRY_GOTO(done, add_row(params, "wpe", model->positions, model->width, INIT_NORMAL, initial_std(model)));
    }
    for (int64_t layer = 0; layer < model->layers; layer++) TRY_GOTO(done, add_layer(params, model, layer));
    TRY_GOTO(done, add_norm(params, "norm", model));
    if (!model->tied) {
        TRY_GOTO(done, add_row(params, "head.weight", model->vocabulary, model->width, INIT_NORMAL, initial_std(model)));
    }
done:
    if (status != STATUS_OK) params_free(params);
    return status;
}

enum status params_share(const struct params *teacher, struct params *params) {
    *params = (struct params){.ops = teacher->ops, .shares_teacher = true};
    TRY(memory_new((size_t)teacher->count, sizeof *params->rows, "the tensor table", &params->rows));
    params->count = teacher->count;
    for (int64_t i = 0; i < teacher->count; i++) {
        const struct param *from = &teacher->rows[i];
        struct param *row = &params->rows[i];
        *row = *from;
        row->init_values = NULL;
        row->owned = row->trained = false;
        row->offset = -1;
        row->grad = tensor_none();
    }
    return STATUS_OK;
}

static void release_blocks(struct params *params) {
    struct tensor *blocks[] = {&params->values, &params->grads,   &params->m,   &params->v,
                               &params->masters, &params->kept, &params->workings};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        if (tensor_present(*blocks[i])) params->ops->release(params->ops, blocks[i]->data);
        *blocks[i] = tensor_none();
    }
}

void params_free(struct params *params) {
    if (!params) return;
    if (params->ops) release_blocks(params);
    division_free(&params->division);
    if (params->extra) params->ops->release(params->ops, params->extra);
    for (int64_t i = 0; i < params->count; i++) free((void *)params->rows[i].init_values);
    free(params->rows);
    *params = (struct params){0};
}

struct param *params_find(const struct params *params, const char *name) {
    for (int64_t i = 0; i < params->count; i++) {
        if (strcmp(params->rows[i].name, name) == 0) return &params->rows[i];
    }
    return NULL;
}

static int64_t row_elements(const struct param *row) {
    int64_t count = 1;
    for (int i = 0; i < row->rank; i++) count *= row->shape[i];
    return count;
}

int64_t params_elements(const struct params *params) {
    int64_t count = 0;
    for (int64_t i = 0; i < params->count; i++) count += row_elements(&params->rows[i]);
    return count;
}

size_t params_bytes(const struct params *params) {
    return tensor_bytes(params->values) + tensor_bytes(params->workings) + tensor_bytes(params->grads) + tensor_bytes(params->m) +
           tensor_bytes(params->v) + tensor_bytes(params->masters) + tensor_bytes(params->kept);
}

int64_t params_layer(const struct param *row) {
    if (strncmp(row->name, "norm.", 5) == 0 || strncmp(row->name, "head.", 5) == 0) return PARAMS_TOP;
    return strncmp(row->name, "h.", 2) == 0 ? strtoll(row->name + 2, NULL, 10) : -1;
}

bool params_match(const struct param *row, const char *pattern) {
    if (row->constant) return false;
    if (strcmp(pattern, "all") == 0) return true;
    if (strcmp(pattern, "new") == 0) return row->added;
    if (strcmp(pattern, "lora") == 0 || strncmp(pattern, "lora(", 5) == 0) return row->lora;
    if (row->lora) return false;
    if (strpbrk(pattern, "*?[")) return fnmatch(pattern, row->name, 0) == 0;
    size_t length = strlen(pattern);
    for (const char *place = strstr(row->name, pattern); place && length > 0; place = strstr(place + 1, pattern)) {
        bool begins = place == row->name || place[-1] == '.';
        bool ends = place[length] == '\0' || place[length] == '.';
        if (begins && ends) return true;
    }
    return false;
}

static bool read_lora(const char *pattern, struct lora *lora) {
    static const char *const ends[] = {")", ",svd)", ",svd,fixed)"};
    char *end = NULL;
    long long rank = strtoll(pattern + 5, &end, 10);
    if (end == pattern + 5 || rank < 1 || rank > 4096) return false;
    for (int i = 0; i < 3; i++) {
        *lora = (struct lora){.rank = rank, .svd = i > 0, .fixed = i > 1};
        if (strcmp(end, ends[i]) == 0) return true;
    }
    return false;
}

enum status params_lora(char *const *patterns, size_t count, struct lora *lora) {
    const char *first = NULL;
    *lora = (struct lora){0};
    for (size_t i = 0; i < count; i++) {
        if (strncmp(patterns[i], "lora(", 5) != 0) continue;
        if (!read_lora(patterns[i], lora)) {
            return error_set(STATUS_USAGE,
                             "train: expected lora(RANK), lora(RANK,svd) or lora(RANK,svd,fixed) with a rank from 1 to "
                             "4096, found \"%s\"", patterns[i]);
        }
        if (first && strcmp(first, patterns[i]) != 0) {
            return error_set(STATUS_USAGE, "train: LoRA has one form in a run, found %s and %s", first, patterns[i]);
        }
        first = patterns[i];
    }
    return STATUS_OK;
}

static enum status unknown_pattern(const struct params *params, const char *pattern) {
    char known[512] = {0};
    size_t used = 0;
    for (int64_t i = 0; i < params->count && used + 80 < sizeof known; i++) {
        const char *name = params->rows[i].name;
        if (strncmp(name, "h.", 2) == 0 && strncmp(name, "h.0.", 4) != 0) continue;
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", name);
    }
    return error_set(STATUS_USAGE,
                     "train: no parameter matches \"%s\"; expected new, all, lora(RANK), or part of a name such as: %s",
                     pattern, known);
}

enum status params_own(struct params *params, char *const *patterns, size_t count) {
    for (size_t p = 0; p < count; p++) {
        bool found = false;
        for (int64_t i = 0; i < params->count; i++) {
            if (!params_match(&params->rows[i], patterns[p])) continue;
            params->rows[i].owned = found = true;
        }
        /* A student whose kinds add nothing may still name "new": its stage then trains nothing, which is said elsewhere. */
        if (!found && strcmp(patterns[p], "new") != 0) return unknown_pattern(params, patterns[p]);
    }
    return STATUS_OK;
}

static enum status take_block(struct params *params, enum dtype dtype, bool zero, struct tensor *block) {
    const struct ops *ops = params->ops;
    int64_t elements = params->owned_elements ? params->owned_elements : 1;
    void *data = NULL;
    TRY(ops->allocate(ops, (size_t)elements * dtype_size(dtype), &data));
    *block = tensor_1d(data, dtype, elements);
    return zero ? ops->fill(ops, *block, 0) : STATUS_OK;
}

static struct tensor row_view(const struct param *row, struct tensor block) {
    if (!tensor_present(block)) return tensor_none();
    return tensor_reshape(tensor_rows(block, row->offset, row_elements(row)), row->rank, row->shape);
}

static enum status place_row(const struct params *params, struct param *row) {
    const struct tensor shared = row->value;
    row->value = row_view(row, params->values);
    row->working = tensor_present(params->workings) ? row_view(row, params->workings) : row->value;
    row->grad = row_view(row, params->grads);
    if (!tensor_present(shared)) return STATUS_OK;
    TRY(params->ops->copy(params->ops, shared, row->value));
    return params_wrote(params, row);
}

enum status params_wrote(const struct params *params, const struct param *row) {
    return row->working.data == row->value.data ? STATUS_OK : params->ops->copy(params->ops, row->value, row->working);
}

void params_move(const struct params *params, struct param *row, struct tensor value) {
    if (!tensor_present(params->workings) || !row->owned) row->working = value;
    row->value = value;
}

enum status params_place(struct params *params, bool train) {
    enum status status = STATUS_OK;
    params->owned_elements = 0;
    for (int64_t i = 0; i < params->count; i++) {
        struct param *row = &params->rows[i];
        if (row->added || row->lora) row->owned = true; /* nobody else has them */
        if (!row->owned) continue;
        row->offset = params->owned_elements;
        params->owned_elements += row_elements(row);
    }
    const enum dtype real = params->ops->real, parameter = params->ops->parameter;
    const bool only_read = !train && !params->shares_teacher;
    TRY_GOTO(done, take_block(params, only_read ? real : parameter, false, &params->values));
    if (!only_read && real != parameter) TRY_GOTO(done, take_block(params, real, false, &params->workings));
    if (train) TRY_GOTO(done, take_block(params, parameter, true, &params->grads));
    for (int64_t i = 0; i < params->count; i++) {
        if (params->rows[i].owned) TRY_GOTO(done, place_row(params, &params->rows[i]));
    }
done:
    if (status != STATUS_OK) release_blocks(params);
    return status;
}

static enum status fill_identity(const struct params *params, const struct param *row) {
    const struct ops *ops = params->ops;
    const int64_t columns = row->shape[row->rank - 1], height = row->shape[row->rank - 2];
    struct tensor rows = tensor_as_rows(row->value);
    TRY(ops->fill(ops, row->value, 0));
    for (int64_t r = 0; r < rows.shape[0]; r++) {
        const int64_t n = r % height;
        TRY(ops->fill(ops, tensor_columns(tensor_rows(rows, r, 1), n % columns, 1), n / columns % 2 ? -1 : 1));
    }
    return STATUS_OK;
}

static enum status initialise_row(const struct params *params, const struct param *row, uint64_t seed) {
    const struct ops *ops = params->ops;
    if (row->init == INIT_ZERO) return ops->fill(ops, row->value, 0);
    if (row->init == INIT_ONE) return ops->fill(ops, row->value, 1);
    if (row->init == INIT_NORMAL) {
        uint64_t stream = rng_substream(RNG_INIT, hash_bytes(row->name, strlen(row->name)) >> 8);
        return ops->fill_normal(ops, row->value, row->init_std, seed, stream);
    }
    if (row->init == INIT_ORTHOGONAL) return params_redraw(params, row, seed, 0);
    if (row->init == INIT_IDENTITY) return fill_identity(params, row);
    struct tensor rows = tensor_as_rows(row->value);
    for (int64_t r = 0, i = 0; r < rows.shape[0]; r++) {
        for (int64_t column = 0; column < rows.shape[1]; column++, i++) {
            struct tensor cell = tensor_columns(tensor_rows(rows, r, 1), column, 1);
            TRY(ops->fill(ops, cell, row->init_values[i]));
        }
    }
    return STATUS_OK;
}

enum status params_initialise(struct params *params, uint64_t seed, bool only_added) {
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->owned || (only_added && !row->added && !row->lora)) continue;
        TRY(initialise_row(params, row, seed));
        TRY(params_wrote(params, row));
    }
    return STATUS_OK;
}

enum status params_train(struct params *params, char *const *patterns, size_t count, int64_t *elements) {
    *elements = 0;
    for (int64_t i = 0; i < params->count; i++) {
        struct param *row = &params->rows[i];
        row->trained = false;
        for (size_t p = 0; p < count && !row->trained; p++) row->trained = params_match(row, patterns[p]);
        if (!row->trained) continue;
        if (!tensor_present(row->grad)) {
            return error_set(STATUS_FAILED, "parameter %s: cannot train, it has no gradient of its own", row->name);
        }
        *elements += row_elements(row);
    }
    return STATUS_OK;
}

enum status params_reset_moments(struct params *params) {
    TRY(params->ops->fill(params->ops, params->m, 0));
    return params->ops->fill(params->ops, params->v, 0);
}

bool params_next_run(const struct params *params, int64_t *offset, int64_t *count) {
    int64_t begin = -1, end = -1;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->trained || row->offset < *offset) continue;
        if (begin >= 0 && row->offset != end) break;
        if (begin < 0) begin = row->offset;
        end = row->offset + row_elements(row);
    }
    if (begin < 0) return false;
    *offset = begin;
    *count = end - begin;
    return true;
}

enum status params_hash(const struct params *params, uint64_t *hash) {
    enum status status = STATUS_OK;
    char *host = NULL;
    *hash = 0;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        *hash = hash_combine(*hash, hash_bytes(row->name, strlen(row->name)));
        *hash = hash_combine(*hash, hash_bytes(row->shape, (size_t)row->rank * sizeof *row->shape));
        if (row->read_hash) {
            *hash = hash_combine(*hash, row->read_hash);
            continue;
        }
        TRY_GOTO(done, memory_grow(&host, tensor_bytes(row->value), 1, "a parameter's copy"));
        TRY_GOTO(done, params->ops->download(params->ops, row->value, host));
        *hash = hash_combine(*hash, hash_bytes(host, tensor_bytes(row->value)));
    }
done:
    free(host);
    return status;
}
