/* Compression of blocks of keys or values, both ways. A row is one block of one key head; rows are gathered in pieces
 * of bounded size, so that the products are large and the copies small. */
#include "kernels/cpu/activation.h"
#include "kernels/cpu/blocks.h"

enum { PIECE_ELEMENTS = 1 << 20 /* of gathered tokens */ };

struct work {
    const struct ops *ops;
    const struct block_compress *a;
    int64_t batch, length, groups, width, blocks, compress, most; /* most: blocks of a piece */
    int32_t *end, *base;                                          /* [B,T] */
    int32_t *first;                                               /* [Nb] of one sequence: first tokens */
    real *rows;                                                   /* [most · G][l·D] gathered; their gradient */
    real *hidden;                                                 /* [most · G][2D] */
};

static size_t place(struct work *w, char *memory) {
    struct arena arena = arena_placing(memory, SIZE_MAX);
    w->end = arena_take(&arena, (size_t)(w->batch * w->length) * sizeof(int32_t));
    w->base = arena_take(&arena, (size_t)(w->batch * w->length) * sizeof(int32_t));
    w->first = arena_take(&arena, (size_t)w->blocks * sizeof(int32_t));
    w->rows = arena_take(&arena, (size_t)(w->most * w->groups * w->compress * w->width) * sizeof(real));
    w->hidden = arena_take(&arena, (size_t)(w->most * w->groups * 2 * w->width) * sizeof(real));
    return arena.used;
}

static enum status open_work(const char *operation, const struct ops *ops, const struct block_compress *a,
                             struct work *w) {
    *w = (struct work){.ops = ops, .a = a, .batch = a->x.shape[0], .length = a->x.shape[1], .groups = a->x.shape[2]};
    w->width = a->x.shape[3];
    w->blocks = a->out.shape[1];
    w->compress = a->compress;
    w->most = at_most(at_least(PIECE_ELEMENTS / at_least(w->compress * w->width * w->groups, 1), 1), w->blocks);
    char *memory;
    size_t stride;
    TRY(device_scratch(ops, 1, place(w, NULL), &memory, &stride));
    place(w, memory);
    return NAME(documents_find)(operation, a->start, a->compress, a->stride, false, w->end, w->base);
}

/* First tokens of a sequence's blocks; returns their number. */
static int64_t list_blocks(const struct work *w, int64_t b) {
    const int32_t *end = w->end + b * w->length;
    int64_t count = 0;
    for (int64_t t = 0; t < w->length; t = end[t])
        for (int64_t first = t; first + w->compress <= end[t]; first += w->a->stride)
            w->first[count++] = (int32_t)first;
    return count;
}

/* The matrices of a piece: rows of blocks first … first+count−1 of sequence b. */
static struct tensor piece_of(struct tensor t, int64_t b, int64_t first, int64_t count) {
    const int64_t width = t.shape[3], rows = t.shape[2];
    return tensor_2d(real_data(t) + (b * t.shape[1] + first) * rows * width, t.dtype, count * rows, width);
}

/* w->rows = x_r + places_r. */
static void gather(const struct work *w, int64_t b, int64_t first, int64_t count) {
    const int64_t width = w->width, groups = w->groups;
    const real *places = real_data(w->a->places);
#pragma omp parallel for num_threads(w->ops->device->threads)
    for (int64_t n = 0; n < count * groups; n++) {
        const struct rows x = blocks_rows(w->a->x, b, n % groups);
        for (int64_t r = 0; r < w->compress; r++) {
            const real *from = x.rows + (w->first[first + n / groups] + r) * x.stride;
            real *to = w->rows + (n * w->compress + r) * width;
            for (int64_t d = 0; d < width; d++) to[d] = from[d] + places[r * width + d];
        }
    }
}

/* out += mean_r x_r. */
static void add_means(const struct work *w, int64_t b, int64_t first, int64_t count, real *out) {
    const int64_t width = w->width, groups = w->groups;
    const real share = (real)1 / (real)w->compress;
#pragma omp parallel for num_threads(w->ops->device->threads)
    for (int64_t n = 0; n < count * groups; n++) {
        const struct rows x = blocks_rows(w->a->x, b, n % groups);
        for (int64_t r = 0; r < w->compress; r++)
            real_axpy(share, x.rows + (w->first[first + n / groups] + r) * x.stride, out + n * width, width);
    }
}

static void clear_beyond(struct tensor t, int64_t b, int64_t count) {
    const int64_t row = t.shape[2] * t.shape[3];
    memset(real_data(t) + (b * t.shape[1] + count) * row, 0, (size_t)((t.shape[1] - count) * row) * sizeof(real));
}

