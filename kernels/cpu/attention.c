/* Attention over candidate sets: the operations' entry points. Each thread takes a sequence and key head and walks its
 * query heads, keys and values packed on the way; the last ones, when they are too few for the threads, are packed and
 * walked by all threads together. Which thread computes what depends on the number of threads; no sum does. */
#include "kernels/cpu/attention_internal.h"

#include <omp.h>

/* What a call keeps in the device's scratch memory. */
struct work {
    const struct ops *ops;
    const struct attention *a;
    const struct attention_backward *g; /* NULL: forward pass */
    int64_t batch, length, heads, groups, share, width, padded, runs;
    int64_t units, whole;  /* sequences × key heads; the first of them are each done by one thread, the rest divided */
    int64_t wave;          /* units at once */
    bool all;              /* dead candidates are visited too */
    int32_t *ends;         /* [B,T] */
    struct block *blocks;  /* [threads] */
    struct packed *packed; /* [wave] */
    real *references;      /* [threads][T] */
    real *deltas, *sums;   /* [wave · share][count][T]: backward only; sums only when `all` */
    double *delta_sums;    /* [B,H,count] */
};

/* block: NULL while sizing. */
static void place_block(struct block *block, struct arena *arena, const struct work *w) {
    const size_t rows = (size_t)(BLOCK_ROWS * w->padded), kept = KEPT_ELEMENTS;
    const int tiles = NAME(attention_tile_bound)(w->length);
    struct block b = {.padded = w->padded};
    b.tiles = arena_take(arena, (size_t)tiles * sizeof *b.tiles);
    b.pieces = arena_take(arena, (size_t)CANDIDATES_MAX * BLOCK_ROWS * sizeof *b.pieces);
    b.q = arena_take(arena, rows * sizeof(real));
    b.out = arena_take(arena, rows * sizeof(real));
    b.scores = arena_take(arena, kept * sizeof(real));
    b.gathered = arena_take(arena, (size_t)(w->width * PACK_KEYS) * sizeof(real));
    if (w->g) {
        b.d_o = arena_take(arena, rows * sizeof(real));
        b.d_weights = arena_take(arena, kept * sizeof(real));
    }
    b.references = arena_take(arena, (size_t)KEPT_TILES * BLOCK_ROWS * sizeof(real));
    if (block) *block = b;
}

static size_t place(struct work *w, char *memory) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    const size_t threads = (size_t)w->ops->device->threads, rows = (size_t)(w->length * w->padded);
    const size_t runs = (size_t)(w->runs * PACK_KEYS * w->width);
    w->ends = arena_take(&arena, (size_t)(w->batch * w->length) * sizeof *w->ends);
    w->blocks = arena_take(&arena, threads * sizeof *w->blocks);
    w->packed = arena_take(&arena, (size_t)w->wave * sizeof *w->packed);
    w->references = arena_take(&arena, threads * (size_t)w->length * sizeof(real));
    for (size_t n = 0; n < threads; n++) place_block(memory ? &w->blocks[n] : NULL, &arena, w);
    for (int64_t n = 0; n < w->wave; n++) {
        struct packed p = {.k_transposed = arena_take(&arena, runs * sizeof(real))};
        if (w->g) {
            p.v_transposed = arena_take(&arena, runs * sizeof(real));
            p.k = arena_take(&arena, rows * sizeof(real));
            p.dk = arena_take(&arena, rows * sizeof(real));
            p.dv = arena_take(&arena, rows * sizeof(real));
        } else {
            p.v = arena_take(&arena, rows * sizeof(real));
        }
        if (memory) w->packed[n] = p;
    }
    if (!w->g) return arena.used;
    const size_t statistics = (size_t)(w->wave * w->share * w->a->count * w->length);
    w->deltas = arena_take(&arena, statistics * sizeof(real));
    if (w->all) w->sums = arena_take(&arena, statistics * sizeof(real));
    w->delta_sums = arena_take(&arena, (size_t)(w->batch * w->heads * w->a->count) * sizeof(double));
    return arena.used;
}

