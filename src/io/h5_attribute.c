/* Attributes of HDF5 files, groups and datasets. See h5.h. */
#include "io/h5_internal.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "attribute NAME" or "OBJECT, attribute NAME" */
static const char *place(const char *object, const char *name, char text[H5_NAME_BYTES]) {
    bool is_file = strcmp(object, "/") == 0;
    snprintf(text, H5_NAME_BYTES, "%s%sattribute %s", is_file ? "" : object, is_file ? "" : ", ", name);
    return text;
}

bool h5_attribute_exists(struct h5 *file, const char *object, const char *name) {
    htri_t there = H5Aexists_by_name(file->id, object, name, H5P_DEFAULT);
    (void)H5Eclear2(H5E_DEFAULT);
    return there > 0;
}

/* Writes `value` as an attribute; takes over `type` and `space`. Nothing is written to one without elements. */
static enum status set(struct h5 *file, const char *object, const char *name, hid_t type, hid_t space,
                       const void *value) {
    char where[H5_NAME_BYTES];
    hid_t attribute = -1;
    bool good = type >= 0 && space >= 0;
    if (good) {
        attribute = H5Acreate_by_name(file->id, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        good = attribute >= 0 && (H5Sget_simple_extent_npoints(space) == 0 || H5Awrite(attribute, type, value) >= 0);
    }
    enum status status = good ? STATUS_OK : h5_failure(STATUS_IO, file, place(object, name, where), "write it");
    H5_CLOSE(H5Aclose, attribute);
    H5_CLOSE(H5Tclose, type);
    H5_CLOSE(H5Sclose, space);
    return status;
}

enum status h5_attribute_set_i64(struct h5 *file, const char *object, const char *name, int64_t value) {
    return set(file, object, name, H5Tcopy(H5T_STD_I64LE), H5Screate(H5S_SCALAR), &value);
}

enum status h5_attribute_set_u64(struct h5 *file, const char *object, const char *name, uint64_t value) {
    return set(file, object, name, H5Tcopy(H5T_STD_U64LE), H5Screate(H5S_SCALAR), &value);
}

enum status h5_attribute_set_f64(struct h5 *file, const char *object, const char *name, double value) {
    return set(file, object, name, H5Tcopy(H5T_IEEE_F64LE), H5Screate(H5S_SCALAR), &value);
}

/* A string type of `bytes` bytes, padded with zeros; HDF5 has none of size 0. */
static hid_t text_type(size_t bytes) {
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type >= 0 && H5Tset_size(type, bytes ? bytes : 1) >= 0 && H5Tset_strpad(type, H5T_STR_NULLPAD) >= 0 &&
        H5Tset_cset(type, H5T_CSET_UTF8) >= 0) {
        return type;
    }
    H5_CLOSE(H5Tclose, type);
    return -1;
}

enum status h5_attribute_set_text(struct h5 *file, const char *object, const char *name, const char *value) {
    return set(file, object, name, text_type(strlen(value)), H5Screate(H5S_SCALAR), value);
}

enum status h5_attribute_set_array(struct h5 *file, const char *object, const char *name, enum dtype dtype,
                                   int64_t count, const void *values) {
    hsize_t extent = (hsize_t)count;
    return set(file, object, name, h5_file_type(dtype),
               count > 0 ? H5Screate_simple(1, &extent, NULL) : H5Screate(H5S_NULL), values);
}

/* --- reading ---------------------------------------------------------------------------------------------------- */

struct attribute {
    hid_t id, type, space;
    int64_t count;
};

static void close_attribute(struct attribute *attribute) {
    H5_CLOSE(H5Aclose, attribute->id);
    H5_CLOSE(H5Tclose, attribute->type);
    H5_CLOSE(H5Sclose, attribute->space);
}

static enum status open_attribute(struct h5 *file, const char *object, const char *name, struct attribute *out) {
    char where[H5_NAME_BYTES];
    *out = (struct attribute){-1, -1, -1, 0};
    if (!h5_attribute_exists(file, object, name)) {
        return error_set(STATUS_DAMAGED, "%s: expected %s, found none", file->path, place(object, name, where));
    }
    out->id = H5Aopen_by_name(file->id, object, name, H5P_DEFAULT, H5P_DEFAULT);
    if (out->id < 0) return h5_failure(STATUS_DAMAGED, file, place(object, name, where), "open it");
    out->type = H5Aget_type(out->id);
    out->space = H5Aget_space(out->id);
    out->count = out->space < 0 ? -1 : H5Sget_simple_extent_npoints(out->space);
    if (out->type >= 0 && out->count >= 0) return STATUS_OK;
    enum status status = h5_failure(STATUS_DAMAGED, file, place(object, name, where), "open it");
    close_attribute(out);
    return status;
}

static enum status wrong_type(struct h5 *file, const char *object, const char *name, const char *expected) {
    char where[H5_NAME_BYTES];
    return error_set(STATUS_DAMAGED, "%s: %s: expected %s, found another type", file->path, place(object, name, where),
                     expected);
}

