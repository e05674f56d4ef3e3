/* Token by token from caches: the same layers, one row a sequence. */
#include "base/memory.h"
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

struct decoder {
    const struct model *model;
    struct plan *plan; /* memory of one row a sequence: B×1 */
    struct head *head;
    struct attention_cache **caches; /* [L] */
    int64_t batch, length, position;
    int32_t *start, *positions; /* host [B] */
};

enum status decoder_open(const struct model *model, int64_t batch, int64_t length, struct decoder **out) {
    enum status status = STATUS_OK;
    struct decoder *decoder = NULL;
    TRY(memory_new(1, sizeof *decoder, "a decoder", &decoder));
    decoder->model = model;
    decoder->batch = batch;
    decoder->length = length;
    struct plan_options options = {.batch = batch, .length = 1};
    struct head_options head = {.rows = batch};
    TRY_GOTO(done, plan_open(model, &options, &decoder->plan));
    TRY_GOTO(done, head_open(NULL, model, &head, &decoder->head));
    TRY_GOTO(done, memory_new((size_t)model->config.layers, sizeof *decoder->caches, "caches", &decoder->caches));
    TRY_GOTO(done, memory_new((size_t)batch, sizeof *decoder->start, "document starts", &decoder->start));
    TRY_GOTO(done, memory_new((size_t)batch, sizeof *decoder->positions, "positions", &decoder->positions));
    for (int64_t l = 0; l < model->config.layers; l++) {
        const struct attention_layer *layer = &model->layers[l];
        TRY_GOTO(done, layer->kind->cache_open(layer, model->params.ops, batch, length, &decoder->caches[l]));
    }
done:
    if (status != STATUS_OK) decoder_close(&decoder);
    *out = decoder;
    return status;
}

void decoder_close(struct decoder **out) {
    struct decoder *decoder = *out;
    if (!decoder) return;
    for (int64_t l = 0; decoder->caches && l < decoder->model->config.layers; l++) {
        decoder->model->layers[l].kind->cache_close(decoder->model->params.ops, decoder->caches[l]);
    }
    free(decoder->caches);
    free(decoder->start);
    free(decoder->positions);
    head_close(&decoder->head);
    plan_close(&decoder->plan);
    free(decoder);
    *out = NULL;
}

int64_t decoder_position(const struct decoder *decoder) { return decoder->position; }

/* The plan's layer works on B sequences of one token; attention reads the cache instead. */
static enum status attend(void *user, int64_t layer, struct plan *plan) {
    struct decoder *decoder = user;
    const struct model_config *c = &decoder->model->config;
    const struct layer_saved *s = &plan->saved[layer];
    struct qkv_views views = qkv_split(c, s->qkv, decoder->batch, 1);
    struct tensor flat[4] = {views.q, views.k, views.v, tensor_split_heads(s->o, decoder->batch, 1, c->heads, c->head_width)};
    for (int i = 0; i < 4; i++) {
        struct tensor t = flat[i];
        flat[i] = (struct tensor){.data = t.data, .dtype = t.dtype, .rank = 3, .shape = {t.shape[0], t.shape[2], t.shape[3]},
                                  .stride = {t.stride[0], t.stride[2], 1}};
    }
    struct attention_decode_pass pass = {
        .ops = decoder->model->params.ops, .batch = decoder->batch, .position = decoder->position,
        .start = decoder->start, .x = s->n1, .positions = plan->positions,
        .frequencies = model_has_learned_positions(c) ? tensor_none() : plan->frequencies, .q = flat[0], .k = flat[1], .v = flat[2], .o = flat[3],
    };
    const struct attention_layer *attention = &decoder->model->layers[layer];
    return attention->kind->decode(attention, decoder->caches[layer], &pass);
}

enum status decoder_step(struct decoder *decoder, const int32_t *ids, const bool *starts_document, float *logits) {
    if (decoder->position >= decoder->length) {
        return error_set(STATUS_USAGE, "decoding: the cache holds %lld tokens and is full", (long long)decoder->length);
    }
    for (int64_t b = 0; b < decoder->batch; b++) {
        if (decoder->position == 0 || (starts_document && starts_document[b])) decoder->start[b] = (int32_t)decoder->position;
        decoder->positions[b] = (int32_t)decoder->position - decoder->start[b];
    }
    struct attend from_cache = {.run = attend, .user = decoder};
    TRY(plan_load(decoder->plan, ids, decoder->positions, decoder->start));
    TRY(network_forward(decoder->plan, &from_cache));
    decoder->position++;
    return logits ? head_logits(decoder->head, decoder->plan->hidden, 0, decoder->batch, false, logits) : STATUS_OK;
}
