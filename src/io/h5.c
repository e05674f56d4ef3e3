/* HDF5 files: opening, publishing, what went wrong, element types. See h5.h. */
#include "io/h5_internal.h"

#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- what went wrong -------------------------------------------------------------------------------------------- */

struct reason {
    char *text;
    size_t capacity;
};

static herr_t keep_innermost(unsigned depth, const H5E_error2_t *error, void *context) {
    struct reason *reason = context;
    if (depth == 0 && error->desc) snprintf(reason->text, reason->capacity, "%s", error->desc);
    return 0;
}

enum status h5_failure(enum status code, const struct h5 *file, const char *object, const char *action) {
    char reason[512] = "no reason given";
    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, &(struct reason){reason, sizeof reason});
    (void)H5Eclear2(H5E_DEFAULT);
    if (!object[0]) return error_set(code, "%s: cannot %s: %s", file->path, action, reason);
    return error_set(code, "%s: %s: cannot %s: %s", file->path, object, action, reason);
}

/* Our messages take the place of HDF5's own printing. */
static void quiet(void) {
    (void)H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

/* --- files ------------------------------------------------------------------------------------------------------ */

static hid_t access_properties(void) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return access;
    /* Files appear by rename, so nobody ever meets one that is being written, and some network file systems refuse
     * locks. The format of 1.8 has checksums over metadata. */
    if (H5Pset_file_locking(access, 0, 1) >= 0 &&
        H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_LATEST) >= 0) {
        return access;
    }
    (void)H5Pclose(access);
    return -1;
}

static enum status new_file(const char *path, struct h5 **file) {
    enum status status = STATUS_OK;
    *file = NULL;
    TRY(memory_new(1, sizeof **file, path, file));
    (*file)->id = -1;
    (*file)->output.fd = -1;
    status = memory_copy_text(path, &(*file)->path);
    if (status != STATUS_OK) {
        free(*file);
        *file = NULL;
    }
    return status;
}

enum status h5_create(const char *path, size_t align_from, struct h5 **file) {
    enum status status = STATUS_OK;
    hid_t access = -1, creation = -1;
    quiet();
    TRY(new_file(path, file));
    TRY_GOTO(done, memory_format(&(*file)->temporary, "%s.tmp-%ld", path, (long)getpid()));
    access = access_properties();
    creation = H5Pcreate(H5P_FILE_CREATE);
    /* No times in the file: the same contents give the same bytes. */
    if (access >= 0 && creation >= 0 && H5Pset_obj_track_times(creation, 0) >= 0 &&
        h5_output_use(access, &(*file)->output) &&
        (align_from == 0 || H5Pset_alignment(access, align_from, 1 << 20) >= 0)) {
        (*file)->id = H5Fcreate((*file)->temporary, H5F_ACC_TRUNC, creation, access);
    }
    if ((*file)->id < 0) {
        status = h5_failure(STATUS_IO, *file, "", "create it");
    } else {
        status = h5_written(*file);
    }
done:
    H5_CLOSE(H5Pclose, creation);
    H5_CLOSE(H5Pclose, access);
    if (status != STATUS_OK) h5_close(file);
    return status;
}

enum status h5_written(const struct h5 *file) {
    if (file->output.error == 0) return STATUS_OK;
    return error_set(STATUS_IO, "%s: cannot write it: %s", file->path, strerror(file->output.error));
}

enum status h5_publish(struct h5 **handle) {
    struct h5 *file = *handle;
    enum status status = H5Fclose(file->id) < 0 ? h5_failure(STATUS_IO, file, "", "write it") : STATUS_OK;
    file->id = -1;
    if (status == STATUS_OK) status = h5_written(file);
    if (status == STATUS_OK) status = file_publish(file->temporary, file->path);
    h5_close(handle);
    return status;
}

