/* Attention of the CUDA table, executed on the host: against the naive reference in double, in fp32 and in bf16, with
 * dq by a kernel of its own and by atomics, in several orders of threads; decoding against the CPU table.
 * `test_attention_simt TEST ROW` runs the tests of this name (* stands for any letters), of tables the rows whose name starts so.
 *
 * Tolerances. fp32: as for the CPU table, 2e-5 of an array's largest element. bf16, whose unit roundoff is u = 2^-8: the
 * reference gets the rounded inputs, scores and sums are fp32, so log_sums keep fp32's tolerance. What is rounded besides
 * is each weight A_ij (or ds_ij) before its product, and the result: an output's error is at most
 * u (Σ_j |A_ij v_j| + |o_i|), that is 2u of the largest where terms do not cancel, and signed coefficients or gradients
 * (Σ_j ds_ij = 0 in every row) make |terms| a few times |sum|. delta = do·o/c is made from the rounded o: u Σ_d |do o| / |c|.
 * 4u = 2^-6 of the largest element covers that; a mistake of one element is far larger. */
#include "base/memory.h"
#include "ops/attention_case.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const double TOLERANCE_F32 = 2e-5, TOLERANCE_BF16 = 0x1p-6;
enum { LONG = 400 /* tokens: a row that takes seconds */ };

static const char *chosen = "";
static bool is_chosen(const struct attention_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

static const struct ops *open_table(const char *name, bool deterministic) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.threads = 1, .deterministic = deterministic}, &ops));
    return ops;
}

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

static void run_case(const struct ops *ops, const struct attention_case *row, uint64_t seed, bool backward) {
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
    if (bf16) check_log_sums(row, &expected, &found, TOLERANCE_F32 * factor);
    case_compare(row, ops->name, &expected, &found, bf16 ? TOLERANCE_BF16 : TOLERANCE_F32 * factor);
    case_free(&expected);
    case_free(&found);
}

/* Every row of the table that all tests of attention walk; dq both ways, by turns. Of the longest rows only one goes
 * backward, in fp32: what they add is the walk over many tiles, which no type knows of. */
static void run_table(const char *name) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = open_table(name, deterministic);
        const bool bf16 = ops->real == DTYPE_BF16;
        for (int n = deterministic; n < attention_case_count; n += 2) {
            const struct attention_case *row = &attention_cases[n];
            if (!is_chosen(row) || (bf16 && row->length > LONG)) continue;
            const bool backward = row->length > LONG ? row->cuts[0] && row->count == 1 : !bf16 || n % 3 == 0;
            run_case(ops, row, (uint64_t)n, backward);
        }
        ops->close(ops);
    }
}
static void test_table_f32(void **state) {
    (void)state;
    simt_set_order(SIMT_REVERSE, 1);
    run_table("cuda-f32");
}
static void test_table_bf16(void **state) {
    (void)state;
    simt_set_order(SIMT_RANDOM, 2);
    run_table("cuda");
}

