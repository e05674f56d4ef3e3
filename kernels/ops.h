/* The contract of every operation. Nothing above this file knows which device runs.
 *
 * Common rules, not repeated below:
 * - A table is made by ops_open; its functions take the table itself first. Calls are asynchronous on the device's one
 *   stream; ops->synchronise waits. Data that the host reads is copied with ops->download.
 * - "real" is the table's activation type, ops->real: F32 on the CPU, F64 in the oracle table, BF16 or F32 on CUDA.
 *   "f32 statistics" are F32 everywhere but F64 in the oracle table: ops->statistic.
 * - Outputs are written (=) without being read, except gradients of parameters, which accumulate (+=) and say so.
 * - Tensors are contiguous unless a comment allows a row stride ("strided rows": the last dimension is dense). Tensors do
 *   not overlap unless a comment allows it. Optional arguments may be tensor_none().
 * - Shapes are checked by every table: STATUS_SHAPE names operation, argument, expected and found. STATUS_FAILED: the
 *   device failed.
 * - Results do not depend on the number of threads, except where `deterministic` false allows it. */
#ifndef SQUINT_KERNELS_OPS_H
#define SQUINT_KERNELS_OPS_H

#include "base/error.h"
#include "base/tensor.h"

struct device;    /* a table's private state */
struct recording; /* what it keeps of work that it repeats */

enum activation { ACTIVATION_NONE = 0, ACTIVATION_GELU /* tanh form, Hendrycks and Gimpel 2016 */ };
enum norm_kind { NORM_LAYER = 0 /* Ba et al. 2016 */, NORM_RMS /* Zhang and Sennrich 2019 */ };

/* c [M,N] = act( alpha · op(a) [M,K] · op(b) [K,N] + bias ), or c += … when accumulate (then activation must be none).
 * a, b, c: 2-D, strided rows allowed; real. c may be of ops->parameter instead (a gradient, logits), then
 * without bias and activation. op transposes when the flag is set: a is [K,M], b is [N,K].
 * bias [N], optional. pre [M,N], optional: receives the value before the activation (what its backward pass needs).
 * bf16: on the CPU, lets the device round a and b to bf16 and accumulate in fp32 where the hardware is faster at it.
 * constant_b: the caller promises that b's contents never change; the device may keep a packed copy, found by address. */
struct gemm {
    struct tensor a, b, c, bias, pre;
    bool transpose_a, transpose_b, accumulate, bf16, constant_b;
    double alpha;
    enum activation activation;
};

/* sum = x + delta (when delta is present, else sum is x itself and not written); y = norm(sum)·weight + bias, row by row.
 * x, delta, sum, y: [N,C] real; sum may be x (in place). weight [C]; bias [C] or none. mean (layer only), rstd: [N] f32
 * statistics, kept for the backward pass. */
struct norm {
    enum norm_kind kind;
    double epsilon;
    struct tensor x, delta, sum, weight, bias, y, mean, rstd;
};

/* dx += the gradient through norm (accumulates into the residual stream's gradient; `overwrite_dx`: dx = instead).
 * dy, x (the forward pass's sum): [N,C]; weight [C]; mean, rstd from the forward pass. dweight, dbias [C]: += when present. */
struct norm_backward {
    enum norm_kind kind;
    struct tensor dy, x, weight, mean, rstd, dx, dweight, dbias;
    bool overwrite_dx;
};

/* x [N,C] = table[ids] (+ positions_table[positions]). ids, positions: [N] I32, within the tables' rows (checked on the host
 * by the caller). table [V,C]; positions_table [P,C] or none. */
struct embedding {
    struct tensor ids, positions, table, position_table, x;
};
/* dtable[ids] += dx, dposition_table[positions] += dx; each optional. Rows are added in ascending n: deterministic. */
struct embedding_backward {
    struct tensor ids, positions, dx, dtable, dposition_table;
};

/* Rotary positions (Su et al. 2021) in the half-split form: for pair (x_d, x_{d+D/2}), angle p·theta^{-2d/D}.
 * In place on x [B,T,heads,D], any strides with a dense last dimension. positions [B,T] I32. frequencies [D/2] f32
 * statistics: radians a position of each pair. inverse: rotate by the negative angle (the backward pass). */
struct rope {
    struct tensor x, positions, frequencies;
    bool inverse;
};

/* Which earlier tokens one candidate of a query at i may see, inside its document; `causal` adds j <= i.
 * WINDOW a: the last a tokens, itself included. SINKS a: the first a of the document. OFFSET a: exactly a back.
 * DILATED a, b: i − b·t for t = 0 … a−1. STRIDE a: every a-th token of the document, from its first.
 * BLOCKS a: the token's own block of a, counted from the document's first. FULL: all. */
enum candidate_kind { CANDIDATE_FULL = 0, CANDIDATE_WINDOW, CANDIDATE_SINKS, CANDIDATE_OFFSET, CANDIDATE_DILATED,
                      CANDIDATE_STRIDE, CANDIDATE_BLOCKS };
