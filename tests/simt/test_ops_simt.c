/* Every operation of the CUDA table that works on rows, executed on the host: on "cuda-f32" against the fp64 oracle
 * within its case's bound, on "cuda" (bf16) with inputs rounded to bf16 on both sides and what rounding its outputs may
 * add; the same bits whatever the order of threads and blocks; from aligned memory and from an element behind it; at
 * offsets beyond 2^31 elements. `test_ops_simt NAME TEST` runs the cases whose name starts so,
 * of the tests of this name (* stands for any letters). */
#include "base/bf16.h"
#include "simt/simt.h"
#include "tests/ops/op_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define OK(call) expect_ok(call, #call)

/* Shapes that matter to these kernels: rows shorter than a pack, than a warp, wider than what threads keep; runs of ids
 * within, across and beyond chunks and tiles; bounds as in op_cases.c. */
static const struct op_case more_cases[] = {
    {"norm layer 2x3", op_run_norm, {2, 3, 0, 4}, 4e-6},
    {"norm layer 33x8 delta", op_run_norm, {33, 8, 0, 1 | 4}, 4e-6},
    {"norm rms 1x63", op_run_norm, {1, 63, 1, 0}, 4e-6},
    {"norm layer 300x64", op_run_norm, {300, 64, 0, 4}, 4e-6},
    {"norm rms 2x65 in place", op_run_norm, {2, 65, 1, 1 | 2}, 4e-6},
    {"norm layer 3x1025 delta", op_run_norm, {3, 1025, 0, 1 | 4}, 4e-6},
    {"norm rms 2x1032 delta", op_run_norm, {2, 1032, 1, 1}, 4e-6},
    {"norm layer 2x8200 in place (wider than kept)", op_run_norm, {2, 8200, 0, 1 | 2 | 4}, 4e-6},
    {"norm layer 1x8201 (wider than kept)", op_run_norm, {1, 8201, 0, 4}, 4e-6},
    {"norm_backward layer 2x3", op_run_norm_backward, {2, 3, 0, 7}, 2e-5},
    {"norm_backward layer 33x8", op_run_norm_backward, {33, 8, 0, 6}, 2e-5},
    {"norm_backward rms 300x63", op_run_norm_backward, {300, 63, 1, 3}, 2e-5},
    {"norm_backward layer 33x1025 bias", op_run_norm_backward, {33, 1025, 0, 4}, 3e-5},
    {"norm_backward layer 2x4104 (wider than kept)", op_run_norm_backward, {2, 4104, 0, 7}, 3e-5},
    {"norm_backward layer 1x4097 (wider than kept)", op_run_norm_backward, {1, 4097, 0, 6}, 3e-5},
    {"norm_backward layer 18x12296 (sums in scratch)", op_run_norm_backward, {18, 12296, 0, 6}, 3e-5},
    {"bias_backward 2x3", op_run_bias_backward, {2, 3, 3}, 1e-6},
    {"bias_backward 300x64 of 72", op_run_bias_backward, {300, 64, 72}, 1e-5},
    {"bias_backward 70x65 of 72", op_run_bias_backward, {70, 65, 72}, 1e-5},
    {"bias_backward 33x1025", op_run_bias_backward, {33, 1025, 1025}, 1e-5},
    {"embedding 2x3", op_run_embedding, {2, 3, 5, 0}, 1e-5},
    {"embedding 33x8 of 70000 (three passes)", op_run_embedding, {33, 8, 70000, 257}, 1e-5},
    {"embedding 300x64 of one id", op_run_embedding, {300, 64, 1, 2}, 2e-5},
    {"embedding 1200x8 of 300", op_run_embedding, {1200, 8, 300, 7}, 2e-5},
    {"embedding 65x1025", op_run_embedding, {65, 1025, 3, 0}, 1e-5},
    {"gelu_backward 1x1", op_run_gelu_backward, {1, 1, 0}, 2e-6},
    {"gelu_backward 33x63", op_run_gelu_backward, {33, 63, 1}, 2e-6},
    {"gelu_backward 2x1025", op_run_gelu_backward, {2, 1025, 0}, 2e-6},
    {"swiglu 2x3", op_run_swiglu, {2, 3, 0}, 2e-6},
    {"swiglu 33x8 in place", op_run_swiglu, {33, 8, 1}, 2e-6},
    {"swiglu 3x2056", op_run_swiglu, {3, 2056, 0}, 2e-6},
    {"rope 2x33x3x16", op_run_rope, {2, 33, 3, 16, 0, 4096}, 2e-6},
    {"rope 1x2x40x64 of a million", op_run_rope, {1, 2, 40, 64, 0, 1000000}, 2e-6},
    {"rope 1x300x1x6 inverse", op_run_rope, {1, 300, 1, 6, 1, 1000000}, 2e-6},
    {"loss_rows 2x1 all outputs", op_run_loss_rows, {2, 1, 1 | 2 | 4 | 16, 10}, 3e-6},
    {"loss_rows 3x7 all outputs", op_run_loss_rows, {3, 7, 1 | 2 | 4 | 8 | 16, 10}, 3e-6},
    {"loss_rows 3x8 temperature 2", op_run_loss_rows, {3, 8, 1 | 2 | 4 | 16, 20}, 3e-6},
    {"loss_rows 2x4104 in place", op_run_loss_rows, {2, 4104, 1 | 4 | 8, 10}, 3e-6},
    {"loss_rows 3x4099 large, temperature 0.5", op_run_loss_rows, {3, 4099, 1 | 2 | 4 | 16 | 64, 5}, 4e-6},
    {"loss_rows 3x1009 strided, temperature 2", op_run_loss_rows, {3, 1009, 1 | 2 | 4 | 8 | 256, 20}, 3e-6},
    {"log_softmax 2x7", op_run_log_softmax, {2, 7, 1}, 2e-6},
    {"log_softmax 2x4104", op_run_log_softmax, {2, 4104, 0}, 2e-6},
    {"reductions 1x3", op_run_reductions, {1, 3, 3}, 1e-12},
    {"reductions 33x63 of 64", op_run_reductions, {33, 63, 64}, 1e-12},
    {"reductions 300x8 of 16", op_run_reductions, {300, 8, 16}, 1e-12},
    {"reductions 3x3000 of 3008", op_run_reductions, {3, 3000, 3008}, 1e-12},
    {"adamw 3", op_run_adamw, {3, 2, 500, 10}, 2e-6},
    {"adamw 1025", op_run_adamw, {1025, 1, 0, 10}, 2e-6},
};

