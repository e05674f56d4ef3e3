/* Decoding for the kind `indexer`: all keys, values and index keys, pooled ones whenever a block completes, and each list's slots. */
#include "attention/indexer.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

struct attention_cache {
    int64_t batch, length, most, capacity; /* most: tokens that a list chooses; capacity: slots that it can hold */
    struct tensor k, v;                    /* [B,T,G,D] */
    struct tensor u, pooled;               /* [B,T,S·K,E], [B,Nb,2·S·K,E] */
    struct indexer_vectors index;          /* of one token a sequence */
    struct tensor start, one;              /* pooling one block: [1,coarse] zeros, [1,1,2·S·K,E] */
    struct tensor places, chosen;          /* [B,3], [B,S,n] */
    struct tensor slots, slot_counts;      /* [B,S,capacity], [B,S] */
    int32_t *first, *blocks;               /* host [B]: slot of the document's first pooled block, how many there are */
    int32_t *host_places, *counts;         /* [B,3]; [S]: tokens that each list chooses */
    void *block;
};

static void place(const struct attention_layer *layer, struct arena *arena, const struct ops *ops, struct attention_cache *c) {
    const struct indexer_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const int64_t keys = s->lists * indexer_keys(s);
    c->k = arena_4d(arena, ops->real, c->batch, c->length, m->kv_heads, m->head_width);
    c->v = arena_4d(arena, ops->real, c->batch, c->length, m->kv_heads, m->head_width);
    c->u = arena_4d(arena, ops->real, c->batch, c->length, keys, s->width);
    c->index = (struct indexer_vectors){.r = arena_2d(arena, ops->real, c->batch, s->lists * s->heads * s->width),
                                        .u = arena_2d(arena, ops->real, c->batch, keys * s->width),
                                        .a = arena_2d(arena, ops->real, c->batch, s->lists * s->heads)};
    if (s->coarse > 0) {
        c->pooled = arena_4d(arena, ops->real, c->batch, c->length / s->coarse + 1, 2 * keys, s->width);
        c->start = arena_2d(arena, DTYPE_I32, 1, s->coarse);
        c->one = arena_4d(arena, ops->real, 1, 1, 2 * keys, s->width);
    }
    c->places = arena_2d(arena, DTYPE_I32, c->batch, 3);
    c->chosen = arena_3d(arena, DTYPE_I32, c->batch, s->lists, c->most);
    c->slots = arena_3d(arena, DTYPE_I32, c->batch, s->lists, c->capacity);
    c->slot_counts = arena_2d(arena, DTYPE_I32, c->batch, s->lists);
}

static enum status clear(const struct attention_layer *layer, const struct ops *ops, struct attention_cache *c) {
    const struct indexer_settings *s = layer->settings;
    const struct tensor caches[] = {c->k, c->v, c->u, c->pooled};
    int32_t *zeros = NULL;
    for (int n = 0; n < 4; n++)
        if (tensor_present(caches[n])) TRY(ops->fill(ops, caches[n], 0));
    if (s->coarse == 0) return STATUS_OK;
    TRY(memory_new((size_t)s->coarse, sizeof *zeros, "document starts", &zeros));
    enum status status = ops->upload(ops, c->start, zeros);
    free(zeros);
    return status;
}

enum status indexer_cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                               struct attention_cache **out) {
    const struct indexer_settings *s = layer->settings;
    enum status status = STATUS_OK;
    struct attention_cache *c = NULL;
    TRY(memory_new(1, sizeof *c, "a decoding cache", &c));
    *c = (struct attention_cache){.batch = batch, .length = length, .most = s->tokens < length ? s->tokens : length};
    c->capacity = s->window + s->sinks + c->most < length ? s->window + s->sinks + c->most : length;
    struct arena arena = arena_sizing();
    place(layer, &arena, ops, c);
    TRY_GOTO(done, ops->allocate(ops, arena.peak, &c->block));
    arena = arena_placing(c->block, arena.peak);
    place(layer, &arena, ops, c);
    TRY_GOTO(done, memory_new((size_t)batch, sizeof(int32_t), "block counts", &c->first));
    TRY_GOTO(done, memory_new((size_t)batch, sizeof(int32_t), "block counts", &c->blocks));
    TRY_GOTO(done, memory_new((size_t)(3 * batch), sizeof(int32_t), "places", &c->host_places));
    TRY_GOTO(done, memory_new((size_t)s->lists, sizeof(int32_t), "tokens of each list", &c->counts));
    for (int64_t n = 0; n < s->lists; n++) c->counts[n] = s->counts[n] < c->most ? s->counts[n] : (int32_t)c->most;
    TRY_GOTO(done, clear(layer, ops, c));
done:
    if (status != STATUS_OK) {
        indexer_cache_close(ops, c);
        c = NULL;
    }
    *out = c;
    return status;
}

void indexer_cache_close(const struct ops *ops, struct attention_cache *c) {
    if (!c) return;
    int32_t *numbers[] = {c->first, c->blocks, c->host_places, c->counts};
    ops->release(ops, c->block);
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) free(numbers[n]);
    free(c);
}

