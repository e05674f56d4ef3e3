/* Scores of a few queries against packed index keys, and the choice of the highest. Products are sums in the same order
 * however many queries are scored together, so that decoding chooses what the parallel pass does. */
#include "kernels/cpu/index.h"

void NAME(index_load)(const struct index_shape *shape, const struct index_source_rows *from, int64_t list,
                      int64_t first, const struct index_queries *queries) {
    const int64_t rows = queries->rows;
    const real scale = 1 / real_sqrt((real)shape->width);
    for (int64_t h = 0; h < shape->heads; h++) {
        const int64_t head = list * shape->heads + h;
        const struct rows r = {(real *)(uintptr_t)(from->r + head * from->r_head), from->r_row};
        NAME(blocks_load)(r, first, rows, shape->width, scale, queries->r + h * rows * shape->padded);
        for (int64_t n = 0; n < rows; n++) queries->a[h * rows + n] = from->a[(first + n) * from->a_row + head];
    }
}

/* scores [columns] += Σ_h a_h relu(e_h); the lines of e are `step` apart, those of a `a_step`. */
static void add_heads(int64_t heads, int64_t columns, const real *e, int64_t step, const real *a, int64_t a_step,
                      real *restrict scores) {
    for (int64_t h = 0; h < heads; h++) {
        const real weight = a[h * a_step], *line = e + h * step;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) scores[c] += weight * (line[c] < 0 ? 0 : line[c]); /* NaN stays */
    }
}

void NAME(index_score)(const struct index_shape *shape, const struct index_queries *queries, const real *runs,
                       int64_t key_elements, int64_t first, int64_t columns, real *e, bool add, real *scores,
                       int64_t row) {
    const int64_t rows = queries->rows, together = shape->heads / shape->keys;
    for (int64_t u = 0; u < columns; u += INDEX_COLUMNS) {
        const int64_t n = at_most(INDEX_COLUMNS, columns - u);
        for (int64_t k = 0; k < shape->keys; k++) NAME(blocks_products)
        (together * rows, shape->width, queries->r + k * rows * shape->padded, runs + k * key_elements, first + u, n,
         e + k * rows * n);
        for (int64_t r = 0; r < rows; r++) {
            if (!add) memset(scores + r * row + u, 0, (size_t)n * sizeof(real));
            add_heads(shape->heads, n, e + r * n, rows * n, queries->a + r, rows, scores + r * row + u);
        }
    }
}

/* How many of order [0, n) reach the bound. */
static int64_t count_reaching(const order_key *order, int64_t n, order_key bound) {
    order_key count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t u = 0; u < n; u++) count += order[u] >= bound;
    return (int64_t)count;
}

void NAME(index_highest)(const real *scores, int64_t n, int64_t count, order_key *order, int32_t *places) {
    if (count == n) {
        for (int64_t u = 0; u < n; u++) places[u] = (int32_t)u;
        return;
    }
    if (count == 0) return;
    order_key low = order_key_of(scores[0]), high = low;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t u = 0; u < n; u++) {
        const order_key key = order_key_of(scores[u]);
        order[u] = key;
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    /* The highest bound that `count` or more reach lies in [low, high]. */
    bool exact = false;
    while (low < high && !exact) {
        const order_key bound = low + (order_key)(((real_bits)high - (real_bits)low) / 2) + 1;
        const int64_t reach = count_reaching(order, n, bound);
        exact = reach == count;
        low = reach >= count ? bound : low;
        high = reach >= count ? high : bound - 1;
    }
    int64_t used = 0;
    if (exact) {
        for (int64_t u = 0; used < count; u++) { /* no branch depends on the numbers */
            places[used] = (int32_t)u;
            used += order[u] >= low;
        }
        return;
    }
    int64_t ties = count - count_reaching(order, n, low + 1); /* low is no largest number: infinity's key is not */
    for (int64_t u = 0; used < count; u++) {
        if (order[u] < low || (order[u] == low && ties-- <= 0)) continue;
        places[used++] = (int32_t)u;
    }
}

/* Keys of one block, [E][columns] a key head. */
static const real *block_keys(const struct index_shape *shape, const struct index_coarse *coarse,
                              const struct index_place *place, int64_t block, int64_t tokens, real *scratch,
                              int64_t *key_elements) {
    if (coarse->packed) {
        *key_elements = coarse->key_elements;
        return coarse->packed + (place->first_block + block) * coarse->block_elements;
    }
    *key_elements = shape->width * coarse->columns;
    for (int64_t k = 0; k < shape->keys; k++) NAME(attention_transpose)
    (tokens, shape->width,
     coarse->rows.rows + k * coarse->key_step + (place->start + block * coarse->block) * coarse->rows.stride,
     coarse->rows.stride, scratch + k * *key_elements, coarse->columns);
    return scratch;
}

/* Scores of one block's tokens below `high` become candidates; returns how many there are now. */
static int64_t look_into(const struct index_shape *shape, const struct index_coarse *coarse,
                         const struct index_queries *queries, int64_t row, const struct index_place *place,
                         int64_t block, int64_t known, const struct index_scratch *x) {
    const int64_t first = place->start + block * coarse->block, end = at_most(first + coarse->block, place->high);
    const int64_t columns = pad_lanes(end - first), together = shape->heads / shape->keys;
    int64_t key_elements;
    const real *keys = block_keys(shape, coarse, place, block, end - first, x->keys, &key_elements);
    for (int64_t k = 0; k < shape->keys; k++) NAME(attention_gemm)
    (together, columns, shape->width, queries->r + (k * queries->rows + row) * shape->padded,
     queries->rows * shape->padded, 1, keys + k * key_elements, coarse->columns, x->e + k * columns, columns, false);
    real *scores = x->scores + known;
    const int64_t from = at_least(place->low - first, 0);
    if (from >= end - first) return known;
    memset(scores, 0, (size_t)(end - first - from) * sizeof(real));
    add_heads(shape->heads, end - first - from, x->e + from, columns, queries->a + row, queries->rows, scores);
    for (int64_t t = first + from; t < end; t++) x->candidates[known++] = (int32_t)t;
    return known;
}

void NAME(index_choose_coarse)(const struct index_shape *shape, const struct index_coarse *coarse,
                               const struct index_queries *queries, int64_t row, const struct index_place *place,
                               const real *block_scores, int64_t count, int64_t most, const struct index_scratch *x,
                               int32_t *out) {
    const int64_t whole = (place->high - place->start) / coarse->block, looked = at_most(coarse->looked, whole);
    int64_t known = 0, used = 0;
    NAME(index_highest)(block_scores, whole, looked, x->order, x->blocks);
    for (int64_t n = 0; n < looked; n++) known = look_into(shape, coarse, queries, row, place, x->blocks[n], known, x);
    if (place->start + whole * coarse->block < place->high)
        known = look_into(shape, coarse, queries, row, place, whole, known, x);
    used = at_most(count, known);
    NAME(index_highest)(x->scores, known, used, x->order, x->places);
    for (int64_t n = 0; n < used; n++) out[n] = x->candidates[x->places[n]];
    for (int64_t n = used; n < most; n++) out[n] = -1;
}