/* What rounding to bf16 adds to a case's own bound, in units of 2^-8 (half of the last place of a significand of 8
 * bits): to outputs in bf16, and to the others. Inputs are the same on both sides, so only what is rounded on the way
 * can reach the others. */
static const struct rounding {
    const char *operation;
    struct op_bounds real, other;
    const char *reason;
} roundings[] = {
    {"gemm",
     {1, 4},
     {0, 0},
     "c is rounded once, and before bias and GELU too where cuBLASLt does not add them: absolute times 0.3·√depth, "
     "the products' standard deviation; GELU's slope is at most 1.13"},
    {"norm_backward", {1, 0}, {0, 0}, "dx is rounded once"},
    {"norm",
     {3, 3},
     {3, 3},
     "the sum is rounded before it is normalised, which shifts y by up to |sum|·rstd·|weight|; y is rounded"},
    {"bias_backward", {0, 0}, {0, 0}, "dbias is fp32"},
    {"embedding", {1, 0}, {0, 0}, "x is rounded once, the gradients are fp32"},
    {"gelu_backward", {1, 0}, {0, 0}, "dx is rounded once"},
    {"swiglu", {1, 0}, {0, 0}, "y and dx are rounded once"},
    {"rope", {1, 0}, {0, 0}, "x is rounded once"},
    {"loss_rows", {1, 0}, {0, 0}, "the gradient is rounded once, figures are fp32"},
    {"log_softmax", {1, 0}, {0, 0}, "y is rounded once"},
    {"reductions", {0, 0}, {0, 0}, "sums are fp64"},
    {"pointwise", {2, 0}, {0, 0}, "y is rounded when it is added to, and again when it is scaled"},
    {"adamw", {1, 0}, {0, 0}, "the copy that operations read is rounded once, all else is fp32 and fp64"},
};

/* Sums in another order than the CPU's, and expf with an error of its own. */
static const double device_factor = 4;

static const char *chosen = "";

