/* CUDA's streams and events, and NCCL, for tests on the host: a stream is a thread that works off a queue, a collective
 * copies through memory that the ranks of a machine share. A rank that does not come leaves the others waiting on their
 * streams, as NCCL does, until they abort. Nothing here is quick. */
#include "standin.h"

#include <nccl.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

/* --- faults
 * ----------------------------------------------------------------------------------------------------------- */

static char failing[64], hanging[64];
static long fail_in;
static int fail_with, version_told = 22809, shared_gpu;
static atomic_long calls, alive;

void standin_fail(const char *function, long n, int result) {
    snprintf(failing, sizeof failing, "%s", function ? function : "");
    fail_in = n;
    fail_with = result;
}
void standin_hang(const char *function) {
    snprintf(hanging, sizeof hanging, "%s", function ? function : "");
}
long standin_calls(void) {
    return calls;
}
long standin_alive(void) {
    return alive;
}
void standin_share_gpu(int share) {
    shared_gpu = share;
}
void standin_set_version(int version) {
    version_told = version;
}
static int fault(const char *function) {
    calls++;
    return strcmp(failing, function) == 0 && --fail_in == 0 ? fail_with : 0;
}
#define MAY_FAIL(type)                                                                                                 \
    do {                                                                                                               \
        const int fault_ = fault(__func__);                                                                            \
        if (fault_) return (type)fault_;                                                                               \
    } while (0)
static bool hangs(const char *function) {
    return strcmp(hanging, function) == 0;
}

/* --- streams and events
 * ----------------------------------------------------------------------------------------------- */

struct standin_event {
    atomic_long recorded, passed;
};

struct work {
    void (*run)(struct work *work);
    struct standin_event *event;
    long number; /* of the event's recordings */
    struct collective *collective;
    struct work *next;
};

struct standin_stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct work *first, *last;
    atomic_bool ends;
};

static void *work_off(void *user) {
    struct standin_stream *s = user;
    for (;;) {
        pthread_mutex_lock(&s->lock);
        while (!s->first && !s->ends) pthread_cond_wait(&s->more, &s->lock);
        struct work *work = s->first;
        if (work) s->first = work->next;
        if (!s->first) s->last = NULL;
        pthread_mutex_unlock(&s->lock);
        if (!work) return NULL;
        work->run(work);
        free(work);
    }
}

static void push(struct standin_stream *s, struct work work) {
    struct work *kept = malloc(sizeof *kept);
    *kept = work;
    kept->next = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->last) s->last->next = kept;
    if (!s->first) s->first = kept;
    s->last = kept;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory"
           : error == cudaErrorNotReady       ? "not ready"
                                              : "invalid value";
}

cudaError_t cudaGetDevice(int *device) {
    MAY_FAIL(cudaError_t);
    const char *rank = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    *device = shared_gpu || !rank ? 0 : atoi(rank);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int capacity, int device) {
    MAY_FAIL(cudaError_t);
    snprintf(text, (size_t)capacity, "0000:%02x:00.0", 0x17 + device);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    (void)flags;
    MAY_FAIL(cudaError_t);
    struct standin_stream *s = calloc(1, sizeof *s);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    pthread_create(&s->thread, NULL, work_off, s);
    alive++;
    *stream = s;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
    pthread_mutex_lock(&s->lock);
    s->ends = true;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->more);
    free(s);
    alive--;
    return cudaSuccess;
}

static void wait_event(struct work *work) {
    while (atomic_load(&work->event->passed) < work->number) nap();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)flags;
    MAY_FAIL(cudaError_t);
    const long number = atomic_load(&event->recorded);
    if (atomic_load(&event->passed) >= number) return cudaSuccess;
    push(stream, (struct work){.run = wait_event, .event = event, .number = number});
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    (void)flags;
    MAY_FAIL(cudaError_t);
    *event = calloc(1, sizeof **event);
    alive++;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    while (atomic_load(&event->passed) < atomic_load(&event->recorded)) nap();
    free(event);
    alive--;
    return cudaSuccess;
}

