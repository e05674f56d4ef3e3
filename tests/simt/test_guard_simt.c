/* The CUDA tables under the guard, executed on the host: there a GPU's memory can be read as it is. Every operation at
 * awkward shapes overlaps nothing, writes its outputs whole and nothing else; that the guard sees a table that breaks
 * this. */
#include "ops/attention_case.h"
#include "simt/guarded.h"
#include "simt/simt.h"
#include "support/check.h"
#include "tests/ops/op_cases.h"

#include <math.h>
#include <string.h>

enum { LONG = 160 /* tokens: a row that takes seconds */ };

static void run_operations(const char *name) {
    struct guarded g;
    guarded_open(&g, name, true);
    struct bench b = {.ops = g.guard, .rounded = g.table->real == DTYPE_BF16};
    for (int r = 0; r < op_case_count; r++) {
        const struct op_case *row = &op_cases[r];
        if (row->run == op_run_gemm && row->n[0] * row->n[1] * row->n[2] > 2000000)
            continue; /* the stand-in for cuBLASLt is slow */
        simt_set_order((enum simt_order)(r % 3), (uint64_t)r);
        b.apart = r % 2;
        row->run(&b, row->n);
        bench_reset(&b);
    }
    guarded_close(&g);
}
static void operations_f32(void **state) {
    (void)state;
    run_operations("cuda-f32");
}
static void operations_bf16(void **state) {
    (void)state;
    run_operations("cuda");
}

static void run_attention(const char *name, int turn) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        struct guarded g;
        guarded_open(&g, name, deterministic);
        for (int n = 0; n < attention_case_count; n++) {
            const struct attention_case *row = &attention_cases[n];
            if (row->length > LONG || n % 4 != 2 * turn + deterministic) continue;
            struct attention_arrays x;
            case_fill(row, (uint64_t)n, &x);
            simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
            case_run(g.guard, row, &x, true);
            case_free(&x);
        }
        guarded_close(&g);
    }
}
static void attention_f32(void **state) {
    (void)state;
    run_attention("cuda-f32", 0);
}
static void attention_bf16(void **state) {
    (void)state;
    run_attention("cuda", 1);
}

/* Lists that are divided among blocks, and such that are not. */
static void decoding(void **state) {
    (void)state;
    enum { BATCH = 2, HEADS = 4, GROUPS = 2, WIDTH = 24, COUNT = 2, CACHE = 600 };
    for (int n = 0; n < 4; n++) {
        struct guarded g;
        guarded_open(&g, n % 2 ? "cuda" : "cuda-f32", true);
        const int64_t capacity = n < 2 ? CACHE : 7, rows = BATCH * COUNT;
        struct bench b = {.ops = g.guard};
        struct attention_decode a = {.count = COUNT, .lists = 1, .scale = 1 / sqrt(WIDTH)};
        a.q = bench_normal(&b, 3, DIMS(BATCH, HEADS, WIDTH), 1, 0);
        a.k = bench_normal(&b, 4, DIMS(BATCH, CACHE, GROUPS, WIDTH), 1, 0);
        a.v = bench_normal(&b, 4, DIMS(BATCH, CACHE, GROUPS, WIDTH), 1, 0);
        a.coefficients = bench_statistic(&b, 2, DIMS(HEADS, COUNT), 1, 0);
        a.slots = tensor_reshape(bench_ids(&b, rows * capacity, CACHE), 3, DIMS(BATCH, COUNT, capacity));
        a.slot_counts = tensor_reshape(bench_ids(&b, rows, capacity + 1), 2, DIMS(BATCH, COUNT));
        a.o = bench_unset(&b, 3, DIMS(BATCH, HEADS, WIDTH));
        CHECK_OK(g.guard->attention_decode(g.guard, &a));
        bench_reset(&b);
        guarded_close(&g);
    }
}

static struct guarded broken;
static enum status fill_long(const struct ops *ops, struct tensor x, double value) {
    (void)ops;
    x.shape[0]++;
    return broken.table->fill(broken.table, x, value);
}

/* A kernel's work is done when somebody waits for it: the guard has, before it looks. */
static void faults_are_seen(void **state) {
    (void)state;
    guarded_open(&broken, "cuda-f32", true);
    broken.guard->close(broken.guard);
    broken.readable.fill = fill_long;
    CHECK_OK(guard_open(&broken.readable, &broken.guard));
    struct tensor x = tensor_1d(NULL, DTYPE_F32, 30);
    CHECK_OK(broken.guard->allocate(broken.guard, tensor_bytes(x), &x.data));
    error_clear();
    assert_int_equal(broken.guard->fill(broken.guard, x, 2), STATUS_FAILED);
    assert_non_null(strstr(error_message(), "fill wrote after a block of 120 bytes"));
    error_clear();
    broken.guard->close(broken.guard);
    broken.table->close(broken.table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_f32), cmocka_unit_test(operations_bf16), cmocka_unit_test(attention_f32),
        cmocka_unit_test(attention_bf16), cmocka_unit_test(decoding),        cmocka_unit_test(faults_are_seen),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