struct candidate {
    enum candidate_kind kind;
    int32_t a, b;
};
enum { CANDIDATES_MAX = 8 };

/* Learned mixture of softmax attentions over candidate sets (docs/attention.md, "masks"), one pass over the union of those whose
 * coefficient is not zero for that head:
 *   A_ij = Σ_m c_m · M_m(i,j) e^{s_ij} / Z_m(i),  o_i = Σ_j A_ij v_j,  s_ij = scale · q_i·k_j.
 * With one candidate FULL and no coefficients it is plain (flash) attention, Dao et al. 2022: never T×T in memory.
 * q [B,T,H,D], k, v [B,T,G,D], o [B,T,H,D]: real, any strides with a dense last dimension; H a multiple of G, query head h
 * reads key head h/(H/G). start [B,T] I32: index in its sequence of the first token of each token's document (all 0: one
 * document). causal false: M_m also holds the mirrored tokens (window a: |i−j| < a; offset: both sides; FULL: all of the
 * document).
 * coefficients [H,count] f32 statistics or none (then count must be 1 and c = 1); stride 0 in dimension 0 is allowed (one row
 * for all heads). log_sums [B,H,count,T] f32 statistics: log Z_m(i), −inf where the candidate has no token for i or is dead;
 * kept for the backward pass. A query whose live candidates all are empty gets o = 0. */
struct attention {
    struct tensor q, k, v, start, coefficients, o, log_sums;
    struct candidate candidates[CANDIDATES_MAX];
    int count;
    bool causal;
    double scale;
};
/* dq, dk, dv: written, same shapes and stride rules as q, k, v. dcoefficients [H,count] f32 statistics, += when present (stride
 * 0 in dimension 0 allowed: the heads' sums are added): also for candidates whose coefficient is zero only when
 * `dead_gradients` (else they get 0 and are not computed). o, log_sums: the forward pass's. */
struct attention_backward {
    struct attention forward;
    struct tensor d_o, dq, dk, dv, dcoefficients;
    bool dead_gradients;
};
/* One query a sequence against cached keys, by explicit lists of cache slots.
 * q [B,H,D], o [B,H,D] (strided rows of heads allowed); k, v: [B,S,G,D] caches of S slots. slots [B,lists·count,capacity] I32:
 * the slots each candidate reads; slot_counts [B,lists·count] I32. `lists` divides H: head h reads rows count·l … count·l + count − 1
 * of list l = h/(H/lists). coefficients as above. */
struct attention_decode {
    struct tensor q, k, v, slots, slot_counts, coefficients, o;
    int count, lists;
    double scale;
};

/* The slots that one query a sequence reads, each once: lists for attention_decode (its count is 1). The query lies in slot `position`, and
 * is token places[b,2] of its document, whose tokens lie side by side.
 * chosen [B,lists,n] I32 or none: ascending, then −1. block 0: slots; else blocks of so many tokens, numbered from the document's first.
 * slots [B,lists,capacity] I32: the document's first `sinks` tokens, what is chosen, the last `window` tokens up to the query, then −1.
 * slot_counts [B,lists] I32: how many come before the −1. Of what is chosen, tokens that lie among sinks or window or outside of the
 * document are left out. places [B,3] I32, as for index_decode. window, sinks: 0 or more. STATUS_SHAPE when capacity holds less than
 * min(position + 1, sinks + n · max(block, 1) + window). */
struct slot_lists {
    struct tensor places, chosen, slots, slot_counts;
    int64_t position, block, sinks, window;
};

/* Feature maps of linear attention (docs/attention.md, "performer" and "kerformer"), N rows a head, M features:
 * FEATURE_EXP, M = N: φ(x) = M^{-1/2} exp(W x̂ − ‖x̂‖²/2), x̂ = x·D^{-1/4} (FAVOR+, Choromanski et al. 2020).
 * FEATURE_HEDGEHOG, M = 2N: φ(x) = [softmax(W x), softmax(−W x)] (Zhang et al. 2024).
 * FEATURE_RELU, M = N: φ(x) = relu(W x + b) + 1e-6.
 * q_map [H,N,D], k_map [G,N,D]: W of each query head and of each key head; stride 0 in dimension 0 is allowed (one W for all),
 * and both may be the same tensor. q_bias [H,N], k_bias [G,N]: b, of FEATURE_RELU, both or neither.
 * squeeze [G,R,M], excite [G,M,R], both or neither, not with FEATURE_EXP: φ_q(i) is multiplied by
 * e_i = 2σ(excite · relu(squeeze · p_i)), p_i the mean of φ_k(j) over the tokens j ≤ i of the document.
 * beta [H] statistic or none (0). All others: real. */
enum feature_kind { FEATURE_EXP = 0, FEATURE_HEDGEHOG, FEATURE_RELU };
struct features {
    enum feature_kind kind;
    struct tensor q_map, k_map, q_bias, k_bias, squeeze, excite, beta;
};

