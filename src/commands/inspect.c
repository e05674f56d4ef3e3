/* squint inspect: what a shard, checkpoint, run directory or model is. Everything that is found goes into one JSON
 * object; people get its lines. */
#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "comm/comm.h"
#include "commands/commands.h"
#include "commands/inspect_attention.h"
#include "io/checkpoint.h"
#include "io/h5.h"
#include "io/huggingface.h"
#include "io/safetensors.h"
#include "io/shard.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_integer(json_t *facts, const char *name, int64_t value) {
    json_object_set_new(facts, name, json_integer(value));
}

/* A text that is not UTF-8 becomes null. */
static void put_text(json_t *facts, const char *name, const char *value) {
    json_t *text = json_string(value);
    json_object_set_new(facts, name, text ? text : json_null());
}

static void put_hash(json_t *facts, const char *name, uint64_t hash) {
    char text[17];
    hash_text(hash, text);
    put_text(facts, name, text);
}

static json_t *shape_json(int rank, const int64_t *shape) {
    json_t *list = json_array();
    for (int i = 0; i < rank; i++) json_array_append_new(list, json_integer(shape[i]));
    return list;
}

static void add_tensor(json_t *list, const char *name, const char *dtype, json_t *shape) {
    json_t *tensor = json_object();
    put_text(tensor, "name", name);
    put_text(tensor, "dtype", dtype);
    json_object_set_new(tensor, "shape", shape);
    json_array_append_new(list, tensor);
}

/* --- what each kind of thing says ------------------------------------------------------------------------------- */

static enum status inspect_shard(const char *path, bool verify, json_t *facts) {
    struct shard shard;
    TRY(shard_open(path, &shard));
    const struct shard_info *info = &shard.info;
    put_text(facts, "kind", "token shard");
    put_integer(facts, "tokens", info->tokens);
    put_integer(facts, "documents", info->documents);
    put_integer(facts, "bytes_per_token", info->bytes_per_token);
    put_text(facts, "tokenizer", info->tokenizer_name);
    put_hash(facts, "tokenizer_hash", info->tokenizer_hash);
    put_integer(facts, "vocabulary", info->vocabulary);
    put_integer(facts, "end_of_text", info->end_of_text);
    put_text(facts, "source", info->source);
    put_hash(facts, "source_hash", info->source_hash);
    put_hash(facts, "tokens_hash", info->tokens_hash);
    enum status status = verify ? shard_verify(&shard) : STATUS_OK;
    shard_close(&shard);
    return status;
}

static json_t *attribute_json(const struct checkpoint_attribute *attribute) {
    json_t *value = NULL;
    switch (attribute->type) {
    case CHECKPOINT_INTEGER:
        return json_integer(attribute->integer);
    case CHECKPOINT_REAL:
        value = json_real(attribute->real);
        break; /* NULL for a NaN */
    case CHECKPOINT_TEXT:
        value = json_string(attribute->data);
        break;
    case CHECKPOINT_BLOB:
        value = json_object();
        put_integer(value, "bytes", (int64_t)attribute->bytes);
        put_hash(value, "hash", hash_bytes(attribute->data, attribute->bytes));
        break;
    }
    return value ? value : json_null();
}

static enum status inspect_checkpoint(const char *path, bool verify, json_t *facts) {
    struct checkpoint *checkpoint = NULL;
    struct comm *comm = NULL;
    TRY(checkpoint_open(path, &checkpoint));
    json_t *tensors = json_array(), *attributes = json_object();
    int64_t elements = 0, bytes = 0;
    for (size_t i = 0; i < checkpoint_tensor_count(checkpoint); i++) {
        struct checkpoint_tensor tensor = checkpoint_tensor(checkpoint, i);
        elements += tensor.count;
        bytes += tensor.count * (int64_t)dtype_size(tensor.dtype);
        add_tensor(tensors, tensor.name, dtype_name(tensor.dtype), shape_json(tensor.rank, tensor.shape));
    }
    for (size_t i = 0; i < checkpoint_attribute_count(checkpoint); i++) {
        struct checkpoint_attribute attribute = checkpoint_attribute(checkpoint, i);
        json_object_set_new(attributes, attribute.name, attribute_json(&attribute));
    }
    put_text(facts, "kind", "checkpoint");
    put_integer(facts, "step", checkpoint_step(checkpoint));
    put_integer(facts, "ranks", checkpoint_files(checkpoint));
    put_integer(facts, "elements", elements);
    put_integer(facts, "bytes", bytes);
    json_object_set_new(facts, "attributes", attributes);
    json_object_set_new(facts, "tensors", tensors);
    checkpoint_close(&checkpoint);
    if (!verify) return STATUS_OK;
    enum status status = comm_open_single(&comm);
    if (status == STATUS_OK) status = checkpoint_verify(comm, path);
    KEEP_FIRST(status, comm_close(&comm));
    return status;
}

