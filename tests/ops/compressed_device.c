/* See compressed_device.h. */
#include "tests/ops/compressed_device.h"

#include "ops/case_arrays.h"

#include "base/memory.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Name, B, T, H, G, D, l, d, l', n, w, select_group, apart, cuts. */
const struct nsa_case compressed_shapes[] = {
    {"T 63, D 7, unaligned", 2, 63, 3, 1, 7, 4, 2, 4, 5, 4, 1, false, {20}, false},
    {"T 65, D 64", 1, 65, 4, 2, 64, 2, 1, 2, 6, 4, 2, false, {0}, false},
    {"T 97, D 128, MQA", 1, 97, 4, 1, 128, 2, 1, 3, 7, 4, 2, false, {0}, false},
    {"T 70, D 200, documents", 2, 70, 2, 2, 200, 2, 1, 4, 4, 4, 2, false, {1, 2, 35}, false},
    {"T 75, D 256", 1, 75, 2, 1, 256, 4, 2, 4, 5, 4, 2, false, {0}, false},
    /* A selection block over several tiles; compressed blocks over many selection blocks. */
    {"T 360, wide selection blocks", 1, 360, 2, 1, 8, 2, 1, 70, 4, 4, 1, false, {0}, false},
    {"T 200, wide compressed blocks", 1, 200, 2, 2, 8, 40, 1, 3, 9, 4, 2, false, {90}, false},
    /* So many that candidates do not fit into shared memory, and more than a row holds at once. */
    {"T 500, many chosen", 1, 500, 1, 1, 8, 2, 2, 2, 100, 4, 1, false, {0}, false},
    {"T 400, merges", 1, 400, 1, 1, 8, 2, 1, 2, 7, 4, 1, false, {7}, false},
};
const int compressed_shape_count = sizeof compressed_shapes / sizeof *compressed_shapes;

/* --- rows of the table -------------------------------------------------------------------------------------------- */

static int64_t blocks_in(const struct nsa_case *row, int64_t tokens) {
    return tokens < row->compress ? 0 : (tokens - row->compress) / row->stride + 1;
}

/* Compressed blocks that sequence b holds before token t's document, or (t the length) in all. */
static int64_t blocks_before(const struct nsa_case *row, const int32_t *start, int64_t t) {
    int64_t blocks = 0;
    for (int64_t end = t < row->length ? start[t] : t; end > 0; end = start[end - 1])
        blocks += blocks_in(row, end - start[end - 1]);
    return blocks;
}

static void round_inputs(const struct nsa_case *row, struct nsa_arrays *x) {
    for (int n = 0; n < NSA_INPUTS; n++) case_round_bf16(x->inputs[n], nsa_count(row, n));
    case_round_bf16(x->d_o, nsa_count(row, NSA_Q));
}

void compressed_expect(const struct ops *oracle, bool bf16, const struct nsa_case *row, int parts,
                       struct nsa_arrays *expected, struct nsa_arrays *found) {
    const int64_t bound = compressed_bound(row->length, row->compress, row->stride), each = row->groups * row->width;
    nsa_fill(row, expected);
    nsa_fill(row, found);
    if (bf16) {
        round_inputs(row, expected);
        round_inputs(row, found);
    }
    nsa_run(oracle, row, expected, NSA_ALL);
    for (int n = 0; n < NSA_BETWEENS; n++)
        if (bf16 && n != NSA_LOG_SUMS) case_round_bf16(expected->between[n], nsa_between_count(row, n));
    /* A gradient of a place without a block counts for nothing, whatever it is. */
    for (int64_t b = 0; b < row->batch; b++)
        for (int64_t c = blocks_before(row, expected->start + b * row->length, row->length); c < bound; c++)
            for (int64_t d = 0; d < each; d++)
                expected->between[NSA_D_COMPRESSED_K][(b * bound + c) * each + d] = 0x1p90;
    nsa_give(row, expected, found);
    found->feed = false;
    nsa_run(oracle, row, expected, parts);
}

/* Importances of a query's selection blocks [blocks] by its list's heads; k: the document's first compressed block,
 * rows `step` apart for one key head. */
