/* Documents and their blocks: a scan over a sequence's tokens by one block, then what each token finds by itself. */
#include "kernels/cuda/documents.cuh"

namespace {

constexpr int scan_threads = 512, each = 8 /* tokens of a thread at a time */, tile = scan_threads * each;

struct find_arguments {
    const int32_t *start;
    int32_t *begin, *end, *base, *first, *count;
    int64_t batch, bound;
    int length, width, stride;
    bool partial;
};

__device__ int blocks_in(const find_arguments &a, int tokens) {
    return a.partial ? (tokens + a.width - 1) / a.width : whole_blocks(tokens, a.width, a.stride);
}

struct larger {
    __device__ int operator()(int a, int b) const { return max(a, b); }
};
struct sum {
    __device__ int operator()(int a, int b) const { return a + b; }
};

/* What the threads before this one hold, together with `before`; *all becomes that of all. By all threads. */
template <class Join> __device__ int scan_before(int x, int before, int *all, Join join) {
    SHARED(int, totals, [scan_threads / 32]);
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(whole_warp, x, static_cast<unsigned>(step));
        if (lane >= step) x = join(other, x);
    }
    const int inside = __shfl_up_sync(whole_warp, x, 1);
    __syncthreads(); /* an earlier call's totals are read */
    if (lane == 31) totals[warp] = x;
    __syncthreads();
    int ahead = before;
    *all = before;
    for (int w = 0; w < scan_threads / 32; w++) {
        if (w < warp) ahead = join(ahead, totals[w]);
        *all = join(*all, totals[w]);
    }
    return lane == 0 ? ahead : join(ahead, inside);
}

/* begin, base and count of one sequence. */
__global__ void __launch_bounds__(scan_threads) scan_documents(find_arguments a) {
    const int64_t b = blockIdx.x, row = b * a.length;
    int begun = 0, blocks = 0; /* the last document that began before the tile, and the blocks before it */
    for (int first = 0; first < a.length; first += tile) {
        const int mine = first + static_cast<int>(threadIdx.x) * each;
        bool begins[each];
        int latest = 0;
        for (int n = 0; n < each; n++) {
            begins[n] = mine + n > 0 && mine + n < a.length && a.start[row + mine + n] == mine + n;
            if (begins[n]) latest = mine + n;
        }
        int all;
        int from = scan_before(latest, begun, &all, larger());
        begun = all;
        int before = from, added = 0;
        for (int n = 0; n < each; n++) {
            if (!begins[n]) continue;
            added += blocks_in(a, mine + n - before);
            before = mine + n;
        }
        int at = scan_before(added, blocks, &all, sum());
        blocks = all;
        for (int n = 0; n < each && mine + n < a.length; n++) {
            if (begins[n]) {
                at += blocks_in(a, mine + n - from);
                from = mine + n;
            }
            a.begin[row + mine + n] = from;
            a.base[row + mine + n] = at;
        }
    }
    if (threadIdx.x == 0) a.count[b] = blocks + blocks_in(a, a.length - begun);
}

/* end of every token, first of the block that begins with it. */
__global__ void __launch_bounds__(256) find_ends(find_arguments a) {
    const int64_t tokens = a.batch * a.length;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < tokens;
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t b = n / a.length;
        const int32_t *begin = a.begin + b * a.length;
        const int i = static_cast<int>(n % a.length);
        int lo = i + 1, hi = a.length; /* the first token after i whose document begins after i */
        while (lo < hi) {
            const int middle = lo + (hi - lo) / 2;
            if (begin[middle] > i) {
                hi = middle;
            } else {
                lo = middle + 1;
            }
        }
        a.end[n] = lo;
        const int place = i - begin[i];
        if (place % a.stride == 0 && (a.partial || a.width <= lo - i))
            a.first[b * a.bound + a.base[n] + place / a.stride] = i;
    }
}

/* −1 where there is no block. */
__global__ void __launch_bounds__(256) clear_beyond(find_arguments a) {
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < a.batch * a.bound;
         n += static_cast<int64_t>(gridDim.x) * 256)
        if (n % a.bound >= a.count[n / a.bound]) a.first[n] = -1;
}

size_t padded(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(int32_t) + 255) / 256 * 256;
}
int64_t bound_of(int64_t length, int64_t width, int64_t stride, bool partial) {
    return partial ? (length > 1 ? length : 1) : compressed_bound(length, width, stride);
}

} // namespace

size_t document_blocks_bytes(int64_t batch, int64_t length, int64_t width, int64_t stride, bool partial) {
    return 3 * padded(batch * length) + padded(batch * bound_of(length, width, stride, partial)) + padded(batch);
}

enum status document_blocks_find(const struct ops *ops, const char *operation, struct tensor start, int64_t width,
                                 int64_t stride, bool partial, void *memory, document_blocks *blocks) {
    find_arguments a = {};
    a.start = data_of<const int32_t>(start);
    a.batch = start.shape[0];
    a.length = static_cast<int>(start.shape[1]);
    a.width = static_cast<int>(width);
    a.stride = static_cast<int>(stride);
    a.partial = partial;
    a.bound = bound_of(a.length, width, stride, partial);
    char *at = static_cast<char *>(memory);
    const auto take = [&at](int64_t count) {
        int32_t *array = reinterpret_cast<int32_t *>(at);
        at += padded(count);
        return array;
    };
    a.begin = take(a.batch * a.length);
    a.end = take(a.batch * a.length);
    a.base = take(a.batch * a.length);
    a.first = take(a.batch * a.bound);
    a.count = take(a.batch);
    *blocks = document_blocks{a.begin, a.end, a.base, a.first, a.count, a.bound, a.length, a.width, a.stride};
    TRY(device_launch(ops, operation, scan_documents, dim3(static_cast<unsigned>(a.batch)), scan_threads, 0, a));
    TRY(device_launch(ops, operation, find_ends, grid_over(a.batch * a.length, 256), 256, 0, a));
    return device_launch(ops, operation, clear_beyond, grid_over(a.batch * a.bound, 256), 256, 0, a);
}