/* One line a checkpoint, newest first; the first fault of a verification is the run's. */
static enum status inspect_run(const char *path, bool verify, json_t *facts) {
    enum status status = STATUS_OK;
    int64_t *steps = NULL;
    size_t count = 0;
    char *fault = NULL;
    json_t *list = json_array();
    put_text(facts, "kind", "run directory");
    json_object_set_new(facts, "checkpoints", list);
    TRY(checkpoint_list(path, &steps, &count));
    for (size_t i = 0; i < count; i++) {
        char *checkpoint = NULL;
        json_t *inside = json_object(), *line = json_object();
        json_array_append_new(list, line);
        status = checkpoint_path(path, steps[i], &checkpoint);
        if (status == STATUS_OK) status = inspect_checkpoint(checkpoint, verify, inside);
        json_decref(inside);
        put_integer(line, "step", steps[i]);
        if (checkpoint) put_text(line, "path", checkpoint);
        put_text(line, "state", status == STATUS_OK ? (verify ? "verified" : "not verified") : error_message());
        free(checkpoint);
        if (status == STATUS_MEMORY) break;
        bool first_fault = status != STATUS_OK && verify && !fault;
        status = first_fault ? memory_copy_text(error_message(), &fault) : STATUS_OK;
        error_clear();
        if (status != STATUS_OK) {
            status = error_set(STATUS_MEMORY, "%s: no memory for a message", path);
            break;
        }
    }
    if (status == STATUS_OK && fault) status = error_set(STATUS_DAMAGED, "%s", fault);
    free(fault);
    free(steps);
    return status;
}

/* safetensors have no hashes: what can be checked is the structure, which opening does, and that the numbers are
 * numbers. */
static enum status check_finite(const struct safetensors_tensor *tensor) {
    enum { PIECE = 1 << 16 };
    enum status status = STATUS_OK;
    float *values = NULL;
    if (!safetensors_is_real(tensor->dtype)) return STATUS_OK;
    TRY(memory_new(PIECE, sizeof *values, tensor->name, &values));
    for (int64_t first = 0; first < tensor->count && status == STATUS_OK; first += PIECE) {
        int64_t n = tensor->count - first < PIECE ? tensor->count - first : PIECE;
        TRY_GOTO(done, safetensors_read(tensor, first, 1, n, values));
        for (int64_t i = 0; i < n && status == STATUS_OK; i++) {
            if (isfinite(values[i])) continue;
            status = error_set(STATUS_DAMAGED, "%s: tensor %s: element %" PRId64 ": expected a finite number, found %g",
                               tensor->path, tensor->name, first + i, (double)values[i]);
        }
    }
done:
    safetensors_forget(tensor);
    free(values);
    return status;
}

static enum status inspect_safetensors(struct safetensors *set, bool verify, json_t *facts) {
    json_t *tensors = json_array();
    int64_t elements = 0, bytes = 0;
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < set->count; i++) {
        const struct safetensors_tensor *tensor = &set->tensors[i];
        elements += tensor->count;
        bytes += (int64_t)tensor->bytes;
        add_tensor(tensors, tensor->name, safetensors_dtype_name(tensor->dtype),
                   shape_json(tensor->rank, tensor->shape));
    }
    put_integer(facts, "files", (int64_t)set->file_count);
    put_integer(facts, "elements", elements);
    put_integer(facts, "bytes", bytes);
    json_object_set_new(facts, "tensors", tensors);
    for (int64_t i = 0; verify && i < set->count && status == STATUS_OK; i++) status = check_finite(&set->tensors[i]);
    safetensors_close(set);
    return status;
}

static enum status inspect_safetensors_file(const char *path, bool verify, json_t *facts) {
    struct safetensors set;
    TRY(safetensors_open(path, &set));
    put_text(facts, "kind", "safetensors");
    return inspect_safetensors(&set, verify, facts);
}

