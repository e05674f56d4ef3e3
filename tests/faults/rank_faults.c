/* What a squint is linked with whose rank fails when it is told to (rank_faults.sh): the linker exchanges a few
 * functions (--wrap, CMakeLists.txt), and
 *   SQUINT_FAULT="HOW WHERE RANK STEP"
 * makes rank RANK in step STEP die (kill), stop (stop), leave a collective out (skip), or wait until there is a file
 * $SQUINT_FAULT_MARK.done (wait), by when others have done some harm:
 *   start     before MPI is started (STEP: 0)
 *   load      before it reads its samples; skip: the reduction that counts their targets
 *   backward  between two operations of the backward pass; skip: the next collective
 *   reduce    when the gradients' reduction has begun; skip: that reduction
 *   save      when its own file of the checkpoint is written; skip: the ranks' agreement on it
 * The file $SQUINT_FAULT_MARK is made at that instant. */
#include "comm/comm.h"
#include "commands/device.h"
#include "io/checkpoint.h"
#include "train/batches.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Of a step: two micro-steps of a GPT-2 with two layers, which has five norms. */
enum { NORM_OF_FAULT = 8 };
enum { AGREEMENT_OF_FAULT = 3 /* of a checkpoint: on every rank's own file */ };

static char how[8], where[16];
static int fault_rank, norms, agreements;
static int64_t fault_step;
static bool mine;     /* this rank, in this step */
static bool saving;   /* inside checkpoint_save */
static bool skipping; /* the next collective is left out */

static void read_fault(void) {
    const char *text = getenv("SQUINT_FAULT");
    long long step = -1;
    if (!text || how[0]) return;
    if (sscanf(text, "%7s %15s %d %lld", how, where, &fault_rank, &step) != 4) {
        fprintf(stderr, "SQUINT_FAULT: expected \"HOW WHERE RANK STEP\", found \"%s\"\n", text);
        _exit(2);
    }
    fault_step = step;
}

