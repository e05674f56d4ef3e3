#include "ops/nsa_case.h"

#include "ops/case_arrays.h"

#include "base/memory.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const nsa_input_names[NSA_INPUTS] = {"q",    "k",        "v",         "logits",   "w1_k",
                                                 "b1_k", "w2_k",     "places_k",  "w1_v",     "b1_v",
                                                 "w2_v", "places_v", "teacher_q", "teacher_k"};
/* `loss` of block_mass before it, and the weight of what it adds. */
static const double loss_before = 1.5, loss_weight = 0.25;

const char *const nsa_output_names[NSA_OUTPUTS] = {"o", "compressed", "losses"};
const char *const nsa_between_names[NSA_BETWEENS] = {
    "compressed k", "compressed v", "gradient of compressed k", "gradient of compressed v", "log_sums", "branch 0",
    "branch 1",     "branch 2"};

/* Name, B, T, H, G, D, l, d, l', n, w, select_group, apart, cuts. */
const struct nsa_case nsa_cases[] = {
    {"one token", 1, 1, 2, 1, 8, 4, 2, 4, 3, 2, 1, false, {0}, false},
    {"shorter than a block", 2, 7, 2, 2, 8, 8, 4, 8, 3, 4, 1, false, {0}, false},
    {"31, three gates", 1, 31, 4, 2, 8, 8, 4, 8, 3, 6, 2, true, {0}, false},
    {"33, 48 wide", 1, 33, 2, 1, 48, 4, 2, 4, 3, 5, 1, false, {0}, false},
    {"33, blocks of one stride", 2, 33, 2, 1, 8, 4, 4, 4, 4, 3, 2, true, {9}, false},
    {"129, every head chooses", 1, 129, 4, 2, 16, 8, 4, 8, 4, 20, 1, false, {0}, false},
    {"129, all heads choose together", 1, 129, 4, 2, 16, 8, 4, 16, 4, 10, 4, false, {60}, false},
    {"129, documents", 2, 129, 2, 2, 8, 8, 2, 4, 5, 3, 1, true, {1, 2, 3, 50, 90}, false},
    {"129, long compressed blocks", 1, 129, 2, 1, 8, 16, 2, 6, 4, 7, 2, false, {40}, false},
    {"129, repeated tokens", 1, 129, 2, 1, 8, 8, 4, 8, 5, 16, 1, false, {0}, true},
    {"window over everything", 1, 70, 2, 1, 16, 8, 4, 8, 3, 70, 1, false, {30}, false},
    {"1000, 64 wide", 1, 1000, 3, 1, 64, 32, 16, 64, 5, 100, 1, false, {0}, false},
    {"1000, documents", 1, 1000, 2, 1, 16, 16, 8, 32, 6, 50, 2, true, {333, 340, 777}, false},
    {"2500, two chunks", 1, 2500, 1, 1, 8, 8, 4, 16, 6, 40, 1, false, {1999}, false},
};
const int nsa_case_count = sizeof nsa_cases / sizeof *nsa_cases;

static int64_t gates(const struct nsa_case *row) {
    return row->apart ? 3 : 1;
}

int64_t nsa_count(const struct nsa_case *row, enum nsa_input input) {
    const int64_t tokens = row->batch * row->length, width = row->width;
    switch (input) {
    case NSA_Q:
    case NSA_TEACHER_Q:
        return tokens * row->heads * width;
    case NSA_K:
    case NSA_V:
    case NSA_TEACHER_K:
        return tokens * row->groups * width;
    case NSA_LOGITS:
        return tokens * row->heads * gates(row);
    case NSA_W1_K:
    case NSA_W1_V:
        return 2 * width * row->compress * width;
    case NSA_B1_K:
    case NSA_B1_V:
        return 2 * width;
    case NSA_W2_K:
    case NSA_W2_V:
        return 2 * width * width;
    default:
        return row->compress * width;
    }
}