static enum status open_work(const struct ops *ops, const struct attention *a, const struct attention_backward *g,
                             struct work *w) {
    *w = (struct work){.ops = ops, .a = a, .g = g};
    w->batch = a->q.shape[0];
    w->length = a->q.shape[1];
    w->heads = a->q.shape[2];
    w->groups = a->k.shape[2];
    w->share = w->heads / w->groups;
    w->width = a->q.shape[3];
    w->padded = pad_lanes(w->width);
    w->runs = (w->length + PACK_KEYS - 1) / PACK_KEYS;
    w->units = w->batch * w->groups;
    const int64_t threads = ops->device->threads, rest = w->units % threads;
    w->whole = 2 * rest <= threads ? w->units - rest : w->units;
    w->wave = w->whole ? threads : w->units;
    for (int64_t h = 0; g && g->dead_gradients && tensor_present(a->coefficients) && h < w->heads; h++)
        for (int m = 0; m < a->count; m++)
            if (real_data(a->coefficients)[h * a->coefficients.stride[0] + m] == 0) w->all = true;
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, place(w, NULL), &memory, &stride));
    place(w, memory);
    return device_document_ends("attention", a->start, w->ends);
}

static struct rows rows_of(struct tensor t, int64_t b, int64_t head) {
    return (struct rows){real_data(t) + b * t.stride[0] + head * t.stride[2], t.stride[1]};
}

static struct attention_head make_head(const struct work *w, int64_t b, int64_t h) {
    const struct attention *a = w->a;
    const struct rows k = rows_of(a->k, b, h / w->share), v = rows_of(a->v, b, h / w->share);
    struct attention_head head = {
        .start = (const int32_t *)a->start.data + b * a->start.stride[0],
        .end = w->ends + b * w->length,
        .causal = a->causal,
        .length = w->length,
        .width = w->width,
        .k = k.rows,
        .v = v.rows,
        .k_stride = k.stride,
        .v_stride = v.stride,
    };
    for (int m = 0; m < a->count; m++) {
        const real c =
            tensor_present(a->coefficients) ? real_data(a->coefficients)[h * a->coefficients.stride[0] + m] : 1;
        if (c == 0 && !w->all) continue;
        head.candidates[head.count] = a->candidates[m];
        head.coefficients[head.count] = c;
        head.index[head.count++] = m;
    }
    return head;
}

static void pack_unit_run(const struct work *w, int64_t unit, int64_t slot, int64_t run) {
    const struct attention_head head = make_head(w, unit / w->groups, unit % w->groups * w->share);
    NAME(attention_pack_run)(&head, &w->packed[slot], run * PACK_KEYS);
}

static void clear_rows(struct rows t, int64_t length, int64_t width) {
    for (int64_t i = 0; i < length; i++) memset(t.rows + i * t.stride, 0, (size_t)width * sizeof(real));
}

/* One task: part `part` of `parts` of a head. A head of several stages is one task. */
struct task {
    int64_t b, h, first, last;
    struct attention_head head;
    struct walk walk;
    struct block *block;
};

/* False when there is nothing to do in this part. Later rows see more keys: they come first, for balance. */
static bool open_task(const struct work *w, struct task *t, int64_t unit, int64_t slot, int64_t member, int64_t part,
                      int64_t parts) {
    t->b = unit / w->groups;
    t->h = unit % w->groups * w->share + member;
    t->head = make_head(w, t->b, t->h);
    t->block = &w->blocks[omp_get_thread_num()];
    t->block->head = &t->head;
    t->block->walk = &t->walk;
    t->block->packed = &w->packed[slot];
    if (t->head.count == 0) return false;
    NAME(attention_walk)(&t->head, &t->walk);
    if (t->walk.stage_count > 1) return part == 0;
    const int64_t count = NAME(attention_block_count)(&t->walk, w->length, 0);
    t->first = count * (parts - 1 - part) / parts;
    t->last = count * (parts - part) / parts;
    return t->first < t->last;
}

/* What a head without a live candidate, and every dead candidate, leave behind. */
static void forward_dead(const struct work *w, const struct task *t) {
    real *sums = real_data(w->a->log_sums) + (t->b * w->heads + t->h) * w->a->count * w->length;
    for (int m = 0, n = 0; m < w->a->count; m++) {
        if (n < t->head.count && t->head.index[n] == m) {
            n++;
            continue;
        }
        for (int64_t i = 0; i < w->length; i++) sums[m * w->length + i] = -REAL_INFINITY;
    }
    if (t->head.count == 0) clear_rows(rows_of(w->a->o, t->b, t->h), w->length, w->width);
}

