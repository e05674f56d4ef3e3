/* The simplest operations and matrix products of the CUDA table, executed on the host: copies with conversion and
 * strides, fills, random numbers equal to the CPU's, products with and without what cuBLASLt does besides. */
#include "base/bf16.h"
#include "base/rng.h"
#include "simt/simt.h"
#include "support/check.h"

#include "kernels/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct ops *open_table(const char *name) {
    const struct ops *ops = NULL;
    CHECK_OK(ops_open(name, NULL, &ops));
    return ops;
}

static struct tensor on_device(const struct ops *ops, enum dtype dtype, int64_t rows, int64_t columns,
                               const void *host) {
    struct tensor t = tensor_2d(NULL, dtype, rows, columns);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    if (host) CHECK_OK(ops->upload(ops, t, host));
    return t;
}

static void test_copies(void **state) {
    (void)state;
    const struct ops *ops = open_table("cuda");
    /* Rows and columns of the parts have a common divisor: an element's place cannot be found from the wrong
     * remainders. */
    float from[10 * 9], back[10 * 9];
    for (int i = 0; i < 90; i++) from[i] = (float)i + 0.25f;
    struct tensor x = on_device(ops, DTYPE_F32, 10, 9, from), y = on_device(ops, DTYPE_BF16, 10, 9, NULL),
                  z = on_device(ops, DTYPE_F32, 10, 9, NULL);
    CHECK_OK(ops->fill(ops, z, -1));
    CHECK_OK(ops->copy(ops, x, y));
    CHECK_OK(ops->copy(ops, tensor_columns(y, 2, 5), tensor_columns(z, 3, 5)));
    CHECK_OK(ops->download(ops, z, back));
    for (int r = 0; r < 10; r++) {
        for (int c = 0; c < 9; c++) {
            float expected = -1;
            if (c >= 3 && c < 8) {
                uint32_t bits;
                memcpy(&bits, &from[r * 9 + c - 1], 4);
                bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
                memcpy(&expected, &bits, 4);
            }
            assert_true(back[r * 9 + c] == expected);
        }
    }
    CHECK_OK(ops->add_scaled(ops, 2, x, z));
    CHECK_OK(ops->scale(ops, 0.5, z));
    float now[90];
    CHECK_OK(ops->download(ops, z, now));
    for (int i = 0; i < 90; i++) assert_true(now[i] == 0.5f * (back[i] + 2 * from[i]));
    ops->release(ops, x.data);
    ops->release(ops, y.data);
    ops->release(ops, z.data);
    ops->close(ops);
}

static void test_normal(void **state) {
    (void)state;
    const struct ops *ops = open_table("cuda-f32"), *cpu = open_table("cpu");
    enum { N = 1000 };
    static float expected[N], found[N];
    struct tensor x = on_device(ops, DTYPE_F32, 1, N, NULL);
    CHECK_OK(ops->fill_normal(ops, x, 0.02, 5, rng_substream(RNG_INIT, 77)));
    CHECK_OK(ops->download(ops, x, found));
    CHECK_OK(cpu->fill_normal(cpu, tensor_2d(expected, DTYPE_F32, 1, N), 0.02, 5, rng_substream(RNG_INIT, 77)));
    assert_memory_equal(expected, found, sizeof found);
    ops->release(ops, x.data);
    ops->close(ops);
    cpu->close(cpu);
}

/* [count] in bf16, from the `apart`-th element of a block on. */
static struct tensor bf16_on_device(const struct ops *ops, const double *values, int64_t count, int64_t apart,
                                    void **block) {
    uint16_t host[160] = {0};
    struct tensor whole = tensor_1d(NULL, DTYPE_BF16, apart + count);
    for (int64_t n = 0; values && n < count; n++) host[apart + n] = bf16_from_float((float)values[n]);
    CHECK_OK(ops->allocate(ops, tensor_bytes(whole), &whole.data));
    CHECK_OK(ops->upload(ops, whole, host));
    *block = whole.data;
    return tensor_1d((uint16_t *)whole.data + apart, DTYPE_BF16, count);
}

/* GELU of a product with and without bias and the value before it, by cuBLASLt where the places allow it and by our own
 * kernel an element behind: of small integers, so that only GELU is rounded. */
