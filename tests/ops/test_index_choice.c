/* What the indexer chooses, against a plain sort of scores that are computed here, in sequences full of ties and of
 * what is no number. Inputs are few whole numbers and E a power of 4, so that scores are exact in fp32 and equal ones
 * tie. */
#include "base/memory.h"
#include "ops/case_arrays.h"
#include "ops/choice_device.h"
#include "ops/index_case.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *table, *isa;
} tables[] = {{"cpu-f64", NULL}, {"cpu", "base"}, {"cpu", "avx2"}, {"cpu", "avx512"}, {"guard:cpu", NULL}};
enum { TABLES = sizeof tables / sizeof *tables };

/* Name, B, T, H, G, D, S, J, K, E, n, w, sinks, coarse, coarse_blocks, fewer, cuts, repeated, magnitude. */
static const struct index_case rows[] = {
    {"one index head", 1, 200, 1, 1, 4, 1, 1, 1, 4, 8, 5, 2, 0, 0, 0, {0}, false, 1},
    {"four index heads, one key", 1, 333, 1, 1, 4, 1, 4, 1, 16, 17, 1, 0, 0, 0, 0, {0}, false, 1},
    {"four index heads, a key each", 2, 150, 4, 2, 4, 2, 4, 4, 4, 16, 9, 3, 0, 0, 0, {40, 41, 100}, false, 1},
    {"E of 1, counts", 1, 300, 6, 2, 4, 6, 3, 1, 1, 31, 3, 1, 0, 0, 7, {90}, false, 1},
    {"most of the tokens", 1, 260, 2, 1, 4, 1, 2, 2, 4, 190, 4, 3, 0, 0, 0, {0}, false, 1},
    {"more than there are", 1, 70, 2, 1, 4, 2, 2, 1, 4, 80, 2, 1, 0, 0, 0, {30}, false, 1},
    {"one of many", 1, 700, 1, 1, 4, 1, 4, 1, 4, 1, 1, 0, 0, 0, 0, {0}, false, 1},
    {"window larger than documents", 1, 90, 1, 1, 4, 1, 2, 1, 4, 4, 40, 2, 0, 0, 0, {20, 45, 50}, false, 1},
    {"sinks into the window", 1, 90, 1, 1, 4, 1, 2, 1, 4, 4, 6, 20, 0, 0, 0, {15, 18, 50}, false, 1},
    {"two levels", 1, 400, 2, 1, 4, 1, 2, 1, 4, 12, 7, 0, 8, 3, 0, {0}, false, 1},
    {"two levels, sinks, documents", 2, 300, 4, 2, 4, 2, 4, 4, 4, 12, 5, 3, 4, 4, 5, {17, 19, 150}, false, 1},
    {"two levels, sinks over blocks", 1, 200, 2, 1, 4, 1, 2, 2, 16, 9, 3, 11, 4, 3, 0, {77}, false, 1},
    {"two levels, long blocks", 1, 300, 2, 1, 4, 2, 2, 1, 4, 20, 1, 1, 64, 1, 0, {0}, false, 1},
    {"two levels, blocks of one", 1, 100, 2, 1, 4, 2, 2, 1, 4, 6, 3, 1, 1, 9, 0, {31}, false, 1},
    {"two levels, fewer blocks than n", 1, 200, 2, 1, 4, 1, 2, 1, 4, 50, 4, 2, 8, 2, 0, {120}, false, 1},
};
enum { ROWS = sizeof rows / sizeof *rows };

/* --- the plain choice --------------------------------------------------------------------------------------------- */

/* max(x, 0) that keeps what is no number. */
static double relu(double x) {
    return x <= 0 ? 0 : x;
}

/* Σ_h a_ih relu(r_ih·key_h/√E): row i of [B·T], list s, keys of the list's index heads [K,E]. */
static double score(const struct index_case *row, const struct index_arrays *x, int64_t i, int64_t s,
                    const double *keys) {
    const int64_t heads = row->index_heads, width = row->index_width, first = (i * row->lists + s) * heads;
    double sum = 0;
    for (int64_t h = 0; h < heads; h++) {
        double dot = 0;
        for (int64_t e = 0; e < width; e++)
            dot += x->inputs[INPUT_R][(first + h) * width + e] * keys[(row->index_keys == 1 ? 0 : h) * width + e];
        sum += x->inputs[INPUT_A][first + h] * relu(dot / sqrt((double)width));
    }
    return sum;
}

