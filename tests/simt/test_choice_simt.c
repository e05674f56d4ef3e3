/* The indexer's choice on the CUDA table, executed on the host: lists against the CPU's and against scores in double,
 * in fp32 and in bf16, in several orders of threads; decoding against the choice for all queries. `test_choice_simt
 * TEST ROW` runs the tests of this name (* stands for any letters), of tables the rows whose name starts so. Bounds:
 * ops/choice_device.h. */
#include "ops/case_arrays.h"
#include "ops/choice_device.h"
#include "ops/slots_case.h"
#include "simt/far.h"
#include "simt/guarded.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <string.h>

enum { LONG = 310 /* tokens of the oracle's cases: longer ones take seconds each */ };

static const char *chosen = "";
static bool is_chosen(const struct index_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

static void run_exact(const char *name, int turn) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    for (int n = 0; n < choice_row_count; n++) {
        const struct index_case *row = &choice_rows[n];
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        if (!is_chosen(row)) continue;
        choice_exact(ops, oracle, row, WAY_FEW);
        if (n % 2 == 0) choice_exact(ops, oracle, row, (enum choice_way)(1 + (n / 2 + turn) % (WAYS - 1)));
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_exact_f32(void **state) {
    (void)state;
    run_exact("cuda-f32", 0);
}
static void test_exact_bf16(void **state) {
    (void)state;
    run_exact("cuda", 2);
}

/* In bf16 every other row. */
static void run_near(const char *name, const struct index_case *rows, int count, int turn) {
    const struct ops *ops = device_table(name, true), *oracle = device_table("cpu-f64", true);
    for (int n = 0; n < count; n++) {
        simt_set_order((enum simt_order)((n + turn) % 3), (uint64_t)n);
        if (ops->real == DTYPE_BF16 && !*chosen && n % 2) continue;
        if (is_chosen(&rows[n]) && rows[n].length <= LONG) choice_near(ops, oracle, &rows[n]);
    }
    ops->close(ops);
    oracle->close(oracle);
}
static void test_near_f32(void **state) {
    (void)state;
    run_near("cuda-f32", choice_rows, choice_row_count, 0);
}
static void test_near_bf16(void **state) {
    (void)state;
    run_near("cuda", choice_rows, choice_row_count, 1);
}
static void test_table_f32(void **state) {
    (void)state;
    run_near("cuda-f32", index_cases, index_case_count, 1);
}
static void test_table_bf16(void **state) {
    (void)state;
    run_near("cuda", index_cases, index_case_count, 2);
}

/* The same lists in every order of threads, though digits are counted and collected by atomics. */
static void test_order(void **state) {
    (void)state;
    const struct ops *ops = device_table("cuda", true);
    for (int n = 0; n < choice_row_count; n++) {
        const struct index_case *row = &choice_rows[n];
        struct index_arrays found[3];
        if (!is_chosen(row) || n % 4 != 1) continue;
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            simt_set_order((enum simt_order)order, 9);
            index_fill(row, &found[order]);
            choice_round(ops, row, &found[order]);
            index_run(ops, row, &found[order], RUN_CHOOSE);
        }
        for (int order = SIMT_REVERSE; order <= SIMT_RANDOM; order++) {
            index_expect_choice(row, "order", found[0].chosen, found[order].chosen, index_chosen_count(row));
            index_expect_choice(row, "order, attention", found[0].by_attention, found[order].by_attention,
                                index_chosen_count(row));
            index_expect_bits(row, "order", "pooled", found[0].outputs[OUTPUT_POOLED],
                              found[order].outputs[OUTPUT_POOLED], index_output_count(row, OUTPUT_POOLED));
        }
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) index_free(&found[order]);
    }
    ops->close(ops);
}

static void test_all_blocks(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        simt_set_order(bf16 ? SIMT_REVERSE : SIMT_RANDOM, 3);
        for (int n = 0; n < choice_row_count; n++)
            if (is_chosen(&choice_rows[n]) && choice_rows[n].cuts[0]) choice_all_blocks(ops, &choice_rows[n]);
        ops->close(ops);
    }
}

