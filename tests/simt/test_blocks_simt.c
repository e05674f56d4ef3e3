/* Attention to chosen blocks, and learning to choose, on the CUDA table, executed on the host: against the oracle in
 * double, in fp32 and in bf16, in several orders of threads; in chunks; under the guard; far in memory; with inputs
 * that are wrong or extreme. `test_blocks_simt TEST ROW` runs the tests of this name (* stands for any letters), of
 * tables the rows whose name starts so. Tolerances: ops/blocks_device.h. */
#include "ops/blocks_device.h"
#include "ops/case_arrays.h"
#include "simt/far.h"
#include "simt/guarded.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <string.h>

enum { LONG = 400 /* tokens: a row that takes seconds */ };
enum { EXACT = NSA_FINE | NSA_BACKWARD, LEARNING = NSA_MASS | NSA_BACKWARD };

static const char *chosen = "";
static bool is_chosen(const struct nsa_case *row) {
    return row->length <= LONG && strncmp(row->name, chosen, strlen(chosen)) == 0;
}

/* Rows by turns, with the window's dq by a kernel of its own and by atomics; in bf16 every other one. Long ones once. */
static void run_rows(const char *name, const struct nsa_case *rows, int count, int parts) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const struct ops *ops = device_table(name, deterministic);
        for (int n = 0; n < count; n++) {
            const bool bf16 = ops->real == DTYPE_BF16;
            if (!is_chosen(&rows[n]) || n / 2 % 2 != deterministic) continue;
            if (bf16 && !*chosen && n % 2 != (parts == EXACT)) continue;
            if ((bf16 || parts == LEARNING) && !*chosen && rows[n].length > 200) continue;
            simt_set_order((enum simt_order)((n + bf16) % 3), (uint64_t)n);
            device_blocks(ops, &rows[n], parts);
        }
        ops->close(ops);
    }
}
static void run_table(const char *name, int parts) {
    run_rows(name, nsa_cases, nsa_case_count, parts);
    run_rows(name, block_shapes, block_shape_count, parts);
}
static void test_exact_f32(void **state) {
    (void)state;
    run_table("cuda-f32", EXACT);
}
static void test_exact_bf16(void **state) {
    (void)state;
    run_table("cuda", EXACT);
}
static void test_learning_f32(void **state) {
    (void)state;
    run_table("cuda-f32", LEARNING);
}
static void test_learning_bf16(void **state) {
    (void)state;
    run_table("cuda", LEARNING);
}

/* More than is in memory at once: chunks of queries and of lists, of which one begins in the middle of a sequence; keys
 * that several thread blocks have sums of. */
static void test_chunks(void **state) {
    (void)state;
    static const struct nsa_case rows[] = {
        {"lists", 2, 260, 4, 2, 8, 4, 2, 16, 3, 9, 1, false, {0}, false},
        {"queries", 1, 1100, 1, 1, 8, 32, 16, 32, 3, 9, 1, false, {900}, false},
    };
    const struct ops *ops = device_table("cuda-f32", true);
    simt_set_order(SIMT_REVERSE, 4);
    device_blocks(ops, &block_chunks, EXACT);
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) device_blocks(ops, &rows[n], LEARNING);
    ops->close(ops);
}

/* `deterministic`: every output has the same bits whatever order the threads and blocks run in. */
static void test_order(void **state) {
    (void)state;
    static const struct nsa_case row = {"bits", 2, 90, 4, 2, 16, 4, 2, 4, 5, 4, 2, true, {31}, false};
    const struct ops *ops = device_table("cuda", true);
    struct nsa_arrays found[3];
    device_blocks_fill(ops, &row, found, 3);
    for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
        simt_set_order((enum simt_order)order, 9);
        nsa_run(ops, &row, &found[order], EXACT | LEARNING);
    }
    for (int order = SIMT_REVERSE; order <= SIMT_RANDOM; order++) {
        for (int g = 0; g <= NSA_V; g++)
            assert_memory_equal(found[0].gradients[g], found[order].gradients[g],
                                (size_t)nsa_count(&row, g) * sizeof(double));
        for (int b = 0; b < NSA_BETWEENS; b++)
            assert_memory_equal(found[0].between[b], found[order].between[b],
                                (size_t)nsa_between_count(&row, b) * sizeof(double));
        assert_memory_equal(found[0].outputs[NSA_LOSSES], found[order].outputs[NSA_LOSSES],
                            (size_t)nsa_output_count(&row, NSA_LOSSES) * sizeof(double));
    }
    for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) nsa_free(&found[order]);
    ops->close(ops);
}

/* Under the guard: outputs are written whole, and nothing else is. Here a GPU's memory can be read as it is. */
static void test_guarded(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct guarded g;
        guarded_open(&g, bf16 ? "cuda" : "cuda-f32", bf16);
        simt_set_order(bf16 ? SIMT_REVERSE : SIMT_RANDOM, 3);
        for (int n = bf16; n < nsa_case_count; n += 2)
            if (nsa_cases[n].length <= 70) device_blocks(g.guard, &nsa_cases[n], EXACT | NSA_MASS);
        device_blocks(g.guard, &block_shapes[3], EXACT | NSA_MASS);
        guarded_close(&g);
    }
}

