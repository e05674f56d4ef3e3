/* Reads and checks safetensors files; see safetensors.h. Writing: safetensors_write.c. */
#include "io/safetensors.h"

#include "base/memory.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEADER_LIMIT = 100 * 1000 * 1000 }; /* the format's own */

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},  {"I32", 4},     {"I16", 2},    {"I8", 1},
              {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

const char *safetensors_dtype_name(enum safetensors_dtype dtype) {
    return dtypes[dtype].name;
}

size_t safetensors_dtype_size(enum safetensors_dtype dtype) {
    return dtypes[dtype].size;
}

bool safetensors_is_real(enum safetensors_dtype dtype) {
    return dtype <= SAFETENSORS_BF16;
}

void safetensors_describe(const struct safetensors_tensor *tensor, char *text, size_t capacity) {
    size_t used = (size_t)snprintf(text, capacity, "[");
    for (int i = 0; i < tensor->rank && used < capacity; i++) {
        used += (size_t)snprintf(text + used, capacity - used, i ? ",%" PRId64 : "%" PRId64, tensor->shape[i]);
    }
    if (used < capacity) snprintf(text + used, capacity - used, "] %s", safetensors_dtype_name(tensor->dtype));
}

/* ---- one file's header ------------------------------------------------------------------------------------------ */
static enum status read_dtype(const char *path, const char *name, const json_t *value,
                              struct safetensors_tensor *tensor) {
    const char *text = json_string_value(value);
    for (size_t i = 0; text && i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(text, dtypes[i].name) != 0) continue;
        tensor->dtype = (enum safetensors_dtype)i;
        return STATUS_OK;
    }
    return error_set(STATUS_DAMAGED,
                     "%s: tensor %s: dtype: expected F32, F16, BF16, F64, an integer type or BOOL, found %s%s%s", path,
                     name, text ? "\"" : "", text ? text : "no text", text ? "\"" : "");
}

static enum status read_shape(const char *path, const char *name, const json_t *value,
                              struct safetensors_tensor *tensor) {
    if (!json_is_array(value) || json_array_size(value) > SAFETENSORS_MAX_RANK) {
        return error_set(STATUS_DAMAGED, "%s: tensor %s: shape: expected a list of at most %d lengths, found %s", path,
                         name, SAFETENSORS_MAX_RANK, json_is_array(value) ? "a longer one" : "none");
    }
    tensor->rank = (int)json_array_size(value);
    tensor->count = 1;
    for (int i = 0; i < tensor->rank; i++) {
        const json_t *length = json_array_get(value, (size_t)i);
        if (!json_is_integer(length) || json_integer_value(length) < 0) {
            return error_set(STATUS_DAMAGED,
                             "%s: tensor %s: shape: expected whole numbers from 0, found another value at %d", path,
                             name, i);
        }
        tensor->shape[i] = json_integer_value(length);
        if (__builtin_mul_overflow(tensor->count, tensor->shape[i], &tensor->count)) {
            return error_set(STATUS_DAMAGED, "%s: tensor %s: shape: the number of elements is beyond 2^63", path, name);
        }
    }
    return STATUS_OK;
}

static enum status read_offsets(const char *path, const char *name, const json_t *value, size_t data_bytes,
                                int64_t offsets[2]) {
    bool pair = json_is_array(value) && json_array_size(value) == 2 && json_is_integer(json_array_get(value, 0)) &&
                json_is_integer(json_array_get(value, 1));
    if (!pair) {
        return error_set(STATUS_DAMAGED, "%s: tensor %s: data_offsets: expected [begin, end], found something else",
                         path, name);
    }
    for (int i = 0; i < 2; i++) offsets[i] = json_integer_value(json_array_get(value, (size_t)i));
    if (offsets[0] < 0 || offsets[1] < offsets[0] || (uint64_t)offsets[1] > data_bytes) {
        return error_set(
            STATUS_DAMAGED,
            "%s: tensor %s: data_offsets: expected 0 <= begin <= end <= %zu (bytes of data in the file), found "
            "[%" PRId64 ", %" PRId64 "]",
            path, name, data_bytes, offsets[0], offsets[1]);
    }
    return STATUS_OK;
}

