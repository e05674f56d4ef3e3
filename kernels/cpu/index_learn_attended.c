/* index_learn over the tokens that a query reads: everything is rows that lie apart. */
#include "kernels/cpu/index_learn.h"

/* mass [rows][most] = the heads' softmax over each row's tokens, summed and divided by their number. */
static void find_mass(const struct learn_work *w, const struct learn_unit *x, int64_t b, int64_t list, int64_t first) {
    const struct index_attention *attention = &w->attention;
    const int64_t rows = x->queries.rows, together = attention->heads / attention->groups;
    for (int64_t r = 0; r < rows; r++) memset(x->mass + r * w->most, 0, (size_t)w->most * sizeof(real));
    for (int64_t h = list * w->share; h < (list + 1) * w->share; h++) {
        const real *keys = w->rows + (b * attention->groups + h / together) * w->length * attention->padded;
        NAME(blocks_load)(blocks_rows(attention->q, b, h), first, rows, attention->width, attention->scale, x->q);
        for (int64_t r = 0; r < rows; r++) {
            real *e = x->mass_e;
            const int64_t count = x->counts[r];
            NAME(token_dots)(attention->padded, x->q + r * attention->padded, keys, x->tokens + r * w->most, count, e);
            const real sum = blocks_exponents(e, count, real_row_max(e, count));
            real_axpy(1 / (sum * (real)w->share), e, x->mass + r * w->most, count);
        }
    }
}

/* Products e [J][most] of one row, and its scores. */
static void score_row(const struct learn_work *w, const struct learn_unit *x, int64_t b, int64_t list, int64_t r) {
    const struct index_shape *shape = &w->shape;
    const int64_t rows = x->queries.rows, count = x->counts[r], together = shape->heads / shape->keys;
    real *scores = x->scores;
    memset(scores, 0, (size_t)count * sizeof(real));
    for (int64_t h = 0; h < shape->heads; h++) {
        real *e = x->e + h * w->most;
        const real a = x->queries.a[h * rows + r];
        NAME(token_dots)
        (shape->padded, x->queries.r + (h * rows + r) * shape->padded,
         learn_keys(w, b, list * shape->keys + h / together), x->tokens + r * w->most, count, e);
#pragma omp simd
        for (int64_t u = 0; u < count; u++) scores[u] += a * (e[u] < 0 ? 0 : e[u]);
    }
}

static void row_backward(const struct learn_work *w, const struct learn_unit *x, int64_t b, int64_t list, int64_t r) {
    const struct index_shape *shape = &w->shape;
    const int64_t rows = x->queries.rows, count = x->counts[r], together = shape->heads / shape->keys;
    const int32_t *tokens = x->tokens + r * w->most;
    for (int64_t h = 0; h < shape->heads; h++) {
        real *e = x->e + h * w->most, sum = 0;
        const real a = x->queries.a[h * rows + r], *d = x->scores;
        const int64_t k = h / together;
#pragma omp simd reduction(+ : sum)
        for (int64_t u = 0; u < count; u++) {
            sum += d[u] * (e[u] > 0 ? e[u] : 0);
            e[u] = e[u] > 0 ? a * d[u] : 0;
        }
        x->d_a[h * rows + r] += sum;
        NAME(token_gather)
        (shape->padded, e, learn_keys(w, b, list * shape->keys + k), tokens, count,
         x->d_r + (h * rows + r) * shape->padded);
        NAME(token_scatter)
        (shape->padded, e, x->queries.r + (h * rows + r) * shape->padded, tokens, count,
         x->d_keys + k * w->length * shape->padded);
    }
}

void NAME(learn_attended)(const struct learn_work *w, struct learn_unit *x, int64_t b, int64_t list, int64_t first) {
    real *losses = real_data(w->a->losses) + (b * w->shape.lists + list) * w->length + first;
    for (int64_t r = 0; r < x->queries.rows; r++) {
        const struct token_set set = token_set_of(&w->reach, b, first + r, list);
        x->counts[r] = (int32_t)token_set_all(&set, x->tokens + r * w->most);
    }
    find_mass(w, x, b, list, first);
    for (int64_t r = 0; r < x->queries.rows; r++) {
        score_row(w, x, b, list, r);
        losses[r] = NAME(learn_row)((real)w->a->gradient_scale, x->mass + r * w->most, x->scores, x->counts[r]);
        if (w->gradients) row_backward(w, x, b, list, r);
    }
}
