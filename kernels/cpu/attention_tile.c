/* The numbers of one tile: scores, exponents, weights, their gradients. Most tiles hold all of a candidate's pairs or
 * none and cost one factor a row; in the others a candidate's keys of a row are a progression of columns. */
#include "kernels/cpu/attention_internal.h"

static int64_t ceiling(int64_t n, int64_t divisor) {
    return (n + divisor - 1) / divisor;
}

/* Columns of a tile that candidate m shows to row r. */
static struct span find_members(const struct block *block, const struct tile *tile, int m, int r) {
    const struct span s = block->spans[m][r];
    const struct span none = {0, 0, 1};
    if (tile->diagonal) return span_holds(s, tile->first + r) ? (struct span){0, 1, 1} : none;
    if (s.lo >= s.hi || s.hi <= tile->first) return none;
    struct span u = {at_least(s.lo - tile->first, 0), s.hi - tile->first, 1};
    if (tile->step > 1) u = (struct span){ceiling(u.lo, tile->step), ceiling(u.hi, tile->step), 1};
    u.hi = at_most(u.hi, tile->count);
    if (s.step == 1 || u.lo >= u.hi) return u;
    if (s.step == tile->step) return (tile->first - s.lo) % s.step == 0 ? u : none;
    /* The steps are different: the first common key, then every s.step / gcd columns. */
    int64_t stride = s.step, rest = tile->step;
    while (rest) {
        const int64_t next = stride % rest;
        stride = rest;
        rest = next;
    }
    stride = s.step / stride;
    if (tile->step == 1) {
        const int64_t over = (tile->first + u.lo - s.lo) % s.step;
        return (struct span){over ? u.lo + s.step - over : u.lo, u.hi, stride};
    }
    for (int64_t n = 0; n < stride && u.lo < u.hi; n++, u.lo++)
        if ((tile->first + u.lo * tile->step - s.lo) % s.step == 0) return (struct span){u.lo, u.hi, stride};
    return none;
}

static void set_members(real *x, int columns, struct span s, real value) {
    const int lo = (int)s.lo, hi = (int)s.hi;
    if (s.step == 1) {
        for (int u = 0; u < columns; u++) x[u] = u >= lo && u < hi ? value : x[u];
        return;
    }
    for (int64_t u = s.lo; u < s.hi; u += s.step) x[u] = value;
}

static void add_members(real *x, int columns, struct span s, real value) {
    const int lo = (int)s.lo, hi = (int)s.hi;
    if (s.step == 1) {
        for (int u = 0; u < columns; u++) x[u] += u >= lo && u < hi ? value : 0;
        return;
    }
    for (int64_t u = s.lo; u < s.hi; u += s.step) x[u] += value;
}

static real sum_members(const real *x, int columns, struct span s) {
    const int lo = (int)s.lo, hi = (int)s.hi;
    real sum = 0;
    if (lo >= hi) return 0;
    if (s.step == 1) {
#pragma omp simd reduction(+ : sum)
        for (int u = 0; u < columns; u++) sum += u >= lo && u < hi ? x[u] : 0;
        return sum;
    }
    for (int64_t u = s.lo; u < s.hi; u += s.step) sum += x[u];
    return sum;
}

/* The usual case: the columns that stay follow each other. */
static void mask_outside(real *e, int columns, struct span s) {
    const int64_t lo = s.lo < s.hi ? s.lo : columns, hi = at_least(s.hi, lo);
    for (int64_t u = 0; u < lo; u++) e[u] = -REAL_INFINITY;
    for (int64_t u = hi; u < columns; u++) e[u] = -REAL_INFINITY;
}

static void mask_row(const struct block *block, const struct tile *tile, int r, real *e) {
    real open[TILE_KEYS];
    const struct span all = {0, tile->count, 1};
    const uint32_t owners = (tile->inside | tile->mixed) & tile->owners;
    if (!(tile->mixed & tile->prior) && (owners & (owners - 1)) == 0) {
        const struct span s = tile->inside & owners ? all : find_members(block, tile, __builtin_ctz(owners), r);
        if (s.step == 1) {
            mask_outside(e, tile->columns, s);
            return;
        }
    }
    for (int u = 0; u < tile->columns; u++) open[u] = 0;
    if (tile->inside & tile->owners) set_members(open, tile->columns, all, 1);
    for (int m = 0; m < block->head->count; m++)
        if (tile->mixed & tile->owners & 1u << m) set_members(open, tile->columns, find_members(block, tile, m, r), 1);
    for (int m = 0; m < block->head->count; m++)
        if (tile->mixed & tile->prior & 1u << m) set_members(open, tile->columns, find_members(block, tile, m, r), 0);
    for (int u = 0; u < tile->columns; u++) e[u] = open[u] > 0 ? e[u] : -REAL_INFINITY;
}

