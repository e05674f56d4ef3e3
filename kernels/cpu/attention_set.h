/* Candidate sets of attention: which keys a query may read. Every set of one query is an arithmetic progression; all of
 * the rest of kernels/cpu/attention*.c reasons about nothing else. Knows no tensor and no arithmetic. */
#ifndef SQUINT_KERNELS_CPU_ATTENTION_SET_H
#define SQUINT_KERNELS_CPU_ATTENTION_SET_H

#include "kernels/ops.h"

/* Keys lo, lo + step, … below hi; empty when lo >= hi. step >= 1. */
struct span {
    int64_t lo, hi, step;
};

static inline bool span_holds(struct span s, int64_t j) {
    return j >= s.lo && j < s.hi && (s.step == 1 || (j - s.lo) % s.step == 0);
}

static inline int64_t span_count(struct span s) {
    return s.lo >= s.hi ? 0 : (s.hi - s.lo + s.step - 1) / s.step;
}

static inline int64_t at_least(int64_t x, int64_t least) {
    return x > least ? x : least;
}
static inline int64_t at_most(int64_t x, int64_t most) {
    return x < most ? x : most;
}

/* The keys that candidate `c` shows the query at i, whose document holds the tokens start … end−1. */
static inline struct span candidate_span(const struct candidate *c, bool causal, int64_t i, int64_t start,
                                         int64_t end) {
    const int64_t a = c->a, limit = causal ? i + 1 : end;
    switch (c->kind) {
    case CANDIDATE_FULL:
        return (struct span){start, limit, 1};
    case CANDIDATE_WINDOW:
        return (struct span){at_least(i - a + 1, start), causal ? limit : at_most(i + a, end), 1};
    case CANDIDATE_SINKS:
        return (struct span){start, at_most(start + a, limit), 1};
    case CANDIDATE_BLOCKS: {
        const int64_t first = start + (i - start) / a * a;
        return (struct span){first, at_most(first + a, limit), 1};
    }
    case CANDIDATE_STRIDE:
        return (struct span){start, limit, a};
    case CANDIDATE_DILATED: {
        const int64_t back = at_most(a - 1, (i - start) / c->b);
        return (struct span){i - back * c->b, causal ? limit : at_most(i + (a - 1) * c->b + 1, end), c->b};
    }
    case CANDIDATE_OFFSET:
        break;
    }
    const int64_t first = i - a >= start ? i - a : i + a;
    return (struct span){first, causal ? at_most(i - a + 1, limit) : at_most(i + a + 1, end), at_least(2 * a, 1)};
}

#endif
