/* squint doctor: the launcher and MPI, clocks, and how the ranks reach one another. See doctor.h. */
#include "base/log.h"
#include "base/memory.h"
#include "commands/doctor.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 5 };

/* --- the launcher ----------------------------------------------------------------------------------------------- */

/* The last word of the form 1.2 or longer in `line`: "mpirun (Open MPI) 4.1.4" -> "4.1.4". */
static void find_version(const char *line, char *version, size_t capacity) {
    version[0] = '\0';
    for (const char *at = line; *at; at++) {
        size_t length = strspn(at, "0123456789.");
        if (length >= 3 && isdigit((unsigned char)*at) && memchr(at, '.', length)) {
            length += strspn(at + length, "abcdefghijklmnopqrstuvwxyz0123456789"); /* 5.0.0rc2 */
            snprintf(version, capacity, "%.*s", (int)length, at);
        }
        if (length > 0) at += length - 1;
    }
}

static bool is_launcher(const char *name) {
    static const char *const names[] = {"mpirun",  "mpiexec", "orterun",    "orted",
                                        "prterun", "prted",   "slurmstepd", "hydra_pmi_proxy"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

static void ask_version(const char *path, char *version, size_t capacity) {
    char command[1200], line[256] = "";
    if (strchr(path, '\'')) return;
    snprintf(command, sizeof command, "'%s' --version 2>/dev/null", path);
    FILE *pipe = popen(command, "re");
    if (!pipe) return;
    if (fgets(line, sizeof line, pipe)) find_version(line, version, capacity);
    while (fgets(line, sizeof line, pipe)) {
    }
    pclose(pipe);
}

static long parent_of(long process) {
    char path[64], text[512] = "";
    long parent = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", process);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    const char *after =
        fgets(text, sizeof text, file) ? strrchr(text, ')') : NULL; /* a name may hold blanks and brackets */
    if (after && sscanf(after, ") %*c %ld", &parent) != 1) parent = 0;
    fclose(file);
    return parent;
}

void doctor_find_launcher(struct doctor *d) {
    long process = getppid();
    for (int depth = 0; depth < 3 && process > 1; depth++, process = parent_of(process)) {
        char link[64], path[1024] = "", sibling[1040], name[64];
        snprintf(link, sizeof link, "/proc/%ld/exe", process);
        const ssize_t length = readlink(link, path, sizeof path - 1);
        if (length < 0) return;
        path[length] = '\0';
        const char *slash = strrchr(path, '/');
        snprintf(name, sizeof name, "%.63s", slash ? slash + 1 : path);
        if (!is_launcher(name)) continue;
        snprintf(d->launcher, sizeof d->launcher, "%s", strcmp(name, "slurmstepd") == 0 ? "srun" : name);
        if (strcmp(name, "slurmstepd") == 0 || strcmp(name, "hydra_pmi_proxy") == 0) return;
        /* A node's daemon tells no version: the mpirun beside it does. */
        snprintf(sibling, sizeof sibling, "%.*s/mpirun", (int)(slash - path), path);
        ask_version(access(sibling, X_OK) == 0 ? sibling : path, d->launcher_version, sizeof d->launcher_version);
        return;
    }
}

static int claimed_ranks(const char **variable) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = getenv(names[i]);
        if (text && atoi(text) > 1) {
            *variable = names[i];
            return atoi(text);
        }
    }
    return 1;
}

/* --- hosts ------------------------------------------------------------------------------------------------------ */

static volatile int64_t readable = INT64_C(0x5351554e54); /* what a neighbour looks for */

enum status doctor_gather_hosts(struct doctor *d) {
    struct host own = {
        .process = getpid(), .address = (int64_t)(intptr_t)&readable, .node_rank = comm_node_rank(d->comm)};
    enum status status = STATUS_OK;
    (void)gethostname(own.name, sizeof own.name - 1);
    KEEP_FIRST(status, memory_new((size_t)d->size, sizeof *d->hosts, "hosts", &d->hosts));
    KEEP_FIRST(status, memory_new((size_t)d->size, sizeof(double), "clocks", &d->ahead_s));
    KEEP_FIRST(status, memory_new((size_t)d->size, sizeof(double), "clocks", &d->there_s));
    TRY(comm_agree(d->comm, status));
    TRY(comm_all_gather(d->comm, tensor_1d(&own, DTYPE_U8, sizeof own),
                        tensor_1d(d->hosts, DTYPE_U8, d->size * (int64_t)sizeof own)));
    for (int r = 0; r < d->size; r++) d->hosts_seen += d->hosts[r].node_rank == 0;
    return STATUS_OK;
}

static int ranks_on(const struct doctor *d, const char *host) {
    int count = 0;
    for (int r = 0; r < d->size; r++) count += strcmp(d->hosts[r].name, host) == 0;
    return count;
}

