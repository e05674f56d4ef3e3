/* What the files of the indexer's choice share: the problem as its kernels see it, which tokens compete for a query,
 * scores as whole numbers in the same order, and how the highest are found among them digit by digit.
 *
 * A score is Σ_h fma(a_h/√E, relu(r_h·u_h), ·) over the heads in their order, its products made by warp_product: the
 * same bits in every pass over the keys, for whole tiles of queries (index_select.cu) as for one (index_query.cuh). */
#ifndef SQUINT_KERNELS_CUDA_INDEX_CUH
#define SQUINT_KERNELS_CUDA_INDEX_CUH

#include "kernels/cuda/attention_tile.cuh"

constexpr int index_lists = 256; /* with counts of their own */

/* Key t of head n (of all lists) of sequence b, part p, lies at data + b·batch + t·token + n·head + p·part. Pooled keys
 * have two parts, the mean and the largest; the score is the sum over the parts. */
struct index_keys {
    const void *data;
    int64_t batch, token, head, part;
    int parts;
    bool vector; /* every row may be moved by 16 bytes at once */
};

struct index_problem {
    attention_view r; /* of decoding: `token` is not used */
    const void *a;    /* [·,S·J], sequences a_batch apart, queries a_token */
    int64_t a_batch, a_token;
    index_keys u, pooled;
    const int32_t *start;          /* [B,T]; NULL: decoding */
    const int32_t *begin, *base;   /* [B,T] of the documents (two levels): first token, first pooled block */
    const int32_t *places;         /* [B,3] of decoding */
    int32_t *chosen;               /* [B,T,S,most], decoding: [B,S,most] */
    int64_t length, pooled_length; /* tokens or slots, pooled blocks: of a sequence */
    int64_t most, looked;          /* tokens of a list; blocks that are looked into */
    int lists, heads, keys, width; /* S, J, K, E */
    int window, sinks, block;      /* block 0: one level */
    float scale;                   /* 1/√E */
    bool counted;
    int counts[index_lists];
};

/* Queries of a sequence, 1 when decoding. */
__host__ __device__ inline int64_t index_queries(const index_problem &p) {
    return p.places ? 1 : p.length;
}
__device__ inline int64_t index_count(const index_problem &p, int list) {
    return p.counted ? p.counts[list] : p.most;
}

/* Tokens [low, high) compete for a query; its document begins at `start`, whose first pooled block is `base`. */
struct index_place {
    int low, high, start, base;
};
__device__ inline index_place index_no_place() {
    return index_place{0, 0, 0, 0};
}
/* Pooled blocks that compete: whole ones before the window. */
__device__ inline int index_whole(const index_problem &p, const index_place &place) {
    return (place.high - place.start) / p.block;
}
/* Of query i of sequence b. What the device's arrays hold is not checked by the host: nothing here leaves the tensors,
 * a place that is not there has no tokens. */
__device__ inline index_place index_place_of(const index_problem &p, int64_t b, int i) {
    int start, query = i, base = 0;
    if (p.places) {
        start = p.places[3 * b];
        base = p.places[3 * b + 1];
        const int own = p.places[3 * b + 2];
        if (start < 0 || base < 0 || own < 0 || static_cast<int64_t>(start) + own >= p.length) return index_no_place();
        query = start + own;
    } else if (p.begin) {
        start = p.begin[b * p.length + i];
        base = p.base[b * p.length + i];
    } else {
        start = max(0, min(p.start[b * p.length + i], i));
    }
    index_place place;
    place.start = start;
    place.high = max(query + 1 - p.window, start);
    place.low = start + min(p.sinks, place.high - start);
    place.base = base;
    if (p.block && static_cast<int64_t>(base) + index_whole(p, place) > p.pooled_length) return index_no_place();
    return place;
}

