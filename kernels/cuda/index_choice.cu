/* The second level of the choice: a block has one query of one list, scores the tokens of the blocks that were chosen
 * for it, and keeps the highest. What index_select and index_decode check alike. */
#include "kernels/cuda/index_query.cuh"

namespace {

constexpr int shared_keys = 12288; /* scores of a query that stay in shared memory; more lie in scratch memory */

struct inside_arguments {
    index_problem p;
    const int32_t *blocks; /* [B·S,rows,looked] */
    unsigned *keys;        /* [gridDim.x][room]; NULL: in shared memory */
    int64_t queries;       /* B·S·rows */
    int first, rows, room;
};

/* Candidates of a query, ascending: the tokens of its blocks, then those of the block that the window cuts. */
struct inside_tokens {
    const int32_t *blocks;
    int start, base, block, listed /* tokens of whole blocks */, cut /* the first token after whole blocks */;
    __device__ int operator()(int c) const {
        return c < listed ? start + (blocks[c / block] - base) * block + c % block : cut + c - listed;
    }
};

/* How many of the candidates lie before `low`. */
__device__ int inside_before(const inside_tokens &tokens, int count, int low) {
    int from = 0, to = count;
    while (from < to) {
        const int middle = from + (to - from) / 2;
        if (tokens(middle) < low)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

template <class S> __global__ void __launch_bounds__(S::threads, 4) choose_inside(inside_arguments g) {
    const index_problem &p = g.p;
    SHARED(choose_memory<S::threads>, memory, [1]);
    shared_cutter cutter = {shared_memory()};
    const query_memory<S> m = query_memory_of<S>(cutter, p.heads);
    unsigned *keys = g.keys ? g.keys + static_cast<int64_t>(blockIdx.x) * g.room : cutter.take<unsigned>(g.room);
    for (int64_t query = blockIdx.x; query < g.queries; query += gridDim.x) {
        const int64_t pair = query / g.rows, b = pair / p.lists;
        const int list = static_cast<int>(pair % p.lists), i = g.first + static_cast<int>(query % g.rows);
        const index_place place = index_place_of(p, b, i);
        const int whole = index_whole(p, place), listed = min(whole, static_cast<int>(p.looked)) * p.block;
        const inside_tokens tokens = {g.blocks + query * p.looked,  place.start, place.base, p.block, listed,
                                      place.start + whole * p.block};
        const int all = listed + place.high - tokens.cut, before = inside_before(tokens, all, place.low);
        const int n = all - before, count = static_cast<int>(min(index_count(p, list), static_cast<int64_t>(n)));
        int32_t *out = p.chosen + ((b * index_queries(p) + i) * p.lists + list) * p.most;
        for (int64_t c = count + static_cast<int64_t>(threadIdx.x); c < p.most; c += S::threads) out[c] = -1;
        if (count == n) {
            for (int c = static_cast<int>(threadIdx.x); c < n; c += S::threads) out[c] = tokens(before + c);
        } else if (count > 0) {
            query_load<S>(p, m, b, i, list);
            query_score<S>(
                p, m, p.u, b, list, 0, n, S::columns, [&](int c) { return tokens(before + c); },
                [&](int64_t c, unsigned key) { keys[c] = key; });
            choose_keys<S::threads>(keys, n, count, memory[0], [&](int at, int c) { out[at] = tokens(before + c); });
        }
    }
}

/* Candidates of a query at most. */
int64_t room_of(const index_problem &p) {
    const int64_t room = (p.looked + 1) * p.block;
    return room < p.length ? room : p.length;
}

/* Blocks of the grid that keep their keys in scratch memory. */
int64_t grid_of(const struct ops *ops, int64_t queries) {
    const int64_t most = 4 * static_cast<int64_t>(ops->device->multiprocessors);
    return queries < most ? queries : most;
}

index_keys keys_of(struct tensor t, int64_t parts) {
    const attention_view view = attention_view_of(t);
    return index_keys{
        t.data,     view.batch, view.token, view.head, t.shape[2] / parts * view.head, static_cast<int>(parts),
        view.vector};
}

enum status check_counts(const char *operation, const char *what, int64_t most, int64_t found) {
    if (found <= most) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: expected up to %lld %s, found %lld", operation, static_cast<long long>(most),
                     what, static_cast<long long>(found));
}

} // namespace

enum status index_problem_of(const char *operation, struct tensor r, struct tensor u, struct tensor a,
                             struct tensor pooled, struct tensor chosen, const int32_t *counts, int lists, int window,
                             int sinks, int coarse, int coarse_blocks, index_problem *p) {
    const bool decoding = r.rank == 3;
    const int64_t heads = r.shape[r.rank - 2], width = r.shape[r.rank - 1];
    TRY(check_counts(operation, "tokens", INT_MAX / 2, u.shape[1]));
    TRY(check_counts(operation, "elements of an index head", 256, width));
    if (counts) TRY(check_counts(operation, "lists with counts of their own", index_lists, lists));
    *p = index_problem{};
    struct tensor rows = r;
    if (decoding) { /* [B,heads,E] as [B,1,heads,E] */
        rows.stride[1] = 0;
        rows.stride[2] = r.stride[1];
        rows.shape[3] = width;
    }
    p->r = attention_view_of(rows);
    p->a = a.data;
    p->a_batch = a.stride[0];
    p->a_token = decoding ? 0 : a.stride[1];
    p->u = keys_of(u, 1);
    p->chosen = data_of<int32_t>(chosen);
    p->length = u.shape[1];
    p->most = chosen.shape[chosen.rank - 1];
    p->lists = lists;
    p->heads = static_cast<int>(heads / lists);
    p->keys = static_cast<int>(u.shape[2] / lists);
    p->width = static_cast<int>(width);
    p->window = window;
    p->sinks = sinks;
    p->scale = 1.0f / sqrtf(static_cast<float>(width));
    p->counted = counts != NULL;
    for (int s = 0; counts && s < lists; s++) p->counts[s] = counts[s];
    /* With blocks enough for every token the second level sees all that one level does. */
    if (coarse == 0 || coarse_blocks >= p->length / coarse) return STATUS_OK;
    p->pooled = keys_of(pooled, 2);
    p->pooled_length = pooled.shape[1];
    p->block = coarse;
    p->looked = coarse_blocks;
    return STATUS_OK;
}

size_t index_inside_bytes(const struct ops *ops, const index_problem &p, int64_t queries) {
    const int64_t room = room_of(p);
    return room <= shared_keys ? 0 : static_cast<size_t>(grid_of(ops, queries) * room) * sizeof(unsigned);
}

enum status index_choose_inside(const struct ops *ops, const char *operation, const index_problem &p,
                                const int32_t *blocks, int64_t batch, int64_t first, int64_t rows, void *memory) {
    inside_arguments g = {};
    g.p = p;
    g.blocks = blocks;
    g.queries = batch * p.lists * rows;
    g.first = static_cast<int>(first);
    g.rows = static_cast<int>(rows);
    g.room = static_cast<int>(room_of(p));
    const bool shared = g.room <= shared_keys;
    if (!shared) g.keys = static_cast<unsigned *>(memory);
    const dim3 grid = grid_over(shared ? g.queries : grid_of(ops, g.queries), 1);
    return with_real(ops, [&](auto real) {
        return with_index_width(p.width, [&](auto width) {
            using S = query_shape<decltype(real), decltype(width)::value>;
            const size_t keys = shared ? static_cast<size_t>(g.room) * sizeof(unsigned) : 0;
            return device_launch(ops, operation, choose_inside<S>, grid, S::threads,
                                 query_memory_bytes<S>(p.heads) + keys, g);
        });
    });
}
