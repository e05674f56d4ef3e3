/* Attention over candidate sets against a naive reference, against finite differences, and against itself: other
 * instruction sets, other numbers of threads, changed futures, token by token. */
#include "base/memory.h"
#include "base/rng.h"
#include "ops/attention_case.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct ops *open_table(const char *name, int threads, const char *isa) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = threads, .isa = isa}, &ops));
    return ops;
}

/* Runs every case on a table against the reference. */
static void against_reference(const char *table, const char *isa, double tolerance, int hand) {
    const struct ops *ops = open_table(table, 2, isa);
    for (int n = 0; n < attention_case_count; n++) {
        if (!check_dealt(n, hand)) continue;
        struct attention_arrays expected, found;
        case_fill(&attention_cases[n], (uint64_t)n, &expected);
        case_fill(&attention_cases[n], (uint64_t)n, &found);
        case_reference(&attention_cases[n], &expected);
        case_run(ops, &attention_cases[n], &found, true);
        /* A score's rounding error grows with it. */
        const double factor = attention_cases[n].magnitude > 0 ? attention_cases[n].magnitude : 1;
        case_compare(&attention_cases[n], isa ? isa : table, &expected, &found, tolerance * factor);
        case_free(&expected);
        case_free(&found);
    }
    ops->close(ops);
}

static void test_double(void **state) {
    (void)state;
    against_reference("cpu-f64", NULL, 1e-12, 0);
}
static void test_base(void **state) {
    (void)state;
    against_reference("cpu", "base", 2e-5, 0);
}
static void test_avx2(void **state) {
    (void)state;
    against_reference("cpu", "avx2", 2e-5, 1);
}
static void test_best(void **state) {
    (void)state;
    against_reference("cpu", NULL, 2e-5, 2);
}
static void test_guarded(void **state) {
    (void)state;
    against_reference("guard:cpu", NULL, 2e-5, 1);
    against_reference("guard:cpu-f64", NULL, 1e-12, 2);
}

static double loss(const struct ops *ops, const struct attention_case *row, struct attention_arrays *x) {
    case_run(ops, row, x, false);
    double sum = 0;
    for (int64_t n = 0; n < case_query_count(row); n++) sum += x->o[n] * x->d_o[n];
    return sum;
}

/* Central differences of Σ o·d_o by every element of one input. */
static void differences(const struct ops *ops, const struct attention_case *row, struct attention_arrays *x,
                        const char *name, double *input, const double *gradient, int64_t count) {
    const double step = 1e-5;
    for (int64_t n = 0; n < count; n++) {
        const double before = input[n];
        input[n] = before + step;
        const double up = loss(ops, row, x);
        input[n] = before - step;
        const double down = loss(ops, row, x);
        input[n] = before;
        const double expected = (up - down) / (2 * step);
        if (fabs(expected - gradient[n]) > 1e-7 * fmax(1, fabs(expected)))
            fail_msg("%s: d%s[%lld]: differences give %.9g, backward %.9g", row->name, name, (long long)n, expected,
                     gradient[n]);
    }
}

