/* Fills a tensor table from a Hugging Face directory; see huggingface.h. */
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "io/huggingface_internal.h"
#include "io/safetensors.h"
#include "params/values.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROBLEMS_SHOWN = 8 };

/* All that is wrong with a directory, in one message. */
struct problems {
    char text[1600];
    size_t used;
    int count;
};

__attribute__((format(printf, 2, 3))) static void add_problem(struct problems *problems, const char *format, ...) {
    if (problems->count++ >= PROBLEMS_SHOWN || problems->used >= sizeof problems->text) return;
    va_list arguments;
    size_t room = sizeof problems->text - problems->used;
    int length = snprintf(problems->text + problems->used, room, "%s", problems->count > 1 ? "; " : "");
    va_start(arguments, format);
    length += vsnprintf(problems->text + problems->used + length, room - (size_t)length, format, arguments);
    va_end(arguments);
    problems->used += (size_t)length < room ? (size_t)length : room;
}

static enum status report_problems(const char *where, const struct problems *problems) {
    if (problems->count == 0) return STATUS_OK;
    int hidden = problems->count - PROBLEMS_SHOWN;
    char rest[48] = "";
    if (hidden > 0) snprintf(rest, sizeof rest, "; and %d more", hidden);
    return error_set(STATUS_DAMAGED, "%s: %d tensor%s wrong: %s%s", where, problems->count,
                     problems->count == 1 ? " is" : "s are", problems->text, rest);
}

/* ---- which tensor of the files fills which piece ------------------------------------------------------------------
 */
struct source {
    const struct safetensors_tensor *tensor;
    struct huggingface_piece piece;
    struct param *row;
};

struct load {
    const struct model_config *model;
    struct safetensors set;
    struct source *sources;
    int64_t source_count;
    const struct safetensors_tensor *extra_head; /* beside tied embeddings */
    float *values;                               /* scratch: HUGGINGFACE_CHUNK */
    double *wide;
    int64_t room;             /* of the scratch */
    struct hash_stream *hash; /* of the row that is being read, for tables that hold it narrower */
};

/* The tensor with its prefix or, in files of the bare model, without. */
static const struct safetensors_tensor *find_either(const struct load *load, const char *name) {
    char whole[128];
    snprintf(whole, sizeof whole, "%s%s", huggingface_prefix(load->model, name), name);
    const struct safetensors_tensor *tensor = safetensors_find(&load->set, whole);
    return tensor ? tensor : safetensors_find(&load->set, name);
}

static void check_tensor(const struct safetensors_tensor *tensor, const struct huggingface_piece *piece,
                         struct problems *problems) {
    char text[160];
    int64_t rows = piece->transposed ? piece->columns : piece->rows,
            columns = piece->transposed ? piece->rows : piece->columns;
    bool fits =
        tensor->rank == piece->rank && tensor->shape[0] == rows && (piece->rank == 1 || tensor->shape[1] == columns);
    safetensors_describe(tensor, text, sizeof text);
    if (!fits && piece->rank == 1)
        add_problem(problems, "%s: expected [%" PRId64 "], found %s", tensor->name, rows, text);
    if (!fits && piece->rank == 2) {
        add_problem(problems, "%s: expected [%" PRId64 ",%" PRId64 "], found %s", tensor->name, rows, columns, text);
    }
    if (fits && !safetensors_is_real(tensor->dtype)) {
        add_problem(problems, "%s: expected F32, F16, BF16 or F64, found %s", tensor->name, text);
    }
}

static enum status match_row(struct load *load, struct param *row, struct problems *problems) {
    struct huggingface_piece pieces[HUGGINGFACE_MAX_PIECES];
    int count = huggingface_pieces(load->model, row, pieces);
    if (count == 0) return error_set(STATUS_FAILED, "parameter %s: has no name in a Hugging Face directory", row->name);
    for (int i = 0; i < count; i++) {
        const struct safetensors_tensor *tensor = find_either(load, pieces[i].name);
        if (!tensor) {
            add_problem(problems, "%s%s: missing", huggingface_prefix(load->model, pieces[i].name), pieces[i].name);
            continue;
        }
        check_tensor(tensor, &pieces[i], problems);
        TRY(memory_grow(&load->sources, (size_t)load->source_count + 1, sizeof *load->sources, "a list of tensors"));
        load->sources[load->source_count++] = (struct source){tensor, pieces[i], row};
    }
    return STATUS_OK;
}

static int compare_sources(const void *a, const void *b) {
    const struct safetensors_tensor *left = ((const struct source *)a)->tensor,
                                    *right = ((const struct source *)b)->tensor;
    return (left > right) - (left < right);
}

