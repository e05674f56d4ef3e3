/* token_attention against `attention` where it reads everything, what it and index_learn refuse of lists, and what the
 * indexer's operations say of wrong shapes. */
#include "base/memory.h"
#include "ops/index_case.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *table, *isa;
} tables[] = {{"cpu-f64", NULL}, {"cpu", "base"}, {"cpu", "avx2"}, {"cpu", "avx512"}, {"guard:cpu", NULL}};
enum { TABLES = sizeof tables / sizeof *tables };

/* --- everything read ---------------------------------------------------------------------------------------------- */

enum { Q = 0, K, V, D_O, O, DQ, DK, DV, LOG_SUMS, ROLES };
static const char *const role_names[ROLES] = {"q", "k", "v", "d_o", "o", "dq", "dk", "dv", "log_sums"};

static struct tensor shape_of(const struct ops *ops, const struct index_case *row, int role) {
    const bool key = role == K || role == V || role == DK || role == DV;
    if (role == LOG_SUMS) return tensor_3d(NULL, ops->statistic, row->batch, row->heads, row->length);
    return tensor_4d(NULL, ops->real, row->batch, row->length, key ? row->groups : row->heads, row->width);
}

static double element(struct tensor t, int64_t i) {
    return t.dtype == DTYPE_F64 ? ((double *)t.data)[i] : (double)((float *)t.data)[i];
}

/* By `attention` over all and by token_attention over what the row reads, which must be all: every output and gradient.
 */
static void check_full(const struct ops *ops, const struct index_case *row, const struct index_arrays *x,
                       struct tensor chosen) {
    struct tensor full[ROLES], tokens[ROLES], start = tensor_2d(x->start, DTYPE_I32, row->batch, row->length);
    for (int n = 0; n < ROLES; n++) {
        full[n] = tokens[n] = shape_of(ops, row, n);
        CHECK_OK(ops->allocate(ops, tensor_bytes(full[n]), &full[n].data));
        if (n <= D_O) {
            struct tensor from = full[n];
            from.data = n == D_O ? x->d_o : x->inputs[n];
            from.dtype = DTYPE_F64;
            CHECK_OK(ops->copy(ops, from, full[n]));
            tokens[n] = full[n];
        } else {
            CHECK_OK(ops->allocate(ops, tensor_bytes(tokens[n]), &tokens[n].data));
        }
    }
    struct tensor log_sums = tensor_4d(full[LOG_SUMS].data, ops->statistic, row->batch, row->heads, 1, row->length);
    const double scale = 1 / sqrt((double)row->width);
    const struct attention_backward a = {.forward = {.q = full[Q],
                                                     .k = full[K],
                                                     .v = full[V],
                                                     .start = start,
                                                     .o = full[O],
                                                     .log_sums = log_sums,
                                                     .candidates = {{.kind = CANDIDATE_FULL}},
                                                     .count = 1,
                                                     .causal = true,
                                                     .scale = scale},
                                         .d_o = full[D_O],
                                         .dq = full[DQ],
                                         .dk = full[DK],
                                         .dv = full[DV]};
    CHECK_OK(ops->attention(ops, &a.forward));
    CHECK_OK(ops->attention_backward(ops, &a));
    const struct token_attention_backward b = {.forward = {.q = tokens[Q],
                                                           .k = tokens[K],
                                                           .v = tokens[V],
                                                           .start = start,
                                                           .chosen = chosen,
                                                           .o = tokens[O],
                                                           .log_sums = tokens[LOG_SUMS],
                                                           .window = row->window,
                                                           .sinks = row->sinks,
                                                           .scale = scale},
                                               .d_o = tokens[D_O],
                                               .dq = tokens[DQ],
                                               .dk = tokens[DK],
                                               .dv = tokens[DV]};
    CHECK_OK(ops->token_attention(ops, &b.forward));
    CHECK_OK(ops->token_attention_backward(ops, &b));
    const double tolerance = ops->real == DTYPE_F64 ? 1e-13 : 1e-5;
    for (int n = O; n < ROLES; n++) {
        double most = 1;
        for (int64_t i = 0; i < tensor_count(full[n]); i++) most = fmax(most, fabs(element(full[n], i)));
        for (int64_t i = 0; i < tensor_count(full[n]); i++)
            if (!(fabs(element(full[n], i) - element(tokens[n], i)) <= tolerance * most))
                fail_msg("%s: %s: %s[%lld]: attention has %.12g, token_attention %.12g", row->name, ops->name,
                         role_names[n], (long long)i, element(full[n], i), element(tokens[n], i));
        ops->release(ops, tokens[n].data);
    }
    for (int n = 0; n < ROLES; n++) ops->release(ops, full[n].data);
}

