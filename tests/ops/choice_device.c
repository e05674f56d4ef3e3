/* See choice_device.h. */
#include "tests/ops/choice_device.h"

#include "base/memory.h"
#include "support/check.h"
#include "tests/ops/case_arrays.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Name, B, T, H, G, D, S, J, K, E, n, w, sinks, coarse, coarse_blocks, fewer, cuts, repeated, magnitude. */
const struct index_case choice_rows[] = {
    {"T 1", 1, 1, 2, 1, 8, 1, 4, 1, 4, 2, 1, 0, 0, 0, 0, {0}, false, 1},
    {"T 7, E 1, documents", 2, 7, 2, 2, 8, 2, 3, 1, 1, 2, 1, 0, 0, 0, 1, {1, 4}, false, 1},
    {"T 64, one key a head", 1, 64, 4, 1, 8, 2, 4, 4, 16, 5, 2, 1, 0, 0, 0, {0}, false, 1},
    {"T 65, odd E and D", 1, 65, 4, 2, 7, 2, 2, 1, 9, 9, 3, 2, 0, 0, 1, {40}, false, 1},
    {"T 129, default heads", 1, 129, 2, 1, 64, 1, 4, 1, 32, 31, 8, 4, 0, 0, 0, {0}, false, 1},
    {"T 129, H 6, documents", 2, 129, 6, 2, 48, 6, 1, 1, 4, 7, 5, 3, 0, 0, 1, {1, 2, 66, 100}, false, 1},
    {"T 129, E 64, six heads", 1, 129, 2, 2, 80, 2, 6, 1, 64, 20, 1, 0, 0, 0, 0, {64}, false, 1},
    {"T 100, E 100, nine heads", 1, 100, 1, 1, 8, 1, 9, 1, 100, 11, 1, 0, 0, 0, 0, {0}, false, 1},
    {"T 90, E 8, eighteen keys, two levels", 1, 90, 1, 1, 8, 1, 18, 18, 8, 6, 2, 1, 4, 3, 0, {9}, false, 1},
    {"T 60, twenty heads", 1, 60, 1, 1, 8, 1, 20, 1, 4, 7, 2, 1, 0, 0, 0, {0}, false, 1},
    {"T 129, two levels, documents", 2, 129, 4, 2, 8, 2, 4, 1, 16, 12, 7, 3, 8, 3, 4, {1, 2, 60, 99}, false, 1},
    {"T 129, two levels, a key a head", 1, 129, 2, 1, 8, 1, 4, 4, 4, 9, 5, 0, 4, 5, 0, {0}, false, 1},
    {"T 129, two levels, sinks over blocks", 1, 129, 2, 1, 8, 1, 2, 2, 16, 9, 3, 11, 4, 3, 0, {77}, false, 1},
    {"T 129, two levels, blocks of one", 1, 129, 2, 1, 8, 2, 2, 1, 4, 6, 3, 1, 1, 9, 0, {31}, false, 1},
    {"T 129, repeated", 1, 129, 2, 1, 8, 1, 4, 1, 4, 9, 10, 2, 4, 2, 0, {40}, true, 1},
    {"T 400, several digits", 1, 400, 1, 1, 8, 1, 2, 1, 16, 40, 3, 1, 0, 0, 0, {0}, false, 1},
    {"T 330, repeated, all digits", 1, 330, 1, 1, 8, 1, 1, 1, 4, 40, 3, 1, 0, 0, 0, {0}, true, 1},
    {"T 330, a row of many blocks", 1, 330, 1, 1, 8, 1, 2, 1, 4, 30, 1, 0, 1, 300, 0, {0}, false, 1},
};
const int choice_row_count = sizeof choice_rows / sizeof *choice_rows;

const char *const choice_way_names[WAYS] = {"few scores", "zeros", "keys are no numbers", "weights are no numbers",
                                            "queries are no numbers"};

