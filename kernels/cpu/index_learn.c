/* Learning where to look: the divergence of an indexer's scores from attention itself, and its gradients. The rows of a
 * list are dealt to a few tasks, each of which has keys' gradients of its own; they are added in the tasks' order. */
#include "kernels/cpu/index_learn.h"

#include <omp.h>

enum { PARTS = 8 /* tasks at least, where there are rows enough */ };

static size_t place(struct learn_work *w, char *memory) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const struct index_shape *shape = &w->shape;
    const size_t heads = (size_t)(w->batch * shape->lists * shape->keys), tokens = (size_t)w->length;
    const size_t groups = (size_t)(w->batch * w->attention.groups);
    const bool all = !w->a->attended;
    w->runs = arena_take(&arena, all ? heads * (size_t)(w->columns * shape->width) * sizeof(real) : 0);
    w->keys = arena_take(&arena, heads * tokens * (size_t)shape->padded * sizeof(real));
    w->attention.runs = arena_take(&arena, all ? groups * (size_t)w->attention.run_elements * sizeof(real) : 0);
    w->rows = arena_take(&arena, all ? 0 : groups * tokens * (size_t)w->attention.padded * sizeof(real));
    w->d_keys =
        arena_take(&arena, w->gradients ? (size_t)w->parts * heads * tokens * (size_t)shape->padded * sizeof(real) : 0);
    w->hits = arena_take(&arena, (size_t)(w->batch * shape->lists) * tokens * sizeof(real));
    return arena.used;
}

static size_t place_unit(const struct learn_work *w, char *memory, struct learn_unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const size_t heads = (size_t)w->shape.heads, padded = (size_t)w->shape.padded;
    const size_t pairs = (size_t)(w->a->attended ? w->most : w->columns);
    x->queries.r = arena_take(&arena, heads * INDEX_ROWS * padded * sizeof(real));
    x->queries.a = arena_take(&arena, heads * INDEX_ROWS * sizeof(real));
    x->e = arena_take(&arena, heads * (w->a->attended ? pairs : INDEX_ROWS * INDEX_COLUMNS) * sizeof(real));
    x->scores = arena_take(&arena, INDEX_ROWS * pairs * sizeof(real));
    x->mass = arena_take(&arena, INDEX_ROWS * pairs * sizeof(real));
    x->mass_e = arena_take(&arena, INDEX_ROWS * pairs * sizeof(real));
    x->q = arena_take(&arena, INDEX_ROWS * (size_t)w->attention.padded * sizeof(real));
    x->d_r = arena_take(&arena, heads * INDEX_ROWS * padded * sizeof(real));
    x->d_a = arena_take(&arena, heads * INDEX_ROWS * sizeof(real));
    x->tokens = arena_take(&arena, INDEX_ROWS * (size_t)w->most * sizeof(int32_t));
    x->counts = arena_take(&arena, INDEX_ROWS * sizeof(int32_t));
    return arena.used;
}

real NAME(learn_row)(real gradient_scale, const real *mass, real *scores, int64_t count) {
    const real most = real_row_max(scores, count);
    real sum = 0, loss = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t u = 0; u < count; u++) sum += real_exp(scores[u] - most);
    const real log_sum = most + real_log(sum);
    for (int64_t u = 0; u < count; u++)
        if (mass[u] > 0) loss += mass[u] * (real_log(mass[u]) - (scores[u] - log_sum));
#pragma omp simd
    for (int64_t u = 0; u < count; u++) scores[u] = gradient_scale * (real_exp(scores[u] - log_sum) - mass[u]);
    return loss;
}

/* e [J·rows][n], the index heads' products, become their gradients; d_a += what reaches a. d: of the scores, rows `row`
 * apart. */
static void products_backward(const struct learn_work *w, const struct learn_unit *x, const real *d, int64_t row,
                              int64_t n) {
    const int64_t rows = x->queries.rows;
    for (int64_t h = 0; h < w->shape.heads; h++)
        for (int64_t r = 0; r < rows; r++) {
            real *e = x->e + (h * rows + r) * n, sum = 0;
            const real *own = d + r * row, a = x->queries.a[h * rows + r];
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < n; c++) {
                sum += own[c] * (e[c] > 0 ? e[c] : 0);
                e[c] = e[c] > 0 ? a * own[c] : 0;
            }
            x->d_a[h * rows + r] += sum;
        }
}

