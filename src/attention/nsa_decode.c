/* Decoding for the kind `nsa`: all keys and values, a compressed block whenever one completes, and each query's list of slots. */
#include "attention/nsa.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

struct attention_cache {
    int64_t batch, length, lists, capacity; /* capacity: slots that one list can hold */
    struct tensor k[NSA_BRANCHES], v[NSA_BRANCHES]; /* [B,T,G,D]; only branches with their own, and `selected` */
    struct tensor kv;                       /* [B,2·G·D] a branch's own of one token */
    struct tensor keys, values;             /* [B,Nb,G,D] compressed */
    struct tensor start, out, pre;          /* compressing one block: [1,l] zeros, [1,1,G,D], [1,1,G,2D] */
    struct tensor places, chosen;           /* [B,3], [B,lists,select] */
    struct tensor slots, slot_counts;       /* [B,lists,capacity], [B,lists] */
    struct tensor logits, branches[NSA_BRANCHES];
    int32_t *first, *blocks; /* host [B]: slot of the document's first compressed block, how many there are */
    int32_t *host_places;    /* [B,3] */
    void *block;
};

static void place(const struct attention_layer *layer, struct arena *arena, const struct ops *ops, struct attention_cache *c) {
    const struct nsa_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const int64_t blocks = compressed_bound(c->length, s->compress, s->stride), width = m->head_width;
    for (enum nsa_branch n = NSA_COMPRESSED; n < NSA_BRANCHES; n++) {
        if (n != NSA_SELECTED && !nsa_own_kv(s, n)) continue;
        c->k[n] = arena_4d(arena, ops->real, c->batch, c->length, m->kv_heads, width);
        c->v[n] = arena_4d(arena, ops->real, c->batch, c->length, m->kv_heads, width);
    }
    c->kv = arena_2d(arena, ops->real, c->batch, 2 * m->kv_heads * width);
    c->keys = arena_4d(arena, ops->real, c->batch, blocks, m->kv_heads, width);
    c->values = arena_4d(arena, ops->real, c->batch, blocks, m->kv_heads, width);
    c->start = arena_2d(arena, DTYPE_I32, 1, s->compress);
    c->out = arena_4d(arena, ops->real, 1, 1, m->kv_heads, width);
    c->pre = arena_4d(arena, ops->real, 1, 1, m->kv_heads, 2 * width);
    c->places = arena_2d(arena, DTYPE_I32, c->batch, 3);
    c->chosen = arena_3d(arena, DTYPE_I32, c->batch, c->lists, s->select > 0 ? s->select : 1);
    c->slots = arena_3d(arena, DTYPE_I32, c->batch, c->lists, c->capacity);
    c->slot_counts = arena_2d(arena, DTYPE_I32, c->batch, c->lists);
    c->logits = arena_3d(arena, ops->real, c->batch, 1, m->heads * nsa_gate_columns(s));
    for (int n = 0; n < NSA_BRANCHES; n++) c->branches[n] = arena_3d(arena, ops->real, c->batch, m->heads, width);
}

enum status nsa_cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                           struct attention_cache **out) {
    const struct nsa_settings *s = layer->settings;
    enum status status = STATUS_OK;
    struct attention_cache *c = NULL;
    int32_t *zeros = NULL;
    TRY(memory_new(1, sizeof *c, "a decoding cache", &c));
    *c = (struct attention_cache){.batch = batch, .length = length, .lists = nsa_lists(layer)};
    c->capacity = s->select * s->block + s->window < length ? s->select * s->block + s->window : length;
    struct arena arena = arena_sizing();
    place(layer, &arena, ops, c);
    TRY_GOTO(done, ops->allocate(ops, arena.peak, &c->block));
    arena = arena_placing(c->block, arena.peak);
    place(layer, &arena, ops, c);
    TRY_GOTO(done, memory_new((size_t)batch, sizeof(int32_t), "block counts", &c->first));
    TRY_GOTO(done, memory_new((size_t)batch, sizeof(int32_t), "block counts", &c->blocks));
    TRY_GOTO(done, memory_new((size_t)(3 * batch), sizeof(int32_t), "places", &c->host_places));
    TRY_GOTO(done, memory_new((size_t)s->compress, sizeof *zeros, "document starts", &zeros));
    TRY_GOTO(done, ops->upload(ops, c->start, zeros));
    TRY_GOTO(done, ops->fill(ops, c->keys, 0));
    TRY_GOTO(done, ops->fill(ops, c->values, 0));
    for (int n = 0; n < NSA_BRANCHES; n++) {
        if (!tensor_present(c->k[n])) continue;
        TRY_GOTO(done, ops->fill(ops, c->k[n], 0));
        TRY_GOTO(done, ops->fill(ops, c->v[n], 0));
    }
done:
    free(zeros);
    if (status != STATUS_OK) {
        nsa_cache_close(ops, c);
        c = NULL;
    }
    *out = c;
    return status;
}