void choice_put(const struct index_case *row, struct index_arrays *x, enum choice_way way) {
    for (int64_t i = 0; i < index_count(row, INPUT_R); i++) x->inputs[INPUT_R][i] = floor(1.5 * case_draw(i, 40) + 0.5);
    for (int64_t i = 0; i < index_count(row, INPUT_U); i++) x->inputs[INPUT_U][i] = floor(2 * case_draw(i, 41) + 0.5);
    for (int64_t i = 0; i < index_count(row, INPUT_A); i++)
        x->inputs[INPUT_A][i] = floor(4 * case_draw(i, 42) + 0.25) / 2;
    if (way == WAY_ZEROS) {
        static const double zeros[] = {0, -0.0, -1, 0, -0.0, 1, -0.0, 0};
        for (int n = INPUT_R; n <= INPUT_A; n++)
            for (int64_t i = 0; i < index_count(row, n); i++)
                x->inputs[n][i] = zeros[(int)(4 * (case_draw(i, 43 + n) + 1))];
    }
    const enum input spoilt = way == WAY_KEYS ? INPUT_U : way == WAY_WEIGHTS ? INPUT_A : INPUT_R;
    for (int64_t i = 0; way >= WAY_KEYS && i < index_count(row, spoilt); i++) {
        const double draw = case_draw(i, 50);
        const double each = way == WAY_KEYS ? 0.1 : 0.02;
        if (draw < -1 + each) x->inputs[spoilt][i] = (double)NAN;
        if (draw > 1 - each && way != WAY_KEYS) x->inputs[spoilt][i] = -(double)NAN;
    }
}

void choice_round(const struct ops *ops, const struct index_case *row, struct index_arrays *x) {
    if (ops->real != DTYPE_BF16) return;
    for (int n = 0; n < INPUTS; n++) case_round_bf16(x->inputs[n], index_count(row, n));
}

/* --- exact scores ------------------------------------------------------------------------------------------------- */

/* q and k: few whole numbers, of which most are 0, so that attention ties. */
static void put_attention(const struct index_case *row, struct index_arrays *x) {
    for (int n = INPUT_Q; n <= INPUT_K; n++)
        for (int64_t i = 0; i < index_count(row, (enum input)n); i++)
            x->inputs[n][i] = fabs(case_draw(i, 60 + n)) < 1.0 / (double)row->width ? 1 : 0;
}

void choice_exact(const struct ops *ops, const struct ops *oracle, const struct index_case *row, enum choice_way way) {
    struct index_arrays expected, found;
    const bool one_head = row->heads == row->lists;
    const int64_t root = (int64_t)sqrt((double)row->index_width);
    if (root * root != row->index_width || (root & (root - 1))) return; /* dividing by √E rounds */
    index_fill(row, &expected);
    index_fill(row, &found);
    choice_put(row, &expected, way);
    choice_put(row, &found, way);
    put_attention(row, &expected);
    put_attention(row, &found);
    index_run(oracle, row, &expected, RUN_CHOOSE);
    index_run(ops, row, &found, RUN_CHOOSE);
    index_expect_choice(row, choice_way_names[way], expected.chosen, found.chosen, index_chosen_count(row));
    /* A sum of several heads' weights ties only up to rounding. */
    if (one_head)
        index_expect_choice(row, "attention", expected.by_attention, found.by_attention, index_chosen_count(row));
    index_free(&expected);
    index_free(&found);
}

/* --- drawn scores ------------------------------------------------------------------------------------------------- */

/* A score in double, and the sum of its terms' sizes. */
struct near_score {
    double score, size;
};

static double relu(double x) {
    return x <= 0 ? 0 : x;
}

/* Σ_h a_ih relu(r_ih·key_h/√E): row i of [B·T], list s, keys [K,E]; += */
static void add_learned(const struct index_case *row, const struct index_arrays *x, int64_t i, int64_t s,
                        const double *keys, struct near_score *to) {
    const int64_t heads = row->index_heads, width = row->index_width, first = (i * row->lists + s) * heads;
    for (int64_t h = 0; h < heads; h++) {
        double dot = 0, size = 0;
        for (int64_t e = 0; e < width; e++) {
            const double term =
                x->inputs[INPUT_R][(first + h) * width + e] * keys[(row->index_keys == 1 ? 0 : h) * width + e];
            dot += term;
            size += fabs(term);
        }
        to->score += x->inputs[INPUT_A][first + h] * relu(dot / sqrt((double)width));
        to->size += fabs(x->inputs[INPUT_A][first + h]) * size / sqrt((double)width);
    }
}

static const double *keys_of(const struct index_case *row, const struct index_arrays *x, int64_t j, int64_t s) {
    return x->inputs[INPUT_U] + (j * row->lists + s) * row->index_keys * row->index_width;
}

/* Σ over the list's heads of softmax, for query i of [B·T] and keys from its document's first, into to [·]. An exponent
 * is off by its own sum's loss. */
