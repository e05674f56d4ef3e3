/* Datasets in HDF5 files: contiguous and virtual ones. See h5.h. */
#include "io/h5_internal.h"

#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hid_t new_space(int rank, const int64_t *shape) {
    hsize_t extents[H5_MAX_RANK];
    if (rank == 0) return H5Screate(H5S_SCALAR);
    for (int i = 0; i < rank; i++) extents[i] = (hsize_t)shape[i];
    return H5Screate_simple(rank, extents, NULL);
}

static enum status check_shape(const struct h5 *file, const char *name, int rank, const int64_t *shape) {
    if (rank < 0 || rank > H5_MAX_RANK) {
        return error_set(STATUS_SHAPE, "%s: %s: expected at most %d dimensions, found %d", file->path, name,
                         H5_MAX_RANK, rank);
    }
    for (int i = 0; i < rank; i++) {
        if (shape[i] >= 0) continue;
        return error_set(STATUS_SHAPE, "%s: %s: dimension %d: expected 0 or more, found %" PRId64, file->path, name, i,
                         shape[i]);
    }
    return STATUS_OK;
}

/* Creates a dataset with properties `creation`, and the groups on the way to it. No times: the same contents give the
 * same bytes. */
static enum status create(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                          hid_t creation) {
    hid_t dataset = -1, type = h5_file_type(dtype), space = new_space(rank, shape), link = H5Pcreate(H5P_LINK_CREATE);
    if (type >= 0 && space >= 0 && link >= 0 && H5Pset_create_intermediate_group(link, 1) >= 0 &&
        H5Pset_obj_track_times(creation, 0) >= 0) {
        dataset = H5Dcreate2(file->id, name, type, space, link, creation, H5P_DEFAULT);
    }
    enum status status = dataset < 0 ? h5_failure(STATUS_IO, file, name, "create the dataset") : STATUS_OK;
    H5_CLOSE(H5Dclose, dataset);
    H5_CLOSE(H5Tclose, type);
    H5_CLOSE(H5Sclose, space);
    H5_CLOSE(H5Pclose, link);
    return status;
}

enum status h5_dataset_create(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape) {
    TRY(check_shape(file, name, rank, shape));
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    /* The place in the file is settled at once, and not filled with zeros first. */
    bool good = creation >= 0 && H5Pset_layout(creation, H5D_CONTIGUOUS) >= 0 &&
                H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
                H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0;
    enum status status = good ? create(file, name, dtype, rank, shape, creation)
                              : h5_failure(STATUS_FAILED, file, name, "describe the dataset");
    H5_CLOSE(H5Pclose, creation);
    return status;
}

enum status h5_group_create(struct h5 *file, const char *name) {
    hid_t group = -1, link = H5Pcreate(H5P_LINK_CREATE);
    if (link >= 0 && H5Pset_create_intermediate_group(link, 1) >= 0) {
        group = H5Gcreate2(file->id, name, link, H5P_DEFAULT, H5P_DEFAULT);
    }
    enum status status = group < 0 ? h5_failure(STATUS_IO, file, name, "create the group") : STATUS_OK;
    H5_CLOSE(H5Gclose, group);
    H5_CLOSE(H5Pclose, link);
    return status;
}

/* Selects elements first … first+count−1 of `space`, in whole rows. */
static enum status select_rows(const struct h5 *file, const char *name, hid_t space, int64_t first, int64_t count) {
    hsize_t shape[H5_MAX_RANK] = {1, 1, 1, 1}, start[H5_MAX_RANK] = {0}, extent[H5_MAX_RANK];
    int rank = H5Sget_simple_extent_ndims(space);
    if (rank < 0 || rank > H5_MAX_RANK || H5Sget_simple_extent_dims(space, shape, NULL) < 0) {
        return h5_failure(STATUS_DAMAGED, file, name, "read its shape");
    }
    int64_t row = 1, total = H5Sget_simple_extent_npoints(space);
    for (int i = 1; i < rank; i++) row *= (int64_t)shape[i];
    if (first < 0 || count < 0 || first > total || count > total - first ||
        (row > 0 && (first % row != 0 || count % row != 0))) {
        return error_set(STATUS_SHAPE,
                         "%s: %s: expected whole rows of %" PRId64 " among %" PRId64 " elements, found %" PRId64
                         " elements from %" PRId64 " on",
                         file->path, name, row, total, count, first);
    }
    if (rank == 0 || count == 0) return STATUS_OK;
    memcpy(extent, shape, sizeof extent);
    start[0] = (hsize_t)(first / row);
    extent[0] = (hsize_t)(count / row);
    if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) < 0) {
        return h5_failure(STATUS_IO, file, name, "select its rows");
    }
    return STATUS_OK;
}

