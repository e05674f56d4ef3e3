/* Linear layers with optional LoRA: what each gemm of the model is. */
#include "model/internal.h"

bool linear_is_own(const struct linear *linear) {
    return linear->weight->owned || linear->lora_a || (linear->bias && linear->bias->owned);
}

bool linear_trains(const struct linear *linear) {
    return linear->weight->trained || (linear->bias && linear->bias->trained) || (linear->lora_a && linear->lora_a->trained) ||
           (linear->lora_b && linear->lora_b->trained);
}

enum status linear_forward(const struct model *model, const struct linear *linear, struct tensor x, struct tensor y,
                           enum activation activation, struct tensor pre, struct tensor low) {
    const struct ops *ops = model->params.ops;
    struct gemm gemm = {
        .a = x, .b = linear->weight->working, .c = y, .transpose_b = true, .alpha = 1, .bf16 = model->bf16,
        .constant_b = !linear->weight->owned || !tensor_present(linear->weight->grad),
        .bias = linear->bias ? linear->bias->working : tensor_none(), .activation = activation, .pre = pre,
    };
    TRY(ops->gemm(ops, &gemm));
    if (!linear->lora_a) return STATUS_OK;
    struct gemm down = {.a = x, .b = linear->lora_a->working, .c = low, .transpose_b = true, .alpha = 1};
    TRY(ops->gemm(ops, &down));
    struct gemm up = {.a = low, .b = linear->lora_b->working, .c = y, .transpose_b = true, .alpha = 1, .accumulate = true};
    return ops->gemm(ops, &up);
}

static enum status weight_gradient(const struct model *model, const struct param *weight, struct tensor dy, struct tensor x) {
    if (!weight || !weight->trained) return STATUS_OK;
    const struct ops *ops = model->params.ops;
    struct gemm gemm = {.a = dy, .b = x, .c = weight->grad, .transpose_a = true, .alpha = 1, .accumulate = true,
                        .bf16 = model->bf16};
    return ops->gemm(ops, &gemm);
}

enum status linear_backward(const struct model *model, const struct linear *linear, struct tensor dy, struct tensor x,
                            struct tensor low, struct tensor d_low, struct tensor dx) {
    const struct ops *ops = model->params.ops;
    TRY(weight_gradient(model, linear->weight, dy, x));
    if (linear->bias && linear->bias->trained) TRY(ops->bias_backward(ops, dy, linear->bias->grad));
    if (tensor_present(dx)) {
        struct gemm gemm = {.a = dy, .b = linear->weight->working, .c = dx, .alpha = 1, .bf16 = model->bf16,
                            .constant_b = !linear->weight->owned || !tensor_present(linear->weight->grad)};
        TRY(ops->gemm(ops, &gemm));
    }
    if (!linear->lora_a) return STATUS_OK;
    TRY(weight_gradient(model, linear->lora_b, dy, low));
    struct gemm up = {.a = dy, .b = linear->lora_b->working, .c = d_low, .alpha = 1};
    TRY(ops->gemm(ops, &up));
    TRY(weight_gradient(model, linear->lora_a, d_low, x));
    if (!tensor_present(dx)) return STATUS_OK;
    struct gemm down = {.a = d_low, .b = linear->lora_a->working, .c = dx, .alpha = 1, .accumulate = true};
    return ops->gemm(ops, &down);
}

struct qkv_views qkv_split(const struct model_config *config, struct tensor qkv, int64_t batch, int64_t length) {
    int64_t queries = config->heads * config->head_width, keys = config->kv_heads * config->head_width;
    return (struct qkv_views){
        .q = tensor_split_heads(tensor_columns(qkv, 0, queries), batch, length, config->heads, config->head_width),
        .k = tensor_split_heads(tensor_columns(qkv, queries, keys), batch, length, config->kv_heads, config->head_width),
        .v = tensor_split_heads(tensor_columns(qkv, queries + keys, keys), batch, length, config->kv_heads,
                                config->head_width),
    };
}
