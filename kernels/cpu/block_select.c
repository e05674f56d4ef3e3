/* The choice of selection blocks: importance from the weights of compressed blocks, and the most important of them.
 * Everything is a box filter: a compressed block covers `overlap` strides, a selection block sums `units` of them. */
#include "kernels/cpu/blocks.h"

void NAME(choosing_add)(const struct choosing *c, const real *weights, int64_t visible, real factor, bool first,
                        real *units) {
    const int64_t count = choosing_units(c, visible);
    if (first && c->overlap == 2 && visible > 0) { /* the usual case in one pass: blocks u − 1 and u cover stride u */
        units[0] = factor * weights[0];
        for (int64_t u = 1; u < visible; u++) units[u] = factor * (weights[u - 1] + weights[u]);
        units[visible] = factor * weights[visible - 1];
        for (int64_t u = visible + 1; u < count; u++) units[u] = 0;
        return;
    }
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

/* How many of x [0, n) reach the bound. */
static int32_t count_reaching(const real *x, int64_t n, real bound) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t u = 0; u < n; u++) count += x[u] >= bound;
    return count;
}

/* The usual case: a bound that just `count` of x [1, n) reach, between one that too many reach and one that too few do. Writes
 * their indices, ascending, into out [count + 1], whose last place holds nothing; false: no such bound, for some are equal or
 * too few are numbers. What is not a number reaches no bound. x has room for whole LANES, and loses what lies beyond n. */
static bool choose_apart(real *x, int64_t n, int64_t count, int32_t *out) {
    const int64_t lanes = pad_lanes(count), padded = pad_lanes(n);
    real low = REAL_INFINITY, high = 0;
    if (n < lanes) return false;
    for (int64_t u = n; u < padded; u++) x[u] = -REAL_INFINITY;
    /* To begin with: as many as there are lanes, `count` or more, reach the least of the lanes' maxima (not counting x[0]). */
    for (int64_t u = 0; u < lanes; u += LANES) {
        real most[LANES];
#pragma omp simd
        for (int64_t l = 0; l < LANES; l++) most[l] = u + l == 0 ? 0 : x[u + l];
        for (int64_t j = u + lanes; j < padded; j += lanes)
#pragma omp simd
            for (int64_t l = 0; l < LANES; l++) most[l] = x[j + l] > most[l] ? x[j + l] : most[l];
#pragma omp simd reduction(min : low) reduction(max : high)
        for (int64_t l = 0; l < LANES; l++) {
            low = most[l] < low ? most[l] : low;
            high = most[l] > high ? most[l] : high;
        }
    }
    if (!(low >= 0)) low = 0;
    real bound = low;
    bool apart = count == lanes && count_reaching(x, padded, low) - (x[0] >= low) == count;
    for (bool begins = true; !apart; begins = false) {
        bound = real_between(low, high);
        if (begins) bound = real_between(low, bound); /* many more reach low than high: the bound is nearer to it */
        if (!(bound > low && bound < high)) return false;
        const int32_t reach = count_reaching(x, padded, bound) - (x[0] >= bound);
        apart = reach == count;
        low = reach > count ? bound : low;
        high = reach > count ? high : bound;
    }
    for (int64_t u = 1, used = 0; u < n; u++) { /* no branch depends on the numbers */
        out[used] = (int32_t)u;
        used += x[u] >= bound;
    }
    return true;
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
    if (count > 0 && !choose_apart(importance, own - 1, count, chosen + 1))
        choose_any(importance + 1, own - 2, count, 1, best, chosen + 1);
    chosen[select - 2] = (int32_t)(own - 1);
    chosen[select - 1] = (int32_t)own;
}