static void add_attention(const struct index_case *row, const struct index_arrays *x, int64_t i, int64_t s,
                          struct near_score *to) {
    const int64_t share = row->heads / row->lists, width = row->width, document = i - i % row->length + x->start[i],
                  tokens = i - document + 1;
    double *exponents;
    CHECK_OK(memory_new((size_t)tokens, sizeof *exponents, "exponents", &exponents));
    for (int64_t h = s * share; h < (s + 1) * share; h++) {
        double most = -(double)INFINITY, sum = 0, largest = 0;
        for (int64_t j = 0; j < tokens; j++) {
            double dot = 0, size = 0;
            for (int64_t d = 0; d < width; d++) {
                const double term =
                    x->inputs[INPUT_Q][(i * row->heads + h) * width + d] *
                    x->inputs[INPUT_K][((document + j) * row->groups + h / (row->heads / row->groups)) * width + d];
                dot += term;
                size += fabs(term);
            }
            exponents[j] = dot / sqrt((double)width);
            most = fmax(most, exponents[j]);
            largest = fmax(largest, size / sqrt((double)width));
        }
        for (int64_t j = 0; j < tokens; j++) sum += exp(exponents[j] - most);
        for (int64_t j = 0; j < tokens; j++) {
            const double weight = exp(exponents[j] - most) / sum;
            to[j].score += weight;
            to[j].size += weight * (4 * largest + 8); /* both exponents; the exponential itself; log Z */
        }
    }
    free(exponents);
}

/* One list, and what may be in it. Candidates are counted from the document's first token. */
struct near_list {
    const struct index_case *row;
    const char *what;
    int64_t i, s, low, high, document; /* i of [B·T]; document: its first token, of [B·T] */
    int64_t base;                      /* pooled blocks of the sequence's earlier documents */
    struct near_score *scores;         /* [high] */
    bool *sure, *possible;             /* [high]: competes in any case, may compete */
    double steps;                      /* of a sum */
};

/* The highest scores of n, of which `count` are taken: whether each is so in any case, and whether it may be. */
static void near_highest(const struct near_score *scores, int64_t n, int64_t count, double steps, bool *sure,
                         bool *possible) {
    for (int64_t a = 0; a < n; a++) {
        int64_t above = 0, beside = 0; /* surely higher; maybe higher */
        for (int64_t b = 0; b < n; b++) {
            const double bound = steps * 0x1p-23 * (scores[a].size + scores[b].size);
            above += scores[b].score > scores[a].score + bound;
            beside += b != a && scores[b].score >= scores[a].score - bound;
        }
        sure[a] = beside < count;
        possible[a] = above < count;
    }
}

/* Which tokens compete when `looked` blocks are chosen by scores of the table's own pooled keys. */
static void mark_blocks(const struct near_list *l, const struct index_arrays *x, const double *pooled) {
    const struct index_case *row = l->row;
    const int64_t block = row->coarse, whole = l->high / block, b = l->i / row->length,
                  size = row->index_keys * row->index_width, bound = compressed_bound(row->length, block, block);
    struct near_score *scores;
    bool *sure, *possible;
    CHECK_OK(memory_new((size_t)whole, sizeof *scores, "scores", &scores));
    CHECK_OK(memory_new((size_t)whole, sizeof *sure, "marks", &sure));
    CHECK_OK(memory_new((size_t)whole, sizeof *possible, "marks", &possible));
    for (int64_t m = 0; m < whole; m++)
        for (int part = 0; part < 2; part++)
            add_learned(row, x, l->i, l->s,
                        pooled + (((b * bound + l->base + m) * 2 + part) * row->lists + l->s) * size, &scores[m]);
    near_highest(scores, whole, row->coarse_blocks, 2 * l->steps, sure, possible);
    for (int64_t t = 0; t < l->high; t++) {
        l->sure[t] = t / block >= whole || sure[t / block];
        l->possible[t] = t / block >= whole || possible[t / block];
    }
    free(scores);
    free(sure);
    free(possible);
}

