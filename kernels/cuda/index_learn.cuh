/* Learning where to look: what the passes over queries and over keys share. All pairs of a document are a walk with a
 * window over everything (tokens.cuh), so that both forms of the operation are one. */
#ifndef SQUINT_KERNELS_CUDA_INDEX_LEARN_CUH
#define SQUINT_KERNELS_CUDA_INDEX_LEARN_CUH

#include "kernels/cuda/tokens.cuh"

/* Rows of [B,T,heads]: of a and its gradient. */
struct learn_rows {
    void *data;
    int64_t batch, token;
};

struct learn_problem {
    token_sets sets;           /* over what losses go */
    attention_view q, k, r, u; /* the teacher's and the indexer's queries and keys */
    attention_view d_r, d_u;   /* no data: no gradients */
    learn_rows a, d_a;
    const float *head_sums;      /* [B,H,T] log Σ_j e^{scale·q·k} */
    float *score_sums;           /* [B,S,T] log Σ_j e^{I} */
    float *losses, *hits;        /* [B,S,T] */
    inverted_lists chosen;       /* by tiles of keys; offsets NULL: none */
    int lists, heads, share;     /* S, H, query heads of a key head of the teacher */
    int index_heads, index_keys; /* J, K */
    int width, index_width;      /* D, E */
    int first_head, head_count;  /* whose gradients this launch makes: of J (queries) or of K (keys) */
    float scale_log2, score_scale /* 1/√E */, gradient_scale;
    block_order order;
};

constexpr int learn_own = 16, learn_chunk = 32; /* a block's own rows; columns of a width that go at once */

/* D: the width of rows in shared memory, the wider of the teacher's and the indexer's, padded. */
template <class T, int D> struct learn_shape_of;
template <> struct learn_shape_of<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 1, 32>; };
template <> struct learn_shape_of<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 16>; };
template <> struct learn_shape_of<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 16>; };
template <> struct learn_shape_of<float, 64> { using shape = tile_shape<float, 64, 4, 1, 16>; };
template <> struct learn_shape_of<float, 128> { using shape = tile_shape<float, 128, 4, 1, 16>; };
template <> struct learn_shape_of<float, 256> { using shape = tile_shape<float, 256, 2, 1, 16>; };

__host__ __device__ inline int learn_padded(int width) {
    return (width + learn_chunk - 1) / learn_chunk * learn_chunk;
}

/* A block's memory: walk_memory; for each warp a tile of own rows, one of gathered rows, sums [heads][own][padded E]
 * and [heads][own]. */
template <class S> struct learn_memory {
    using T = typename S::real;
    walk_memory<S> walk;
    T *own, *other;
    float *all_sums, *sums, *all_row_sums, *row_sums;
    __device__ learn_memory(shared_cutter cutter, int heads, int index_width) : walk(cutter) {
        const int each = heads * learn_own * learn_padded(index_width);
        own = cutter.take<T>(S::warps * learn_own * S::stride) + warp_number() * learn_own * S::stride;
        other = cutter.take<T>(S::warps * S::columns * S::stride) + warp_number() * S::columns * S::stride;
        all_sums = cutter.take<float>(S::warps * each);
        all_row_sums = cutter.take<float>(S::warps * heads * learn_own);
        sums = all_sums + warp_number() * each;
        row_sums = all_row_sums + warp_number() * heads * learn_own;
        for (int n = static_cast<int>(threadIdx.x % 32); n < each; n += 32) sums[n] = 0.0f;
        for (int n = static_cast<int>(threadIdx.x % 32); n < heads * learn_own; n += 32) row_sums[n] = 0.0f;
    }
    static size_t bytes(int heads, int index_width) {
        return walk_memory<S>::bytes + S::warps * (learn_own + S::columns) * S::stride * sizeof(T) +
               sizeof(float) * S::warps * static_cast<size_t>(heads) * learn_own * (learn_padded(index_width) + 1);
    }
};

/* One tile's tokens of a walk, and the block's own rows. KEYS: own rows are keys, the walk's tokens queries; else the
 * other way round. */
