/* Linear attention's backward pass, as the host sees it. Forwards, from the states of keys: gradients by the queries'
 * features, dq, and what they give squeeze and excite; then, from the states of queries' gradients, dk and dv. Each
 * slab by slab; the parameters' gradients are summed up after each. */
#include "kernels/cuda/linear_gate.cuh"
#include "kernels/cuda/linear_gradients.cuh"

namespace {

constexpr int record_threads = 128;
constexpr int64_t slab_bytes = int64_t{64} << 20;

/* term and delta of one query and head, by one warp. */
template <class T> __global__ void __launch_bounds__(record_threads) write_records(linear_gradient g) {
    const linear_problem &p = g.f;
    const int64_t rows = p.batch * p.heads * p.length;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * (record_threads / 32) + threadIdx.x / 32; row < rows;
         row += static_cast<int64_t>(gridDim.x) * (record_threads / 32)) {
        const int64_t h = row / p.length % p.heads, b = row / p.length / p.heads;
        const int i = static_cast<int>(row % p.length), t = i - window_of(p, b);
        const T *o = attention_rows<const T>(p.o, b, h) + i * p.o.token,
                *d_o = attention_rows<const T>(g.d_o, b, h) + i * g.d_o.token;
        float delta = 0.0f;
        for (int d = static_cast<int>(threadIdx.x % 32); d < p.width; d += 32)
            delta += to_float(o[d]) * to_float(d_o[d]);
        delta = warp_sum(delta);
        if (threadIdx.x % 32 != 0) continue;
        linear_record record = {-INFINITY, delta};
        if (t >= 0 && !p.near_only && p.begin[b * p.length + t] == p.begin[b * p.length + i]) {
            const float beta = p.beta ? p.beta[h] * log2_of_e : 0.0f;
            const float term = beta + p.q.peaks[row] + p.log_constant - p.log_sums[row] * log2_of_e;
            /* Nothing where the forward pass found no far part worth the name; NaN: neither. */
            if (term + p.prefix[(b * p.groups + h / p.share) * p.length + t] <= linear_largest) record.term = term;
        }
        g.records[row] = record;
    }
}

/* A call: what its gradients need beside the problem. */
struct backward_call {
    linear_gradient g;
    char *plan, *own, *scan;
    linear_parameters parameters;
};

/* Rows of a slab: gradients by features in memory as large as q in fp32, or as fills the device, up to slab_bytes. */
int slab_of(const struct ops *ops, const linear_problem &p, int tile) {
    const int64_t tiles = divide_up(p.length, tile), row = p.batch * p.heads * p.features;
    const int64_t alike = p.length * static_cast<int64_t>(p.width) / p.features / tile;
    const int64_t full =
        divide_up(8 * static_cast<int64_t>(ops->device->multiprocessors), p.batch * p.groups * p.tiles);
    const int64_t most = slab_bytes / (row * tile * static_cast<int64_t>(sizeof(float)));
    int64_t wanted = alike > full ? alike : full;
    if (wanted > most) wanted = most;
    if (wanted > tiles) wanted = tiles;
    return static_cast<int>((wanted < 1 ? 1 : wanted) * tile);
}

void place_call(const struct ops *ops, const struct linear_attention_backward *a, linear_cutter &c,
                backward_call *call) {
    const struct features *d = &a->gradients;
    linear_gradient &g = call->g;
    const linear_problem &p = g.f;
    const int64_t queries = p.batch * p.heads * p.length, keys = p.batch * p.groups * p.length;
    const size_t states = linear_states_bytes(ops, p);
    call->plan = c.take(linear_plan_bytes(&a->forward));
    call->own = c.take(linear_own_bytes(p));
    g.before = linear_states_place(ops, p, c.take(states));
    g.rows_after = linear_states_place(ops, p, c.take(states));
    if (!p.causal) {
        g.after = linear_states_place(ops, p, c.take(states));
        g.rows_before = linear_states_place(ops, p, c.take(states));
    }
    g.records = c.take_array<linear_record>(queries);
    const int64_t slab = p.batch * p.heads * g.slab * p.features;
    g.d_features = c.take_array<float>(slab);
    if (p.hidden_width) {
        g.d_gates = c.take_array<float>(slab);
        g.d_hidden = c.take_array<float>(queries * p.hidden_width);
        g.tails = c.take_array<float>(keys * p.hidden_width);
        call->scan = c.take(gate_scan_bytes(p.batch * p.groups, p.length, p.hidden_width));
    }
    if (tensor_present(d->beta)) g.beta_rows = c.take_array<float>(queries);
    linear_parameters_place(ops, p, p.batch * g.slab, d, c, &call->parameters);
}

enum status make_states(const struct ops *ops, const char *operation, const backward_call &call) {
    const linear_gradient &g = call.g;
    if (g.f.near_only) return STATUS_OK;
    TRY(linear_states_make(ops, operation, g, true, false, call.own, g.before));
    TRY(linear_states_make(ops, operation, g, false, true, call.own, g.rows_after));
    if (g.f.causal) return STATUS_OK;
    TRY(linear_states_make(ops, operation, g, true, true, call.own, g.after));
    return linear_states_make(ops, operation, g, false, false, call.own, g.rows_before);
}

/* Gradients of all queries, or of all keys, slab by slab. */
enum status run_slabs(const struct ops *ops, const char *operation, backward_call *call, bool of_keys) {
    linear_gradient &g = call->g;
    for (g.slab_first = 0; g.slab_first < g.f.length; g.slab_first += g.slab) {
        TRY(linear_pairs(ops, operation, g, of_keys));
        TRY(linear_rows(ops, operation, g, of_keys));
        TRY(linear_parameters_add(ops, operation, g, call->parameters, of_keys));
        if (g.f.length - g.slab_first <= g.slab) break; /* no number beyond the last token */
    }
    return STATUS_OK;
}

} // namespace

enum status cuda_linear_attention_backward(const struct ops *ops, const struct linear_attention_backward *a) {
    const char *operation = "linear_attention_backward";
    TRY(check_linear_attention_backward(ops, a));
    if (tensor_count(a->forward.q) == 0) return STATUS_OK;
    backward_call call = {};
    linear_gradient &g = call.g;
    TRY(linear_measure(ops, operation, &a->forward, &g.f));
    g.d_o = attention_view_of(a->d_o);
    g.dq = attention_view_of(a->dq);
    g.dk = attention_view_of(a->dk);
    g.dv = attention_view_of(a->dv);
    TRY(with_linear_shape(ops, g.f.width, [&](auto shape) {
        g.slab = slab_of(ops, g.f, decltype(shape)::rows);
        return STATUS_OK;
    }));
    linear_cutter sizing = {};
    place_call(ops, a, sizing, &call);
    void *memory;
    TRY(device_scratch(ops, sizing.used, &memory));
    linear_cutter placing = {static_cast<char *>(memory), 0};
    place_call(ops, a, placing, &call);
    TRY(linear_plan(ops, operation, &a->forward, call.plan, &g.f));
    TRY(linear_parameters_open(ops, call.parameters));
    TRY(with_real(ops, [&](auto real) {
        return device_launch(ops, operation, write_records<decltype(real)>,
                             grid_over(g.f.batch * g.f.heads * g.f.length, record_threads / 32), record_threads, 0, g);
    }));
    TRY(make_states(ops, operation, call));
    TRY(run_slabs(ops, operation, &call, false));
    if (g.f.hidden_width) TRY(gate_tails(ops, operation, g, call.scan));
    TRY(run_slabs(ops, operation, &call, true));
    return linear_parameters_finish(ops, operation, g, call.parameters, &a->gradients);
}
