/* Rows of a table by token id, and their gradients.
 * The gradients' sums have one order whatever runs first, without atomics: the rows' numbers are sorted by id (a stable radix sort, 8 bits
 * a pass: two passes for 65,536 ids), the sorted list is cut into chunks, and a warp adds the rows of a chunk in ascending order, one run
 * of equal ids after another. A run inside a chunk goes into the table at once; what crosses chunks is left as partial sums that a second
 * kernel adds, again in ascending order. Work is balanced whatever the ids are: a token that fills half of the rows costs no more than
 * others. An atomic variant would save the sort (a few microseconds beside a pass over dx) and lose the order, so there is none. */
#include "kernels/cuda/rows.cuh"

namespace {

constexpr int warps_a_block = 4;

/* x [rows,width] = table[ids] (+ position_table[positions]); a warp a row. W divides the width. */
template <class T, int W>
__global__ void __launch_bounds__(32 * warps_a_block)
    embedding_kernel(const int32_t *ids, const int32_t *positions, const T *table, const T *position_table, T *x, int64_t rows,
                     int64_t width) {
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

/* ---- a stable radix sort of (id, row) by id ------------------------------------------------------------------------- */

struct entry {
    int32_t id, row;
};
constexpr int digit_bits = 8, digits = 1 << digit_bits; /* a thread a digit */
constexpr int tile = 512;                               /* entries that one block places */

/* Entry i of the list: of `from`, or of the ids as they came when from is NULL. */
__device__ inline entry entry_at(const entry *from, const int32_t *ids, int64_t i) {
    return from ? from[i] : entry{ids[i], static_cast<int32_t>(i)};
}
__device__ inline int digit_of(entry e, int shift) { return (e.id >> shift) & (digits - 1); }

/* counts[digit][tile] = entries of the tile with that digit. A block a tile. */
__global__ void __launch_bounds__(digits)
    count_digits_kernel(const entry *from, const int32_t *ids, int64_t n, int shift, int32_t *counts) {
    SHARED(int32_t, count, [digits]);
    const int thread = static_cast<int>(threadIdx.x);
    count[thread] = 0;
    __syncthreads();
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * tile + thread; i < n && i < (blockIdx.x + 1ll) * tile; i += digits) {
        atomicAdd(&count[digit_of(entry_at(from, ids, i), shift)], 1);
    }
    __syncthreads();
    counts[static_cast<int64_t>(thread) * gridDim.x + blockIdx.x] = count[thread];
}

/* The sum of x over this and all earlier lanes of a warp. */
__device__ inline int32_t warp_running_sum(int32_t x) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int32_t before = __shfl_up_sync(whole_warp, x, step);
        if (lane >= step) x += before;
    }
    return x;
}

/* The sum of x over this and all earlier threads of a block of `digits`. Called once by every thread of a block. */
__device__ inline int32_t block_running_sum(int32_t x) {
    SHARED(int32_t, sums, [digits / 32]);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    x = warp_running_sum(x);
    if (threadIdx.x % 32 == 31) sums[warp] = x;
    __syncthreads();
    for (int w = 0; w < warp; w++) x += sums[w];
    return x;
}

/* counts[digit][tile] becomes the entries with that digit in earlier tiles; totals[digit] those in all. A warp a digit. */
__global__ void __launch_bounds__(32 * warps_a_block) scan_counts_kernel(int32_t *counts, int64_t tiles, int32_t *totals) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t digit = static_cast<int64_t>(blockIdx.x) * warps_a_block + threadIdx.x / 32;
    int32_t *row = counts + digit * tiles, before = 0;
    for (int64_t first = 0; first < tiles; first += 32) {
        const int64_t t = first + lane;
        const int32_t count = t < tiles ? row[t] : 0, sum = warp_running_sum(count);
        if (t < tiles) row[t] = before + sum - count;
        before += __shfl_sync(whole_warp, sum, 31);
    }
    if (lane == 0) totals[digit] = before;
}

/* Puts the entries of a tile where their digit's begin, after those of earlier tiles, in their own order: thread d walks over the tile
 * and places what has digit d. A block a tile. */
