/* Collectives over MPI, for host memory. Every one is made of non-blocking messages between pairs of ranks, so that a
 * late rank can be named, a deadline can end the wait, and sums are taken in rank order whatever the machines' layout.
 * A reduction has two phases: each rank receives its part from all and adds it up, then gives it to all; per rank this
 * moves 2·(size−1)/size of the data, like a ring. */
#include "comm/comm_internal.h"

#include "base/memory.h"

#include <math.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

/* Open MPI's plug-ins keep what they allocate until they are unloaded at the end, when the leak checker of a sanitized
 * build can no longer name them, and so not pass over them: there, nothing is unloaded. */
#if defined(__SANITIZE_ADDRESS__)
#define SQUINT_LEAK_CHECKER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SQUINT_LEAK_CHECKER 1
#endif
#endif
#ifdef SQUINT_LEAK_CHECKER
int dlclose(void *handle);
int dlclose(void *handle) {
    (void)handle;
    return 0;
}
#endif

enum { HOST_BYTES = 64 };

struct mpi {
    MPI_Comm world;
    uint32_t tag_count; /* tags go round below this */
    uint32_t next_tag;
    char (*hosts)[HOST_BYTES]; /* of every rank; NULL: all are on one machine */
    bool part;                 /* of a larger one, which ends MPI */
};

/* The transfers of an operation: requests[i] with rank peers[i]. */
struct transfers {
    MPI_Request *requests;
    int *peers; /* −1−rank marks a send */
    int *bytes;
    int *completed; /* MPI_Testsome's output, as are the statuses */
    MPI_Status *statuses;
};

static enum status mpi_failure(const struct comm *comm, const char *name, int code) {
    char text[MPI_MAX_ERROR_STRING] = "unknown error", where[96];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return error_set(STATUS_COMM, "rank %d: %s: %s", comm_told(comm, comm->rank), comm_place(comm, name, where), text);
}

#define TRY_MPI(comm, name, call)                                                                                      \
    do {                                                                                                               \
        int try_code_ = (call);                                                                                        \
        if (try_code_ != MPI_SUCCESS) return mpi_failure(comm, name, try_code_);                                       \
    } while (0)

/* --- messages --------------------------------------------------------------------------------------------------- */

static enum status make_room(struct comm_operation *operation) {
    struct transfers *transfers = operation->messages;
    if (!transfers) {
        TRY(memory_new(1, sizeof *transfers, "messages", &transfers));
        operation->messages = transfers;
    }
    if (operation->message_count < operation->message_capacity) return STATUS_OK;
    size_t capacity = (size_t)operation->message_capacity * 2 + 8;
    TRY(memory_grow(&transfers->requests, capacity, sizeof *transfers->requests, "messages"));
    TRY(memory_grow(&transfers->peers, capacity, sizeof *transfers->peers, "messages"));
    TRY(memory_grow(&transfers->bytes, capacity, sizeof *transfers->bytes, "messages"));
    TRY(memory_grow(&transfers->completed, capacity, sizeof *transfers->completed, "messages"));
    TRY(memory_grow(&transfers->statuses, capacity, sizeof *transfers->statuses, "messages"));
    operation->message_capacity = (int)capacity;
    return STATUS_OK;
}

/* Starts a transfer of any size with `peer`, in messages that MPI can count. Both sides cut alike. */
static enum status post(struct comm *comm, struct comm_operation *operation, bool sends, int peer, void *data,
                        size_t bytes) {
    struct mpi *mpi = comm->state;
    size_t done = 0;
    do {
        size_t part = bytes - done < comm->message_bytes ? bytes - done : comm->message_bytes;
        TRY(make_room(operation));
        struct transfers *transfers = operation->messages;
        MPI_Request *request = &transfers->requests[operation->message_count];
        char *at = data ? (char *)data + done : NULL;
        int tag = (int)operation->tag;
        if (sends) {
            TRY_MPI(comm, operation->name, MPI_Isend(at, (int)part, MPI_BYTE, peer, tag, mpi->world, request));
        } else {
            TRY_MPI(comm, operation->name, MPI_Irecv(at, (int)part, MPI_BYTE, peer, tag, mpi->world, request));
        }
        transfers->peers[operation->message_count] = sends ? -1 - peer : peer;
        transfers->bytes[operation->message_count++] = (int)part;
        done += part;
    } while (done < bytes);
    return STATUS_OK;
}

static char *element(struct tensor t, int64_t index) {
    return (char *)t.data + (size_t)index * dtype_size(t.dtype);
}

