/* squint doctor: GPUs and NCCL, threads, memory, limits of a rank's machine. See doctor.h. */
#include "base/file.h"
#include "base/log.h"
#include "base/machine.h"
#include "commands/doctor.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

static const double MIB = 1024.0 * 1024.0;

/* --- GPUs ------------------------------------------------------------------------------------------------------- */

/* Must be asked before a message is set that is still wanted. */
static int gpus_here(void) {
    char **paths = NULL;
    size_t count = 0;
    if (file_glob("/dev/nvidia[0-9]*", &paths, &count) != STATUS_OK) error_clear();
    file_free_list(paths, count);
    return (int)count;
}

/* there: GPUs that this machine has all the same. */
static void no_gpu(const struct doctor *d, struct finding *f, enum status status, int there) {
    if (strcmp(d->device, "cuda") == 0) {
        finding_error(f, LEVEL_FAIL,
                      status == STATUS_USAGE
                          ? "build it where nvcc is on PATH (cmake --preset release), or take device: cpu"
                          : "nvidia-smi shows what the driver sees; or take device: cpu");
    } else if (there > 0 && status == STATUS_USAGE) {
        finding_set(f, LEVEL_WARN, "%d GPU%s here, and this program was built without CUDA: it runs on the CPU", there,
                    there > 1 ? "s" : "");
        finding_fix(f, "build it where nvcc is on PATH: cmake --preset release && cmake --build --preset release");
    } else if (there > 0) {
        finding_error(
            f, LEVEL_WARN,
            "nvidia-smi shows what the driver sees; driver and cuBLAS must be of the CUDA that squint was built with");
    } else {
        finding_set(f, LEVEL_OK, "none: it runs on the CPU");
    }
    error_clear();
}

enum status doctor_gpu(struct doctor *d, struct finding *f) {
    const struct ops_options options = {.threads = 1, .node_rank = comm_node_rank(d->comm)};
    const int there = gpus_here();
    int64_t with = 0;
    if (strcmp(d->device, "cpu") == 0) {
        finding_set(f, LEVEL_OK, "none wanted: device is cpu");
    } else {
        const enum status status = ops_open("cuda-f32", &options, &d->ops);
        if (status != STATUS_OK) {
            d->ops = NULL;
            no_gpu(d, f, status, there);
        }
    }
    with = d->ops != NULL;
    TRY(comm_all_reduce(d->comm, tensor_1d(&with, DTYPE_I64, 1), COMM_SUM));
    if (with > 0 && !d->ops) {
        finding_set(f, LEVEL_FAIL,
                    "no GPU for this rank, and one for %" PRId64 " others: a run needs the same device on all", with);
        finding_fix(f, "as many ranks a host as it has GPUs: mpirun --map-by ppr:GPUS:node");
    }
    if (d->ops) {
        struct device_memory memory;
        char available[16];
        d->ops->memory(d->ops, &memory);
        bytes_text(memory.available, available);
        finding_set(f, LEVEL_OK, "%s, %s free", d->ops->describe(d->ops), available);
    }
    return STATUS_OK;
}

/* A sum over NCCL, on the GPUs' memory. */
static enum status try_nccl(struct doctor *d, struct comm *gpu, float *sum) {
    void *block = NULL;
    enum status status = d->ops->allocate(d->ops, sizeof *sum, &block);
    if (status == STATUS_OK) status = d->ops->upload(d->ops, tensor_1d(block, DTYPE_F32, 1), sum);
    TRY_GOTO(done, comm_agree(d->comm, status));
    TRY_GOTO(done, comm_all_reduce(gpu, tensor_1d(block, DTYPE_F32, 1), COMM_SUM));
    status = d->ops->synchronise(d->ops);
    if (status == STATUS_OK) status = d->ops->download(d->ops, tensor_1d(block, DTYPE_F32, 1), sum);
done:
    d->ops->release(d->ops, block);
    return status;
}

