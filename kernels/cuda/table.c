/* The CUDA table: fp32 or bf16 activations. */
#include "kernels/cuda/cuda.h"

#include "base/memory.h"

#include <stdlib.h>

static const struct ops table = {
    .parameter = DTYPE_F32,
    .statistic = DTYPE_F32,
    .close = cuda_close,
    .describe = cuda_describe,
    .allocate = cuda_allocate,
    .release = cuda_release,
    .synchronise = cuda_synchronise,
    .upload = cuda_upload,
    .download = cuda_download,
    .repeat = cuda_repeat,
    .forget = cuda_forget,
    .scratch_bytes = cuda_scratch_bytes,
    .memory = cuda_memory,
    .stream = cuda_stream,
    .tunable = cuda_tunable,
    .set_form = cuda_set_form,
    .copy = cuda_copy,
    .fill = cuda_fill,
    .add_scaled = cuda_add_scaled,
    .scale = cuda_scale,
    .fill_normal = cuda_fill_normal,
    .gemm = cuda_gemm,
    .bias_backward = cuda_bias_backward,
    .embedding = cuda_embedding,
    .embedding_backward = cuda_embedding_backward,
    .norm = cuda_norm,
    .norm_backward = cuda_norm_backward,
    .gelu_backward = cuda_gelu_backward,
    .swiglu = cuda_swiglu,
    .swiglu_backward = cuda_swiglu_backward,
    .rope = cuda_rope,
    .attention = cuda_attention,
    .attention_backward = cuda_attention_backward,
    .attention_decode = cuda_attention_decode,
    .slot_lists = cuda_slot_lists,
    .linear_attention = cuda_linear_attention,
    .linear_attention_backward = cuda_linear_attention_backward,
    .linear_attention_weights = cuda_linear_attention_weights,
    .linear_attention_decode = cuda_linear_attention_decode,
    .block_compress = cuda_block_compress,
    .block_compress_backward = cuda_block_compress_backward,
    .compressed_attention = cuda_compressed_attention,
    .compressed_attention_backward = cuda_compressed_attention_backward,
    .compressed_decode = cuda_compressed_decode,
    .block_attention = cuda_block_attention,
    .block_attention_backward = cuda_block_attention_backward,
    .gate_mix = cuda_gate_mix,
    .gate_mix_backward = cuda_gate_mix_backward,
    .block_mass = cuda_block_mass,
    .index_pool = cuda_index_pool,
    .index_select = cuda_index_select,
    .index_decode = cuda_index_decode,
    .token_attention = cuda_token_attention,
    .token_attention_backward = cuda_token_attention_backward,
    .index_learn = cuda_index_learn,
    .loss_rows = cuda_loss_rows,
    .log_softmax = cuda_log_softmax,
    .sum = cuda_sum,
    .sum_squares = cuda_sum_squares,
    .sum_squared_difference = cuda_sum_squared_difference,
    .sum_squares_parts = cuda_sum_squares_parts,
    .adamw = cuda_adamw,
};

enum status cuda_open(const struct ops_options *options, enum dtype real, const struct ops **ops) {
    struct ops *made;
    TRY(memory_new(1, sizeof *made, "the operation table", &made));
    *made = table;
    made->real = real;
    made->name = real == DTYPE_BF16 ? "cuda" : "cuda-f32";
    const enum status status = cuda_device_open(options, &made->device);
    if (status != STATUS_OK) {
        free(made);
        return status;
    }
    *ops = made;
    return STATUS_OK;
}
