/* The runtime's calls: device memory, streams, events, graphs. Work on a stream is queued and done when somebody waits
 * for it, so that a missing wait is seen; a captured graph keeps its work and its arguments. */
#include "tests/simt/internal.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <vector>

struct simt_graph {
    std::vector<std::function<void()>> work;
};
struct simt_stream {
    std::deque<std::function<void()>> queue;
    simt_graph *capture;
};
struct simt_event {
    simt_stream *stream;
    size_t behind; /* items of its stream's queue that come before it */
};

namespace {

/* Of a block: as an H100 has it, or what SIMT_SHARED_KIB says (163: an A100). */
const int shared_most = [] {
    const char *kib = getenv("SIMT_SHARED_KIB");
    return (kib ? atoi(kib) : 227) << 10;
}();

std::map<const char *, size_t> device_blocks, pinned_blocks;
std::vector<simt_stream *> streams;
std::map<const void *, size_t> allowed_shared;
size_t in_use;
long fail_in;
cudaError_t fail_with = cudaSuccess;
const size_t capacity = static_cast<size_t>(4) << 30;

bool inside(const std::map<const char *, size_t> &blocks, const void *at, size_t bytes) {
    const char *from = static_cast<const char *>(at);
    auto next = blocks.upper_bound(from);
    if (next == blocks.begin()) return false;
    --next;
    return from + bytes <= next->first + next->second;
}

#define MAY_FAIL()                                                                                                     \
    do {                                                                                                               \
        const cudaError_t may_fail_ = simt_maybe_fail();                                                               \
        if (may_fail_ != cudaSuccess) return may_fail_;                                                                \
    } while (0)

void drain(simt_stream *stream) {
    while (!stream->queue.empty()) {
        auto work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
    }
}

void drain_all() {
    for (simt_stream *stream : streams) drain(stream);
}

[[noreturn]] void misuse(const char *what) {
    fprintf(stderr, "simt: %s\n", what);
    abort();
}
} // namespace

cudaError_t simt_maybe_fail() {
    simt_counters()->calls++;
    if (fail_with == cudaSuccess || fail_in-- > 0) return cudaSuccess;
    const cudaError_t error = fail_with;
    fail_with = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    default:
        return "an error";
    }
}
cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    MAY_FAIL();
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) {
    MAY_FAIL();
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    MAY_FAIL();
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "host fibers");
    properties->totalGlobalMem = capacity;
    properties->sharedMemPerBlockOptin = shared_most;
    properties->major = 9;
    properties->multiProcessorCount = 4;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    MAY_FAIL();
    *free_bytes = capacity - in_use;
    *total = capacity;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **at, size_t bytes) {
    *at = nullptr;
    MAY_FAIL();
    if (bytes > capacity - in_use) return cudaErrorMemoryAllocation;
    void *block = nullptr;
    if (posix_memalign(&block, 256, bytes ? bytes : 1) != 0) return cudaErrorMemoryAllocation;
    memset(block, 0xff, bytes);
    device_blocks[static_cast<char *>(block)] = bytes;
    in_use += bytes;
    simt_counters()->allocations++;
    *at = block;
    return cudaSuccess;
}

cudaError_t cudaFree(void *at) {
    if (!at) return cudaSuccess;
    auto found = device_blocks.find(static_cast<char *>(at));
    if (found == device_blocks.end()) misuse("cudaFree of what cudaMalloc did not give");
    drain_all();
    in_use -= found->second;
    device_blocks.erase(found);
    simt_counters()->freed++;
    free(at);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **at, size_t bytes) {
    *at = nullptr;
    MAY_FAIL();
    *at = malloc(bytes ? bytes : 1);
    if (!*at) return cudaErrorMemoryAllocation;
    pinned_blocks[static_cast<char *>(*at)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *at) {
    if (!at) return cudaSuccess;
    if (pinned_blocks.erase(static_cast<char *>(at)) == 0) misuse("cudaFreeHost of what cudaMallocHost did not give");
    drain_all();
    free(at);
    return cudaSuccess;
}

cudaError_t simt_enqueue(cudaStream_t stream, std::function<void()> work) {
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
    } else {
        stream->queue.push_back(std::move(work));
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    MAY_FAIL();
    const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
    if (bytes > 0 &&
        ((to_device && !inside(device_blocks, to, bytes)) || (from_device && !inside(device_blocks, from, bytes)))) {
        misuse("cudaMemcpyAsync: the device's side is not device memory");
    }
    const void *host = to_device ? from : to;
    const bool pinned = inside(pinned_blocks, host, bytes), hosted = kind != cudaMemcpyDeviceToDevice;
    if (stream->capture && hosted && !pinned) misuse("a captured copy from or to memory that is not pinned");
    if (hosted && !pinned && to_device) { /* CUDA takes a copy of pageable memory before it returns */
        std::vector<char> held(static_cast<const char *>(from), static_cast<const char *>(from) + bytes);
        return simt_enqueue(stream, [to, held] { memcpy(to, held.data(), held.size()); });
    }
    simt_enqueue(stream, [to, from, bytes] { memmove(to, from, bytes); });
    if (hosted && !pinned) drain(stream); /* into pageable memory: it has arrived when the call returns */
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream) {
    MAY_FAIL();
    if (bytes > 0 && !inside(device_blocks, at, bytes)) misuse("cudaMemsetAsync: not device memory");
    return simt_enqueue(stream, [at, value, bytes] { memset(at, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    MAY_FAIL();
    *stream = new simt_stream();
    streams.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    drain(stream);
    for (size_t n = 0; n < streams.size(); n++) {
        if (streams[n] == stream) streams.erase(streams.begin() + static_cast<long>(n));
    }
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream->capture) misuse("a wait inside a capture");
    drain(stream);
    MAY_FAIL();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    MAY_FAIL();
    *event = new simt_event();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    MAY_FAIL();
    event->stream = stream;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->stream) drain(event->stream);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    MAY_FAIL();
    if (stream->capture) misuse("a capture inside a capture");
    drain(stream);
    stream->capture = new simt_graph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = stream->capture;
    stream->capture = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = nullptr;
    MAY_FAIL();
    *exec = new simt_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    MAY_FAIL();
    for (const auto &work : exec->work) simt_enqueue(stream, work);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    MAY_FAIL();
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value > shared_most) return cudaErrorInvalidValue;
        allowed_shared[function] = static_cast<size_t>(value);
    }
    return cudaSuccess;
}

cudaError_t simt_launch(const cudaLaunchConfig_t *config, const void *function, std::function<void()> body) {
    MAY_FAIL();
    const dim3 grid = config->gridDim, block = config->blockDim;
    const size_t shared = config->dynamicSmemBytes, threads = static_cast<size_t>(block.x) * block.y * block.z;
    const size_t allowed = allowed_shared.count(function) ? allowed_shared[function] : 48 << 10;
    if (threads == 0 || threads > 1024 || shared > allowed || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    return simt_enqueue(config->stream, [=] { simt_run_grid(grid, block, shared, body); });
}

extern "C" bool simt_is_device(const void *at) {
    return inside(device_blocks, at, 1);
}
extern "C" void simt_fail_call(long n, int error) {
    fail_in = n;
    fail_with = static_cast<cudaError_t>(error);
}
