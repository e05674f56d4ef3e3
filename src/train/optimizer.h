/* AdamW over the rows that train: norm of the gradient, clipping, decay groups, the proximal step. Rows are taken from
 * the table, so it states nothing about names. */
#ifndef SQUINT_TRAIN_OPTIMIZER_H
#define SQUINT_TRAIN_OPTIMIZER_H

#include "comm/comm.h"
#include "config/config.h"
#include "params/params.h"

struct optimizer {
    struct params *params;
    struct comm *comm;        /* ranks that divide the state between them; NULL: this one has it all */
    int64_t capacity;         /* rows and spans: as many parts there may be */
    struct tensor sums;       /* [capacity] F64 on the device */
    double *host_sums;        /* [capacity] */
    double *row_sums;         /* [rows] */
    struct param_part *parts; /* [capacity]: what trains of this rank's spans, cut at the rows */
    int64_t *rows;            /* [capacity]: which row of the table part p is of */
};

/* The table must be divided (params_divide). comm: needed where it is divided with ZeRO. */
enum status optimizer_open(struct params *params, struct comm *comm, struct optimizer *optimizer);
void optimizer_close(struct optimizer *optimizer); /* NULL-safe, twice-safe */

enum status optimizer_zero_gradients(struct optimizer *optimizer);
/* *norm of the gradient of all that trains: sums of squares by row, added in the table's order, in double. Not finite
 * when any element is not; *bad_row then is the first such row's index, else −1. With ZeRO of the elements of all
 * ranks' spans, and every rank calls it. */
enum status optimizer_norm(struct optimizer *optimizer, double *norm, int64_t *bad_row);

struct optimizer_step {
    double lr, l1;
    double norm;    /* of the gradient; clipped to train.clip by scaling */
    int64_t update; /* from 1, since the moments were zero */
};
/* One update of what trains of this rank's spans: weight decay for rows with `decay`, the proximal step for rows with
 * `sparse`. */
enum status optimizer_update(struct optimizer *optimizer, const struct config *config,
                             const struct optimizer_step *step);

#endif