static void test_random(void **state) {
    (void)state;
    static const struct index_case row = {"random", 2, 129, 4, 2, 4, 2, 2, 1, 4, 9, 6, 2, 0, 0, 3, {30, 120}, false, 1},
                                   long_row = {"long", 1, 330, 1, 1, 4, 1, 1, 1, 4, 5, 1, 0, 0, 0, 0, {0}, false, 1};
    const struct ops *cpu = device_table("cpu", true);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *ops = device_table(bf16 ? "cuda" : "cuda-f32", true);
        simt_set_order(bf16 ? SIMT_RANDOM : SIMT_REVERSE, 4);
        choice_random(ops, cpu, &row, 7);
        choice_random(ops, cpu, bf16 ? &long_row : &row, UINT64_C(0x123456789abcdef0));
        ops->close(ops);
    }
    cpu->close(cpu);
}

static void run_decode(const char *name) {
    const struct ops *ops = device_table(name, true);
    for (int n = 0; n < choice_row_count; n++) {
        const struct index_case *row = &choice_rows[n];
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        if (!is_chosen(row)) continue;
        choice_decode(ops, row, 1 + row->length / 5, false);
        if (n % 2) choice_decode(ops, row, 2 + row->length / 3, true);
    }
    ops->close(ops);
}
static void test_decode_f32(void **state) {
    (void)state;
    run_decode("cuda-f32");
}
static void test_decode_bf16(void **state) {
    (void)state;
    run_decode("cuda");
}

/* Lists of slots, of every order of threads, under the guard. */
static void test_slots(void **state) {
    (void)state;
    struct guarded g;
    guarded_open(&g, "cuda", true);
    for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
        simt_set_order((enum simt_order)order, 5);
        slot_lists_agree(g.guard);
        slot_lists_survive(g.guard);
    }
    guarded_close(&g);
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

/* Nothing is written beside the outputs, which overlap nothing: on the device of tests/simt the host can look. */
static void test_guard(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct guarded g;
        guarded_open(&g, bf16 ? "cuda" : "cuda-f32", true);
        for (int n = 0; n < choice_row_count; n++) {
            const struct index_case *row = &choice_rows[n];
            struct index_arrays x;
            if (!is_chosen(row) || n % 2 != bf16) continue;
            simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
            index_fill(row, &x);
            index_run(g.guard, row, &x, RUN_CHOOSE);
            index_choose(g.guard, row, &x, INDEX_RANDOM, 3);
            index_free(&x);
            choice_decode(g.guard, row, 1 + row->length / 2, false);
        }
        guarded_close(&g);
    }
}