/* Attention that is linear in T (Katharopoulos et al. 2020), with exact softmax weights for near tokens (Zhang et al. 2024, LoLCATs):
 *   w_ij = e^{scale · q_i·k_j}            for the last `window` tokens, itself included (0: none)
 *   w_ij = e^{beta} φ_q(i)·φ_k(j)         for every earlier token of the document
 *   o_i = Σ_j w_ij v_j / Σ_j w_ij
 * q [B,T,H,D], k, v [B,T,G,D], o [B,T,H,D], start [B,T] I32, causal: as for `attention`. no_window [B] I32 or none: sequences with a
 * value other than 0 run as with window 0. causal false: all tokens of the document; only without window and squeeze.
 * log_sums [B,H,T] f32 statistics: log Σ_j w_ij, kept for the backward pass; −inf where every weight is below what the dtype
 * can hold, then o = 0.
 * near_only: earlier tokens have no weight, for an audit of what the window does alone; causal only.
 * chunk: tokens that are taken at once (0: the device's choice); it changes results by rounding only.
 * A start that is neither its token nor its predecessor's: STATUS_SHAPE where the host reads it, else its predecessor's.
 * A query's exponents lose their own maximum, a key's its own maximum a_j, and the key is weighted by e^{a_j − P}, P the largest
 * a of the document's keys that the query's far part holds: no later token changes a bit of an output. Features are never stored: memory
 * beside the tensors is O(T·D) for each thread. */
struct linear_attention {
    struct tensor q, k, v, start, no_window, o, log_sums;
    struct features features;
    int64_t window, chunk;
    bool causal, near_only;
    double scale;
};
/* dq, dk, dv: written, same shapes and stride rules as q, k, v. gradients: of the features' parameters, same shapes (parameter
 * dtype; beta's: statistic), each optional: +=; stride 0 in dimension 0 of the maps' allowed (the heads' sums are added); no overlap
 * among them; their `kind` is not looked at. o, log_sums: the forward pass's. */
struct linear_attention_backward {
    struct linear_attention forward;
    struct tensor d_o, dq, dk, dv;
    struct features gradients;
};
/* What linear attention's weights lack to be the teacher's softmax weights, and its gradients (docs/attention.md, "The `attention` objective"):
 *   P_ij = softmax_j(scale · tq_i·tk_j),  A_ij = w_ij / Σ_j w_ij,  j over the tokens that i may see
 *   loss += weight · Σ_{b,h,i} KL(P_i ‖ A_i) / H
 * that is the cross-entropy less the teacher's own entropy: 0 at equality. In `forward` v, o and log_sums are not looked at; near_only
 * is refused: a pair without weight has no logarithm. teacher_q [B,T,H,D], teacher_k [B,T,G,D]: real, stride rules of q and k; may be q
 * and k themselves. loss [1] F64, +=.
 * Gradients, of the sum that joins `loss` times gradient_scale, each optional, +=, shapes and strides as in linear_attention_backward.
 * A far pair whose φ_q(i)·φ_k(j) is below the smallest normal number has that number's logarithm, and no gradient but beta's.
 * Logarithms are kept within ±1e30, and a gradient by φ_q(i)·φ_k(j) within what sums of it can hold: scores beyond the dtype, too, give
 * no NaN. The features themselves must be finite.
 * All pairs are visited, in blocks of rows: time O(T²·(D + M)), memory beside the tensors O(T·(D + M)) for each thread. */
struct linear_attention_weights {
    struct linear_attention forward;
    struct tensor teacher_q, teacher_k, loss;
    double weight, gradient_scale;
    struct tensor dq, dk;
    struct features gradients;
};
/* The next token of each sequence, from a state of fixed size. q [B,H,D], k, v [B,G,D], o [B,H,D]: strided rows of heads allowed.
 * start [B] I32: index of the first token of the current document, 0 … position (else STATUS_SHAPE; a GPU takes the nearest one); where it
 * equals `position` the sequence's state is cleared first. Read and written: sums [B,G,M,D+1] statistics: Σ φ_k(j) [v_j, 1] of far tokens;
 * peaks [B,G] statistics: P, the logarithm that sums lack; means [B,G,M] statistics: Σ φ_k(j) of all tokens, or none without squeeze;
 * near_k, near_v [B,window,G,D] real: token t in slot t mod window, or none without a window. Before the first token contents are of no
 * matter. */
struct linear_attention_decode {
    struct tensor q, k, v, start, o;
    struct tensor sums, peaks, means, near_k, near_v;
    struct features features;
    int64_t position;
    bool near_only;
    double scale;
};

