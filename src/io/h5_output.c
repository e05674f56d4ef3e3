/* How HDF5 writes a file: a driver in which no write ever fails in HDF5's eyes. After a failed one (a full disk) the
 * library cannot close the file, and crashes when the process ends; so this driver remembers the first failure, drops
 * what comes after, and h5_publish looks at it. */
#include "io/h5_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct driver_info {
    struct h5_output *output;
};

static void note(struct h5_output *output, int code) {
    if (output->error == 0) output->error = code ? code : EIO;
}

/* HDF5 opens a file that it creates twice, one after the other. Nothing is allocated: that would be one more thing that
 * can fail without a word. */
static H5FD_t *driver_open(const char *name, unsigned flags, hid_t access, haddr_t maximum) {
    const struct driver_info *info = H5Pget_driver_info(access);
    (void)flags;
    (void)maximum;
    if (!info || info->output->in_use) return NULL;
    struct h5_output *output = info->output;
    output->base = (H5FD_t){0};
    output->end_of_space = output->end_of_file = 0;
    output->in_use = true;
    output->fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (output->fd < 0) note(output, errno);
    return &output->base;
}

static herr_t driver_close(H5FD_t *base) {
    struct h5_output *output = (struct h5_output *)base;
    if (output->fd >= 0 && close(output->fd) != 0) note(output, errno);
    output->fd = -1;
    output->in_use = false;
    return 0;
}

static int driver_compare(const H5FD_t *a, const H5FD_t *b) {
    return ((uintptr_t)a > (uintptr_t)b) - ((uintptr_t)a < (uintptr_t)b);
}

static herr_t driver_query(const H5FD_t *base, unsigned long *flags) {
    (void)base;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
    return 0;
}

static haddr_t driver_get_eoa(const H5FD_t *base, H5FD_mem_t type) {
    (void)type;
    return ((const struct h5_output *)base)->end_of_space;
}

static herr_t driver_set_eoa(H5FD_t *base, H5FD_mem_t type, haddr_t address) {
    (void)type;
    ((struct h5_output *)base)->end_of_space = address;
    return 0;
}

static haddr_t driver_get_eof(const H5FD_t *base, H5FD_mem_t type) {
    (void)type;
    return ((const struct h5_output *)base)->end_of_file;
}

static herr_t driver_read(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t size, void *buffer) {
    const struct h5_output *output = (const struct h5_output *)base;
    char *at = buffer;
    (void)type;
    (void)transfer;
    while (size > 0) {
        ssize_t got = output->fd < 0 ? 0 : pread(output->fd, at, size, (off_t)address);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        at += got;
        address += (haddr_t)got;
        size -= (size_t)got;
    }
    /* Behind the end, and where a write was dropped. */
    memset(at, 0, size);
    return 0;
}

static herr_t driver_write(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t size,
                           const void *buffer) {
    struct h5_output *output = (struct h5_output *)base;
    const char *at = buffer;
    (void)type;
    (void)transfer;
    if (output->end_of_file < address + size) output->end_of_file = address + size;
    while (size > 0 && output->error == 0 && !output->dropped) {
        ssize_t put = pwrite(output->fd, at, size, (off_t)address);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) {
            note(output, put < 0 ? errno : ENOSPC);
            break;
        }
        at += put;
        address += (haddr_t)put;
        size -= (size_t)put;
    }
    return 0;
}

static herr_t driver_truncate(H5FD_t *base, hid_t transfer, hbool_t closing) {
    struct h5_output *output = (struct h5_output *)base;
    (void)transfer;
    (void)closing;
    if (output->end_of_file == output->end_of_space) return 0;
    if (output->error == 0 && !output->dropped && ftruncate(output->fd, (off_t)output->end_of_space) != 0) {
        note(output, errno);
    }
    output->end_of_file = output->end_of_space;
    return 0;
}

static const H5FD_class_t driver_class = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = 511, /* of the range that HDF5 leaves to tests and private drivers */
#endif
    .name = "squint",
    .maxaddr = ((haddr_t)1 << 62) - 1,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(struct driver_info),
    .open = driver_open,
    .close = driver_close,
    .cmp = driver_compare,
    .query = driver_query,
    .get_eoa = driver_get_eoa,
    .set_eoa = driver_set_eoa,
    .get_eof = driver_get_eof,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

bool h5_output_use(hid_t access, struct h5_output *output) {
    struct driver_info info = {output};
    /* Not kept: the library forgets all its ids when MPI ends. The property list holds on to the driver. */
    hid_t driver = H5FDregister(&driver_class);
    bool good = driver >= 0 && H5Pset_driver(access, driver, &info) >= 0;
    if (driver >= 0) (void)H5FDunregister(driver);
    return good;
}