int64_t nsa_output_count(const struct nsa_case *row, enum nsa_output output) {
    return output == NSA_LOSSES ? row->batch * row->length * row->heads / row->select_group : nsa_count(row, NSA_Q);
}

int64_t nsa_between_count(const struct nsa_case *row, enum nsa_between between) {
    if (between >= NSA_BRANCH) return nsa_count(row, NSA_Q);
    if (between == NSA_LOG_SUMS) return row->batch * row->heads * row->length;
    return row->batch * compressed_bound(row->length, row->compress, row->stride) * row->groups * row->width;
}

int64_t nsa_chosen_count(const struct nsa_case *row) {
    return row->batch * row->length * row->heads / row->select_group * row->select;
}

void nsa_fill(const struct nsa_case *row, struct nsa_arrays *x) {
    *x = (struct nsa_arrays){0};
    const double sizes[NSA_INPUTS] = {2, 1, 1, 2, 0, 0.5, 0, 0.5, 0, 0.5, 0, 0.5, 2, 1};
    for (int n = 0; n < NSA_INPUTS; n++) {
        const int64_t count = nsa_count(row, n), rows = row->batch * row->length;
        double size = sizes[n];
        if (n == NSA_W1_K || n == NSA_W1_V) size = 2 / sqrt((double)(row->compress * row->width));
        if (n == NSA_W2_K || n == NSA_W2_V) size = 2 / sqrt(2 * (double)row->width);
        x->inputs[n] = case_new_array(count);
        for (int64_t i = 0; i < count; i++) {
            const bool same = row->repeated && n <= NSA_V;
            x->inputs[n][i] = (double)(float)(size * case_draw(same ? i % (count / rows) : i, n));
        }
        if (n < NSA_LEARNING) x->gradients[n] = case_new_array(count);
    }
    for (int n = 0; n < NSA_OUTPUTS; n++) x->outputs[n] = case_new_array(nsa_output_count(row, n));
    for (int n = 0; n < NSA_BETWEENS; n++) x->between[n] = case_new_array(nsa_between_count(row, n));
    x->d_o = case_new_array(nsa_count(row, NSA_Q));
    for (int64_t i = 0; i < nsa_count(row, NSA_Q); i++) x->d_o[i] = case_draw(i, 20);
    CHECK_OK(memory_new((size_t)nsa_chosen_count(row), sizeof *x->chosen, "choices", &x->chosen));
    x->start = case_new_start(row->batch, row->length, row->cuts);
}

void nsa_free(struct nsa_arrays *x) {
    for (int n = 0; n < NSA_INPUTS; n++) free(x->inputs[n]);
    for (int n = 0; n < NSA_LEARNING; n++) free(x->gradients[n]);
    for (int n = 0; n < NSA_OUTPUTS; n++) free(x->outputs[n]);
    for (int n = 0; n < NSA_BETWEENS; n++) free(x->between[n]);
    free(x->d_o);
    free(x->start);
    free(x->chosen);
}

void nsa_give(const struct nsa_case *row, const struct nsa_arrays *from, struct nsa_arrays *to) {
    for (int n = 0; n < NSA_BETWEENS; n++)
        memcpy(to->between[n], from->between[n], (size_t)nsa_between_count(row, n) * sizeof(double));
    for (int n = 0; n < NSA_OUTPUTS; n++)
        memcpy(to->outputs[n], from->outputs[n], (size_t)nsa_output_count(row, n) * sizeof(double));
    memcpy(to->chosen, from->chosen, (size_t)nsa_chosen_count(row) * sizeof *to->chosen);
    to->feed = true;
}

/* --- a table's memory --------------------------------------------------------------------------------------------- */

enum { TENSORS = 48 };
struct device_case {
    const struct ops *ops;
    const struct nsa_case *row;
    void *blocks[TENSORS];
    int count;
    struct tensor inputs[NSA_INPUTS], gradients[NSA_LEARNING], start, chosen, d_o;
    struct tensor compressed[2], pre[2], d_compressed[2]; /* of k, v */
    struct tensor branches[3], d_branches[3], sums[3], losses, loss, o;
};