static void test_full(void **state) {
    (void)state;
    static const struct index_case rows[] = {
        {"one token", 1, 1, 2, 1, 8, 1, 1, 1, 4, 1, 1, 0, 0, 0, 0, {0}, false, 1},
        {"a window over everything", 2, 129, 4, 2, 48, 2, 1, 1, 4, 3, 129, 0, 0, 0, 0, {30, 77}, false, 1},
        {"a window far over everything", 1, 31, 3, 3, 8, 1, 1, 1, 4, 3, INT32_MAX, 2, 0, 0, 0, {0}, false, 1},
        {"sinks over everything", 1, 70, 4, 1, 8, 4, 1, 1, 4, 3, 1, INT32_MAX, 0, 0, 0, {30}, false, 1},
        {"all chosen", 2, 129, 4, 2, 8, 2, 1, 1, 4, 129, 1, 0, 0, 0, 0, {30, 77}, false, 1},
        {"sinks, chosen, window", 1, 333, 6, 2, 8, 3, 1, 1, 4, 300, 20, 13, 0, 0, 0, {0}, false, 1},
    };
    for (int t = 0; t < TABLES; t++) {
        const struct ops *ops = index_open(tables[t].table, 2, tables[t].isa);
        for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
            const struct index_case *row = &rows[n];
            struct index_arrays x;
            index_fill(row, &x);
            index_choose(ops, row, &x, INDEX_LEARNED, 0);
            check_full(ops, row, &x, tensor_4d(x.chosen, DTYPE_I32, row->batch, row->length, row->lists, row->choose));
            if (n < 4) check_full(ops, row, &x, tensor_none()); /* nothing is left to choose */
            index_free(&x);
        }
        ops->close(ops);
    }
}

/* --- refusals ----------------------------------------------------------------------------------------------------- */

enum { TOKENS = 10, CHOOSE = 3 };
static float memory[8][256], gradients[3][256];
static int32_t start[TOKENS], chosen[TOKENS][2][CHOOSE];
static double sums[2];

static struct tensor f32(int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    return tensor_4d(memory[7], DTYPE_F32, n0, n1, n2, n3);
}

/* Ten tokens, the last three a document of their own; two lists of three; a window of 2 and one sink: token 6 may
 * choose among 1 … 4, and its second list is 1, 3. */
static struct index_learn example(void) {
    memset(start, 0, sizeof start);
    start[7] = start[8] = start[9] = 7;
    memset(chosen, 0xff, sizeof chosen);
    chosen[6][1][0] = 1;
    chosen[6][1][1] = 3;
    struct index_learn a = {.window = 2, .sinks = 1, .scale = 1, .weight = 1, .gradient_scale = 1};
    a.scores.lists = 2;
    a.scores.r = tensor_4d(memory[0], DTYPE_F32, 1, TOKENS, 4, 2);
    a.scores.u = tensor_4d(memory[1], DTYPE_F32, 1, TOKENS, 2, 2);
    a.scores.a = tensor_3d(memory[2], DTYPE_F32, 1, TOKENS, 4);
    a.q = tensor_4d(memory[3], DTYPE_F32, 1, TOKENS, 4, 2);
    a.k = tensor_4d(memory[4], DTYPE_F32, 1, TOKENS, 2, 2);
    a.start = tensor_2d(start, DTYPE_I32, 1, TOKENS);
    a.chosen = tensor_4d(chosen, DTYPE_I32, 1, TOKENS, 2, CHOOSE);
    a.losses = tensor_3d(memory[5], DTYPE_F32, 1, 2, TOKENS);
    return a;
}

static struct token_attention attention_example(void) {
    const struct index_learn a = example();
    return (struct token_attention){.q = a.q,
                                    .k = a.k,
                                    .v = a.k,
                                    .start = a.start,
                                    .chosen = a.chosen,
                                    .o = tensor_4d(memory[5], DTYPE_F32, 1, TOKENS, 4, 2),
                                    .log_sums = tensor_3d(memory[6], DTYPE_F32, 1, 4, TOKENS),
                                    .window = 2,
                                    .sinks = 1,
                                    .scale = 1};
}

static void expect_shape(const char *name, const char *message, enum status status) {
    if (status != STATUS_SHAPE || !strstr(error_message(), message))
        fail_msg("%s: expected \"%s\", found %s: %s", name, message, status_name(status), error_message());
    error_clear();
}