/* ---- blocks of keys: kind nsa (docs/attention.md; Yuan et al. 2025, arXiv 2502.11089) ----
 * Both sorts of block are counted from each document's first token; attention is causal and stays in its document.
 * Compressed blocks hold `compress` tokens (l) every `stride` (d), only those that lie whole in their document. They are
 * numbered through the sequence, document after document: their place in tensors [B,Nb,…], Nb = compressed_bound. A place
 * beyond the last block holds 0, and its gradient counts for nothing. A block is visible to i when its last token is <= i.
 * Selection blocks hold `block` tokens (l'; the last of a document maybe fewer), numbered from 0 in every document.
 * l and l' are multiples of d. start [B,T] I32 as for attention. */
static inline int64_t compressed_bound(int64_t length, int64_t compress, int64_t stride) {
    return length < compress ? 1 : (length - compress) / stride + 1;
}

/* out = mean_r x_r + W2·gelu(W1·vec(x_r + places_r) + b1) for every compressed block, r = 0 … l−1 over its tokens.
 * x [B,T,G,D]: real, any strides with a dense last dimension. w1 [2D, l·D], b1 [2D], w2 [D,2D], places [l,D]: real.
 * out [B,Nb,G,D], pre [B,Nb,G,2D] (what gelu takes; kept for the backward pass): real. */
struct block_compress {
    struct tensor x, start, w1, b1, w2, places, out, pre;
    int32_t compress, stride;
};
/* dx [B,T,G,D], any strides: +=. dw1, db1, dw2, dplaces (parameter dtype): += when present. d_out [B,Nb,G,D]. */
struct block_compress_backward {
    struct block_compress forward;
    struct tensor d_out, dx, dw1, db1, dw2, dplaces;
};

/* Attention to compressed keys, and the choice of selection blocks by it.
 *   p_ic = softmax over the visible compressed blocks of scale·q_i·k_c;  o_i = Σ_c p_ic v_c (0: none visible)
 *   importance of selection block b = Σ_c p_ic · (tokens that c and b share)/stride, summed over the heads that select together
 *   chosen: the document's first block, i's own and the one before it, then the most important of those that hold a token <= i,
 *   ties to the lower number; `select` in all, or every one where there are fewer.
 * q, o [B,T,H,D]; k, v [B,Nb,G,D]: real, any strides with a dense last dimension; head h reads key head h/(H/G). o (with v) may
 * be none. log_sums [B,H,T] f32 statistics: log Σ_c e^score, −inf where none is visible. chosen [B,T,H/select_group,select] I32
 * or none: block numbers in the query's document, ascending, then −1. select_group heads choose together; it divides H, and
 * is a divisor or a multiple of H/G. select: 3 or more. Scores of a few rows at a time: never T×Nb in memory. A GPU refuses to choose where a
 * compressed block can lie in more than 64 selection blocks (STATUS_SHAPE). */
struct compressed_attention {
    struct tensor q, k, v, start, o, log_sums, chosen;
    int32_t compress, stride, block, select, select_group;
    double scale;
};
/* dk, dv: written; dq: written, or += when accumulate_q; shapes and stride rules of q, k, v. No gradient flows through the choice. */
struct compressed_attention_backward {
    struct compressed_attention forward;
    struct tensor d_o, dq, dk, dv;
    bool accumulate_q;
};
/* The same of one query a sequence, against cached compressed blocks. q [B,H,D], o [B,H,D] or none (strided rows of heads
 * allowed); k, v [B,S,G,D]; places [B,3] I32: slot of the document's first block, how many are visible, the query's index in its
 * document; STATUS_SHAPE names those that are not in the cache or not visible (a GPU takes such blocks as absent). chosen [B,H/select_group,select] I32 or none. */
struct compressed_decode {
    struct tensor q, k, v, places, o, chosen;
    int32_t compress, stride, block, select, select_group;
    double scale;
};

/* o_i = softmax attention to the tokens <= i of i's chosen selection blocks and the last `window` tokens, each once.
 * q, o [B,T,H,D], k, v [B,T,G,D]: real, any strides with a dense last dimension. chosen [B,T,S,n] I32 or none (then window
 * >= 1): block numbers in the query's document that hold a token <= i, strictly ascending, then −1; S divides H, head h
 * reads list h/(H/S). window 0: chosen blocks alone. log_sums [B,H,T] f32 statistics; a query without a token: o = 0, −inf.
 * STATUS_SHAPE names a list that holds anything else; a GPU takes a number of no such block as absent. */
struct block_attention {
    struct tensor q, k, v, start, chosen, o, log_sums;
    int32_t block, window;
    double scale;
};
/* dq: written, or += when accumulate_q; dk, dv: written, or += when accumulate_kv; shapes and stride rules of q, k, v. */
struct block_attention_backward {
    struct block_attention forward;
    struct tensor d_o, dq, dk, dv;
    bool accumulate_q, accumulate_kv;
};

/* o = Σ_m σ(logits_m) ∘ branches_m, one gate a head; complement: o = (1 − σ(logits)) ∘ branches_0 + σ(logits) ∘ branches_1.
 * branches, o [B,T,H,D] real, any strides with a dense last dimension; a branch that is none adds nothing (complement: both
 * must be there). logits [B,T,H·columns] real, columns = count, or 1 with complement: those of a head lie together. */
