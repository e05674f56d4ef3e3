/* Attention to single tokens and learning where to look, of the CUDA table, executed on the host: in fp32 and in bf16
 * against the CPU's oracle, in several orders of threads, under the guard; the same bits in every order; places that
 * need more than 32 bits; contents that are wrong. `test_tokens_simt TEST ROW` runs the tests of this name (* stands
 * for any letters), of tables the rows whose name starts so. Tolerances: ops/tokens_device.h. */
#include "ops/case_arrays.h"
#include "ops/tokens_device.h"
#include "simt/far.h"
#include "simt/guarded.h"
#include "simt/simt.h"

#include <math.h>
#include <string.h>

static const char *chosen = "";
static bool is_chosen(const struct index_case *row) {
    return strncmp(row->name, chosen, strlen(chosen)) == 0;
}

/* Rows up to `longest` tokens. */
static void run_table(const char *name, const struct index_case *rows, int count, int64_t longest, int part) {
    const struct ops *ops = index_open(name, 1, NULL), *oracle = index_open("cpu-f64", 1, NULL);
    for (int n = 0; n < count; n++) {
        if (!is_chosen(&rows[n]) || rows[n].length > longest) continue;
        simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
        tokens_agree(ops, oracle, &rows[n], part | RUN_BACKWARD);
    }
    ops->close(ops);
    oracle->close(oracle);
}

static void attend_f32(void **state) {
    (void)state;
    run_table("cuda-f32", tokens_shapes, tokens_shape_count, INT64_MAX, RUN_ATTEND);
    run_table("cuda-f32", index_cases, index_case_count, 301, RUN_ATTEND);
}
static void attend_bf16(void **state) {
    (void)state;
    run_table("cuda", tokens_shapes, tokens_shape_count, INT64_MAX, RUN_ATTEND);
    run_table("cuda", index_cases, index_case_count, 33, RUN_ATTEND);
}
static void learn_f32(void **state) {
    (void)state;
    run_table("cuda-f32", tokens_shapes, tokens_shape_count, 400, RUN_LEARN);
    run_table("cuda-f32", index_cases, index_case_count, 129, RUN_LEARN);
}
static void learn_bf16(void **state) {
    (void)state;
    run_table("cuda", tokens_shapes, tokens_shape_count, 129, RUN_LEARN);
    run_table("cuda", index_cases, index_case_count, 33, RUN_LEARN);
}

/* Every output has the same bits whatever order the threads and blocks run in. */
static void same_bits(void **state) {
    (void)state;
    static const struct index_case rows[] = {
        {"lists", 2, 90, 4, 2, 16, 2, 2, 1, 8, 9, 6, 2, 0, 0, 0, {40}, false, 1},
        {"pieces", 1, 560, 1, 1, 8, 1, 1, 1, 8, 1, 2, 1, 0, 0, 0, {0}, true, 1},
    };
    const struct ops *ops = index_open("cuda", 1, NULL), *oracle = index_open("cpu-f64", 1, NULL);
    for (int r = 0; r < 2; r++) {
        const struct index_case *row = &rows[r];
        struct index_arrays x[3];
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
            index_fill(row, &x[order]);
            index_choose(oracle, row, &x[order], INDEX_LEARNED, 0);
            simt_set_order((enum simt_order)order, 9);
            index_run(ops, row, &x[order], r == 0 ? RUN_FED : RUN_ATTEND | RUN_BACKWARD);
        }
        for (int order = SIMT_REVERSE; order <= SIMT_RANDOM; order++) {
            for (int n = 0; n < OUTPUTS; n++)
                index_expect_bits(row, "another order", index_output_names[n], x[0].outputs[n], x[order].outputs[n],
                                  index_output_count(row, (enum output)n));
            for (int n = 0; n < GRADIENTS; n++)
                index_expect_bits(row, "another order", index_gradient_names[n], x[0].gradients[n],
                                  x[order].gradients[n], index_gradient_count(row, n));
        }
        for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) index_free(&x[order]);
    }
    ops->close(ops);
    oracle->close(oracle);
}

/* Outputs are written whole, and nothing else is. */
static void guarded(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct ops *oracle = index_open("cpu-f64", 1, NULL);
        struct guarded g;
        guarded_open(&g, bf16 ? "cuda" : "cuda-f32", false);
        for (int n = 0; n < tokens_shape_count; n++) {
            const struct index_case *row = &tokens_shapes[n];
            if (!is_chosen(row) || row->length > 129 || n % 2 != bf16) continue;
            struct index_arrays x;
            index_fill(row, &x);
            index_choose(oracle, row, &x, INDEX_LEARNED, 0);
            simt_set_order((enum simt_order)(n % 3), (uint64_t)n);
            index_run(g.guard, row, &x, RUN_FED);
            index_free(&x);
        }
        guarded_close(&g);
        oracle->close(oracle);
    }
}

