/* One problem of the indexer's operations as their tests see it: inputs in double, and a runner that strings the
 * operations together on any table, forward and backward, as the kind does. */
#ifndef SQUINT_TESTS_OPS_INDEX_CASE_H
#define SQUINT_TESTS_OPS_INDEX_CASE_H

#include "kernels/ops.h"

/* A row of a test table. Documents: case_new_start, by `cuts`. coarse 0: the choice has one level (pooling is then tried with blocks of 3). */
struct index_case {
    const char *name;
    int64_t batch, length, heads, groups, width;
    int64_t lists, index_heads, index_keys, index_width; /* S, J, K, E */
    int32_t choose, window, sinks, coarse, coarse_blocks;
    int32_t fewer; /* list s chooses choose − fewer·s; 0: no counts */
    int64_t cuts[6];
    bool repeated;    /* every token has the same q, k, v, r, u, a */
    double magnitude; /* of q and r */
};

/* Inputs, dense, in double. q, teacher's q [B,T,H,D]; k, v, teacher's k [B,T,G,D]; r [B,T,S·J,E]; u [B,T,S·K,E]; a
 * [B,T,S·J]. */
enum input {
    INPUT_Q = 0,
    INPUT_K,
    INPUT_V,
    INPUT_R,
    INPUT_U,
    INPUT_A,
    INPUT_LEARNING,
    INPUT_TEACHER_Q = INPUT_LEARNING,
    INPUT_TEACHER_K,
    INPUTS
};
/* o and log_sums of token_attention; losses of index_learn over all pairs and over those attended, hits; pooled keys.
 */
enum output { OUTPUT_O = 0, OUTPUT_LOG_SUMS, OUTPUT_ALL, OUTPUT_ATTENDED, OUTPUT_HITS, OUTPUT_POOLED, OUTPUTS };
/* Of q, k, v, then of r, u, a by the loss over all pairs, then of r, u, a by that over the attended ones. */
enum { GRADIENTS = INPUT_LEARNING + 3 };
extern const char *const index_input_names[INPUTS], *const index_output_names[OUTPUTS],
                                                        *const index_gradient_names[GRADIENTS];

#define INDEX_GRADIENT_SCALE 0.7 /* of r's, u's and a's gradients */

struct index_arrays {
    double *inputs[INPUTS], *gradients[GRADIENTS], *outputs[OUTPUTS], *d_o;
    int32_t *start;                 /* [B,T] */
    int32_t *chosen, *by_attention; /* [B,T,S,choose], by what is learned and by the attention of q and k */
    int32_t counts[8];              /* by list */
    bool dense;                     /* q, k, v and r, u, a are tensors of their own, not columns of one matrix */
};

/* What a run does; without RUN_CHOOSE it reads `chosen`. RUN_BACKWARD adds the gradients of the parts that run. */
enum { RUN_CHOOSE = 1, RUN_ATTEND = 2, RUN_LEARN = 4, RUN_BACKWARD = 8, RUN_FORWARD = 7, RUN_FED = 14, RUN_ALL = 15 };

extern const struct index_case index_cases[];
extern const int index_case_count;

int64_t index_count(const struct index_case *row, enum input input);
int64_t index_output_count(const struct index_case *row, enum output output);
int64_t index_gradient_count(const struct index_case *row, int gradient);
int64_t index_chosen_count(const struct index_case *row);
int32_t index_pool_block(const struct index_case *row);
/* Inputs by index_draw, as the oracle script has them; outputs cleared. Released with index_free. */
void index_fill(const struct index_case *row, struct index_arrays *x);
void index_free(struct index_arrays *x);
/* A table, or the test fails. */
const struct ops *index_open(const char *table, int threads, const char *isa);
/* Outputs (and gradients) from inputs by a table's operations; `parts` of RUN_…. */
void index_run(const struct ops *ops, const struct index_case *row, struct index_arrays *x, int parts);
/* The choice, inputs as they are: the same as index_run with RUN_CHOOSE, from another source and with another seed. */
void index_choose(const struct ops *ops, const struct index_case *row, struct index_arrays *x, enum index_source source,
                  uint64_t seed);
/* Fails when outputs or gradients differ by more than tolerance × the largest expected element (at least 0.1). */
void index_compare(const struct index_case *row, const char *what, const struct index_arrays *expected,
                   const struct index_arrays *found, double tolerance);
/* Fails at the first bit that differs. */
void index_expect_bits(const struct index_case *row, const char *what, const char *name, const double *expected,
                       const double *found, int64_t count);
/* Fails at the first list that differs, of `count` numbers. */
void index_expect_choice(const struct index_case *row, const char *what, const int32_t *expected, const int32_t *found,
                         int64_t count);

#endif
