/* What the files of attention share: the problem as its kernels see it, and which keys a query may read. Every
 * candidate's set for one query is an arithmetic progression of keys (a span); attention_plan.cu writes the spans, the
 * kernels ask nothing else. Keys need not be the queries' own tokens: compressed_attention.cu writes spans of its own.
 */
#ifndef SQUINT_KERNELS_CUDA_ATTENTION_CUH
#define SQUINT_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/device.cuh"

#include <climits>
#include <type_traits>

/* Row t of head h of sequence b lies at data + b·batch + t·token + h·head (elements). vector: every row may be moved by
 * 16 bytes at once. */
struct attention_view {
    void *data;
    int64_t batch, token, head;
    bool vector;
};

/* A candidate: its numbers, and n % step == 0 as multiplication (Granlund and Montgomery 1994): rotate_right(n·inverse,
 * rotate) <= limit. reach: no query sees a key that is farther away. */
struct attention_rule {
    int kind, a, b, reach;
    unsigned inverse, rotate, limit;
    bool dense; /* step 1 */
};

/* Over the rows of a run that see a key at all: the least and the largest first key, the least and the largest end.
 * Where one sees none, lo_max is INT_MAX and hi_min 0; where none does, lo_min is INT_MAX and hi_max 0 too. */
struct alignas(16) attention_hull {
    int lo_min, lo_max, hi_min, hi_max;
};
constexpr int hull_rows = 32;

struct attention_problem {
    attention_view q, k, v, o;
    const float *coefficients;   /* NULL: 1 */
    int64_t coefficient_stride;  /* of heads */
    float *log_sums;             /* [B,H,count,T] */
    const int2 *spans;           /* [B,count,T]: first key; last key's distance from it + 1, 0 for none */
    const attention_hull *hulls; /* [B,count,hull_count], of runs of hull_rows queries */
    int length, keys, heads, share /* query heads of a key head */, width, hull_count, count;
    int key_step; /* causal: no query before key_step · key sees the key; 1 where keys are the queries' tokens */
    bool causal;
    float scale, scale_log2 /* scale · log2 e */;
    attention_rule rules[CANDIDATES_MAX];
};

/* Of one query and candidate, for the backward pass. z: log2 Z, +inf where the set is empty or not visited; delta: Σ_j
 * P_ij do_i·v_j. */
struct alignas(16) attention_record {
    float z, delta;
    int lo, count; /* its span */
};

/* Bytes that attention_plan wants at `memory`, aligned to 256. */
size_t attention_plan_bytes(const struct attention *a);
/* Fills `p` and starts the kernel that writes spans and hulls to `memory` (NULL: only fills, and p has no spans yet).
 * Shapes are checked before. STATUS_SHAPE: too wide or too long. */
enum status attention_plan(const struct ops *ops, const char *operation, const struct attention *a, char *memory,
                           attention_problem *p);
attention_view attention_view_of(struct tensor t);
attention_view view_of_heads(struct tensor t); /* of [B,heads,D]: one token a sequence */
/* sums [B,H,count,T] = natural log Z_m of the candidates that are dead (or, `dead` false, not), −inf for the others;
 * only of heads with one dead candidate at least (dead false: with two living ones at least). */
enum status attention_sums(const struct ops *ops, const attention_problem &p, int64_t batch, bool dead, float *sums);

/* o and log_sums of a planned problem. */
enum status attention_forward(const struct ops *ops, const attention_problem &p, int64_t batch);

/* The backward pass's problem. The arrays lie in scratch memory (attention_gradient_place). accumulate_q,
 * accumulate_kv: dq, or dk and dv, += instead of =. */
struct attention_gradient {
    attention_problem f;
    attention_view d_o, dq, dk, dv;
    attention_record *records; /* [B,H,count,T] */
    float *dead_sums;          /* [B,H,count,T] log Z of dead candidates; NULL: they are not visited */
    float *dq_sums;            /* [B,H,T,D], added to by atomics; NULL: dq has a kernel of its own */
    double *partial;           /* [B,H,count] for the coefficients' gradients */
    bool accumulate_q, accumulate_kv;
};
/* Points g's arrays (records, dead_sums, dq_sums, partial) into `memory` (NULL: only sizes); returns the bytes, a
 * multiple of 256. Looks at g->f. dead: dead candidates get gradients. */
size_t attention_gradient_place(const struct ops *ops, attention_gradient *g, int64_t batch, bool dead, char *memory);
/* dq, dk, dv of a placed problem, and dcoefficients where present. o and log_sums may be those of a softmax over more
 * than this problem's keys: its weights and deltas are what they say. */
enum status attention_backward(const struct ops *ops, const attention_gradient &g, int64_t batch,
                               struct tensor dcoefficients);
/* Starts the kernel that writes the records of a placed problem: z, and delta where do·o gives it. attention_backward
 * does it itself. */
enum status attention_records(const struct ops *ops, const attention_gradient &g, int64_t batch);
/* dk, dv (and dq_sums, where present) from the records: attention_keys.cu. */
enum status attention_keys(const struct ops *ops, const attention_gradient &g, int64_t batch);

constexpr float log2_of_e = 1.44269504088896340736f, log_of_2 = 0.69314718055994530942f;

template <class T> __host__ __device__ inline T *attention_rows(const attention_view &view, int64_t b, int64_t h) {
    return static_cast<T *>(view.data) + b * view.batch + h * view.head;
}

