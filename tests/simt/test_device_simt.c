/* The CUDA table's device, executed on the host: every call of the runtime that can fail does so once, and each time
 * the operation says so and nothing stays allocated; what it refuses; what it tells of itself. `test_device_simt TEST`
 * runs the tests of this name (* stands for any letters). */
#include "kernels/ops.h"
#include "simt/simt.h"
#include "support/check.h"

#include <string.h>

/* CUDA's numbers: cudaErrorInvalidValue, cudaErrorMemoryAllocation. */
enum { INVALID = 1, NO_MEMORY = 2 };

static struct tensor on_device(const struct ops *ops, enum dtype dtype, int64_t count) {
    struct tensor t = tensor_1d(NULL, dtype, count);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    return t;
}

struct tools {
    const struct ops *ops;
    struct tensor blocks[8];
    struct recording *recording;
};

static enum status repeated(void *user) {
    const struct tools *t = user;
    TRY(t->ops->scale(t->ops, 2, t->blocks[5]));
    return t->ops->sum(t->ops, t->blocks[5], tensor_1d(t->blocks[7].data, DTYPE_F64, 1));
}

/* On an open table: memory, copies both ways, kernels, scratch memory that grows, a product with what cuBLASLt does
 * besides, attention that asks for much shared memory, recorded work. The first failure ends it. */
static enum status work(const struct ops *ops, struct tools *t) {
    struct tensor *blocks = t->blocks;
    enum { ROWS = 40, WIDTH = 128, COUNT = ROWS * WIDTH };
    static float values[COUNT];
    for (int n = 0; n < COUNT; n++) values[n] = (float)(n % 7);
    for (int n = 0; n < 8; n++) {
        blocks[n] = tensor_1d(NULL, DTYPE_F32, COUNT);
        TRY(ops->allocate(ops, tensor_bytes(blocks[n]), &blocks[n].data));
        TRY(ops->upload(ops, blocks[n], values));
    }
    struct tensor out = tensor_1d(blocks[7].data, DTYPE_F64, 1), x = tensor_2d(blocks[0].data, DTYPE_F32, ROWS, WIDTH);
    TRY(ops->sum(ops, blocks[0], out));
    TRY(ops->copy(ops, blocks[1], blocks[2]));
    TRY(ops->fill(ops, x, 1));
    TRY(ops->bias_backward(ops, x, tensor_1d(blocks[1].data, DTYPE_F32, WIDTH)));
    const struct gemm product = {.a = x,
                                 .b = tensor_2d(blocks[1].data, DTYPE_F32, WIDTH, ROWS),
                                 .c = tensor_2d(blocks[2].data, DTYPE_F32, ROWS, ROWS),
                                 .alpha = 1,
                                 .bias = tensor_1d(blocks[3].data, DTYPE_F32, ROWS)};
    TRY(ops->gemm(ops, &product));
    struct tensor heads[7];
    for (int n = 0; n < 7; n++) heads[n] = tensor_4d(blocks[n].data, DTYPE_F32, 1, ROWS, 1, WIDTH);
    TRY(ops->fill(ops, tensor_1d(blocks[7].data, DTYPE_I32, ROWS), 0));
    struct attention_backward g = {.d_o = heads[3], .dq = heads[4], .dk = heads[5], .dv = heads[6]};
    g.forward = (struct attention){
        .q = heads[0], .k = heads[1], .v = heads[2], .o = heads[4], .count = 1, .causal = true, .scale = 1};
    g.forward.start = tensor_2d(blocks[7].data, DTYPE_I32, 1, ROWS);
    g.forward.log_sums = tensor_4d((float *)blocks[7].data + ROWS, DTYPE_F32, 1, 1, 1, ROWS);
    TRY(ops->attention(ops, &g.forward));
    g.forward.o = heads[3];
    TRY(ops->attention_backward(ops, &g));
    for (int time = 0; time < 3; time++) TRY(ops->repeat(ops, &t->recording, repeated, t));
    TRY(ops->download(ops, blocks[1], values));
    return ops->synchronise(ops);
}