struct rating {
    const double *q[8], *k[8];
    int members;
    int64_t step, width, visible, stride, compress, block;
    double scale;
};
static void rate(const struct rating *r, double *importance, int64_t blocks) {
    double *weights = case_new_array(r->visible + 1);
    memset(importance, 0, (size_t)blocks * sizeof *importance);
    for (int m = 0; m < r->members; m++) {
        double most = -INFINITY, sum = 0;
        for (int64_t c = 0; c < r->visible; c++) {
            weights[c] = 0;
            for (int64_t d = 0; d < r->width; d++) weights[c] += r->scale * r->q[m][d] * r->k[m][c * r->step + d];
            most = fmax(most, weights[c]);
        }
        for (int64_t c = 0; c < r->visible; c++) sum += weights[c] = exp(weights[c] - most);
        for (int64_t c = 0; c < r->visible; c++)
            for (int64_t t = c * r->stride; t < c * r->stride + r->compress; t += r->stride)
                if (t / r->block < blocks) importance[t / r->block] += weights[c] / sum;
    }
    free(weights);
}

/* A list is ascending, has the right length and the blocks that it must have, and no block that it leaves out is more
 * important than one that it takes. */
static void check_list(const char *what, int64_t query, const double *importance, int64_t own, int64_t select,
                       const int32_t *chosen, double bound) {
    double least = INFINITY, most = -INFINITY;
    const int64_t count = own + 1 < select ? own + 1 : select;
    for (int64_t s = 0; s < select; s++) {
        const bool right = s < count ? chosen[s] >= (s ? chosen[s - 1] + 1 : 0) && chosen[s] <= own : chosen[s] == -1;
        if (!right) fail_msg("%s, query %lld: chosen[%lld] is %d", what, (long long)query, (long long)s, chosen[s]);
    }
    if (chosen[0] != 0 || chosen[count - 1] != own || (own > 0 && chosen[count - 2] != own - 1))
        fail_msg("%s, query %lld: the first block or the last two are missing", what, (long long)query);
    for (int64_t b = 1, s = 1; b < own - 1; b++) {
        const bool taken = s < count && chosen[s] == b;
        s += taken;
        if (taken)
            least = fmin(least, importance[b]);
        else
            most = fmax(most, importance[b]);
    }
    if (most > least + bound)
        fail_msg("%s, query %lld: a block of importance %.9g is left out, one of %.9g taken", what, (long long)query,
                 most, least);
}

static void check_choices(const struct nsa_case *row, const struct nsa_arrays *x) {
    const int64_t bound = compressed_bound(row->length, row->compress, row->stride),
                  lists = row->heads / row->select_group, share = row->heads / row->groups,
                  numbers = row->length / row->block + 1;
    double *importance = case_new_array(numbers);
    for (int64_t n = 0, base = 0; n < row->batch * row->length * lists; n++) {
        const int64_t i = n / lists % row->length, b = n / lists / row->length, list = n % lists;
        const int32_t *start = x->start + b * row->length;
        const int64_t place = i - start[i];
        if (list == 0 && place == 0) base = blocks_before(row, start, i);
        struct rating r = {.members = row->select_group, .step = row->groups * row->width, .width = row->width};
        r.visible = blocks_in(row, place + 1);
        r.stride = row->stride;
        r.compress = row->compress;
        r.block = row->block;
        r.scale = 1 / sqrt((double)row->width);
        for (int m = 0; m < r.members; m++) {
            const int64_t h = list * r.members + m;
            r.q[m] = x->inputs[NSA_Q] + ((b * row->length + i) * row->heads + h) * row->width;
            r.k[m] = x->between[NSA_COMPRESSED_K] + (b * bound + base) * r.step + h / share * row->width;
        }
        rate(&r, importance, place / row->block + 1);
        check_list(row->name, i, importance, place / row->block, row->select, x->chosen + n * row->select,
                   COMPRESSED_CHOICE * r.members);
    }
    free(importance);
}

static void check_log_sums(const struct nsa_case *row, const struct nsa_arrays *expected,
                           const struct nsa_arrays *found) {
    for (int64_t n = 0; n < nsa_between_count(row, NSA_LOG_SUMS); n++) {
        const double a = expected->between[NSA_LOG_SUMS][n], b = found->between[NSA_LOG_SUMS][n];
        if (a != b && !(fabs(a - b) <= COMPRESSED_F32 * fmax(1, fabs(a))))
            fail_msg("%s: log_sums[%lld]: expected %.9g, found %.9g", row->name, (long long)n, a, b);
    }
}

