/* Learning to choose: the teacher's attention summed over selection blocks, against the importance that compressed
 * scores give them. A thread owns a sequence and the key heads of one group that selects together; a few rows at a
 * time. */
#include "kernels/cpu/blocks.h"

#include <omp.h>

enum { ROWS = 16 };

struct work {
    const struct block_mass *a;
    struct choosing choosing;
    int64_t batch, length, heads, groups, width, padded, blocks, tokens, columns, units, masses;
    int64_t unit_groups, unit_heads; /* key heads and query heads of a unit */
    int32_t *end, *base;             /* [B,T] */
};

struct unit {
    real *teacher, *runs,
        *keys;               /* [unit_groups]: teacher's keys and compressed keys in runs, compressed keys as rows */
    real *d_keys;            /* [unit_groups] rows */
    real *q, *dq;            /* [ROWS][padded] */
    real *e;                 /* [ROWS][tokens or columns] */
    real *mass, *importance; /* [ROWS][masses] */
    real *units;             /* [units] of one row: importance by stride, then its gradient */
    real *p;                 /* [ROWS][select_group][columns]: weights of the heads */
};

static size_t place(const struct work *w, char *memory, struct unit *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    x->teacher = arena_take(&arena, (size_t)(w->unit_groups * w->tokens * w->width) * sizeof(real));
    x->runs = arena_take(&arena, (size_t)(w->unit_groups * w->columns * w->width) * sizeof(real));
    x->keys = arena_take(&arena, (size_t)(w->unit_groups * w->columns * w->padded) * sizeof(real));
    x->d_keys = arena_take(&arena, (size_t)(w->unit_groups * w->columns * w->padded) * sizeof(real));
    x->q = arena_take(&arena, (size_t)(ROWS * w->padded) * sizeof(real));
    x->dq = arena_take(&arena, (size_t)(ROWS * w->padded) * sizeof(real));
    x->e = arena_take(&arena, (size_t)(ROWS * at_least(w->tokens, w->columns)) * sizeof(real));
    x->mass = arena_take(&arena, (size_t)(ROWS * w->masses) * sizeof(real));
    x->importance = arena_take(&arena, (size_t)(ROWS * w->masses) * sizeof(real));
    x->units = arena_take(&arena, (size_t)w->units * sizeof(real));
    x->p = arena_take(&arena, (size_t)(ROWS * w->a->select_group * w->columns) * sizeof(real));
    return arena.used;
}

static const int32_t *start_of(const struct work *w, int64_t b) {
    return (const int32_t *)w->a->start.data + b * w->a->start.stride[0];
}

/* mass += the teacher's weights of one head, summed over the document's selection blocks. */
static void add_mass(const struct work *w, const struct unit *x, int64_t b, int64_t h, int64_t first, int64_t rows) {
    const int32_t *start = start_of(w, b);
    const int64_t low = start[first] / LANES * LANES, columns = pad_lanes(first + rows - low);
    const int64_t group = h / (w->heads / w->groups) % w->unit_groups;
    NAME(blocks_load)(blocks_rows(w->a->teacher_q, b, h), first, rows, w->width, (real)w->a->scale, x->q);
    NAME(blocks_products)(rows, w->width, x->q, x->teacher + group * w->tokens * w->width, low, columns, x->e);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = first + r, count = i - start[i] + 1, block = w->a->block;
        real *e = x->e + r * columns + (start[i] - low), *mass = x->mass + r * w->masses;
        const real sum = blocks_exponents(e, count, real_row_max(e, count));
        for (int64_t n = 0; n * block < count; n++) {
            real part = 0;
            for (int64_t j = n * block; j < at_most((n + 1) * block, count); j++) part += e[j];
            mass[n] += part / sum;
        }
    }
}

