/* What the files of linear attention's gradients share. The host goes through a sequence slab by slab: gradients by
 * features of a slab's rows exist at once, [B·heads][slab][features] in fp32, at most O(T · D) or what fills the
 * device.
 */
#ifndef SQUINT_KERNELS_CUDA_LINEAR_GRADIENTS_CUH
#define SQUINT_KERNELS_CUDA_LINEAR_GRADIENTS_CUH

#include "kernels/cuda/linear_far.cuh"

/* linear_pairs.cu: d_features of the slab's queries or keys. */
enum status linear_pairs(const struct ops *ops, const char *operation, const linear_gradient &g, bool of_keys);
/* linear_rows.cu: dq, or dk and dv, of the slab's rows from d_features, which becomes the gradient by W x; beta_rows,
 * d_gates, d_hidden where they are. */
enum status linear_rows(const struct ops *ops, const char *operation, const linear_gradient &g, bool of_keys);

/* linear_parameters.cu. Sums over rows of a [rows][columns] (of the slab) times b, for every head; in parts that shapes
 * decide, kept over the slabs. */
struct parameter_sums {
    const float *a; /* [B·heads][slab][a_step] */
    const void *b;  /* elements, real or float: place of row t of head h of sequence b by the strides */
    int64_t b_batch, b_token, b_head;
    float *sums, *bias;        /* [parts][heads][rows][columns], [parts][heads][rows]; bias NULL: not wanted */
    int a_step, rows, columns; /* of the sums: elements of a, elements of b */
    int heads, share /* heads of a that read one of b's */, parts;
    bool b_real;
};
/* sums, bias: to be 0 before the first slab. */
enum status parameters_add(const struct ops *ops, const char *operation, const linear_gradient &g,
                           const parameter_sums &s);
/* to += the parts' sums, heads that share one of its rows together. Row r of the sums is row r of `to`, but with
 * `features` feature r of the tiles; transposed: column r. */
enum status parameters_finish(const struct ops *ops, const char *operation, const linear_problem &p,
                              const parameter_sums &s, struct tensor to, bool features, bool transposed);
/* to [heads,N] += the parts' bias. */
enum status parameters_finish_bias(const struct ops *ops, const char *operation, const parameter_sums &s,
                                   struct tensor to);
/* to [H] += Σ over sequences and tokens of rows [B,H,T]. */
enum status parameters_beta(const struct ops *ops, const char *operation, const linear_problem &p, const float *rows,
                            struct tensor to);

#endif
