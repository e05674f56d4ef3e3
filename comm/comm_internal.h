/* What comm.c (checks, deadlines, messages) and a backend (moving bytes) know of each other. Nobody else includes this,
 * except tests that shorten a limit. A further backend (NCCL for device memory) fills in one struct comm_backend. */
#ifndef SQUINT_COMM_COMM_INTERNAL_H
#define SQUINT_COMM_COMM_INTERNAL_H

#include "comm/comm.h"

enum comm_collective {
    COMM_ALL_REDUCE,
    COMM_REDUCE_SCATTER,
    COMM_ALL_GATHER,
    COMM_BROADCAST,
    COMM_SEND_RECEIVE,
    COMM_BARRIER,
};
enum { COMM_COLLECTIVES = COMM_BARRIER + 1 };

/* One collective under way. comm.c fills in the first group and owns the memory; the rest is the backend's. */
struct comm_operation {
    enum comm_collective collective;
    enum comm_reduce reduce;
    struct tensor input, output; /* all_reduce, broadcast: `output` only, in place */
    int to, from;                /* send_receive; -1: nobody. broadcast: from = root */
    const char *name;            /* for messages */
    struct comm_operation *next; /* in comm->active or comm->idle */

    void *messages; /* the backend's pending transfers, kept from use to use */
    int message_capacity, message_count;
    void *scratch; /* received parts, kept from use to use */
    size_t scratch_bytes;
    int phase;
    int64_t first; /* first element of the piece under way */
    uint32_t tag;
};

struct comm_backend {
    enum status (*start)(struct comm *comm, struct comm_operation *operation);
    /* *done: everything has arrived and been sent. *moved: something has happened since the last call. */
    enum status (*poll)(struct comm *comm, struct comm_operation *operation, bool *done, bool *moved);
    /* Writes whom the operation waits for ("rank 2", "rank 1, 3 on host b") into `text`. */
    void (*late)(const struct comm *comm, const struct comm_operation *operation, char *text, size_t capacity);
    bool goes_alone;                                          /* what is under way needs no polls to come to its end */
    void (*cancel)(struct comm_operation *operation);         /* gives it up; NULL: nothing to do */
    void (*free_operation)(struct comm_operation *operation); /* `messages` and `scratch` */
    enum status (*close)(struct comm *comm, bool faulted);
    void (*abort)(struct comm *comm, int exit_code) __attribute__((noreturn));
};

struct comm {
    const struct comm_backend *backend; /* NULL: one rank, nothing to move */
    void *state;                        /* the backend's */
    struct comm *host;                  /* of a communicator for device memory: the one for host memory; else NULL */
    int rank, size, node_rank, node_size;
    int *told;     /* [size] of a group: its ranks among all, as messages name them; NULL: as they are */
    int gpu_ranks; /* with `host`: ranks on this one's GPU, itself included */
    char description[64];
    double deadline_s;
    bool (*ending)(void); /* see struct comm_options */
    int64_t step;         /* -1: none */
    bool faulted;         /* a collective failed: the ranks no longer agree on what comes next */
    size_t piece_bytes;   /* a reduction works in pieces of this size, which bounds its scratch memory */
    size_t message_bytes; /* largest single message; MPI counts are int */
    size_t direct_bytes;  /* up to here a reduction sends everything to everyone, in one phase */
    struct comm_operation *active, *idle;
};

/* *comm = a zeroed communicator with the limits' defaults and the deadline from `options` or the environment. */
enum status comm_new(const struct comm_options *options, struct comm **comm);
/* A rank as messages name it: among all, also in a group. */
int comm_told(const struct comm *comm, int rank);
/* For messages: "all_reduce" or "all_reduce at step 12", in `text`. */
const char *comm_place(const struct comm *comm, const char *name, char text[96]);
/* Joins MPI and fills in `comm`. */
enum status comm_mpi_open(struct comm *comm);
/* Fills in `comm` for those ranks of `whole` that pass the same group. Every rank calls it. */
enum status comm_mpi_split(struct comm *whole, int group, struct comm *comm);

/* output[i] = sources[0][i] ∘ sources[1][i] ∘ …, always in this order, so that the bits depend neither on the algorithm
 * nor on how a tensor is cut into pieces. Output may be one of the sources. A NaN in any source gives NaN, also for
 * COMM_MAX and COMM_MIN. dtype: F32, F64, I32, I64, BF16 (combined in single precision, rounded once). */
void comm_reduce_sources(enum dtype dtype, enum comm_reduce reduce, int64_t count, int source_count,
                         const void *const *sources, void *output);

#endif