void NAME(attention_block_load)(const struct block *block, const real *from, int64_t stride, real scale, real *to) {
    const int64_t width = block->head->width, padded = block->padded;
    for (int r = 0; r < block->rows; r++) {
        const real *row = from + (block->first + r * block->step) * stride;
        for (int64_t d = 0; d < width; d++) to[r * padded + d] = scale * row[d];
        for (int64_t d = width; d < padded; d++) to[r * padded + d] = 0;
    }
}

void NAME(attention_block_prepare)(struct block *block, const real *const *log_sums) {
    const struct attention_head *head = block->head;
    for (int r = 0; r < block->rows; r++) {
        const int64_t i = block->first + r * block->step;
        real most;
        block->slow[r] = row_is_slow(head, log_sums, i, &most);
        block->reference[r] = most;
        for (int m = 0; m < head->count; m++) {
            const real sum = log_sums[m][i];
            const bool live = sum > -REAL_INFINITY && !block->slow[r];
            block->norms[m][r] = live ? real_exp(most - sum) : 0;
            block->factors[m][r] = head->coefficients[m] * block->norms[m][r];
        }
    }
}

/* [D][columns] of a tile's keys or values that do not lie in the packed runs as they should. */
static void gather_transposed(const struct block *block, const struct tile *tile, const real *rows, int64_t stride) {
    for (int u = 0; u < tile->columns; u++) {
        const real *row = rows + (tile->first + u * tile->step) * stride;
        for (int64_t d = 0; d < block->head->width; d++)
            block->gathered[d * tile->columns + u] = u < tile->count ? row[d] : 0;
    }
}

static void diagonal_products(const struct block *block, const struct tile *tile, const real *x, const real *rows,
                              int64_t row_stride, real *e) {
    for (int r = 0; r < block->rows; r++) {
        const int64_t j = tile->first + r;
        for (int u = 0; u < tile->columns; u++) e[r * tile->columns + u] = 0;
        if (j >= 0 && j < block->head->length)
            e[r * tile->columns] = real_dot(x + r * block->padded, rows + j * row_stride, block->head->width);
    }
}

static void products(const struct block *block, const struct tile *tile, const real *x, const real *packed,
                     const real *rows, int64_t row_stride, real *e) {
    if (tile->diagonal) {
        diagonal_products(block, tile, x, rows, row_stride, e);
        return;
    }
    const int64_t width = block->head->width;
    if (tile->step != 1 || tile->first % LANES != 0) {
        gather_transposed(block, tile, rows, row_stride);
        NAME(attention_gemm)
        (block->rows, tile->columns, width, x, block->padded, 1, block->gathered, tile->columns, e, tile->columns,
         false);
        return;
    }
    for (int64_t u = 0, n; u < tile->columns; u += n) {
        const int64_t first = tile->first + u, within = first % PACK_KEYS;
        n = at_most(PACK_KEYS - within, tile->columns - u);
        NAME(attention_gemm)
        (block->rows, n, width, x, block->padded, 1, packed + (first - within) * width + within, PACK_KEYS, e + u,
         tile->columns, false);
    }
}

void NAME(attention_tile_scores)(const struct block *block, const struct tile *tile, real *e) {
    products(block, tile, block->q, block->packed->k_transposed, block->head->k, block->head->k_stride, e);
    if (tile->whole) return;
    for (int r = 0; r < block->rows; r++) mask_row(block, tile, r, e + r * tile->columns);
}

void NAME(attention_tile_d_weights)(const struct block *block, const struct tile *tile, real *dw) {
    products(block, tile, block->d_o, block->packed->v_transposed, block->head->v, block->head->v_stride, dw);
}

/* e = e^{e − reference} of one row, and its sum. Inlined, so that a sum that nobody wants is not made. */
__attribute__((always_inline)) static inline real exponents(real *restrict e, int columns, real reference) {
    real sum = 0;
    if (!(reference > -REAL_INFINITY)) {
        for (int u = 0; u < columns; u++) e[u] = 0;
        return 0;
    }
#pragma omp simd reduction(+ : sum)
    for (int u = 0; u < columns; u++) {
        const real x = real_exp(e[u] - reference);
        e[u] = x;
        sum += x;
    }
    return sum;
}

void NAME(attention_tile_sum)(struct block *block, const struct tile *tile, real *e) {
    const int count = block->head->count;
    for (int r = 0; r < block->rows; r++) {
        real *row = e + r * tile->columns;
        const real before = block->reference[r], most = real_max(before, real_row_max(row, tile->columns));
        block->rescale[r] = 1;
        if (most > before) {
            block->reference[r] = most;
            block->rescale[r] = real_exp(before - most);
            for (int m = 0; m < count; m++) block->sums[m][r] *= block->rescale[r];
        }
        const real sum = exponents(row, tile->columns, block->reference[r]);
        for (int m = 0; m < count; m++)
            if (tile->held & 1u << m)
                block->sums[m][r] += sum;
            else if (tile->partly & 1u << m)
                block->sums[m][r] +=
                    count == 1 ? sum : sum_members(row, tile->columns, find_members(block, tile, m, r));
    }
}