/* Tensors of the files that no piece asked for. */
static void find_surplus(struct load *load, struct problems *problems) {
    if (load->source_count > 1)
        qsort(load->sources, (size_t)load->source_count, sizeof *load->sources, compare_sources);
    for (int64_t i = 0, next = 0; i < load->set.count; i++) {
        const struct safetensors_tensor *tensor = &load->set.tensors[i];
        if (next < load->source_count && load->sources[next].tensor == tensor) {
            next++;
            continue;
        }
        const char *prefix = load->model->type == MODEL_GPT2 ? "transformer." : "model.";
        const char *bare = tensor->name;
        if (strncmp(bare, prefix, strlen(prefix)) == 0) bare += strlen(prefix);
        if (huggingface_is_buffer(load->model, bare)) continue;
        if (load->model->tied && strcmp(tensor->name, "lm_head.weight") == 0) {
            struct huggingface_piece head = {.rows = load->model->vocabulary, .columns = load->model->width, .rank = 2};
            load->extra_head = tensor;
            check_tensor(tensor, &head, problems);
            continue;
        }
        add_problem(problems, "%s: surplus", tensor->name);
    }
}

/* With tied embeddings a head in the files must hold the same values: else the config is wrong about them. */
static enum status check_extra_head(struct load *load, struct problems *problems) {
    const struct safetensors_tensor *head = load->extra_head;
    const char *name = load->model->type == MODEL_GPT2 ? "wte.weight" : "embed_tokens.weight";
    const struct safetensors_tensor *embedding = find_either(load, name);
    if (!head || problems->count > 0) return STATUS_OK;
    int64_t half = load->room / 2;
    for (int64_t first = 0; first < head->count; first += half) {
        int64_t count = head->count - first < half ? head->count - first : half;
        TRY(safetensors_read(head, first, 1, count, load->values));
        TRY(safetensors_read(embedding, first, 1, count, load->values + half));
        for (int64_t i = 0; i < count; i++) {
            if (memcmp(&load->values[i], &load->values[half + i], sizeof(float)) == 0) continue;
            add_problem(problems,
                        "lm_head.weight: expected none or the values of %s, because config.json ties them; found %.9g "
                        "beside %.9g at element %" PRId64,
                        embedding->name, (double)load->values[i], (double)load->values[half + i], first + i);
            return STATUS_OK;
        }
    }
    return STATUS_OK;
}

/* ---- values ---------------------------------------------------------------------------------------------------------
 */
enum status huggingface_upload(const struct ops *ops, struct tensor to, float *values, double *wide, int64_t count) {
    if (to.dtype != DTYPE_F64) return values_upload(ops, to, values);
    for (int64_t i = 0; i < count; i++) wide[i] = values[i];
    return ops->upload(ops, to, wide);
}

enum status huggingface_download(const struct ops *ops, struct tensor from, float *values, double *wide,
                                 int64_t count) {
    if (from.dtype != DTYPE_F64) return values_download(ops, from, values);
    TRY(ops->download(ops, from, wide));
    for (int64_t i = 0; i < count; i++) values[i] = (float)wide[i];
    return STATUS_OK;
}

/* Columns of the file's tensor become rows of ours. */
static enum status read_rows(const struct source *source, int64_t first, int64_t rows, float *values) {
    const struct huggingface_piece *piece = &source->piece;
    if (!piece->transposed) {
        return safetensors_read(source->tensor, first * piece->columns, 1, rows * piece->columns, values);
    }
    for (int64_t row = 0; row < rows; row++) {
        TRY(safetensors_read(source->tensor, first + row, piece->rows, piece->columns, values + row * piece->columns));
    }
    return STATUS_OK;
}

/* A model with NaN would go on to write "!" for ever: say it now. */
static enum status check_finite(const struct safetensors_tensor *tensor, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (isfinite(values[i])) continue;
        return error_set(STATUS_DAMAGED, "%s: tensor %s: expected finite values, found %g", tensor->path, tensor->name,
                         (double)values[i]);
    }
    return STATUS_OK;
}

static enum status load_source(const struct load *load, const struct ops *ops, const struct source *source) {
    const struct huggingface_piece *piece = &source->piece;
    const bool narrow = source->row->value.dtype == DTYPE_BF16;
    if (piece->first_row == 0) hash_stream_start(load->hash);
    int64_t most = load->room / piece->columns;
    for (int64_t first = 0; first < piece->rows; first += most) {
        int64_t rows = piece->rows - first < most ? piece->rows - first : most;
        TRY(read_rows(source, first, rows, load->values));
        TRY(check_finite(source->tensor, load->values, rows * piece->columns));
        if (narrow) hash_stream_add(load->hash, load->values, (size_t)(rows * piece->columns) * sizeof(float));
        struct tensor to = tensor_rows(source->row->value, piece->first_row + first, rows);
        TRY(huggingface_upload(ops, to, load->values, load->wide, rows * piece->columns));
    }
    if (narrow) source->row->read_hash = hash_stream_end(load->hash); /* with the row's last piece, of all of it */
    safetensors_forget(source->tensor);
    return STATUS_OK;
}

