/* One continuation, from a cache or without; see generate.h. */
#include "eval/generate.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* Gives the logits that follow ids[0..count−1]; calls come with count growing by one. */
struct continuation {
    const struct model *model;
    struct decoder *decoder; /* cached */
    struct plan *plan;       /* parallel */
    struct head *head;
    int64_t capacity;
    int32_t *ids, *start; /* [capacity] */
    float *logits;        /* [V] */
};

static enum status open_parallel(struct continuation *c) {
    struct plan_options plan = {.batch = 1, .length = c->capacity};
    struct head_options head = {.rows = c->capacity};
    TRY(plan_open(c->model, &plan, &c->plan));
    return head_open(NULL, c->model, &head, &c->head);
}

static enum status open_continuation(const struct model *model, const int32_t *prompt, int64_t count,
                                     const struct generate_options *options, struct continuation *c) {
    *c = (struct continuation){.model = model, .capacity = count + options->tokens};
    TRY(memory_new((size_t)c->capacity, sizeof *c->ids, "ids", &c->ids));
    TRY(memory_new((size_t)c->capacity, sizeof *c->start, "documents", &c->start));
    TRY(memory_new((size_t)model->config.vocabulary, sizeof *c->logits, "logits", &c->logits));
    memcpy(c->ids, prompt, (size_t)count * sizeof *prompt);
    for (int64_t i = 0; i < count; i++) {
        if (prompt[i] >= 0 && prompt[i] < model->config.vocabulary) continue;
        return error_set(STATUS_USAGE, "prompt: id %lld: expected 0 to %lld, found %d", (long long)i,
                         (long long)model->config.vocabulary - 1, prompt[i]);
    }
    return options->parallel ? open_parallel(c) : decoder_open(model, 1, c->capacity, &c->decoder);
}

static void close_continuation(struct continuation *c) {
    decoder_close(&c->decoder);
    head_close(&c->head);
    plan_close(&c->plan);
    free(c->ids);
    free(c->start);
    free(c->logits);
}

/* Ids after `count` are zero: no earlier position sees them. */
static enum status next_logits(struct continuation *c, int64_t count) {
    if (c->decoder) {
        for (int64_t at = decoder_position(c->decoder); at < count; at++) {
            TRY(decoder_step(c->decoder, &c->ids[at], NULL, at + 1 == count ? c->logits : NULL));
        }
        return STATUS_OK;
    }
    struct batch batch = {.batch = 1, .length = c->capacity, .ids = c->ids, .start = c->start};
    struct tensor hidden;
    TRY(model_forward(c->plan, &batch, &hidden));
    return head_logits(c->head, hidden, count - 1, 1, false, c->logits);
}

static void count_health(struct generate_health *health, int32_t id, int64_t *run, int32_t *last) {
    *run = health->tokens > 0 && id == *last ? *run + 1 : 1;
    *last = id;
    health->tokens++;
    health->token0 += id == 0;
    if (*run > health->longest_run) {
        health->longest_run = *run;
        health->run_id = id;
    }
}

enum status generate_text(const struct model *model, const int32_t *prompt, int64_t count,
                          const struct generate_options *options, generate_emit emit, void *context,
                          struct generate_health *health) {
    struct continuation c;
    struct sampler *sampler = NULL;
    int64_t run = 0;
    int32_t last = -1;
    *health = (struct generate_health){0};
    enum status status = open_continuation(model, prompt, count, options, &c);
    if (status != STATUS_OK) goto done;
    TRY_GOTO(done, sampler_open(&options->sampler, model->config.vocabulary, &sampler));
    for (int64_t at = count; at < c.capacity; at++) {
        TRY_GOTO(done, next_logits(&c, at));
        TRY_GOTO(done, sampler_choose(sampler, c.logits, 0, at, &c.ids[at]));
        int32_t id = c.ids[at];
        if (id == options->stop[0] || id == options->stop[1]) break;
        count_health(health, id, &run, &last);
        TRY_GOTO(done, emit(context, id));
    }
done:
    sampler_close(&sampler);
    close_continuation(&c);
    return status;
}

const char *generate_alarm(const struct generate_health *health) {
    if (health->tokens < 32) return "";
    if (2 * health->token0 > health->tokens)
        return "more than half of the tokens are id 0: the model's outputs may be broken";
    if (health->longest_run >= 32) return "one token is repeated 32 times or more: the model is in a loop";
    return "";
}
