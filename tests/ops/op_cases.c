/* See op_cases.h. */
#include "tests/ops/op_cases.h"

#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define OK(call) expect_ok(call, #call)

/* A matrix's columns rounded to bf16, so that a bf16 product has the fp32 product's inputs. */
static struct tensor rounded_columns(struct bench *b, int64_t rows, int64_t all, int64_t first, int64_t width,
                                     double std) {
    const bool before = b->rounded;
    b->rounded = true;
    struct tensor t = bench_columns(b, rows, all, first, width, std);
    b->rounded = before;
    return t;
}

/* n: rows, columns, depth; flags: 1 transpose a, 2 transpose b, 4 accumulate, 8 bias, 16 gelu and pre, 32 strided, 64
 * bf16, 128 constant b, 256 c of the parameter dtype. */
void op_run_gemm(struct bench *b, const int64_t *n) {
    int64_t m = n[0], c = n[1], k = n[2], flags = n[3];
    bool ta = flags & 1, tb = flags & 2;
    int64_t pad = flags & 32 ? 5 : 0;
    struct tensor (*input)(struct bench *, int64_t, int64_t, int64_t, int64_t, double) =
        flags & 64 ? rounded_columns : bench_columns;
    struct gemm a = {.a = input(b, ta ? k : m, (ta ? m : k) + pad, pad / 2, ta ? m : k, 1),
                     .b = input(b, tb ? c : k, (tb ? k : c) + pad, pad, tb ? k : c, 0.3),
                     .transpose_a = ta,
                     .transpose_b = tb,
                     .accumulate = flags & 4,
                     .alpha = flags & 4 ? 0.5 : 1.0};
    if (flags & 256)
        a.c = tensor_columns(bench_parameter(b, 2, DIMS(m, c + pad), 1, 0), pad / 2, c);
    else
        a.c = bench_columns(b, m, c + pad, pad / 2, c, 1);
    if (flags & 8) a.bias = bench_normal(b, 1, DIMS(c), 1, 0);
    if (flags & 16) {
        a.activation = ACTIVATION_GELU;
        a.pre = bench_columns(b, m, c + pad, pad, c, 1);
        bench_output(b, "pre", a.pre);
    }
    a.bf16 = flags & 64;
    a.constant_b = flags & 128;
    OK(b->ops->gemm(b->ops, &a));
    if (a.constant_b && !a.accumulate) OK(b->ops->gemm(b->ops, &a)); /* from the packed copy */
    bench_output(b, "c", a.c);
}

/* n: rows, width, kind, flags: 1 delta, 2 in place, 4 bias. */
void op_run_norm(struct bench *b, const int64_t *n) {
    const int64_t *shape = n;
    struct norm a = {.kind = (enum norm_kind)n[2],
                     .epsilon = 1e-5,
                     .x = bench_normal(b, 2, shape, 2, 1),
                     .weight = bench_normal(b, 1, shape + 1, 0.3, 1),
                     .y = bench_unset(b, 2, shape),
                     .rstd = bench_unset_statistic(b, 1, shape)};
    if (a.kind == NORM_LAYER) a.mean = bench_unset_statistic(b, 1, shape);
    if (n[3] & 4) a.bias = bench_normal(b, 1, shape + 1, 1, 0);
    if (n[3] & 1) {
        a.delta = bench_normal(b, 2, shape, 1, 0);
        a.sum = n[3] & 2 ? a.x : bench_unset(b, 2, shape);
        bench_output(b, "sum", a.sum);
    }
    OK(b->ops->norm(b->ops, &a));
    bench_output(b, "y", a.y);
    bench_output(b, "rstd", a.rstd);
    if (a.kind == NORM_LAYER) bench_output(b, "mean", a.mean);
}

