#include "ops/attention_case.h"

#include "ops/case_arrays.h"

#include "base/memory.h"
#include "base/rng.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t case_query_count(const struct attention_case *row) {
    return row->batch * row->length * row->heads * row->width;
}
int64_t case_key_count(const struct attention_case *row) {
    return row->batch * row->length * row->groups * row->width;
}
static int64_t sums_count(const struct attention_case *row) {
    return row->batch * row->heads * row->count * row->length;
}

bool case_shows(const struct candidate *c, bool causal, const int32_t *start, int64_t i, int64_t j) {
    if (start[i] != start[j] || (causal && j > i)) return false;
    const int64_t distance = llabs(i - j), place = j - start[j], own = i - start[i];
    switch (c->kind) {
    case CANDIDATE_FULL:
        return true;
    case CANDIDATE_WINDOW:
        return distance < c->a;
    case CANDIDATE_SINKS:
        return place < c->a;
    case CANDIDATE_OFFSET:
        return distance == c->a;
    case CANDIDATE_DILATED:
        return distance % c->b == 0 && distance / c->b < c->a;
    case CANDIDATE_STRIDE:
        return place % c->a == 0;
    case CANDIDATE_BLOCKS:
        return place / c->a == own / c->a;
    }
    return false;
}

static double *draw(int64_t count, uint64_t seed, uint64_t part, double magnitude) {
    double *array = case_new_array(count);
    for (int64_t n = 0; n < count; n++) /* Rounded to float, so that every table sees the same numbers. */
        array[n] = (double)(float)(magnitude * rng_normal(seed, rng_substream(RNG_TEST, part), (uint64_t)n));
    return array;
}

void case_fill(const struct attention_case *row, uint64_t seed, struct attention_arrays *x) {
    const int64_t queries = case_query_count(row), keys = case_key_count(row);
    const double magnitude = row->magnitude > 0 ? row->magnitude : 1;
    x->q = draw(queries, seed, 1, magnitude);
    x->k = draw(keys, seed, 2, 1);
    x->v = draw(keys, seed, 3, 1);
    x->d_o = draw(queries, seed, 4, 1);
    x->coefficients = case_new_array(row->heads * row->count);
    for (int64_t h = 0; h < row->heads; h++)
        for (int m = 0; m < row->count; m++)
            x->coefficients[h * row->count + m] =
                row->plain ? 1 : (double)(float)row->coefficients[row->shared ? 0 : h % 2][m];
    x->o = case_new_array(queries);
    x->log_sums = case_new_array(sums_count(row));
    x->dq = case_new_array(queries);
    x->dk = case_new_array(keys);
    x->dv = case_new_array(keys);
    x->dcoefficients = case_new_array(row->heads * row->count);
    x->start = case_new_start(row->batch, row->length, row->cuts);
}

void case_free(struct attention_arrays *x) {
    double *arrays[] = {x->q,        x->k,  x->v,  x->d_o, x->coefficients, x->o,
                        x->log_sums, x->dq, x->dk, x->dv,  x->dcoefficients};
    for (size_t n = 0; n < sizeof arrays / sizeof *arrays; n++) free(arrays[n]);
    free(x->start);
}

/* One query row: scores, weights of every candidate, output, gradients. p [count][T]: scratch. */
static void reference_row(const struct attention_case *row, struct attention_arrays *x, int64_t b, int64_t h, int64_t i,
                          double *p) {
    const int64_t length = row->length, width = row->width, heads = row->heads, groups = row->groups;
    const int64_t group = h / (heads / groups);
    const double scale = 1 / sqrt((double)width), *c = x->coefficients + h * row->count;
    const int32_t *start = x->start + b * length;
    const int64_t query = ((b * length + i) * heads + h) * width;
    for (int m = 0; m < row->count; m++) {
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < length; j++) {
            const double *k = x->k + ((b * length + j) * groups + group) * width;
            double score = 0;
            for (int64_t d = 0; d < width; d++) score += scale * x->q[query + d] * k[d];
            p[m * length + j] = case_shows(&row->candidates[m], !row->bidirectional, start, i, j) ? score : -INFINITY;
            most = fmax(most, p[m * length + j]);
        }
        for (int64_t j = 0; j < length; j++) {
            p[m * length + j] = most > -INFINITY ? exp(p[m * length + j] - most) : 0;
            sum += p[m * length + j];
        }
        for (int64_t j = 0; j < length && sum > 0; j++) p[m * length + j] /= sum;
        x->log_sums[((b * heads + h) * row->count + m) * length + i] =
            sum > 0 && c[m] != 0 ? most + log(sum) : -INFINITY;
    }
    double deltas[CANDIDATES_MAX] = {0};
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = 0; j < length; j++) {
            const int64_t key = ((b * length + j) * groups + group) * width;
            double d_weight = 0, weight = 0, d_score = 0;
            for (int64_t d = 0; d < width; d++) d_weight += x->d_o[query + d] * x->v[key + d];
            for (int m = 0; m < row->count; m++) {
                const double part = p[m * length + j];
                if (pass == 0) deltas[m] += part * d_weight;
                weight += c[m] * part;
                d_score += c[m] * part * (d_weight - deltas[m]);
            }
            for (int64_t d = 0; pass == 1 && d < width; d++) {
                x->o[query + d] += weight * x->v[key + d];
                x->dq[query + d] += scale * d_score * x->k[key + d];
                x->dk[key + d] += scale * d_score * x->q[query + d];
                x->dv[key + d] += weight * x->d_o[query + d];
            }
        }
    for (int m = 0; m < row->count; m++)
        if (c[m] != 0 || row->dead_gradients) x->dcoefficients[(row->shared ? 0 : h) * row->count + m] += deltas[m];
}