/* The keys of list s at row j of [B·T]. */
static const double *keys_of(const struct index_case *row, const struct index_arrays *x, int64_t j, int64_t s) {
    return x->inputs[INPUT_U] + (j * row->lists + s) * row->index_keys * row->index_width;
}

struct scored {
    double score;
    int64_t place;
};

static int by_score(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    if (isnan(x->score) != isnan(y->score)) return isnan(x->score) ? 1 : -1;
    if (x->score > y->score) return -1;
    if (x->score < y->score) return 1;
    return x->place < y->place ? -1 : 1;
}

static int by_place(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    return x->place < y->place ? -1 : 1;
}

/* Leaves those of the blocks' tokens that compete, in `marks` by index from the document's first token. `reach`: the
 * window's first token, counted so. */
static void mark_blocks(const struct index_case *row, const struct index_arrays *x, int64_t i, int64_t s,
                        int64_t document, int64_t reach, bool *marks) {
    const int64_t block = row->coarse, blocks = reach / block, size = row->index_keys * row->index_width;
    struct scored *list;
    double *mean, *largest;
    CHECK_OK(memory_new((size_t)blocks, sizeof *list, "blocks", &list));
    CHECK_OK(memory_new((size_t)size, sizeof *mean, "means", &mean));
    CHECK_OK(memory_new((size_t)size, sizeof *largest, "largest elements", &largest));
    for (int64_t m = 0; m < blocks; m++) {
        for (int64_t e = 0; e < size; e++) {
            mean[e] = 0;
            largest[e] = -(double)INFINITY;
            for (int64_t j = 0; j < block; j++) {
                const double key = keys_of(row, x, document + m * block + j, s)[e];
                mean[e] += key / (double)block;
                largest[e] = fmax(largest[e], key);
            }
        }
        list[m] = (struct scored){score(row, x, i, s, mean) + score(row, x, i, s, largest), m};
    }
    qsort(list, (size_t)blocks, sizeof *list, by_score);
    for (int64_t n = 0; n < blocks && n < row->coarse_blocks; n++)
        for (int64_t j = 0; j < block; j++) marks[list[n].place * block + j] = true;
    for (int64_t j = blocks * block; j < reach; j++) marks[j] = true;
    free(list);
    free(mean);
    free(largest);
}

/* List s of row i of [B·T], by a sort of all that compete. */
static void plain_list(const struct index_case *row, const struct index_arrays *x, int64_t i, int64_t s,
                       int32_t *chosen) {
    const int64_t sequence = i / row->length * row->length, document = sequence + x->start[i],
                  reach = i - row->window + 1 - document;
    const int64_t most = row->fewer ? x->counts[s] : row->choose;
    int64_t count = 0;
    struct scored *list;
    bool *marks;
    for (int32_t n = 0; n < row->choose; n++) chosen[n] = -1;
    if (reach <= row->sinks) return;
    CHECK_OK(memory_new((size_t)reach, sizeof *list, "scores", &list));
    CHECK_OK(memory_new((size_t)reach, sizeof *marks, "marks", &marks));
    if (row->coarse) mark_blocks(row, x, i, s, document, reach, marks);
    for (int64_t j = row->sinks; j < reach; j++)
        if (!row->coarse || marks[j])
            list[count++] = (struct scored){score(row, x, i, s, keys_of(row, x, document + j, s)), document + j};
    qsort(list, (size_t)count, sizeof *list, by_score);
    if (count > most) count = most;
    qsort(list, (size_t)count, sizeof *list, by_place);
    for (int64_t n = 0; n < count; n++) chosen[n] = (int32_t)(list[n].place - sequence);
    free(list);
    free(marks);
}

static int32_t *plain_choice(const struct index_case *row, const struct index_arrays *x) {
    int32_t *chosen;
    CHECK_OK(memory_new((size_t)index_chosen_count(row), sizeof *chosen, "choices", &chosen));
    for (int64_t i = 0; i < row->batch * row->length; i++)
        for (int64_t s = 0; s < row->lists; s++) plain_list(row, x, i, s, chosen + (i * row->lists + s) * row->choose);
    return chosen;
}

