/* What a radix sort does between counting digits and placing entries, and how its memory lies. */
#include "kernels/cuda/sort.cuh"

namespace {

constexpr int scan_each = 4; /* tiles of a thread at a time */

/* counts[list][digit][tile] becomes the entries with that digit in earlier tiles; totals[list][digit] those in all. A
 * block a digit. */
__global__ void __launch_bounds__(sort_threads) scan_kernel(int32_t *counts, int64_t tiles, int32_t *totals) {
    SHARED(int32_t, all, [1]);
    const int64_t digit = static_cast<int64_t>(blockIdx.y) * sort_digits + blockIdx.x;
    int32_t *row = counts + digit * tiles, before = 0;
    for (int64_t first = 0; first < tiles; first += sort_threads * scan_each) {
        const int64_t mine = first + threadIdx.x * scan_each;
        int32_t count[scan_each], own = 0;
        for (int n = 0; n < scan_each; n++) {
            count[n] = mine + n < tiles ? row[mine + n] : 0;
            own += count[n];
        }
        const int32_t sum = block_running_sum(own);
        int32_t next = before + sum - own;
        for (int n = 0; n < scan_each && mine + n < tiles; n++) {
            row[mine + n] = next;
            next += count[n];
        }
        if (threadIdx.x == sort_threads - 1) *all = sum;
        __syncthreads();
        before += *all;
    }
    if (threadIdx.x == 0) totals[digit] = before;
}

size_t padded(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(int32_t) + 255) / 256 * 256;
}

} // namespace

enum status sort_scan(const struct ops *ops, const char *operation, const sort_pass &pass, int64_t lists) {
    const dim3 grid(static_cast<unsigned>(pass.mask + 1), static_cast<unsigned>(lists));
    return device_launch(ops, operation, scan_kernel, grid, sort_threads, 0, pass.counts, pass.tiles, pass.totals);
}

size_t sort_bytes(int64_t lists, int64_t count, int64_t below, bool values_given) {
    const size_t arrays = (sort_passes(below) > 1 ? 4 : 2) - (values_given ? 1 : 0);
    return arrays * padded(lists * count) + padded(lists * sort_digits * divide_up(count, sort_tile)) +
           padded(lists * sort_digits) + padded(lists);
}

sort_space sort_place(void *memory, int64_t lists, int64_t count, int64_t below, int32_t *values) {
    char *at = static_cast<char *>(memory);
    const auto take = [&at](int64_t size) {
        int32_t *array = reinterpret_cast<int32_t *>(at);
        at += padded(size);
        return array;
    };
    sort_space space = {};
    space.keys[0] = take(lists * count);
    space.values[0] = values ? values : take(lists * count);
    if (sort_passes(below) > 1) {
        space.keys[1] = take(lists * count);
        space.values[1] = take(lists * count);
    }
    space.counts = take(lists * sort_digits * divide_up(count, sort_tile));
    space.totals = take(lists * sort_digits);
    space.present = take(lists);
    return space;
}
