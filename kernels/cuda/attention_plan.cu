/* Attention: what the host knows of a problem, and the kernel that turns candidates and documents into spans of keys.
 * Knows no number of q, k or v. */
#include "kernels/cuda/attention.cuh"

namespace {

constexpr int plan_threads = 128;

struct plan_arguments {
    attention_rule rules[CANDIDATES_MAX];
    const int32_t *start;  /* [B,T] */
    int2 *spans;           /* [B,count,T] */
    attention_hull *hulls; /* [B,count,hull_count] */
    int64_t batch;
    int length, hull_count, count;
    bool causal;
};

/* One past the document's last token: the first token after i whose document begins after i. */
__device__ int document_end(const int32_t *start, int length, int i) {
    int lo = i + 1, hi = length;
    while (lo < hi) {
        const int middle = lo + (hi - lo) / 2;
        if (start[middle] > i)
            hi = middle;
        else
            lo = middle + 1;
    }
    return lo;
}

/* Keys that the query at i sees; its document holds start … end−1 (ops.h, enum candidate_kind). */
__device__ int2 make_span(const attention_rule &rule, bool causal, int64_t i, int64_t start, int64_t end) {
    const int64_t a = rule.a, b = rule.b, limit = causal ? i + 1 : end;
    int64_t lo = start, hi = limit;
    if (rule.kind == CANDIDATE_WINDOW) {
        lo = max(i - a + 1, start);
        if (!causal) hi = min(i + a, end);
    } else if (rule.kind == CANDIDATE_SINKS) {
        hi = min(start + a, limit);
    } else if (rule.kind == CANDIDATE_BLOCKS) {
        lo = start + (i - start) / a * a;
        hi = min(lo + a, limit);
    } else if (rule.kind == CANDIDATE_DILATED) {
        lo = i - min(a - 1, (i - start) / b) * b;
        if (!causal) hi = min(i + (a - 1) * b + 1, end);
    } else if (rule.kind == CANDIDATE_OFFSET) {
        lo = i - a >= start ? i - a : i + a;
        hi = causal ? min(i - a + 1, limit) : min(i + a + 1, end);
    }
    return lo < hi ? make_int2(static_cast<int>(lo), static_cast<int>(hi - lo)) : make_int2(0, 0);
}

__device__ int warp_least(int x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = min(x, __shfl_xor_sync(whole_warp, x, lane));
    return x;
}

/* A warp takes a run of hull_rows queries of one sequence. A start that is no token up to i counts as the nearest one:
 * the host does not read it, and no span leaves the tensors. */
__global__ void __launch_bounds__(plan_threads) plan_spans(plan_arguments p) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int64_t run = static_cast<int64_t>(blockIdx.x) * (plan_threads / 32) + threadIdx.x / 32;
    if (run >= p.batch * p.hull_count) return;
    const int64_t b = run / p.hull_count;
    const int n = static_cast<int>(run % p.hull_count), i = n * hull_rows + lane;
    const int32_t *starts = p.start + b * p.length;
    const bool valid = i < p.length;
    const int start = valid ? max(0, min(starts[i], i)) : 0;
    const int end = valid && !p.causal ? document_end(starts, p.length, i) : i + 1;
    for (int m = 0; m < p.count; m++) {
        const int2 span = valid ? make_span(p.rules[m], p.causal, i, start, end) : make_int2(0, 0);
        if (valid) p.spans[(b * p.count + m) * p.length + i] = span;
        const bool empty = span.y == 0;
        attention_hull hull;
        hull.lo_min = warp_least(empty ? INT_MAX : span.x);
        hull.lo_max = -warp_least(!valid ? 0 : empty ? -INT_MAX : -span.x);
        hull.hi_min = warp_least(!valid ? INT_MAX : empty ? 0 : span.x + span.y);
        hull.hi_max = -warp_least(empty ? 0 : -(span.x + span.y));
        if (lane == 0) p.hulls[(b * p.count + m) * p.hull_count + n] = hull;
    }
}

