/* The compressed branch of kind nsa on the CUDA table, executed on the host: against the oracle in double, in fp32 and
 * in bf16, in several orders of threads; its choice, its decoding; under the guard; far in memory; with inputs that are
 * wrong or extreme. `test_compressed_simt TEST ROW` runs the tests of this name (* stands for any letters), of tables
 * the rows whose name starts so. Tolerances: ops/compressed_device.h. */
#include "ops/attention_device.h"
#include "ops/case_arrays.h"
#include "ops/compressed_device.h"
#include "simt/far.h"
#include "simt/guarded.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LONG = 400 /* tokens: a row that takes seconds */ };

static const char *chosen = "";
static bool is_chosen(const struct nsa_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

/* Rows by turns, with dq by a kernel of its own and by atomics. */
static void run_rows(const char *name, const struct nsa_case *rows, int count, int turn) {
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        for (int n = 0; n < count; n++) {
            if (!is_chosen(&rows[n]) || (n + turn) % 2 != deterministic || rows[n].length > 500) continue;
            if (ops->real == DTYPE_BF16 && rows[n].length > LONG) continue;
            simt_set_order((enum simt_order)((n + turn) % 3), (uint64_t)n);
            compressed_row(ops, oracle, &rows[n]);
        }
        ops->close(ops);
    }
    oracle->close(oracle);
}
static void test_table_f32(void **state) {
    (void)state;
    run_rows("cuda-f32", nsa_cases, nsa_case_count, 0);
}
static void test_table_bf16(void **state) {
    (void)state;
    run_rows("cuda", nsa_cases, nsa_case_count, 1);
}
static void test_shapes_f32(void **state) {
    (void)state;
    run_rows("cuda-f32", compressed_shapes, compressed_shape_count, 0);
}
static void test_shapes_bf16(void **state) {
    (void)state;
    run_rows("cuda", compressed_shapes, compressed_shape_count, 1);
}

static void with_tables(void (*body)(const struct ops *ops, const struct ops *oracle)) {
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        simt_set_order(bf16 ? SIMT_RANDOM : SIMT_REVERSE, 5);
        body(ops, oracle);
        ops->close(ops);
    }
    oracle->close(oracle);
}
static void test_gates(void **state) {
    (void)state;
    with_tables(compressed_gates);
}
static void test_decode(void **state) {
    (void)state;
    with_tables(compressed_decoding);
}
static void check_ties(const struct ops *ops, const struct ops *oracle) {
    (void)oracle;
    compressed_ties(ops);
}
static void test_ties(void **state) {
    (void)state;
    with_tables(check_ties);
}
static void check_alone(const struct ops *ops, const struct ops *oracle) {
    (void)oracle;
    compressed_alone(ops, &nsa_cases[7]);
    compressed_alone(ops, &compressed_shapes[1]);
}
static void test_alone(void **state) {
    (void)state;
    with_tables(check_alone);
}

/* `deterministic`: every output has the same bits whatever order the threads and blocks run in. */
static void test_order(void **state) {
    (void)state;
    static const struct nsa_case rows[] = {
        {"bits: groups, documents", 2, 90, 4, 2, 16, 4, 2, 4, 5, 4, 2, false, {31}, false},
        {"bits: candidates in global memory", 1, 240, 1, 1, 8, 1, 1, 1, 110, 4, 1, false, {0}, false},
    };
    const struct ops *ops = device_table("cuda", true), *oracle = device_table("cpu-f64", true);
    const int parts = NSA_COMPRESS | NSA_COARSE | NSA_GATES | NSA_BACKWARD;
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const struct nsa_case *row = &rows[n];
        struct nsa_arrays found[3], expected;
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            simt_set_order((enum simt_order)order, 9);
            compressed_expect(oracle, true, row, parts, &expected, &found[order]);
            nsa_run(ops, row, &found[order], parts);
            nsa_free(&expected);
        }
        for (int order = SIMT_REVERSE; order <= SIMT_RANDOM; order++) {
            for (int g = 0; g < NSA_LEARNING; g++)
                assert_memory_equal(found[0].gradients[g], found[order].gradients[g],
                                    (size_t)nsa_count(row, g) * sizeof(double));
            for (int o = 0; o < NSA_OUTPUTS; o++)
                assert_memory_equal(found[0].outputs[o], found[order].outputs[o],
                                    (size_t)nsa_output_count(row, o) * sizeof(double));
            for (int b = 0; b < NSA_BETWEENS; b++)
                assert_memory_equal(found[0].between[b], found[order].between[b],
                                    (size_t)nsa_between_count(row, b) * sizeof(double));
            assert_memory_equal(found[0].chosen, found[order].chosen, (size_t)nsa_chosen_count(row) * sizeof(int32_t));
        }
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) nsa_free(&found[order]);
    }
    ops->close(ops);
    oracle->close(oracle);
}