/* Numbers before the second dot: "4.1.4" and "4.1.6" are of one series. */
static bool same_series(const char *a, const char *b) {
    for (int dots = 0; *a == *b && *a; a++, b++)
        if (*a == '.' && ++dots == 2) return true;
    return *a == *b;
}

enum status doctor_mpi(struct doctor *d, struct finding *f) {
    char library[64];
    const char *variable = "", *mine = d->hosts[d->rank].name;
    const int claimed = claimed_ranks(&variable), here = ranks_on(d, mine);
    find_version(comm_describe(d->comm), library, sizeof library);
    const char *launcher = d->launcher[0] ? d->launcher : "no launcher";
    if (claimed > 1 && d->size == 1) {
        finding_set(f, LEVEL_FAIL,
                    "$%s says %d ranks, and MPI sees this one alone: %s is of another MPI than squint's library",
                    variable, claimed, launcher);
        finding_fix(
            f, "start it with the mpirun of the MPI that squint was built with (%s); under Slurm: launch/slurm.sbatch",
            comm_describe(d->comm));
    }
    if (library[0] && d->launcher_version[0] && strcmp(library, d->launcher_version) != 0) {
        finding_set(f, same_series(library, d->launcher_version) ? LEVEL_WARN : LEVEL_FAIL,
                    "%s is of version %s, squint's library is %s", launcher, d->launcher_version,
                    comm_describe(d->comm));
        finding_fix(f, "put the library's own mpirun first on PATH, on every machine");
    }
    if (here * d->hosts_seen > d->size) {
        finding_set(f, LEVEL_WARN, "%d ranks on %s, %.1f on a host on average: the most crowded one sets the pace",
                    here, mine, (double)d->size / d->hosts_seen);
        finding_fix(f, "mpirun --map-by ppr:RANKS:node, and as many slots for every machine in the host file");
    }
    if (d->size == 1 && !d->launcher[0]) {
        finding_set(f, LEVEL_OK,
                    "one process without a launcher; mpirun -np N squint doctor looks at N ranks together");
    } else {
        finding_set(f, LEVEL_OK, "%s, %s %s; %d rank%s, %d on this host", comm_describe(d->comm), launcher,
                    d->launcher_version[0] ? "of the same version" : "of a version that it does not tell", d->size,
                    d->size == 1 ? "" : "s", here);
    }
    return STATUS_OK;
}

/* --- clocks ----------------------------------------------------------------------------------------------------- */

static double clock_now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Rank 0 asks rank r for its time; what comes back is taken for that of halfway. The fastest of some rounds counts. */
static enum status compare_clock(struct doctor *d, int r) {
    for (int round = 0; round < ROUNDS; round++) {
        double theirs = 0, nothing = 0;
        const struct tensor out = tensor_1d(&nothing, DTYPE_F64, 1), back = tensor_1d(&theirs, DTYPE_F64, 1);
        const double begun_s = clock_now_s(), begun = time_now_s();
        TRY(comm_send_receive(d->comm, out, d->rank == 0 ? r : -1, out, d->rank == r ? 0 : -1));
        theirs = clock_now_s();
        TRY(comm_send_receive(d->comm, back, d->rank == r ? 0 : -1, back, d->rank == 0 ? r : -1));
        const double there_s = time_now_s() - begun;
        if (d->rank != 0 || (round > 0 && there_s >= d->there_s[r])) continue;
        d->there_s[r] = there_s;
        d->ahead_s[r] = theirs - (begun_s + there_s / 2);
    }
    return STATUS_OK;
}

enum status doctor_clock(struct doctor *d, struct finding *f) {
    double most = 0;
    for (int r = 1; r < d->size; r++) TRY(compare_clock(d, r));
    TRY(comm_broadcast(d->comm, tensor_1d(d->ahead_s, DTYPE_F64, d->size), 0));
    TRY(comm_broadcast(d->comm, tensor_1d(d->there_s, DTYPE_F64, d->size), 0));
    for (int r = 0; r < d->size; r++) most = fmax(most, fabs(d->ahead_s[r]));
    const double mine = d->ahead_s[d->rank];
    if (fabs(mine) > 1) {
        finding_set(f, LEVEL_WARN, "its clock is %.1f s %s rank 0's on %s: times in logs and metrics do not compare",
                    fabs(mine), mine > 0 ? "ahead of" : "behind", d->hosts[0].name);
        finding_fix(f, "start chrony or another NTP client on %s", d->hosts[d->rank].name);
    }
    if (d->size == 1) {
        finding_set(f, LEVEL_OK, "one rank: nothing to compare");
    } else {
        finding_set(f, LEVEL_OK, "the ranks' clocks are at most %.0f us apart", 1e6 * most);
    }
    return STATUS_OK;
}