/* --- phases ----------------------------------------------------------------------------------------------------- */

enum phase { PHASE_PARTS, PHASE_WHOLE, PHASE_DIRECT, PHASE_PARENT, PHASE_CHILDREN, PHASE_ONLY, PHASE_DONE };

/* The range of rank `part`'s elements in an array of `count` that is divided over `size` ranks. */
static int64_t part_begin(int64_t count, int size, int part) {
    return count / size * part + (part < count % size ? part : count % size);
}

/* The elements per rank in one piece. all_reduce divides a piece over the ranks; reduce_scatter takes a piece of each
 * rank's part. */
static int64_t piece_count(const struct comm *comm, const struct comm_operation *operation) {
    int64_t limit = (int64_t)(comm->piece_bytes / dtype_size(operation->output.dtype));
    if (operation->collective == COMM_REDUCE_SCATTER) limit /= comm->size;
    if (limit < 1) limit = 1;
    int64_t left = tensor_count(operation->output) - operation->first;
    return left < limit ? left : limit;
}

/* Where rank `part`'s elements of the piece under way lie in the tensor that is reduced, and how many they are. */
static char *piece_part(const struct comm *comm, const struct comm_operation *operation, int part, int64_t *count) {
    int64_t piece = piece_count(comm, operation);
    if (operation->collective == COMM_REDUCE_SCATTER) {
        *count = piece;
        return element(operation->input, tensor_count(operation->output) * part + operation->first);
    }
    int64_t begin = part_begin(piece, comm->size, part);
    *count = part_begin(piece, comm->size, part + 1) - begin;
    return element(operation->output, operation->first + begin);
}

static enum status need_scratch(struct comm_operation *operation, size_t bytes) {
    if (bytes <= operation->scratch_bytes) return STATUS_OK;
    TRY(memory_grow(&operation->scratch, bytes, 1, "a reduction"));
    operation->scratch_bytes = bytes;
    return STATUS_OK;
}

/* Phase one of a reduction: my part of the piece comes from everybody. */
static enum status post_parts(struct comm *comm, struct comm_operation *operation) {
    size_t width = dtype_size(operation->output.dtype);
    int64_t mine, theirs;
    (void)piece_part(comm, operation, comm->rank, &mine);
    TRY(need_scratch(operation, (size_t)mine * width * (size_t)(comm->size - 1)));
    char *at = operation->scratch;
    /* Each rank begins with its right neighbour, so that not all send to the same one first. */
    for (int i = 1; i < comm->size; i++) {
        int from = (comm->rank + comm->size - i) % comm->size;
        if (mine > 0) TRY(post(comm, operation, false, from, at, (size_t)mine * width));
        at += (size_t)mine * width;
    }
    for (int i = 1; i < comm->size; i++) {
        int to = (comm->rank + i) % comm->size;
        char *part = piece_part(comm, operation, to, &theirs);
        if (theirs > 0) TRY(post(comm, operation, true, to, part, (size_t)theirs * width));
    }
    operation->phase = PHASE_PARTS;
    return STATUS_OK;
}

/* Adds up what PHASE_PARTS or PHASE_DIRECT has received, in rank order. */
static enum status reduce_received(struct comm *comm, struct comm_operation *operation, char *own, int64_t count,
                                   char *output) {
    const void *few[64], **sources = few;
    if (comm->size > 64) TRY(memory_new((size_t)comm->size, sizeof *sources, "a reduction", &sources));
    size_t bytes = (size_t)count * dtype_size(operation->output.dtype);
    sources[comm->rank] = own;
    for (int i = 1; i < comm->size; i++) {
        int from = (comm->rank + comm->size - i) % comm->size;
        sources[from] = (char *)operation->scratch + bytes * (size_t)(i - 1);
    }
    comm_reduce_sources(operation->output.dtype, operation->reduce, count, comm->size, sources, output);
    if (sources != few) free(sources);
    return STATUS_OK;
}

/* Phase two of all_reduce: my finished part goes to everybody. */
static enum status post_whole(struct comm *comm, struct comm_operation *operation) {
    size_t width = dtype_size(operation->output.dtype);
    int64_t mine, theirs;
    char *own = piece_part(comm, operation, comm->rank, &mine);
    for (int i = 1; i < comm->size; i++) {
        int from = (comm->rank + comm->size - i) % comm->size;
        char *part = piece_part(comm, operation, from, &theirs);
        if (theirs > 0) TRY(post(comm, operation, false, from, part, (size_t)theirs * width));
    }
    for (int i = 1; i < comm->size && mine > 0; i++) {
        TRY(post(comm, operation, true, (comm->rank + i) % comm->size, own, (size_t)mine * width));
    }
    operation->phase = PHASE_WHOLE;
    return STATUS_OK;
}

