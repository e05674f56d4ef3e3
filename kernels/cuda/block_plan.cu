/* Attention to chosen blocks: who reads which block, and into which tiles that falls. Integers. */
#include "kernels/cuda/block_attention.cuh"
#include "kernels/cuda/sort.cuh"

namespace {

constexpr int threads = 256;
constexpr size_t budget = size_t{256} << 20; /* bytes of partial results */

/* limit of every query. */
__global__ void __launch_bounds__(threads) find_limits(block_problem p, int32_t *limit) {
    const int64_t tokens = p.batch * p.length;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; n < tokens;
         n += static_cast<int64_t>(gridDim.x) * threads) {
        const int last = static_cast<int>(n % p.length) - p.window, place = last - p.documents.begin[n];
        limit[n] = p.documents.base[n] + (place < 0 ? 0 : place / p.block + 1);
    }
}

/* The first of entries first … end − 1 that is not below `least`. */
__device__ int find_entry(const int32_t *entries, int first, int end, int64_t least) {
    while (first < end) {
        const int middle = first + (end - first) / 2;
        if (entries[middle] < least) {
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    return first;
}

/* ranges of a chunk. */
__global__ void __launch_bounds__(threads) find_ranges(block_problem p, block_chunk chunk, int2 *ranges) {
    const int64_t bound = p.documents.bound, count = chunk.pairs * bound;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; n < count;
         n += static_cast<int64_t>(gridDim.x) * threads) {
        const int64_t pair = chunk.first_pair + n / bound, key = n % bound;
        if (key >= p.documents.count[pair / p.lists]) continue;
        const int32_t *offsets = p.inverted.offsets + pair * (bound + 1);
        const int32_t *entries = p.inverted.entries + pair * p.inverted.room;
        int2 range = make_int2(offsets[key], offsets[key + 1]);
        if (chunk.first > 0) range.x = find_entry(entries, range.x, range.y, int64_t{chunk.first} * p.select);
        if (chunk.first + chunk.rows < p.length)
            range.y = find_entry(entries, range.x, range.y, (int64_t{chunk.first} + chunk.rows) * p.select);
        ranges[n] = range;
    }
}

struct count_arguments {
    block_problem p;
    block_chunk chunk;
    const int2 *ranges;
    int32_t *before;
    int tile_rows, key_rows;
    bool by_keys;
};

/* Tiles of block `key` in a row of `before`. */
__device__ int count_tiles(const count_arguments &a, int64_t b, int row, int key) {
    const block_problem &p = a.p;
    const int64_t bound = p.documents.bound;
    const auto of_list = [&](int64_t pair) {
        const int2 range = a.ranges[pair * bound + key];
        return (static_cast<int64_t>(range.y - range.x) * p.run + a.tile_rows - 1) / a.tile_rows;
    };
    if (!a.by_keys) return static_cast<int>(of_list(row));
    const int share = p.heads / p.groups, first = row % p.groups * share;
    int64_t tiles = 0;
    for (int head = first; head < first + share; head += p.run)
        tiles += of_list(b * p.lists + head / (p.heads / p.lists));
    return static_cast<int>(tiles * ((block_tokens(p, b, key).y + a.key_rows - 1) / a.key_rows));
}

/* A row of `before`. One thread block. */
__global__ void __launch_bounds__(sort_threads) count_items(count_arguments a) {
    const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
    const int64_t b = a.by_keys ? row / a.p.groups : (a.chunk.first_pair + row) / a.p.lists;
    const int count = a.p.documents.count[b];
    int32_t *before = a.before + row * (a.p.documents.bound + 1);
    SHARED(int32_t, all, [1]);
    int32_t done = 0;
    for (int first = 0; first < count; first += sort_threads) {
        const int key = first + thread;
        const int32_t tiles = key < count ? count_tiles(a, b, row, key) : 0, sum = done + block_running_sum(tiles);
        if (key < count) before[key] = sum - tiles;
        if (thread == sort_threads - 1) all[0] = sum;
        __syncthreads();
        done = all[0];
    }
    if (thread == 0) before[count] = done;
}

int common_divisor(int64_t a, int64_t b) {
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return static_cast<int>(a);
}

size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

int64_t block_of(const struct block_attention *a) {
    const int64_t length = a->q.shape[1] > 1 ? a->q.shape[1] : 1; /* a longer block holds no more */
    return a->block < length ? a->block : length;
}

} // namespace

struct attention block_window(const struct block_attention *a) {
    struct attention window = {};
    window.q = a->q;
    window.k = a->k;
    window.v = a->v;
    window.o = a->o;
    window.start = a->start;
    window.log_sums = a->log_sums; /* [B,H,T] as [B,H,1,T] */
    window.candidates[0] = candidate{CANDIDATE_WINDOW, a->window > 0 ? a->window : 1, 0};
    window.count = 1;
    window.causal = true;
    window.scale = a->scale;
    return window;
}

size_t block_plan_bytes(const struct block_attention *a) {
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], block = block_of(a), bound = length > 1 ? length : 1;
    if (!block_chooses(a)) return 0;
    return document_blocks_bytes(batch, length, block, block, true) +
           padded(static_cast<size_t>(batch * length) * sizeof(int32_t)) +
           inverted_bytes(batch, length, a->chosen.shape[2], a->chosen.shape[3], bound);
}