void nsa_cache_close(const struct ops *ops, struct attention_cache *c) {
    if (!c) return;
    ops->release(ops, c->block);
    free(c->first);
    free(c->blocks);
    free(c->host_places);
    free(c);
}

/* Compresses the last l tokens of sequence b into the next slot. */
static enum status complete_block(const struct attention_layer *layer, struct attention_cache *c,
                                  const struct attention_decode_pass *pass, int64_t b) {
    const struct nsa_settings *s = layer->settings;
    const struct nsa_bound *bound = layer->bound;
    const struct ops *ops = pass->ops;
    const enum nsa_branch source = nsa_own_kv(s, NSA_COMPRESSED) ? NSA_COMPRESSED : NSA_SELECTED;
    const struct tensor from[] = {c->k[source], c->v[source]}, to[] = {c->keys, c->values};
    const struct nsa_compressor *rows[] = {&bound->keys, &bound->values};
    for (int n = 0; n < 2; n++) {
        struct tensor x = tensor_rows(from[n], b, 1);
        x.data = (char *)x.data + (pass->position + 1 - s->compress) * x.stride[1] * (int64_t)dtype_size(x.dtype);
        x.shape[1] = s->compress;
        const struct block_compress compress = nsa_compress(layer, rows[n], x, c->start, c->out, c->pre);
        TRY(ops->block_compress(ops, &compress));
        TRY(ops->copy(ops, tensor_slot(c->out, 0, 1, 0), tensor_slot(to[n], b, 1, c->first[b] + c->blocks[b])));
    }
    c->blocks[b]++;
    return STATUS_OK;
}

/* This token's keys and values into every cache. */
static enum status store(const struct attention_layer *layer, struct attention_cache *c,
                         const struct attention_decode_pass *pass) {
    const struct ops *ops = pass->ops;
    const struct tensor positions = tensor_2d(pass->positions.data, DTYPE_I32, c->batch, 1);
    TRY(ops->copy(ops, pass->k, tensor_slot(c->k[NSA_SELECTED], 0, c->batch, pass->position)));
    TRY(ops->copy(ops, pass->v, tensor_slot(c->v[NSA_SELECTED], 0, c->batch, pass->position)));
    for (enum nsa_branch n = NSA_COMPRESSED; n < NSA_BRANCHES; n++) {
        if (!nsa_own_kv(layer->settings, n)) continue;
        TRY(nsa_project(layer, ops, n, pass->x, positions, pass->frequencies, c->kv));
        const struct tensor k = nsa_kv_part(layer, c->kv, c->batch, 1, 0), v = nsa_kv_part(layer, c->kv, c->batch, 1, 1);
        TRY(ops->copy(ops, tensor_slot(k, 0, c->batch, 0), tensor_slot(c->k[n], 0, c->batch, pass->position)));
        TRY(ops->copy(ops, tensor_slot(v, 0, c->batch, 0), tensor_slot(c->v[n], 0, c->batch, pass->position)));
    }
    return STATUS_OK;
}

static enum status take_in(const struct attention_layer *layer, struct attention_cache *c,
                           const struct attention_decode_pass *pass) {
    const struct nsa_settings *s = layer->settings;
    TRY(store(layer, c, pass));
    for (int64_t b = 0; b < c->batch; b++) {
        const int64_t tokens = pass->position - pass->start[b] + 1;
        if (tokens == 1) { /* a new document */
            c->first[b] += c->blocks[b];
            c->blocks[b] = 0;
        }
        if (tokens >= s->compress && (tokens - s->compress) % s->stride == 0) TRY(complete_block(layer, c, pass, b));
        c->host_places[3 * b] = c->first[b];
        c->host_places[3 * b + 1] = c->blocks[b];
        c->host_places[3 * b + 2] = (int32_t)(tokens - 1);
    }
    return pass->ops->upload(pass->ops, c->places, c->host_places);
}

