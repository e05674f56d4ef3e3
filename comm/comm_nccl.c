/* Collectives over NCCL, for memory of this rank's GPU: the only file that knows NCCL. The library is looked for when
 * it is needed, so that the program runs on machines without one. The communicator is a non-blocking one (NCCL's user
 * guide, "Fault tolerance"): no call waits for another rank, so every wait is ours and has a deadline. Who else is
 * there, versions and the identity of the communicator travel over the host's communicator, which also stays the way to
 * agree after a fault. */
#include "comm/comm_internal.h"

#include "base/log.h"
#include "base/memory.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SHARING = 23000 /* 2.30: the first that lets ranks share a GPU, when NCCL_MULTI_RANK_GPU_ENABLE says so */ };
enum { OLDEST = 21900 /* 2.19: the first with a non-blocking communicator that can be finalized */ };

/* SYMBOL(field, name) for every function. */
#define NCCL_FUNCTIONS(SYMBOL)                                                                                         \
    SYMBOL(version, ncclGetVersion)                                                                                    \
    SYMBOL(unique_id, ncclGetUniqueId)                                                                                 \
    SYMBOL(init, ncclCommInitRankConfig)                                                                               \
    SYMBOL(async_error, ncclCommGetAsyncError)                                                                         \
    SYMBOL(finalize, ncclCommFinalize)                                                                                 \
    SYMBOL(destroy, ncclCommDestroy)                                                                                   \
    SYMBOL(abort, ncclCommAbort)                                                                                       \
    SYMBOL(error_string, ncclGetErrorString)                                                                           \
    SYMBOL(last_error, ncclGetLastError)                                                                               \
    SYMBOL(group_start, ncclGroupStart)                                                                                \
    SYMBOL(group_end, ncclGroupEnd)                                                                                    \
    SYMBOL(all_reduce, ncclAllReduce)                                                                                  \
    SYMBOL(reduce_scatter, ncclReduceScatter)                                                                          \
    SYMBOL(all_gather, ncclAllGather)                                                                                  \
    SYMBOL(broadcast, ncclBroadcast)                                                                                   \
    SYMBOL(send, ncclSend)                                                                                             \
    SYMBOL(receive, ncclRecv)

struct nccl_library {
#define FIELD(field, name) __typeof__(&name) field;
    NCCL_FUNCTIONS(FIELD)
#undef FIELD
};

struct nccl {
    const struct nccl_library *library;
    ncclComm_t comm;
    cudaStream_t stream, compute; /* collectives run on the first; the second is the table's */
    cudaEvent_t ready;            /* what the table had started before a collective */
    int version;
};

/* Of an operation, kept from use to use: its result is there. */
struct nccl_transfer {
    cudaEvent_t done;
};

enum phase { PHASE_TAKEN /* NCCL may not have it on the stream yet */, PHASE_RUNNING, PHASE_DONE };

/* --- the library ------------------------------------------------------------------------------------------------ */

