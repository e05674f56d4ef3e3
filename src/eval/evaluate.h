/* Figures of models over windows of held-out text: perplexity, divergence from a teacher, agreement, health.
 * Figures do not depend on the number of ranks: batches are the same ones, sums are added in the windows' order. */
#ifndef SQUINT_EVAL_EVALUATE_H
#define SQUINT_EVAL_EVALUATE_H

#include "comm/comm.h"
#include "eval/windows.h"
#include "model/model.h"

struct evaluate_row {
    const char *name;          /* "teacher", "student", "untrained", … */
    const struct model *model; /* the teacher itself gets no divergence */
};

struct evaluate_options {
    int64_t batch;     /* B: sequences in a forward pass; 0: 8 */
    const char *label; /* of the progress line; NULL: no progress */
};

/* Tokens by their place in their document, as far as the model sees it: the first 64, the next 64, then twice as many each time. */
enum { EVALUATE_POSITIONS = 16, EVALUATE_POSITION_FIRST = 64 };
struct evaluate_position {
    double tokens, ce, kl; /* NaN means where no token counts; kl: where a teacher is */
};
/* *first, *end: positions of bucket `index`. */
void evaluate_position_range(int index, int64_t *first, int64_t *end);

/* Means are over the tokens that count; nats. Negative density: not defined for the model's kinds. */
struct evaluate_figures {
    double tokens, sequences;
    double ce, perplexity, bits; /* −log p(target): mean, exp, in bits */
    double ce_error;             /* standard error by sequences, as all errors here */
    bool has_teacher;            /* the next six are defined */
    double kl, kl_error;         /* KL(teacher‖model) */
    double reverse_kl, reverse_kl_error;
    double agreement, agreement_error; /* share of tokens where both argmax are equal */
    double entropy;                    /* of the model's output distribution */
    double token0;                     /* share of argmax = id 0 among the rows sampled for health */
    double health_rows;                /* how many those are: the last rows of every sequence */
    double nonfinite;                  /* tokens whose loss, and sampled logits that, are not finite */
    struct attention_cost cost;        /* at T */
    double flops;                      /* of one forward pass, a token, at T */
    struct evaluate_position positions[EVALUATE_POSITIONS];
};

/* STATUS_USAGE, naming the model `name`, when the shards' ids do not fit its vocabulary. */
enum status evaluate_check_fit(const struct model *model, const char *name, const struct windows *windows);
/* figures: [count]. teacher may be NULL. Every rank calls it and gets the same figures. STATUS_USAGE when the shards'
 * ids do not fit a model's vocabulary, or T its positions. */
enum status evaluate_run(const struct model *teacher, const struct evaluate_row *rows, size_t count,
                         const struct windows *windows, const struct evaluate_options *options, struct comm *comm,
                         struct evaluate_figures *figures);

#endif
