// A stand-in for comm/comm_nccl.c in the program on the simulated GPU: collectives on its memory, which is the host's,
// over MPI. As with NCCL, a collective sees what was started on the stream before it. $SQUINT_SIMT_NCCL asks for it;
// else there is no NCCL.
extern "C" {
#include "comm/comm_internal.h"
}

#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

namespace {

enum status start(struct comm *comm, struct comm_operation *operation) {
    const cudaError_t error = cudaStreamSynchronize(static_cast<cudaStream_t>(comm->state));
    if (error != cudaSuccess)
        return error_set(STATUS_FAILED, "%s: CUDA: %s", operation->name, cudaGetErrorString(error));
    return comm->host->backend->start(comm->host, operation);
}

enum status poll(struct comm *comm, struct comm_operation *operation, bool *done, bool *moved) {
    return comm->host->backend->poll(comm->host, operation, done, moved);
}

void late(const struct comm *comm, const struct comm_operation *operation, char *text, size_t capacity) {
    comm->host->backend->late(comm->host, operation, text, capacity);
}

comm_backend backend; // what is not here is MPI's

enum status close(struct comm *, bool) {
    return STATUS_OK;
}

[[noreturn]] void abort_ranks(struct comm *comm, int exit_code) {
    comm_abort(comm->host, exit_code);
}

} // namespace

extern "C" enum status comm_open_nccl(struct comm *host, void *stream, struct comm **out) {
    *out = nullptr;
    if (!std::getenv("SQUINT_SIMT_NCCL") || !host->backend) {
        return comm_agree(host, error_set(STATUS_NOT_FOUND, "NCCL: this program was built without it"));
    }
    struct comm *comm = nullptr;
    TRY(comm_agree(host, comm_new(nullptr, &comm)));
    backend.start = start;
    backend.poll = poll;
    backend.late = late;
    backend.cancel = host->backend->cancel;
    backend.free_operation = host->backend->free_operation;
    backend.close = close;
    backend.abort = abort_ranks;
    comm->backend = &backend;
    comm->state = stream;
    comm->host = host;
    comm->rank = host->rank;
    comm->size = host->size;
    comm->node_rank = host->node_rank;
    comm->node_size = host->node_size;
    comm->gpu_ranks = host->size;
    std::snprintf(comm->description, sizeof comm->description, "NCCL's part played by MPI");
    *out = comm;
    return STATUS_OK;
}
