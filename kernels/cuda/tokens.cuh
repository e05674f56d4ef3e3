/* Attention to single tokens: which tokens a query reads (window, sinks, a list), and the walk over what a few
 * neighbouring queries, or keys, have to do with. A block owns S::rows neighbours. For successive ranges of the other
 * side's tokens it sets, in shared memory, one word a token: bit r is the own row r's. What has a bit is dealt to the
 * warps in tiles of S::columns tokens whose rows are gathered from wherever they lie: neighbours that read the same
 * token share its transport, and ranges that nobody reads are passed over. */
#ifndef SQUINT_KERNELS_CUDA_TOKENS_CUH
#define SQUINT_KERNELS_CUDA_TOKENS_CUH

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/inverted.cuh"

/* What decides which tokens a query reads: of document tokens up to its own the last `window`, the first `sinks`, and
 * those that its list holds, ascending up to the first that is no token. */
struct token_sets {
    const int32_t *begin, *end; /* [B,T] first token of each token's document, one past its last */
    const int32_t *chosen;      /* [B,T,S,n], or NULL */
    int length, window, sinks, lists;
    int64_t select; /* n; 0 without lists */
};

/* Of a pass over tokens with heads of width D. */
struct token_problem {
    token_sets sets;
    attention_view q, k, v, o, d_o, dq, dk, dv;
    float *log_sums;           /* [B,H,T] */
    attention_record *records; /* [B,H,T]; their spans are not used */
    int heads, share /* query heads of a key head */, list_share /* of a list */, width;
    float scale, scale_log2;
    block_order order;
};

constexpr int token_range = 1024; /* tokens whose bits lie in shared memory at once */
constexpr int token_ring = 128;   /* tokens of a warp that wait or are in work: two tiles and what is left of a third */

/* Bits first … end − 1, cut to 0 … 31. */
__device__ inline unsigned bit_run(int first, int end) {
    first = max(first, 0);
    end = min(end, 32);
    if (first >= end) return 0;
    return (~0u >> (32 - end)) & (~0u << first);
}

__device__ inline int warp_least(int x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = min(x, __shfl_xor_sync(whole_warp, x, lane));
    return x;
}

/* The tokens that rows (queries) first … first + rows − 1 read. begins, cursors, nexts: shared [32]. */
struct row_source {
    token_sets sets;
    int *begins, *cursors, *nexts; /* of a list: the place of its next token, and that token (INT_MAX: none) */
    const int32_t *list;           /* of the first row */
    int64_t step;                  /* of lists */
    int first, rows;

