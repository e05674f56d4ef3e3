/* Attention to compressed keys, forward: a few rows' scores at a time, and the choice of selection blocks from the same
 * scores. A task is a row block of the heads that select together; keys are packed before. */
#include "kernels/cpu/blocks.h"

#include <omp.h>

enum { ROWS = 32 };

struct work {
    const struct compressed_attention *a;
    struct choosing choosing;
    int64_t batch, length, heads, groups, width, padded, blocks, together; /* together: heads that are one task */
    int32_t *end, *base;                                                   /* [B,T] */
    real *runs, *values;                                                   /* packed keys and values of [B,G] */
    int64_t run_elements, value_elements, columns, units;
};

/* One thread's memory. */
struct row_block {
    real *q, *out; /* [ROWS][padded] */
    real *e;       /* [ROWS][columns] */
    real *units;   /* [ROWS or 1][units] */
    real *importance, *best;
};

static size_t place(struct work *w, char *memory) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    w->end = arena_take(&arena, (size_t)(w->batch * w->length) * sizeof *w->end);
    w->base = arena_take(&arena, (size_t)(w->batch * w->length) * sizeof *w->base);
    w->runs = arena_take(&arena, (size_t)(w->batch * w->groups * w->run_elements) * sizeof(real));
    w->values = arena_take(&arena, (size_t)(w->batch * w->groups * w->value_elements) * sizeof(real));
    return arena.used;
}

static size_t place_rows(const struct work *w, char *memory, struct row_block *x) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const int64_t importance = w->length / w->choosing.block + w->units + 2 + LANES;
    x->q = arena_take(&arena, (size_t)(ROWS * w->padded) * sizeof(real));
    x->out = arena_take(&arena, (size_t)(ROWS * w->padded) * sizeof(real));
    x->e = arena_take(&arena, (size_t)(ROWS * w->columns) * sizeof(real));
    x->units = arena_take(&arena, (size_t)((w->together > 1 ? ROWS : 1) * w->units) * sizeof(real));
    x->importance = arena_take(&arena, (size_t)importance * sizeof(real));
    x->best = arena_take(&arena, (size_t)w->choosing.select * sizeof(real));
    return arena.used;
}

static struct work work_of(const struct compressed_attention *a) {
    struct work w = {.a = a, .choosing = choosing_of(a->compress, a->stride, a->block, a->select)};
    w.batch = a->q.shape[0];
    w.length = a->q.shape[1];
    w.heads = a->q.shape[2];
    w.width = a->q.shape[3];
    w.groups = a->k.shape[2];
    w.blocks = a->k.shape[1];
    w.padded = pad_lanes(w.width);
    w.together = tensor_present(a->chosen) ? a->select_group : 1;
    w.columns = blocks_run_columns(w.blocks);
    w.run_elements = w.columns * w.width;
    w.value_elements = tensor_present(a->o) ? w.columns * w.padded : 0;
    w.units = choosing_units(&w.choosing, w.blocks);
    return w;
}

/* Visible compressed blocks of a query. */
static int64_t visible_of(const struct work *w, int64_t b, int64_t i) {
    const int32_t *start = (const int32_t *)w->a->start.data + b * w->a->start.stride[0];
    return blocks_whole(i - start[i] + 1, w->a->compress, w->a->stride);
}

/* Scores become weights (not yet normalised) in the row's own columns, 0 in the others; returns their sum. */
static real weigh(real *e, int64_t columns, int64_t from, int64_t visible, real *log_sum) {
    memset(e, 0, (size_t)from * sizeof(real));
    memset(e + from + visible, 0, (size_t)(columns - from - visible) * sizeof(real));
    *log_sum = -REAL_INFINITY;
    if (visible == 0) return 0;
    const real most = real_row_max(e + from, visible), sum = blocks_exponents(e + from, visible, most);
    *log_sum = most + real_log(sum);
    return sum;
}