enum { GATES_MAX = 3 };
struct gate_mix {
    struct tensor branches[GATES_MAX], logits, o;
    int count;
    bool complement;
};
/* d_branches: written where present; dlogits: written (0 of an absent branch). */
struct gate_mix_backward {
    struct gate_mix forward;
    struct tensor d_o, d_branches[GATES_MAX], dlogits;
};

/* Learning to choose: for every query and group of heads that select together
 *   losses = Σ_b m_b log(m_b / (n_b + 1e-9)) over the selection blocks that some visible compressed block overlaps,
 * m the exact causal softmax of scale·teacher_q·teacher_k summed over each such block and the heads, normalised over them; n the
 * importance as in compressed_attention (of own_q, compressed), normalised. 0 where no compressed block is visible.
 * teacher_q, own_q [B,T,H,D], teacher_k [B,T,G,D], compressed [B,Nb,G,D]: real, any strides with a dense last dimension.
 * log_sums [B,H,T]: of compressed_attention on own_q, compressed. losses [B,H/select_group,T] f32 statistics. loss [1] F64, when
 * present: += weight · Σ losses, in fixed order. d_own_q, d_compressed: += gradient_scale · the gradient of Σ losses, when present.
 * Scores of a few rows at a time. */
struct block_mass {
    struct tensor teacher_q, teacher_k, own_q, compressed, start, log_sums, losses, loss, d_own_q, d_compressed;
    int32_t compress, stride, block, select_group;
    double scale, weight, gradient_scale;
};

/* ---- tokens chosen one by one: kind indexer (docs/attention.md; after the lightning indexer of DeepSeek-V3.2, 2025) ----
 * Query heads that choose together share a list: S lists, S divides H, head h reads list h/(H/S). List s has J index heads,
 * s·J … s·J + J − 1, that score every earlier token j of the document for query i:
 *   I_ij = Σ_h a_ih · relu(r_ih·u_jh / √E)
 * A query always reads its window, the last `window` tokens with itself, and the sinks, the first `sinks` tokens of its document. Of
 * the tokens between them it reads those that are chosen. chosen [B,T,S,n] I32: indices in the sequence, ascending, then −1. */

/* r [B,T,S·J,E], u [B,T,S·K,E], K = 1 (a key for all index heads of a list) or J: real, any strides with a dense last dimension.
 * a [B,T,S·J]: real, any strides with a dense last dimension. */
struct index_scores {
    struct tensor r, u, a;
    int32_t lists; /* S */
};

/* pooled[:,n,h] = the mean, pooled[:,n,N+h] = the largest element, of key h over the n-th block of `block` tokens. Blocks are those of
 * block_compress with compress = stride = block: counted from each document's first token, whole ones only; places beyond the last hold 0.
 * u [B,T,N,E]: real, any strides with a dense last dimension. pooled [B,Nb,2N,E], Nb = compressed_bound(T, block, block). */
struct index_pool {
    struct tensor u, start, pooled;
    int32_t block;
};

/* chosen = the `n` tokens with the highest scores between sinks and window, ties to the lower index; all of them where there are fewer.
 * What is not a number counts as the lowest score. counts: host [S] or NULL: how many list s chooses, 0 … n, in place of n.
 * source: whose scores. LEARNED: I_ij. ATTENTION: the attention itself, Σ softmax_j(scale·q_i·k_j) over the list's heads, the softmax over all
 * j <= i of the document. RANDOM: a draw for each (seed, query, token, list). An audit's yardsticks are the last two.
 * pooled (of index_pool on u with block `coarse`), or none with coarse 0. With it, of LEARNED, tokens compete only in `coarse_blocks` blocks and
 * in the block that the window's first token cuts. Blocks compete that are whole and end before the window, with
 *   Σ_h a_ih · (relu(r_ih·mean_h / √E) + relu(r_ih·largest_h / √E)),  ties to the lower block.
 * start [B,T] I32; q [B,T,H,D], k [B,T,G,D] for ATTENTION, else none: real, any strides with a dense last dimension.
 * window: 1 or more. Scores of a few rows at a time: never T×T in memory. */
enum index_source { INDEX_LEARNED = 0, INDEX_ATTENTION, INDEX_RANDOM };
struct index_select {
    struct index_scores scores;
    struct tensor start, pooled, q, k, chosen;
    const int32_t *counts;
    enum index_source source;
    int32_t window, sinks, coarse, coarse_blocks;
    double scale;
    uint64_t seed;
};
/* The same of one query a sequence against cached index keys, LEARNED. r [B,S·J,E], a [B,S·J]: strided rows of heads allowed;
 * u [B,Z,S·K,E] of Z slots, pooled [B,Zb,2·S·K,E] or none. places [B,3] I32: slot of the document's first token, slot of its first pooled block,
 * the query's index in its document; blocks that are whole are in the cache. chosen [B,S,n] I32: slots, ascending, then −1.
 * STATUS_SHAPE where places lie outside of the caches; a GPU chooses no token there. */
