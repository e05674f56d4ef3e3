/* The front of comm.h: checks arguments, waits with a deadline, makes the messages, and does what needs no partner.
 * How bytes travel is the backend's business (comm_internal.h). */
#include "comm/comm.h"

#include "base/log.h"
#include "base/memory.h"
#include "comm/comm_internal.h"

#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 2048 }; /* what error.h keeps */
enum { WHOM_BYTES = 512 };     /* for the names of late ranks */

/* Given-up operations: the library may still write into what they have posted, so their memory stays until the end. */
static struct comm_operation *volatile abandoned;

/* --- opening and closing ---------------------------------------------------------------------------------------- */

static enum status read_deadline(const struct comm_options *options, double *deadline_s) {
    *deadline_s = options && options->deadline_s > 0 ? options->deadline_s : 600.0;
    const char *text = getenv("SQUINT_DEADLINE_S");
    if (!text || !text[0]) return STATUS_OK;
    char *end = NULL;
    double value = strtod(text, &end);
    if (*end != '\0' || !(value > 0) || isinf(value)) {
        return error_set(STATUS_USAGE, "$SQUINT_DEADLINE_S: expected a positive number of seconds, found \"%s\"", text);
    }
    *deadline_s = value;
    return STATUS_OK;
}

enum status comm_new(const struct comm_options *options, struct comm **comm) {
    double deadline_s;
    *comm = NULL;
    TRY(read_deadline(options, &deadline_s));
    TRY(memory_new(1, sizeof **comm, "a communicator", comm));
    **comm = (struct comm){.size = 1,
                           .node_size = 1,
                           .deadline_s = deadline_s,
                           .ending = options ? options->ending : NULL,
                           .step = -1,
                           .piece_bytes = COMM_PIECE_BYTES,
                           .message_bytes = 1 << 30,
                           .direct_bytes = 4096};
    snprintf((*comm)->description, sizeof(*comm)->description, "one rank, no MPI");
    return STATUS_OK;
}

/* A launcher leaves one of these in the environment. Starting MPI without one is slow, and fails in some containers. */
static bool under_launcher(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (getenv(names[i])) return true;
    }
    return false;
}

enum status comm_open(const struct comm_options *options, struct comm **comm) {
    TRY(comm_new(options, comm));
    if (!under_launcher()) return STATUS_OK;
    enum status status = comm_mpi_open(*comm);
    if (status != STATUS_OK) {
        free(*comm);
        *comm = NULL;
    }
    return status;
}

enum status comm_open_single(struct comm **comm) {
    return comm_new(NULL, comm);
}

enum status comm_split(struct comm *comm, int group, struct comm **part) {
    TRY(comm_new(&(struct comm_options){.deadline_s = comm->deadline_s, .ending = comm->ending}, part));
    if (!comm->backend) return STATUS_OK;
    const enum status status = comm_agree(comm, comm_mpi_split(comm, group, *part));
    if (status == STATUS_OK) return STATUS_OK;
    if ((*part)->backend) (void)(*part)->backend->close(*part, true);
    free((*part)->told);
    free(*part);
    *part = NULL;
    return status;
}

static void free_operations(struct comm *comm, struct comm_operation *list) {
    while (list) {
        struct comm_operation *next = list->next;
        comm->backend->free_operation(list);
        free(list);
        list = next;
    }
}

enum status comm_close(struct comm **handle) {
    if (!handle || !*handle) return STATUS_OK;
    struct comm *comm = *handle;
    enum status status = STATUS_OK;
    if (comm->backend) {
        /* Ending MPI waits for every rank, without a deadline: so first see with one that they are all there. */
        if (!comm->faulted) status = comm_barrier(comm);
        KEEP_FIRST(status, comm->backend->close(comm, comm->faulted));
        if (comm->faulted && !comm->host) {
            abandoned = comm->active;
        } else {
            free_operations(comm, comm->active);
        }
        free_operations(comm, comm->idle);
    }
    free(comm->told);
    free(comm);
    *handle = NULL;
    return status;
}

