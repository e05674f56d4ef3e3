/* See attention_codes.h. */
#include "report/attention_codes.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t triangle(int64_t length) {
    return length * (length + 1) / 2;
}

/* Where the row of query i begins in plane `plane`. */
static int64_t row_at(const struct attention_codes *c, int64_t plane, int64_t i) {
    return plane * triangle(c->length) + triangle(i);
}

static double weight_of(const struct attention_codes *c, uint8_t code) {
    const double share = (double)code / 255;
    return c->scale * share * share;
}

/* Never 0: what is read shows. */
static uint8_t code_of(const struct attention_codes *c, double size) {
    const double code = c->scale > 0 ? round(255 * sqrt(size / c->scale)) : 0;
    return code < 1 ? 1 : code > 255 ? 255 : (uint8_t)code;
}

/* The same pair of a layer's weights. */
static int64_t pair_of(const struct layer_weights *w, int64_t head, int64_t i, int64_t j) {
    return (head * w->length + i) * w->length + j;
}

static void find_scale(const struct layer_weights *w, struct attention_codes *c) {
    for (int64_t n = 0; n < w->heads * w->length * w->length; n++) {
        const double size = fabs((double)w->weights[n]);
        if (w->reads[n] != WEIGHT_UNREAD && size > c->scale) c->scale = size;
    }
}

static void take_row(const struct layer_weights *w, int64_t head, int64_t i, struct attention_codes *c) {
    uint8_t *codes = c->codes + row_at(c, head + 1, i), *flags = c->flags + row_at(c, head + 1, i);
    uint16_t read = 0, summed = 0;
    for (int64_t j = 0; j <= i; j++) {
        const int64_t n = pair_of(w, head, i, j);
        if (w->reads[n] == WEIGHT_UNREAD) continue;
        codes[j] = code_of(c, fabs((double)w->weights[n]));
        if (w->weights[n] < 0) flags[j] |= ATTENTION_NEGATIVE;
        if (w->reads[n] == WEIGHT_SUMMARY) flags[j] |= ATTENTION_SUMMARY;
        if (flags[j]) c->flagged = true;
        *(w->reads[n] == WEIGHT_SUMMARY ? &summed : &read) += 1;
    }
    c->read[head * w->length + i] = read;
    c->summed[head * w->length + i] = summed;
    c->density += read;
    c->summaries += summed;
}

/* The mean of the sizes; read by any head, in summaries alone when by none otherwise. */
static void take_mean(const struct layer_weights *w, int64_t i, struct attention_codes *c) {
    uint8_t *codes = c->codes + row_at(c, 0, i), *flags = c->flags + row_at(c, 0, i);
    for (int64_t j = 0; j <= i; j++) {
        double sum = 0;
        int most = WEIGHT_UNREAD;
        for (int64_t head = 0; head < w->heads; head++) {
            const int64_t n = pair_of(w, head, i, j);
            if (w->reads[n] == WEIGHT_UNREAD) continue;
            sum += fabs((double)w->weights[n]);
            if (w->reads[n] > most) most = w->reads[n];
        }
        if (most == WEIGHT_UNREAD) continue;
        codes[j] = code_of(c, sum / (double)w->heads);
        if (most == WEIGHT_SUMMARY) flags[j] = ATTENTION_SUMMARY;
    }
}

enum status attention_codes_take(const struct layer_weights *w, struct attention_codes *c) {
    const size_t pairs = (size_t)((w->heads + 1) * triangle(w->length)), queries = (size_t)(w->heads * w->length);
    const double all = (double)w->heads * (double)triangle(w->length);
    *c = (struct attention_codes){.heads = w->heads, .length = w->length};
    TRY(memory_new(pairs, 1, "attention weights", &c->codes));
    TRY(memory_new(pairs, 1, "attention weights", &c->flags));
    TRY(memory_new(queries, sizeof *c->read, "attention weights", &c->read));
    TRY(memory_new(queries, sizeof *c->summed, "attention weights", &c->summed));
    find_scale(w, c);
    for (int64_t i = 0; i < w->length; i++) {
        for (int64_t head = 0; head < w->heads; head++) take_row(w, head, i, c);
        take_mean(w, i, c);
    }
    c->density /= all;
    c->summaries /= all;
    return STATUS_OK;
}

static uint8_t share_code(double share) {
    return (uint8_t)round(255 * (share < 0 ? 0 : share > 1 ? 1 : share));
}

enum status attention_codes_compare(struct attention_codes *c, const struct attention_codes *teacher) {
    const size_t queries = (size_t)(c->heads * c->length);
    TRY(memory_new(queries, 1, "attention weights", &c->hit));
    TRY(memory_new(queries, 1, "attention weights", &c->common));
    for (int64_t n = 0; n < c->heads * c->length; n++) {
        const int64_t i = n % c->length, row = row_at(c, n / c->length + 1, i);
        double all = 0, hit = 0, common = 0;
        for (int64_t j = 0; j <= i; j++) {
            const double taught = weight_of(teacher, teacher->codes[row + j]), own = weight_of(c, c->codes[row + j]);
            all += taught;
            if (c->codes[row + j] && !(c->flags[row + j] & ATTENTION_SUMMARY)) hit += taught;
            if (!(c->flags[row + j] & ATTENTION_NEGATIVE)) common += own < taught ? own : taught;
        }
        /* A teacher's weights sum to 1 but for the rounding of codes. */
        c->hit[n] = share_code(all > 0 ? hit / all : 0);
        c->common[n] = share_code(all > 0 ? common / all : 0);
        c->hit_mean += (all > 0 ? hit / all : 0) / (double)queries;
        c->common_mean += (all > 0 ? common / all : 0) / (double)queries;
    }
    return STATUS_OK;
}