static void test_differences(void **state) {
    (void)state;
    static const struct attention_case rows[] = {
        {"full", 1, 9, 2, 1, 5, 1, {FULL}, .plain = true},
        {"window, sinks",
         2,
         11,
         2,
         1,
         3,
         2,
         {WINDOW(3), SINKS(2)},
         .coefficients = {{0.8, 0.3}, {1, -0.4}},
         .cuts = {4}},
        {"every kind",
         1,
         13,
         2,
         2,
         4,
         7,
         {FULL, WINDOW(3), SINKS(2), OFFSET(4), DILATED(3, 2), STRIDE(3), BLOCKS(4)},
         .coefficients = {{0.8, 0.3, -0.2, 0.5, 0.7, 0.2, 0.1}, {-0.8, 0.3, 0.2, -0.5, 0.7, 0.2, 0.1}},
         .cuts = {8}},
        {"scattered",
         1,
         13,
         2,
         2,
         4,
         4,
         {OFFSET(4), DILATED(3, 2), STRIDE(3), DILATED(2, 5)},
         .coefficients = {{0.5, 0.7, 0.2, 0.1}, {-0.5, 0.7, 0.2, 0.1}},
         .bidirectional = true},
        {"shared row",
         2,
         7,
         3,
         1,
         3,
         2,
         {WINDOW(3), STRIDE(2)},
         .coefficients = {{0.8, 0.3}},
         .shared = true,
         .fused = true},
        {"distant maxima", 1, 9, 1, 1, 4, 2, {WINDOW(2), SINKS(1)}, .coefficients = {{0.8, 0.3}}, .magnitude = 100},
        {"dead",
         1,
         9,
         2,
         1,
         4,
         3,
         {WINDOW(2), SINKS(1), DILATED(2, 3)},
         .coefficients = {{0.8, 0, 0}, {0, 0, 1}},
         .dead_gradients = true},
    };
    const struct ops *ops = open_table("cpu-f64", 1, NULL);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const struct attention_case *row = &rows[r];
        struct attention_arrays x;
        case_fill(row, 100 + r, &x);
        case_run(ops, row, &x, true);
        differences(ops, row, &x, "q", x.q, x.dq, case_query_count(row));
        differences(ops, row, &x, "k", x.k, x.dk, case_key_count(row));
        differences(ops, row, &x, "v", x.v, x.dv, case_key_count(row));
        /* A shared row's gradient is the sum over the heads: the test's own copies all move together. */
        if (!row->plain && !row->shared)
            differences(ops, row, &x, "coefficients", x.coefficients, x.dcoefficients, row->heads * row->count);
        if (row->shared) differences(ops, row, &x, "coefficients", x.coefficients, x.dcoefficients, row->count);
        case_free(&x);
    }
    ops->close(ops);
}

static void expect_same_bits(const struct attention_case *row, const char *what, const char *name, const double *a,
                             const double *b, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (memcmp(&a[n], &b[n], sizeof *a) != 0)
            fail_msg("%s: %s: %s[%lld]: expected %.17g, found %.17g", row->name, what, name, (long long)n, a[n], b[n]);
}

static void test_threads(void **state) {
    (void)state;
    static const int counts[] = {2, 3, 5, 16};
    for (int n = 0; n < attention_case_count; n++) {
        struct attention_arrays one, many;
        const struct attention_case *row = &attention_cases[n];
        const struct ops *ops = open_table("cpu", 1, NULL);
        case_fill(row, 7, &one);
        case_run(ops, row, &one, true);
        ops->close(ops);
        for (size_t t = 0; t < sizeof counts / sizeof *counts; t++) {
            char what[40];
            snprintf(what, sizeof what, "%d threads", counts[t]);
            ops = open_table("cpu", counts[t], NULL);
            case_fill(row, 7, &many);
            case_run(ops, row, &many, true);
            ops->close(ops);
            expect_same_bits(row, what, "o", one.o, many.o, case_query_count(row));
            expect_same_bits(row, what, "dq", one.dq, many.dq, case_query_count(row));
            expect_same_bits(row, what, "dk", one.dk, many.dk, case_key_count(row));
            expect_same_bits(row, what, "dv", one.dv, many.dv, case_key_count(row));
            expect_same_bits(row, what, "dcoefficients", one.dcoefficients, many.dcoefficients,
                             row->heads * row->count);
            case_free(&many);
        }
        case_free(&one);
    }
}