static struct tensor take(struct device_case *d, struct tensor t) {
    CHECK_OK(d->ops->allocate(d->ops, tensor_bytes(t) ? tensor_bytes(t) : 1, &t.data));
    assert_true(d->count < TENSORS);
    d->blocks[d->count++] = t.data;
    return t;
}

/* q, k, v as columns of one matrix, as the model has them. */
static void take_qkv(struct device_case *d, struct tensor views[3]) {
    const struct nsa_case *row = d->row;
    const int64_t a = row->heads * row->width, b = row->groups * row->width;
    const struct tensor all = take(d, tensor_2d(NULL, d->ops->real, row->batch * row->length, a + 2 * b));
    const int64_t firsts[] = {0, a, a + b}, widths[] = {a, b, b}, heads[] = {row->heads, row->groups, row->groups};
    for (int n = 0; n < 3; n++)
        views[n] = tensor_split_heads(tensor_columns(all, firsts[n], widths[n]), row->batch, row->length, heads[n],
                                      row->width);
}

static struct tensor shape_of(const struct nsa_case *row, enum dtype real, int input) {
    const int64_t width = row->width, wide = 2 * width;
    switch (input) {
    case NSA_LOGITS:
        return tensor_3d(NULL, real, row->batch, row->length, row->heads * gates(row));
    case NSA_W1_K:
    case NSA_W1_V:
        return tensor_2d(NULL, real, wide, row->compress * width);
    case NSA_B1_K:
    case NSA_B1_V:
        return tensor_1d(NULL, real, wide);
    case NSA_W2_K:
    case NSA_W2_V:
        return tensor_2d(NULL, real, width, wide);
    case NSA_PLACES_K:
    case NSA_PLACES_V:
        return tensor_2d(NULL, real, row->compress, width);
    default:
        return tensor_4d(NULL, real, row->batch, row->length, input == NSA_TEACHER_Q ? row->heads : row->groups, width);
    }
}

static struct tensor between_of(const struct device_case *d, int n) {
    if (n >= NSA_BRANCH) return d->branches[n - NSA_BRANCH];
    if (n == NSA_LOG_SUMS) return d->sums[0];
    return n < NSA_D_COMPRESSED_K ? d->compressed[n] : d->d_compressed[n - NSA_D_COMPRESSED_K];
}

/* Numbers that every dtype holds, for what an operation adds to. */
static void fill_before(const struct device_case *d, struct tensor t) {
    double *array = case_new_array(tensor_count(t));
    for (int64_t n = 0; n < tensor_count(t); n++) array[n] = floor(64 * case_draw(n, 40)) / 64;
    case_move(d->ops, t, array, true);
    free(array);
}