void comm_abort(struct comm *comm, int exit_code) {
    if (comm && comm->backend) comm->backend->abort(comm, exit_code);
    _exit(exit_code);
}

int comm_rank(const struct comm *comm) {
    return comm->rank;
}
int comm_size(const struct comm *comm) {
    return comm->size;
}
int comm_node_rank(const struct comm *comm) {
    return comm->node_rank;
}
int comm_node_size(const struct comm *comm) {
    return comm->node_size;
}
int comm_memory_ranks(const struct comm *comm) {
    return comm->host ? comm->gpu_ranks : comm->node_size;
}
const char *comm_describe(const struct comm *comm) {
    return comm->description;
}
void comm_set_step(struct comm *comm, int64_t step) {
    comm->step = step;
}

/* --- running one collective ------------------------------------------------------------------------------------- */

int comm_told(const struct comm *comm, int rank) {
    const struct comm *host =
        comm->host ? comm->host : comm; /* NCCL's ranks are those of the communicator that it was opened over */
    return host->told ? host->told[rank] : rank;
}

const char *comm_place(const struct comm *comm, const char *name, char text[96]) {
    if (comm->step < 0) {
        snprintf(text, 96, "%s", name);
    } else {
        snprintf(text, 96, "%s at step %" PRId64, name, comm->step);
    }
    return text;
}

static enum status check(const struct comm *comm, const char *name, struct tensor data, bool reduces) {
    char shape[96], where[96];
    enum dtype type = data.dtype;
    bool known = !reduces || type == DTYPE_F32 || type == DTYPE_F64 || type == DTYPE_I32 || type == DTYPE_I64 ||
                 type == DTYPE_BF16;
    if (tensor_is_contiguous(data) && known) return STATUS_OK;
    tensor_describe(data, shape, sizeof shape);
    return error_set(STATUS_SHAPE, "%s: expected a contiguous tensor%s, found %s", comm_place(comm, name, where),
                     reduces ? " of f32, f64, bf16, i32 or i64" : "", shape);
}

static enum status check_parts(const struct comm *comm, const char *name, struct tensor whole, struct tensor part) {
    char a[96], b[96], where[96];
    if (whole.dtype == part.dtype && tensor_count(whole) == tensor_count(part) * comm->size) return STATUS_OK;
    tensor_describe(whole, a, sizeof a);
    tensor_describe(part, b, sizeof b);
    return error_set(STATUS_SHAPE, "%s: expected %d parts of one dtype, found %s for the whole and %s for a part",
                     comm_place(comm, name, where), comm->size, a, b);
}

static enum status refuse_after_fault(struct comm *comm, const char *name) {
    char where[96];
    if (!comm->faulted) return STATUS_OK;
    return error_set(STATUS_COMM, "rank %d: %s: an earlier collective failed", comm_told(comm, comm->rank),
                     comm_place(comm, name, where));
}

static void unlink_operation(struct comm *comm, struct comm_operation *operation) {
    for (struct comm_operation **at = &comm->active; *at; at = &(*at)->next) {
        if (*at != operation) continue;
        *at = operation->next;
        return;
    }
}

/* After a fault on the GPU's side the ranks still agree over the host's, where who is not there is not waited for a
 * second time. */
enum { AFTER_FAULT_S = 2 };

static enum status failed(struct comm *comm, enum status status) {
    comm->faulted = true;
    if (comm->host) comm->host->deadline_s = fmin(comm->host->deadline_s, AFTER_FAULT_S);
    return status;
}

/* Gives the other operations under way a chance to go on: MPI moves bytes only inside its calls. */
static void poll_others(struct comm *comm, const struct comm_operation *except) {
    if (comm->backend->goes_alone) return;
    for (struct comm_operation *other = comm->active; other; other = other->next) {
        bool done, moved;
        if (other != except && comm->backend->poll(comm, other, &done, &moved) != STATUS_OK) comm->faulted = true;
    }
}

