/* The indexer's operations token by token against their parallel forms: index_decode chooses as index_select, exactly,
 * from caches that are filled as tokens come; attention_decode over the slots that a query reads gives
 * token_attention's row. */
#include "base/memory.h"
#include "ops/index_case.h"
#include "ops/slots_case.h"
#include "support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *table, *isa;
} tables[] = {{"cpu-f64", NULL}, {"cpu", "base"}, {"cpu", "avx2"}, {"cpu", "avx512"}, {"guard:cpu", NULL}};
enum { TABLES = sizeof tables / sizeof *tables };

/* Name, B, T, H, G, D, S, J, K, E, n, w, sinks, coarse, coarse_blocks, fewer, cuts, repeated, magnitude. */
static const struct index_case rows[] = {
    {"one token", 1, 1, 1, 1, 8, 1, 4, 1, 4, 3, 1, 0, 0, 0, 0, {0}, false, 1},
    {"one list", 1, 90, 4, 2, 8, 1, 4, 1, 32, 9, 5, 2, 0, 0, 0, {0}, false, 1},
    {"a list a head, documents", 2, 129, 4, 2, 48, 4, 2, 2, 6, 11, 4, 3, 0, 0, 2, {1, 2, 40, 90}, false, 1},
    {"two levels", 1, 150, 2, 1, 8, 1, 4, 1, 6, 12, 3, 1, 4, 3, 0, {0}, false, 1},
    {"two levels, documents", 2, 150, 6, 3, 8, 3, 2, 2, 32, 10, 6, 2, 8, 2, 3, {5, 6, 61, 110}, false, 1},
    {"two levels, equal scores", 2, 140, 2, 2, 8, 2, 2, 1, 4, 9, 2, 0, 4, 3, 0, {33}, true, 1},
    {"all chosen", 1, 60, 2, 1, 8, 1, 1, 1, 4, 60, 1, 0, 0, 0, 0, {20}, false, 1},
};
enum { ROWS = sizeof rows / sizeof *rows, FIRST_SLOT = 3, FIRST_BLOCK = 2, SPARE = 4 };

/* The next tokens of all sequences: their slots in the caches, and the caches of index keys. */
struct stream {
    const struct ops *ops;
    const struct index_case *row;
    struct index_arrays *x;
    struct tensor r, u, a, cache, pooled, places, chosen; /* r, u, a [B·T,…]: rows of one matrix */
    struct tensor block_keys, block_start, block_pooled;  /* index_pool's, of one block */
    void *blocks[16];
    int count;
};

static struct tensor take(struct stream *d, struct tensor t) {
    CHECK_OK(d->ops->allocate(d->ops, tensor_bytes(t), &t.data));
    assert_true(d->count < 16);
    d->blocks[d->count++] = t.data;
    return t;
}

static void set(struct tensor t, int64_t offset, double value) {
    if (t.dtype == DTYPE_F64)
        ((double *)t.data)[offset] = value;
    else
        ((float *)t.data)[offset] = (float)value;
}

static struct tensor offset(struct tensor t, int64_t elements) {
    t.data = (char *)t.data + (size_t)elements * dtype_size(t.dtype);
    return t;
}

static void copy(const struct stream *d, struct tensor from, struct tensor to) {
    assert_true(tensor_bytes(from) == tensor_bytes(to) && d->ops->host_memory);
    memcpy(to.data, from.data, tensor_bytes(to));
}

static int64_t keys_size(const struct index_case *row) {
    return row->lists * row->index_keys * row->index_width;
}

static void open_stream(struct stream *d) {
    const struct index_case *row = d->row;
    const enum dtype real = d->ops->real;
    const int64_t heads = row->lists * row->index_heads, keys = row->lists * row->index_keys, width = row->index_width;
    const int64_t rows_r = heads * width, columns = rows_r + keys * width + heads, tokens = row->batch * row->length;
    const struct tensor all = take(d, tensor_2d(NULL, real, tokens, columns));
    d->r = tensor_columns(all, 0, rows_r);
    d->u = tensor_columns(all, rows_r, keys * width);
    d->a = tensor_columns(all, rows_r + keys * width, heads);
    const struct tensor views[] = {d->r, d->u, d->a};
    for (int n = 0; n < 3; n++)
        for (int64_t i = 0; i < tensor_count(views[n]); i++)
            set(views[n], i / views[n].shape[1] * columns + i % views[n].shape[1], d->x->inputs[INPUT_R + n][i]);
    d->cache = take(d, tensor_4d(NULL, real, row->batch, row->length + FIRST_SLOT + SPARE, keys, width));
    CHECK_OK(d->ops->fill(d->ops, d->cache, (double)NAN));
    d->places = take(d, tensor_2d(NULL, DTYPE_I32, row->batch, 3));
    d->chosen = take(d, tensor_3d(NULL, DTYPE_I32, row->batch, row->lists, row->choose));
    if (!row->coarse) return;
    d->pooled =
        take(d, tensor_4d(NULL, real, row->batch, row->length / row->coarse + FIRST_BLOCK + SPARE, 2 * keys, width));
    CHECK_OK(d->ops->fill(d->ops, d->pooled, (double)NAN));
    d->block_keys = take(d, tensor_4d(NULL, real, 1, row->coarse, keys, width));
    d->block_start = take(d, tensor_2d(NULL, DTYPE_I32, 1, row->coarse));
    memset(d->block_start.data, 0, tensor_bytes(d->block_start));
    d->block_pooled = take(d, tensor_4d(NULL, real, 1, 1, 2 * keys, width));
}