/* Tokens so far apart that an element's place needs more than 32 bits. */
static void test_far_elements(void **state) {
    (void)state;
    enum { LENGTH = 70, HEADS = 2, WIDTH = 4, CHOOSE = 5 };
    static const struct index_case row = {"far",  1, LENGTH, 1, 1, WIDTH, 1,   HEADS, 1, WIDTH,
                                          CHOOSE, 2, 1,      0, 0, 0,     {0}, false, 1};
    const int64_t step = ((int64_t)1 << 26) + 64, count = LENGTH * step; /* more than 2^32 elements */
    const struct ops *oracle = device_table("cpu-f64", true), *ops = device_table("cuda-f32", true);
    struct index_arrays x;
    float *memory = far_reserve(count);
    if (!memory) CHECK_SKIP("far elements: no address space for %lld of them", (long long)count);
    index_fill(&row, &x);
    choice_put(&row, &x, WAY_FEW);
    index_choose(oracle, &row, &x, INDEX_LEARNED, 0);
    for (int64_t t = 0; t < LENGTH; t++) {
        float *at = memory + t * step;
        for (int64_t e = 0; e < HEADS * WIDTH; e++) at[e] = (float)x.inputs[INPUT_R][t * HEADS * WIDTH + e];
        for (int64_t e = 0; e < WIDTH; e++) at[8 + e] = (float)x.inputs[INPUT_U][t * WIDTH + e];
        for (int64_t e = 0; e < HEADS; e++) at[12 + e] = (float)x.inputs[INPUT_A][t * HEADS + e];
    }
    struct index_select a = {.source = INDEX_LEARNED, .window = row.window, .sinks = row.sinks};
    a.scores = (struct index_scores){.r = tensor_4d(memory, DTYPE_F32, 1, LENGTH, HEADS, WIDTH),
                                     .u = tensor_4d(memory + 8, DTYPE_F32, 1, LENGTH, 1, WIDTH),
                                     .a = tensor_3d(memory + 12, DTYPE_F32, 1, LENGTH, HEADS),
                                     .lists = 1};
    a.scores.r.stride[0] = a.scores.u.stride[0] = a.scores.a.stride[0] = count;
    a.scores.r.stride[1] = a.scores.u.stride[1] = a.scores.a.stride[1] = step;
    a.start = tensor_2d(NULL, DTYPE_I32, 1, LENGTH);
    a.chosen = tensor_4d(NULL, DTYPE_I32, 1, LENGTH, 1, CHOOSE);
    int32_t found[LENGTH * CHOOSE];
    CHECK_OK(ops->allocate(ops, tensor_bytes(a.start), &a.start.data));
    CHECK_OK(ops->allocate(ops, tensor_bytes(a.chosen), &a.chosen.data));
    CHECK_OK(ops->upload(ops, a.start, x.start));
    CHECK_OK(ops->index_select(ops, &a));
    CHECK_OK(ops->download(ops, a.chosen, found));
    index_expect_choice(&row, "far", x.chosen, found, LENGTH * CHOOSE);
    ops->release(ops, a.start.data);
    ops->release(ops, a.chosen.data);
    ops->close(ops);
    oracle->close(oracle);
    index_free(&x);
    far_release(memory, count);
}

/* A cache of a million slots, of which only the last hold a document, further than 2^31 elements into the cache. */
static void test_far_slots(void **state) {
    (void)state;
    enum { SLOTS = 1 << 20, TOKENS = 400, WIDTH = 4, CHOOSE = 7, STEP = 4096, BLOCK = 100 };
    static const struct index_case row = {"slots", 1, TOKENS, 1, 1, WIDTH, 1,   1,     1, WIDTH,
                                          CHOOSE,  1, 0,      0, 0, 0,     {0}, false, 1};
    const int64_t count = (int64_t)SLOTS * STEP;
    const int32_t places[3] = {SLOTS - TOKENS, 0, TOKENS - 1};
    const struct ops *oracle = device_table("cpu-f64", true), *ops = device_table("cuda-f32", true);
    struct index_arrays x;
    float *memory = far_reserve(count);
    if (!memory) CHECK_SKIP("far slots: no address space for %lld elements", (long long)count);
    index_fill(&row, &x);
    choice_put(&row, &x, WAY_FEW);
    index_choose(oracle, &row, &x, INDEX_LEARNED, 0);
    for (int64_t t = 0; t < TOKENS; t++)
        for (int64_t e = 0; e < WIDTH; e++)
            memory[(SLOTS - TOKENS + t) * STEP + e] = (float)x.inputs[INPUT_U][t * WIDTH + e];
    struct index_decode d = {.lists = 1, .window = row.window, .sinks = row.sinks};
    d.u = tensor_4d(memory, DTYPE_F32, 1, SLOTS, 1, WIDTH);
    d.u.stride[0] = count;
    d.u.stride[1] = STEP;
    d.r = tensor_3d(NULL, DTYPE_F32, 1, 1, WIDTH);
    d.a = tensor_2d(NULL, DTYPE_F32, 1, 1);
    d.places = tensor_2d(NULL, DTYPE_I32, 1, 3);
    d.chosen = tensor_3d(NULL, DTYPE_I32, 1, 1, CHOOSE);
    struct tensor *own[] = {&d.r, &d.a, &d.places, &d.chosen};
    for (int n = 0; n < 4; n++) CHECK_OK(ops->allocate(ops, tensor_bytes(*own[n]), &own[n]->data));
    case_move(ops, d.r, x.inputs[INPUT_R] + (TOKENS - 1) * WIDTH, true);
    case_move(ops, d.a, x.inputs[INPUT_A] + TOKENS - 1, true);
    CHECK_OK(ops->upload(ops, d.places, places));
    /* Then in two levels, with every block of the document looked into: more tokens than shared memory has room for. */
    struct tensor pooled = tensor_4d(NULL, DTYPE_F32, 1, SLOTS / BLOCK, 2, WIDTH);
    CHECK_OK(ops->allocate(ops, tensor_bytes(pooled), &pooled.data));
    for (int levels = 1; levels <= 2; levels++) {
        int32_t found[CHOOSE];
        if (levels == 2) {
            d.pooled = pooled;
            d.coarse = BLOCK;
            d.coarse_blocks = 200;
        }
        CHECK_OK(ops->index_decode(ops, &d));
        CHECK_OK(ops->download(ops, d.chosen, found));
        for (int n = 0; n < CHOOSE; n++)
            assert_int_equal(found[n], SLOTS - TOKENS + x.chosen[(TOKENS - 1) * CHOOSE + n]);
    }
    ops->release(ops, pooled.data);
    for (int n = 0; n < 4; n++) ops->release(ops, own[n]->data);
    ops->close(ops);
    oracle->close(oracle);
    index_free(&x);
    far_release(memory, count);
}