/* Lengths and widths around the tiles' edges; rows of memory that no load of 16 bytes may touch (`fused` with an odd width). */
static const struct attention_case shapes[] = {
    {"T 1, D 256", 1, 1, 4, 2, 256, 1, {FULL}, .plain = true},
    {"T 7, D 24, documents", 2, 7, 6, 2, 24, 1, {FULL}, .plain = true, .cuts = {1, 5}},
    {"T 31, D 7, unaligned", 1, 31, 3, 1, 7, 2, {FULL, OFFSET(3)}, .coefficients = {{1, -0.5}, {0.5, 1}}, .fused = true},
    {"T 33, D 48", 1, 33, 4, 2, 48, 2, {WINDOW(9), SINKS(2)}, .coefficients = {{1, 0.5}, {0.5, 0}}},
    {"T 63, D 8, MQA", 1, 63, 4, 1, 8, 1, {BLOCKS(16)}, .coefficients = {{1}, {0.5}}},
    {"T 64, D 64, fused", 1, 64, 2, 2, 64, 1, {FULL}, .plain = true, .fused = true},
    {"T 65, D 20, unaligned", 1, 65, 2, 1, 20, 1, {FULL}, .plain = true, .fused = true, .bidirectional = true},
    {"T 65, D 128", 1, 65, 4, 2, 128, 1, {FULL}, .plain = true},
    {"T 129, D 80", 1, 129, 2, 1, 80, 2, {FULL, STRIDE(7)}, .coefficients = {{1, 0.5}, {0, 1}}, .dead_gradients = true},
    {"T 129, D 200", 1, 129, 2, 2, 200, 1, {WINDOW(70)}, .coefficients = {{1}, {-1}}},
    {"T 200, D 256", 1, 200, 1, 1, 256, 1, {FULL}, .plain = true, .cuts = {3, 100}},
    /* Steps that leave whole tiles out, with the only key of a tile at either of its ends. */
    {"T 400, far steps", 1, 400, 1, 1, 8, 3, {DILATED(3, 130), STRIDE(96), OFFSET(200)}, .coefficients = {{1, 0.5, -1}}},
    {"T 390, far steps, both directions", 1, 390, 1, 1, 8, 3, {DILATED(3, 127), STRIDE(95), OFFSET(191)},
     .coefficients = {{1, 0.5, -1}}, .bidirectional = true},
    {"T 40, D 256, mixture", 1, 40, 2, 1, 256, 2, {FULL, DILATED(4, 3)}, .coefficients = {{1, 0.5}, {0.5, -1}}},
};

static void run_shapes(const char *name, size_t turn) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = open_table(name, deterministic);
        for (size_t n = 0; n < sizeof shapes / sizeof *shapes; n++) {
            if (!is_chosen(&shapes[n]) || (n + turn) % 2 != (size_t)deterministic) continue;
            simt_set_order((enum simt_order)(n / 2 % 3), n);
            run_case(ops, &shapes[n], n, true);
        }
        ops->close(ops);
    }
}
static void test_shapes_f32(void **state) {
    (void)state;
    run_shapes("cuda-f32", 0);
}
static void test_shapes_bf16(void **state) {
    (void)state;
    run_shapes("cuda", 1);
}

/* `deterministic`: every output has the same bits whatever order the threads and blocks run in. */
static void test_order(void **state) {
    (void)state;
    static const struct attention_case rows[] = {
        {"plain", 1, 100, 2, 1, 16, 1, {FULL}, .plain = true, .cuts = {40}},
        {"mixture", 2, 50, 2, 1, 16, 2, {FULL, WINDOW(9)}, .coefficients = {{1, 0.5}, {0.5, -0.5}}, .shared = true},
    };
    const struct ops *ops = open_table("cuda", true);
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const struct attention_case *row = &rows[n];
        struct attention_arrays found[3];
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            simt_set_order((enum simt_order)order, 9);
            case_fill(row, 5, &found[order]);
            case_run(ops, row, &found[order], true);
        }
        const size_t queries = (size_t)case_query_count(row), keys = (size_t)case_key_count(row);
        for (int order = SIMT_REVERSE; order <= SIMT_RANDOM; order++) {
            assert_memory_equal(found[0].o, found[order].o, queries * sizeof(double));
            assert_memory_equal(found[0].dq, found[order].dq, queries * sizeof(double));
            assert_memory_equal(found[0].dk, found[order].dk, keys * sizeof(double));
            assert_memory_equal(found[0].dv, found[order].dv, keys * sizeof(double));
            assert_memory_equal(found[0].dcoefficients, found[order].dcoefficients,
                                (size_t)(row->heads * row->count) * sizeof(double));
        }
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) case_free(&found[order]);
    }
    ops->close(ops);
}

/* One token's decoding on a table. slots [B,rows,S], counts [B,rows], rows = lists · count. o [B,H,D]. */
struct decoding {
    int64_t batch, cache, heads, groups, width, capacity;
    int count, lists;
    const double *q, *k, *v, *coefficients; /* q: [B,H,D]; NULL coefficients: none */
    const int32_t *slots, *counts;
    bool shared;
};