/* data: what follows the header, data_bytes long. */
static enum status read_tensor(const char *path, const char *name, const json_t *value, const char *data,
                               size_t data_bytes, struct safetensors_tensor *tensor) {
    *tensor = (struct safetensors_tensor){.path = path};
    if (!json_is_object(value)) {
        return error_set(STATUS_DAMAGED,
                         "%s: tensor %s: expected an object with dtype, shape, data_offsets, found another value", path,
                         name);
    }
    int64_t offsets[2] = {0, 0};
    size_t bytes;
    TRY(read_dtype(path, name, json_object_get(value, "dtype"), tensor));
    TRY(read_shape(path, name, json_object_get(value, "shape"), tensor));
    TRY(read_offsets(path, name, json_object_get(value, "data_offsets"), data_bytes, offsets));
    bool overflow = __builtin_mul_overflow((size_t)tensor->count, safetensors_dtype_size(tensor->dtype), &bytes);
    tensor->bytes = (size_t)(offsets[1] - offsets[0]);
    if (overflow || bytes != tensor->bytes) {
        char text[128];
        safetensors_describe(tensor, text, sizeof text);
        return error_set(STATUS_DAMAGED, "%s: tensor %s: %s needs %zu bytes, its data_offsets hold %zu", path, name,
                         text, overflow ? SIZE_MAX : bytes, tensor->bytes);
    }
    tensor->data = data ? data + offsets[0] : NULL;
    return memory_copy_text(name, &tensor->name);
}

static int compare_places(const void *a, const void *b) {
    const struct safetensors_tensor *left = a, *right = b;
    if (left->data != right->data) return (const char *)left->data < (const char *)right->data ? -1 : 1;
    return (left->bytes > right->bytes) - (left->bytes < right->bytes);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct safetensors_tensor *)a)->name, ((const struct safetensors_tensor *)b)->name);
}

/* The tensors of one file fill its data from begin to end, each byte once. */
static enum status check_places(const char *path, struct safetensors_tensor *tensors, int64_t count, const char *data,
                                size_t data_bytes) {
    const char *place = data;
    const char *previous = "the header";
    if (count > 1) qsort(tensors, (size_t)count, sizeof *tensors, compare_places);
    for (int64_t i = 0; i < count; i++) {
        ptrdiff_t gap = (const char *)tensors[i].data - place;
        if (gap != 0) {
            return error_set(STATUS_DAMAGED, "%s: tensor %s: expected its data right after %s, found %s %td bytes",
                             path, tensors[i].name, previous, gap > 0 ? "a hole of" : "an overlap of",
                             gap > 0 ? gap : -gap);
        }
        place += tensors[i].bytes;
        previous = tensors[i].name;
    }
    if (place != data + data_bytes) {
        return error_set(STATUS_DAMAGED,
                         "%s: expected the file to end after %s, found %td more bytes that no tensor holds", path,
                         previous, data + data_bytes - place);
    }
    return STATUS_OK;
}

/* *header: the parsed JSON of a mapped file; *data: what follows it. */
static enum status parse_header(const char *path, const struct file_map *map, json_t **header, const char **data,
                                size_t *data_bytes) {
    const unsigned char *bytes = map->data;
    uint64_t length = 0;
    if (map->bytes < 8) {
        return error_set(STATUS_DAMAGED, "%s: expected a safetensors file of at least 8 bytes, found %zu bytes", path,
                         map->bytes);
    }
    for (int i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    if (length > HEADER_LIMIT || length > map->bytes - 8) {
        return error_set(STATUS_DAMAGED,
                         "%s: header: expected a length of at most %zu bytes (what the file holds), found %" PRIu64,
                         path, map->bytes - 8 < HEADER_LIMIT ? map->bytes - 8 : (size_t)HEADER_LIMIT, length);
    }
    if (length == 0 || bytes[8] != '{') {
        return error_set(STATUS_DAMAGED, "%s: header: expected a JSON object that begins with {, found %s", path,
                         length == 0 ? "none" : "another character");
    }
    json_error_t fault;
    *header = json_loadb((const char *)bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &fault);
    if (!*header) {
        return error_set(STATUS_DAMAGED, "%s: header: expected JSON without duplicate names: at byte %d: %s", path,
                         fault.position, fault.text);
    }
    *data = (const char *)bytes + 8 + length;
    *data_bytes = map->bytes - 8 - (size_t)length;
    return STATUS_OK;
}

static enum status check_metadata(const char *path, const json_t *metadata) {
    const char *key;
    json_t *value;
    bool right = json_is_object(metadata);
    json_object_foreach((json_t *)metadata, key, value) right = right && json_is_string(value);
    return right ? STATUS_OK
                 : error_set(STATUS_DAMAGED,
                             "%s: header: __metadata__: expected an object of texts, found something else", path);
}

/* Appends the tensors of file number `file` of the set. */
static enum status add_file(struct safetensors *set, size_t file) {
    enum status status = STATUS_OK;
    const char *path = set->paths[file], *data = NULL, *name;
    size_t data_bytes = 0;
    json_t *header = NULL, *value;
    int64_t first = set->count;
    TRY_GOTO(done, file_map_open(path, &set->maps[file]));
    TRY_GOTO(done, parse_header(path, &set->maps[file], &header, &data, &data_bytes));
    size_t total = (size_t)set->count + json_object_size(header);
    TRY_GOTO(done, memory_grow(&set->tensors, total, sizeof *set->tensors, "a list of tensors"));
    json_object_foreach(header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            TRY_GOTO(done, check_metadata(path, value));
            continue;
        }
        TRY_GOTO(done, read_tensor(path, name, value, data, data_bytes, &set->tensors[set->count]));
        set->count++;
    }
    status = check_places(path, set->tensors + first, set->count - first, data, data_bytes);
done:
    json_decref(header);
    return status;
}

