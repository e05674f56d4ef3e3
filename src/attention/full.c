/* The kind `full`: causal softmax attention over everything. What a teacher does, and a student's layer that is left alone. */
#include "attention/kinds.h"
#include "attention/mixture.h"

static struct mixture everything(void) {
    return (struct mixture){.candidates = {{.kind = CANDIDATE_FULL}}, .count = 1};
}

static enum status configure(const char *where, const struct config_attention *rule, const struct model_config *model,
                             void **settings) {
    (void)model;
    *settings = NULL;
    return options_check_known(where, rule, NULL, 0);
}

static enum status plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                        void **saved) {
    (void)train;
    return mixture_plan(layer, 1, arena, batch, length, saved);
}

static enum status forward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct mixture mixture = everything();
    return mixture_forward(layer, &mixture, pass);
}

static enum status backward(const struct attention_layer *layer, const struct attention_pass *pass) {
    struct mixture mixture = everything();
    return mixture_backward(layer, &mixture, pass);
}

static enum status cache_open(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                              struct attention_cache **cache) {
    struct mixture mixture = everything();
    return mixture_cache_open(layer, &mixture, ops, batch, length, cache);
}

static enum status decode(const struct attention_layer *layer, struct attention_cache *cache,
                          const struct attention_decode_pass *pass) {
    struct mixture mixture = everything();
    return mixture_decode(layer, &mixture, cache, pass);
}

static enum status cost(const struct attention_layer *layer, int64_t length, struct attention_cost *out) {
    const struct model_config *m = layer->model;
    *out = (struct attention_cost){
        .density = 1,
        .flops = 2.0 * (double)(m->heads * m->head_width) * ((double)length + 1),
        .decode_bytes = 2.0 * (double)(length * m->kv_heads * m->head_width) * sizeof(float),
    };
    return STATUS_OK;
}

const struct kind kind_full = {
    .name = "full", .summary = "softmax attention to every earlier token", .configure = configure, .plan = plan,
    .forward = forward, .backward = backward, .cache_open = cache_open, .cache_close = mixture_cache_close,
    .decode = decode, .cost = cost,
};
