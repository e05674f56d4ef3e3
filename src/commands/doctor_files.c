/* squint doctor: the run's directory, locks, HDF5, what all ranks see, the recipe's data. See doctor.h. Every file that
 * is made begins with .squint-doctor and is removed again. */
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/doctor.h"
#include "io/h5.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static const double MIB = 1024.0 * 1024.0, GIB = 1024.0 * 1024.0 * 1024.0;
static const char *const no_writing = "rank 0 must be able to write in the run's directory";
static const char *const no_locks =
    "the trainer locks the run's directory (flock): mount NFS with local_lock=flock, Lustre with -o flock";
enum { TRIAL_BYTES = 1 << 20, PATH_BYTES = 1200 };

/* The run's directory, or the nearest one above it that is there, as rank 0 sees it: all ranks look at the same words,
 * so that one that does not see them is told. */
enum status doctor_find_place(struct doctor *d) {
    int64_t length = (int64_t)strlen(d->run);
    if (length >= (int64_t)sizeof d->place)
        return comm_agree(d->comm,
                          error_set(STATUS_USAGE, "doctor: --run: expected at most %zu bytes", sizeof d->place - 1));
    memcpy(d->place, d->run, (size_t)length + 1);
    while (d->rank == 0 && d->place[0] && !file_exists(d->place)) {
        char *slash = strrchr(d->place, '/');
        if (slash == d->place) slash++; /* "/": the root itself */
        if (!slash || !*slash) break;
        *slash = '\0';
    }
    if (d->rank == 0 && !file_exists(d->place)) d->place[0] = '\0';
    length = (int64_t)strlen(d->place);
    TRY(comm_broadcast(d->comm, tensor_1d(&length, DTYPE_I64, 1), 0));
    d->place[length] = '\0';
    if (length == 0) memcpy(d->place, ".", 2);
    return STATUS_OK;
}

/* A file of this rank's own in the place. */
static void name_file(const struct doctor *d, const char *what, int64_t number, char path[PATH_BYTES]) {
    snprintf(path, PATH_BYTES, "%s/.squint-doctor-%s-%" PRId64, d->place, what, number);
}

static int64_t own_number(const struct doctor *d) {
    return (int64_t)getpid() * 100000 + d->rank;
}

static const char *whole(const char *path, char buffer[4096]) {
    return realpath(path, buffer) ? buffer : path;
}

/* --- disk ------------------------------------------------------------------------------------------------------- */

static void check_space(const char *shown, struct finding *f, char text[16]) {
    struct statvfs info;
    text[0] = '\0';
    if (statvfs(shown, &info) != 0) return;
    const double bytes = (double)info.f_bavail * (double)info.f_frsize;
    bytes_text(bytes, text);
    if (bytes < 5 * GIB) {
        finding_set(f, bytes < 256 * MIB ? LEVEL_FAIL : LEVEL_WARN, "%s: %s free", shown, text);
        finding_fix(
            f, "make room: a checkpoint holds three times what is trained in fp32, and checkpoint.keep of them stay");
    }
    if (info.f_files > 0 && info.f_favail < 1000) {
        finding_set(f, LEVEL_FAIL, "%s: room for %llu more files only", shown, (unsigned long long)info.f_favail);
        finding_fix(f, "remove small files: the file system has no more inodes");
    }
}

enum status doctor_disk(struct doctor *d, struct finding *f) {
    char path[PATH_BYTES], buffer[4096], space[16];
    void *data = NULL;
    const char *shown = whole(d->place, buffer);
    if (!file_is_directory(d->place)) {
        finding_set(f, LEVEL_FAIL, "%s: %s", shown, file_exists(d->place) ? "is not a directory" : "is not there");
        finding_fix(
            f, "every machine must have the run's directory, under the same name: set run: to a path that all share");
        return STATUS_OK;
    }
    name_file(d, "disk", own_number(d), path);
    const double begun_s = time_now_s();
    enum status status = memory_new(TRIAL_BYTES, 1, "a trial", &data);
    if (status == STATUS_OK)
        status = file_write(path, data, TRIAL_BYTES); /* write, flush, rename, flush the directory */
    const double seconds = time_now_s() - begun_s;
    if (status == STATUS_OK && unlink(path) != 0)
        status = error_set(STATUS_IO, "%s: cannot remove it: %s", path, strerror(errno));
    free(data);
    if (status != STATUS_OK) {
        finding_error(f, LEVEL_FAIL,
                      "a checkpoint is written, flushed and renamed here: check owner, quota, read-only mounts");
    } else if (seconds > 2) {
        finding_set(f, LEVEL_WARN, "%s: 1 MiB written, flushed and renamed in %.1f s", shown, seconds);
        finding_fix(f, "a faster file system for the run, or a larger checkpoint.every");
    }
    check_space(shown, f, space);
    finding_set(f, LEVEL_OK, "%s%s: %s free; 1 MiB written, flushed and renamed in %.0f ms", shown,
                strcmp(d->place, d->run) == 0 ? "" : " (the run's directory will be made below it)", space,
                1e3 * seconds);
    return STATUS_OK;
}

