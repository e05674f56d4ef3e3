/* A machine with faults, for tests/faults/doctor.sh: loaded before the C library (LD_PRELOAD), it answers some system
 * calls as a broken machine would. $DOCTOR_FAULT names the fault. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int fault(const char *name) {
    const char *wanted = getenv("DOCTOR_FAULT");
    return wanted && strcmp(wanted, name) == 0;
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(&clock_gettime) real;
    if (!real) real = REAL(clock_gettime);
    const int code = real(clock, now);
    if (clock == CLOCK_REALTIME && fault("clock")) now->tv_sec += 7;
    return code;
}

/* "locks": a file system without them. "local locks": every machine has its own, so that each gets its lock. */
int flock(int fd, int operation) {
    if (fault("locks")) {
        errno = ENOLCK;
        return -1;
    }
    return fault("local locks") ? 0 : REAL(flock)(fd, operation);
}

int fsync(int fd) {
    if (fault("fsync")) {
        errno = EIO;
        return -1;
    }
    return REAL(fsync)(fd);
}

int rename(const char *from, const char *to) {
    if (fault("rename") && strstr(to, ".squint-doctor-disk")) {
        errno = EPERM;
        return -1;
    }
    return REAL(rename)(from, to);
}

int statvfs(const char *path, struct statvfs *info) {
    const int code = REAL(statvfs)(path, info);
    if (code == 0 && fault(strcmp(path, "/dev/shm") == 0 ? "shm" : "full")) info->f_bavail = (1 << 20) / info->f_frsize;
    return code;
}

int getrlimit(__rlimit_resource_t resource, struct rlimit *limit) {
    const int code = REAL(getrlimit)(resource, limit);
    if (resource == RLIMIT_NOFILE && fault("open files")) limit->rlim_cur = 100;
    if (resource == RLIMIT_STACK && fault("stack")) limit->rlim_cur = 1 << 18;
    return code;
}

ssize_t process_vm_readv(pid_t process, const struct iovec *here, unsigned long here_count, const struct iovec *there,
                         unsigned long there_count, unsigned long flags) {
    if (fault("memory of others")) {
        errno = EPERM;
        return -1;
    }
    return REAL(process_vm_readv)(process, here, here_count, there, there_count, flags);
}