/* ---- operations called by hand ---- */

enum { HELD = 24 };
struct memory {
    const struct ops *ops;
    void *blocks[HELD];
    int count;
};
static struct tensor held(struct memory *m, struct tensor t) {
    CHECK_OK(m->ops->allocate(m->ops, tensor_bytes(t), &t.data));
    assert_true(m->count < HELD);
    m->blocks[m->count++] = t.data;
    return t;
}
static struct tensor held_ids(struct memory *m, struct tensor t, const int32_t *from) {
    t = held(m, t);
    CHECK_OK(m->ops->upload(m->ops, t, from));
    return t;
}
static struct tensor held_values(struct memory *m, struct tensor t, double *from) {
    t = held(m, t);
    case_move(m->ops, t, from, true);
    return t;
}
static void release(struct memory *m) {
    for (int n = 0; n < m->count; n++) m->ops->release(m->ops, m->blocks[n]);
    m->ops->close(m->ops);
}

/* Strides so wide that an element's place needs more than 32 bits: the memory is only reserved, and pages that are not
 * touched cost nothing. What lies on the device of tests/simt the host may touch. */
static const int64_t far_step = ((int64_t)1 << 30) + 128; /* of heads */
enum { FAR_BATCH = 2, FAR_LENGTH = 3, FAR_HEADS = 2, FAR_WIDTH = 8 };
static const int64_t far_rows = FAR_BATCH * FAR_LENGTH * FAR_HEADS;

static struct tensor far_view(float *memory, int number, const double *values) {
    struct tensor t = tensor_4d(memory + number * FAR_WIDTH, DTYPE_F32, FAR_BATCH, FAR_LENGTH, FAR_HEADS, FAR_WIDTH);
    t.stride[0] = FAR_LENGTH * FAR_HEADS * far_step;
    t.stride[1] = FAR_HEADS * far_step;
    t.stride[2] = far_step;
    for (int64_t n = 0; values && n < far_rows * FAR_WIDTH; n++)
        ((float *)t.data)[n / FAR_WIDTH * far_step + n % FAR_WIDTH] = (float)values[n];
    return t;
}
static void expect_far(const char *name, struct tensor t, const double *expected) {
    for (int64_t n = 0; n < far_rows * FAR_WIDTH; n++) {
        const double found = (double)((float *)t.data)[n / FAR_WIDTH * far_step + n % FAR_WIDTH];
        if (!(fabs(expected[n] - found) <= TOKENS_F32))
            fail_msg("far: %s[%lld]: expected %.9g, found %.9g", name, (long long)n, expected[n], found);
    }
}

