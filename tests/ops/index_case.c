#include "ops/index_case.h"

#include "ops/case_arrays.h"

#include "base/memory.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const index_input_names[INPUTS] = {"q", "k", "v", "r", "u", "a", "teacher_q", "teacher_k"};
const char *const index_output_names[OUTPUTS] = {
    "o", "log_sums", "losses over all pairs", "losses over attended pairs", "hits", "pooled"};
const char *const index_gradient_names[GRADIENTS] = {"dq",
                                                     "dk",
                                                     "dv",
                                                     "d_r over all pairs",
                                                     "d_u over all pairs",
                                                     "d_a over all pairs",
                                                     "d_r over attended pairs",
                                                     "d_u over attended pairs",
                                                     "d_a over attended pairs"};
/* `loss` and `hits` of index_learn before it, and the weight of what it adds to `loss`. */
static const double loss_before = 1.5, hits_before = 2.5, loss_weight = 0.25;

/* Name, B, T, H, G, D, S, J, K, E, n, w, sinks, coarse, coarse_blocks, fewer, cuts, repeated, magnitude. */
const struct index_case index_cases[] = {
    {"one token", 1, 1, 2, 1, 8, 1, 4, 1, 4, 2, 1, 0, 0, 0, 0, {0}, false, 1},
    {"7, fewer than n", 2, 7, 2, 2, 8, 2, 2, 2, 4, 9, 2, 1, 0, 0, 0, {0}, false, 1},
    {"31, one list", 1, 31, 4, 2, 8, 1, 4, 1, 6, 5, 6, 2, 0, 0, 0, {0}, false, 1},
    {"33, 48 wide, a list a head", 1, 33, 4, 2, 48, 4, 2, 2, 6, 4, 3, 1, 0, 0, 1, {0}, false, 1},
    {"33, two levels", 2, 33, 2, 1, 8, 1, 4, 4, 4, 6, 3, 2, 4, 2, 0, {9}, false, 1},
    {"129, a list a key head", 1, 129, 4, 2, 48, 2, 4, 1, 32, 16, 8, 4, 0, 0, 0, {0}, false, 1},
    {"129, documents", 2, 129, 6, 2, 8, 6, 1, 1, 4, 7, 5, 3, 0, 0, 1, {1, 2, 3, 50, 90}, false, 1},
    {"129, two levels, documents", 2, 129, 4, 2, 8, 2, 4, 4, 6, 12, 7, 3, 8, 3, 4, {1, 2, 60, 99}, false, 1},
    {"129, repeated tokens", 1, 129, 2, 1, 8, 1, 4, 1, 4, 9, 10, 2, 4, 2, 0, {40}, true, 1},
    {"129, sinks over everything", 1, 129, 2, 2, 8, 1, 2, 1, 6, 5, 1, 200, 0, 0, 0, {70}, false, 1},
    {"129, window over everything", 1, 129, 2, 1, 8, 2, 2, 1, 4, 3, 129, 2, 0, 0, 0, {0}, false, 1},
    {"129, all chosen", 1, 129, 2, 1, 8, 1, 4, 4, 4, 129, 1, 0, 0, 0, 0, {100}, false, 1},
    {"129, sharp scores", 1, 129, 4, 1, 8, 2, 2, 2, 6, 11, 4, 1, 0, 0, 0, {0}, false, 12},
    {"301, two levels, a list a head", 1, 301, 4, 1, 16, 4, 3, 3, 32, 20, 33, 1, 16, 4, 5, {77, 78, 201}, false, 1},
    {"1000, 64 wide", 1, 1000, 3, 1, 64, 1, 4, 1, 32, 40, 60, 4, 0, 0, 0, {0}, false, 1},
    {"1000, two levels, documents", 1, 1000, 2, 2, 16, 2, 4, 4, 16, 30, 20, 2, 16, 6, 0, {333, 340, 777}, false, 1},
    {"2500, two levels", 1, 2500, 2, 1, 8, 1, 2, 1, 8, 24, 16, 4, 32, 5, 0, {1999}, false, 1},
};
const int index_case_count = sizeof index_cases / sizeof *index_cases;

