/* Matrix products by cuBLASLt. Row-major c = a·b is column-major cᵀ = bᵀ·aᵀ: the library's first operand is our b.
 *
 * Bias, GELU and the value before it are its epilogues where it has them for these shapes and alignments; elsewhere the
 * plain product is finished by finish_kernel. Every shape's description and chosen algorithm are kept. */
#include "kernels/cuda/device.cuh"

#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_map>

namespace {

constexpr size_t WORKSPACE_BYTES = 32 << 20; /* what cuBLAS recommends for Hopper */
constexpr int THREADS = 256;

enum status blas_status(cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
    return error_set(status == CUBLAS_STATUS_ALLOC_FAILED ? STATUS_MEMORY : STATUS_FAILED,
                     "cuda: cuBLASLt: %s: status %d", what, static_cast<int>(status));
}

/* All that decides an algorithm. Compared byte by byte: no padding. */
struct shape {
    int64_t m, n, k, lda, ldb, ldc, ld_pre;
    int32_t transpose_a, transpose_b, accumulate, narrow_c, epilogue, align_a, align_b, align_c, align_pre, align_bias;
    bool operator==(const shape &other) const { return memcmp(this, &other, sizeof *this) == 0; }
};
static_assert(sizeof(shape) == 7 * 8 + 10 * 4, "struct shape has padding");

struct shape_hash {
    size_t operator()(const shape &s) const {
        uint64_t hash = 1469598103934665603u; /* FNV-1a */
        const unsigned char *bytes = reinterpret_cast<const unsigned char *>(&s);
        for (size_t i = 0; i < sizeof s; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
        return static_cast<size_t>(hash);
    }
};

/* A description of a product and how it is computed. found false: cuBLASLt has no algorithm for it. */
struct recipe {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    bool found;
};

/* Where the rows of a tensor begin: the largest power of two, up to 16, that divides address and row stride (none of a
 * single row). */
int alignment_of(struct tensor t) {
    const uint64_t apart = t.rank > 1 ? static_cast<uint64_t>(t.stride[0]) * dtype_size(t.dtype) : 0;
    const uint64_t bits = reinterpret_cast<uint64_t>(t.data) | apart | 16;
    return static_cast<int>(bits & (~bits + 1));
}

int64_t row_stride(struct tensor t) {
    return t.shape[0] > 1 ? t.stride[0] : t.shape[1];
}

/* c = act(c + bias), pre = c + bias. c, pre [M,N], strided rows. */
template <class T>
__global__ void finish_kernel(T *c, const T *bias, T *pre, int64_t rows, int64_t columns, int64_t c_stride,
                              int64_t pre_stride, bool gelu) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns; i += step) {
        const int64_t row = i / columns, column = i % columns;
        float x = to_float(c[row * c_stride + column]);
        if (bias) x += to_float(bias[column]);
        if (pre) pre[row * pre_stride + column] = from_float<T>(x);
        if (gelu) x = 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        c[row * c_stride + column] = from_float<T>(x);
    }
}

/* What cuBLASLt may have no algorithm for, such as rows of an odd number of bf16 that begin anywhere: a sum an element.
 */
template <class T, class To> __global__ void plain_kernel(const T *a, const T *b, To *c, shape s, float alpha) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < s.m * s.n; i += step) {
        const int64_t row = i / s.n, column = i % s.n;
        const int64_t a_step = s.transpose_a ? s.lda : 1, b_step = s.transpose_b ? 1 : s.ldb;
        const T *a_at = a + (s.transpose_a ? row : row * s.lda), *b_at = b + (s.transpose_b ? column * s.ldb : column);
        float sum = 0;
        for (int64_t k = 0; k < s.k; k++) sum += to_float(a_at[k * a_step]) * to_float(b_at[k * b_step]);
        To *to = &c[row * s.ldc + column];
        *to = from_float<To>(alpha * sum + (s.accumulate ? to_float(*to) : 0.0f));
    }
}

} // namespace

struct gemm_cache {
    const struct blas_library *library;
    cublasLtHandle_t handle;
    void *workspace;
    std::unordered_map<shape, recipe, shape_hash> recipes;
};

enum status blas_open(struct device *device) {
    struct gemm_cache *cache = new (std::nothrow) gemm_cache();
    if (!cache) return error_set(STATUS_MEMORY, "cuda: no memory for the products' descriptions");
    device->gemms = cache;
    TRY(blas_load(&cache->library));
    TRY(blas_status(cache->library->create(&cache->handle), "creating a handle"));
    CUDA_TRY(cudaMalloc(&cache->workspace, WORKSPACE_BYTES));
    return STATUS_OK;
}

static void drop_recipe(const struct blas_library *lib, const recipe &r) {
    if (r.operation) lib->operation_destroy(r.operation);
    for (cublasLtMatrixLayout_t layout : {r.a, r.b, r.c}) {
        if (layout) lib->layout_destroy(layout);
    }
}

void blas_close(struct device *device) {
    struct gemm_cache *cache = device->gemms;
    if (!cache) return;
    for (auto &entry : cache->recipes) drop_recipe(cache->library, entry.second);
    cudaFree(cache->workspace);
    if (cache->handle) cache->library->destroy(cache->handle);
    delete cache;
    device->gemms = NULL;
}