/* Everybody's `send` goes to everybody; rank r's arrives at receive(r). For few bytes, and for all_gather. */
static enum status post_exchange(struct comm *comm, struct comm_operation *operation, char *send, size_t bytes,
                                 bool gathers) {
    for (int i = 1; i < comm->size; i++) {
        int from = (comm->rank + comm->size - i) % comm->size;
        char *receive = gathers ? (char *)operation->output.data + bytes * (size_t)from
                                : (char *)operation->scratch + bytes * (size_t)(i - 1);
        TRY(post(comm, operation, false, from, bytes ? receive : NULL, bytes));
    }
    for (int i = 1; i < comm->size; i++) {
        TRY(post(comm, operation, true, (comm->rank + i) % comm->size, send, bytes));
    }
    return STATUS_OK;
}

/* A binomial tree over the ranks counted from the root: `place` receives from the place without its lowest set bit, and
 * sends to those with one lower bit more. */
static enum status post_broadcast(struct comm *comm, struct comm_operation *operation, bool receives) {
    int root = operation->from, place = (comm->rank - root + comm->size) % comm->size;
    size_t bytes = tensor_bytes(operation->output);
    int lowest = place & -place;
    if (receives && place != 0) {
        operation->phase = PHASE_PARENT;
        return post(comm, operation, false, (place - lowest + root) % comm->size, operation->output.data, bytes);
    }
    operation->phase = PHASE_CHILDREN;
    int bit = 1;
    while (bit < comm->size && (place == 0 || bit < lowest)) bit <<= 1;
    for (bit >>= 1; bit > 0; bit >>= 1) {
        if (place + bit >= comm->size) continue;
        TRY(post(comm, operation, true, (place + bit + root) % comm->size, operation->output.data, bytes));
    }
    return STATUS_OK;
}

static enum status mpi_start(struct comm *comm, struct comm_operation *operation) {
    struct mpi *mpi = comm->state;
    /* Operations overlap, and their second phases begin whenever the first is over: a tag of its own keeps each one's
     * messages apart. Starting in the same order gives all ranks the same tags. The collective is part of the tag, so
     * that ranks that are out of step wait for their deadline rather than take one collective's bytes for another's. */
    operation->tag = mpi->next_tag * COMM_COLLECTIVES + operation->collective;
    mpi->next_tag = (mpi->next_tag + 1) % mpi->tag_count;
    operation->message_count = 0;
    operation->phase = PHASE_ONLY;
    size_t bytes = tensor_bytes(operation->output);
    char *own;
    switch (operation->collective) {
    case COMM_ALL_REDUCE:
        if (bytes > comm->direct_bytes) return post_parts(comm, operation);
        TRY(need_scratch(operation, bytes * (size_t)(comm->size - 1)));
        operation->phase = PHASE_DIRECT;
        return post_exchange(comm, operation, operation->output.data, bytes, false);
    case COMM_REDUCE_SCATTER:
        return post_parts(comm, operation);
    case COMM_ALL_GATHER:
        bytes = tensor_bytes(operation->input);
        own = (char *)operation->output.data + bytes * (size_t)comm->rank;
        if (own != operation->input.data) memcpy(own, operation->input.data, bytes);
        return post_exchange(comm, operation, operation->input.data, bytes, true);
    case COMM_BROADCAST:
        return post_broadcast(comm, operation, true);
    case COMM_SEND_RECEIVE:
        if (operation->from >= 0) {
            TRY(post(comm, operation, false, operation->from, operation->output.data, bytes));
        }
        if (operation->to < 0) return STATUS_OK;
        return post(comm, operation, true, operation->to, operation->input.data, tensor_bytes(operation->input));
    case COMM_BARRIER:
        return post_exchange(comm, operation, NULL, 0, false);
    }
    return STATUS_OK;
}