/* n: rows, width, kind, flags: 1 overwrite, 2 dweight, 4 dbias. */
void op_run_norm_backward(struct bench *b, const int64_t *n) {
    const int64_t *shape = n;
    struct norm_backward a = {.kind = (enum norm_kind)n[2],
                              .dy = bench_normal(b, 2, shape, 1, 0),
                              .x = bench_normal(b, 2, shape, 2, 1),
                              .weight = bench_normal(b, 1, shape + 1, 0.3, 1),
                              .rstd = bench_statistic(b, 1, shape, 0.01, 0.5),
                              .dx = n[3] & 1 ? bench_unset(b, 2, shape) : bench_normal(b, 2, shape, 1, 0),
                              .overwrite_dx = n[3] & 1};
    if (a.kind == NORM_LAYER) a.mean = bench_statistic(b, 1, shape, 0.1, 1);
    if (n[3] & 2) bench_output(b, "dweight", a.dweight = bench_parameter(b, 1, shape + 1, 1, 0));
    if (n[3] & 4) bench_output(b, "dbias", a.dbias = bench_parameter(b, 1, shape + 1, 1, 0));
    OK(b->ops->norm_backward(b->ops, &a));
    bench_output(b, "dx", a.dx);
}

/* n: rows, width, all columns. */
void op_run_bias_backward(struct bench *b, const int64_t *n) {
    struct tensor dy = bench_columns(b, n[0], n[2], n[2] - n[1], n[1], 1), dbias = bench_parameter(b, 1, n + 1, 1, 0);
    OK(b->ops->bias_backward(b->ops, dy, dbias));
    bench_output(b, "dbias", dbias);
}

/* n: rows, width, table rows, position rows (0: none). */
void op_run_embedding(struct bench *b, const int64_t *n) {
    struct embedding a = {.ids = bench_ids(b, n[0], n[2]),
                          .table = bench_normal(b, 2, DIMS(n[2], n[1]), 1, 0),
                          .x = bench_unset(b, 2, n)};
    if (n[3]) {
        a.positions = bench_ids(b, n[0], n[3]);
        a.position_table = bench_normal(b, 2, DIMS(n[3], n[1]), 1, 0);
    }
    OK(b->ops->embedding(b->ops, &a));
    bench_output(b, "x", a.x);
    struct embedding_backward d = {.ids = a.ids, .positions = a.positions, .dx = bench_normal(b, 2, n, 1, 0)};
    d.dtable = bench_parameter(b, 2, DIMS(n[2], n[1]), 1, 0);
    if (n[3]) d.dposition_table = bench_parameter(b, 2, DIMS(n[3], n[1]), 1, 0);
    OK(b->ops->embedding_backward(b->ops, &d));
    bench_output(b, "dtable", d.dtable);
    if (n[3]) bench_output(b, "dposition_table", d.dposition_table);
}

/* n: rows, width, in place. */
void op_run_gelu_backward(struct bench *b, const int64_t *n) {
    struct tensor dy = bench_normal(b, 2, n, 1, 0), pre = bench_normal(b, 2, n, 3, 0);
    struct tensor dx = n[2] ? dy : bench_unset(b, 2, n);
    OK(b->ops->gelu_backward(b->ops, dy, pre, dx));
    bench_output(b, "dx", dx);
}

/* n: rows, width, in place. */
void op_run_swiglu(struct bench *b, const int64_t *n) {
    struct tensor x = bench_normal(b, 2, DIMS(n[0], 2 * n[1]), 3, 0), y = bench_unset(b, 2, n);
    struct tensor dy = bench_normal(b, 2, n, 1, 0), dx = n[2] ? x : bench_unset(b, 2, DIMS(n[0], 2 * n[1]));
    OK(b->ops->swiglu(b->ops, x, y));
    OK(b->ops->swiglu_backward(b->ops, dy, x, dx));
    bench_output(b, "y", y);
    bench_output(b, "dx", dx);
}

/* n: batch, length, heads, head width, inverse, largest position. The heads lie inside a wider matrix. */
void op_run_rope(struct bench *b, const int64_t *n) {
    struct tensor wide = bench_columns(b, n[0] * n[1], n[2] * n[3] + 6, 3, n[2] * n[3], 1);
    struct tensor frequencies = bench_unset_statistic(b, 1, DIMS(n[3] / 2));
    for (int64_t d = 0; d < n[3] / 2; d++)
        bench_set(b, frequencies, d, (float)pow(1e4, -2.0 * (double)d / (double)n[3]));
    struct rope a = {.x = tensor_split_heads(wide, n[0], n[1], n[2], n[3]),
                     .positions = tensor_reshape(bench_ids(b, n[0] * n[1], n[5]), 2, n),
                     .frequencies = frequencies,
                     .inverse = n[4]};
    OK(b->ops->rope(b->ops, &a));
    bench_output(b, "x", wide);
}

