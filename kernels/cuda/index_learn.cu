/* Learning where to look: the divergence of an indexer's scores from attention itself, and its gradients. Passes over
 * what each query's loss goes over: log-sums of the teacher's heads, log-sums of the scores, then losses and the
 * gradients of the indexer's queries; index_learn_keys.cu makes those of its keys. Every pass makes scores again from
 * queries and keys, so that memory beside the tensors grows with T alone. */
#include "kernels/cuda/index_learn.cuh"

namespace {

enum rows_pass { PASS_SUMS, PASS_LOSSES, PASS_HITS };

/* Of a lane's rows: sums over its columns; of PASS_SUMS a running maximum besides. */
struct row_state {
    float most[2], sum[2];
};

/* Scores of a tile's pairs into running maxima and sums. */
template <class S>
__device__ void take_sums(const learn_tile<S, false> &tile, const float (&scores)[S::groups][4], row_state &state) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = state.most[half];
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++)
            if (tile.holds(half, n)) most = fmaxf(most, log2_of_e * scores[n / 2][2 * half + n % 2]);
        const float reference = most == -INFINITY ? 0.0f : most;
        float sum = state.sum[half] * exp2_quick(state.most[half] - reference);
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++)
            if (tile.holds(half, n)) sum += exp2_quick(log2_of_e * scores[n / 2][2 * half + n % 2] - reference);
        state.most[half] = most;
        state.sum[half] = sum;
    }
}

/* Losses of a tile's pairs, and what they send to d_r and d_a of this launch's heads. */
template <class S>
__device__ void take_losses(const learn_tile<S, false> &tile, const learn_problem &p, const learn_memory<S> &memory,
                            float (&scores)[S::groups][4], const float (&mass)[S::groups][4], row_state &state) {
    tile.find_gradients(scores, mass, [&](int half, float m, float log_student) {
        if (m > 0.0f) state.sum[half] += m * (logf(m) - log_student);
    });
    for (int n = 0; n < p.head_count; n++) {
        float products[1][S::groups][4], d_a[2] = {};
        tile.find_product_gradients(products, scores, p.first_head + n,
                                    [&](int half, float part) { d_a[half] += part; });
#pragma unroll
        for (int half = 0; half < 2; half++) {
            d_a[half] = quad_sum(d_a[half]);
            if (threadIdx.x % 4 == 0) memory.row_sums[n * learn_own + 8 * half + lane_row()] += d_a[half];
        }
        tile.add_rows(products, n);
    }
}

/* The rows' sums of all warps, to losses, hits or score_sums. parts: shared [warps][own]. */
template <class S>
__device__ void store_sums(const learn_problem &p, rows_pass pass, const row_state &state, float2 *parts, int64_t pair,
                           int first) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float most = quad_max(state.most[half]); /* −inf where the pass has none */
        const float sum =
            quad_sum(most == -INFINITY ? state.sum[half] : state.sum[half] * exp2_quick(state.most[half] - most));
        if (threadIdx.x % 4 == 0) parts[warp_number() * learn_own + 8 * half + lane_row()] = make_float2(most, sum);
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x);
    if (row >= learn_own || first + row >= p.sets.length) return;
    float most = -INFINITY, sum = 0.0f;
    for (int w = 0; w < S::warps; w++) most = fmaxf(most, parts[w * learn_own + row].x);
    for (int w = 0; w < S::warps; w++) {
        const float2 part = parts[w * learn_own + row];
        sum += pass != PASS_SUMS ? part.y : part.x == -INFINITY ? 0.0f : part.y * exp2_quick(part.x - most);
    }
    float *to = pass == PASS_SUMS ? p.score_sums : pass == PASS_LOSSES ? p.losses : p.hits;
    to[pair * p.sets.length + first + row] = pass == PASS_SUMS ? natural_log_sum(most, sum) : sum;
}