enum status NAME(block_compress)(const struct ops *ops, const struct block_compress *a) {
    TRY(check_block_compress(ops, a));
    struct work w;
    TRY(open_work("block_compress", ops, a, &w));
    const int64_t columns = w.compress * w.width;
    for (int64_t b = 0; b < w.batch; b++) {
        const int64_t blocks = list_blocks(&w, b);
        clear_beyond(a->out, b, blocks);
        clear_beyond(a->pre, b, blocks);
        for (int64_t first = 0, count; first < blocks; first += count) {
            count = at_most(w.most, blocks - first);
            const int64_t rows = count * w.groups;
            gather(&w, b, first, count);
            struct gemm up = {
                .a = tensor_2d(w.rows, ops->real, rows, columns), .b = a->w1, .transpose_b = true, .alpha = 1};
            up.c = tensor_2d(w.hidden, ops->real, rows, 2 * w.width);
            up.bias = a->b1;
            up.pre = piece_of(a->pre, b, first, count);
            up.activation = ACTIVATION_GELU;
            TRY(NAME(gemm)(ops, &up));
            struct gemm down = {.a = up.c, .b = a->w2, .transpose_b = true, .alpha = 1};
            down.c = piece_of(a->out, b, first, count);
            TRY(NAME(gemm)(ops, &down));
            add_means(&w, b, first, count, real_data(down.c));
        }
    }
    return STATUS_OK;
}

/* Column sums, in ascending order of rows. */
static void add_columns(const struct ops *ops, const real *x, int64_t rows, int64_t columns, struct tensor out) {
    if (!tensor_present(out)) return;
#pragma omp parallel for num_threads(ops->device->threads)
    for (int64_t first = 0; first < columns; first += 64)
        for (int64_t n = 0; n < rows; n++)
            real_axpy(1, x + n * columns + first, real_data(out) + first, at_most(64, columns - first));
}

/* dx += what reaches the blocks' tokens: through the rows, and through the mean. A thread owns a key head: blocks
 * overlap. */
static void scatter(const struct work *w, struct tensor dx, int64_t b, int64_t first, int64_t count,
                    const real *d_out) {
    const int64_t width = w->width, groups = w->groups;
    const real share = (real)1 / (real)w->compress;
#pragma omp parallel for num_threads(w->ops->device->threads)
    for (int64_t g = 0; g < groups; g++) {
        const struct rows x = blocks_rows(dx, b, g);
        for (int64_t c = 0; c < count; c++) {
            const real *d_rows = w->rows + (c * groups + g) * w->compress * width,
                       *d = d_out + (c * groups + g) * width;
            for (int64_t r = 0; r < w->compress; r++) {
                real *to = x.rows + (w->first[first + c] + r) * x.stride;
                for (int64_t e = 0; e < width; e++) to[e] += d_rows[r * width + e] + share * d[e];
            }
        }
    }
}

/* hidden = d_out·W2 · gelu'(pre), from activations that are then no longer needed. */
static enum status through_hidden(const struct work *w, const struct block_compress_backward *g, struct tensor d_out,
                                  struct tensor pre) {
    const struct ops *ops = w->ops;
    const int64_t rows = d_out.shape[0], wide = 2 * w->width;
    const struct tensor hidden = tensor_2d(w->hidden, ops->real, rows, wide);
    if (tensor_present(g->dw2)) {
#pragma omp parallel for num_threads(ops->device->threads)
        for (int64_t n = 0; n < rows; n++)
            for (int64_t j = 0; j < wide; j++) w->hidden[n * wide + j] = gelu(real_data(pre)[n * wide + j]);
        const struct gemm weights = {
            .a = d_out, .b = hidden, .c = g->dw2, .transpose_a = true, .accumulate = true, .alpha = 1};
        TRY(NAME(gemm)(ops, &weights));
    }
    const struct gemm back = {.a = d_out, .b = g->forward.w2, .c = hidden, .alpha = 1};
    TRY(NAME(gemm)(ops, &back));
    return NAME(gelu_backward)(ops, hidden, pre, hidden);
}

static enum status piece_backward(const struct work *w, const struct block_compress_backward *g, int64_t b,
                                  int64_t first, int64_t count) {
    const struct ops *ops = w->ops;
    const int64_t rows = count * w->groups, columns = w->compress * w->width;
    const struct tensor d_out = piece_of(g->d_out, b, first, count), pre = piece_of(g->forward.pre, b, first, count);
    const struct tensor hidden = tensor_2d(w->hidden, ops->real, rows, 2 * w->width);
    const struct tensor gathered = tensor_2d(w->rows, ops->real, rows, columns);
    TRY(through_hidden(w, g, d_out, pre));
    add_columns(ops, w->hidden, rows, 2 * w->width, g->db1);
    if (tensor_present(g->dw1)) {
        gather(w, b, first, count);
        const struct gemm weights = {
            .a = hidden, .b = gathered, .c = g->dw1, .transpose_a = true, .accumulate = true, .alpha = 1};
        TRY(NAME(gemm)(ops, &weights));
    }
    const struct gemm back = {.a = hidden, .b = g->forward.w1, .c = gathered, .alpha = 1};
    TRY(NAME(gemm)(ops, &back));
    add_columns(ops, w->rows, rows, columns, g->dplaces);
    scatter(w, g->dx, b, first, count, real_data(d_out));
    return STATUS_OK;
}

enum status NAME(block_compress_backward)(const struct ops *ops, const struct block_compress_backward *g) {
    TRY(check_block_compress_backward(ops, g));
    struct work w;
    TRY(open_work("block_compress_backward", ops, &g->forward, &w));
    for (int64_t b = 0; b < w.batch; b++) {
        const int64_t blocks = list_blocks(&w, b);
        for (int64_t first = 0, count; first < blocks; first += count) {
            count = at_most(w.most, blocks - first);
            TRY(piece_backward(&w, g, b, first, count));
        }
    }
    return STATUS_OK;
}
