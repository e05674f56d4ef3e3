/* Rows that lie apart in memory, and the lists that name them. A row is whole cache lines, so that what it costs is
 * their transport; the usual widths are constants, so that a row's sums stay in registers. */
#include "kernels/cpu/tokens.h"

#include "kernels/cpu/vector.h"

enum status NAME(token_lists_check)(const struct ops *ops, const char *operation, const struct token_reach *reach) {
    const int64_t batch = reach->start.shape[0], length = reach->start.shape[1], rows = batch * length * reach->lists;
    int64_t wrong = INT64_MAX;
    if (reach->most == 0) return STATUS_OK;
#pragma omp parallel for num_threads(ops->device->threads) reduction(min : wrong)
    for (int64_t n = 0; n < rows; n++) {
        const int64_t token = n / reach->lists;
        const struct token_set set = token_set_of(reach, token / length, token % length, n % reach->lists);
        int32_t before = set.sinks_end - 1;
        bool ended = false;
        for (int64_t u = 0; u < set.most; u++) {
            const int32_t t = set.chosen[u];
            const bool fine = t == -1 || (!ended && t > before && t < set.window_first);
            if (!fine && n * reach->most + u < wrong) wrong = n * reach->most + u;
            ended = ended || t == -1;
            before = t;
        }
    }
    if (wrong == INT64_MAX) return STATUS_OK;
    const int64_t row = wrong / reach->most, token = row / reach->lists;
    const struct token_set set = token_set_of(reach, token / length, token % length, row % reach->lists);
    return error_set(
        STATUS_SHAPE, "%s: chosen[%lld,%lld,%lld,%lld]: expected ascending tokens from %d to %d, then -1, found %d",
        operation, (long long)(token / length), (long long)(token % length), (long long)(row % reach->lists),
        (long long)(wrong % reach->most), set.sinks_end, set.window_first - 1, set.chosen[wrong % reach->most]);
}

enum { RANGE_BYTES = 1 << 20 /* what stays in a thread's cache */ };

enum status NAME(token_walk_open)(const struct ops *ops, const char *operation, const struct token_attention *a,
                                  int64_t rows, struct token_walk *walk) {
    *walk = (struct token_walk){.reach = token_reach_of(a->start, a->chosen, a->window, a->sinks),
                                .batch = a->q.shape[0],
                                .length = a->q.shape[1],
                                .heads = a->q.shape[2],
                                .groups = a->k.shape[2],
                                .width = a->q.shape[3],
                                .padded = pad_lanes(a->q.shape[3])};
    walk->range = at_least(RANGE_BYTES / (rows * walk->padded * (int64_t)sizeof(real)), 1);
    TRY(device_document_ends(operation, a->start, NULL));
    return NAME(token_lists_check)(ops, operation, &walk->reach);
}

/* Element n of the result: the sum of x[n]'s elements. Halves are added while they are interleaved, which puts every
 * sum where it belongs. x is spoilt. */
__attribute__((always_inline)) static inline vector sums_of(vector x[VECTOR]) {
#pragma GCC unroll 8
    for (int count = VECTOR / 2; count > 0; count /= 2)
#pragma GCC unroll 8
        for (int n = 0; n < count; n++)
            x[n] = __builtin_shufflevector(x[n], x[n + count], LOW) + __builtin_shufflevector(x[n], x[n + count], HIGH);
    return x[0];
}

__attribute__((always_inline)) static inline void dots(const int64_t padded, const real *x, const real *rows,
                                                       const int32_t *tokens, int64_t count, real *e) {
    for (int64_t u = 0; u < count; u += VECTOR) {
        const int64_t here = at_most(VECTOR, count - u);
        vector sums[VECTOR];
#pragma GCC unroll 16
        for (int n = 0; n < VECTOR; n++) {
            const real *row = rows + tokens[u + at_most(n, here - 1)] * padded; /* the last one again, to the end */
            sums[n] = *(const vector *)x * *(const vector *)row;
#pragma GCC unroll 8
            for (int64_t d = VECTOR; d < padded; d += VECTOR)
                sums[n] += *(const vector *)(x + d) * *(const vector *)(row + d);
        }
        const vector all = sums_of(sums);
        memcpy(e + u, &all, (size_t)here * sizeof(real));
    }
}

/* `vectors` vectors of every row, from column `column`. */
__attribute__((always_inline)) static inline void gather(int64_t padded, int64_t column, const int vectors,
                                                         const real *weights, const real *rows, const int32_t *tokens,
                                                         int64_t count, real *y) {
    vector sums[4];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) sums[n] = *(const vector *)(y + column + n * VECTOR);
    for (int64_t u = 0; u < count; u++) {
        const real *row = rows + tokens[u] * padded + column;
#pragma GCC unroll 4
        for (int n = 0; n < vectors; n++) sums[n] += weights[u] * *(const vector *)(row + n * VECTOR);
    }
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) *(vector *)(y + column + n * VECTOR) = sums[n];
}

__attribute__((always_inline)) static inline void scatter(int64_t padded, int64_t column, const int vectors,
                                                          const real *weights, const real *x, const int32_t *tokens,
                                                          int64_t count, real *rows) {
    vector own[4];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) own[n] = *(const vector *)(x + column + n * VECTOR);
    for (int64_t u = 0; u < count; u++) {
        real *row = rows + tokens[u] * padded + column;
#pragma GCC unroll 4
        for (int n = 0; n < vectors; n++) *(vector *)(row + n * VECTOR) += weights[u] * own[n];
    }
}

void NAME(token_dots)(int64_t padded, const real *x, const real *rows, const int32_t *tokens, int64_t count, real *e) {
    switch (padded) {
    case LANES:
        dots(LANES, x, rows, tokens, count, e);
        break;
    case 2 * LANES:
        dots(2 * LANES, x, rows, tokens, count, e);
        break;
    case 4 * LANES:
        dots(4 * LANES, x, rows, tokens, count, e);
        break;
    case 8 * LANES:
        dots(8 * LANES, x, rows, tokens, count, e);
        break;
    default:
        dots(padded, x, rows, tokens, count, e);
    }
}

void NAME(token_gather)(int64_t padded, const real *weights, const real *rows, const int32_t *tokens, int64_t count,
                        real *y) {
    int64_t column = 0;
    for (; column + 4 * VECTOR <= padded; column += 4 * VECTOR)
        gather(padded, column, 4, weights, rows, tokens, count, y);
    for (; column < padded; column += VECTOR) gather(padded, column, 1, weights, rows, tokens, count, y);
}

void NAME(token_scatter)(int64_t padded, const real *weights, const real *x, const int32_t *tokens, int64_t count,
                         real *rows) {
    int64_t column = 0;
    for (; column + 4 * VECTOR <= padded; column += 4 * VECTOR)
        scatter(padded, column, 4, weights, x, tokens, count, rows);
    for (; column < padded; column += VECTOR) scatter(padded, column, 1, weights, x, tokens, count, rows);
}
