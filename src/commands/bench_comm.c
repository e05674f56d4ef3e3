/* squint bench comm: how fast the ranks move bytes, collective by collective and size by size.
 *
 * Bus bandwidth is what each rank's link would have to carry if the collective used the least traffic there is, so that numbers of different
 * collectives and numbers of ranks compare with the hardware's: the bytes S of the whole buffer over the time, times the share of S that must
 * pass each link. Of n ranks, a sum of S bytes must leave each rank and come back, less its own part: 2(n−1)/n; to hand out parts or to
 * gather them: (n−1)/n; a broadcast and a ring of sends: 1. (nccl-tests counts alike.) */
#include "commands/bench_comm.h"

#include "base/log.h"
#include "base/memory.h"
#include "comm/comm.h"
#include "commands/command.h"
#include "commands/device.h"
#include "commands/ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZES_MAX = 32, WARM_UPS = 2 };

struct bench_comm {
    struct comm *comm, *gpu; /* gpu: NULL where the table has the host's memory */
    const struct ops *ops;
    struct tensor send, receive; /* [most] F32 */
    int64_t repeats;
};

enum collective { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, RING, COLLECTIVES };
static const char *const names[COLLECTIVES] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "ring"};

static double share_of(enum collective collective, int ranks) {
    const double others = (double)(ranks - 1) / ranks;
    return collective == ALL_REDUCE ? 2 * others : collective == REDUCE_SCATTER || collective == ALL_GATHER ? others : 1;
}

/* Once, on `count` elements in all, a multiple of the ranks. */
static enum status run_once(const struct bench_comm *b, enum collective collective, int64_t count) {
    struct comm *comm = b->gpu ? b->gpu : b->comm;
    const int rank = comm_rank(comm), size = comm_size(comm);
    const struct tensor whole = tensor_rows(b->send, 0, count), part = tensor_rows(b->receive, 0, count / size);
    switch (collective) {
    case ALL_REDUCE:
        return comm_all_reduce(comm, whole, COMM_MAX); /* stays what it is, however often */
    case REDUCE_SCATTER:
        return comm_reduce_scatter(comm, whole, part, COMM_SUM);
    case ALL_GATHER:
        return comm_all_gather(comm, part, whole);
    case BROADCAST:
        return comm_broadcast(comm, whole, 0);
    default:
        return comm_send_receive(comm, whole, (rank + 1) % size, tensor_rows(b->receive, 0, count), (rank + size - 1) % size);
    }
}

/* *seconds: of one, on the slowest rank. */
static enum status measure(const struct bench_comm *b, enum collective collective, int64_t count, double *seconds) {
    for (int n = 0; n < WARM_UPS; n++) TRY(run_once(b, collective, count));
    TRY(b->ops->synchronise(b->ops));
    TRY(comm_barrier(b->comm));
    const double begun_s = time_now_s();
    for (int64_t n = 0; n < b->repeats; n++) TRY(run_once(b, collective, count));
    TRY(b->ops->synchronise(b->ops));
    *seconds = (time_now_s() - begun_s) / (double)b->repeats;
    return comm_all_reduce(b->comm, tensor_1d(seconds, DTYPE_F64, 1), COMM_MAX);
}

static void print_row(const struct bench_comm *b, enum collective collective, int64_t bytes, double seconds, bool json, bool first) {
    const double rate = (double)bytes / seconds, bus = rate * share_of(collective, comm_size(b->comm));
    char size[16];
    if (json) {
        printf("%s{\"collective\": \"%s\", \"bytes\": %lld, \"seconds\": %.9f, \"bytes_per_second\": %.4g, \"bus_bytes_per_second\": %.4g}",
               first ? "" : ", ", names[collective], (long long)bytes, seconds, rate, bus);
        return;
    }
    bytes_text((double)bytes, size);
    printf("%-15s %10s %12.1f us %9.3f GB/s %9.3f GB/s\n", names[collective], size, 1e6 * seconds, rate / 1e9, bus / 1e9);
    fflush(stdout);
}

