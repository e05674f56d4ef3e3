/* One problem of linear attention as its tests see it: inputs in double by an exact formula of their index, and a
 * runner of any table. */
#ifndef SQUINT_TESTS_OPS_LINEAR_CASE_H
#define SQUINT_TESTS_OPS_LINEAR_CASE_H

#include "kernels/ops.h"

/* A row of a test table. Documents: case_new_start, by `cuts`. */
struct linear_case {
    const char *name;
    int64_t batch, length, heads, groups, width;
    enum feature_kind kind;
    int64_t columns, hidden, window; /* N; R, 0: no squeeze */
    int64_t cuts[8];
    bool bidirectional, bias, beta;
    bool shared;      /* one map for all heads: stride 0 */
    bool no_window;   /* the second sequence runs without */
    bool repeated;    /* all tokens are the first */
    bool near_only;   /* the window alone */
    double magnitude; /* of q and k; 0: 1 */
    int64_t chunk;
};

enum {
    LINEAR_Q,
    LINEAR_K,
    LINEAR_V,
    LINEAR_D_O,
    LINEAR_Q_MAP,
    LINEAR_K_MAP,
    LINEAR_Q_BIAS,
    LINEAR_K_BIAS,
    LINEAR_SQUEEZE,
    LINEAR_EXCITE,
    LINEAR_BETA,
    LINEAR_INPUTS
};
extern const char *const linear_names[LINEAR_INPUTS];

/* in[n]: the inputs; gradient[n]: of input n (LINEAR_D_O: o in its place). Dense, in double; counts 0 where a case has
 * no such input. log_sums [B,H,T]. */
struct linear_arrays {
    double *in[LINEAR_INPUTS], *gradient[LINEAR_INPUTS], *log_sums;
    int64_t counts[LINEAR_INPUTS];
    int32_t *start, *no_window;
};

/* A number in [-1, 1), a multiple of 1/1024. */
double linear_draw(int64_t n, int64_t part);
void linear_fill(const struct linear_case *row, struct linear_arrays *x);
void linear_free(struct linear_arrays *x);
/* o and log_sums, and with `backward` the gradients, by a table's operations. */
void linear_run(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x, bool backward);
/* One run of linear_attention_weights. The teacher's q and k lie in the places of d_o and v, which have their shapes.
 */
struct linear_weights_run {
    double weight, gradient_scale;
    bool own;        /* the teacher's q and k are the student's */
    bool gradients;  /* wanted: all that a case has are added to linear_arrays.gradient */
    bool parameters; /* of them only the parameters' */
    double loss;     /* added to */
};
void linear_run_weights(const struct ops *ops, const struct linear_case *row, struct linear_arrays *x,
                        struct linear_weights_run *run);
/* Of input n on a table, or of its gradient. */
enum dtype linear_dtype(const struct ops *ops, int n, bool gradient);
/* The parameters' views of flat copies p[LINEAR_Q_MAP …]. */
struct features linear_features(const struct linear_case *row, const struct tensor *p);
/* Prints and fails when an output differs by more than tolerance × the array's largest. backward false: only o. */
void linear_compare(const struct linear_case *row, const char *what, const struct linear_arrays *expected,
                    const struct linear_arrays *found, bool backward, double tolerance);

/* Prints and fails when a number differs in a bit. */
void linear_expect_bits(const struct linear_case *row, const char *what, const char *name, const double *expected,
                        const double *found, int64_t count);
/* No output before token t, and none of another document, knows that token t was changed, by `factor`; its own does.
 * before: after linear_run of linear_fill's inputs, forwards. */
void linear_check_no_leak(const struct ops *ops, const struct linear_case *row, const struct linear_arrays *before,
                          int64_t t, double factor);

#endif
