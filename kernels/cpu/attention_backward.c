/* The backward pass of one head: weights are computed again from log Z, then
 *   delta_m(i) = Σ_j P_m,ij do_i·v_j,  ds_ij = Σ_m c_m P_m,ij (do_i·v_j − delta_m(i)),
 *   dq_i = scale Σ_j ds_ij k_j,  dk_j = scale Σ_i ds_ij q_i,  dv_j = Σ_i A_ij do_i. */
#include "kernels/cpu/attention_internal.h"

static bool load(struct block *block, const struct head_backward *pass, int stage, int64_t n) {
    if (!NAME(attention_block_plan)(block, stage, n)) return false;
    NAME(attention_pack_until)(block, NAME(attention_block_end)(block));
    NAME(attention_block_load)(block, pass->q.rows, pass->q.stride, pass->scale, block->q);
    NAME(attention_block_load)(block, pass->d_o.rows, pass->d_o.stride, 1, block->d_o);
    NAME(attention_block_prepare)(block, pass->log_sums);
    return true;
}

static struct attention_row_gradient slow_row(const struct block *block, const struct head_backward *pass, int r) {
    const int64_t i = block->first + r * block->step;
    return (struct attention_row_gradient){
        .d_o = pass->d_o.rows + i * pass->d_o.stride,
        .log_sums = pass->log_sums,
        .deltas = pass->deltas,
        .dk = pass->want_dkv ? block->packed->dk : NULL,
        .dv = pass->want_dkv ? block->packed->dv : NULL,
        .stride = block->padded,
        .first = pass->first_key,
        .last = pass->last_key,
    };
}

/* Where a tile's exponents and do·v lie: each tile has a place of its own when the block's are kept. */
static void place_tile(const struct block *block, const struct tile *tile, real **e, real **dw) {
    const size_t place = block->kept ? tile->place : 0;
    *e = block->scores + place;
    *dw = block->d_weights + place;
}

static void compute_tile(const struct block *block, const struct tile *tile, real *e, real *dw) {
    NAME(attention_tile_scores)(block, tile, e);
    NAME(attention_tile_exponents)(block, tile, e);
    NAME(attention_tile_d_weights)(block, tile, dw);
}

/* Whether a tile holds some of the pass's keys. */
static bool touches(const struct block *block, const struct tile *tile, const struct head_backward *pass) {
    const int64_t keys = tile->diagonal ? block->rows : tile->count;
    return tile->first < pass->last_key && tile->first + (keys - 1) * tile->step >= pass->first_key;
}

/* One candidate: Σ_j P_ij do_i·v_j = do_i·o_i / c. */
static void deltas_of_output(struct block *block, const struct head_backward *pass) {
    for (int r = 0; r < block->rows; r++) {
        const int64_t i = block->first + r * block->step;
        pass->deltas[0][i] =
            real_dot(pass->d_o.rows + i * pass->d_o.stride, pass->o.rows + i * pass->o.stride, block->head->width) /
            block->head->coefficients[0];
    }
}

static void find_deltas(struct block *block, const struct head_backward *pass, int stage) {
    if (block->head->count == 1 && block->head->coefficients[0] != 0) {
        deltas_of_output(block, pass);
        return;
    }
    memset(block->sums, 0, sizeof block->sums);
    for (int n = 0; n < block->tile_count; n++) {
        real *e, *dw;
        place_tile(block, &block->tiles[n], &e, &dw);
        compute_tile(block, &block->tiles[n], e, dw);
        NAME(attention_tile_deltas)(block, &block->tiles[n], e, dw);
    }
    for (int r = 0; r < block->rows; r++) {
        const int64_t i = block->first + r * block->step;
        if (block->slow[r]) {
            struct attention_row_gradient row = slow_row(block, pass, r);
            if (stage == 0) NAME(attention_row_deltas)(block->head, i, block->q + r * block->padded, &row);
            continue;
        }
        for (int m = 0; m < block->head->count; m++)
            pass->deltas[m][i] = (stage ? pass->deltas[m][i] : 0) + block->norms[m][r] * block->sums[m][r];
    }
}

/* Rows that are not computed in tiles; once, with the first stage. */
static void slow_rows(struct block *block, const struct head_backward *pass) {
    for (int r = 0; r < block->rows; r++) {
        if (!block->slow[r]) continue;
        struct attention_row_gradient row = slow_row(block, pass, r);
        row.dq = pass->want_dq ? block->out + r * block->padded : NULL;
        NAME(attention_row_backward)
        (block->head, block->first + r * block->step, block->q + r * block->padded, &row);
    }
}

static void store_dq(const struct block *block, const struct head_backward *pass, int stage) {
    for (int r = 0; r < block->rows; r++) {
        real *dq = pass->dq.rows + (block->first + r * block->step) * pass->dq.stride;
        const real *out = block->out + r * block->padded;
        for (int64_t d = 0; d < block->head->width; d++) dq[d] = (stage ? dq[d] : 0) + pass->scale * out[d];
    }
}

/* ready: the block's exponents and do·v are kept from its deltas. */
static void find_gradients(struct block *block, const struct head_backward *pass, int stage, bool ready) {
    const struct packed *packed = block->packed;
    for (int r = 0; r < block->rows; r++)
        for (int m = 0; m < block->head->count; m++)
            block->delta_factors[m][r] = block->factors[m][r] * pass->deltas[m][block->first + r * block->step];
    memset(block->out, 0, (size_t)(block->rows * block->padded) * sizeof(real));
    for (int n = 0; n < block->tile_count; n++) {
        const struct tile *tile = &block->tiles[n];
        if (!pass->want_dq && !touches(block, tile, pass)) continue;
        real *e, *dw;
        place_tile(block, tile, &e, &dw);
        if (!ready) compute_tile(block, tile, e, dw);
        NAME(attention_tile_gradients)(block, tile, e, dw);
        if (pass->want_dkv) {
            NAME(attention_tile_scatter)(block, tile, e, block->d_o, packed->dv, pass->first_key, pass->last_key);
            NAME(attention_tile_scatter)(block, tile, dw, block->q, packed->dk, pass->first_key, pass->last_key);
        }
        if (pass->want_dq) NAME(attention_tile_gather)(block, tile, dw, packed->k, block->out);
    }
    if (stage == 0) slow_rows(block, pass);
    if (pass->want_dq) store_dq(block, pass, stage);
}

void NAME(attention_backward_blocks)(struct block *block, const struct head_backward *pass, int64_t first,
                                     int64_t last) {
    const bool gradients = pass->want_dq || pass->want_dkv;
    const int stages = block->walk->stage_count;
    for (int64_t n = first; stages == 1 && n < last; n++) {
        if (!load(block, pass, 0, n)) continue;
        if (pass->find_deltas) find_deltas(block, pass, 0);
        const bool ready =
            pass->find_deltas && block->kept && !(block->head->count == 1 && block->head->coefficients[0] != 0);
        if (gradients) find_gradients(block, pass, 0, ready);
    }
    if (stages == 1) return;
    for (int stage = 0; pass->find_deltas && stage < stages; stage++)
        for (int64_t n = 0; n < NAME(attention_block_count)(block->walk, block->head->length, stage); n++)
            if (load(block, pass, stage, n)) find_deltas(block, pass, stage);
    for (int stage = 0; gradients && stage < stages; stage++)
        for (int64_t n = 0; n < NAME(attention_block_count)(block->walk, block->head->length, stage); n++)
            if (load(block, pass, stage, n)) find_gradients(block, pass, stage, false);
}