/* body(std::integral_constant<int, P>{}), P the padded head width. */
template <class Body> enum status with_padded_width(int width, Body body) {
    if (width <= 64) return body(std::integral_constant<int, 64>{});
    if (width <= 128) return body(std::integral_constant<int, 128>{});
    return body(std::integral_constant<int, 256>{});
}

/* 2^x, of results below the smallest normal number 0. */
__device__ inline float exp2_quick(float x) {
#ifdef SQUINT_SIMT
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ inline float coefficient_of(const attention_problem &p, int64_t h, int m) {
    return p.coefficients ? __ldg(p.coefficients + h * p.coefficient_stride + m) : 1.0f;
}

/* Whether the span holds key j. */
__device__ inline bool span_holds(const attention_rule &rule, int lo, int count, int j) {
    const unsigned n = static_cast<unsigned>(j) - static_cast<unsigned>(lo), x = n * rule.inverse;
    return n < static_cast<unsigned>(count) && ((x >> rule.rotate) | (x << ((32 - rule.rotate) & 31))) <= rule.limit;
}

/* Whether lo … hi holds a multiple of step. */
__device__ inline bool range_holds_multiple(int lo, int hi, int step) {
    if (hi >= 0) return hi / step * step >= lo;
    return -lo / step * step >= -hi;
}

/* False only where no query of i0 … i1−1 (with this hull) sees a key of k0 … k1−1. Differences of tokens fit into an
 * int. */
__device__ inline bool hull_touches(const attention_rule &rule, const attention_hull &hull, bool causal, int i0, int i1,
                                    int k0, int k1) {
    if (k1 <= hull.lo_min || k0 >= hull.hi_max) return false;
    if (rule.dense) return true;
    const int least = i0 - (k1 - 1), most = i1 - 1 - k0; /* of i − j */
    if (rule.kind == CANDIDATE_OFFSET)
        return (rule.a >= least && rule.a <= most) || (!causal && -rule.a >= least && -rule.a <= most);
    if (rule.kind == CANDIDATE_DILATED) return range_holds_multiple(least, most, rule.b);
    if (hull.lo_min != hull.lo_max || k0 <= hull.lo_min) return true;
    return range_holds_multiple(k0 - hull.lo_min, min(k1, hull.hi_max) - 1 - hull.lo_min, rule.a);
}

/* True only where every query of the hull sees all of k0 … k1−1. */
__device__ inline bool hull_covered(const attention_rule &rule, const attention_hull &hull, int k0, int k1) {
    return rule.dense && k0 >= hull.lo_max && k1 <= hull.hi_min;
}

__device__ inline attention_hull hull_none() {
    return attention_hull{INT_MAX, INT_MAX, 0, 0};
}
/* Of queries first … first + rows − 1 together, or of more than them where these are no whole runs of hull_rows. */
__device__ inline attention_hull hull_of(const attention_problem &p, int64_t b, int m, int first, int rows) {
    const attention_hull *hulls = p.hulls + (b * p.count + m) * p.hull_count;
    attention_hull all = {INT_MAX, 0, INT_MAX, 0};
    for (int n = first / hull_rows; n <= (first + rows - 1) / hull_rows && n < p.hull_count; n++) {
        const attention_hull one = hulls[n];
        all.lo_min = min(all.lo_min, one.lo_min);
        all.lo_max = max(all.lo_max, one.lo_max);
        all.hi_min = min(all.hi_min, one.hi_min);
        all.hi_max = max(all.hi_max, one.hi_max);
    }
    return all;
}

/* The tiles first … end−1 that touches(tile) is true for, ascending; 32 are asked at once, by the lanes of every warp
 * alike. */
struct tile_walk {
    int base, end;
    unsigned mask;
};
__device__ inline tile_walk walk_tiles(int first, int end) {
    return tile_walk{first - 32, end, 0};
}
/* The next tile, −1 after the last. All lanes take part. */
template <class Touches> __device__ inline int walk_next(tile_walk &walk, Touches touches) {
    while (walk.mask == 0) {
        walk.base += 32;
        if (walk.base >= walk.end) return -1;
        const int tile = walk.base + static_cast<int>(threadIdx.x % 32);
        walk.mask = __ballot_sync(whole_warp, tile < walk.end && touches(tile));
    }
    const int bit = __ffs(static_cast<int>(walk.mask)) - 1;
    walk.mask &= walk.mask - 1;
    return walk.base + bit;
}

/* Which tile of which of `pairs` sequences and heads a block takes. `together` pairs are in work at once, so that what
 * they read stays in the cache; of these the costliest tiles come first. */
struct block_order {
    int tiles, together;
    int64_t pairs;
    bool last_first;
};
struct block_place {
    int tile;
    int64_t pair;
};
__device__ inline block_place place_block(const block_order &order) {
    const int64_t id = blockIdx.x, each = static_cast<int64_t>(order.tiles) * order.together;
    const int64_t first = id / each * order.together, rest = id % each;
    const int64_t here = order.pairs - first < order.together ? order.pairs - first : order.together;
    const int tile = static_cast<int>(rest / here);
    return block_place{order.last_first ? order.tiles - 1 - tile : tile, first + rest % here};
}
/* bytes: what a pair reads over and over. */
inline block_order order_blocks(int64_t tiles, int64_t pairs, int64_t bytes, bool last_first) {
    const int64_t cached = int64_t{24} << 20, fit = cached / (bytes > 0 ? bytes : 1);
    const int64_t together = fit < 1 ? 1 : fit > pairs ? pairs : fit;
    return block_order{static_cast<int>(tiles), static_cast<int>(together < 65536 ? together : 65536), pairs,
                       last_first};
}

#endif