/* Heads and width of an input: [B,T,heads,width]. */
static void input_shape(const struct index_case *row, enum input input, int64_t *heads, int64_t *width) {
    *width = input == INPUT_R || input == INPUT_U ? row->index_width : input == INPUT_A ? 1 : row->width;
    switch (input) {
    case INPUT_Q:
    case INPUT_TEACHER_Q:
        *heads = row->heads;
        return;
    case INPUT_R:
    case INPUT_A:
        *heads = row->lists * row->index_heads;
        return;
    case INPUT_U:
        *heads = row->lists * row->index_keys;
        return;
    default:
        *heads = row->groups;
        return;
    }
}

int64_t index_count(const struct index_case *row, enum input input) {
    int64_t heads, width;
    input_shape(row, input, &heads, &width);
    return row->batch * row->length * heads * width;
}

static int gradient_input(int gradient) {
    return gradient < INPUT_LEARNING ? gradient : gradient - INPUT_LEARNING + INPUT_R;
}

int64_t index_gradient_count(const struct index_case *row, int gradient) {
    return index_count(row, (enum input)gradient_input(gradient));
}

int32_t index_pool_block(const struct index_case *row) {
    return row->coarse ? row->coarse : 3;
}

int64_t index_output_count(const struct index_case *row, enum output output) {
    const int32_t block = index_pool_block(row);
    switch (output) {
    case OUTPUT_O:
        return index_count(row, INPUT_Q);
    case OUTPUT_LOG_SUMS:
        return row->batch * row->heads * row->length;
    case OUTPUT_HITS:
        return 1;
    case OUTPUT_POOLED:
        return row->batch * compressed_bound(row->length, block, block) * 2 * row->lists * row->index_keys *
               row->index_width;
    default:
        return row->batch * row->lists * row->length;
    }
}

int64_t index_chosen_count(const struct index_case *row) {
    return row->batch * row->length * row->lists * row->choose;
}

void index_fill(const struct index_case *row, struct index_arrays *x) {
    *x = (struct index_arrays){0};
    const double sizes[INPUTS] = {2 * row->magnitude, 1, 1, 2 * row->magnitude, 1.5, 1.5, 3 * row->magnitude, 1};
    const int64_t rows = row->batch * row->length;
    for (int n = 0; n < INPUTS; n++) {
        const int64_t count = index_count(row, n);
        x->inputs[n] = case_new_array(count);
        for (int64_t i = 0; i < count; i++)
            x->inputs[n][i] = (double)(float)(sizes[n] * case_draw(row->repeated ? i % (count / rows) : i, n));
    }
    for (int n = 0; n < GRADIENTS; n++) x->gradients[n] = case_new_array(index_gradient_count(row, n));
    for (int n = 0; n < OUTPUTS; n++) x->outputs[n] = case_new_array(index_output_count(row, n));
    x->d_o = case_new_array(index_count(row, INPUT_Q));
    for (int64_t i = 0; i < index_count(row, INPUT_Q); i++) x->d_o[i] = case_draw(i, 20);
    const size_t chosen = (size_t)index_chosen_count(row);
    CHECK_OK(memory_new(chosen, sizeof *x->chosen, "choices", &x->chosen));
    CHECK_OK(memory_new(chosen, sizeof *x->by_attention, "choices", &x->by_attention));
    x->start = case_new_start(row->batch, row->length, row->cuts);
    for (int64_t s = 0; s < row->lists; s++)
        x->counts[s] = row->choose > row->fewer * (int32_t)s ? row->choose - row->fewer * (int32_t)s : 0;
}

void index_free(struct index_arrays *x) {
    for (int n = 0; n < INPUTS; n++) free(x->inputs[n]);
    for (int n = 0; n < GRADIENTS; n++) free(x->gradients[n]);
    for (int n = 0; n < OUTPUTS; n++) free(x->outputs[n]);
    free(x->d_o);
    free(x->start);
    free(x->chosen);
    free(x->by_attention);
}

const struct ops *index_open(const char *table, int threads, const char *isa) {
    const struct ops *ops;
    CHECK_OK(ops_open(table, &(struct ops_options){.threads = threads, .isa = isa}, &ops));
    return ops;
}

/* --- a table's memory --------------------------------------------------------------------------------------------- */