/* Token t of sequence b into the cache, and the block that it ends. Blocks of a sequence so far: *blocks. */
static void append(struct stream *d, int64_t b, int64_t t, int32_t *blocks) {
    const struct index_case *row = d->row;
    const int64_t size = keys_size(row), start = d->x->start[b * row->length + t], slot = FIRST_SLOT + t;
    int32_t *place = (int32_t *)d->places.data + 3 * b;
    struct tensor keys = offset(d->u, (b * row->length + t) * d->u.stride[0]),
                  to = offset(d->cache, (b * d->cache.shape[1] + slot) * size);
    keys.shape[0] = 1;
    to = tensor_1d(to.data, to.dtype, size);
    copy(d, tensor_1d(keys.data, keys.dtype, size), to);
    if (start == t) place[1] = FIRST_BLOCK + *blocks;
    place[0] = FIRST_SLOT + (int32_t)start;
    place[2] = (int32_t)(t - start);
    if (!row->coarse || (t - start + 1) % row->coarse) return;
    copy(d, tensor_1d(offset(to, (1 - row->coarse) * size).data, to.dtype, row->coarse * size), d->block_keys);
    const struct index_pool pool = {
        .u = d->block_keys, .start = d->block_start, .pooled = d->block_pooled, .block = row->coarse};
    CHECK_OK(d->ops->index_pool(d->ops, &pool));
    const struct tensor block = offset(d->pooled, (b * d->pooled.shape[1] + FIRST_BLOCK + *blocks) * 2 * size);
    copy(d, d->block_pooled, tensor_1d(block.data, block.dtype, 2 * size));
    *blocks += 1;
}

/* Row t of every sequence of a [B·T, columns] matrix, as [B,…]. */
static struct tensor row_of(struct tensor all, int64_t length, int64_t t, int64_t heads, int64_t width) {
    const struct tensor at = offset(all, t * all.stride[0]);
    const bool flat = width == 0;
    struct tensor view = flat ? tensor_2d(at.data, at.dtype, all.shape[0] / length, heads)
                              : tensor_3d(at.data, at.dtype, all.shape[0] / length, heads, width);
    view.stride[0] = length * all.stride[0];
    return view;
}

static void check_decode(const struct ops *ops, const struct index_case *row, struct index_arrays *x) {
    struct stream d = {.ops = ops, .row = row, .x = x};
    int32_t blocks[2] = {0}, *found;
    index_choose(ops, row, x, INDEX_LEARNED, 0);
    open_stream(&d);
    CHECK_OK(memory_new((size_t)index_chosen_count(row), sizeof *found, "choices", &found));
    const int64_t size = row->lists * row->choose;
    for (int64_t t = 0; t < row->length; t++) {
        for (int64_t b = 0; b < row->batch; b++) append(&d, b, t, &blocks[b]);
        const struct index_decode a = {.r =
                                           row_of(d.r, row->length, t, row->lists * row->index_heads, row->index_width),
                                       .u = d.cache,
                                       .a = row_of(d.a, row->length, t, row->lists * row->index_heads, 0),
                                       .pooled = row->coarse ? d.pooled : tensor_none(),
                                       .places = d.places,
                                       .chosen = d.chosen,
                                       .counts = row->fewer ? x->counts : NULL,
                                       .lists = (int32_t)row->lists,
                                       .window = row->window,
                                       .sinks = row->sinks,
                                       .coarse = row->coarse,
                                       .coarse_blocks = row->coarse_blocks};
        CHECK_OK(ops->index_decode(ops, &a));
        for (int64_t i = 0; i < row->batch * size; i++) {
            const int32_t slot = ((int32_t *)d.chosen.data)[i];
            found[(i / size * row->length + t) * size + i % size] = slot < 0 ? slot : slot - FIRST_SLOT;
        }
    }
    index_expect_choice(row, "index_decode", x->chosen, found, index_chosen_count(row));
    for (int n = 0; n < d.count; n++) ops->release(ops, d.blocks[n]);
    free(found);
}