    /* By all threads; a barrier must follow. */
    __device__ void open(const token_sets &of, int64_t b, int64_t s, int first_row, int most, int *memory) {
        sets = of;
        begins = memory;
        cursors = memory + 32;
        nexts = memory + 64;
        first = first_row;
        rows = min(most, sets.length - first);
        step = sets.lists * sets.select;
        list = sets.chosen ? sets.chosen + ((b * sets.length + first) * sets.lists + s) * sets.select : nullptr;
        const int r = static_cast<int>(threadIdx.x);
        if (r >= 32) return;
        begins[r] = r < rows ? sets.begin[b * sets.length + first + r] : INT_MAX;
        cursors[r] = 0;
        nexts[r] = INT_MAX;
        if (r < rows && sets.select > 0) {
            const int token = list[r * step];
            if (token >= 0 && token < sets.length) nexts[r] = token;
        }
    }
    /* The first token from `from` on that some row may read; INT_MAX: none. By all lanes. */
    __device__ int next(int from) const {
        const int r = static_cast<int>(threadIdx.x % 32), i = first + r;
        int least = INT_MAX;
        if (r < rows) {
            const int begin = begins[r], sink = max(from, begin), recent = max(sink, i + 1 - sets.window);
            if (nexts[r] >= from) least = nexts[r];
            if (recent <= i) least = min(least, recent);
            if (sink <= i && sink - begin < sets.sinks) least = min(least, sink);
        }
        return warp_least(least);
    }
    /* Sets the bits of listed tokens from range_first on. A warp a list at a time. */
    template <class S> __device__ void fill(int range_first, unsigned *words) {
        const int lane = static_cast<int>(threadIdx.x % 32), end = range_first + token_range;
        if (!list) return;
        for (int r = warp_number(); r < rows; r += S::warps) {
            if (nexts[r] >= end) continue;
            const int32_t *row = list + r * step;
            int64_t cursor = cursors[r];
            for (;;) {
                const int token = cursor + lane < sets.select ? row[cursor + lane] : -1;
                const bool is_token = token >= 0 && token < sets.length, here = is_token && token < end;
                if (here && token >= range_first && token >= begins[r] && token <= first + r)
                    atomicOr(&words[token - range_first], 1u << r);
                const unsigned stop = ~__ballot_sync(whole_warp, here);
                if (stop) {
                    const int k = __ffs(static_cast<int>(stop)) - 1;
                    const int after = __shfl_sync(whole_warp, is_token ? token : INT_MAX, k);
                    __syncwarp();
                    if (lane == 0) {
                        cursors[r] = static_cast<int>(cursor + k);
                        nexts[r] = after;
                    }
                    break;
                }
                cursor += 32;
            }
        }
    }
    __device__ void settle() {}
    /* Rows whose document begins at `token` or before. */
    __device__ int rows_until(int token) const {
        int low = 0, high = rows;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (begins[middle] <= token) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
    /* The rows that have the token in their window or among their sinks. */
    __device__ unsigned word(int token) const {
        const bool recent = token >= max(begins[0], first + 1 - sets.window);
        if (!recent && (token < begins[0] || token - begins[rows - 1] >= sets.sinks)) return 0;
        const int own = max(token - first, 0), until = rows_until(token);
        const int beyond = rows_until(token - sets.sinks); /* rows whose sinks it lies behind */
        return bit_run(own, min(until, token - first + sets.window)) | bit_run(max(own, beyond), until);
    }
};

/* What arithmetic tells of a tile of `own` keys: whether sinks are among them; from the first one to dense_end queries
 * may read some of them by window or as sinks. */
struct tile_reach {
    bool sinks;
    int first, dense_end;
};
__device__ inline tile_reach reach_of(const token_sets &sets, int64_t b, int tile, int own) {
    const int first = tile * own, last = min(first + own, sets.length) - 1;
    const int32_t *begin = sets.begin + b * sets.length;
    const int end = sets.end[b * sets.length + last];
    bool sinks = false;
    for (int key = first; key <= last; key++) sinks |= key - begin[key] < sets.sinks;
    return tile_reach{sinks, first, sinks ? end : min(last + sets.window, end)};
}

/* Entries of a tile of keys in the inverted lists of pair (b, s), by tiles: their count, and *from the first one. */
__device__ inline int entries_of(const inverted_lists &lists, int64_t pair, int tile, const int32_t **from) {
    *from = nullptr;
    if (!lists.offsets) return 0;
    const int32_t *offsets = lists.offsets + pair * (lists.keys + 1) + tile;
    *from = lists.entries + pair * lists.room + offsets[0];
    return offsets[1] - offsets[0];
}

/* The queries that read some of a tile of keys, all of them or from query_first to query_end − 1. */
struct key_source {
    token_sets sets;
    const int32_t *begin;   /* of the sequence's tokens */
    const int32_t *entries; /* query · width + key's row, ascending */
    int *stops;             /* shared [warps] */
    int width, warps;       /* width: keys of a tile */
    tile_reach reach;
    int query_first, query_end, cursor, last, next_query;

