/* Attention of one query, pair by pair. Exact whatever the scores are; the blocked path hands over the rare rows whose
 * candidates' normalisers lie too far apart for a common exponent. */
#include "kernels/cpu/attention_internal.h"

/* Whether the pair was already visited for a candidate before m. */
static bool seen_before(const struct span *spans, int m, int64_t j) {
    for (int n = 0; n < m; n++)
        if (span_holds(spans[n], j)) return true;
    return false;
}

static void find_spans(const struct attention_head *head, int64_t i, struct span *spans) {
    for (int m = 0; m < head->count; m++)
        spans[m] = candidate_span(&head->candidates[m], head->causal, i, head->start[i], head->end[i]);
}

static real pair_score(const struct attention_head *head, const real *q, int64_t j) {
    return real_dot(q, head->k + j * head->k_stride, head->width);
}

static real find_log_sum(const struct attention_head *head, const real *q, struct span s) {
    real most = -REAL_INFINITY, sum = 0;
    for (int64_t j = s.lo; j < s.hi; j += s.step) most = real_max(most, pair_score(head, q, j));
    if (!(most > -REAL_INFINITY)) return most;
    for (int64_t j = s.lo; j < s.hi; j += s.step) sum += real_exp(pair_score(head, q, j) - most);
    return most + real_log(sum);
}

void NAME(attention_row)(const struct attention_head *head, int64_t i, const real *q, real *log_sums, real *o) {
    struct span spans[CANDIDATES_MAX];
    find_spans(head, i, spans);
    for (int m = 0; m < head->count; m++) log_sums[m] = find_log_sum(head, q, spans[m]);
    if (!o) return;
    for (int64_t d = 0; d < head->width; d++) o[d] = 0;
    for (int m = 0; m < head->count; m++)
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step) {
            if (seen_before(spans, m, j)) continue;
            const real score = pair_score(head, q, j);
            real weight = 0;
            for (int n = m; n < head->count; n++)
                if (span_holds(spans[n], j)) weight += head->coefficients[n] * real_exp(score - log_sums[n]);
            real_axpy(weight, head->v + j * head->v_stride, o, head->width);
        }
}

void NAME(attention_row_deltas)(const struct attention_head *head, int64_t i, const real *q,
                                const struct attention_row_gradient *g) {
    struct span spans[CANDIDATES_MAX];
    find_spans(head, i, spans);
    for (int m = 0; m < head->count; m++) {
        real sum = 0;
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step)
            sum += real_exp(pair_score(head, q, j) - g->log_sums[m][i]) *
                   real_dot(g->d_o, head->v + j * head->v_stride, head->width);
        g->deltas[m][i] = sum;
    }
}

void NAME(attention_row_backward)(const struct attention_head *head, int64_t i, const real *q,
                                  const struct attention_row_gradient *g) {
    struct span spans[CANDIDATES_MAX];
    find_spans(head, i, spans);
    for (int m = 0; m < head->count; m++)
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step) {
            const bool mine = g->dk && j >= g->first && j < g->last;
            if ((!mine && !g->dq) || seen_before(spans, m, j)) continue;
            const real score = pair_score(head, q, j);
            const real d_weight = real_dot(g->d_o, head->v + j * head->v_stride, head->width);
            real weight = 0, d_score = 0;
            for (int n = m; n < head->count; n++) {
                if (head->coefficients[n] == 0 || !span_holds(spans[n], j)) continue;
                const real part = head->coefficients[n] * real_exp(score - g->log_sums[n][i]);
                weight += part;
                d_score += part * (d_weight - g->deltas[n][i]);
            }
            if (g->dq) real_axpy(d_score, head->k + j * head->k_stride, g->dq, head->width);
            if (!mine) continue;
            real_axpy(d_score, q, g->dk + j * g->stride, head->width);
            real_axpy(weight, g->d_o, g->dv + j * g->stride, head->width);
        }
}