/* No output before token t knows that it was changed. */
static void test_no_leak(void **state) {
    (void)state;
    const struct ops *ops = open_table("cpu", 2, NULL);
    for (int n = 0; n < attention_case_count; n++) {
        const struct attention_case *row = &attention_cases[n];
        if (row->bidirectional || row->batch > 1) continue;
        struct attention_arrays before;
        case_fill(row, 8, &before);
        case_run(ops, row, &before, false);
        for (int part = 1; part < 4; part++) {
            const int64_t t = row->length * part / 4;
            struct attention_arrays after;
            case_fill(row, 8, &after);
            for (int64_t d = t * row->heads * row->width; d < case_query_count(row); d++) after.q[d] *= -30;
            for (int64_t d = t * row->groups * row->width; d < case_key_count(row); d++) {
                after.k[d] = 50 - after.k[d];
                after.v[d] *= 1e6;
            }
            case_run(ops, row, &after, false);
            expect_same_bits(row, "a changed future", "o", before.o, after.o, t * row->heads * row->width);
            case_free(&after);
        }
        case_free(&before);
    }
    ops->close(ops);
}

/* The slots that query i of sequence b reads, from the definitions. */
static void list_slots(const struct attention_case *row, const struct attention_arrays *x, int64_t i, int32_t *slots,
                       int32_t *counts) {
    for (int64_t b = 0; b < row->batch; b++)
        for (int m = 0; m < row->count; m++) {
            int32_t *list = slots + (b * row->count + m) * row->length, count = 0;
            for (int64_t j = 0; j < row->length; j++)
                if (case_shows(&row->candidates[m], true, x->start + b * row->length, i, j)) list[count++] = (int32_t)j;
            counts[b * row->count + m] = count;
        }
}

static struct tensor device_copy(const struct ops *ops, enum dtype dtype, const void *from, int64_t count) {
    struct tensor t = tensor_1d(NULL, dtype, count);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    CHECK_OK(ops->upload(ops, t, from));
    return t;
}

static void decode_case(const struct ops *ops, const struct attention_case *row, int64_t every) {
    struct attention_arrays x;
    case_fill(row, 9, &x);
    case_run(ops, row, &x, false);
    const int64_t stride = row->heads * row->width, lists = row->batch * row->count;
    struct tensor q = device_copy(ops, DTYPE_F64, x.q, case_query_count(row));
    struct tensor k = device_copy(ops, DTYPE_F64, x.k, case_key_count(row));
    struct tensor v = device_copy(ops, DTYPE_F64, x.v, case_key_count(row));
    struct tensor o = device_copy(ops, DTYPE_F64, x.q, row->batch * stride);
    struct tensor c = device_copy(ops, DTYPE_F64, x.coefficients, row->heads * row->count);
    int32_t *slots, *counts;
    double *found;
    CHECK_OK(memory_new((size_t)(lists * row->length), sizeof *slots, "slots", &slots));
    CHECK_OK(memory_new((size_t)lists, sizeof *counts, "counts", &counts));
    CHECK_OK(memory_new((size_t)(row->batch * stride), sizeof *found, "outputs", &found));
    for (int64_t i = 0; i < row->length; i += every) {
        list_slots(row, &x, i, slots, counts);
        struct tensor s = device_copy(ops, DTYPE_I32, slots, lists * row->length);
        struct tensor n = device_copy(ops, DTYPE_I32, counts, lists);
        struct attention_decode a = {.count = row->count, .lists = 1, .scale = 1 / sqrt((double)row->width)};
        a.q = tensor_3d((double *)q.data + i * stride, DTYPE_F64, row->batch, row->heads, row->width);
        a.q.stride[0] = row->length * stride;
        a.k = tensor_4d(k.data, DTYPE_F64, row->batch, row->length, row->groups, row->width);
        a.v = tensor_4d(v.data, DTYPE_F64, row->batch, row->length, row->groups, row->width);
        a.o = tensor_3d(o.data, DTYPE_F64, row->batch, row->heads, row->width);
        a.coefficients = row->plain ? tensor_none() : tensor_2d(c.data, DTYPE_F64, row->heads, row->count);
        if (row->shared) a.coefficients.stride[0] = 0;
        a.slots = tensor_3d(s.data, DTYPE_I32, row->batch, row->count, row->length);
        a.slot_counts = tensor_2d(n.data, DTYPE_I32, row->batch, row->count);
        CHECK_OK(ops->attention_decode(ops, &a));
        CHECK_OK(ops->download(ops, o, found));
        for (int64_t b = 0; b < row->batch; b++)
            for (int64_t d = 0; d < stride; d++) {
                const double expected = x.o[(b * row->length + i) * stride + d];
                if (!(fabs(expected - found[b * stride + d]) <= 1e-11 * fmax(1, fabs(expected))))
                    fail_msg("%s: decoding token %lld: expected %.15g, found %.15g", row->name, (long long)i, expected,
                             found[b * stride + d]);
            }
        ops->release(ops, s.data);
        ops->release(ops, n.data);
    }
    struct tensor blocks[] = {q, k, v, o, c};
    for (size_t n = 0; n < sizeof blocks / sizeof *blocks; n++) ops->release(ops, blocks[n].data);
    free(slots);
    free(counts);
    free(found);
    case_free(&x);
}