static void pass_event(struct work *work) {
    atomic_store(&work->event->passed, work->number);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    MAY_FAIL(cudaError_t);
    push(stream, (struct work){.run = pass_event, .event = event, .number = atomic_fetch_add(&event->recorded, 1) + 1});
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    MAY_FAIL(cudaError_t);
    return atomic_load(&event->passed) == atomic_load(&event->recorded) ? cudaSuccess : cudaErrorNotReady;
}

/* --- the ranks' shared memory
 * ------------------------------------------------------------------------------------------ */

enum { RANKS_MAX = 8, SLOT = 1 << 16, BOX = 1 << 12 };

struct box {
    atomic_size_t filled; /* bytes; 0: empty */
    char bytes[BOX];
};
struct shared {
    atomic_int joined, arrived;
    atomic_long generation;
    struct box boxes[RANKS_MAX][RANKS_MAX]; /* [from][to] */
    char slots[RANKS_MAX][SLOT];
};

struct standin_comm {
    struct shared *shared;
    int rank, size;
    atomic_bool aborted, finalizing;
    atomic_int state; /* ncclResult_t that was injected */
    atomic_int queued;
};

/* false: aborted. */
static bool meet(struct standin_comm *c) {
    struct shared *s = c->shared;
    const long generation = atomic_load(&s->generation);
    if (atomic_fetch_add(&s->arrived, 1) + 1 == c->size) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->generation, 1);
        return true;
    }
    while (atomic_load(&s->generation) == generation) {
        if (c->aborted) return false;
        nap();
    }
    return true;
}

/* --- collectives
 * ------------------------------------------------------------------------------------------------------- */

struct collective {
    enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, PAIR } sort;
    struct standin_comm *comm;
    const char *send;
    char *receive;
    size_t count, width; /* elements and bytes of one; of a pair: bytes to send */
    size_t receive_bytes;
    ncclDataType_t type;
    ncclRedOp_t reduce;
    int root, to, from;
};

static size_t width_of(ncclDataType_t type) {
    return type == ncclUint8 ? 1 : type == ncclBfloat16 ? 2 : type == ncclFloat32 || type == ncclInt32 ? 4 : 8;
}

#define REDUCE(T)                                                                                                      \
    do {                                                                                                               \
        const T *x = (const void *)from;                                                                               \
        T *y = (void *)to;                                                                                             \
        for (size_t i = 0; i < count; i++) {                                                                           \
            const bool takes = reduce == ncclMax ? x[i] > y[i] : x[i] < y[i];                                          \
            y[i] = reduce == ncclSum ? (T)(y[i] + x[i]) : takes || x[i] != x[i] ? x[i] : y[i];                         \
        }                                                                                                              \
    } while (0)

static float widen(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* Sums of bf16 are rounded to nearest. */
static void combine_bf16(ncclRedOp_t reduce, char *to, const char *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint16_t x, y;
        uint32_t bits;
        memcpy(&x, from + 2 * i, 2);
        memcpy(&y, to + 2 * i, 2);
        const float a = widen(x), b = widen(y), sum = a + b;
        memcpy(&bits, &sum, sizeof bits);
        if (reduce == ncclSum) {
            y = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        } else if (reduce == ncclMax ? a > b : a < b) {
            y = x;
        }
        memcpy(to + 2 * i, &y, 2);
    }
}

static void combine(ncclDataType_t type, ncclRedOp_t reduce, char *to, const char *from, size_t count) {
    if (type == ncclFloat32) REDUCE(float);
    if (type == ncclFloat64) REDUCE(double);
    if (type == ncclInt32) REDUCE(int32_t);
    if (type == ncclInt64) REDUCE(int64_t);
    if (type == ncclBfloat16) combine_bf16(reduce, to, from, count);
}

/* Everybody's `bytes` at `own` lie in the slots between two meetings; `to` gets them reduced, all side by side (step
 * bytes apart), or one's. */
