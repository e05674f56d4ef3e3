/* Stands in for CUDA's header of this name where comm_nccl.c is compiled for the tests: streams and events, the host's
 * threads in their place (standin.c). */
#ifndef SQUINT_STANDIN_CUDA_RUNTIME_API_H
#define SQUINT_STANDIN_CUDA_RUNTIME_API_H

typedef enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNotReady = 600
} cudaError_t;
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef struct standin_stream *cudaStream_t;
typedef struct standin_event *cudaEvent_t;

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaDeviceGetPCIBusId(char *text, int capacity, int device);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);

#endif