enum { TENSORS = 48 };
struct device_case {
    const struct ops *ops;
    const struct index_case *row;
    struct index_arrays *x;
    void *blocks[TENSORS];
    int count;
    struct tensor inputs[INPUTS], gradients[GRADIENTS], start, chosen, by_attention, d_o;
    struct tensor o, log_sums, losses[2], loss[2], hits, pooled;
};

static struct tensor take(struct device_case *d, struct tensor t) {
    CHECK_OK(d->ops->allocate(d->ops, tensor_bytes(t) ? tensor_bytes(t) : 1, &t.data));
    assert_true(d->count < TENSORS);
    d->blocks[d->count++] = t.data;
    return t;
}

/* Tensors of the inputs first … first + count − 1: columns of one matrix, as the model has them, or each its own. */
static void take_fused(struct device_case *d, enum input first, int count, struct tensor *views) {
    const struct index_case *row = d->row;
    int64_t heads[3], widths[3], columns = 0;
    for (int n = 0; n < count; n++) {
        input_shape(row, first + (enum input)n, &heads[n], &widths[n]);
        columns += heads[n] * widths[n];
    }
    struct tensor all = tensor_none();
    if (!d->x->dense) all = take(d, tensor_2d(NULL, d->ops->real, row->batch * row->length, columns));
    columns = 0;
    for (int n = 0; n < count; n++) {
        const bool flat = first + n == INPUT_A; /* a [B,T,S·J] */
        const int64_t h = flat ? 1 : heads[n], w = flat ? heads[n] : widths[n];
        views[n] = d->x->dense ? take(d, tensor_4d(NULL, d->ops->real, row->batch, row->length, h, w))
                               : tensor_split_heads(tensor_columns(all, columns, h * w), row->batch, row->length, h, w);
        if (flat) {
            views[n].rank = 3;
            views[n].shape[2] = w;
            views[n].stride[2] = 1;
        }
        columns += h * w;
    }
}

static void open_case(struct device_case *d) {
    const struct index_case *row = d->row;
    const struct ops *ops = d->ops;
    const int32_t block = index_pool_block(row);
    take_fused(d, INPUT_Q, 3, d->inputs);
    take_fused(d, INPUT_R, 3, d->inputs + INPUT_R);
    take_fused(d, INPUT_TEACHER_Q, 2, d->inputs + INPUT_TEACHER_Q);
    take_fused(d, INPUT_Q, 3, d->gradients);
    take_fused(d, INPUT_R, 3, d->gradients + INPUT_R);
    take_fused(d, INPUT_R, 3, d->gradients + INPUT_LEARNING);
    for (int n = 0; n < INPUTS; n++) case_move(d->ops, d->inputs[n], d->x->inputs[n], true);
    d->d_o = take(d, tensor_4d(NULL, ops->real, row->batch, row->length, row->heads, row->width));
    case_move(d->ops, d->d_o, d->x->d_o, true);
    d->o = take(d, d->d_o);
    d->log_sums = take(d, tensor_3d(NULL, ops->statistic, row->batch, row->heads, row->length));
    for (int n = 0; n < 2; n++) {
        d->losses[n] = take(d, tensor_3d(NULL, ops->statistic, row->batch, row->lists, row->length));
        d->loss[n] = take(d, tensor_1d(NULL, DTYPE_F64, 1));
        CHECK_OK(ops->fill(ops, d->loss[n], loss_before));
    }
    d->hits = take(d, d->loss[0]);
    CHECK_OK(ops->fill(ops, d->hits, hits_before));
    d->pooled = take(d, tensor_4d(NULL, ops->real, row->batch, compressed_bound(row->length, block, block),
                                  2 * row->lists * row->index_keys, row->index_width));
    d->start = take(d, tensor_2d(NULL, DTYPE_I32, row->batch, row->length));
    CHECK_OK(ops->upload(ops, d->start, d->x->start));
    d->chosen = take(d, tensor_4d(NULL, DTYPE_I32, row->batch, row->length, row->lists, row->choose));
    CHECK_OK(ops->upload(ops, d->chosen, d->x->chosen));
    d->by_attention = take(d, d->chosen);
}

static void close_case(struct device_case *d) {
    for (int n = 0; n < d->count; n++) d->ops->release(d->ops, d->blocks[n]);
}

/* --- the operations ----------------------------------------------------------------------------------------------- */

