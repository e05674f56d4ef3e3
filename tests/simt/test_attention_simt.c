/* Attention of the CUDA table, executed on the host: against the naive reference in double, in fp32 and in bf16, with
 * dq by a kernel of its own and by atomics, in several orders of threads; decoding against the CPU table.
 * `test_attention_simt TEST ROW` runs the tests of this name (* stands for any letters), of tables the rows whose name
 * starts so. Tolerances: ops/attention_device.h. */
#include "ops/attention_device.h"
#include "simt/far.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <string.h>

enum { LONG = 400 /* tokens: a row that takes seconds */ };

static const char *chosen = "";
static bool is_chosen(const struct attention_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

/* Every row of the table that all tests of attention walk; dq both ways, by turns. Of the longest rows only one goes
 * backward, in fp32: what they add is the walk over many tiles, which no type knows of. */
static void run_table(const char *name) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        const bool bf16 = ops->real == DTYPE_BF16;
        for (int n = deterministic; n < attention_case_count; n += 2) {
            const struct attention_case *row = &attention_cases[n];
            if (!is_chosen(row) || (bf16 && row->length > LONG)) continue;
            const bool backward = row->length > LONG ? row->cuts[0] && row->count == 1 : !bf16 || n % 3 == 0;
            device_attention(ops, row, (uint64_t)n, backward);
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

static void run_shapes(const char *name, size_t turn) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        for (size_t n = 0; n < (size_t)device_shape_count; n++) {
            if (!is_chosen(&device_shapes[n]) || (n + turn) % 2 != (size_t)deterministic) continue;
            simt_set_order((enum simt_order)(n / 2 % 3), n);
            device_attention(ops, &device_shapes[n], n, true);
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
    const struct ops *ops = device_table("cuda", true);
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

static void run_decode(const char *name) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    for (int n = 0; n < attention_case_count; n++) {
        const struct attention_case *row = &attention_cases[n];
        if (!is_chosen(row) || row->bidirectional) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        device_decode_row(ops, oracle, row, row->length - 1);
        device_decode_row(ops, oracle, row, row->length / 2);
    }
    for (size_t n = 0; n < (size_t)device_shape_count; n++)
        if (is_chosen(&device_shapes[n]) && !device_shapes[n].bidirectional)
            device_decode_row(ops, oracle, &device_shapes[n], device_shapes[n].length - 1);
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

static void test_lists(void **state) {
    (void)state;
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            simt_set_order((enum simt_order)order, 21);
            device_decode_lists(ops, oracle);
        }
        ops->close(ops);
    }
    oracle->close(oracle);
}

/* Strides so wide that an element's place needs more than 32 bits: the memory is only reserved, and pages that are not
 * touched cost nothing. What lies on the device of tests/simt the host may touch. */
static void test_far_elements(void **state) {
    (void)state;
    enum { BATCH = 2, LENGTH = 3, HEADS = 2, WIDTH = 8, VIEWS = 8 };
    const int64_t step = ((int64_t)1 << 30) + 64; /* of heads; tokens are two of them apart, sequences six */
    const int64_t count = BATCH * LENGTH * HEADS * step;
    const struct attention_case row = {"far", BATCH, LENGTH, HEADS, HEADS, WIDTH, 1, {FULL}, .plain = true};
    struct attention_arrays expected;
    case_fill(&row, 31, &expected);
    case_reference(&row, &expected);
    float *memory = far_reserve(count);
    if (!memory) { /* a machine that reserves no more than it has */
        case_free(&expected);
        CHECK_SKIP("far elements: no address space for %lld of them", (long long)count);
    }
    double *const arrays[VIEWS] = {expected.q, expected.k,  expected.v,  expected.d_o,
                                   expected.o, expected.dq, expected.dk, expected.dv};
    struct tensor views[VIEWS];
    for (int n = 0; n < VIEWS; n++) {
        views[n] = tensor_4d(memory + n * WIDTH, DTYPE_F32, BATCH, LENGTH, HEADS, WIDTH);
        views[n].stride[0] = LENGTH * HEADS * step;
        views[n].stride[1] = HEADS * step;
        views[n].stride[2] = step;
        for (int64_t i = 0; n < 4 && i < BATCH * LENGTH * HEADS; i++)
            for (int64_t d = 0; d < WIDTH; d++)
                ((float *)views[n].data)[i * step + d] = (float)arrays[n][i * WIDTH + d];
    }
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table("cuda-f32", deterministic);
        struct attention_backward g = {.d_o = views[3], .dq = views[5], .dk = views[6], .dv = views[7]};
        const struct tensor start = device_ids(ops, expected.start, BATCH * LENGTH);
        const struct tensor sums = case_to_device(ops, DTYPE_F32, expected.log_sums, BATCH * HEADS * LENGTH);
        g.forward = (struct attention){views[0],
                                       views[1],
                                       views[2],
                                       tensor_2d(start.data, DTYPE_I32, BATCH, LENGTH),
                                       tensor_none(),
                                       views[4],
                                       tensor_4d(sums.data, DTYPE_F32, BATCH, HEADS, 1, LENGTH),
                                       {FULL},
                                       1,
                                       true,
                                       1 / sqrt((double)WIDTH)};
        CHECK_OK(ops->attention(ops, &g.forward));
        CHECK_OK(ops->attention_backward(ops, &g));
        CHECK_OK(ops->synchronise(ops));
        for (int n = 4; n < VIEWS; n++)
            for (int64_t i = 0; i < BATCH * LENGTH * HEADS; i++)
                for (int64_t d = 0; d < WIDTH; d++) {
                    float *found = (float *)views[n].data + i * step + d;
                    if (!(fabs(arrays[n][i * WIDTH + d] - (double)*found) <= ATTENTION_F32 * 4))
                        fail_msg("far: view %d, row %lld: expected %.9g, found %.9g", n, (long long)i,
                                 arrays[n][i * WIDTH + d], (double)*found);
                    *found = NAN;
                }
        ops->release(ops, start.data);
        ops->release(ops, sums.data);
        ops->close(ops);
    }
    far_release(memory, count);
    case_free(&expected);
}

