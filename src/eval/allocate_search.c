/* See allocate_search.h. */
#include "eval/allocate_search.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STATES_MAX = 2048 };

/* --- choosing under the additive model --------------------------------------------------------------------------- */

/* A choice for the slots so far. */
struct partial {
    double weight, loss;
    uint32_t parent, option; /* of the partial choice without its last slot; in the last slot */
};

struct frontier {
    struct partial *partials; /* rising weight, falling loss */
    size_t count;
};

bool search_within(double weight, double budget) {
    return weight <= budget + SEARCH_ROUNDING * fabs(budget);
}

/* Total order: equal weights and losses by parent, then option. */
static int compare_partials(const void *a, const void *b) {
    const struct partial *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? -1 : 1;
    if (x->loss != y->loss) return x->loss < y->loss ? -1 : 1;
    if (x->option != y->option) return x->option < y->option ? -1 : 1;
    return x->parent < y->parent ? -1 : x->parent > y->parent;
}

/* Keeps what no lighter partial is as good as; past STATES_MAX of them the best of every cell of weight. */
static size_t keep_best(struct partial *partials, size_t count, double budget) {
    size_t kept = 0;
    qsort(partials, count, sizeof *partials, compare_partials);
    for (size_t i = 0; i < count; i++) {
        if (kept > 0 && partials[i].loss >= partials[kept - 1].loss) continue;
        partials[kept++] = partials[i];
    }
    if (kept <= STATES_MAX) return kept;
    size_t thinned = 0;
    double last_cell = -1;
    for (size_t i = 0; i < kept; i++) {
        double cell = floor(partials[i].weight / budget * (STATES_MAX - 1));
        if (thinned > 0 && cell == last_cell) thinned--;
        partials[thinned++] = partials[i];
        last_cell = cell;
    }
    return thinned;
}

static double lightest(const struct search_slot *slot) {
    double weight = slot->options[0].weight;
    for (size_t o = 1; o < slot->count; o++) weight = fmin(weight, slot->options[o].weight);
    return weight;
}

/* Weights are counted from the slot's lightest option, so that what is too heavy stays so. budget: what is left above
 * those. */
static enum status extend(const struct frontier *from, const struct search_slot *slot, double budget,
                          struct frontier *to) {
    double base = lightest(slot);
    TRY(memory_new(from->count * slot->count, sizeof *to->partials, "partial choices", &to->partials));
    for (size_t p = 0; p < from->count; p++) {
        for (size_t o = 0; o < slot->count; o++) {
            double weight = from->partials[p].weight + (slot->options[o].weight - base);
            if (weight > budget) continue;
            to->partials[to->count++] = (struct partial){.weight = weight,
                                                         .loss = from->partials[p].loss + slot->options[o].loss,
                                                         .parent = (uint32_t)p,
                                                         .option = (uint32_t)o};
        }
    }
    to->count = keep_best(to->partials, to->count, budget > 0 ? budget : 1);
    return memory_grow(&to->partials, to->count, sizeof *to->partials, "partial choices");
}

enum status search_choose(const struct search_slot *slots, size_t count, double budget, size_t *choice) {
    struct partial nothing = {0};
    struct frontier *frontiers = NULL;
    enum status status = STATUS_OK;
    double least = 0;
    for (size_t s = 0; s < count; s++) least += lightest(&slots[s]);
    if (!search_within(least, budget))
        return error_set(STATUS_NOT_FOUND, "the lightest choice weighs %.6g, the budget is %.6g", least, budget);
    double left = fmax(budget + SEARCH_ROUNDING * fabs(budget) - least, 0);
    TRY(memory_new(count + 1, sizeof *frontiers, "partial choices", &frontiers));
    frontiers[0] = (struct frontier){&nothing, 1};
    for (size_t s = 0; s < count; s++) TRY_GOTO(done, extend(&frontiers[s], &slots[s], left, &frontiers[s + 1]));
    size_t at = frontiers[count].count - 1; /* the heaviest kept has the least loss */
    for (size_t s = count; s-- > 0;) {
        const struct partial *partial = &frontiers[s + 1].partials[at];
        choice[s] = partial->option;
        at = partial->parent;
    }
done:
    for (size_t s = 1; s <= count; s++) free(frontiers[s].partials);
    free(frontiers);
    return status;
}

/* --- improving what is measured ---------------------------------------------------------------------------------- */

