/* See recall.h. */
#include "eval/recall.h"

#include "base/log.h"
#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is kept of every document and model, for every bucket. */
enum sum_index { SUM_ANSWERS, SUM_RIGHT, SUM_NLL, SUM_VALUES };
enum { SUMS = RECALL_BUCKETS * SUM_VALUES };

struct recall {
    const struct evaluate_row *rows;
    size_t count, document_count;
    const struct recall_document *documents;
    int64_t batch, length, batches;
    int32_t *ids, *start; /* [B,T] */
    float *log_p;         /* [tokens of the longest answer, largest V] */
    double *sums;         /* [documents, count, SUMS] */
};

void recall_distance_range(int index, int64_t *first, int64_t *end) {
    *first = index == 0 ? 0 : (int64_t)RECALL_BUCKET_FIRST << (index - 1);
    *end = index + 1 < RECALL_BUCKETS ? (int64_t)RECALL_BUCKET_FIRST << index : -1;
}

static int bucket_of(int64_t distance) {
    int index = 0;
    while (index + 1 < RECALL_BUCKETS && distance >= (int64_t)RECALL_BUCKET_FIRST << index) index++;
    return index;
}

/* Token t is the target of input t − 1. */
static bool counts(const struct recall_answer *answer, int64_t length) {
    return answer->first >= 1 && answer->first + answer->count <= length + 1;
}

int64_t recall_count(const struct recall_document *documents, size_t document_count, int64_t length) {
    int64_t count = 0;
    for (size_t d = 0; d < document_count; d++) {
        for (size_t i = 0; i < documents[d].answer_count; i++) count += counts(&documents[d].answers[i], length);
    }
    return count;
}

static enum status check_ids(const struct recall *r) {
    for (size_t m = 0; m < r->count; m++) {
        int64_t vocabulary = r->rows[m].model->config.vocabulary;
        for (size_t d = 0; d < r->document_count; d++) {
            for (int64_t i = 0; i < r->documents[d].count; i++) {
                int32_t id = r->documents[d].ids[i];
                if (id >= 0 && id < vocabulary) continue;
                return error_set(STATUS_USAGE,
                                 "%s: recall: document %zu, token %lld: expected an id below %lld, found %d",
                                 r->rows[m].name, d, (long long)i, (long long)vocabulary, (int)id);
            }
        }
    }
    return STATUS_OK;
}

/* T no longer than the longest document has inputs: nothing is learned from padding. */
static enum status check(struct recall *r, int64_t length) {
    int64_t longest = 0;
    if (recall_count(r->documents, r->document_count, length) == 0) {
        return error_set(STATUS_USAGE, "recall: no answer lies in the first %lld tokens of its document",
                         (long long)length);
    }
    for (size_t d = 0; d < r->document_count; d++) {
        if (r->documents[d].count - 1 > longest) longest = r->documents[d].count - 1;
    }
    r->length = length < longest ? length : longest;
    return check_ids(r);
}

static enum status open_buffers(struct recall *r) {
    size_t tokens = (size_t)(r->batch * r->length);
    int64_t vocabulary = 1, longest = 1;
    for (size_t m = 0; m < r->count; m++) {
        int64_t here = r->rows[m].model->config.vocabulary;
        if (here > vocabulary) vocabulary = here;
    }
    for (size_t d = 0; d < r->document_count; d++) {
        for (size_t i = 0; i < r->documents[d].answer_count; i++) {
            int64_t here = r->documents[d].answers[i].count;
            if (here > longest && here <= r->length) longest = here;
        }
    }
    TRY(memory_new(tokens, sizeof *r->ids, "recall ids", &r->ids));
    TRY(memory_new(tokens, sizeof *r->start, "recall documents", &r->start));
    TRY(memory_new((size_t)(longest * vocabulary), sizeof *r->log_p, "recall log-probabilities", &r->log_p));
    return memory_new(r->document_count * r->count * SUMS, sizeof *r->sums, "recall sums", &r->sums);
}