/* Under the guard: outputs are written whole, and nothing else is. Here a GPU's memory can be read as it is. */
static void test_guarded(void **state) {
    (void)state;
    const struct ops *oracle = device_table("cpu-f64", true);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct guarded g;
        guarded_open(&g, bf16 ? "cuda" : "cuda-f32", true);
        simt_set_order(bf16 ? SIMT_REVERSE : SIMT_RANDOM, 3);
        for (int n = bf16; n < nsa_case_count; n += 2)
            if (nsa_cases[n].length <= 129) compressed_row(g.guard, oracle, &nsa_cases[n]);
        compressed_row(g.guard, oracle, &compressed_shapes[0]);
        compressed_gates(g.guard, oracle);
        compressed_decoding(g.guard, oracle);
        guarded_close(&g);
    }
    oracle->close(oracle);
}

/* --- far elements ------------------------------------------------------------------------------------------------- */

/* Views of one operation each, [B,T or Nb,H or G,D]; dense, or with strides so wide that an element's place needs more
 * than 32 bits. */
enum { FAR_BATCH = 2, FAR_LENGTH = 6, FAR_HEADS = 2, FAR_WIDTH = 8, FAR_BLOCKS = 5, FAR_VIEWS = 10 };
struct far_views {
    struct tensor q, k, v, o, d_o, dq, dk, dv, mixed, x;
    float log_sums[FAR_BATCH * FAR_HEADS * FAR_LENGTH], logits[FAR_BATCH * FAR_LENGTH * FAR_HEADS];
    float out[FAR_BATCH * FAR_BLOCKS * FAR_HEADS * FAR_WIDTH], pre[2 * FAR_BATCH * FAR_BLOCKS * FAR_HEADS * FAR_WIDTH];
    float dlogits[FAR_BATCH * FAR_LENGTH * FAR_HEADS];
    int32_t start[FAR_BATCH * FAR_LENGTH], chosen[FAR_BATCH * FAR_LENGTH * FAR_HEADS * 3];
};

