/* Recall: how well models say what only an earlier place of a document gives away. Knows documents as ids with their
 * answers; not where they come from. Figures do not depend on the number of ranks. */
#ifndef SQUINT_EVAL_RECALL_H
#define SQUINT_EVAL_RECALL_H

#include "eval/evaluate.h"

struct recall_answer { /* in tokens of its document */
    int64_t first, count;
    int64_t distance; /* from where the document last said it to `first` */
};

struct recall_document {
    int32_t *ids;
    int64_t count;
    struct recall_answer *answers;
    size_t answer_count;
};

struct recall_options {
    int64_t length;    /* T: a document is one sequence, cut after its first T inputs */
    int64_t batch;     /* B: documents in a forward pass; 0: 8 */
    const char *label; /* of the progress line; NULL: no progress */
};

/* Answers by their distance: below 128 tokens, below 256, 512, 1,024, and beyond. */
enum { RECALL_BUCKETS = 5, RECALL_BUCKET_FIRST = 128 };
/* *first, *end: distances of bucket `index`; *end −1: without one. */
void recall_distance_range(int index, int64_t *first, int64_t *end);

struct recall_bucket {
    double answers;  /* how many */
    double accuracy; /* share of them whose every token is likelier than any other, given the true text; NaN: none */
    double nll;      /* −log p of an answer, all its tokens together: mean, nats; NaN: none */
};

struct recall_figures {
    struct recall_bucket all, buckets[RECALL_BUCKETS];
};

/* Answers that a sequence of `length` inputs can be asked for: behind its first token, and not cut off. */
int64_t recall_count(const struct recall_document *documents, size_t document_count, int64_t length);

/* figures: [count], of the rows' models over the answers that recall_count counts. Every rank calls it with the same
 * documents and gets the same figures. STATUS_USAGE when no answer counts, an id does not fit a model's vocabulary, or
 * T its positions. */
enum status recall_run(const struct evaluate_row *rows, size_t count, const struct recall_document *documents,
                       size_t document_count, const struct recall_options *options, struct comm *comm,
                       struct recall_figures *figures);

#endif
