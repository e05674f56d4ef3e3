/* Which rows and keys meet: groups of candidates, blocks of rows, tiles of keys. Integers only. */
#include "kernels/cpu/attention_internal.h"

#include <stdlib.h>

/* Whether every pair of candidate c is one of the dense candidate `dense`. */
static bool covers(const struct candidate *dense, const struct candidate *c) {
    if (dense->kind == CANDIDATE_FULL) return true;
    if (dense->kind != CANDIDATE_WINDOW) return false;
    if (c->kind == CANDIDATE_OFFSET) return c->a < dense->a;
    return c->kind == CANDIDATE_DILATED && (int64_t)(c->a - 1) * c->b < dense->a;
}

static bool is_dense(const struct candidate *c) {
    return c->kind == CANDIDATE_FULL || c->kind == CANDIDATE_WINDOW || c->kind == CANDIDATE_SINKS ||
           c->kind == CANDIDATE_BLOCKS;
}

static void add_to_group(struct walk *walk, int first_group, int kind, int64_t step, int m, bool shared) {
    for (int g = first_group; shared && g < walk->group_count; g++)
        if ((int)walk->groups[g].kind == kind && walk->groups[g].step == step) {
            walk->groups[g].owners |= 1u << m;
            return;
        }
    struct group *group = &walk->groups[walk->group_count++];
    *group = (struct group){.kind = kind, .step = step, .owners = 1u << m};
}

/* Keys that one query may read at most. */
static int64_t widest(const struct attention_head *head) {
    int64_t width = 0;
    for (int m = 0; m < head->count; m++) {
        const struct candidate *c = &head->candidates[m];
        const int64_t keys = c->kind == CANDIDATE_FULL || c->kind == CANDIDATE_STRIDE ? head->length : c->a;
        width += at_most(keys, head->length);
    }
    return width;
}

void NAME(attention_walk)(const struct attention_head *head, struct walk *walk) {
    *walk = (struct walk){0};
    uint32_t absorbed = 0;
    for (int m = 0; m < head->count; m++)
        for (int n = 0; n < head->count; n++)
            if (!is_dense(&head->candidates[m]) && is_dense(&head->candidates[n]) &&
                covers(&head->candidates[n], &head->candidates[m]))
                absorbed |= 1u << m;
    for (int pass = GROUP_DENSE; pass <= GROUP_DILATED; pass++)
        for (int m = 0; m < head->count; m++) {
            const struct candidate *c = &head->candidates[m];
            if (absorbed & 1u << m) continue;
            if (pass == GROUP_DENSE && is_dense(c)) add_to_group(walk, 0, GROUP_DENSE, 1, m, true);
            if (pass == GROUP_STRIDE && c->kind == CANDIDATE_STRIDE) add_to_group(walk, 0, GROUP_STRIDE, 1, m, false);
            if (pass == GROUP_OFFSET && c->kind == CANDIDATE_OFFSET) add_to_group(walk, 0, GROUP_OFFSET, 1, m, false);
            if (pass == GROUP_DILATED && c->kind == CANDIDATE_DILATED)
                add_to_group(walk, 0, GROUP_DILATED, c->b, m, true);
        }
    uint32_t prior = 0;
    for (int g = 0; g < walk->group_count; g++) {
        struct group *group = &walk->groups[g];
        group->prior = prior;
        prior |= group->owners;
        if (g == 0 || group->kind == GROUP_DILATED) walk->stages[walk->stage_count++] = g;
    }
    walk->stages[walk->stage_count] = walk->group_count;
    const bool wide = widest(head) > 1024;
    walk->block_rows = wide ? 64 : 32;
}

static int64_t class_blocks(const struct walk *walk, int64_t length, int64_t step) {
    const int64_t rows = (length + step - 1) / step;
    return (rows + walk->block_rows - 1) / walk->block_rows;
}

int64_t NAME(attention_block_count)(const struct walk *walk, int64_t length, int stage) {
    const int64_t step = walk->groups[walk->stages[stage]].step;
    return at_most(step, length) * class_blocks(walk, length, step);
}

int NAME(attention_tile_bound)(int64_t length) {
    return (int)(CANDIDATES_MAX * (length / 32 + 3 * BLOCK_ROWS + 4));
}

int NAME(attention_piece_bound)(int64_t length) {
    (void)length;
    return CANDIDATES_MAX * BLOCK_ROWS;
}