static enum status open_and_work(void) {
    const struct ops *ops = NULL;
    struct tools tools = {0};
    struct device_memory memory;
    TRY(ops_open("cuda-f32", NULL, &ops));
    tools.ops = ops;
    const enum status status = work(ops, &tools);
    ops->forget(ops, &tools.recording);
    ops->memory(ops, &memory); /* never fails: what is free is then unknown, 0 */
    for (int n = 0; n < 8; n++) ops->release(ops, tools.blocks[n].data);
    ops->close(ops);
    return status;
}

static void every_call_fails(int error, enum status expected) {
    struct simt_counts before = simt_counted();
    CHECK_OK(open_and_work());
    const long calls = (long)(simt_counted().calls - before.calls);
    int told = 0;
    assert_true(calls > 40);
    for (long n = 0; n < calls; n++) {
        before = simt_counted();
        simt_fail_call(n, error);
        const enum status status = open_and_work();
        const struct simt_counts after = simt_counted();
        simt_fail_call(0, 0);
        if (after.allocations - before.allocations != after.freed - before.freed)
            fail_msg("call %ld of %ld failed: %lld allocations were left", n, calls,
                     (long long)(after.allocations - before.allocations - (after.freed - before.freed)));
        if (status == STATUS_OK) continue; /* a wait before memory is given back, a question for what is free */
        told++;
        const bool none = n == 0; /* how many devices there are: whatever is wrong, none can be used */
        if (status != (none ? STATUS_NOT_FOUND : expected) || strncmp(error_message(), "cuda: ", 6) != 0)
            fail_msg("call %ld of %ld failed: found %s: %s", n, calls, status_name(status), error_message());
        error_clear();
    }
    /* Not told are waits: for 8 blocks, for scratch memory that grows four times at most, for the record and the table,
     * and the question. */
    assert_true(told >= calls - 15);
}
static void calls_fail(void **state) {
    (void)state;
    every_call_fails(INVALID, STATUS_FAILED);
}
static void memory_fails(void **state) {
    (void)state;
    every_call_fails(NO_MEMORY, STATUS_MEMORY);
}

/* Copies of more than the pinned buffer go in pieces; peaks and sizes are what was asked for. */
static void pieces_and_sizes(void **state) {
    (void)state;
    const struct ops *ops;
    CHECK_OK(ops_open("cuda", NULL, &ops));
    enum { COUNT = (8 << 20) / 4 + 1000 };
    static int32_t from[COUNT], to[COUNT];
    for (int n = 0; n < COUNT; n++) from[n] = n;
    struct device_memory before, held, after;
    ops->memory(ops, &before);
    struct tensor x = on_device(ops, DTYPE_I32, COUNT);
    CHECK_OK(ops->upload(ops, x, from));
    CHECK_OK(ops->download(ops, x, to));
    assert_memory_equal(from, to, sizeof from);
    ops->memory(ops, &held);
    assert_true(held.used - before.used == sizeof from && held.available == before.available - (double)sizeof from);
    ops->release(ops, x.data);
    ops->release(ops, NULL);
    ops->memory(ops, &after);
    assert_true(after.used == before.used && after.peak >= held.used && after.available == before.available);
    assert_non_null(strstr(ops->describe(ops), "cuda: host fibers, 4 GiB, CUDA 13.0 (driver 13.0)"));
    void *block;
    CHECK_STATUS(STATUS_MEMORY, ops->allocate(ops, (size_t)1 << 40, &block));
    assert_null(block);
    const size_t scratch = ops->scratch_bytes(ops);
    struct tensor rows = on_device(ops, DTYPE_BF16, 5000 * 16), out = on_device(ops, DTYPE_F32, 16);
    CHECK_OK(ops->bias_backward(ops, tensor_2d(rows.data, DTYPE_BF16, 5000, 16), out));
    assert_true(ops->scratch_bytes(ops) > scratch);
    ops->release(ops, rows.data);
    ops->release(ops, out.data);
    ops->close(ops);
}