static enum status take_path(struct safetensors *set, char *path) {
    enum status status = STATUS_OK;
    TRY_GOTO(failed, memory_grow(&set->paths, set->file_count + 1, sizeof *set->paths, "a list of files"));
    TRY_GOTO(failed, memory_grow(&set->maps, set->file_count + 1, sizeof *set->maps, "a list of files"));
    set->maps[set->file_count] = (struct file_map){0};
    set->paths[set->file_count++] = path;
    return STATUS_OK;
failed:
    free(path);
    return status;
}

/* Sorts by name and finds a name that two files share. */
static enum status sort_names(struct safetensors *set) {
    if (set->count > 1) qsort(set->tensors, (size_t)set->count, sizeof *set->tensors, compare_names);
    for (int64_t i = 1; i < set->count; i++) {
        if (strcmp(set->tensors[i - 1].name, set->tensors[i].name) != 0) continue;
        return error_set(STATUS_DAMAGED, "%s: tensor %s: is in %s too", set->tensors[i].path, set->tensors[i].name,
                         set->tensors[i - 1].path);
    }
    return STATUS_OK;
}

enum status safetensors_open(const char *path, struct safetensors *set) {
    enum status status = STATUS_OK;
    char *copy = NULL;
    *set = (struct safetensors){0};
    TRY_GOTO(done, memory_copy_text(path, &copy));
    TRY_GOTO(done, take_path(set, copy));
    TRY_GOTO(done, add_file(set, 0));
    status = sort_names(set);
done:
    if (status != STATUS_OK) safetensors_close(set);
    return status;
}

/* ---- several files ------------------------------------------------------------------------------------------------
 */
/* The index of `path` among the set's files; opens it when new. */
static enum status find_file(struct safetensors *set, const char *directory, const char *index_path, const char *name) {
    char *path = NULL;
    if (!name || strchr(name, '/') || name[0] == '.' || name[0] == '\0') {
        return error_set(STATUS_DAMAGED, "%s: weight_map: expected names of files in the same directory, found \"%s\"",
                         index_path, name ? name : "(no text)");
    }
    TRY(file_join(directory, name, &path));
    for (size_t i = 0; i < set->file_count; i++) {
        if (strcmp(set->paths[i], path) != 0) continue;
        free(path);
        return STATUS_OK;
    }
    TRY(take_path(set, path));
    enum status status = add_file(set, set->file_count - 1);
    if (status == STATUS_NOT_FOUND) status = STATUS_DAMAGED; /* the index says that it is there */
    return status == STATUS_OK ? status : error_prefix(status, "%s", index_path);
}

/* The index and the files name the same tensors in the same places. */
static enum status check_index(const struct safetensors *set, const char *index_path, const json_t *weight_map) {
    const char *name;
    json_t *file;
    json_object_foreach((json_t *)weight_map, name, file) {
        const struct safetensors_tensor *tensor = safetensors_find(set, name);
        const char *expected = json_string_value(file);
        const char *found = tensor ? strrchr(tensor->path, '/') + 1 : "no such tensor in any file";
        if (strcmp(expected, found) != 0) {
            return error_set(STATUS_DAMAGED, "%s: weight_map: %s: expected in %s, found %s", index_path, name, expected,
                             found);
        }
    }
    for (int64_t i = 0; i < set->count; i++) {
        if (json_object_get(weight_map, set->tensors[i].name)) continue;
        return error_set(STATUS_DAMAGED, "%s: weight_map: has no entry for tensor %s of %s", index_path,
                         set->tensors[i].name, set->tensors[i].path);
    }
    return STATUS_OK;
}