static void choose(const struct work *w, const struct row_block *x, const real *units, int64_t b, int64_t i,
                   int64_t h) {
    const struct compressed_attention *a = w->a;
    const int32_t *start = (const int32_t *)a->start.data + b * a->start.stride[0];
    const int64_t known = NAME(choosing_importance)(&w->choosing, units, visible_of(w, b, i), x->importance);
    int32_t *chosen = (int32_t *)a->chosen.data + ((b * w->length + i) * a->chosen.shape[2] + h) * a->select;
    NAME(choosing_select)(&w->choosing, i - start[i], x->importance, known, x->best, chosen);
}

/* Rows first … first+rows−1 of one head, member `member` of its task. */
static void head_rows(const struct work *w, const struct row_block *x, int64_t b, int64_t h, int64_t member,
                      int64_t first, int64_t rows) {
    const struct compressed_attention *a = w->a;
    const int64_t group = b * w->groups + h / (w->heads / w->groups), last = first + rows - 1;
    /* Blocks of a later document come later: the rows' columns are one range. */
    const int64_t low = w->base[b * w->length + first] / LANES * LANES;
    const int64_t high = w->base[b * w->length + last] + visible_of(w, b, last);
    const int64_t columns = high > low ? pad_lanes(high - low) : 0;
    const bool choosing = tensor_present(a->chosen);
    real *log_sums = real_data(a->log_sums) + (b * w->heads + h) * w->length;
    real scales[ROWS];
    NAME(blocks_load)(blocks_rows(a->q, b, h), first, rows, w->width, (real)a->scale, x->q);
    NAME(blocks_products)(rows, w->width, x->q, w->runs + group * w->run_elements, low, columns, x->e);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = first + r, visible = visible_of(w, b, i), from = w->base[b * w->length + i] - low;
        real *e = x->e + r * columns, *units = x->units + (w->together > 1 ? r * w->units : 0);
        const real sum = weigh(e, columns, visible ? from : 0, visible, &log_sums[i]);
        scales[r] = visible ? 1 / sum : 0;
        if (!choosing) continue;
        NAME(choosing_add)(&w->choosing, e + (visible ? from : 0), visible, scales[r], member == 0, units);
        if (member == w->together - 1) choose(w, x, units, b, i, h / w->together);
    }
    if (!tensor_present(a->o)) return;
    const struct rows o = blocks_rows(a->o, b, h);
    NAME(attention_gemm)
    (rows, w->padded, high > low ? high - low : 0, x->e, columns, 1,
     w->values + group * w->value_elements + low * w->padded, w->padded, x->out, w->padded, false);
    for (int64_t r = 0; r < rows; r++) blocks_store(o, first + r, x->out + r * w->padded, w->width, scales[r], false);
}

enum status NAME(compressed_attention)(const struct ops *ops, const struct compressed_attention *a) {
    TRY(check_compressed_attention(ops, a));
    struct work w = work_of(a);
    struct row_block sizes;
    const size_t shared = place(&w, NULL), own = place_rows(&w, NULL, &sizes);
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, shared + own * (size_t)ops->device->threads, &memory, &stride));
    place(&w, memory);
    TRY(NAME(documents_find)("compressed_attention", a->start, a->compress, a->stride, false, w.end, w.base));
    const int64_t parts = (w.length + ROWS - 1) / ROWS, units = w.heads / w.together;
#pragma omp parallel num_threads(ops->device->threads)
    {
        struct row_block x;
        place_rows(&w, memory + shared + own * (size_t)omp_get_thread_num(), &x);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < w.batch * w.groups; n++) {
            const int64_t b = n / w.groups, g = n % w.groups;
            NAME(blocks_pack)(blocks_rows(a->k, b, g), w.blocks, w.width, NULL, w.runs + n * w.run_elements);
            if (w.value_elements)
                NAME(blocks_pack)(blocks_rows(a->v, b, g), w.blocks, w.width, w.values + n * w.value_elements, NULL);
        }
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < w.batch * units * parts; n++) {
            /* Later rows see more: they come first, for balance. */
            const int64_t b = n / (units * parts), unit = n / parts % units, first = (parts - 1 - n % parts) * ROWS;
            for (int64_t member = 0; member < w.together; member++)
                head_rows(&w, &x, b, unit * w.together + member, member, first, at_most(ROWS, w.length - first));
        }
    }
    return STATUS_OK;
}