/* --- locks ------------------------------------------------------------------------------------------------------ */

/* 0: locked; else errno. */
static int try_lock(const char *path, int flags, int *fd) {
    *fd = open(path, flags | O_RDWR | O_CLOEXEC, 0666);
    if (*fd < 0) return errno;
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0) return 0;
    const int code = errno;
    close(*fd);
    *fd = -1;
    return code;
}

/* The run's own lock: the trainer refuses a directory in which another one trains. */
static void look_for_trainer(const struct doctor *d, struct finding *f) {
    char path[PATH_BYTES], buffer[4096];
    int fd = -1;
    snprintf(path, sizeof path, "%s/lock", d->run);
    if (!file_exists(path)) return;
    if (try_lock(path, 0, &fd) == EWOULDBLOCK) {
        finding_set(f, LEVEL_FAIL, "%s: another job trains in this directory", whole(path, buffer));
        finding_fix(f, "wait for that job or end it (fuser %s), or set run: to another directory", path);
    }
    if (fd >= 0) close(fd);
}

/* Rank 0 takes a lock as the trainer does; nobody else may get it meanwhile. */
enum status doctor_locks(struct doctor *d, struct finding *f) {
    int64_t number = own_number(d);
    int32_t taken = 0;
    int held = -1, second = -1;
    char path[PATH_BYTES];
    TRY(comm_broadcast(d->comm, tensor_1d(&number, DTYPE_I64, 1), 0));
    name_file(d, "lock", number, path);
    if (d->rank == 0) {
        look_for_trainer(d, f);
        const int code = try_lock(path, O_CREAT, &held);
        if (code != 0) {
            finding_set(f, LEVEL_FAIL, "%s: cannot lock it: %s", path, strerror(code));
            finding_fix(f, "%s", code == ENOLCK || code == ENOSYS || code == EOPNOTSUPP ? no_locks : no_writing);
        }
        taken = held >= 0;
    }
    TRY(comm_broadcast(d->comm, tensor_1d(&taken, DTYPE_I32, 1), 0));
    const int code = taken ? try_lock(path, 0, &second) : EWOULDBLOCK;
    if (code == 0) {
        finding_set(
            f, LEVEL_WARN,
            "%s: rank 0 on %s holds the lock, and this rank gets it too: two jobs in one directory would not notice",
            path, d->hosts[0].name);
        finding_fix(
            f, "mount the file system with locks that count on all machines (Lustre: -o flock, not localflock; NFS 4)");
    }
    if (second >= 0) close(second);
    TRY(comm_barrier(d->comm));
    if (held >= 0) close(held);
    if (d->rank == 0) (void)unlink(path);
    finding_set(f, LEVEL_OK,
                taken ? "the trainer's lock holds, and no rank gets it a second time" : "not tried: rank 0 has none");
    return STATUS_OK;
}

enum status doctor_hdf5(struct doctor *d, struct finding *f) {
    char path[PATH_BYTES];
    const char *locking = getenv("HDF5_USE_FILE_LOCKING");
    struct h5 *file = NULL;
    const int32_t numbers[4] = {2, 3, 5, 7};
    int32_t back[4] = {0};
    name_file(d, "h5", own_number(d), path);
    enum status status = h5_create(path, 0, &file);
    if (status == STATUS_OK) status = h5_write(file, "x", DTYPE_I32, 1, &(int64_t){4}, numbers);
    if (status == STATUS_OK) {
        status = h5_publish(&file);
    } else {
        h5_close(&file);
    }
    if (status == STATUS_OK) status = h5_open(path, &file);
    if (status == STATUS_OK) status = h5_read(file, "x", DTYPE_I32, 0, 4, back);
    h5_close(&file);
    (void)unlink(path);
    if (status != STATUS_OK) {
        finding_error(f, LEVEL_FAIL,
                      locking
                          ? "unset HDF5_USE_FILE_LOCKING, or export HDF5_USE_FILE_LOCKING=FALSE"
                          : "see disk; where a network file system refuses locks: export HDF5_USE_FILE_LOCKING=FALSE");
    } else if (memcmp(numbers, back, sizeof back) != 0) {
        finding_set(f, LEVEL_FAIL, "%s: not what was written is read", path);
        finding_fix(f, "do not keep runs on this file system");
    }
    finding_set(f, LEVEL_OK, "a file is written and read; HDF5_USE_FILE_LOCKING is %s",
                locking ? locking : "not set, squint takes no locks");
    return STATUS_OK;
}