static void open_case(struct device_case *d, const struct nsa_arrays *x) {
    const struct nsa_case *row = d->row;
    const enum dtype real = d->ops->real;
    const int64_t blocks = compressed_bound(row->length, row->compress, row->stride),
                  lists = row->heads / row->select_group;
    take_qkv(d, d->inputs);
    take_qkv(d, d->gradients);
    for (int n = NSA_LOGITS; n < NSA_INPUTS; n++) d->inputs[n] = take(d, shape_of(row, real, n));
    for (int n = NSA_LOGITS; n < NSA_LEARNING; n++) {
        d->gradients[n] = take(d, shape_of(row, n == NSA_LOGITS ? real : d->ops->parameter, n));
        CHECK_OK(d->ops->fill(d->ops, d->gradients[n], 0)); /* they accumulate */
    }
    for (int n = 0; n < NSA_INPUTS; n++) case_move(d->ops, d->inputs[n], x->inputs[n], true);
    d->d_o = take(d, tensor_4d(NULL, real, row->batch, row->length, row->heads, row->width));
    case_move(d->ops, d->d_o, x->d_o, true);
    d->o = take(d, d->d_o);
    for (int n = 0; n < 2; n++) {
        d->compressed[n] = take(d, tensor_4d(NULL, real, row->batch, blocks, row->groups, row->width));
        d->d_compressed[n] = take(d, d->compressed[n]);
        d->pre[n] = take(d, tensor_4d(NULL, real, row->batch, blocks, row->groups, 2 * row->width));
    }
    for (int n = 0; n < 3; n++) {
        d->branches[n] = take(d, d->d_o);
        d->d_branches[n] = take(d, d->d_o);
        d->sums[n] = take(d, tensor_3d(NULL, d->ops->statistic, row->batch, row->heads, row->length));
    }
    d->losses = take(d, tensor_3d(NULL, d->ops->statistic, row->batch, lists, row->length));
    d->loss = take(d, tensor_1d(NULL, DTYPE_F64, 1));
    CHECK_OK(d->ops->fill(d->ops, d->loss, loss_before));
    d->start = take(d, tensor_2d(NULL, DTYPE_I32, row->batch, row->length));
    CHECK_OK(d->ops->upload(d->ops, d->start, x->start));
    d->chosen = take(d, tensor_4d(NULL, DTYPE_I32, row->batch, row->length, lists, row->select));
    CHECK_OK(d->ops->upload(d->ops, d->chosen, x->chosen));
    for (int n = 0; n < NSA_BETWEENS; n++) case_move(d->ops, between_of(d, n), x->between[n], true);
    for (int n = 0; n < 3; n++) {
        fill_before(d, d->gradients[n]);
        case_move(d->ops, d->d_branches[n], x->d_o, true);
    }
    case_move(d->ops, d->losses, x->outputs[NSA_LOSSES], true);
    case_move(d->ops, d->o, x->outputs[NSA_O], true);
}

/* --- the operations ----------------------------------------------------------------------------------------------- */

static struct block_compress compress_of(const struct device_case *d, int n) {
    const int first = n ? NSA_W1_V : NSA_W1_K;
    return (struct block_compress){.x = d->inputs[n ? NSA_V : NSA_K],
                                   .start = d->start,
                                   .w1 = d->inputs[first],
                                   .b1 = d->inputs[first + 1],
                                   .w2 = d->inputs[first + 2],
                                   .places = d->inputs[first + 3],
                                   .out = d->compressed[n],
                                   .pre = d->pre[n],
                                   .compress = d->row->compress,
                                   .stride = d->row->stride};
}

static struct compressed_attention coarse_of(const struct device_case *d, bool choose) {
    const struct nsa_case *row = d->row;
    return (struct compressed_attention){.q = d->inputs[NSA_Q],
                                         .k = d->compressed[0],
                                         .v = d->compressed[1],
                                         .start = d->start,
                                         .o = d->branches[0],
                                         .log_sums = d->sums[0],
                                         .chosen = choose ? d->chosen : tensor_none(),
                                         .compress = row->compress,
                                         .stride = row->stride,
                                         .block = row->block,
                                         .select = row->select,
                                         .select_group = row->select_group,
                                         .scale = 1 / sqrt((double)row->width)};
}

/* branch 1: chosen (with the window, unless apart); 2: the window alone. */
static struct block_attention fine_of(const struct device_case *d, int branch) {
    return (struct block_attention){.q = d->inputs[NSA_Q],
                                    .k = d->inputs[NSA_K],
                                    .v = d->inputs[NSA_V],
                                    .start = d->start,
                                    .chosen = branch == 1 ? d->chosen : tensor_none(),
                                    .o = d->branches[branch],
                                    .log_sums = d->sums[branch],
                                    .block = d->row->block,
                                    .window = branch == 1 && d->row->apart ? 0 : d->row->window,
                                    .scale = 1 / sqrt((double)d->row->width)};
}

static struct gate_mix gates_of(const struct device_case *d) {
    struct gate_mix mix = {.logits = d->inputs[NSA_LOGITS], .o = d->o, .count = 3, .complement = !d->row->apart};
    for (int n = 0; n < 3; n++) mix.branches[n] = d->branches[n];
    if (mix.complement) {
        mix.count = 2;
        mix.branches[0] = d->branches[1];
        mix.branches[1] = d->branches[0];
    }
    return mix;
}