/* One query against cached blocks: the same sums, one row. */
static void decode_unit(const struct compressed_decode *a, const struct choosing *c, int64_t b, int64_t unit,
                        int64_t together, real *e, real *units, real *importance, real *best) {
    const int32_t *place = (const int32_t *)a->places.data + b * 3;
    const int64_t visible = place[1], width = a->q.shape[2], share = a->q.shape[1] / a->k.shape[2];
    for (int64_t member = 0; member < together; member++) {
        const int64_t h = unit * together + member, g = h / share;
        const real *q = real_data(a->q) + b * a->q.stride[0] + h * a->q.stride[1];
        const real *k = real_data(a->k) + b * a->k.stride[0] + place[0] * a->k.stride[1] + g * a->k.stride[2];
        const real *v = real_data(a->v) + b * a->v.stride[0] + place[0] * a->v.stride[1] + g * a->v.stride[2];
        real log_sum;
        for (int64_t u = 0; u < visible; u++) e[u] = (real)a->scale * real_dot(q, k + u * a->k.stride[1], width);
        const real sum = weigh(e, visible, 0, visible, &log_sum), factor = visible ? 1 / sum : 0;
        if (tensor_present(a->chosen)) NAME(choosing_add)(c, e, visible, factor, member == 0, units);
        if (!tensor_present(a->o)) continue;
        real *o = real_data(a->o) + b * a->o.stride[0] + h * a->o.stride[1];
        for (int64_t d = 0; d < width; d++) o[d] = 0;
        for (int64_t u = 0; u < visible; u++) real_axpy(factor * e[u], v + u * a->v.stride[1], o, width);
    }
    if (!tensor_present(a->chosen)) return;
    int32_t *chosen = (int32_t *)a->chosen.data + (b * a->chosen.shape[1] + unit) * a->select;
    NAME(choosing_select)
    (c, place[2], importance, NAME(choosing_importance)(c, units, visible, importance), best, chosen);
}

static enum status check_places(const struct compressed_decode *a) {
    for (int64_t b = 0; b < a->q.shape[0]; b++) {
        const int32_t *place = (const int32_t *)a->places.data + b * 3;
        const bool fits =
            place[0] >= 0 && place[1] >= 0 && place[0] + (int64_t)place[1] <= a->k.shape[1] && place[2] >= 0;
        if (!fits || place[1] > blocks_whole(place[2] + 1, a->compress, a->stride))
            return error_set(STATUS_SHAPE,
                             "compressed_decode: places[%lld]: %d blocks from %d are not in a cache of %lld, or "
                             "not visible to token %d",
                             (long long)b, place[1], place[0], (long long)a->k.shape[1], place[2]);
    }
    return STATUS_OK;
}

enum status NAME(compressed_decode)(const struct ops *ops, const struct compressed_decode *a) {
    TRY(check_compressed_decode(ops, a));
    TRY(check_places(a));
    const struct choosing c = choosing_of(a->compress, a->stride, a->block, a->select);
    const int64_t together = tensor_present(a->chosen) ? a->select_group : 1, batch = a->q.shape[0];
    const int64_t heads = a->q.shape[1] / together, units = choosing_units(&c, a->k.shape[1]);
    int64_t blocks = units;
    for (int64_t b = 0; b < batch; b++)
        blocks = at_least(((const int32_t *)a->places.data)[b * 3 + 2] / a->block + 1 + units + LANES, blocks);
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, ops->device->threads, (size_t)(a->k.shape[1] + units + blocks + a->select) * sizeof(real),
                       &memory, &stride));
#pragma omp parallel for schedule(dynamic) num_threads(ops->device->threads)
    for (int64_t n = 0; n < batch * heads; n++) {
        real *e = (real *)(void *)(memory + (size_t)omp_get_thread_num() * stride);
        real *spread = e + a->k.shape[1], *importance = spread + units;
        decode_unit(a, &c, n / heads, n % heads, together, e, spread, importance, importance + blocks);
    }
    return STATUS_OK;
}
