/* A corpus of samples, divided over ranks; see generate.h. Batches are the same whatever the number of ranks: rank r
 * makes every size-th one, and after each round of them rank 0 takes the samples in order. */
#include "base/log.h"
#include "base/memory.h"
#include "eval/generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sampling {
    const struct model *model;
    const struct sample_options *options;
    struct comm *comm;
    struct sampler *sampler;
    struct decoder *decoder;
    int64_t batch, batches, vocabulary;
    int32_t *current; /* [B] */
    float *logits;    /* [B,V] */
    int32_t *ids;     /* [B, length+1]: the count, then the ids */
    int32_t *all;     /* [size, B, length+1] */
};

static enum status open_sampling(struct sampling *s) {
    size_t batch = (size_t)s->batch, row = (size_t)s->options->length + 1, size = (size_t)comm_size(s->comm);
    TRY(memory_new(batch, sizeof *s->current, "current ids", &s->current));
    TRY(memory_new(batch * (size_t)s->vocabulary, sizeof *s->logits, "logits", &s->logits));
    TRY(memory_new(batch * row, sizeof *s->ids, "samples", &s->ids));
    TRY(memory_new(size * batch * row, sizeof *s->all, "samples of all ranks", &s->all));
    if (s->options->begin < 0 || s->options->begin >= s->vocabulary) {
        return error_set(STATUS_USAGE, "samples: the first token: expected 0 to %lld, found %d",
                         (long long)s->vocabulary - 1, s->options->begin);
    }
    return sampler_open(&s->options->sampler, s->vocabulary, &s->sampler);
}

static void close_sampling(struct sampling *s) {
    decoder_close(&s->decoder);
    sampler_close(&s->sampler);
    free(s->current);
    free(s->logits);
    free(s->ids);
    free(s->all);
}

/* Takes `id` into the sample `row`; true when that ends it. */
static bool take_id(const struct sampling *s, int32_t *row, int32_t id) {
    for (int i = 0; i < 2; i++) {
        if (id != s->options->stop[i]) continue;
        if (s->options->keep_stop[i]) row[++row[0]] = id;
        return true;
    }
    row[++row[0]] = id;
    return row[0] >= s->options->length;
}

/* A fresh decoder a batch: its cache begins empty. Rows that have ended run on with their last id, unread. */
static enum status sample_batch(struct sampling *s, int64_t index) {
    int64_t length = s->options->length, open = s->batch, first = index * s->batch;
    bool *ended = NULL;
    enum status status = memory_new((size_t)s->batch, sizeof *ended, "ended samples", &ended);
    if (status != STATUS_OK) return status;
    TRY_GOTO(done, decoder_open(s->model, s->batch, length, &s->decoder));
    for (int64_t b = 0; b < s->batch; b++) {
        int32_t *row = s->ids + b * (length + 1);
        s->current[b] = row[1] = s->options->begin;
        row[0] = 1;
        ended[b] = first + b >= s->options->samples;
        open -= ended[b];
    }
    for (int64_t at = 1; at < length && open > 0; at++) {
        TRY_GOTO(done, decoder_step(s->decoder, s->current, NULL, s->logits));
        for (int64_t b = 0; b < s->batch; b++) {
            if (ended[b]) continue;
            TRY_GOTO(done, sampler_choose(s->sampler, s->logits + b * s->vocabulary, first + b, at, &s->current[b]));
            ended[b] = take_id(s, s->ids + b * (length + 1), s->current[b]);
            open -= ended[b];
        }
    }
done:
    decoder_close(&s->decoder);
    free(ended);
    return status;
}

static void count_sample(struct generate_health *health, const int32_t *ids, int64_t count) {
    int64_t run = 0;
    for (int64_t i = 0; i < count; i++) {
        run = i > 0 && ids[i] == ids[i - 1] ? run + 1 : 1;
        health->tokens++;
        health->token0 += ids[i] == 0;
        if (run <= health->longest_run) continue;
        health->longest_run = run;
        health->run_id = ids[i];
    }
}

/* Rank 0 hands on the round's samples in order. */
static enum status take_round(struct sampling *s, int64_t first_batch, sample_take take, void *context,
                              struct generate_health *health) {
    int64_t row = s->options->length + 1, rows = comm_size(s->comm) * s->batch, first = first_batch * s->batch;
    for (int64_t r = 0; r < rows && first + r < s->options->samples; r++) {
        const int32_t *ids = s->all + r * row;
        count_sample(health, ids + 1, ids[0]);
        if (comm_rank(s->comm) == 0) TRY(take(context, first + r, ids + 1, ids[0]));
    }
    return STATUS_OK;
}

static void show(struct log_progress *progress, const struct sampling *s, int64_t batches, int64_t tokens) {
    char detail[64], count[32];
    double seconds = time_now_s() - progress->started_s;
    int64_t done = batches * s->batch < s->options->samples ? batches * s->batch : s->options->samples;
    count_text(tokens, count);
    snprintf(detail, sizeof detail, "%s tokens  %.0f tok/s", count, seconds > 0 ? (double)tokens / seconds : 0);
    log_progress_show(progress, done, detail);
    if (done == s->options->samples) log_progress_end(progress, done, detail);
}

enum status generate_samples(const struct model *model, const struct sample_options *options, struct comm *comm,
                             sample_take take, void *context, struct generate_health *health) {
    struct sampling s = {.model = model,
                         .options = options,
                         .comm = comm,
                         .vocabulary = model->config.vocabulary,
                         .batch = options->batch > 0 ? options->batch : 64};
    struct log_progress progress;
    int size = comm_size(comm);
    int64_t width = s.batch * (options->length + 1);
    s.batches = (options->samples + s.batch - 1) / s.batch;
    *health = (struct generate_health){0};
    enum status status;
    TRY_GOTO(done, comm_agree(comm, open_sampling(&s)));
    if (options->label) log_progress_start(&progress, options->label, 0, options->samples);
    for (int64_t first = 0; first < s.batches; first += size) {
        int64_t mine = first + comm_rank(comm);
        enum status own = mine < s.batches ? sample_batch(&s, mine) : STATUS_OK;
        TRY_GOTO(done, comm_agree(comm, own));
        TRY_GOTO(done,
                 comm_all_gather(comm, tensor_1d(s.ids, DTYPE_I32, width), tensor_1d(s.all, DTYPE_I32, size * width)));
        TRY_GOTO(done, comm_agree(comm, take_round(&s, first, take, context, health)));
        int64_t done_batches = first + size < s.batches ? first + size : s.batches;
        if (options->label) show(&progress, &s, done_batches, health->tokens);
    }
done:
    close_sampling(&s);
    return status;
}