static enum status start(struct comm *comm, const struct comm_operation *description,
                         struct comm_operation **operation) {
    TRY(refuse_after_fault(comm, description->name));
    struct comm_operation *fresh = comm->idle;
    if (fresh) {
        comm->idle = fresh->next;
    } else {
        enum status status = memory_new(1, sizeof *fresh, "a collective", &fresh);
        if (status != STATUS_OK) return failed(comm, status);
    }
    struct comm_operation kept = *fresh;
    *fresh = *description;
    fresh->messages = kept.messages;
    fresh->message_capacity = kept.message_capacity;
    fresh->scratch = kept.scratch;
    fresh->scratch_bytes = kept.scratch_bytes;
    fresh->next = comm->active;
    comm->active = fresh;
    *operation = fresh;
    enum status status = comm->backend->start(comm, fresh);
    if (status != STATUS_OK) return failed(comm, status);
    poll_others(comm, fresh);
    return STATUS_OK;
}

/* Between polls: first give the processor away, so that ranks that share a core come forward, then sleep longer. */
static void pause_between_polls(int idle_polls) {
    if (idle_polls < 200) {
        sched_yield();
        return;
    }
    long microseconds = idle_polls < 2000 ? 50 : 500;
    nanosleep(&(struct timespec){.tv_nsec = microseconds * 1000}, NULL);
}

/* mpirun ends a job, because a rank has died or a machine is lost, by SIGTERM, and a second later by SIGKILL. Who waits
 * by then waits for the dead: mpirun names them, but neither the collective nor the step. */
enum { ENDING_MS = 200 };

static void tell_when_ending(const struct comm *comm, const struct comm_operation *operation, double *since_s) {
    bool (*ending)(void) = comm->host ? comm->host->ending : comm->ending;
    char whom[WHOM_BYTES], where[96];
    if (!ending || *since_s < 0 || !ending()) return;
    double now_s = time_now_s();
    if (*since_s == 0) *since_s = now_s;
    if (now_s - *since_s < 1e-3 * ENDING_MS) return;
    comm->backend->late(comm, operation, whom, sizeof whom);
    fprintf(stderr, "squint: rank %d: %s: told to end while it waits for %s\n", comm_told(comm, comm->rank),
            comm_place(comm, operation->name, where), whom);
    *since_s = -1; /* once */
}

static enum status give_up(struct comm *comm, struct comm_operation *operation) {
    char whom[WHOM_BYTES], where[96];
    comm->backend->late(comm, operation, whom, sizeof whom);
    if (comm->backend->cancel) comm->backend->cancel(operation);
    return failed(comm, error_set(STATUS_COMM, "rank %d: %s: waited %g s for %s", comm_told(comm, comm->rank),
                                  comm_place(comm, operation->name, where), comm->deadline_s, whom));
}

/* It has ended. */
static void retire(struct comm *comm, struct comm_operation *operation) {
    unlink_operation(comm, operation);
    operation->next = comm->idle;
    comm->idle = operation;
}

static enum status finish(struct comm *comm, struct comm_operation *operation) {
    double begun_s = time_now_s(), ending_since_s = 0;
    int idle_polls = 0;
    for (bool done = false, moved = false;;) {
        enum status status = comm->backend->poll(comm, operation, &done, &moved);
        if (status != STATUS_OK) return failed(comm, status);
        if (done) break;
        idle_polls = moved ? 0 : idle_polls + 1;
        if (idle_polls > 0 && time_now_s() - begun_s > comm->deadline_s) return give_up(comm, operation);
        if (!moved) {
            tell_when_ending(comm, operation, &ending_since_s);
            poll_others(comm, operation);
            pause_between_polls(idle_polls);
        }
    }
    retire(comm, operation);
    return STATUS_OK;
}

static enum status run(struct comm *comm, const struct comm_operation *description) {
    struct comm_operation *operation;
    TRY(start(comm, description, &operation));
    return finish(comm, operation);
}

/* --- the collectives -------------------------------------------------------------------------------------------- */

