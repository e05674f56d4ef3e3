/* cuBLASLt's part in tests/simt: column-major products with epilogues, as the library's reference describes them. */
#include "kernels/cuda/device.cuh"
#include "tests/simt/internal.h"

#include <algorithm>
#include <cstring>
#include <vector>

struct simt_blas {
    int unused;
};
struct simt_operation {
    cublasOperation_t transpose_a, transpose_b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
    void *aux;
    int64_t aux_ld;
};
struct simt_layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
};
struct simt_preference {
    uint64_t workspace;
    uint32_t align_a, align_b, align_c, align_d;
};

namespace {

struct matrix {
    const simt_layout *layout;
    const void *data;
    bool transpose;
    float at(uint64_t row, uint64_t column) const {
        if (transpose) std::swap(row, column);
        const size_t place = row + column * static_cast<size_t>(layout->ld);
        if (layout->type == CUDA_R_32F) return static_cast<const float *>(data)[place];
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[place]);
    }
};

void put(void *data, cudaDataType_t type, size_t place, float value) {
    if (type == CUDA_R_32F) {
        static_cast<float *>(data)[place] = value;
    } else {
        static_cast<__nv_bfloat16 *>(data)[place] = __float2bfloat16(value);
    }
}

bool has_bias(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool has_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool has_gelu(cublasLtEpilogue_t e) {
    return e != CUBLASLT_EPILOGUE_DEFAULT && e != CUBLASLT_EPILOGUE_BIAS;
}

void finish(const simt_operation &op, const simt_layout &d, void *to, uint64_t i, uint64_t j, float x) {
    if (has_bias(op.epilogue)) x += matrix{&d, op.bias, false}.at(i, 0);
    if (has_aux(op.epilogue)) put(op.aux, d.type, i + j * static_cast<size_t>(op.aux_ld), x);
    if (has_gelu(op.epilogue)) x = 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    put(to, d.type, i + j * static_cast<size_t>(d.ld), x);
}

bool fits(const simt_operation &op, const simt_layout &a, const simt_layout &b, const simt_layout &d) {
    const uint64_t m = op.transpose_a ? a.columns : a.rows, k = op.transpose_a ? a.rows : a.columns;
    const uint64_t of_b = op.transpose_b ? b.columns : b.rows, n = op.transpose_b ? b.rows : b.columns;
    return m == d.rows && n == d.columns && k == of_b && k > 0 && a.ld >= static_cast<int64_t>(a.rows) &&
           b.ld >= static_cast<int64_t>(b.rows) && d.ld >= static_cast<int64_t>(d.rows) && a.type == b.type;
}

#define MAY_FAIL()                                                                                                     \
    do {                                                                                                               \
        const cudaError_t may_fail_ = simt_maybe_fail();                                                               \
        if (may_fail_ == cudaErrorMemoryAllocation) return CUBLAS_STATUS_ALLOC_FAILED;                                 \
        if (may_fail_ != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;                                           \
    } while (0)

template <class T> cublasStatus_t make(T **out) {
    *out = nullptr;
    MAY_FAIL();
    *out = new T();
    return CUBLAS_STATUS_SUCCESS;
}
template <class T> cublasStatus_t drop(T *object) {
    delete object;
    return CUBLAS_STATUS_SUCCESS;
}
template <class T> cublasStatus_t set(T *to, const void *value, size_t size) {
    if (size != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
    MAY_FAIL();
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

} // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    return make(handle);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return drop(handle);
}
size_t cublasLtGetVersion(void) {
    return 130000;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *operation, cublasComputeType_t, cudaDataType_t) {
    const cublasStatus_t status = make(operation);
    if (*operation) (*operation)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return status;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
    return drop(operation);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t size) {
    switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(&operation->transpose_a, value, size);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(&operation->transpose_b, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(&operation->epilogue, value, size);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(&operation->bias, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        return set(&operation->aux, value, size);
    default:
        return set(&operation->aux_ld, value, size);
    }
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    const cublasStatus_t status = make(layout);
    if (*layout) **layout = simt_layout{type, rows, columns, ld};
    return status;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return drop(layout);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    const cublasStatus_t status = make(preference);
    if (*preference) **preference = simt_preference{0, 256, 256, 256, 256};
    return status;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return drop(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t which, const void *value,
                                                    size_t size) {
    switch (which) {
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: /* sums have no parts here */
        return size == sizeof(uint32_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(&preference->workspace, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return set(&preference->align_a, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return set(&preference->align_b, value, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return set(&preference->align_c, value, size);
    default:
        return set(&preference->align_d, value, size);
    }
}

/* The announced alignments travel in the algorithm, and matmul holds the caller to them. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    *found = 0;
    MAY_FAIL();
    const bool narrow = a->type == CUDA_R_16BF, special = operation->epilogue != CUBLASLT_EPILOGUE_DEFAULT;
    if (!fits(*operation, *a, *b, *d) || wanted < 1) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (has_aux(operation->epilogue) && (operation->aux_ld % 8 != 0 || !narrow)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (special && preference->align_d < 8) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (narrow && (preference->align_a < 4 || preference->align_b < 4)) return CUBLAS_STATUS_NOT_SUPPORTED;
    results[0] = {};
    results[0].algo.data[0] = preference->align_a;
    results[0].algo.data[1] = preference->align_b;
    results[0].algo.data[2] = preference->align_d;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t of_a, const void *b, cublasLtMatrixLayout_t of_b, const void *beta,
                              const void *c, cublasLtMatrixLayout_t of_c, void *d, cublasLtMatrixLayout_t of_d,
                              const cublasLtMatmulAlgo_t *algorithm, void *, size_t, cudaStream_t stream) {
    MAY_FAIL();
    const simt_operation op = *operation;
    const simt_layout la = *of_a, lb = *of_b, lc = *of_c, ld = *of_d;
    const float by = *static_cast<const float *>(alpha), keep = *static_cast<const float *>(beta);
    const void *const places[] = {a, b, d};
    for (int i = 0; i < 3; i++) {
        if (reinterpret_cast<uintptr_t>(places[i]) % algorithm->data[i] != 0) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!fits(op, la, lb, ld)) return CUBLAS_STATUS_INVALID_VALUE;
    simt_enqueue(stream, [=] {
        const matrix left = {&la, a, op.transpose_a == CUBLAS_OP_T}, right = {&lb, b, op.transpose_b == CUBLAS_OP_T};
        const matrix before = {&lc, c, false};
        const uint64_t depth = op.transpose_a ? la.rows : la.columns, rows = ld.rows;
        std::vector<float> columns(depth * rows), sums(rows); /* of op(a), one behind the other */
        for (uint64_t k = 0; k < depth; k++) {
            for (uint64_t i = 0; i < rows; i++) columns[k * rows + i] = left.at(i, k);
        }
        for (uint64_t j = 0; j < ld.columns; j++) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (uint64_t k = 0; k < depth; k++) {
                const float factor = right.at(k, j), *column = &columns[k * rows];
                for (uint64_t i = 0; i < rows; i++) sums[i] += column[i] * factor;
            }
            for (uint64_t i = 0; i < rows; i++)
                finish(op, ld, d, i, j, by * sums[i] + (keep != 0 ? keep * before.at(i, j) : 0));
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}

enum status blas_load(const struct blas_library **out) {
    static const struct blas_library library = {
        cublasLtCreate,
        cublasLtDestroy,
        cublasLtGetVersion,
        cublasLtMatmul,
        cublasLtMatmulAlgoGetHeuristic,
        cublasLtMatmulDescCreate,
        cublasLtMatmulDescDestroy,
        cublasLtMatmulDescSetAttribute,
        cublasLtMatrixLayoutCreate,
        cublasLtMatrixLayoutDestroy,
        cublasLtMatmulPreferenceCreate,
        cublasLtMatmulPreferenceDestroy,
        cublasLtMatmulPreferenceSetAttribute,
    };
    *out = &library;
    return STATUS_OK;
}