static void far_elements(void **state) {
    (void)state;
    static const struct index_case row = {"far", FAR_BATCH, FAR_LENGTH, FAR_HEADS, FAR_HEADS, FAR_WIDTH, 2,
                                          1,     1,         FAR_WIDTH,  1,         1,         1,         0,
                                          0,     0,         {0},        false,     1};
    float *memory = far_reserve(far_rows * far_step);
    if (!memory) CHECK_SKIP("far elements: no address space for %lld of them", (long long)(far_rows * far_step));
    const struct ops *oracle = index_open("cpu-f64", 1, NULL);
    struct memory m = {.ops = index_open("cuda-f32", 1, NULL)};
    struct index_arrays x;
    index_fill(&row, &x);
    index_run(oracle, &row, &x, RUN_ALL);
    struct token_attention_backward g = {.d_o = far_view(memory, 4, x.d_o),
                                         .dq = far_view(memory, 5, NULL),
                                         .dk = far_view(memory, 6, NULL),
                                         .dv = far_view(memory, 7, NULL)};
    g.forward.q = far_view(memory, 0, x.inputs[INPUT_Q]);
    g.forward.k = far_view(memory, 1, x.inputs[INPUT_K]);
    g.forward.v = far_view(memory, 2, x.inputs[INPUT_V]);
    g.forward.o = far_view(memory, 3, NULL);
    g.forward.start = held_ids(&m, tensor_2d(NULL, DTYPE_I32, FAR_BATCH, FAR_LENGTH), x.start);
    g.forward.chosen = held_ids(&m, tensor_4d(NULL, DTYPE_I32, FAR_BATCH, FAR_LENGTH, 2, 1), x.chosen);
    g.forward.log_sums = held(&m, tensor_3d(NULL, DTYPE_F32, FAR_BATCH, FAR_HEADS, FAR_LENGTH));
    g.forward.window = row.window;
    g.forward.sinks = row.sinks;
    g.forward.scale = 1 / sqrt(FAR_WIDTH);
    CHECK_OK(m.ops->token_attention(m.ops, &g.forward));
    CHECK_OK(m.ops->token_attention_backward(m.ops, &g));
    struct index_learn l = {.scores = {.r = far_view(memory, 8, x.inputs[INPUT_R]),
                                       .u = far_view(memory, 9, x.inputs[INPUT_U]),
                                       .lists = 2},
                            .q = far_view(memory, 10, x.inputs[INPUT_TEACHER_Q]),
                            .k = far_view(memory, 11, x.inputs[INPUT_TEACHER_K]),
                            .start = g.forward.start,
                            .d_r = far_view(memory, 12, NULL),
                            .d_u = far_view(memory, 13, NULL),
                            .scale = g.forward.scale,
                            .gradient_scale = INDEX_GRADIENT_SCALE};
    l.scores.a = held_values(&m, tensor_3d(NULL, DTYPE_F32, FAR_BATCH, FAR_LENGTH, 2), x.inputs[INPUT_A]);
    l.d_a = held(&m, l.scores.a);
    l.losses = held(&m, tensor_3d(NULL, DTYPE_F32, FAR_BATCH, 2, FAR_LENGTH));
    CHECK_OK(m.ops->index_learn(m.ops, &l));
    CHECK_OK(m.ops->synchronise(m.ops));
    expect_far("o", g.forward.o, x.outputs[OUTPUT_O]);
    expect_far("dq", g.dq, x.gradients[INPUT_Q]);
    expect_far("dk", g.dk, x.gradients[INPUT_K]);
    expect_far("dv", g.dv, x.gradients[INPUT_V]);
    expect_far("d_r", l.d_r, x.gradients[INPUT_R]);
    expect_far("d_u", l.d_u, x.gradients[INPUT_U]);
    release(&m);
    oracle->close(oracle);
    index_free(&x);
    far_release(memory, far_rows * far_step);
}

/* One problem by hand: three lists a query of the same content. */
enum { TOKENS = 40, SELECT = 3, WIDTH = 8 };
struct example {
    struct memory m;
    double zeros[TOKENS * 2 * WIDTH];
    struct token_attention_backward b;
    struct index_learn l;
};
static void open_example(struct example *e, const int32_t *start, const int32_t *lists) {
    memset(e, 0, sizeof *e);
    e->m.ops = index_open("cuda-f32", 1, NULL);
    const struct tensor heads = tensor_4d(NULL, DTYPE_F32, 1, TOKENS, 2, WIDTH);
    struct token_attention *a = &e->b.forward;
    struct tensor x[8];
    for (int n = 0; n < 8; n++) {
        for (int i = 0; i < TOKENS * 2 * WIDTH; i++) e->zeros[i] = case_draw(i, n);
        x[n] = held_values(&e->m, heads, e->zeros);
    }
    *a = (struct token_attention){x[0], x[1], x[2], .o = x[3], .window = 2, .sinks = 1, .scale = 0.5};
    a->start = held_ids(&e->m, tensor_2d(NULL, DTYPE_I32, 1, TOKENS), start);
    a->chosen = held_ids(&e->m, tensor_4d(NULL, DTYPE_I32, 1, TOKENS, 1, SELECT), lists);
    a->log_sums = held(&e->m, tensor_3d(NULL, DTYPE_F32, 1, 2, TOKENS));
    e->b.d_o = x[4];
    e->b.dq = x[5];
    e->b.dk = x[6];
    e->b.dv = x[7];
    e->l = (struct index_learn){.scores = {.r = x[0], .u = x[1], .lists = 1},
                                .q = x[2],
                                .k = x[4],
                                .start = a->start,
                                .chosen = a->chosen,
                                .window = 2,
                                .sinks = 1,
                                .scale = 0.5,
                                .weight = 1,
                                .gradient_scale = 1};
    e->l.scores.a = held_values(&e->m, tensor_3d(NULL, DTYPE_F32, 1, TOKENS, 2), e->zeros);
    e->l.losses = held(&e->m, tensor_3d(NULL, DTYPE_F32, 1, 1, TOKENS));
    e->l.hits = held_values(&e->m, tensor_1d(NULL, DTYPE_F64, 1), e->zeros);
}
static void add_gradients(struct example *e) {
    e->l.d_r = held(&e->m, e->l.scores.r);
    e->l.d_u = held(&e->m, e->l.scores.u);
    e->l.d_a = held(&e->m, e->l.scores.a);
}
static void run_example(const struct example *e, double *log_sums, double *dk) {
    const struct ops *ops = e->m.ops;
    CHECK_OK(ops->token_attention(ops, &e->b.forward));
    CHECK_OK(ops->token_attention_backward(ops, &e->b));
    case_move(ops, e->b.forward.log_sums, log_sums, false);
    case_move(ops, e->b.dk, dk, false);
}