/* Starts it, unless there is nothing to do: one rank, or no elements. */
static enum status start_request(struct comm *comm, const struct comm_operation *description,
                                 struct comm_request *request) {
    struct comm_operation *operation = NULL;
    if (!comm->backend || tensor_count(description->output) == 0) return refuse_after_fault(comm, description->name);
    TRY(start(comm, description, &operation));
    request->operation = operation;
    return STATUS_OK;
}

enum status comm_end(struct comm *comm, struct comm_request *request) {
    struct comm_operation *operation = request->operation;
    request->operation = NULL;
    return operation ? finish(comm, operation) : STATUS_OK;
}

enum status comm_test(struct comm *comm, struct comm_request *request, bool *done) {
    struct comm_operation *operation = request->operation;
    bool moved = false;
    *done = !operation;
    if (!operation) return STATUS_OK;
    TRY(refuse_after_fault(comm, operation->name));
    const enum status status = comm->backend->poll(comm, operation, done, &moved);
    if (status != STATUS_OK) return failed(comm, status);
    poll_others(comm, operation); /* another rank may wait for one of them */
    if (!*done) return STATUS_OK;
    retire(comm, operation);
    request->operation = NULL;
    return STATUS_OK;
}

void comm_progress(struct comm *comm) {
    if (comm->backend && !comm->faulted) poll_others(comm, NULL);
}

enum status comm_all_reduce_start(struct comm *comm, struct tensor data, enum comm_reduce reduce,
                                  struct comm_request *request) {
    *request = (struct comm_request){NULL};
    TRY(check(comm, "all_reduce", data, true));
    return start_request(
        comm,
        &(struct comm_operation){.collective = COMM_ALL_REDUCE, .name = "all_reduce", .reduce = reduce, .output = data},
        request);
}

enum status comm_all_reduce(struct comm *comm, struct tensor data, enum comm_reduce reduce) {
    struct comm_request request;
    TRY(comm_all_reduce_start(comm, data, reduce, &request));
    return comm_end(comm, &request);
}

/* One rank: `output` becomes `input`, unless it lies there already. */
static void copy_alone(const struct comm *comm, struct tensor input, struct tensor output) {
    if (!comm->backend && tensor_count(output) > 0) memmove(output.data, input.data, tensor_bytes(output));
}

enum status comm_reduce_scatter_start(struct comm *comm, struct tensor input, struct tensor output,
                                      enum comm_reduce reduce, struct comm_request *request) {
    const char *name = "reduce_scatter";
    *request = (struct comm_request){NULL};
    TRY(check(comm, name, input, true));
    TRY(check(comm, name, output, true));
    TRY(check_parts(comm, name, input, output));
    copy_alone(comm, input, output);
    return start_request(
        comm,
        &(struct comm_operation){
            .collective = COMM_REDUCE_SCATTER, .name = name, .reduce = reduce, .input = input, .output = output},
        request);
}

enum status comm_reduce_scatter(struct comm *comm, struct tensor input, struct tensor output, enum comm_reduce reduce) {
    struct comm_request request;
    TRY(comm_reduce_scatter_start(comm, input, output, reduce, &request));
    return comm_end(comm, &request);
}

enum status comm_all_gather_start(struct comm *comm, struct tensor input, struct tensor output,
                                  struct comm_request *request) {
    const char *name = "all_gather";
    *request = (struct comm_request){NULL};
    TRY(check(comm, name, input, false));
    TRY(check(comm, name, output, false));
    TRY(check_parts(comm, name, output, input));
    copy_alone(comm, input, output);
    return start_request(
        comm, &(struct comm_operation){.collective = COMM_ALL_GATHER, .name = name, .input = input, .output = output},
        request);
}

enum status comm_all_gather(struct comm *comm, struct tensor input, struct tensor output) {
    struct comm_request request;
    TRY(comm_all_gather_start(comm, input, output, &request));
    return comm_end(comm, &request);
}