/* Scores' gradients, from column `low`, back to index queries and keys. */
static void all_backward(const struct learn_work *w, const struct learn_unit *x, int64_t b, int64_t list, int64_t low,
                         int64_t columns) {
    const struct index_shape *shape = &w->shape;
    const int64_t rows = x->queries.rows, padded = shape->padded, together = shape->heads / shape->keys * rows;
    for (int64_t u = 0; u < columns; u += INDEX_COLUMNS) {
        const int64_t n = at_most(INDEX_COLUMNS, columns - u), first = low + u, real_n = at_most(n, w->length - first);
        for (int64_t k = 0; k < shape->keys; k++) NAME(blocks_products)
        (together, shape->width, x->queries.r + k * rows * padded,
         w->runs + ((b * shape->lists + list) * shape->keys + k) * w->columns * shape->width, first, n,
         x->e + k * rows * n);
        products_backward(w, x, x->scores + u, w->columns, n);
        for (int64_t k = 0; k < shape->keys; k++) {
            const real *e = x->e + k * rows * n, *r = x->queries.r + k * rows * padded;
            NAME(attention_gemm)
            (together, padded, real_n, e, n, 1, learn_keys(w, b, list * shape->keys + k) + first * padded, padded,
             x->d_r + k * rows * padded, padded, true);
            NAME(attention_gemm)
            (real_n, padded, together, e, 1, n, r, padded, x->d_keys + (k * w->length + first) * padded, padded, true);
        }
    }
}

static void all_pairs(const struct learn_work *w, struct learn_unit *x, int64_t b, int64_t list, int64_t first) {
    const struct index_shape *shape = &w->shape;
    const struct index_learn *a = w->a;
    const int64_t rows = x->queries.rows, row = w->columns;
    const int64_t low = token_set_of(&w->reach, b, first, list).start / LANES * LANES;
    const int64_t columns = pad_lanes(first + rows - low);
    real *losses = real_data(a->losses) + (b * shape->lists + list) * w->length + first;
    NAME(index_mass)(&w->attention, b, list * w->share, w->share, first, rows, low, row, x->q, x->mass_e, x->mass);
    NAME(index_score)
    (shape, &x->queries, w->runs + (b * shape->lists + list) * shape->keys * w->columns * shape->width,
     w->columns * shape->width, low, columns, x->e, false, x->scores, row);
    for (int64_t r = 0; r < rows; r++) {
        const struct token_set set = token_set_of(&w->reach, b, first + r, list);
        const int64_t from = set.start - low, count = set.query + 1 - set.start;
        real *scores = x->scores + r * row, *mass = x->mass + r * row + from;
        for (int64_t u = 0; u < count; u++) mass[u] *= 1 / (real)w->share;
        losses[r] = NAME(learn_row)((real)a->gradient_scale, mass, scores + from, count);
        memset(scores, 0, (size_t)from * sizeof(real));
        memset(scores + from + count, 0, (size_t)(columns - from - count) * sizeof(real));
        if (!tensor_present(a->hits)) continue;
        const int64_t read = token_set_all(&set, x->tokens);
        real hit = 0;
        for (int64_t u = 0; u < read; u++) hit += mass[x->tokens[u] - set.start];
        w->hits[(b * shape->lists + list) * w->length + first + r] = hit;
    }
    if (w->gradients) all_backward(w, x, b, list, low, columns);
}

/* d_r and d_a of the rows that were taken. */
static void store_rows(const struct learn_work *w, const struct learn_unit *x, int64_t b, int64_t list, int64_t first) {
    const int64_t rows = x->queries.rows;
    const real scale = 1 / real_sqrt((real)w->shape.width);
    for (int64_t h = 0; h < w->shape.heads; h++) {
        const int64_t head = list * w->shape.heads + h;
        const struct rows d_r = blocks_rows(w->a->d_r, b, head);
        const struct tensor d_a = w->a->d_a;
        for (int64_t r = 0; r < rows; r++) {
            blocks_store(d_r, first + r, x->d_r + (h * rows + r) * w->shape.padded, w->shape.width, scale, false);
            real_data(d_a)[b * d_a.stride[0] + (first + r) * d_a.stride[1] + head] = x->d_a[h * rows + r];
        }
    }
}

/* Every parts-th row block of a list, so that tasks are alike. */
static void run_task(const struct learn_work *w, struct learn_unit *x, int64_t b, int64_t list, int64_t part) {
    const struct index_shape *shape = &w->shape;
    const int64_t elements = shape->keys * w->length * shape->padded;
    struct index_source_rows from = w->from;
    from.r += b * w->a->scores.r.stride[0];
    from.a += b * w->a->scores.a.stride[0];
    if (w->gradients) {
        x->d_keys = w->d_keys + ((b * shape->lists + list) * w->parts + part) * elements;
        memset(x->d_keys, 0, (size_t)elements * sizeof(real));
    }
    for (int64_t first = part * INDEX_ROWS; first < w->length; first += w->parts * INDEX_ROWS) {
        x->queries.rows = at_most(INDEX_ROWS, w->length - first);
        NAME(index_load)(shape, &from, list, first, &x->queries);
        memset(x->d_r, 0, (size_t)(shape->heads * x->queries.rows * shape->padded) * sizeof(real));
        memset(x->d_a, 0, (size_t)(shape->heads * x->queries.rows) * sizeof(real));
        if (w->a->attended)
            NAME(learn_attended)(w, x, b, list, first);
        else
            all_pairs(w, x, b, list, first);
        if (w->gradients) store_rows(w, x, b, list, first);
    }
}

