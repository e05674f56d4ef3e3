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
        division->spans[0] = (struct span){.count = params->owned_elements, .kept = -1};
        division->span_count = 1;
        division->state_elements = params->owned_elements;
        return STATUS_OK;
    }
    for (int64_t b = 0; b < division->bucket_count; b++) {
        struct span span = {.state = division->state_elements, .kept = -1};
        division_part(division, &division->buckets[b], division->rank, &span.first, &span.count);
        if (span.count == 0) continue;
        division->spans[division->span_count++] = span;
        division->state_elements += span.count;
    }
    return STATUS_OK;
}

/* Memory for `elements` parameters, at least one. */
static enum status take_block(const struct params *params, int64_t elements, struct tensor *block) {
    const struct ops *ops = params->ops;
    const int64_t count = elements > 0 ? elements : 1;
    void *data = NULL;
    TRY(ops->allocate(ops, (size_t)count * dtype_size(ops->parameter), &data));
    *block = tensor_1d(data, ops->parameter, count);
    return STATUS_OK;
}

static enum status take_moments(struct params *params, struct tensor *moments) {
    TRY(take_block(params, params->division.state_elements, moments));
    return params->ops->fill(params->ops, *moments, 0);
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

bool span_of_row(const struct span *span, const struct param *row, int64_t *first, int64_t *end) {
    const int64_t row_end = row->offset + tensor_count(row->value), span_end = span->first + span->count;
    *first = row->offset > span->first ? row->offset : span->first;
    *end = row_end < span_end ? row_end : span_end;
    return *first < *end;
}

struct tensor span_state(const struct span *span, struct tensor block) {
    return tensor_rows(block, span->state, span->count);
}

struct tensor span_elements(const struct span *span, struct tensor block) {
    return tensor_rows(block, span->first, span->count);
}

struct tensor span_values(const struct params *params, const struct span *span) {
    if (tensor_present(params->values)) return span_elements(span, params->values);
    return span->kept >= 0 ? tensor_rows(params->kept, span->kept, span->count) : span_state(span, params->masters);
}

/* --- masters ------------------------------------------------------------------------------------------------------ */

/* Elements of added rows before `offset` in the owned blocks. */
static int64_t kept_before(const struct params *params, int64_t offset) {
    int64_t kept = 0;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        if (!row->owned || !row->added || row->offset >= offset) continue;
        const int64_t count = tensor_count(row->value), before = offset - row->offset;
        kept += before < count ? before : count;
    }
    return kept;
}

struct tensor bucket_kept(const struct params *params, const struct bucket *bucket) {
    return tensor_rows(params->kept, kept_before(params, bucket->first), bucket->count);
}

enum status params_divide_masters(struct params *params) {
    const struct ops *ops = params->ops;
    struct division *division = &params->division;
    struct tensor masters = tensor_none(), kept = tensor_none();
    if (!division->zero || !tensor_present(params->workings) || tensor_present(params->masters)) return STATUS_OK;
    TRY(take_block(params, division->state_elements, &masters));
    params->masters = masters;
    TRY(take_block(params, kept_before(params, params->owned_elements), &kept));
    params->kept = kept;
    for (int64_t b = 0, s = 0; b < division->bucket_count; b++) {
        const struct bucket *bucket = &division->buckets[b];
        const bool added = params->rows[bucket->row].added;
        for (; s < division->span_count && division->spans[s].first < bucket->first + bucket->count; s++) {
            struct span *span = &division->spans[s];
            if (added) span->kept = kept_before(params, span->first);
            TRY(ops->copy(ops, span_elements(span, params->values), span_state(span, masters)));
        }
    }
    for (int64_t i = 0; i < params->count; i++) {
        struct param *row = &params->rows[i];
        if (!row->owned) continue;
        if (!row->added) {
            row->value.data = NULL;
            continue;
        }
        const struct tensor place = tensor_rows(kept, kept_before(params, row->offset), tensor_count(row->value));
        const struct tensor value = tensor_reshape(place, row->rank, row->shape);
        TRY(ops->copy(ops, row->value, value));
        row->value = value;
    }
    TRY(ops->synchronise(ops));
    ops->release(ops, params->values.data);
    params->values = tensor_none();
    return STATUS_OK;
}

/* Every rank's part of the bucket into `values` [owned_elements], through host memory `own` and `all`. */
static enum status join_bucket(const struct params *params, struct comm *comm, const struct bucket *bucket,
                               struct tensor values, char *own, char *all) {
    const struct ops *ops = params->ops;
    const struct division *division = &params->division;
    const int64_t most = bucket->count / division->size + division->size; /* the last part's length at most */
    const size_t width = dtype_size(ops->parameter);
    enum status status = STATUS_OK;
    for (int64_t s = 0; s < division->span_count; s++) {
        const struct span *span = &division->spans[s];
        if (span->first < bucket->first || span->first >= bucket->first + bucket->count) continue;
        status = ops->download(ops, span_values(params, span), own);
    }
    TRY(comm_agree(comm, status));
    TRY(comm_all_gather(comm, tensor_1d(own, ops->parameter, most),
                        tensor_1d(all, ops->parameter, most * division->size)));
    for (int r = 0; r < division->size; r++) {
        int64_t first = 0, count = 0;
        division_part(division, bucket, r, &first, &count);
        if (count > 0)
            KEEP_FIRST(status, ops->upload(ops, tensor_rows(values, first, count), all + (size_t)(r * most) * width));
    }
    return comm_agree(comm, status);
}

enum status params_join_masters(struct params *params, struct comm *comm) {
    const struct ops *ops = params->ops;
    const struct division *division = &params->division;
    const size_t width = dtype_size(ops->parameter);
    enum status status = STATUS_OK;
    struct tensor values = tensor_none();
    char *own = NULL, *all = NULL;
    int64_t most = 1;
    if (!tensor_present(params->masters)) return STATUS_OK;
    for (int64_t b = 0; b < division->bucket_count; b++) {
        const int64_t part = division->buckets[b].count / division->size + division->size;
        if (part > most) most = part;
    }
    status = memory_new((size_t)most, width, "values on their way", &own);
    if (status == STATUS_OK) status = memory_new((size_t)(most * division->size), width, "values on their way", &all);
    if (status == STATUS_OK) status = take_block(params, params->owned_elements, &values);
    TRY_GOTO(done, comm_agree(comm, status));
    for (int64_t b = 0; b < division->bucket_count; b++) {
        TRY_GOTO(done, join_bucket(params, comm, &division->buckets[b], values, own, all));
    }
    for (int64_t i = 0; i < params->count; i++) {
        struct param *row = &params->rows[i];
        if (!row->owned) continue;
        row->value = tensor_reshape(tensor_rows(values, row->offset, tensor_count(row->value)), row->rank, row->shape);
    }
    for (int64_t s = 0; s < division->span_count; s++) division->spans[s].kept = -1;
    ops->release(ops, params->masters.data);
    ops->release(ops, params->kept.data);
    params->masters = params->kept = tensor_none();
    params->values = values;
    values = tensor_none();
done:
    if (tensor_present(values)) ops->release(ops, values.data);
    free(own);
    free(all);
    return status;
}