static enum status open_index(const char *directory, const char *index_path, struct safetensors *set) {
    enum status status = STATUS_OK;
    json_error_t fault;
    const char *name;
    json_t *file;
    json_t *index = json_load_file(index_path, JSON_REJECT_DUPLICATES, &fault);
    json_t *weight_map = json_object_get(index, "weight_map");
    if (!index) {
        status = error_set(STATUS_DAMAGED, "%s: expected JSON without duplicate names: line %d: %s", index_path,
                           fault.line, fault.text);
        goto done;
    }
    if (!json_is_object(weight_map)) {
        status = error_set(STATUS_DAMAGED, "%s: expected an object weight_map, found none", index_path);
        goto done;
    }
    json_object_foreach(weight_map, name, file) {
        TRY_GOTO(done, find_file(set, directory, index_path, json_string_value(file)));
    }
    TRY_GOTO(done, sort_names(set));
    status = check_index(set, index_path, weight_map);
done:
    json_decref(index);
    return status;
}

enum status safetensors_open_directory(const char *directory, struct safetensors *set) {
    enum status status = STATUS_OK;
    char *single = NULL, *index = NULL, *pickled = NULL;
    *set = (struct safetensors){0};
    TRY_GOTO(done, file_join(directory, "model.safetensors", &single));
    TRY_GOTO(done, file_join(directory, "model.safetensors.index.json", &index));
    TRY_GOTO(done, file_join(directory, "pytorch_model.bin", &pickled));
    if (file_exists(single)) {
        status = safetensors_open(single, set);
    } else if (file_exists(index)) {
        status = open_index(directory, index, set);
    } else {
        status =
            error_set(STATUS_NOT_FOUND,
                      "%s: expected model.safetensors or model.safetensors.index.json, found neither%s", directory,
                      file_exists(pickled) ? " (pytorch_model.bin is not read: transformers' save_pretrained turns it "
                                             "into safetensors)"
                                           : "");
    }
done:
    free(single);
    free(index);
    free(pickled);
    if (status != STATUS_OK) safetensors_close(set);
    return status;
}

void safetensors_close(struct safetensors *set) {
    if (!set) return;
    for (int64_t i = 0; i < set->count; i++) free(set->tensors[i].name);
    for (size_t i = 0; i < set->file_count; i++) {
        file_map_close(&set->maps[i]);
        free(set->paths[i]);
    }
    free(set->tensors);
    free(set->maps);
    free(set->paths);
    *set = (struct safetensors){0};
}

/* ---- values ---------------------------------------------------------------------------------------------------------
 */
const struct safetensors_tensor *safetensors_find(const struct safetensors *set, const char *name) {
    int64_t low = 0, high = set->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(set->tensors[middle].name, name);
        if (order == 0) return &set->tensors[middle];
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) { /* zero and subnormals: fraction · 2^-24 */
        float value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
    return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static float load_real(enum safetensors_dtype dtype, const char *from) {
    uint16_t half;
    float single;
    double wide;
    switch (dtype) {
    case SAFETENSORS_F32:
        memcpy(&single, from, sizeof single);
        return single;
    case SAFETENSORS_F64:
        memcpy(&wide, from, sizeof wide);
        return (float)wide;
    case SAFETENSORS_BF16:
        memcpy(&half, from, sizeof half);
        return from_bits((uint32_t)half << 16);
    default:
        memcpy(&half, from, sizeof half);
        return half_to_float(half);
    }
}

enum status safetensors_read(const struct safetensors_tensor *tensor, int64_t first, int64_t step, int64_t count,
                             float *out) {
    if (count == 0) return STATUS_OK;
    if (!safetensors_is_real(tensor->dtype)) {
        return error_set(STATUS_SHAPE, "%s: tensor %s: expected F32, F16, BF16 or F64, found %s", tensor->path,
                         tensor->name, safetensors_dtype_name(tensor->dtype));
    }
    if (first < 0 || step < 1 || count < 0 || first >= tensor->count ||
        (tensor->count - 1 - first) / step < count - 1) {
        return error_set(STATUS_SHAPE,
                         "%s: tensor %s: elements %" PRId64 " + i·%" PRId64 ", i < %" PRId64 ", leave its %" PRId64,
                         tensor->path, tensor->name, first, step, count, tensor->count);
    }
    size_t size = safetensors_dtype_size(tensor->dtype);
    const char *from = (const char *)tensor->data + (size_t)first * size;
    if (tensor->dtype == SAFETENSORS_F32 && step == 1) {
        memcpy(out, from, (size_t)count * size);
        return STATUS_OK;
    }
    for (int64_t i = 0; i < count; i++) out[i] = load_real(tensor->dtype, from + (size_t)(i * step) * size);
    return STATUS_OK;
}

void safetensors_forget(const struct safetensors_tensor *tensor) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)tensor->data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)tensor->data + tensor->bytes) / page * page;
    if (end > begin) (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}