void NAME(attention_tile_exponents)(const struct block *block, const struct tile *tile, real *e) {
    for (int r = 0; r < block->rows; r++) exponents(e + r * tile->columns, tile->columns, block->reference[r]);
}

/* values [columns]: the sum, over the candidates that hold a pair, of table[m][r]. *same: one number for the row. */
static real row_values(const struct block *block, const struct tile *tile, int r, const real (*table)[BLOCK_ROWS],
                       real *values, bool *same) {
    real base = 0;
    *same = true;
    for (int m = 0; m < block->head->count; m++)
        if (tile->held & 1u << m) base += table[m][r];
    for (int m = 0; m < block->head->count; m++) {
        if (!(tile->partly & 1u << m) || table[m][r] == 0) continue;
        if (*same)
            for (int u = 0; u < tile->columns; u++) values[u] = base;
        *same = false;
        add_members(values, tile->columns, find_members(block, tile, m, r), table[m][r]);
    }
    return base;
}

void NAME(attention_tile_weights)(const struct block *block, const struct tile *tile, const real *scale, real *e) {
    real values[TILE_KEYS];
    for (int r = 0; r < block->rows; r++) {
        real *row = e + r * tile->columns;
        bool same;
        const real base = row_values(block, tile, r, block->factors, values, &same), by = scale ? scale[r] : 1;
        if (same)
            for (int u = 0; u < tile->columns; u++) row[u] *= base * by;
        else
            for (int u = 0; u < tile->columns; u++) row[u] *= values[u] * by;
    }
}

void NAME(attention_tile_deltas)(struct block *block, const struct tile *tile, const real *e, const real *dw) {
    real terms[TILE_KEYS];
    for (int r = 0; r < block->rows; r++) {
        const real *x = e + r * tile->columns, *y = dw + r * tile->columns;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int u = 0; u < tile->columns; u++) {
            terms[u] = x[u] * y[u];
            sum += terms[u];
        }
        for (int m = 0; m < block->head->count; m++)
            if (tile->held & 1u << m)
                block->sums[m][r] += sum;
            else if (tile->partly & 1u << m)
                block->sums[m][r] += sum_members(terms, tile->columns, find_members(block, tile, m, r));
    }
}

void NAME(attention_tile_gradients)(const struct block *block, const struct tile *tile, real *e, real *dw) {
    real weights[TILE_KEYS], shifts[TILE_KEYS];
    for (int r = 0; r < block->rows; r++) {
        real *x = e + r * tile->columns, *y = dw + r * tile->columns;
        bool same, same_shift;
        const real weight = row_values(block, tile, r, block->factors, weights, &same);
        const real shift = row_values(block, tile, r, block->delta_factors, shifts, &same_shift);
        if (same && same_shift) {
            for (int u = 0; u < tile->columns; u++) {
                y[u] = x[u] * (y[u] * weight - shift);
                x[u] *= weight;
            }
            continue;
        }
        if (same)
            for (int u = 0; u < tile->columns; u++) weights[u] = weight;
        if (same_shift)
            for (int u = 0; u < tile->columns; u++) shifts[u] = shift;
        for (int u = 0; u < tile->columns; u++) {
            y[u] = x[u] * (y[u] * weights[u] - shifts[u]);
            x[u] *= weights[u];
        }
    }
}

void NAME(attention_tile_gather)(const struct block *block, const struct tile *tile, const real *weights,
                                 const real *rows, real *out) {
    const int64_t padded = block->padded;
    if (!tile->diagonal) {
        NAME(attention_gemm)
        (block->rows, padded, tile->count, weights, tile->columns, 1, rows + tile->first * padded, tile->step * padded,
         out, padded, true);
        return;
    }
    for (int r = 0; r < block->rows; r++)
        if (weights[r * tile->columns] != 0)
            real_axpy(weights[r * tile->columns], rows + (tile->first + r) * padded, out + r * padded, padded);
}

void NAME(attention_tile_scatter)(const struct block *block, const struct tile *tile, const real *weights,
                                  const real *in, real *rows, int64_t first, int64_t last) {
    const int64_t padded = block->padded;
    if (tile->diagonal) {
        for (int r = 0; r < block->rows; r++) {
            const int64_t j = tile->first + r;
            if (weights[r * tile->columns] != 0 && j >= first && j < last)
                real_axpy(weights[r * tile->columns], in + r * padded, rows + j * padded, padded);
        }
        return;
    }
    const int64_t from = tile->first >= first ? 0 : ceiling(first - tile->first, tile->step);
    const int64_t to = tile->first >= last ? 0 : at_most(tile->count, ceiling(last - tile->first, tile->step));
    if (from >= to) return;
    NAME(attention_gemm)
    (to - from, padded, block->rows, weights + from, 1, tile->columns, in, padded,
     rows + (tile->first + from * tile->step) * padded, tile->step * padded, true);
}
