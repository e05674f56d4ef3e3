/* LayerNorm and RMSNorm with the residual sum fused, their backward pass, and sums of columns.
 * A row is read once and stays in registers between its sums and its result. Sums over rows (gradients of parameters) are cut into
 * parts that only the number of rows decides; the parts lie in scratch memory and are added in a fixed order. */
#include "kernels/cuda/rows.cuh"

namespace {

/* ---- forward ------------------------------------------------------------------------------------------------------ */

constexpr int norm_held = 32; /* elements of a row that a thread keeps; of wider rows the rest is read again */
constexpr int norm_wide = 256; /* threads that share a row of more than 32 · norm_held elements */
constexpr int norm_narrow_block = 128;

template <class T> struct norm_rows {
    const T *x, *delta, *weight, *bias; /* [rows,width], the same or NULL, [width], [width] or NULL */
    T *sum, *y;                         /* [rows,width], sum NULL without delta */
    float *mean, *rstd;                 /* [rows], mean NULL for RMS */
    int64_t rows, width;
    float epsilon;
};

template <int THREADS> __device__ inline float group_sum(float x) {
    if constexpr (THREADS == 32)
        return warp_sum(x);
    else
        return block_sum<THREADS>(x);
}

/* visit(elements, pack) for this thread's packs of a row: those that it keeps, and the others, read from `row`. */
template <int THREADS, int W, int KEPT, class T, class Visit>
__device__ inline void visit_packs(float (&kept)[KEPT][W], const T *row, int64_t packs, int lane, Visit visit) {
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t p = lane + k * THREADS;
        if (p < packs) visit(kept[k], p);
    }
    for (int64_t p = lane + KEPT * THREADS; p < packs; p += THREADS) {
        float elements[W];
        load_pack(row + p * W, elements);
        visit(elements, p);
    }
}

/* The row's elements, with delta added and their rounded sum written where there is one. */
template <int THREADS, int W, int KEPT, class T>
__device__ inline void load_row(const norm_rows<T> &a, int64_t row, int lane, float (&kept)[KEPT][W]) {
    const int64_t packs = a.width / W, base = row * a.width;
    auto load = [&](float(&to)[W], int64_t p) {
        load_pack(a.x + base + p * W, to);
        if (!a.delta) return;
        float delta[W];
        load_pack(a.delta + base + p * W, delta);
#pragma unroll
        for (int i = 0; i < W; i++) to[i] = to_float(from_float<T>(to[i] + delta[i])); /* as the backward pass will read it */
        store_pack(a.sum + base + p * W, to);
    };
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t p = lane + k * THREADS;
        if (p < packs) load(kept[k], p);
    }
    for (int64_t p = lane + KEPT * THREADS; a.delta && p < packs; p += THREADS) {
        float passed[W];
        load(passed, p);
    }
}

/* THREADS threads a row; a block has several rows when THREADS is 32. W divides the width. */
template <class T, int W, int THREADS>
__global__ void __launch_bounds__(THREADS == 32 ? norm_narrow_block : THREADS) norm_kernel(norm_rows<T> a) {
    constexpr int groups = (THREADS == 32 ? norm_narrow_block : THREADS) / THREADS;
    const int lane = static_cast<int>(threadIdx.x) % THREADS;
    const int64_t packs = a.width / W;
    const T *from = a.delta ? a.sum : a.x;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * groups + threadIdx.x / THREADS; row < a.rows;
         row += static_cast<int64_t>(gridDim.x) * groups) {
        float kept[norm_held / W][W];
        const T *elements = from + row * a.width;
        load_row<THREADS>(a, row, lane, kept);
        float mean = 0, square = 0;
        if (a.mean) {
            visit_packs<THREADS>(kept, elements, packs, lane, [&](const float(&x)[W], int64_t) {
#pragma unroll
                for (int i = 0; i < W; i++) mean += x[i];
            });
            mean = group_sum<THREADS>(mean) / static_cast<float>(a.width);
        }
        visit_packs<THREADS>(kept, elements, packs, lane, [&](const float(&x)[W], int64_t) {
#pragma unroll
            for (int i = 0; i < W; i++) square += (x[i] - mean) * (x[i] - mean);
        });
        const float rstd = 1 / sqrtf(group_sum<THREADS>(square) / static_cast<float>(a.width) + a.epsilon);
        visit_packs<THREADS>(kept, elements, packs, lane, [&](const float(&x)[W], int64_t p) {
            float y[W], weight[W], bias[W] = {};
            load_pack(a.weight + p * W, weight);
            if (a.bias) load_pack(a.bias + p * W, bias);
#pragma unroll
            for (int i = 0; i < W; i++) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
            store_pack(a.y + row * a.width + p * W, y);
        });
        if (lane == 0) {
            a.rstd[row] = rstd;
            if (a.mean) a.mean[row] = mean;
        }
    }
}

