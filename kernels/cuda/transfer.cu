/* Between host and device: copies through pinned memory, and work that is recorded once and started as one (CUDA
 * graphs). */
#include "kernels/cuda/device.cuh"

#include <cstring>
#include <new>

namespace {
constexpr int SLOTS = 8;
constexpr size_t SLOT_BYTES = static_cast<size_t>(1) << 20;
} // namespace

/* Uploads take the slots in turn and do not wait for the device, only for the copy that had the slot before. Downloads
 * use the first. */
struct staging {
    char *memory;              /* SLOTS · SLOT_BYTES, pinned */
    cudaEvent_t copied[SLOTS]; /* the slot's last copy has been made */
    int next;
};

enum status staging_open(struct device *device) {
    struct staging *staging = new (std::nothrow) struct staging();
    if (!staging) return error_set(STATUS_MEMORY, "cuda: no memory for the description of transfers");
    device->staging = staging;
    void *memory = NULL;
    CUDA_TRY(cudaMallocHost(&memory, SLOTS * SLOT_BYTES));
    staging->memory = static_cast<char *>(memory);
    for (int slot = 0; slot < SLOTS; slot++)
        CUDA_TRY(cudaEventCreateWithFlags(&staging->copied[slot], cudaEventDisableTiming));
    return STATUS_OK;
}

void staging_close(struct device *device) {
    struct staging *staging = device->staging;
    if (!staging) return;
    for (int slot = 0; slot < SLOTS; slot++) {
        if (staging->copied[slot]) cudaEventDestroy(staging->copied[slot]);
    }
    cudaFreeHost(staging->memory);
    delete staging;
    device->staging = NULL;
}

static enum status check_transfer(const char *operation, struct tensor t) {
    if (tensor_present(t) && tensor_is_contiguous(t)) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: the device's tensor must be present and contiguous", operation);
}

enum status cuda_upload(const struct ops *ops, struct tensor to, const void *host) {
    struct device *device = ops->device;
    struct staging *staging = device->staging;
    const size_t bytes = tensor_bytes(to);
    TRY(check_transfer("upload", to));
    for (size_t done = 0; done < bytes; done += SLOT_BYTES) {
        const size_t part = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
        const int slot = staging->next;
        char *from = staging->memory + static_cast<size_t>(slot) * SLOT_BYTES;
        CUDA_TRY(cudaEventSynchronize(staging->copied[slot]));
        memcpy(from, static_cast<const char *>(host) + done, part);
        CUDA_TRY(
            cudaMemcpyAsync(static_cast<char *>(to.data) + done, from, part, cudaMemcpyHostToDevice, device->stream));
        CUDA_TRY(cudaEventRecord(staging->copied[slot], device->stream));
        staging->next = (slot + 1) % SLOTS;
    }
    return STATUS_OK;
}

enum status cuda_download(const struct ops *ops, struct tensor from, void *host) {
    struct device *device = ops->device;
    struct staging *staging = device->staging;
    const size_t bytes = tensor_bytes(from);
    TRY(check_transfer("download", from));
    /* In stream order behind every upload: all slots are free once the first copy has arrived. */
    for (size_t done = 0; done < bytes; done += SLOTS * SLOT_BYTES) {
        const size_t part = bytes - done < SLOTS * SLOT_BYTES ? bytes - done : SLOTS * SLOT_BYTES;
        CUDA_TRY(cudaMemcpyAsync(staging->memory, static_cast<char *>(from.data) + done, part, cudaMemcpyDeviceToHost,
                                 device->stream));
        TRY(cuda_synchronise(ops));
        memcpy(static_cast<char *>(host) + done, staging->memory, part);
    }
    return STATUS_OK;
}

/* --- work that is repeated
 * ---------------------------------------------------------------------------------------------- */

struct recording {
    bool ran;             /* once: scratch memory and products' algorithms are as they will be */
    cudaGraphExec_t exec; /* NULL: not recorded */
    const void *scratch;  /* as it was when it was recorded */
};

static void drop_record(struct recording *recording) {
    if (recording->exec) cudaGraphExecDestroy(recording->exec);
    recording->exec = NULL;
}

static enum status record(const struct ops *ops, struct recording *recording, enum status (*work)(void *user),
                          void *user) {
    struct device *device = ops->device;
    cudaGraph_t graph = NULL;
    CUDA_TRY(cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal));
    device->capturing = true;
    enum status status = work(user);
    device->capturing = false;
    const cudaError_t ended = cudaStreamEndCapture(device->stream, &graph);
    if (status == STATUS_OK) status = cuda_status(ended, "recording work that is repeated");
    if (status == STATUS_OK) {
        status = cuda_status(cudaGraphInstantiate(&recording->exec, graph, 0), "recording work that is repeated");
    }
    if (graph) cudaGraphDestroy(graph);
    recording->scratch = device->scratch;
    return status;
}

enum status cuda_repeat(const struct ops *ops, struct recording **out, enum status (*work)(void *user), void *user) {
    if (!*out) {
        *out = new (std::nothrow) recording();
        if (!*out) return error_set(STATUS_MEMORY, "cuda: no memory for the description of recorded work");
    }
    struct recording *recording = *out;
    if (!recording->ran) {
        TRY(work(user));
        recording->ran = true;
        return STATUS_OK;
    }
    if (recording->exec && recording->scratch != ops->device->scratch)
        drop_record(recording); /* other work made scratch move */
    if (!recording->exec) TRY(record(ops, recording, work, user));
    return cuda_status(cudaGraphLaunch(recording->exec, ops->device->stream), "starting recorded work");
}

void cuda_forget(const struct ops *ops, struct recording **recording) {
    if (!*recording) return;
    cudaStreamSynchronize(ops->device->stream);
    drop_record(*recording);
    delete *recording;
    *recording = NULL;
}