/* --- transport -------------------------------------------------------------------------------------------------- */

/* Adds " word" to `text` unless it is there. */
static void add_word(char *text, size_t capacity, const char *word, size_t length) {
    char padded[80];
    snprintf(padded, sizeof padded, " %.*s", (int)length, word);
    const char *found = strstr(text, padded);
    if (found && (found[strlen(padded)] == ' ' || found[strlen(padded)] == '\0')) return;
    if (strlen(text) + strlen(padded) < capacity) strcat(text, padded);
}

/* The plug-ins with which Open MPI moves bytes stay loaded when they were chosen: "pml/ob1 btl/vader btl/tcp". */
static void loaded_plugins(char *text, size_t capacity) {
    char line[1024];
    text[0] = '\0';
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof line, maps)) {
        char *name = strstr(line, "/mca_"), word[48];
        if (!name || (strncmp(name + 5, "pml_", 4) != 0 && strncmp(name + 5, "btl_", 4) != 0 &&
                      strncmp(name + 5, "mtl_", 4) != 0))
            continue;
        snprintf(word, sizeof word, "%.3s/%.*s", name + 5, (int)strcspn(name + 9, ".\n"), name + 9);
        if (strcmp(word, "btl/self") != 0) add_word(text, capacity, word, strlen(word));
    }
    if (maps) fclose(maps);
}

/* The first entry of a /sys/class folder that is not the loopback; "" when there is none. */
static void first_device(const char *folder, char *name, size_t capacity) {
    struct dirent *entry;
    DIR *directory = opendir(folder);
    name[0] = '\0';
    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, "lo") != 0 && !name[0])
            snprintf(name, capacity, "%.60s", entry->d_name);
    if (directory) closedir(directory);
}

/* Whether this rank may read the next one's memory, as Open MPI does for long messages on one machine. 0, or an errno;
 * −1: another process has that number here, or there is no neighbour. */
static int read_neighbour(const struct doctor *d) {
    int next = -1;
    for (int i = 1; i < d->size && next < 0; i++) {
        const int r = (d->rank + i) % d->size;
        if (strcmp(d->hosts[r].name, d->hosts[d->rank].name) == 0) next = r;
    }
    if (next < 0) return 0;
    int64_t value = 0;
    const struct iovec here = {&value, sizeof value}, there = {(void *)(intptr_t)d->hosts[next].address, sizeof value};
    if (process_vm_readv((pid_t)d->hosts[next].process, &here, 1, &there, 1, 0) < 0) return errno;
    return value == readable ? 0 : -1;
}

enum status doctor_transport(struct doctor *d, struct finding *f) {
    char plugins[256], rdma[64], network[64];
    double slowest = 0;
    (void)prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0,
                0); /* as Open MPI does: what then forbids it is the container */
    TRY(comm_barrier(d->comm));
    const int code = read_neighbour(d);
    loaded_plugins(plugins, sizeof plugins);
    first_device("/sys/class/infiniband", rdma, sizeof rdma);
    first_device("/sys/class/net", network, sizeof network);
    for (int r = 0; r < d->size; r++) slowest = fmax(slowest, d->there_s[r]);
    if (d->hosts_seen > 1 && rdma[0] && plugins[0] && !strstr(plugins, "ucx") && !strstr(plugins, "ofi") &&
        !strstr(plugins, "openib")) {
        finding_set(f, LEVEL_WARN, "messages go by%s, although this host has %s", plugins, rdma);
        finding_fix(f, "an Open MPI with UCX: mpirun --mca pml ucx; ompi_info tells what it was built with");
    }
    if (d->hosts_seen > 1 && !network[0]) {
        finding_set(f, LEVEL_FAIL, "no network but the loopback, and ranks on %d hosts", d->hosts_seen);
        finding_fix(f, "start the container in the host's network (docker run --network host)");
    }
    if (code != 0) {
        finding_set(f, LEVEL_WARN,
                    "ranks of this host may not read one another's memory (%s): long messages are copied twice",
                    code > 0 ? strerror(code) : "their process numbers differ");
        finding_fix(f, "docker run --cap-add=SYS_PTRACE; or OMPI_MCA_btl_vader_single_copy_mechanism=none, which keeps "
                       "Open MPI from trying");
    }
    if (d->size == 1) {
        finding_set(f, LEVEL_OK, "one rank: nothing to send");
    } else {
        finding_set(f, LEVEL_OK, "messages go by%s; there and back to the slowest rank %.0f us",
                    plugins[0] ? plugins : " what MPI does not tell", 1e6 * slowest);
    }
    return comm_barrier(d->comm); /* a neighbour may still be reading */
}
