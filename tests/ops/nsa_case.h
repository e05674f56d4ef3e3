/* One problem of kind nsa's operations as their tests see it: inputs in double, and a runner that strings the
 * operations together on any table, forward and backward, as the kind does. */
#ifndef SQUINT_TESTS_OPS_NSA_CASE_H
#define SQUINT_TESTS_OPS_NSA_CASE_H

#include "kernels/ops.h"

/* A row of a test table. Documents: case_new_start, by `cuts`. */
struct nsa_case {
    const char *name;
    int64_t batch, length, heads, groups, width;
    int32_t compress, stride, block, select, window, select_group;
    bool apart; /* selected and window each under its own softmax, three gates */
    int64_t cuts[6];
    bool repeated; /* every token has the same q, k, v */
};

/* Inputs, dense, in double. q, teacher's q [B,T,H,D]; k, v, teacher's k [B,T,G,D]; logits [B,T,H·gates]; of k's and v's
 * compressor: w1 [2D,l·D], b1 [2D], w2 [D,2D], places [l,D]. */
enum nsa_input {
    NSA_Q = 0,
    NSA_K,
    NSA_V,
    NSA_LOGITS,
    NSA_W1_K,
    NSA_B1_K,
    NSA_W2_K,
    NSA_PLACES_K,
    NSA_W1_V,
    NSA_B1_V,
    NSA_W2_V,
    NSA_PLACES_V,
    NSA_LEARNING,
    NSA_TEACHER_Q = NSA_LEARNING,
    NSA_TEACHER_K,
    NSA_INPUTS
};
/* o, the compressed branch's alone, losses [B,lists,T] of learning to choose. */
enum nsa_output { NSA_O = 0, NSA_COMPRESSED, NSA_LOSSES, NSA_OUTPUTS };
extern const char *const nsa_input_names[NSA_INPUTS], *const nsa_output_names[NSA_OUTPUTS];

/* What one operation makes and others read: of k and v the compressed blocks [B,Nb,G,D] and their gradients, the
 * compressed branch's log_sums [B,H,T], and the three branches [B,T,H,D] (compressed, selected, window). A run writes
 * those that its parts make and reads the others. */
enum nsa_between {
    NSA_COMPRESSED_K = 0,
    NSA_COMPRESSED_V,
    NSA_D_COMPRESSED_K,
    NSA_D_COMPRESSED_V,
    NSA_LOG_SUMS,
    NSA_BRANCH,
    NSA_BETWEENS = NSA_BRANCH + 3
};
extern const char *const nsa_between_names[NSA_BETWEENS];

/* The operations that a run does; NSA_BACKWARD adds their backward ones. Gradients of what did not run before an
 * operation that accumulates are numbers of the case's own, so that what is accumulated to is tested. */
enum {
    NSA_COMPRESS = 1, /* block_compress */
    NSA_COARSE = 2,   /* compressed_attention, with the choice unless `feed` */
    NSA_FINE = 4,     /* block_attention */
    NSA_GATES = 8,    /* gate_mix */
    NSA_MASS = 16,    /* block_mass */
    NSA_BACKWARD = 32,
    NSA_FORWARD = 31,
    NSA_ALL = 63
};

#define NSA_LOSS_SCALE 0.7 /* of losses beside Σ o·d_o */

struct nsa_arrays {
    double *inputs[NSA_INPUTS], *gradients[NSA_LEARNING], *outputs[NSA_OUTPUTS], *between[NSA_BETWEENS], *d_o;
    int32_t *start;  /* [B,T] */
    int32_t *chosen; /* [B,T,H/select_group,select]: written by a run, or read by it when `feed` */
    bool feed;
};

extern const struct nsa_case nsa_cases[];
extern const int nsa_case_count;

int64_t nsa_count(const struct nsa_case *row, enum nsa_input input);
int64_t nsa_output_count(const struct nsa_case *row, enum nsa_output output);
int64_t nsa_between_count(const struct nsa_case *row, enum nsa_between between);
int64_t nsa_chosen_count(const struct nsa_case *row);
/* Inputs by nsa_draw, as the oracle script has them; outputs cleared. Released with nsa_free. */
void nsa_fill(const struct nsa_case *row, struct nsa_arrays *x);
void nsa_free(struct nsa_arrays *x);
/* Outputs (and gradients) from inputs by a table's operations; `parts`: NSA_…. */
void nsa_run(const struct ops *ops, const struct nsa_case *row, struct nsa_arrays *x, int parts);
/* What other parts read, the outputs, and the choice, which is then fed. */
void nsa_give(const struct nsa_case *row, const struct nsa_arrays *from, struct nsa_arrays *to);
/* The choice of one head of width 1 whose scores are its keys, against a plain sort; query by query. levels: keys are
 * that many whole numbers, so that equal ones tie exactly; 0: anything. */
void nsa_check_choice(const struct ops *ops, int64_t length, int32_t compress, int32_t stride, int32_t block,
                      int32_t select, int levels);
/* Fails when outputs, gradients or what lies between differ by more than tolerance × the array's largest expected
 * element (at least 1). */
void nsa_compare(const struct nsa_case *row, const char *what, const struct nsa_arrays *expected,
                 const struct nsa_arrays *found, double tolerance);

#endif