static enum status inspect_model(const char *path, bool verify, json_t *facts) {
    struct model_config model = {0};
    struct safetensors set;
    put_text(facts, "kind", "Hugging Face model");
    enum status status = huggingface_read_config(path, &model);
    if (status == STATUS_OK) {
        put_text(facts, "type", model_has_learned_positions(&model) ? "GPT-2 type" : "Llama type");
        put_integer(facts, "layers", model.layers);
        put_integer(facts, "heads", model.heads);
        put_integer(facts, "kv_heads", model.kv_heads);
        put_integer(facts, "width", model.width);
        put_integer(facts, "vocabulary", model.vocabulary);
        put_integer(facts, "positions", model.positions);
    } else if (status == STATUS_USAGE) {
        /* A model that squint does not run can still be looked at. */
        put_text(facts, "type", error_message());
        error_clear();
    } else {
        return status;
    }
    TRY(safetensors_open_directory(path, &set));
    return inspect_safetensors(&set, verify, facts);
}

/* --- which it is ------------------------------------------------------------------------------------------------ */

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), n = strlen(end);
    return length >= n && strcmp(text + length - n, end) == 0;
}

static enum status inspect_directory(const char *path, bool verify, json_t *facts) {
    bool checkpoint = false, run = false, model = false, json = false, vocabulary = false;
    TRY(checkpoint_is_checkpoint(path, &checkpoint));
    TRY(checkpoint_is_run(path, &run));
    TRY(file_exists_in(path, "config.json", &model));
    TRY(file_exists_in(path, "tokenizer.json", &json));
    TRY(file_exists_in(path, "vocab.json", &vocabulary));
    if (checkpoint) return inspect_checkpoint(path, verify, facts);
    if (run) return inspect_run(path, verify, facts);
    if (model) return inspect_model(path, verify, facts);
    if (json || vocabulary) {
        put_text(facts, "kind", "tokenizer");
        return STATUS_OK;
    }
    return error_set(
        STATUS_DAMAGED,
        "%s: expected a checkpoint (index.h5), a run (checkpoints/), a Hugging Face model (config.json) or "
        "a tokenizer (tokenizer.json), found none of them",
        path);
}

static enum status inspect_hdf5(const char *path, bool verify, json_t *facts) {
    struct h5 *file = NULL;
    char *format = NULL;
    TRY(h5_open(path, &file));
    enum status status = STATUS_OK;
    if (h5_attribute_exists(file, "/", "format")) status = h5_attribute_get_text(file, "/", "format", &format);
    h5_close(&file);
    if (status == STATUS_MEMORY) return status;
    error_clear(); /* a format that is no text: opening it as a shard says so */
    bool part = format && strncmp(format, "squint checkpoint", 17) == 0;
    free(format);
    if (!part) return inspect_shard(path, verify, facts);
    return error_set(STATUS_USAGE, "inspect: %s: is a part of a checkpoint; name the directory that holds it", path);
}

static enum status inspect(const char *path, bool verify, json_t *facts) {
    int64_t bytes;
    TRY(file_size(path, &bytes));
    put_text(facts, "path", path);
    if (file_is_directory(path)) return inspect_directory(path, verify, facts);
    put_integer(facts, "file_bytes", bytes);
    if (ends_with(path, ".safetensors")) return inspect_safetensors_file(path, verify, facts);
    if (h5_is_hdf5(path)) return inspect_hdf5(path, verify, facts);
    return error_set(STATUS_DAMAGED,
                     "%s: expected a token shard (HDF5), safetensors or a directory, found another file", path);
}

/* --- for people ------------------------------------------------------------------------------------------------- */

/* One line; a long text gives its size instead. */
static void print_value(const json_t *value) {
    if (json_is_string(value)) {
        const char *text = json_string_value(value);
        if (strlen(text) > 200 || strchr(text, '\n')) {
            printf("(a text of %zu bytes)", strlen(text));
        } else {
            printf("%s", text);
        }
        return;
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    printf("%s", text ? text : "?");
    free(text);
}

static void print_facts(const json_t *facts) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)facts, name, value) {
        if (json_is_array(value)) {
            size_t index;
            json_t *line;
            printf("%s: %zu\n", name, json_array_size(value));
            json_array_foreach(value, index, line) {
                const char *key;
                json_t *field;
                json_object_foreach(line, key, field) {
                    printf("  ");
                    print_value(field);
                }
                printf("\n");
            }
        } else if (json_is_object(value)) {
            printf("%s:\n", name);
            const char *key;
            json_t *field;
            json_object_foreach(value, key, field) {
                printf("  %-20s ", key);
                print_value(field);
                printf("\n");
            }
        } else {
            printf("%-16s ", name);
            print_value(value);
            printf("\n");
        }
    }
}