/* --- far elements ------------------------------------------------------------------------------------------------- */

enum { BATCH = 2, LENGTH = 6, HEADS = 2, WIDTH = 8, BLOCKS = 5, ROWS = BATCH * LENGTH * HEADS, VIEWS = 10 };

/* Views [B,T,H,D] (keys [B,Nb,H,D]: compressed and its gradient); dense, or with strides so wide that an element's
 * place needs more than 32 bits. */
struct far_views {
    struct tensor q, k, v, d_o, compressed, o, dq, dk, dv, d_compressed;
    float log_sums[ROWS], losses[ROWS];
    int32_t start[BATCH * LENGTH], chosen[BATCH * LENGTH * 3];
};

static void place_far(struct far_views *x, float *memory, int64_t head) {
    struct tensor *const views[VIEWS] = {&x->q, &x->k,  &x->v,  &x->d_o, &x->compressed,
                                         &x->o, &x->dq, &x->dk, &x->dv,  &x->d_compressed};
    for (int n = 0; n < VIEWS; n++) {
        const int64_t rows = n % 5 == 4 ? BLOCKS : LENGTH;
        *views[n] = tensor_4d(memory + n * (head > WIDTH ? WIDTH : ROWS * WIDTH), DTYPE_F32, BATCH, rows, HEADS, WIDTH);
        views[n]->stride[2] = head;
        views[n]->stride[1] = HEADS * head;
        views[n]->stride[0] = LENGTH * HEADS * head;
        for (int64_t i = 0; i < tensor_count(*views[n]); i++)
            *far_element(*views[n], i) = n < 5 ? (float)case_draw(i, n) : 0;
    }
    for (int n = 0; n < BATCH * LENGTH * 3; n++) x->chosen[n] = n % 3 == 0 ? 0 : -1;
    for (int n = 0; n < ROWS; n++) x->log_sums[n] = 1;
}

/* What lies on the device of tests/simt the host may touch. */
static void run_far(const struct ops *ops, struct far_views *x) {
    struct block_attention_backward a = {.d_o = x->d_o, .dq = x->dq, .dk = x->dk, .dv = x->dv};
    a.forward = (struct block_attention){.q = x->q,
                                         .k = x->k,
                                         .v = x->v,
                                         .start = tensor_2d(x->start, DTYPE_I32, BATCH, LENGTH),
                                         .chosen = tensor_4d(x->chosen, DTYPE_I32, BATCH, LENGTH, 1, 3),
                                         .o = x->o,
                                         .log_sums = tensor_3d(x->log_sums, DTYPE_F32, BATCH, HEADS, LENGTH),
                                         .block = 2,
                                         .window = 2,
                                         .scale = 0.4};
    const struct block_mass m = {.teacher_q = x->d_o,
                                 .teacher_k = x->k,
                                 .own_q = x->q,
                                 .compressed = x->compressed,
                                 .start = a.forward.start,
                                 .log_sums = a.forward.log_sums,
                                 .losses = tensor_3d(x->losses, DTYPE_F32, BATCH, HEADS, LENGTH),
                                 .d_own_q = x->dq,
                                 .d_compressed = x->d_compressed,
                                 .compress = 2,
                                 .stride = 1,
                                 .block = 2,
                                 .select_group = 1,
                                 .scale = 0.4,
                                 .gradient_scale = 1};
    CHECK_OK(ops->block_attention(ops, &a.forward));
    CHECK_OK(ops->block_attention_backward(ops, &a));
    CHECK_OK(ops->block_mass(ops, &m));
    CHECK_OK(ops->synchronise(ops));
}

/* The same bits there as near; the memory is only reserved, and pages that are not touched cost nothing. */
static void test_far_elements(void **state) {
    (void)state;
    const int64_t step = ((int64_t)1 << 30) + 128, count = ROWS * step;
    float *memory = far_reserve(count);
    if (!memory) /* a machine that reserves no more than it has */
        CHECK_SKIP("far elements: no address space for %lld of them", (long long)count);
    static _Alignas(16) float near[VIEWS * ROWS * WIDTH];
    static struct far_views views[2];
    const struct ops *ops = device_table("cuda-f32", true);
    place_far(&views[0], near, WIDTH);
    place_far(&views[1], memory, step);
    for (int n = 0; n < 2; n++) run_far(ops, &views[n]);
    const struct {
        const char *name;
        struct tensor near, far;
    } written[] = {{"o", views[0].o, views[1].o},
                   {"dq", views[0].dq, views[1].dq},
                   {"dk", views[0].dk, views[1].dk},
                   {"dv", views[0].dv, views[1].dv},
                   {"d_compressed", views[0].d_compressed, views[1].d_compressed}};
    for (size_t n = 0; n < sizeof written / sizeof *written; n++)
        far_expect_same(written[n].name, written[n].near, written[n].far);
    assert_memory_equal(views[0].losses, views[1].losses, sizeof views[0].losses);
    ops->close(ops);
    far_release(memory, count);
}