/* What lies on the device of tests/simt the host may touch. */
static void run_far(const struct ops *ops, struct far_views *x) {
    static float w1[2 * FAR_WIDTH * 2 * FAR_WIDTH], b1[2 * FAR_WIDTH], w2[2 * FAR_WIDTH * FAR_WIDTH],
        places[2 * FAR_WIDTH];
    for (size_t n = 0; n < sizeof w1 / sizeof *w1; n++) w1[n] = (float)case_draw((int64_t)n, 50);
    for (size_t n = 0; n < sizeof w2 / sizeof *w2; n++) w2[n] = (float)case_draw((int64_t)n, 51);
    struct tensor *const inputs[] = {&x->q, &x->k, &x->v, &x->d_o};
    for (int n = 0; n < 4; n++)
        for (int64_t i = 0; i < tensor_count(*inputs[n]); i++) *far_element(*inputs[n], i) = (float)case_draw(i, n);
    for (int64_t i = 0; i < tensor_count(x->x); i++) *far_element(x->x, i) = 0;
    const struct tensor start = tensor_2d(x->start, DTYPE_I32, FAR_BATCH, FAR_LENGTH);
    struct compressed_attention_backward a = {.d_o = x->d_o, .dq = x->dq, .dk = x->dk, .dv = x->dv};
    a.forward = (struct compressed_attention){x->q,
                                              x->k,
                                              x->v,
                                              start,
                                              x->o,
                                              tensor_3d(x->log_sums, DTYPE_F32, FAR_BATCH, FAR_HEADS, FAR_LENGTH),
                                              tensor_4d(x->chosen, DTYPE_I32, FAR_BATCH, FAR_LENGTH, FAR_HEADS, 3),
                                              2,
                                              1,
                                              1,
                                              3,
                                              1,
                                              0.4};
    struct gate_mix_backward m = {.d_o = x->d_o, .d_branches = {x->dq, x->mixed}};
    m.forward = (struct gate_mix){
        {x->q, x->o}, tensor_3d(x->logits, DTYPE_F32, FAR_BATCH, FAR_LENGTH, FAR_HEADS), x->mixed, 2, true};
    m.dlogits = tensor_3d(x->dlogits, DTYPE_F32, FAR_BATCH, FAR_LENGTH, FAR_HEADS);
    struct block_compress_backward c = {.dx = x->x};
    c.forward = (struct block_compress){x->q,
                                        start,
                                        tensor_2d(w1, DTYPE_F32, 2 * FAR_WIDTH, 2 * FAR_WIDTH),
                                        tensor_1d(b1, DTYPE_F32, 2 * FAR_WIDTH),
                                        tensor_2d(w2, DTYPE_F32, FAR_WIDTH, 2 * FAR_WIDTH),
                                        tensor_2d(places, DTYPE_F32, 2, FAR_WIDTH),
                                        tensor_4d(x->out, DTYPE_F32, FAR_BATCH, FAR_BLOCKS, FAR_HEADS, FAR_WIDTH),
                                        tensor_4d(x->pre, DTYPE_F32, FAR_BATCH, FAR_BLOCKS, FAR_HEADS, 2 * FAR_WIDTH),
                                        2,
                                        1};
    c.d_out = c.forward.out;
    CHECK_OK(ops->compressed_attention(ops, &a.forward));
    CHECK_OK(ops->compressed_attention_backward(ops, &a));
    CHECK_OK(ops->block_compress(ops, &c.forward));
    CHECK_OK(ops->block_compress_backward(ops, &c));
    CHECK_OK(ops->gate_mix(ops, &m.forward));
    CHECK_OK(ops->synchronise(ops));
}

static void place_far(struct far_views *x, float *memory, int64_t head) {
    struct tensor *const views[FAR_VIEWS] = {&x->q,  &x->k,  &x->v,  &x->o,     &x->d_o,
                                             &x->dq, &x->dk, &x->dv, &x->mixed, &x->x};
    for (int n = 0; n < FAR_VIEWS; n++) {
        const bool keys = n == 1 || n == 2 || n == 6 || n == 7;
        const int64_t rows = keys ? FAR_BLOCKS : FAR_LENGTH, dense = FAR_BATCH * FAR_LENGTH * FAR_HEADS * FAR_WIDTH;
        *views[n] = tensor_4d(memory + n * (head > FAR_WIDTH ? FAR_WIDTH : dense), DTYPE_F32, FAR_BATCH, rows,
                              FAR_HEADS, FAR_WIDTH);
        views[n]->stride[2] = head;
        views[n]->stride[1] = FAR_HEADS * head;
        views[n]->stride[0] = FAR_LENGTH * FAR_HEADS * head;
    }
}

/* The same bits there as near; the memory is only reserved, and pages that are not touched cost nothing. */
static void test_far_elements(void **state) {
    (void)state;
    const int64_t step = ((int64_t)1 << 30) + 128, count = FAR_BATCH * FAR_LENGTH * FAR_HEADS * step;
    float *memory = far_reserve(count);
    if (!memory) /* a machine that reserves no more than it has */
        CHECK_SKIP("far elements: no address space for %lld of them", (long long)count);
    static _Alignas(16) float near[FAR_VIEWS * FAR_BATCH * FAR_LENGTH * FAR_HEADS * FAR_WIDTH];
    static struct far_views views[2];
    const struct ops *ops = device_table("cuda-f32", true);
    place_far(&views[0], near, FAR_WIDTH);
    place_far(&views[1], memory, step);
    for (int n = 0; n < 2; n++) run_far(ops, &views[n]);
    const struct {
        const char *name;
        struct tensor near, far;
    } written[] = {{"o", views[0].o, views[1].o},    {"dq", views[0].dq, views[1].dq},
                   {"dk", views[0].dk, views[1].dk}, {"dv", views[0].dv, views[1].dv},
                   {"dx", views[0].x, views[1].x},   {"mixed", views[0].mixed, views[1].mixed}};
    for (size_t n = 0; n < sizeof written / sizeof *written; n++)
        far_expect_same(written[n].name, written[n].near, written[n].far);
    assert_memory_equal(views[0].chosen, views[1].chosen, sizeof views[0].chosen);
    assert_memory_equal(views[0].out, views[1].out, sizeof views[0].out);
    ops->close(ops);
    far_release(memory, count);
}