/* Entries that are no tokens up to the query in its document are absent. */
static void absent_entries(void **state) {
    (void)state;
    static const struct {
        int token;
        int32_t wrong[SELECT], right[SELECT];
    } rows[] = {
        {20, {12, 30, -1}, {12, -1, -1}},        {20, {12, 13, TOKENS}, {12, 13, -1}},
        {20, {12, INT32_MAX, -1}, {12, -1, -1}}, {20, {12, INT32_MIN, -1}, {12, -1, -1}},
        {20, {5, 12, -1}, {12, -1, -1}},         {20, {12, 19, -1}, {12, -1, -1}},
        {20, {11, 13, -1}, {13, -1, -1}},        {20, {20, -1, -1}, {-1, -1, -1}},
    };
    int32_t start[TOKENS], lists[TOKENS][SELECT];
    for (int i = 0; i < TOKENS; i++) start[i] = i < 11 ? 0 : 11;
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        double log_sums[2][2 * TOKENS], dk[2][TOKENS * 2 * WIDTH];
        for (int right = 0; right < 2; right++) {
            struct example e;
            memset(lists, 0xff, sizeof lists);
            memcpy(lists[rows[n].token], right ? rows[n].right : rows[n].wrong, sizeof rows[n].right);
            open_example(&e, start, lists[0]);
            run_example(&e, log_sums[right], dk[right]);
            release(&e.m);
        }
        for (int i = 0; i < 2 * TOKENS; i++)
            if (log_sums[0][i] != log_sums[1][i]) fail_msg("list %zu: log_sums[%d] differ", n, i);
        for (int i = 0; i < TOKENS * 2 * WIDTH; i++)
            if (dk[0][i] != dk[1][i]) fail_msg("list %zu: dk[%d] differ", n, i);
    }
}

/* Documents that begin nowhere and lists in disorder lead to no memory that is not the tensors'; heads that are too
 * wide and lists that are too long are refused. */
static void wrong_inputs(void **state) {
    (void)state;
    int32_t start[TOKENS], lists[TOKENS][SELECT];
    static const int32_t odd[] = {INT32_MAX, INT32_MIN, -7, TOKENS, TOKENS - 1, 0, 3, 1 << 30};
    for (int i = 0; i < TOKENS; i++) {
        start[i] = i % 3 == 0 ? -1000 * i : 1000 * i - 7;
        for (int n = 0; n < SELECT; n++) lists[i][n] = odd[(i * 5 + n * 3) % 8];
    }
    struct example e;
    open_example(&e, start, lists[0]);
    add_gradients(&e);
    double log_sums[2 * TOKENS], dk[TOKENS * 2 * WIDTH];
    for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
        simt_set_order((enum simt_order)order, 4);
        run_example(&e, log_sums, dk);
        for (int i = 0; i < 2 * TOKENS; i++) assert_true(isfinite(log_sums[i]));
        for (int i = 0; i < TOKENS * 2 * WIDTH; i++) assert_true(isfinite(dk[i]));
        for (int attended = 0; attended < 2; attended++) {
            e.l.attended = attended;
            CHECK_OK(e.m.ops->index_learn(e.m.ops, &e.l));
        }
        CHECK_OK(e.m.ops->synchronise(e.m.ops));
    }
    error_clear();
    struct token_attention a = e.b.forward;
    a.q = a.k = a.v = a.o = tensor_4d(a.q.data, DTYPE_F32, 1, 1, 1, 257);
    a.start = tensor_2d(a.start.data, DTYPE_I32, 1, 1);
    a.log_sums = tensor_3d(a.log_sums.data, DTYPE_F32, 1, 1, 1);
    a.chosen = tensor_none();
    if (e.m.ops->token_attention(e.m.ops, &a) != STATUS_SHAPE || !strstr(error_message(), "257"))
        fail_msg("a head of 257: %s", error_message());
    error_clear();
    a = e.b.forward;
    a.chosen.shape[3] = INT32_MAX / TOKENS + 1;
    a.chosen.stride[2] = a.chosen.shape[3];
    a.chosen.stride[1] = a.chosen.shape[3];
    a.chosen.stride[0] = a.chosen.shape[3] * TOKENS;
    if (e.m.ops->token_attention(e.m.ops, &a) != STATUS_SHAPE || !strstr(error_message(), "2^31"))
        fail_msg("2^31 numbers: %s", error_message());
    error_clear();
    struct index_learn l = e.l;
    l.scores.r = l.scores.u = l.d_r = l.d_u = tensor_4d(l.scores.r.data, DTYPE_F32, 1, 1, 1, 257);
    l.q = l.k = tensor_4d(l.q.data, DTYPE_F32, 1, 1, 1, WIDTH);
    l.scores.a = l.d_a = tensor_3d(l.scores.a.data, DTYPE_F32, 1, 1, 1);
    l.start = a.start = tensor_2d(a.start.data, DTYPE_I32, 1, 1);
    l.losses = tensor_3d(l.losses.data, DTYPE_F32, 1, 1, 1);
    l.chosen = l.hits = tensor_none();
    if (e.m.ops->index_learn(e.m.ops, &l) != STATUS_SHAPE || !strstr(error_message(), "257"))
        fail_msg("an index head of 257: %s", error_message());
    error_clear();
    release(&e.m);
}