static struct tensor ids_on_device(const struct ops *ops, const int32_t *from, int64_t count) {
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
                         ids_on_device(ops, d->slots, d->batch * rows * d->capacity),
                         ids_on_device(ops, d->counts, d->batch * rows),
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

static void compare_decode(const char *what, const struct ops *ops, const struct ops *oracle, const struct decoding *d, double factor) {
    const int64_t count = d->batch * d->heads * d->width;
    double *expected, *found, largest = 0.2;
    CHECK_OK(memory_new((size_t)count, sizeof *expected, "outputs", &expected));
    CHECK_OK(memory_new((size_t)count, sizeof *found, "outputs", &found));
    decode(oracle, d, expected);
    decode(ops, d, found);
    for (int64_t n = 0; n < count; n++) largest = fmax(largest, fabs(expected[n]));
    /* Weights stay fp32: bf16 rounds nothing but the result, by 2^-8 of itself. */
    const double tolerance = ops->real == DTYPE_BF16 ? 0x1p-8 + TOLERANCE_F32 * factor : TOLERANCE_F32 * factor;
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * largest))
            fail_msg("%s, %s: o[%lld]: expected %.9g, found %.9g", what, ops->name, (long long)n, expected[n], found[n]);
    free(expected);
    free(found);
}

/* The last token of a row of the table, and one in its middle, from the lists that the definitions give. */
static void decode_row(const struct ops *ops, const struct ops *oracle, const struct attention_case *row, int64_t i) {
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
    const struct decoding d = {row->batch, row->length, row->heads, row->groups, row->width, row->length, row->count, 1, q, x.k, x.v,
                               row->plain ? NULL : x.coefficients, slots, counts, row->shared};
    compare_decode(row->name, ops, oracle, &d, row->magnitude > 0 ? row->magnitude : 1);
    free(q);
    free(slots);
    free(counts);
    case_free(&x);
}

static void run_decode(const char *name) {
    const struct ops *ops = open_table(name, true), *oracle = open_table("cpu-f64", true);
    for (int n = 0; n < attention_case_count; n++) {
        const struct attention_case *row = &attention_cases[n];
        if (!is_chosen(row) || row->bidirectional) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        decode_row(ops, oracle, row, row->length - 1);
        decode_row(ops, oracle, row, row->length / 2);
    }
    for (size_t n = 0; n < sizeof shapes / sizeof *shapes; n++)
        if (is_chosen(&shapes[n]) && !shapes[n].bidirectional) decode_row(ops, oracle, &shapes[n], shapes[n].length - 1);
    ops->close(ops);
    oracle->close(oracle);
}
static void test_decode_f32(void **state) {
    (void)state;
    run_decode("cuda-f32");
}
static void test_decode_bf16(void **state) {
    (void)state;
    run_decode("cuda");
}

/* Lists of other heads' own, a slot listed twice, an empty list, lists long enough to be divided among blocks. */
static void test_lists(void **state) {
    (void)state;
    enum { BATCH = 2, HEADS = 4, GROUPS = 2, CACHE = 700, WIDTH = 24, COUNT = 2, LISTS = 2, CAPACITY = 600, ROWS = LISTS * COUNT };
    const struct attention_case row = {"lists", BATCH, CACHE, HEADS, GROUPS, WIDTH, COUNT, {FULL, FULL}, .coefficients = {{1, -0.5}, {0.5, 2}}};
    struct attention_arrays x;
    case_fill(&row, 21, &x);
    case_round(&row, &x);
    static int32_t slots[BATCH * ROWS * CAPACITY];
    const int32_t counts[BATCH * ROWS] = {600, 1, 599, 300, 257, 0, 2, 600};
    for (int n = 0; n < BATCH * ROWS * CAPACITY; n++) slots[n] = (int32_t)((n * 37 + n / CAPACITY) % CACHE);
    slots[1] = slots[0];
    const struct ops *oracle = open_table("cpu-f64", true);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = open_table(bf16 ? "cuda" : "cuda-f32", true);
        const struct decoding d = {BATCH, CACHE, HEADS, GROUPS, WIDTH, CAPACITY, COUNT, LISTS, x.q, x.k, x.v, x.coefficients, slots, counts, false};
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            simt_set_order((enum simt_order)order, 21);
            compare_decode("lists", ops, oracle, &d, 1);
        }
        ops->close(ops);
    }
    oracle->close(oracle);
    case_free(&x);
}