__global__ void __launch_bounds__(digits) place_entries_kernel(const entry *from, const int32_t *ids, int64_t n, int shift,
                                                               const int32_t *counts, const int32_t *totals, entry *to) {
    SHARED(entry, entries, [tile]);
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * tile;
    const int here = static_cast<int>(n - first < tile ? n - first : tile);
    for (int i = thread; i < here; i += digits) entries[i] = entry_at(from, ids, first + i);
    const int32_t total = totals[thread];
    int64_t place = block_running_sum(total) - total; /* its barrier also shows every thread all entries */
    place += counts[static_cast<int64_t>(thread) * gridDim.x + blockIdx.x];
    for (int i = 0; i < here; i++) {
        if (digit_of(entries[i], shift) == thread) to[place++] = entries[i];
    }
}

/* ---- sums of runs --------------------------------------------------------------------------------------------------- */

constexpr int chunk = 64; /* entries that one warp adds */

template <class T> struct run_sums {
    const entry *entries; /* [n], sorted */
    const T *dx;          /* [n,width] */
    float *table;         /* [V,width], += */
    float *edges;         /* [chunks][2][width]: of the run that enters the chunk, of the run that begins in it and leaves it */
    int64_t n, width;
};

/* Whether entries i − 1 and i are of one run. */
__device__ inline bool joined(const entry *entries, int64_t n, int64_t i) {
    return i > 0 && i < n && entries[i - 1].id == entries[i].id;
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
        bool begun = !joined(a.entries, a.n, first); /* the run in hand began in this chunk */
        float sum[W] = {};
        for (int64_t base = first; base < last; base += ahead) {
            float rows[ahead][W];
#pragma unroll
            for (int k = 0; k < ahead; k++) {
                if (base + k < last) load_pack(a.dx + a.entries[base + k].row * a.width + column, rows[k]);
            }
#pragma unroll
            for (int k = 0; k < ahead; k++) {
                const int64_t i = base + k;
                if (i >= last) break;
#pragma unroll
                for (int w = 0; w < W; w++) sum[w] += rows[k][w];
                const bool goes_on = joined(a.entries, a.n, i + 1);
                if (goes_on && i + 1 < last) continue;
                if (begun && !goes_on)
                    add_floats(a.table + a.entries[i].id * a.width + column, sum);
                else
                    store_floats(a.edges + (2 * part + begun) * a.width + column, sum);
                begun = true;
#pragma unroll
                for (int w = 0; w < W; w++) sum[w] = 0;
            }
        }
    }
}

/* table += the sums of every run that crosses chunks. A warp has 32·W columns of the run that begins in one chunk and leaves it. */
template <class T, int W> __global__ void __launch_bounds__(32 * warps_a_block) add_edges_kernel(run_sums<T> a) {
    const int64_t stripes = (a.width + 32 * W - 1) / (32 * W), chunks = (a.n + chunk - 1) / chunk;
    for (int64_t warp = static_cast<int64_t>(blockIdx.x) * warps_a_block + threadIdx.x / 32; warp < chunks * stripes;
         warp += static_cast<int64_t>(gridDim.x) * warps_a_block) {
        const int64_t part = warp / stripes, column = (warp % stripes * 32 + threadIdx.x % 32) * W;
        const int64_t last = (part + 1) * chunk;
        if (column >= a.width || !joined(a.entries, a.n, last)) continue;
        const int32_t id = a.entries[last].id;
        if (joined(a.entries, a.n, part * chunk) && a.entries[part * chunk].id == id) continue; /* it began earlier */
        float sum[W];
        load_pack(a.edges + (2 * part + 1) * a.width + column, sum);
        for (int64_t next = part + 1; next < chunks && a.entries[next * chunk].id == id; next++) {
            float more[W];
            load_pack(a.edges + 2 * next * a.width + column, more);
#pragma unroll
            for (int w = 0; w < W; w++) sum[w] += more[w];
        }
        add_floats(a.table + id * a.width + column, sum);
    }
}

/* ---- launches --------------------------------------------------------------------------------------------------------- */

struct sort_space {
    entry *lists[2];          /* [n] each */
    int32_t *counts, *totals; /* [digits][tiles], [digits] */
    float *edges;
};

