/* Backward passes in double precision against central finite differences of the forward pass, element by element. */
#include "tests/ops/harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define OK(call) expect_ok(call, #call)

/* Σ weights·outputs of one forward pass. */
typedef double (*loss_function)(struct bench *b, void *problem);

static double weigh(struct bench *b, struct tensor weights, struct tensor y) {
    double *w = bench_values(b, weights), *v = bench_values(b, y), sum = 0;
    for (int64_t i = 0; i < tensor_count(y); i++) sum += w[i] * v[i];
    free(w);
    free(v);
    return sum;
}

/* Every element of `gradient` is ∂loss/∂x. */
static void check_gradient(struct bench *b, const char *what, loss_function loss, void *problem, struct tensor x,
                           struct tensor gradient) {
    double *values = x.data, *found = bench_values(b, gradient);
    const double h = 1e-5;
    for (int64_t i = 0; i < tensor_count(x); i++) {
        double before = values[i];
        values[i] = before + h;
        double high = loss(b, problem);
        values[i] = before - h;
        double low = loss(b, problem);
        values[i] = before;
        double expected = (high - low) / (2 * h);
        if (fabs(found[i] - expected) <= 1e-7 * (1 + fabs(expected))) continue;
        print_error("%s[%lld]: finite difference %.12g, backward %.12g\n", what, (long long)i, expected, found[i]);
        fail();
    }
    free(found);
}

static struct tensor zeros(struct bench *b, int rank, const int64_t *shape) {
    return bench_normal(b, rank, shape, 0, 0);
}

struct norm_problem {
    struct norm forward;
    struct tensor dy;
};

static double norm_loss(struct bench *b, void *problem) {
    struct norm_problem *p = problem;
    OK(b->ops->norm(b->ops, &p->forward));
    return weigh(b, p->dy, p->forward.y);
}

static void norms(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 2}, {3, 7}, {5, 48}};
    struct bench b;
    bench_open(&b, "guard:cpu-f64", NULL, 2);
    for (int i = 0; i < 6; i++) {
        const int64_t *shape = shapes[i / 2];
        bool layer = i % 2 == NORM_LAYER;
        struct norm_problem p = {.forward = {.kind = (enum norm_kind)(i % 2), .epsilon = 1e-3}};
        struct norm *f = &p.forward;
        f->x = bench_normal(&b, 2, shape, 2, 1);
        f->weight = bench_normal(&b, 1, shape + 1, 1, 0);
        f->y = bench_unset(&b, 2, shape);
        f->rstd = bench_unset(&b, 1, shape);
        if (layer) f->bias = bench_normal(&b, 1, shape + 1, 1, 0);
        if (layer) f->mean = bench_unset(&b, 1, shape);
        p.dy = bench_normal(&b, 2, shape, 1, 0);
        norm_loss(&b, &p);
        struct norm_backward d = {.kind = f->kind, .x = f->x, .weight = f->weight, .dy = p.dy};
        /* Copies: the finite differences run the forward pass again. */
        d.rstd = bench_unset(&b, 1, shape);
        OK(b.ops->copy(b.ops, f->rstd, d.rstd));
        if (layer) d.mean = bench_unset(&b, 1, shape);
        if (layer) OK(b.ops->copy(b.ops, f->mean, d.mean));
        d.dx = zeros(&b, 2, shape);
        d.dweight = zeros(&b, 1, shape + 1);
        if (layer) d.dbias = zeros(&b, 1, shape + 1);
        OK(b.ops->norm_backward(b.ops, &d));
        check_gradient(&b, "norm dx", norm_loss, &p, f->x, d.dx);
        check_gradient(&b, "norm dweight", norm_loss, &p, f->weight, d.dweight);
        if (layer) check_gradient(&b, "norm dbias", norm_loss, &p, f->bias, d.dbias);
        /* dx accumulates: a second call doubles it. */
        OK(b.ops->norm_backward(b.ops, &d));
        OK(b.ops->scale(b.ops, 0.5, d.dx));
        check_gradient(&b, "norm dx +=", norm_loss, &p, f->x, d.dx);
        bench_reset(&b);
    }
    bench_close(&b);
}

struct pointwise_problem {
    struct tensor x, y, dy, one;
    struct rope rope;
};

static double gelu_loss(struct bench *b, void *problem) {
    struct pointwise_problem *p = problem;
    struct gemm g = {.a = p->x, .b = p->one, .c = p->y, .alpha = 1, .activation = ACTIVATION_GELU};
    OK(b->ops->gemm(b->ops, &g));
    return weigh(b, p->dy, p->y);
}

static double swiglu_loss(struct bench *b, void *problem) {
    struct pointwise_problem *p = problem;
    OK(b->ops->swiglu(b->ops, p->x, p->y));
    return weigh(b, p->dy, p->y);
}

