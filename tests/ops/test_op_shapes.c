/* Wrong shapes, dtypes and strides: STATUS_SHAPE, and a message that names operation and argument. And the linear
 * operations against their definition, written out as plain loops. */
#include "tests/ops/harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static float memory[4096];
static int32_t ids[64];

static struct tensor f32(int64_t rows, int64_t columns) {
    return tensor_2d(memory, DTYPE_F32, rows, columns);
}

static struct tensor line(int64_t n) {
    return tensor_1d(memory, DTYPE_F32, n);
}

static struct tensor numbers(int64_t n) {
    return tensor_1d(ids, DTYPE_I32, n);
}

static struct tensor heads(int64_t batch, int64_t length, int64_t count, int64_t width) {
    return tensor_4d(memory, DTYPE_F32, batch, length, count, width);
}

static struct tensor with_dtype(struct tensor t, enum dtype dtype) {
    t.dtype = dtype;
    return t;
}

#define CALL(function, ...) ops->function(ops, __VA_ARGS__)
#define ARGUMENT(type, ...) (&(struct type){__VA_ARGS__})

static struct attention good_attention(void) {
    return (struct attention){.q = heads(1, 4, 4, 2),
                              .k = heads(1, 4, 2, 2),
                              .v = heads(1, 4, 2, 2),
                              .o = heads(1, 4, 4, 2),
                              .start = tensor_2d(ids, DTYPE_I32, 1, 4),
                              .log_sums = heads(1, 4, 1, 4),
                              .candidates = {{.kind = CANDIDATE_WINDOW, .a = 2}},
                              .count = 1,
                              .causal = true,
                              .scale = 1};
}

static enum status attention_with(const struct ops *ops, int fault) {
    struct attention a = good_attention();
    switch (fault) {
    case 0:
        a.k = heads(1, 4, 3, 2);
        a.v = a.k;
        break;
    case 1:
        a.count = 2;
        break;
    case 2:
        a.count = 9;
        break;
    case 3:
        a.candidates[0].a = 0;
        break;
    case 4:
        a.log_sums = heads(1, 4, 2, 4);
        break;
    case 5:
        a.start = tensor_2d(ids, DTYPE_I32, 1, 3);
        break;
    case 6:
        a.o = heads(1, 4, 4, 3);
        break;
    default:
        a.coefficients = f32(3, 1);
        break;
    }
    return ops->attention(ops, &a);
}

static enum status attention_backward_with(const struct ops *ops) {
    struct attention_backward a = {.forward = good_attention(), .d_o = heads(1, 4, 4, 2), .dq = heads(1, 4, 4, 2)};
    a.dk = a.dv = heads(1, 4, 4, 2);
    return ops->attention_backward(ops, &a);
}

static enum status slot_lists_with(const struct ops *ops, int fault) {
    struct slot_lists a = {.position = 9, .sinks = 1, .window = 2, .block = 2};
    a.places = tensor_2d(ids, DTYPE_I32, 1, fault == 0 ? 2 : 3);
    a.chosen = tensor_3d(ids, DTYPE_I32, 1, 1, 3);
    a.slots = tensor_3d(ids, DTYPE_I32, 1, 1, fault == 1 ? 8 : 9);
    a.slot_counts = tensor_2d(ids, DTYPE_I32, 1, 1);
    if (fault == 2) a.window = -1;
    return ops->slot_lists(ops, &a);
}

static enum status attention_decode_with(const struct ops *ops, bool slots) {
    struct attention_decode a = {.count = 1, .lists = 1, .scale = 1};
    a.q = a.o = tensor_3d(memory, DTYPE_F32, 2, 4, 2);
    a.k = a.v = heads(2, 5, slots ? 2 : 3, 2);
    a.slots = tensor_3d(ids, DTYPE_I32, 2, 2, 3);
    a.slot_counts = tensor_2d(ids, DTYPE_I32, 2, 1);
    return ops->attention_decode(ops, &a);
}

static enum status loss_with(const struct ops *ops, int fault) {
    struct loss_rows a = {.student = f32(3, 5), .temperature = 1, .scale = 1};
    switch (fault) {
    case 0:
        a.teacher = f32(3, 4);
        break;
    case 1:
        a.kl = line(3);
        break;
    case 2:
        a.ce = line(3);
        break;
    case 3:
        a.gradient = f32(3, 5);
        a.kl_weight = 1;
        break;
    case 4:
        a.temperature = 0;
        break;
    case 5:
        a.targets = line(3);
        break;
    default:
        a.entropy = line(2);
        break;
    }
    return ops->loss_rows(ops, &a);
}