/* *sorted: the list of (ids[n], n) in ascending id, then n; ids lie in 0 … below−1. */
enum status sort_ids(const struct ops *ops, const int32_t *ids, int64_t n, int64_t below, const sort_space &space,
                     const entry **sorted) {
    const dim3 tiles = grid_over(n, tile);
    const entry *from = nullptr;
    int next = 0;
    for (int shift = 0; shift == 0 || (below - 1) >> shift > 0; shift += digit_bits) {
        TRY(device_launch(ops, "embedding_backward: count", count_digits_kernel, tiles, digits, 0, from, ids, n, shift,
                          space.counts));
        TRY(device_launch(ops, "embedding_backward: scan", scan_counts_kernel, dim3(digits / warps_a_block),
                          32 * warps_a_block, 0, space.counts,
                          static_cast<int64_t>(tiles.x), space.totals));
        TRY(device_launch(ops, "embedding_backward: place", place_entries_kernel, tiles, digits, 0, from, ids, n, shift,
                          space.counts, space.totals, space.lists[next]));
        from = space.lists[next];
        next = 1 - next;
    }
    *sorted = from;
    return STATUS_OK;
}

/* table [V,width] += rows of dx by their id. */
enum status scatter(const struct ops *ops, struct tensor dx, const int32_t *ids, struct tensor table, const sort_space &space) {
    const entry *sorted = nullptr;
    TRY(sort_ids(ops, ids, dx.shape[0], table.shape[0], space, &sorted));
    return with_real(ops, [&](auto zero) {
        using T = decltype(zero);
        const run_sums<T> runs = {sorted, data_of<const T>(dx), data_of<float>(table), space.edges, dx.shape[0], dx.shape[1]};
        const bool packed = in_packs(runs.dx, runs.width) && in_packs(runs.table, 0);
        return with_width<T>(packed, [&](auto pack) {
            constexpr int W = decltype(pack)::value;
            const dim3 grid = grid_over(divide_up(runs.n, chunk) * divide_up(runs.width, 32 * W), warps_a_block);
            TRY(device_launch(ops, "embedding_backward: runs", add_runs_kernel<T, W>, grid, 32 * warps_a_block, 0, runs));
            return device_launch(ops, "embedding_backward: edges", add_edges_kernel<T, W>, grid, 32 * warps_a_block, 0, runs);
        });
    });
}

size_t round_up(int64_t bytes) { return static_cast<size_t>(divide_up(bytes, 256) * 256); }

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
            return device_launch(ops, "embedding", embedding_kernel<T, decltype(pack)::value>, grid_over(rows, warps_a_block),
                                 32 * warps_a_block, 0, data_of<const int32_t>(a->ids), positions, table, places, x, rows, width);
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
    const size_t list = round_up(n * static_cast<int64_t>(sizeof(entry)));
    const size_t counts = round_up(divide_up(n, tile) * digits * static_cast<int64_t>(sizeof(int32_t)));
    const size_t totals = round_up(digits * static_cast<int64_t>(sizeof(int32_t)));
    const size_t edges = round_up(divide_up(n, chunk) * 2 * width * static_cast<int64_t>(sizeof(float)));
    void *block = nullptr;
    TRY(device_scratch(ops, 2 * list + counts + totals + edges, &block));
    char *memory = static_cast<char *>(block);
    sort_space space = {};
    space.lists[0] = reinterpret_cast<entry *>(memory);
    space.lists[1] = reinterpret_cast<entry *>(memory + list);
    space.counts = reinterpret_cast<int32_t *>(memory + 2 * list);
    space.totals = reinterpret_cast<int32_t *>(memory + 2 * list + counts);
    space.edges = reinterpret_cast<float *>(memory + 2 * list + counts + totals);
    if (tensor_present(a->dtable)) TRY(scatter(ops, a->dx, data_of<const int32_t>(a->ids), a->dtable, space));
    if (tensor_present(a->dposition_table)) {
        TRY(scatter(ops, a->dx, data_of<const int32_t>(a->positions), a->dposition_table, space));
    }
    return STATUS_OK;
}