template <class S, bool KEYS> struct learn_tile {
    using T = typename S::real;
    using product = warp_product<T>;
    const learn_problem &p;
    const learn_memory<S> &memory;
    int64_t b, list;
    int first, at, here;
    unsigned words[S::groups][2];

    __device__ bool holds(int half, int n) const { return words[n / 2][n % 2] >> (8 * half + lane_row()) & 1; }
    /* The query of an element; one inside the sequence where there is none. */
    __device__ int query_of(int half, int n) const {
        const int column = n / 2 * 8 + lane_column() + n % 2;
        if (KEYS) return memory.walk.tokens[(at + (column < here ? column : 0)) % token_ring];
        return min(first + 8 * half + lane_row(), p.sets.length - 1);
    }

    /* Rows of one head into a tile, zeros after `count` of them and after column width − 1, up to whole chunks. */
    template <class Row>
    __device__ void load(T *tile, int rows, int count, const attention_view &view, int64_t head, int width,
                         Row row_at) const {
        const T *from = attention_rows<const T>(view, b, head);
        const int padded = learn_padded(width), lane = static_cast<int>(threadIdx.x % 32);
        constexpr int each = pack_width<T>;
        if (view.vector) {
            const int packs = padded / each;
            for (int n = lane; n < rows * packs; n += 32) {
                const int row = n / packs, column = n % packs * each;
                const bool valid = row < count && column < width;
                copy_async(tile + row * S::stride + column, valid ? from + row_at(row) * view.token + column : from,
                           valid);
            }
            return;
        }
        for (int n = lane; n < rows * padded; n += 32) {
            const int row = n / padded, column = n % padded;
            const bool valid = row < count && column < width;
            tile[row * S::stride + column] = valid ? from[row_at(row) * view.token + column] : from_float<T>(0.0f);
        }
    }
    /* products [own x columns] of a query head with a key head; their rows stay in the tiles. */
    __device__ void multiply(float (&products)[1][S::groups][4], const attention_view &query, int64_t query_head,
                             const attention_view &key, int64_t key_head, int width) const {
        __syncwarp(); /* what was in the tiles is read */
        load(memory.own, learn_own, min(p.sets.length - first, learn_own), KEYS ? key : query,
             KEYS ? key_head : query_head, width, [&](int row) { return int64_t{first + row}; });
        load(memory.other, S::columns, here, KEYS ? query : key, KEYS ? query_head : key_head, width,
             [&](int row) { return int64_t{memory.walk.tokens[(at + row) % token_ring]}; });
        copy_async_commit();
        copy_async_wait<0>();
        __syncwarp();
        clear_sums(products);
        for (int c = 0; c < width; c += learn_chunk)
            product::rows_by_rows(products,
                                  typename product::template left<1, learn_chunk, S::stride, false>(memory.own + c),
                                  memory.other + c);
    }
    __device__ void multiply_index(float (&products)[1][S::groups][4], int j) const {
        const int k = j / (p.index_heads / p.index_keys);
        multiply(products, p.r, list * p.index_heads + j, p.u, list * p.index_keys + k, p.index_width);
    }
    __device__ float a_of(int query, int j) const {
        return to_float(static_cast<const T *>(p.a.data)[b * p.a.batch + query * p.a.token + list * p.index_heads + j]);
    }

    /* mass = the list's heads' softmax, summed and divided by their number; 0 where no query reads. */
    __device__ void find_mass(float (&mass)[S::groups][4]) const {
        const int together = p.heads / p.lists;
#pragma unroll
        for (int n = 0; n < S::groups * 4; n++) mass[n / 4][n % 4] = 0.0f;
        for (int64_t h = list * together; h < (list + 1) * together; h++) {
            float products[1][S::groups][4];
            const float *sums = p.head_sums + (b * p.heads + h) * p.sets.length;
            multiply(products, p.q, h, p.k, h / p.share, p.width);
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (holds(half, n))
                        mass[n / 2][2 * half + n % 2] += exp2_quick(
                            products[0][n / 2][2 * half + n % 2] * p.scale_log2 - log2_of_e * sums[query_of(half, n)]);
        }
        const float each = 1.0f / static_cast<float>(together);
#pragma unroll
        for (int n = 0; n < S::groups * 4; n++) mass[n / 4][n % 4] *= each;
    }
    /* scores = I, whoever reads. */
    __device__ void find_scores(float (&scores)[S::groups][4]) const {
#pragma unroll
        for (int n = 0; n < S::groups * 4; n++) scores[n / 4][n % 4] = 0.0f;
        for (int j = 0; j < p.index_heads; j++) {
            float products[1][S::groups][4];
            multiply_index(products, j);
#pragma unroll
            for (int n = 0; n < 2 * S::groups; n++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    scores[n / 2][2 * half + n % 2] +=
                        a_of(query_of(half, n), j) * fmaxf(products[0][n / 2][2 * half + n % 2] * p.score_scale, 0.0f);
        }
    }
    /* Scores become their gradients, gradient_scale · (softmax(I) − mass); take(half, n, mass, log softmax(I)) sees
     * every pair that is read. */
    template <class Take>
    __device__ void find_gradients(float (&scores)[S::groups][4], const float (&mass)[S::groups][4], Take take) const {
        const float *sums = p.score_sums + (b * p.lists + list) * p.sets.length;
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float &score = scores[n / 2][2 * half + n % 2];
                if (!holds(half, n)) {
                    score = 0.0f;
                    continue;
                }
                const float m = mass[n / 2][2 * half + n % 2], log_student = score - sums[query_of(half, n)];
                take(half, m, log_student);
                score = p.gradient_scale * (exp2_quick(log2_of_e * log_student) - m);
            }
    }
    /* From the scores' gradients those of the products of index head j; take(half, n, gradient, relu of the product).
     */
    template <class Take>
    __device__ void find_product_gradients(float (&products)[1][S::groups][4], const float (&gradients)[S::groups][4],
                                           int j, Take take) const {
        multiply_index(products, j);
#pragma unroll
        for (int n = 0; n < 2 * S::groups; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float &x = products[0][n / 2][2 * half + n % 2];
                const float gradient = gradients[n / 2][2 * half + n % 2];
                take(half, gradient * fmaxf(x * p.score_scale, 0.0f));
                x = x > 0.0f ? a_of(query_of(half, n), j) * gradient * p.score_scale : 0.0f;
            }
    }
    /* sums of the n-th head of this launch += weights · the gathered rows that multiply has left. */
    __device__ void add_rows(const float (&weights)[1][S::groups][4], int n) const {
        const int padded = learn_padded(p.index_width);
        for (int c = 0; c < padded; c += learn_chunk) {
            float part[1][learn_chunk / 8][4];
            clear_sums(part);
            product::template weights_by_rows<1, S::groups, learn_chunk, S::stride>(part, weights, memory.other + c);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float *to = memory.sums + (n * learn_own + 8 * half + lane_row()) * padded + c + lane_column();
#pragma unroll
                for (int group = 0; group < learn_chunk / 8; group++)
#pragma unroll
                    for (int odd = 0; odd < 2; odd++) to[group * 8 + odd] += part[0][group][2 * half + odd];
            }
        }
    }
};

