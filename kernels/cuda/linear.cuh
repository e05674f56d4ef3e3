/* What the files of linear attention share: the problem as its kernels see it, and features of a tile.
 *
 * The far part is causal attention of "far rows": row t is the query at t + window over keys … t. Tokens in a row of
 * far rows form segments; where a document crosses the edge between two of them, a state holds what lies on the other
 * side: Σ e^… φ [value, 1], of keys (for queries) or of queries' gradients (for keys), relative to the peak P of the
 * last token before the edge. Pairs of one segment are computed one by one. No features are stored: a block makes those
 * of a tile from the rows x and the map, C = S::columns of them at a time.
 *
 * All exponents are in base 2. With a_q, a_k what exponents of features lost and P the largest a_k of the document so
 * far (both directions: of the whole document),
 *   log2 w_ij = beta + a_q(i) + a_k(j) − log2 M + log2 φ_q(i)·φ_k(j)
 * Features are numbered in tiles: tile n holds rows n mod part_tiles · C … of the map, of hedgehog's softmax(W x) for
 * n < part_tiles and of softmax(−W x) for the others. */
#ifndef SQUINT_KERNELS_CUDA_LINEAR_CUH
#define SQUINT_KERNELS_CUDA_LINEAR_CUH

#include "kernels/cuda/attention_tile.cuh"

/* A far normaliser up to TINY is taken as none, and so are weights over their sum when that would take a factor above
 * its inverse (its logarithm). */
constexpr float linear_tiny = 1e-30f, linear_largest = 69.1f * log2_of_e;
constexpr float relu_floor = 1e-6f;

/* Queries or keys, and what makes their features. */
struct linear_side {
    attention_view x; /* [B,T,heads,D] */
    const void *map;  /* [heads,N,D] real; map_head may be 0 */
    const void *bias; /* [heads,N] real, or NULL */
    int64_t map_head, map_row, bias_head;
    bool map_vector;
    float2 *references; /* [B,heads,T] what the exponents of both parts lose; of relu none */
    float *peaks;       /* [B,heads,T] a */
    int heads;
};

struct linear_problem {
    linear_side q, k;
    attention_view v, o;
    const int32_t *begin, *end;   /* [B,T] of each token's document */
    const int32_t *no_window;     /* [B] or NULL */
    const float *beta;            /* [H] or NULL */
    float *prefix;                /* [B,G,T] P */
    float *log_sums;              /* [B,H,T] natural */
    const void *squeeze, *excite; /* [G,R,M], [G,M,R] real, or NULL */
    int64_t squeeze_head, squeeze_row, excite_head, excite_row;
    float *hidden; /* [B,G,T,R] relu(squeeze · p) */
    int64_t batch;
    int length, heads, groups, share /* heads of a group */, width, hidden_width /* R */;
    int kind, columns /* N */, part_tiles, tiles, features /* tiles · C */;
    int segment /* far rows, a multiple of 64 */, segments, window;
    bool causal, near_only;
    float scale, scale_log2, map_scale /* D^{-1/4} or 1 */, log_constant /* −log2 M or 0 */;
};

/* Of the edges before segments 1 …: [B·G][segments][features][P], P the padded width, and the value that is 1. */
struct linear_states {
    void *sums; /* real */
    float *ones;
};

/* Of one query, for the backward pass. term: log2 of w_ij's factors that are the query's, less log2 Σ w; −inf where it
 * has no far part. delta: do·o. */
struct alignas(8) linear_record {
    float term, delta;
};

struct linear_gradient {
    linear_problem f;
    attention_view d_o, dq, dk, dv;
    linear_record *records;                /* [B,H,T] */
    linear_states before, after;           /* of keys */
    linear_states rows_before, rows_after; /* of queries' gradients */
    float *d_features;                     /* [B·heads][slab][features]; then of W x, or of the gates */
    float *d_gates;  /* the same of what the gates' sigmoid takes; of keys their features; or NULL */
    float *d_hidden; /* [B,H,T,R], then its sums over later rows [B,G,T,R] in `tails` */
    float *tails;
    float *beta_rows;     /* [B,H,T] or NULL */
    int slab_first, slab; /* rows of the sequence that d_features holds, whole tiles of S::rows */
    /* For weights (linear_weights.cu), else NULL: the gradient by q or k that near pairs give, [B·heads][slab][P]; then
     * dq and dk are added to, where they are. */
    float *d_near;
};

