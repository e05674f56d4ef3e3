/* See machine.h. Linux's /proc and control groups. */
#include "base/machine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int cpus_of(pid_t process) {
    cpu_set_t set;
    return sched_getaffinity(process, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

int machine_threads(int processes) {
    const char *wanted = getenv("OMP_NUM_THREADS");
    if (wanted && atoi(wanted) > 0) return atoi(wanted);
    int mine = cpus_of(0);
    if (mine < 1) return 1;
    if (processes < 2) return mine;
    /* The launcher's CPUs are what all its ranks have together; bound ranks have fewer each. */
    int all = cpus_of(getppid());
    if (all < mine) all = mine;
    int sharing = (mine * processes + all - 1) / all;
    return mine / sharing > 0 ? mine / sharing : 1;
}

/* A number of KiB behind `key` in a /proc file, as bytes. */
static double read_kib(const char *path, const char *key) {
    char line[256];
    double bytes = 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    while (bytes == 0 && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) == 0) bytes = 1024.0 * strtod(line + strlen(key), NULL);
    }
    fclose(file);
    return bytes;
}

/* The first number in a file; 0 when there is none ("max"). */
static double read_number(const char *path) {
    double value = 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    if (fscanf(file, "%lf", &value) != 1) value = 0;
    fclose(file);
    return value;
}

double machine_memory_available(void) {
    static const char *const groups[][2] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
    };
    double available = read_kib("/proc/meminfo", "MemAvailable:");
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        double limit = read_number(groups[i][0]), used = read_number(groups[i][1]);
        if (limit > 0 && limit > used && limit - used < available) available = limit - used;
    }
    return available;
}

double machine_memory_now(void) {
    return read_kib("/proc/self/status", "VmRSS:");
}
double machine_memory_peak(void) {
    return read_kib("/proc/self/status", "VmHWM:");
}