static void forward_task(const struct work *w, int64_t unit, int64_t slot, int64_t member, int64_t part,
                         int64_t parts) {
    struct task t;
    const bool busy = open_task(w, &t, unit, slot, member, part, parts);
    if (part == 0) forward_dead(w, &t);
    if (!busy) return;
    struct head_forward pass = {.q = rows_of(w->a->q, t.b, t.h),
                                .o = rows_of(w->a->o, t.b, t.h),
                                .scale = (real)w->a->scale,
                                .references = w->references + omp_get_thread_num() * w->length};
    for (int m = 0; m < t.head.count; m++)
        pass.log_sums[m] =
            real_data(w->a->log_sums) + ((t.b * w->heads + t.h) * w->a->count + t.head.index[m]) * w->length;
    NAME(attention_forward_blocks)(t.block, &pass, t.first, t.last);
}

/* All of one sequence and key head, in one thread. Keys are packed when the first block reads them, and are still in
 * the cache then. */
static void forward_unit(const struct work *w, int64_t unit) {
    const int thread = omp_get_thread_num();
    w->blocks[thread].ready = 0;
    for (int64_t member = 0; member < w->share; member++) forward_task(w, unit, thread, member, 0, 1);
}

enum { PARTS = 16 /* of a head: tasks for balance */ };

/* The rest's keys and values, packed by all threads. */
static void pack_rest(const struct work *w) {
    const int64_t rest = w->units - w->whole;
    w->blocks[omp_get_thread_num()].ready = w->length;
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < rest * w->runs; n++) pack_unit_run(w, w->whole + n / w->runs, n / w->runs, n % w->runs);
}

enum status NAME(attention)(const struct ops *ops, const struct attention *a) {
    TRY(check_attention(ops, a));
    struct work w;
    TRY(open_work(ops, a, NULL, &w));
    const int64_t parts = at_most(PARTS, (w.length + BLOCK_ROWS - 1) / BLOCK_ROWS), rest = w.units - w.whole;
#pragma omp parallel num_threads(ops->device->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < w.whole; unit++) forward_unit(&w, unit);
        if (rest) pack_rest(&w);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < rest * w.share * parts; n++)
            forward_task(&w, w.whole + n / parts / w.share, n / parts / w.share, n / parts % w.share, n % parts, parts);
    }
    return STATUS_OK;
}

/* log Z of every candidate, the dead ones too: the forward pass knows only the living. */
static void sums_task(const struct work *w, int64_t unit, int64_t slot, int64_t member) {
    struct task t;
    if (!open_task(w, &t, unit, slot, member, 0, 1)) return;
    struct head_forward pass = {.q = rows_of(w->a->q, t.b, t.h),
                                .scale = (real)w->a->scale,
                                .references = w->references + omp_get_thread_num() * w->length};
    for (int m = 0; m < t.head.count; m++)
        pass.log_sums[m] = w->sums + ((slot * w->share + member) * w->a->count + t.head.index[m]) * w->length;
    NAME(attention_forward_blocks)(t.block, &pass, t.first, t.last);
}

static void backward_task(const struct work *w, struct task *t, int64_t slot, int64_t member,
                          struct head_backward *pass) {
    const struct attention *a = w->a;
    pass->q = rows_of(a->q, t->b, t->h);
    pass->o = rows_of(a->o, t->b, t->h);
    pass->d_o = rows_of(w->g->d_o, t->b, t->h);
    pass->dq = rows_of(w->g->dq, t->b, t->h);
    pass->scale = (real)a->scale;
    for (int m = 0; m < t->head.count; m++) {
        const int64_t here = ((slot * w->share + member) * a->count + t->head.index[m]) * w->length;
        const int64_t there = ((t->b * w->heads + t->h) * a->count + t->head.index[m]) * w->length;
        pass->deltas[m] = w->deltas + here;
        pass->log_sums[m] = w->all ? w->sums + here : real_data(a->log_sums) + there;
    }
    NAME(attention_backward_blocks)(t->block, pass, t->first, t->last);
}

/* One sequence and key head, divided: deltas and dq by rows, then dk and dv by keys. Every sum keeps its order. */
static void rows_task(const struct work *w, int64_t unit, int64_t slot, int64_t member, int64_t part, int64_t parts) {
    struct task t;
    struct head_backward pass = {.find_deltas = true, .want_dq = true, .last_key = w->length};
    if (open_task(w, &t, unit, slot, member, part, parts)) backward_task(w, &t, slot, member, &pass);
}
static void keys_task(const struct work *w, int64_t unit, int64_t slot, int64_t part, int64_t parts) {
    for (int64_t member = 0; member < w->share; member++) {
        struct task t;
        struct head_backward pass = {
            .want_dkv = true, .first_key = w->length * part / parts, .last_key = w->length * (part + 1) / parts};
        if (open_task(w, &t, unit, slot, member, 0, 1)) backward_task(w, &t, slot, member, &pass);
    }
}

