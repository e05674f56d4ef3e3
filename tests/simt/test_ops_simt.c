/* Every operation of the CUDA table that works on rows, executed on the host: on "cuda-f32" against the fp64 oracle
 * within its case's bound, on "cuda" (bf16) with inputs rounded to bf16 on both sides and what rounding its outputs may
 * add; the same bits whatever the order of threads and blocks; from aligned memory and from an element behind it; at
 * offsets beyond 2^31 elements. `test_ops_simt NAME TEST` runs the cases whose name starts so,
 * of the tests of this name (* stands for any letters). */
#include "base/bf16.h"
#include "simt/simt.h"
#include "tests/ops/device_cases.h"

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

static const char *chosen = "";

/* One case on one table: compared with the oracle, then with itself in other orders and places. */
static void run_case(const struct op_case *row, const char *table, struct bench *oracle, struct bench *got,
                     struct bench *again) {
    const bool bf16 = got->ops->real == DTYPE_BF16, product = row->run == op_run_gemm;
    const struct device_bounds bounds = device_bounds(row, bf16);
    char where[64];
    oracle->rounded = got->rounded = again->rounded = bf16;
    simt_set_order(SIMT_FORWARD, 0);
    row->run(oracle, row->n);
    row->run(got, row->n);
    op_compare(row, table, oracle, got, bounds.real, bounds.other);
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
    op_compare(row, where, oracle, again, bounds.real, bounds.other);
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

static void f32_agrees(void **state) {
    (void)state;
    run_cases(op_cases, op_case_count, "cuda-f32");
    run_cases(device_cases, device_case_count, "cuda-f32");
}

static void bf16_agrees(void **state) {
    (void)state;
    run_cases(op_cases, op_case_count, "cuda");
    run_cases(device_cases, device_case_count, "cuda");
}

static void nan_is_seen(void **state) {
    (void)state;
    device_nan_is_seen("cuda");
}

static void first_of_equal_counts(void **state) {
    (void)state;
    device_first_of_equal_counts("cuda");
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