static enum status wrong(const struct ops *ops, int i) {
    struct tensor strided = tensor_columns(f32(3, 8), 0, 5), none = tensor_none();
    struct tensor transposed = f32(5, 3);
    transposed.stride[0] = 1;
    transposed.stride[1] = 5;
    struct tensor scalar = tensor_1d(memory, DTYPE_F64, 1);
    switch (i) {
    case 0:
        return CALL(gemm, ARGUMENT(gemm, .a = f32(2, 3), .b = f32(4, 5), .c = f32(2, 5)));
    case 1:
        return CALL(gemm, ARGUMENT(gemm, .a = f32(2, 3), .b = f32(3, 5), .c = f32(2, 4)));
    case 2:
        return CALL(gemm, ARGUMENT(gemm, .a = f32(2, 3), .b = f32(3, 5), .c = f32(3, 5)));
    case 3:
        return CALL(gemm, ARGUMENT(gemm, .a = f32(2, 3), .b = f32(3, 5), .c = f32(2, 5), .bias = line(4)));
    case 4:
        return CALL(gemm, ARGUMENT(gemm, .a = f32(2, 3), .b = f32(3, 5), .c = f32(2, 5), .accumulate = true,
                                   .activation = ACTIVATION_GELU));
    case 5:
        return CALL(gemm, ARGUMENT(gemm, .a = transposed, .b = f32(3, 5), .c = f32(5, 5)));
    case 6:
        return CALL(gemm, ARGUMENT(gemm, .a = with_dtype(f32(2, 3), DTYPE_F64), .b = f32(3, 5), .c = f32(2, 5)));
    case 7:
        return CALL(bias_backward, f32(2, 3), line(4));
    case 8:
        return CALL(embedding, ARGUMENT(embedding, .ids = numbers(4), .table = f32(9, 5), .x = f32(3, 5)));
    case 9:
        return CALL(embedding, ARGUMENT(embedding, .ids = numbers(3), .table = f32(9, 4), .x = f32(3, 5)));
    case 10:
        return CALL(embedding, ARGUMENT(embedding, .ids = numbers(3), .table = f32(9, 5), .x = f32(3, 5),
                                        .position_table = f32(9, 5)));
    case 11:
        return CALL(embedding_backward,
                    ARGUMENT(embedding_backward, .ids = numbers(3), .dx = f32(3, 5), .dtable = line(5)));
    case 12:
        return CALL(norm,
                    ARGUMENT(norm, .x = strided, .y = f32(3, 5), .weight = line(5), .mean = line(3), .rstd = line(3)));
    case 13:
        return CALL(norm, ARGUMENT(norm, .x = f32(3, 5), .y = f32(3, 5), .weight = line(5), .rstd = line(3)));
    case 14:
        return CALL(norm, ARGUMENT(norm, .x = f32(3, 5), .y = f32(3, 5), .weight = line(5), .mean = line(3),
                                   .rstd = line(3), .delta = f32(3, 5)));
    case 15:
        return CALL(norm_backward, ARGUMENT(norm_backward, .kind = NORM_RMS, .x = f32(3, 5), .dy = f32(3, 5),
                                            .dx = f32(3, 5), .weight = line(5), .rstd = line(2)));
    case 16:
        return CALL(gelu_backward, f32(2, 3), f32(2, 3), f32(3, 2));
    case 17:
        return CALL(swiglu, f32(2, 5), f32(2, 3));
    case 18:
        return CALL(swiglu_backward, f32(2, 3), f32(2, 6), f32(2, 3));
    case 19:
        return CALL(rope, ARGUMENT(rope, .x = heads(1, 2, 2, 3), .positions = tensor_2d(ids, DTYPE_I32, 1, 2),
                                   .frequencies = line(1)));
    case 20:
        return CALL(rope, ARGUMENT(rope, .x = heads(1, 2, 2, 4), .positions = tensor_2d(ids, DTYPE_I32, 1, 2),
                                   .frequencies = line(1)));
    case 21:
        return CALL(log_softmax, f32(2, 3), f32(2, 4));
    case 22:
        return CALL(sum, f32(2, 3), line(1));
    case 23:
        return CALL(sum_squares, none, scalar);
    case 24:
        return CALL(sum_squared_difference, f32(2, 3), f32(3, 2), scalar);
    case 25:
        return CALL(adamw, ARGUMENT(adamw, .value = line(3), .grad = line(4), .m = line(3), .v = line(3), .step = 1));
    case 26:
        return CALL(adamw, ARGUMENT(adamw, .value = line(3), .grad = line(3), .m = line(3), .v = line(3), .step = 0));
    case 27:
        return CALL(copy, f32(2, 3), f32(3, 2));
    case 28:
        return CALL(copy, f32(2, 3), with_dtype(f32(2, 3), DTYPE_I32));
    case 29:
        return CALL(copy, none, none);
    case 30:
        return CALL(fill, none, 0);
    case 31:
        return CALL(fill, with_dtype(f32(2, 3), DTYPE_I64), 0);
    case 32:
        return CALL(add_scaled, 1, f32(2, 3), f32(2, 4));
    case 33:
        return CALL(scale, 1, with_dtype(f32(2, 3), DTYPE_I32));
    case 34:
        return CALL(fill_normal, strided, 1, 1, 1);
    case 35:
        return CALL(upload, strided, memory);
    case 36:
        return CALL(download, strided, memory);
    case 37:
        return CALL(scale, 1, tensor_2d(NULL, DTYPE_F32, 2, 3));
    case 38:
        return attention_backward_with(ops);
    case 39:
        return attention_decode_with(ops, false);
    case 40:
        return attention_decode_with(ops, true);
    case 58:
    case 59:
    case 60:
        return slot_lists_with(ops, i - 58);
    default:
        return i < 50 ? loss_with(ops, i - 41) : attention_with(ops, i - 50);
    }
}