void compressed_row(const struct ops *ops, const struct ops *oracle, const struct nsa_case *row) {
    static const int parts[] = {NSA_COMPRESS | NSA_BACKWARD, NSA_COARSE | NSA_BACKWARD};
    const bool bf16 = ops->real == DTYPE_BF16;
    for (size_t n = 0; n < sizeof parts / sizeof *parts; n++) {
        struct nsa_arrays expected, found;
        compressed_expect(oracle, bf16, row, parts[n], &expected, &found);
        nsa_run(ops, row, &found, parts[n]);
        nsa_compare(row, ops->name, &expected, &found, bf16 ? COMPRESSED_BF16 : COMPRESSED_F32);
        check_log_sums(row, &expected, &found);
        if (parts[n] & NSA_COARSE) check_choices(row, &found);
        nsa_free(&expected);
        nsa_free(&found);
    }
}

/* --- tensors of their own ----------------------------------------------------------------------------------------- */

enum { HELD = 24 };
struct bag {
    const struct ops *ops;
    void *blocks[HELD];
    int count;
};

static struct tensor hold(struct bag *bag, struct tensor t) {
    CHECK_OK(bag->ops->allocate(bag->ops, tensor_bytes(t) ? tensor_bytes(t) : 1, &t.data));
    assert_true(bag->count < HELD);
    bag->blocks[bag->count++] = t.data;
    return t;
}
static struct tensor put(struct bag *bag, struct tensor t, double *array) {
    t = hold(bag, t);
    case_move(bag->ops, t, array, true);
    return t;
}
static void drop(struct bag *bag) {
    CHECK_OK(bag->ops->synchronise(bag->ops));
    for (int n = 0; n < bag->count; n++) bag->ops->release(bag->ops, bag->blocks[n]);
}

static void compare(const char *what, const char *name, const double *expected, const double *found, int64_t count,
                    double tolerance) {
    double most = 1;
    for (int64_t n = 0; n < count; n++) most = fmax(most, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(expected[n] - found[n]) <= tolerance * most))
            fail_msg("%s: %s[%lld]: expected %.9g, found %.9g", what, name, (long long)n, expected[n], found[n]);
}

/* --- gates -------------------------------------------------------------------------------------------------------- */

struct gates_case {
    const char *name;
    int64_t length, width, apart; /* apart: elements between rows */
    int count;
    bool complement;
    unsigned absent, wanted; /* sets of branches, of gradients */
};

enum { GATES_BATCH = 2, GATES_HEADS = 3, GATES_ARRAYS = GATES_MAX + 2 /* branches, then o, then dlogits */ };

/* out: o, d_branches, dlogits. inputs: branches, d_o, logits. */
static void run_gates(const struct ops *ops, const struct gates_case *row, double *const *inputs, double *const *out) {
    struct bag bag = {.ops = ops};
    const int64_t columns = GATES_HEADS * (row->complement ? 1 : row->count);
    struct tensor views[GATES_MAX + 2];
    struct gate_mix_backward g = {.forward.count = row->count, .forward.complement = row->complement};
    for (int n = 0; n < GATES_MAX + 2; n++) {
        const struct tensor all =
            hold(&bag, tensor_4d(NULL, ops->real, GATES_BATCH, row->length, GATES_HEADS, row->width + row->apart));
        views[n] = all;
        views[n].shape[3] = row->width;
        if (n <= GATES_MAX) case_move(ops, views[n], inputs[n], true);
    }
    for (int m = 0; m < row->count; m++) {
        if (!(row->absent >> m & 1)) g.forward.branches[m] = views[m];
        if (row->wanted >> m & 1)
            g.d_branches[m] = hold(&bag, tensor_4d(NULL, ops->real, GATES_BATCH, row->length, GATES_HEADS, row->width));
    }
    g.d_o = views[GATES_MAX];
    g.forward.o = views[GATES_MAX + 1];
    g.forward.logits = put(&bag, tensor_3d(NULL, ops->real, GATES_BATCH, row->length, columns), inputs[GATES_MAX + 1]);
    g.dlogits = hold(&bag, g.forward.logits);
    CHECK_OK(ops->gate_mix(ops, &g.forward));
    CHECK_OK(ops->gate_mix_backward(ops, &g));
    case_move(ops, g.forward.o, out[0], false);
    for (int m = 0; m < row->count; m++)
        if (row->wanted >> m & 1) case_move(ops, g.d_branches[m], out[1 + m], false);
    case_move(ops, g.dlogits, out[1 + GATES_MAX], false);
    drop(&bag);
}