enum status block_plan(const struct ops *ops, const char *operation, const struct block_attention *a, char *memory,
                       block_problem *p) {
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    const bool chooses = block_chooses(a);
    if (width > 256)
        return error_set(STATUS_SHAPE, "%s: q: expected a head width up to 256, found %lld", operation,
                         static_cast<long long>(width));
    if (length > INT_MAX / 2 || (chooses && length * a->chosen.shape[3] > INT_MAX))
        return error_set(STATUS_SHAPE, "%s: expected up to %d tokens, and less than 2^31 numbers a list, found %lld",
                         operation, INT_MAX / 2, static_cast<long long>(length));
    *p = block_problem{};
    p->q = attention_view_of(a->q);
    p->k = attention_view_of(a->k);
    p->v = attention_view_of(a->v);
    p->o = attention_view_of(a->o);
    p->log_sums = data_of<float>(a->log_sums);
    p->batch = batch;
    p->length = static_cast<int>(length);
    p->heads = static_cast<int>(heads);
    p->groups = static_cast<int>(a->k.shape[2]);
    p->lists = chooses ? static_cast<int>(a->chosen.shape[2]) : 1;
    p->select = chooses ? static_cast<int>(a->chosen.shape[3]) : 0;
    p->width = static_cast<int>(width);
    p->window = a->window;
    p->block = static_cast<int>(block_of(a));
    p->run = common_divisor(heads / p->lists, heads / p->groups);
    p->scale = static_cast<float>(a->scale);
    p->scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    p->documents.bound = length > 1 ? length : 1;
    if (!memory || !chooses) return STATUS_OK;
    p->chosen = data_of<const int32_t>(a->chosen);
    TRY(document_blocks_find(ops, operation, a->start, p->block, p->block, true, memory, &p->documents));
    memory += document_blocks_bytes(batch, length, p->block, p->block, true);
    int32_t *limit = reinterpret_cast<int32_t *>(memory);
    memory += padded(static_cast<size_t>(batch * length) * sizeof(int32_t));
    p->limit = limit;
    TRY(device_launch(ops, operation, find_limits, grid_over(batch * length, threads), threads, 0, *p, limit));
    inverted_rule rule = {};
    rule.base = p->documents.base;
    rule.limit = limit;
    rule.keys = p->documents.bound;
    rule.width = 1;
    rule.slots = true;
    return inverted_build(ops, operation, a->chosen, rule, memory, &p->inverted);
}

block_chunk block_chunk_most(const block_problem &p, size_t slot_bytes) {
    block_chunk chunk = {};
    const int64_t slots = static_cast<int64_t>(p.heads / p.lists) * (p.select > 1 ? p.select : 1);
    const int64_t queries = static_cast<int64_t>(budget / slot_bytes) / slots; /* of one list */
    const int64_t pairs = p.batch * p.lists, at_once = p.length > 0 ? queries / p.length : 1;
    chunk.rows = static_cast<int>(queries < 1 ? 1 : queries < p.length ? queries : p.length);
    chunk.pairs = static_cast<int>(at_once < 1 ? 1 : at_once < pairs ? at_once : pairs);
    return chunk;
}

size_t block_items_bytes(const block_problem &p, int64_t pairs, bool by_keys) {
    const size_t bound = static_cast<size_t>(p.documents.bound);
    const size_t lists = static_cast<size_t>(by_keys ? p.batch * p.lists : pairs),
                 rows = static_cast<size_t>(by_keys ? p.batch * p.groups : pairs);
    return padded(lists * bound * sizeof(int2)) + padded(rows * (bound + 1) * sizeof(int32_t));
}

enum status block_items_most(const char *operation, const block_problem &p, const block_chunk &chunk, int tile_rows,
                             bool by_keys, int key_rows, int64_t *most) {
    const int64_t bound = p.documents.bound, entries = static_cast<int64_t>(chunk.rows) * p.select;
    const int64_t runs = by_keys ? p.heads / p.groups / p.run : 1, pieces = by_keys ? divide_up(p.block, key_rows) : 1;
    *most = (divide_up(entries * p.run, tile_rows) + (entries < bound ? entries : bound)) * runs * pieces;
    if (*most <= INT_MAX) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: expected up to %d tiles of queries and chosen blocks, found %lld", operation,
                     INT_MAX, static_cast<long long>(*most));
}

enum status block_items_find(const struct ops *ops, const char *operation, const block_problem &p,
                             const block_chunk &chunk, int tile_rows, bool by_keys, int key_rows, char *memory,
                             block_items *items, int64_t *most) {
    const int64_t bound = p.documents.bound;
    TRY(block_items_most(operation, p, chunk, tile_rows, by_keys, key_rows, most));
    int2 *ranges = reinterpret_cast<int2 *>(memory);
    count_arguments a = {};
    a.p = p;
    a.chunk = chunk;
    a.ranges = ranges;
    a.before = reinterpret_cast<int32_t *>(memory + padded(static_cast<size_t>(chunk.pairs * bound) * sizeof(int2)));
    a.tile_rows = tile_rows;
    a.key_rows = key_rows;
    a.by_keys = by_keys;
    *items = block_items{ranges, a.before};
    TRY(device_launch(ops, operation, find_ranges, grid_over(chunk.pairs * bound, threads), threads, 0, p, chunk,
                      ranges));
    const int64_t rows = by_keys ? p.batch * p.groups : chunk.pairs;
    return device_launch(ops, operation, count_items, grid_over(rows, 1), sort_threads, 0, a);
}

int block_parts(const struct ops *ops, int64_t rows, int64_t most_items) {
    if (rows < 1) return 1; /* no sequence at all */
    const int64_t wanted = divide_up(static_cast<int64_t>(ops->device->multiprocessors) * 8, rows);
    return static_cast<int>(wanted < most_items ? wanted : most_items > 1 ? most_items : 1);
}