/* The weights p of one head over its rows' visible compressed blocks, from their log sums. low: first column. */
static void find_weights(const struct work *w, const struct unit *x, int64_t b, int64_t h, int64_t first, int64_t rows,
                         int64_t low, int64_t columns, real *p) {
    const struct block_mass *a = w->a;
    const int64_t group = h / (w->heads / w->groups) % w->unit_groups;
    const real *log_sums = real_data(a->log_sums) + (b * w->heads + h) * w->length;
    NAME(blocks_load)(blocks_rows(a->own_q, b, h), first, rows, w->width, (real)a->scale, x->q);
    NAME(blocks_products)(rows, w->width, x->q, x->runs + group * w->columns * w->width, low, columns, p);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = first + r, count = blocks_whole(i - start_of(w, b)[i] + 1, a->compress, a->stride);
        const int64_t from = count ? w->base[b * w->length + i] - low : 0;
        real *row = p + r * columns;
        for (int64_t u = 0; u < from; u++) row[u] = 0;
        blocks_exponents(row + from, count, log_sums[i]);
        for (int64_t u = from + count; u < columns; u++) row[u] = 0;
    }
}

/* Loss of one row; its importance becomes the gradient by the (not normalised) importance. */
static real row_loss(real *mass, real *importance, int64_t known, real total) {
    real sum = 0, loss = 0;
    for (int64_t n = 0; n < known; n++) sum += mass[n];
    for (int64_t n = 0; n < known; n++) {
        const real m = sum > 0 ? mass[n] / sum : 0, own = importance[n] / total + (real)1e-9;
        if (m > 0) loss += m * (real_log(m) - real_log(own));
        importance[n] = -m / (own * total);
    }
    return loss;
}

/* p becomes the gradient by a head's scores. strides: d importance of the block that each stride lies in. */
static void score_gradients(const struct choosing *c, const real *strides, int64_t visible, real *p) {
    real sum = 0;
    for (int64_t u = 0; u < visible; u++) {
        real d = 0;
        for (int64_t s = 0; s < c->overlap; s++) d += strides[u + s];
        sum += p[u] * d;
    }
    for (int64_t u = 0; u < visible; u++) {
        real d = 0;
        for (int64_t s = 0; s < c->overlap; s++) d += strides[u + s];
        p[u] *= d - sum;
    }
}

static void back_to_inputs(const struct work *w, const struct unit *x, int64_t b, int64_t h, int64_t first,
                           int64_t rows, int64_t low, int64_t columns, const real *d) {
    const struct block_mass *a = w->a;
    const int64_t group = h / (w->heads / w->groups) % w->unit_groups, padded = w->padded;
    if (tensor_present(a->d_own_q)) {
        const struct rows dq = blocks_rows(a->d_own_q, b, h);
        NAME(attention_gemm)
        (rows, padded, columns, d, columns, 1, x->keys + (group * w->columns + low) * padded, padded, x->dq, padded,
         false);
        for (int64_t r = 0; r < rows; r++)
            blocks_store(dq, first + r, x->dq + r * padded, w->width, (real)(a->scale * a->gradient_scale), true);
    }
    if (!tensor_present(a->d_compressed)) return;
    NAME(blocks_load)
    (blocks_rows(a->own_q, b, h), first, rows, w->width, (real)(a->scale * a->gradient_scale), x->q);
    NAME(attention_gemm)
    (columns, padded, rows, d, 1, columns, x->q, padded, x->d_keys + (group * w->columns + low) * padded, padded, true);
}

static void unit_rows(const struct work *w, const struct unit *x, int64_t b, int64_t list, int64_t first,
                      int64_t rows) {
    const struct block_mass *a = w->a;
    const int64_t together = a->select_group, last = first + rows - 1, lists = w->heads / together;
    const int64_t low = w->base[b * w->length + first] / LANES * LANES;
    const int64_t high =
        w->base[b * w->length + last] + blocks_whole(last - start_of(w, b)[last] + 1, a->compress, a->stride);
    const int64_t columns = high > low ? pad_lanes(high - low) : 0;
    real *losses = real_data(a->losses) + (b * lists + list) * w->length + first;
    memset(x->mass, 0, (size_t)(rows * w->masses) * sizeof(real));
    for (int64_t n = 0; n < together; n++) {
        add_mass(w, x, b, list * together + n, first, rows);
        find_weights(w, x, b, list * together + n, first, rows, low, columns, x->p + n * ROWS * w->columns);
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = first + r, visible = blocks_whole(i - start_of(w, b)[i] + 1, a->compress, a->stride);
        const int64_t from = visible ? w->base[b * w->length + i] - low : 0;
        real *importance = x->importance + r * w->masses;
        for (int64_t n = 0; n < together; n++) NAME(choosing_add)
        (&w->choosing, x->p + n * ROWS * w->columns + r * columns + from, visible, 1, n == 0, x->units);
        const int64_t known = NAME(choosing_importance)(&w->choosing, x->units, visible, importance);
        losses[r] = row_loss(x->mass + r * w->masses, importance, known, (real)(together * w->choosing.overlap));
        for (int64_t t = 0; t < known * w->choosing.units; t++) x->units[t] = importance[t / w->choosing.units];
        for (int64_t n = 0; n < together; n++)
            score_gradients(&w->choosing, x->units, visible, x->p + n * ROWS * w->columns + r * columns + from);
    }
    for (int64_t n = 0; n < together && columns > 0; n++)
        back_to_inputs(w, x, b, list * together + n, first, rows, low, columns, x->p + n * ROWS * w->columns);
}