void compressed_gates(const struct ops *ops, const struct ops *oracle) {
    static const struct gates_case rows[] = {
        {"three gates, D 64", 5, 64, 0, 3, false, 0, 7},
        {"one for two, D 64", 9, 64, 8, 2, true, 0, 3},
        {"absent branches, D 128", 3, 128, 0, 3, false, 2, 5},
        {"none there", 2, 8, 0, 2, false, 3, 1},
        {"D 7", 4, 7, 0, 3, false, 0, 7},
        {"D 40, rows apart by an odd number", 7, 40, 3, 2, true, 0, 1},
        {"D 600", 2, 600, 0, 1, false, 0, 1},
        {"a single token", 1, 16, 0, 3, false, 1, 6},
    };
    static const char *const names[] = {"o", "d_branches 0", "d_branches 1", "d_branches 2", "dlogits"};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const struct gates_case *row = &rows[r];
        const int64_t count = GATES_BATCH * row->length * GATES_HEADS * row->width,
                      logits = GATES_BATCH * row->length * GATES_HEADS * (row->complement ? 1 : row->count);
        double *inputs[GATES_ARRAYS], *expected[GATES_ARRAYS], *found[GATES_ARRAYS];
        for (int n = 0; n < GATES_ARRAYS; n++) {
            inputs[n] = case_new_array(count + logits);
            expected[n] = case_new_array(count + logits);
            found[n] = case_new_array(count + logits);
            for (int64_t i = 0; i < count + logits; i++) inputs[n][i] = (n == GATES_MAX + 1 ? 5 : 1) * case_draw(i, n);
            case_round_bf16(inputs[n], count + logits);
        }
        inputs[GATES_MAX + 1][0] = 300; /* whose exponential no float holds */
        inputs[GATES_MAX + 1][1] = -300;
        run_gates(oracle, row, inputs, expected);
        run_gates(ops, row, inputs, found);
        for (int n = 0; n < GATES_ARRAYS; n++)
            compare(row->name, names[n], expected[n], found[n], n == GATES_ARRAYS - 1 ? logits : count,
                    ops->real == DTYPE_BF16 ? 0x1p-8 : COMPRESSED_F32);
        for (int n = 0; n < GATES_ARRAYS; n++) {
            free(inputs[n]);
            free(expected[n]);
            free(found[n]);
        }
    }
}

/* --- the choice --------------------------------------------------------------------------------------------------- */

void compressed_ties(const struct ops *ops) {
    nsa_check_choice(ops, 200, 2, 2, 2, 16, 3); /* many ties */
    nsa_check_choice(ops, 300, 2, 2, 2, 20, 1); /* all equal */
    nsa_check_choice(ops, 260, 1, 1, 1, 36, 2); /* many that merge */
    nsa_check_choice(ops, 400, 2, 2, 2, 90, 20);
    nsa_check_choice(ops, 230, 1, 1, 1, 101, 5); /* candidates that lie in global memory */
    /* All equal, whatever is summed and wherever tiles cut it. */
    nsa_check_choice(ops, 200, 6, 2, 4, 5, 1);
    nsa_check_choice(ops, 200, 2, 1, 3, 17, 1);
    nsa_check_choice(ops, 300, 4, 1, 50, 4, 1);
    nsa_check_choice(ops, 120, 4, 4, 20, 3, 0); /* nothing competes */
    nsa_check_choice(ops, 60, 100, 2, 2, 9, 0); /* no compressed block */
    nsa_check_choice(ops, 60, 50, 2, 2, 9, 1);  /* none visible for long */
}