/* The list holds `most` tokens, or all that compete, ascending, and none left out exceeds one of them. */
static void check_list(const struct near_list *l, const int32_t *chosen, int64_t most) {
    const struct index_case *row = l->row;
    const int64_t sequence = l->i / row->length * row->length, before = l->document - sequence;
    int64_t count = 0, surely = 0, maybe = 0, last = -1, lowest = -1;
    bool *taken;
    CHECK_OK(memory_new((size_t)l->high, sizeof *taken, "marks", &taken));
    for (; count < row->choose && chosen[count] != -1; count++) {
        const int64_t t = chosen[count] - before;
        if (t <= last || t < l->low || t >= l->high || !l->possible[t])
            fail_msg("%s: %s: query %lld, list %lld: token %d may not be there", row->name, l->what, (long long)l->i,
                     (long long)l->s, chosen[count]);
        taken[last = t] = true;
        if (lowest < 0 || l->scores[t].score < l->scores[lowest].score) lowest = t;
    }
    for (int64_t n = count; n < row->choose; n++) assert_int_equal(chosen[n], -1);
    for (int64_t t = l->low; t < l->high; t++) {
        surely += l->sure[t];
        maybe += l->possible[t];
        const double bound = lowest < 0 ? 0 : l->steps * 0x1p-23 * (l->scores[t].size + l->scores[lowest].size);
        if (l->sure[t] && !taken[t] && lowest >= 0 && l->scores[t].score > l->scores[lowest].score + bound)
            fail_msg("%s: %s: query %lld, list %lld: token %lld (%.9g) is left out, %lld (%.9g) is not", row->name,
                     l->what, (long long)l->i, (long long)l->s, (long long)(t + before), l->scores[t].score,
                     (long long)(lowest + before), l->scores[lowest].score);
    }
    if (count < (surely < most ? surely : most) || count > (maybe < most ? maybe : most))
        fail_msg("%s: %s: query %lld, list %lld: %lld tokens of %lld to %lld", row->name, l->what, (long long)l->i,
                 (long long)l->s, (long long)count, (long long)surely, (long long)maybe);
    free(taken);
}

static void check_near(const struct index_case *row, const struct index_arrays *x, const double *pooled, int64_t i,
                       int64_t base, int64_t s, bool attention) {
    const int64_t sequence = i / row->length * row->length, document = sequence + x->start[i],
                  reach = i - row->window + 1 - document, high = reach > 0 ? reach : 0;
    struct near_list l = {.row = row,
                          .what = attention ? "attention" : "learned",
                          .i = i,
                          .s = s,
                          .low = row->sinks < high ? row->sinks : high,
                          .high = high,
                          .document = document,
                          .base = base,
                          .steps = (double)(attention ? row->width : row->index_width + row->index_heads) + 4};
    const size_t room = (size_t)(i - document + 1);
    CHECK_OK(memory_new(room, sizeof *l.scores, "scores", &l.scores));
    CHECK_OK(memory_new(room, sizeof *l.sure, "marks", &l.sure));
    CHECK_OK(memory_new(room, sizeof *l.possible, "marks", &l.possible));
    for (size_t t = 0; t < room; t++) l.sure[t] = l.possible[t] = true;
    if (attention) add_attention(row, x, i, s, l.scores);
    for (int64_t t = 0; !attention && t < high; t++)
        add_learned(row, x, i, s, keys_of(row, x, document + t, s), &l.scores[t]);
    if (!attention && row->coarse) mark_blocks(&l, x, pooled);
    check_list(&l, (attention ? x->by_attention : x->chosen) + (i * row->lists + s) * row->choose,
               row->fewer ? x->counts[s] : row->choose);
    free(l.scores);
    free(l.sure);
    free(l.possible);
}

void choice_near(const struct ops *ops, const struct ops *oracle, const struct index_case *row) {
    struct index_arrays expected, found;
    index_fill(row, &expected);
    index_fill(row, &found);
    choice_round(ops, row, &expected);
    choice_round(ops, row, &found);
    index_run(oracle, row, &expected, RUN_CHOOSE);
    index_run(ops, row, &found, RUN_CHOOSE);
    const double tolerance = ops->real == DTYPE_BF16 ? 0x1p-8 : 1e-6; /* of an element: it is rounded once */
    for (int64_t n = 0; n < index_output_count(row, OUTPUT_POOLED); n++) {
        const double a = expected.outputs[OUTPUT_POOLED][n], b = found.outputs[OUTPUT_POOLED][n];
        if (!(fabs(a - b) <= tolerance * fabs(a) + 1e-6))
            fail_msg("%s: %s: pooled[%lld]: expected %.9g, found %.9g", row->name, ops->name, (long long)n, a, b);
    }
    for (int64_t i = 0, base = 0; i < row->batch * row->length; i++) {
        const int64_t place = i % row->length;
        if (place == 0)
            base = 0;
        else if (row->coarse && found.start[i] == place)
            base += (place - found.start[i - 1]) / row->coarse;
        for (int64_t s = 0; s < row->lists; s++)
            for (int attention = 0; attention < 2; attention++)
                check_near(row, &found, found.outputs[OUTPUT_POOLED], i, base, s, attention);
    }
    index_free(&expected);
    index_free(&found);
}