static void pack(const struct learn_work *w, int64_t b, int64_t n) {
    const struct index_shape *shape = &w->shape;
    const int64_t heads = shape->lists * shape->keys;
    if (n < heads) {
        const struct rows u = blocks_rows(w->a->scores.u, b, n);
        real *rows = w->keys + (b * heads + n) * w->length * shape->padded;
        NAME(blocks_load)(u, 0, w->length, shape->width, 1, rows);
        if (!w->a->attended) NAME(blocks_pack)
        (u, w->length, shape->width, NULL, w->runs + (b * heads + n) * w->columns * shape->width);
        return;
    }
    const struct index_attention *attention = &w->attention;
    const int64_t group = b * attention->groups + n - heads;
    const struct rows k = blocks_rows(w->a->k, b, n - heads);
    if (w->a->attended) NAME(blocks_load)
    (k, 0, w->length, attention->width, 1, w->rows + group * w->length * attention->padded);
    else NAME(blocks_pack)(k, w->length, attention->width, NULL, attention->runs + group * attention->run_elements);
}

/* d_u of key head n of sequence b: the tasks' sums, in their order. */
static void add_parts(const struct learn_work *w, int64_t b, int64_t n) {
    const struct index_shape *shape = &w->shape;
    const int64_t list = n / shape->keys, k = n % shape->keys, elements = shape->keys * w->length * shape->padded;
    const struct rows d_u = blocks_rows(w->a->d_u, b, n);
    for (int64_t part = 0; part < w->parts; part++) {
        const real *own =
            w->d_keys + ((b * shape->lists + list) * w->parts + part) * elements + k * w->length * shape->padded;
        for (int64_t t = 0; t < w->length; t++)
            blocks_store(d_u, t, own + t * shape->padded, shape->width, 1, part > 0);
    }
}

static void add_sums(const struct learn_work *w) {
    double loss = 0, hits = 0;
    for (int64_t n = 0; n < tensor_count(w->a->losses); n++) loss += (double)real_data(w->a->losses)[n];
    if (tensor_present(w->a->loss)) *(double *)w->a->loss.data += w->a->weight * loss;
    if (!tensor_present(w->a->hits) || w->a->attended) return;
    for (int64_t n = 0; n < w->batch * w->shape.lists * w->length; n++) hits += (double)w->hits[n];
    *(double *)w->a->hits.data += hits;
}

enum status NAME(index_learn)(const struct ops *ops, const struct index_learn *a) {
    TRY(check_index_learn(ops, a));
    TRY(device_document_ends("index_learn", a->start, NULL));
    const struct tensor r = a->scores.r;
    const bool reads = a->attended || tensor_present(a->hits); /* else nobody looks at what a query reads */
    struct learn_work w = {
        .a = a,
        .shape = index_shape_of(a->scores.lists, r.shape[2], a->scores.u.shape[2], r.shape[3]),
        .reach =
            token_reach_of(a->start, reads ? a->chosen : tensor_none(), reads ? a->window : 1, reads ? a->sinks : 0),
        .from = {real_data(r), real_data(a->scores.a), r.stride[1], r.stride[2], a->scores.a.stride[1]},
        .attention = index_attention_of(a->q, a->k, a->start, a->scale),
        .gradients = tensor_present(a->d_r),
        .batch = r.shape[0],
        .length = r.shape[1]};
    TRY(NAME(token_lists_check)(ops, "index_learn", &w.reach));
    w.columns = blocks_run_columns(w.length);
    w.most = token_reach_most(&w.reach, w.length);
    w.share = a->q.shape[2] / w.shape.lists;
    w.parts = at_most((w.length + INDEX_ROWS - 1) / INDEX_ROWS,
                      (PARTS + w.batch * w.shape.lists - 1) / at_least(w.batch * w.shape.lists, 1));
    struct learn_unit sizes;
    const size_t shared = (place(&w, NULL) + 255) / 256 * 256, own = (place_unit(&w, NULL, &sizes) + 255) / 256 * 256;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, shared + own * (size_t)ops->device->threads, &memory, &stride));
    place(&w, memory);
    const int64_t index_heads = w.shape.lists * w.shape.keys, heads = index_heads + w.attention.groups;
    const int64_t tasks = w.shape.lists * w.parts;
#pragma omp parallel num_threads(ops->device->threads)
    {
        struct learn_unit x;
        place_unit(&w, memory + shared + own * (size_t)omp_get_thread_num(), &x);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < w.batch * heads; n++) pack(&w, n / heads, n % heads);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < w.batch * tasks; n++) run_task(&w, &x, n / tasks, n % tasks / w.parts, n % w.parts);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < (w.gradients ? w.batch * index_heads : 0); n++)
            add_parts(&w, n / index_heads, n % index_heads);
    }
    add_sums(&w);
    return STATUS_OK;
}