static const struct {
    int call;
    const char *message;
} faults[] = {
    {0, "gemm: b: expected [3,5] f32, found [4,5] f32"},
    {1, "gemm: b: expected [3,4] f32"},
    {2, "gemm: a: expected [3,3] f32"},
    {3, "gemm: bias: expected [5] f32, found [4] f32"},
    {4, "gemm: accumulate excludes"},
    {5, "gemm: a: the last dimension must be dense"},
    {6, "gemm: a: expected [*,*] f32, found [2,3] f64"},
    {7, "bias_backward: dbias: expected [3]"},
    {8, "embedding: ids: expected [3] i32"},
    {9, "embedding: table: expected [*,5]"},
    {10, "embedding: positions: expected [3] i32, found nothing"},
    {11, "embedding_backward: dtable: expected [*,5]"},
    {12, "norm: x: must be contiguous"},
    {13, "norm: mean: expected [3] f32, found nothing"},
    {14, "norm: sum: expected [3,5]"},
    {15, "norm_backward: rstd: expected [3]"},
    {16, "gelu_backward: dx: expected [2,3]"},
    {17, "swiglu: x: expected [2,6]"},
    {18, "swiglu_backward: dx: expected [2,6]"},
    {19, "rope: x: the head width must be even"},
    {20, "rope: frequencies: expected [2]"},
    {21, "log_softmax: y: expected [2,3]"},
    {22, "sum: out: expected [1] f64"},
    {23, "sum_squares: x: expected a tensor"},
    {24, "sum_squared_difference: y: expected [2,3]"},
    {25, "adamw: grad: expected [3]"},
    {26, "adamw: step: expected at least 1, found 0"},
    {27, "copy: to: expected [2,3]"},
    {28, "copy: no conversion from f32 to i32"},
    {29, "copy: from: expected a tensor"},
    {30, "fill: x: expected a tensor"},
    {31, "fill: x: expected f32, f64, bf16 or i32, found i64"},
    {32, "add_scaled: y: expected [2,3]"},
    {33, "scale: x: expected [*,*] f32, found [2,3] i32"},
    {34, "fill_normal: x: must be contiguous"},
    {35, "upload: the device's tensor must be present and contiguous"},
    {36, "download: the device's tensor must be present and contiguous"},
    {37, "scale: x: the tensor has no memory"},
    {38, "attention_backward: dk: expected [1,4,2,2]"},
    {39, "attention_decode: k: 4 query heads are no multiple of 3"},
    {40, "attention_decode: slots: expected [2,1,*]"},
    {41, "loss_rows: teacher: expected [3,5]"},
    {42, "loss_rows: kl needs a teacher"},
    {43, "loss_rows: ce needs targets"},
    {44, "loss_rows: the gradient needs a teacher"},
    {45, "loss_rows: temperature: expected more than 0"},
    {46, "loss_rows: targets: expected [3] i32"},
    {47, "loss_rows: entropy: expected [3]"},
    {50, "attention: k: 4 query heads are no multiple of 3"},
    {51, "attention: 2 candidates need coefficients"},
    {52, "attention: count: expected 1 to 8 candidates, found 9"},
    {53, "attention: candidate 0: kind 1 with a 0"},
    {54, "attention: log_sums: expected [1,4,1,4]"},
    {55, "attention: start: expected [1,4] i32"},
    {56, "attention: o: expected [1,4,4,2]"},
    {57, "attention: coefficients: expected [4,1]"},
    {58, "slot_lists: places: expected [1,3] i32"},
    {59, "slot_lists: slots: expected room for 9 in a list, found 8"},
    {60, "slot_lists: window: expected 0 … 2147483646, found -1"},
};