void compressed_alone(const struct ops *ops, const struct nsa_case *row) {
    struct bag bag = {.ops = ops};
    struct nsa_arrays x;
    nsa_fill(row, &x);
    const int64_t bound = compressed_bound(row->length, row->compress, row->stride),
                  lists = row->heads / row->select_group, sums = row->batch * row->heads * row->length;
    struct compressed_attention a = {.compress = row->compress, .stride = row->stride, .block = row->block};
    a.select = row->select;
    a.select_group = row->select_group;
    a.scale = 1 / sqrt((double)row->width);
    a.q = put(&bag, tensor_4d(NULL, ops->real, row->batch, row->length, row->heads, row->width), x.inputs[NSA_Q]);
    a.k = put(&bag, tensor_4d(NULL, ops->real, row->batch, bound, row->groups, row->width), x.inputs[NSA_K]);
    a.start = hold(&bag, tensor_2d(NULL, DTYPE_I32, row->batch, row->length));
    CHECK_OK(ops->upload(ops, a.start, x.start));
    double *log_sums[2] = {case_new_array(sums), case_new_array(sums)};
    int32_t *chosen[2];
    for (int with = 0; with < 2; with++) {
        CHECK_OK(memory_new((size_t)nsa_chosen_count(row), sizeof **chosen, "choices", &chosen[with]));
        a.log_sums = hold(&bag, tensor_3d(NULL, ops->statistic, row->batch, row->heads, row->length));
        a.chosen = hold(&bag, tensor_4d(NULL, DTYPE_I32, row->batch, row->length, lists, row->select));
        if (with) {
            a.v = put(&bag, a.k, x.inputs[NSA_V]);
            a.o = hold(&bag, a.q);
        }
        CHECK_OK(ops->compressed_attention(ops, &a));
        case_move(ops, a.log_sums, log_sums[with], false);
        CHECK_OK(ops->download(ops, a.chosen, chosen[with]));
    }
    for (int64_t n = 0; n < sums; n++)
        if (log_sums[0][n] != log_sums[1][n] && !(fabs(log_sums[0][n] - log_sums[1][n]) <= 1e-5))
            fail_msg("%s: log_sums[%lld]: %.9g without o, %.9g with it", row->name, (long long)n, log_sums[0][n],
                     log_sums[1][n]);
    int64_t other = 0; /* near-ties may fall elsewhere */
    for (int64_t n = 0; n < nsa_chosen_count(row); n++) other += chosen[0][n] != chosen[1][n];
    if (other > nsa_chosen_count(row) / 1000)
        fail_msg("%s: without o %lld numbers of blocks are others", row->name, (long long)other);
    drop(&bag);
    for (int with = 0; with < 2; with++) {
        free(log_sums[with]);
        free(chosen[with]);
    }
    nsa_free(&x);
}

/* --- token by token ----------------------------------------------------------------------------------------------- */

enum { DECODE_BATCH = 3, DECODE_HEADS = 4, DECODE_GROUPS = 2 };
struct decode_case {
    const char *name;
    int64_t cache, width;
    int32_t compress, stride, block, select, select_group;
    int32_t places[DECODE_BATCH][3];
};

static void run_decode(const struct ops *ops, const struct decode_case *row, double *const *inputs, double *o,
                       int32_t *chosen) {
    struct bag bag = {.ops = ops};
    const enum dtype real = ops->real;
    struct compressed_decode a = {.compress = row->compress, .stride = row->stride, .block = row->block};
    a.select = row->select;
    a.select_group = row->select_group;
    a.scale = 1 / sqrt((double)row->width);
    a.q = put(&bag, tensor_3d(NULL, real, DECODE_BATCH, DECODE_HEADS, row->width), inputs[0]);
    a.k = put(&bag, tensor_4d(NULL, real, DECODE_BATCH, row->cache, DECODE_GROUPS, row->width), inputs[1]);
    a.v = put(&bag, a.k, inputs[2]);
    a.places = hold(&bag, tensor_2d(NULL, DTYPE_I32, DECODE_BATCH, 3));
    CHECK_OK(ops->upload(ops, a.places, row->places));
    a.o = hold(&bag, a.q);
    a.chosen = hold(&bag, tensor_3d(NULL, DTYPE_I32, DECODE_BATCH, DECODE_HEADS / row->select_group, row->select));
    CHECK_OK(ops->compressed_decode(ops, &a));
    case_move(ops, a.o, o, false);
    CHECK_OK(ops->download(ops, a.chosen, chosen));
    const struct tensor before = a.chosen; /* and either alone */
    a.chosen = tensor_none();
    CHECK_OK(ops->compressed_decode(ops, &a));
    a.chosen = before;
    a.o = tensor_none();
    CHECK_OK(ops->compressed_decode(ops, &a));
    drop(&bag);
}