/* The order of scores as that of whole numbers: what is not a number is 0, the lowest; −0 is 0. */
__device__ inline unsigned order_key(float x) {
    const unsigned bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    return x != x ? 0u : bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* max(x, 0) that keeps what is no number. */
__device__ inline float index_relu(float x) {
    return x < 0.0f ? 0.0f : x;
}

/* Digits of 8 bits: what is known of a row's bound after some of them. The keys that agree with `prefix` in all known
 * digits are `inside`; `wanted` of them belong to the highest, and all that are above. Done: keys above `prefix`
 * are chosen, and the first `wanted` of those that equal it. */
constexpr int digits = 256;
enum digit_mode { DIGIT_DONE = 0, DIGIT_COUNT, DIGIT_COLLECT };
struct digit_state {
    unsigned prefix;
    int wanted, inside, mode;
};
/* Before the first pass over n keys, of which `count` are wanted, 0 < count < n. What fits into a table is collected.
 */
__device__ inline digit_state digits_of(int n, int count) {
    return digit_state{0u, count, n, n <= digits ? DIGIT_COLLECT : DIGIT_COUNT};
}
/* Bits above the digit at `shift`. */
__device__ inline unsigned known_bits(int shift) {
    return shift == 24 ? 0u : ~0u << (shift + 8);
}
/* After a pass that counted `table` [digits] of the digit at `shift`, by one warp; all lanes get the result. */
__device__ inline digit_state digit_found(digit_state s, const unsigned *table, int shift) {
    const int lane = static_cast<int>(threadIdx.x % 32), each = digits / 32, top = digits - 1 - lane * each;
    int own = 0;
    for (int n = 0; n < each; n++) own += static_cast<int>(table[top - n]);
    int before = own; /* keys of this lane's digits and of all higher ones */
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(whole_warp, before, static_cast<unsigned>(step));
        if (lane >= step) before += other;
    }
    before -= own;
    const bool here = before < s.wanted && s.wanted <= before + own;
    int digit = top, inside = 0;
    if (here) {
        inside = static_cast<int>(table[digit]);
        while (before + inside < s.wanted) {
            before += inside;
            inside = static_cast<int>(table[--digit]);
        }
    }
    const int owner = __ffs(static_cast<int>(__ballot_sync(whole_warp, here))) - 1;
    digit = __shfl_sync(whole_warp, digit, owner);
    s.wanted -= __shfl_sync(whole_warp, before, owner);
    s.inside = __shfl_sync(whole_warp, inside, owner);
    s.prefix |= static_cast<unsigned>(digit) << shift;
    if (shift == 0) {
        s.mode = DIGIT_DONE;
    } else if (s.inside == s.wanted) { /* all of them: a lower bound that nothing equals does */
        s.mode = DIGIT_DONE;
        s.prefix--; /* not below 0: there are fewer wanted than keys */
        s.wanted = 0;
    } else {
        s.mode = s.inside <= digits ? DIGIT_COLLECT : DIGIT_COUNT;
    }
    return s;
}

/* After a pass that collected the keys inside, by one warp: the bound is the key that fewer than `wanted` exceed, and
 * `wanted` or more reach. */
__device__ inline digit_state collected_found(digit_state s, const unsigned *keys) {
    unsigned bound = 0;
    int ties = 0;
    bool here = false;
    for (int n = static_cast<int>(threadIdx.x % 32); n < s.inside && !here; n += 32) {
        int above = 0, equal = 0;
        for (int m = 0; m < s.inside; m++) {
            above += keys[m] > keys[n];
            equal += keys[m] == keys[n];
        }
        here = above < s.wanted && s.wanted <= above + equal;
        bound = keys[n];
        ties = s.wanted - above;
    }
    const int owner = __ffs(static_cast<int>(__ballot_sync(whole_warp, here))) - 1;
    s.prefix = __shfl_sync(whole_warp, bound, owner);
    s.wanted = __shfl_sync(whole_warp, ties, owner);
    s.mode = DIGIT_DONE;
    return s;
}

/* tile [rows][STRIDE] = the rows that row(n) points to, NULL for zeros; zeros after column width − 1. By all threads of
 * the block; complete once copy_async_wait has waited for the group and a barrier has passed. */
template <int D, int STRIDE, class T, class Row>
__device__ inline void gather_rows(T *tile, int rows, int width, bool vector, const T *any, Row row) {
    constexpr int each = pack_width<T>, packs = D / each;
    const int threads = static_cast<int>(blockDim.x);
    if (vector) {
        for (int n = static_cast<int>(threadIdx.x); n < rows * packs; n += threads) {
            const int column = n % packs * each;
            const T *from = row(n / packs);
            const bool valid = from && column < width;
            copy_async(tile + n / packs * STRIDE + column, valid ? from + column : any, valid);
        }
        return;
    }
#pragma unroll 1
    for (int n = static_cast<int>(threadIdx.x); n < rows * D; n += threads) {
        const T *from = row(n / D);
        tile[n / D * STRIDE + n % D] = from && n % D < width ? from[n % D] : from_float<T>(0.0f);
    }
}

template <class T> __host__ __device__ inline const T *index_key_rows(const index_keys &keys, int64_t b, int64_t n) {
    return static_cast<const T *>(keys.data) + b * keys.batch + n * keys.head;
}

/* body(std::integral_constant<int, P>{}), P the padded width of index keys. */
template <class Body> enum status with_index_width(int width, Body body) {
    if (width <= 32) return body(std::integral_constant<int, 32>{});
    if (width <= 64) return body(std::integral_constant<int, 64>{});
    if (width <= 128) return body(std::integral_constant<int, 128>{});
    return body(std::integral_constant<int, 256>{});
}

/* index_choice.cu */
/* What both operations check and set: strides, shapes, counts. Shapes are checked before. STATUS_SHAPE. */
enum status index_problem_of(const char *operation, struct tensor r, struct tensor u, struct tensor a,
                             struct tensor pooled, struct tensor chosen, const int32_t *counts, int lists, int window,
                             int sinks, int coarse, int coarse_blocks, index_problem *p);
/* The second level: blocks [pairs,rows,looked] holds, for queries first … first + rows − 1 of each sequence and list,
 * pooled blocks of the sequence, ascending, then −1. memory: index_inside_bytes. Writes p.chosen. */
size_t index_inside_bytes(const struct ops *ops, const index_problem &p, int64_t queries);
enum status index_choose_inside(const struct ops *ops, const char *operation, const index_problem &p,
                                const int32_t *blocks, int64_t batch, int64_t first, int64_t rows, void *memory);

#endif
