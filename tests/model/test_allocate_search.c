/* The search for an allocation on made-up tables: choosing against brute force, ties, budgets that nothing meets, many
 * slots; improving against brute force where parts do and do not add up, limits of evaluations, states that are not
 * allowed, figures that are not finite. */
#include "support/check.h"

#include "base/rng.h"
#include "eval/allocate_search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_MAX = 6, OPTIONS_MAX = 5 };

static double draw(uint64_t seed, uint64_t at, uint64_t below) {
    return (double)rng_below(seed, RNG_TEST, at, below);
}

/* --- choosing ----------------------------------------------------------------------------------------------------- */

struct table {
    struct search_option options[SLOTS_MAX][OPTIONS_MAX];
    struct search_slot slots[SLOTS_MAX];
    size_t count;
};

/* Whole numbers, so that sums are exact and ties happen. */
static void make_table(uint64_t seed, struct table *t) {
    t->count = 1 + (size_t)draw(seed, 0, SLOTS_MAX);
    for (size_t s = 0; s < t->count; s++) {
        t->slots[s] = (struct search_slot){t->options[s], 1 + (size_t)draw(seed, 1 + s, OPTIONS_MAX)};
        for (size_t o = 0; o < t->slots[s].count; o++) {
            uint64_t at = 100 + 2 * (s * OPTIONS_MAX + o);
            t->options[s][o] = (struct search_option){draw(seed, at, 12) - 2, draw(seed, at + 1, 12) - 2};
        }
    }
}

static struct search_option sum_of(const struct table *t, const size_t *choice) {
    struct search_option sum = {0};
    for (size_t s = 0; s < t->count; s++) {
        sum.weight += t->options[s][choice[s]].weight;
        sum.loss += t->options[s][choice[s]].loss;
    }
    return sum;
}

static bool next_choice(const size_t *counts, size_t slots, size_t *choice) {
    for (size_t s = 0; s < slots; s++) {
        if (++choice[s] < counts[s]) return true;
        choice[s] = 0;
    }
    return false;
}

static bool brute_force(const struct table *t, double budget, struct search_option *best) {
    size_t choice[SLOTS_MAX] = {0}, counts[SLOTS_MAX];
    bool found = false;
    for (size_t s = 0; s < t->count; s++) counts[s] = t->slots[s].count;
    do {
        struct search_option sum = sum_of(t, choice);
        if (sum.weight > budget) continue;
        if (found && (sum.loss > best->loss || (sum.loss == best->loss && sum.weight >= best->weight))) continue;
        *best = sum;
        found = true;
    } while (next_choice(counts, t->count, choice));
    return found;
}

static void test_choose(void **state) {
    (void)state;
    int met = 0, unmet = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct table t = {.count = 0};
        struct search_option best = {0};
        size_t choice[SLOTS_MAX];
        make_table(seed, &t);
        double budget = draw(seed, 99, 40) - 8;
        bool possible = brute_force(&t, budget, &best);
        if (!possible) {
            CHECK_STATUS(STATUS_NOT_FOUND, search_choose(t.slots, t.count, budget, choice));
            unmet++;
            continue;
        }
        CHECK_OK(search_choose(t.slots, t.count, budget, choice));
        struct search_option sum = sum_of(&t, choice);
        if (sum.loss != best.loss || sum.weight != best.weight) {
            fail_msg("seed %d: expected loss %g at weight %g, found %g at %g, budget %g", (int)seed, best.loss,
                     best.weight, sum.loss, sum.weight, budget);
        }
        met++;
    }
    assert_true(met > 200 && unmet > 20);
}

/* Equal students: the lighter one; of equal weight the lower options of the later slots. Sums round, and still fit. */
static void test_ties(void **state) {
    (void)state;
    const struct search_option same[] = {{1, 5}, {1, 5}, {2, 5}}, tenth[] = {{0.1, 3}, {0.2, 1}};
    const struct search_slot slots[] = {{same, 3}, {same, 3}}, tenths[] = {{tenth, 2}, {tenth, 2}, {tenth, 2}};
    size_t choice[3];
    CHECK_OK(search_choose(slots, 2, 100, choice));
    assert_int_equal(choice[0], 0);
    assert_int_equal(choice[1], 0);
    CHECK_OK(search_choose(tenths, 3, 0.3, choice)); /* 0.1 + 0.1 + 0.1 > 0.3 */
    CHECK_OK(search_choose(tenths, 3, 0.6, choice));
    for (int s = 0; s < 3; s++) assert_int_equal(choice[s], 1);
    CHECK_STATUS(STATUS_NOT_FOUND, search_choose(tenths, 3, 0.29, choice));
    CHECK_OK(search_choose(tenths, 3, 0.4, choice));
    assert_int_equal(choice[0] + choice[1] + choice[2], 1);
}