/* A logit of each row becomes −inf, on both sides, and is no target. */
static void hide_logits(struct bench *b, const struct loss_rows *a) {
    const int64_t rows = a->student.shape[0], width = a->student.shape[1];
    double *targets = tensor_present(a->targets) ? bench_values(b, a->targets) : NULL;
    for (int64_t r = 0; r < rows; r++) {
        bench_set(b, a->student, r * width + r % width, -INFINITY);
        if (tensor_present(a->teacher)) bench_set(b, a->teacher, r * width + r % width, -INFINITY);
        if (targets && width > 1 && targets[r] == (double)(r % width)) {
            bench_set(b, a->targets, r, (double)((r + 1) % width));
        }
    }
    free(targets);
}

/* n: rows, vocabulary, flags, temperature in tenths. flags: 1 teacher, 2 targets, 4 gradient, 8 in place, 16 every
 * optional output, 32 some logits −inf, 64 large logits, 128 others of the teacher's −inf, 256 strided rows (not with
 * 32, 128), 512 logits of the statistic dtype (not with 256). */
void op_run_loss_rows(struct bench *b, const int64_t *n) {
    int64_t flags = n[2];
    bool strided = flags & 256;
    struct loss_rows a = {.temperature = (double)n[3] / 10, .scale = 0.125};
    double std = flags & 64 ? 40 : 3;
    struct tensor (*logits)(struct bench *, int, const int64_t *, double, double) =
        flags & 512 ? bench_statistic : bench_normal;
    a.student = strided ? bench_columns(b, n[0], n[1] + 9, 2, n[1], std) : logits(b, 2, n, std, 5);
    if (flags & 1) a.teacher = strided ? bench_columns(b, n[0], n[1] + 5, 4, n[1], std) : logits(b, 2, n, std, -7);
    if (flags & 1) a.kl_weight = 0.75;
    if (flags & 2) {
        a.targets = bench_ids(b, n[0], n[1]);
        if (n[0] > 2) bench_set(b, a.targets, n[0] / 2, -1);
        a.ce_weight = 0.5;
    }
    if (flags & 32) hide_logits(b, &a);
    if (flags & 128) {
        for (int64_t r = 0; r < n[0]; r++) bench_set(b, a.teacher, r * n[1] + (5 * r + 1) % n[1], -INFINITY);
    }
    if (flags & 4 && flags & 8) a.gradient = a.student;
    if (flags & 4 && !(flags & 8)) {
        a.gradient = strided ? bench_columns(b, n[0], n[1] + 8, 8, n[1], 1) : logits(b, 2, n, 1, 0);
    }
    if (flags & 4) bench_output(b, "gradient", a.gradient);
    if (flags & 1) bench_output(b, "kl", a.kl = bench_unset_statistic(b, 1, n));
    if (flags & 2) bench_output(b, "ce", a.ce = bench_unset_statistic(b, 1, n));
    if (flags & 16) {
        bench_output(b, "entropy", a.entropy = bench_unset_statistic(b, 1, n));
        if (flags & 1) bench_output(b, "reverse_kl", a.reverse_kl = bench_unset_statistic(b, 1, n));
        if (flags & 1) bench_output(b, "agree", a.agree = bench_unset_statistic(b, 1, n));
        if ((flags & 3) == 3) bench_output(b, "teacher_ce", a.teacher_ce = bench_unset_statistic(b, 1, n));
    }
    OK(b->ops->loss_rows(b->ops, &a));
}

