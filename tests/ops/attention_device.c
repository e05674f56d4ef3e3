/* See attention_device.h. */
#include "tests/ops/attention_device.h"

#include "base/memory.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Lengths and widths around the tiles' edges; rows of memory that no load of 16 bytes may touch (`fused` with an odd
 * width). */
const struct attention_case device_shapes[] = {
    {"T 1, D 256", 1, 1, 4, 2, 256, 1, {FULL}, .plain = true},
    {"T 7, D 24, documents", 2, 7, 6, 2, 24, 1, {FULL}, .plain = true, .cuts = {1, 5}},
    {"T 31, D 7, unaligned",
     1,
     31,
     3,
     1,
     7,
     2,
     {FULL, OFFSET(3)},
     .coefficients = {{1, -0.5}, {0.5, 1}},
     .fused = true},
    {"T 33, D 48", 1, 33, 4, 2, 48, 2, {WINDOW(9), SINKS(2)}, .coefficients = {{1, 0.5}, {0.5, 0}}},
    {"T 63, D 8, MQA", 1, 63, 4, 1, 8, 1, {BLOCKS(16)}, .coefficients = {{1}, {0.5}}},
    {"T 64, D 64, fused", 1, 64, 2, 2, 64, 1, {FULL}, .plain = true, .fused = true},
    {"T 65, D 20, unaligned", 1, 65, 2, 1, 20, 1, {FULL}, .plain = true, .fused = true, .bidirectional = true},
    {"T 65, D 128", 1, 65, 4, 2, 128, 1, {FULL}, .plain = true},
    {"T 129, D 80", 1, 129, 2, 1, 80, 2, {FULL, STRIDE(7)}, .coefficients = {{1, 0.5}, {0, 1}}, .dead_gradients = true},
    {"T 129, D 200", 1, 129, 2, 2, 200, 1, {WINDOW(70)}, .coefficients = {{1}, {-1}}},
    {"T 200, D 256", 1, 200, 1, 1, 256, 1, {FULL}, .plain = true, .cuts = {3, 100}},
    /* Steps that leave whole tiles out, with the only key of a tile at either of its ends. */
    {"T 400, far steps",
     1,
     400,
     1,
     1,
     8,
     3,
     {DILATED(3, 130), STRIDE(96), OFFSET(200)},
     .coefficients = {{1, 0.5, -1}}},
    {"T 390, far steps, both directions",
     1,
     390,
     1,
     1,
     8,
     3,
     {DILATED(3, 127), STRIDE(95), OFFSET(191)},
     .coefficients = {{1, 0.5, -1}},
     .bidirectional = true},
    {"T 40, D 256, mixture", 1, 40, 2, 1, 256, 2, {FULL, DILATED(4, 3)}, .coefficients = {{1, 0.5}, {0.5, -1}}},
};
const int device_shape_count = sizeof device_shapes / sizeof *device_shapes;

static void check_log_sums(const struct attention_case *row, const struct attention_arrays *expected,
                           const struct attention_arrays *found, double tolerance) {
    for (int64_t n = 0; n < row->batch * row->heads * row->count * row->length; n++) {
        const double a = expected->log_sums[n], b = found->log_sums[n];
        if (a != b && !(fabs(a - b) <= tolerance * fmax(1, fabs(a))))
            fail_msg("%s: log_sums[%lld]: expected %.9g, found %.9g", row->name, (long long)n, a, b);
    }
}

static void forget_gradients(const struct attention_case *row, struct attention_arrays *x) {
    memset(x->dq, 0, (size_t)case_query_count(row) * sizeof *x->dq);
    memset(x->dk, 0, (size_t)case_key_count(row) * sizeof *x->dk);
    memset(x->dv, 0, (size_t)case_key_count(row) * sizeof *x->dv);
    memset(x->dcoefficients, 0, (size_t)(row->heads * row->count) * sizeof *x->dcoefficients);
}

void device_attention(const struct ops *ops, const struct attention_case *row, uint64_t seed, bool backward) {
    struct attention_arrays expected, found;
    const bool bf16 = ops->real == DTYPE_BF16;
    case_fill(row, seed, &expected);
    case_fill(row, seed, &found);
    if (bf16) {
        case_round(row, &expected);
        case_round(row, &found);
    }
    case_reference(row, &expected);
    if (!backward) forget_gradients(row, &expected);
    case_run(ops, row, &found, backward);
    const double factor = row->magnitude > 0 ? row->magnitude : 1;
    if (bf16) check_log_sums(row, &expected, &found, ATTENTION_F32 * factor);
    case_compare(row, ops->name, &expected, &found, bf16 ? ATTENTION_BF16 : ATTENTION_F32 * factor);
    case_free(&expected);
    case_free(&found);
}

/* One token's decoding on a table. slots [B,rows,S], counts [B,rows], rows = lists · count. o [B,H,D]. */
struct decoding {
    int64_t batch, cache, heads, groups, width, capacity;
    int count, lists;
    const double *q, *k, *v, *coefficients; /* q: [B,H,D]; NULL coefficients: none */
    const int32_t *slots, *counts;
    bool shared;
};

struct tensor device_ids(const struct ops *ops, const int32_t *from, int64_t count) {
    struct tensor t = tensor_1d(NULL, DTYPE_I32, count);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    CHECK_OK(ops->upload(ops, t, from));
    return t;
}

