/* The CUDA table: its names as C sees them. Above kernels/ nothing includes it. */
#ifndef SQUINT_KERNELS_CUDA_CUDA_H
#define SQUINT_KERNELS_CUDA_CUDA_H

#include "kernels/ops.h"

/* *ops: the table of the device, activations BF16 or F32. Options' threads and isa are not looked at. STATUS_NOT_FOUND:
 * this build has no CUDA, or this machine has no GPU; the message says which. */
enum status cuda_open(const struct ops_options *options, enum dtype real, const struct ops **ops);

/* The device (device.cu). */
enum status cuda_device_open(const struct ops_options *options, struct device **device);
void cuda_close(const struct ops *ops);
const char *cuda_describe(const struct ops *ops);
enum status cuda_allocate(const struct ops *ops, size_t bytes, void **block);
void cuda_release(const struct ops *ops, void *block);
enum status cuda_synchronise(const struct ops *ops);
enum status cuda_upload(const struct ops *ops, struct tensor to, const void *host);
enum status cuda_download(const struct ops *ops, struct tensor from, void *host);
size_t cuda_scratch_bytes(const struct ops *ops);
enum status cuda_repeat(const struct ops *ops, struct recording **recording, enum status (*work)(void *user),
                        void *user);
void cuda_forget(const struct ops *ops, struct recording **recording);
void cuda_memory(const struct ops *ops, struct device_memory *memory);
/* tuning.cu */
void *cuda_stream(const struct ops *ops);
bool cuda_tunable(const struct ops *ops, int number, struct tunable *tunable);
enum status cuda_set_form(const struct ops *ops, int number, int64_t width, int64_t length, int form);

/* Operations; contracts in ops.h. */
enum status cuda_copy(const struct ops *ops, struct tensor from, struct tensor to);
enum status cuda_fill(const struct ops *ops, struct tensor x, double value);
enum status cuda_add_scaled(const struct ops *ops, double alpha, struct tensor x, struct tensor y);
enum status cuda_scale(const struct ops *ops, double alpha, struct tensor x);
enum status cuda_fill_normal(const struct ops *ops, struct tensor x, double std, uint64_t seed, uint64_t stream);
enum status cuda_gemm(const struct ops *ops, const struct gemm *a);
enum status cuda_bias_backward(const struct ops *ops, struct tensor dy, struct tensor dbias);
enum status cuda_embedding(const struct ops *ops, const struct embedding *a);
enum status cuda_embedding_backward(const struct ops *ops, const struct embedding_backward *a);
enum status cuda_norm(const struct ops *ops, const struct norm *a);
enum status cuda_norm_backward(const struct ops *ops, const struct norm_backward *a);
enum status cuda_gelu_backward(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx);
enum status cuda_swiglu(const struct ops *ops, struct tensor x, struct tensor y);
enum status cuda_swiglu_backward(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx);
enum status cuda_rope(const struct ops *ops, const struct rope *a);
enum status cuda_attention(const struct ops *ops, const struct attention *a);
enum status cuda_attention_backward(const struct ops *ops, const struct attention_backward *a);
enum status cuda_attention_decode(const struct ops *ops, const struct attention_decode *a);
enum status cuda_slot_lists(const struct ops *ops, const struct slot_lists *a);
enum status cuda_linear_attention(const struct ops *ops, const struct linear_attention *a);
enum status cuda_linear_attention_backward(const struct ops *ops, const struct linear_attention_backward *a);
enum status cuda_linear_attention_weights(const struct ops *ops, const struct linear_attention_weights *a);
enum status cuda_linear_attention_decode(const struct ops *ops, const struct linear_attention_decode *a);
enum status cuda_block_compress(const struct ops *ops, const struct block_compress *a);
enum status cuda_block_compress_backward(const struct ops *ops, const struct block_compress_backward *a);
enum status cuda_compressed_attention(const struct ops *ops, const struct compressed_attention *a);
enum status cuda_compressed_attention_backward(const struct ops *ops, const struct compressed_attention_backward *a);
enum status cuda_compressed_decode(const struct ops *ops, const struct compressed_decode *a);
enum status cuda_gate_mix(const struct ops *ops, const struct gate_mix *a);
enum status cuda_gate_mix_backward(const struct ops *ops, const struct gate_mix_backward *a);
enum status cuda_block_attention(const struct ops *ops, const struct block_attention *a);
enum status cuda_block_attention_backward(const struct ops *ops, const struct block_attention_backward *a);
enum status cuda_block_mass(const struct ops *ops, const struct block_mass *a);
enum status cuda_index_pool(const struct ops *ops, const struct index_pool *a);
enum status cuda_index_select(const struct ops *ops, const struct index_select *a);
enum status cuda_index_decode(const struct ops *ops, const struct index_decode *a);
enum status cuda_token_attention(const struct ops *ops, const struct token_attention *a);
enum status cuda_token_attention_backward(const struct ops *ops, const struct token_attention_backward *a);
enum status cuda_index_learn(const struct ops *ops, const struct index_learn *a);
enum status cuda_loss_rows(const struct ops *ops, const struct loss_rows *a);
enum status cuda_log_softmax(const struct ops *ops, struct tensor x, struct tensor y);
enum status cuda_sum(const struct ops *ops, struct tensor x, struct tensor out);
enum status cuda_sum_squares(const struct ops *ops, struct tensor x, struct tensor out);
enum status cuda_sum_squared_difference(const struct ops *ops, struct tensor x, struct tensor y, struct tensor out);
enum status cuda_sum_squares_parts(const struct ops *ops, struct tensor x, const struct param_part *parts,
                                   int64_t count, struct tensor out);
enum status cuda_adamw(const struct ops *ops, const struct adamw *a);

#endif