static enum status run_all(const struct bench_comm *b, const int64_t *sizes, int size_count, bool json) {
    const int ranks = comm_size(b->comm);
    const bool speaks = comm_rank(b->comm) == 0;
    if (speaks && json)
        printf("{\"bench\": \"comm\", \"ranks\": %d, \"over\": \"%s\", \"rows\": [", ranks, comm_describe(b->gpu ? b->gpu : b->comm));
    if (speaks && !json)
        printf("%d ranks over %s\n%-15s %10s %15s %14s %14s\n", ranks, comm_describe(b->gpu ? b->gpu : b->comm), "", "bytes", "time",
               "bytes/time", "bus");
    for (int c = 0; c < COLLECTIVES; c++)
        for (int n = 0; n < size_count; n++) {
            const int64_t count = (sizes[n] / 4 + ranks - 1) / ranks * ranks;
            double seconds = 0;
            TRY(measure(b, (enum collective)c, count, &seconds));
            if (speaks) print_row(b, (enum collective)c, 4 * count, seconds, json, c == 0 && n == 0);
        }
    if (speaks && json) printf("]}\n");
    return STATUS_OK;
}

static enum status open_all(struct bench_comm *b, const char *device, int64_t most) {
    void *blocks[2] = {NULL, NULL};
    const struct ops_options options = {.threads = 1, .node_rank = comm_node_rank(b->comm)};
    const int64_t count = (most / 4 + comm_size(b->comm)) / comm_size(b->comm) * comm_size(b->comm);
    enum status status = device_choose(device, false, &options, &b->ops);
    for (int n = 0; n < 2 && status == STATUS_OK; n++) {
        status = b->ops->allocate(b->ops, (size_t)count * sizeof(float), &blocks[n]);
        *(n ? &b->receive : &b->send) = tensor_1d(blocks[n], DTYPE_F32, count);
    }
    if (status == STATUS_OK) status = b->ops->fill(b->ops, b->send, 0.5);
    if (status == STATUS_OK) status = b->ops->fill(b->ops, b->receive, 0.25);
    TRY(comm_agree(b->comm, status));
    return b->ops->host_memory ? STATUS_OK : comm_open_nccl(b->comm, b->ops->stream(b->ops), &b->gpu);
}

enum status bench_comm(int argc, char **argv) {
    int64_t sizes[SIZES_MAX] = {1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 26}, most = 0;
    int size_count = 5;
    const char *device = "cpu";
    bool json = false;
    struct bench_comm b = {.repeats = 20};
    struct option_list of_sizes = {0};
    const struct option table[] = {
        {"sizes", OPTION_LIST, &of_sizes, 0, 0},
        {"repeats", OPTION_INTEGER, &b.repeats, 1, 1e6},
        {"device", OPTION_TEXT, &device, 0, 0},
        {"json", OPTION_FLAG, &json, 0, 0},
    };
    enum status status;
    TRY_GOTO(done, options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    TRY_GOTO(done, options_numbers(argv[0], "sizes", &of_sizes, INT64_C(1) << 36, SIZES_MAX, sizes, &size_count));
    for (int n = 0; n < size_count; n++) most = sizes[n] > most ? sizes[n] : most;
    TRY_GOTO(done, comm_open(NULL, &b.comm));
    log_start(comm_rank(b.comm), false);
    if (comm_size(b.comm) == 1) {
        status = error_set(STATUS_USAGE, "bench comm: expected two ranks or more, found one; start it under mpirun");
        goto done;
    }
    TRY_GOTO(done, open_all(&b, device, most));
    TRY_GOTO(done, run_all(&b, sizes, size_count, json));
done:
    KEEP_FIRST(status, comm_close(&b.gpu));
    if (b.ops) {
        b.ops->release(b.ops, b.send.data);
        b.ops->release(b.ops, b.receive.data);
        b.ops->close(b.ops);
    }
    if (b.comm) ranks_leave_message(comm_rank(b.comm), status);
    KEEP_FIRST(status, comm_close(&b.comm));
    options_free(&of_sizes);
    return status;
}
