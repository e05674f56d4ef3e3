/* What the files of linear attention share. Private to kernels/cpu/linear_*.c.
 *
 * One unit (a sequence and a key head with its query heads) is one thread's work. Its tokens are taken in chunks of C
 * query rows. The key that becomes far for the query at i is t = i − window: shifted by the window, the far part is
 * causal attention of query t + window over keys … t, and a chunk's far keys are one chunk too ("far" rows are numbered
 * by key). Keys of earlier chunks of the same document are in the state, Σ e^{a_j − P} φ(k_j) [v_j, 1]; pairs inside a
 * chunk are computed one by one. Values carry a 1 in column D, so that the same products give numerators and
 * normalisers; gradients of outputs carry −do·o there, so that the same product gives do·v_j − do·o. */
#ifndef SQUINT_KERNELS_CPU_LINEAR_ATTENTION_INTERNAL_H
#define SQUINT_KERNELS_CPU_LINEAR_ATTENTION_INTERNAL_H

#include "kernels/cpu/attention_gemm.h"
#include "kernels/cpu/cpu.h"

enum {
    CHUNK_USUAL = 64,
    SUB_ROWS = 16 /* rows whose columns end together: what lies above the diagonal is left out */
};

/* A far normaliser below TINY is taken as none: dividing by it would overflow. Logarithms of its inverse. */
#ifdef SQUINT_REAL_F64
#define TINY          ((real)1e-290)
#define LARGEST_SCALE ((real)667.7)
#else
#define TINY          ((real)1e-30)
#define LARGEST_SCALE ((real)69.1)
#endif

/* Row i of a tensor [B,T,heads,D] at rows + i · stride. */
struct linear_rows {
    real *rows;
    int64_t stride;
};

/* One head's map, packed: scaled by D^{-1/4} for exp features. */
struct linear_map {
    real *transposed; /* [D][Np] */
    real *rows;       /* [Np][Dp] */
    real *bias;       /* [Np], or NULL */
};

/* Squeeze and excite of a key head, packed both ways. */
struct linear_gate {
    real *squeeze, *squeeze_t; /* [Rp][Mp], [Mp][Rp] */
    real *excite, *excite_t;   /* [Mp][Rp], [Rp][Mp] */
};

/* Gradients of the parameters that one unit makes. NULL: not wanted. */
struct linear_sums {
    real *q_maps, *k_map;     /* [share][Np][Dp], [Np][Dp] */
    real *q_biases, *k_bias;  /* [share][Np], [Np] */
    real *squeeze, *excite_t; /* [Rp][Mp] */
    real *betas;              /* [share] */
};

/* A call: what no task changes. */
struct linear_call {
    const struct ops *ops;
    const struct linear_attention *a;
    const struct linear_attention_backward *g;          /* NULL: forward pass */
    const struct linear_attention_weights *weights;     /* NULL: o is computed or differentiated */
    int64_t batch, length, heads, groups, share, width; /* B T H G H/G D */
    int64_t columns, features, hidden;                  /* N M R */
    /* Padded to LANES: Dp, pad(D+1), Np, Mp, Rp. Mp = parts · Np: feature m lies in column m, or Np + m − N from N on.
     */
    int64_t width_pad, value_pad, column_pad, feature_pad, hidden_pad;
    int parts;
    int64_t window, chunk, chunk_pad, near_pad; /* near_pad: columns for the keys that a chunk's windows span */
    real map_scale, log_scale; /* D^{-1/4} or 1; −log M or 0: what M^{-1/2} twice adds to a logarithm */
    bool shared_q_map, shared_k_map;
    struct linear_map *q_maps, *k_maps; /* [H], [G]; shared ones only the first */
    struct linear_gate *gates;          /* [G] */
    int32_t *ends;                 /* [B,T] one past the last token of each token's document; both directions only */
    struct linear_sums *sums;      /* [B·G] */
    double *losses;                /* [B·G] weights only: Σ KL(P ‖ A) of a unit's rows */
    struct linear_worker *workers; /* [threads] */
};

/* A thread's memory; C rows a chunk. Query rows are numbered from the chunk's first, far rows from its first far key.
 */