static bool exchange(const struct collective *o, const char *own, size_t bytes, char *to, size_t step, bool wanted) {
    struct standin_comm *c = o->comm;
    if (own) memcpy(c->shared->slots[c->rank], own, bytes);
    if (!meet(c)) return false;
    if (o->sort == ALL_GATHER) {
        for (int r = 0; r < c->size; r++) memcpy(to + (size_t)r * step, c->shared->slots[r], bytes);
    } else if (o->sort == BROADCAST) {
        memcpy(to, c->shared->slots[o->root], bytes);
    } else if (wanted) {
        char sum[SLOT] __attribute__((aligned(8)));
        memcpy(sum, c->shared->slots[0], bytes);
        for (int r = 1; r < c->size; r++) combine(o->type, o->reduce, sum, c->shared->slots[r], bytes / o->width);
        memcpy(to, sum, bytes);
    }
    return meet(c);
}

static void run_pair(const struct collective *o) {
    struct standin_comm *c = o->comm;
    size_t sent = o->to < 0 ? o->count : 0, received = o->from < 0 ? o->receive_bytes : 0;
    while ((sent < o->count || received < o->receive_bytes) && !c->aborted) {
        struct box *out = o->to < 0 ? NULL : &c->shared->boxes[c->rank][o->to];
        struct box *in = o->from < 0 ? NULL : &c->shared->boxes[o->from][c->rank];
        if (out && sent < o->count && atomic_load(&out->filled) == 0) {
            const size_t part = o->count - sent < BOX ? o->count - sent : BOX;
            memcpy(out->bytes, o->send + sent, part);
            sent += part;
            atomic_store(&out->filled, part);
        }
        const size_t filled = in && received < o->receive_bytes ? atomic_load(&in->filled) : 0;
        if (filled) {
            memcpy(o->receive + received, in->bytes, filled);
            received += filled;
            atomic_store(&in->filled, 0);
        }
    }
}

static void run_collective(struct work *work) {
    struct collective *o = work->collective;
    struct standin_comm *c = o->comm;
    const size_t bytes = o->count * o->width;
    while (hangs("run") && !c->aborted) nap();
    if (o->sort == PAIR && !c->aborted) run_pair(o);
    const int parts = o->sort == REDUCE_SCATTER ? c->size : 1;
    for (int p = 0; p < parts && o->sort != PAIR; p++)
        for (size_t at = 0; at < bytes && !c->aborted; at += SLOT) {
            const size_t piece = bytes - at < SLOT ? bytes - at : SLOT;
            const bool mine = o->sort != BROADCAST || c->rank == o->root;
            if (!exchange(o, mine ? o->send + (size_t)p * bytes + at : NULL, piece, o->receive + at, bytes,
                          o->sort != REDUCE_SCATTER || p == c->rank))
                break;
        }
    atomic_fetch_sub(&c->queued, 1);
    free(o);
}

/* Sends and receives of a group become one piece of work. */
static bool grouped;
static struct collective group;
static cudaStream_t group_stream;

static bool dry_run;
static size_t asked_count, asked_width;

void standin_dry(int dry) {
    dry_run = dry != 0;
}

void standin_asked(size_t *count, size_t *width) {
    *count = asked_count;
    *width = asked_width;
}

static ncclResult_t enqueue(struct collective o, cudaStream_t stream) {
    asked_count = o.count;
    asked_width = o.width;
    if (dry_run) return ncclSuccess;
    struct collective *kept = malloc(sizeof *kept);
    *kept = o;
    atomic_fetch_add(&o.comm->queued, 1);
    push(stream, (struct work){.run = run_collective, .collective = kept});
    return ncclSuccess;
}

/* --- NCCL
 * --------------------------------------------------------------------------------------------------------------- */

