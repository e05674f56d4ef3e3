/* The table of test_comm.c over NCCL: here over its stand-in, whose device memory is the host's. */
#include "comm/comm.h"

#include "standin.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#define LIBRARY "NCCL 2.28.9"

static struct comm *comm, *host;
static cudaStream_t stream;

static enum status open_ranks(void) {
    TRY(comm_open(NULL, &host));
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return STATUS_FAILED;
    return comm_open_nccl(host, stream, &comm);
}

static enum status close_ranks(void) {
    enum status status = comm_close(&comm);
    KEEP_FIRST(status, comm_close(&host));
    cudaStreamDestroy(stream);
    if (standin_alive() != 0) return error_set(STATUS_FAILED, "%ld streams, events or communicators are left", standin_alive());
    return status;
}

#include "test_comm.c"