static struct index_scores scores_of(const struct device_case *d) {
    return (struct index_scores){
        .r = d->inputs[INPUT_R], .u = d->inputs[INPUT_U], .a = d->inputs[INPUT_A], .lists = (int32_t)d->row->lists};
}

static double scale_of(const struct index_case *row) {
    return 1 / sqrt((double)row->width);
}

static void pool(const struct device_case *d) {
    const struct index_pool a = {
        .u = d->inputs[INPUT_U], .start = d->start, .pooled = d->pooled, .block = index_pool_block(d->row)};
    CHECK_OK(d->ops->index_pool(d->ops, &a));
}

static void choose(const struct device_case *d, enum index_source source, uint64_t seed, struct tensor chosen) {
    const struct index_case *row = d->row;
    const bool coarse = row->coarse && source == INDEX_LEARNED;
    const struct index_select a = {.scores = scores_of(d),
                                   .start = d->start,
                                   .pooled = coarse ? d->pooled : tensor_none(),
                                   .q = source == INDEX_ATTENTION ? d->inputs[INPUT_Q] : tensor_none(),
                                   .k = source == INDEX_ATTENTION ? d->inputs[INPUT_K] : tensor_none(),
                                   .chosen = chosen,
                                   .counts = row->fewer ? d->x->counts : NULL,
                                   .source = source,
                                   .window = row->window,
                                   .sinks = row->sinks,
                                   .coarse = coarse ? row->coarse : 0,
                                   .coarse_blocks = coarse ? row->coarse_blocks : 0,
                                   .scale = scale_of(row),
                                   .seed = seed};
    CHECK_OK(d->ops->index_select(d->ops, &a));
}

static void attend(const struct device_case *d, bool backward) {
    const struct token_attention a = {.q = d->inputs[INPUT_Q],
                                      .k = d->inputs[INPUT_K],
                                      .v = d->inputs[INPUT_V],
                                      .start = d->start,
                                      .chosen = d->chosen,
                                      .o = d->o,
                                      .log_sums = d->log_sums,
                                      .window = d->row->window,
                                      .sinks = d->row->sinks,
                                      .scale = scale_of(d->row)};
    CHECK_OK(d->ops->token_attention(d->ops, &a));
    if (!backward) return;
    const struct token_attention_backward b = {.forward = a,
                                               .d_o = d->d_o,
                                               .dq = d->gradients[INPUT_Q],
                                               .dk = d->gradients[INPUT_K],
                                               .dv = d->gradients[INPUT_V]};
    CHECK_OK(d->ops->token_attention_backward(d->ops, &b));
}

/* What index_learn added to `loss` is the weighted sum of the losses that it wrote; both may be no number. */
static void check_loss(const struct device_case *d, struct tensor loss, const double *losses) {
    double found, expected = 0;
    CHECK_OK(d->ops->download(d->ops, loss, &found));
    for (int64_t n = 0; n < tensor_count(d->losses[0]); n++) expected += losses[n];
    expected = loss_before + loss_weight * expected;
    if (isfinite(expected) ? !(fabs(found - expected) <= 1e-6 * fabs(expected)) : isfinite(found))
        fail_msg("%s: loss: expected %.17g, found %.17g", d->row->name, expected, found);
}

/* `hits` are passed to both; the second leaves them. */
static void learn(const struct device_case *d, bool attended, bool backward) {
    const struct tensor *gradients = d->gradients + (attended ? INPUT_LEARNING : INPUT_R);
    const struct index_learn a = {.scores = scores_of(d),
                                  .q = d->inputs[INPUT_TEACHER_Q],
                                  .k = d->inputs[INPUT_TEACHER_K],
                                  .start = d->start,
                                  .chosen = d->chosen,
                                  .losses = d->losses[attended],
                                  .loss = d->loss[attended],
                                  .hits = d->hits,
                                  .d_r = backward ? gradients[0] : tensor_none(),
                                  .d_u = backward ? gradients[1] : tensor_none(),
                                  .d_a = backward ? gradients[2] : tensor_none(),
                                  .attended = attended,
                                  .window = d->row->window,
                                  .sinks = d->row->sinks,
                                  .scale = scale_of(d->row),
                                  .weight = loss_weight,
                                  .gradient_scale = INDEX_GRADIENT_SCALE};
    CHECK_OK(d->ops->index_learn(d->ops, &a));
}