static struct block_mass mass_of(const struct device_case *d, bool backward) {
    const struct nsa_case *row = d->row;
    return (struct block_mass){.teacher_q = d->inputs[NSA_TEACHER_Q],
                               .teacher_k = d->inputs[NSA_TEACHER_K],
                               .own_q = d->inputs[NSA_Q],
                               .compressed = d->compressed[0],
                               .start = d->start,
                               .log_sums = d->sums[0],
                               .losses = d->losses,
                               .loss = d->loss,
                               .weight = loss_weight,
                               .d_own_q = backward ? d->gradients[NSA_Q] : tensor_none(),
                               .d_compressed = backward ? d->d_compressed[0] : tensor_none(),
                               .compress = row->compress,
                               .stride = row->stride,
                               .block = row->block,
                               .select_group = row->select_group,
                               .scale = 1 / sqrt((double)row->width),
                               .gradient_scale = NSA_LOSS_SCALE};
}

static void forward(const struct device_case *d, int parts, bool choose) {
    const struct ops *ops = d->ops;
    for (int n = 0; n < 2 && parts & NSA_COMPRESS; n++) {
        const struct block_compress c = compress_of(d, n);
        CHECK_OK(ops->block_compress(ops, &c));
    }
    const struct compressed_attention coarse = coarse_of(d, choose);
    if (parts & NSA_COARSE) CHECK_OK(ops->compressed_attention(ops, &coarse));
    for (int branch = 1; branch < (d->row->apart ? 3 : 2) && parts & NSA_FINE; branch++) {
        const struct block_attention fine = fine_of(d, branch);
        CHECK_OK(ops->block_attention(ops, &fine));
    }
    const struct gate_mix mix = gates_of(d);
    if (parts & NSA_GATES) CHECK_OK(ops->gate_mix(ops, &mix));
}

static void compress_backward(const struct device_case *d) {
    for (int n = 0; n < 2; n++) {
        const int first = n ? NSA_W1_V : NSA_W1_K;
        const struct block_compress_backward c = {.forward = compress_of(d, n),
                                                  .d_out = d->d_compressed[n],
                                                  .dx = d->gradients[n ? NSA_V : NSA_K],
                                                  .dw1 = d->gradients[first],
                                                  .db1 = d->gradients[first + 1],
                                                  .dw2 = d->gradients[first + 2],
                                                  .dplaces = d->gradients[first + 3]};
        CHECK_OK(d->ops->block_compress_backward(d->ops, &c));
    }
}

static void backward(const struct device_case *d, int parts) {
    const struct ops *ops = d->ops;
    struct gate_mix_backward mix = {.forward = gates_of(d), .d_o = d->d_o, .dlogits = d->gradients[NSA_LOGITS]};
    for (int n = 0; n < mix.forward.count; n++) mix.d_branches[n] = d->d_branches[d->row->apart ? n : 1 - n];
    if (parts & NSA_GATES) CHECK_OK(ops->gate_mix_backward(ops, &mix));
    for (int branch = 1; branch < (d->row->apart ? 3 : 2) && parts & NSA_FINE; branch++) {
        const struct block_attention_backward fine = {.forward = fine_of(d, branch),
                                                      .d_o = d->d_branches[branch],
                                                      .dq = d->gradients[NSA_Q],
                                                      .dk = d->gradients[NSA_K],
                                                      .dv = d->gradients[NSA_V],
                                                      .accumulate_q = branch == 2,
                                                      .accumulate_kv = branch == 2};
        CHECK_OK(ops->block_attention_backward(ops, &fine));
    }
    const struct compressed_attention_backward coarse = {.forward = coarse_of(d, false),
                                                         .d_o = d->d_branches[0],
                                                         .dq = d->gradients[NSA_Q],
                                                         .dk = d->d_compressed[0],
                                                         .dv = d->d_compressed[1],
                                                         .accumulate_q = true};
    if (parts & NSA_COARSE) CHECK_OK(ops->compressed_attention_backward(ops, &coarse));
    const struct block_mass mass = mass_of(d, true);
    if (parts & NSA_MASS) CHECK_OK(ops->block_mass(ops, &mass));
    if (parts & NSA_COMPRESS) compress_backward(d);
}