static void check_way(enum choice_way way) {
    for (int n = 0; n < ROWS; n++) {
        const struct index_case *row = &rows[n];
        struct index_arrays x;
        index_fill(row, &x);
        choice_put(row, &x, way);
        int32_t *expected = plain_choice(row, &x);
        for (int t = 0; t < TABLES; t++) {
            const struct ops *ops = index_open(tables[t].table, 2, tables[t].isa);
            index_choose(ops, row, &x, INDEX_LEARNED, 0);
            index_expect_choice(row, choice_way_names[way], expected, x.chosen, index_chosen_count(row));
            ops->close(ops);
        }
        free(expected);
        index_free(&x);
    }
}

static void test_ties(void **state) {
    (void)state;
    check_way(WAY_FEW);
}
static void test_zeros(void **state) {
    (void)state;
    check_way(WAY_ZEROS);
}
static void test_keys_no_numbers(void **state) {
    (void)state;
    check_way(WAY_KEYS);
}
static void test_weights_no_numbers(void **state) {
    (void)state;
    check_way(WAY_WEIGHTS);
}
static void test_queries_no_numbers(void **state) {
    (void)state;
    check_way(WAY_QUERIES);
}

/* Any numbers, in fp64: the oracle's cases. */
static void test_draws(void **state) {
    (void)state;
    const struct ops *ops = index_open("cpu-f64", 2, NULL);
    for (int n = 0; n < index_case_count; n++) {
        const struct index_case *row = &index_cases[n];
        struct index_arrays x;
        if (row->length > 1000) continue;
        index_fill(row, &x);
        int32_t *expected = plain_choice(row, &x);
        index_choose(ops, row, &x, INDEX_LEARNED, 0);
        index_expect_choice(row, "drawn numbers", expected, x.chosen, index_chosen_count(row));
        free(expected);
        index_free(&x);
    }
    ops->close(ops);
}

/* With blocks enough for every token, two levels choose as one does. */
static void test_all_blocks(void **state) {
    (void)state;
    for (int t = 0; t < TABLES; t++) {
        const struct ops *ops = index_open(tables[t].table, 2, tables[t].isa);
        for (int n = 0; n < ROWS; n++)
            for (int few = 0; few < 2; few++) {
                struct index_case one = rows[n], two = rows[n];
                struct index_arrays x, y;
                one.coarse = one.coarse_blocks = 0;
                two.coarse = two.coarse ? two.coarse : 5;
                two.coarse_blocks = (int32_t)two.length;
                index_fill(&one, &x);
                index_fill(&two, &y);
                if (few) choice_put(&one, &x, WAY_FEW);
                if (few) choice_put(&two, &y, WAY_FEW);
                index_choose(ops, &one, &x, INDEX_LEARNED, 0);
                index_choose(ops, &two, &y, INDEX_LEARNED, 0);
                index_expect_choice(&one, "all blocks", x.chosen, y.chosen, index_chosen_count(&one));
                index_free(&x);
                index_free(&y);
            }
        ops->close(ops);
    }
}

/* By attention, one head a list: in the order of q·k, which are few whole numbers. */
static void test_attention(void **state) {
    (void)state;
    static const struct index_case attention_rows[] = {
        {"a list a head", 2, 210, 4, 2, 4, 4, 1, 1, 1, 13, 4, 2, 0, 0, 3, {25, 100}, false, 1},
        {"most of the tokens", 1, 300, 1, 1, 4, 1, 1, 1, 1, 250, 1, 0, 0, 0, 0, {0}, false, 1},
    };
    for (int t = 0; t < TABLES * 2; t++) {
        const struct index_case *row = &attention_rows[t % 2];
        const struct ops *ops = index_open(tables[t / 2].table, 2, tables[t / 2].isa);
        struct index_arrays x;
        struct scored *list;
        int32_t *expected;
        index_fill(row, &x);
        for (int n = INPUT_Q; n <= INPUT_K; n++)
            for (int64_t i = 0; i < index_count(row, n); i++) x.inputs[n][i] = floor(1.5 * case_draw(i, 60 + n) + 0.5);
        CHECK_OK(memory_new((size_t)row->length, sizeof *list, "scores", &list));
        CHECK_OK(memory_new((size_t)index_chosen_count(row), sizeof *expected, "choices", &expected));
        for (int64_t i = 0; i < row->batch * row->length * row->heads; i++) {
            const int64_t head = i % row->heads, query = i / row->heads, sequence = query / row->length * row->length;
            int64_t count = 0;
            for (int64_t j = sequence + x.start[query] + row->sinks; j <= query - row->window; j++) {
                double dot = 0;
                for (int64_t d = 0; d < row->width; d++)
                    dot += x.inputs[INPUT_Q][i * row->width + d] *
                           x.inputs[INPUT_K][(j * row->groups + head / (row->heads / row->groups)) * row->width + d];
                list[count++] = (struct scored){dot, j - sequence};
            }
            qsort(list, (size_t)count, sizeof *list, by_score);
            const int64_t most = row->fewer ? x.counts[head] : row->choose;
            if (count > most) count = most;
            qsort(list, (size_t)count, sizeof *list, by_place);
            for (int64_t n = 0; n < row->choose; n++)
                expected[i * row->choose + n] = n < count ? (int32_t)list[n].place : -1;
        }
        index_choose(ops, row, &x, INDEX_ATTENTION, 0);
        index_expect_choice(row, "attention", expected, x.chosen, index_chosen_count(row));
        free(list);
        free(expected);
        index_free(&x);
        ops->close(ops);
    }
}