/* The phase under way has completed: starts the next one, or sets PHASE_DONE. */
static enum status next_phase(struct comm *comm, struct comm_operation *operation) {
    int64_t count;
    char *own;
    operation->message_count = 0;
    switch ((enum phase)operation->phase) {
    case PHASE_DIRECT:
        own = operation->output.data;
        TRY(reduce_received(comm, operation, own, tensor_count(operation->output), own));
        break;
    case PHASE_PARTS:
        own = piece_part(comm, operation, comm->rank, &count);
        if (operation->collective == COMM_ALL_REDUCE) {
            TRY(reduce_received(comm, operation, own, count, own));
            return post_whole(comm, operation);
        }
        TRY(reduce_received(comm, operation, own, count, element(operation->output, operation->first)));
        /* fall through */
    case PHASE_WHOLE:
        operation->first += piece_count(comm, operation);
        if (operation->first < tensor_count(operation->output)) return post_parts(comm, operation);
        break;
    case PHASE_PARENT:
        return post_broadcast(comm, operation, false);
    case PHASE_CHILDREN:
    case PHASE_ONLY:
    case PHASE_DONE:
        break;
    }
    operation->phase = PHASE_DONE;
    return STATUS_OK;
}

/* MPI takes a message that is shorter than expected for a good one. */
static enum status check_length(const struct comm *comm, const struct comm_operation *operation, int outcome) {
    const struct transfers *transfers = operation->messages;
    int message = transfers->completed[outcome], peer = transfers->peers[message], found = 0;
    char where[96];
    if (peer < 0) return STATUS_OK;
    TRY_MPI(comm, operation->name, MPI_Get_count(&transfers->statuses[outcome], MPI_BYTE, &found));
    if (found == transfers->bytes[message]) return STATUS_OK;
    return error_set(STATUS_COMM, "rank %d: %s: expected %d bytes from rank %d, found %d", comm_told(comm, comm->rank),
                     comm_place(comm, operation->name, where), transfers->bytes[message], peer, found);
}

/* MPI_Testsome's own code says only that one of them failed. */
static enum status transfer_failure(const struct comm *comm, const struct comm_operation *operation, int completed,
                                    int code) {
    const struct transfers *transfers = operation->messages;
    char text[MPI_MAX_ERROR_STRING] = "unknown error", where[96];
    int length = 0;
    for (int i = 0; code == MPI_ERR_IN_STATUS && i < completed; i++) {
        int error = transfers->statuses[i].MPI_ERROR, peer = transfers->peers[transfers->completed[i]];
        if (error == MPI_SUCCESS || error == MPI_ERR_PENDING) continue;
        MPI_Error_string(error, text, &length);
        return error_set(STATUS_COMM, "rank %d: %s: what %s rank %d: %s", comm_told(comm, comm->rank),
                         comm_place(comm, operation->name, where), peer < 0 ? "goes to" : "comes from",
                         comm_told(comm, peer < 0 ? -1 - peer : peer), text);
    }
    return mpi_failure(comm, operation->name, code);
}

static enum status mpi_poll(struct comm *comm, struct comm_operation *operation, bool *done, bool *moved) {
    *done = *moved = false;
    while (operation->phase != PHASE_DONE) {
        struct transfers *transfers = operation->messages;
        int outcome = MPI_UNDEFINED, all = 1;
        if (operation->message_count > 0) {
            int code = MPI_Testsome(operation->message_count, transfers->requests, &outcome, transfers->completed,
                                    transfers->statuses);
            if (code != MPI_SUCCESS) return transfer_failure(comm, operation, outcome, code);
            all = outcome == MPI_UNDEFINED;
            for (int i = 0; !all && i < outcome; i++) TRY(check_length(comm, operation, i));
        }
        if (!all && outcome == 0) return STATUS_OK;
        *moved = true;
        if (all) TRY(next_phase(comm, operation));
    }
    *done = true;
    return STATUS_OK;
}

/* Who has not sent is late for certain; who has not taken what we sent matters when nobody else is to blame. */
static void mpi_late(const struct comm *comm, const struct comm_operation *operation, char *text, size_t capacity) {
    const struct mpi *mpi = comm->state;
    const struct transfers *transfers = operation->messages;
    size_t used = 0;
    int named = 0, left_out = 0, before = -1;
    for (int sends = 0; sends < 2 && named == 0; sends++) {
        for (int rank = 0; rank < comm->size; rank++) {
            bool pending = false;
            for (int i = 0; i < operation->message_count; i++) {
                int peer = sends ? -1 - rank : rank;
                if (transfers->peers[i] == peer && transfers->requests[i] != MPI_REQUEST_NULL) pending = true;
            }
            if (!pending) continue;
            if (used + 2 * sizeof *mpi->hosts + 48 >= capacity) {
                left_out++;
                continue;
            }
            if (mpi->hosts && named && strcmp(mpi->hosts[before], mpi->hosts[rank]) != 0)
                used += (size_t)snprintf(text + used, capacity - used, " on host %s", mpi->hosts[before]);
            used +=
                (size_t)snprintf(text + used, capacity - used, "%s%d", named++ ? ", " : "rank ", comm_told(comm, rank));
            before = rank;
        }
    }
    if (named == 0) used = (size_t)snprintf(text, capacity, "the other ranks");
    if (mpi->hosts && named) used += (size_t)snprintf(text + used, capacity - used, " on host %s", mpi->hosts[before]);
    if (left_out) snprintf(text + used, capacity - used, " and %d more", left_out);
}