struct index_decode {
    struct tensor r, u, a, pooled, places, chosen;
    const int32_t *counts;
    int32_t lists, window, sinks, coarse, coarse_blocks;
};

/* o_i = softmax attention of i to its window, its sinks and its chosen tokens, each once.
 * q, o [B,T,H,D], k, v [B,T,G,D]: real, any strides with a dense last dimension. chosen [B,T,S,n] as above, or none.
 * log_sums [B,H,T] f32 statistics: log Σ_j e^{scale·q_i·k_j}. window: 1 or more. STATUS_SHAPE names a list that holds anything else than
 * ascending tokens between sinks and window, then −1. A GPU does not look: it takes what is no token up to i of the document
 * as absent, and of a list out of order it may miss some. */
struct token_attention {
    struct tensor q, k, v, start, chosen, o, log_sums;
    int32_t window, sinks;
    double scale;
};
/* dq, dk, dv: written; shapes and stride rules of q, k, v. o, log_sums: the forward pass's. */
struct token_attention_backward {
    struct token_attention forward;
    struct tensor d_o, dq, dk, dv;
};

/* Learning where to look: for every query and list
 *   losses = Σ_j m_ij log(m_ij / softmax_j(I_ij)),  m = Σ softmax_j(scale·q_i·k_j) over the list's heads, divided by their number
 * j over all tokens <= i of the document; attended: over those that i reads (window, sinks, chosen), both softmaxes too. 0 log 0 = 0.
 * No gradient reaches q and k. q [B,T,H,D], k [B,T,G,D]: real, any strides with a dense last dimension.
 * chosen [B,T,S,n] or none, window, sinks: as for token_attention; looked at when `attended`, and for hits.
 * losses [B,S,T] f32 statistics. loss [1] F64, when present: += weight · Σ losses, in fixed order. hits [1] F64, when present and not `attended`:
 * += Σ over rows and lists of the m_ij that fall on tokens that i reads.
 * d_r, d_u, d_a: written, gradient_scale · the gradient of Σ losses; shapes and stride rules of r, u, a; all three or none. */
struct index_learn {
    struct index_scores scores;
    struct tensor q, k, start, chosen, losses, loss, hits, d_r, d_u, d_a;
    bool attended;
    int32_t window, sinks;
    double scale, weight, gradient_scale;
};

/* Rows of the head: divergence and cross-entropy from log-softmax in f32 statistics (never log of a softmax).
 * student [N,V] logits; teacher [N,V] logits or none; both real or both statistics, strided rows allowed; targets [N] I32 or none, negative: the row counts in nothing (all its
 * outputs are 0) — with a teacher and targets absent every row counts.
 *   kl_n = Σ_v p log(p/q), p = softmax(teacher/temperature), q = softmax(student/temperature), times temperature²
 *   ce_n = −log softmax(student)[target]
 *   gradient [N,V], as student, = scale · (kl_weight · ∂kl/∂student + ce_weight · ∂ce/∂student); may be `student` itself (in place).
 * Every other output is optional, [N] f32 statistics: kl; reverse_kl (q log q/p, temperature 1); ce; teacher_ce; agree (1 where both argmax
 * are equal, lowest index on ties); entropy (of softmax(student)). */
struct loss_rows {
    struct tensor student, teacher, targets, gradient;
    struct tensor kl, reverse_kl, ce, teacher_ce, agree, entropy;
    double temperature, kl_weight, ce_weight, scale;
};

/* Elements first … first+count−1 of a block of parameters, such as one row of the tensor table. Lists of parts are host memory, ascending,
 * without overlap. decay, l1: what adamw does to them. */
struct param_part {
    int64_t first, count;
    double decay, l1;
};

/* One AdamW step (Loshchilov and Hutter 2017, decoupled decay) on the elements of all parts, then the proximal step of λ|x|:
 *   g = grad_scale·grad; m = β1 m + (1−β1) g; v = β2 v + (1−β2) g²; m̂ = m/(1−β1^step); v̂ = v/(1−β2^step)
 *   u = m̂/(√v̂+ε);  x = x − lr·(u + decay·x);  x = sign(x)·max(|x| − lr·min(l1/(√v̂+ε), |u|+1), 0)
 * The proximal step is taken in AdamW's own metric: x rests at 0 while |m̂| ≤ l1, as for plain gradient descent on the sum of
 * loss and λ|x|, whatever the gradient's size. The bound: where the loss is flat √v̂ is next to nothing, and x then nears 0 by lr a step.
 * value, grad, m, v: parameter dtype; working: real, or none: receives x. All [n]; what is in no part stays. step counts from 1. */
struct adamw {
    struct tensor value, grad, m, v, working;
    const struct param_part *parts;
    int64_t part_count;
    double lr, beta1, beta2, epsilon, grad_scale;
    int64_t step;
};

