/* Attention over candidate sets: the operations' entry points. Work is divided so that no sum depends on the number of
 * threads. */
#include "kernels/cpu/attention_internal.h"

#include <omp.h>

/* ends [B,T]: one past the last token of each token's document. Bad starts are refused: they would lead out of memory.
 */
static enum status find_ends(struct tensor start, int32_t *ends) {
    const int64_t batch = start.shape[0], length = start.shape[1];
    for (int64_t b = 0; b < batch; b++) {
        const int32_t *row = (const int32_t *)start.data + b * start.stride[0];
        for (int64_t t = 0; t < length; t++)
            if (row[t] != t && (t == 0 || row[t] != row[t - 1]))
                return error_set(STATUS_SHAPE,
                                 "attention: start[%lld,%lld]: expected %lld or its predecessor's, found %d",
                                 (long long)b, (long long)t, (long long)t, row[t]);
        for (int64_t t = length - 1, end = length; t >= 0; t--) {
            ends[b * length + t] = (int32_t)end;
            if (row[t] == t) end = t;
        }
    }
    return STATUS_OK;
}

static real *at(struct tensor t, int64_t b, int64_t head) {
    return real_data(t) + b * t.stride[0] + head * t.stride[2];
}

/* Sequence b, query head h. all: dead candidates are visited too. */
static struct attention_head make_head(const struct attention *a, const int32_t *ends, int64_t b, int64_t h, bool all) {
    const int64_t length = a->q.shape[1], group = h / (a->q.shape[2] / a->k.shape[2]);
    struct attention_head head = {
        .start = (const int32_t *)a->start.data + b * a->start.stride[0],
        .end = ends + b * length,
        .causal = a->causal,
        .length = length,
        .width = a->q.shape[3],
        .k = at(a->k, b, group),
        .v = at(a->v, b, group),
        .k_stride = a->k.stride[1],
        .v_stride = a->v.stride[1],
    };
    for (int m = 0; m < a->count; m++) {
        const real c =
            tensor_present(a->coefficients) ? real_data(a->coefficients)[h * a->coefficients.stride[0] + m] : 1;
        if (c == 0 && !all) continue;
        head.candidates[head.count] = a->candidates[m];
        head.coefficients[head.count] = c;
        head.index[head.count++] = m;
    }
    return head;
}

static void scale_row(const real *from, real scale, real *to, int64_t width) {
    for (int64_t d = 0; d < width; d++) to[d] = scale * from[d];
}

static void forward_head(const struct attention *a, const struct attention_head *head, int64_t b, int64_t h,
                         real *scratch) {
    const int64_t length = head->length;
    real *scores = scratch, *q = scratch + length;
    real *sums = real_data(a->log_sums) + (b * a->q.shape[2] + h) * a->count * length;
    real row_sums[CANDIDATES_MAX];
    for (int64_t n = 0; n < a->count * length; n++) sums[n] = -REAL_INFINITY;
    for (int64_t i = 0; i < length; i++) {
        scale_row(at(a->q, b, h) + i * a->q.stride[1], (real)a->scale, q, head->width);
        NAME(attention_row)(head, i, q, scores, row_sums, 1, at(a->o, b, h) + i * a->o.stride[1]);
        for (int m = 0; m < head->count; m++) sums[head->index[m] * length + i] = row_sums[m];
    }
}

enum status NAME(attention)(const struct ops *ops, const struct attention *a) {
    TRY(check_attention(ops, a));
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    const size_t ends_bytes = ((size_t)(batch * length) * sizeof(int32_t) + 255) / 256 * 256;
    const size_t row_bytes = ((size_t)(length + width) * sizeof(real) + 255) / 256 * 256;
    char *block;
    size_t stride;
    TRY(device_scratch(ops, 1, ends_bytes + (size_t)ops->device->threads * row_bytes, &block, &stride));
    int32_t *ends = (int32_t *)block;
    TRY(find_ends(a->start, ends));
#pragma omp parallel for num_threads(ops->device->threads) schedule(dynamic)
    for (int64_t n = 0; n < batch * heads; n++) {
        const struct attention_head head = make_head(a, ends, n / heads, n % heads, false);
        forward_head(a, &head, n / heads, n % heads,
                     (real *)(block + ends_bytes + (size_t)omp_get_thread_num() * row_bytes));
    }
    return STATUS_OK;
}