static void check_cached(const struct decode_case *row, double *const *inputs, const int32_t *chosen) {
    const int64_t lists = DECODE_HEADS / row->select_group, step = DECODE_GROUPS * row->width;
    for (int64_t n = 0; n < DECODE_BATCH * lists; n++) {
        const int64_t b = n / lists, list = n % lists, numbers = row->places[b][2] / row->block + 1;
        double *importance = case_new_array(numbers);
        struct rating r = {.members = row->select_group, .step = step, .width = row->width};
        r.visible = row->places[b][1];
        r.stride = row->stride;
        r.compress = row->compress;
        r.block = row->block;
        r.scale = 1 / sqrt((double)row->width);
        for (int m = 0; m < r.members; m++) {
            const int64_t h = list * r.members + m;
            r.q[m] = inputs[0] + (b * DECODE_HEADS + h) * row->width;
            r.k[m] = inputs[1] + (b * row->cache + row->places[b][0]) * step +
                     h / (DECODE_HEADS / DECODE_GROUPS) * row->width;
        }
        rate(&r, importance, numbers);
        check_list(row->name, b, importance, row->places[b][2] / row->block, row->select, chosen + n * row->select,
                   COMPRESSED_CHOICE * r.members);
        free(importance);
    }
}

void compressed_decoding(const struct ops *ops, const struct ops *oracle) {
    static const struct decode_case rows[] = {
        {"short", 9, 24, 4, 2, 4, 3, 1, {{0, 0, 2}, {3, 2, 5}, {0, 9, 20}}},
        {"together", 60, 64, 4, 2, 4, 7, 4, {{0, 60, 122}, {7, 40, 83}, {20, 1, 3}}},
        {"long, divided", 700, 64, 2, 1, 3, 9, 2, {{0, 700, 700}, {100, 560, 561}, {650, 33, 34}}},
        {"D 7", 40, 7, 8, 2, 6, 5, 2, {{0, 40, 86}, {1, 30, 66}, {0, 12, 29}}},
        {"D 200, few of many visible", 300, 200, 2, 2, 2, 60, 1, {{0, 300, 600}, {0, 20, 599}, {10, 0, 500}}},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const struct decode_case *row = &rows[n];
        const int64_t queries = DECODE_BATCH * DECODE_HEADS * row->width,
                      keys = DECODE_BATCH * row->cache * DECODE_GROUPS * row->width;
        double *inputs[3] = {case_new_array(queries), case_new_array(keys), case_new_array(keys)};
        for (int64_t i = 0; i < queries; i++) inputs[0][i] = 2 * case_draw(i, 0);
        for (int64_t i = 0; i < keys; i++) {
            inputs[1][i] = 2 * case_draw(i, 1);
            inputs[2][i] = case_draw(i, 2);
        }
        for (int m = 0; m < 3; m++) case_round_bf16(inputs[m], m ? keys : queries);
        double *expected = case_new_array(queries), *found = case_new_array(queries);
        int32_t *chosen;
        CHECK_OK(memory_new((size_t)(DECODE_BATCH * DECODE_HEADS * row->select), sizeof *chosen, "choices", &chosen));
        run_decode(oracle, row, inputs, expected, chosen);
        check_cached(row, inputs, chosen);
        run_decode(ops, row, inputs, found, chosen);
        check_cached(row, inputs, chosen);
        /* Weights stay fp32: bf16 rounds nothing but the result. */
        compare(row->name, "o", expected, found, queries, ops->real == DTYPE_BF16 ? 0x1p-8 : COMPRESSED_F32);
        for (int m = 0; m < 3; m++) free(inputs[m]);
        free(expected);
        free(found);
        free(chosen);
    }
}
