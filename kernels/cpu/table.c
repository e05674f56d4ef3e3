/* Picks the variant that this CPU can run and puts its kernels into a table. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

#define CPU_KERNELS(v)                                                                                                 \
    .copy = copy_##v, .fill = fill_##v, .add_scaled = add_scaled_##v, .scale = scale_##v,                              \
    .fill_normal = fill_normal_##v, .gemm = gemm_##v, .bias_backward = bias_backward_##v, .embedding = embedding_##v,  \
    .embedding_backward = embedding_backward_##v, .norm = norm_##v, .norm_backward = norm_backward_##v,                \
    .gelu_backward = gelu_backward_##v, .swiglu = swiglu_##v, .swiglu_backward = swiglu_backward_##v,                  \
    .rope = rope_##v, .attention = attention_##v, .attention_backward = attention_backward_##v,                        \
    .attention_decode = attention_decode_##v, .slot_lists = slot_lists_##v, .linear_attention = linear_attention_##v,  \
    .linear_attention_backward = linear_attention_backward_##v,                                                        \
    .linear_attention_weights = linear_attention_weights_##v, .linear_attention_decode = linear_attention_decode_##v,  \
    .block_compress = block_compress_##v, .block_compress_backward = block_compress_backward_##v,                      \
    .compressed_attention = compressed_attention_##v,                                                                  \
    .compressed_attention_backward = compressed_attention_backward_##v, .compressed_decode = compressed_decode_##v,    \
    .block_attention = block_attention_##v, .block_attention_backward = block_attention_backward_##v,                  \
    .gate_mix = gate_mix_##v, .gate_mix_backward = gate_mix_backward_##v, .block_mass = block_mass_##v,                \
    .index_pool = index_pool_##v, .index_select = index_select_##v, .index_decode = index_decode_##v,                  \
    .token_attention = token_attention_##v, .token_attention_backward = token_attention_backward_##v,                  \
    .index_learn = index_learn_##v, .loss_rows = loss_rows_##v, .log_softmax = log_softmax_##v, .sum = sum_##v,        \
    .sum_squares = sum_squares_##v, .sum_squares_parts = sum_squares_parts_##v,                                        \
    .sum_squared_difference = sum_squared_difference_##v, .adamw = adamw_##v

#define CPU_DEVICE                                                                                                     \
    .host_memory = true, .close = device_close, .describe = device_describe, .allocate = device_allocate,              \
    .release = device_release, .synchronise = device_synchronise, .upload = device_upload,                             \
    .download = device_download, .repeat = device_repeat, .forget = device_forget,                                     \
    .scratch_bytes = device_scratch_bytes, .memory = device_memory

#define CPU_TABLE(v, title, dtype)                                                                                     \
    { .name = title, .real = dtype, .parameter = dtype, .statistic = dtype, CPU_DEVICE, CPU_KERNELS(v) }

static const struct ops table_base = CPU_TABLE(f32_base, "cpu", DTYPE_F32);
static const struct ops table_avx2 = CPU_TABLE(f32_avx2, "cpu", DTYPE_F32);
static const struct ops table_avx512 = CPU_TABLE(f32_avx512, "cpu", DTYPE_F32);
static const struct ops table_f64 = CPU_TABLE(f64, "cpu-f64", DTYPE_F64);

static enum status open_table(const struct ops *table, const char *isa, const struct ops_options *options,
                              const struct ops **ops) {
    struct ops *made;
    TRY(memory_new(1, sizeof *made, "the operation table", &made));
    *made = *table;
    enum status status = device_open(options, isa, &made->device);
    if (status != STATUS_OK) {
        free(made);
        return status;
    }
    *ops = made;
    return STATUS_OK;
}

static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

enum status cpu_open(const struct ops_options *options, const struct ops **ops) {
    const char *most = options && options->isa ? options->isa : "avx512";
    bool base = strcmp(most, "base") == 0, avx2 = strcmp(most, "avx2") == 0, avx512 = strcmp(most, "avx512") == 0;
    if (!base && !avx2 && !avx512) {
        return error_set(STATUS_USAGE, "unknown instruction set '%s': expected avx512, avx2 or base", most);
    }
    __builtin_cpu_init();
    if (avx512 && has_avx512()) return open_table(&table_avx512, "AVX-512", options, ops);
    if (!base && has_avx2()) return open_table(&table_avx2, "AVX2", options, ops);
    return open_table(&table_base, "x86-64", options, ops);
}

enum status cpu_f64_open(const struct ops_options *options, const struct ops **ops) {
    return open_table(&table_f64, "fp64", options, ops);
}
