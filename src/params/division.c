/* See division.h. */
#include "params/division.h"

#include "base/hash.h"
#include "base/memory.h"

#include <stdlib.h>

/* In which stages a row trains, as one number. */
static uint64_t stages_of(const struct param *row, const struct division_options *options) {
    uint64_t hash = 0;
    for (size_t s = 0; s < options->stage_count; s++) {
        uint64_t trains = 0;
        for (size_t p = 0; p < options->stages[s].count && !trains; p++) {
            trains = params_match(row, options->stages[s].patterns[p]);
        }
        hash = hash_combine(hash, trains);
    }
    return hash;
}

static enum status add_bucket(struct division *division, const struct bucket *bucket) {
    TRY(memory_grow(&division->buckets, (size_t)division->bucket_count + 1, sizeof *division->buckets, "buckets"));
    division->buckets[division->bucket_count++] = *bucket;
    return STATUS_OK;
}

/* Fills buckets with rows, in the blocks' order: one ends where it is full, or where rows come that train in other
 * stages. */
static enum status make_buckets(const struct params *params, const struct division_options *options,
                                struct division *division) {
    const int64_t most = options->bucket_elements > 0 ? options->bucket_elements : INT64_MAX;
    struct bucket bucket = {0};
    uint64_t stages = 0;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        const int64_t layer = params_layer(row), end = row->offset + tensor_count(row->value);
        if (!row->owned) continue;
        const uint64_t own = stages_of(row, options);
        const bool joins = own == stages && params->rows[bucket.row].added == row->added;
        if (bucket.count > 0 && !joins) {
            TRY(add_bucket(division, &bucket));
            bucket.count = 0;
        }
        stages = own;
        for (int64_t at = row->offset; at < end;) {
            if (bucket.count == most) {
                TRY(add_bucket(division, &bucket));
                bucket.count = 0;
            }
            if (bucket.count == 0) bucket = (struct bucket){.first = at, .layer = layer, .row = i};
            const int64_t left = most - bucket.count, take = end - at < left ? end - at : left;
            if (layer < bucket.layer) bucket.layer = layer;
            bucket.count += take;
            at += take;
        }
    }
    return bucket.count > 0 ? add_bucket(division, &bucket) : STATUS_OK;
}

void division_part(const struct division *division, const struct bucket *bucket, int rank, int64_t *first,
                   int64_t *count) {
    *first = bucket->first;
    *count = bucket->count;
    if (!division->zero) return;
    const int64_t each = bucket->count / division->size;
    *first += rank * each;
    *count = rank + 1 < division->size ? each : bucket->count - rank * each;
}

static enum status make_spans(const struct params *params, struct division *division) {
    const int64_t spans = division->zero ? division->bucket_count : 1;
    TRY(memory_new((size_t)(spans > 0 ? spans : 1), sizeof *division->spans, "parts of buckets", &division->spans));
    if (!division->zero) {
        division->spans[0] = (struct span){.count = params->owned_elements};
        division->span_count = 1;
        division->state_elements = params->owned_elements;
        return STATUS_OK;
    }
    for (int64_t b = 0; b < division->bucket_count; b++) {
        struct span span = {.state = division->state_elements};
        division_part(division, &division->buckets[b], division->rank, &span.first, &span.count);
        if (span.count == 0) continue;
        division->spans[division->span_count++] = span;
        division->state_elements += span.count;
    }
    return STATUS_OK;
}

static enum status take_moments(struct params *params, struct tensor *moments) {
    const struct ops *ops = params->ops;
    const int64_t elements = params->division.state_elements > 0 ? params->division.state_elements : 1;
    void *data = NULL;
    TRY(ops->allocate(ops, (size_t)elements * dtype_size(ops->parameter), &data));
    *moments = tensor_1d(data, ops->parameter, elements);
    return ops->fill(ops, *moments, 0);
}

enum status params_divide(struct params *params, const struct division_options *options) {
    struct division *division = &params->division;
    if (!tensor_present(params->grads) || division->spans) {
        return error_set(STATUS_FAILED, "the tensor table: expected one that trains and is not divided yet");
    }
    *division =
        (struct division){.rank = options->rank, .size = options->size, .zero = options->zero && options->size > 1};
    TRY(make_buckets(params, options, division));
    TRY(make_spans(params, division));
    TRY(take_moments(params, &params->m));
    return take_moments(params, &params->v);
}

void division_free(struct division *division) {
    if (!division) return;
    free(division->buckets);
    free(division->spans);
    *division = (struct division){0};
}

bool bucket_trains(const struct params *params, const struct bucket *bucket) {
    return params->rows[bucket->row].trained;
}

struct tensor span_state(const struct span *span, struct tensor block) {
    return tensor_rows(block, span->state, span->count);
}

struct tensor span_elements(const struct span *span, struct tensor block) {
    return tensor_rows(block, span->first, span->count);
}
