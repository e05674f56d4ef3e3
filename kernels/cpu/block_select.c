/* The choice of selection blocks: importance from the weights of compressed blocks, and the most important of them.
 * Everything is a box filter: a compressed block covers `overlap` strides, a selection block sums `units` of them. */
#include "kernels/cpu/blocks.h"

void NAME(choosing_add)(const struct choosing *c, const real *weights, int64_t visible, real factor, bool first,
                        real *units) {
    const int64_t count = choosing_units(c, visible);
    if (first) {
        for (int64_t u = 0; u < visible; u++) units[u] = factor * weights[u];
        for (int64_t u = visible; u < count; u++) units[u] = 0;
    } else {
        real_axpy(factor, weights, units, visible);
    }
    for (int64_t shift = 1; shift < c->overlap; shift++) real_axpy(factor, weights, units + shift, visible);
}

int64_t NAME(choosing_importance)(const struct choosing *c, const real *units, int64_t visible, real *importance) {
    if (visible == 0) return 0;
    const int64_t blocks = (visible + c->overlap - 1 + c->units - 1) / c->units, width = c->units;
    switch (width) {
    case 1:
        memcpy(importance, units, (size_t)blocks * sizeof(real));
        break;
    case 2:
        for (int64_t b = 0; b < blocks; b++) importance[b] = units[2 * b] + units[2 * b + 1];
        break;
    case 4:
        for (int64_t b = 0; b < blocks; b++)
            importance[b] = (units[4 * b] + units[4 * b + 1]) + (units[4 * b + 2] + units[4 * b + 3]);
        break;
    default:
        for (int64_t b = 0; b < blocks; b++) {
            real sum = 0;
            for (int64_t u = 0; u < width; u++) sum += units[b * width + u];
            importance[b] = sum;
        }
    }
    return blocks;
}

/* The `count` largest of x [0, n), in `best` from the largest; returns the least of them. 0 < count <= n. */
static real find_least(const real *x, int64_t n, int64_t count, real *best) {
    enum { STEP = 16 };
    for (int64_t k = 0; k < count; k++) best[k] = -REAL_INFINITY;
    for (int64_t j = 0; j < n; j += STEP) {
        const int64_t stop = at_most(j + STEP, n);
        if (stop - j == STEP) {
            int more = 0;
            const real least = best[count - 1];
            for (int u = 0; u < STEP; u++) more |= x[j + u] > least;
            if (!more) continue;
        }
        for (int64_t u = j; u < stop; u++) {
            const real value = x[u];
            if (!(value > best[count - 1])) continue;
            int64_t k = count - 1;
            for (; k > 0 && best[k - 1] < value; k--) best[k] = best[k - 1];
            best[k] = value;
        }
    }
    return best[count - 1];
}

enum { FEW = 64 };

/* The count-th largest of x [0, n), and in *larger how many are larger than it. x has room for whole LANES; n at most
 * FEW. +inf when some are not numbers and too few are left. */
static real find_nth(const real *x, int64_t n, int64_t count, int64_t *larger) {
    real nth = REAL_INFINITY;
    int32_t most = 0;
    for (int64_t first = 0; first < n; first += LANES) {
        int32_t before[LANES] = {0};
        for (int64_t b = 0; b < n; b++)
            for (int64_t a = 0; a < LANES; a++) before[a] += x[b] > x[first + a];
        const int64_t stop = at_most(LANES, n - first);
#pragma omp simd reduction(min : nth) reduction(max : most)
        for (int64_t a = 0; a < stop; a++) {
            const bool among = before[a] < count;
            nth = among && x[first + a] < nth ? x[first + a] : nth;
            most = among && before[a] > most ? before[a] : most;
        }
    }
    *larger = most;
    return nth;
}

/* A bound that at least `count` of x [0, n) reach: the count-th of the maxima of as many lanes. count <= lanes <= n. */
static real find_bound(const real *x, int64_t n, int64_t count, int64_t lanes) {
    real most[FEW];
    int64_t larger;
    memcpy(most, x, (size_t)lanes * sizeof *x);
    for (int64_t u = 0; u < lanes; u += LANES)
        for (int64_t j = lanes + u; j + LANES <= n; j += lanes)
            for (int64_t l = 0; l < LANES; l++) most[u + l] = x[j + l] > most[u + l] ? x[j + l] : most[u + l];
    return find_nth(most, lanes, count, &larger);
}

/* The usual case, without branches that depend on the numbers: the few that reach a bound are ranked. Writes first +
 * index, ascending; false: too many reach it, or some are not numbers. */
static bool choose_few(const real *x, int64_t n, int64_t count, int32_t first, int32_t *out) {
    real found[FEW + LANES];
    int32_t index[FEW + LANES];
    const int64_t lanes = pad_lanes(count);
    if (lanes > FEW || n < lanes) return false;
    const real bound = find_bound(x, n, count, lanes);
    int64_t reach = 0, used = 0, ties;
    for (int64_t j = 0; j < n; j += LANES) {
        const int64_t stop = at_most(j + LANES, n);
        for (int64_t u = j; u < stop; u++) {
            index[reach] = (int32_t)u;
            found[reach] = x[u];
            reach += x[u] >= bound;
        }
        if (reach > FEW) return false;
    }
    for (int64_t a = reach; a < pad_lanes(reach); a++) found[a] = 0;
    const real nth = find_nth(found, reach, count, &ties);
    ties = count - ties;
    for (int64_t a = 0; a < reach; a++) {
        const bool tie = found[a] == nth;
        if (used < count) out[used] = first + index[a];
        used += found[a] > nth || (tie && ties > 0);
        ties -= tie;
    }
    return used == count;
}

/* The same whatever the numbers are. */
static void choose_any(const real *x, int64_t n, int64_t count, int32_t first, real *best, int32_t *out) {
    const real least = find_least(x, n, count, best);
    int64_t ties = 0, used = 0; /* ties: how many as important as the least fit in */
    for (int64_t k = 0; k < count; k++) ties += best[k] == least;
    for (int64_t j = 0; j < n && used < count; j++) {
        /* What is not a number is taken, so that a list is never short. */
        if (x[j] < least || (x[j] == least && ties-- <= 0)) continue;
        out[used++] = first + (int32_t)j;
    }
}

void NAME(choosing_select)(const struct choosing *c, int64_t place, real *importance, int64_t known, real *best,
                           int32_t *chosen) {
    const int64_t own = place / c->block, select = c->select, count = select - 3;
    int64_t used = 0;
    if (own + 1 <= select) {
        for (; used <= own; used++) chosen[used] = (int32_t)used;
        for (; used < select; used++) chosen[used] = -1;
        return;
    }
    for (int64_t b = known; b < own; b++) importance[b] = 0;
    chosen[0] = 0;
    /* Blocks 1 … own−2 compete for what the first and the last two leave. */
    if (count > 0 && !choose_few(importance + 1, own - 2, count, 1, chosen + 1))
        choose_any(importance + 1, own - 2, count, 1, best, chosen + 1);
    chosen[select - 2] = (int32_t)(own - 1);
    chosen[select - 1] = (int32_t)own;
}
