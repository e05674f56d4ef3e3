/* squint logits: ids -> log-probabilities in HDF5, for oracles and for looking closely. */
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/commands.h"
#include "commands/with_model.h"
#include "io/h5.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

struct id_rows {
    int32_t *ids; /* [rows,length] */
    int64_t rows, length;
};

static enum status read_row(const char *path, const json_t *row, int64_t index, int64_t vocabulary, int64_t length,
                            int32_t *ids) {
    if (!json_is_array(row)) {
        return error_set(STATUS_DAMAGED, "%s: ids[%lld]: expected a list of ids", path, (long long)index);
    }
    if ((int64_t)json_array_size(row) != length) {
        return error_set(STATUS_DAMAGED,
                         "%s: ids[%lld]: expected %lld ids as in ids[0], found %zu; rows must be of equal length", path,
                         (long long)index, (long long)length, json_array_size(row));
    }
    for (int64_t i = 0; i < length; i++) {
        const json_t *id = json_array_get(row, (size_t)i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocabulary) {
            return error_set(STATUS_DAMAGED, "%s: ids[%lld][%lld]: expected an id from 0 to %lld", path,
                             (long long)index, (long long)i, (long long)vocabulary - 1);
        }
        ids[i] = (int32_t)json_integer_value(id);
    }
    return STATUS_OK;
}

static enum status read_ids(const char *path, int64_t vocabulary, struct id_rows *out) {
    json_error_t error;
    json_t *root = NULL;
    char *text = NULL;
    size_t length = 0;
    TRY(file_read(path, &text, &length));
    root = json_loadb(text, length, 0, &error);
    free(text);
    enum status status = STATUS_OK;
    if (!root) {
        return error_set(STATUS_DAMAGED, "%s:%d: expected JSON {\"ids\": [[...], ...]}: %s", path, error.line,
                         error.text);
    }
    const json_t *list = json_object_get(root, "ids");
    if (json_array_size(list) == 0 || json_array_size(json_array_get(list, 0)) == 0) {
        status = error_set(STATUS_DAMAGED, "%s: ids: expected a list of lists of ids, with at least one id", path);
        goto done;
    }
    out->rows = (int64_t)json_array_size(list);
    out->length = (int64_t)json_array_size(json_array_get(list, 0));
    TRY_GOTO(done, memory_new((size_t)(out->rows * out->length), sizeof *out->ids, "ids", &out->ids));
    for (int64_t r = 0; r < out->rows; r++) {
        const json_t *row = json_array_get(list, (size_t)r);
        TRY_GOTO(done, read_row(path, row, r, vocabulary, out->length, out->ids + r * out->length));
    }
done:
    json_decref(root);
    return status;
}

/* One sequence at a time: [T,V] log-probabilities at `row` of the dataset. */
static enum status write_row(struct plan *plan, struct head *head, const struct id_rows *ids, const int32_t *start,
                             int64_t vocabulary, int64_t row, float *values, struct h5 *file) {
    struct batch batch = {.batch = 1, .length = ids->length, .ids = ids->ids + row * ids->length, .start = start};
    struct tensor hidden;
    TRY(model_forward(plan, &batch, &hidden));
    TRY(head_logits(head, hidden, 0, ids->length, true, values));
    int64_t count = ids->length * vocabulary;
    return h5_dataset_write(file, "logprobs", DTYPE_F32, row * count, count, values);
}

static enum status write_all(const struct loaded_model *loaded, const struct id_rows *ids, const char *out) {
    const struct model *model = loaded->model;
    int64_t vocabulary = model->config.vocabulary;
    struct plan_options plan_options = {.batch = 1, .length = ids->length};
    struct head_options head_options = {.rows = ids->length};
    struct plan *plan = NULL;
    struct head *head = NULL;
    struct h5 *file = NULL;
    int32_t *start = NULL;
    float *values = NULL;
    struct log_progress progress;
    enum status status;
    TRY_GOTO(done, plan_open(model, &plan_options, &plan));
    TRY_GOTO(done, head_open(NULL, model, &head_options, &head));
    TRY_GOTO(done, memory_new((size_t)ids->length, sizeof *start, "documents", &start));
    TRY_GOTO(done, memory_new((size_t)(ids->length * vocabulary), sizeof *values, "log-probabilities", &values));
    TRY_GOTO(done, h5_create(out, 1, &file));
    int64_t shape[] = {ids->rows, ids->length, vocabulary};
    TRY_GOTO(done, h5_dataset_create(file, "logprobs", DTYPE_F32, 3, shape));
    TRY_GOTO(done, h5_attribute_set_text(file, "/", "model", loaded->path));
    TRY_GOTO(done, h5_attribute_set_text(file, "/", "identity", loaded->identity));
    log_progress_start(&progress, "logits", 0, ids->rows);
    for (int64_t row = 0; row < ids->rows; row++) {
        TRY_GOTO(done, write_row(plan, head, ids, start, vocabulary, row, values, file));
        log_progress_show(&progress, row + 1, "sequences");
    }
    log_progress_end(&progress, ids->rows, "sequences");
    status = h5_publish(&file);
done:
    h5_close(&file);
    head_close(&head);
    plan_close(&plan);
    free(values);
    free(start);
    return status;
}

static enum status run(int argc, char **argv) {
    struct model_options options = {0};
    struct with_model with;
    struct id_rows ids = {0};
    const char *path = NULL, *out = NULL;
    int64_t length = 0;
    const struct option table[] = {
        MODEL_OPTION_ROWS(options),
        {"ids", OPTION_TEXT, &path, 0, 0},
        {"out", OPTION_TEXT, &out, 0, 0},
        {"length", OPTION_INTEGER, &length, 1, 1e9},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    if (!path) return error_set(STATUS_USAGE, "logits: --ids: expected a JSON file, found none");
    if (!out) return error_set(STATUS_USAGE, "logits: --out: expected the name of an HDF5 file, found none");
    enum status status = with_model_open("logits", &options, false, length, &with);
    if (status != STATUS_OK) goto done;
    TRY_GOTO(done, read_ids(path, with.loaded.model->config.vocabulary, &ids));
    TRY_GOTO(done, write_all(&with.loaded, &ids, out));
    log_line("%s: /logprobs [%lld,%lld,%lld] float32", out, (long long)ids.rows, (long long)ids.length,
             (long long)with.loaded.model->config.vocabulary);
done:
    free(ids.ids);
    return with_model_close(&with, status);
}

const struct command command_logits = {
    .name = "logits",
    .summary = "ids -> log-probabilities in HDF5 (for oracles)",
    .help =
        "usage: squint logits --model MODEL --ids FILE.json --out FILE.h5 [options]\n"
        "\n"
        "Writes /logprobs, float32 [N,T,V]: row t of a sequence holds the log-probabilities of what follows its id t.\n"
        "FILE.json is {\"ids\": [[...], ...]}: N sequences of the same length T.\n"
        "\n" MODEL_OPTION_HELP "  --length T           with --positions: how far learned positions are made to reach\n"
        "\n"
        "example: squint logits --model models/gpt2 --ids ids.json --out logprobs.h5\n",
    .run = run,
};