static void close_buffers(struct recall *r) {
    void *blocks[] = {r->ids, r->start, r->log_p, r->sums};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

/* Is id `target` likelier than every other? Not so where a value is not a number. */
static bool is_first(const float *log_p, int64_t vocabulary, int32_t target) {
    for (int64_t v = 0; v < vocabulary; v++) {
        if (v != target && !(log_p[v] < log_p[target])) return false;
    }
    return isfinite(log_p[target]);
}

/* Sequence b of the batch in `hidden` [B·T,C] is document d. */
static enum status add_document(const struct recall *r, struct head *head, struct tensor hidden, size_t m, int64_t b,
                                int64_t d) {
    const struct recall_document *document = &r->documents[d];
    int64_t vocabulary = r->rows[m].model->config.vocabulary;
    for (size_t i = 0; i < document->answer_count; i++) {
        const struct recall_answer *answer = &document->answers[i];
        if (!counts(answer, r->length)) continue;
        double nll = 0;
        bool right = true;
        TRY(head_logits(head, hidden, b * r->length + answer->first - 1, answer->count, true, r->log_p));
        for (int64_t t = 0; t < answer->count; t++) {
            const float *row = r->log_p + t * vocabulary;
            int32_t target = document->ids[answer->first + t];
            nll -= (double)row[target];
            right = right && is_first(row, vocabulary, target);
        }
        double *sums = r->sums + ((size_t)d * r->count + m) * SUMS + bucket_of(answer->distance) * SUM_VALUES;
        sums[SUM_ANSWERS] += 1;
        sums[SUM_RIGHT] += right;
        sums[SUM_NLL] += nll;
    }
    return STATUS_OK;
}

/* One document a sequence; what is left of it is padding that is a document of its own. */
static void read_batch(const struct recall *r, int64_t first) {
    for (int64_t b = 0; b < r->batch; b++) {
        int32_t *ids = r->ids + b * r->length, *start = r->start + b * r->length;
        int64_t inputs = 0;
        if (first + b < (int64_t)r->document_count) {
            const struct recall_document *document = &r->documents[first + b];
            inputs = document->count < r->length ? document->count : r->length;
            memcpy(ids, document->ids, (size_t)inputs * sizeof *ids);
            memset(start, 0, (size_t)inputs * sizeof *start);
        }
        for (int64_t i = inputs; i < r->length; i++) {
            ids[i] = 0;
            start[i] = (int32_t)inputs;
        }
    }
}

/* This rank's share: every size-th batch, so that a batch holds the same documents whatever the number of ranks. */
static enum status run_model(struct recall *r, size_t m, struct log_progress *progress, const struct comm *comm) {
    const struct model *model = r->rows[m].model;
    struct plan_options plan_options = {.batch = r->batch, .length = r->length};
    struct head_options head_options = {.rows = r->batch * r->length};
    struct batch batch = {.batch = r->batch, .length = r->length, .ids = r->ids, .start = r->start};
    struct plan *plan = NULL;
    struct head *head = NULL;
    struct tensor hidden;
    enum status status;
    TRY_GOTO(done, plan_open(model, &plan_options, &plan));
    TRY_GOTO(done, head_open(NULL, model, &head_options, &head));
    for (int64_t index = comm_rank(comm); index < r->batches; index += comm_size(comm)) {
        int64_t first = index * r->batch;
        read_batch(r, first);
        TRY_GOTO(done, model_forward(plan, &batch, &hidden));
        for (int64_t b = 0; b < r->batch && first + b < (int64_t)r->document_count; b++)
            TRY_GOTO(done, add_document(r, head, hidden, m, b, first + b));
        if (progress) log_progress_show(progress, (int64_t)m * r->batches + index, "batches");
    }
done:
    head_close(&head);
    plan_close(&plan);
    return status;
}

static enum status run_share(struct recall *r, const char *label, const struct comm *comm) {
    struct log_progress progress;
    if (label) log_progress_start(&progress, label, 0, (int64_t)r->count * r->batches);
    for (size_t m = 0; m < r->count; m++) TRY(run_model(r, m, label ? &progress : NULL, comm));
    if (label) log_progress_end(&progress, (int64_t)r->count * r->batches, "batches");
    return STATUS_OK;
}

static struct recall_bucket mean(const double *sums) {
    return (struct recall_bucket){sums[SUM_ANSWERS], sums[SUM_RIGHT] / sums[SUM_ANSWERS],
                                  sums[SUM_NLL] / sums[SUM_ANSWERS]};
}

static void finish(const struct recall *r, size_t m, struct recall_figures *figures) {
    double totals[SUMS] = {0}, all[SUM_VALUES] = {0};
    for (size_t d = 0; d < r->document_count; d++) {
        for (int i = 0; i < SUMS; i++) totals[i] += r->sums[(d * r->count + m) * SUMS + (size_t)i];
    }
    for (int i = 0; i < SUMS; i++) all[i % SUM_VALUES] += totals[i];
    figures->all = mean(all);
    for (int i = 0; i < RECALL_BUCKETS; i++) figures->buckets[i] = mean(totals + i * SUM_VALUES);
}

enum status recall_run(const struct evaluate_row *rows, size_t count, const struct recall_document *documents,
                       size_t document_count, const struct recall_options *options, struct comm *comm,
                       struct recall_figures *figures) {
    struct recall r = {.rows = rows,
                       .count = count,
                       .documents = documents,
                       .document_count = document_count,
                       .batch = options->batch > 0 ? options->batch : 8};
    r.batches = ((int64_t)document_count + r.batch - 1) / r.batch;
    enum status status = check(&r, options->length);
    if (status == STATUS_OK) status = open_buffers(&r);
    TRY_GOTO(done, comm_agree(comm, status));
    TRY_GOTO(done, comm_agree(comm, run_share(&r, options->label, comm)));
    /* Each sum is one rank's value and zeros from the others: exact in any order. */
    TRY_GOTO(done,
             comm_all_reduce(comm, tensor_1d(r.sums, DTYPE_F64, (int64_t)(document_count * count) * SUMS), COMM_SUM));
    for (size_t m = 0; m < count; m++) finish(&r, m, &figures[m]);
done:
    close_buffers(&r);
    return status;
}
