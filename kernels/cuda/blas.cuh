/* cuBLASLt, found when the program runs: a machine without it, or with another of the versions that serve, still runs
 * this program. */
#ifndef SQUINT_KERNELS_CUDA_BLAS_CUH
#define SQUINT_KERNELS_CUDA_BLAS_CUH

#include <cublasLt.h>

/* The functions that gemm.cu calls, with the library's own types. */
struct blas_library {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) version;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
    decltype(&cublasLtMatmulDescCreate) operation_create;
    decltype(&cublasLtMatmulDescDestroy) operation_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) operation_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

/* Loads the library once for the program; STATUS_NOT_FOUND says which names were looked for. */
enum status blas_load(const struct blas_library **library);

#endif
