/* AdamW over the rows that train: norm of the gradient, clipping, decay groups, the proximal step. Rows are taken from
 * the table, so it states nothing about names. */
#ifndef SQUINT_TRAIN_OPTIMIZER_H
#define SQUINT_TRAIN_OPTIMIZER_H

#include "config/config.h"
#include "params/params.h"

struct optimizer {
    struct params *params;
    struct tensor sums;       /* [rows] F64 on the device */
    double *host_sums;        /* [rows] */
    struct param_part *parts; /* [rows]: of those that train, in the blocks */
    int64_t *rows;            /* [rows]: which row of the table part p is */
};

enum status optimizer_open(struct params *params, struct optimizer *optimizer);
void optimizer_close(struct optimizer *optimizer); /* NULL-safe, twice-safe */

enum status optimizer_zero_gradients(struct optimizer *optimizer);
/* *norm of the gradient of all that trains: sums of squares by row, added in the table's order, in double. Not finite
 * when any element is not; *bad_row then is the first such row's index, else −1. */
enum status optimizer_norm(struct optimizer *optimizer, double *norm, int64_t *bad_row);

struct optimizer_step {
    double lr, l1;
    double norm;    /* of the gradient; clipped to train.clip by scaling */
    int64_t update; /* from 1, since the moments were zero */
};
/* One update of every row that trains: weight decay for rows with `decay`, the proximal step for rows with `sparse`. */
enum status optimizer_update(struct optimizer *optimizer, const struct config *config,
                             const struct optimizer_step *step);

#endif
