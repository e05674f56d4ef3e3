/* What squint doctor says of NCCL, over its stand-in and a table of operations whose device memory is the host's. */
#include "commands/doctor.h"

#include "standin.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cudaStream_t stream;
static float added; /* a fault: what the device makes of a number */

static enum status allocate(const struct ops *ops, size_t bytes, void **block) {
    (void)ops;
    *block = malloc(bytes);
    return *block ? STATUS_OK : STATUS_MEMORY;
}
static void release(const struct ops *ops, void *block) {
    (void)ops;
    free(block);
}
static enum status upload(const struct ops *ops, struct tensor device, const void *from) {
    (void)ops;
    *(float *)device.data = *(const float *)from + added;
    return STATUS_OK;
}
static enum status download(const struct ops *ops, struct tensor device, void *to) {
    (void)ops;
    memcpy(to, device.data, tensor_bytes(device));
    return STATUS_OK;
}
static enum status synchronise(const struct ops *ops) {
    (void)ops;
    return STATUS_OK;
}
static void *stream_of(const struct ops *ops) {
    (void)ops;
    return stream;
}
static const struct ops table = {.allocate = allocate,
                                 .release = release,
                                 .upload = upload,
                                 .download = download,
                                 .synchronise = synchronise,
                                 .stream = stream_of};

struct row {
    const char *name;
    int version, shared, without; /* without: only rank 0 has no GPU */
    float added;
    const char *failing;      /* a function of NCCL */
    int32_t level, level_one; /* of several ranks; of one */
    const char *found, *fix;  /* parts of what is said by several ranks */
};

static const struct row rows[] = {
    {"all is well", 22809, 0, 0, 0, NULL, LEVEL_OK, LEVEL_OK, "NCCL 2.28.9 on all ranks, and it adds up", ""},
    {"too old", 21800, 0, 0, 0, NULL, LEVEL_WARN, LEVEL_OK, "expected version 2.19 or later, found 2.18.0",
     "NCCL 2.19 or later"},
    {"one GPU for all", 22809, 1, 0, 0, NULL, LEVEL_FAIL, LEVEL_OK, "ranks 0 and 1 share GPU", "NCCL_DEBUG=INFO"},
    {"a rank without a GPU", 22809, 0, 1, 0, NULL, LEVEL_OK, LEVEL_OK, "not ", ""},
    {"a wrong sum", 22809, 0, 0, 1, NULL, LEVEL_FAIL, LEVEL_FAIL, "adds up wrong: ", NULL},
    {"it does not start", 22809, 0, 0, 0, "ncclCommInitRankConfig", LEVEL_FAIL, LEVEL_FAIL, "starting NCCL",
     "NCCL_DEBUG=INFO"},
    {"well again", 22809, 0, 0, 0, NULL, LEVEL_OK, LEVEL_OK, "and it adds up", ""},
};

static int check_row(struct comm *comm, const struct row *row) {
    struct doctor d = {.comm = comm, .rank = comm_rank(comm), .size = comm_size(comm), .device = "auto", .ops = &table};
    struct finding f = {.level = LEVEL_OK};
    const int32_t level = d.size > 1 ? row->level : row->level_one;
    if (row->without && d.rank == 0) d.ops = NULL;
    standin_set_version(row->version);
    standin_share_gpu(row->shared);
    standin_fail(row->failing, 1, 3);
    added = row->added;
    const enum status status = doctor_nccl(&d, &f);
    standin_fail(NULL, 0, 0);
    if (status == STATUS_OK && f.level == level &&
        (d.size == 1 || (strstr(f.found, row->found) && (!row->fix || strstr(f.fix, row->fix)))) && !error_message()[0])
        return 0;
    fprintf(
        stderr,
        "rank %d of %d: %s: expected level %d, \"%s\", \"%s\"; found %s, level %d, \"%s\", \"%s\", left over \"%s\"\n",
        d.rank, d.size, row->name, level, row->found, row->fix ? row->fix : "", status_name(status), f.level, f.found,
        f.fix, error_message());
    return 1;
}

int main(void) {
    struct comm *comm = NULL;
    int failures = 0;
    unsetenv("NCCL_MULTI_RANK_GPU_ENABLE");
    if (comm_open(NULL, &comm) != STATUS_OK || cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess)
        return 1;
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) failures += check_row(comm, &rows[n]);
    if (comm_rank(comm) == 0) printf("%zu rows, %d wrong\n", sizeof rows / sizeof *rows, failures);
    if (comm_close(&comm) != STATUS_OK) failures++;
    cudaStreamDestroy(stream);
    return failures ? 1 : 0;
}