/* The lists are whole, ascending and in their bounds. Returns where in its bounds a token lies, averaged over all. */
static double check_lists(const struct index_case *row, const struct index_arrays *x) {
    double sum = 0;
    int64_t tokens = 0;
    for (int64_t i = 0; i < row->batch * row->length; i++)
        for (int64_t s = 0; s < row->lists; s++) {
            const int32_t *list = x->chosen + (i * row->lists + s) * row->choose, most = x->counts[s];
            const int64_t first = x->start[i] + row->sinks, end = i % row->length - row->window + 1;
            const int64_t all = end > first ? end - first : 0;
            int64_t count = 0;
            while (count < row->choose && list[count] >= 0) count++;
            if (count != (all < most ? all : most))
                fail_msg("%s: query %lld, list %lld has %lld tokens of %lld", row->name, (long long)i, (long long)s,
                         (long long)count, (long long)all);
            for (int64_t n = 0; n < row->choose; n++) {
                if (n >= count) assert_int_equal(list[n], -1);
                if (n >= count) continue;
                assert_in_range(list[n], (uintmax_t)(n ? list[n - 1] + 1 : first), (uintmax_t)end - 1);
                if (count < all) sum += ((double)(list[n] - first) + 0.5) / (double)all;
                tokens += count < all;
            }
        }
    return sum / (double)tokens;
}

/* Random lists: functions of the seed alone, others for another seed and for another list, evenly spread, no list a
 * copy of the query's before. */
static void test_random(void **state) {
    (void)state;
    static const struct index_case row = {"random", 2, 400, 4, 2, 4, 2, 2, 1, 4, 9, 6, 2, 0, 0, 3, {30, 120}, false, 1};
    for (int t = 0; t < TABLES; t++) {
        const struct ops *ops = index_open(tables[t].table, 1, tables[t].isa);
        const struct ops *threads = index_open(tables[t].table, 2, tables[t].isa);
        struct index_arrays x, y;
        index_fill(&row, &x);
        index_fill(&row, &y);
        choice_put(&row, &y, WAY_KEYS);
        index_choose(ops, &row, &x, INDEX_RANDOM, 7);
        index_choose(threads, &row, &y, INDEX_RANDOM, 7);
        index_expect_choice(&row, "same seed, other scores", x.chosen, y.chosen, index_chosen_count(&row));
        const double middle = check_lists(&row, &x);
        if (fabs(middle - 0.5) > 0.02) fail_msg("tokens lie at %g of what could be chosen", middle);
        index_choose(ops, &row, &y, INDEX_RANDOM, 8);
        check_lists(&row, &y);
        int64_t seeds = 0, lists = 0, queries = 0, all = 0;
        const size_t fewer = (size_t)x.counts[1] * sizeof(int32_t);
        for (int64_t i = 200; i < 400; i++, all++) {
            const int32_t *list = x.chosen + i * 2 * row.choose;
            seeds += memcmp(list, y.chosen + i * 2 * row.choose, fewer) == 0;
            lists += memcmp(list, list + row.choose, fewer) == 0;
            queries += memcmp(list, list - 2 * row.choose, fewer) == 0;
        }
        if (seeds || lists || queries)
            fail_msg("of %lld lists %lld, %lld and %lld are those of another seed, list and query", (long long)all,
                     (long long)seeds, (long long)lists, (long long)queries);
        index_free(&x);
        index_free(&y);
        ops->close(ops);
        threads->close(threads);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_keys_no_numbers),
        cmocka_unit_test(test_weights_no_numbers),
        cmocka_unit_test(test_queries_no_numbers),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_all_blocks),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
