/* What kind nsa's choice of selection blocks costs: (a) attention to compressed keys, (b) the same with the choice,
 * (c) the compression of keys and values, in turns; medians of processor time.
 *   build/release/tests/choosing [--lengths 16384,65536] [--repeats 7] [--threads 1] [--isa avx2]
 *       [--heads 12] [--groups 12] [--width 64] [--compress 32] [--stride 16] [--block 64] [--select 16]
 *       [--select-group 1] */
#include "bench/parts.h"

#include <math.h>

struct options {
    struct lengths lengths;
    long repeats, threads, heads, groups, width, compress, stride, block, select, select_group;
    const char *isa;
};

/* Keys and values (n = 0, 1), and what is made of them. */
struct bench {
    struct tensors *tensors;
    const struct ops *ops; /* theirs */
    const struct options *o;
    struct block_compress compress[2];
    struct compressed_attention attention;
    struct tensor chosen;
};

enum { ATTENTION, CHOICE, COMPRESSION, KINDS };

static enum status open_tensors(struct bench *x, int64_t length) {
    const struct options *o = x->o;
    const enum dtype real = x->ops->real;
    const int64_t blocks = compressed_bound(length, o->compress, o->stride), wide = 2 * o->width;
    struct compressed_attention *a = &x->attention;
    struct tensor start;
    TRY(take_start(x->tensors, length, &start));
    for (int n = 0; n < 2; n++) {
        struct block_compress *c = &x->compress[n];
        *c = (struct block_compress){
            .start = start, .compress = (int32_t)o->compress, .stride = (int32_t)o->stride, .places = tensor_none()};
        const int64_t inputs = o->compress * o->width;
        TRY(take(x->tensors, tensor_4d(NULL, real, 1, length, o->groups, o->width), 1, &c->x));
        TRY(take(x->tensors, tensor_2d(NULL, real, wide, inputs), 1 / sqrt((double)inputs), &c->w1));
        TRY(take(x->tensors, tensor_1d(NULL, real, wide), 1, &c->b1));
        TRY(take(x->tensors, tensor_2d(NULL, real, o->width, wide), 1 / sqrt((double)wide), &c->w2));
        TRY(take(x->tensors, tensor_2d(NULL, real, o->compress, o->width), 1, &c->places));
        TRY(take(x->tensors, tensor_4d(NULL, real, 1, blocks, o->groups, o->width), 0, &c->out));
        TRY(take(x->tensors, tensor_4d(NULL, real, 1, blocks, o->groups, wide), 0, &c->pre));
    }
    *a = (struct compressed_attention){.k = x->compress[0].out,
                                       .v = x->compress[1].out,
                                       .start = start,
                                       .compress = (int32_t)o->compress,
                                       .stride = (int32_t)o->stride,
                                       .block = (int32_t)o->block,
                                       .select = (int32_t)o->select,
                                       .select_group = (int32_t)o->select_group,
                                       .scale = 1 / sqrt((double)o->width)};
    TRY(take(x->tensors, tensor_4d(NULL, real, 1, length, o->heads, o->width), 1, &a->q));
    TRY(take(x->tensors, a->q, 0, &a->o));
    TRY(take(x->tensors, tensor_3d(NULL, x->ops->statistic, 1, o->heads, length), 0, &a->log_sums));
    return take(x->tensors, tensor_4d(NULL, DTYPE_I32, 1, length, o->heads / o->select_group, o->select), 0,
                &x->chosen);
}

static enum status run(struct bench *x, int kind) {
    struct compressed_attention a = x->attention;
    a.chosen = kind == CHOICE ? x->chosen : tensor_none();
    if (kind != COMPRESSION) return x->ops->compressed_attention(x->ops, &a);
    TRY(x->ops->block_compress(x->ops, &x->compress[0]));
    return x->ops->block_compress(x->ops, &x->compress[1]);
}

static enum status measure(struct bench *x, int64_t length) {
    const long repeats = x->o->repeats;
    double *times, medians[KINDS];
    enum status status = STATUS_OK;
    TRY(memory_new((size_t)(repeats * KINDS), sizeof *times, "times", &times));
    TRY_GOTO(done, run(x, COMPRESSION)); /* its results are what attention reads */
    for (long r = -1; r < repeats; r++)
        for (int kind = 0; kind < KINDS; kind++) {
            const double begin = processor_seconds();
            TRY_GOTO(done, run(x, kind));
            if (r >= 0) times[kind * repeats + r] = processor_seconds() - begin;
        }
    for (int kind = 0; kind < KINDS; kind++) medians[kind] = median(times + kind * repeats, repeats);
    const double a = medians[ATTENTION], b = medians[CHOICE], c = medians[COMPRESSION];
    printf("T=%lld: attention %.1f ms, with the choice %.1f ms, compression %.1f ms; with / without the choice %.3f, "
           "compression added to both %.3f\n",
           (long long)length, 1e3 * a, 1e3 * b, 1e3 * c, b / a, (c + b) / (c + a));
    fflush(stdout);
done:
    free(times);
    return status;
}

static enum status bench_length(struct tensors *tensors, int64_t length, const void *options) {
    struct bench x = {.tensors = tensors, .ops = tensors->ops, .o = options};
    TRY(open_tensors(&x, length));
    return measure(&x, length);
}

static bool read(int count, char **words, struct options *o) {
    static const struct option names[] = {
        {"lengths", 1, NULL, 'l'}, {"isa", 1, NULL, 'i'},  {"repeats", 1, NULL, 0}, {"threads", 1, NULL, 1},
        {"heads", 1, NULL, 2},     {"groups", 1, NULL, 3}, {"width", 1, NULL, 4},   {"compress", 1, NULL, 5},
        {"stride", 1, NULL, 6},    {"block", 1, NULL, 7},  {"select", 1, NULL, 8},  {"select-group", 1, NULL, 9},
        {NULL, 0, NULL, 0},
    };
    long *const numbers[] = {&o->repeats,  &o->threads, &o->heads, &o->groups, &o->width,
                             &o->compress, &o->stride,  &o->block, &o->select, &o->select_group};
    return read_options(count, words, names, numbers, &o->lengths, &o->isa);
}

int main(int count, char **words) {
    struct options o = {.lengths = {{16384, 65536}, 2},
                        .repeats = 7,
                        .threads = 1,
                        .heads = 12,
                        .groups = 12,
                        .width = 64,
                        .compress = 32,
                        .stride = 16,
                        .block = 64,
                        .select = 16,
                        .select_group = 1};
    if (!read(count, words, &o)) {
        fprintf(stderr, "choosing: options as in the head of tests/bench/choosing.c, each a number above 0\n");
        return 2;
    }
    return run_lengths("choosing", &o.lengths, (int)o.threads, o.isa, bench_length, &o);
}
