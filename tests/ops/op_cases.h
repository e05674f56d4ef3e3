/* Operations at awkward shapes, as a table: what tests run on one table of operations and compare with another's. */
#ifndef SQUINT_TESTS_OPS_OP_CASES_H
#define SQUINT_TESTS_OPS_OP_CASES_H

#include "tests/ops/harness.h"

struct op_case {
    const char *name; /* the operation's first word, then the shape and what is particular */
    void (*run)(struct bench *b, const int64_t *n);
    int64_t n[6]; /* meaning as in the function's comment */
    double bound; /* largest |fp32 − fp64| / (1 + |fp64|) */
};
extern const struct op_case op_cases[];
extern const int op_case_count;

/* Each makes its tensors, runs its operations and names its outputs; n: see there. */
void op_run_gemm(struct bench *b, const int64_t *n);
void op_run_norm(struct bench *b, const int64_t *n);
void op_run_norm_backward(struct bench *b, const int64_t *n);
void op_run_bias_backward(struct bench *b, const int64_t *n);
void op_run_embedding(struct bench *b, const int64_t *n);
void op_run_gelu_backward(struct bench *b, const int64_t *n);
void op_run_swiglu(struct bench *b, const int64_t *n);
void op_run_rope(struct bench *b, const int64_t *n);
void op_run_loss_rows(struct bench *b, const int64_t *n);
void op_run_log_softmax(struct bench *b, const int64_t *n);
void op_run_reductions(struct bench *b, const int64_t *n);
void op_run_pointwise(struct bench *b, const int64_t *n);
void op_run_adamw(struct bench *b, const int64_t *n);

struct op_bounds {
    double relative, absolute;
};
/* Fails the test, and says which case, where and which element, unless |got − oracle| <= absolute + relative·|oracle|.
 * real: for outputs of the real dtype of `got`; other: for the others. */
void op_compare(const struct op_case *row, const char *where, struct bench *oracle, struct bench *got,
                struct op_bounds real, struct op_bounds other);
/* The same unless all outputs have the same bits. */
void op_compare_bits(const struct op_case *row, const char *where, struct bench *one, struct bench *other);

#endif