/* --- inputs that are wrong or extreme ----------------------------------------------------------------------------- */

/* Scores beyond any exponential give no NaN; documents that begin nowhere lead to no memory that is not the tensors',
 * and what is not a number to lists that can be read. */
static void test_extremes(void **state) {
    (void)state;
    static const struct nsa_case row = {"extremes", 1, 90, 4, 2, 16, 4, 2, 4, 6, 4, 2, false, {0}, false};
    const int parts = NSA_COMPRESS | NSA_COARSE | NSA_GATES | NSA_BACKWARD;
    for (int n = 0; n < 6; n++) {
        const struct ops *ops = device_table(n % 2 ? "cuda" : "cuda-f32", n == 4);
        struct nsa_arrays x;
        nsa_fill(&row, &x);
        for (int64_t i = 0; i < nsa_count(&row, NSA_Q); i++)
            x.inputs[NSA_Q][i] *= n < 2 ? 1e4 : n < 4 && i % 700 == 0 ? (double)NAN : 1;
        for (int32_t i = 0; i < row.length; i++)
            if (n >= 4) x.start[i] = i % 3 == 0 ? -1000 * i : i % 7 == 1 ? i : 1000 * i - 7;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        nsa_run(ops, &row, &x, parts);
        if (n < 2 || n >= 4) {
            assert_true(case_all_finite(x.outputs[NSA_O], nsa_count(&row, NSA_Q)));
            for (int g = 0; g < NSA_LEARNING; g++) assert_true(case_all_finite(x.gradients[g], nsa_count(&row, g)));
        }
        for (int64_t c = 0; c < nsa_chosen_count(&row); c++) {
            const int64_t own = c / row.select / 2 / row.block, s = c % row.select;
            const int32_t number = x.chosen[c];
            const bool fits = number == -1 || (number >= 0 && number <= own && (s == 0 || number > x.chosen[c - 1]));
            if (!fits) fail_msg("case %d: chosen[%lld] is %d", n, (long long)c, number);
        }
        nsa_free(&x);
        ops->close(ops);
    }
}

/* Cached blocks that are not there, or not visible, are left out. */
static void test_wrong_places(void **state) {
    (void)state;
    enum { SLOTS = 20, WIDTH = 8, SELECT = 4 };
    static const int32_t places[][2][3] = {
        /* as given; what that amounts to */
        {{-5, 3, 40}, {0, 0, 40}},       {{15, 30, 90}, {15, 5, 90}},
        {{0, 100, 10}, {0, 10, 10}},     {{1 << 30, 1 << 30, INT32_MAX}, {0, 0, INT32_MAX}},
        {{0, INT32_MAX, -8}, {0, 0, 0}}, {{20, 5, INT32_MAX}, {0, 0, INT32_MAX}},
        {{3, -4, 50}, {0, 0, 50}}};
    const struct ops *ops = device_table("cuda-f32", true);
    double draws[2][SLOTS * WIDTH], o[2][WIDTH];
    for (int n = 0; n < 2 * SLOTS * WIDTH; n++) draws[n / (SLOTS * WIDTH)][n % (SLOTS * WIDTH)] = case_draw(n, 3);
    const struct tensor k = case_to_device(ops, DTYPE_F32, draws[0], SLOTS * WIDTH),
                        v = case_to_device(ops, DTYPE_F32, draws[1], SLOTS * WIDTH),
                        out = case_to_device(ops, DTYPE_F32, draws[0], WIDTH);
    struct compressed_decode d = {
        .compress = 2, .stride = 1, .block = 2, .select = SELECT, .select_group = 1, .scale = 1};
    int32_t numbers[2][SELECT] = {{0}};
    const struct tensor ids = device_ids(ops, numbers[0], SELECT);
    d.q = tensor_3d(v.data, DTYPE_F32, 1, 1, WIDTH);
    d.k = tensor_4d(k.data, DTYPE_F32, 1, SLOTS, 1, WIDTH);
    d.v = tensor_4d(v.data, DTYPE_F32, 1, SLOTS, 1, WIDTH);
    d.o = tensor_3d(out.data, DTYPE_F32, 1, 1, WIDTH);
    d.chosen = tensor_3d(ids.data, DTYPE_I32, 1, 1, SELECT);
    for (size_t n = 0; n < sizeof places / sizeof *places; n++) {
        for (int right = 0; right < 2; right++) {
            const struct tensor place = device_ids(ops, places[n][right], 3);
            d.places = tensor_2d(place.data, DTYPE_I32, 1, 3);
            CHECK_OK(ops->compressed_decode(ops, &d));
            CHECK_OK(ops->download(ops, d.chosen, numbers[right]));
            case_move(ops, d.o, o[right], false);
            ops->release(ops, place.data);
        }
        if (memcmp(o[0], o[1], sizeof o[0]) != 0 || memcmp(numbers[0], numbers[1], sizeof numbers[0]) != 0)
            fail_msg("places %zu: o begins with %g, expected %g", n, o[0][0], o[1][0]);
        assert_true(isfinite(o[0][0]));
    }
    const struct tensor all[] = {k, v, out, ids};
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) ops->release(ops, all[n].data);
    ops->close(ops);
}