static double rope_loss(struct bench *b, void *problem) {
    struct pointwise_problem *p = problem;
    OK(b->ops->copy(b->ops, p->x, p->y));
    p->rope.x = p->y;
    p->rope.inverse = false;
    OK(b->ops->rope(b->ops, &p->rope));
    return weigh(b, p->dy, p->y);
}

static void pointwise(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "guard:cpu-f64", NULL, 2);
    struct pointwise_problem p = {.x = bench_normal(&b, 2, DIMS(129, 1), 3, 0)};
    p.y = bench_unset(&b, 2, DIMS(129, 1));
    p.dy = bench_normal(&b, 2, DIMS(129, 1), 1, 0);
    p.one = bench_normal(&b, 2, DIMS(1, 1), 0, 1);
    struct tensor dx = bench_unset(&b, 2, DIMS(129, 1));
    OK(b.ops->gelu_backward(b.ops, p.dy, p.x, dx));
    check_gradient(&b, "gelu dx", gelu_loss, &p, p.x, dx);
    bench_reset(&b);

    p = (struct pointwise_problem){.x = bench_normal(&b, 2, DIMS(7, 26), 3, 0)};
    p.y = bench_unset(&b, 2, DIMS(7, 13));
    p.dy = bench_normal(&b, 2, DIMS(7, 13), 1, 0);
    dx = bench_unset(&b, 2, DIMS(7, 26));
    OK(b.ops->swiglu_backward(b.ops, p.dy, p.x, dx));
    check_gradient(&b, "swiglu dx", swiglu_loss, &p, p.x, dx);
    bench_reset(&b);

    p = (struct pointwise_problem){.x = bench_normal(&b, 4, DIMS(1, 7, 3, 6), 1, 0)};
    p.y = bench_unset(&b, 4, DIMS(1, 7, 3, 6));
    p.dy = bench_normal(&b, 4, DIMS(1, 7, 3, 6), 1, 0);
    p.rope.positions = tensor_reshape(bench_ids(&b, 7, 1000), 2, DIMS(1, 7));
    p.rope.frequencies = bench_normal(&b, 1, DIMS(3), 0.1, 1);
    dx = bench_unset(&b, 4, DIMS(1, 7, 3, 6));
    OK(b.ops->copy(b.ops, p.dy, dx));
    struct rope inverse = {.x = dx, .positions = p.rope.positions, .frequencies = p.rope.frequencies, .inverse = true};
    OK(b.ops->rope(b.ops, &inverse));
    check_gradient(&b, "rope dx", rope_loss, &p, p.x, dx);
    bench_close(&b);
}

static double rows_loss(struct bench *b, void *problem) {
    struct loss_rows *p = problem, forward = *p;
    forward.gradient = tensor_none();
    OK(b->ops->loss_rows(b->ops, &forward));
    double sum = 0, *kl = tensor_present(p->kl) ? bench_values(b, p->kl) : NULL;
    double *ce = tensor_present(p->ce) ? bench_values(b, p->ce) : NULL;
    for (int64_t i = 0; i < p->student.shape[0]; i++) {
        if (kl) sum += p->kl_weight * kl[i];
        if (ce) sum += p->ce_weight * ce[i];
    }
    free(kl);
    free(ce);
    return p->scale * sum;
}

static void losses(void **state) {
    (void)state;
    static const struct {
        int64_t shape[2];
        double temperature, kl_weight, ce_weight;
    } cases[] = {{{1, 1}, 1, 1, 0},    {{3, 17}, 1, 1, 0},     {{3, 17}, 2.5, 1, 0},   {{4, 33}, 1, 0, 1},
                 {{4, 33}, 3, 0.5, 2}, {{4, 33}, 0.5, 0.5, 2}, {{4, 9}, 1, 0.25, 0.75}};
    struct bench b;
    bench_open(&b, "guard:cpu-f64", NULL, 2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int64_t *shape = cases[i].shape;
        struct loss_rows p = {.student = bench_normal(&b, 2, shape, 2, 0), .scale = 0.3};
        p.temperature = cases[i].temperature;
        p.kl_weight = cases[i].kl_weight;
        p.ce_weight = cases[i].ce_weight;
        if (p.kl_weight != 0) {
            p.teacher = bench_normal(&b, 2, shape, 2, 0);
            p.kl = bench_unset(&b, 1, shape);
        }
        if (p.ce_weight != 0) {
            p.targets = bench_ids(&b, shape[0], shape[1]);
            bench_set(&b, p.targets, 1, -100);
            p.ce = bench_unset(&b, 1, shape);
        }
        struct tensor gradient = p.gradient = bench_unset(&b, 2, shape);
        OK(b.ops->loss_rows(b.ops, &p));
        check_gradient(&b, "loss_rows gradient", rows_loss, &p, p.student, gradient);
        bench_reset(&b);
    }
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms),
        cmocka_unit_test(pointwise),
        cmocka_unit_test(losses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
