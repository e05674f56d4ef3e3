/* The table of tests/comm/test_comm.c over NCCL itself, on memory that the GPU reaches; and collectives between
 * operations of the CUDA table, in its own memory, without a wait in between. Under mpirun, one rank a GPU, or several
 * where NCCL lets them share one. */
#include "comm/comm.h"
#include "kernels/ops.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pinned memory of the host: GPU and test read it by the same address. */
static void *take_pinned(size_t bytes) {
    void *data = NULL;
    return cudaMallocHost(&data, bytes) == cudaSuccess ? memset(data, 0, bytes) : NULL;
}

#define LIBRARY            "NCCL 2."
#define TAKE_MEMORY(bytes) take_pinned(bytes)
#define GIVE_MEMORY(data)  ((void)cudaFreeHost(data))
#define NAN_KEEPERS        1     /* NCCL's largest and smallest may lose a NaN */
#define RANK_ORDER         false /* it adds as its rings and trees go */

static struct comm *comm, *host;
static const struct ops *ops;

static enum status open_ranks(void) {
    TRY(comm_open(NULL, &host));
    enum status status =
        ops_open("cuda-f32", &(struct ops_options){.threads = 1, .node_rank = comm_node_rank(host)}, &ops);
    status = comm_agree(host, status);
    if (status == STATUS_OK) status = comm_open_nccl(host, ops->stream(ops), &comm);
    if (status != STATUS_NOT_FOUND) return status;
    printf("skipped: %s\n", error_message());
    (void)comm_close(&host);
    exit(77);
}

static enum status close_ranks(void) {
    enum status status = comm_close(&comm);
    KEEP_FIRST(status, comm_close(&host));
    ops->close(ops);
    return status;
}

#define MORE_TESTS cmocka_unit_test(test_between_operations),
static void test_between_operations(void **state);
#include "../comm/test_comm.c"

/* x = rank + 1 everywhere; summed over the ranks; halved; its own part gathered back from all. */
static void test_between_operations(void **state) {
    (void)state;
    const int64_t part = 250001, count = part * size;
    const double sum = size * (size + 1) / 2.0;
    void *data = NULL;
    float *found = malloc((size_t)count * sizeof *found);
    assert_non_null(found);
    ok(ops->allocate(ops, (size_t)count * sizeof *found, &data));
    const struct tensor x = tensor_1d(data, DTYPE_F32, count), own = tensor_rows(x, rank * part, part);
    for (int round = 0; round < 20; round++) {
        struct comm_request request;
        ok(ops->fill(ops, x, rank + 1));
        ok(comm_all_reduce_start(comm, x, COMM_SUM, &request));
        ok(comm_end(comm, &request));
        ok(ops->scale(ops, 0.5, x));
        ok(ops->fill(ops, own, rank));
        ok(comm_all_gather(comm, own, x));
        ok(ops->scale(ops, 2, own));
        ok(ops->download(ops, x, found));
        for (int64_t i = 0; i < count; i++) {
            const double expected = (double)(i / part) * (i / part == rank ? 2 : 1);
            check_value("between operations", DTYPE_F32, count, i, expected, (double)found[i]);
        }
        ok(ops->fill(ops, x, rank + 1));
        ok(comm_reduce_scatter(comm, x, own, COMM_SUM));
        ok(ops->download(ops, own, found));
        for (int64_t i = 0; i < part; i++) check_value("reduce_scatter", DTYPE_F32, part, i, sum, (double)found[i]);
    }
    ops->release(ops, data);
    free(found);
}
