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

/* Memory of one call, measured with `memory` NULL, then placed. */
struct linear_cutter {
    char *memory;
    size_t used;
    char *take(size_t bytes) {
        char *piece = memory ? memory + used : nullptr;
        used += (bytes + 255) / 256 * 256;
        return piece;
    }
    template <class T> T *take_array(int64_t count) {
        return reinterpret_cast<T *>(take(static_cast<size_t>(count) * sizeof(T)));
    }
};

/* linear_parameters.cu. Sums over rows of a [rows][columns] (of the slab) times b, for every head; in parts that shapes
 * decide, kept over the slabs. */
struct parameter_sums {
    const float *a; /* [B·heads][slab][a_step] */
    const void *b;  /* elements, real or float: place of row t of head h of sequence b by the strides */
    int64_t b_batch, b_token, b_head;
    float *sums, *bias;        /* [parts][heads][rows][columns], [parts][heads][rows]; NULL: not wanted */
    int a_step, rows, columns; /* of the sums: elements of a, elements of b */
    int heads, share /* heads of a that read one of b's */, parts;
    bool b_real;
};
/* Of all parameters of a call but beta, whose gradient is made of beta_rows. */
struct linear_parameters {
    parameter_sums q_map, k_map, excite, squeeze;
    char *memory;
    size_t size;
};
/* d: which gradients are wanted. rows: of a slab, of all sequences. */
void linear_parameters_place(const struct ops *ops, const linear_problem &p, int64_t rows, const struct features *d,
                             linear_cutter &cutter, linear_parameters *all);
/* Clears the sums. */
enum status linear_parameters_open(const struct ops *ops, const linear_parameters &all);
/* Adds the slab's queries or keys, after linear_rows. */
enum status linear_parameters_add(const struct ops *ops, const char *operation, const linear_gradient &g,
                                  const linear_parameters &all, bool of_keys);
/* The gradients += the sums. */
enum status linear_parameters_finish(const struct ops *ops, const char *operation, const linear_gradient &g,
                                     const linear_parameters &all, const struct features *d);

#endif
