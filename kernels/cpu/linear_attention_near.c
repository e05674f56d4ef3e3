/* The near part: exact softmax weights of the last `window` tokens, for the rows of a chunk. */
#include "kernels/cpu/linear_attention_internal.h"

/* SUB_ROWS rows and the keys that any of them reads. */
struct near_block {
    int64_t row, rows;     /* of the chunk */
    int64_t first, count;  /* keys: token, number */
    int64_t offset, width; /* their columns among the chunk's near keys, rounded up to LANES */
};

static struct near_block block_of(const struct linear_unit *u, int64_t row) {
    struct near_block b = {.row = row, .rows = u->count - row < SUB_ROWS ? u->count - row : SUB_ROWS};
    const int64_t from = u->first + row - u->window + 1;
    b.first = from > u->near_first ? from : u->near_first;
    b.count = u->first + row + b.rows - b.first;
    b.offset = b.first - u->near_first;
    b.width = pad_lanes(b.count);
    return b;
}

/* Row r of a block reads the keys lo … hi−1 of the block. */
static void range_of(const struct linear_unit *u, const struct near_block *b, int64_t r, int64_t *lo, int64_t *hi) {
    const int64_t i = u->first + b->row + r, from = i - u->window + 1;
    const int64_t first = from > u->start[i] ? from : u->start[i];
    *lo = first - b->first;
    *hi = i + 1 - b->first;
}

void NAME(linear_near_keys)(struct linear_unit *u, bool backward) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t first = u->near_first, count = u->near_count, values = call->value_pad, pad = call->near_pad;
    NAME(attention_transpose)(count, call->width, u->k.rows + first * u->k.stride, u->k.stride, w->near_k_t, pad);
    NAME(linear_load)(count, call->width, values, u->v, first, w->near_v);
    for (int64_t j = 0; j < count; j++) w->near_v[j * values + call->width] = 1;
    if (!backward) return;
    NAME(linear_load)(count, call->width, call->width_pad, u->k, first, w->near_k);
    NAME(attention_transpose)(count, values, w->near_v, values, w->near_v_t, pad);
}

static void scores(const struct linear_unit *u, const struct near_block *b, const real *q, int64_t q_stride) {
    const struct linear_worker *w = u->worker;
    const int64_t pad = u->call->near_pad;
    NAME(attention_gemm)
    (b->rows, b->width, u->call->width, q + b->row * q_stride, q_stride, 1, w->near_k_t + b->offset, pad,
     w->near_scores, pad, false);
}

static void clear_outside(real *row, int64_t lo, int64_t hi, int64_t width) {
    for (int64_t j = 0; j < lo; j++) row[j] = 0;
    for (int64_t j = hi; j < width; j++) row[j] = 0;
}

/* row[lo … hi−1] = e^{scale · row − reference}, the rest 0. */
static void exponents(real *row, int64_t lo, int64_t hi, int64_t width, real scale, real reference) {
#pragma omp simd
    for (int64_t j = lo; j < hi; j++) row[j] = real_exp(scale * row[j] - reference);
    clear_outside(row, lo, hi, width);
}

void NAME(linear_near_forward)(struct linear_unit *u, int64_t head) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const struct linear_rows q = linear_rows_of(call->a->q, u->b, head);
    const int64_t values = call->value_pad, pad = call->near_pad;
    const real scale = (real)call->a->scale;
    for (int64_t row = 0; row < u->count; row += SUB_ROWS) {
        const struct near_block b = block_of(u, row);
        scores(u, &b, q.rows + u->first * q.stride, q.stride);
        for (int64_t r = 0; r < b.rows; r++) {
            int64_t lo, hi;
            range_of(u, &b, r, &lo, &hi);
            real *e = w->near_scores + r * pad;
            const real most = scale * real_row_max(e + lo, hi - lo);
            w->near_peaks[row + r] = most;
            exponents(e, lo, hi, b.width, scale, most);
        }
        NAME(attention_gemm)
        (b.rows, values, b.count, w->near_scores, pad, 1, w->near_v + b.offset * values, values, w->near + row * values,
         values, false);
    }
}

void NAME(linear_near_backward)(struct linear_unit *u) {
    const struct linear_call *call = u->call;
    struct linear_worker *w = u->worker;
    const int64_t values = call->value_pad, width = call->width_pad, pad = call->near_pad;
    const real scale = (real)call->a->scale;
    for (int64_t row = 0; row < u->count; row += SUB_ROWS) {
        const struct near_block b = block_of(u, row);
        const real *d_rows = w->d_rows + row * values;
        scores(u, &b, w->x, width);
        NAME(attention_gemm)
        (b.rows, b.width, values, d_rows, values, 1, w->near_v_t + b.offset, pad, w->near_dw, pad, false);
        for (int64_t r = 0; r < b.rows; r++) {
            int64_t lo, hi;
            range_of(u, &b, r, &lo, &hi);
            real *p = w->near_scores + r * pad, *d = w->near_dw + r * pad;
            exponents(p, lo, hi, b.width, scale, w->log_sums[u->first + row + r]);
            clear_outside(d, lo, hi, b.width);
            for (int64_t j = lo; j < hi; j++) d[j] *= scale * p[j];
        }
        NAME(attention_gemm)
        (b.rows, width, b.count, w->near_dw, pad, 1, w->near_k + b.offset * width, width, w->d_x + row * width, width,
         false);
        NAME(attention_gemm)
        (b.count, width, b.rows, w->near_dw, 1, pad, w->x + row * width, width, w->dk + b.first * width, width, true);
        NAME(attention_gemm)
        (b.count, values, b.rows, w->near_scores, 1, pad, d_rows, values, w->dva + b.first * values, values, true);
    }
}