static void find_spans(struct block *block) {
    const struct attention_head *head = block->head;
    for (int m = 0; m < head->count; m++) {
        struct hull hull = {INT64_MAX, INT64_MIN, INT64_MAX, INT64_MIN, true};
        struct span *spans = block->spans[m];
        for (int r = 0; r < block->rows; r++) {
            const int64_t i = block->first + r * block->step;
            spans[r] = candidate_span(&head->candidates[m], head->causal, i, head->start[i], head->end[i]);
            if (spans[r].lo >= spans[r].hi) {
                hull.hi_min = INT64_MIN; /* no tile is inside */
                continue;
            }
            hull.lo_min = at_most(hull.lo_min, spans[r].lo);
            hull.lo_max = at_least(hull.lo_max, spans[r].lo);
            hull.hi_min = at_most(hull.hi_min, spans[r].hi);
            hull.hi_max = at_least(hull.hi_max, spans[r].hi);
            if (spans[r].step > 1 && (spans[r].lo - spans[0].lo) % spans[r].step != 0) hull.same_residue = false;
        }
        block->hulls[m] = hull;
    }
}

/* Adds a span to the pieces; rows that follow each other mostly prolong the last one. */
static void add_piece(struct block *block, int first, struct span s) {
    if (s.lo >= s.hi) return;
    if (block->piece_count > first) {
        struct span *last = &block->pieces[block->piece_count - 1];
        if (s.step == last->step && (s.lo - last->lo) % s.step == 0 && s.lo >= last->lo && s.lo < last->hi + s.step) {
            last->hi = at_least(last->hi, s.hi);
            return;
        }
    }
    block->pieces[block->piece_count++] = s;
}