/* Any numbers, then few, so that scores tie. */
static void test_choice(void **state) {
    (void)state;
    for (int t = 0; t < TABLES; t++) {
        const struct ops *ops = index_open(tables[t].table, 2, tables[t].isa);
        for (int n = 0; n < ROWS; n++)
            for (int few = 0; few < 2; few++) {
                struct index_arrays x;
                index_fill(&rows[n], &x);
                for (int input = INPUT_R; few && input <= INPUT_A; input++)
                    for (int64_t i = 0; i < index_count(&rows[n], (enum input)input); i++)
                        x.inputs[input][i] = floor(x.inputs[input][i] + 0.5);
                check_decode(ops, &rows[n], &x);
                index_free(&x);
            }
        ops->close(ops);
    }
}

/* --- attention ---------------------------------------------------------------------------------------------------- */

/* Slots that a query reads: its sinks, the tokens chosen, its window. */
static int32_t list_slots(const struct index_case *row, const struct index_arrays *x, int64_t i, int64_t s,
                          int32_t *slots) {
    const int32_t token = (int32_t)(i % row->length), start = x->start[i];
    const int32_t *chosen = x->chosen + (i * row->lists + s) * row->choose;
    int32_t count = 0;
    const int32_t window = token - row->window + 1 > start ? token - row->window + 1 : start;
    for (int32_t j = start; j < start + row->sinks && j < window; j++) slots[count++] = j;
    for (int32_t n = 0; n < row->choose && chosen[n] >= 0; n++) slots[count++] = chosen[n];
    for (int32_t j = window; j <= token; j++) slots[count++] = j;
    return count;
}

static void check_attention(const struct ops *ops, const struct index_case *row, struct index_arrays *x) {
    struct stream d = {.ops = ops, .row = row, .x = x};
    const int64_t capacity = row->sinks + row->choose + row->window, heads = row->heads, width = row->width;
    const struct tensor q = take(&d, tensor_3d(NULL, ops->real, row->batch, heads, width));
    const struct tensor o = take(&d, q);
    struct tensor caches[2];
    for (int n = 0; n < 2; n++) {
        caches[n] = take(&d, tensor_4d(NULL, ops->real, row->batch, row->length, row->groups, width));
        for (int64_t i = 0; i < tensor_count(caches[n]); i++) set(caches[n], i, x->inputs[INPUT_K + n][i]);
    }
    const struct tensor slots = take(&d, tensor_3d(NULL, DTYPE_I32, row->batch, row->lists, capacity));
    const struct tensor counts = take(&d, tensor_2d(NULL, DTYPE_I32, row->batch, row->lists));
    for (int64_t t = 0; t < row->length; t++) {
        memset(slots.data, 0, tensor_bytes(slots));
        for (int64_t b = 0; b < row->batch; b++) {
            const int64_t i = b * row->length + t;
            for (int64_t e = 0; e < heads * width; e++)
                set(q, b * heads * width + e, x->inputs[INPUT_Q][i * heads * width + e]);
            for (int64_t s = 0; s < row->lists; s++)
                ((int32_t *)counts.data)[b * row->lists + s] =
                    list_slots(row, x, i, s, (int32_t *)slots.data + (b * row->lists + s) * capacity);
        }
        const struct attention_decode a = {.q = q,
                                           .k = caches[0],
                                           .v = caches[1],
                                           .slots = slots,
                                           .slot_counts = counts,
                                           .o = o,
                                           .count = 1,
                                           .lists = (int)row->lists,
                                           .scale = 1 / sqrt((double)width)};
        CHECK_OK(ops->attention_decode(ops, &a));
        for (int64_t e = 0; e < row->batch * heads * width; e++) {
            const int64_t b = e / (heads * width);
            const double expected = x->outputs[OUTPUT_O][((b * row->length + t) * heads * width) + e % (heads * width)];
            const double found = o.dtype == DTYPE_F64 ? ((double *)o.data)[e] : (double)((float *)o.data)[e];
            if (!(fabs(expected - found) <= (o.dtype == DTYPE_F64 ? 1e-13 : 1e-5)))
                fail_msg("%s: attention_decode, token %lld, element %lld: expected %.12g, found %.12g", row->name,
                         (long long)t, (long long)e, expected, found);
        }
    }
    for (int n = 0; n < d.count; n++) ops->release(ops, d.blocks[n]);
}

static void test_attention(void **state) {
    (void)state;
    for (int t = 0; t < TABLES; t++) {
        const struct ops *ops = index_open(tables[t].table, 2, tables[t].isa);
        for (int n = 0; n < ROWS; n++) {
            struct index_arrays x;
            index_fill(&rows[n], &x);
            index_run(ops, &rows[n], &x, RUN_CHOOSE | RUN_ATTEND);
            check_attention(ops, &rows[n], &x);
            index_free(&x);
        }
        ops->close(ops);
    }
}

static void test_slots(void **state) {
    (void)state;
    static const char *const names[] = {"cpu", "cpu-f64", "guard:cpu"};
    for (int n = 0; n < 3; n++) {
        const struct ops *ops = index_open(names[n], 1, NULL);
        slot_lists_agree(ops);
        slot_lists_survive(ops);
        ops->close(ops);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