/* Tiles by type and padded head width. columns: of features and of the tokens on a tile's other side. */
template <class T, int D> struct linear_shape;
template <> struct linear_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 1, 64>; };
template <> struct linear_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 32>; };
template <> struct linear_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <> struct linear_shape<float, 64> { using shape = tile_shape<float, 64, 4, 1, 32>; };
template <> struct linear_shape<float, 128> { using shape = tile_shape<float, 128, 4, 1, 32>; };
template <> struct linear_shape<float, 256> { using shape = tile_shape<float, 256, 2, 1, 16>; };

template <class Body> enum status with_linear_shape(const struct ops *ops, int64_t width, Body body) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(static_cast<int>(width), [&](auto padded) {
            return body(typename linear_shape<decltype(real), decltype(padded)::value>::shape{});
        });
    });
}

/* How the warps share S::columns rows of features: 16 rows each, and `share` of their columns. */
template <class S> struct column_shares {
    static constexpr int row_tiles = S::columns / 16, least = std::is_same_v<typename S::real, bf16> ? 16 : 8;
    static constexpr int sharers =
        S::warps / row_tiles < S::columns / least ? S::warps / row_tiles : S::columns / least;
    static constexpr int share = S::columns / sharers;
};

__device__ inline int window_of(const linear_problem &p, int64_t b) {
    return p.no_window && p.no_window[b] ? 0 : p.window;
}

/* Feature tile `tile`: which part of the features, and its first row of the map. */
struct feature_place {
    int part, first;
};
template <class S> __device__ inline feature_place place_features(const linear_problem &p, int tile) {
    const int part = tile >= p.part_tiles ? 1 : 0;
    return feature_place{part, (tile - part * p.part_tiles) * S::columns};
}

/* φ from y = (W x)_n of one part; `reference` that part's. */
__device__ inline float feature_value(const linear_problem &p, int part, float y, float reference, float bias) {
    if (p.kind == FEATURE_RELU) {
        const float x = y + bias;
        return (x > 0.0f ? x : 0.0f) + relu_floor;
    }
    return exp2_quick(y * (part ? -p.map_scale * log2_of_e : p.map_scale * log2_of_e) - reference);
}

/* 2σ(excite · hidden) of one query and feature. */
template <class T>
__device__ inline float gate_value(const linear_problem &p, int64_t b, int group, int64_t i, int feature) {
    const float *hidden = p.hidden + ((b * p.groups + group) * p.length + i) * p.hidden_width;
    const T *excite = static_cast<const T *>(p.excite) + group * p.excite_head + feature * p.excite_row;
    float sum = 0.0f;
    for (int r = 0; r < p.hidden_width; r++) sum += hidden[r] * to_float(excite[r]);
    return 2.0f / (1.0f + exp2_quick(-log2_of_e * sum));
}

/* Two rows of a lane (g and g + 8 of a warp's 16): tokens, −1 behind the last, and their references. */
struct lane_rows {
    int token[2];
    float2 reference[2];
};
/* first: of the warp's rows, a token. */
__device__ inline lane_rows lane_rows_of(const linear_problem &p, const linear_side &side, int64_t b, int head,
                                         int first) {
    lane_rows rows;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int token = first + 8 * half + lane_row();
        const bool valid = token >= 0 && token < p.length;
        rows.token[half] = valid ? token : -1;
        rows.reference[half] = valid ? side.references[(b * side.heads + head) * p.length + token] : make_float2(0, 0);
    }
    return rows;
}

/* y [16 x 8·GROUPS], products of rows with a tile of the map from its row place.first on, becomes features; 0 behind
 * the map's last row, and in rows that are no tokens. GATED: times the query's gates, where there are any. */
template <class T, int GROUPS, bool GATED>
__device__ inline void make_features(const linear_problem &p, const linear_side &side, int64_t b, int head,
                                     feature_place place, const lane_rows &rows, float (&y)[1][GROUPS][4]) {
    const T *bias = static_cast<const T *>(side.bias);
    if (bias) bias += head * side.bias_head;
#pragma unroll
    for (int n = 0; n < GROUPS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int half = e / 2, column = place.first + n * 8 + lane_column() + e % 2;
            float &x = y[0][n][e];
            if (column >= p.columns || rows.token[half] < 0) {
                x = 0.0f;
                continue;
            }
            x = feature_value(p, place.part, x, place.part ? rows.reference[half].y : rows.reference[half].x,
                              bias ? to_float(bias[column]) : 0.0f);
            if (GATED && p.excite)
                x *= gate_value<T>(p, b, head / p.share, rows.token[half], place.part * p.columns + column);
        }
}