/* Exact attention of every list's heads to the chosen blocks (when wanted) and to the window. */
static enum status attend(const struct attention_layer *layer, struct attention_cache *c, const struct attention_decode_pass *pass,
                          bool chosen, int64_t window, struct tensor o) {
    const struct ops *ops = pass->ops;
    const struct nsa_settings *s = layer->settings;
    const enum nsa_branch source = !chosen && nsa_own_kv(s, NSA_WINDOW) ? NSA_WINDOW : NSA_SELECTED;
    const int64_t lists = chosen ? c->lists : 1; /* a window alone is the same for all heads */
    const struct tensor slots = tensor_3d(c->slots.data, DTYPE_I32, c->batch, lists, c->capacity);
    const struct tensor counts = tensor_2d(c->slot_counts.data, DTYPE_I32, c->batch, lists);
    const struct slot_lists list = {.places = c->places, .chosen = chosen ? c->chosen : tensor_none(), .slots = slots,
                                    .slot_counts = counts, .position = pass->position, .block = s->block, .window = window};
    TRY(ops->slot_lists(ops, &list));
    const struct attention_decode decode = {
        .q = pass->q, .o = o, .k = c->k[source], .v = c->v[source], .slots = slots, .slot_counts = counts, .count = 1,
        .lists = (int)lists, .scale = 1 / sqrt((double)layer->model->head_width)};
    return ops->attention_decode(ops, &decode);
}

static struct tensor one_token(struct tensor t) {
    return (struct tensor){.data = t.data, .dtype = t.dtype, .rank = 4, .shape = {t.shape[0], 1, t.shape[1], t.shape[2]},
                           .stride = {t.stride[0], t.stride[0], t.stride[1], 1}};
}

static enum status choose(const struct attention_layer *layer, struct attention_cache *c,
                          const struct attention_decode_pass *pass) {
    const struct nsa_settings *s = layer->settings;
    const struct ops *ops = pass->ops;
    const bool selects = nsa_selects(layer);
    const struct compressed_decode coarse = {
        .q = pass->q, .k = c->keys, .v = c->values, .places = c->places,
        .o = nsa_on(layer, NSA_COMPRESSED) ? c->branches[NSA_COMPRESSED] : tensor_none(),
        .chosen = selects ? c->chosen : tensor_none(), .compress = (int32_t)s->compress, .stride = (int32_t)s->stride,
        .block = (int32_t)s->block, .select = (int32_t)s->select, .select_group = (int32_t)s->select_group,
        .scale = 1 / sqrt((double)layer->model->head_width)};
    return ops->compressed_decode(ops, &coarse);
}

enum status nsa_decode(const struct attention_layer *layer, struct attention_cache *c,
                       const struct attention_decode_pass *pass) {
    const struct nsa_settings *s = layer->settings;
    const struct ops *ops = pass->ops;
    const bool coarse = nsa_on(layer, NSA_COMPRESSED), selects = nsa_selects(layer);
    const int64_t window = nsa_windows(layer) ? s->window : 0;
    TRY(take_in(layer, c, pass));
    if (coarse || selects) TRY(choose(layer, c, pass));
    if (!s->apart && !coarse) return attend(layer, c, pass, selects, window, pass->o);
    TRY(nsa_gate_logits(layer, ops, pass->x, tensor_as_rows(c->logits)));
    struct gate_mix mix = {.logits = c->logits, .o = one_token(pass->o), .complement = !s->apart};
    if (s->apart) {
        mix.count = NSA_BRANCHES;
        if (coarse) mix.branches[NSA_COMPRESSED] = one_token(c->branches[NSA_COMPRESSED]);
        if (selects) TRY(attend(layer, c, pass, true, 0, c->branches[NSA_SELECTED]));
        if (selects) mix.branches[NSA_SELECTED] = one_token(c->branches[NSA_SELECTED]);
        if (window) TRY(attend(layer, c, pass, false, window, c->branches[NSA_WINDOW]));
        if (window) mix.branches[NSA_WINDOW] = one_token(c->branches[NSA_WINDOW]);
    } else {
        mix.count = 2;
        TRY(attend(layer, c, pass, selects, window, c->branches[NSA_SELECTED]));
        mix.branches[0] = one_token(c->branches[NSA_SELECTED]);
        mix.branches[1] = one_token(c->branches[NSA_COMPRESSED]);
    }
    return ops->gate_mix(ops, &mix);
}
