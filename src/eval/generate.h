/* Text from a model, as ids: one continuation token by token, or a corpus of samples. Knows nothing of tokenizers. */
#ifndef SQUINT_EVAL_GENERATE_H
#define SQUINT_EVAL_GENERATE_H

#include "comm/comm.h"
#include "eval/sampler.h"
#include "model/model.h"

#include <stdbool.h>

/* --- one continuation --------------------------------------------------------------------------------------------- */
struct generate_options {
    struct sampler_options sampler;
    int64_t tokens;  /* at most so many new ones */
    int32_t stop[2]; /* ids that end the text; −1: none */
    bool parallel;   /* computes the whole sequence anew for every token, without a cache: slow, to check the cache */
};
/* Called for every new id that is no stop, as it comes. */
typedef enum status (*generate_emit)(void *context, int32_t id);
struct generate_health {
    int64_t tokens;      /* new ones, without a stop */
    int64_t longest_run; /* of one and the same id */
    int32_t run_id;      /* that id */
    int64_t token0;      /* how many are id 0 */
};
/* Continues prompt[0..count−1], count >= 1. STATUS_NONFINITE names the position of logits that are not finite. */
enum status generate_text(const struct model *model, const int32_t *prompt, int64_t count,
                          const struct generate_options *options, generate_emit emit, void *context,
                          struct generate_health *health);
/* What is wrong with such a text, in words; "" when nothing: one id over and over, or mostly id 0. */
const char *generate_alarm(const struct generate_health *health);

/* --- a corpus ----------------------------------------------------------------------------------------------------- */
struct sample_options {
    struct sampler_options sampler;
    int64_t samples, length; /* how many; tokens of each at most, with the first */
    int64_t batch;           /* sampled in step; 0: 64 */
    int32_t begin;           /* the first token of every sample */
    int32_t stop[2];         /* ids that end a sample, −1: none */
    bool keep_stop[2];       /* whether that id belongs to the sample */
    const char *label;       /* of the progress line; NULL: none */
};
/* Called on rank 0 in the samples' order. */
typedef enum status (*sample_take)(void *context, int64_t sample, const int32_t *ids, int64_t count);
/* Every rank calls it; the samples are divided over them, and are the same whatever the number of ranks. */
enum status generate_samples(const struct model *model, const struct sample_options *options, struct comm *comm,
                             sample_take take, void *context, struct generate_health *health);

#endif