static enum status load(const struct nccl_library **out) {
    static struct nccl_library library;
    static bool loaded;
    *out = &library;
    if (loaded) return STATUS_OK;
    void *handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return error_set(STATUS_NOT_FOUND,
                         "NCCL: libnccl.so.2 is not found (%s); install NCCL, or name its folder in LD_LIBRARY_PATH",
                         dlerror());
#define FIND(field, name)                                                                                              \
    library.field = (__typeof__(&name))dlsym(handle, #name);                                                           \
    if (!library.field) return error_set(STATUS_NOT_FOUND, "NCCL: the libnccl.so.2 that was found has no " #name);
    NCCL_FUNCTIONS(FIND)
#undef FIND
    loaded = true;
    return STATUS_OK;
}

static enum status nccl_failure(const struct comm *comm, const char *name, ncclResult_t result) {
    const struct nccl *nccl = comm->state;
    const char *detail = nccl->library->last_error(nccl->comm);
    char where[96];
    return error_set(STATUS_COMM, "rank %d: %s: NCCL: %s%s%s", comm_told(comm, comm->rank),
                     comm_place(comm, name, where), nccl->library->error_string(result),
                     detail && detail[0] ? ": " : "", detail ? detail : "");
}

static enum status cuda_failure(const struct comm *comm, const char *name, cudaError_t error) {
    return error_set(STATUS_FAILED, "rank %d: %s: CUDA: %s", comm_told(comm, comm->rank), name,
                     cudaGetErrorString(error));
}

#define TRY_CUDA(comm, name, call)                                                                                     \
    do {                                                                                                               \
        const cudaError_t try_error_ = (call);                                                                         \
        if (try_error_ != cudaSuccess) return cuda_failure(comm, name, try_error_);                                    \
    } while (0)
/* In progress is no failure: `settle` waits for it. */
#define TRY_NCCL(comm, name, call)                                                                                     \
    do {                                                                                                               \
        const ncclResult_t try_result_ = (call);                                                                       \
        if (try_result_ != ncclSuccess && try_result_ != ncclInProgress) return nccl_failure(comm, name, try_result_); \
    } while (0)

/* --- waiting ---------------------------------------------------------------------------------------------------- */

/* *busy: NCCL is not through with its last call. */
static enum status look(const struct comm *comm, const char *name, bool *busy) {
    const struct nccl *nccl = comm->state;
    ncclResult_t state = ncclSuccess;
    TRY_NCCL(comm, name, nccl->library->async_error(nccl->comm, &state));
    *busy = state == ncclInProgress;
    return state == ncclSuccess || state == ncclInProgress ? STATUS_OK : nccl_failure(comm, name, state);
}

/* Until NCCL is through with its last call: before that it takes no other. */
static enum status settle(const struct comm *comm, const char *name) {
    const double begun_s = time_now_s();
    for (bool busy = true;;) {
        TRY(look(comm, name, &busy));
        if (!busy) return STATUS_OK;
        if (time_now_s() - begun_s > comm->deadline_s) {
            char where[96];
            return error_set(STATUS_COMM,
                             "rank %d: %s: waited %g s for the other ranks: NCCL does not come to an end of its call",
                             comm_told(comm, comm->rank), comm_place(comm, name, where), comm->deadline_s);
        }
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

/* --- collectives ------------------------------------------------------------------------------------------------ */

static ncclDataType_t type_of(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F64:
        return ncclFloat64;
    case DTYPE_F32:
        return ncclFloat32;
    case DTYPE_BF16:
        return ncclBfloat16;
    case DTYPE_I64:
        return ncclInt64;
    case DTYPE_I32:
        return ncclInt32;
    default:
        return ncclUint8;
    }
}

/* What moves bytes alone counts them, so that every dtype will do. */
static ncclResult_t call(const struct nccl *nccl, const struct comm_operation *o) {
    const struct nccl_library *library = nccl->library;
    const ncclRedOp_t reduce = o->reduce == COMM_SUM ? ncclSum : o->reduce == COMM_MAX ? ncclMax : ncclMin;
    const size_t elements = (size_t)tensor_count(o->output), bytes = tensor_bytes(o->output);
    switch (o->collective) {
    case COMM_ALL_REDUCE:
        return library->all_reduce(o->output.data, o->output.data, elements, type_of(o->output.dtype), reduce,
                                   nccl->comm, nccl->stream);
    case COMM_REDUCE_SCATTER:
        return library->reduce_scatter(o->input.data, o->output.data, elements, type_of(o->output.dtype), reduce,
                                       nccl->comm, nccl->stream);
    case COMM_ALL_GATHER:
        return library->all_gather(o->input.data, o->output.data, tensor_bytes(o->input), ncclUint8, nccl->comm,
                                   nccl->stream);
    case COMM_BROADCAST:
        return library->broadcast(o->output.data, o->output.data, bytes, ncclUint8, o->from, nccl->comm, nccl->stream);
    case COMM_SEND_RECEIVE: {
        ncclResult_t first = library->group_start();
        if (first != ncclSuccess) return first;
        if (o->to >= 0)
            first = library->send(o->input.data, tensor_bytes(o->input), ncclUint8, o->to, nccl->comm, nccl->stream);
        if ((first == ncclSuccess || first == ncclInProgress) && o->from >= 0)
            first = library->receive(o->output.data, bytes, ncclUint8, o->from, nccl->comm, nccl->stream);
        const ncclResult_t last = library->group_end();
        return first == ncclSuccess || first == ncclInProgress ? last : first;
    }
    case COMM_BARRIER:
        break;
    }
    return ncclInvalidUsage; /* comm.c sends barriers over the host */
}

static enum status nccl_start(struct comm *comm, struct comm_operation *operation) {
    struct nccl *nccl = comm->state;
    struct nccl_transfer *transfer = operation->messages;
    if (!transfer) {
        TRY(memory_new(1, sizeof *transfer, "a transfer", &transfer));
        operation->messages = transfer;
        TRY_CUDA(comm, operation->name, cudaEventCreateWithFlags(&transfer->done, cudaEventDisableTiming));
    }
    TRY(settle(comm, operation->name));
    TRY_CUDA(comm, operation->name, cudaEventRecord(nccl->ready, nccl->compute));
    TRY_CUDA(comm, operation->name, cudaStreamWaitEvent(nccl->stream, nccl->ready, 0));
    TRY_NCCL(comm, operation->name, call(nccl, operation));
    operation->phase = PHASE_TAKEN;
    /* Most often NCCL has it on the stream by now, and its end can be marked before what follows it there. */
    bool busy = false;
    TRY(look(comm, operation->name, &busy));
    if (busy) return STATUS_OK;
    TRY_CUDA(comm, operation->name, cudaEventRecord(transfer->done, nccl->stream));
    operation->phase = PHASE_RUNNING;
    return STATUS_OK;
}

static enum status nccl_poll(struct comm *comm, struct comm_operation *operation, bool *done, bool *moved) {
    struct nccl *nccl = comm->state;
    struct nccl_transfer *transfer = operation->messages;
    bool busy = false;
    *done = *moved = false;
    if (operation->phase != PHASE_DONE) TRY(look(comm, operation->name, &busy));
    if (operation->phase == PHASE_TAKEN && !busy) {
        TRY_CUDA(comm, operation->name, cudaEventRecord(transfer->done, nccl->stream));
        operation->phase = PHASE_RUNNING;
        *moved = true;
    }
    if (operation->phase == PHASE_RUNNING) {
        const cudaError_t state = cudaEventQuery(transfer->done);
        if (state == cudaErrorNotReady) return STATUS_OK;
        TRY_CUDA(comm, operation->name, state);
        TRY_CUDA(comm, operation->name, cudaStreamWaitEvent(nccl->compute, transfer->done, 0));
        operation->phase = PHASE_DONE;
    }
    *done = operation->phase == PHASE_DONE;
    *moved = *moved || *done;
    return STATUS_OK;
}

static void nccl_late(const struct comm *comm, const struct comm_operation *operation, char *text, size_t capacity) {
    (void)comm;
    (void)operation;
    snprintf(text, capacity, "the other ranks (NCCL does not say which)");
}

static void nccl_free_operation(struct comm_operation *operation) {
    struct nccl_transfer *transfer = operation->messages;
    if (transfer && transfer->done) cudaEventDestroy(transfer->done);
    free(transfer);
}

/* --- ending ----------------------------------------------------------------------------------------------------- */

/* ncclCommAbort may wait for ever itself: it does so in a thread that nobody waits for longer than ABORT_S. */
enum { ABORT_S = 3 };
struct aborting {
    const struct nccl_library *calls;
    ncclComm_t comm;
    atomic_bool done;
};

static void *run_abort(void *user) {
    struct aborting *aborting = user;
    (void)aborting->calls->abort(aborting->comm);
    atomic_store(&aborting->done, true);
    return NULL;
}

/* false: it hangs, and so would whatever frees what the GPU still uses. */
static bool abort_in_time(const struct nccl *nccl) {
    static struct aborting aborting; /* outlives a thread that hangs */
    pthread_t thread;
    if (!nccl->comm) return true;
    aborting.calls = nccl->library;
    aborting.comm = nccl->comm;
    atomic_store(&aborting.done, false);
    if (pthread_create(&thread, NULL, run_abort, &aborting) != 0) return false;
    const double begun_s = time_now_s();
    while (!atomic_load(&aborting.done) && time_now_s() - begun_s < ABORT_S)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    if (!atomic_load(&aborting.done)) {
        pthread_detach(thread);
        return false;
    }
    pthread_join(thread, NULL);
    return true;
}

static enum status end_communicator(struct comm *comm) {
    struct nccl *nccl = comm->state;
    TRY_NCCL(comm, "ending NCCL", nccl->library->finalize(nccl->comm));
    TRY(settle(comm, "ending NCCL"));
    TRY_NCCL(comm, "ending NCCL", nccl->library->destroy(nccl->comm));
    nccl->comm = NULL;
    return STATUS_OK;
}

/* What hangs keeps its stream: the process is about to end. */
static struct nccl *volatile left_behind;

static enum status nccl_close(struct comm *comm, bool faulted) {
    struct nccl *nccl = comm->state;
    enum status status = STATUS_OK;
    if (nccl->comm && !faulted) status = end_communicator(comm);
    if (nccl->comm && !abort_in_time(nccl)) {
        left_behind = nccl;
        return status;
    }
    if (nccl->stream) cudaStreamDestroy(nccl->stream);
    if (nccl->ready) cudaEventDestroy(nccl->ready);
    free(nccl);
    comm->state = NULL;
    return status;
}

static void __attribute__((noreturn)) nccl_abort(struct comm *comm, int exit_code) {
    abort_in_time(comm->state);
    comm_abort(comm->host, exit_code);
}

static const struct comm_backend nccl_backend = {
    .goes_alone = true,
    .start = nccl_start,
    .poll = nccl_poll,
    .late = nccl_late,
    .free_operation = nccl_free_operation,
    .close = nccl_close,
    .abort = nccl_abort,
};

/* --- opening ---------------------------------------------------------------------------------------------------- */

/* Every rank has NCCL, new enough, and the same. */
static enum status agree_on_version(struct comm *comm, struct comm *host) {
    struct nccl *nccl = comm->state;
    int version = 0;
    enum status status = load(&nccl->library);
    if (status == STATUS_OK && nccl->library->version(&version) != ncclSuccess)
        status = error_set(STATUS_NOT_FOUND, "NCCL: the libnccl.so.2 that was found does not tell its version");
    if (status == STATUS_OK && version < OLDEST)
        status = error_set(STATUS_NOT_FOUND, "NCCL: expected version 2.19 or later, found %d.%d.%d", version / 10000,
                           version / 100 % 100, version % 100);
    TRY(comm_agree(host, status));
    int32_t least = version, most = version;
    TRY(comm_all_reduce(host, tensor_1d(&least, DTYPE_I32, 1), COMM_MIN));
    TRY(comm_all_reduce(host, tensor_1d(&most, DTYPE_I32, 1), COMM_MAX));
    if (least != most)
        return error_set(STATUS_FAILED, "NCCL: expected one version on all ranks, found %d.%d.%d and %d.%d.%d",
                         least / 10000, least / 100 % 100, least % 100, most / 10000, most / 100 % 100, most % 100);
    nccl->version = version;
    snprintf(comm->description, sizeof comm->description, "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    return STATUS_OK;
}

/* Where a rank computes: equal ones share a GPU. */
struct place {
    char host[64], gpu[32];
};

static enum status find_place(const struct comm *comm, struct place *place) {
    int device = 0;
    memset(place, 0, sizeof *place);
    (void)gethostname(place->host, sizeof place->host - 1);
    TRY_CUDA(comm, "starting NCCL", cudaGetDevice(&device));
    TRY_CUDA(comm, "starting NCCL", cudaDeviceGetPCIBusId(place->gpu, sizeof place->gpu, device));
    return STATUS_OK;
}

static enum status refuse_sharing(const struct comm *comm, const struct place *place, int first, int second,
                                  int version) {
    const char *enabled = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    if (version >= SHARING && enabled && strcmp(enabled, "1") == 0) return STATUS_OK;
    return error_set(
        STATUS_USAGE,
        "NCCL: ranks %d and %d share GPU %s of %s: expected one rank a GPU, found %d ranks on that machine; start "
        "fewer (mpirun --map-by ppr:GPUS:node), or, with NCCL 2.30 or later (here is %s), set "
        "NCCL_MULTI_RANK_GPU_ENABLE=1",
        first, second, place->gpu, place->host, comm->node_size, comm->description + sizeof "NCCL");
}

/* No two ranks on one GPU, unless NCCL can and is to. */
static enum status check_places(struct comm *comm, struct comm *host) {
    const struct nccl *nccl = comm->state;
    struct place own, *all = NULL;
    enum status status = find_place(comm, &own);
    KEEP_FIRST(status, memory_new((size_t)comm->size, sizeof *all, "places", &all));
    TRY_GOTO(done, comm_agree(host, status));
    TRY_GOTO(done, comm_all_gather(host, tensor_1d(&own, DTYPE_U8, sizeof own),
                                   tensor_1d(all, DTYPE_U8, comm->size * (int64_t)sizeof own)));
    for (int r = 0; r < comm->size; r++) comm->gpu_ranks += memcmp(&all[r], &own, sizeof own) == 0;
    for (int second = 1; second < comm->size && status == STATUS_OK; second++)
        for (int first = 0; first < second && status == STATUS_OK; first++)
            if (memcmp(&all[first], &all[second], sizeof own) == 0)
                status = refuse_sharing(comm, &all[first], first, second, nccl->version);
done:
    free(all);
    return status;
}

static enum status make_streams(struct comm *comm) {
    struct nccl *nccl = comm->state;
    TRY_CUDA(comm, "starting NCCL", cudaStreamCreateWithFlags(&nccl->stream, cudaStreamNonBlocking));
    TRY_CUDA(comm, "starting NCCL", cudaEventCreateWithFlags(&nccl->ready, cudaEventDisableTiming));
    return STATUS_OK;
}

static enum status join(struct comm *comm, struct comm *host) {
    struct nccl *nccl = comm->state;
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    enum status status = make_streams(comm);
    memset(&id, 0, sizeof id);
    config.blocking = 0;
    if (status == STATUS_OK && comm->rank == 0) {
        const ncclResult_t result = nccl->library->unique_id(&id);
        if (result != ncclSuccess) status = nccl_failure(comm, "starting NCCL", result);
    }
    TRY(comm_agree(host, status));
    TRY(comm_broadcast(host, tensor_1d(&id, DTYPE_U8, sizeof id), 0));
    const ncclResult_t result = nccl->library->init(&nccl->comm, comm->size, id, comm->rank, &config);
    if (result != ncclSuccess && result != ncclInProgress) {
        status = nccl_failure(comm, "starting NCCL", result);
    } else {
        status = settle(comm, "starting NCCL");
    }
    return comm_agree(host, status);
}

enum status comm_open_nccl(struct comm *host, void *stream, struct comm **out) {
    struct comm *comm = NULL;
    struct nccl *nccl = NULL;
    enum status status = STATUS_OK;
    *out = NULL;
    TRY_GOTO(done, comm_new(&(struct comm_options){.deadline_s = host->deadline_s}, &comm));
    TRY_GOTO(done, memory_new(1, sizeof *nccl, "a communicator", &nccl));
done:
    status = comm_agree(host, status);
    if (status == STATUS_OK) {
        nccl->compute = stream;
        comm->state = nccl;
        comm->host = host;
        comm->rank = host->rank;
        comm->size = host->size;
        comm->node_rank = host->node_rank;
        comm->node_size = host->node_size;
        comm->deadline_s = host->deadline_s;
        comm->backend = &nccl_backend;
        KEEP_FIRST(status, agree_on_version(comm, host));
        if (status == STATUS_OK) status = check_places(comm, host);
        if (status == STATUS_OK) status = join(comm, host);
        if (status != STATUS_OK) nccl_close(comm, true);
    } else {
        free(nccl);
    }
    if (status != STATUS_OK) {
        free(comm);
        return status;
    }
    *out = comm;
    return STATUS_OK;
}