static const struct {
    const char *name;
    int token;
    int32_t list[CHOOSE];
    bool right;
} lists[] = {
    {"nothing", 6, {-1, -1, -1}, true},
    {"all that there is room for", 6, {1, 2, 3}, true},
    {"the last before the window", 6, {4, -1, -1}, true},
    {"descending", 6, {3, 1, -1}, false},
    {"twice", 6, {2, 2, -1}, false},
    {"in the window", 6, {1, 5, -1}, false},
    {"itself", 6, {6, -1, -1}, false},
    {"in the future", 6, {1, 2, 9}, false},
    {"beyond the sequence", 6, {1, TOKENS, -1}, false},
    {"far beyond", 6, {INT32_MAX, -1, -1}, false},
    {"a sink", 6, {0, 1, -1}, false},
    {"another document", 9, {6, -1, -1}, false},
    {"a sink of a later document", 9, {7, -1, -1}, false},
    {"after -1", 6, {1, -1, 3}, false},
    {"after -1 at the front", 6, {-1, 2, -1}, false},
    {"below -1", 6, {1, -2, -1}, false},
    {"far below", 6, {INT32_MIN, -1, -1}, false},
};

/* Wrong lists are named, also at 2 threads, where the row may be another thread's. */
static void test_lists(void **state) {
    (void)state;
    for (int t = 0; t < TABLES; t++) {
        if (strcmp(tables[t].table, "cpu-f64") == 0) continue;
        for (size_t n = 0; n < 2 * sizeof lists / sizeof *lists; n++) {
            const struct ops *ops = index_open(tables[t].table, 1 + (int)(n & 1), tables[t].isa);
            const struct token_attention a = attention_example();
            const struct token_attention_backward b = {.forward = a,
                                                       .d_o = f32(1, TOKENS, 4, 2),
                                                       .dq = tensor_4d(gradients[0], DTYPE_F32, 1, TOKENS, 4, 2),
                                                       .dk = tensor_4d(gradients[1], DTYPE_F32, 1, TOKENS, 2, 2),
                                                       .dv = tensor_4d(gradients[2], DTYPE_F32, 1, TOKENS, 2, 2)};
            struct index_learn learn = example(), hits = learn;
            learn.attended = true;
            hits.hits = tensor_1d(sums, DTYPE_F64, 1);
            memcpy(chosen[lists[n / 2].token][1], lists[n / 2].list, sizeof lists->list);
            if (lists[n / 2].right) {
                CHECK_OK(ops->token_attention(ops, &a));
                CHECK_OK(ops->token_attention_backward(ops, &b));
                CHECK_OK(ops->index_learn(ops, &learn));
                CHECK_OK(ops->index_learn(ops, &hits));
            } else {
                expect_shape(lists[n / 2].name, "token_attention: chosen", ops->token_attention(ops, &a));
                expect_shape(lists[n / 2].name, "token_attention_backward: chosen",
                             ops->token_attention_backward(ops, &b));
                expect_shape(lists[n / 2].name, "index_learn: chosen", ops->index_learn(ops, &learn));
                expect_shape(lists[n / 2].name, "index_learn: chosen", ops->index_learn(ops, &hits));
            }
            ops->close(ops);
        }
    }
}

static enum status select_with(const struct ops *ops, int fault) {
    static const int32_t too_many[] = {CHOOSE, CHOOSE + 1}, negative[] = {-1, 0};
    const struct index_learn l = example();
    struct index_select a = {.scores = l.scores, .start = l.start, .chosen = l.chosen, .window = 1, .scale = 1};
    switch (fault) {
    case 0:
        a.scores.u = f32(1, TOKENS, 3, 2);
        break;
    case 1:
        a.scores.a = tensor_3d(memory[2], DTYPE_F32, 1, TOKENS, 3);
        break;
    case 2:
        a.scores.lists = 3;
        break;
    case 3:
        a.window = 0;
        break;
    case 4:
        a.sinks = -1;
        break;
    case 5:
        a.counts = too_many;
        break;
    case 6:
        a.counts = negative;
        break;
    case 7:
        a.coarse = 3;
        break;
    case 8:
        a.pooled = f32(1, 3, 4, 2);
        break;
    case 9:
        a.pooled = f32(1, 3, 4, 2);
        a.coarse = 3;
        break;
    case 10:
        a.pooled = f32(1, 2, 4, 2);
        a.coarse = 3;
        a.coarse_blocks = 1;
        break;
    case 11:
        a.source = INDEX_ATTENTION;
        break;
    case 12:
        a.source = INDEX_ATTENTION;
        a.q = l.q;
        a.k = f32(1, TOKENS, 3, 2);
        break;
    default:
        a.chosen = tensor_4d(chosen, DTYPE_I32, 1, TOKENS, 1, CHOOSE);
        break;
    }
    return ops->index_select(ops, &a);
}

