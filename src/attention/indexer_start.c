/* init: svd of the kind `indexer`: index queries and keys begin as the best factors of low rank of the teacher's own scores, in
 * the mean over what the teacher's layer sees on a few sequences.
 *
 * q·k is to become Σ_e conj(r_e) u_e with few e. With A = E[q qᴴ] and B = E[k kᴴ] the best u_e = w_eᴴ k are those whose w span
 * the leading eigenvectors of A·B; with w_eᴴ B w_f = 1 where e = f, else 0, r_e = (B w_e)ᴴ q. With learned positions all numbers are
 * real. Rotary positions turn pairs of elements, which are complex numbers here, each at its own speed: the teacher's pairs are cut into
 * bands of like speed, and each band becomes one pair of the index. Where both have the same width, scores are the teacher's. */
#include "attention/indexer.h"

#include "base/memory.h"
#include "base/rng.h"
#include "params/values.h"

#include <complex.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 12 };

/* What the start is made from, on the host. */
struct start {
    const struct attention_layer *layer;
    const struct indexer_settings *s;
    const struct model_config *m;
    bool rotary;
    int64_t rows, pairs;       /* N; numbers of a head: D, or D/2 pairs */
    double complex *q, *k;     /* [N,H,pairs], [N,G,pairs], not turned */
    double *weight, *bias;     /* the teacher's attn.qkv [(H+2G)·D,C]; zeros where it has no bias */
    double *query, *query_bias, *key, *key_bias, *head_bias; /* the rows that are made */
};

/* One factorisation: heads whose scores share index keys, and the range of their numbers that one band holds. */
struct factor {
    int64_t first, end;       /* pairs of a head, or elements */
    int64_t heads, head_step; /* teacher heads head, head + head_step, …, `heads` of them */
    int64_t head;
    int64_t group, groups;    /* key heads that these read */
    int64_t size, count;      /* groups·(end − first); how many factors are wanted */
    double complex *a, *b;    /* [size,size] */
    double complex *w, *bw;   /* [count,size] */
};

static int64_t group_of(const struct start *x, int64_t head) {
    return head / (x->m->heads / x->m->kv_heads);
}

/* --- moments ------------------------------------------------------------------------------------------------------ */

static void add_outer(double complex *moments, int64_t size, int64_t place, const double complex *values, int64_t count,
                      double share) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < count; j++)
            moments[(place + i) * size + place + j] += share * values[i] * conj(values[j]);
}

static enum status find_moments(const struct start *x, struct factor *f) {
    const int64_t band = f->end - f->first, heads = x->m->heads, groups = x->m->kv_heads;
    double complex *line = NULL;
    TRY(memory_new((size_t)f->size, sizeof *line, "keys of a band", &line));
    for (int64_t n = 0; n < x->rows; n++) {
        for (int64_t g = 0; g < f->groups; g++)
            memcpy(line + g * band, x->k + (n * groups + f->group + g) * x->pairs + f->first, (size_t)band * sizeof *line);
        add_outer(f->b, f->size, 0, line, f->size, 1 / (double)x->rows);
        for (int64_t h = 0; h < f->heads; h++) {
            const int64_t head = f->head + h * f->head_step;
            add_outer(f->a, f->size, (group_of(x, head) - f->group) * band,
                      x->q + (n * heads + head) * x->pairs + f->first, band, 1 / (double)x->rows);
        }
    }
    free(line);
    return STATUS_OK;
}

/* y [count,size] = m·x, row by row. */
static void multiply(const double complex *m, const double complex *x, int64_t count, int64_t size, double complex *y) {
    for (int64_t n = 0; n < count; n++)
        for (int64_t i = 0; i < size; i++) {
            double complex sum = 0;
            for (int64_t j = 0; j < size; j++) sum += m[i * size + j] * x[n * size + j];
            y[n * size + i] = sum;
        }
}

static double complex inner(const double complex *x, const double complex *y, int64_t size) {
    double complex sum = 0;
    for (int64_t i = 0; i < size; i++) sum += conj(x[i]) * y[i];
    return sum;
}