static enum status inspect_path(const char *path, bool verify, bool json) {
    json_t *facts = json_object();
    enum status status = inspect(path, verify, facts);
    /* What was found is shown also when it is damaged. */
    if (verify && json_object_get(facts, "kind")) {
        json_object_set_new(facts, "verified", json_boolean(status == STATUS_OK));
    }
    if (json) {
        if (status == STATUS_DAMAGED) put_text(facts, "fault", error_message());
        char *text = json_dumps(facts, JSON_REAL_PRECISION(17));
        printf("%s\n", text ? text : "{}");
        free(text);
    } else if (json_object_get(facts, "kind")) {
        print_facts(facts);
    }
    json_decref(facts);
    return status;
}

static enum status run(int argc, char **argv) {
    bool verify = false;
    struct option_list words = {0};
    struct inspect_attention page = {0};
    const struct option options[] = {{"verify", OPTION_FLAG, &verify, 0, 0},
                                     {"json", OPTION_FLAG, &page.json, 0, 0},
                                     {"attention", OPTION_TEXT, &page.text, 0, 0},
                                     INSPECT_ATTENTION_ROWS(page)};
    enum status status = options_read(argc, argv, options, sizeof options / sizeof *options, &words, NULL);
    if (status != STATUS_OK) {
        goto done;
    } else if (!page.text && (page.out || page.model.model || page.layers.count > 0)) {
        status = error_set(STATUS_USAGE, "inspect: --%s: expected --attention TEXT beside it, found none",
                           page.out           ? "out"
                           : page.model.model ? "model"
                                              : "layers");
    } else if (page.text && (words.count > 0 || verify)) {
        status =
            error_set(STATUS_USAGE, "inspect: --attention: expected neither a path nor --verify beside it, found %s",
                      verify ? "--verify" : words.values[0]);
    } else if (!page.text && words.count != 1) {
        status =
            error_set(STATUS_USAGE, "inspect: expected one path, found %zu; see squint inspect --help", words.count);
    } else {
        status = page.text ? inspect_attention_run(&page) : inspect_path(words.values[0], verify, page.json);
    }
done:
    options_free(&page.layers);
    options_free(&words);
    return status;
}

const struct command command_inspect = {
    .name = "inspect",
    .summary = "what a shard, checkpoint, run directory or model is; verifies it; a page of what a model reads",
    .help = "usage: squint inspect PATH [--verify] [--json]\n"
            "       squint inspect --attention TEXT --model MODEL --out FILE.html [options]\n"
            "\n"
            "PATH is a token shard, a checkpoint (step-...), a run directory, a safetensors file, or a Hugging Face\n"
            "directory.\n"
            "\n"
            "  --verify  read everything: hashes of shards and checkpoints, finite numbers of safetensors;\n"
            "            exit code 3 when something is damaged\n"
            "  --json    everything that was found as one line of JSON\n"
            "\n"
            "With --attention: one HTML file, to be opened in a browser, on which one sees which earlier tokens of "
            "TEXT every\n"
            "layer and head reads, and with what weight, beside the teacher's where there is one.\n"
            "\n"
            "  --attention TEXT     a text; @FILE: a file's; -: standard input's\n"
            "  --out FILE.html      the page; what has that name is replaced\n"
            "  --teacher DIR        a Hugging Face directory in place of the recorded teacher, or beside a MODEL "
            "without one\n"
            "  --layers RANGE...    all (default), 3, 3-5, 3- (to the last)\n"
            "  --length N           tokens of the text at most, up to 4096 (512, or the model's positions if fewer)\n"
            "  --tokenizer DIR      where MODEL has none of its own\n" MODEL_OPTION_HELP "\n"
            "example: squint inspect runs/gpt2-nsa --verify\n"
            "         squint inspect --attention \"Once upon a time there was a girl named Lily.\" --model "
            "runs/stories-nsa --out "
            "lily.html\n",
    .run = run,
};