/* Lists in disorder over more tokens than lie in shared memory at once. */
static void long_disorder(void **state) {
    (void)state;
    static const struct index_case row = {"disorder", 1, 1100, 1, 1, 8, 1, 1, 1, 8, 3, 1, 1, 0, 0, 0, {0}, false, 1};
    const struct ops *ops = index_open("cuda-f32", 1, NULL);
    struct index_arrays x;
    index_fill(&row, &x);
    for (int32_t i = 0; i < 1100; i++) {
        x.chosen[3 * i] = i / 2;
        x.chosen[3 * i + 1] = i - 2;
        x.chosen[3 * i + 2] = i % 3 ? i / 4 : -1;
    }
    index_run(ops, &row, &x, RUN_ATTEND | RUN_BACKWARD);
    for (int n = 0; n < INPUT_R; n++)
        for (int64_t i = 0; i < index_gradient_count(&row, n); i++) assert_true(isfinite(x.gradients[n][i]));
    index_free(&x);
    ops->close(ops);
}

/* Losses alone are those that come with gradients; lists that are absent are lists that hold nothing; over all pairs
 * without hits nobody looks at lists, window and sinks. */
static void optional_arguments(void **state) {
    (void)state;
    int32_t start[TOKENS] = {0}, lists[TOKENS][SELECT];
    memset(lists, 0xff, sizeof lists);
    struct example e;
    open_example(&e, start, lists[0]);
    for (int attended = 0; attended < 2; attended++) {
        double losses[4][TOKENS];
        for (int n = 0; n < 4; n++) {
            struct index_learn l = e.l;
            l.attended = attended;
            if (n == 1) {
                add_gradients(&e);
                l.d_r = e.l.d_r;
                l.d_u = e.l.d_u;
                l.d_a = e.l.d_a;
                e.l.d_r = e.l.d_u = e.l.d_a = tensor_none();
            }
            if (n >= 2) l.chosen = tensor_none();
            if (n == 3) l.hits = tensor_none();
            if (n == 3 && !attended) l.window = l.sinks = -100;
            CHECK_OK(e.m.ops->index_learn(e.m.ops, &l));
            case_move(e.m.ops, l.losses, losses[n], false);
            for (int i = 0; i < TOKENS; i++)
                if (losses[n][i] != losses[0][i]) fail_msg("arguments %d: losses[%d] differ", n, i);
        }
    }
    release(&e.m);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) chosen = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attend_f32),    cmocka_unit_test(attend_bf16),        cmocka_unit_test(learn_f32),
        cmocka_unit_test(learn_bf16),    cmocka_unit_test(same_bits),          cmocka_unit_test(guarded),
        cmocka_unit_test(far_elements),  cmocka_unit_test(absent_entries),     cmocka_unit_test(wrong_inputs),
        cmocka_unit_test(long_disorder), cmocka_unit_test(optional_arguments),
    };
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
