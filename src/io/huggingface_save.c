/* Writes a Hugging Face directory; see huggingface.h. */
#include "base/file.h"
#include "base/memory.h"
#include "io/huggingface_internal.h"
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const tokenizer_files[] = {"tokenizer.json", "tokenizer_config.json",   "vocab.json",
                                              "merges.txt",     "special_tokens_map.json", "added_tokens.json",
                                              "tokenizer.model"};

/* One tensor of the file to write. */
struct output {
    const struct param *row;
    struct huggingface_piece piece;
    char name[128];
};

struct save {
    const struct huggingface_save *what;
    struct output *outputs;
    struct safetensors_entry *entries;
    int64_t count;
    float *values, *turned; /* one tensor, and its transpose */
    double *wide;
};

static enum status list_outputs(struct save *save) {
    const struct params *params = save->what->params;
    size_t most = (size_t)params->count * HUGGINGFACE_MAX_PIECES;
    TRY(memory_new(most, sizeof *save->outputs, "a list of tensors", &save->outputs));
    TRY(memory_new(most, sizeof *save->entries, "a list of tensors", &save->entries));
    for (int64_t i = 0; i < params->count; i++) {
        struct huggingface_piece pieces[HUGGINGFACE_MAX_PIECES];
        int count = huggingface_pieces(save->what->model, &params->rows[i], pieces);
        for (int p = 0; p < count; p++) {
            struct output *output = &save->outputs[save->count];
            struct safetensors_entry *entry = &save->entries[save->count++];
            output->row = &params->rows[i];
            output->piece = pieces[p];
            snprintf(output->name, sizeof output->name, "%.16s%.95s",
                     huggingface_prefix(save->what->model, pieces[p].name), pieces[p].name);
            entry->name = output->name;
            entry->rank = pieces[p].rank;
            entry->shape[0] = pieces[p].transposed ? pieces[p].columns : pieces[p].rows;
            entry->shape[1] = pieces[p].transposed ? pieces[p].rows : pieces[p].columns;
        }
        if (count == 0 && !params->rows[i].added && !params->rows[i].lora) {
            return error_set(STATUS_FAILED, "parameter %s: has no name in a Hugging Face directory",
                             params->rows[i].name);
        }
    }
    return STATUS_OK;
}

static enum status take_scratch(struct save *save) {
    int64_t most = 1, most_turned = 1;
    for (int64_t i = 0; i < save->count; i++) {
        const struct huggingface_piece *piece = &save->outputs[i].piece;
        int64_t count = piece->rows * piece->columns;
        if (count > most) most = count;
        if (piece->transposed && count > most_turned) most_turned = count;
    }
    for (int64_t i = 0; i < save->what->params->count; i++) { /* `wide` takes LoRA's rows too */
        const struct param *row = &save->what->params->rows[i];
        if (row->lora && tensor_count(row->value) > most) most = tensor_count(row->value);
    }
    TRY(memory_new((size_t)most, sizeof(float), "a tensor on its way", &save->values));
    TRY(memory_new((size_t)most_turned, sizeof(float), "a tensor on its way", &save->turned));
    if (save->what->params->ops->parameter != DTYPE_F64) return STATUS_OK;
    return memory_new((size_t)most, sizeof(double), "a tensor on its way", &save->wide);
}

/* The rows of LoRA beside a weight: "X.lora_a" [r,in] and "X.lora_b" [out,r] of "X.weight". NULL: none. */
static const struct param *find_lora(const struct params *params, const struct param *row, const char *ending) {
    char name[80];
    size_t stem = strlen(row->name);
    if (stem < 7 || strcmp(row->name + stem - 7, ".weight") != 0) return NULL;
    snprintf(name, sizeof name, "%.*s.%s", (int)(stem - 7), row->name, ending);
    return params_find(params, name);
}

/* values [rows,columns] += lora_b[first_row…]·lora_a, added up in double. */
static enum status merge_lora(struct save *save, const struct output *output) {
    const struct params *params = save->what->params;
    const struct param *a = find_lora(params, output->row, "lora_a"), *b = find_lora(params, output->row, "lora_b");
    const struct huggingface_piece *piece = &output->piece;
    if (!a || !b) return STATUS_OK;
    enum status status = STATUS_OK;
    int64_t rank = a->shape[0], columns = piece->columns;
    float *left = NULL, *right = NULL;
    struct tensor slice = tensor_rows(b->value, piece->first_row, piece->rows);
    TRY_GOTO(done, memory_new((size_t)(piece->rows * rank), sizeof *left, "LoRA", &left));
    TRY_GOTO(done, memory_new((size_t)(rank * columns), sizeof *right, "LoRA", &right));
    TRY_GOTO(done, huggingface_download(params->ops, slice, left, save->wide, piece->rows * rank));
    TRY_GOTO(done, huggingface_download(params->ops, a->value, right, save->wide, rank * columns));
    for (int64_t row = 0; row < piece->rows; row++) {
        for (int64_t column = 0; column < columns; column++) {
            double sum = (double)save->values[row * columns + column];
            for (int64_t r = 0; r < rank; r++)
                sum += (double)left[row * rank + r] * (double)right[r * columns + column];
            save->values[row * columns + column] = (float)sum;
        }
    }
done:
    free(left);
    free(right);
    return status;
}