/* Every type to every type, whole and in part, and fills of each. */
static void types(void **state) {
    (void)state;
    const struct ops *ops;
    CHECK_OK(ops_open("cuda", NULL, &ops));
    enum { COUNT = 12 };
    static const enum dtype floats[] = {DTYPE_F32, DTYPE_F64, DTYPE_BF16};
    for (int n = 0; n < 9; n++) {
        struct tensor a = on_device(ops, floats[n / 3], COUNT), b = on_device(ops, floats[n % 3], COUNT),
                      c = on_device(ops, DTYPE_F32, COUNT);
        float values[COUNT];
        CHECK_OK(ops->fill(ops, a, -2.5));
        CHECK_OK(ops->fill(ops, b, 8));
        CHECK_OK(ops->copy(ops, tensor_columns(tensor_2d(a.data, a.dtype, 3, 4), 0, 3),
                           tensor_columns(tensor_2d(b.data, b.dtype, 3, 4), 1, 3)));
        CHECK_OK(ops->copy(ops, b, c));
        CHECK_OK(ops->copy(ops, c, c));
        CHECK_OK(ops->download(ops, c, values));
        for (int i = 0; i < COUNT; i++) assert_true(values[i] == (i % 4 ? -2.5f : 8));
        ops->release(ops, a.data);
        ops->release(ops, b.data);
        ops->release(ops, c.data);
    }
    uint8_t bytes[COUNT];
    struct tensor small = on_device(ops, DTYPE_U8, COUNT);
    for (int i = 0; i < COUNT; i++) bytes[i] = (uint8_t)(i + 1);
    CHECK_OK(ops->upload(ops, small, bytes));
    CHECK_OK(ops->copy(ops, tensor_columns(tensor_2d(small.data, DTYPE_U8, 3, 4), 0, 1),
                       tensor_columns(tensor_2d(small.data, DTYPE_U8, 3, 4), 2, 1)));
    CHECK_OK(ops->download(ops, small, bytes));
    for (int i = 0; i < COUNT; i++) assert_int_equal(bytes[i], i % 4 == 2 ? i - 1 : i + 1);
    ops->release(ops, small.data);
    struct tensor whole = on_device(ops, DTYPE_I32, COUNT);
    int32_t numbers[COUNT];
    CHECK_OK(ops->fill(ops, whole, -7));
    CHECK_OK(ops->fill(ops, tensor_columns(tensor_2d(whole.data, DTYPE_I32, 3, 4), 1, 2), 9));
    CHECK_OK(ops->download(ops, whole, numbers));
    for (int i = 0; i < COUNT; i++) assert_int_equal(numbers[i], i % 4 == 1 || i % 4 == 2 ? 9 : -7);
    CHECK_STATUS(STATUS_SHAPE, ops->fill(ops, tensor_1d(whole.data, DTYPE_U8, COUNT), 1));
    CHECK_STATUS(STATUS_SHAPE, ops->fill(ops, tensor_none(), 1));
    ops->release(ops, whole.data);
    ops->close(ops);
}