size_t blas_bytes(const struct device *device) {
    return device->gemms ? WORKSPACE_BYTES : 0;
}

/* --- describing
 * ------------------------------------------------------------------------------------------------------- */

static shape shape_of(const struct gemm *a, int epilogue) {
    shape s;
    memset(&s, 0, sizeof s);
    s.m = a->c.shape[0];
    s.n = a->c.shape[1];
    s.k = a->a.shape[a->transpose_a ? 0 : 1];
    s.lda = row_stride(a->a);
    s.ldb = row_stride(a->b);
    s.ldc = row_stride(a->c);
    s.transpose_a = a->transpose_a;
    s.transpose_b = a->transpose_b;
    s.accumulate = a->accumulate;
    s.narrow_c = a->c.dtype == DTYPE_BF16;
    s.epilogue = epilogue;
    s.align_a = alignment_of(a->a);
    s.align_b = alignment_of(a->b);
    s.align_c = alignment_of(a->c);
    if (tensor_present(a->bias)) s.align_bias = alignment_of(a->bias);
    if (tensor_present(a->pre)) {
        s.ld_pre = row_stride(a->pre);
        s.align_pre = alignment_of(a->pre);
    }
    return s;
}

static int epilogue_of(const struct gemm *a) {
    const bool bias = tensor_present(a->bias), pre = tensor_present(a->pre);
    if (a->activation == ACTIVATION_NONE) return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    if (pre) return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
}

static bool stores_pre(int epilogue) {
    return epilogue == CUBLASLT_EPILOGUE_GELU_AUX || epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
static bool adds_bias(int epilogue) {
    return epilogue == CUBLASLT_EPILOGUE_BIAS || epilogue == CUBLASLT_EPILOGUE_GELU_BIAS ||
           epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}

/* Could cuBLASLt's epilogue do what is asked? It needs the activation's own type for bias and pre, and rows of pre in
 * multiples of 8. */
static bool epilogue_serves(const struct gemm *a) {
    if (tensor_present(a->pre) && a->activation == ACTIVATION_NONE) return false;
    if (tensor_present(a->pre) &&
        (a->pre.dtype != DTYPE_BF16 || row_stride(a->pre) % 8 != 0 || alignment_of(a->pre) < 16))
        return false;
    return !tensor_present(a->bias) || alignment_of(a->bias) == 16;
}

static enum status describe(const struct blas_library *lib, enum dtype real, const shape &s, recipe *r) {
    const cudaDataType_t in = real == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F,
                         out = s.narrow_c ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t first = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                            second = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint64_t m = static_cast<uint64_t>(s.m), n = static_cast<uint64_t>(s.n), k = static_cast<uint64_t>(s.k);
    TRY(blas_status(lib->operation_create(&r->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product"));
    const cublasLtEpilogue_t epilogue = static_cast<cublasLtEpilogue_t>(s.epilogue);
    const struct {
        cublasLtMatmulDescAttributes_t which;
        const void *value;
        size_t size;
        bool wanted;
    } attributes[] = {{CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first, true},
                      {CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second, true},
                      {CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue, true},
                      {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &s.ld_pre, sizeof s.ld_pre, stores_pre(s.epilogue)}};
    for (const auto &each : attributes) {
        if (each.wanted)
            TRY(blas_status(lib->operation_set(r->operation, each.which, each.value, each.size),
                            "describing a product"));
    }
    TRY(blas_status(lib->layout_create(&r->a, in, s.transpose_b ? k : n, s.transpose_b ? n : k, s.ldb),
                    "describing b"));
    TRY(blas_status(lib->layout_create(&r->b, in, s.transpose_a ? m : k, s.transpose_a ? k : m, s.lda),
                    "describing a"));
    return blas_status(lib->layout_create(&r->c, out, n, m, s.ldc), "describing c");
}

static enum status choose(const struct gemm_cache *cache, const shape &s, recipe *r) {
    const struct blas_library *lib = cache->library;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result;
    int count = 0;
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t reduction =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* parts of a sum are added in fp32, never in bf16 */
    const uint32_t align_b = static_cast<uint32_t>(s.align_b), align_a = static_cast<uint32_t>(s.align_a),
                   align_c = static_cast<uint32_t>(s.align_c);
    TRY(blas_status(lib->preference_create(&preference), "asking for an algorithm"));
    const struct {
        cublasLtMatmulPreferenceAttributes_t which;
        const void *value;
        size_t size;
    } attributes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
                      {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_b, sizeof align_b},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_a, sizeof align_a},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c, sizeof align_c},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_c, sizeof align_c}};
    enum status status = STATUS_OK;
    for (const auto &each : attributes) {
        KEEP_FIRST(status, blas_status(lib->preference_set(preference, each.which, each.value, each.size),
                                       "asking for an algorithm"));
    }
    if (status == STATUS_OK) {
        const cublasStatus_t found =
            lib->choose(cache->handle, r->operation, r->a, r->b, r->c, r->c, preference, 1, &result, &count);
        r->found = found == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
        if (r->found) r->algorithm = result.algo;
        /* An epilogue that it will not have, whatever the reason, is done by finish_kernel. */
        const bool refused = found == CUBLAS_STATUS_NOT_SUPPORTED || s.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
        if (found == CUBLAS_STATUS_ALLOC_FAILED || (found != CUBLAS_STATUS_SUCCESS && !refused)) {
            status = blas_status(found, "asking for an algorithm");
        }
    }
    lib->preference_destroy(preference);
    return status;
}