static enum status get_number(struct h5 *file, const char *object, const char *name, enum dtype dtype, void *value) {
    char where[H5_NAME_BYTES];
    struct attribute attribute;
    TRY(open_attribute(file, object, name, &attribute));
    enum status status = STATUS_OK;
    H5T_class_t class = H5Tget_class(attribute.type);
    bool real = dtype == DTYPE_F64;
    hid_t type = h5_memory_type(dtype);
    if (attribute.count != 1 || !(class == H5T_INTEGER || (real && class == H5T_FLOAT))) {
        status = wrong_type(file, object, name, real ? "one number" : "one whole number");
    } else if (type < 0 || H5Aread(attribute.id, type, value) < 0) {
        status = h5_failure(STATUS_DAMAGED, file, place(object, name, where), "read it");
    }
    H5_CLOSE(H5Tclose, type);
    close_attribute(&attribute);
    return status;
}

enum status h5_attribute_get_i64(struct h5 *file, const char *object, const char *name, int64_t *value) {
    return get_number(file, object, name, DTYPE_I64, value);
}

enum status h5_attribute_get_u64(struct h5 *file, const char *object, const char *name, uint64_t *value) {
    return get_number(file, object, name, DTYPE_U64, value);
}

enum status h5_attribute_get_f64(struct h5 *file, const char *object, const char *name, double *value) {
    return get_number(file, object, name, DTYPE_F64, value);
}

static enum status read_text(struct h5 *file, const char *where, struct attribute *attribute, char **value) {
    if (H5Tis_variable_str(attribute->type) > 0) {
        char *text = NULL;
        if (H5Aread(attribute->id, attribute->type, &text) < 0)
            return h5_failure(STATUS_DAMAGED, file, where, "read it");
        enum status status = memory_copy_text(text ? text : "", value);
        (void)H5free_memory(text);
        return status;
    }
    size_t bytes = H5Tget_size(attribute->type);
    TRY(memory_new(bytes + 1, 1, where, value));
    if (H5Aread(attribute->id, attribute->type, *value) >= 0) return STATUS_OK;
    free(*value);
    *value = NULL;
    return h5_failure(STATUS_DAMAGED, file, where, "read it");
}

enum status h5_attribute_get_text(struct h5 *file, const char *object, const char *name, char **value) {
    char where[H5_NAME_BYTES];
    struct attribute attribute;
    *value = NULL;
    TRY(open_attribute(file, object, name, &attribute));
    enum status status = STATUS_OK;
    if (attribute.count != 1 || H5Tget_class(attribute.type) != H5T_STRING) {
        status = wrong_type(file, object, name, "a text");
    } else {
        status = read_text(file, place(object, name, where), &attribute, value);
    }
    close_attribute(&attribute);
    return status;
}

enum status h5_attribute_get_array(struct h5 *file, const char *object, const char *name, enum dtype dtype,
                                   int64_t *count, void *values) {
    char where[H5_NAME_BYTES];
    struct attribute attribute;
    void *block = NULL;
    enum dtype stored;
    enum status status = STATUS_OK;
    TRY(open_attribute(file, object, name, &attribute));
    hid_t type = h5_memory_type(dtype);
    if (!h5_dtype_of(attribute.type, &stored) || dtype_size(stored) != dtype_size(dtype)) {
        char expected[64];
        snprintf(expected, sizeof expected, "an array of %s", dtype_name(dtype));
        status = wrong_type(file, object, name, expected);
        goto done;
    }
    TRY_GOTO(done, memory_new((size_t)attribute.count, dtype_size(dtype), name, &block));
    if (attribute.count > 0 && (type < 0 || H5Aread(attribute.id, type, block) < 0)) {
        status = h5_failure(STATUS_DAMAGED, file, place(object, name, where), "read it");
        free(block);
        block = NULL;
        goto done;
    }
    *count = attribute.count;
done:
    memcpy(values, &block, sizeof block);
    H5_CLOSE(H5Tclose, type);
    close_attribute(&attribute);
    return status;
}

/* --- visiting --------------------------------------------------------------------------------------------------- */

struct visit {
    struct h5 *file;
    const char *object;
    enum status (*each)(struct h5 *, const char *, enum h5_attribute_type, void *);
    void *context;
    enum status status;
};

static herr_t visit_attribute(hid_t id, const char *name, const H5A_info_t *info, void *context) {
    struct visit *visit = context;
    struct attribute attribute;
    (void)id;
    (void)info;
    visit->status = open_attribute(visit->file, visit->object, name, &attribute);
    if (visit->status != STATUS_OK) return 1;
    H5T_class_t class = H5Tget_class(attribute.type);
    bool simple = H5Sget_simple_extent_type(attribute.space) == H5S_SCALAR;
    close_attribute(&attribute);
    enum h5_attribute_type type = class == H5T_STRING  ? H5_TEXT
                                  : !simple            ? H5_ARRAY
                                  : class == H5T_FLOAT ? H5_REAL
                                                       : H5_INTEGER;
    visit->status = visit->each(visit->file, name, type, visit->context);
    return visit->status == STATUS_OK ? 0 : 1;
}

enum status h5_attribute_visit(struct h5 *file, const char *object,
                               enum status (*each)(struct h5 *file, const char *name, enum h5_attribute_type type,
                                                   void *context),
                               void *context) {
    struct visit visit = {file, object, each, context, STATUS_OK};
    herr_t result =
        H5Aiterate_by_name(file->id, object, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_attribute, &visit, H5P_DEFAULT);
    if (result < 0) return h5_failure(STATUS_DAMAGED, file, object, "list its attributes");
    return visit.status;
}