static void run_unit(const struct work *w, const struct unit *x, int64_t b, int64_t unit) {
    const struct block_mass *a = w->a;
    const int64_t lists = w->unit_heads / a->select_group;
    for (int64_t g = 0; g < w->unit_groups; g++) {
        const int64_t group = unit * w->unit_groups + g, at = g * w->columns;
        NAME(blocks_pack)
        (blocks_rows(a->teacher_k, b, group), w->length, w->width, NULL, x->teacher + g * w->tokens * w->width);
        NAME(blocks_pack)
        (blocks_rows(a->compressed, b, group), w->blocks, w->width, x->keys + at * w->padded, x->runs + at * w->width);
        memset(x->d_keys + at * w->padded, 0, (size_t)(w->columns * w->padded) * sizeof(real));
    }
    for (int64_t list = unit * lists; list < (unit + 1) * lists; list++)
        for (int64_t first = 0; first < w->length; first += ROWS)
            unit_rows(w, x, b, list, first, at_most(ROWS, w->length - first));
    for (int64_t g = 0; tensor_present(a->d_compressed) && g < w->unit_groups; g++) {
        const struct rows d = blocks_rows(a->d_compressed, b, unit * w->unit_groups + g);
        for (int64_t c = 0; c < w->blocks; c++)
            blocks_store(d, c, x->d_keys + (g * w->columns + c) * w->padded, w->width, 1, true);
    }
}

enum status NAME(block_mass)(const struct ops *ops, const struct block_mass *a) {
    TRY(check_block_mass(ops, a));
    struct work w = {.a = a, .choosing = choosing_of(a->compress, a->stride, a->block, 0), .batch = a->own_q.shape[0]};
    w.length = a->own_q.shape[1];
    w.heads = a->own_q.shape[2];
    w.width = a->own_q.shape[3];
    w.padded = pad_lanes(w.width);
    w.groups = a->compressed.shape[2];
    w.blocks = a->compressed.shape[1];
    w.tokens = blocks_run_columns(w.length);
    w.columns = blocks_run_columns(w.blocks);
    w.units = choosing_units(&w.choosing, w.blocks);
    w.masses = at_least(w.length / a->block + 1, w.units);
    const int64_t share = w.heads / w.groups;
    w.unit_groups = at_least(a->select_group / share, 1);
    w.unit_heads = w.unit_groups * share;
    struct unit sizes;
    const size_t tokens = (size_t)(w.batch * w.length), own = place(&w, NULL, &sizes);
    char *memory;
    size_t stride, shared = (2 * tokens * sizeof(int32_t) + 255) / 256 * 256;
    TRY(device_scratch(ops, 1, shared + own * (size_t)ops->device->threads, &memory, &stride));
    w.end = (int32_t *)(void *)memory;
    w.base = w.end + tokens;
    TRY(NAME(documents_find)("block_mass", a->start, a->compress, a->stride, false, w.end, w.base));
    const int64_t units = w.groups / w.unit_groups;
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < w.batch * units; n++) {
        struct unit x;
        place(&w, memory + shared + own * (size_t)omp_get_thread_num(), &x);
        run_unit(&w, &x, n / units, n % units);
    }
    if (!tensor_present(a->loss)) return STATUS_OK;
    double sum = 0;
    for (int64_t n = 0; n < tensor_count(a->losses); n++) sum += (double)real_data(a->losses)[n];
    *(double *)a->loss.data += a->weight * sum;
    return STATUS_OK;
}
