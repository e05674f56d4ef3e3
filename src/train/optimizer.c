/* See optimizer.h. */
#include "train/optimizer.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

enum status optimizer_open(struct params *params, struct optimizer *optimizer) {
    const struct ops *ops = params->ops;
    void *block = NULL;
    *optimizer = (struct optimizer){.params = params};
    TRY(memory_new((size_t)params->count, sizeof *optimizer->host_sums, "sums of gradients", &optimizer->host_sums));
    enum status status = ops->allocate(ops, (size_t)params->count * sizeof(double), &block);
    if (status != STATUS_OK) {
        optimizer_close(optimizer);
        return status;
    }
    optimizer->sums = tensor_1d(block, DTYPE_F64, params->count);
    return STATUS_OK;
}

void optimizer_close(struct optimizer *optimizer) {
    if (!optimizer || !optimizer->params) return;
    const struct ops *ops = optimizer->params->ops;
    if (tensor_present(optimizer->sums)) ops->release(ops, optimizer->sums.data);
    free(optimizer->host_sums);
    *optimizer = (struct optimizer){0};
}

enum status optimizer_zero_gradients(struct optimizer *optimizer) {
    struct params *params = optimizer->params;
    int64_t offset = 0, count = 0;
    for (; params_next_run(params, &offset, &count); offset += count) {
        TRY(params->ops->fill(params->ops, tensor_rows(params->grads, offset, count), 0));
    }
    return STATUS_OK;
}

enum status optimizer_norm(struct optimizer *optimizer, double *norm, int64_t *bad_row) {
    struct params *params = optimizer->params;
    const struct ops *ops = params->ops;
    TRY(ops->fill(ops, optimizer->sums, 0));
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->trained) continue;
        TRY(ops->sum_squares(ops, tensor_reshape(row->grad, 1, (int64_t[]){tensor_count(row->grad)}),
                             tensor_rows(optimizer->sums, i, 1)));
    }
    TRY(ops->download(ops, optimizer->sums, optimizer->host_sums));
    double sum = 0;
    *bad_row = -1;
    for (int64_t i = 0; i < params->count; i++) {
        if (*bad_row < 0 && !isfinite(optimizer->host_sums[i])) *bad_row = i;
        sum += optimizer->host_sums[i];
    }
    *norm = sqrt(sum);
    return STATUS_OK;
}

enum status optimizer_update(struct optimizer *optimizer, const struct config *config,
                             const struct optimizer_step *step) {
    struct params *params = optimizer->params;
    double clip = config->train.clip;
    double scale = clip > 0 && step->norm > clip ? clip / step->norm : 1;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->trained) continue;
        int64_t shape[] = {tensor_count(row->value)};
        struct adamw arguments = {.value = tensor_reshape(row->value, 1, shape),
                                  .grad = tensor_reshape(row->grad, 1, shape),
                                  .m = tensor_reshape(row->m, 1, shape),
                                  .v = tensor_reshape(row->v, 1, shape),
                                  .lr = step->lr,
                                  .beta1 = config->train.beta1,
                                  .beta2 = config->train.beta2,
                                  .epsilon = config->train.epsilon,
                                  .decay = row->decay ? config->train.weight_decay : 0,
                                  .l1 = row->sparse ? step->l1 : 0,
                                  .grad_scale = scale,
                                  .step = step->update};
        TRY(params->ops->adamw(params->ops, &arguments));
    }
    return STATUS_OK;
}
