/* Attention to compressed blocks, both ways: attention's kernels with spans of their own. A query sees the blocks of
 * its document, from the first, that end with it or before it; they are one range of the sequence's blocks. */
#include "kernels/cuda/compressed.cuh"

namespace {

constexpr int plan_threads = 128;

struct plan_arguments {
    document_blocks blocks;
    int2 *spans;           /* [B,T] */
    attention_hull *hulls; /* [B,hull_count] */
    int64_t batch;
    int hull_count;
};

__device__ int warp_least(int x) {
    return -warp_max(-x);
}

/* A warp takes a run of hull_rows queries of one sequence. */
__global__ void __launch_bounds__(plan_threads) plan_visible(plan_arguments a) {
    const int64_t run = static_cast<int64_t>(blockIdx.x) * (plan_threads / 32) + threadIdx.x / 32;
    if (run >= a.batch * a.hull_count) return;
    const int64_t b = run / a.hull_count;
    const int i = static_cast<int>(run % a.hull_count) * hull_rows + static_cast<int>(threadIdx.x % 32);
    const bool valid = i < a.blocks.length;
    const int64_t at = b * a.blocks.length + i;
    int2 span = make_int2(0, 0);
    if (valid) {
        span.y = visible_blocks(i - a.blocks.begin[at], a.blocks.width, a.blocks.stride);
        span.x = span.y > 0 ? a.blocks.base[at] : 0;
        a.spans[at] = span;
    }
    const bool empty = span.y == 0;
    attention_hull hull;
    hull.lo_min = warp_least(empty ? INT_MAX : span.x);
    hull.lo_max = warp_max(!valid ? 0 : empty ? INT_MAX : span.x);
    hull.hi_min = warp_least(!valid ? INT_MAX : empty ? 0 : span.x + span.y);
    hull.hi_max = warp_max(empty ? 0 : span.x + span.y);
    if (threadIdx.x % 32 == 0) a.hulls[run] = hull;
}

size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* The problem's memory: documents, spans, hulls, and a coefficient of 0. */
struct plan_sizes {
    size_t blocks, spans, hulls, all;
};
plan_sizes plan_sizes_of(const struct compressed_attention *a) {
    const size_t batch = static_cast<size_t>(a->q.shape[0]), length = static_cast<size_t>(a->q.shape[1]);
    plan_sizes s;
    s.blocks = padded(document_blocks_bytes(a->q.shape[0], a->q.shape[1], a->compress, a->stride, false));
    s.spans = padded(batch * length * sizeof(int2));
    s.hulls = padded(batch * ((length + hull_rows - 1) / hull_rows) * sizeof(attention_hull));
    s.all = s.blocks + s.spans + s.hulls + 256;
    return s;
}

/* p without its arrays. */
enum status describe(const struct ops *ops, const char *operation, const struct compressed_attention *a,
                     attention_problem *p) {
    struct attention plain = {};
    plain.q = a->q;
    plain.k = a->k;
    plain.v = a->v;
    plain.o = a->o;
    plain.log_sums = a->log_sums;
    plain.candidates[0].kind = CANDIDATE_FULL;
    plain.count = 1;
    plain.causal = true;
    plain.scale = a->scale;
    TRY(attention_plan(ops, operation, &plain, nullptr, p));
    p->keys = static_cast<int>(a->k.shape[1]);
    p->key_step = a->stride;
    return STATUS_OK;
}

/* Where documents, spans and hulls are, and the kernels that write them to `memory`, of plan_sizes_of's bytes. */
enum status plan(const struct ops *ops, const char *operation, const struct compressed_attention *a, char *memory,
                 attention_problem *p, document_blocks *blocks) {
    const plan_sizes sizes = plan_sizes_of(a);
    TRY(document_blocks_find(ops, operation, a->start, a->compress, a->stride, false, memory, blocks));
    plan_arguments g = {};
    g.blocks = *blocks;
    g.spans = reinterpret_cast<int2 *>(memory + sizes.blocks);
    g.hulls = reinterpret_cast<attention_hull *>(memory + sizes.blocks + sizes.spans);
    g.batch = a->q.shape[0];
    g.hull_count = p->hull_count;
    p->spans = g.spans;
    p->hulls = g.hulls;
    return device_launch(ops, operation, plan_visible, grid_over(g.batch * g.hull_count, plan_threads / 32),
                         plan_threads, 0, g);
}

/* log_sums alone: those of a candidate that is dead, for that is what attention has a kernel of sums for. */
enum status sums_alone(const struct ops *ops, attention_problem p, int64_t batch, void *zero) {
    CUDA_TRY(cudaMemsetAsync(zero, 0, sizeof(float), ops->device->stream));
    p.coefficients = static_cast<const float *>(zero);
    p.coefficient_stride = 0;
    return attention_sums(ops, p, batch, true, p.log_sums);
}

} // namespace

enum status cuda_compressed_attention(const struct ops *ops, const struct compressed_attention *a) {
    TRY(check_compressed_attention(ops, a));
    attention_problem p;
    TRY(describe(ops, "compressed_attention", a, &p));
    const size_t own = plan_sizes_of(a).all, more = tensor_present(a->chosen) ? compressed_choice_bytes(ops, a) : 0;
    void *block;
    TRY(device_scratch(ops, own + more, &block));
    char *memory = static_cast<char *>(block);
    document_blocks blocks;
    TRY(plan(ops, "compressed_attention", a, memory, &p, &blocks));
    TRY(tensor_present(a->o) ? attention_forward(ops, p, a->q.shape[0])
                             : sums_alone(ops, p, a->q.shape[0], memory + own - 256));
    return tensor_present(a->chosen) ? compressed_choice(ops, a, p, blocks, memory + own) : STATUS_OK;
}

enum status cuda_compressed_attention_backward(const struct ops *ops, const struct compressed_attention_backward *a) {
    TRY(check_compressed_attention_backward(ops, a));
    const struct compressed_attention *f = &a->forward;
    const int64_t batch = f->q.shape[0];
    attention_gradient g = {};
    TRY(describe(ops, "compressed_attention_backward", f, &g.f));
    const size_t own = attention_gradient_place(ops, &g, batch, false, nullptr);
    void *block;
    TRY(device_scratch(ops, own + plan_sizes_of(f).all, &block));
    attention_gradient_place(ops, &g, batch, false, static_cast<char *>(block));
    document_blocks blocks;
    TRY(plan(ops, "compressed_attention_backward", f, static_cast<char *>(block) + own, &g.f, &blocks));
    g.d_o = attention_view_of(a->d_o);
    g.dq = attention_view_of(a->dq);
    g.dk = attention_view_of(a->dk);
    g.dv = attention_view_of(a->dv);
    g.accumulate_q = a->accumulate_q;
    return attention_backward(ops, g, batch, tensor_none());
}