static const struct rounding *rounding_of(const struct op_case *row) {
    for (size_t i = 0; i < sizeof roundings / sizeof roundings[0]; i++) {
        const size_t length = strlen(roundings[i].operation);
        if (strncmp(row->name, roundings[i].operation, length) == 0 && row->name[length] == ' ') return &roundings[i];
    }
    fail_msg("%s: no bound is known for bf16", row->name);
    return NULL;
}

static struct op_bounds bounds_of(const struct op_case *row, bool bf16, struct op_bounds rounding) {
    const double unit = bf16 ? ldexp(1, -8) : 0, own = device_factor * row->bound;
    const double size = row->run == op_run_gemm ? 0.3 * sqrt((double)row->n[2]) : 1;
    return (struct op_bounds){own + rounding.relative * unit, own + rounding.absolute * unit * size};
}

/* One case on one table: compared with the oracle, then with itself in other orders and places. */
static void run_case(const struct op_case *row, const char *table, struct bench *oracle, struct bench *got,
                     struct bench *again) {
    const bool bf16 = got->ops->real == DTYPE_BF16, product = row->run == op_run_gemm;
    const struct op_bounds real = bounds_of(row, bf16, rounding_of(row)->real);
    const struct op_bounds other = bounds_of(row, bf16, rounding_of(row)->other);
    char where[64];
    oracle->rounded = got->rounded = again->rounded = bf16;
    simt_set_order(SIMT_FORWARD, 0);
    row->run(oracle, row->n);
    row->run(got, row->n);
    op_compare(row, table, oracle, got, real, other);
    for (int order = bf16 ? SIMT_REVERSE : SIMT_RANDOM; order <= SIMT_RANDOM && !product;
         order++) { /* a product is one call of cuBLASLt */
        simt_set_order((enum simt_order)order, 17);
        snprintf(where, sizeof where, "%s, %s order", table, order == SIMT_REVERSE ? "reverse" : "random");
        row->run(again, row->n);
        op_compare_bits(row, where, got, again);
        bench_reset(again);
    }
    again->apart = 1;
    snprintf(where, sizeof where, "%s, an element apart", table);
    row->run(again, row->n);
    op_compare(row, where, oracle, again, real, other);
    again->apart = 0;
    bench_reset(oracle);
    bench_reset(got);
    bench_reset(again);
}

static void run_cases(const struct op_case *cases, int count, const char *table) {
    struct bench oracle, got, again;
    bench_open(&oracle, "cpu-f64", NULL, 1);
    bench_open(&got, table, NULL, 1);
    bench_open(&again, table, NULL, 1);
    for (int r = 0; r < count; r++) {
        if (strncmp(cases[r].name, chosen, strlen(chosen)) != 0) continue;
        const int64_t *n = cases[r].n;
        if (cases[r].run == op_run_gemm && n[0] * n[1] * n[2] > 10000000)
            continue; /* the stand-in for cuBLASLt is slow */
        run_case(&cases[r], table, &oracle, &got, &again);
    }
    bench_close(&oracle);
    bench_close(&got);
    bench_close(&again);
}

enum { MORE_CASES = sizeof more_cases / sizeof more_cases[0] };

static void f32_agrees(void **state) {
    (void)state;
    run_cases(op_cases, op_case_count, "cuda-f32");
    run_cases(more_cases, MORE_CASES, "cuda-f32");
}

static void bf16_agrees(void **state) {
    (void)state;
    run_cases(op_cases, op_case_count, "cuda");
    run_cases(more_cases, MORE_CASES, "cuda");
}

/* A non-finite logit shows in every figure of its row, and only there. */
static void nan_is_seen(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "cuda", NULL, 1);
    struct loss_rows a = {
        .student = bench_normal(&b, 2, DIMS(3, 70), 1, 0), .temperature = 1, .kl_weight = 1, .scale = 1};
    a.teacher = bench_normal(&b, 2, DIMS(3, 70), 1, 0);
    a.gradient = bench_unset(&b, 2, DIMS(3, 70));
    a.kl = bench_unset_statistic(&b, 1, DIMS(3));
    a.reverse_kl = bench_unset_statistic(&b, 1, DIMS(3));
    bench_set(&b, a.student, 75, INFINITY);
    bench_set(&b, a.teacher, 145, INFINITY);
    OK(b.ops->loss_rows(b.ops, &a));
    double *kl = bench_values(&b, a.kl), *reverse = bench_values(&b, a.reverse_kl),
           *gradient = bench_values(&b, a.gradient);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(isfinite(kl[r]) != 0, r == 0);
        assert_int_equal(isfinite(reverse[r]) != 0, r == 0);
        assert_int_equal(isfinite(gradient[70 * r + 5]) != 0, r == 0);
    }
    free(kl);
    free(reverse);
    free(gradient);
    struct tensor out = bench_doubles(&b, 1), x = bench_normal(&b, 1, DIMS(100), 1, 0);
    bench_set(&b, x, 42, INFINITY);
    OK(b.ops->sum_squares(b.ops, x, out));
    double *sum = bench_values(&b, out);
    assert_true(isinf(*sum));
    free(sum);
    bench_close(&b);
}

