/* bf16 matrix products by oneDNN, where the CPU multiplies bf16 faster than fp32 (AMX or AVX-512 bf16).
 * The product is cut into tiles that the shapes alone decide; each tile is one oneDNN call on one thread, so that the
 * bits do not depend on the number of threads. Inputs are rounded here, into the layout that oneDNN's kernels read. */
#include "kernels/cpu/bf16_pack.h"
#include "kernels/cpu/cpu.h"

#ifdef SQUINT_WITH_ONEDNN

#include "base/memory.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

/* TILE_COLUMNS: a multiple of BF16_COLUMNS. At depth 768 a tile's a, b and c fit a second-level cache of 2 MiB
 * together. */
enum { TILE_ROWS = 256, TILE_COLUMNS = 512 };
/* Below this a product is not worth the rounding of b, unless b is kept packed. */
enum { ROWS_MIN = 32, DEPTH_MIN = 32, COLUMNS_MIN = 32 };

struct primitive {
    int64_t rows, columns, depth;
    dnnl_primitive_t primitive; /* NULL: oneDNN cannot */
    dnnl_memory_desc_t a, b, c, scratch;
};

struct packed {
    const void *address;
    int64_t depth, columns, stride;
    bool transpose;
    uint16_t *data;
    size_t bytes;
};

struct bf16_cache {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct primitive *primitives;
    size_t primitive_count, primitive_capacity;
    struct packed *packed;
    size_t packed_count, packed_capacity, packed_bytes;
};

