/* Linear attention of the CUDA table, executed on the host: against the CPU's oracle in fp32 and in bf16, in several
 * orders of threads; the same bits in all of them; no output that knows a later token; nothing written elsewhere.
 * `test_linear_simt TEST ROW` runs the tests of this name (* stands for any letters), of tables the rows whose name
 * starts so. Tolerances: ops/linear_device.h. */
#include "ops/case_arrays.h"
#include "ops/linear_device.h"
#include "simt/far.h"
#include "simt/guarded.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <string.h>

enum { LONG = 150 /* tokens */ };

static const char *chosen = "";
static bool is_chosen(const struct linear_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

/* Forwards and backwards; of bf16 every other row only forwards. */
static void run_table(const char *name) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    for (int n = 0; n < linear_device_case_count; n++) {
        const struct linear_case *row = &linear_device_cases[n];
        if (!is_chosen(row)) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        linear_device_row(ops, oracle, row, row->length <= LONG || ops->real == DTYPE_F32);
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_table_f32(void **state) {
    (void)state;
    run_table("cuda-f32");
}
static void test_table_bf16(void **state) {
    (void)state;
    run_table("cuda");
}

static void run_weights(const char *name, int turn) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    for (int n = 0; n < linear_device_case_count; n++) {
        const struct linear_case *row = &linear_device_cases[n];
        if (!is_chosen(row) || row->near_only || row->length > LONG || (turn && n % 2 == 0)) continue;
        simt_set_order((enum simt_order)(n / 2 % 3), (uint64_t)n);
        linear_device_weights(ops, oracle, row);
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_weights_f32(void **state) {
    (void)state;
    run_weights("cuda-f32", 0);
}
static void test_weights_bf16(void **state) {
    (void)state;
    run_weights("cuda", 1);
}

static void run_decode(const char *name, int turn) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    for (int n = 0; n < linear_decode_case_count; n++) {
        if (!is_chosen(&linear_decode_cases[n])) continue;
        simt_set_order((enum simt_order)((n + turn) % 3), (uint64_t)n);
        linear_device_decode(ops, oracle, &linear_decode_cases[n]);
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_decode_f32(void **state) {
    (void)state;
    run_decode("cuda-f32", 0);
}
static void test_decode_bf16(void **state) {
    (void)state;
    run_decode("cuda", 1);
}

/* Every output has the same bits whatever order the threads and blocks run in. */
static void test_order(void **state) {
    (void)state;
    static const struct linear_case rows[] = {
        {"exp", 1, 140, 2, 1, 16, FEATURE_EXP, 20, 0, 9, .cuts = {30}, .beta = true, .chunk = 64},
        {"relu, squeeze", 2, 70, 2, 1, 8, FEATURE_RELU, 20, 5, 9, .bias = true, .beta = true, .cuts = {40}},
    };
    const struct ops *ops = device_table("cuda", true);
    for (size_t n = 0; n < 2 * sizeof rows / sizeof *rows; n++) {
        const struct linear_case *row = &rows[n / 2];
        struct linear_arrays found[3];
        struct linear_weights_run runs[3];
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            simt_set_order((enum simt_order)order, 9);
            linear_fill(row, &found[order]);
            runs[order] = (struct linear_weights_run){.weight = 1, .gradient_scale = 1, .gradients = true};
            if (n % 2)
                linear_run_weights(ops, row, &found[order], &runs[order]);
            else
                linear_run(ops, row, &found[order], true);
        }
        for (int order = SIMT_REVERSE; order <= SIMT_RANDOM; order++) {
            for (int i = 0; i < LINEAR_INPUTS; i++)
                linear_expect_bits(row, "another order", linear_names[i], found[0].gradient[i],
                                   found[order].gradient[i], found[0].counts[i]);
            linear_expect_bits(row, "another order", "loss", &runs[0].loss, &runs[order].loss, 1);
        }
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) linear_free(&found[order]);
    }
    ops->close(ops);
}

static void test_no_leak(void **state) {
    (void)state;
    static const struct linear_case rows[] = {
        {"exp", 1, 140, 1, 1, 8, FEATURE_EXP, 24, 0, 0, .cuts = {130}, .chunk = 64},
        {"exp, window", 1, 135, 2, 1, 8, FEATURE_EXP, 24, 0, 9, .cuts = {100}, .chunk = 64},
        {"relu, squeeze", 1, 132, 1, 1, 8, FEATURE_RELU, 20, 5, 9, .cuts = {131}, .chunk = 64},
    };
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
            static const int64_t places[] = {0, 15, 63, 64, 73, 129};
            static const double factors[] = {1.25, 80, 3e38};
            struct linear_arrays before;
            linear_fill(&rows[n], &before);
            linear_run(ops, &rows[n], &before, false);
            for (size_t i = bf16 ? n % 2 : 0; i < sizeof places / sizeof *places; i += 1 + bf16)
                linear_check_no_leak(ops, &rows[n], &before, places[i], factors[(i + n) % 3]);
            linear_free(&before);
        }
        ops->close(ops);
    }
}