/* A move pays a toll beside its loss, in units of the mean gain of a move: the higher, the fewer moves are combined. */
static const double tolls[] = {0, 0.25, 0.5, 1, 2, 4, 8};
/* Shares of the budget that a combination stays below it, where weights do not simply add up. */
static const double margins[] = {0, 0.01, 0.03, 0.1};
enum { TOLLS = sizeof tolls / sizeof *tolls, MARGINS = sizeof margins / sizeof *margins, TRIALS = TOLLS * MARGINS };
/* A smaller gain is rounding. */
static const double least_gain = 1e-6;

struct sweep {
    const struct search_problem *problem;
    struct search_slot *slots;     /* [slots]: what each may do: stay (option 0) or move */
    struct search_option *options; /* [slots, 1 + 2·reach] */
    size_t *targets;               /* [slots, 1 + 2·reach]: the option that each stands for */
    size_t *moves;                 /* [moves, slots]: states to measure */
    size_t *trials;                /* [TRIALS, slots] */
    size_t *choice;                /* [slots] */
    struct search_measured *found; /* [moves] */
    size_t width;                  /* 1 + 2·reach */
    size_t best_move;              /* number of the best measured move, or SIZE_MAX */
};

bool search_better(const struct search_measured *a, const struct search_measured *b, double budget) {
    bool a_within = search_within(a->weight, budget), b_within = search_within(b->weight, budget);
    if (isnan(a->loss) || isnan(a->weight)) return false;
    if (isnan(b->loss) || isnan(b->weight)) return true;
    if (a_within != b_within) return a_within;
    if (!a_within && a->weight != b->weight) return a->weight < b->weight;
    if (a->loss != b->loss) return a->loss < b->loss;
    return a->weight < b->weight;
}

static bool gains(const struct search_measured *new, const struct search_measured *old, double budget) {
    if (!search_better(new, old, budget)) return false;
    if (!search_within(old->weight, budget)) return true;
    return new->loss < old->loss - least_gain *fabs(old->loss);
}

static enum status open_sweep(const struct search_problem *p, struct sweep *s) {
    s->problem = p;
    s->width = 1 + 2 * p->reach;
    size_t cells = p->slots * s->width;
    TRY(memory_new(p->slots, sizeof *s->slots, "slots of a sweep", &s->slots));
    TRY(memory_new(cells, sizeof *s->options, "options of a sweep", &s->options));
    TRY(memory_new(cells, sizeof *s->targets, "options of a sweep", &s->targets));
    TRY(memory_new(cells * p->slots, sizeof *s->moves, "moves of a sweep", &s->moves));
    TRY(memory_new(cells > TRIALS ? cells : TRIALS, sizeof *s->found, "figures of a sweep", &s->found));
    TRY(memory_new(TRIALS * p->slots, sizeof *s->trials, "combinations of a sweep", &s->trials));
    return memory_new(p->slots, sizeof *s->choice, "combinations of a sweep", &s->choice);
}