ncclResult_t ncclGetVersion(int *version) {
    MAY_FAIL(ncclResult_t);
    *version = version_told;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int number;
    MAY_FAIL(ncclResult_t);
    snprintf(id->internal, sizeof id->internal, "/squint-standin-%d-%d", (int)getpid(), number++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
    MAY_FAIL(ncclResult_t);
    if (size > RANKS_MAX || config->blocking) return ncclInvalidArgument;
    const int file = shm_open(id.internal, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof(struct shared)) != 0) return ncclSystemError;
    struct standin_comm *c = calloc(1, sizeof *c);
    c->shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    c->rank = rank;
    c->size = size;
    /* The last one to come takes the name away: nothing stays behind. */
    if (atomic_fetch_add(&c->shared->joined, 1) + 1 == size) shm_unlink(id.internal);
    alive++;
    *comm = c;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) {
    MAY_FAIL(ncclResult_t);
    const int injected = fault("async");
    if (injected) atomic_store(&c->state, injected);
    *state = (ncclResult_t)atomic_load(&c->state);
    if (*state != ncclSuccess) return ncclSuccess;
    const bool joining = atomic_load(&c->shared->joined) < c->size || hangs("ncclCommInitRankConfig");
    const bool ending = c->finalizing && (atomic_load(&c->queued) > 0 || hangs("ncclCommFinalize"));
    *state = joining || ending ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c) {
    MAY_FAIL(ncclResult_t);
    c->finalizing = true;
    return ncclInProgress;
}

static ncclResult_t end(ncclComm_t c) {
    c->aborted = true;
    while (atomic_load(&c->queued) > 0) nap();
    munmap(c->shared, sizeof *c->shared);
    free(c);
    alive--;
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) {
    MAY_FAIL(ncclResult_t);
    return end(c);
}
ncclResult_t ncclCommAbort(ncclComm_t c) {
    MAY_FAIL(ncclResult_t);
    while (hangs("ncclCommAbort")) nap();
    return end(c);
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const names[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "in progress"};
    return names[result];
}
const char *ncclGetLastError(ncclComm_t comm) {
    return comm ? "the stand-in was told so" : "";
}

ncclResult_t ncclGroupStart(void) {
    MAY_FAIL(ncclResult_t);
    grouped = true;
    group = (struct collective){.sort = PAIR, .to = -1, .from = -1};
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
    if (!grouped) return ncclInvalidUsage;
    grouped = false;
    MAY_FAIL(ncclResult_t);
    return group.comm ? enqueue(group, group_stream) : ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t reduce,
                           ncclComm_t comm, cudaStream_t stream) {
    MAY_FAIL(ncclResult_t);
    return enqueue(
        (struct collective){ALL_REDUCE, comm, send, receive, count, width_of(type), 0, type, reduce, 0, -1, -1},
        stream);
}
ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t reduce,
                               ncclComm_t comm, cudaStream_t stream) {
    MAY_FAIL(ncclResult_t);
    return enqueue(
        (struct collective){REDUCE_SCATTER, comm, send, receive, count, width_of(type), 0, type, reduce, 0, -1, -1},
        stream);
}
ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    MAY_FAIL(ncclResult_t);
    return enqueue(
        (struct collective){ALL_GATHER, comm, send, receive, count, width_of(type), 0, type, ncclSum, 0, -1, -1},
        stream);
}
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    MAY_FAIL(ncclResult_t);
    return enqueue(
        (struct collective){BROADCAST, comm, send, receive, count, width_of(type), 0, type, ncclSum, root, -1, -1},
        stream);
}
ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    MAY_FAIL(ncclResult_t);
    if (!grouped) return ncclInvalidUsage;
    group.comm = comm;
    group.send = send;
    group.count = count * width_of(type);
    group.to = peer;
    group_stream = stream;
    return ncclSuccess;
}
ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    MAY_FAIL(ncclResult_t);
    if (!grouped) return ncclInvalidUsage;
    group.comm = comm;
    group.receive = receive;
    group.receive_bytes = count * width_of(type);
    group.from = peer;
    group_stream = stream;
    return ncclSuccess;
}