/* Scores of hundreds and of thousands: everything stays finite. */
static void test_huge_scores(void **state) {
    (void)state;
    static const struct linear_case rows[] = {
        {"exp", 1, 70, 2, 1, 8, FEATURE_EXP, 24, 0, 3, .cuts = {40}, .beta = true, .chunk = 64},
        {"hedgehog", 1, 70, 2, 1, 8, FEATURE_HEDGEHOG, 8, 0, 0, .chunk = 64},
        {"relu, squeeze", 1, 70, 2, 1, 8, FEATURE_RELU, 20, 5, 9, .bias = true, .beta = true, .chunk = 64},
        {"exp, both directions", 1, 70, 2, 1, 8, FEATURE_EXP, 24, 0, 0, .bidirectional = true, .chunk = 64},
    };
    static const double magnitudes[] = {60, 2000};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        for (size_t n = 0; n < sizeof rows / sizeof *rows; n++)
            for (int m = 0; m < 4; m++) {
                struct linear_case row = rows[n];
                struct linear_weights_run run = {.weight = 1, .gradient_scale = 1, .gradients = true};
                struct linear_arrays x;
                row.magnitude = magnitudes[m / 2];
                linear_fill(&row, &x);
                if (m % 2)
                    linear_run_weights(ops, &row, &x, &run);
                else
                    linear_run(ops, &row, &x, true);
                for (int i = 0; i < LINEAR_INPUTS; i++)
                    for (int64_t e = 0; e < x.counts[i]; e++)
                        if (!isfinite(x.gradient[i][e]) || !isfinite(run.loss))
                            fail_msg("%s, magnitude %g, %s: %s[%lld] is %g", row.name, row.magnitude, ops->name,
                                     linear_names[i], (long long)e, x.gradient[i][e]);
                linear_free(&x);
            }
        ops->close(ops);
    }
}

/* Under the guard: outputs are written whole, and nothing else. */
static void test_guarded(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *oracle = device_table("cpu-f64", true);
        struct guarded g;
        guarded_open(&g, bf16 ? "cuda" : "cuda-f32", true);
        simt_set_order(SIMT_RANDOM, 3);
        for (int n = bf16; n < linear_device_case_count; n += 4) {
            if (linear_device_cases[n].length > LONG) continue;
            linear_device_row(g.guard, oracle, &linear_device_cases[n], true);
            if (!linear_device_cases[n].near_only) linear_device_weights(g.guard, oracle, &linear_device_cases[n]);
        }
        for (int n = bf16; n < linear_decode_case_count; n += 3)
            linear_device_decode(g.guard, oracle, &linear_decode_cases[n]);
        guarded_close(&g);
        oracle->close(oracle);
    }
}

enum { FAR_VIEWS = 8 };
/* Views of q, k, v, d_o, o, dq, dk, dv [B,T,H,D] of one mapping whose heads are 2^30 elements apart. */
static void far_views(float *memory, const struct linear_case *row, int64_t step, struct tensor *views) {
    for (int n = 0; n < FAR_VIEWS; n++) {
        views[n] = tensor_4d(memory + n * row->width, DTYPE_F32, row->batch, row->length, row->heads, row->width);
        views[n].stride[2] = step;
        views[n].stride[1] = row->heads * step;
        views[n].stride[0] = row->length * row->heads * step;
    }
}