static void decode(const struct ops *ops, const struct decoding *d, double *o) {
    const int64_t queries = d->batch * d->heads * d->width, keys = d->batch * d->cache * d->groups * d->width;
    const int64_t rows = d->lists * d->count;
    struct tensor t[] = {case_to_device(ops, ops->real, d->q, queries),
                         case_to_device(ops, ops->real, d->k, keys),
                         case_to_device(ops, ops->real, d->v, keys),
                         case_to_device(ops, ops->real, d->q, queries), /* o; what it holds before is of no matter */
                         device_ids(ops, d->slots, d->batch * rows * d->capacity),
                         device_ids(ops, d->counts, d->batch * rows),
                         case_to_device(ops, ops->statistic, d->coefficients ? d->coefficients : d->q,
                                        d->coefficients ? d->heads * d->count : 1)};
    struct attention_decode a = {.count = d->count, .lists = d->lists, .scale = 1 / sqrt((double)d->width)};
    a.q = tensor_3d(t[0].data, ops->real, d->batch, d->heads, d->width);
    a.k = tensor_4d(t[1].data, ops->real, d->batch, d->cache, d->groups, d->width);
    a.v = tensor_4d(t[2].data, ops->real, d->batch, d->cache, d->groups, d->width);
    a.o = tensor_3d(t[3].data, ops->real, d->batch, d->heads, d->width);
    a.slots = tensor_3d(t[4].data, DTYPE_I32, d->batch, rows, d->capacity);
    a.slot_counts = tensor_2d(t[5].data, DTYPE_I32, d->batch, rows);
    if (d->coefficients) a.coefficients = tensor_2d(t[6].data, ops->statistic, d->heads, d->count);
    if (d->shared) a.coefficients.stride[0] = 0;
    CHECK_OK(ops->attention_decode(ops, &a));
    CHECK_OK(ops->synchronise(ops));
    case_from_device(ops, t[3], o);
    for (size_t n = 0; n < sizeof t / sizeof *t; n++) ops->release(ops, t[n].data);
}

static void compare_decode(const char *what, const struct ops *ops, const struct ops *oracle, const struct decoding *d,
                           double factor) {
    const int64_t count = d->batch * d->heads * d->width;
    double *expected, *found, largest = 0.2;
    CHECK_OK(memory_new((size_t)count, sizeof *expected, "outputs", &expected));
    CHECK_OK(memory_new((size_t)count, sizeof *found, "outputs", &found));
    decode(oracle, d, expected);
    decode(ops, d, found);
    for (int64_t n = 0; n < count; n++) largest = fmax(largest, fabs(expected[n]));
    /* Weights stay fp32: bf16 rounds nothing but the result, by 2^-8 of itself. */
    const double tolerance = ops->real == DTYPE_BF16 ? 0x1p-8 + ATTENTION_F32 * factor : ATTENTION_F32 * factor;
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * largest))
            fail_msg("%s, %s: o[%lld]: expected %.9g, found %.9g", what, ops->name, (long long)n, expected[n],
                     found[n]);
    free(expected);
    free(found);
}

void device_decode_row(const struct ops *ops, const struct ops *oracle, const struct attention_case *row, int64_t i) {
    struct attention_arrays x;
    case_fill(row, 11, &x);
    case_round(row, &x);
    const int64_t width = row->heads * row->width;
    double *q;
    int32_t *slots, *counts;
    CHECK_OK(memory_new((size_t)(row->batch * width), sizeof *q, "queries", &q));
    CHECK_OK(memory_new((size_t)(row->batch * row->count * row->length), sizeof *slots, "slots", &slots));
    CHECK_OK(memory_new((size_t)(row->batch * row->count), sizeof *counts, "counts", &counts));
    for (int64_t b = 0; b < row->batch; b++) {
        memcpy(q + b * width, x.q + (b * row->length + i) * width, (size_t)width * sizeof *q);
        for (int m = 0; m < row->count; m++)
            for (int64_t j = 0; j < row->length; j++)
                if (case_shows(&row->candidates[m], true, x.start + b * row->length, i, j))
                    slots[(b * row->count + m) * row->length + counts[b * row->count + m]++] = (int32_t)j;
    }
    const struct decoding d = {row->batch, row->length, row->heads, row->groups,
                               row->width, row->length, row->count, 1,
                               q,          x.k,         x.v,        row->plain ? NULL : x.coefficients,
                               slots,      counts,      row->shared};
    compare_decode(row->name, ops, oracle, &d, row->magnitude > 0 ? row->magnitude : 1);
    free(q);
    free(slots);
    free(counts);
    case_free(&x);
}

void device_decode_lists(const struct ops *ops, const struct ops *oracle) {
    enum {
        BATCH = 2,
        HEADS = 4,
        GROUPS = 2,
        CACHE = 700,
        WIDTH = 24,
        COUNT = 2,
        LISTS = 2,
        CAPACITY = 600,
        ROWS = LISTS * COUNT
    };
    const struct attention_case row = {
        "lists", BATCH, CACHE, HEADS, GROUPS, WIDTH, COUNT, {FULL, FULL}, .coefficients = {{1, -0.5}, {0.5, 2}}};
    struct attention_arrays x;
    case_fill(&row, 21, &x);
    case_round(&row, &x);
    static int32_t slots[BATCH * ROWS * CAPACITY];
    const int32_t counts[BATCH * ROWS] = {600, 1, 599, 300, 257, 0, 2, 600};
    for (int n = 0; n < BATCH * ROWS * CAPACITY; n++) slots[n] = (int32_t)((n * 37 + n / CAPACITY) % CACHE);
    slots[1] = slots[0];
    const struct decoding d = {BATCH, CACHE, HEADS, GROUPS,         WIDTH, CAPACITY, COUNT, LISTS,
                               x.q,   x.k,   x.v,   x.coefficients, slots, counts,   false};
    compare_decode("lists", ops, oracle, &d, 1);
    case_free(&x);
}
