/* Stands in for CUDA's header of this name when tests/simt compiles kernels/cuda for the host: the part of the runtime
 * and of the device functions that squint uses. Kernels are executed by tests/simt/simt.cc, a fiber a thread. */
#ifndef SQUINT_SIMT_CUDA_RUNTIME_H
#define SQUINT_SIMT_CUDA_RUNTIME_H

#define SQUINT_SIMT 1

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
inline int2 make_int2(int x, int y) {
    return {x, y};
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}

/* --- threads --------------------------------------------------------------------------------------------------------
 */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);
[[noreturn]] void __trap();

enum { SIMT_SLOT = 64 /* bytes that a lane can bring */, SIMT_RESULT = 16 /* and take away */ };
/* What every lane of `mask` brought, until the caller's next warp operation; NULL for lanes outside of it. */
struct simt_values {
    const char *slots;
    unsigned mask;
    const char *operator[](unsigned lane) const {
        return mask >> lane & 1 ? slots + lane * SIMT_SLOT : nullptr;
    }
};
simt_values simt_exchange(unsigned mask, const void *value, size_t size);
/* All 32 lanes bring `size` bytes; `combine` makes of them each lane's result [32][SIMT_RESULT], once, when all are there. The caller's
 * own, until its next warp operation. */
typedef void simt_combine(const char *slots, char *results);
const char *simt_together(const void *value, size_t size, simt_combine *combine);
extern unsigned simt_thread; /* of its block, by number */
inline unsigned simt_lane() {
    return simt_thread % 32;
}

template <class T> T simt_shuffle(unsigned mask, T value, unsigned source) {
    const simt_values all = simt_exchange(mask, &value, sizeof value);
    T result;
    /* A lane outside of the mask has no value to give: CUDA leaves it undefined, here it is a fault. */
    if (!all[source]) __trap();
    memcpy(&result, all[source], sizeof result);
    return result;
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = simt_lane(), w = static_cast<unsigned>(width);
    return simt_shuffle(mask, value, (lane & ~(w - 1)) + (static_cast<unsigned>(source) & (w - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned lane = simt_lane(), other = lane ^ static_cast<unsigned>(bits), w = static_cast<unsigned>(width);
    return simt_shuffle(mask, value, other / w > lane / w ? lane : other);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = simt_lane(), w = static_cast<unsigned>(width);
    return simt_shuffle(mask, value, lane % w >= by ? lane - by : lane);
}
unsigned __ballot_sync(unsigned mask, int predicate);
inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}

/* Another thread may run before it. */
void simt_atomic();
template <class T> T simt_exchange_add(T *at, T value) {
    simt_atomic();
    const T before = *at;
    *at = before + value;
    return before;
}
inline int atomicAdd(int *at, int value) {
    return simt_exchange_add(at, value);
}
inline unsigned atomicAdd(unsigned *at, unsigned value) {
    return simt_exchange_add(at, value);
}
inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
    return simt_exchange_add(at, value);
}
inline float atomicAdd(float *at, float value) {
    return simt_exchange_add(at, value);
}
inline double atomicAdd(double *at, double value) {
    return simt_exchange_add(at, value);
}

inline unsigned atomicOr(unsigned *at, unsigned value) {
    simt_atomic();
    const unsigned before = *at;
    *at = before | value;
    return before;
}

void *simt_static_shared(const void *key, size_t size);
void *simt_dynamic_shared();

/* --- arithmetic ------------------------------------------------------------------------------------------------------
 */
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
template <class To, class From> To simt_bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "a change of type keeps the size");
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) {
    return simt_bits<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
    return simt_bits<float>(x);
}
template <class T> T __ldg(const T *at) {
    return *at;
}
inline int min(int a, int b) {
    return a < b ? a : b;
}
inline int max(int a, int b) {
    return a > b ? a : b;
}
inline unsigned min(unsigned a, unsigned b) {
    return a < b ? a : b;
}
inline unsigned max(unsigned a, unsigned b) {
    return a > b ? a : b;
}
inline long min(long a, long b) {
    return a < b ? a : b;
}
inline long max(long a, long b) {
    return a > b ? a : b;
}
inline long long min(long long a, long long b) {
    return a < b ? a : b;
}
inline long long max(long long a, long long b) {
    return a > b ? a : b;
}
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}

/* --- the runtime -----------------------------------------------------------------------------------------------------
 */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInsufficientDriver = 35,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaEventDefault = 0 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeThreadLocal = 1 };

struct simt_stream;
struct simt_event;
struct simt_graph;
typedef simt_stream *cudaStream_t;
typedef simt_event *cudaEvent_t;
typedef simt_graph *cudaGraph_t;
typedef simt_graph *cudaGraphExec_t;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount;
};

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMalloc(void **at, size_t bytes);
cudaError_t cudaFree(void *at);
cudaError_t cudaMallocHost(void **at, size_t bytes);
cudaError_t cudaFreeHost(void *at);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value);

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
cudaError_t simt_launch(const cudaLaunchConfig_t *config, const void *function, std::function<void()> body);
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...arguments) {
    std::tuple<std::decay_t<P>...> held(arguments...);
    return simt_launch(config, reinterpret_cast<const void *>(kernel), [kernel, held] { std::apply(kernel, held); });
}
/* A library's work on a stream (cublasLt.h). */
cudaError_t simt_enqueue(cudaStream_t stream, std::function<void()> work);

#endif