static bool usable(void) {
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    return bf16_can_pack() && (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
}

const char *bf16_describe(void) {
    if (!usable()) return "";
    bool amx = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx;
    return amx ? ", bf16 by oneDNN (AMX)" : ", bf16 by oneDNN (AVX-512)";
}

static enum status check(dnnl_status_t result, const char *what) {
    return result == dnnl_success ? STATUS_OK : error_set(STATUS_FAILED, "oneDNN: %s: error %d", what, (int)result);
}

static enum status open_cache(struct device *device) {
    if (device->bf16) return STATUS_OK;
    TRY(memory_new(1, sizeof *device->bf16, "the bf16 cache", &device->bf16));
    TRY(check(dnnl_engine_create(&device->bf16->engine, dnnl_cpu, 0), "engine"));
    return check(dnnl_stream_create(&device->bf16->stream, device->bf16->engine, dnnl_stream_default_flags), "stream");
}

void bf16_close(struct device *device) {
    struct bf16_cache *cache = device->bf16;
    if (!cache) return;
    for (size_t i = 0; i < cache->primitive_count; i++) {
        if (cache->primitives[i].primitive) dnnl_primitive_destroy(cache->primitives[i].primitive);
    }
    for (size_t i = 0; i < cache->packed_count; i++) free(cache->packed[i].data);
    free(cache->primitives);
    free(cache->packed);
    if (cache->stream) dnnl_stream_destroy(cache->stream);
    if (cache->engine) dnnl_engine_destroy(cache->engine);
    free(cache);
    device->bf16 = NULL;
}

size_t bf16_bytes(const struct device *device) {
    return device->bf16 ? device->bf16->packed_bytes : 0;
}

void bf16_forget(struct device *device, const void *block, size_t bytes) {
    struct bf16_cache *cache = device->bf16;
    for (size_t i = 0; cache && i < cache->packed_count;) {
        struct packed *p = &cache->packed[i];
        uintptr_t offset = (uintptr_t)p->address - (uintptr_t)block;
        if (offset >= bytes) {
            i++;
            continue;
        }
        free(p->data);
        cache->packed_bytes -= p->bytes;
        *p = cache->packed[--cache->packed_count];
    }
}

static void describe(struct primitive *p) {
    dnnl_dims_t a = {p->rows, p->depth}, b = {p->depth, p->columns}, c = {p->rows, p->columns};
    dnnl_dims_t a_strides = {p->depth, 1}, c_strides = {p->columns, 1};
    dnnl_memory_desc_init_by_strides(&p->a, 2, a, dnnl_bf16, a_strides);
    dnnl_memory_desc_init_by_tag(&p->b, 2, b, dnnl_bf16, dnnl_BA16a64b2a);
    dnnl_memory_desc_init_by_strides(&p->c, 2, c, dnnl_f32, c_strides);
}

/* p->primitive stays NULL when oneDNN has none for this shape. */
static enum status build(struct bf16_cache *cache, struct primitive *p) {
    describe(p);
    dnnl_matmul_desc_t matmul;
    TRY(check(dnnl_matmul_desc_init(&matmul, &p->a, &p->b, NULL, &p->c), "matmul"));
    dnnl_primitive_attr_t attributes;
    TRY(check(dnnl_primitive_attr_create(&attributes), "attributes"));
    dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    dnnl_primitive_desc_t descriptor = NULL;
    dnnl_status_t result = dnnl_primitive_desc_create(&descriptor, &matmul, attributes, cache->engine, NULL);
    dnnl_primitive_attr_destroy(attributes);
    if (result != dnnl_success) return STATUS_OK;
    p->scratch = *dnnl_primitive_desc_query_md(descriptor, dnnl_query_scratchpad_md, 0);
    result = dnnl_primitive_create(&p->primitive, descriptor);
    dnnl_primitive_desc_destroy(descriptor);
    return check(result, "primitive");
}

static enum status find_primitive(struct bf16_cache *cache, struct primitive wanted, struct primitive *found) {
    for (size_t i = 0; i < cache->primitive_count; i++) {
        const struct primitive *p = &cache->primitives[i];
        if (p->rows == wanted.rows && p->columns == wanted.columns && p->depth == wanted.depth) {
            *found = *p;
            return STATUS_OK;
        }
    }
    if (cache->primitive_count == cache->primitive_capacity) {
        size_t capacity = cache->primitive_capacity ? 2 * cache->primitive_capacity : 64;
        TRY(memory_grow(&cache->primitives, capacity, sizeof wanted, "bf16 primitives"));
        cache->primitive_capacity = capacity;
    }
    TRY(build(cache, &wanted));
    cache->primitives[cache->primitive_count++] = wanted;
    *found = wanted;
    return STATUS_OK;
}

static size_t round_up(size_t value, size_t to) {
    return (value + to - 1) / to * to;
}

/* Elements in piece `index` of `all` cut into pieces of `tile`. */
static int64_t extent(int64_t index, int64_t tile, int64_t all) {
    return all - index * tile < tile ? all - index * tile : tile;
}

/* Each task reads whole rows of b: columns of a plain b, taken 64 at a time, would touch every page of it each time. */
static void pack_all(const struct ops *ops, const struct gemm *a, int64_t depth, int64_t padded, uint16_t *to) {
    int64_t columns = a->c.shape[1], stride = a->b.stride[0];
    int64_t blocks = (columns + BF16_COLUMNS - 1) / BF16_COLUMNS, slices = padded / BF16_DEPTH;
    const float *b = a->b.data;
    int64_t tasks = a->transpose_b ? blocks : slices;
#pragma omp parallel for num_threads(ops->device->threads) if (columns * depth > 1 << 15)
    for (int64_t task = 0; task < tasks; task++) {
        if (a->transpose_b) {
            int64_t first = task * BF16_COLUMNS;
            bf16_pack_b(b + first * stride, stride, true, depth, extent(task, BF16_COLUMNS, columns), padded,
                        to + first * padded);
            continue;
        }
        int64_t k = task * BF16_DEPTH;
        for (int64_t block = 0; block < blocks; block++) {
            int64_t first = block * BF16_COLUMNS;
            bf16_pack_b(b + k * stride + first, stride, false, extent(task, BF16_DEPTH, depth),
                        extent(block, BF16_COLUMNS, columns), BF16_DEPTH, to + first * padded + k * BF16_COLUMNS);
        }
    }
}

/* *data: b packed and kept. */
static enum status find_packed(const struct ops *ops, const struct gemm *a, int64_t depth, int64_t padded, size_t bytes,
                               uint16_t **data) {
    struct bf16_cache *cache = ops->device->bf16;
    struct packed wanted = {.address = a->b.data, .depth = depth, .columns = a->c.shape[1], .bytes = bytes};
    wanted.stride = a->b.stride[0];
    wanted.transpose = a->transpose_b;
    for (size_t i = 0; i < cache->packed_count; i++) {
        const struct packed *p = &cache->packed[i];
        if (p->address == wanted.address && p->depth == depth && p->columns == wanted.columns &&
            p->stride == wanted.stride && p->transpose == wanted.transpose) {
            *data = p->data;
            return STATUS_OK;
        }
    }
    if (cache->packed_count == cache->packed_capacity) {
        size_t capacity = cache->packed_capacity ? 2 * cache->packed_capacity : 64;
        TRY(memory_grow(&cache->packed, capacity, sizeof wanted, "packed weights"));
        cache->packed_capacity = capacity;
    }
    wanted.data = aligned_alloc(256, round_up(bytes, 256));
    if (!wanted.data) return error_set(STATUS_MEMORY, "no memory for %zu bytes of packed weights", bytes);
    pack_all(ops, a, depth, padded, wanted.data);
    cache->packed[cache->packed_count++] = wanted;
    cache->packed_bytes += bytes;
    *data = wanted.data;
    return STATUS_OK;
}

static enum status execute(struct bf16_cache *cache, const struct primitive *p, void *a, void *b, void *c,
                           void *scratch) {
    dnnl_exec_arg_t arguments[4] = {
        {DNNL_ARG_SRC, NULL}, {DNNL_ARG_WEIGHTS, NULL}, {DNNL_ARG_DST, NULL}, {DNNL_ARG_SCRATCHPAD, NULL}};
    const dnnl_memory_desc_t *descriptors[4] = {&p->a, &p->b, &p->c, &p->scratch};
    void *handles[4] = {a, b, c, scratch};
    enum status status = STATUS_OK;
    for (int i = 0; i < 4; i++) {
        TRY_GOTO(done,
                 check(dnnl_memory_create(&arguments[i].memory, descriptors[i], cache->engine, handles[i]), "memory"));
    }
    status = check(dnnl_primitive_execute(p->primitive, cache->stream, 4, arguments), "execute");
done:
    for (int i = 0; i < 4; i++) {
        if (arguments[i].memory) dnnl_memory_destroy(arguments[i].memory);
    }
    return status;
}

struct plan {
    int64_t rows, columns, depth, padded, down, across;
    struct primitive tiles[2][2]; /* [last row of tiles][last column of tiles] */
    uint16_t *b;
    size_t a_bytes, c_bytes, scratch_bytes; /* of one thread */
};

/* *can: oneDNN has a primitive for every tile. */
static enum status make_plan(const struct ops *ops, const struct gemm *a, struct plan *plan, bool *can) {
    plan->rows = a->c.shape[0];
    plan->columns = a->c.shape[1];
    plan->depth = a->a.shape[a->transpose_a ? 0 : 1];
    plan->padded = (int64_t)round_up((size_t)plan->depth, BF16_DEPTH);
    plan->down = (plan->rows + TILE_ROWS - 1) / TILE_ROWS;
    plan->across = (plan->columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    *can = true;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            struct primitive wanted = {.depth = plan->padded};
            wanted.rows = extent(i ? plan->down - 1 : 0, TILE_ROWS, plan->rows);
            wanted.columns = extent(j ? plan->across - 1 : 0, TILE_COLUMNS, plan->columns);
            TRY(find_primitive(ops->device->bf16, wanted, &plan->tiles[i][j]));
            if (!plan->tiles[i][j].primitive) *can = false;
            size_t scratch = dnnl_memory_desc_get_size(&plan->tiles[i][j].scratch);
            if (scratch > plan->scratch_bytes) plan->scratch_bytes = scratch;
        }
    }
    plan->a_bytes = round_up(round_up((size_t)TILE_ROWS, 16) * (size_t)plan->padded * sizeof(uint16_t), 256);
    plan->c_bytes = round_up((size_t)TILE_ROWS * TILE_COLUMNS * sizeof(float), 256);
    return STATUS_OK;
}

