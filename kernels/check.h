/* Checks of shapes and dtypes shared by every table: a fault is STATUS_SHAPE with operation, argument, expected, found.
 */
#ifndef SQUINT_KERNELS_CHECK_H
#define SQUINT_KERNELS_CHECK_H

#include "kernels/ops.h"

enum { ANY = -1 }; /* an extent that is not checked */

/* `t` is present and has this dtype and shape (ANY: whatever), its last dimension dense. */
enum status check_tensor(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                         const int64_t *shape);
/* The same, and contiguous. */
enum status check_dense(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                        const int64_t *shape);
/* The same as check_tensor, check_dense, but absent is fine too. */
enum status check_optional(const char *operation, const char *argument, struct tensor t, enum dtype dtype, int rank,
                           const int64_t *shape);

#define SHAPE(...)                                                                                                     \
    (const int64_t[]) {                                                                                                \
        __VA_ARGS__                                                                                                    \
    }

/* Whole operations. Each checks all shapes, dtypes and the contiguity that ops.h asks for. */
enum status check_copy(struct tensor from, struct tensor to);
enum status check_float(const struct ops *ops, const char *operation, const char *argument, struct tensor x);
enum status check_same(const char *operation, struct tensor x, struct tensor y);
enum status check_gemm(const struct ops *ops, const struct gemm *a);
enum status check_bias_backward(const struct ops *ops, struct tensor dy, struct tensor dbias);
enum status check_embedding(const struct ops *ops, const struct embedding *a);
enum status check_embedding_backward(const struct ops *ops, const struct embedding_backward *a);
enum status check_norm(const struct ops *ops, const struct norm *a);
enum status check_norm_backward(const struct ops *ops, const struct norm_backward *a);
enum status check_gelu_backward(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx);
enum status check_swiglu(const struct ops *ops, struct tensor x, struct tensor y);
enum status check_swiglu_backward(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx);
enum status check_rope(const struct ops *ops, const struct rope *a);
enum status check_attention(const struct ops *ops, const struct attention *a);
enum status check_attention_backward(const struct ops *ops, const struct attention_backward *a);
enum status check_attention_decode(const struct ops *ops, const struct attention_decode *a);
enum status check_slot_lists(const struct slot_lists *a);
enum status check_linear_attention(const struct ops *ops, const struct linear_attention *a);
enum status check_linear_attention_backward(const struct ops *ops, const struct linear_attention_backward *a);
enum status check_linear_attention_weights(const struct ops *ops, const struct linear_attention_weights *a);
enum status check_linear_attention_decode(const struct ops *ops, const struct linear_attention_decode *a);
enum status check_block_compress(const struct ops *ops, const struct block_compress *a);
enum status check_block_compress_backward(const struct ops *ops, const struct block_compress_backward *a);
enum status check_compressed_attention(const struct ops *ops, const struct compressed_attention *a);
enum status check_compressed_attention_backward(const struct ops *ops, const struct compressed_attention_backward *a);
enum status check_compressed_decode(const struct ops *ops, const struct compressed_decode *a);
enum status check_block_attention(const struct ops *ops, const struct block_attention *a);
enum status check_block_attention_backward(const struct ops *ops, const struct block_attention_backward *a);
enum status check_gate_mix(const struct ops *ops, const struct gate_mix *a);
enum status check_gate_mix_backward(const struct ops *ops, const struct gate_mix_backward *a);
enum status check_block_mass(const struct ops *ops, const struct block_mass *a);
enum status check_index_pool(const struct ops *ops, const struct index_pool *a);
enum status check_index_select(const struct ops *ops, const struct index_select *a);
enum status check_index_decode(const struct ops *ops, const struct index_decode *a);
enum status check_token_attention(const struct ops *ops, const struct token_attention *a);
enum status check_token_attention_backward(const struct ops *ops, const struct token_attention_backward *a);
enum status check_index_learn(const struct ops *ops, const struct index_learn *a);
enum status check_loss_rows(const struct ops *ops, const struct loss_rows *a);
enum status check_log_softmax(const struct ops *ops, struct tensor x, struct tensor y);
enum status check_reduction(const struct ops *ops, const char *operation, struct tensor x, struct tensor out);
enum status check_sum_squares_parts(const struct ops *ops, struct tensor x, const struct param_part *parts,
                                    int64_t count, struct tensor out);
enum status check_adamw(const struct ops *ops, const struct adamw *a);

#endif
