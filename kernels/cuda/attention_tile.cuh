/* Attention: tiles in shared memory, and the products of tiles that a warp makes. Knows no candidate.
 *
 * A warp's sums lie in its lanes as mma.sync leaves them, for float as for bf16: of 16 x 8 elements lane l holds
 * (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1), g = l/4, t = l%4. Sums of bf16 become the left side of the next product
 * in registers. */
#ifndef SQUINT_KERNELS_CUDA_ATTENTION_TILE_CUH
#define SQUINT_KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

/* A block's work: WARPS warps with TILES · 16 rows each, against COLUMNS columns at a time; heads of width D (padded).
 */
template <class T, int D, int WARPS, int TILES, int COLUMNS> struct tile_shape {
    using real = T;
    static constexpr int width = D, warps = WARPS, threads = 32 * WARPS, tiles = TILES, rows = WARPS * TILES * 16;
    static constexpr int columns = COLUMNS, groups = COLUMNS / 8;
    static constexpr int stride = D + pack_width<T>; /* of rows in shared memory: eight rows begin in different banks */
    static constexpr int outer_stride = COLUMNS + pack_width<T>; /* of a tile [rows][columns] */
};

/* Place of this lane's element: row g + 8·half of a 16-row tile, column 8·group + 2t + odd. */
__device__ inline int lane_row() {
    return static_cast<int>(threadIdx.x % 32 / 4);
}
__device__ inline int lane_column() {
    return static_cast<int>(threadIdx.x % 4 * 2);
}
__device__ inline int warp_number() {
    return static_cast<int>(threadIdx.x / 32);
}

/* Over the four lanes that hold a row. */
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(whole_warp, x, 1);
    return x + __shfl_xor_sync(whole_warp, x, 2);
}
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(whole_warp, x, 1));
    return fmaxf(x, __shfl_xor_sync(whole_warp, x, 2));
}

/* Of a row's weights with base 2, relative to their largest exponent. */
__device__ inline float natural_log_sum(float most, float sum) {
    return sum == 0.0f ? -INFINITY : (most + log2f(sum)) * log_of_2;
}

/* Takes a tile's scores (exponents) of one row into its running maximum and this lane's part of its sum; they become
 * weights relative to the maximum. Returns what earlier weights must be multiplied by. */
template <int GROUPS> __device__ inline float take_row(float (&scores)[GROUPS][4], int half, float &most, float &sum) {
    float here = most;
#pragma unroll
    for (int n = 0; n < GROUPS; n++) here = fmaxf(here, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    here = quad_max(here);
    const float reference = here == -INFINITY ? 0.0f : here, factor = exp2_quick(most - reference);
    most = here;
    sum *= factor;
#pragma unroll
    for (int n = 0; n < GROUPS; n++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            float &score = scores[n][2 * half + odd];
            score = exp2_quick(score - reference);
            sum += score;
        }
    return factor;
}
/* The same of all rows of a lane; out, the sums of values by earlier weights, is multiplied. */
template <int TILES, int GROUPS, int OUT>
__device__ inline void take_rows(float (&scores)[TILES][GROUPS][4], float (&most)[TILES][2], float (&sum)[TILES][2],
                                 float (&out)[TILES][OUT][4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float factor = take_row(scores[tile], half, most[tile][half], sum[tile][half]);
#pragma unroll
            for (int n = 0; n < OUT; n++) {
                out[tile][n][2 * half] *= factor;
                out[tile][n][2 * half + 1] *= factor;
            }
        }
}

/* tile [ROWS][STRIDE] = rows first … first + ROWS − 1 of `from` (rows are `step` elements apart), zeros after row
 * length − 1 and after column width − 1. By all of THREADS; complete once copy_async_wait has waited for the group and
 * a barrier has passed. */
template <int ROWS, int D, int STRIDE, int THREADS, class T>
__device__ inline void load_rows(T *tile, const T *from, int64_t step, int first, int length, int width, bool vector) {
    constexpr int each = pack_width<T>, packs = D / each;
    if (vector) {
        for (int n = static_cast<int>(threadIdx.x); n < ROWS * packs; n += THREADS) {
            const int row = n / packs, column = n % packs * each;
            const bool valid = first + row < length && column < width;
            copy_async(tile + row * STRIDE + column, valid ? from + (first + row) * step + column : from, valid);
        }
        return;
    }
#pragma unroll 1
    for (int n = static_cast<int>(threadIdx.x); n < ROWS * D; n += THREADS) {
        const int row = n / D, column = n % D;
        const bool valid = first + row < length && column < width;
        tile[row * STRIDE + column] = valid ? from[(first + row) * step + column] : from_float<T>(0.0f);
    }
}

/* Rows of the warp's sums, times factor[tile][half], to (accumulate: added to) rows first … of `to`; `first` is that of
 * the warp; the sums' columns are first_column … of the head. */
template <int TILES, int OUT, class T>
__device__ inline void store_rows(T *to, int64_t step, int first, int length, int first_column, int width, bool vector,
                                  const float (&sums)[TILES][OUT / 8][4], const float (&factor)[TILES][2],
                                  bool accumulate = false) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + tile * 16 + 8 * half + lane_row();
            if (row >= length) continue;
            T *at = to + row * step + first_column;
#pragma unroll
            for (int n = 0; n < OUT / 8; n++) {
                const int column = n * 8 + lane_column();
                const bool both = first_column + column + 1 < width, one = first_column + column < width;
                float pair[2] = {factor[tile][half] * sums[tile][n][2 * half],
                                 factor[tile][half] * sums[tile][n][2 * half + 1]};
                if (accumulate) {
                    if (one) pair[0] += to_float(at[column]);
                    if (both) pair[1] += to_float(at[column + 1]);
                }
                if (vector && one) {
                    store_pack<2>(at + column, pair);
                } else {
                    if (one) at[column] = from_float<T>(pair[0]);
                    if (both) at[column + 1] = from_float<T>(pair[1]);
                }
            }
        }
}