struct linear_worker {
    /* far keys of the chunk */
    real *phi_k, *phi_k_t; /* [C][Mp], [Mp][Cp] */
    real *va, *va_t, *vaw; /* [C][Vp] values and a 1; transposed [Vp][Cp]; weighted */
    real *x_k;             /* [C][Dp] */
    real *peaks, *prefix;  /* [T] a_j; the largest of the document so far */
    real *weights;         /* [C][Cp] e^{a_j − P} of each far pair inside the chunk, else 0 */
    real *factors;         /* [C] what makes the state relative to the far row's P, or 0: another document's */
    bool *valid;           /* [C] the far row has a far key */
    /* queries of the chunk */
    real *phi_q, *q_peaks;  /* [C][Mp], [C], by far row */
    real *exponents;        /* [C] beta + a_q + P − log M, by far row */
    real *pairs, *d_pairs;  /* [C][Cp] */
    real *far, *near;       /* [C][Vp] numerators and normalisers */
    real *near_peaks;       /* [C] */
    real *x;                /* [C][Dp] */
    real *d_rows;           /* [C][Vp] d_o and −d_o·o */
    real *d_far, *d_scaled; /* [C][Vp] d_rows times e^{exponent − log sum}; and times a factor; by far row */
    real *d_phi, *d_x;      /* [C][Mp], [C][Dp] */
    const real *log_sums;   /* of the query head's rows, [T] */
    /* near keys: those of all windows of the chunk's rows */
    real *near_k_t, *near_v_t;   /* [D][Wp], [Vp][Wp] */
    real *near_k, *near_v;       /* [W][Dp], [W][Vp] */
    real *near_scores, *near_dw; /* [SUB_ROWS][Wp] */
    /* squeeze and excite */
    real *running;               /* [Mp] Σ φ_k of the document so far */
    real *phi_x, *means, *gates; /* [C][Mp] φ_k of the chunk's own rows; p; e */
    real *hidden;                /* [C][Rp] relu(squeeze · p) */
    real *d_gates;               /* [C][Mp] */
    real *starts;                /* [chunks][Mp] `running` before each chunk */
    real *d_hidden;              /* [T][Rp] */
    /* states */
    real *state, *state_t; /* [Mp][Vp], [Vp][Mp] */
    real *dk, *dva;        /* [T][Dp], [T][Vp] */
    /* weights: C = T, and queries in blocks of SUB_ROWS rows; phi_q, x, d_x hold a block's */
    real *teacher_k_t;           /* [D][Wp] */
    real *teacher_scores, *dots; /* [SUB_ROWS][Wp] then e^{…} and the near pairs' gradient; then the far pairs' */
    real *teacher_x;             /* [SUB_ROWS][Dp] */
    real *phi_gated, *d_phi_q;   /* [SUB_ROWS][Mp] */
};

/* The sum over earlier keys (or, going backwards, later rows) of one document. */
struct linear_state {
    bool live;
    int32_t start; /* its document */
    real peak;     /* the exponent it is relative to */
};

/* A unit in work, and its chunk. */
struct linear_unit {
    const struct linear_call *call;
    struct linear_worker *worker;
    int64_t b, group, window;
    const int32_t *start; /* [T] */
    struct linear_rows k, v;
    const struct linear_map *k_map;
    const struct linear_gate *gate; /* NULL: none */
    struct linear_sums *sums;
    struct linear_state state;
    int64_t end;                  /* chunks end here: T, or in both directions the document's end */
    int64_t first, count;         /* query rows */
    int64_t far_first, far_count; /* far keys; the query of key t is row t + window */
    int64_t near_first, near_count;
};

/* The number of far row 0 among the query rows. */
static inline int64_t linear_far_offset(const struct linear_unit *u) {
    return u->far_first + u->window - u->first;
}
static inline struct linear_rows linear_rows_of(struct tensor t, int64_t b, int64_t head) {
    return (struct linear_rows){real_data(t) + b * t.stride[0] + head * t.stride[2], t.stride[1]};
}
static inline const struct linear_map *linear_q_map(const struct linear_call *call, int64_t head) {
    return &call->q_maps[call->shared_q_map ? 0 : head];
}
static inline real linear_beta(const struct linear_call *call, int64_t head) {
    const struct tensor beta = call->a->features.beta;
    return tensor_present(beta) ? real_data(beta)[head] : 0;
}
static inline int64_t linear_column(const struct linear_call *call, int64_t feature) {
    return feature < call->columns ? feature : call->column_pad + feature - call->columns;
}
/* e^{exponent} of a far row relative to its log normaliser; 0 when the forward pass found no far part worth the name.
 */