    __device__ void open(const token_sets &of, int64_t b, const tile_reach &tile, int keys, const int32_t *from,
                         int count, int *memory, int block_warps) {
        sets = of;
        begin = of.begin + b * of.length;
        entries = from;
        stops = memory;
        width = keys;
        warps = block_warps;
        reach = tile;
        last = count;
        cut(0, INT_MAX);
    }
    __device__ int query_at(int64_t at) const { return at < last ? entries[at] / width : INT_MAX; }
    __device__ void cut(int first, int end) {
        query_first = first;
        query_end = end;
        cursor = 0;
        for (int high = last; cursor < high;) { /* the first entry of query_first or a later one */
            const int middle = cursor + (high - cursor) / 2;
            if (query_at(middle) < first) {
                cursor = middle + 1;
            } else {
                high = middle;
            }
        }
        find_next();
    }
    __device__ void find_next() {
        next_query = query_at(cursor);
        if (next_query >= query_end) next_query = INT_MAX;
    }
    __device__ int next(int from) const {
        int least = next_query >= from ? next_query : INT_MAX;
        const int dense = max(max(from, reach.first), query_first);
        if (dense < min(reach.dense_end, query_end)) least = min(least, dense);
        return least;
    }
    template <class S> __device__ void fill(int range_first, unsigned *words) {
        const int end = min(range_first + token_range, query_end);
        int at = cursor + static_cast<int>(threadIdx.x);
        for (; at < last; at += S::threads) {
            const int entry = entries[at], query = entry / width, key = reach.first + entry % width;
            if (query >= end) break;
            if (query >= range_first && begin[query] <= key && key <= query)
                atomicOr(&words[query - range_first], 1u << entry % width);
        }
        at = warp_least(at);
        if (threadIdx.x % 32 == 0) stops[warp_number()] = at;
    }
    /* After the barrier behind fill. */
    __device__ void settle() {
        int at = stops[0];
        for (int w = 1; w < warps; w++) at = min(at, stops[w]);
        cursor = min(at, last);
        find_next();
    }
    __device__ unsigned word(int query) const {
        if (query < max(reach.first, query_first) || query >= min(reach.dense_end, query_end)) return 0;
        const int from = begin[query] - reach.first, end = query + 1 - reach.first; /* of the keys it may read */
        return bit_run(max(from, end - sets.window), min(end, width)) |
               bit_run(from, min(min(end, width), from + sets.sinks));
    }
};

/* One warp's part of a walk. words [token_range] are the block's, zeros before open; tokens and bits [token_ring] the
 * warp's. Every warp of a block must walk to the end. */
template <class S, class Source> struct token_walk {
    Source &source;
    unsigned *words, *bits;
    int *tokens;
    int range_first, group, head, count; /* head: of what was not yet handed out */
    bool done;

    __device__ token_walk(Source &from, unsigned *block_words, int *warp_tokens, unsigned *warp_bits)
        : source(from), words(block_words), bits(warp_bits), tokens(warp_tokens), range_first(-token_range),
          group(token_range / 32), head(0), count(0), done(false) {}

    /* The next tile's tokens are those at ring places *at …; returns how many: S::columns, fewer at the end, 0 after
     * it. */
    __device__ int next(int *at) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        while (count < S::columns && !done) {
            if (group >= token_range / 32) {
                const int first = source.next(range_first < 0 ? 0 : range_first + token_range);
                __syncthreads(); /* all have read the words and what next asks */
                done = first == INT_MAX;
                if (done) break;
                range_first = first;
                source.template fill<S>(first, words);
                __syncthreads(); /* all bits are set */
                source.settle();
                group = warp_number();
            }
            const int token = range_first + group * 32 + lane;
            unsigned word = words[group * 32 + lane];
            if (word) words[group * 32 + lane] = 0;
            if (token < source.sets.length) word |= source.word(token);
            const unsigned present = __ballot_sync(whole_warp, word != 0);
            if (word) {
                const int place = (head + count + __popc(present & ((1u << lane) - 1))) % token_ring;
                tokens[place] = token;
                bits[place] = word;
            }
            count += __popc(present);
            group += S::warps;
        }
        __syncwarp();
        *at = head;
        const int here = min(count, S::columns);
        head = (head + here) % token_ring;
        count -= here;
        return here;
    }
    /* The words of this lane's columns of a tile; 0 beyond its `here` tokens. */
    __device__ void words_of(unsigned (&to)[S::groups][2], int at, int here) const {
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++) {
            const int column = n / 2 * 8 + lane_column() + n % 2;
            to[n / 2][n % 2] = column < here ? bits[(at + column) % token_ring] : 0;
        }
    }
    /* The token of a column; any of them where it has none. */
    __device__ int token_of(int at, int here, int column) const {
        return tokens[(at + (column < here ? column : 0)) % token_ring];
    }
};

