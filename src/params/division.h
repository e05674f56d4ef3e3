/* The owned blocks divided: into buckets, whose gradients travel between the ranks at once, and, with ZeRO stage 1
 * (Rajbhandari et al. 2020), into what each rank keeps the optimizer's state of. One division serves all stages of a
 * run. */
#ifndef SQUINT_PARAMS_DIVISION_H
#define SQUINT_PARAMS_DIVISION_H

#include "comm/comm.h"
#include "params/params.h"

struct params_patterns { /* of one stage */
    char *const *patterns;
    size_t count;
};

struct division_options {
    int rank, size;
    bool zero;               /* each rank keeps moments, and masters, of its own part of every bucket alone */
    int64_t bucket_elements; /* at most, in a bucket; 0: any number */
    const struct params_patterns *stages; /* what trains together: rows of a bucket train in the same ones */
    size_t stage_count;
};

/* Divides the blocks of a table that trains, and takes the moments' memory, zeroed. After params_place; once.
 * STATUS_MEMORY. */
enum status params_divide(struct params *params, const struct division_options *options);
void division_free(struct division *division); /* NULL-safe */

/* The part of a bucket that `rank` updates: with ZeRO count/size elements each, the last rank also what is left over;
 * else all of it. */
void division_part(const struct division *division, const struct bucket *bucket, int rank, int64_t *first,
                   int64_t *count);
/* Does the bucket train in the stage that runs now? */
bool bucket_trains(const struct params *params, const struct bucket *bucket);
/* With ZeRO, where operations read working copies: from now on this rank keeps the values of its own spans alone,
 * besides those of added rows. Once every value is there, before training begins; elsewhere it does nothing.
 * STATUS_MEMORY. */
enum status params_divide_masters(struct params *params);
/* The way back: every rank has every value, as before params_divide_masters. Every rank calls it. STATUS_MEMORY. */
enum status params_join_masters(struct params *params, struct comm *comm);

/* What of the row lies in the span: elements *first … *end−1 of the owned blocks; false: nothing. The row must be owned. */
bool span_of_row(const struct span *span, const struct param *row, int64_t *first, int64_t *end);
/* The span's elements of a moments' block; of gradients or working copies; of the values. */
struct tensor span_state(const struct span *span, struct tensor block);
struct tensor span_elements(const struct span *span, struct tensor block);
struct tensor span_values(const struct params *params, const struct span *span);
/* A bucket of added rows in params->kept. */
struct tensor bucket_kept(const struct params *params, const struct bucket *bucket);

#endif