struct device_memory { /* bytes; 0: unknown */
    double available; /* can still be had: by this process, or by all that share the device */
    double used, peak; /* by this process, now and at most: of host memory its resident set, of a GPU what it allocated */
};

/* A kernel that comes in several forms (sizes of its tiles), which differ in time, and in results by rounding. */
struct tunable {
    const char *name;
    int forms;     /* 0 … forms−1; 0 is what is used until another is set */
    bool backward; /* its time is part of attention's backward pass, else of the forward pass */
};

struct ops {
    const char *name;   /* "cpu", "cpu-f64", "guard(cpu)", "cuda" */
    enum dtype real;      /* dtype of activations */
    enum dtype parameter; /* dtype of parameters, gradients and moments: F32, F64 in the oracle table */
    enum dtype statistic; /* dtype of normaliser statistics and losses */
    bool host_memory;     /* device memory can be read by the host as it is */
    struct device *device;

    /* ---- the device -------------------------------------------------------------------------------------------- */
    void (*close)(const struct ops *ops);
    const char *(*describe)(const struct ops *ops); /* e.g. "cpu: AVX-512, 2 threads, OpenBLAS 0.3.21" */
    /* *block: `bytes` of device memory, aligned to 256 (contents undefined). */
    enum status (*allocate)(const struct ops *ops, size_t bytes, void **block);
    void (*release)(const struct ops *ops, void *block); /* NULL-safe */
    enum status (*synchronise)(const struct ops *ops);
    /* Host <-> device, contiguous, same dtype and count. The host's memory is the caller's again on return. */
    enum status (*upload)(const struct ops *ops, struct tensor device, const void *host);
    enum status (*download)(const struct ops *ops, struct tensor device, void *host);
    /* Runs work(user), which starts operations of this table and waits for none of them (no upload, no download, no synchronise), and
     * which at every call starts the same ones on the same tensors with the same numbers. A GPU records them at the second call and from
     * then on starts the record as one. *recording: NULL at first, of this work alone, given back by `forget`, which also comes first
     * when a tensor or a number has changed. */
    enum status (*repeat)(const struct ops *ops, struct recording **recording, enum status (*work)(void *user), void *user);
    void (*forget)(const struct ops *ops, struct recording **recording); /* NULL-safe; *recording becomes NULL */
    /* Bytes of scratch memory that the device keeps of its own (packed weights, workspaces). */
    size_t (*scratch_bytes)(const struct ops *ops);
    /* The stream that operations run on (cudaStream_t), for a library that works beside them. NULL: the table has none. */
    void *(*stream)(const struct ops *ops);
    /* What memory there is where `allocate` takes it. */
    void (*memory)(const struct ops *ops, struct device_memory *memory);
    /* Tables without such kernels have NULL for both. *tunable: kernel `number`, from 0; false past the last. set_form: the form
     * that it takes from now on for heads of `width` and sequences of `length` tokens, and for what the table counts as alike.
     * STATUS_USAGE: there is no such form. Work that was recorded before keeps its own. */
    bool (*tunable)(const struct ops *ops, int number, struct tunable *tunable);
    enum status (*set_form)(const struct ops *ops, int number, int64_t width, int64_t length, int form);

    /* ---- data movement and pointwise ---------------------------------------------------------------------------- */
    /* to = from, element by element, converting between F32, F64, BF16; strided rows allowed; shapes equal. */
    enum status (*copy)(const struct ops *ops, struct tensor from, struct tensor to);
    enum status (*fill)(const struct ops *ops, struct tensor x, double value);
    /* y += alpha·x; strided rows allowed; shapes equal. */
    enum status (*add_scaled)(const struct ops *ops, double alpha, struct tensor x, struct tensor y);
    enum status (*scale)(const struct ops *ops, double alpha, struct tensor x);
    /* x ~ N(0, std²), element i a function of (seed, stream, i): base/rng.h's rng_normal. */
    enum status (*fill_normal)(const struct ops *ops, struct tensor x, double std, uint64_t seed, uint64_t stream);