/* Reads into `in`, or writes from `out`: one of them is NULL. */
static enum status transfer(struct h5 *file, const char *name, enum dtype dtype, int64_t first, int64_t count, void *in,
                            const void *out) {
    enum status status = STATUS_OK;
    hid_t space = -1, memory = -1, type = -1, dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (dataset < 0) return h5_failure(in ? STATUS_DAMAGED : STATUS_FAILED, file, name, "open the dataset");
    hsize_t elements = (hsize_t)count;
    space = H5Dget_space(dataset);
    memory = H5Screate_simple(1, &elements, NULL);
    type = h5_memory_type(dtype);
    if (space < 0 || memory < 0 || type < 0) {
        status = h5_failure(STATUS_FAILED, file, name, "prepare a transfer");
        goto done;
    }
    TRY_GOTO(done, select_rows(file, name, space, first, count));
    if (count == 0) goto done;
    if (in && H5Dread(dataset, type, memory, space, H5P_DEFAULT, in) < 0) {
        status = h5_failure(STATUS_IO, file, name, "read the dataset");
    }
    if (out && H5Dwrite(dataset, type, memory, space, H5P_DEFAULT, out) < 0) {
        status = h5_failure(STATUS_IO, file, name, "write the dataset");
    }
    if (out && status == STATUS_OK) status = h5_written(file);
done:
    H5_CLOSE(H5Tclose, type);
    H5_CLOSE(H5Sclose, memory);
    H5_CLOSE(H5Sclose, space);
    (void)H5Dclose(dataset);
    return status;
}

enum status h5_dataset_write(struct h5 *file, const char *name, enum dtype dtype, int64_t first, int64_t count,
                             const void *data) {
    return transfer(file, name, dtype, first, count, NULL, count > 0 ? data : "");
}

enum status h5_read(struct h5 *file, const char *name, enum dtype dtype, int64_t first, int64_t count, void *data) {
    char nothing;
    return transfer(file, name, dtype, first, count, count > 0 ? data : &nothing, NULL);
}

enum status h5_write(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                     const void *data) {
    int64_t count = 1;
    TRY(h5_dataset_create(file, name, dtype, rank, shape));
    for (int i = 0; i < rank; i++) count *= shape[i];
    return h5_dataset_write(file, name, dtype, 0, count, data);
}

static enum status describe(struct h5 *file, const char *name, hid_t dataset, hid_t space, hid_t type, hid_t creation,
                            struct h5_dataset *out) {
    hsize_t extents[H5_MAX_RANK] = {0};
    int rank = H5Sget_simple_extent_ndims(space);
    if (rank < 0 || type < 0 || creation < 0) return h5_failure(STATUS_DAMAGED, file, name, "read the dataset's shape");
    if (rank > H5_MAX_RANK || !h5_dtype_of(type, &out->dtype)) {
        return error_set(STATUS_DAMAGED,
                         "%s: %s: expected numbers in at most %d dimensions, found another type or shape", file->path,
                         name, H5_MAX_RANK);
    }
    if (rank > 0 && H5Sget_simple_extent_dims(space, extents, NULL) < 0) {
        return h5_failure(STATUS_DAMAGED, file, name, "read the dataset's shape");
    }
    out->rank = rank;
    for (int i = 0; i < rank; i++) out->shape[i] = (int64_t)extents[i];
    out->count = H5Sget_simple_extent_npoints(space);
    H5D_layout_t layout = H5Pget_layout(creation);
    haddr_t offset = layout == H5D_CONTIGUOUS ? H5Dget_offset(dataset) : HADDR_UNDEF;
    /* A contiguous dataset may also lie in files of its own. */
    bool elsewhere = H5Pget_external_count(creation) > 0;
    out->offset = offset == HADDR_UNDEF || elsewhere ? -1 : (int64_t)offset;
    out->is_virtual = layout == H5D_VIRTUAL;
    (void)H5Eclear2(H5E_DEFAULT);
    return STATUS_OK;
}

enum status h5_dataset_find(struct h5 *file, const char *name, struct h5_dataset *out) {
    *out = (struct h5_dataset){.offset = -1};
    hid_t dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (dataset < 0) return h5_failure(STATUS_NOT_FOUND, file, name, "open the dataset");
    hid_t space = H5Dget_space(dataset), type = H5Dget_type(dataset), creation = H5Dget_create_plist(dataset);
    enum status status = describe(file, name, dataset, space, type, creation, out);
    H5_CLOSE(H5Sclose, space);
    H5_CLOSE(H5Tclose, type);
    H5_CLOSE(H5Pclose, creation);
    (void)H5Dclose(dataset);
    return status;
}

