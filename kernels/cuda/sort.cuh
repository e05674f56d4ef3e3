/* A stable radix sort of entries (key, value) by key, of several lists side by side: up to 8 bits a pass, without
 * atomics whose order could show. What the entries are is known to the source that the first pass takes them from. */
#ifndef SQUINT_KERNELS_CUDA_SORT_CUH
#define SQUINT_KERNELS_CUDA_SORT_CUH

#include "kernels/cuda/device.cuh"

constexpr int sort_digits = 256, sort_threads = 256; /* a thread a digit */
constexpr int sort_warps = sort_threads / 32;
constexpr int sort_each = 8;                        /* entries of a thread */
constexpr int sort_tile = sort_threads * sort_each; /* entries that one block places; a warp has 32 · sort_each */
constexpr int64_t sort_lists_most = 65535;          /* at once; a grid's second extent */

/* Of `lists` lists with room for `count` entries each. keys[0], values[0] hold what is sorted; the second ones are
 * NULL where one pass is enough. */
struct sort_space {
    int32_t *keys[2], *values[2]; /* [lists][count] */
    int32_t *counts;              /* [lists][digits][tiles] */
    int32_t *totals;              /* [lists][digits] */
    int32_t *present;             /* [lists] entries that the source gave: those at the beginning of each list */
};

/* Passes for keys 0 … below − 1. */
inline int sort_passes(int64_t below) {
    int bits = 1;
    while ((below - 1) >> bits > 0) bits++;
    return static_cast<int>(divide_up(bits, 8));
}
/* Bytes that sort_place hands out of `memory`, a multiple of 256, with values[0] or (values_given) without. */
size_t sort_bytes(int64_t lists, int64_t count, int64_t below, bool values_given);
/* Cuts `memory` up. values: what becomes values[0], or NULL. */
sort_space sort_place(void *memory, int64_t lists, int64_t count, int64_t below, int32_t *values);

/* One pass over one digit of the keys. */
struct sort_pass {
    int shift, mask;
    int64_t count, tiles;
    int32_t *counts, *totals, *present;
    int32_t *keys, *values; /* where to */
    bool first;
};
enum status sort_scan(const struct ops *ops, const char *operation, const sort_pass &pass, int64_t lists);

/* What an earlier pass left. */
struct sorted_source {
    const int32_t *keys, *values, *present;
    int64_t count;
    __device__ int64_t entries(int64_t list) const { return present[list]; }
    __device__ bool entry(int64_t list, int64_t at, int32_t *key, int32_t *value) const {
        *key = keys[list * count + at];
        *value = values[list * count + at];
        return true;
    }
};

/* counts[list][digit][tile] = entries of the tile with that digit. A block a tile. */
template <class Source> __global__ void __launch_bounds__(sort_threads) sort_count_kernel(Source source, sort_pass a) {
    SHARED(int32_t, count, [sort_digits]);
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t list = blockIdx.y, entries = source.entries(list), first = blockIdx.x * int64_t{sort_tile};
    count[thread] = 0;
    __syncthreads();
    for (int j = 0; j < sort_each; j++) {
        const int64_t at = first + j * sort_threads + thread;
        int32_t key = 0, value = 0;
        if (at < entries && source.entry(list, at, &key, &value)) atomicAdd(&count[(key >> a.shift) & a.mask], 1);
    }
    __syncthreads();
    if (thread <= a.mask) a.counts[(list * sort_digits + thread) * a.tiles + blockIdx.x] = count[thread];
}

/* The sum of x over this and all earlier lanes of a warp. */
__device__ inline int32_t warp_running_sum(int32_t x) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int32_t before = __shfl_up_sync(whole_warp, x, static_cast<unsigned>(step));
        if (lane >= step) x += before;
    }
    return x;
}
/* The sum of x over this and all earlier threads of a block of sort_threads. By all threads. */
__device__ inline int32_t block_running_sum(int32_t x) {
    SHARED(int32_t, sums, [sort_warps]);
    const int warp = static_cast<int>(threadIdx.x / 32);
    x = warp_running_sum(x);
    __syncthreads(); /* an earlier call's sums are read */
    if (threadIdx.x % 32 == 31) sums[warp] = x;
    __syncthreads();
    for (int w = 0; w < warp; w++) x += sums[w];
    return x;
}

/* The lanes whose digit is this lane's; 0 for a lane without one. By all lanes. */
__device__ inline unsigned lanes_alike(int digit, bool present) {
    unsigned alike = __ballot_sync(whole_warp, present);
    if (!present) alike = 0;
#pragma unroll
    for (int bit = 0; bit < 8; bit++) {
        const unsigned set = __ballot_sync(whole_warp, digit >> bit & 1);
        alike &= digit >> bit & 1 ? set : ~set;
    }
    return alike;
}