/* Row after row, the pieces of each in order. */
static int compare_places(const void *a, const void *b) {
    const struct source *left = a, *right = b;
    if (left->row != right->row) return left->row < right->row ? -1 : 1;
    return (left->piece.first_row > right->piece.first_row) - (left->piece.first_row < right->piece.first_row);
}

static enum status load_sources(struct load *load, const struct params *params) {
    if (load->source_count > 1) qsort(load->sources, (size_t)load->source_count, sizeof *load->sources, compare_places);
    for (int64_t i = 0; i < load->source_count; i++) {
        const struct source *source = &load->sources[i];
        TRY(load_source(load, params->ops, source));
        TRY(params_wrote(params, source->row));
    }
    return STATUS_OK;
}

/* Scratch for at least one row of any tensor. */
static enum status take_scratch(struct load *load, const struct params *params) {
    load->room = HUGGINGFACE_CHUNK;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        int64_t columns = row->rank >= 2 ? row->shape[row->rank - 1] : 1;
        if (2 * columns > load->room) load->room = 2 * columns;
    }
    TRY(hash_stream_open(&load->hash));
    TRY(memory_new((size_t)load->room, sizeof *load->values, "tensors on their way", &load->values));
    if (params->ops->parameter != DTYPE_F64) return STATUS_OK;
    return memory_new((size_t)load->room, sizeof *load->wide, "tensors on their way", &load->wide);
}

static void load_close(struct load *load) {
    safetensors_close(&load->set);
    free(load->sources);
    free(load->values);
    free(load->wide);
    hash_stream_close(&load->hash);
}

enum status huggingface_load(const char *directory, const struct model_config *model, struct params *params) {
    enum status status = STATUS_OK;
    struct load load = {.model = model};
    struct problems problems = {.used = 0};
    TRY_GOTO(done, safetensors_open_directory(directory, &load.set));
    TRY_GOTO(done, take_scratch(&load, params));
    for (int64_t i = 0; i < params->count; i++) TRY_GOTO(done, match_row(&load, &params->rows[i], &problems));
    find_surplus(&load, &problems);
    TRY_GOTO(done, check_extra_head(&load, &problems));
    TRY_GOTO(done, report_problems(directory, &problems));
    status = load_sources(&load, params);
done:
    load_close(&load);
    return status;
}

/* ---- a student's own rows
 * --------------------------------------------------------------------------------------------- */
static void match_added(struct load *load, struct param *row, struct problems *problems) {
    char expected[64], found[160];
    const struct safetensors_tensor *tensor = safetensors_find(&load->set, row->name);
    if (!tensor) {
        add_problem(problems, "%s: missing", row->name);
        return;
    }
    bool fits = tensor->rank == row->rank && safetensors_is_real(tensor->dtype);
    for (int i = 0; fits && i < row->rank; i++) fits = tensor->shape[i] == row->shape[i];
    if (fits) {
        int64_t columns = row->shape[row->rank - 1];
        load->sources[load->source_count++] = (struct source){
            tensor, {.rows = columns ? tensor->count / columns : 0, .columns = columns, .rank = 2}, row};
        return;
    }
    tensor_describe(row->value, expected, sizeof expected);
    safetensors_describe(tensor, found, sizeof found);
    add_problem(problems, "%s: expected %s, found %s", row->name, expected, found);
}

enum status huggingface_load_added(const char *directory, struct params *params) {
    enum status status = STATUS_OK;
    struct load load = {.room = 0};
    struct problems problems = {.used = 0};
    char *path = NULL;
    TRY_GOTO(done, file_join(directory, "squint.safetensors", &path));
    TRY_GOTO(done, safetensors_open(path, &load.set));
    TRY_GOTO(done, take_scratch(&load, params));
    TRY_GOTO(done, memory_new((size_t)params->count, sizeof *load.sources, "a list of tensors", &load.sources));
    for (int64_t i = 0; i < params->count; i++) {
        if (params->rows[i].added) match_added(&load, &params->rows[i], &problems);
    }
    for (int64_t i = 0; i < load.set.count; i++) {
        const struct param *row = params_find(params, load.set.tensors[i].name);
        if (!row || !row->added) add_problem(&problems, "%s: surplus", load.set.tensors[i].name);
    }
    TRY_GOTO(done, report_problems(path, &problems));
    for (int64_t i = 0; i < load.source_count; i++) {
        struct source *source = &load.sources[i];
        struct param flat = *source->row; /* as a matrix of its last dimension, whatever its rank */
        flat.value = tensor_as_rows(flat.value);
        const struct param *row = source->row;
        source->row = &flat;
        TRY_GOTO(done, load_source(&load, params->ops, source));
        TRY_GOTO(done, params_wrote(params, row));
    }
done:
    load_close(&load);
    free(path);
    return status;
}