/* --- inputs that are wrong or extreme ----------------------------------------------------------------------------- */

/* Scores beyond any exponential give no NaN; documents that begin nowhere, and lists that hold anything, lead to no
 * memory that is not the tensors'. */
static void test_extremes(void **state) {
    (void)state;
    static const struct nsa_case row = {"extremes", 1, 90, 4, 2, 16, 4, 2, 4, 6, 4, 2, false, {0}, false};
    for (int n = 0; n < 6; n++) {
        const struct ops *ops = device_table(n % 2 ? "cuda" : "cuda-f32", n == 4);
        struct nsa_arrays x;
        device_blocks_fill(ops, &row, &x, 1);
        for (int64_t i = 0; n < 2 && i < nsa_count(&row, NSA_Q); i++)
            x.inputs[NSA_Q][i] = x.inputs[NSA_TEACHER_Q][i] *= 1e4;
        for (int32_t i = 0; n >= 4 && i < row.length; i++)
            x.start[i] = i % 3 == 0 ? -1000 * i : i % 7 == 1 ? i : 1000 * i - 7;
        for (int32_t i = 0; n >= 2 && i < nsa_chosen_count(&row); i++)
            x.chosen[i] = i % 5 == 0 ? INT32_MAX - i : i % 5 == 1 ? -i : i % 5 == 2 ? 2 : 40 - i % 60;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        nsa_run(ops, &row, &x, n < 2 ? EXACT : EXACT | LEARNING);
        assert_true(case_all_finite(x.between[NSA_BRANCH + 1], nsa_count(&row, NSA_Q)));
        for (int g = 0; g <= NSA_V; g++) assert_true(case_all_finite(x.gradients[g], nsa_count(&row, g)));
        nsa_free(&x);
        ops->close(ops);
    }
}

/* Numbers that a list must not hold are absent: the rest counts as if they were −1. */
static void test_absent(void **state) {
    (void)state;
    static const struct nsa_case row = {"absent", 1, 60, 2, 1, 8, 4, 2, 4, 6, 4, 2, false, {21}, false};
    const struct ops *ops = device_table("cuda-f32", true);
    struct nsa_arrays x[2];
    device_blocks_fill(ops, &row, x, 2);
    for (int32_t i = 0; i < row.length; i++) {
        int32_t *list = x[0].chosen + i * row.select, *wrong = x[1].chosen + i * row.select;
        list[row.select - 1] = list[row.select - 2] = -1;
        wrong[row.select - 1] = (i - x[0].start[i]) / row.block + 1 + i % 3;
        wrong[row.select - 2] = i % 2 ? INT32_MAX : INT32_MIN;
    }
    for (int n = 0; n < 2; n++) nsa_run(ops, &row, &x[n], EXACT);
    assert_memory_equal(x[0].between[NSA_BRANCH + 1], x[1].between[NSA_BRANCH + 1],
                        (size_t)nsa_count(&row, NSA_Q) * sizeof(double));
    for (int g = 0; g <= NSA_V; g++)
        assert_memory_equal(x[0].gradients[g], x[1].gradients[g], (size_t)nsa_count(&row, g) * sizeof(double));
    for (int n = 0; n < 2; n++) nsa_free(&x[n]);
    ops->close(ops);
}

static void test_refusals(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda-f32", true);
    float x[257], sums[1];
    int32_t ids[1] = {0};
    error_clear();
    struct block_attention a = {.block = INT32_MAX, .window = INT32_MAX, .scale = 1};
    a.q = a.k = a.v = a.o = tensor_4d(x, DTYPE_F32, 1, 1, 1, 257);
    a.start = tensor_2d(ids, DTYPE_I32, 1, 1);
    a.chosen = tensor_4d(ids, DTYPE_I32, 1, 1, 1, 1);
    a.log_sums = tensor_3d(sums, DTYPE_F32, 1, 1, 1);
    if (ops->block_attention(ops, &a) != STATUS_SHAPE || !strstr(error_message(), "257"))
        fail_msg("a head of 257: %s", error_message());
    error_clear();
    struct block_mass m = {.compress = 1, .stride = 1, .block = 1, .select_group = 1, .scale = 1};
    m.teacher_q = m.teacher_k = m.own_q = m.compressed = a.q;
    m.start = a.start;
    m.log_sums = m.losses = a.log_sums;
    if (ops->block_mass(ops, &m) != STATUS_SHAPE || !strstr(error_message(), "257"))
        fail_msg("a head of 257: %s", error_message());
    error_clear();
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_f32),     cmocka_unit_test(test_exact_bf16),   cmocka_unit_test(test_learning_f32),
        cmocka_unit_test(test_learning_bf16), cmocka_unit_test(test_chunks),       cmocka_unit_test(test_order),
        cmocka_unit_test(test_guarded),       cmocka_unit_test(test_far_elements), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_absent),        cmocka_unit_test(test_refusals),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