static void test_decode(void **state) {
    (void)state;
    const struct ops *ops = open_table("cpu-f64", 2, NULL);
    for (int n = 0; n < attention_case_count; n++)
        if (!attention_cases[n].bidirectional)
            decode_case(ops, &attention_cases[n], attention_cases[n].length / 20 + 1);
    ops->close(ops);
}

/* Documents that begin nowhere, slots that are not there. */
static void test_refusals(void **state) {
    (void)state;
    const struct ops *ops = open_table("cpu", 1, NULL);
    float x[4 * 8] = {0}, sums[4];
    int32_t start[4] = {0, 0, 3, 3}, slots[2] = {0, 4}, counts[1] = {2};
    struct attention a = {.count = 1, .causal = true, .scale = 1, .candidates = {FULL}};
    a.q = a.k = a.v = a.o = tensor_4d(x, DTYPE_F32, 1, 4, 1, 8);
    a.start = tensor_2d(start, DTYPE_I32, 1, 4);
    a.log_sums = tensor_4d(sums, DTYPE_F32, 1, 1, 1, 4);
    CHECK_STATUS(STATUS_SHAPE, ops->attention(ops, &a));
    start[2] = -1;
    CHECK_STATUS(STATUS_SHAPE, ops->attention(ops, &a));
    a.candidates[0] = (struct candidate)WINDOW(0);
    start[2] = start[3] = 0;
    CHECK_STATUS(STATUS_SHAPE, ops->attention(ops, &a));
    struct attention_decode d = {.count = 1, .lists = 1, .scale = 1};
    d.q = d.o = tensor_3d(x, DTYPE_F32, 1, 1, 8);
    d.k = d.v = a.k;
    d.slots = tensor_3d(slots, DTYPE_I32, 1, 1, 2);
    d.slot_counts = tensor_2d(counts, DTYPE_I32, 1, 1);
    CHECK_STATUS(STATUS_SHAPE, ops->attention_decode(ops, &d));
    slots[1] = 1;
    counts[0] = 3;
    CHECK_STATUS(STATUS_SHAPE, ops->attention_decode(ops, &d));
    counts[0] = 2;
    CHECK_OK(ops->attention_decode(ops, &d));
    d.lists = 2; /* of one head */
    CHECK_STATUS(STATUS_SHAPE, ops->attention_decode(ops, &d));
    d.lists = 0;
    CHECK_STATUS(STATUS_SHAPE, ops->attention_decode(ops, &d));
    ops->close(ops);
}