/* Strides so wide that an element's place needs more than 32 bits: the memory is only reserved, and pages that are not touched cost
 * nothing. What lies on the device of tests/simt the host may touch. */
static void test_far_elements(void **state) {
    (void)state;
    enum { BATCH = 2, LENGTH = 3, HEADS = 2, WIDTH = 8, VIEWS = 8 };
    const int64_t step = ((int64_t)1 << 30) + 64; /* of heads; tokens are two of them apart, sequences six */
    const int64_t count = BATCH * LENGTH * HEADS * step;
    const struct attention_case row = {"far", BATCH, LENGTH, HEADS, HEADS, WIDTH, 1, {FULL}, .plain = true};
    struct attention_arrays expected;
    case_fill(&row, 31, &expected);
    case_reference(&row, &expected);
    float *memory = mmap(NULL, (size_t)count * sizeof(float), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) { /* a machine that reserves no more than it has */
        case_free(&expected);
        CHECK_SKIP("far elements: no address space for %lld of them", (long long)count);
    }
    double *const arrays[VIEWS] = {expected.q, expected.k, expected.v, expected.d_o, expected.o, expected.dq, expected.dk, expected.dv};
    struct tensor views[VIEWS];
    for (int n = 0; n < VIEWS; n++) {
        views[n] = tensor_4d(memory + n * WIDTH, DTYPE_F32, BATCH, LENGTH, HEADS, WIDTH);
        views[n].stride[0] = LENGTH * HEADS * step;
        views[n].stride[1] = HEADS * step;
        views[n].stride[2] = step;
        for (int64_t i = 0; n < 4 && i < BATCH * LENGTH * HEADS; i++)
            for (int64_t d = 0; d < WIDTH; d++) ((float *)views[n].data)[i * step + d] = (float)arrays[n][i * WIDTH + d];
    }
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = open_table("cuda-f32", deterministic);
        struct attention_backward g = {.d_o = views[3], .dq = views[5], .dk = views[6], .dv = views[7]};
        const struct tensor start = ids_on_device(ops, expected.start, BATCH * LENGTH);
        const struct tensor sums = case_to_device(ops, DTYPE_F32, expected.log_sums, BATCH * HEADS * LENGTH);
        g.forward = (struct attention){views[0], views[1], views[2], tensor_2d(start.data, DTYPE_I32, BATCH, LENGTH), tensor_none(), views[4],
                                       tensor_4d(sums.data, DTYPE_F32, BATCH, HEADS, 1, LENGTH), {FULL}, 1, true, 1 / sqrt((double)WIDTH)};
        CHECK_OK(ops->attention(ops, &g.forward));
        CHECK_OK(ops->attention_backward(ops, &g));
        CHECK_OK(ops->synchronise(ops));
        for (int n = 4; n < VIEWS; n++)
            for (int64_t i = 0; i < BATCH * LENGTH * HEADS; i++)
                for (int64_t d = 0; d < WIDTH; d++) {
                    float *found = (float *)views[n].data + i * step + d;
                    if (!(fabs(arrays[n][i * WIDTH + d] - (double)*found) <= TOLERANCE_F32 * 4))
                        fail_msg("far: view %d, row %lld: expected %.9g, found %.9g", n, (long long)i, arrays[n][i * WIDTH + d], (double)*found);
                    *found = NAN;
                }
        ops->release(ops, start.data);
        ops->release(ops, sums.data);
        ops->close(ops);
    }
    munmap(memory, (size_t)count * sizeof(float));
    case_free(&expected);
}