static enum status check_rank(const struct comm *comm, const char *name, int rank) {
    char where[96];
    if (rank >= 0 && rank < comm->size) return STATUS_OK;
    return error_set(STATUS_FAILED, "%s: expected a rank below %d, found %d", comm_place(comm, name, where), comm->size,
                     rank);
}

enum status comm_broadcast(struct comm *comm, struct tensor data, int root) {
    TRY(check(comm, "broadcast", data, false));
    TRY(check_rank(comm, "broadcast", root));
    if (!comm->backend || tensor_count(data) == 0) return refuse_after_fault(comm, "broadcast");
    return run(comm, &(struct comm_operation){
                         .collective = COMM_BROADCAST, .name = "broadcast", .output = data, .from = root});
}

enum status comm_send_receive(struct comm *comm, struct tensor send, int to, struct tensor receive, int from) {
    const char *name = "send_receive";
    if (to >= 0) TRY(check(comm, name, send, false));
    if (from >= 0) TRY(check(comm, name, receive, false));
    if (to >= 0) TRY(check_rank(comm, name, to));
    if (from >= 0) TRY(check_rank(comm, name, from));
    if ((to == comm->rank) != (from == comm->rank) ||
        (to == comm->rank && tensor_bytes(send) != tensor_bytes(receive))) {
        return error_set(STATUS_FAILED, "send_receive: rank %d sends to itself what it does not receive", comm->rank);
    }
    if (to == comm->rank && !comm->host) {
        if (tensor_bytes(send) > 0) memmove(receive.data, send.data, tensor_bytes(send));
        to = from = -1;
    }
    /* Also with nobody, so that every rank counts the same number of collectives. */
    if (!comm->backend) return refuse_after_fault(comm, name);
    return run(
        comm,
        &(struct comm_operation){
            .collective = COMM_SEND_RECEIVE, .name = name, .input = send, .to = to, .output = receive, .from = from});
}

enum status comm_exclusive_scan(struct comm *comm, int64_t *value) {
    if (comm->host) return comm_exclusive_scan(comm->host, value);
    enum status status = STATUS_OK;
    int64_t *all = NULL;
    TRY(memory_new((size_t)comm->size, sizeof *all, "a scan", &all));
    TRY_GOTO(done, comm_all_gather(comm, tensor_1d(value, DTYPE_I64, 1), tensor_1d(all, DTYPE_I64, comm->size)));
    *value = 0;
    for (int r = 0; r < comm->rank; r++) *value += all[r];
done:
    free(all);
    return status;
}

enum status comm_barrier(struct comm *comm) {
    if (comm->host) return comm_barrier(comm->host);
    if (!comm->backend) return refuse_after_fault(comm, "barrier");
    return run(comm, &(struct comm_operation){.collective = COMM_BARRIER, .name = "barrier"});
}

enum status comm_agree(struct comm *comm, enum status mine) {
    if (comm->host) return comm_agree(comm->host, mine);
    if (comm->size == 1) return mine;
    enum status status = STATUS_OK;
    char text[MESSAGE_BYTES] = {0};
    int32_t code = (int32_t)mine, *codes = NULL;
    int worst = 0;
    TRY_GOTO(done, memory_new((size_t)comm->size, sizeof *codes, "the ranks' statuses", &codes));
    TRY_GOTO(done, comm_all_gather(comm, tensor_1d(&code, DTYPE_I32, 1), tensor_1d(codes, DTYPE_I32, comm->size)));
    for (int r = 1; r < comm->size; r++) {
        if (codes[r] > codes[worst]) worst = r;
    }
    if (codes[worst] == STATUS_OK) goto done;
    if (worst == comm->rank) snprintf(text, sizeof text, "%s", error_message());
    TRY_GOTO(done, comm_broadcast(comm, tensor_1d(text, DTYPE_U8, MESSAGE_BYTES), worst));
    status = (enum status)codes[worst];
    if (worst != comm->rank && text[0])
        (void)error_set(status, "rank %d: %.*s", comm_told(comm, worst), MESSAGE_BYTES - 16, text);
done:
    free(codes);
    return status;
}