/* A block: learn_own queries of one list. */
template <class S, rows_pass PASS> __global__ void __launch_bounds__(S::threads) learn_from_keys(learn_problem p) {
    using T = typename S::real;
    const block_place place = place_block(p.order);
    const int64_t b = place.pair / p.lists, list = place.pair % p.lists;
    const int first = place.tile * learn_own;
    const learn_memory<S> memory(shared_cutter{shared_memory()}, p.head_count, p.index_width);
    SHARED(float2, parts, [S::warps * learn_own]);
    row_source source;
    source.open(p.sets, b, list, first, learn_own, memory.walk.scratch);
    __syncthreads();
    token_walk<S, row_source> walk(source, memory.walk.words, memory.walk.tokens, memory.walk.bits);
    learn_tile<S, false> tile = {p, memory, b, list, first, 0, 0, {}};
    row_state state = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    while ((tile.here = walk.next(&tile.at)) > 0) {
        float mass[S::groups][4], scores[S::groups][4];
        walk.words_of(tile.words, tile.at, tile.here);
        if constexpr (PASS != PASS_SUMS) tile.find_mass(mass);
        if constexpr (PASS != PASS_HITS) tile.find_scores(scores);
        if constexpr (PASS == PASS_SUMS) take_sums(tile, scores, state);
        if constexpr (PASS == PASS_LOSSES) take_losses(tile, p, memory, scores, mass, state);
        if constexpr (PASS == PASS_HITS) {
#pragma unroll
            for (int n = 0; n < S::groups * 4; n++) state.sum[n % 4 / 2] += mass[n / 4][n % 4];
        }
        __syncwarp(); /* the ring's places may be given away */
    }
    store_sums<S>(p, PASS, state, parts, place.pair, first);
    if (PASS != PASS_LOSSES || p.head_count == 0) return;
    store_gradients<S>(p, memory, p.d_r, b, list * p.index_heads + p.first_head, first);
    T *d_a = static_cast<T *>(p.d_a.data) + b * p.d_a.batch + list * p.index_heads + p.first_head;
    for (int n = static_cast<int>(threadIdx.x); n < p.head_count * learn_own; n += S::threads) {
        const int row = n % learn_own, head = n / learn_own;
        if (first + row >= p.sets.length) continue;
        float sum = memory.all_row_sums[n];
        for (int w = 1; w < S::warps; w++) sum += memory.all_row_sums[w * p.head_count * learn_own + n];
        d_a[(first + row) * p.d_a.token + head] = from_float<T>(sum);
    }
}

/* *to += weight · Σ rows. One block: the order is always the same. */
constexpr int add_threads = 1024;
__global__ void __launch_bounds__(add_threads) add_rows(const float *rows, int64_t count, double weight, double *to) {
    double sum = 0;
    for (int64_t n = threadIdx.x; n < count; n += add_threads) sum += static_cast<double>(rows[n]);
    sum = block_sum<add_threads>(sum);
    if (threadIdx.x == 0) *to += weight * sum;
}

enum status launch_add(const struct ops *ops, const float *rows, int64_t count, double weight, struct tensor to) {
    return device_launch(ops, "index_learn", add_rows, dim3(1), add_threads, 0, rows, count, weight,
                         data_of<double>(to));
}

/* One pass over all rows with the heads of this launch. */
template <class S, rows_pass PASS>
enum status launch_rows(const struct ops *ops, const learn_problem &p, int64_t blocks) {
    return device_launch(ops, "index_learn", learn_from_keys<S, PASS>, dim3(static_cast<unsigned>(blocks)), S::threads,
                         learn_memory<S>::bytes(p.head_count, p.index_width), p);
}

/* Scores' log-sums, then losses and, where wanted, d_r and d_a: as many heads at once as fit. */
enum status learn_rows_of(const struct ops *ops, const learn_problem &whole, int64_t batch) {
    learn_problem p = whole;
    return with_learn_shape(
        ops, p, [&](auto shape) -> enum status {
            using S = decltype(shape);
            const int64_t tiles = divide_up(p.sets.length, learn_own), blocks = tiles * batch * p.lists;
            p.order = order_blocks(tiles, batch * p.lists, int64_t{1} << 20, true);
            p.head_count = 0;
            TRY((launch_rows<S, PASS_SUMS>(ops, p, blocks)));
            if (!p.d_r.data) return launch_rows<S, PASS_LOSSES>(ops, p, blocks);
            const int most = learn_heads_at_once<S>(p.index_heads, p.index_width);
            for (p.first_head = 0; p.first_head < p.index_heads; p.first_head += most) {
                p.head_count = min(most, p.index_heads - p.first_head);
                TRY((launch_rows<S, PASS_LOSSES>(ops, p, blocks)));
            }
            return STATUS_OK;
        });
}

enum status learn_hits(const struct ops *ops, const learn_problem &whole, const token_sets &read, int64_t batch) {
    learn_problem p = whole;
    p.sets = read;
    return with_learn_shape(
        ops, p, [&](auto shape) -> enum status {
            using S = decltype(shape);
            const int64_t tiles = divide_up(p.sets.length, learn_own);
            p.order = order_blocks(tiles, batch * p.lists, int64_t{1} << 20, true);
            return launch_rows<S, PASS_HITS>(ops, p, tiles * batch * p.lists);
        });
}

/* Scratch memory, cut up; `memory` NULL while sizing. */
struct learn_scratch {
    char *bounds, *chosen;
    float *head_sums, *score_sums, *hits;
    size_t bytes;
};
learn_scratch cut_scratch(const struct index_learn *a, bool inverted, char *memory) {
    const int64_t batch = a->q.shape[0], length = a->q.shape[1];
    learn_scratch all = {};
    const auto take = [&](size_t bytes) {
        char *at = memory + all.bytes;
        all.bytes += (bytes + 255) / 256 * 256;
        return at;
    };
    const auto floats = [&](int64_t rows) {
        return reinterpret_cast<float *>(take(static_cast<size_t>(rows * length) * sizeof(float)));
    };
    all.bounds = take(tokens_bytes(a->start));
    all.head_sums = floats(batch * a->q.shape[2]);
    all.score_sums = floats(batch * a->scores.lists);
    all.hits = floats(batch * a->scores.lists);
    all.chosen = take(
        inverted ? inverted_bytes(batch, length, a->chosen.shape[2], a->chosen.shape[3], divide_up(length, learn_own))
                 : 0);
    return all;
}