/* Of equal largest logits the first counts: in a pack, in a thread's packs, among threads and among warps. */
static void first_of_equal_counts(void **state) {
    (void)state;
    enum { WIDTH = 6000 };
    static const struct {
        int a, b; /* the student's largest logits */
    } cases[] = {{3, 5}, {3, 4100}, {17, 40}, {40, 3000}, {511, 5999}};
    enum { CASES = sizeof cases / sizeof cases[0] };
    struct bench b;
    bench_open(&b, "cuda", NULL, 1);
    struct loss_rows a = {.student = bench_normal(&b, 2, DIMS(2 * CASES, WIDTH), 0, 0), .temperature = 1};
    a.teacher = bench_normal(&b, 2, DIMS(2 * CASES, WIDTH), 0, 0);
    a.agree = bench_unset_statistic(&b, 1, DIMS(2 * CASES));
    for (int64_t r = 0; r < 2 * CASES; r++) {
        bench_set(&b, a.student, r * WIDTH + cases[r / 2].a, 2);
        bench_set(&b, a.student, r * WIDTH + cases[r / 2].b, 2);
        bench_set(&b, a.teacher, r * WIDTH + (r % 2 ? cases[r / 2].a : cases[r / 2].b), 1);
    }
    OK(b.ops->loss_rows(b.ops, &a));
    double *agree = bench_values(&b, a.agree);
    for (int r = 0; r < 2 * CASES; r++) assert_int_equal((int)agree[r], r % 2);
    free(agree);
    bench_close(&b);
}

/* ---- beyond 2^31 elements: memory of which only the touched pages exist ---- */

static void *sparse(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(memory != MAP_FAILED);
    return memory;
}

static const int64_t far = ((int64_t)1 << 30) + 8; /* two of them are more than 2^31 */

static void far_rows(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "cuda", NULL, 1);
    const size_t bytes = (size_t)(2 * far + 64) * 2;
    uint16_t *memory = sparse(bytes);
    for (int r = 0; r < 3; r++) {
        for (int c = 0; c < 16; c++) memory[r * far + c] = bf16_from_float((float)(r + 1) * 8);
    }
    /* [3,16], rows far apart. */
    struct tensor x = tensor_2d(memory, DTYPE_BF16, 3, 16), out = bench_doubles(&b, 1);
    x.stride[0] = far;
    struct tensor dbias = bench_parameter(&b, 1, DIMS(16), 0, 0);
    OK(b.ops->bias_backward(b.ops, x, dbias));
    double *values = bench_values(&b, dbias);
    for (int c = 0; c < 16; c++) assert_true(values[c] == 8 + 16 + 24);
    free(values);
    OK(b.ops->sum(b.ops, x, out));
    values = bench_values(&b, out);
    assert_true(values[0] == 16 * (8 + 16 + 24));
    free(values);
    struct tensor y = x;
    y.stride[0] = 0; /* the first row three times */
    OK(b.ops->sum_squared_difference(b.ops, x, y, out));
    values = bench_values(&b, out);
    assert_true(values[0] == 16 * (8 * 8 + 16 * 16));
    free(values);
    /* [3,1,2,8]: a quarter turn takes (8r, 8r) to (−8r, 8r). */
    struct rope rope = {.positions = tensor_reshape(bench_ids(&b, 3, 1), 2, DIMS(3, 1)),
                        .frequencies = bench_statistic(&b, 1, DIMS(4), 0, 1.5707963267948966)};
    for (int r = 0; r < 3; r++) bench_set(&b, rope.positions, r, 1);
    rope.x = tensor_4d(memory, DTYPE_BF16, 3, 1, 2, 8);
    rope.x.stride[0] = far;
    OK(b.ops->rope(b.ops, &rope));
    OK(b.ops->synchronise(b.ops));
    for (int r = 0; r < 3; r++) {
        for (int c = 0; c < 16; c++)
            assert_true(bf16_to_float(memory[r * far + c]) == (float)((c % 8 < 4 ? -8 : 8) * (r + 1)));
    }
    munmap(memory, bytes);
    bench_close(&b);
}