void choice_all_blocks(const struct ops *ops, const struct index_case *row) {
    struct index_case one = *row, two = *row;
    struct index_arrays x, y;
    one.coarse = one.coarse_blocks = 0;
    two.coarse = row->coarse ? row->coarse : 3;
    two.coarse_blocks = (int32_t)(row->length / two.coarse) - 1; /* of two documents or more: enough for each */
    index_fill(&one, &x);
    index_fill(&two, &y);
    choice_round(ops, &one, &x);
    choice_round(ops, &two, &y);
    index_choose(ops, &one, &x, INDEX_LEARNED, 0);
    index_choose(ops, &two, &y, INDEX_LEARNED, 0);
    index_expect_choice(&one, "all blocks", x.chosen, y.chosen, index_chosen_count(&one));
    index_free(&x);
    index_free(&y);
}

void choice_random(const struct ops *ops, const struct ops *cpu, const struct index_case *row, uint64_t seed) {
    struct index_arrays expected, found;
    index_fill(row, &expected);
    index_fill(row, &found);
    index_choose(cpu, row, &expected, INDEX_RANDOM, seed);
    index_choose(ops, row, &found, INDEX_RANDOM, seed);
    index_expect_choice(row, "random", expected.chosen, found.chosen, index_chosen_count(row));
    index_free(&expected);
    index_free(&found);
}

/* --- decoding ----------------------------------------------------------------------------------------------------- */

enum { FIRST_SLOT = 3, FIRST_BLOCK = 2, SPARE = 4 };

struct decode_case {
    const struct ops *ops;
    const struct index_case *row;
    const struct index_arrays *x;
    struct tensor r, a, cache, pooled, places, chosen;
};

static struct tensor take(const struct ops *ops, struct tensor t) {
    CHECK_OK(ops->allocate(ops, tensor_bytes(t) ? tensor_bytes(t) : 1, &t.data));
    return t;
}

/* to [B,slots,size] = from [B,rows,size], behind `first` slots; of sequence b only `known[b]` rows, no numbers
 * elsewhere. */
static void put_cache(const struct ops *ops, struct tensor to, const double *from, int64_t rows, int64_t first,
                      const int64_t *known) {
    const int64_t slots = to.shape[1], size = to.shape[2] * to.shape[3];
    double *all;
    CHECK_OK(memory_new((size_t)tensor_count(to), sizeof *all, "a cache", &all));
    for (int64_t n = 0; n < tensor_count(to); n++) all[n] = (double)NAN;
    for (int64_t b = 0; b < to.shape[0]; b++)
        memcpy(all + (b * slots + first) * size, from + b * rows * size, (size_t)(known[b] * size) * sizeof *all);
    case_move(ops, to, all, true);
    free(all);
}

/* Token t of all sequences: caches as they are then, and where the document lies in them. */
static void put_token(const struct decode_case *d, int64_t t) {
    const struct index_case *row = d->row;
    const int64_t heads = row->lists * row->index_heads, width = row->index_width;
    int64_t known[2] = {t + 1, t + 1}, blocks[2] = {0};
    int32_t places[6];
    double *r, *a;
    CHECK_OK(memory_new((size_t)(row->batch * heads * width), sizeof *r, "queries", &r));
    CHECK_OK(memory_new((size_t)(row->batch * heads), sizeof *a, "weights", &a));
    for (int64_t b = 0; b < row->batch; b++) {
        const int32_t *start = d->x->start + b * row->length;
        for (int64_t i = 0, first = 0; row->coarse && i <= t; i++) {
            if (start[i] == i && i > 0) {
                blocks[b] += (i - first) / row->coarse;
                first = i;
            }
        }
        places[3 * b] = FIRST_SLOT + start[t];
        places[3 * b + 1] = FIRST_BLOCK + (int32_t)blocks[b];
        places[3 * b + 2] = (int32_t)t - start[t];
        if (row->coarse) blocks[b] += (t - start[t] + 1) / row->coarse;
        memcpy(r + b * heads * width, d->x->inputs[INPUT_R] + (b * row->length + t) * heads * width,
               (size_t)(heads * width) * sizeof *r);
        memcpy(a + b * heads, d->x->inputs[INPUT_A] + (b * row->length + t) * heads, (size_t)heads * sizeof *a);
    }
    case_move(d->ops, d->r, r, true);
    case_move(d->ops, d->a, a, true);
    put_cache(d->ops, d->cache, d->x->inputs[INPUT_U], row->length, FIRST_SLOT, known);
    if (row->coarse)
        put_cache(d->ops, d->pooled, d->x->outputs[OUTPUT_POOLED],
                  compressed_bound(row->length, row->coarse, row->coarse), FIRST_BLOCK, blocks);
    CHECK_OK(d->ops->upload(d->ops, d->places, places));
    free(r);
    free(a);
}

