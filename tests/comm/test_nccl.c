/* The table of test_comm.c over NCCL: here over its stand-in, whose device memory is the host's. */
#include "comm/comm.h"

#include "standin.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "NCCL 2.28.9"

static struct comm *comm, *host;
static cudaStream_t stream;

/* Several ranks on one GPU are refused by name, unless NCCL can do it and is asked to. */
static enum status try_sharing(void) {
    static const struct {
        int version;
        const char *enable;
        bool refused;
    } rows[] = {{22809, "0", true}, {22809, "1", true}, {23003, "0", true}, {23003, "1", false}};
    standin_share_gpu(1);
    for (int n = 0; n < 4; n++) {
        standin_set_version(rows[n].version);
        setenv("NCCL_MULTI_RANK_GPU_ENABLE", rows[n].enable, 1);
        const bool refused = comm_size(host) > 1 && rows[n].refused;
        const enum status status = comm_open_nccl(host, stream, &comm);
        if (status != (refused ? STATUS_USAGE : STATUS_OK) ||
            (refused && !strstr(error_message(), "ranks 0 and 1 share GPU 0000:17:00.0 of ")))
            return error_set(STATUS_FAILED, "row %d of sharing: found %s: %s", n, status_name(status), error_message());
        if (comm && comm_memory_ranks(comm) != comm_size(host))
            return error_set(STATUS_FAILED, "expected %d ranks on the GPU, found %d", comm_size(host), comm_memory_ranks(comm));
        error_clear();
        TRY(comm_close(&comm));
    }
    standin_share_gpu(0);
    standin_set_version(22809);
    return STATUS_OK;
}

static enum status open_ranks(void) {
    TRY(comm_open(NULL, &host));
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return STATUS_FAILED;
    TRY(try_sharing());
    return comm_open_nccl(host, stream, &comm);
}

static enum status close_ranks(void) {
    enum status status = comm_close(&comm);
    KEEP_FIRST(status, comm_close(&host));
    cudaStreamDestroy(stream);
    if (standin_alive() != 0)
        return error_set(STATUS_FAILED, "%ld streams, events or communicators are left", standin_alive());
    return status;
}

#include "test_comm.c"