/* What block_mass added to `loss` is the weighted sum of the losses that it wrote. */
static void check_loss(const struct device_case *d, const double *losses) {
    double found, expected = 0;
    CHECK_OK(d->ops->download(d->ops, d->loss, &found));
    for (int64_t n = 0; n < tensor_count(d->losses); n++) expected += losses[n];
    expected = loss_before + loss_weight * expected;
    if (!(fabs(found - expected) <= 1e-12 * fabs(expected)))
        fail_msg("loss: expected %.17g, found %.17g", expected, found);
}

void nsa_run(const struct ops *ops, const struct nsa_case *row, struct nsa_arrays *x, int parts) {
    struct device_case d = {.ops = ops, .row = row};
    open_case(&d, x);
    forward(&d, parts, !x->feed);
    if (parts & NSA_BACKWARD) {
        backward(&d, parts);
    } else if (parts & NSA_MASS) {
        const struct block_mass mass = mass_of(&d, false);
        CHECK_OK(ops->block_mass(ops, &mass));
    }
    case_move(ops, d.o, x->outputs[NSA_O], false);
    case_move(ops, d.branches[0], x->outputs[NSA_COMPRESSED], false);
    case_move(ops, d.losses, x->outputs[NSA_LOSSES], false);
    if (parts & NSA_MASS) check_loss(&d, x->outputs[NSA_LOSSES]);
    CHECK_OK(ops->download(ops, d.chosen, x->chosen));
    for (int n = 0; n < NSA_BETWEENS; n++) case_move(ops, between_of(&d, n), x->between[n], false);
    for (int n = 0; parts & NSA_BACKWARD && n < NSA_LEARNING; n++)
        case_move(ops, d.gradients[n], x->gradients[n], false);
    for (int n = 0; n < d.count; n++) ops->release(ops, d.blocks[n]);
}

static void compare(const struct nsa_case *row, const char *what, const char *name, const double *expected,
                    const double *found, int64_t count, double tolerance) {
    double most = 1;
    for (int64_t n = 0; n < count; n++)
        if (isfinite(expected[n])) most = fmax(most, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++)
        if (expected[n] != found[n] && !(fabs(expected[n] - found[n]) <= tolerance * most))
            fail_msg("%s: %s: %s[%lld]: expected %.12g, found %.12g (largest %.3g)", row->name, what, name,
                     (long long)n, expected[n], found[n], most);
}

void nsa_compare(const struct nsa_case *row, const char *what, const struct nsa_arrays *expected,
                 const struct nsa_arrays *found, double tolerance) {
    for (int n = 0; n < NSA_OUTPUTS; n++)
        compare(row, what, nsa_output_names[n], expected->outputs[n], found->outputs[n], nsa_output_count(row, n),
                tolerance);
    for (int n = 0; n < NSA_BETWEENS; n++)
        compare(row, what, nsa_between_names[n], expected->between[n], found->between[n], nsa_between_count(row, n),
                tolerance);
    for (int n = 0; n < NSA_LEARNING; n++) {
        char name[32];
        strcpy(name, "gradient of ");
        strcat(name, nsa_input_names[n]);
        compare(row, what, name, expected->gradients[n], found->gradients[n], nsa_count(row, n), tolerance);
    }
}

/* --- the choice --------------------------------------------------------------------------------------------------- */

