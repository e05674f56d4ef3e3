/* The run's directory and its lock; see saving.h. */
#include "base/file.h"
#include "base/memory.h"
#include "train/saving.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum status saving_path(const struct run *run, const char *name, char **path) {
    return file_join(run->config->run, name, path);
}

static enum status lock_here(const char *directory, int *lock) {
    char *path = NULL;
    TRY(file_make_directory(directory));
    TRY(file_join(directory, "lock", &path));
    enum status status = STATUS_OK;
    *lock = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (*lock < 0) {
        status = error_set(STATUS_IO, "%s: cannot open it: %s", path, strerror(errno));
    } else if (flock(*lock, LOCK_EX | LOCK_NB) != 0) {
        status =
            errno == EWOULDBLOCK
                ? error_set(STATUS_USAGE,
                            "%s: another job trains in this directory; wait for it, or set run: to another", directory)
                : error_set(STATUS_IO, "%s: cannot lock it: %s", path, strerror(errno));
        close(*lock);
        *lock = -1;
    }
    free(path);
    return status;
}

enum status saving_lock(const struct run *run, int *lock) {
    enum status status = STATUS_OK;
    *lock = -1;
    if (comm_rank(run->comm) == 0) status = lock_here(run->config->run, lock);
    return comm_agree(run->comm, status);
}

void saving_unlock(int *lock) {
    if (*lock >= 0) close(*lock); /* ends the lock; the file stays, so that two processes always lock the same one */
    *lock = -1;
}

static enum status set_aside(const struct run *run, const char *name, const char *old_name) {
    char *path = NULL, *old = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, saving_path(run, name, &path));
    TRY_GOTO(done, saving_path(run, old_name, &old));
    if (!file_exists(path)) goto done;
    TRY_GOTO(done, file_remove_tree(old));
    if (rename(path, old) != 0) {
        status = error_set(STATUS_IO, "%s: cannot rename it to %s: %s", path, old, strerror(errno));
    }
done:
    free(path);
    free(old);
    return status;
}

enum status saving_set_aside(const struct run *run, bool metrics) {
    enum status status = STATUS_OK;
    if (comm_rank(run->comm) == 0) {
        status = set_aside(run, "checkpoints", "checkpoints.old");
        if (metrics) KEEP_FIRST(status, set_aside(run, "metrics.jsonl", "metrics.old.jsonl"));
    }
    return comm_agree(run->comm, status);
}

enum status saving_write_config(const struct run *run) {
    enum status status = STATUS_OK;
    char *path = NULL;
    if (comm_rank(run->comm) == 0) {
        status = saving_path(run, "config.yaml", &path);
        if (status == STATUS_OK) status = file_write(path, run->config->text, strlen(run->config->text));
        free(path);
    }
    return comm_agree(run->comm, status);
}