/* Two lists of two candidates for four heads: as two calls of two heads each, with a list of its own. */
static void test_lists(void **state) {
    (void)state;
    enum { HEADS = 4, GROUPS = 2, SLOTS = 5, WIDTH = 3, COUNT = 2, LISTS = 2, CAPACITY = 3, HALF = HEADS / LISTS };
    const struct ops *ops = open_table("guard:cpu-f64", 2, NULL);
    double q[HEADS * WIDTH], k[SLOTS * GROUPS * WIDTH], v[SLOTS * GROUPS * WIDTH], c[HEADS * COUNT];
    double expected[HEADS * WIDTH], found[HEADS * WIDTH] = {0};
    int32_t slots[LISTS * COUNT * CAPACITY] = {0, 1, 2, 3, 0, 0, 4, 2, 0, 1, 3, 4},
                                  counts[LISTS * COUNT] = {3, 1, 2, 3};
    for (int n = 0; n < HEADS * WIDTH; n++) q[n] = sin(n + 1);
    for (int n = 0; n < SLOTS * GROUPS * WIDTH; n++) k[n] = cos(3 * n), v[n] = sin(5 * n);
    for (int n = 0; n < HEADS * COUNT; n++) c[n] = 0.25 * (n + 1);
    const struct tensor keys =
        tensor_4d(device_copy(ops, DTYPE_F64, k, SLOTS * GROUPS * WIDTH).data, DTYPE_F64, 1, SLOTS, GROUPS, WIDTH);
    const struct tensor values =
        tensor_4d(device_copy(ops, DTYPE_F64, v, SLOTS * GROUPS * WIDTH).data, DTYPE_F64, 1, SLOTS, GROUPS, WIDTH);
    /* calls: of both lists, of the first, of the second */
    for (int call = 0; call <= LISTS; call++) {
        const int lists = call ? 1 : LISTS, first = call ? call - 1 : 0, heads = HALF * lists;
        struct attention_decode a = {.count = COUNT, .lists = lists, .scale = 0.7, .k = keys, .v = values};
        double *out = call ? expected + first * HALF * WIDTH : found;
        struct tensor parts[] = {
            device_copy(ops, DTYPE_F64, q + first * HALF * WIDTH, heads * WIDTH),
            device_copy(ops, DTYPE_F64, found, heads * WIDTH),
            device_copy(ops, DTYPE_F64, c + first * HALF * COUNT, heads * COUNT),
            device_copy(ops, DTYPE_I32, slots + first * COUNT * CAPACITY, lists * COUNT * CAPACITY),
            device_copy(ops, DTYPE_I32, counts + first * COUNT, lists * COUNT)};
        if (call) { /* one key head a call */
            a.k.shape[2] = a.v.shape[2] = 1;
            a.k.data = (double *)keys.data + first * WIDTH;
            a.v.data = (double *)values.data + first * WIDTH;
        }
        a.q = tensor_3d(parts[0].data, DTYPE_F64, 1, heads, WIDTH);
        a.o = tensor_3d(parts[1].data, DTYPE_F64, 1, heads, WIDTH);
        a.coefficients = tensor_2d(parts[2].data, DTYPE_F64, heads, COUNT);
        a.slots = tensor_3d(parts[3].data, DTYPE_I32, 1, lists * COUNT, CAPACITY);
        a.slot_counts = tensor_2d(parts[4].data, DTYPE_I32, 1, lists * COUNT);
        CHECK_OK(ops->attention_decode(ops, &a));
        CHECK_OK(ops->download(ops, parts[1], out));
        for (size_t n = 0; n < sizeof parts / sizeof *parts; n++) ops->release(ops, parts[n].data);
    }
    for (int n = 0; n < HEADS * WIDTH; n++)
        if (!(fabs(expected[n] - found[n]) <= 1e-14))
            fail_msg("element %d: expected %.15g, found %.15g", n, expected[n], found[n]);
    ops->release(ops, keys.data);
    ops->release(ops, values.data);
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_double),   cmocka_unit_test(test_base),    cmocka_unit_test(test_avx2),
        cmocka_unit_test(test_best),     cmocka_unit_test(test_guarded), cmocka_unit_test(test_differences),
        cmocka_unit_test(test_threads),  cmocka_unit_test(test_no_leak), cmocka_unit_test(test_decode),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