static enum status write_output(struct save *save, const struct output *output, struct safetensors_writer *writer) {
    const struct huggingface_piece *piece = &output->piece;
    int64_t count = piece->rows * piece->columns;
    struct tensor from = tensor_rows(output->row->value, piece->first_row, piece->rows);
    TRY(huggingface_download(save->what->params->ops, from, save->values, save->wide, count));
    TRY(merge_lora(save, output));
    if (!piece->transposed) return safetensors_write(writer, save->values, count);
    for (int64_t row = 0; row < piece->rows; row++) {
        for (int64_t column = 0; column < piece->columns; column++) {
            save->turned[column * piece->rows + row] = save->values[row * piece->columns + column];
        }
    }
    return safetensors_write(writer, save->turned, count);
}

static enum status write_model(const char *directory, const struct huggingface_save *what) {
    enum status status = STATUS_OK;
    struct save save = {.what = what};
    struct safetensors_writer *writer = NULL;
    char *path = NULL;
    TRY_GOTO(done, list_outputs(&save));
    TRY_GOTO(done, take_scratch(&save));
    TRY_GOTO(done, file_join(directory, "model.safetensors", &path));
    TRY_GOTO(done, safetensors_create(path, save.entries, save.count, &writer));
    for (int64_t i = 0; i < save.count; i++) TRY_GOTO(done, write_output(&save, &save.outputs[i], writer));
    status = safetensors_finish(&writer);
done:
    safetensors_discard(&writer);
    free(save.outputs);
    free(save.entries);
    free(save.values);
    free(save.turned);
    free(save.wide);
    free(path);
    return status;
}

static enum status copy_file(const char *from_directory, const char *to_directory, const char *name) {
    enum status status = STATUS_OK;
    char *from = NULL, *to = NULL, *data = NULL;
    size_t length = 0;
    TRY_GOTO(done, file_join(from_directory, name, &from));
    if (!file_exists(from)) goto done;
    TRY_GOTO(done, file_join(to_directory, name, &to));
    TRY_GOTO(done, file_read(from, &data, &length));
    status = file_write(to, data, length);
done:
    free(from);
    free(to);
    free(data);
    return status;
}

static enum status fill_directory(const char *directory, const struct huggingface_save *what) {
    struct model_config model = *what->model;
    const struct param *positions = params_find(what->params, "wpe");
    bool student = false;
    if (positions) model.positions = positions->shape[0]; /* a run may have made the table longer */
    TRY(huggingface_write_config(directory, &model));
    TRY(write_model(directory, what));
    for (size_t i = 0; i < what->rule_count; i++) student = student || strcmp(what->rules[i].kind, "full") != 0;
    if (student) TRY(huggingface_write_student(directory, what));
    for (size_t i = 0; what->tokenizer && i < sizeof tokenizer_files / sizeof *tokenizer_files; i++) {
        TRY(copy_file(what->tokenizer, directory, tokenizer_files[i]));
    }
    return STATUS_OK;
}

enum status huggingface_is_whole(const char *directory, const char *tokenizer, bool *whole) {
    TRY(file_exists_in(directory, "config.json", whole));
    if (*whole) TRY(file_exists_in(directory, "model.safetensors", whole));
    for (size_t i = 0; tokenizer && *whole && i < sizeof tokenizer_files / sizeof *tokenizer_files; i++) {
        bool there = false;
        TRY(file_exists_in(tokenizer, tokenizer_files[i], &there));
        if (there) TRY(file_exists_in(directory, tokenizer_files[i], whole));
    }
    return STATUS_OK;
}

enum status huggingface_check_target(const char *directory) {
    char **names = NULL;
    size_t count = 0;
    if (!file_exists(directory)) return STATUS_OK;
    if (!file_is_directory(directory)) {
        return error_set(STATUS_USAGE, "%s: expected a new or empty directory, found a file", directory);
    }
    TRY(file_list(directory, &names, &count));
    file_free_list(names, count);
    if (count == 0) return STATUS_OK;
    return error_set(STATUS_USAGE, "%s: expected a new or empty directory, found one with %zu entries", directory,
                     count);
}

enum status huggingface_save(const char *directory, const struct huggingface_save *what) {
    enum status status = STATUS_OK;
    char *path = NULL, *temporary = NULL;
    TRY_GOTO(done, memory_copy_text(directory, &path));
    for (size_t length = strlen(path); length > 1 && path[length - 1] == '/'; length--) path[length - 1] = '\0';
    TRY_GOTO(done, huggingface_check_target(path));
    TRY_GOTO(done, memory_format(&temporary, "%s.tmp-%ld", path, (long)getpid()));
    TRY_GOTO(done, file_remove_tree(temporary));
    TRY_GOTO(done, file_make_directory(temporary));
    status = fill_directory(temporary, what);
    if (status == STATUS_OK) status = file_publish(temporary, path);
    if (status != STATUS_OK) (void)file_remove_tree(temporary);
done:
    free(path);
    free(temporary);
    return status;
}