static void mpi_cancel(struct comm_operation *operation) {
    struct transfers *transfers = operation->messages;
    for (int i = 0; i < operation->message_count; i++) {
        if (transfers->peers[i] >= 0 && transfers->requests[i] != MPI_REQUEST_NULL) MPI_Cancel(&transfers->requests[i]);
    }
}

static void mpi_free_operation(struct comm_operation *operation) {
    struct transfers *transfers = operation->messages;
    if (transfers) {
        free(transfers->requests);
        free(transfers->peers);
        free(transfers->bytes);
        free(transfers->completed);
        free(transfers->statuses);
    }
    free(transfers);
    free(operation->scratch);
}

/* --- starting and ending MPI ------------------------------------------------------------------------------------ */

/* MPI_Init and MPI_Finalize wait for every rank, for ever: only an alarm gets out of them, and only by ending the
 * process. They may take as long as a collective, and what a loaded machine needs to start a program. */
enum { OWN_TIME_S = 10 };
static char limit_text[160];
static struct sigaction before_limit;

static void limit_passed(int number) {
    (void)number;
    ssize_t unused = write(STDERR_FILENO, limit_text, strlen(limit_text));
    (void)unused;
    _exit(status_exit_code(STATUS_COMM));
}

static void begin_limit(const struct comm *comm, const char *what) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    double limit_s = fmin(comm->deadline_s, 1e8) + OWN_TIME_S;
    struct sigaction action = {.sa_handler = limit_passed};
    snprintf(limit_text, sizeof limit_text, "squint: rank %s: %s: waited %g s for the other ranks\n", rank ? rank : "?",
             what, limit_s);
    sigaction(SIGALRM, &action, &before_limit);
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_sec = (time_t)limit_s}}, NULL);
}

static void end_limit(void) {
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0}}, NULL);
    sigaction(SIGALRM, &before_limit, NULL);
}

/* --- opening and closing ---------------------------------------------------------------------------------------- */

static enum status mpi_close(struct comm *comm, bool faulted) {
    struct mpi *mpi = comm->state;
    enum status status = STATUS_OK;
    if (!faulted) {
        begin_limit(comm, mpi->part ? "ending a group" : "ending MPI");
        MPI_Comm_free(&mpi->world);
        int code = mpi->part ? MPI_SUCCESS : MPI_Finalize();
        end_limit();
        if (code != MPI_SUCCESS)
            status = error_set(STATUS_COMM, "rank %d: MPI does not end: code %d", comm_told(comm, comm->rank), code);
    }
    free(mpi->hosts);
    free(mpi);
    comm->state = NULL;
    return status;
}

static void __attribute__((noreturn)) mpi_abort(struct comm *comm, int exit_code) {
    (void)comm;
    fflush(NULL); /* MPI_Abort leaves by _exit */
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _Exit(exit_code);
}

static const struct comm_backend mpi_backend = {
    .start = mpi_start,
    .poll = mpi_poll,
    .late = mpi_late,
    .cancel = mpi_cancel,
    .free_operation = mpi_free_operation,
    .close = mpi_close,
    .abort = mpi_abort,
};

/* "Open MPI v4.1.4, package: …" -> "Open MPI 4.1.4" */
static void describe(struct comm *comm) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = '\0';
    char *version = strstr(text, " v");
    if (version) memmove(version + 1, version + 2, strlen(version + 2) + 1);
    snprintf(comm->description, sizeof comm->description, "%.*s", (int)sizeof comm->description - 1, text);
}