void attention_codes_free(struct attention_codes *c) {
    free(c->codes);
    free(c->flags);
    free(c->read);
    free(c->summed);
    free(c->hit);
    free(c->common);
    *c = (struct attention_codes){0};
}

/* --- packing ------------------------------------------------------------------------------------------------------ */

/* Pairs of a plane when every query keeps at most `keep`. */
static int64_t pairs_of(int64_t length, int64_t keep) {
    return keep >= length ? triangle(length) : triangle(keep) + (length - keep) * keep;
}

struct attention_keep attention_keep_within(int64_t pairs, int64_t length, int64_t heads, int64_t layers,
                                            int64_t models) {
    enum { ALL = ATTENTION_TOKENS_MAX };
    static const struct attention_keep steps[] = {{ALL, ALL}, {ALL, 128}, {ALL, 64}, {ALL, 32}, {ALL, 24},
                                                  {ALL, 16},  {256, 16},  {128, 16}, {64, 16},  {32, 16}};
    const size_t last = sizeof steps / sizeof *steps - 1;
    size_t n = 0;
    while (n < last &&
           models * layers * (pairs_of(length, steps[n].mean) + heads * pairs_of(length, steps[n].head)) > pairs)
        n++;
    return steps[n];
}

static void add_number(struct page_text *out, int64_t number) {
    for (; number >= 128; number >>= 7) page_text_add(out, &(uint8_t){(uint8_t)(number | 128)}, 1);
    page_text_add(out, &(uint8_t){(uint8_t)number}, 1);
}

/* tokens[]: those of row[0 … count−1] that are kept, in order; returns how many. Of equals at the edge the later ones
 * stay. */
static int64_t choose(const uint8_t *row, int64_t count, int64_t keep, uint16_t *tokens) {
    int64_t of_code[256] = {0}, chosen = 0, above = 0, least = 255;
    for (int64_t j = 0; j < count; j++) of_code[row[j]]++;
    while (least > 1 && above + of_code[least] < keep) above += of_code[least--];
    int64_t equals = keep - above; /* of code `least`, counted from the last token */
    for (int64_t j = count - 1; j >= 0; j--) {
        if (row[j] < least || (row[j] == least && equals-- <= 0)) continue;
        tokens[chosen++] = (uint16_t)j;
    }
    for (int64_t n = 0; n < chosen / 2; n++) {
        const uint16_t first = tokens[n];
        tokens[n] = tokens[chosen - 1 - n];
        tokens[chosen - 1 - n] = first;
    }
    return chosen;
}

enum plane_part { PART_COUNTS, PART_TOKENS, PART_CODES, PART_FLAGS };

/* One part of all rows of a plane: alike bytes beside each other, which deflate likes. */
static void pack_part(const struct attention_codes *c, int64_t plane, int64_t keep, enum plane_part part,
                      struct page_text *out) {
    uint16_t tokens[ATTENTION_TOKENS_MAX];
    for (int64_t i = 0; i < c->length; i++) {
        const int64_t row = row_at(c, plane, i), count = choose(c->codes + row, i + 1, keep, tokens);
        if (part == PART_COUNTS) add_number(out, count);
        for (int64_t n = 0; n < count && part != PART_COUNTS; n++) {
            const int64_t j = tokens[n];
            if (part == PART_TOKENS) add_number(out, n > 0 ? j - tokens[n - 1] : j);
            if (part == PART_CODES) page_text_add(out, c->codes + row + j, 1);
            if (part == PART_FLAGS) page_text_add(out, c->flags + row + j, 1);
        }
    }
}

static void pack_pairs_of_bytes(const uint16_t *values, int64_t count, struct page_text *out) {
    for (int64_t n = 0; n < count; n++)
        page_text_add(out, (uint8_t[]){(uint8_t)values[n], (uint8_t)(values[n] >> 8)}, 2);
}

void attention_codes_pack(const struct attention_codes *c, const struct attention_keep *keep, struct page_text *out) {
    const int64_t queries = c->heads * c->length;
    for (int64_t plane = 0; plane <= c->heads; plane++) {
        const int64_t most = plane == 0 ? keep->mean : keep->head;
        for (enum plane_part part = PART_COUNTS; part <= (c->flagged ? PART_FLAGS : PART_CODES); part++)
            pack_part(c, plane, most, part, out);
    }
    pack_pairs_of_bytes(c->read, queries, out);
    pack_pairs_of_bytes(c->summed, queries, out);
    if (!c->hit) return;
    page_text_add(out, c->hit, (size_t)queries);
    page_text_add(out, c->common, (size_t)queries);
}