/* --- what all ranks see ----------------------------------------------------------------------------------------- */

/* Network file systems show others' files late: up to 3 s are all right. */
static bool comes_to_hold(const char *path, int64_t number) {
    for (int tries = 0; tries < 60; tries++) {
        char *text = NULL;
        size_t length = 0;
        const bool same = file_read(path, &text, &length) == STATUS_OK && length == sizeof number &&
                          memcmp(text, &number, length) == 0;
        error_clear();
        free(text);
        if (same) return true;
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
    return false;
}

enum status doctor_shared_files(struct doctor *d, struct finding *f) {
    int64_t number = own_number(d);
    int32_t written = 0;
    char path[PATH_BYTES], buffer[4096];
    TRY(comm_broadcast(d->comm, tensor_1d(&number, DTYPE_I64, 1), 0));
    name_file(d, "shared", number, path);
    if (d->rank == 0) {
        written = file_write(path, &number, sizeof number) == STATUS_OK;
        if (!written) finding_error(f, LEVEL_FAIL, no_writing);
    }
    TRY(comm_broadcast(d->comm, tensor_1d(&written, DTYPE_I32, 1), 0));
    if (written && !comes_to_hold(path, number)) {
        finding_set(f, LEVEL_FAIL, "%s: a file that rank 0 on %s wrote there is not seen", whole(d->place, buffer),
                    d->hosts[0].name);
        finding_fix(f, "run: on a file system that all machines mount under the same name, and one working directory "
                       "for all ranks");
    }
    TRY(comm_barrier(d->comm));
    if (written && d->rank == 0) (void)unlink(path);
    finding_set(f, LEVEL_OK, written ? "what rank 0 writes is seen by all" : "not tried: rank 0 cannot write");
    return STATUS_OK;
}

struct amount {
    int64_t files, bytes;
};

static enum status count_files(char **patterns, size_t count, struct amount *amount) {
    for (size_t p = 0; p < count; p++) {
        char **paths = NULL;
        size_t found = 0;
        enum status status = file_glob(patterns[p], &paths, &found);
        for (size_t i = 0; i < found && status == STATUS_OK; i++) {
            int64_t bytes = 0;
            status = file_size(paths[i], &bytes);
            if (status == STATUS_OK && access(paths[i], R_OK) != 0)
                status = error_set(STATUS_IO, "%s: cannot read it: %s", paths[i], strerror(errno));
            amount->files++;
            amount->bytes += bytes;
        }
        file_free_list(paths, found);
        TRY(status);
    }
    return STATUS_OK;
}

enum status doctor_data(struct doctor *d, struct finding *f) {
    const struct config *c = d->config;
    const char *fix =
        "make them (squint prep), or put them on a file system that all machines mount under the same name";
    struct amount own = {0}, first;
    char bytes[16];
    if (!c) return STATUS_OK; /* no line at all */
    enum status status = count_files(c->train_data, c->train_data_count, &own);
    if (status == STATUS_OK) status = count_files(c->valid_data, c->valid_data_count, &own);
    if (status == STATUS_OK && c->teacher && !file_is_directory(c->teacher))
        status = error_set(STATUS_NOT_FOUND, "teacher: %s is not a directory here", c->teacher);
    if (status == STATUS_OK && c->tokenizer && !file_exists(c->tokenizer))
        status = error_set(STATUS_NOT_FOUND, "tokenizer: %s is not here", c->tokenizer);
    if (status != STATUS_OK) finding_error(f, LEVEL_FAIL, fix);
    first = own;
    TRY(comm_broadcast(d->comm, tensor_1d(&first, DTYPE_I64, 2), 0));
    if (memcmp(&own, &first, sizeof own) != 0) {
        finding_set(f, LEVEL_FAIL,
                    "%" PRId64 " shards of %" PRId64 " bytes, and rank 0 on %s sees %" PRId64 " of %" PRId64, own.files,
                    own.bytes, d->hosts[0].name, first.files, first.bytes);
        finding_fix(f, "%s", fix);
    }
    bytes_text((double)own.bytes, bytes);
    finding_set(f, LEVEL_OK, "%" PRId64 " shards, %s; every rank sees the same", own.files, bytes);
    return STATUS_OK;
}
