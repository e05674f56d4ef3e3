/* The choice of a next token from logits. Random choices are functions of (seed, sample, position). */
#ifndef SQUINT_EVAL_SAMPLER_H
#define SQUINT_EVAL_SAMPLER_H

#include "base/error.h"

#include <stdint.h>

struct sampler_options {
    double temperature; /* 0: the most likely token, the lowest id on ties */
    int64_t top_k;      /* only the k most likely; 0: all */
    double top_p;       /* only the fewest most likely whose probabilities add up to p; 1: all (Holtzman et al. 2020) */
    uint64_t seed;
};

struct sampler;
enum status sampler_open(const struct sampler_options *options, int64_t vocabulary, struct sampler **sampler);
void sampler_close(struct sampler **sampler); /* NULL-safe */
/* *id = the token that follows `logits` [V] at `position` of sample `sample`. STATUS_NONFINITE names sample, position
 * and id of a logit that is not finite. */
enum status sampler_choose(struct sampler *sampler, const float *logits, int64_t sample, int64_t position, int32_t *id);

#endif