/* Puts the entries of a tile where their digit's begin, after those of earlier tiles, in their own order: a warp ranks
 * its part 32 at a time, and what one digit has lies together in shared memory before it is written. A block a tile. */
template <class Source> __global__ void __launch_bounds__(sort_threads) sort_place_kernel(Source source, sort_pass a) {
    SHARED(int32_t, places, [sort_warps][sort_digits]); /* entries so far, then where a warp's begin in the tile */
    SHARED(int32_t, moved, [sort_digits]);              /* of a digit: place in the list less place in the tile */
    SHARED(int32_t, keys, [sort_tile]);
    SHARED(int32_t, values, [sort_tile]);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int64_t list = blockIdx.y, entries = source.entries(list);
    const int64_t first = blockIdx.x * int64_t{sort_tile} + warp * 32 * sort_each;
    int32_t key[sort_each], value[sort_each], rank[sort_each];
    for (int w = 0; w < sort_warps; w++) places[w][thread] = 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < sort_each; j++) {
        const int64_t at = first + j * 32 + lane;
        key[j] = value[j] = 0;
        const bool present = at < entries && source.entry(list, at, &key[j], &value[j]);
        const int digit = (key[j] >> a.shift) & a.mask;
        const unsigned alike = lanes_alike(digit, present), below = alike & ((1u << lane) - 1);
        const int32_t before = places[warp][digit];
        __syncwarp(); /* all have read it */
        rank[j] = present ? before + __popc(below) : -1;
        if (present && below == 0) places[warp][digit] = before + __popc(alike);
        __syncwarp();
    }
    __syncthreads();
    int32_t here = 0;
    for (int w = 0; w < sort_warps; w++) here += places[w][thread];
    const int64_t digit = list * sort_digits + thread;
    const bool used = thread <= a.mask;
    const int32_t end = block_running_sum(here), total = used ? a.totals[digit] : 0;
    const int32_t list_end = block_running_sum(total);
    moved[thread] = list_end - total + (used ? a.counts[digit * a.tiles + blockIdx.x] : 0) - (end - here);
    for (int32_t w = 0, next = end - here; w < sort_warps; w++) {
        const int32_t count = places[w][thread];
        places[w][thread] = next;
        next += count;
    }
    SHARED(int32_t, all, [1]);
    if (thread == sort_threads - 1) {
        *all = end;
        if (a.first && blockIdx.x == 0) a.present[list] = list_end;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < sort_each; j++) {
        if (rank[j] < 0) continue;
        const int32_t at = places[warp][(key[j] >> a.shift) & a.mask] + rank[j];
        keys[at] = key[j];
        values[at] = value[j];
    }
    __syncthreads();
    for (int32_t at = thread; at < *all; at += sort_threads) {
        const int64_t to = list * a.count + moved[(keys[at] >> a.shift) & a.mask] + at;
        a.keys[to] = keys[at];
        a.values[to] = values[at];
    }
}

/* Sorts `lists` lists; space.keys[0], space.values[0] and space.present hold the result. source.entry(list, at, &key,
 * &value), at = 0 … count − 1, gives an entry or says that there is none; keys lie in 0 … below − 1, count < 2^31,
 * lists at most sort_lists_most. Entries of one key keep the source's order. */
template <class Source>
enum status sort_entries(const struct ops *ops, const char *operation, const Source &source, int64_t lists,
                         int64_t count, int64_t below, const sort_space &space) {
    const int passes = sort_passes(below);
    int bits = 1;
    while ((below - 1) >> bits > 0) bits++;
    const int digit_bits = static_cast<int>(divide_up(bits, passes)); /* few digits: long runs of writes */
    sort_pass pass = {};
    pass.mask = (1 << digit_bits) - 1;
    pass.count = count;
    pass.tiles = divide_up(count, sort_tile);
    pass.counts = space.counts;
    pass.totals = space.totals;
    pass.present = space.present;
    const dim3 grid(static_cast<unsigned>(pass.tiles), static_cast<unsigned>(lists));
    CUDA_TRY(cudaMemsetAsync(space.present, 0, static_cast<size_t>(lists) * sizeof(int32_t), ops->device->stream));
    for (int n = 0; n < passes; n++) {
        const int to = (passes - 1 - n) % 2;
        pass.shift = n * digit_bits;
        pass.keys = space.keys[to];
        pass.values = space.values[to];
        pass.first = n == 0;
        const sorted_source sorted = {space.keys[1 - to], space.values[1 - to], space.present, count};
        const auto launch = [&](auto from) {
            using From = decltype(from);
            TRY(device_launch(ops, operation, sort_count_kernel<From>, grid, sort_threads, 0, from, pass));
            TRY(sort_scan(ops, operation, pass, lists));
            return device_launch(ops, operation, sort_place_kernel<From>, grid, sort_threads, 0, from, pass);
        };
        TRY(pass.first ? launch(source) : launch(sorted));
    }
    return STATUS_OK;
}

#endif