/* Where bias and pre lie: of every call, and before an algorithm is asked for. */
static enum status set_pointers(const struct blas_library *lib, const struct gemm *a, const shape &s, const recipe *r) {
    const void *bias = a->bias.data, *pre = a->pre.data;
    if (adds_bias(s.epilogue))
        TRY(blas_status(lib->operation_set(r->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias),
                        "bias"));
    if (!stores_pre(s.epilogue)) return STATUS_OK;
    return blas_status(lib->operation_set(r->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &pre, sizeof pre),
                       "pre");
}

static enum status find_recipe(const struct ops *ops, const struct gemm *a, const shape &s, recipe **out) {
    struct gemm_cache *cache = ops->device->gemms;
    auto entry = cache->recipes.find(s);
    if (entry == cache->recipes.end()) {
        if (ops->device->capturing) {
            return error_set(STATUS_FAILED,
                             "cuda: work that is recorded has a product that it did not have when it ran before");
        }
        recipe made = {};
        enum status status = describe(cache->library, ops->real, s, &made);
        if (status == STATUS_OK) status = set_pointers(cache->library, a, s, &made);
        if (status == STATUS_OK) status = choose(cache, s, &made);
        if (status != STATUS_OK) { /* nothing is kept: the next call asks again */
            drop_recipe(cache->library, made);
            return status;
        }
        entry = cache->recipes.emplace(s, made).first;
    }
    *out = &entry->second;
    return STATUS_OK;
}

/* --- computing
 * -------------------------------------------------------------------------------------------------------- */

static enum status multiply(const struct ops *ops, const struct gemm *a, const shape &s, const recipe *r) {
    const struct gemm_cache *cache = ops->device->gemms;
    const float alpha = static_cast<float>(a->alpha), beta = a->accumulate ? 1.0f : 0.0f;
    TRY(set_pointers(cache->library, a, s, r));
    return blas_status(cache->library->matmul(cache->handle, r->operation, &alpha, a->b.data, r->a, a->a.data, r->b,
                                              &beta, a->c.data, r->c, a->c.data, r->c, &r->algorithm, cache->workspace,
                                              WORKSPACE_BYTES, ops->device->stream),
                       "a product");
}

static enum status multiply_plainly(const struct ops *ops, const struct gemm *a, const shape &s) {
    const float alpha = static_cast<float>(a->alpha);
    const dim3 grid = grid_over(s.m * s.n, THREADS);
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const T *left = data_of<T>(a->a), *right = data_of<T>(a->b);
        if (s.narrow_c)
            return device_launch(ops, "gemm", plain_kernel<T, bf16>, grid, THREADS, 0, left, right, data_of<bf16>(a->c),
                                 s, alpha);
        return device_launch(ops, "gemm", plain_kernel<T, float>, grid, THREADS, 0, left, right, data_of<float>(a->c),
                             s, alpha);
    });
}

static enum status finish(const struct ops *ops, const struct gemm *a) {
    const int64_t rows = a->c.shape[0], columns = a->c.shape[1];
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        return device_launch(ops, "gemm", finish_kernel<T>, grid_over(rows * columns, THREADS), THREADS, 0,
                             data_of<T>(a->c), static_cast<const T *>(a->bias.data), data_of<T>(a->pre), rows, columns,
                             row_stride(a->c), tensor_present(a->pre) ? row_stride(a->pre) : 0,
                             a->activation == ACTIVATION_GELU);
    });
}

enum status cuda_gemm(const struct ops *ops, const struct gemm *a) {
    TRY(check_gemm(ops, a));
    if (a->c.shape[0] == 0 || a->c.shape[1] == 0) return STATUS_OK;
    const bool plain = a->activation == ACTIVATION_NONE && !tensor_present(a->bias) && !tensor_present(a->pre);
    const shape bare = shape_of(a, CUBLASLT_EPILOGUE_DEFAULT);
    recipe *r = NULL;
    if (bare.k == 0) { /* a product of nothing is 0, and no matter for the library */
        TRY(multiply_plainly(ops, a, bare));
        return plain ? STATUS_OK : finish(ops, a);
    }
    if (!plain && epilogue_serves(a)) {
        const shape s = shape_of(a, epilogue_of(a));
        TRY(find_recipe(ops, a, s, &r));
        if (r->found) return multiply(ops, a, s, r);
    }
    TRY(find_recipe(ops, a, bare, &r));
    TRY(r->found ? multiply(ops, a, bare, r) : multiply_plainly(ops, a, bare));
    return plain ? STATUS_OK : finish(ops, a);
}