enum status doctor_nccl(struct doctor *d, struct finding *f) {
    int64_t with = d->ops != NULL && d->ops->stream != NULL;
    struct comm *gpu = NULL;
    float sum = 1;
    TRY(comm_all_reduce(d->comm, tensor_1d(&with, DTYPE_I64, 1), COMM_SUM));
    if (with < d->size) {
        finding_set(f, LEVEL_OK, with ? "not used: not all ranks have a GPU" : "not needed: no rank has a GPU");
        return STATUS_OK;
    }
    enum status status = comm_open_nccl(d->comm, d->ops->stream(d->ops), &gpu);
    if (status == STATUS_NOT_FOUND) { /* a run falls back on MPI */
        finding_error(f, d->size > 1 ? LEVEL_WARN : LEVEL_OK, NULL);
        if (d->size > 1)
            finding_fix(f, "NCCL 2.19 or later on every machine (libnccl2); without it gradients go through the host");
        return STATUS_OK;
    }
    if (status == STATUS_OK) status = try_nccl(d, gpu, &sum);
    if (status == STATUS_OK && sum != (float)d->size)
        finding_set(f, LEVEL_FAIL, "%s adds up wrong: %d ranks gave 1 each, the sum is %g", comm_describe(gpu), d->size,
                    (double)sum);
    if (status == STATUS_OK) finding_set(f, LEVEL_OK, "%s on all ranks, and it adds up", comm_describe(gpu));
    if (status != STATUS_OK)
        finding_error(
            f, LEVEL_FAIL,
            "the same NCCL on every machine; NCCL_DEBUG=INFO tells more, NCCL_SOCKET_IFNAME names the network");
    if (comm_close(&gpu) != STATUS_OK) finding_error(f, LEVEL_FAIL, NULL);
    return STATUS_OK;
}

/* --- threads and memory ----------------------------------------------------------------------------------------- */

/* Cores that this machine, or the container, may use at once. */
static double cores_here(void) {
    double quota = 0, period = 0, cores = (double)sysconf(_SC_NPROCESSORS_ONLN);
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re"); /* "200000 100000", or "max 100000" */
    if (file && fscanf(file, "%lf %lf", &quota, &period) == 2 && period > 0 && quota / period < cores)
        cores = quota / period;
    if (file) fclose(file);
    return cores;
}

enum status doctor_threads(struct doctor *d, struct finding *f) {
    const int ranks = comm_node_size(d->comm), threads = machine_threads(ranks);
    const double cores = cores_here();
    cpu_set_t set;
    const int mine = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
    if (ranks * threads > cores + 0.5) {
        finding_set(f, LEVEL_WARN, "%d ranks of %d threads on %g cores: they take one another's time", ranks, threads,
                    cores);
        finding_fix(f, "fewer ranks a host, or OMP_NUM_THREADS=%d", cores / ranks >= 1 ? (int)(cores / ranks) : 1);
    } else if (!d->ops && ranks * threads < cores / 2) {
        finding_set(f, LEVEL_WARN, "%d rank%s of %d thread%s: %g of %g cores stay idle", ranks, ranks > 1 ? "s" : "",
                    threads, threads > 1 ? "s" : "", cores - ranks * threads, cores);
        finding_fix(f, mine < cores && !getenv("OMP_NUM_THREADS")
                           ? "mpirun --bind-to none: this rank is bound to few of them"
                           : "more ranks, or a larger OMP_NUM_THREADS");
    }
    finding_set(f, LEVEL_OK, "%d rank%s of %d thread%s on %g cores", ranks, ranks > 1 ? "s" : "", threads,
                threads > 1 ? "s" : "", cores);
    return STATUS_OK;
}

enum status doctor_memory(struct doctor *d, struct finding *f) {
    const int ranks = comm_node_size(d->comm);
    const double available = machine_memory_available(), each = available / ranks;
    char text[16];
    bytes_text(available, text);
    if (available > 0 && each < 512 * MIB) {
        finding_set(f, each < 64 * MIB ? LEVEL_FAIL : LEVEL_WARN, "%s free for %d rank%s", text, ranks,
                    ranks > 1 ? "s" : "");
        finding_fix(f, "fewer ranks a host, or a larger limit of the container or job; squint plan RECIPE tells what a "
                       "rank takes");
    }
    finding_set(f, LEVEL_OK, available > 0 ? "%s free for %d rank%s" : "%s: unknown, %d rank%s", text, ranks,
                ranks > 1 ? "s" : "");
    return STATUS_OK;
}