/* Heads that are too wide; documents that begin nowhere and slots that are not there lead to no memory that is not the tensors'. */
static void test_wrong_inputs(void **state) {
    (void)state;
    const struct ops *ops = open_table("cuda-f32", true);
    enum { LENGTH = 40, WIDTH = 8 };
    error_clear();
    double zeros[LENGTH * 257] = {0};
    const struct tensor block = case_to_device(ops, DTYPE_F32, zeros, LENGTH * 257);
    const struct tensor wide = tensor_4d(block.data, DTYPE_F32, 1, 1, 1, 257), x = tensor_4d(block.data, DTYPE_F32, 1, LENGTH, 1, WIDTH);
    const struct tensor o = case_to_device(ops, DTYPE_F32, zeros, LENGTH * WIDTH), sums = case_to_device(ops, DTYPE_F32, zeros, LENGTH);
    int32_t starts[LENGTH];
    for (int i = 0; i < LENGTH; i++) starts[i] = i % 3 == 0 ? -1000 * i : 1000 * i - 7;
    const struct tensor start = ids_on_device(ops, starts, LENGTH);
    struct attention a = {.q = wide, .k = wide, .v = wide, .o = wide, .count = 1, .causal = true, .scale = 1, .candidates = {FULL}};
    a.start = tensor_2d(start.data, DTYPE_I32, 1, 1);
    a.log_sums = tensor_4d(sums.data, DTYPE_F32, 1, 1, 1, 1);
    if (ops->attention(ops, &a) != STATUS_SHAPE || !strstr(error_message(), "257")) fail_msg("a head of 257: %s", error_message());
    error_clear();
    a.q = a.k = a.v = x;
    a.o = tensor_4d(o.data, DTYPE_F32, 1, LENGTH, 1, WIDTH);
    a.start = tensor_2d(start.data, DTYPE_I32, 1, LENGTH);
    a.log_sums = tensor_4d(sums.data, DTYPE_F32, 1, 1, 1, LENGTH);
    static const struct candidate kinds[] = {FULL, WINDOW(3), SINKS(2), OFFSET(4), DILATED(3, 5), STRIDE(3), BLOCKS(4), OFFSET(INT32_MAX),
                                             DILATED(INT32_MAX, INT32_MAX), STRIDE(INT32_MAX), WINDOW(INT32_MAX), BLOCKS(INT32_MAX), SINKS(INT32_MAX)};
    for (size_t n = 0; n < 2 * sizeof kinds / sizeof *kinds; n++) {
        a.candidates[0] = kinds[n / 2];
        a.causal = n % 2;
        CHECK_OK(ops->attention(ops, &a));
        CHECK_OK(ops->synchronise(ops));
    }
    struct attention_decode d = {.count = 1, .lists = 1, .scale = 1, .q = tensor_3d(o.data, DTYPE_F32, 1, 1, WIDTH), .k = x, .v = x};
    const int32_t slots[3] = {-5, 40, 1 << 30}, counts[1] = {1000};
    const struct tensor listed = ids_on_device(ops, slots, 3), count = ids_on_device(ops, counts, 1);
    d.o = d.q;
    d.slots = tensor_3d(listed.data, DTYPE_I32, 1, 1, 3);
    d.slot_counts = tensor_2d(count.data, DTYPE_I32, 1, 1);
    CHECK_OK(ops->attention_decode(ops, &d));
    CHECK_OK(ops->synchronise(ops));
    const struct tensor blocks[] = {block, o, sums, start, listed, count};
    for (size_t n = 0; n < sizeof blocks / sizeof *blocks; n++) ops->release(ops, blocks[n].data);
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes_f32), cmocka_unit_test(test_shapes_bf16), cmocka_unit_test(test_order),
        cmocka_unit_test(test_decode_f32), cmocka_unit_test(test_decode_bf16), cmocka_unit_test(test_lists),
        cmocka_unit_test(test_far_elements), cmocka_unit_test(test_wrong_inputs), cmocka_unit_test(test_table_f32),
        cmocka_unit_test(test_table_bf16),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