void case_reference(const struct attention_case *row, struct attention_arrays *x) {
    double *p = case_new_array(row->count * row->length);
    for (int64_t b = 0; b < row->batch; b++)
        for (int64_t h = 0; h < row->heads; h++)
            for (int64_t i = 0; i < row->length; i++) reference_row(row, x, b, h, i, p);
    free(p);
}

void case_round(const struct attention_case *row, struct attention_arrays *x) {
    const int64_t queries = case_query_count(row), keys = case_key_count(row);
    case_round_bf16(x->q, queries);
    case_round_bf16(x->d_o, queries);
    case_round_bf16(x->k, keys);
    case_round_bf16(x->v, keys);
}

struct tensor case_to_device(const struct ops *ops, enum dtype dtype, const double *from, int64_t count) {
    struct tensor t = tensor_1d(NULL, dtype, count);
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    void *host;
    CHECK_OK(memory_new((size_t)count, sizeof(double), "a copy", &host));
    for (int64_t n = 0; n < count; n++)
        if (dtype == DTYPE_F64)
            ((double *)host)[n] = from[n];
        else if (dtype == DTYPE_F32)
            ((float *)host)[n] = (float)from[n];
        else
            ((uint16_t *)host)[n] = bf16_from_float((float)from[n]);
    CHECK_OK(ops->upload(ops, t, host));
    free(host);
    return t;
}

void case_from_device(const struct ops *ops, struct tensor t, double *to) {
    void *host;
    CHECK_OK(memory_new((size_t)tensor_count(t), sizeof(double), "a copy", &host));
    CHECK_OK(ops->download(ops, t, host));
    for (int64_t n = 0; n < tensor_count(t); n++)
        if (t.dtype == DTYPE_F64)
            to[n] = ((double *)host)[n];
        else
            to[n] = (double)(t.dtype == DTYPE_F32 ? ((float *)host)[n] : bf16_to_float(((uint16_t *)host)[n]));
    free(host);
}

/* Moves [B·T][columns] in or out of columns first … of a matrix [B·T][all]. */
static void columns(double *matrix, int64_t rows, int64_t all, int64_t first, double *dense, int64_t count, bool out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < count; n++) {
            double *a = matrix + r * all + first + n, *b = dense + r * count + n;
            *(out ? b : a) = *(out ? a : b);
        }
}

struct views {
    struct tensor block[3], q, k, v; /* fused: one block [B·T,(H+2G)D] */
};

static struct tensor view4(const struct attention_case *row, struct tensor block, int64_t heads) {
    return tensor_4d(block.data, block.dtype, row->batch, row->length, heads, row->width);
}

static struct views make_views(const struct ops *ops, const struct attention_case *row, double *q, double *k,
                               double *v) {
    const int64_t tokens = row->batch * row->length, width = row->width;
    const int64_t a = row->heads * width, b = row->groups * width, all = a + 2 * b;
    struct views x = {0};
    if (!row->fused) {
        x.q = view4(row, x.block[0] = case_to_device(ops, ops->real, q, tokens * a), row->heads);
        x.k = view4(row, x.block[1] = case_to_device(ops, ops->real, k, tokens * b), row->groups);
        x.v = view4(row, x.block[2] = case_to_device(ops, ops->real, v, tokens * b), row->groups);
        return x;
    }
    double *matrix = case_new_array(tokens * all);
    columns(matrix, tokens, all, 0, q, a, false);
    columns(matrix, tokens, all, a, k, b, false);
    columns(matrix, tokens, all, a + b, v, b, false);
    x.block[0] = case_to_device(ops, ops->real, matrix, tokens * all);
    free(matrix);
    const struct tensor whole = tensor_2d(x.block[0].data, ops->real, tokens, all);
    x.q = tensor_split_heads(tensor_columns(whole, 0, a), row->batch, row->length, row->heads, width);
    x.k = tensor_split_heads(tensor_columns(whole, a, b), row->batch, row->length, row->groups, width);
    x.v = tensor_split_heads(tensor_columns(whole, a + b, b), row->batch, row->length, row->groups, width);
    return x;
}