static void test_refusals(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda-f32", true);
    enum { SLOTS = 20 };
    double zeros[SLOTS * 257] = {0};
    const struct tensor block = case_to_device(ops, DTYPE_F32, zeros, SLOTS * 257),
                        o = case_to_device(ops, DTYPE_F32, zeros, SLOTS * 257);
    struct compressed_attention a = {.compress = 70, .stride = 1, .block = 1, .select = 3, .select_group = 1};
    error_clear();
    a.q = tensor_4d(block.data, DTYPE_F32, 1, 100, 1, 1);
    a.k = a.v = tensor_4d(block.data, DTYPE_F32, 1, 31, 1, 1);
    a.o = tensor_4d(o.data, DTYPE_F32, 1, 100, 1, 1);
    const struct tensor sums = case_to_device(ops, DTYPE_F32, zeros, 100);
    int32_t many[300] = {0};
    const struct tensor starts = device_ids(ops, many, 100), lists = device_ids(ops, many, 300);
    a.start = tensor_2d(starts.data, DTYPE_I32, 1, 100);
    a.log_sums = tensor_3d(sums.data, DTYPE_F32, 1, 1, 100);
    a.chosen = tensor_4d(lists.data, DTYPE_I32, 1, 100, 1, 3);
    if (ops->compressed_attention(ops, &a) != STATUS_SHAPE || !strstr(error_message(), "selection blocks"))
        fail_msg("compressed blocks over 70 selection blocks: %s", error_message());
    error_clear();
    struct compressed_decode d = {.compress = 2, .stride = 1, .block = 2, .select = 3, .select_group = 1, .scale = 1};
    d.places = tensor_2d(starts.data, DTYPE_I32, 1, 3);
    d.q = d.o = tensor_3d(block.data, DTYPE_F32, 1, 1, 257);
    d.k = d.v = tensor_4d(o.data, DTYPE_F32, 1, SLOTS, 1, 257);
    if (ops->compressed_decode(ops, &d) != STATUS_SHAPE || !strstr(error_message(), "257"))
        fail_msg("a head of 257: %s", error_message());
    error_clear();
    const struct tensor all[] = {block, o, sums, starts, lists};
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) ops->release(ops, all[n].data);
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gates),        cmocka_unit_test(test_decode),      cmocka_unit_test(test_ties),
        cmocka_unit_test(test_alone),        cmocka_unit_test(test_order),       cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_shapes_f32),   cmocka_unit_test(test_shapes_bf16), cmocka_unit_test(test_far_elements),
        cmocka_unit_test(test_table_f32),    cmocka_unit_test(test_table_bf16),  cmocka_unit_test(test_guarded),
        cmocka_unit_test(test_wrong_places), cmocka_unit_test(test_refusals),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
