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

static real find_log_sum(const real *scores, struct span s) {
    real most = -REAL_INFINITY, sum = 0;
    for (int64_t j = s.lo; j < s.hi; j += s.step) most = real_max(most, scores[j]);
    if (!(most > -REAL_INFINITY)) return most;
    for (int64_t j = s.lo; j < s.hi; j += s.step) sum += real_exp(scores[j] - most);
    return most + real_log(sum);
}

void NAME(attention_row)(const struct attention_head *head, int64_t i, const real *q, real *scores, real *log_sums,
                         int64_t stride, real *o) {
    struct span spans[CANDIDATES_MAX];
    find_spans(head, i, spans);
    for (int m = 0; m < head->count; m++) {
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step)
            if (!seen_before(spans, m, j)) scores[j] = real_dot(q, head->k + j * head->k_stride, head->width);
        log_sums[m * stride] = find_log_sum(scores, spans[m]);
    }
    for (int64_t d = 0; d < head->width; d++) o[d] = 0;
    for (int m = 0; m < head->count; m++)
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step) {
            if (seen_before(spans, m, j)) continue;
            real weight = 0;
            for (int n = m; n < head->count; n++)
                if (span_holds(spans[n], j))
                    weight += head->coefficients[n] * real_exp(scores[j] - log_sums[n * stride]);
            real_axpy(weight, head->v + j * head->v_stride, o, head->width);
        }
}

static void find_deltas(const struct attention_head *head, const struct span *spans, const real *q,
                        const struct attention_row_gradient *g) {
    for (int m = 0; m < head->count; m++) g->deltas[m * g->stride] = 0;
    for (int m = 0; m < head->count; m++)
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step) {
            if (seen_before(spans, m, j)) continue;
            const real score = real_dot(q, head->k + j * head->k_stride, head->width);
            const real d_weight = real_dot(g->d_o, head->v + j * head->v_stride, head->width);
            for (int n = m; n < head->count; n++)
                if (span_holds(spans[n], j))
                    g->deltas[n * g->stride] += real_exp(score - g->log_sums[n * g->stride]) * d_weight;
        }
}

void NAME(attention_row_backward)(const struct attention_head *head, int64_t i, const real *q,
                                  const struct attention_row_gradient *g) {
    struct span spans[CANDIDATES_MAX];
    find_spans(head, i, spans);
    if (g->find_deltas) find_deltas(head, spans, q, g);
    if (!g->dq && !g->dk) return;
    for (int m = 0; m < head->count; m++)
        for (int64_t j = spans[m].lo; j < spans[m].hi; j += spans[m].step) {
            if (j < g->first || j >= g->last || seen_before(spans, m, j)) continue;
            const real score = real_dot(q, head->k + j * head->k_stride, head->width);
            const real d_weight = real_dot(g->d_o, head->v + j * head->v_stride, head->width);
            real weight = 0, d_score = 0;
            for (int n = m; n < head->count; n++) {
                if (head->coefficients[n] == 0 || !span_holds(spans[n], j)) continue;
                const real part = head->coefficients[n] * real_exp(score - g->log_sums[n * g->stride]);
                weight += part;
                d_score += part * (d_weight - g->deltas[n * g->stride]);
            }
            if (g->dq) real_axpy(d_score, head->k + j * head->k_stride, g->dq, head->width);
            if (!g->dk) continue;
            real_axpy(d_score, q, g->dk + j * g->dk_stride, head->width);
            real_axpy(weight, g->d_o, g->dv + j * g->dv_stride, head->width);
        }
}