/* A tile of C rows of a head's map. */
template <class S>
__device__ inline void load_map(const linear_problem &p, const linear_side &side, int head, feature_place place,
                                typename S::real *tile) {
    using T = typename S::real;
    load_rows<S::columns, S::width, S::stride, S::threads>(
        tile, static_cast<const T *>(side.map) + head * side.map_head, side.map_row, place.first, p.columns, p.width,
        side.map_vector);
}
/* y = x · mapᵀ of the warp's 16 rows of x and a tile of the map, which comes into `map`. x is under way or there. By
 * all threads, with a barrier before the product: who reads the map last must see another one before the next tile. */
template <class S>
__device__ inline void map_product(const linear_problem &p, const linear_side &side, int head, feature_place place,
                                   const typename S::real *x, typename S::real *map, float (&y)[1][S::groups][4]) {
    using product = warp_product<typename S::real>;
    load_map<S>(p, side, head, place, map);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    clear_sums(y);
    product::rows_by_rows(
        y, typename product::template left<1, S::width, S::stride, false>(x + warp_number() * 16 * S::stride), map);
}

/* Features of a tile of S::columns rows x [columns][stride], by all warps, to `to` [columns][outer_stride]. rows: of
 * the lane, in the warp's share (column_rows). */
template <class S, bool GATED>
__device__ inline void column_features(const linear_problem &p, const linear_side &side, int64_t b, int head,
                                       feature_place place, const lane_rows &rows, const typename S::real *x,
                                       const typename S::real *map, typename S::real *to) {
    using T = typename S::real;
    using shares = column_shares<S>;
    const int row = warp_number() % shares::row_tiles * 16, sharer = warp_number() / shares::row_tiles;
    if (sharer >= shares::sharers) return;
    const int first = sharer * shares::share;
    float y[1][shares::share / 8][4];
    clear_sums(y);
    warp_product<T>::rows_by_rows(
        y, typename warp_product<T>::template left<1, S::width, S::stride, false>(x + row * S::stride),
        map + first * S::stride);
    make_features<T, shares::share / 8, GATED>(p, side, b, head, feature_place{place.part, place.first + first}, rows,
                                               y);
#pragma unroll
    for (int n = 0; n < shares::share / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float pair[2] = {y[0][n][2 * half], y[0][n][2 * half + 1]};
            store_pack<2>(to + (row + 8 * half + lane_row()) * S::outer_stride + first + n * 8 + lane_column(), pair);
        }
}
template <class S>
__device__ inline lane_rows column_rows(const linear_problem &p, const linear_side &side, int64_t b, int head,
                                        int first) {
    return lane_rows_of(p, side, b, head, first + warp_number() % column_shares<S>::row_tiles * 16);
}

/* 2^x · y; 0 where the factor is, whatever y holds. */
__device__ inline float weigh(float exponent, float y) {
    const float factor = exp2_quick(exponent);
    return factor > 0.0f ? factor * y : 0.0f;
}

/* linear_plan.cu. Fills the numbers and views of `p`. Shapes are checked before. STATUS_SHAPE: too wide or too long. */
enum status linear_measure(const struct ops *ops, const char *operation, const struct linear_attention *a,
                           linear_problem *p);
/* Bytes of what linear_plan places at `memory`, a multiple of 256. */
size_t linear_plan_bytes(const struct linear_attention *a);
/* After linear_measure: starts the kernels that find documents, references, peaks and what the gates take. */
enum status linear_plan(const struct ops *ops, const char *operation, const struct linear_attention *a, char *memory,
                        linear_problem *p);

/* linear_states.cu. Bytes of one set of states, and of what making them takes. */
size_t linear_states_bytes(const struct ops *ops, const linear_problem &p);
size_t linear_own_bytes(const linear_problem &p);
linear_states linear_states_place(const struct ops *ops, const linear_problem &p, char *memory);
/* The states of keys (records NULL) or of queries' gradients before or, `reverse`, after every edge. own: memory. */
enum status linear_states_make(const struct ops *ops, const char *operation, const linear_gradient &g, bool of_keys,
                               bool reverse, char *own, const linear_states &states);

#endif
