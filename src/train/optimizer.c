/* See optimizer.h. */
#include "train/optimizer.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

enum status optimizer_open(struct params *params, struct optimizer *optimizer) {
    const struct ops *ops = params->ops;
    void *block = NULL;
    *optimizer = (struct optimizer){.params = params};
    const size_t rows = (size_t)params->count;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(rows, sizeof *optimizer->host_sums, "sums of gradients", &optimizer->host_sums));
    TRY_GOTO(done, memory_new(rows, sizeof *optimizer->parts, "rows that train", &optimizer->parts));
    TRY_GOTO(done, memory_new(rows, sizeof *optimizer->rows, "rows that train", &optimizer->rows));
    TRY_GOTO(done, ops->allocate(ops, rows * sizeof(double), &block));
    optimizer->sums = tensor_1d(block, DTYPE_F64, params->count);
done:
    if (status != STATUS_OK) optimizer_close(optimizer);
    return status;
}

void optimizer_close(struct optimizer *optimizer) {
    if (!optimizer || !optimizer->params) return;
    const struct ops *ops = optimizer->params->ops;
    if (tensor_present(optimizer->sums)) ops->release(ops, optimizer->sums.data);
    free(optimizer->host_sums);
    free(optimizer->parts);
    free(optimizer->rows);
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

/* The rows that train, in the table's order, which is that of the block: optimizer->parts, their number. */
static int64_t gather_parts(struct optimizer *optimizer, double decay, double l1) {
    const struct params *params = optimizer->params;
    int64_t count = 0;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->trained) continue;
        optimizer->rows[count] = i;
        optimizer->parts[count++] = (struct param_part){.first = row->offset,
                                                        .count = tensor_count(row->value),
                                                        .decay = row->decay ? decay : 0,
                                                        .l1 = row->sparse ? l1 : 0};
    }
    return count;
}

enum status optimizer_norm(struct optimizer *optimizer, double *norm, int64_t *bad_row) {
    struct params *params = optimizer->params;
    const struct ops *ops = params->ops;
    const int64_t count = gather_parts(optimizer, 0, 0);
    const struct tensor sums = tensor_rows(optimizer->sums, 0, count);
    TRY(ops->sum_squares_parts(ops, params->grads, optimizer->parts, count, sums));
    TRY(ops->download(ops, sums, optimizer->host_sums));
    double sum = 0;
    *bad_row = -1;
    for (int64_t p = 0; p < count; p++) {
        if (*bad_row < 0 && !isfinite(optimizer->host_sums[p])) *bad_row = optimizer->rows[p];
        sum += optimizer->host_sums[p];
    }
    *norm = sqrt(sum);
    return STATUS_OK;
}

enum status optimizer_update(struct optimizer *optimizer, const struct config *config,
                             const struct optimizer_step *step) {
    struct params *params = optimizer->params;
    const double clip = config->train.clip;
    const struct adamw arguments = {.value = params->values,
                                    .grad = params->grads,
                                    .m = params->m,
                                    .v = params->v,
                                    .working = params->workings,
                                    .parts = optimizer->parts,
                                    .part_count = gather_parts(optimizer, config->train.weight_decay, step->l1),
                                    .lr = step->lr,
                                    .beta1 = config->train.beta1,
                                    .beta2 = config->train.beta2,
                                    .epsilon = config->train.epsilon,
                                    .grad_scale = clip > 0 && step->norm > clip ? clip / step->norm : 1,
                                    .step = step->update};
    return params->ops->adamw(params->ops, &arguments);
}