static void far_table(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "cuda", NULL, 1);
    const int64_t width = 1024, rows = ((int64_t)1 << 21) + 3, ids[] = {rows - 1, 1, rows - 1};
    uint16_t *memory = sparse((size_t)(rows * width) * 2);
    float *gradient = sparse((size_t)(rows * width) * 4);
    for (int64_t c = 0; c < width; c++) memory[(rows - 1) * width + c] = bf16_from_float((float)(c % 128));
    struct embedding a = {.ids = bench_ids(&b, 3, 1), .table = tensor_2d(memory, DTYPE_BF16, rows, width)};
    for (int n = 0; n < 3; n++) bench_set(&b, a.ids, n, (double)ids[n]);
    a.x = bench_unset(&b, 2, DIMS(3, width));
    OK(b.ops->embedding(b.ops, &a));
    double *x = bench_values(&b, a.x);
    for (int64_t c = 0; c < width; c++) {
        assert_true(x[c] == (double)(c % 128) && x[width + c] == 0 && x[2 * width + c] == (double)(c % 128));
    }
    free(x);
    struct embedding_backward d = {.ids = a.ids, .dx = a.x, .dtable = tensor_2d(gradient, DTYPE_F32, rows, width)};
    OK(b.ops->embedding_backward(b.ops, &d));
    OK(b.ops->synchronise(b.ops));
    for (int64_t c = 0; c < width; c++) {
        assert_true(gradient[(rows - 1) * width + c] == (float)(2 * (c % 128)) && gradient[width + c] == 0);
    }
    munmap(memory, (size_t)(rows * width) * 2);
    munmap(gradient, (size_t)(rows * width) * 4);
    bench_close(&b);
}

/* All rows but the last count in nothing and are not read. */
static void far_logits(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "cuda", NULL, 1);
    const int64_t width = (int64_t)1 << 22, rows = 514;
    const size_t bytes = (size_t)(rows * width) * 2;
    uint16_t *student = sparse(bytes), *teacher = sparse(bytes);
    student[(rows - 1) * width + 7] = bf16_from_float(8);
    teacher[(rows - 1) * width + 9] = bf16_from_float(16);
    struct loss_rows a = {.student = tensor_2d(student, DTYPE_BF16, rows, width), .temperature = 1};
    a.teacher = tensor_2d(teacher, DTYPE_BF16, rows, width);
    a.targets = bench_ids(&b, rows, 1);
    for (int64_t r = 0; r < rows; r++) bench_set(&b, a.targets, r, r < rows - 1 ? -1 : 7);
    a.ce = bench_unset_statistic(&b, 1, DIMS(rows));
    a.kl = bench_unset_statistic(&b, 1, DIMS(rows));
    OK(b.ops->loss_rows(b.ops, &a));
    double *ce = bench_values(&b, a.ce), *kl = bench_values(&b, a.kl);
    const double others = (double)width - 1, s = others + exp(8), t = others + exp(16);
    assert_true(ce[rows - 2] == 0 && kl[rows - 2] == 0);
    assert_true(fabs(ce[rows - 1] - (log(s) - 8)) < 1e-5);
    /* log p − log q of token 7, of token 9, of every other. */
    const double base = log(s / t), want = (base - 8 + exp(16) * (base + 16) + (others - 1) * base) / t;
    assert_true(fabs(kl[rows - 1] - want) < 1e-4 * want);
    free(ce);
    free(kl);
    munmap(student, bytes);
    munmap(teacher, bytes);
    bench_close(&b);
}

int main(int argc, char **argv) {
    if (argc > 1) chosen = argv[1];
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_agrees),  cmocka_unit_test(bf16_agrees),
        cmocka_unit_test(nan_is_seen), cmocka_unit_test(first_of_equal_counts),
        cmocka_unit_test(far_rows),    cmocka_unit_test(far_table),
        cmocka_unit_test(far_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