    /* ---- layers ------------------------------------------------------------------------------------------------- */
    enum status (*gemm)(const struct ops *ops, const struct gemm *arguments);
    /* dbias [N] += column sums of dy [M,N]; strided rows allowed. */
    enum status (*bias_backward)(const struct ops *ops, struct tensor dy, struct tensor dbias);
    enum status (*embedding)(const struct ops *ops, const struct embedding *arguments);
    enum status (*embedding_backward)(const struct ops *ops, const struct embedding_backward *arguments);
    enum status (*norm)(const struct ops *ops, const struct norm *arguments);
    enum status (*norm_backward)(const struct ops *ops, const struct norm_backward *arguments);
    /* dx [N,F] = dy · gelu'(pre); dx may be dy. */
    enum status (*gelu_backward)(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx);
    /* y [N,F] = silu(x[:, :F]) · x[:, F:]; x [N,2F]: gate beside up (Shazeer 2020). */
    enum status (*swiglu)(const struct ops *ops, struct tensor x, struct tensor y);
    /* dx [N,2F] from dy [N,F] and x; dx may be x. */
    enum status (*swiglu_backward)(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx);
    enum status (*rope)(const struct ops *ops, const struct rope *arguments);
    enum status (*attention)(const struct ops *ops, const struct attention *arguments);
    enum status (*attention_backward)(const struct ops *ops, const struct attention_backward *arguments);
    enum status (*attention_decode)(const struct ops *ops, const struct attention_decode *arguments);
    enum status (*slot_lists)(const struct ops *ops, const struct slot_lists *arguments);
    enum status (*linear_attention)(const struct ops *ops, const struct linear_attention *arguments);
    enum status (*linear_attention_backward)(const struct ops *ops, const struct linear_attention_backward *arguments);
    enum status (*linear_attention_weights)(const struct ops *ops, const struct linear_attention_weights *arguments);
    enum status (*linear_attention_decode)(const struct ops *ops, const struct linear_attention_decode *arguments);

    /* ---- blocks of keys ------------------------------------------------------------------------------------------- */
    enum status (*block_compress)(const struct ops *ops, const struct block_compress *arguments);
    enum status (*block_compress_backward)(const struct ops *ops, const struct block_compress_backward *arguments);
    enum status (*compressed_attention)(const struct ops *ops, const struct compressed_attention *arguments);
    enum status (*compressed_attention_backward)(const struct ops *ops,
                                                 const struct compressed_attention_backward *arguments);
    enum status (*compressed_decode)(const struct ops *ops, const struct compressed_decode *arguments);
    enum status (*block_attention)(const struct ops *ops, const struct block_attention *arguments);
    enum status (*block_attention_backward)(const struct ops *ops, const struct block_attention_backward *arguments);
    enum status (*gate_mix)(const struct ops *ops, const struct gate_mix *arguments);
    enum status (*gate_mix_backward)(const struct ops *ops, const struct gate_mix_backward *arguments);
    enum status (*block_mass)(const struct ops *ops, const struct block_mass *arguments);

    /* ---- tokens chosen one by one ----------------------------------------------------------------------------------- */
    enum status (*index_pool)(const struct ops *ops, const struct index_pool *arguments);
    enum status (*index_select)(const struct ops *ops, const struct index_select *arguments);
    enum status (*index_decode)(const struct ops *ops, const struct index_decode *arguments);
    enum status (*token_attention)(const struct ops *ops, const struct token_attention *arguments);
    enum status (*token_attention_backward)(const struct ops *ops, const struct token_attention_backward *arguments);
    enum status (*index_learn)(const struct ops *ops, const struct index_learn *arguments);

    /* ---- losses, reductions, optimizer ---------------------------------------------------------------------------- */
    enum status (*loss_rows)(const struct ops *ops, const struct loss_rows *arguments);
    /* y [N,V] = log softmax(x) row by row; y may be x; real or statistics, strided rows allowed. */
    enum status (*log_softmax)(const struct ops *ops, struct tensor x, struct tensor y);
    /* out [1] F64 = Σ x, Σ x², Σ (x−y)²: fixed order, double accumulation. Non-finite inputs give a non-finite result.
     * out lies in device memory; strided rows allowed. */
    enum status (*sum)(const struct ops *ops, struct tensor x, struct tensor out);
    enum status (*sum_squares)(const struct ops *ops, struct tensor x, struct tensor out);
    enum status (*sum_squared_difference)(const struct ops *ops, struct tensor x, struct tensor y, struct tensor out);
    /* out [count] F64 = Σ x² over each of `count` parts of x [n] (their decay and l1 are not looked at); as sum_squares. */
    enum status (*sum_squares_parts)(const struct ops *ops, struct tensor x, const struct param_part *parts, int64_t count,
                                     struct tensor out);
    enum status (*adamw)(const struct ops *ops, const struct adamw *arguments);
};

struct ops_options {
    int threads;        /* CPU threads; 0: all that this process may use */
    bool deterministic; /* the same bits whatever the number of threads, in every operation */
    const char *isa;    /* "avx512", "avx2", "base": at most this; NULL: the best that the CPU has */
    int node_rank;      /* of this rank among those of its machine: GPUs are given out in turn */
};

/* Opens a table by name: "cpu", "cpu-f64" (the oracle of tests), "cuda" (bf16), "cuda-f32", and "guard:" before any of them.
 * STATUS_NOT_FOUND: no GPU that serves in this machine. STATUS_USAGE: no CUDA in this build.
 * A guard poisons every output before the call, plants canaries around every allocation and checks them after every call,
 * checks overlaps and, after the call, that nothing else was written and no output still holds the poison's NaN.
 * STATUS_USAGE names an unknown one. Close with ops->close. */
enum status ops_open(const char *name, const struct ops_options *options, const struct ops **ops);

#endif
