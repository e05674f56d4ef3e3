/* Rows of a table by token id, and their gradients.
 * The gradients' sums have one order whatever runs first, without atomics: the rows' numbers are sorted by id (two
 * passes of sort.cuh for 65,536 ids), the sorted list is cut into chunks, and a warp adds the rows of a chunk in
 * ascending order, one run of equal ids after another. A run inside a chunk goes into the table at once; what crosses
 * chunks is left as partial sums that a second kernel adds, again in ascending order. Work is balanced whatever the ids
 * are: a token that fills half of the rows costs no more than others. An atomic variant would save the sort (a few
 * microseconds beside a pass over dx) and lose the order, so there is none. */
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/sort.cuh"

namespace {

constexpr int warps_a_block = 4;

/* x [rows,width] = table[ids] (+ position_table[positions]); a warp a row. W divides the width. */
template <class T, int W>
__global__ void __launch_bounds__(32 * warps_a_block)
    embedding_kernel(const int32_t *ids, const int32_t *positions, const T *table, const T *position_table, T *x,
                     int64_t rows, int64_t width) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * warps_a_block + threadIdx.x / 32; row < rows;
         row += static_cast<int64_t>(gridDim.x) * warps_a_block) {
        const T *token = table + ids[row] * width;
        const T *position = position_table ? position_table + positions[row] * width : nullptr;
        for (int64_t c = lane * W; c < width; c += 32 * W) {
            float sum[W];
            load_pack(token + c, sum);
            if (position) {
                float more[W];
                load_pack(position + c, more);
#pragma unroll
                for (int i = 0; i < W; i++) sum[i] += more[i];
            }
            store_pack(x + row * width + c, sum);
        }
    }
}

/* ---- sums of runs ---- */

constexpr int chunk = 64; /* entries that one warp adds */

template <class T> struct run_sums {
    const int32_t *ids;  /* [n], sorted */
    const int32_t *rows; /* [n], of dx, that have them */
    const T *dx;         /* [n,width] */
    float *table;        /* [V,width], += */
    float *edges; /* [chunks][2][width]: of the run that enters the chunk, of the run that begins in it and leaves it */
    int64_t n, width;
};

/* Whether entries i − 1 and i are of one run. */
__device__ inline bool joined(const int32_t *ids, int64_t n, int64_t i) {
    return i > 0 && i < n && ids[i - 1] == ids[i];
}

/* A warp has 32·W columns of one chunk. W divides the width. */
template <class T, int W> __global__ void __launch_bounds__(32 * warps_a_block) add_runs_kernel(run_sums<T> a) {
    constexpr int ahead = 4; /* rows that are read before the first of them is added */
    const int64_t stripes = (a.width + 32 * W - 1) / (32 * W), chunks = (a.n + chunk - 1) / chunk;
    for (int64_t warp = static_cast<int64_t>(blockIdx.x) * warps_a_block + threadIdx.x / 32; warp < chunks * stripes;
         warp += static_cast<int64_t>(gridDim.x) * warps_a_block) {
        const int64_t part = warp / stripes, column = (warp % stripes * 32 + threadIdx.x % 32) * W;
        const int64_t first = part * chunk, last = first + chunk < a.n ? first + chunk : a.n;
        if (column >= a.width) continue;
        bool begun = !joined(a.ids, a.n, first); /* the run in hand began in this chunk */
        float sum[W] = {};
        for (int64_t base = first; base < last; base += ahead) {
            float rows[ahead][W];
#pragma unroll
            for (int k = 0; k < ahead; k++) {
                if (base + k < last) load_pack(a.dx + int64_t{a.rows[base + k]} * a.width + column, rows[k]);
            }
#pragma unroll
            for (int k = 0; k < ahead; k++) {
                const int64_t i = base + k;
                if (i >= last) break;
#pragma unroll
                for (int w = 0; w < W; w++) sum[w] += rows[k][w];
                const bool goes_on = joined(a.ids, a.n, i + 1);
                if (goes_on && i + 1 < last) continue;
                if (begun && !goes_on)
                    add_floats(a.table + int64_t{a.ids[i]} * a.width + column, sum);
                else
                    store_floats(a.edges + (2 * part + begun) * a.width + column, sum);
                begun = true;
#pragma unroll
                for (int w = 0; w < W; w++) sum[w] = 0;
            }
        }
    }
}

/* table += the sums of every run that crosses chunks. A warp has 32·W columns of the run that begins in one chunk and
 * leaves it. */
