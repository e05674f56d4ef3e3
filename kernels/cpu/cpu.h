/* The CPU table's insides: its device, its scratch memory, and the names of its kernels in every variant.
 * Kernels: files written in terms of `real` (real.h). device.c, table.c and bf16.c are compiled once. */
#ifndef SQUINT_KERNELS_CPU_CPU_H
#define SQUINT_KERNELS_CPU_CPU_H

#include "base/arena.h"
#include "kernels/check.h"
#include "kernels/cpu/real.h"
#include "kernels/ops.h"

struct bf16_cache; /* bf16.c: primitives and packed weights */

struct device {
    int threads;        /* every parallel region: #pragma omp parallel num_threads(ops->device->threads) */
    bool deterministic; /* kernels give the same bits at any thread count with or without it */
    char description[160];
    void *scratch; /* grows, never shrinks; see device_scratch */
    size_t scratch_capacity;
    struct bf16_cache *bf16;
};

/* *block: `pieces` pieces of at least `bytes` bytes, piece p at *block + p · *stride, each aligned to 256; contents
 * undefined. Valid until the next call of device_scratch: call it once an operation, before the parallel region,
 * usually with pieces = ops->device->threads, and index it by omp_get_thread_num(). One piece is measured, then placed,
 * by an arena: arena_placing(memory, SIZE_MAX) counts while memory is NULL. STATUS_MEMORY. */
enum status device_scratch(const struct ops *ops, int pieces, size_t bytes, char **block, size_t *stride);

/* Document starts [B,T], checked before anything trusts them: a wrong one would lead out of memory. ends [B,T]: one
 * past the last token of each token's document; NULL: only checked. STATUS_SHAPE names a start that is neither its
 * token's index nor its predecessor's. */
enum status device_document_ends(const char *operation, struct tensor start, int32_t *ends);

/* Shared functions of the table (device.c). */
enum status device_open(const struct ops_options *options, const char *isa, struct device **device);
void device_close(const struct ops *ops);
const char *device_describe(const struct ops *ops);
enum status device_allocate(const struct ops *ops, size_t bytes, void **block);
void device_release(const struct ops *ops, void *block);
enum status device_synchronise(const struct ops *ops);
enum status device_upload(const struct ops *ops, struct tensor to, const void *host);
enum status device_download(const struct ops *ops, struct tensor from, void *host);
size_t device_scratch_bytes(const struct ops *ops);
enum status device_repeat(const struct ops *ops, struct recording **recording, enum status (*work)(void *user),
                          void *user);
void device_forget(const struct ops *ops, struct recording **recording);
void device_memory(const struct ops *ops, struct device_memory *memory);

/* The tables (table.c). */
enum status cpu_open(const struct ops_options *options, const struct ops **ops);
enum status cpu_f64_open(const struct ops_options *options, const struct ops **ops);

/* Takes rows first … first+rows−1, columns start … start+columns−1 of a product from `part` [rows,columns] into c
 * (added when accumulate), with bias, pre and activation. */
typedef void (*bf16_finish)(const struct gemm *arguments, int64_t first, int64_t rows, int64_t start, int64_t columns,
                            const float *part);
/* bf16.c: *done tells whether c was computed: a and b rounded to bf16, summed in fp32, `finish` called on every part.
 * It is false, and c untouched, when this CPU or this build cannot do it faster than fp32. */
enum status bf16_gemm(const struct ops *ops, const struct gemm *arguments, bf16_finish finish, bool *done);
/* Drops packed copies of what lies in `bytes` from `block`: that memory is about to be somebody else's. */
void bf16_forget(struct device *device, const void *block, size_t bytes);
size_t bf16_bytes(const struct device *device);
void bf16_close(struct device *device);
/* "" or e.g. ", bf16 by oneDNN 2.6 (AMX)". */
const char *bf16_describe(void);