/* --- what the host cannot know, and what it refuses --------------------------------------------------------------- */

/* Documents that begin nowhere and places that are not there: lists of tokens of the tensors, or none. */
static void test_wrong_contents(void **state) {
    (void)state;
    static const struct index_case rows[] = {
        {"one level", 1, 70, 2, 1, 8, 1, 2, 1, 4, 5, 3, 1, 0, 0, 0, {0}, false, 1},
        {"two levels", 1, 70, 2, 1, 8, 1, 2, 1, 4, 5, 3, 1, 4, 2, 0, {0}, false, 1},
        {"endless sinks", 1, 70, 2, 1, 8, 1, 2, 1, 4, 5, INT32_MAX, INT32_MAX, 0, 0, 0, {0}, false, 1},
    };
    static const int32_t places[][3] = {
        {-1, 0, 3}, {60, 0, 20}, {0, -1, 50}, {0, 12, 69}, {0, 0, -4}, {INT32_MAX, 0, INT32_MAX}, {0, INT32_MAX, 60}};
    const struct ops *ops = device_table("cuda-f32", true);
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const struct index_case *row = &rows[n];
        struct index_arrays x;
        index_fill(row, &x);
        for (int32_t i = 0; i < row->length; i++) x.start[i] = i % 3 == 0 ? -1000 * i : 1000 * i - 7;
        index_run(ops, row, &x, RUN_CHOOSE);
        for (int64_t c = 0; c < index_chosen_count(row); c++) {
            assert_in_range(x.chosen[c] + 1, 0, row->length);
            assert_in_range(x.by_attention[c] + 1, 0, row->length);
        }
        index_choose(ops, row, &x, INDEX_RANDOM, 1);
        index_free(&x);
    }
    const struct index_case *row = &rows[1];
    const int64_t blocks = 18;
    struct index_decode d = {.lists = 1, .window = 3, .sinks = 1, .coarse = 4, .coarse_blocks = 2};
    d.r = tensor_3d(NULL, DTYPE_F32, 1, 2, 4);
    d.a = tensor_2d(NULL, DTYPE_F32, 1, 2);
    d.u = tensor_4d(NULL, DTYPE_F32, 1, row->length, 1, 4);
    d.pooled = tensor_4d(NULL, DTYPE_F32, 1, blocks, 2, 4);
    d.places = tensor_2d(NULL, DTYPE_I32, 1, 3);
    d.chosen = tensor_3d(NULL, DTYPE_I32, 1, 1, 5);
    struct tensor *own[] = {&d.r, &d.a, &d.u, &d.pooled, &d.places, &d.chosen};
    for (int n = 0; n < 6; n++) CHECK_OK(ops->allocate(ops, tensor_bytes(*own[n]), &own[n]->data));
    for (int n = 0; n < 4; n++) CHECK_OK(ops->fill(ops, *own[n], 0.5));
    for (size_t n = 0; n < sizeof places / sizeof *places; n++) {
        int32_t found[5];
        CHECK_OK(ops->upload(ops, d.places, places[n]));
        CHECK_OK(ops->index_decode(ops, &d));
        CHECK_OK(ops->download(ops, d.chosen, found));
        for (int c = 0; c < 5; c++)
            if (found[c] != -1) fail_msg("places %zu: expected no token, found %d", n, found[c]);
    }
    for (int n = 0; n < 6; n++) ops->release(ops, own[n]->data);
    ops->close(ops);
}