/* n: rows, width, in place, further columns. */
void op_run_log_softmax(struct bench *b, const int64_t *n) {
    struct tensor x = bench_normal(b, 2, DIMS(n[0], n[1] + n[3]), 5, 100),
                  y = bench_unset(b, 2, DIMS(n[0], n[1] + 2 * n[3]));
    x = tensor_columns(x, 0, n[1]);
    y = n[2] ? x : tensor_columns(y, n[3], n[1]);
    if (n[1] > 3) bench_set(b, x, 2, -INFINITY);
    OK(b->ops->log_softmax(b->ops, x, y));
    bench_set(b, y, n[1] > 3 ? 2 : 0, 0); /* −inf, checked here by not being NaN: compared as a number elsewhere */
    bench_output(b, "y", y);
}

/* n: rows, width, all columns. */
void op_run_reductions(struct bench *b, const int64_t *n) {
    struct tensor x = bench_columns(b, n[0], n[2], 0, n[1], 1), y = bench_columns(b, n[0], n[2], n[2] - n[1], n[1], 1);
    struct tensor out[3] = {bench_doubles(b, 1), bench_doubles(b, 1), bench_doubles(b, 1)};
    OK(b->ops->sum(b->ops, x, out[0]));
    OK(b->ops->sum_squares(b->ops, x, out[1]));
    OK(b->ops->sum_squared_difference(b->ops, x, y, out[2]));
    bench_output(b, "sum", out[0]);
    bench_output(b, "sum_squares", out[1]);
    bench_output(b, "sum_squared_difference", out[2]);
}

/* n: rows, width, all columns. */
void op_run_pointwise(struct bench *b, const int64_t *n) {
    struct tensor x = bench_columns(b, n[0], n[2], 0, n[1], 1), y = bench_columns(b, n[0], n[2], n[2] - n[1], n[1], 1);
    struct tensor z = bench_columns(b, n[0], n[2], 0, n[1], 1), w = bench_unset(b, 2, DIMS(n[0], n[1]));
    OK(b->ops->add_scaled(b->ops, -0.5, x, y));
    OK(b->ops->scale(b->ops, 3.0, y));
    OK(b->ops->copy(b->ops, y, z));
    OK(b->ops->fill(b->ops, x, 2.5));
    OK(b->ops->fill_normal(b->ops, w, 0.02, 11, rng_substream(RNG_TEST, 99)));
    bench_output(b, "y", y);
    bench_output(b, "z", z);
    bench_output(b, "x", x);
    bench_output(b, "w", w);
}

/* n: elements, step, l1 in thousandths, decay in thousandths. */
void op_run_adamw(struct bench *b, const int64_t *n) {
    const double decay = (double)n[3] / 1000, l1 = (double)n[2] / 1000;
    const int64_t cut = n[0] / 3, gap = n[0] > 100 ? 5 : 0; /* between the second and the third, some are in no part */
    const struct param_part parts[] = {
        {0, cut, decay, l1}, {cut, n[0] - cut - cut / 2 - gap, 0, l1}, {n[0] - cut / 2, cut / 2, decay, 0}};
    struct adamw a = {.value = bench_parameter(b, 1, n, 0.05, 0),
                      .grad = bench_parameter(b, 1, n, 3, 0),
                      .m = bench_parameter(b, 1, n, 0.1, 0),
                      .v = bench_parameter(b, 1, n, 0.01, 0.1),
                      .lr = 0.01,
                      .beta1 = 0.9,
                      .beta2 = 0.99,
                      .epsilon = 1e-8,
                      .parts = parts,
                      .part_count = 3,
                      .grad_scale = 0.25,
                      .step = n[1]};
    if (n[4]) bench_output(b, "working", a.working = bench_normal(b, 1, n, 1, 0));
    OK(b->ops->adamw(b->ops, &a));
    struct tensor squares = bench_doubles(b, 3);
    OK(b->ops->sum_squares_parts(b->ops, a.grad, parts, 3, squares));
    bench_output(b, "squares", squares);
    bench_output(b, "value", a.value);
    bench_output(b, "m", a.m);
    bench_output(b, "v", a.v);
}