static void decode_token(const struct decode_case *d, int64_t t) {
    const struct index_case *row = d->row;
    const int64_t size = row->lists * row->choose;
    int32_t *found, *expected;
    put_token(d, t);
    const struct index_decode a = {.r = d->r,
                                   .u = d->cache,
                                   .a = d->a,
                                   .pooled = row->coarse ? d->pooled : tensor_none(),
                                   .places = d->places,
                                   .chosen = d->chosen,
                                   .counts = row->fewer ? d->x->counts : NULL,
                                   .lists = (int32_t)row->lists,
                                   .window = row->window,
                                   .sinks = row->sinks,
                                   .coarse = row->coarse,
                                   .coarse_blocks = row->coarse_blocks};
    CHECK_OK(d->ops->index_decode(d->ops, &a));
    CHECK_OK(memory_new((size_t)(row->batch * size), sizeof *found, "choices", &found));
    CHECK_OK(memory_new((size_t)(row->batch * size), sizeof *expected, "choices", &expected));
    CHECK_OK(d->ops->download(d->ops, d->chosen, found));
    for (int64_t n = 0; n < row->batch * size; n++) {
        const int32_t token = d->x->chosen[(n / size * row->length + t) * size + n % size];
        expected[n] = token < 0 ? token : token + FIRST_SLOT;
    }
    struct index_case one = *row;
    one.length = 1;
    index_expect_choice(&one, "index_decode", expected, found, row->batch * size);
    free(found);
    free(expected);
}

void choice_decode(const struct ops *ops, const struct index_case *row, int64_t step, bool few) {
    struct index_arrays x;
    index_fill(row, &x);
    choice_round(ops, row, &x);
    for (int input = INPUT_R; few && input <= INPUT_A; input++)
        for (int64_t i = 0; i < index_count(row, (enum input)input); i++)
            x.inputs[input][i] = floor(x.inputs[input][i] + 0.5);
    index_run(ops, row, &x, RUN_CHOOSE);
    const int64_t heads = row->lists * row->index_heads, keys = row->lists * row->index_keys, width = row->index_width;
    struct decode_case d = {.ops = ops, .row = row, .x = &x};
    const struct tensor queries = take(ops, tensor_2d(NULL, ops->real, row->batch, heads * (width + 1)));
    d.r = tensor_3d(queries.data, ops->real, row->batch, heads, width); /* rows of one matrix, as the model has them */
    d.r.stride[0] = queries.stride[0];
    d.a = tensor_columns(queries, heads * width, heads);
    d.cache = take(ops, tensor_4d(NULL, ops->real, row->batch, row->length + FIRST_SLOT + SPARE, keys, width));
    if (row->coarse)
        d.pooled = take(ops, tensor_4d(NULL, ops->real, row->batch, row->length / row->coarse + FIRST_BLOCK + SPARE,
                                       2 * keys, width));
    d.places = take(ops, tensor_2d(NULL, DTYPE_I32, row->batch, 3));
    d.chosen = take(ops, tensor_3d(NULL, DTYPE_I32, row->batch, row->lists, row->choose));
    for (int64_t t = row->length - 1; t >= 0; t -= step) decode_token(&d, t);
    const struct tensor taken[] = {queries, d.cache, d.places, d.chosen};
    for (size_t n = 0; n < sizeof taken / sizeof *taken; n++) ops->release(ops, taken[n].data);
    if (row->coarse) ops->release(ops, d.pooled.data);
    index_free(&x);
}
