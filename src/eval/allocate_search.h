/* What to choose in every slot so that a loss is small while a weight stays within a budget. Works on numbers and on a
 * function that measures; knows nothing of models: a slot may be a layer or a head, the weight a density and the loss a
 * divergence, or the other way round. Everything is a function of its arguments: no clock, no random number, ties by a
 * fixed rule. */
#ifndef SQUINT_EVAL_ALLOCATE_SEARCH_H
#define SQUINT_EVAL_ALLOCATE_SEARCH_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One option of a slot under the additive model: its parts of the whole weight and loss. Either may be negative. */
struct search_option {
    double weight, loss;
};
struct search_slot {
    const struct search_option *options;
    size_t count; /* at least 1 */
};

/* A sum of weights may pass the budget by this share of it: the rounding of sums. */
#define SEARCH_ROUNDING 1e-9

bool search_within(double weight, double budget);

/* choice: [count]. The least sum of losses whose sum of weights is within the budget; of equal ones the least weight,
 * then the lower options of the later slots. Exact as long as no more than 2,048 partial sums are neither heavier nor
 * worse than another; past that, of partial sums whose weights lie within 1/2,048 of what there is to distribute the
 * best is followed (still within the budget). STATUS_NOT_FOUND: the lightest options together are too heavy. */
enum status search_choose(const struct search_slot *slots, size_t count, double budget, size_t *choice);

/* A state measured as a whole. */
struct search_measured {
    double weight, loss;
};
/* out: [count], of states: [count, slots]. */
typedef enum status (*search_measure)(void *context, const size_t *states, size_t count, struct search_measured *out);

struct search_problem {
    size_t slots;
    const size_t *counts; /* [slots]: options of each. Neighbours are the numbers beside an option */
    size_t reach;         /* how far to either side a single move goes; at least 1 */
    double budget;        /* of the weight of a whole state, as measured */
    bool additive_weight; /* the weight of a state is the sum of its options' parts; else moves aim below the budget too
                           */
    bool (*allowed)(void *context, const size_t *state); /* NULL: every state is */
    search_measure measure;
    void *context;
    int64_t *evaluations; /* states that may still be measured; counted down */
};

/* Improves `state` [slots], whose measured figures are *at: measures every single move in its context, combines moves
 * by search_choose on these differences (all that gain, fewer, down to one exchange), measures the combinations, and
 * takes the best that is within the budget; again until nothing gains or no evaluation is left. state and *at are then
 * the best found; never worse than before. What `measure` fails with. */
enum status search_improve(const struct search_problem *problem, size_t *state, struct search_measured *at);

/* Whether a is to be preferred to b: within the budget, then less loss, then less weight. NaN is worse than anything.
 */
bool search_better(const struct search_measured *a, const struct search_measured *b, double budget);

#endif