template <class T, int W> __global__ void __launch_bounds__(32 * warps_a_block) add_edges_kernel(run_sums<T> a) {
    const int64_t stripes = (a.width + 32 * W - 1) / (32 * W), chunks = (a.n + chunk - 1) / chunk;
    for (int64_t warp = static_cast<int64_t>(blockIdx.x) * warps_a_block + threadIdx.x / 32; warp < chunks * stripes;
         warp += static_cast<int64_t>(gridDim.x) * warps_a_block) {
        const int64_t part = warp / stripes, column = (warp % stripes * 32 + threadIdx.x % 32) * W;
        const int64_t last = (part + 1) * chunk;
        if (column >= a.width || !joined(a.ids, a.n, last)) continue;
        const int64_t id = a.ids[last];
        if (joined(a.ids, a.n, part * chunk) && a.ids[part * chunk] == id) continue; /* it began earlier */
        float sum[W];
        load_pack(a.edges + (2 * part + 1) * a.width + column, sum);
        for (int64_t next = part + 1; next < chunks && a.ids[next * chunk] == id; next++) {
            float more[W];
            load_pack(a.edges + 2 * next * a.width + column, more);
#pragma unroll
            for (int w = 0; w < W; w++) sum[w] += more[w];
        }
        add_floats(a.table + id * a.width + column, sum);
    }
}

/* ---- launches ---- */

/* The rows' ids as they came. */
struct id_source {
    const int32_t *ids;
    int64_t n;
    __device__ int64_t entries(int64_t) const { return n; }
    __device__ bool entry(int64_t, int64_t at, int32_t *key, int32_t *value) const {
        *key = ids[at];
        *value = static_cast<int32_t>(at);
        return true;
    }
};

/* table [V,width] += rows of dx by their id. */
enum status scatter(const struct ops *ops, struct tensor dx, const int32_t *ids, struct tensor table, float *edges,
                    void *memory) {
    const int64_t n = dx.shape[0], below = table.shape[0];
    const sort_space space = sort_place(memory, 1, n, below, nullptr);
    TRY(sort_entries(ops, "embedding_backward: sort", id_source{ids, n}, 1, n, below, space));
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const run_sums<T> runs = {space.keys[0], space.values[0], data_of<const T>(dx), data_of<float>(table), edges, n,
                                  dx.shape[1]};
        const bool packed = in_packs(runs.dx, runs.width) && in_packs(runs.table, 0);
        return with_width<T>(packed, [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            const dim3 grid = grid_over(divide_up(runs.n, chunk) * divide_up(runs.width, 32 * W), warps_a_block);
            TRY(device_launch(ops, "embedding_backward: runs", add_runs_kernel<T, W>, grid, 32 * warps_a_block, 0,
                              runs));
            return device_launch(ops, "embedding_backward: edges", add_edges_kernel<T, W>, grid, 32 * warps_a_block, 0,
                                 runs);
        });
    });
}

} // namespace

enum status cuda_embedding(const struct ops *ops, const struct embedding *a) {
    TRY(check_embedding(ops, a));
    const int64_t rows = a->x.shape[0], width = a->x.shape[1];
    const bool placed = tensor_present(a->position_table);
    const int32_t *positions = placed ? data_of<const int32_t>(a->positions) : nullptr;
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const T *table = data_of<const T>(a->table), *places = placed ? data_of<const T>(a->position_table) : nullptr;
        T *x = data_of<T>(a->x);
        return with_width<T>(in_packs(table, width) && in_packs(places, 0) && in_packs(x, 0), [&](auto pack) {
            return device_launch(ops, "embedding", embedding_kernel<T, decltype(pack)::value>,
                                 grid_over(rows, warps_a_block), 32 * warps_a_block, 0, data_of<const int32_t>(a->ids),
                                 positions, table, places, x, rows, width);
        });
    });
}

enum status cuda_embedding_backward(const struct ops *ops, const struct embedding_backward *a) {
    TRY(check_embedding_backward(ops, a));
    const int64_t n = a->dx.shape[0], width = a->dx.shape[1];
    if (n == 0 || width == 0) return STATUS_OK;
    if (n > INT32_MAX) {
        return error_set(STATUS_SHAPE, "embedding_backward: dx: expected at most %d rows, found %lld", INT32_MAX,
                         static_cast<long long>(n));
    }
    const bool by_id = tensor_present(a->dtable), by_position = tensor_present(a->dposition_table);
    const int64_t below = by_id && by_position ? max(a->dtable.shape[0], a->dposition_table.shape[0])
                          : by_id              ? a->dtable.shape[0]
                          : by_position        ? a->dposition_table.shape[0]
                                               : 1;
    const size_t sorting = sort_bytes(1, n, below, false);
    void *memory = nullptr;
    TRY(device_scratch(ops, sorting + static_cast<size_t>(divide_up(n, chunk) * 2 * width) * sizeof(float), &memory));
    float *edges = reinterpret_cast<float *>(static_cast<char *>(memory) + sorting);
    if (by_id) TRY(scatter(ops, a->dx, data_of<const int32_t>(a->ids), a->dtable, edges, memory));
    if (by_position) TRY(scatter(ops, a->dx, data_of<const int32_t>(a->positions), a->dposition_table, edges, memory));
    return STATUS_OK;
}