/* Products of a warp; T's own. All tiles lie in shared memory, rows `stride` elements apart.
 *   rows_by_rows      sums [16·TILES x 8·GROUPS] += a [16·TILES x D] · b [8·GROUPS x D]ᵀ
 *   weights_by_rows   sums [16·TILES x OUT] += weights [16·TILES x 8·GROUPS], the sums of a product, · b [8·GROUPS x
 * OUT] columns_by_rows   sums [16 x OUT] += a [DEPTH x 16]ᵀ · b [DEPTH x OUT] */
template <class T> struct warp_product;

template <> struct warp_product<bf16> {
    /* The left side a of rows_by_rows. HELD: its fragments stay in registers. */
    template <int TILES, int D, int STRIDE, bool HELD> struct left {
        const bf16 *at;
        uint32_t held[HELD ? D / 16 : 1][HELD ? TILES : 1][4];

        __device__ explicit left(const bf16 *a) : at(a + threadIdx.x % 16 * STRIDE + threadIdx.x % 32 / 16 * 8) {}
        /* After a has arrived. */
        __device__ void hold() {
            if constexpr (HELD) {
#pragma unroll
                for (int k = 0; k < D / 16; k++)
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++)
                        load_matrices(held[k][tile], at + tile * 16 * STRIDE + k * 16);
            }
        }
        __device__ void get(uint32_t (&fragment)[TILES][4], int k) const {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if constexpr (HELD) {
#pragma unroll
                    for (int n = 0; n < 4; n++) fragment[tile][n] = held[k][tile][n];
                } else {
                    load_matrices(fragment[tile], at + tile * 16 * STRIDE + k * 16);
                }
            }
        }
    };

    template <int TILES, int GROUPS, int D, int STRIDE, bool HELD>
    static __device__ void rows_by_rows(float (&sums)[TILES][GROUPS][4], const left<TILES, D, STRIDE, HELD> &a,
                                        const bf16 *b) {
        const unsigned lane = threadIdx.x % 32;
        const bf16 *rows = b + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t of_a[TILES][4];
            a.get(of_a, k);
#pragma unroll
            for (int n = 0; n < GROUPS / 2; n++) {
                uint32_t of_b[4];
                load_matrices(of_b, rows + n * 16 * STRIDE + k * 16);
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    multiply_add(sums[tile][2 * n], of_a[tile], of_b[0], of_b[1]);
                    multiply_add(sums[tile][2 * n + 1], of_a[tile], of_b[2], of_b[3]);
                }
            }
        }
    }

    static __device__ uint32_t pair_of(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        uint32_t bits;
        memcpy(&bits, &pair, sizeof bits);
        return bits;
    }

    template <int TILES, int GROUPS, int OUT, int STRIDE>
    static __device__ void weights_by_rows(float (&sums)[TILES][OUT / 8][4], const float (&weights)[TILES][GROUPS][4],
                                           const bf16 *b) {
        const unsigned lane = threadIdx.x % 32;
        const bf16 *rows = b + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < GROUPS / 2; k++) {
            uint32_t of_weights[TILES][4];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int n = 0; n < 4; n++)
                    of_weights[tile][n] =
                        pair_of(weights[tile][2 * k + n / 2][n % 2 * 2], weights[tile][2 * k + n / 2][n % 2 * 2 + 1]);