/* Reads q, k, v back and frees them. */
static void close_views(const struct ops *ops, const struct attention_case *row, struct views *x, double *q, double *k,
                        double *v) {
    const int64_t tokens = row->batch * row->length, width = row->width;
    const int64_t a = row->heads * width, b = row->groups * width, all = a + 2 * b;
    if (q && !row->fused) {
        case_from_device(ops, x->block[0], q);
        case_from_device(ops, x->block[1], k);
        case_from_device(ops, x->block[2], v);
    } else if (q) {
        double *matrix = case_new_array(tokens * all);
        case_from_device(ops, x->block[0], matrix);
        columns(matrix, tokens, all, 0, q, a, true);
        columns(matrix, tokens, all, a, k, b, true);
        columns(matrix, tokens, all, a + b, v, b, true);
        free(matrix);
    }
    for (int n = 0; n < 3; n++) ops->release(ops, x->block[n].data);
}

void case_run(const struct ops *ops, const struct attention_case *row, struct attention_arrays *x, bool backward) {
    const int64_t queries = case_query_count(row), coefficients = row->heads * row->count;
    struct views in = make_views(ops, row, x->q, x->k, x->v);
    struct tensor o = case_to_device(ops, ops->real, x->o, queries),
                  d_o = case_to_device(ops, ops->real, x->d_o, queries);
    struct tensor c = case_to_device(ops, ops->statistic, x->coefficients, coefficients);
    struct tensor sums = case_to_device(ops, ops->statistic, x->log_sums, sums_count(row));
    struct tensor start = tensor_2d(NULL, DTYPE_I32, row->batch, row->length);
    CHECK_OK(ops->allocate(ops, tensor_bytes(start), &start.data));
    CHECK_OK(ops->upload(ops, start, x->start));
    struct attention_backward g = {.dead_gradients = row->dead_gradients, .d_o = view4(row, d_o, row->heads)};
    struct attention *a = &g.forward;
    *a = (struct attention){.q = in.q, .k = in.k, .v = in.v, .start = start, .o = view4(row, o, row->heads)};
    a->coefficients = row->plain ? tensor_none() : tensor_2d(c.data, c.dtype, row->heads, row->count);
    if (row->shared) a->coefficients.stride[0] = 0;
    a->log_sums = tensor_4d(sums.data, sums.dtype, row->batch, row->heads, row->count, row->length);
    memcpy(a->candidates, row->candidates, sizeof a->candidates);
    a->count = row->count;
    a->causal = !row->bidirectional;
    a->scale = 1 / sqrt((double)row->width);
    CHECK_OK(ops->attention(ops, a));
    if (backward) {
        struct views out = make_views(ops, row, x->dq, x->dk, x->dv);
        struct tensor dc = case_to_device(ops, ops->statistic, x->dcoefficients, coefficients);
        g.dq = out.q;
        g.dk = out.k;
        g.dv = out.v;
        g.dcoefficients = row->plain ? tensor_none() : tensor_2d(dc.data, dc.dtype, row->heads, row->count);
        if (row->shared) g.dcoefficients.stride[0] = 0;
        CHECK_OK(ops->attention_backward(ops, &g));
        CHECK_OK(ops->synchronise(ops));
        case_from_device(ops, dc, x->dcoefficients);
        close_views(ops, row, &out, x->dq, x->dk, x->dv);
        ops->release(ops, dc.data);
    }
    CHECK_OK(ops->synchronise(ops));
    case_from_device(ops, o, x->o);
    case_from_device(ops, sums, x->log_sums);
    close_views(ops, row, &in, NULL, NULL, NULL);
    ops->release(ops, o.data);
    ops->release(ops, d_o.data);
    ops->release(ops, c.data);
    ops->release(ops, sums.data);
    ops->release(ops, start.data);
}

static void compare(const struct attention_case *row, const char *what, const char *name, const double *expected,
                    const double *found, int64_t count, double tolerance) {
    double largest = 0, worst = -1;
    int64_t where = 0;
    for (int64_t n = 0; n < count; n++)
        if (isfinite(expected[n])) largest = fmax(largest, fabs(expected[n]));
    for (int64_t n = 0; n < count; n++) {
        double error = expected[n] == found[n] ? 0 : fabs(expected[n] - found[n]);
        if (isnan(error)) error = INFINITY;
        if (error > worst) {
            worst = error;
            where = n;
        }
    }
    /* Where all should cancel, what remains is a rounding error of terms that are about 1. */
    if (worst > tolerance * fmax(largest, 0.2))
        fail_msg("%s, %s: %s[%lld]: expected %.9g, found %.9g (largest %.3g, tolerance %.1e)", row->name, what, name,
                 (long long)where, expected[where], found[where], largest, tolerance);
}

void case_compare(const struct attention_case *row, const char *what, const struct attention_arrays *expected,
                  const struct attention_arrays *found, double tolerance) {
    const int64_t queries = case_query_count(row), keys = case_key_count(row);
    compare(row, what, "o", expected->o, found->o, queries, tolerance);
    compare(row, what, "log_sums", expected->log_sums, found->log_sums, sums_count(row), tolerance);
    compare(row, what, "dq", expected->dq, found->dq, queries, tolerance);
    compare(row, what, "dk", expected->dk, found->dk, keys, tolerance);
    compare(row, what, "dv", expected->dv, found->dv, keys, tolerance);
    if (!row->plain)
        compare(row, what, "dcoefficients", expected->dcoefficients, found->dcoefficients, row->heads * row->count,
                tolerance);
}