/* The rows of w made orthonormal in the inner product of b, in order; one that depends on those before it becomes 0. bw = b·w. */
static void orthonormalise(struct factor *f) {
    multiply(f->b, f->w, f->count, f->size, f->bw);
    for (int64_t e = 0; e < f->count; e++) {
        double complex *w = f->w + e * f->size, *bw = f->bw + e * f->size;
        const double before = creal(inner(w, bw, f->size));
        for (int pass = 0; pass < 2; pass++)
            for (int64_t n = 0; n < e; n++) {
                const double complex part = inner(f->bw + n * f->size, w, f->size);
                for (int64_t i = 0; i < f->size; i++) {
                    w[i] -= part * f->w[n * f->size + i];
                    bw[i] -= part * f->bw[n * f->size + i];
                }
            }
        const double left = creal(inner(w, bw, f->size)), scale = left > 1e-10 * before && left > 0 ? 1 / sqrt(left) : 0;
        for (int64_t i = 0; i < f->size; i++) {
            w[i] *= scale;
            bw[i] *= scale;
        }
    }
}

static void free_factor(struct factor *f) {
    free(f->a);
    free(f->b);
    free(f->w);
    free(f->bw);
}

/* The leading `count` factors, by subspace iteration (Halko, Martinsson and Tropp 2011). */
static enum status find_factors(const struct start *x, struct factor *f) {
    const size_t square = (size_t)(f->size * f->size), lines = (size_t)(f->count * f->size);
    TRY(memory_new(square, sizeof *f->a, "moments of queries", &f->a));
    TRY(memory_new(square, sizeof *f->b, "moments of keys", &f->b));
    TRY(memory_new(lines, sizeof *f->w, "factors", &f->w));
    TRY(memory_new(lines, sizeof *f->bw, "factors", &f->bw));
    TRY(find_moments(x, f));
    for (size_t n = 0; n < lines; n++) {
        const uint64_t stream = rng_substream(RNG_INIT, (uint64_t)x->layer->layer);
        f->w[n] = rng_normal(0, stream, 2 * n) + (x->rotary ? I * rng_normal(0, stream, 2 * n + 1) : 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        orthonormalise(f);
        multiply(f->a, f->bw, f->count, f->size, f->w);
    }
    orthonormalise(f);
    return STATUS_OK;
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

/* Row `to` of the index (weights and bias) += the linear form Re or Im (part 1) of conj(c)·(element `pair` of the teacher's projection
 * that begins at row `from`). */
static void add_form(const struct start *x, double *weight, double *bias, int64_t to, int64_t from, int64_t pair, int part,
                     double complex c) {
    const int64_t inputs = x->m->width, half = x->m->head_width / 2;
    const double factors[2][2] = {{creal(c), cimag(c)}, {-cimag(c), creal(c)}};
    for (int n = 0; n < (x->rotary ? 2 : 1); n++) {
        const double factor = factors[part][n];
        const int64_t row = from + pair + n * half;
        for (int64_t i = 0; i < inputs; i++) weight[to * inputs + i] += factor * x->weight[row * inputs + i];
        bias[to] += factor * x->bias[row];
    }
}

static void clear_row(const struct start *x, double *weight, double *bias, int64_t row) {
    memset(weight + row * x->m->width, 0, (size_t)x->m->width * sizeof *weight);
    bias[row] = 0;
}

/* Factor e of the band becomes number `place` of the index key `key`. */
static void write_key(const struct start *x, const struct factor *f, int64_t e, int64_t key, int64_t place) {
    const int64_t width = x->s->width, band = f->end - f->first, queries = x->m->heads * x->m->head_width;
    for (int part = 0; part < (x->rotary ? 2 : 1); part++) {
        const int64_t row = key * width + place + part * width / 2;
        clear_row(x, x->key, x->key_bias, row);
        for (int64_t i = 0; i < f->size; i++)
            add_form(x, x->key, x->key_bias, row, queries + (f->group + i / band) * x->m->head_width, f->first + i % band, part,
                     f->w[e * f->size + i]);
    }
}

/* The same of index query `query`, for the teacher heads of the factor that are `step` apart from `head`. */
static void write_query(const struct start *x, const struct factor *f, int64_t e, int64_t query, int64_t place, int64_t head,
                        int64_t step, double sign) {
    const int64_t width = x->s->width, band = f->end - f->first, last = f->head + (f->heads - 1) * f->head_step;
    const double scale = sign * sqrt((double)width / (double)x->m->head_width);
    for (int part = 0; part < (x->rotary ? 2 : 1); part++) {
        const int64_t row = query * width + place + part * width / 2;
        for (int64_t h = head; h <= last; h += step)
            for (int64_t i = 0; i < band; i++)
                add_form(x, x->query, x->query_bias, row, h * x->m->head_width, f->first + i, part,
                         scale * f->bw[e * f->size + (group_of(x, h) - f->group) * band + i]);
    }
}

/* Index heads first … first + count − 1 of list `list` share key `key`: those that stand for teacher heads get their forms. tier: which
 * factors, for index heads that share out one head's. */
static enum status write_band(const struct start *x, int64_t list, int64_t key, int64_t first, int64_t count, int64_t tier,
                              struct factor *f, int64_t place) {
    const int64_t together = x->m->heads / x->s->lists, each = x->rotary ? 1 : x->s->width;
    f->size = f->groups * (f->end - f->first);
    f->count = (tier + 1) * each < f->size ? (tier + 1) * each : f->size;
    enum status status = find_factors(x, f);
    for (int64_t e = tier * each; e < f->count && status == STATUS_OK; e++) {
        const int64_t at = place + e - tier * each;
        write_key(x, f, e, key, at);
        for (int64_t j = first; j < first + count; j++) {
            const int64_t head = list * together + (together == 1 ? 0 : j);
            const double sign = together == 1 && j % 2 ? -1 : 1;
            if (x->head_bias[list * x->s->heads + j] != 0)
                write_query(x, f, e, list * x->s->heads + j, at, head, x->s->heads, sign);
        }
    }
    free_factor(f);
    return status;
}

/* Which index heads stand for something, and with which sign: one head's scores need two, for relu leaves half of them; of several
 * heads each has one, in turn. */
static void assign(const struct start *x, int64_t list) {
    const int64_t together = x->m->heads / x->s->lists, width = x->rotary ? x->m->head_width / 2 : x->m->head_width;
    const int64_t each = x->rotary ? (x->s->width / 2 < width ? x->s->width / 2 : width) : x->s->width;
    for (int64_t j = 0; j < x->s->heads; j++) {
        double weight = together > 1 ? j < together : x->s->each ? j / 2 * each < width : j < 2;
        if (together == 1 && j % 2) weight = -weight;
        const int64_t query = list * x->s->heads + j;
        x->head_bias[query] = weight;
        for (int64_t e = 0; weight != 0 && e < x->s->width; e++)
            clear_row(x, x->query, x->query_bias, query * x->s->width + e);
    }
}

static enum status write_list(const struct start *x, int64_t list) {
    const struct indexer_settings *s = x->s;
    const int64_t together = x->m->heads / s->lists, keys = indexer_keys(s), heads = s->heads / keys;
    assign(x, list);
    for (int64_t n = 0; n < keys; n++) {
        if (x->head_bias[list * s->heads + n * heads] == 0) continue;
        const int64_t key = list * keys + n, bands = x->rotary ? s->width / 2 : 1;
        for (int64_t p = 0; p < (bands < x->pairs ? bands : x->pairs); p++) {
            struct factor f = {.first = 0, .end = x->pairs, .head = list * together, .head_step = 1, .heads = together};
            if (x->rotary && bands < x->pairs) {
                f.first = p * x->pairs / bands;
                f.end = (p + 1) * x->pairs / bands;
            } else if (x->rotary) {
                f.first = p;
                f.end = p + 1;
            }
            if (s->each && together > 1) { /* the heads of this index head alone */
                f.head += n;
                f.head_step = s->heads;
                f.heads = (together - n + s->heads - 1) / s->heads;
            }
            f.group = group_of(x, f.head);
            f.groups = group_of(x, f.head + (f.heads - 1) * f.head_step) - f.group + 1;
            TRY(write_band(x, list, key, n * heads, heads, s->each && together == 1 ? n / 2 : 0, &f, p));
        }
    }
    return STATUS_OK;
}

/* --- in and out --------------------------------------------------------------------------------------------------- */

static enum status read_row(const struct start *x, const char *name, double **values) {
    char full[64];
    snprintf(full, sizeof full, "h.%lld.attn.%s", (long long)x->layer->layer, name);
    const struct param *row = params_find(x->layer->params, full);
    if (!row) return STATUS_OK;
    TRY(memory_new((size_t)tensor_count(row->value), sizeof **values, full, values));
    return values_read(x->layer->params->ops, row->value, *values);
}

static enum status write_row(const struct start *x, const char *name, double *values) {
    char full[64];
    snprintf(full, sizeof full, "h.%lld.attn.%s", (long long)x->layer->layer, name);
    const struct params *params = x->layer->params;
    const struct param *row = params_find(params, full);
    TRY(values_write(params->ops, row->value, values));
    return params_wrote(params, row);
}

static enum status read_rows(struct start *x) {
    TRY(read_row(x, "qkv.weight", &x->weight));
    TRY(read_row(x, "qkv.bias", &x->bias));
    if (!x->bias) TRY(memory_new((size_t)model_qkv_width(x->m), sizeof *x->bias, "biases", &x->bias));
    TRY(read_row(x, "indexer.query.weight", &x->query));
    TRY(read_row(x, "indexer.query.bias", &x->query_bias));
    TRY(read_row(x, "indexer.key.weight", &x->key));
    TRY(read_row(x, "indexer.key.bias", &x->key_bias));
    return read_row(x, "indexer.head.bias", &x->head_bias);
}

static enum status write_rows(const struct start *x) {
    TRY(write_row(x, "indexer.query.weight", x->query));
    TRY(write_row(x, "indexer.query.bias", x->query_bias));
    TRY(write_row(x, "indexer.key.weight", x->key));
    TRY(write_row(x, "indexer.key.bias", x->key_bias));
    return write_row(x, "indexer.head.bias", x->head_bias);
}

/* to [N,heads,pairs] = a view [B,T,heads,D], turned back to position 0. angles: frequencies [D/2] and positions [N] on the host. */
static enum status read_heads(const struct start *x, const struct attention_pass *pass, struct tensor heads,
                              const double *frequencies, const int32_t *positions, double complex *to) {
    const struct ops *ops = pass->ops;
    const int64_t count = heads.shape[2], width = heads.shape[3];
    enum status status = STATUS_OK;
    double *values = NULL;
    void *block = NULL;
    TRY_GOTO(done, ops->allocate(ops, (size_t)tensor_count(heads) * dtype_size(ops->real), &block));
    const struct tensor dense = tensor_4d(block, ops->real, pass->batch, pass->length, count, width);
    TRY_GOTO(done, ops->copy(ops, heads, dense));
    TRY_GOTO(done, memory_new((size_t)tensor_count(heads), sizeof *values, "projections", &values));
    TRY_GOTO(done, values_read(ops, dense, values));
    for (int64_t n = 0; n < x->rows * count; n++)
        for (int64_t p = 0; p < x->pairs; p++) {
            const double *row = values + n * width;
            to[n * x->pairs + p] = row[p];
            if (!x->rotary) continue;
            const double angle = -frequencies[p] * (double)positions[n / count];
            to[n * x->pairs + p] = (row[p] + I * row[p + width / 2]) * (cos(angle) + I * sin(angle));
        }
done:
    free(values);
    if (block) ops->release(ops, block);
    return status;
}

static enum status read_pass(struct start *x, const struct attention_pass *pass) {
    const struct ops *ops = pass->ops;
    enum status status = STATUS_OK;
    double *frequencies = NULL;
    int32_t *positions = NULL;
    TRY_GOTO(done, memory_new((size_t)(x->rows * x->m->heads * x->pairs), sizeof *x->q, "queries", &x->q));
    TRY_GOTO(done, memory_new((size_t)(x->rows * x->m->kv_heads * x->pairs), sizeof *x->k, "keys", &x->k));
    TRY_GOTO(done, memory_new((size_t)x->pairs, sizeof *frequencies, "rotary frequencies", &frequencies));
    TRY_GOTO(done, memory_new((size_t)x->rows, sizeof *positions, "positions", &positions));
    if (x->rotary) TRY_GOTO(done, values_read(ops, pass->frequencies, frequencies));
    TRY_GOTO(done, ops->download(ops, pass->positions, positions));
    TRY_GOTO(done, read_heads(x, pass, pass->q, frequencies, positions, x->q));
    status = read_heads(x, pass, pass->k, frequencies, positions, x->k);
done:
    free(frequencies);
    free(positions);
    return status;
}

enum status indexer_calibrate(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const bool rotary = !model_has_learned_positions(m);
    struct start x = {.layer = layer, .s = s, .m = m, .rotary = rotary, .rows = pass->batch * pass->length,
                      .pairs = rotary ? m->head_width / 2 : m->head_width};
    enum status status = STATUS_OK;
    if (s->random) return STATUS_OK;
    TRY_GOTO(done, read_rows(&x));
    TRY_GOTO(done, read_pass(&x, pass));
    for (int64_t list = 0; list < s->lists; list++) TRY_GOTO(done, write_list(&x, list));
    status = write_rows(&x);
done:;
    double *values[] = {x.weight, x.bias, x.query, x.query_bias, x.key, x.key_bias, x.head_bias};
    for (size_t n = 0; n < sizeof values / sizeof *values; n++) free(values[n]);
    free(x.q);
    free(x.k);
    return status;
}