/* `held`: the row of tiles whose a lies packed in this thread's work space, −1 for none. */
static enum status run_tile(const struct ops *ops, const struct gemm *a, const struct plan *plan, int64_t index,
                            char *work, int64_t *held, bf16_finish finish) {
    int64_t i = index / plan->across, j = index % plan->across;
    int64_t first = i * TILE_ROWS, start = j * TILE_COLUMNS;
    const struct primitive *p = &plan->tiles[i == plan->down - 1][j == plan->across - 1];
    uint16_t *packed = (uint16_t *)(void *)work;
    float *part = (float *)(void *)(work + plan->a_bytes);
    if (*held != i) {
        bf16_pack_a((const float *)a->a.data + (a->transpose_a ? first : first * a->a.stride[0]), a->a.stride[0],
                    a->transpose_a, (float)a->alpha, p->rows, plan->depth, plan->padded, packed);
        *held = i;
    }
    TRY(execute(ops->device->bf16, p, packed, plan->b + start * plan->padded, part,
                work + plan->a_bytes + plan->c_bytes));
    finish(a, first, p->rows, start, p->columns, part);
    return STATUS_OK;
}

enum status bf16_gemm(const struct ops *ops, const struct gemm *a, bf16_finish finish, bool *done) {
    *done = false;
    int64_t depth = a->a.shape[a->transpose_a ? 0 : 1], columns = a->c.shape[1];
    if (depth < DEPTH_MIN || columns < COLUMNS_MIN || (a->c.shape[0] < ROWS_MIN && !a->constant_b)) return STATUS_OK;
    if (!usable()) return STATUS_OK;
    TRY(open_cache(ops->device));
    struct plan plan = {0};
    bool can;
    TRY(make_plan(ops, a, &plan, &can));
    if (!can) return STATUS_OK;