/* Heads that are too wide; documents that begin nowhere and slots that are not there lead to no memory that is not the
 * tensors'. */
static void test_wrong_inputs(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda-f32", true);
    enum { LENGTH = 40, WIDTH = 8 };
    error_clear();
    double zeros[LENGTH * 257] = {0};
    const struct tensor block = case_to_device(ops, DTYPE_F32, zeros, LENGTH * 257);
    const struct tensor wide = tensor_4d(block.data, DTYPE_F32, 1, 1, 1, 257),
                        x = tensor_4d(block.data, DTYPE_F32, 1, LENGTH, 1, WIDTH);
    const struct tensor o = case_to_device(ops, DTYPE_F32, zeros, LENGTH * WIDTH),
                        sums = case_to_device(ops, DTYPE_F32, zeros, LENGTH);
    int32_t starts[LENGTH];
    for (int i = 0; i < LENGTH; i++) starts[i] = i % 3 == 0 ? -1000 * i : 1000 * i - 7;
    const struct tensor start = device_ids(ops, starts, LENGTH);
    struct attention a = {
        .q = wide, .k = wide, .v = wide, .o = wide, .count = 1, .causal = true, .scale = 1, .candidates = {FULL}};
    a.start = tensor_2d(start.data, DTYPE_I32, 1, 1);
    a.log_sums = tensor_4d(sums.data, DTYPE_F32, 1, 1, 1, 1);
    if (ops->attention(ops, &a) != STATUS_SHAPE || !strstr(error_message(), "257"))
        fail_msg("a head of 257: %s", error_message());
    error_clear();
    a.q = a.k = a.v = x;
    a.o = tensor_4d(o.data, DTYPE_F32, 1, LENGTH, 1, WIDTH);
    a.start = tensor_2d(start.data, DTYPE_I32, 1, LENGTH);
    a.log_sums = tensor_4d(sums.data, DTYPE_F32, 1, 1, 1, LENGTH);
    static const struct candidate kinds[] = {FULL,
                                             WINDOW(3),
                                             SINKS(2),
                                             OFFSET(4),
                                             DILATED(3, 5),
                                             STRIDE(3),
                                             BLOCKS(4),
                                             OFFSET(INT32_MAX),
                                             DILATED(INT32_MAX, INT32_MAX),
                                             STRIDE(INT32_MAX),
                                             WINDOW(INT32_MAX),
                                             BLOCKS(INT32_MAX),
                                             SINKS(INT32_MAX)};
    for (size_t n = 0; n < 2 * sizeof kinds / sizeof *kinds; n++) {
        a.candidates[0] = kinds[n / 2];
        a.causal = n % 2;
        CHECK_OK(ops->attention(ops, &a));
        CHECK_OK(ops->synchronise(ops));
    }
    struct attention_decode d = {
        .count = 1, .lists = 1, .scale = 1, .q = tensor_3d(o.data, DTYPE_F32, 1, 1, WIDTH), .k = x, .v = x};
    const int32_t slots[3] = {-5, 40, 1 << 30}, counts[1] = {1000};
    const struct tensor listed = device_ids(ops, slots, 3), count = device_ids(ops, counts, 1);
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
        cmocka_unit_test(test_shapes_f32),   cmocka_unit_test(test_shapes_bf16),  cmocka_unit_test(test_order),
        cmocka_unit_test(test_decode_f32),   cmocka_unit_test(test_decode_bf16),  cmocka_unit_test(test_lists),
        cmocka_unit_test(test_far_elements), cmocka_unit_test(test_wrong_inputs), cmocka_unit_test(test_table_f32),
        cmocka_unit_test(test_table_bf16),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