/* More partial sums than are kept: within the budget, and near the bound that a common price of weight gives. */
static void test_many(void **state) {
    (void)state;
    enum { SLOTS = 60, OPTIONS = 8 };
    static struct search_option options[SLOTS][OPTIONS];
    static struct search_slot slots[SLOTS];
    size_t choice[SLOTS];
    for (size_t s = 0; s < SLOTS; s++) {
        double scale = 0.1 + draw(7, s, 1000) / 100;
        for (size_t o = 0; o < OPTIONS; o++) {
            double width = (double)(1 << o) * (1 + draw(8, s * OPTIONS + o, 1000) / 5000);
            options[s][o] = (struct search_option){width / SLOTS, scale / width};
        }
        slots[s] = (struct search_slot){options[s], OPTIONS};
    }
    for (double budget = 4; budget < 100; budget *= 1.7) {
        double weight = 0, loss = 0, bound = -HUGE_VAL;
        CHECK_OK(search_choose(slots, SLOTS, budget, choice));
        for (size_t s = 0; s < SLOTS; s++) {
            weight += options[s][choice[s]].weight;
            loss += options[s][choice[s]].loss;
        }
        assert_true(search_within(weight, budget));
        for (double price = 1e-4; price < 1e4; price *= 1.02) { /* Lagrange: no choice is better than this */
            double sum = -price * budget;
            for (size_t s = 0; s < SLOTS; s++) {
                double least = HUGE_VAL;
                for (size_t o = 0; o < OPTIONS; o++)
                    least = fmin(least, options[s][o].loss + price * options[s][o].weight);
                sum += least;
            }
            bound = fmax(bound, sum);
        }
        if (!(loss <= bound * 1.02 && loss >= bound * (1 - 1e-9)))
            fail_msg("budget %g: loss %g, bound %g", budget, loss, bound);
    }
}

/* --- improving ---------------------------------------------------------------------------------------------------- */

/* Slots from small (option 0) to large; losses fall with size, and two slots that are both small cost more than their
 * sum. */
struct made_up {
    size_t slots, counts[SLOTS_MAX];
    double weights[SLOTS_MAX][OPTIONS_MAX], losses[SLOTS_MAX][OPTIONS_MAX], pairs[SLOTS_MAX][SLOTS_MAX];
    bool swapped;  /* the loss is the budget's */
    size_t broken; /* a state whose slot 0 has this option is not finite */
    int64_t calls;
};

static void make_up(uint64_t seed, double interaction, struct made_up *m) {
    *m = (struct made_up){.slots = 3 + (size_t)draw(seed, 0, 3), .broken = SIZE_MAX};
    for (size_t s = 0; s < m->slots; s++) {
        double scale = 1 + draw(seed, 10 + s, 20);
        m->counts[s] = OPTIONS_MAX;
        for (size_t o = 0; o < OPTIONS_MAX; o++) {
            m->weights[s][o] = (double)(1 << o);
            m->losses[s][o] = scale / (double)(1 << o) * (1 + draw(seed, 20 + s * OPTIONS_MAX + o, 100) / 400);
        }
        for (size_t t = 0; t < s; t++) m->pairs[s][t] = interaction * draw(seed, 200 + s * SLOTS_MAX + t, 100) / 100;
    }
}

static struct search_measured value_of(const struct made_up *m, const size_t *state) {
    double weight = 0, loss = 0;
    for (size_t s = 0; s < m->slots; s++) {
        weight += m->weights[s][state[s]];
        loss += m->losses[s][state[s]];
        for (size_t t = 0; t < s; t++) loss += m->pairs[s][t] * sqrt(m->losses[s][state[s]] * m->losses[t][state[t]]);
    }
    if (m->broken == state[0]) loss = NAN;
    return m->swapped ? (struct search_measured){loss, weight} : (struct search_measured){weight, loss};
}

static enum status measure(void *context, const size_t *states, size_t count, struct search_measured *found) {
    struct made_up *m = context;
    for (size_t i = 0; i < count; i++) found[i] = value_of(m, states + i * m->slots);
    m->calls += (int64_t)count;
    return STATUS_OK;
}

static struct search_measured best_of(const struct made_up *m, double budget) {
    size_t state[SLOTS_MAX] = {0};
    struct search_measured best = value_of(m, state);
    while (next_choice(m->counts, m->slots, state)) {
        struct search_measured here = value_of(m, state);
        if (search_better(&here, &best, budget)) best = here;
    }
    return best;
}