const struct op_case op_cases[] = {
    {"gemm 1x1x1", op_run_gemm, {1, 1, 1, 0}, 1e-6},
    {"gemm 7x5x3", op_run_gemm, {7, 5, 3, 0}, 1e-6},
    {"gemm 0 rows", op_run_gemm, {0, 5, 3, 0}, 1e-6},
    {"gemm 0 columns", op_run_gemm, {5, 0, 3, 8}, 1e-6},
    {"gemm 0 depth, bias, gelu", op_run_gemm, {4, 6, 0, 8 | 16}, 2e-6},
    {"gemm 0 depth, accumulate", op_run_gemm, {4, 6, 0, 4}, 1e-6},
    {"gemm 129x48x65 aT", op_run_gemm, {129, 48, 65, 1}, 4e-6},
    {"gemm 129x48x65 bT bias", op_run_gemm, {129, 48, 65, 2 | 8}, 4e-6},
    {"gemm 33x70x19 aT bT accumulate", op_run_gemm, {33, 70, 19, 1 | 2 | 4}, 4e-6},
    {"gemm 65x1009x48 strided gelu", op_run_gemm, {65, 1009, 48, 8 | 16 | 32}, 4e-6},
    {"gemm 300x530x130 divided among threads", op_run_gemm, {300, 530, 130, 8 | 16}, 4e-6},
    {"gemm 300x1100x130 strided", op_run_gemm, {300, 1100, 130, 32}, 6e-6},
    {"gemm 520x130x300 aT strided accumulate bias", op_run_gemm, {520, 130, 300, 1 | 4 | 8 | 32}, 8e-6},
    {"gemm 96x130x70 aT gradient", op_run_gemm, {96, 130, 70, 1 | 4 | 256}, 8e-6},
    {"gemm 65x1009x48 bT strided logits", op_run_gemm, {65, 1009, 48, 2 | 32 | 256}, 4e-6},
    {"gemm 33x64x129 aT strided gradient", op_run_gemm, {33, 64, 129, 1 | 4 | 32 | 256}, 8e-6},
    {"gemm 1x768x768 (decode)", op_run_gemm, {1, 768, 768, 8}, 1e-5},
    {"gemm 1x1009x96 bT strided (decode)", op_run_gemm, {1, 1009, 96, 2 | 32}, 5e-6},
    {"gemm 3x2000x64 bT (decode)", op_run_gemm, {3, 2000, 64, 2}, 5e-6},
    {"gemm 17x130x257 accumulate (decode)", op_run_gemm, {17, 130, 257, 4}, 6e-6},
    {"gemm 16x300x130 strided bias gelu (decode)", op_run_gemm, {16, 300, 130, 8 | 16 | 32}, 6e-6},
    {"gemm bf16 129x70x48", op_run_gemm, {129, 70, 48, 64}, 1e-5},
    {"gemm bf16 65x1009x33 bT strided bias gelu", op_run_gemm, {65, 1009, 33, 2 | 8 | 16 | 32 | 64}, 1e-5},
    {"gemm bf16 333x600x129 aT accumulate strided", op_run_gemm, {333, 600, 129, 1 | 4 | 32 | 64}, 1e-5},
    {"gemm bf16 513x130x65 aT bT", op_run_gemm, {513, 130, 65, 1 | 2 | 64}, 1e-5},
    {"gemm bf16 300x1100x768 constant", op_run_gemm, {300, 1100, 768, 64 | 128}, 3e-5},
    {"gemm bf16 300x1100x768 bT constant bias", op_run_gemm, {300, 1100, 768, 2 | 8 | 64 | 128}, 3e-5},
    {"gemm bf16 1x1009x64 constant (decode)", op_run_gemm, {1, 1009, 64, 2 | 64 | 128}, 1e-5},
    {"gemm bf16 9x9x9 too small", op_run_gemm, {9, 9, 9, 64}, 1e-5},
    {"norm layer 1x1", op_run_norm, {1, 1, 0, 4}, 2e-6},
    {"norm layer 7x48", op_run_norm, {7, 48, 0, 4}, 4e-6},
    {"norm layer 300x97 delta", op_run_norm, {300, 97, 0, 1 | 4}, 4e-6},
    {"norm layer 129x768 in place", op_run_norm, {129, 768, 0, 1 | 2 | 4}, 4e-6},
    {"norm layer 0 rows", op_run_norm, {0, 48, 0, 4}, 1e-6},
    {"norm rms 7x48", op_run_norm, {7, 48, 1, 0}, 4e-6},
    {"norm rms 129x130 delta", op_run_norm, {129, 130, 1, 1}, 4e-6},
    {"norm rms 65x768 in place", op_run_norm, {65, 768, 1, 1 | 2}, 4e-6},
    {"norm_backward layer 1x1", op_run_norm_backward, {1, 1, 0, 7}, 2e-5},
    {"norm_backward layer 7x48", op_run_norm_backward, {7, 48, 0, 6}, 2e-5},
    {"norm_backward layer 2000x48 overwrite", op_run_norm_backward, {2000, 48, 0, 7}, 3e-5},
    {"norm_backward layer 129x97 frozen", op_run_norm_backward, {129, 97, 0, 0}, 2e-5},
    {"norm_backward rms 129x768", op_run_norm_backward, {129, 768, 1, 2}, 2e-5},
    {"norm_backward rms 0 rows", op_run_norm_backward, {0, 48, 1, 3}, 2e-5},
    {"bias_backward 1x1", op_run_bias_backward, {1, 1, 1}, 1e-6},
    {"bias_backward 1030x97 of 300", op_run_bias_backward, {1030, 97, 300}, 1e-5},
    {"bias_backward 129x2304", op_run_bias_backward, {129, 2304, 2304}, 1e-5},
    {"embedding 1x1", op_run_embedding, {1, 1, 1, 1}, 1e-6},
    {"embedding 129x97", op_run_embedding, {129, 97, 11, 0}, 1e-5},
    {"embedding 700x48 positions", op_run_embedding, {700, 48, 1009, 33}, 1e-5},
    {"gelu_backward 7x129", op_run_gelu_backward, {7, 129, 0}, 2e-6},
    {"gelu_backward 129x768 in place", op_run_gelu_backward, {129, 768, 1}, 2e-6},
    {"swiglu 1x1", op_run_swiglu, {1, 1, 0}, 2e-6},
    {"swiglu 129x172", op_run_swiglu, {129, 172, 0}, 2e-6},
    {"swiglu 200x129 in place", op_run_swiglu, {200, 129, 1}, 2e-6},
    {"rope 1x1x1x2", op_run_rope, {1, 1, 1, 2, 0, 8}, 2e-6},
    {"rope 2x7x3x48", op_run_rope, {2, 7, 3, 48, 0, 512}, 2e-6},
    {"rope 3x129x5x64 inverse", op_run_rope, {3, 129, 5, 64, 1, 100000}, 2e-6},
    {"loss_rows kl 1x1", op_run_loss_rows, {1, 1, 1 | 4, 10}, 2e-6},
    {"loss_rows kl 7x1009", op_run_loss_rows, {7, 1009, 1 | 4, 10}, 2e-6},
    {"loss_rows ce 7x1009 in place", op_run_loss_rows, {7, 1009, 2 | 4 | 8, 10}, 2e-6},
    {"loss_rows kl ce 33x1009 all outputs", op_run_loss_rows, {33, 1009, 1 | 2 | 4 | 16, 10}, 3e-6},
    {"loss_rows kl ce 33x1009 temperature 2.5 in place", op_run_loss_rows, {33, 1009, 1 | 2 | 4 | 8 | 16, 25}, 3e-6},
    {"loss_rows kl 5x130 temperature 0.5", op_run_loss_rows, {5, 130, 1 | 4, 5}, 4e-6},
    {"loss_rows -inf logits", op_run_loss_rows, {9, 65, 1 | 2 | 4 | 16 | 32, 10}, 3e-6},
    {"loss_rows -inf logits temperature 2", op_run_loss_rows, {9, 65, 1 | 2 | 4 | 8 | 16 | 32, 20}, 3e-6},
    {"loss_rows teacher's -inf logits", op_run_loss_rows, {9, 65, 1 | 2 | 4 | 128, 20}, 3e-6},
    {"loss_rows large logits", op_run_loss_rows, {9, 300, 1 | 2 | 4 | 16 | 64, 10}, 3e-6},
    {"loss_rows strided", op_run_loss_rows, {9, 65, 1 | 2 | 4 | 16 | 256, 15}, 3e-6},
    {"loss_rows strided in place", op_run_loss_rows, {9, 64, 1 | 4 | 8 | 256, 10}, 3e-6},
    {"loss_rows statistics", op_run_loss_rows, {9, 65, 1 | 2 | 4 | 16 | 512, 15}, 3e-6},
    {"loss_rows entropy alone", op_run_loss_rows, {5, 1009, 16, 10}, 3e-6},
    {"loss_rows ce of 129x50257", op_run_loss_rows, {3, 50257, 1 | 2 | 4 | 16, 10}, 3e-6},
    {"loss_rows 0 rows", op_run_loss_rows, {0, 65, 1 | 4, 10}, 1e-6},
    {"log_softmax 1x1", op_run_log_softmax, {1, 1, 0}, 1e-6},
    {"log_softmax 65x1009", op_run_log_softmax, {65, 1009, 0}, 2e-6},
    {"log_softmax 7x129 in place", op_run_log_softmax, {7, 129, 1}, 2e-6},
    {"log_softmax 9x65 of 70", op_run_log_softmax, {9, 65, 0, 5}, 2e-6},
    {"log_softmax 9x64 of 72 in place", op_run_log_softmax, {9, 64, 1, 8}, 2e-6},
    {"reductions 1x1", op_run_reductions, {1, 1, 1}, 1e-14},
    {"reductions 129x97 of 300", op_run_reductions, {129, 97, 300}, 1e-12},
    {"reductions 40x5000", op_run_reductions, {40, 5000, 5000}, 1e-12},
    {"reductions 0 rows", op_run_reductions, {0, 48, 48}, 1e-12},
    {"pointwise 1x1", op_run_pointwise, {1, 1, 1}, 1e-6},
    {"pointwise 129x97 of 300", op_run_pointwise, {129, 97, 300}, 1e-6},
    {"pointwise 12x8 of 24 (a factor in common)", op_run_pointwise, {12, 8, 24}, 1e-6},
    {"pointwise 40x5000", op_run_pointwise, {40, 5000, 5000}, 1e-6},
    {"adamw 1", op_run_adamw, {1, 1, 0, 0}, 2e-6},
    {"adamw 5001 decay", op_run_adamw, {5001, 3, 0, 100}, 2e-6},
    {"adamw 20000 l1", op_run_adamw, {20000, 1000, 2000, 10}, 2e-6},
    {"adamw 70001 working", op_run_adamw, {70001, 2, 10, 10, 1}, 2e-6},
    {"adamw 0", op_run_adamw, {0, 1, 0, 0}, 2e-6},
};
const int op_case_count = sizeof op_cases / sizeof op_cases[0];