static void expect_refused(enum status status, const char *words) {
    if (status != STATUS_SHAPE || !strstr(error_message(), words))
        fail_msg("expected STATUS_SHAPE with \"%s\", found %s: %s", words, status_name(status), error_message());
    error_clear();
}

/* Wider, longer or more than a kernel is made for: said before anything is read. */
static void test_refused(void **state) {
    (void)state;
    enum { LISTS = 300 };
    static int32_t counts[LISTS];
    static float memory[64];
    const struct ops *ops = device_table("cuda-f32", true);
    error_clear();
    struct index_select a = {.source = INDEX_LEARNED, .window = 1};
    a.scores = (struct index_scores){.r = tensor_4d(memory, DTYPE_F32, 1, 1, 1, 257),
                                     .u = tensor_4d(memory, DTYPE_F32, 1, 1, 1, 257),
                                     .a = tensor_3d(memory, DTYPE_F32, 1, 1, 1),
                                     .lists = 1};
    a.start = tensor_2d(memory, DTYPE_I32, 1, 1);
    a.chosen = tensor_4d(memory, DTYPE_I32, 1, 1, 1, 1);
    expect_refused(ops->index_select(ops, &a), "256 elements of an index head, found 257");
    a.scores.r = tensor_4d(memory, DTYPE_F32, 1, 1, LISTS, 1);
    a.scores.u = a.scores.r;
    a.scores.a = tensor_3d(memory, DTYPE_F32, 1, 1, LISTS);
    a.scores.lists = LISTS;
    a.chosen.shape[2] = a.chosen.stride[1] = a.chosen.stride[0] = LISTS;
    a.counts = counts;
    expect_refused(ops->index_select(ops, &a), "256 lists with counts of their own, found 300");
    a.counts = NULL;
    a.scores.r = tensor_4d(memory, DTYPE_F32, 1, 1, 1000, 256);
    a.scores.u = tensor_4d(memory, DTYPE_F32, 1, 1, 1, 256);
    a.scores.a = tensor_3d(memory, DTYPE_F32, 1, 1, 1000);
    a.scores.lists = 1;
    a.chosen = tensor_4d(memory, DTYPE_I32, 1, 1, 1, 1);
    expect_refused(ops->index_select(ops, &a), "1000 heads of a list");
    const struct slot_lists l = {.places = tensor_2d(memory, DTYPE_I32, 1, 3),
                                 .slots = tensor_3d(memory, DTYPE_I32, 1, 1, 1 << 23),
                                 .slot_counts = tensor_2d(memory, DTYPE_I32, 1, 1)};
    expect_refused(ops->slot_lists(ops, &l), "lists of up to 8388607 slots, found 1 of 8388608");
    ops->close(ops);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_f32),      cmocka_unit_test(test_exact_bf16),   cmocka_unit_test(test_near_f32),
        cmocka_unit_test(test_near_bf16),      cmocka_unit_test(test_order),        cmocka_unit_test(test_all_blocks),
        cmocka_unit_test(test_random),         cmocka_unit_test(test_decode_f32),   cmocka_unit_test(test_decode_bf16),
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_guard),          cmocka_unit_test(test_far_elements), cmocka_unit_test(test_far_slots),
        cmocka_unit_test(test_wrong_contents), cmocka_unit_test(test_refused),      cmocka_unit_test(test_table_f32),
        cmocka_unit_test(test_table_bf16),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