static int compare_pieces(const void *a, const void *b) {
    const struct span *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* Disjoint pieces that hold every key of the group's owners. Pieces with a small gap become one. */
static void find_pieces(struct block *block, const struct group *group) {
    block->piece_count = 0;
    for (int m = 0; m < block->head->count; m++) {
        if (!(group->owners & 1u << m)) continue;
        const int first = block->piece_count;
        for (int r = 0; r < block->rows; r++) add_piece(block, first, block->spans[m][r]);
    }
    if (block->piece_count < 2) return;
    qsort(block->pieces, (size_t)block->piece_count, sizeof *block->pieces, compare_pieces);
    int kept = 0;
    for (int n = 1; n < block->piece_count; n++) {
        struct span *last = &block->pieces[kept];
        const struct span s = block->pieces[n];
        /* Within a group the residues are equal, except of a stride's documents, which do not overlap. */
        if (s.lo < last->hi + LANES && (s.lo - last->lo) % s.step == 0)
            last->hi = at_least(last->hi, s.hi);
        else
            block->pieces[++kept] = s;
    }
    block->piece_count = kept + 1;
}

static void classify(const struct block *block, struct tile *tile) {
    const int64_t last = tile->first + (tile->count - 1) * tile->step;
    for (int m = 0; m < block->head->count; m++) {
        const struct hull *hull = &block->hulls[m];
        if (hull->lo_min > last || hull->hi_max <= tile->first) continue;
        const int64_t step = block->spans[m][0].step;
        const bool residues =
            step == 1 || (hull->same_residue && tile->step % step == 0 && (tile->first - hull->lo_min) % step == 0);
        if (residues && hull->lo_max <= tile->first && hull->hi_min > last)
            tile->inside |= 1u << m;
        else
            tile->mixed |= 1u << m;
    }
}

/* Takes a place among the block's tiles. Where one candidate only touches a tile, it holds all that is the tile's own.
 */
static struct tile *append(struct block *block, struct tile tile) {
    const uint32_t touching = tile.inside | tile.mixed;
    const bool alone = (touching & (touching - 1)) == 0;
    tile.held = alone ? touching : tile.inside;
    tile.partly = alone ? 0 : tile.mixed;
    tile.place = block->columns * (size_t)block->rows;
    block->columns += (size_t)tile.columns;
    block->tiles[block->tile_count] = tile;
    return &block->tiles[block->tile_count++];
}

/* Neighbours become one tile: fewer, longer rows. Either both are whole and touched by the same candidates, or both
 * belong to one candidate alone, whose edges are cheap to mask. */
static bool join(struct tile *last, const struct tile *tile) {
    const bool same = last->inside == tile->inside && last->mixed == tile->mixed;
    const bool whole = last->whole && tile->whole && same;
    const bool alone = last->held == tile->held && !last->partly && !tile->partly &&
                       (last->held & (last->held - 1)) == 0 && last->held & last->owners;
    if (!(whole || alone) || last->step != 1 || tile->step != 1 || last->diagonal || last->owners != tile->owners ||
        last->first % LANES != 0 || last->count != last->columns || last->first + last->count != tile->first ||
        last->count + tile->count > TILE_KEYS)
        return false;
    last->count += tile->count;
    last->columns += tile->columns;
    last->mixed |= tile->mixed;
    last->inside &= ~last->mixed;
    last->whole = whole;
    return true;
}

static void add_tile(struct block *block, const struct group *group, int64_t first, int64_t step, int64_t count) {
    struct tile tile = {.first = first, .step = step, .count = (int)count, .columns = (int)pad_lanes(count)};
    tile.owners = group->owners;
    tile.prior = group->prior;
    classify(block, &tile);
    if (!((tile.inside | tile.mixed) & tile.owners) || (tile.inside & tile.prior)) return;
    tile.whole = (tile.inside & tile.owners) && !(tile.mixed & tile.prior) && tile.count == tile.columns;
    struct tile *last = append(block, tile);
    if (block->tile_count > 1 && join(last - 1, last)) block->tile_count--;
}

/* Packed keys are read in place when a tile begins at a multiple of LANES. */
static void cut_dense(struct block *block, const struct group *group) {
    int64_t position = 0;
    for (int n = 0; n < block->piece_count; n++) {
        const struct span s = block->pieces[n];
        int64_t first = s.lo;
        if (s.hi - s.lo > LANES && s.lo / LANES * LANES >= position) first = s.lo / LANES * LANES;
        while (first < s.hi) {
            const int64_t end = at_most((first / CUT_KEYS + 1) * CUT_KEYS, s.hi);
            add_tile(block, group, first, 1, end - first);
            first = end;
        }
        position = s.hi;
    }
}

static void cut_steps(struct block *block, const struct group *group) {
    for (int n = 0; n < block->piece_count; n++) {
        const struct span s = block->pieces[n];
        const int64_t count = span_count(s);
        for (int64_t u = 0; u < count; u += PACK_KEYS)
            add_tile(block, group, s.lo + u * s.step, s.step, at_most(PACK_KEYS, count - u));
    }
}

/* Every candidate is "mixed": rows answer for themselves. */
static void add_diagonal(struct block *block, const struct group *group, int64_t offset) {
    struct tile tile = {.first = block->first + offset, .step = 1, .count = 1, .columns = LANES};
    tile.owners = group->owners;
    tile.prior = group->prior;
    tile.mixed = (1u << block->head->count) - 1;
    tile.diagonal = true;
    append(block, tile);
}

static void cut_offset(struct block *block, const struct group *group) {
    int m = 0;
    while (!(group->owners & 1u << m)) m++;
    const int64_t offset = block->head->candidates[m].a, last = block->first + block->rows - 1;
    if (last - offset >= 0) add_diagonal(block, group, -offset);
    if (!block->head->causal && offset > 0 && block->first + offset < block->head->length)
        add_diagonal(block, group, offset);
}

int64_t NAME(attention_block_end)(const struct block *block) {
    int64_t end = 0;
    for (int m = 0; m < block->head->count; m++) end = at_least(end, block->hulls[m].hi_max);
    return end;
}

bool NAME(attention_block_plan)(struct block *block, int stage, int64_t n) {
    const struct walk *walk = block->walk;
    const int64_t length = block->head->length, step = walk->groups[walk->stages[stage]].step;
    const int64_t each = class_blocks(walk, length, step);
    block->step = step;
    block->first = n / each + n % each * walk->block_rows * step;
    if (block->first >= length) return false;
    block->rows = (int)at_most(walk->block_rows, (length - block->first + step - 1) / step);
    find_spans(block);
    block->tile_count = 0;
    block->columns = 0;
    for (int g = walk->stages[stage]; g < walk->stages[stage + 1]; g++) {
        const struct group *group = &walk->groups[g];
        if (group->kind == GROUP_OFFSET) {
            cut_offset(block, group);
            continue;
        }
        find_pieces(block, group);
        if (group->kind == GROUP_DENSE)
            cut_dense(block, group);
        else
            cut_steps(block, group);
    }
    block->kept = block->columns * (size_t)block->rows <= KEPT_ELEMENTS && block->tile_count <= KEPT_TILES;
    return true;
}