/* Strides so wide that an element's place needs more than 32 bits: the memory is only reserved. */
static void test_far_elements(void **state) {
    (void)state;
    static const struct linear_case row = {"far", 2, 3, 2, 2, 8, FEATURE_EXP, 20, 0, 1, .cuts = {0}};
    const int64_t step = ((int64_t)1 << 30) + 64, rows = row.batch * row.length * row.heads, count = rows * step;
    float *memory = far_reserve(count);
    if (!memory) /* a machine that reserves no more than it has */
        CHECK_SKIP("far elements: no address space for %lld of them", (long long)count);
    const struct ops *ops = device_table("cuda-f32", true), *oracle = device_table("cpu-f64", true);
    struct tensor views[FAR_VIEWS], p[LINEAR_INPUTS] = {0};
    struct linear_arrays x;
    linear_fill(&row, &x);
    linear_run(oracle, &row, &x, true);
    far_views(memory, &row, step, views);
    for (int n = 0; n < 4; n++) case_move_here(views[n], x.in[n], true);
    for (int n = LINEAR_Q_MAP; n <= LINEAR_K_MAP; n++) {
        p[n] = tensor_1d(NULL, DTYPE_F32, x.counts[n]);
        CHECK_OK(ops->allocate(ops, tensor_bytes(p[n]), &p[n].data));
        case_move(ops, p[n], x.in[n], true);
    }
    struct tensor start = tensor_2d(NULL, DTYPE_I32, row.batch, row.length);
    struct tensor sums = tensor_3d(NULL, DTYPE_F32, row.batch, row.heads, row.length);
    CHECK_OK(ops->allocate(ops, tensor_bytes(start), &start.data));
    CHECK_OK(ops->allocate(ops, tensor_bytes(sums), &sums.data));
    CHECK_OK(ops->upload(ops, start, x.start));
    struct linear_attention_backward g = {.d_o = views[3], .dq = views[5], .dk = views[6], .dv = views[7]};
    g.forward = (struct linear_attention){.q = views[0], .k = views[1], .v = views[2], .o = views[4], .start = start};
    g.forward.log_sums = sums;
    g.forward.features = linear_features(&row, p);
    g.forward.window = row.window;
    g.forward.causal = true;
    g.forward.scale = 1 / sqrt((double)row.width);
    CHECK_OK(ops->linear_attention(ops, &g.forward));
    CHECK_OK(ops->linear_attention_backward(ops, &g));
    CHECK_OK(ops->synchronise(ops));
    static const int outputs[] = {LINEAR_D_O, LINEAR_Q, LINEAR_K, LINEAR_V};
    for (int n = 4; n < FAR_VIEWS; n++) {
        double found[2 * 3 * 2 * 8];
        case_move_here(views[n], found, false);
        for (int64_t i = 0; i < rows * row.width; i++)
            if (!(fabs(found[i] - x.gradient[outputs[n - 4]][i]) <= LINEAR_F32))
                fail_msg("far: view %d[%lld]: expected %.9g, found %.9g", n, (long long)i,
                         x.gradient[outputs[n - 4]][i], found[i]);
    }
    far_release(memory, count);
    ops->release(ops, start.data);
    ops->release(ops, sums.data);
    for (int n = 0; n < LINEAR_INPUTS; n++) ops->release(ops, p[n].data);
    linear_free(&x);
    ops->close(ops);
    oracle->close(oracle);
}

/* Starts that the host cannot check: no kernel leaves the tensors (AddressSanitizer). */
static void test_wrong_starts(void **state) {
    (void)state;
    static const struct linear_case rows[] = {
        {"causal", 2, 70, 2, 1, 8, FEATURE_EXP, 12, 0, 5, .beta = true, .chunk = 64},
        {"both directions", 2, 70, 2, 1, 8, FEATURE_HEDGEHOG, 12, 0, 0, .bidirectional = true, .chunk = 64},
    };
    static const int32_t wrong[] = {-5, 1 << 30, 3, INT32_MIN, 69, INT32_MAX, 0};
    const struct ops *ops = device_table("cuda-f32", true);
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        struct linear_weights_run run = {.weight = 1, .gradient_scale = 1, .gradients = true};
        struct linear_arrays x;
        linear_fill(&rows[n], &x);
        for (int64_t t = 0; t < rows[n].batch * rows[n].length; t++) x.start[t] = wrong[t * 5 % 7];
        linear_run(ops, &rows[n], &x, true);
        linear_run_weights(ops, &rows[n], &x, &run);
        linear_free(&x);
    }
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_f32),    cmocka_unit_test(test_table_bf16),   cmocka_unit_test(test_weights_f32),
        cmocka_unit_test(test_weights_bf16), cmocka_unit_test(test_decode_f32),   cmocka_unit_test(test_decode_bf16),
        cmocka_unit_test(test_order),        cmocka_unit_test(test_no_leak),      cmocka_unit_test(test_huge_scores),
        cmocka_unit_test(test_guarded),      cmocka_unit_test(test_far_elements), cmocka_unit_test(test_wrong_starts),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