/* tile [COLUMNS][STRIDE] = the rows of `from` that the ring's places at … name, zeros after `here` of them and after
 * column width − 1. By one warp; complete once copy_async_wait has waited and the warp has met. */
template <int COLUMNS, int D, int STRIDE, class T>
__device__ inline void gather_rows(T *tile, const T *from, int64_t step, const int *tokens, int at, int here, int width,
                                   bool vector) {
    constexpr int each = pack_width<T>, packs = D / each;
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (vector) {
#pragma unroll 4
        for (int n = lane; n < COLUMNS * packs; n += 32) {
            const int row = n / packs, column = n % packs * each;
            const bool valid = row < here && column < width;
            copy_async(tile + row * STRIDE + column,
                       valid ? from + tokens[(at + row) % token_ring] * step + column : from, valid);
        }
        return;
    }
#pragma unroll 1
    for (int n = lane; n < COLUMNS * D; n += 32) {
        const int row = n / D, column = n % D;
        const bool valid = row < here && column < width;
        tile[row * STRIDE + column] =
            valid ? from[tokens[(at + row) % token_ring] * step + column] : from_float<T>(0.0f);
    }
}

/* The block's words, and the ring of each warp, at the beginning of its shared memory. Clears the words; a barrier must
 * follow. */
template <class S> struct walk_memory {
    unsigned *words;
    int *tokens;    /* of this warp */
    unsigned *bits; /* of this warp */
    int *scratch;   /* [96] */
    __device__ explicit walk_memory(shared_cutter &cutter) {
        words = cutter.take<unsigned>(token_range);
        tokens = cutter.take<int>(S::warps * token_ring) + warp_number() * token_ring;
        bits = cutter.take<unsigned>(S::warps * token_ring) + warp_number() * token_ring;
        scratch = cutter.take<int>(96);
        for (int n = static_cast<int>(threadIdx.x); n < token_range; n += S::threads) words[n] = 0;
    }
    static constexpr size_t bytes = sizeof(int) * (token_range + 2 * S::warps * token_ring + 96);
};

/* sums [warps] of the warps' [TILES·16 x OUT], times factor, are added in the warps' order and handed out as
 * put(row, column, sum); memory [warps][TILES·16][OUT]. By all threads; barriers before and after are in it. */
template <class S, int OUT, class Put>
__device__ inline void merge_warps(const float (&sums)[S::tiles][OUT / 8][4], const float (&factor)[S::tiles][2],
                                   float *memory, Put put) {
    constexpr int rows = S::tiles * 16;
    float *own = memory + warp_number() * rows * OUT;
    __syncthreads(); /* what was there is read */
#pragma unroll
    for (int tile = 0; tile < S::tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < OUT / 8; n++) {
                const float pair[2] = {factor[tile][half] * sums[tile][n][2 * half],
                                       factor[tile][half] * sums[tile][n][2 * half + 1]};
                store_pack<2>(own + (tile * 16 + 8 * half + lane_row()) * OUT + n * 8 + lane_column(), pair);
            }
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < rows * OUT; n += S::threads) {
        float sum = memory[n];
        for (int w = 1; w < S::warps; w++) sum += memory[w * rows * OUT + n];
        put(n / OUT, n % OUT, sum);
    }
}

/* --- the host's side --- */

/* STATUS_SHAPE: too wide, too long, too many. Fills the problem from a forward pass's arguments, all but what walks
 * need: p->sets.begin and end come with tokens_open. */
enum status tokens_describe(const char *operation, const struct token_attention *a, token_problem *p);
/* Bytes of the document's bounds, a multiple of 256; starts the kernels that find them. */
size_t tokens_bytes(struct tensor start);
enum status tokens_open(const struct ops *ops, const char *operation, struct tensor start, void *memory,
                        token_sets *sets);
/* o and log_sums, or log_sums alone where p.o has no data: token_forward.cu. */
enum status token_rows(const struct ops *ops, const char *operation, const token_problem &p, int64_t batch);
/* dk, dv: token_keys.cu. `memory` of token_keys_bytes. */
size_t token_keys_bytes(const struct ops *ops, const struct token_attention *a);
enum status token_keys(const struct ops *ops, const struct token_attention *a, const token_problem &p, void *memory);

#endif
