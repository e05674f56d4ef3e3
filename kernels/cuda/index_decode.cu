/* The choice of tokens for one query a sequence against cached index keys. Many blocks score the slots, or the pooled
 * blocks, that compete; one block a list then chooses among the keys that they have stored, 4 bytes a slot. */
#include "kernels/cuda/index_query.cuh"

namespace {

constexpr int choose_threads = 512;

struct decode_arguments {
    index_problem p;
    unsigned *keys; /* [B·S,columns] */
    int32_t *out;   /* [B·S,most] */
    int64_t columns, most;
    int splits;
};

/* Columns [low, high) compete: slots, or pooled blocks. */
struct decode_range {
    int low, high;
};
__device__ decode_range range_of(const decode_arguments &g, int64_t b) {
    const index_place place = index_place_of(g.p, b, 0);
    if (g.p.block == 0) return decode_range{place.low, place.high};
    return decode_range{place.base, place.base + index_whole(g.p, place)};
}
__device__ int64_t wanted_of(const decode_arguments &g, int list) {
    return g.p.block ? g.most : index_count(g.p, list);
}

/* A block: split blockIdx.x % splits of one sequence's list. Nothing is scored where all or none are chosen. */
template <class S> __global__ void __launch_bounds__(S::threads) score_columns(decode_arguments g) {
    const int64_t pair = blockIdx.x / g.splits, b = pair / g.p.lists;
    const int list = static_cast<int>(pair % g.p.lists), split = static_cast<int>(blockIdx.x % g.splits);
    const decode_range range = range_of(g, b);
    const int64_t wanted = wanted_of(g, list), n = range.high - range.low;
    const int64_t first = static_cast<int64_t>(split) * S::columns;
    if (wanted == 0 || n <= wanted || first >= n) return;
    shared_cutter cutter = {shared_memory()};
    const query_memory<S> m = query_memory_of<S>(cutter, g.p.heads);
    query_load<S>(g.p, m, b, 0, list);
    unsigned *keys = g.keys + pair * g.columns;
    query_score<S>(
        g.p, m, g.p.block ? g.p.pooled : g.p.u, b, list, first, n, static_cast<int64_t>(g.splits) * S::columns,
        [&](int c) { return range.low + c; }, [&](int64_t c, unsigned key) { keys[c] = key; });
}

/* A block: one sequence's list. */
__global__ void __launch_bounds__(choose_threads) choose_columns(decode_arguments g) {
    SHARED(choose_memory<choose_threads>, memory, [1]);
    const int64_t pair = blockIdx.x, b = pair / g.p.lists;
    const int list = static_cast<int>(pair % g.p.lists);
    const decode_range range = range_of(g, b);
    const int n = range.high - range.low, count = static_cast<int>(min(wanted_of(g, list), static_cast<int64_t>(n)));
    int32_t *out = g.out + pair * g.most;
    for (int64_t c = count + static_cast<int64_t>(threadIdx.x); c < g.most; c += choose_threads) out[c] = -1;
    if (count == n) {
        for (int c = static_cast<int>(threadIdx.x); c < n; c += choose_threads) out[c] = range.low + c;
    } else if (count > 0) {
        choose_keys<choose_threads>(g.keys + pair * g.columns, n, count, memory[0],
                                    [&](int at, int c) { out[at] = range.low + c; });
    }
}

size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

enum status run_first(const struct ops *ops, decode_arguments g, int64_t pairs) {
    return with_real(ops, [&](auto real) {
        return with_index_width(g.p.width, [&](auto width) {
            using S = query_shape<decltype(real), decltype(width)::value>;
            /* About four blocks a multiprocessor, of two tiles at least. */
            const int64_t wanted = divide_up(4 * static_cast<int64_t>(ops->device->multiprocessors), pairs);
            const int64_t most = divide_up(g.columns, 2 * S::columns);
            g.splits = static_cast<int>(wanted < most ? wanted : most < 1 ? 1 : most);
            if (pairs * g.splits > INT_MAX)
                return error_set(STATUS_SHAPE, "index_decode: expected up to %d lists, found %lld", INT_MAX,
                                 static_cast<long long>(pairs));
            TRY(device_launch(ops, "index_decode", score_columns<S>, dim3(static_cast<unsigned>(pairs * g.splits)),
                              S::threads, query_memory_bytes<S>(g.p.heads), g));
            return device_launch(ops, "index_decode", choose_columns, dim3(static_cast<unsigned>(pairs)),
                                 choose_threads, 0, g);
        });
    });
}

} // namespace

enum status cuda_index_decode(const struct ops *ops, const struct index_decode *a) {
    TRY(check_index_decode(ops, a));
    const int64_t batch = a->r.shape[0], pairs = batch * a->lists;
    decode_arguments g = {};
    TRY(index_problem_of("index_decode", a->r, a->u, a->a, a->pooled, a->chosen, a->counts, a->lists, a->window,
                         a->sinks, a->coarse, a->coarse_blocks, &g.p));
    g.p.places = data_of<const int32_t>(a->places);
    if (pairs == 0) return STATUS_OK;
    const bool coarse = g.p.block != 0;
    g.columns = coarse ? g.p.pooled_length : g.p.length;
    g.most = coarse ? g.p.looked : g.p.most;
    g.out = g.p.chosen;
    const size_t keys = padded(static_cast<size_t>(pairs * g.columns) * sizeof(unsigned));
    const size_t lists = coarse ? padded(static_cast<size_t>(pairs * g.most) * sizeof(int32_t)) : 0;
    void *memory;
    TRY(device_scratch(ops, keys + lists + (coarse ? index_inside_bytes(ops, g.p, pairs) : 0), &memory));
    char *at = static_cast<char *>(memory);
    g.keys = static_cast<unsigned *>(memory);
    if (coarse) g.out = reinterpret_cast<int32_t *>(at + keys);
    TRY(run_first(ops, g, pairs));
    return coarse ? index_choose_inside(ops, "index_decode", g.p, g.out, batch, 0, 1, at + keys + lists) : STATUS_OK;
}