/* Which machine each rank is on, for messages. */
static enum status gather_hosts(const struct comm *comm, struct mpi *mpi) {
    char host[MPI_MAX_PROCESSOR_NAME] = "";
    int length = 0;
    if (comm->node_size == comm->size) return STATUS_OK;
    TRY(memory_new((size_t)comm->size, sizeof *mpi->hosts, "the ranks' hosts", &mpi->hosts));
    TRY_MPI(comm, "starting MPI", MPI_Get_processor_name(host, &length));
    host[HOST_BYTES - 1] = '\0';
    TRY_MPI(comm, "starting MPI",
            MPI_Allgather(host, HOST_BYTES, MPI_CHAR, mpi->hosts, HOST_BYTES, MPI_CHAR, mpi->world));
    return STATUS_OK;
}

/* Ranks, machines, tags and hosts of mpi->world. */
static enum status describe_world(struct comm *comm, struct mpi *mpi) {
    MPI_Comm node;
    int *tag_limit = NULL, found = 0;
    TRY_MPI(comm, "starting MPI", MPI_Comm_set_errhandler(mpi->world, MPI_ERRORS_RETURN));
    TRY_MPI(comm, "starting MPI", MPI_Comm_rank(mpi->world, &comm->rank));
    TRY_MPI(comm, "starting MPI", MPI_Comm_size(mpi->world, &comm->size));
    TRY_MPI(comm, "starting MPI",
            MPI_Comm_split_type(mpi->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &node));
    TRY_MPI(comm, "starting MPI", MPI_Comm_rank(node, &comm->node_rank));
    TRY_MPI(comm, "starting MPI", MPI_Comm_size(node, &comm->node_size));
    TRY_MPI(comm, "starting MPI", MPI_Comm_free(&node));
    TRY_MPI(comm, "starting MPI", MPI_Comm_get_attr(mpi->world, MPI_TAG_UB, &tag_limit, &found));
    mpi->tag_count = (found && *tag_limit > 0 ? (uint32_t)*tag_limit : 32767) / COMM_COLLECTIVES;
    return gather_hosts(comm, mpi);
}

static enum status join_world(struct comm *comm, struct mpi *mpi) {
    TRY_MPI(comm, "starting MPI", MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    TRY_MPI(comm, "starting MPI", MPI_Comm_dup(MPI_COMM_WORLD, &mpi->world));
    return describe_world(comm, mpi);
}

static enum status join_part(const struct comm *whole, int group, struct comm *comm, struct mpi *mpi) {
    const struct mpi *all = whole->state;
    const int own = comm_told(whole, whole->rank);
    TRY_MPI(whole, "making a group", MPI_Comm_split(all->world, group, whole->rank, &mpi->world));
    TRY(describe_world(comm, mpi));
    TRY(memory_new((size_t)comm->size, sizeof *comm->told, "the ranks of a group", &comm->told));
    TRY_MPI(whole, "making a group", MPI_Allgather(&own, 1, MPI_INT, comm->told, 1, MPI_INT, mpi->world));
    return STATUS_OK;
}

enum status comm_mpi_split(struct comm *whole, int group, struct comm *comm) {
    struct mpi *mpi = NULL;
    TRY(memory_new(1, sizeof *mpi, "a communicator", &mpi));
    mpi->part = true;
    begin_limit(whole, "making a group");
    const enum status status = join_part(whole, group, comm, mpi);
    end_limit();
    if (status != STATUS_OK) {
        free(mpi->hosts);
        free(mpi);
        return status;
    }
    snprintf(comm->description, sizeof comm->description, "%s", whole->description);
    comm->state = mpi;
    comm->backend = whole->backend;
    return STATUS_OK;
}

enum status comm_mpi_open(struct comm *comm) {
    int initialised = 0, provided = 0;
    struct mpi *mpi = NULL;
    MPI_Initialized(&initialised);
    if (initialised) return error_set(STATUS_FAILED, "MPI has already been started: it can be started once a process");
    TRY(memory_new(1, sizeof *mpi, "a communicator", &mpi));
    /* One thread at a time talks to MPI, while others (OpenMP) compute. */
    begin_limit(comm, "starting MPI");
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
    enum status status = code == MPI_SUCCESS ? STATUS_OK : error_set(STATUS_COMM, "MPI does not start: code %d", code);
    if (status == STATUS_OK && provided < MPI_THREAD_SERIALIZED) {
        status =
            error_set(STATUS_COMM, "MPI: expected one that several threads may use in turn, found level %d", provided);
    }
    if (status == STATUS_OK) status = join_world(comm, mpi);
    end_limit();
    if (status != STATUS_OK) {
        free(mpi->hosts);
        free(mpi);
        return status;
    }
    describe(comm);
    comm->state = mpi;
    comm->backend = &mpi_backend;
    return STATUS_OK;
}