static enum status pool_with(const struct ops *ops, int fault) {
    const struct index_learn l = example();
    const struct index_pool a = {
        .u = l.scores.u, .start = l.start, .pooled = f32(1, 3, fault == 1 ? 2 : 4, 2), .block = fault == 0 ? 0 : 3};
    return ops->index_pool(ops, &a);
}

static enum status decode_with(const struct ops *ops, int fault) {
    static int32_t places[4][3] = {{0, 0, 0}, {5, 0, 5}, {0, -1, 4}, {0, 2, 7}}; /* the last two: with pooled blocks */
    const int wrong = fault > 5 ? fault - 5 : 0;
    const struct index_decode a = {.r = tensor_3d(memory[0], DTYPE_F32, 1, 4, 2),
                                   .u = f32(1, TOKENS, fault == 0 ? 3 : 2, 2),
                                   .a = tensor_2d(memory[2], DTYPE_F32, 1, fault == 1 ? 3 : 4),
                                   .pooled = fault == 2  ? f32(1, 3, 2, 2)
                                             : wrong > 1 ? f32(1, 3, 4, 2)
                                                         : tensor_none(),
                                   .places = tensor_2d(places[wrong], DTYPE_I32, 1, fault == 3 ? 2 : 3),
                                   .chosen = tensor_3d(chosen, DTYPE_I32, 1, fault == 4 ? 1 : 2, CHOOSE),
                                   .lists = 2,
                                   .window = fault == 5 ? 0 : 1,
                                   .coarse = fault == 2 || wrong > 1 ? 3 : 0,
                                   .coarse_blocks = 1};
    return ops->index_decode(ops, &a);
}

static enum status attend_with(const struct ops *ops, int fault) {
    struct token_attention a = attention_example();
    if (fault == 0) a.v = f32(1, TOKENS, 1, 2);
    if (fault == 1) a.o = f32(1, TOKENS, 2, 2);
    if (fault == 2) a.log_sums = tensor_3d(memory[6], DTYPE_F32, 1, TOKENS, 4);
    if (fault == 3) a.chosen = tensor_4d(chosen, DTYPE_I32, 1, TOKENS, 3, 2);
    if (fault == 4) a.window = 0;
    if (fault == 5) a.start = tensor_2d(start, DTYPE_I32, 1, TOKENS - 1);
    if (fault == 6) a.k = a.v = f32(1, TOKENS, 3, 2);
    return ops->token_attention(ops, &a);
}

static enum status backward_with(const struct ops *ops, int fault) {
    struct token_attention_backward a = {.forward = attention_example()};
    a.d_o = f32(1, TOKENS, 4, fault == 0 ? 1 : 2);
    a.dq = f32(1, TOKENS, fault == 1 ? 2 : 4, 2);
    a.dk = f32(1, TOKENS, 2, 2);
    a.dv = fault == 2 ? tensor_none() : a.dk;
    return ops->token_attention_backward(ops, &a);
}

static enum status learn_with(const struct ops *ops, int fault) {
    struct index_learn a = example();
    if (fault == 0) a.losses = tensor_3d(memory[5], DTYPE_F32, 1, 4, TOKENS);
    if (fault == 1) a.loss = tensor_1d(memory[6], DTYPE_F32, 1);
    if (fault == 2) a.hits = tensor_1d(sums, DTYPE_F64, 2);
    if (fault == 3) a.d_r = f32(1, TOKENS, 4, 2);
    if (fault == 4) a.q = f32(1, TOKENS, 3, 2);
    if (fault == 5) a.attended = !(a.window = 0);
    return ops->index_learn(ops, &a);
}