static inline real linear_far_scale(real exponent) {
    return exponent > LARGEST_SCALE || exponent != exponent ? 0 : real_exp(exponent);
}

/* linear_attention_features.c */
/* phi [count][Mp] of rows x; peaks [count]: the exponent that each row lost. Padding columns are 0. */
void NAME(linear_features)(const struct linear_call *call, const struct linear_map *map, int64_t count, const real *x,
                           int64_t x_stride, real *phi, real *peaks);
/* d_phi becomes the gradient of W x (first Np columns); d_x [count][Dp] += it through W; d_map [Np][Dp], d_bias [Np]:
 * += or NULL. x: dense rows [count][Dp]. d_map lacks the factor map_scale. */
void NAME(linear_features_backward)(const struct linear_call *call, const struct linear_map *map, int64_t count,
                                    const real *x, const real *phi, real *d_phi, real *d_x, real *d_map, real *d_bias);
/* to [count][width_pad] = rows, zeros beyond the width. */
void NAME(linear_load)(int64_t count, int64_t width, int64_t pad, struct linear_rows from, int64_t first, real *to);

/* linear_attention_far.c: the chunk's far part. */
/* Sets the chunk of query rows first … and its far and near keys. */
void NAME(linear_chunk)(struct linear_unit *u, int64_t first);
/* Features, values, peaks of the far keys; weights and factors of the far rows. */
void NAME(linear_far_keys)(struct linear_unit *u);
/* Both directions: every row reads the whole state. */
void NAME(linear_far_all)(struct linear_unit *u);
/* phi_q, q_peaks, exponents of a query head's far rows; `gated`: times their gates. */
void NAME(linear_far_queries)(struct linear_unit *u, int64_t head, bool gated);
/* Far pairs inside the chunk: to [C][Cp] = (x · y) ∘ weights, x [far_count][inner], y [inner][Cp]. */
void NAME(linear_pairs)(const struct linear_unit *u, const real *x, int64_t inner, const real *y, real *to);
/* to [far_count][columns] += pairs · rows; and += pairsᵀ · rows. */
void NAME(linear_pairs_gather)(const struct linear_unit *u, const real *pairs, const real *rows, int64_t columns,
                               real *to);
void NAME(linear_pairs_scatter)(const struct linear_unit *u, const real *pairs, const real *rows, int64_t columns,
                                real *to);
/* The chunk's far keys join the state [Mp][Vp], or with `transposed` [Vp][Mp]. */
void NAME(linear_state_add)(struct linear_unit *u, bool transposed);

/* linear_attention_near.c: exact weights. */
void NAME(linear_near_keys)(struct linear_unit *u, bool backward);
/* near [C][Vp], near_peaks [C] of the query head's rows. */
void NAME(linear_near_forward)(struct linear_unit *u, int64_t head);
/* d_x [C][Dp] = the near part's gradient of q; dk, dva +=. Needs x, d_rows, log_sums. */
void NAME(linear_near_backward)(struct linear_unit *u);

/* linear_attention_gate.c: squeeze and excite. */
/* phi_x, means, hidden, gates of the chunk's rows; `running` moves on. */
void NAME(linear_gate_forward)(struct linear_unit *u);
/* phi [far_count][Mp] is multiplied by the gates of its rows. */
void NAME(linear_gate_apply)(const struct linear_unit *u, real *phi);
/* d_gates [C][Mp] -> parameters' gradients, d_hidden. */
void NAME(linear_gate_backward)(struct linear_unit *u);
/* The gradient of φ_k of the chunk's rows through the means goes to dk and the map; `running`: Σ over later rows. */
void NAME(linear_gate_tail)(struct linear_unit *u);

/* linear_attention_forward.c, linear_attention_backward.c: one unit. */
void NAME(linear_forward_unit)(struct linear_unit *u);
void NAME(linear_backward_unit)(struct linear_unit *u);

/* linear_weights.c: one unit; *loss = Σ KL(P ‖ A) of its rows. */
void NAME(linear_weights_unit)(struct linear_unit *u, double *loss);

#endif
