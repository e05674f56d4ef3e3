/* Attention of one query a sequence against cached keys: every slot that some live candidate lists is scored once. */
#include "kernels/cpu/attention_internal.h"

#include <omp.h>

/* One head's scratch over the slots of a cache. */
struct slot_scratch {
    real *scores, *weights; /* [S]; of the slots of this head that were met so far */
    int32_t *met;           /* [S]: number of the head that met the slot last */
    int32_t *order;         /* [S]: the slots that this head met, in order */
    real *listed;           /* [S]: one candidate's e^{score − largest}, in the order of its list */
};

/* `width` is a constant in the usual cases, so that a head of 8 or 64 is a few instructions and no loop. */
__attribute__((always_inline)) static inline void decode_head_of(const struct attention_decode *a, int64_t b, int64_t h,
                                                                 int32_t number, struct slot_scratch *s,
                                                                 const int64_t width) {
    const int64_t group = h / (a->q.shape[1] / a->k.shape[2]), first = h / (a->q.shape[1] / a->lists) * a->count;
    const real *q = real_data(a->q) + b * a->q.stride[0] + h * a->q.stride[1];
    const real *k = real_data(a->k) + b * a->k.stride[0] + group * a->k.stride[2];
    const real *v = real_data(a->v) + b * a->v.stride[0] + group * a->v.stride[2];
    real *o = real_data(a->o) + b * a->o.stride[0] + h * a->o.stride[1];
    int64_t order = 0;
    for (int m = 0; m < a->count; m++) {
        const real c =
            tensor_present(a->coefficients) ? real_data(a->coefficients)[h * a->coefficients.stride[0] + m] : 1;
        const int32_t *slots = (const int32_t *)a->slots.data + b * a->slots.stride[0] + (first + m) * a->slots.stride[1];
        const int64_t count = ((const int32_t *)a->slot_counts.data)[b * a->slot_counts.stride[0] + first + m];
        if (c == 0 || count == 0) continue;
        real most = -REAL_INFINITY, sum = 0, *listed = s->listed;
        for (int64_t n = 0; n < count; n++) {
            const int32_t slot = slots[n];
            if (s->met[slot] != number) {
                s->met[slot] = number;
                s->order[order++] = slot;
                s->weights[slot] = 0;
                s->scores[slot] = (real)a->scale * real_dot(q, k + slot * a->k.stride[1], width);
            }
            listed[n] = s->scores[slot];
            most = real_max(most, listed[n]);
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t n = 0; n < count; n++) {
            listed[n] = real_exp(listed[n] - most);
            sum += listed[n];
        }
        for (int64_t n = 0; n < count; n++) s->weights[slots[n]] += c / sum * listed[n];
    }
    for (int64_t d = 0; d < width; d++) o[d] = 0;
    for (int64_t n = 0; n < order; n++) real_axpy(s->weights[s->order[n]], v + s->order[n] * a->v.stride[1], o, width);
}

static void decode_head(const struct attention_decode *a, int64_t b, int64_t h, int32_t number,
                        struct slot_scratch *s) {
    switch (a->q.shape[2]) {
    case 8:
        decode_head_of(a, b, h, number, s, 8);
        break;
    case 16:
        decode_head_of(a, b, h, number, s, 16);
        break;
    case 32:
        decode_head_of(a, b, h, number, s, 32);
        break;
    case 64:
        decode_head_of(a, b, h, number, s, 64);
        break;
    case 128:
        decode_head_of(a, b, h, number, s, 128);
        break;
    default:
        decode_head_of(a, b, h, number, s, a->q.shape[2]);
    }
}

static enum status check_slots(const struct attention_decode *a) {
    const int64_t cache = a->k.shape[1], capacity = a->slots.shape[2];
    for (int64_t b = 0; b < a->q.shape[0]; b++)
        for (int m = 0; m < a->lists * a->count; m++) {
            const int32_t *slots = (const int32_t *)a->slots.data + b * a->slots.stride[0] + m * a->slots.stride[1];
            const int64_t count = ((const int32_t *)a->slot_counts.data)[b * a->slot_counts.stride[0] + m];
            if (count < 0 || count > capacity)
                return error_set(STATUS_SHAPE, "attention_decode: slot_counts[%lld,%d]: expected 0 … %lld, found %lld",
                                 (long long)b, m, (long long)capacity, (long long)count);
            for (int64_t n = 0; n < count; n++)
                if (slots[n] < 0 || slots[n] >= cache)
                    return error_set(STATUS_SHAPE, "attention_decode: slots[%lld,%d,%lld]: expected 0 … %lld, found %d",
                                     (long long)b, m, (long long)n, (long long)cache - 1, slots[n]);
        }
    return STATUS_OK;
}

enum status NAME(attention_decode)(const struct ops *ops, const struct attention_decode *a) {
    TRY(check_attention_decode(ops, a));
    TRY(check_slots(a));
    const int64_t batch = a->q.shape[0], heads = a->q.shape[1], cache = a->k.shape[1];
    char *block;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, (size_t)cache * (3 * sizeof(real) + 2 * sizeof(int32_t)), &block,
                       &stride));
#pragma omp parallel num_threads(ops->device->threads)
    {
        char *mine = block + (size_t)omp_get_thread_num() * stride;
        struct slot_scratch scratch = {.scores = (real *)mine, .weights = (real *)mine + cache};
        scratch.listed = scratch.weights + cache;
        scratch.met = (int32_t *)(scratch.listed + cache);
        scratch.order = scratch.met + cache;
        memset(scratch.met, 0xff, (size_t)cache * sizeof(int32_t));
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < batch * heads; n++) decode_head(a, n / heads, n % heads, (int32_t)n, &scratch);
    }
    return STATUS_OK;
}
