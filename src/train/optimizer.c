/* See optimizer.h. */
#include "train/optimizer.h"

#include "base/memory.h"
#include "params/division.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status optimizer_open(struct params *params, struct comm *comm, struct optimizer *optimizer) {
    const struct ops *ops = params->ops;
    const struct division *division = &params->division;
    void *block = NULL;
    if (!division->spans || (division->zero && !comm)) {
        return error_set(STATUS_FAILED, "the optimizer: expected a divided table%s",
                         division->zero ? " and its ranks" : "");
    }
    *optimizer = (struct optimizer){
        .params = params, .comm = division->zero ? comm : NULL, .capacity = params->count + division->span_count};
    const size_t capacity = (size_t)optimizer->capacity;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(capacity, sizeof *optimizer->host_sums, "sums of gradients", &optimizer->host_sums));
    TRY_GOTO(done,
             memory_new((size_t)params->count, sizeof *optimizer->row_sums, "sums of gradients", &optimizer->row_sums));
    TRY_GOTO(done, memory_new(capacity, sizeof *optimizer->parts, "rows that train", &optimizer->parts));
    TRY_GOTO(done, memory_new(capacity, sizeof *optimizer->rows, "rows that train", &optimizer->rows));
    TRY_GOTO(done, ops->allocate(ops, capacity * sizeof(double), &block));
    optimizer->sums = tensor_1d(block, DTYPE_F64, optimizer->capacity);
done:
    if (status != STATUS_OK) optimizer_close(optimizer);
    return status;
}

void optimizer_close(struct optimizer *optimizer) {
    if (!optimizer || !optimizer->params) return;
    const struct ops *ops = optimizer->params->ops;
    if (tensor_present(optimizer->sums)) ops->release(ops, optimizer->sums.data);
    free(optimizer->host_sums);
    free(optimizer->row_sums);
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

/* What trains of a span, behind the `count` parts that are there: elements counted from `origin`. Returns the new
 * number. */
static int64_t gather_parts(struct optimizer *optimizer, const struct span *span, int64_t origin, int64_t count,
                            double decay, double l1) {
    const struct params *params = optimizer->params;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        int64_t first = 0, end = 0;
        if (!row->trained || !span_of_row(span, row, &first, &end)) continue;
        optimizer->rows[count] = i;
        optimizer->parts[count++] = (struct param_part){
            .first = first - origin, .count = end - first, .decay = row->decay ? decay : 0, .l1 = row->sparse ? l1 : 0};
    }
    return count;
}

enum status optimizer_norm(struct optimizer *optimizer, double *norm, int64_t *bad_row) {
    struct params *params = optimizer->params;
    const struct ops *ops = params->ops;
    const struct division *division = &params->division;
    int64_t count = 0;
    for (int64_t s = 0; s < division->span_count; s++)
        count = gather_parts(optimizer, &division->spans[s], 0, count, 0, 0);
    const struct tensor sums = tensor_rows(optimizer->sums, 0, count);
    enum status status = STATUS_OK;
    if (count > 0) status = ops->sum_squares_parts(ops, params->grads, optimizer->parts, count, sums);
    if (count > 0 && status == STATUS_OK) status = ops->download(ops, sums, optimizer->host_sums);
    memset(optimizer->row_sums, 0, (size_t)params->count * sizeof *optimizer->row_sums);
    for (int64_t p = 0; p < count; p++) optimizer->row_sums[optimizer->rows[p]] += optimizer->host_sums[p];
    if (optimizer->comm) {
        TRY(comm_agree(optimizer->comm, status));
        TRY(comm_all_reduce(optimizer->comm, tensor_1d(optimizer->row_sums, DTYPE_F64, params->count), COMM_SUM));
    }
    TRY(status);
    double sum = 0;
    *bad_row = -1;
    for (int64_t i = 0; i < params->count; i++) {
        if (*bad_row < 0 && !isfinite(optimizer->row_sums[i])) *bad_row = i;
        sum += optimizer->row_sums[i];
    }
    *norm = sqrt(sum);
    return STATUS_OK;
}

enum status optimizer_update(struct optimizer *optimizer, const struct config *config,
                             const struct optimizer_step *step) {
    struct params *params = optimizer->params;
    const struct division *division = &params->division;
    const double clip = config->train.clip;
    struct adamw arguments = {.parts = optimizer->parts,
                              .lr = step->lr,
                              .beta1 = config->train.beta1,
                              .beta2 = config->train.beta2,
                              .epsilon = config->train.epsilon,
                              .grad_scale = clip > 0 && step->norm > clip ? clip / step->norm : 1,
                              .step = step->update};
    for (int64_t s = 0; s < division->span_count; s++) {
        const struct span *span = &division->spans[s];
        arguments.part_count = gather_parts(optimizer, span, span->first, 0, config->train.weight_decay, step->l1);
        if (arguments.part_count == 0) continue;
        arguments.value = span_values(params, span);
        arguments.grad = span_elements(span, params->grads);
        arguments.m = span_state(span, params->m);
        arguments.v = span_state(span, params->v);
        if (tensor_present(params->workings)) arguments.working = span_elements(span, params->workings);
        TRY(params->ops->adamw(params->ops, &arguments));
    }
    return STATUS_OK;
}
