/* Single operations against PyTorch's float64 results (goldens.h), on the oracle table and on fp32. */
#include "tests/ops/goldens.h"
#include "tests/ops/harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define OK(call) expect_ok(call, #call)

static struct tensor load(struct bench *b, const double *values, int rank, const int64_t *shape) {
    struct tensor t = bench_unset(b, rank, shape);
    bench_write(b, t, values);
    return t;
}

static struct tensor zeros(struct bench *b, int rank, const int64_t *shape) {
    struct tensor t = bench_unset(b, rank, shape);
    for (int64_t i = 0; i < tensor_count(t); i++) bench_set(b, t, i, 0);
    return t;
}

static void expect(struct bench *b, const char *what, struct tensor t, const double *golden) {
    double bound = b->ops->real == DTYPE_F64 ? 1e-13 : 5e-6, *values = bench_values(b, t);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        if (fabs(values[i] - golden[i]) <= bound * (1 + fabs(golden[i]))) continue;
        print_error("%s: %s[%lld]: PyTorch %.17g, found %.17g\n", b->ops->name, what, (long long)i, golden[i],
                    values[i]);
        fail();
    }
    free(values);
}

static void check_norms(struct bench *b) {
    const int64_t shape[] = {3, 7};
    for (int kind = NORM_LAYER; kind <= NORM_RMS; kind++) {
        bool layer = kind == NORM_LAYER;
        struct norm f = {.kind = (enum norm_kind)kind, .epsilon = 1e-5};
        f.x = load(b, layer ? layernorm_x : rmsnorm_x, 2, shape);
        f.weight = load(b, layer ? layernorm_w : rmsnorm_w, 1, shape + 1);
        if (layer) f.bias = load(b, layernorm_b, 1, shape + 1);
        if (layer) f.mean = bench_unset(b, 1, shape);
        f.y = bench_unset(b, 2, shape);
        f.rstd = bench_unset(b, 1, shape);
        OK(b->ops->norm(b->ops, &f));
        expect(b, "norm y", f.y, layer ? layernorm_y : rmsnorm_y);
        struct norm_backward d = {.kind = f.kind, .x = f.x, .weight = f.weight, .mean = f.mean, .rstd = f.rstd};
        d.dy = load(b, layer ? layernorm_dy : rmsnorm_dy, 2, shape);
        d.dx = zeros(b, 2, shape);
        d.dweight = zeros(b, 1, shape + 1);
        if (layer) d.dbias = zeros(b, 1, shape + 1);
        OK(b->ops->norm_backward(b->ops, &d));
        expect(b, "norm dx", d.dx, layer ? layernorm_dx : rmsnorm_dx);
        expect(b, "norm dweight", d.dweight, layer ? layernorm_dw : rmsnorm_dw);
        if (layer) expect(b, "norm dbias", d.dbias, layernorm_db);
        bench_reset(b);
    }
}

static void check_activations(struct bench *b) {
    struct tensor x = load(b, gelu_x, 2, DIMS(18, 1)), one = load(b, (const double[]){1}, 2, DIMS(1, 1));
    struct gemm g = {.a = x, .b = one, .c = bench_unset(b, 2, DIMS(18, 1)), .alpha = 1};
    g.activation = ACTIVATION_GELU;
    OK(b->ops->gemm(b->ops, &g));
    expect(b, "gelu y", g.c, gelu_y);
    struct tensor dy = load(b, gelu_dy, 2, DIMS(18, 1));
    OK(b->ops->gelu_backward(b->ops, dy, x, dy));
    expect(b, "gelu dx", dy, gelu_dx);

    struct tensor gate = load(b, swiglu_x, 2, DIMS(2, 10)), y = bench_unset(b, 2, DIMS(2, 5));
    OK(b->ops->swiglu(b->ops, gate, y));
    expect(b, "swiglu y", y, swiglu_y);
    OK(b->ops->swiglu_backward(b->ops, load(b, swiglu_dy, 2, DIMS(2, 5)), gate, gate));
    expect(b, "swiglu dx", gate, swiglu_dx);
    bench_reset(b);
}

static void check_rope(struct bench *b) {
    struct rope r = {.x = load(b, rope_x, 4, DIMS(1, 3, 2, 6)), .frequencies = load(b, rope_frequencies, 1, DIMS(3))};
    r.positions = tensor_reshape(bench_ids(b, 3, 1), 2, DIMS(1, 3));
    bench_set(b, r.positions, 1, 5);
    bench_set(b, r.positions, 2, 131);
    OK(b->ops->rope(b->ops, &r));
    expect(b, "rope y", r.x, rope_y);
    r.inverse = true;
    OK(b->ops->rope(b->ops, &r));
    expect(b, "rope and back", r.x, rope_x);
    bench_reset(b);
}

static void check_losses(struct bench *b) {
    const int64_t shape[] = {4, 11};
    struct loss_rows a = {.temperature = 2.5, .kl_weight = 0.75, .ce_weight = 0.5, .scale = 0.125};
    a.student = load(b, loss_student, 2, shape);
    a.teacher = load(b, loss_teacher, 2, shape);
    a.targets = bench_ids(b, 4, 1);
    bench_write(b, a.targets, loss_targets);
    a.gradient = a.student;
    a.kl = bench_unset(b, 1, shape);
    a.reverse_kl = bench_unset(b, 1, shape);
    a.ce = bench_unset(b, 1, shape);
    a.teacher_ce = bench_unset(b, 1, shape);
    a.agree = bench_unset(b, 1, shape);
    a.entropy = bench_unset(b, 1, shape);
    OK(b->ops->loss_rows(b->ops, &a));
    expect(b, "kl", a.kl, loss_kl);
    expect(b, "reverse_kl", a.reverse_kl, loss_reverse_kl);
    expect(b, "ce", a.ce, loss_ce);
    expect(b, "teacher_ce", a.teacher_ce, loss_teacher_ce);
    expect(b, "agree", a.agree, loss_agree);
    expect(b, "entropy", a.entropy, loss_entropy);
    expect(b, "gradient", a.gradient, loss_gradient);
    bench_reset(b);
}

static void check_adamw(struct bench *b) {
    struct adamw a = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .grad_scale = 1};
    a.parts = &(struct param_part){.count = 6, .decay = 0.1};
    a.part_count = 1;
    a.value = load(b, adamw_x, 1, DIMS(6));
    a.m = zeros(b, 1, DIMS(6));
    a.v = zeros(b, 1, DIMS(6));
    for (a.step = 1; a.step <= 3; a.step++) {
        a.grad = load(b, adamw_grads + 6 * (a.step - 1), 1, DIMS(6));
        OK(b->ops->adamw(b->ops, &a));
    }
    expect(b, "adamw", a.value, adamw_y);
    bench_reset(b);
}

static void all_operations(const char *table) {
    struct bench b;
    bench_open(&b, table, NULL, 2);
    check_norms(&b);
    check_activations(&b);
    check_rope(&b);
    check_losses(&b);
    check_adamw(&b);
    bench_close(&b);
}

static void oracle_equals_pytorch(void **state) {
    (void)state;
    all_operations("guard:cpu-f64");
}

static void fp32_equals_pytorch(void **state) {
    (void)state;
    all_operations("guard:cpu");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(oracle_equals_pytorch),
        cmocka_unit_test(fp32_equals_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