/* Every kernel of a variant, with the signatures of struct ops. */
#define CPU_DECLARE(v)                                                                                                 \
    enum status copy_##v(const struct ops *ops, struct tensor from, struct tensor to);                                 \
    enum status fill_##v(const struct ops *ops, struct tensor x, double value);                                        \
    enum status add_scaled_##v(const struct ops *ops, double alpha, struct tensor x, struct tensor y);                 \
    enum status scale_##v(const struct ops *ops, double alpha, struct tensor x);                                       \
    enum status fill_normal_##v(const struct ops *ops, struct tensor x, double std, uint64_t seed, uint64_t stream);   \
    enum status gemm_##v(const struct ops *ops, const struct gemm *a);                                                 \
    enum status bias_backward_##v(const struct ops *ops, struct tensor dy, struct tensor dbias);                       \
    enum status embedding_##v(const struct ops *ops, const struct embedding *a);                                       \
    enum status embedding_backward_##v(const struct ops *ops, const struct embedding_backward *a);                     \
    enum status norm_##v(const struct ops *ops, const struct norm *a);                                                 \
    enum status norm_backward_##v(const struct ops *ops, const struct norm_backward *a);                               \
    enum status gelu_backward_##v(const struct ops *ops, struct tensor dy, struct tensor pre, struct tensor dx);       \
    enum status swiglu_##v(const struct ops *ops, struct tensor x, struct tensor y);                                   \
    enum status swiglu_backward_##v(const struct ops *ops, struct tensor dy, struct tensor x, struct tensor dx);       \
    enum status rope_##v(const struct ops *ops, const struct rope *a);                                                 \
    enum status attention_##v(const struct ops *ops, const struct attention *a);                                       \
    enum status attention_backward_##v(const struct ops *ops, const struct attention_backward *a);                     \
    enum status attention_decode_##v(const struct ops *ops, const struct attention_decode *a);                         \
    enum status slot_lists_##v(const struct ops *ops, const struct slot_lists *a);                                     \
    enum status linear_attention_##v(const struct ops *ops, const struct linear_attention *a);                         \
    enum status linear_attention_backward_##v(const struct ops *ops, const struct linear_attention_backward *a);       \
    enum status linear_attention_weights_##v(const struct ops *ops, const struct linear_attention_weights *a);         \
    enum status linear_attention_decode_##v(const struct ops *ops, const struct linear_attention_decode *a);           \
    enum status block_compress_##v(const struct ops *ops, const struct block_compress *a);                             \
    enum status block_compress_backward_##v(const struct ops *ops, const struct block_compress_backward *a);           \
    enum status compressed_attention_##v(const struct ops *ops, const struct compressed_attention *a);                 \
    enum status compressed_attention_backward_##v(const struct ops *ops,                                               \
                                                  const struct compressed_attention_backward *a);                      \
    enum status compressed_decode_##v(const struct ops *ops, const struct compressed_decode *a);                       \
    enum status block_attention_##v(const struct ops *ops, const struct block_attention *a);                           \
    enum status block_attention_backward_##v(const struct ops *ops, const struct block_attention_backward *a);         \
    enum status gate_mix_##v(const struct ops *ops, const struct gate_mix *a);                                         \
    enum status gate_mix_backward_##v(const struct ops *ops, const struct gate_mix_backward *a);                       \
    enum status block_mass_##v(const struct ops *ops, const struct block_mass *a);                                     \
    enum status index_pool_##v(const struct ops *ops, const struct index_pool *a);                                     \
    enum status index_select_##v(const struct ops *ops, const struct index_select *a);                                 \
    enum status index_decode_##v(const struct ops *ops, const struct index_decode *a);                                 \
    enum status token_attention_##v(const struct ops *ops, const struct token_attention *a);                           \
    enum status token_attention_backward_##v(const struct ops *ops, const struct token_attention_backward *a);         \
    enum status index_learn_##v(const struct ops *ops, const struct index_learn *a);                                   \
    enum status loss_rows_##v(const struct ops *ops, const struct loss_rows *a);                                       \
    enum status log_softmax_##v(const struct ops *ops, struct tensor x, struct tensor y);                              \
    enum status sum_##v(const struct ops *ops, struct tensor x, struct tensor out);                                    \
    enum status sum_squares_##v(const struct ops *ops, struct tensor x, struct tensor out);                            \
    enum status sum_squared_difference_##v(const struct ops *ops, struct tensor x, struct tensor y,                    \
                                           struct tensor out);                                                         \
    enum status sum_squares_parts_##v(const struct ops *ops, struct tensor x, const struct param_part *parts,          \
                                      int64_t count, struct tensor out);                                               \
    enum status adamw_##v(const struct ops *ops, const struct adamw *a);
CPU_DECLARE(f32_base)
CPU_DECLARE(f32_avx2)
CPU_DECLARE(f32_avx512)
CPU_DECLARE(f64)

#endif
