/* The forward pass of one head. One candidate: one pass with running normalisers (Dao et al. 2022). Several: a pass for
 * the normalisers, then one for the weighted sum, the exponents kept between them where they fit. */
#include "kernels/cpu/attention_internal.h"

static void begin(struct block *block) {
    for (int r = 0; r < block->rows; r++) block->reference[r] = -REAL_INFINITY;
    memset(block->sums, 0, sizeof block->sums);
}

/* One candidate: the sum of values is rescaled whenever the reference grows. */
static void one_pass(struct block *block, const struct head_forward *pass) {
    const int64_t padded = block->padded, width = block->head->width;
    begin(block);
    memset(block->out, 0, (size_t)(block->rows * padded) * sizeof(real));
    for (int n = 0; n < block->tile_count; n++) {
        const struct tile *tile = &block->tiles[n];
        NAME(attention_tile_scores)(block, tile, block->scores);
        NAME(attention_tile_sum)(block, tile, block->scores);
        if (!pass->o.rows) continue;
        for (int r = 0; r < block->rows; r++)
            if (block->rescale[r] != 1)
                for (int64_t d = 0; d < padded; d++) block->out[r * padded + d] *= block->rescale[r];
        NAME(attention_tile_gather)(block, tile, block->scores, block->packed->v, block->out);
    }
    for (int r = 0; r < block->rows; r++) {
        const int64_t i = block->first + r * block->step;
        const real sum = block->sums[0][r], inverse = sum > 0 ? block->head->coefficients[0] / sum : 0;
        pass->log_sums[0][i] = sum > 0 ? block->reference[r] + real_log(sum) : -REAL_INFINITY;
        if (!pass->o.rows) continue;
        real *o = pass->o.rows + i * pass->o.stride;
        for (int64_t d = 0; d < width; d++) o[d] = inverse * block->out[r * padded + d];
    }
}

/* Where a tile's exponents lie: each in its own place when all of them fit. */
static real *scores_of(struct block *block, const struct tile *tile) {
    return block->kept ? block->scores + tile->place : block->scores;
}

static void sum_tiles(struct block *block, bool keep) {
    for (int n = 0; n < block->tile_count; n++) {
        const struct tile *tile = &block->tiles[n];
        real *e = scores_of(block, tile);
        NAME(attention_tile_scores)(block, tile, e);
        NAME(attention_tile_sum)(block, tile, e);
        if (keep) memcpy(block->references + n * BLOCK_ROWS, block->reference, (size_t)block->rows * sizeof(real));
    }
}

/* Normalisers of row i from sums relative to `reference`; exactly, when one of them may have lost digits. o is cleared,
 * or computed here when the row is a slow one. */
static void finish_sums(const struct block *block, const struct head_forward *pass, int64_t i, const real *q,
                        real reference, const real *sums) {
    const struct attention_head *head = block->head;
    real least = REAL_INFINITY, most = 0, row_sums[CANDIDATES_MAX];
    for (int m = 0; m < head->count; m++) {
        const struct span s = candidate_span(&head->candidates[m], head->causal, i, head->start[i], head->end[i]);
        row_sums[m] = sums[m] > 0 ? reference + real_log(sums[m]) : -REAL_INFINITY;
        most = real_max(most, sums[m]);
        if (s.lo < s.hi && !(sums[m] >= least)) least = sums[m];
    }
    if (least < most * (real)1e-25) NAME(attention_row)(head, i, q, row_sums, NULL);
    for (int m = 0; m < head->count; m++) pass->log_sums[m][i] = row_sums[m];
    if (!pass->o.rows) return;
    real *o = pass->o.rows + i * pass->o.stride;
    if (row_is_slow(head, (const real *const *)pass->log_sums, i, &most))
        NAME(attention_row)(head, i, q, row_sums, o);
    else
        memset(o, 0, (size_t)head->width * sizeof(real));
}

static void add_out(const struct block *block, const struct head_forward *pass) {
    for (int r = 0; r < block->rows; r++) {
        real *o = pass->o.rows + (block->first + r * block->step) * pass->o.stride;
        if (!block->slow[r])
            for (int64_t d = 0; d < block->head->width; d++) o[d] += block->out[r * block->padded + d];
    }
}