static void faults_are_named(void **state) {
    (void)state;
    static const char *const tables[] = {"cpu", "guard:cpu"};
    for (int t = 0; t < 2; t++) {
        const struct ops *ops;
        expect_ok(ops_open(tables[t], &(struct ops_options){.threads = 1}, &ops), tables[t]);
        for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
            enum status status = wrong(ops, faults[i].call);
            if (status != STATUS_SHAPE || !strstr(error_message(), faults[i].message)) {
                print_error("%s, call %d: expected \"%s\", found %s: %s\n", tables[t], faults[i].call,
                            faults[i].message, status_name(status), error_message());
                fail();
            }
            error_clear();
        }
        ops->close(ops);
    }
}

static double element(struct tensor t, bool transpose, int64_t i, int64_t j) {
    return ((double *)t.data)[transpose ? j * t.stride[0] + i : i * t.stride[0] + j];
}

static void gemm_is_its_definition(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "cpu-f64", NULL, 2);
    for (int flags = 0; flags < 16; flags++) {
        int64_t m = 9, n = 7, k = 5 + flags;
        bool ta = flags & 1, tb = flags & 2;
        struct gemm g = {.a = bench_columns(&b, ta ? k : m, 40, 3, ta ? m : k, 1),
                         .b = bench_columns(&b, tb ? n : k, 40, 2, tb ? k : n, 1),
                         .c = bench_columns(&b, m, 20, 1, n, 1),
                         .bias = bench_normal(&b, 1, &n, 1, 0),
                         .transpose_a = ta,
                         .transpose_b = tb,
                         .accumulate = flags & 4,
                         .alpha = 0.5};
        if (!(flags & 8)) g.bias = tensor_none();
        double *before = bench_values(&b, g.c);
        expect_ok(b.ops->gemm(b.ops, &g), "gemm");
        for (int64_t i = 0; i < m; i++) {
            for (int64_t j = 0; j < n; j++) {
                double want = flags & 4 ? before[i * n + j] : 0;
                for (int64_t d = 0; d < k; d++) want += 0.5 * element(g.a, ta, i, d) * element(g.b, tb, d, j);
                if (flags & 8) want += ((double *)g.bias.data)[j];
                assert_true(fabs(want - element(g.c, false, i, j)) < 1e-12);
            }
        }
        free(before);
        bench_reset(&b);
    }
    bench_close(&b);
}

static void sums_are_their_definition(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, "cpu-f64", NULL, 2);
    const int64_t rows = 130, width = 9, vocabulary = 4;
    struct tensor dx = bench_normal(&b, 2, DIMS(rows, width), 1, 0), dbias = bench_normal(&b, 1, &width, 0, 0);
    struct embedding_backward d = {.ids = bench_ids(&b, rows, vocabulary), .dx = dx};
    d.dtable = bench_normal(&b, 2, DIMS(vocabulary, width), 0, 0);
    expect_ok(b.ops->embedding_backward(b.ops, &d), "embedding_backward");
    expect_ok(b.ops->bias_backward(b.ops, dx, dbias), "bias_backward");
    for (int64_t c = 0; c < width; c++) {
        double total = 0, of_token[4] = {0};
        for (int64_t r = 0; r < rows; r++) {
            total += element(dx, false, r, c);
            of_token[((int32_t *)d.ids.data)[r]] += element(dx, false, r, c);
        }
        assert_true(fabs(total - ((double *)dbias.data)[c]) < 1e-12);
        for (int v = 0; v < vocabulary; v++) assert_true(fabs(of_token[v] - element(d.dtable, false, v, c)) < 1e-12);
    }
    struct embedding e = {.ids = d.ids, .table = d.dtable, .x = dx};
    expect_ok(b.ops->embedding(b.ops, &e), "embedding");
    for (int64_t r = 0; r < rows; r++) {
        assert_true(element(dx, false, r, 3) == element(d.dtable, false, ((int32_t *)d.ids.data)[r], 3));
    }
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(gemm_is_its_definition),
        cmocka_unit_test(sums_are_their_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