/* dk and dv back into their places; Σ_i of the deltas. */
static void finish_task(const struct work *w, int64_t unit, int64_t slot, int64_t part, int64_t parts) {
    const int64_t b = unit / w->groups, group = unit % w->groups;
    const struct rows dk = rows_of(w->g->dk, b, group), dv = rows_of(w->g->dv, b, group);
    const struct packed *p = &w->packed[slot];
    for (int64_t j = w->length * part / parts; j < w->length * (part + 1) / parts; j++) {
        memcpy(dk.rows + j * dk.stride, p->dk + j * w->padded, (size_t)w->width * sizeof(real));
        memcpy(dv.rows + j * dv.stride, p->dv + j * w->padded, (size_t)w->width * sizeof(real));
    }
    for (int64_t member = 0; part == 0 && member < w->share; member++) {
        const int64_t h = group * w->share + member;
        const struct attention_head head = make_head(w, b, h);
        double *sums = w->delta_sums + (b * w->heads + h) * w->a->count;
        for (int m = 0; m < w->a->count; m++) sums[m] = 0;
        for (int n = 0; n < head.count; n++) {
            const real *deltas = w->deltas + ((slot * w->share + member) * w->a->count + head.index[n]) * w->length;
            for (int64_t i = 0; i < w->length; i++) sums[head.index[n]] += (double)deltas[i];
        }
        if (head.count == 0) clear_rows(rows_of(w->g->dq, b, h), w->length, w->width);
    }
}

/* All of one sequence and key head, in one thread. */
static void backward_unit(const struct work *w, int64_t unit) {
    const int thread = omp_get_thread_num();
    struct block *block = &w->blocks[thread];
    block->ready = 0;
    for (int64_t member = 0; member < w->share; member++) {
        struct task t;
        struct head_backward pass = {.find_deltas = true, .want_dq = true, .want_dkv = true, .last_key = w->length};
        if (w->all) sums_task(w, unit, thread, member);
        if (open_task(w, &t, unit, thread, member, 0, 1)) backward_task(w, &t, thread, member, &pass);
        if (member == w->share - 1) NAME(attention_pack_until)(block, w->length);
    }
    finish_task(w, unit, thread, 0, 1);
}

/* The rest, by all threads. */
static void backward_rest(const struct work *w, int64_t parts) {
    const int64_t rest = w->units - w->whole, threads = w->ops->device->threads;
    const int64_t cuts = at_most(2 * threads / rest, (w->length + BLOCK_ROWS - 1) / BLOCK_ROWS);
    pack_rest(w);
    if (w->all)
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < rest * w->share; n++) sums_task(w, w->whole + n / w->share, n / w->share, n % w->share);
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < rest * w->share * parts; n++)
        rows_task(w, w->whole + n / parts / w->share, n / parts / w->share, n / parts % w->share, n % parts, parts);
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < rest * cuts; n++) keys_task(w, w->whole + n / cuts, n / cuts, n % cuts, cuts);
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < rest * parts; n++) finish_task(w, w->whole + n / parts, n / parts, n % parts, parts);
}

static void add_coefficients(const struct work *w, struct tensor gradients) {
    for (int64_t h = 0; h < w->heads; h++)
        for (int m = 0; m < w->a->count; m++) {
            double sum = 0;
            for (int64_t b = 0; b < w->batch; b++) sum += w->delta_sums[(b * w->heads + h) * w->a->count + m];
            real_data(gradients)[h * gradients.stride[0] + m] += (real)sum;
        }
}

enum status NAME(attention_backward)(const struct ops *ops, const struct attention_backward *g) {
    TRY(check_attention_backward(ops, g));
    struct work w;
    TRY(open_work(ops, &g->forward, g, &w));
    const int64_t parts = at_most(PARTS, (w.length + BLOCK_ROWS - 1) / BLOCK_ROWS);
#pragma omp parallel num_threads(ops->device->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < w.whole; unit++) backward_unit(&w, unit);
        if (w.whole < w.units) backward_rest(&w, parts);
    }
    if (tensor_present(g->dcoefficients)) add_coefficients(&w, g->dcoefficients);
    return STATUS_OK;
}
