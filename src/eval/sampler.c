/* See sampler.h. */
#include "eval/sampler.h"

#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

struct ranked {
    double weight; /* exp((logit − maximum)/temperature) */
    int32_t id;
};

struct sampler {
    struct sampler_options options;
    int64_t vocabulary;
    struct ranked *ranked;
};

enum status sampler_open(const struct sampler_options *options, int64_t vocabulary, struct sampler **sampler) {
    *sampler = NULL;
    TRY(memory_new(1, sizeof **sampler, "sampler", sampler));
    (*sampler)->options = *options;
    (*sampler)->vocabulary = vocabulary;
    enum status status = memory_new((size_t)vocabulary, sizeof *(*sampler)->ranked, "sampler", &(*sampler)->ranked);
    if (status != STATUS_OK) sampler_close(sampler);
    return status;
}

void sampler_close(struct sampler **sampler) {
    if (!*sampler) return;
    free((*sampler)->ranked);
    free(*sampler);
    *sampler = NULL;
}

/* Descending weight, then ascending id. */
static int compare(const void *left, const void *right) {
    const struct ranked *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Keeps in `ranked` what top-k and top-p leave; returns how many. */
static int64_t keep_likely(struct sampler *sampler) {
    const struct sampler_options *options = &sampler->options;
    struct ranked *ranked = sampler->ranked;
    int64_t count = 0, kept = 0;
    double total = 0, floor = 0, mass = 0;
    for (int64_t i = 0; i < sampler->vocabulary; i++) total += ranked[i].weight;
    /* Tokens below (1−p)/V hold less than 1−p together, so that none of them is among the fewest that reach p. */
    if (options->top_k == 0) floor = 0.999 * (1 - options->top_p) / (double)sampler->vocabulary * total;
    for (int64_t i = 0; i < sampler->vocabulary; i++) {
        if (ranked[i].weight >= floor) ranked[count++] = ranked[i];
    }
    qsort(ranked, (size_t)count, sizeof *ranked, compare);
    if (options->top_k > 0 && count > options->top_k) {
        count = options->top_k;
        total = 0;
        for (int64_t i = 0; i < count; i++) total += ranked[i].weight;
    }
    while (kept < count && mass < options->top_p * total) mass += ranked[kept++].weight;
    return kept > 0 ? kept : 1;
}

static int32_t draw(const struct ranked *ranked, int64_t count, double uniform) {
    double total = 0, mass = 0;
    for (int64_t i = 0; i < count; i++) total += ranked[i].weight;
    for (int64_t i = 0; i < count; i++) {
        mass += ranked[i].weight;
        if (uniform * total < mass) return ranked[i].id;
    }
    return ranked[count - 1].id;
}

enum status sampler_choose(struct sampler *sampler, const float *logits, int64_t sample, int64_t position,
                           int32_t *id) {
    int64_t best = 0;
    for (int64_t v = 0; v < sampler->vocabulary; v++) {
        if (!isfinite(logits[v])) {
            return error_set(STATUS_NONFINITE,
                             "sample %lld, position %lld: logit of id %lld: expected a finite number, found %g",
                             (long long)sample, (long long)position, (long long)v, (double)logits[v]);
        }
        if (logits[v] > logits[best]) best = v;
    }
    *id = (int32_t)best;
    const struct sampler_options *options = &sampler->options;
    if (options->temperature <= 0) return STATUS_OK;
    for (int64_t v = 0; v < sampler->vocabulary; v++) {
        double weight = exp(((double)logits[v] - (double)logits[best]) / options->temperature);
        sampler->ranked[v] = (struct ranked){weight, (int32_t)v};
    }
    int64_t count = sampler->vocabulary;
    if (options->top_k > 0 || options->top_p < 1) count = keep_likely(sampler);
    uint64_t stream = rng_substream(RNG_SAMPLE, (uint64_t)sample);
    *id = draw(sampler->ranked, count, rng_uniform(options->seed, stream, (uint64_t)position));
    return STATUS_OK;
}