/* --- visiting --------------------------------------------------------------------------------------------------- */

struct visit {
    struct h5 *file;
    const char *group;
    enum status (*each)(struct h5 *, const char *, void *);
    void *context;
    enum status status;
};

static herr_t visit_object(hid_t id, const char *name, const H5O_info_t *info, void *context) {
    struct visit *visit = context;
    (void)id;
    if (info->type != H5O_TYPE_DATASET) return 0;
    visit->status = visit->each(visit->file, name, visit->context);
    return visit->status == STATUS_OK ? 0 : 1;
}

enum status h5_dataset_visit(struct h5 *file, const char *group,
                             enum status (*each)(struct h5 *file, const char *name, void *context), void *context) {
    struct visit visit = {file, group, each, context, STATUS_OK};
    herr_t result = H5Ovisit_by_name2(file->id, group, H5_INDEX_NAME, H5_ITER_INC, visit_object, &visit, H5O_INFO_BASIC,
                                      H5P_DEFAULT);
    if (result < 0) return h5_failure(STATUS_DAMAGED, file, group, "list its datasets");
    return visit.status;
}

/* --- virtual datasets ------------------------------------------------------------------------------------------- */

/* A range of a flattened array that is a box in its shape. */
struct box {
    hsize_t start[H5_MAX_RANK], extent[H5_MAX_RANK];
    int64_t count;
};

/* *box = the largest box that begins at element `first` and holds at most `count` elements in flattened order. */
static void first_box(int rank, const int64_t *shape, int64_t first, int64_t count, struct box *box) {
    int64_t inner = 1; /* elements below one step of dimension i */
    int i = rank - 1;
    /* Go outward while the range begins at the dimension's start and fills it. */
    while (i > 0 && first % (inner * shape[i]) == 0 && count >= inner * shape[i]) inner *= shape[i--];
    int64_t place = first / inner % shape[i], steps = count / inner;
    if (steps > shape[i] - place) steps = shape[i] - place;
    box->count = steps * inner;
    int64_t rest = first;
    for (int d = rank - 1; d >= 0; d--) {
        box->start[d] = (hsize_t)(rest % shape[d]);
        box->extent[d] = d > i ? (hsize_t)shape[d] : d == i ? (hsize_t)steps : 1;
        rest /= shape[d];
    }
}

static enum status map_source(struct h5 *file, const char *name, hid_t creation, hid_t whole, int rank,
                              const int64_t *shape, const struct h5_source *source) {
    hsize_t length = (hsize_t)source->count;
    hid_t part = H5Screate_simple(1, &length, NULL);
    bool good = part >= 0;
    for (int64_t done = 0; good && done < source->count;) {
        struct box box;
        first_box(rank, shape, source->first + done, source->count - done, &box);
        hsize_t start = (hsize_t)done, count = (hsize_t)box.count;
        good = H5Sselect_hyperslab(whole, H5S_SELECT_SET, box.start, NULL, box.extent, NULL) >= 0 &&
               H5Sselect_hyperslab(part, H5S_SELECT_SET, &start, NULL, &count, NULL) >= 0 &&
               H5Pset_virtual(creation, whole, source->file, source->dataset, part) >= 0;
        done += box.count;
    }
    enum status status =
        good ? STATUS_OK : h5_failure(STATUS_FAILED, file, name, "place a source in the virtual dataset");
    H5_CLOSE(H5Sclose, part);
    return status;
}

enum status h5_virtual_create(struct h5 *file, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                              const struct h5_source *sources, size_t source_count) {
    TRY(check_shape(file, name, rank, shape));
    if (rank == 0) return error_set(STATUS_SHAPE, "%s: %s: a single number cannot be virtual", file->path, name);
    hid_t whole = new_space(rank, shape), creation = H5Pcreate(H5P_DATASET_CREATE);
    enum status status = STATUS_OK;
    if (whole < 0 || creation < 0) {
        status = h5_failure(STATUS_FAILED, file, name, "describe the virtual dataset");
    }
    for (size_t i = 0; i < source_count && status == STATUS_OK; i++) {
        if (sources[i].count > 0) status = map_source(file, name, creation, whole, rank, shape, &sources[i]);
    }
    if (status == STATUS_OK) status = create(file, name, dtype, rank, shape, creation);
    H5_CLOSE(H5Sclose, whole);
    H5_CLOSE(H5Pclose, creation);
    return status;
}