/* ---- sums over rows ----------------------------------------------------------------------------------------------- */

/* Parts of at least `least` rows, at most `most` of them; part p has rows first(p) … first(p+1)−1. */
struct row_parts {
    int64_t rows, count;
    row_parts(int64_t rows, int64_t least, int64_t most) : rows(rows), count(divide_up(rows, least)) {
        if (count > most) count = most;
    }
};
__device__ inline int64_t part_first(const row_parts &p, int64_t part) { return part * p.rows / p.count; }

constexpr int add_groups = 16;

/* out [width] += Σ over `count` parts of parts[part][column]; `stride` floats from part to part. A warp has 32 columns of every
 * add_groups-th part. */
__global__ void __launch_bounds__(32 * add_groups)
    add_parts_kernel(const float *parts, int64_t count, int64_t stride, int64_t width, float *out) {
    SHARED(float, sums, [add_groups][32]);
    const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 32;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
    float sum = 0;
    if (column < width) {
#pragma unroll 8
        for (int64_t part = group; part < count; part += add_groups) sum += parts[part * stride + column];
    }
    sums[group][lane] = sum;
    __syncthreads();
    if (group != 0 || column >= width) return;
    for (int g = 1; g < add_groups; g++) sum += sums[g][lane];
    out[column] += sum;
}

enum status add_parts(const struct ops *ops, const float *parts, int64_t count, int64_t stride, int64_t width, float *out) {
    if (count == 0) return STATUS_OK;
    return device_launch(ops, "sums of rows", add_parts_kernel, grid_over(width, 32), 32 * add_groups, 0, parts, count, stride,
                         width, out);
}

/* ---- backward ----------------------------------------------------------------------------------------------------- */

constexpr int backward_held = 8; /* elements of a row that a thread keeps */
constexpr int backward_narrow = 128, backward_wide = 512; /* threads that share a row */
/* Sums of columns are kept in shared memory up to this size, beyond it in their part itself. */
constexpr size_t backward_shared = 96 * 1024;

template <class T> struct norm_backward_rows {
    const T *dy, *x, *weight; /* [rows,width], [rows,width], [width] */
    const float *mean, *rstd; /* [rows], mean NULL for RMS */
    T *dx;                    /* [rows,width] */
    float *parts;             /* [parts][sums · width]: dweight's if wanted, then dbias's if wanted */
    row_parts rows;
    int64_t width;
    bool overwrite, dweight, dbias, in_shared;
};

/* What a thread keeps of one pack between the row's sums and dx: dy·weight and (x − mean)·rstd. */
template <int W> struct backward_pack {
    float gradient[W], normal[W];
};

template <class T, int W>
__device__ inline void load_backward(const norm_backward_rows<T> &a, int64_t row, float mean, float rstd, int64_t p,
                                     backward_pack<W> &to, float (&dy)[W]) {
    float weight[W];
    load_pack(a.dy + row * a.width + p * W, dy);
    load_pack(a.x + row * a.width + p * W, to.normal);
    load_pack(a.weight + p * W, weight);
#pragma unroll
    for (int i = 0; i < W; i++) {
        to.gradient[i] = dy[i] * weight[i];
        to.normal[i] = (to.normal[i] - mean) * rstd;
    }
}

template <class T, int W>
__device__ inline void store_backward(const norm_backward_rows<T> &a, int64_t row, float rstd, float sum, float product, int64_t p,
                                      const backward_pack<W> &from) {
    T *to = a.dx + row * a.width + p * W;
    float dx[W] = {};
    if (!a.overwrite) load_pack(to, dx);
#pragma unroll
    for (int i = 0; i < W; i++) dx[i] += rstd * (from.gradient[i] - sum - from.normal[i] * product);
    store_pack(to, dx);
}