static const struct {
    enum status (*call)(const struct ops *ops, int fault);
    int fault;
    const char *message;
} faults[] = {
    {select_with, 0, "index_select: u: 2 lists and 4 index heads"},
    {select_with, 1, "index_select: a: expected [1,10,4] f32, found [1,10,3] f32"},
    {select_with, 2, "index_select: u: 3 lists and 4 index heads"},
    {select_with, 3, "index_select: window: expected 1 or more, found 0"},
    {select_with, 4, "index_select: sinks: expected 0 or more, found -1"},
    {select_with, 5, "index_select: counts[1]: expected 0 … 3, found 4"},
    {select_with, 6, "index_select: counts[0]: expected 0 … 3, found -1"},
    {select_with, 7, "index_select: coarse: expected 0 without pooled keys"},
    {select_with, 8, "index_select: coarse: expected 0 without pooled keys, 1 or more with them, found 0"},
    {select_with, 9, "index_select: coarse_blocks: expected 1 or more, found 0"},
    {select_with, 10, "index_select: pooled: expected [1,3,4,2] f32, found [1,2,4,2] f32"},
    {select_with, 11, "index_select: q: expected [1,10,*,*] f32, found nothing"},
    {select_with, 12, "index_select: k: 4 query heads are no multiple of 3"},
    {select_with, 13, "index_select: chosen: expected [1,10,2,*] i32"},
    {pool_with, 0, "index_pool: block: expected 1 or more, found 0"},
    {pool_with, 1, "index_pool: pooled: expected [1,3,4,2] f32"},
    {decode_with, 0, "index_decode: u: 2 lists and 4 index heads"},
    {decode_with, 1, "index_decode: a: expected [1,4] f32"},
    {decode_with, 2, "index_decode: pooled: expected [1,*,4,2] f32"},
    {decode_with, 3, "index_decode: places: expected [1,3] i32"},
    {decode_with, 4, "index_decode: chosen: expected [1,2,*] i32"},
    {decode_with, 5, "index_decode: window: expected 1 or more, found 0"},
    {decode_with, 6, "index_decode: places[0]: expected places in caches of 10 tokens"},
    {decode_with, 7, "index_decode: places[0]: expected places in caches of 10 tokens and 3 blocks"},
    {decode_with, 8, "index_decode: places[0]: expected places in caches of 10 tokens and 3 blocks"},
    {attend_with, 0, "token_attention: v: expected [1,10,2,2] f32"},
    {attend_with, 1, "token_attention: o: expected [1,10,4,2] f32"},
    {attend_with, 2, "token_attention: log_sums: expected [1,4,10] f32"},
    {attend_with, 3, "token_attention: lists: 3 do not divide 4 heads"},
    {attend_with, 4, "token_attention: window: expected 1 or more, found 0"},
    {attend_with, 5, "token_attention: start: expected [1,10] i32"},
    {attend_with, 6, "token_attention: k: 4 query heads are no multiple of 3"},
    {backward_with, 0, "token_attention_backward: d_o: expected [1,10,4,2] f32"},
    {backward_with, 1, "token_attention_backward: dq: expected [1,10,4,2] f32"},
    {backward_with, 2, "token_attention_backward: dv: expected [1,10,2,2] f32, found nothing"},
    {learn_with, 0, "index_learn: losses: expected [1,2,10] f32"},
    {learn_with, 1, "index_learn: loss: expected [1] f64"},
    {learn_with, 2, "index_learn: hits: expected [1] f64"},
    {learn_with, 3, "index_learn: d_u: expected [1,10,2,2] f32, found nothing"},
    {learn_with, 4, "index_learn: lists: 2 do not divide 3 heads"},
    {learn_with, 5, "index_learn: window: expected 1 or more, found 0"},
};

static void test_shapes(void **state) {
    (void)state;
    static const char *const names[] = {"cpu", "guard:cpu"};
    for (int t = 0; t < 2; t++) {
        const struct ops *ops = index_open(names[t], 1, NULL);
        for (size_t n = 0; n < sizeof faults / sizeof *faults; n++)
            expect_shape(names[t], faults[n].message, faults[n].call(ops, faults[n].fault));
        ops->close(ops);
    }
}

/* Documents that do not begin where `start` says. */
static void test_starts(void **state) {
    (void)state;
    static const int32_t wrong[] = {6, -1, 4, INT32_MAX};
    const struct ops *ops = index_open("cpu", 1, NULL);
    const struct index_learn l = example();
    const struct token_attention t = attention_example();
    const struct index_select s = {.scores = l.scores, .start = l.start, .chosen = l.chosen, .window = 1, .scale = 1};
    const struct index_pool p = {.u = l.scores.u, .start = l.start, .pooled = f32(1, 3, 4, 2), .block = 3};
    const struct token_attention_backward b = {
        .forward = t, .d_o = t.o, .dq = f32(1, TOKENS, 4, 2), .dk = f32(1, TOKENS, 2, 2), .dv = f32(1, TOKENS, 2, 2)};
    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        start[5] = wrong[n];
        expect_shape("token_attention", "token_attention: start[0,5]", ops->token_attention(ops, &t));
        expect_shape("token_attention_backward", "token_attention_backward: start[0,5]",
                     ops->token_attention_backward(ops, &b));
        expect_shape("index_learn", "index_learn: start[0,5]", ops->index_learn(ops, &l));
        expect_shape("index_select", "index_select: start[0,5]", ops->index_select(ops, &s));
        expect_shape("index_pool", "index_pool: start[0,5]", ops->index_pool(ops, &p));
    }
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_starts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
