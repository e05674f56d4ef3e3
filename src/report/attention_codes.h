/* The weights of one layer, small enough for a page: a byte a pair of tokens, and a few figures a query. Knows no
 * model. */
#ifndef SQUINT_REPORT_ATTENTION_CODES_H
#define SQUINT_REPORT_ATTENTION_CODES_H

#include "model/weights.h"
#include "report/page_text.h"

enum { ATTENTION_NEGATIVE = 1, ATTENTION_SUMMARY = 2 }; /* flags of a pair */
enum { ATTENTION_TOKENS_MAX = 4096 };

/* Planes 0 … H: the mean over the heads of the weights' size, then the heads. Rows are queries, one after the other,
 * each with the tokens up to itself: T(T+1)/2 pairs a plane. */
struct attention_codes {
    int64_t heads, length;
    double scale;           /* a weight is scale · (code/255)² */
    bool flagged;           /* any flag is set */
    uint8_t *codes, *flags; /* [H+1,T(T+1)/2]; code 0: not read */
    uint16_t *read;         /* [H,T] tokens that are read themselves */
    uint16_t *summed;       /* [H,T] that are read in summaries alone */
    uint8_t *hit;    /* [H,T] share, of 255, of the teacher's weight on tokens that are read; NULL: without a teacher */
    uint8_t *common; /* [H,T] share, of 255, that the two have in common: Σ_j min(A_ij, teacher's A_ij) */
    double density;  /* pairs read / pairs, over all heads */
    double summaries; /* pairs read in summaries alone / pairs */
    double hit_mean, common_mean;
};

/* Takes in a layer of one sequence (batch 1), at most ATTENTION_TOKENS_MAX tokens that read nothing after them.
 * STATUS_MEMORY. */
enum status attention_codes_take(const struct layer_weights *weights, struct attention_codes *codes);
/* hit, common and their means, beside the same layer of the teacher. */
enum status attention_codes_compare(struct attention_codes *codes, const struct attention_codes *teacher);
void attention_codes_free(struct attention_codes *codes);

/* Pairs that a page keeps of a query: the heaviest, at most so many. */
struct attention_keep {
    int64_t mean, head;
};
/* The most that fits `pairs` of all planes of `layers` layers and `models` models; the least when nothing does. */
struct attention_keep attention_keep_within(int64_t pairs, int64_t length, int64_t heads, int64_t layers,
                                            int64_t models);

/* Appends the layer as the page's script reads it. For every plane: kept pairs of each query (T numbers), their tokens
 * as steps from the one before, the first from 0 (numbers), codes (bytes), flags (bytes, where `flagged`); then read,
 * summed (little-endian, 2 bytes), hit, common (bytes, beside a teacher) of every head. A number: 7 bits a byte, low
 * ones first, the last byte below 128. */
void attention_codes_pack(const struct attention_codes *codes, const struct attention_keep *keep,
                          struct page_text *out);

#endif