/* A block has the rows of one part, one after another. A column's sums belong to one thread throughout. W divides the width. */
template <class T, int W, int THREADS>
__global__ void __launch_bounds__(THREADS) norm_backward_kernel(norm_backward_rows<T> a) {
    constexpr int kept = backward_held / W;
    const int64_t packs = a.width / W, sums = (a.dweight + a.dbias) * a.width;
    float *part = a.parts + blockIdx.x * sums;
    float *dweight = a.in_shared ? reinterpret_cast<float *>(shared_memory()) : part;
    float *dbias = dweight + (a.dweight ? a.width : 0);
    const int lane = static_cast<int>(threadIdx.x);
    const float zero[W] = {};
    for (int64_t p = lane; p < packs; p += THREADS) {
        if (a.dweight) store_floats(dweight + p * W, zero);
        if (a.dbias) store_floats(dbias + p * W, zero);
    }
    for (int64_t row = part_first(a.rows, blockIdx.x); row < part_first(a.rows, blockIdx.x + 1); row++) {
        const float mean = a.mean ? a.mean[row] : 0, rstd = a.rstd[row];
        float totals[2] = {}; /* Σ gradient, Σ gradient·normal */
        auto add = [&](int64_t p, backward_pack<W> &pack) {
            float dy[W], by_normal[W];
            load_backward(a, row, mean, rstd, p, pack, dy);
#pragma unroll
            for (int i = 0; i < W; i++) {
                totals[0] += pack.gradient[i];
                totals[1] += pack.gradient[i] * pack.normal[i];
                by_normal[i] = dy[i] * pack.normal[i];
            }
            if (a.dweight) add_floats(dweight + p * W, by_normal);
            if (a.dbias) add_floats(dbias + p * W, dy);
        };
        backward_pack<W> mine[kept];
#pragma unroll
        for (int k = 0; k < kept; k++) {
            if (lane + k * THREADS < packs) add(lane + k * THREADS, mine[k]);
        }
        for (int64_t p = lane + kept * THREADS; p < packs; p += THREADS) {
            backward_pack<W> passed;
            add(p, passed);
        }
        block_sums<THREADS>(totals);
        const float sum = a.mean ? totals[0] / static_cast<float>(a.width) : 0;
        const float product = totals[1] / static_cast<float>(a.width);
#pragma unroll
        for (int k = 0; k < kept; k++) {
            if (lane + k * THREADS < packs) store_backward(a, row, rstd, sum, product, lane + k * THREADS, mine[k]);
        }
        for (int64_t p = lane + kept * THREADS; p < packs; p += THREADS) {
            backward_pack<W> again;
            float dy[W];
            load_backward(a, row, mean, rstd, p, again, dy);
            store_backward(a, row, rstd, sum, product, p, again);
        }
    }
    if (!a.in_shared) return;
    /* The barriers of the last row's sums have shown every thread all columns: now consecutive floats go together. */
    for (int64_t c = lane; c < sums; c += THREADS) part[c] = dweight[c];
}

constexpr int bias_warps = 8;

/* parts[part][column] = Σ of the part's rows of dy [rows,width], `stride` elements from row to row. A block has 32·W columns (blockIdx.x)
 * of one part (blockIdx.y), each warp every bias_warps-th row. W divides the width. */
template <class T, int W>
__global__ void __launch_bounds__(32 * bias_warps)
    bias_backward_kernel(const T *dy, int64_t stride, row_parts rows, int64_t width, float *parts) {
    SHARED(float, sums, [bias_warps][32 * W]);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t part = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * 32 * W, column = first + lane * W;
    float sum[W] = {};
    if (column < width) {
#pragma unroll 4
        for (int64_t row = part_first(rows, part) + warp; row < part_first(rows, part + 1); row += bias_warps) {
            float elements[W];
            load_pack(dy + row * stride + column, elements);
#pragma unroll
            for (int i = 0; i < W; i++) sum[i] += elements[i];
        }
    }
#pragma unroll
    for (int i = 0; i < W; i++) sums[warp][i * 32 + lane] = sum[i];
    __syncthreads();
    static_assert(W <= bias_warps, "a thread a column");
    const int c = static_cast<int>(threadIdx.x), at = c % W * 32 + c / W;
    if (c >= 32 * W || first + c >= width) return;
    float total = sums[0][at];
    for (int w = 1; w < bias_warps; w++) total += sums[w][at];
    parts[part * width + first + c] = total;
}

} // namespace