static void await_harm(const char *mark) {
    char done[512];
    snprintf(done, sizeof done, "%s.done", mark ? mark : "");
    while (access(done, F_OK) != 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void strike(const char *here) {
    if (!mine || strcmp(here, where) != 0) return;
    mine = false;
    const char *mark = getenv("SQUINT_FAULT_MARK");
    if (mark) close(open(mark, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600));
    if (strcmp(how, "skip") == 0) skipping = true;
    if (strcmp(how, "kill") == 0) kill(getpid(), SIGKILL);
    if (strcmp(how, "stop") == 0) kill(getpid(), SIGSTOP);
    if (strcmp(how, "wait") == 0) await_harm(mark);
}

static bool skips(void) {
    bool skip = skipping;
    skipping = false;
    return skip;
}

void __real_comm_set_step(struct comm *comm, int64_t step);
void __wrap_comm_set_step(struct comm *comm, int64_t step) {
    read_fault();
    mine = how[0] && step == fault_step && comm_rank(comm) == fault_rank;
    norms = agreements = 0;
    __real_comm_set_step(comm, step);
}

/* --- start -------------------------------------------------------------------------------------------------------- */

enum status __real_comm_mpi_open(struct comm *comm);
enum status __wrap_comm_mpi_open(struct comm *comm);
enum status __wrap_comm_mpi_open(struct comm *comm) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    read_fault();
    mine = rank && how[0] && atoi(rank) == fault_rank;
    strike("start");
    mine = false;
    return __real_comm_mpi_open(comm);
}

/* --- load --------------------------------------------------------------------------------------------------------- */

void __real_batches_read(const struct batches *batches, int64_t first, int64_t count, int32_t *ids, int32_t *targets,
                         int32_t *start);
void __wrap_batches_read(const struct batches *batches, int64_t first, int64_t count, int32_t *ids, int32_t *targets,
                         int32_t *start) {
    strike("load");
    __real_batches_read(batches, first, count, ids, targets, start);
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

static enum status (*table_norm_backward)(const struct ops *ops, const struct norm_backward *arguments);

static enum status norm_backward(const struct ops *ops, const struct norm_backward *arguments) {
    if (++norms == NORM_OF_FAULT) strike("backward");
    return table_norm_backward(ops, arguments);
}

/* The table is a copy of the run's own. */
enum status __real_device_choose(const char *name, bool bf16, const struct ops_options *options,
                                 const struct ops **ops);
enum status __wrap_device_choose(const char *name, bool bf16, const struct ops_options *options,
                                 const struct ops **ops) {
    TRY(__real_device_choose(name, bf16, options, ops));
    struct ops *table = (struct ops *)(uintptr_t)*ops;
    table_norm_backward = table->norm_backward;
    table->norm_backward = norm_backward;
    return STATUS_OK;
}

/* --- collectives -------------------------------------------------------------------------------------------------- */

/* Gradients alone are of this type, in a reduction of a step. */
static bool is_gradients(struct tensor data) {
    return data.dtype == DTYPE_F32 && !saving;
}

/* Before and after a reduction begins. true: it is left out. */
static bool before_reduction(struct tensor data, struct comm_request *request) {
    *request = (struct comm_request){NULL};
    if (strcmp(how, "skip") == 0 && is_gradients(data)) strike("reduce");
    return skips();
}
static void after_reduction(struct tensor data) {
    if (strcmp(how, "skip") != 0 && is_gradients(data)) strike("reduce");
}

enum status __real_comm_all_reduce_start(struct comm *comm, struct tensor data, enum comm_reduce reduce,
                                         struct comm_request *request);
enum status __wrap_comm_all_reduce_start(struct comm *comm, struct tensor data, enum comm_reduce reduce,
                                         struct comm_request *request) {
    if (before_reduction(data, request)) return STATUS_OK;
    TRY(__real_comm_all_reduce_start(comm, data, reduce, request));
    after_reduction(data);
    return STATUS_OK;
}

enum status __wrap_comm_all_reduce(struct comm *comm, struct tensor data, enum comm_reduce reduce);
enum status __wrap_comm_all_reduce(struct comm *comm, struct tensor data, enum comm_reduce reduce) {
    struct comm_request request;
    TRY(__wrap_comm_all_reduce_start(comm, data, reduce, &request));
    return comm_end(comm, &request);
}

enum status __real_comm_reduce_scatter_start(struct comm *comm, struct tensor input, struct tensor output,
                                             enum comm_reduce reduce, struct comm_request *request);
enum status __wrap_comm_reduce_scatter_start(struct comm *comm, struct tensor input, struct tensor output,
                                             enum comm_reduce reduce, struct comm_request *request) {
    if (before_reduction(input, request)) return STATUS_OK;
    TRY(__real_comm_reduce_scatter_start(comm, input, output, reduce, request));
    after_reduction(input);
    return STATUS_OK;
}

enum status __real_comm_agree(struct comm *comm, enum status status);
enum status __wrap_comm_agree(struct comm *comm, enum status status) {
    if (saving && ++agreements == AGREEMENT_OF_FAULT) strike("save");
    return skips() ? status : __real_comm_agree(comm, status);
}

enum status __real_comm_all_gather(struct comm *comm, struct tensor input, struct tensor output);
enum status __wrap_comm_all_gather(struct comm *comm, struct tensor input, struct tensor output) {
    return skips() ? STATUS_OK : __real_comm_all_gather(comm, input, output);
}

/* --- save --------------------------------------------------------------------------------------------------------- */

enum status __real_checkpoint_save(struct comm *comm, const char *run_directory, int64_t step,
                                   const struct checkpoint_item *items, size_t item_count,
                                   const struct checkpoint_attribute *attributes, size_t attribute_count);
enum status __wrap_checkpoint_save(struct comm *comm, const char *run_directory, int64_t step,
                                   const struct checkpoint_item *items, size_t item_count,
                                   const struct checkpoint_attribute *attributes, size_t attribute_count) {
    saving = true;
    enum status status =
        __real_checkpoint_save(comm, run_directory, step, items, item_count, attributes, attribute_count);
    saving = false;
    return status;
}