learn_rows rows_of(struct tensor t) {
    return learn_rows{t.data, t.stride[0], t.stride[1]};
}

enum status describe(const struct index_learn *a, const token_problem &teacher, learn_problem *p) {
    const struct index_scores *s = &a->scores;
    const int64_t width = s->r.shape[3], tiles = divide_up(a->q.shape[1], learn_own) * a->q.shape[0] * s->lists;
    if (width > 256)
        return error_set(STATUS_SHAPE, "index_learn: r: expected a head width up to 256, found %lld",
                         static_cast<long long>(width));
    if (tiles > INT_MAX)
        return error_set(STATUS_SHAPE, "index_learn: expected up to %d tiles of queries, found %lld", INT_MAX,
                         static_cast<long long>(tiles));
    *p = learn_problem{};
    p->sets = teacher.sets;
    p->q = teacher.q;
    p->k = teacher.k;
    p->r = attention_view_of(s->r);
    p->u = attention_view_of(s->u);
    p->a = rows_of(s->a);
    if (tensor_present(a->d_r)) {
        p->d_r = attention_view_of(a->d_r);
        p->d_u = attention_view_of(a->d_u);
        p->d_a = rows_of(a->d_a);
    }
    p->losses = data_of<float>(a->losses);
    p->lists = s->lists;
    p->heads = teacher.heads;
    p->share = teacher.share;
    p->index_heads = static_cast<int>(s->r.shape[2] / s->lists);
    p->index_keys = static_cast<int>(s->u.shape[2] / s->lists);
    p->width = teacher.width;
    p->index_width = static_cast<int>(width);
    p->scale_log2 = teacher.scale_log2;
    p->score_scale = static_cast<float>(1 / sqrt(static_cast<double>(width)));
    p->gradient_scale = static_cast<float>(a->gradient_scale);
    return STATUS_OK;
}

} // namespace

enum status cuda_index_learn(const struct ops *ops, const struct index_learn *a) {
    TRY(check_index_learn(ops, a));
    const int64_t batch = a->q.shape[0], rows = batch * a->scores.lists * a->q.shape[1];
    const bool hits = tensor_present(a->hits) && !a->attended, gradients = tensor_present(a->d_r);
    const bool choice = (a->attended || hits) && tensor_present(a->chosen); /* else nobody asks what a query reads */
    const bool reads = a->attended || hits;
    struct token_attention reading = {};
    reading.q = a->q;
    reading.k = a->k;
    reading.start = a->start;
    reading.chosen = choice ? a->chosen : tensor_none();
    reading.window = reads ? a->window : 1;
    reading.sinks = reads ? a->sinks : 0;
    reading.scale = a->scale;
    token_problem teacher;
    learn_problem p;
    TRY(tokens_describe("index_learn", &reading, &teacher));
    const bool inverted = a->attended && gradients && teacher.sets.chosen;
    void *block;
    TRY(device_scratch(ops, cut_scratch(a, inverted, nullptr).bytes, &block));
    const learn_scratch scratch = cut_scratch(a, inverted, static_cast<char *>(block));
    TRY(tokens_open(ops, "index_learn", a->start, scratch.bounds, &teacher.sets));
    const token_sets read = teacher.sets;
    if (!a->attended) { /* all pairs of a document: a window over everything */
        teacher.sets.chosen = nullptr;
        teacher.sets.select = 0;
        teacher.sets.sinks = 0;
        teacher.sets.window = teacher.sets.length;
    }
    TRY(describe(a, teacher, &p));
    teacher.log_sums = scratch.head_sums;
    p.head_sums = scratch.head_sums;
    p.score_sums = scratch.score_sums;
    p.hits = scratch.hits;
    TRY(token_rows(ops, "index_learn", teacher, batch));
    TRY(learn_rows_of(ops, p, batch));
    if (tensor_present(a->loss)) TRY(launch_add(ops, p.losses, rows, a->weight, a->loss));
    if (hits) {
        TRY(learn_hits(ops, p, read, batch));
        TRY(launch_add(ops, p.hits, rows, 1, a->hits));
    }
    if (!gradients) return STATUS_OK;
    const inverted_rule by_tiles = {nullptr, nullptr, divide_up(a->q.shape[1], learn_own), learn_own};
    if (inverted) TRY(inverted_build(ops, "index_learn", a->chosen, by_tiles, scratch.chosen, &p.chosen));
    return learn_keys(ops, p, batch);
}