void op_compare(const struct op_case *row, const char *where, struct bench *oracle, struct bench *got,
                struct op_bounds real, struct op_bounds other) {
    for (int o = 0; o < oracle->output_count; o++) {
        const struct op_bounds bounds = got->outputs[o].dtype == got->ops->real ? real : other;
        double *want = bench_values(oracle, oracle->outputs[o]), *have = bench_values(got, got->outputs[o]);
        for (int64_t i = 0; i < tensor_count(oracle->outputs[o]); i++) {
            const double bound = bounds.absolute + bounds.relative * fabs(want[i]);
            if (want[i] == have[i] || fabs(want[i] - have[i]) <= bound) continue;
            print_error("%s, %s: %s[%lld]: expected %.9g, found %.9g (bound %g)\n", row->name, where, oracle->names[o],
                        (long long)i, want[i], have[i], bound);
            fail();
        }
        free(want);
        free(have);
    }
}

void op_compare_bits(const struct op_case *row, const char *where, struct bench *one, struct bench *other) {
    for (int o = 0; o < one->output_count; o++) {
        double *want = bench_values(one, one->outputs[o]), *have = bench_values(other, other->outputs[o]);
        size_t count = (size_t)tensor_count(one->outputs[o]);
        if (count && memcmp(want, have, count * sizeof *want) != 0) {
            print_error("%s, %s: %s has other bits\n", row->name, where, one->names[o]);
            fail();
        }
        free(want);
        free(have);
    }
}
