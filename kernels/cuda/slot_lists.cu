/* Which slots of a cache one query a sequence reads: a block makes a list. Chosen entries, each of some tokens or of
 * none, find their places by a running sum. */
#include "kernels/cuda/sort.cuh"

#include <climits>

namespace {

constexpr int threads = 256;
constexpr int64_t capacity_most = INT_MAX / threads; /* so that the tokens of as many entries can be counted */

struct list_arguments {
    const int32_t *places, *chosen; /* [B,3]; [B,lists,n] */
    int32_t *slots, *slot_counts;   /* [B,lists,capacity], [B,lists] */
    int64_t position, block, sinks, window, capacity, chosen_count;
    int lists;
};

/* first … end − 1 into list[at …], by the lanes of a group of `lanes`. */
__device__ void write_slots(const list_arguments &a, int32_t *list, int64_t at, int64_t first, int64_t end, int lane,
                            int lanes) {
    for (int64_t n = lane; n < end - first && at + n < a.capacity; n += lanes)
        list[at + n] = static_cast<int32_t>(first + n);
}

/* The tokens of entry c that lie between sinks and window: first, and how many. */
__device__ int entry_tokens(const list_arguments &a, const int32_t *chosen, int64_t c, int64_t start, int64_t low,
                            int64_t high, int64_t *first) {
    const int32_t number = c < a.chosen_count ? __ldg(chosen + c) : -1;
    if (number < 0) return 0;
    const int64_t from = a.block > 0 ? start + number * a.block : number, end = from + (a.block > 0 ? a.block : 1);
    *first = max(from, low);
    return static_cast<int>(min(max(int64_t{0}, min(end, high) - *first), a.capacity));
}

__global__ void __launch_bounds__(threads) list_slots(list_arguments a) {
    SHARED(int32_t, sums, [sort_warps]);
    SHARED(int32_t, offsets, [threads]);
    SHARED(int32_t, counts, [threads]);
    SHARED(int32_t, firsts, [threads]);
    const int64_t row = blockIdx.x;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int32_t place = __ldg(a.places + 3 * (row / a.lists) + 2);
    const int64_t end = a.position + 1, start = place >= 0 && place < end ? a.position - place : a.position;
    const int64_t near = max(end - a.window, start), sinks_end = min(start + a.sinks, near);
    const int32_t *chosen = a.chosen + row * a.chosen_count;
    int32_t *list = a.slots + row * a.capacity;
    int64_t count = sinks_end - start;
    write_slots(a, list, 0, start, sinks_end, thread, threads);
    for (int64_t c = 0; c < a.chosen_count; c += threads) {
        int64_t first = 0;
        const int own = entry_tokens(a, chosen, c + thread, start, sinks_end, near, &first);
        const int32_t running = warp_running_sum(own);
        __syncthreads(); /* the chunk before is written */
        if (lane == 31) sums[warp] = running;
        counts[thread] = own;
        firsts[thread] = static_cast<int32_t>(first);
        __syncthreads();
        int32_t before = running - own, all = 0;
        for (int w = 0; w < sort_warps; w++) {
            if (w < warp) before += sums[w];
            all += sums[w];
        }
        offsets[thread] = before;
        __syncthreads();
        if (a.block > 1) { /* a warp an entry */
            for (int e = warp; e < threads; e += sort_warps)
                write_slots(a, list, count + offsets[e], firsts[e], int64_t{firsts[e]} + counts[e], lane, 32);
        } else {
            write_slots(a, list, count + before, first, first + own, 0, 1);
        }
        count += all;
    }
    write_slots(a, list, count, near, end, thread, threads);
    count = min(count + end - near, a.capacity);
    if (thread == 0) a.slot_counts[row] = static_cast<int32_t>(count);
    for (int64_t n = count + thread; n < a.capacity; n += threads) list[n] = -1;
}

} // namespace

enum status cuda_slot_lists(const struct ops *ops, const struct slot_lists *a) {
    TRY(check_slot_lists(a));
    const int64_t rows = a->slots.shape[0] * a->slots.shape[1];
    if (rows > INT_MAX || a->slots.shape[2] > capacity_most)
        return error_set(STATUS_SHAPE,
                         "slot_lists: slots: expected up to %d lists of up to %lld slots, found %lld of %lld", INT_MAX,
                         static_cast<long long>(capacity_most), static_cast<long long>(rows),
                         static_cast<long long>(a->slots.shape[2]));
    list_arguments g = {};
    g.places = data_of<const int32_t>(a->places);
    g.chosen = data_of<const int32_t>(a->chosen);
    g.slots = data_of<int32_t>(a->slots);
    g.slot_counts = data_of<int32_t>(a->slot_counts);
    g.position = a->position;
    g.block = a->block;
    g.sinks = a->sinks;
    g.window = a->window;
    g.capacity = a->slots.shape[2];
    g.chosen_count = tensor_present(a->chosen) ? a->chosen.shape[2] : 0;
    g.lists = static_cast<int>(a->slots.shape[1]);
    if (rows == 0) return STATUS_OK;
    return device_launch(ops, "slot_lists", list_slots, dim3(static_cast<unsigned>(rows)), threads, 0, g);
}