/* Sizes that no kernel takes are said before anything is started; no memory stands behind them. */
static void sizes_refused(void **state) {
    (void)state;
    const struct ops *ops;
    CHECK_OK(ops_open("cuda-f32", NULL, &ops));
    const int64_t far = (int64_t)1 << 31;
    struct tensor x = on_device(ops, DTYPE_F32, 1024);
    struct tensor row = tensor_2d(x.data, DTYPE_F32, 1, far);
    CHECK_STATUS(STATUS_SHAPE, ops->log_softmax(ops, row, row));
    const struct loss_rows loss = {.student = row,
                                   .temperature = 1,
                                   .targets = tensor_1d(x.data, DTYPE_I32, 1),
                                   .ce = tensor_1d(x.data, DTYPE_F32, 1)};
    CHECK_STATUS(STATUS_SHAPE, ops->loss_rows(ops, &loss));
    const struct embedding_backward ids = {.ids = tensor_1d(x.data, DTYPE_I32, far),
                                           .dx = tensor_2d(x.data, DTYPE_F32, far, 1),
                                           .dtable = tensor_2d(x.data, DTYPE_F32, 1, 1)};
    CHECK_STATUS(STATUS_SHAPE, ops->embedding_backward(ops, &ids));
    struct attention_decode decode = {.count = 1, .lists = 1, .scale = 1, .q = tensor_3d(x.data, DTYPE_F32, 1, 1, 257)};
    decode.o = decode.q;
    decode.k = decode.v = tensor_4d(x.data, DTYPE_F32, 1, 1, 1, 257);
    decode.slots = tensor_3d(x.data, DTYPE_I32, 1, 1, 1);
    decode.slot_counts = tensor_2d(x.data, DTYPE_I32, 1, 1);
    CHECK_STATUS(STATUS_SHAPE, ops->attention_decode(ops, &decode));
    decode.q = decode.o = tensor_3d(x.data, DTYPE_F32, 1, far, 8);
    decode.k = decode.v = tensor_4d(x.data, DTYPE_F32, 1, 1, 1, 8);
    CHECK_STATUS(STATUS_SHAPE, ops->attention_decode(ops, &decode));
    struct attention attention = {
        .count = 1, .causal = true, .scale = 1, .q = tensor_4d(x.data, DTYPE_F32, 1, 128, far / 2, 8)};
    attention.o = attention.q;
    attention.k = attention.v = tensor_4d(x.data, DTYPE_F32, 1, 128, 1, 8);
    attention.start = tensor_2d(x.data, DTYPE_I32, 1, 128);
    attention.log_sums = tensor_4d(x.data, DTYPE_F32, 1, far / 2, 1, 128);
    CHECK_STATUS(STATUS_SHAPE, ops->attention(ops, &attention));
    struct tensor apart = tensor_columns(tensor_2d(x.data, DTYPE_F32, 4, 8), 0, 3);
    float host[12];
    CHECK_STATUS(STATUS_SHAPE, ops->upload(ops, apart, host));
    CHECK_STATUS(STATUS_SHAPE, ops->download(ops, apart, host));
    ops->release(ops, x.data);
    ops->close(ops);
}

struct growing {
    const struct ops *ops;
    struct tensor x, sum;
    int calls;
};
static enum status grow(void *user) {
    struct growing *g = user;
    const int64_t width = g->calls++ ? 512 : 16;
    return g->ops->bias_backward(g->ops, tensor_2d(g->x.data, DTYPE_F32, 64, width),
                                 tensor_1d(g->sum.data, DTYPE_F32, width));
}

/* Work that asks for more while it is recorded than when it ran is refused, and the device goes on. */
static void recording_refused(void **state) {
    (void)state;
    const struct ops *ops;
    CHECK_OK(ops_open("cuda-f32", NULL, &ops));
    struct growing g = {.ops = ops, .x = on_device(ops, DTYPE_F32, 64 * 512), .sum = on_device(ops, DTYPE_F32, 512)};
    struct recording *recording = NULL;
    CHECK_OK(ops->fill(ops, g.x, 1));
    CHECK_OK(ops->fill(ops, g.sum, 0));
    CHECK_OK(ops->repeat(ops, &recording, grow, &g));
    CHECK_STATUS(STATUS_FAILED, ops->repeat(ops, &recording, grow, &g));
    CHECK_OK(grow(&g));
    float sums[512];
    CHECK_OK(ops->download(ops, g.sum, sums));
    for (int n = 0; n < 512; n++) assert_true(sums[n] == (n < 16 ? 128 : 64));
    ops->forget(ops, &recording);
    ops->release(ops, g.x.data);
    ops->release(ops, g.sum.data);
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_fail), cmocka_unit_test(memory_fails),  cmocka_unit_test(pieces_and_sizes),
        cmocka_unit_test(types),      cmocka_unit_test(sizes_refused), cmocka_unit_test(recording_refused),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
