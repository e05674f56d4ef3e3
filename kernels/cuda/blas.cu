/* See blas.cuh. */
#include "kernels/cuda/device.cuh"

#include <cstdio>
#include <dlfcn.h>

namespace {

/* SYMBOL(field, name) for every function. */
#define BLAS_FUNCTIONS(SYMBOL)                                                                                         \
    SYMBOL(create, cublasLtCreate)                                                                                     \
    SYMBOL(destroy, cublasLtDestroy)                                                                                   \
    SYMBOL(version, cublasLtGetVersion)                                                                                \
    SYMBOL(matmul, cublasLtMatmul)                                                                                     \
    SYMBOL(choose, cublasLtMatmulAlgoGetHeuristic)                                                                     \
    SYMBOL(operation_create, cublasLtMatmulDescCreate)                                                                 \
    SYMBOL(operation_destroy, cublasLtMatmulDescDestroy)                                                               \
    SYMBOL(operation_set, cublasLtMatmulDescSetAttribute)                                                              \
    SYMBOL(layout_create, cublasLtMatrixLayoutCreate)                                                                  \
    SYMBOL(layout_destroy, cublasLtMatrixLayoutDestroy)                                                                \
    SYMBOL(preference_create, cublasLtMatmulPreferenceCreate)                                                          \
    SYMBOL(preference_destroy, cublasLtMatmulPreferenceDestroy)                                                        \
    SYMBOL(preference_set, cublasLtMatmulPreferenceSetAttribute)

enum status find_functions(void *handle, struct blas_library *library) {
#define FIND(field, name)                                                                                              \
    library->field = reinterpret_cast<decltype(library->field)>(dlsym(handle, #name));                                 \
    if (!library->field) return error_set(STATUS_NOT_FOUND, "cuda: the cuBLASLt that was found has no " #name);
    BLAS_FUNCTIONS(FIND)
    return STATUS_OK;
}

} // namespace

enum status blas_load(const struct blas_library **out) {
    static struct blas_library library;
    static bool loaded;
    char name[64];
    *out = &library;
    if (loaded) return STATUS_OK;
    /* The major version that this program was built with: its types are those of the header. */
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return error_set(STATUS_NOT_FOUND,
                         "cuda: %s is not found (%s); install cuBLAS, or name its folder in LD_LIBRARY_PATH", name,
                         dlerror());
    TRY(find_functions(handle, &library));
    loaded = true;
    return STATUS_OK;
}