bool h5_is_hdf5(const char *path) {
    static const char signature[8] = "\x89HDF\r\n\x1a\n";
    char begin[8] = {0};
    FILE *file = fopen(path, "rbe");
    if (!file) return false;
    bool same = fread(begin, 1, sizeof begin, file) == sizeof begin && memcmp(begin, signature, sizeof begin) == 0;
    fclose(file);
    return same;
}

enum status h5_open(const char *path, struct h5 **file) {
    int64_t bytes = 0;
    quiet();
    *file = NULL;
    TRY(file_size(path, &bytes));
    if (file_is_directory(path)) return error_set(STATUS_IO, "%s: is a directory, expected an HDF5 file", path);
    if (access(path, R_OK) != 0) return error_set(STATUS_IO, "%s: cannot open it: %s", path, strerror(errno));
    if (!h5_is_hdf5(path)) {
        return error_set(STATUS_DAMAGED, "%s: expected an HDF5 file, found %lld bytes that do not begin as one", path,
                         (long long)bytes);
    }
    TRY(new_file(path, file));
    hid_t properties = access_properties();
    (*file)->id = properties < 0 ? -1 : H5Fopen(path, H5F_ACC_RDONLY, properties);
    enum status status = (*file)->id < 0 ? h5_failure(STATUS_DAMAGED, *file, "", "open it as HDF5") : STATUS_OK;
    H5_CLOSE(H5Pclose, properties);
    if (status != STATUS_OK) h5_close(file);
    return status;
}

void h5_close(struct h5 **file) {
    if (!file || !*file) return;
    /* What HDF5 still holds of an unwanted file need not be written. */
    (*file)->output.dropped = true;
    H5_CLOSE(H5Fclose, (*file)->id);
    (void)H5Eclear2(H5E_DEFAULT);
    if ((*file)->temporary) (void)unlink((*file)->temporary);
    free((*file)->path);
    free((*file)->temporary);
    free(*file);
    *file = NULL;
}

const char *h5_path(const struct h5 *file) {
    return file->path;
}

/* --- element types ---------------------------------------------------------------------------------------------- */

/* IEEE half precision: 1 sign bit, 5 of exponent (bias 15), 10 of mantissa. */
static hid_t half_type(void) {
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type >= 0 && H5Tset_fields(type, 15, 10, 5, 0, 10) >= 0 && H5Tset_size(type, 2) >= 0 &&
        H5Tset_ebias(type, 15) >= 0) {
        return type;
    }
    H5_CLOSE(H5Tclose, type);
    return -1;
}

hid_t h5_file_type(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case DTYPE_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    case DTYPE_F16:
        return half_type();
    case DTYPE_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case DTYPE_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case DTYPE_U8:
        return H5Tcopy(H5T_STD_U8LE);
    case DTYPE_BF16:
    case DTYPE_U16:
        return H5Tcopy(H5T_STD_U16LE);
    case DTYPE_U32:
        return H5Tcopy(H5T_STD_U32LE);
    case DTYPE_U64:
        return H5Tcopy(H5T_STD_U64LE);
    }
    return -1;
}

/* Little-endian machines only: memory looks as the file does. */
hid_t h5_memory_type(enum dtype dtype) {
    return h5_file_type(dtype);
}

bool h5_dtype_of(hid_t type, enum dtype *dtype) {
    H5T_class_t class = H5Tget_class(type);
    size_t bytes = H5Tget_size(type);
    if (class == H5T_FLOAT) {
        *dtype = bytes == 2 ? DTYPE_F16 : bytes == 4 ? DTYPE_F32 : DTYPE_F64;
        return bytes == 2 || bytes == 4 || bytes == 8;
    }
    if (class != H5T_INTEGER) return false;
    bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    if (is_signed) {
        *dtype = bytes == 4 ? DTYPE_I32 : DTYPE_I64;
        return bytes == 4 || bytes == 8;
    }
    *dtype = bytes == 1 ? DTYPE_U8 : bytes == 2 ? DTYPE_U16 : bytes == 4 ? DTYPE_U32 : DTYPE_U64;
    return bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8;
}