/* From the smallest (by weight) or the largest (by loss) state; *best: by brute force. */
static struct search_measured improve(struct made_up *m, double budget, int64_t *evaluations, size_t *state) {
    struct search_problem problem = {.slots = m->slots,
                                     .counts = m->counts,
                                     .reach = 1,
                                     .budget = budget,
                                     .additive_weight = !m->swapped,
                                     .measure = measure,
                                     .context = m,
                                     .evaluations = evaluations};
    for (size_t s = 0; s < m->slots; s++) state[s] = m->swapped ? OPTIONS_MAX - 1 : 0;
    struct search_measured at = value_of(m, state), again;
    CHECK_OK(search_improve(&problem, state, &at));
    again = value_of(m, state);
    assert_memory_equal(&at, &again, sizeof at);
    return at;
}

static void improve_all(double interaction, bool swapped, double worst, double mean_bound) {
    double mean = 0;
    enum { TABLES = 120 };
    for (uint64_t seed = 1; seed <= TABLES; seed++) {
        struct made_up m;
        size_t state[SLOTS_MAX];
        int64_t evaluations = 100000;
        make_up(seed, interaction, &m);
        m.swapped = swapped;
        double budget = (swapped ? 3 : 4) * (double)m.slots + draw(seed, 999, 20) / (swapped ? 10 : 1);
        struct search_measured best = best_of(&m, budget), found = improve(&m, budget, &evaluations, state);
        if (!search_within(found.weight, budget))
            fail_msg("seed %d: budget %g, found %g", (int)seed, budget, found.weight);
        double ratio = found.loss / best.loss;
        if (!(ratio <= worst)) fail_msg("seed %d: loss %g, the best is %g", (int)seed, found.loss, best.loss);
        mean += ratio / TABLES;
        assert_int_equal(m.calls, 100000 - evaluations);
    }
    if (!(mean <= mean_bound)) fail_msg("mean of loss over the best: expected at most %g, found %g", mean_bound, mean);
}

static void test_improve(void **state) {
    (void)state;
    improve_all(0, false, 1.2, 1.003);
    improve_all(0.5, false, 1.2, 1.003);
    improve_all(0, true, 1.3, 1.006);
    improve_all(0.5, true, 1.3, 1.008);
}

/* A limit is kept to the last state, and what was found by then stands. */
static void test_limit(void **state) {
    (void)state;
    for (int64_t limit = 0; limit < 40; limit++) {
        struct made_up m;
        size_t at[SLOTS_MAX];
        int64_t evaluations = limit;
        make_up(5, 0.5, &m);
        struct search_measured found = improve(&m, 20, &evaluations, at);
        assert_true(m.calls <= limit && evaluations == limit - m.calls);
        assert_true(search_within(found.weight, 20));
        if (limit == 0) assert_int_equal(at[0], 0);
    }
}

static bool not_two(void *context, const size_t *state) {
    const struct made_up *m = context;
    for (size_t s = 0; s < m->slots; s++) {
        if (state[s] == 2) return false;
    }
    return true;
}

static void test_allowed_and_broken(void **state) {
    (void)state;
    struct made_up m;
    size_t at[SLOTS_MAX] = {0};
    int64_t evaluations = 1000;
    make_up(3, 0.5, &m);
    m.broken = 1; /* slot 0 cannot leave 0 by single steps */
    struct search_problem problem = {.slots = m.slots,
                                     .counts = m.counts,
                                     .reach = 2,
                                     .budget = 1000,
                                     .additive_weight = true,
                                     .allowed = not_two,
                                     .measure = measure,
                                     .context = &m,
                                     .evaluations = &evaluations};
    struct search_measured found = value_of(&m, at);
    CHECK_OK(search_improve(&problem, at, &found));
    assert_true(isfinite(found.loss));
    assert_int_equal(at[0], 0); /* 1 is broken, 2 not allowed */
    for (size_t s = 1; s < m.slots; s++) assert_int_equal(at[s], OPTIONS_MAX - 1);
}

static void test_better(void **state) {
    (void)state;
    const struct search_measured good = {1, 1}, worse = {1, 2}, heavy = {3, 0}, heavier = {4, 0}, broken = {1, NAN};
    assert_true(search_better(&good, &worse, 2) && !search_better(&worse, &good, 2));
    assert_true(search_better(&worse, &heavy, 2) && search_better(&heavy, &heavier, 2));
    assert_true(search_better(&heavier, &broken, 2) && !search_better(&broken, &heavier, 2));
    assert_false(search_better(&good, &good, 2));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choose),  cmocka_unit_test(test_ties),  cmocka_unit_test(test_many),
        cmocka_unit_test(test_improve), cmocka_unit_test(test_limit), cmocka_unit_test(test_allowed_and_broken),
        cmocka_unit_test(test_better),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