/* Pools the last block of tokens of sequence b into the next slot. */
static enum status complete_block(const struct attention_layer *layer, struct attention_cache *c,
                                  const struct attention_decode_pass *pass, int64_t b) {
    const int64_t coarse = ((const struct indexer_settings *)layer->settings)->coarse;
    struct tensor u = tensor_rows(c->u, b, 1);
    u.data = (char *)u.data + (pass->position + 1 - coarse) * u.stride[1] * (int64_t)dtype_size(u.dtype);
    u.shape[1] = coarse;
    const struct index_pool pool = {.u = u, .start = c->start, .pooled = c->one, .block = (int32_t)coarse};
    TRY(pass->ops->index_pool(pass->ops, &pool));
    return pass->ops->copy(pass->ops, tensor_slot(c->one, 0, 1, 0), tensor_slot(c->pooled, b, 1, c->first[b] + c->blocks[b]++));
}

static enum status take_in(const struct attention_layer *layer, struct attention_cache *c,
                           const struct attention_decode_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct ops *ops = pass->ops;
    const struct tensor u = indexer_split(layer, c->index.u, c->batch, 1);
    TRY(ops->copy(ops, pass->k, tensor_slot(c->k, 0, c->batch, pass->position)));
    TRY(ops->copy(ops, pass->v, tensor_slot(c->v, 0, c->batch, pass->position)));
    TRY(ops->copy(ops, tensor_slot(u, 0, c->batch, 0), tensor_slot(c->u, 0, c->batch, pass->position)));
    for (int64_t b = 0; b < c->batch; b++) {
        const int64_t tokens = pass->position - pass->start[b] + 1;
        if (tokens == 1) { /* a new document */
            c->first[b] += c->blocks[b];
            c->blocks[b] = 0;
        }
        if (s->coarse > 0 && tokens % s->coarse == 0) TRY(complete_block(layer, c, pass, b));
        c->host_places[3 * b] = pass->start[b];
        c->host_places[3 * b + 1] = c->first[b];
        c->host_places[3 * b + 2] = (int32_t)(tokens - 1);
    }
    return ops->upload(ops, c->places, c->host_places);
}

/* Index heads of one token a sequence: [B,heads,E]. */
static struct tensor heads_of(const struct attention_layer *layer, struct tensor matrix) {
    const int64_t width = ((const struct indexer_settings *)layer->settings)->width;
    return tensor_3d(matrix.data, matrix.dtype, matrix.shape[0], matrix.shape[1] / width, width);
}

static enum status choose(const struct attention_layer *layer, struct attention_cache *c,
                          const struct attention_decode_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct index_decode decode = {
        .r = heads_of(layer, c->index.r), .u = c->u, .a = c->index.a, .pooled = c->pooled, .places = c->places,
        .chosen = c->chosen, .counts = c->counts, .lists = (int32_t)s->lists, .window = (int32_t)s->window,
        .sinks = (int32_t)indexer_sinks(layer), .coarse = (int32_t)s->coarse, .coarse_blocks = (int32_t)s->coarse_blocks};
    return pass->ops->index_decode(pass->ops, &decode);
}

enum status indexer_decode(const struct attention_layer *layer, struct attention_cache *c,
                           const struct attention_decode_pass *pass) {
    const struct indexer_settings *s = layer->settings;
    const struct ops *ops = pass->ops;
    const bool chosen = indexer_on(layer, INDEXER_CHOICE);
    const int64_t lists = chosen ? s->lists : 1; /* window and sinks alone are the same for all heads */
    if (!indexer_on(layer, INDEXER_BEST) || !indexer_on(layer, INDEXER_RANDOM))
        return error_set(STATUS_FAILED, "attention indexer: a replaced scorer is for evaluation, not for decoding");
    TRY(indexer_project(layer, ops, pass->x, tensor_2d(pass->positions.data, DTYPE_I32, c->batch, 1), &c->index));
    TRY(take_in(layer, c, pass));
    if (chosen) TRY(choose(layer, c, pass));
    const struct tensor slots = tensor_3d(c->slots.data, DTYPE_I32, c->batch, lists, c->capacity);
    const struct tensor counts = tensor_2d(c->slot_counts.data, DTYPE_I32, c->batch, lists);
    const struct slot_lists list = {.places = c->places, .chosen = chosen ? c->chosen : tensor_none(), .slots = slots,
                                    .slot_counts = counts, .position = pass->position, .sinks = indexer_sinks(layer),
                                    .window = s->window};
    TRY(ops->slot_lists(ops, &list));
    const struct attention_decode decode = {.q = pass->q, .o = pass->o, .k = c->k, .v = c->v, .slots = slots,
                                            .slot_counts = counts, .count = 1, .lists = (int)lists,
                                            .scale = 1 / sqrt((double)layer->model->head_width)};
    return ops->attention_decode(ops, &decode);
}