/* Rows of `to`, from the block's warps' sums in their order. By all threads, after a barrier. */
template <class S>
__device__ inline void store_gradients(const learn_problem &p, const learn_memory<S> &memory, const attention_view &to,
                                       int64_t b, int64_t first_head, int first) {
    using T = typename S::real;
    const int padded = learn_padded(p.index_width), each = p.head_count * learn_own * padded;
    for (int n = static_cast<int>(threadIdx.x); n < each; n += S::threads) {
        const int column = n % padded, row = n / padded % learn_own, head = n / padded / learn_own;
        if (column >= p.index_width || first + row >= p.sets.length) continue;
        float sum = memory.all_sums[n];
        for (int w = 1; w < S::warps; w++) sum += memory.all_sums[w * each + n];
        attention_rows<T>(to, b, first_head + head)[(first + row) * to.token + column] = from_float<T>(sum);
    }
}

/* Heads whose sums fit into a block's shared memory, 1 at least. */
template <class S> int learn_heads_at_once(int heads, int index_width) {
    constexpr size_t room = size_t{160} << 10;
    int most = 1;
    while (most < heads && learn_memory<S>::bytes(most + 1, index_width) <= room) most++;
    return most;
}

/* body(shape) with rows in shared memory as wide as the wider of D and E. */
template <class Body> enum status with_learn_shape(const struct ops *ops, const learn_problem &p, Body body) {
    return with_real(ops, [&](auto real) {
        return with_padded_width(max(p.width, p.index_width), [&](auto width) {
            return body(typename learn_shape_of<decltype(real), decltype(width)::value>::shape{});
        });
    });
}

/* d_u: index_learn_keys.cu. */
enum status learn_keys(const struct ops *ops, const learn_problem &p, int64_t batch);

#endif
