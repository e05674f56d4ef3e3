/* Gradients on their way between the ranks: bucket by bucket, from the moment that the backward pass has completed one,
 * while the pass goes on; and, with ZeRO, the way back of the values that each rank has updated. */
#ifndef SQUINT_TRAIN_GRADIENTS_H
#define SQUINT_TRAIN_GRADIENTS_H

#include "comm/comm.h"
#include "config/config.h"
#include "params/params.h"

struct gradients {
    struct params *params;
    struct comm *host;          /* all ranks; carries what lies in its memory */
    struct comm *carrier;       /* carries the gradients' memory; NULL: they go through `exchange` */
    float *exchange;            /* host [EXCHANGE_ELEMENTS] or NULL */
    struct tensor narrow;       /* [owned_elements] BF16: gradients as they travel; none: as they are */
    int64_t *order;             /* buckets that train, in the order in which they are complete */
    int64_t count;              /* of them */
    int64_t window;             /* how many may be under way */
    int64_t ready, begun, done; /* of this step, in that order */
    struct comm_request (*requests)[2];
    struct sender *sender; /* moves host memory while the backward pass computes; NULL: nobody needs to */
};

/* For the rows that train now. comm: all ranks; gpu: for the device's memory, or NULL. With one rank every call is
 * nothing. STATUS_MEMORY. */
enum status gradients_open(struct params *params, const struct config *config, struct comm *comm, struct comm *gpu,
                           struct gradients *gradients);
void gradients_close(struct gradients *gradients); /* NULL-safe, twice-safe */
/* What that takes on a rank of `size`, in the device's memory and in the host's where that is the device's. */
size_t gradients_bytes(const struct params *params, const struct config *config, int size, bool carried);
/* Elements of a bucket of the recipe. */
int64_t gradients_bucket_elements(const struct config *config, enum dtype dtype, int size);

/* A step begins: nothing is under way. */
void gradients_begin(struct gradients *gradients);
/* Gradients of rows with params_layer >= layer are complete on this rank: their buckets start. Ranks call it as their
 * passes go. */
enum status gradients_ready(struct gradients *gradients, int64_t layer);
/* All are complete: afterwards every rank has the sums, with ZeRO those of its own spans. Every rank calls it once a
 * step, also one whose pass has failed, since the others wait for it. */
enum status gradients_end(struct gradients *gradients);
/* With ZeRO: every rank gets the values that the others have updated. Every rank calls it. */
enum status gradients_return_values(struct gradients *gradients);

#endif