/* o += the weighted sum of a block; `kept`: its exponents are there, relative to the references of their time. */
static void weigh_tiles(struct block *block, const struct head_forward *pass, bool kept) {
    real scale[BLOCK_ROWS];
    NAME(attention_block_prepare)(block, (const real *const *)pass->log_sums);
    memset(block->out, 0, (size_t)(block->rows * block->padded) * sizeof(real));
    for (int n = 0; n < block->tile_count; n++) {
        const struct tile *tile = &block->tiles[n];
        real *e = kept ? scores_of(block, tile) : block->scores;
        if (kept) {
            const real *before = block->references + n * BLOCK_ROWS;
            for (int r = 0; r < block->rows; r++)
                scale[r] = before[r] > -REAL_INFINITY ? real_exp(before[r] - block->reference[r]) : 0;
        } else {
            NAME(attention_tile_scores)(block, tile, e);
            NAME(attention_tile_exponents)(block, tile, e);
        }
        NAME(attention_tile_weights)(block, tile, kept ? scale : NULL, e);
        NAME(attention_tile_gather)(block, tile, e, block->packed->v, block->out);
    }
    add_out(block, pass);
}

static void finish_block(const struct block *block, const struct head_forward *pass) {
    real sums[CANDIDATES_MAX];
    for (int r = 0; r < block->rows; r++) {
        for (int m = 0; m < block->head->count; m++) sums[m] = block->sums[m][r];
        finish_sums(block, pass, block->first + r * block->step, block->q + r * block->padded, block->reference[r],
                    sums);
    }
}

/* A stage's part of the sums, added to what the stages before left in log_sums (as sums) and references. */
static void sum_stage(struct block *block, const struct head_forward *pass, int stage) {
    for (int r = 0; r < block->rows; r++) {
        const int64_t i = block->first + r * block->step;
        block->reference[r] = stage ? pass->references[i] : -REAL_INFINITY;
        for (int m = 0; m < block->head->count; m++) block->sums[m][r] = stage ? pass->log_sums[m][i] : 0;
    }
    sum_tiles(block, false);
    for (int r = 0; r < block->rows; r++) {
        const int64_t i = block->first + r * block->step;
        pass->references[i] = block->reference[r];
        for (int m = 0; m < block->head->count; m++) pass->log_sums[m][i] = block->sums[m][r];
    }
}

static bool load(struct block *block, const struct head_forward *pass, int stage, int64_t n) {
    if (!NAME(attention_block_plan)(block, stage, n)) return false;
    NAME(attention_pack_until)(block, NAME(attention_block_end)(block));
    NAME(attention_block_load)(block, pass->q.rows, pass->q.stride, pass->scale, block->q);
    return true;
}

/* Dilations walk the rows in another order: every stage's sums are complete before any weight is known. */
static void several_stages(struct block *block, const struct head_forward *pass) {
    const int64_t length = block->head->length;
    for (int stage = 0; stage < block->walk->stage_count; stage++)
        for (int64_t n = 0; n < NAME(attention_block_count)(block->walk, length, stage); n++)
            if (load(block, pass, stage, n)) sum_stage(block, pass, stage);
    for (int64_t n = 0; n < NAME(attention_block_count)(block->walk, length, 0); n++) {
        if (!load(block, pass, 0, n)) continue;
        for (int r = 0; r < block->rows; r++) {
            const int64_t i = block->first + r * block->step;
            block->reference[r] = pass->references[i];
            for (int m = 0; m < block->head->count; m++) block->sums[m][r] = pass->log_sums[m][i];
        }
        finish_block(block, pass);
    }
    for (int stage = 0; pass->o.rows && stage < block->walk->stage_count; stage++)
        for (int64_t n = 0; n < NAME(attention_block_count)(block->walk, length, stage); n++)
            if (load(block, pass, stage, n)) weigh_tiles(block, pass, false);
}

void NAME(attention_forward_blocks)(struct block *block, const struct head_forward *pass, int64_t first, int64_t last) {
    if (block->walk->stage_count > 1) {
        several_stages(block, pass);
        return;
    }
    for (int64_t n = first; n < last; n++) {
        if (!load(block, pass, 0, n)) continue;
        if (block->head->count == 1) {
            one_pass(block, pass);
            continue;
        }
        begin(block);
        sum_tiles(block, block->kept);
        finish_block(block, pass);
        if (pass->o.rows) weigh_tiles(block, pass, block->kept);
    }
}