static void clear_rows(struct tensor t, int64_t b, int64_t head) {
    for (int64_t i = 0; i < t.shape[1]; i++)
        memset(at(t, b, head) + i * t.stride[1], 0, (size_t)t.shape[3] * sizeof(real));
}

/* deltas [count] of this head are written. */
static void backward_head(const struct attention_backward *g, const struct attention_head *head, int64_t b, int64_t h,
                          real *scratch, double *delta_sums) {
    const struct attention *a = &g->forward;
    const int64_t length = head->length, width = head->width, group = h / (a->q.shape[2] / a->k.shape[2]);
    real *scores = scratch, *q = scratch + length, *dq = q + width, *unused = dq + width;
    const real *sums = real_data(a->log_sums) + (b * a->q.shape[2] + h) * a->count * length;
    real row_sums[CANDIDATES_MAX], deltas[CANDIDATES_MAX];
    for (int m = 0; m < a->count; m++) delta_sums[m] = 0;
    clear_rows(g->dq, b, h);
    for (int64_t i = 0; i < length; i++) {
        scale_row(at(a->q, b, h) + i * a->q.stride[1], (real)a->scale, q, width);
        if (g->dead_gradients)
            NAME(attention_row)(head, i, q, scores, row_sums, 1, unused);
        else
            for (int m = 0; m < head->count; m++) row_sums[m] = sums[head->index[m] * length + i];
        memset(dq, 0, (size_t)width * sizeof(real));
        const struct attention_row_gradient row = {
            .d_o = at(g->d_o, b, h) + i * g->d_o.stride[1],
            .log_sums = row_sums,
            .deltas = deltas,
            .stride = 1,
            .dq = dq,
            .dk = at(g->dk, b, group),
            .dv = at(g->dv, b, group),
            .dk_stride = g->dk.stride[1],
            .dv_stride = g->dv.stride[1],
            .last = length,
            .find_deltas = true,
        };
        NAME(attention_row_backward)(head, i, q, &row);
        scale_row(dq, (real)a->scale, at(g->dq, b, h) + i * g->dq.stride[1], width);
        for (int m = 0; m < head->count; m++) delta_sums[head->index[m]] += (double)deltas[m];
    }
}

enum status NAME(attention_backward)(const struct ops *ops, const struct attention_backward *g) {
    TRY(check_attention_backward(ops, g));
    const struct attention *a = &g->forward;
    const int64_t batch = a->q.shape[0], length = a->q.shape[1], heads = a->q.shape[2], width = a->q.shape[3];
    const int64_t groups = a->k.shape[2], count = a->count;
    const size_t ends_bytes = ((size_t)(batch * length) * sizeof(int32_t) + 255) / 256 * 256;
    const size_t delta_bytes = ((size_t)(batch * heads * count) * sizeof(double) + 255) / 256 * 256;
    const size_t row_bytes = ((size_t)(length + 3 * width) * sizeof(real) + 255) / 256 * 256;
    char *block;
    size_t stride;
    TRY(device_scratch(ops, 1, ends_bytes + delta_bytes + (size_t)ops->device->threads * row_bytes, &block, &stride));
    int32_t *ends = (int32_t *)block;
    double *delta_sums = (double *)(block + ends_bytes);
    TRY(find_ends(a->start, ends));
#pragma omp parallel for num_threads(ops->device->threads) schedule(dynamic)
    for (int64_t n = 0; n < batch * groups; n++) {
        const int64_t b = n / groups, group = n % groups, share = heads / groups;
        clear_rows(g->dk, b, group);
        clear_rows(g->dv, b, group);
        for (int64_t h = group * share; h < (group + 1) * share; h++) {
            const struct attention_head head = make_head(a, ends, b, h, g->dead_gradients);
            backward_head(g, &head, b, h,
                          (real *)(block + ends_bytes + delta_bytes + (size_t)omp_get_thread_num() * row_bytes),
                          delta_sums + (b * heads + h) * count);
        }
    }
    if (!tensor_present(g->dcoefficients)) return STATUS_OK;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t m = 0; m < count; m++) {
            double sum = 0;
            for (int64_t b = 0; b < batch; b++) sum += delta_sums[(b * heads + h) * count + m];
            real_data(g->dcoefficients)[h * g->dcoefficients.stride[0] + m] += (real)sum;
        }
    return STATUS_OK;
}