/* The choice from importance, by looking for the largest again and again. */
static void sort_choice(const double *importance, int64_t own, int64_t select, int32_t *chosen) {
    int64_t used = 0;
    bool *taken;
    CHECK_OK(memory_new((size_t)own + 1, sizeof *taken, "marks", &taken));
    taken[0] = taken[own] = taken[own ? own - 1 : 0] = true;
    for (int64_t b = 0; b <= own; b++) used += taken[b];
    for (; used < select && used <= own; used++) {
        int64_t best = -1;
        for (int64_t b = 0; b <= own; b++)
            if (!taken[b] && (best < 0 || importance[b] > importance[best])) best = b;
        taken[best] = true;
    }
    used = 0;
    for (int64_t b = 0; b <= own; b++)
        if (taken[b]) chosen[used++] = (int32_t)b;
    while (used < select) chosen[used++] = -1;
    free(taken);
}

/* The sort, query by query, of a choice [length,select] from keys k. */
static void compare_choice(const struct compressed_attention *a, const double *k, const int32_t *chosen) {
    const int64_t length = a->q.shape[1], blocks = a->k.shape[1], numbers = length / a->block + 2;
    double *importance;
    int32_t *expected;
    CHECK_OK(memory_new((size_t)numbers, sizeof *importance, "importance", &importance));
    CHECK_OK(memory_new((size_t)a->select, sizeof *expected, "choices", &expected));
    for (int64_t i = 0; i < length; i++) {
        memset(importance, 0, (size_t)numbers * sizeof *importance);
        for (int64_t t = 0; t <= i; t++)
            for (int64_t c = 0; t % a->stride == 0 && c < blocks && c * a->stride <= t; c++)
                if (c * a->stride + a->compress > t && c * a->stride + a->compress - 1 <= i)
                    importance[t / a->block] += exp(k[c]);
        sort_choice(importance, i / a->block, a->select, expected);
        if (memcmp(expected, chosen + i * a->select, (size_t)a->select * sizeof *expected) == 0) continue;
        for (int32_t s = 0; s < a->select; s++) printf("  %d %d\n", expected[s], chosen[i * a->select + s]);
        fail_msg("T=%lld l=%d d=%d l'=%d n=%d, query %lld: expected and found as above", (long long)length, a->compress,
                 a->stride, a->block, a->select, (long long)i);
    }
    free(importance);
    free(expected);
}

void nsa_check_choice(const struct ops *ops, int64_t length, int32_t compress, int32_t stride, int32_t block,
                      int32_t select, int levels) {
    const int64_t blocks = compressed_bound(length, compress, stride);
    double *q = case_new_array(length), *k = case_new_array(blocks);
    int32_t *chosen;
    CHECK_OK(memory_new((size_t)(length * select), sizeof *chosen, "choices", &chosen)); /* zeros: one document */
    for (int64_t t = 0; t < length; t++) q[t] = 1;
    for (int64_t c = 0; c < blocks; c++)
        k[c] = levels ? floor((case_draw(c, 3) + 1) * levels / 2) : 2 * case_draw(c, 3);
    struct device_case d = {.ops = ops};
    struct compressed_attention a = {.compress = compress, .stride = stride, .block = block, .select = select};
    a.select_group = 1;
    a.scale = 1;
    a.q = take(&d, tensor_4d(NULL, ops->real, 1, length, 1, 1));
    a.k = take(&d, tensor_4d(NULL, ops->real, 1, blocks, 1, 1));
    a.start = take(&d, tensor_2d(NULL, DTYPE_I32, 1, length));
    a.log_sums = take(&d, tensor_3d(NULL, ops->statistic, 1, 1, length));
    a.chosen = take(&d, tensor_4d(NULL, DTYPE_I32, 1, length, 1, select));
    case_move(ops, a.q, q, true);
    case_move(ops, a.k, k, true);
    CHECK_OK(ops->upload(ops, a.start, chosen));
    CHECK_OK(ops->compressed_attention(ops, &a));
    CHECK_OK(ops->download(ops, a.chosen, chosen));
    compare_choice(&a, k, chosen);
    for (int n = 0; n < d.count; n++) ops->release(ops, d.blocks[n]);
    free(q);
    free(k);
    free(chosen);
}