static void test_products(void **state) {
    (void)state;
    enum { M = 9, N = 16, K = 8 };
    const struct ops *ops = open_table("cuda");
    double a[M * K], b[K * N], bias[N];
    for (int n = 0; n < M * K; n++) a[n] = n % 5 - 2;
    for (int n = 0; n < K * N; n++) b[n] = n % 3 - 1;
    for (int n = 0; n < N; n++) bias[n] = n % 7 - 3;
    for (int way = 0; way < 8; way++) {
        const bool adds = way & 1, keeps = way & 2;
        void *blocks[5];
        const int64_t apart = way / 4;
        struct gemm g = {.alpha = 1, .activation = ACTIVATION_GELU};
        g.a = tensor_reshape(bf16_on_device(ops, a, M * K, apart, &blocks[0]), 2, (int64_t[]){M, K});
        g.b = tensor_reshape(bf16_on_device(ops, b, K * N, apart, &blocks[1]), 2, (int64_t[]){K, N});
        g.c = tensor_reshape(bf16_on_device(ops, NULL, M * N, apart, &blocks[2]), 2, (int64_t[]){M, N});
        const struct tensor added = bf16_on_device(ops, bias, N, apart, &blocks[3]);
        const struct tensor before =
            tensor_reshape(bf16_on_device(ops, NULL, M * N, apart, &blocks[4]), 2, (int64_t[]){M, N});
        if (adds) g.bias = added;
        if (keeps) g.pre = before;
        CHECK_OK(ops->gemm(ops, &g));
        uint16_t c[M * N], pre[M * N];
        CHECK_OK(ops->download(ops, g.c, c));
        CHECK_OK(ops->download(ops, before, pre));
        for (int n = 0; n < M * N; n++) {
            double x = adds ? bias[n % N] : 0;
            for (int k = 0; k < K; k++) x += a[n / N * K + k] * b[k * N + n % N];
            const double gelu = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
            if (bf16_to_float(pre[n]) != (float)(keeps ? x : 0))
                fail_msg("way %d: pre[%d]: expected %g, found %g", way, n, keeps ? x : 0,
                         (double)bf16_to_float(pre[n]));
            if (!(fabs((double)bf16_to_float(c[n]) - gelu) <= 0x1p-8 * fabs(gelu) + 1e-6))
                fail_msg("way %d: c[%d]: expected %g, found %g", way, n, gelu, (double)bf16_to_float(c[n]));
        }
        for (int n = 0; n < 5; n++) ops->release(ops, blocks[n]);
    }
    ops->close(ops);
}

/* y += 2x, then the sum of y, which takes scratch memory. */
struct doubling {
    const struct ops *ops;
    struct tensor x, y, sum;
    int calls;
};

static enum status add_twice(void *user) {
    struct doubling *d = user;
    d->calls++;
    TRY(d->ops->add_scaled(d->ops, 2, d->x, d->y));
    return d->ops->sum(d->ops, d->y, d->sum);
}

/* Work is called twice, then only its record runs; other work that makes scratch memory move has it recorded anew. */
static void test_repeat(void **state) {
    (void)state;
    enum { N = 64, LARGE = 1 << 20 };
    const struct ops *ops = open_table("cuda-f32");
    float ones[N], back[N];
    for (int i = 0; i < N; i++) ones[i] = 1;
    struct doubling d = {.ops = ops,
                         .x = on_device(ops, DTYPE_F32, 1, N, ones),
                         .y = on_device(ops, DTYPE_F32, 1, N, ones),
                         .sum = tensor_1d(NULL, DTYPE_F64, 1)};
    struct tensor large = on_device(ops, DTYPE_F32, 1, LARGE, NULL);
    struct recording *recording = NULL;
    CHECK_OK(ops->allocate(ops, sizeof(double), &d.sum.data));
    CHECK_OK(ops->fill(ops, large, 1));
    for (int time = 1; time <= 6; time++) {
        double sum = 0, all = 0;
        if (time == 5) {
            CHECK_OK(ops->sum(ops, large, d.sum)); /* more partial sums than before */
            CHECK_OK(ops->download(ops, d.sum, &all));
            assert_true(all == LARGE);
        }
        CHECK_OK(ops->repeat(ops, &recording, add_twice, &d));
        CHECK_OK(ops->download(ops, d.sum, &sum));
        CHECK_OK(ops->download(ops, d.y, back));
        assert_true(sum == N * (1 + 2.0 * time) && back[N - 1] == (float)(1 + 2 * time));
        assert_int_equal(d.calls, time < 2 ? time : time < 5 ? 2 : 3);
    }
    ops->forget(ops, &recording);
    assert_null(recording);
    ops->forget(ops, &recording);
    ops->release(ops, d.x.data);
    ops->release(ops, d.y.data);
    ops->release(ops, d.sum.data);
    ops->release(ops, large.data);
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_copies), cmocka_unit_test(test_normal),
                                       cmocka_unit_test(test_products), cmocka_unit_test(test_repeat)};
    int failures = 0;
    for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
        simt_set_order((enum simt_order)order, 3);
        failures += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return check_exit(failures);
}
