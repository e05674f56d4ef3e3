/* Ranks talking to each other. The caller does not know over what: MPI for host memory, NCCL for device memory.
 * Every collective must be called by every rank, in the same order; one thread at a time calls. Each has a deadline:
 * when another rank does not come, the call fails with STATUS_COMM and a message that names rank, collective and step
 * (comm_set_step), and, when the ranks are on several machines, the late one's host. */
#ifndef SQUINT_COMM_COMM_H
#define SQUINT_COMM_COMM_H

#include "base/error.h"
#include "base/tensor.h"

struct comm;

/* What a reduction over MPI holds at most of what it has received; longer tensors pass through it in pieces. */
enum { COMM_PIECE_BYTES = 16 << 20 };

enum comm_reduce { COMM_SUM, COMM_MAX, COMM_MIN };

struct comm_options {
    double deadline_s; /* of every collective; 0: the default, 600 s ($SQUINT_DEADLINE_S overrides it) */
    /* True once this process has been told to end and will soon be killed: a rank that waits for others then says for
     * whom, on standard error, and waits on. NULL: nobody asks. */
    bool (*ending)(void);
};

/* Starts MPI, when no launcher is there with one rank, and makes *comm over all ranks. One call a process. */
enum status comm_open(const struct comm_options *options, struct comm **comm);
/* A communicator of one rank without MPI: every collective is a copy or nothing. For commands that never run in
 * parallel and for tests. */
enum status comm_open_single(struct comm **comm);
/* Collectives over NCCL among the ranks of `host`, on memory of this rank's GPU. stream: the one that the table's
 * operations run on (cudaStream_t): a collective sees what was started on it before; what is started on it after the
 * collective's end sees the result. BF16 is summed too. `host` stays open for longer: scan, barrier and agree go over
 * it. One rank is no special case: NCCL is asked. STATUS_NOT_FOUND: this build or this machine has no NCCL, or one
 * before 2.19; STATUS_FAILED: the ranks have different ones. STATUS_USAGE: two ranks on one GPU, which NCCL cannot do
 * or was not told to. Every rank gets the same status. */
enum status comm_open_nccl(struct comm *host, void *stream, struct comm **comm);
/* *part = those ranks that pass the same group (0 or more), in their order; messages name them as in `comm`, which is
 * one for host memory and is closed later than *part. Every rank calls it. A communicator for the GPUs of a group:
 * comm_open_nccl over *part. */
enum status comm_split(struct comm *comm, int group, struct comm **part);
/* Frees *comm, ends MPI (of a group: nothing more) and sets *comm to NULL. NULL-safe. After a fault it does not wait
 * for the others. */
enum status comm_close(struct comm **comm);
/* Ends this rank and all others promptly with `exit_code`, printing nothing. Does not return. */
void comm_abort(struct comm *comm, int exit_code) __attribute__((noreturn));

int comm_rank(const struct comm *comm);
int comm_size(const struct comm *comm);
int comm_node_rank(const struct comm *comm); /* rank among the ranks of this machine */
int comm_node_size(const struct comm *comm);
/* Ranks that share the memory that this one computes in: of a GPU over NCCL, else of the machine. */
int comm_memory_ranks(const struct comm *comm);
const char *comm_describe(const struct comm *comm);  /* e.g. "Open MPI 4.1.4" */
void comm_set_step(struct comm *comm, int64_t step); /* named in messages */

/* Element-wise over the ranks, in place. data: contiguous, any length, F32, F64, I32, I64, BF16 (for broadcast and
 * gather any dtype). The result has the same bits on every rank. */
enum status comm_all_reduce(struct comm *comm, struct tensor data, enum comm_reduce reduce);
/* input: size·n elements, output: n; rank r gets the reduced r-th part. output may be the input's own r-th part, else
 * nothing overlaps; the other parts of input keep their values. */
enum status comm_reduce_scatter(struct comm *comm, struct tensor input, struct tensor output, enum comm_reduce reduce);
/* input: n elements, output: size·n, in rank order. input may be the output's own part, else nothing overlaps. */
enum status comm_all_gather(struct comm *comm, struct tensor input, struct tensor output);
enum status comm_broadcast(struct comm *comm, struct tensor data, int root);
/* Sends to rank `to` and receives from rank `from` at once; either may be -1 for nobody. */
enum status comm_send_receive(struct comm *comm, struct tensor send, int to, struct tensor receive, int from);
/* *value = sum of the values of the ranks before this one. */
enum status comm_exclusive_scan(struct comm *comm, int64_t *value);
/* Ends when every rank is there, or at the deadline. */
enum status comm_barrier(struct comm *comm);

/* Collectives that run while the caller works, otherwise as their namesakes. Started in the same order on every rank;
 * each is ended, in any order, before its data is read or written. */
struct comm_request {
    void *operation;
};
enum status comm_all_reduce_start(struct comm *comm, struct tensor data, enum comm_reduce reduce,
                                  struct comm_request *request);
enum status comm_reduce_scatter_start(struct comm *comm, struct tensor input, struct tensor output,
                                      enum comm_reduce reduce, struct comm_request *request);
enum status comm_all_gather_start(struct comm *comm, struct tensor input, struct tensor output,
                                  struct comm_request *request);
/* Waits for it. A request that was not started, or has ended, is none: STATUS_OK. */
enum status comm_end(struct comm *comm, struct comm_request *request);
/* *done: it has ended, as comm_end would have it; no waiting. Of no request: true. */
enum status comm_test(struct comm *comm, struct comm_request *request, bool *done);
/* Lets what is under way go on, without waiting: bytes move only inside calls of this file. Faults show in
 * what is called next. */
void comm_progress(struct comm *comm);

/* Every rank passes its own status; every rank gets the worst of all. The message of the lowest rank that had the worst
 * one is set on every rank that had none, behind "rank N: ". */
enum status comm_agree(struct comm *comm, enum status status);

#endif