enum status cuda_norm(const struct ops *ops, const struct norm *a) {
    TRY(check_norm(ops, a));
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const bool add = tensor_present(a->delta);
        const norm_rows<T> rows = {data_of<const T>(a->x),
                                   add ? data_of<const T>(a->delta) : nullptr,
                                   data_of<const T>(a->weight),
                                   tensor_present(a->bias) ? data_of<const T>(a->bias) : nullptr,
                                   add ? data_of<T>(a->sum) : nullptr,
                                   data_of<T>(a->y),
                                   a->kind == NORM_LAYER ? data_of<float>(a->mean) : nullptr,
                                   data_of<float>(a->rstd),
                                   a->x.shape[0],
                                   a->x.shape[1],
                                   static_cast<float>(a->epsilon)};
        const bool packed = in_packs(rows.x, rows.width) && in_packs(rows.delta, 0) && in_packs(rows.weight, 0) &&
                            in_packs(rows.bias, 0) && in_packs(rows.sum, 0) && in_packs(rows.y, 0);
        return with_width<T>(packed, [&](auto width) {
            constexpr int W = decltype(width)::value;
            if (rows.width <= 32 * norm_held) {
                constexpr int each = norm_narrow_block / 32;
                return device_launch(ops, "norm", norm_kernel<T, W, 32>, grid_over(rows.rows, each), norm_narrow_block, 0, rows);
            }
            return device_launch(ops, "norm", norm_kernel<T, W, norm_wide>, grid_over(rows.rows, 1), norm_wide, 0, rows);
        });
    });
}

enum status cuda_norm_backward(const struct ops *ops, const struct norm_backward *a) {
    TRY(check_norm_backward(ops, a));
    const bool dweight = tensor_present(a->dweight), dbias = tensor_present(a->dbias);
    const int64_t width = a->x.shape[1], sums = (dweight + dbias) * width;
    const row_parts parts(a->x.shape[0], 16, 1024);
    const size_t bytes = static_cast<size_t>(sums) * sizeof(float);
    const bool in_shared = bytes <= backward_shared;
    void *block = nullptr;
    TRY(device_scratch(ops, static_cast<size_t>(parts.count) * bytes, &block));
    float *scratch = static_cast<float *>(block);
    TRY(with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const norm_backward_rows<T> rows = {data_of<const T>(a->dy),
                                            data_of<const T>(a->x),
                                            data_of<const T>(a->weight),
                                            a->kind == NORM_LAYER ? data_of<const float>(a->mean) : nullptr,
                                            data_of<const float>(a->rstd),
                                            data_of<T>(a->dx),
                                            scratch,
                                            parts,
                                            width,
                                            a->overwrite_dx,
                                            dweight,
                                            dbias,
                                            in_shared};
        const bool packed =
            in_packs(rows.dy, width) && in_packs(rows.x, 0) && in_packs(rows.weight, 0) && in_packs(rows.dx, 0);
        const dim3 grid = grid_over(parts.count, 1);
        const size_t shared = in_shared ? bytes : 0;
        return with_width<T>(packed, [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            if (width <= backward_narrow * backward_held) {
                return device_launch(ops, "norm_backward", norm_backward_kernel<T, W, backward_narrow>, grid, backward_narrow,
                                     shared, rows);
            }
            return device_launch(ops, "norm_backward", norm_backward_kernel<T, W, backward_wide>, grid, backward_wide, shared, rows);
        });
    }));
    if (dweight) TRY(add_parts(ops, scratch, parts.count, sums, width, data_of<float>(a->dweight)));
    if (dbias) TRY(add_parts(ops, scratch + dweight * width, parts.count, sums, width, data_of<float>(a->dbias)));
    return STATUS_OK;
}

enum status cuda_bias_backward(const struct ops *ops, struct tensor dy, struct tensor dbias) {
    TRY(check_bias_backward(ops, dy, dbias));
    const int64_t width = dy.shape[1], stride = dy.stride[0];
    const row_parts parts(dy.shape[0], 64, 256);
    void *block = nullptr;
    TRY(device_scratch(ops, static_cast<size_t>(parts.count * width) * sizeof(float), &block));
    float *scratch = static_cast<float *>(block);
    TRY(with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const T *rows = data_of<const T>(dy);
        return with_width<T>(in_packs(rows, stride) && width % pack_width<T> == 0, [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            dim3 grid = grid_over(width, 32 * W);
            grid.y = static_cast<unsigned>(parts.count);
            return device_launch(ops, "bias_backward", bias_backward_kernel<T, W>, grid, 32 * bias_warps, 0, rows, stride, parts,
                                 width, scratch);
        });
    }));
    return add_parts(ops, scratch, parts.count, width, width, data_of<float>(dbias));
}