enum status doctor_shared_memory(struct doctor *d, struct finding *f) {
    const int ranks = comm_node_size(d->comm);
    const double wanted = (d->ops ? 128 : 16) * MIB * ranks; /* Open MPI's queues; NCCL's buffers besides */
    struct statvfs info;
    char available[16], least[16];
    const char *fix = "docker run --shm-size=1g; in Kubernetes an emptyDir with medium: Memory at /dev/shm "
                      "(launch/kubernetes-mpijob.yaml)";
    if (statvfs("/dev/shm", &info) != 0) {
        finding_set(f, ranks > 1 ? LEVEL_WARN : LEVEL_OK, "/dev/shm is not there");
        if (ranks > 1) finding_fix(f, "%s", fix);
        return STATUS_OK;
    }
    const double bytes = (double)info.f_bavail * (double)info.f_frsize;
    bytes_text(bytes, available);
    bytes_text(wanted, least);
    if (ranks > 1 && bytes < wanted) {
        finding_set(f, LEVEL_WARN, "/dev/shm: %s free, expected %s for %d ranks", available, least, ranks);
        finding_fix(f, "%s", fix);
    }
    finding_set(f, LEVEL_OK, "/dev/shm: %s free", available);
    return STATUS_OK;
}

/* --- limits ----------------------------------------------------------------------------------------------------- */

/* The soft limit; −1: none. */
static double limit_of(__rlimit_resource_t resource) {
    struct rlimit limit;
    return getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ? -1 : (double)limit.rlim_cur;
}

enum status doctor_locked_memory(struct doctor *d, struct finding *f) {
    (void)d;
    const double limit = limit_of(RLIMIT_MEMLOCK);
    const bool rdma = file_exists("/sys/class/infiniband");
    char text[16];
    bytes_text(limit, text);
    if (limit < 0) {
        finding_set(f, LEVEL_OK, "no limit");
    } else if (rdma) {
        finding_set(f, LEVEL_WARN,
                    "at most %s may be locked, and this host has an RDMA network, which locks what it sends", text);
        finding_fix(f, "ulimit -l unlimited (limits.conf: memlock; systemd and slurmd: LimitMEMLOCK=infinity; docker "
                       "run --ulimit memlock=-1)");
    } else {
        finding_set(f, LEVEL_OK, "at most %s, and no RDMA network that would need more", text);
    }
    return STATUS_OK;
}

enum status doctor_open_files(struct doctor *d, struct finding *f) {
    const double limit = limit_of(RLIMIT_NOFILE),
                 wanted = 256 + 4.0 * d->size; /* shards, checkpoints; a connection a rank */
    if (limit >= 0 && limit < wanted) {
        finding_set(f, limit < 64 ? LEVEL_FAIL : LEVEL_WARN, "at most %.0f, expected %.0f for %d rank%s", limit, wanted,
                    d->size, d->size > 1 ? "s" : "");
        finding_fix(f, "ulimit -n 4096 (limits.conf: nofile)");
    }
    finding_set(f, LEVEL_OK, limit < 0 ? "no limit" : "at most %.0f", limit);
    return STATUS_OK;
}

enum status doctor_stack(struct doctor *d, struct finding *f) {
    (void)d;
    const double limit = limit_of(RLIMIT_STACK);
    char text[16];
    bytes_text(limit, text);
    if (limit >= 0 && limit < MIB) {
        finding_set(f, LEVEL_WARN, "%s, expected 1 MiB or more", text);
        finding_fix(f, "ulimit -s 8192");
    }
    finding_set(f, LEVEL_OK, limit < 0 ? "no limit" : "%s", text);
    return STATUS_OK;
}

enum status doctor_core_files(struct doctor *d, struct finding *f) {
    (void)d;
    const double limit = limit_of(RLIMIT_CORE);
    char text[16];
    bytes_text(limit, text);
    if (limit == 0) {
        finding_set(f, LEVEL_OK, "none: a crash leaves nothing to look at (ulimit -c unlimited changes that)");
    } else {
        finding_set(f, LEVEL_OK, "up to %s a rank: a crash writes its memory to disk", limit < 0 ? "all of it" : text);
    }
    return STATUS_OK;
}