void index_run(const struct ops *ops, const struct index_case *row, struct index_arrays *x, int parts) {
    struct device_case d = {.ops = ops, .row = row, .x = x};
    const bool backward = parts & RUN_BACKWARD;
    open_case(&d);
    if (parts & RUN_CHOOSE) {
        pool(&d);
        choose(&d, INDEX_LEARNED, 0, d.chosen);
        choose(&d, INDEX_ATTENTION, 0, d.by_attention);
        case_move(ops, d.pooled, x->outputs[OUTPUT_POOLED], false);
        CHECK_OK(ops->download(ops, d.chosen, x->chosen));
        CHECK_OK(ops->download(ops, d.by_attention, x->by_attention));
    }
    if (parts & RUN_ATTEND) {
        attend(&d, backward);
        case_move(ops, d.o, x->outputs[OUTPUT_O], false);
        case_move(ops, d.log_sums, x->outputs[OUTPUT_LOG_SUMS], false);
        for (int n = 0; backward && n < INPUT_R; n++) case_move(ops, d.gradients[n], x->gradients[n], false);
    }
    if (parts & RUN_LEARN) {
        for (int n = 0; n < 2; n++) {
            learn(&d, n, backward);
            case_move(ops, d.losses[n], x->outputs[OUTPUT_ALL + n], false);
            check_loss(&d, d.loss[n], x->outputs[OUTPUT_ALL + n]);
        }
        case_move(ops, d.hits, x->outputs[OUTPUT_HITS], false);
        x->outputs[OUTPUT_HITS][0] -= hits_before;
        for (int n = INPUT_R; backward && n < GRADIENTS; n++) case_move(ops, d.gradients[n], x->gradients[n], false);
    }
    close_case(&d);
}

void index_choose(const struct ops *ops, const struct index_case *row, struct index_arrays *x, enum index_source source,
                  uint64_t seed) {
    struct device_case d = {.ops = ops, .row = row, .x = x};
    open_case(&d);
    pool(&d);
    choose(&d, source, seed, d.chosen);
    CHECK_OK(ops->download(ops, d.chosen, x->chosen));
    close_case(&d);
}

/* --- comparing ---------------------------------------------------------------------------------------------------- */

static void compare(const struct index_case *row, const char *what, const char *name, const double *expected,
                    const double *found, int64_t count, double tolerance) {
    double most = 0.1;
    for (int64_t n = 0; n < count; n++) most = fmax(most, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * most))
            fail_msg("%s: %s: %s[%lld]: expected %.12g, found %.12g (largest %.3g)", row->name, what, name,
                     (long long)n, expected[n], found[n], most);
}

void index_compare(const struct index_case *row, const char *what, const struct index_arrays *expected,
                   const struct index_arrays *found, double tolerance) {
    for (int n = 0; n < OUTPUTS; n++)
        compare(row, what, index_output_names[n], expected->outputs[n], found->outputs[n], index_output_count(row, n),
                tolerance);
    for (int n = 0; n < GRADIENTS; n++)
        compare(row, what, index_gradient_names[n], expected->gradients[n], found->gradients[n],
                index_gradient_count(row, n), tolerance);
}

void index_expect_bits(const struct index_case *row, const char *what, const char *name, const double *expected,
                       const double *found, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (memcmp(&expected[n], &found[n], sizeof *expected) != 0)
            fail_msg("%s: %s: %s[%lld]: expected %.17g, found %.17g", row->name, what, name, (long long)n, expected[n],
                     found[n]);
}

void index_expect_choice(const struct index_case *row, const char *what, const int32_t *expected, const int32_t *found,
                         int64_t count) {
    for (int64_t n = 0; n < count; n++) {
        if (expected[n] == found[n]) continue;
        const int64_t list = n / row->choose;
        print_error("%s: %s: choices of sequence %lld, query %lld, list %lld (expected, found):\n", row->name, what,
                    (long long)(list / row->lists / row->length), (long long)(list / row->lists % row->length),
                    (long long)(list % row->lists));
        for (int64_t c = list * row->choose; c < (list + 1) * row->choose; c++)
            print_error("  %d %d\n", expected[c], found[c]);
        fail_msg("%s: %s: another choice", row->name, what);
    }
}
