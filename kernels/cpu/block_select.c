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

void NAME(choosing_select)(const struct choosing *c, int64_t place, real *importance, int64_t known, real *best,
                           int32_t *chosen) {
    const int64_t own = place / c->block, select = c->select;
    int64_t used = 0;
    if (own + 1 <= select) {
        for (; used <= own; used++) chosen[used] = (int32_t)used;
        for (; used < select; used++) chosen[used] = -1;
        return;
    }
    for (int64_t b = known; b < own; b++) importance[b] = 0;
    /* Blocks 1 … own−2 compete for what the first and the last two leave. */
    const int64_t count = select - 3, last = own - 1;
    chosen[used++] = 0;
    if (count > 0) {
        const real least = find_least(importance + 1, last - 1, count, best);
        int64_t ties = 0; /* how many as important as the least fit in */
        for (int64_t k = 0; k < count; k++) ties += best[k] == least;
        for (int64_t b = 1; b < last && used <= count; b++) {
            /* What is not a number is taken, so that a list is never short. */
            if (importance[b] < least || (importance[b] == least && ties-- <= 0)) continue;
            chosen[used++] = (int32_t)b;
        }
    }
    chosen[used++] = (int32_t)last;
    chosen[used++] = (int32_t)own;
}