#pragma unroll
            for (int n = 0; n < OUT / 16; n++) {
                uint32_t of_b[4];
                load_matrices_transposed(of_b, rows + k * 16 * STRIDE + n * 16);
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    multiply_add(sums[tile][2 * n], of_weights[tile], of_b[0], of_b[1]);
                    multiply_add(sums[tile][2 * n + 1], of_weights[tile], of_b[2], of_b[3]);
                }
            }
        }
    }

    template <int DEPTH, int OUT, int A_STRIDE, int STRIDE>
    static __device__ void columns_by_rows(float (&sums)[1][OUT / 8][4], const bf16 *a, const bf16 *b) {
        const unsigned lane = threadIdx.x % 32;
        const bf16 *columns = a + (lane / 16 * 8 + lane % 8) * A_STRIDE + lane / 8 % 2 * 8;
        const bf16 *rows = b + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            uint32_t of_a[4];
            load_matrices_transposed(of_a, columns + k * 16 * A_STRIDE);
#pragma unroll
            for (int n = 0; n < OUT / 16; n++) {
                uint32_t of_b[4];
                load_matrices_transposed(of_b, rows + k * 16 * STRIDE + n * 16);
                multiply_add(sums[0][2 * n], of_a, of_b[0], of_b[1]);
                multiply_add(sums[0][2 * n + 1], of_a, of_b[2], of_b[3]);
            }
        }
    }
};

/* fp32 is there for parity: the same sums in the same places, made by fused multiply-adds. */
template <> struct warp_product<float> {
    template <int TILES, int D, int STRIDE, bool HELD> struct left {
        const float *at;
        __device__ explicit left(const float *a) : at(a + lane_row() * STRIDE) {}
        __device__ void hold() {}
    };

    template <int TILES, int GROUPS, int D, int STRIDE, bool HELD>
    static __device__ void rows_by_rows(float (&sums)[TILES][GROUPS][4], const left<TILES, D, STRIDE, HELD> &a,
                                        const float *b) {
        const float *rows = b + lane_column() * STRIDE;
#pragma unroll 1
        for (int k = 0; k < D; k++) {
            float of_a[TILES][2];
#pragma unroll
            for (int n = 0; n < 2 * TILES; n++) of_a[n / 2][n % 2] = a.at[n * 8 * STRIDE + k];
#pragma unroll
            for (int n = 0; n < GROUPS; n++) {
                const float even = rows[n * 8 * STRIDE + k], odd = rows[(n * 8 + 1) * STRIDE + k];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    sums[tile][n][0] += of_a[tile][0] * even;
                    sums[tile][n][1] += of_a[tile][0] * odd;
                    sums[tile][n][2] += of_a[tile][1] * even;
                    sums[tile][n][3] += of_a[tile][1] * odd;
                }
            }
        }
    }

    template <int TILES, int GROUPS, int OUT, int STRIDE>
    static __device__ void weights_by_rows(float (&sums)[TILES][OUT / 8][4], const float (&weights)[TILES][GROUPS][4],
                                           const float *b) {
        const float *rows = b + lane_column();
#pragma unroll
        for (int k = 0; k < GROUPS; k++)
#pragma unroll 1
            for (int t = 0; t < 4; t++)
#pragma unroll
                for (int odd = 0; odd < 2; odd++) {
                    float of_weights[TILES][2];
#pragma unroll
                    for (int n = 0; n < 2 * TILES; n++)
                        of_weights[n / 2][n % 2] = __shfl_sync(whole_warp, weights[n / 2][k][n % 2 * 2 + odd],
                                                               static_cast<int>(threadIdx.x % 32 / 4 * 4) + t);
                    add_products<TILES, OUT>(sums, of_weights, rows + (k * 8 + t * 2 + odd) * STRIDE);
                }
    }

    template <int DEPTH, int OUT, int A_STRIDE, int STRIDE>
    static __device__ void columns_by_rows(float (&sums)[1][OUT / 8][4], const float *a, const float *b) {
#pragma unroll 1
        for (int k = 0; k < DEPTH; k++) {
            const float of_a[1][2] = {{a[k * A_STRIDE + lane_row()], a[k * A_STRIDE + lane_row() + 8]}};
            add_products<1, OUT>(sums, of_a, b + k * STRIDE + lane_column());
        }
    }

  private:
    template <int TILES, int OUT>
    static __device__ void add_products(float (&sums)[TILES][OUT / 8][4], const float (&left)[TILES][2],
                                        const float *row) {
#pragma unroll
        for (int n = 0; n < OUT / 8; n++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                sums[tile][n][0] += left[tile][0] * row[n * 8];
                sums[tile][n][1] += left[tile][0] * row[n * 8 + 1];
                sums[tile][n][2] += left[tile][1] * row[n * 8];
                sums[tile][n][3] += left[tile][1] * row[n * 8 + 1];
            }
    }
};

template <int TILES, int GROUPS> __device__ inline void clear_sums(float (&sums)[TILES][GROUPS][4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int n = 0; n < GROUPS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[tile][n][e] = 0.0f;
}

/* Cuts up a block's dynamic shared memory; every piece is aligned to 16 bytes. */
struct shared_cutter {
    char *at;
    template <class T> __device__ T *take(int count) {
        T *piece = reinterpret_cast<T *>(at);
        at += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
        return piece;
    }
};

#endif