attention_rule make_rule(const struct candidate *c) {
    attention_rule rule = {};
    rule.kind = c->kind;
    rule.a = c->a;
    rule.b = c->b;
    int64_t step = 1, reach = INT_MAX;
    if (c->kind == CANDIDATE_WINDOW || c->kind == CANDIDATE_BLOCKS) {
        reach = c->a - 1;
    } else if (c->kind == CANDIDATE_OFFSET) {
        step = 2 * static_cast<int64_t>(c->a);
        reach = c->a;
    } else if (c->kind == CANDIDATE_STRIDE) {
        step = c->a;
    } else if (c->kind == CANDIDATE_DILATED) {
        step = c->b;
        reach = (static_cast<int64_t>(c->a) - 1) * c->b;
    }
    rule.reach = static_cast<int>(reach < INT_MAX ? reach : INT_MAX);
    rule.dense = step == 1;
    rule.limit = UINT32_MAX / static_cast<unsigned>(step);
    while (step % 2 == 0) {
        step /= 2;
        rule.rotate++;
    }
    const unsigned odd = static_cast<unsigned>(step);
    unsigned inverse = odd; /* right in 3 bits; every Newton step doubles them */
    for (int n = 0; n < 4; n++) inverse *= 2 - odd * inverse;
    rule.inverse = inverse;
    return rule;
}

size_t spans_bytes(const struct attention *a) {
    return (static_cast<size_t>(a->q.shape[0] * a->count * a->q.shape[1]) * sizeof(int2) + 255) / 256 * 256;
}
int64_t hull_count_of(const struct attention *a) {
    return divide_up(a->q.shape[1], hull_rows);
}

} // namespace

attention_view attention_view_of(struct tensor t) {
    const int64_t size = static_cast<int64_t>(dtype_size(t.dtype)),
                  bits = t.stride[0] | t.stride[1] | t.stride[2] | t.shape[3];
    return attention_view{t.data, t.stride[0], t.stride[1], t.stride[2],
                          bits * size % 16 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0};
}

attention_view view_of_heads(struct tensor t) {
    struct tensor four = t;
    four.stride[1] = 0;
    four.stride[2] = t.stride[1];
    four.stride[3] = 1;
    four.shape[3] = t.shape[2];
    return attention_view_of(four);
}

size_t attention_plan_bytes(const struct attention *a) {
    const size_t hulls = static_cast<size_t>(a->q.shape[0] * a->count * hull_count_of(a)) * sizeof(attention_hull);
    return spans_bytes(a) + (hulls + 255) / 256 * 256;
}

enum status attention_plan(const struct ops *ops, const char *operation, const struct attention *a, char *memory,
                           attention_problem *p) {
    const int64_t length = a->q.shape[1], width = a->q.shape[3];
    if (width > 256)
        return error_set(STATUS_SHAPE, "%s: q: expected a head width up to 256, found %lld", operation,
                         static_cast<long long>(width));
    if (length > INT_MAX / 2)
        return error_set(STATUS_SHAPE, "%s: q: expected up to %d tokens, found %lld", operation, INT_MAX / 2,
                         static_cast<long long>(length));
    plan_arguments plan = {};
    plan.start = data_of<const int32_t>(a->start);
    plan.spans = reinterpret_cast<int2 *>(memory);
    plan.hulls = reinterpret_cast<attention_hull *>(memory + spans_bytes(a));
    plan.batch = a->q.shape[0];
    plan.length = static_cast<int>(length);
    plan.hull_count = static_cast<int>(hull_count_of(a));
    plan.count = a->count;
    plan.causal = a->causal;
    *p = attention_problem{};
    for (int m = 0; m < a->count; m++) plan.rules[m] = p->rules[m] = make_rule(&a->candidates[m]);
    p->q = attention_view_of(a->q);
    p->k = attention_view_of(a->k);
    p->v = attention_view_of(a->v);
    p->o = attention_view_of(a->o);
    p->coefficients = data_of<const float>(a->coefficients);
    p->coefficient_stride = a->coefficients.stride[0];
    p->log_sums = data_of<float>(a->log_sums);
    p->spans = plan.spans;
    p->hulls = plan.hulls;
    p->length = p->keys = plan.length;
    p->key_step = 1;
    p->heads = static_cast<int>(a->q.shape[2]);
    p->share = static_cast<int>(a->q.shape[2] / a->k.shape[2]);
    p->width = static_cast<int>(width);
    p->hull_count = plan.hull_count;
    p->count = a->count;
    p->causal = a->causal;
    p->scale = static_cast<float>(a->scale);
    p->scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    if (!memory) return STATUS_OK;
    return device_launch(ops, operation, plan_spans, grid_over(plan.batch * plan.hull_count, plan_threads / 32),
                         plan_threads, 0, plan);
}