    size_t b_bytes = round_up((size_t)columns, BF16_COLUMNS) * (size_t)plan.padded * sizeof(uint16_t);
    b_bytes = round_up(b_bytes, 256);
    size_t each = round_up(plan.a_bytes + plan.c_bytes + plan.scratch_bytes, 256), kept = a->constant_b ? 0 : b_bytes;
    size_t stride;
    char *block;
    TRY(device_scratch(ops, 1, kept + each * (size_t)ops->device->threads, &block, &stride));
    if (a->constant_b) {
        TRY(find_packed(ops, a, depth, plan.padded, b_bytes, &plan.b));
    } else {
        plan.b = (uint16_t *)(void *)block;
        pack_all(ops, a, depth, plan.padded, plan.b);
    }
    enum status status = STATUS_OK;
#pragma omp parallel num_threads(ops->device->threads)
    {
        char *work = block + kept + each * (size_t)omp_get_thread_num();
        int64_t held = -1;
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < plan.down * plan.across; t++) {
            enum status one = run_tile(ops, a, &plan, t, work, &held, finish);
            if (one == STATUS_OK) continue;
#pragma omp critical(bf16_failure)
            status = one;
        }
    }
    if (status != STATUS_OK) return error_set(status, "oneDNN: a tile of a bf16 product failed");
    *done = true;
    return STATUS_OK;
}

#else

enum status bf16_gemm(const struct ops *ops, const struct gemm *a, bf16_finish finish, bool *done) {
    (void)ops;
    (void)a;
    (void)finish;
    *done = false;
    return STATUS_OK;
}

size_t bf16_bytes(const struct device *device) {
    (void)device;
    return 0;
}

void bf16_close(struct device *device) {
    (void)device;
}

void bf16_forget(struct device *device, const void *block, size_t bytes) {
    (void)device;
    (void)block;
    (void)bytes;
}

const char *bf16_describe(void) {
    return "";
}

#endif