static void close_sweep(struct sweep *s) {
    void *blocks[] = {s->slots, s->options, s->targets, s->moves, s->found, s->trials, s->choice};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

static bool is_allowed(const struct search_problem *p, const size_t *state) {
    return !p->allowed || p->allowed(p->context, state);
}

static enum status measure(const struct search_problem *p, const size_t *states, size_t count,
                           struct search_measured *found) {
    *p->evaluations -= (int64_t)count;
    return count > 0 ? p->measure(p->context, states, count, found) : STATUS_OK;
}

/* Lists the states one move away from `state`, nearest first; *count of them, at most as many as may be measured. */
static void list_moves(struct sweep *s, const size_t *state, size_t *count) {
    const struct search_problem *p = s->problem;
    *count = 0;
    for (size_t n = 0; n < p->slots; n++) {
        size_t used = 1;
        s->targets[n * s->width] = state[n];
        s->options[n * s->width] = (struct search_option){0};
        for (size_t step = 1; step <= p->reach; step++) {
            for (int up = 0; up < 2; up++) {
                if (up ? state[n] + step >= p->counts[n] : state[n] < step) continue;
                if ((int64_t)*count >= *p->evaluations) continue;
                size_t *move = s->moves + *count * p->slots;
                memcpy(move, state, p->slots * sizeof *move);
                move[n] = up ? state[n] + step : state[n] - step;
                if (!is_allowed(p, move)) continue;
                s->targets[n * s->width + used++] = move[n];
                ++*count;
            }
        }
        s->slots[n] = (struct search_slot){s->options + n * s->width, used};
    }
}

/* Measures the moves and writes down what each changes; *best_move becomes the best of those that gain. */
static enum status measure_moves(struct sweep *s, const size_t *state, const struct search_measured *at) {
    const struct search_problem *p = s->problem;
    size_t count, next = 0;
    struct search_measured best = *at;
    list_moves(s, state, &count);
    TRY(measure(p, s->moves, count, s->found));
    s->best_move = SIZE_MAX;
    for (size_t n = 0; n < p->slots; n++) {
        for (size_t o = 1; o < s->slots[n].count; o++, next++) {
            const struct search_measured *found = &s->found[next];
            bool broken = !isfinite(found->loss) || !isfinite(found->weight);
            s->options[n * s->width + o] = (struct search_option){broken ? HUGE_VAL : found->weight - at->weight,
                                                                  broken ? HUGE_VAL : found->loss - at->loss};
            if (!gains(found, &best, p->budget)) continue;
            best = *found;
            s->best_move = next;
        }
    }
    return STATUS_OK;
}

static void change_toll(struct sweep *s, double change) {
    for (size_t n = 0; n < s->problem->slots; n++) {
        for (size_t o = 1; o < s->slots[n].count; o++) s->options[n * s->width + o].loss += change;
    }
}

/* Moves and their mean predicted gain of the combination in s->choice. */
static size_t count_moves(const struct sweep *s, double *gain) {
    size_t moves = 0;
    *gain = 0;
    for (size_t n = 0; n < s->problem->slots; n++) {
        moves += s->choice[n] != 0;
        *gain -= s->slots[n].options[s->choice[n]].loss;
    }
    if (moves > 0) *gain /= (double)moves;
    return moves;
}

/* Adds the combination in s->choice to the trials unless it is there, not allowed, or a single move (measured already).
 */
static void add_trial(struct sweep *s, size_t *count) {
    const struct search_problem *p = s->problem;
    size_t *trial = s->trials + *count * p->slots, moved = 0;
    for (size_t n = 0; n < p->slots; n++) {
        trial[n] = s->targets[n * s->width + s->choice[n]];
        moved += s->choice[n] != 0;
    }
    if (moved < 2 || !is_allowed(p, trial) || (int64_t)*count >= *p->evaluations) return;
    for (size_t t = 0; t < *count; t++) {
        if (memcmp(s->trials + t * p->slots, trial, p->slots * sizeof *trial) == 0) return;
    }
    ++*count;
}

/* Combinations of moves that the differences promise a gain from, *count of them. */
static enum status combine(struct sweep *s, const struct search_measured *at, size_t *count) {
    const struct search_problem *p = s->problem;
    *count = 0;
    for (int m = 0; m < (p->additive_weight ? 1 : MARGINS); m++) {
        double left = p->budget - margins[m] * fabs(p->budget) - at->weight, mean = 0, paid = 0;
        for (int t = 0; t < TOLLS; t++) {
            double toll = tolls[t] * mean;
            change_toll(s, toll - paid);
            paid = toll;
            enum status status = search_choose(s->slots, p->slots, left, s->choice);
            if (status == STATUS_NOT_FOUND) {
                error_clear();
                break;
            }
            TRY(status);
            double gain;
            size_t moves = count_moves(s, &gain);
            if (t == 0) mean = gain > 0 ? gain : 0;
            if (moves == 0 || (t == 0 && mean == 0)) break;
            add_trial(s, count);
        }
        change_toll(s, -paid);
    }
    return STATUS_OK;
}

/* Takes the best of moves and combinations; *better: there was one. */
static enum status sweep_once(struct sweep *s, size_t *state, struct search_measured *at, bool *better) {
    const struct search_problem *p = s->problem;
    size_t count;
    *better = false;
    TRY(measure_moves(s, state, at));
    const size_t *best = NULL;
    struct search_measured figures = *at;
    if (s->best_move != SIZE_MAX) {
        best = s->moves + s->best_move * p->slots;
        figures = s->found[s->best_move];
    }
    TRY(combine(s, at, &count));
    TRY(measure(p, s->trials, count, s->found));
    for (size_t t = 0; t < count; t++) {
        if (!gains(&s->found[t], &figures, p->budget)) continue;
        best = s->trials + t * p->slots;
        figures = s->found[t];
    }
    if (!best) return STATUS_OK;
    memcpy(state, best, p->slots * sizeof *state);
    *at = figures;
    *better = true;
    return STATUS_OK;
}

enum status search_improve(const struct search_problem *problem, size_t *state, struct search_measured *at) {
    struct sweep s = {0};
    enum status status = open_sweep(problem, &s);
    bool better = problem->slots > 0;
    while (status == STATUS_OK && better && *problem->evaluations > 0) status = sweep_once(&s, state, at, &better);
    close_sweep(&s);
    return status;
}
