/* Compression of blocks of keys or values, both ways. A row is one block of one key head. Rows are gathered in pieces
 * of bounded size over all places that a sequence can have: where its documents lie, and so how many blocks they hold,
 * only the device knows. A place without a block is a row of zeros, whose outputs are cleared and whose gradient is not
 * looked at. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/documents.cuh"
#include "kernels/cuda/rows.cuh"

#include <initializer_list>

namespace {

constexpr int threads = 256;
#ifdef SQUINT_SIMT
constexpr int64_t piece_elements = 1 << 12; /* of gathered rows: tests have several pieces */
#else
constexpr int64_t piece_elements = 1 << 25;
#endif
constexpr int chunk = 256; /* rows of a partial sum */

struct compress_arguments {
    document_blocks blocks;
    attention_view x;   /* backward: dx */
    int64_t place, end; /* the piece: places (of all sequences, one after the other) place … end − 1 */
    int64_t places;     /* B·Nb */
    int groups, width;
};

__device__ int64_t first_index() {
    return static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
}
__device__ int64_t index_step() {
    return static_cast<int64_t>(gridDim.x) * threads;
}

__device__ float gelu(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}
/* With u = √(2/π)·(x + 0.044715 x³), gelu(x) = x·sigmoid(2u). */
__device__ float gelu_slope(float x) {
    const float square = x * x;
    const float s = 1.0f / (1.0f + expf(-x * (1.5957691216057308f + 0.071354816272600252f * square)));
    return s + x * (1.5957691216057308f + 0.21406444881780076f * square) * (s * (1.0f - s));
}

/* rows [piece,l·D] = x_r + places_r. A thread: W elements. */
template <class T, int W>
__global__ void __launch_bounds__(threads) gather_rows(compress_arguments a, const T *places, T *rows) {
    const int packs = a.width / W, compress = a.blocks.width;
    const int64_t count = (a.end - a.place) * a.groups * compress * packs;
    for (int64_t n = first_index(); n < count; n += index_step()) {
        const int d = static_cast<int>(n % packs) * W;
        const int64_t row = n / packs / compress, place = a.place + row / a.groups;
        const int r = static_cast<int>(n / packs % compress), first = a.blocks.first[place];
        float sum[W] = {}, added[W];
        if (first >= 0) {
            load_pack(attention_rows<const T>(a.x, place / a.blocks.bound, row % a.groups) + (first + r) * a.x.token +
                          d,
                      sum);
            load_pack(places + static_cast<int64_t>(r) * a.width + d, added);
#pragma unroll
            for (int e = 0; e < W; e++) sum[e] += added[e];
        }
        store_pack(rows + n * W, sum);
    }
}

/* out = sums + mean_r x_r, 0 where there is no block; pre = 0 there. sums [piece,D]; out, pre: the tensors. A thread: W
 * elements of out. */
template <class T, int W>
__global__ void __launch_bounds__(threads) add_means(compress_arguments a, const float *sums, T *out, T *pre) {
    const int packs = a.width / W, compress = a.blocks.width;
    const int64_t count = (a.end - a.place) * a.groups * packs;
    const float share = 1.0f / static_cast<float>(compress);
    for (int64_t n = first_index(); n < count; n += index_step()) {
        const int d = static_cast<int>(n % packs) * W;
        const int64_t row = n / packs, place = a.place + row / a.groups;
        const int first = a.blocks.first[place];
        const int64_t at = (a.place * a.groups + row) * a.width + d;
        float mean[W] = {};
        if (first < 0) {
            store_pack(out + at, mean);
            store_pack(pre + (a.place * a.groups + row) * 2 * a.width + d, mean);
            store_pack(pre + (a.place * a.groups + row) * 2 * a.width + a.width + d, mean);
            continue;
        }
        const T *x = attention_rows<const T>(a.x, place / a.blocks.bound, row % a.groups) + first * a.x.token + d;
        for (int r = 0; r < compress; r++) {
            float element[W];
            load_pack(x + r * a.x.token, element);
#pragma unroll
            for (int e = 0; e < W; e++) mean[e] += element[e];
        }
#pragma unroll
        for (int e = 0; e < W; e++) mean[e] = share * mean[e] + sums[row * a.width + d + e];
        store_pack(out + at, mean);
    }
}

/* d_rows [piece,D] = d_out, 0 where there is no block; hidden [piece,2D] = gelu(pre). */
template <class T>
__global__ void __launch_bounds__(threads)
    open_backward(compress_arguments a, const T *d_out, const T *pre, T *d_rows, T *hidden) {
    const int64_t wide = 2 * static_cast<int64_t>(a.width), count = (a.end - a.place) * a.groups * wide;
    for (int64_t n = first_index(); n < count; n += index_step()) {
        const int64_t row = n / wide, d = n % wide, at = a.place * a.groups + row;
        hidden[n] = from_float<T>(gelu(to_float(pre[at * wide + d])));
        if (d >= a.width) continue;
        const bool there = a.blocks.first[a.place + row / a.groups] >= 0;
        d_rows[row * a.width + d] = there ? d_out[at * a.width + d] : from_float<T>(0.0f);
    }
}

/* hidden [n] = gradient · gelu'(pre). */
template <class T>
__global__ void __launch_bounds__(threads) through_gelu(const float *gradient, const T *pre, T *hidden, int64_t count) {
    for (int64_t n = first_index(); n < count; n += index_step())
        hidden[n] = from_float<T>(gradient[n] * gelu_slope(to_float(pre[n])));
}

/* partial [block][columns] = sums of `chunk` rows of x [rows,columns], in ascending order. A block: a chunk, and the
 * columns threadIdx.x, + threads, … */
template <class T>
__global__ void __launch_bounds__(threads) sum_columns(const T *x, int64_t rows, int columns, float *partial) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * chunk;
    const int64_t end = min(first + chunk, rows);
    for (int c = static_cast<int>(threadIdx.x); c < columns; c += threads) {
        float sum = 0.0f;
        for (int64_t row = first; row < end; row++) sum += to_float(x[row * columns + c]);
        partial[blockIdx.x * static_cast<int64_t>(columns) + c] = sum;
    }
}

/* sums [columns] = Σ partial [chunks][columns]; db1 [columns] += sums, when there. A block: a column. */
__global__ void __launch_bounds__(threads)
    join_columns(const float *partial, int64_t chunks, int columns, float *sums, float *db1) {
    float sum = 0.0f;
    for (int64_t n = threadIdx.x; n < chunks; n += threads) sum += partial[n * columns + blockIdx.x];
    sum = block_sum<threads>(sum);
    if (threadIdx.x != 0) return;
    sums[blockIdx.x] = sum;
    if (db1) db1[blockIdx.x] += sum;
}

/* dplaces [n] += Σ_j sums_j · w1 [j][n]: what reaches all rows together. */
template <class T>
__global__ void __launch_bounds__(threads)
    add_places(const float *sums, const T *w1, int rows, int64_t columns, float *dplaces) {
    for (int64_t n = first_index(); n < columns; n += index_step()) {
        float sum = 0.0f;
        for (int j = 0; j < rows; j++) sum += sums[j] * to_float(w1[j * columns + n]);
        dplaces[n] += sum;
    }
}

/* dx += what reaches a token through the piece's rows, and through their means. A token belongs to the last block that
 * holds it: the first `stride` tokens of a block are its own, and of a document's last block all. Others that hold it
 * are the places before. A thread: W elements. gathered [piece,l·D], d_rows [piece,D]. */
template <class T, int W>
__global__ void __launch_bounds__(threads) scatter_rows(compress_arguments a, const T *gathered, const T *d_rows) {
    const int packs = a.width / W, compress = a.blocks.width, overlap = compress / a.blocks.stride;
    const int64_t all = (a.end - a.place + overlap - 1) * compress * a.groups * packs;
    const float share = 1.0f / static_cast<float>(compress);
    for (int64_t n = first_index(); n < all; n += index_step()) {
        const int d = static_cast<int>(n % packs) * W;
        const int64_t group = n / packs % a.groups, place = a.place + n / packs / a.groups / compress;
        const int r = static_cast<int>(n / packs / a.groups % compress);
        const int64_t b = place / a.blocks.bound, sequence = b * a.blocks.bound;
        if (place >= a.places) continue;
        const int32_t *firsts = a.blocks.first + sequence;
        const int c = static_cast<int>(place - sequence), first = firsts[c];
        if (first < 0) continue;
        const bool last = c + 1 == a.blocks.bound || firsts[c + 1] != first + a.blocks.stride;
        if (r >= a.blocks.stride && !last) continue;
        float sum[W] = {};
        bool reached = false;
        for (int k = c; k >= 0 && c - k < overlap && first + r - firsts[k] < compress; k--) {
            if (sequence + k < a.place || sequence + k >= a.end) continue;
            const int64_t row = (sequence + k - a.place) * a.groups + group;
            float through_row[W], through_mean[W];
            load_pack(gathered + (row * compress + first + r - firsts[k]) * a.width + d, through_row);
            load_pack(d_rows + row * a.width + d, through_mean);
#pragma unroll
            for (int e = 0; e < W; e++) sum[e] += through_row[e] + share * through_mean[e];
            reached = true;
        }
        if (!reached) continue;
        T *to = attention_rows<T>(a.x, b, group) + (first + r) * a.x.token + d;
        float before[W];
        load_pack(to, before);
#pragma unroll
        for (int e = 0; e < W; e++) before[e] += sum[e];
        store_pack(to, before);
    }
}

/* Scratch memory, cut up. */
struct compress_memory {
    char *blocks;
    void *rows, *hidden, *d_rows; /* of a piece: [l·D], [2D], [D], activations */
    float *wide;                  /* of a piece: [2D] */
    float *partial, *sums;        /* of all pieces: [chunks][2D]; [2D] */
};

/* Both passes' work: what it reads, pieces of `most` places. */
struct compress_work {
    compress_arguments a;
    compress_memory memory;
    int64_t most;
    enum dtype real;
};

int64_t columns_of(const struct block_compress *a) {
    return a->compress * a->x.shape[3];
}

/* Cuts `memory` (NULL: only sizes); returns its bytes. */
size_t place_work(compress_work *w, const struct block_compress *a, bool backward, char *memory) {
    const int64_t rows = w->most * w->a.groups, width = w->a.width;
    const int64_t pieces = w->most ? divide_up(w->a.places, w->most) : 0;
    size_t used = 0;
    const auto take = [&](int64_t count, size_t size) {
        char *at = memory ? memory + used : nullptr;
        used += (static_cast<size_t>(count) * size + 255) / 256 * 256;
        return at;
    };
    const size_t real = dtype_size(w->real);
    w->memory.blocks = take(
        static_cast<int64_t>(document_blocks_bytes(a->x.shape[0], a->x.shape[1], a->compress, a->stride, false)), 1);
    w->memory.rows = take(rows * columns_of(a), real);
    w->memory.hidden = take(rows * 2 * width, real);
    w->memory.wide = reinterpret_cast<float *>(take(rows * 2 * width, sizeof(float)));
    if (!backward) return used;
    w->memory.d_rows = take(rows * width, real);
    w->memory.partial = reinterpret_cast<float *>(take(pieces * divide_up(rows, chunk) * 2 * width, sizeof(float)));
    w->memory.sums = reinterpret_cast<float *>(take(2 * width, sizeof(float)));
    return used;
}

enum status open_work(const struct ops *ops, const char *operation, const struct block_compress *a, bool backward,
                      compress_work *w) {
    *w = compress_work{};
    if (a->x.shape[1] > INT_MAX / 2 || columns_of(a) > INT_MAX / 2 || a->x.shape[2] > INT_MAX)
        return error_set(STATUS_SHAPE, "%s: x: expected up to %d tokens and elements of a block, found %lld and %lld",
                         operation, INT_MAX / 2, static_cast<long long>(a->x.shape[1]),
                         static_cast<long long>(columns_of(a)));
    w->real = ops->real;
    w->a.groups = static_cast<int>(a->x.shape[2]);
    w->a.width = static_cast<int>(a->x.shape[3]);
    w->a.places = a->out.shape[0] * a->out.shape[1];
    w->a.x = attention_view_of(a->x);
    const int64_t each = columns_of(a) * w->a.groups, fit = piece_elements / (each ? each : 1);
    w->most = fit < 1 ? 1 : fit < w->a.places ? fit : w->a.places;
    void *memory;
    TRY(device_scratch(ops, place_work(w, a, backward, nullptr), &memory));
    place_work(w, a, backward, static_cast<char *>(memory));
    return document_blocks_find(ops, operation, a->start, a->compress, a->stride, false, w->memory.blocks,
                                &w->a.blocks);
}

/* Whether rows of `view`, and of all tensors' `width` elements, begin at multiples of 16 bytes. */
template <class T>
bool rows_packed(const attention_view &view, int width, std::initializer_list<struct tensor> tensors) {
    bool packed = view.vector;
    for (const struct tensor &t : tensors) packed = packed && in_packs(data_of<const T>(t), width);
    return packed;
}

/* Rows of a piece of a tensor [B,Nb,G,D]. */
struct tensor piece_of(const compress_work &w, struct tensor t) {
    const int64_t width = t.shape[3], first = w.a.place * w.a.groups;
    char *data = static_cast<char *>(t.data) + static_cast<size_t>(first * width) * dtype_size(t.dtype);
    return tensor_2d(data, t.dtype, (w.a.end - w.a.place) * w.a.groups, width);
}

/* body() for every piece, w's place and end set. */
template <class Body> enum status for_pieces(compress_work &w, Body body) {
    for (w.a.place = 0; w.a.place < w.a.places; w.a.place = w.a.end) {
        w.a.end = w.a.place + w.most < w.a.places ? w.a.place + w.most : w.a.places;
        TRY(body());
    }
    return STATUS_OK;
}

template <class T>
enum status gather(const struct ops *ops, const char *operation, const compress_work &w,
                   const struct block_compress *a) {
    compress_arguments arguments = w.a;
    arguments.x = attention_view_of(a->x);
    const bool packed = rows_packed<T>(arguments.x, w.a.width, {a->places});
    return with_width<T>(packed, [&](auto pack) {
        constexpr int W = decltype(pack)::value;
        const int64_t count = (w.a.end - w.a.place) * w.a.groups * (columns_of(a) / W);
        return device_launch(ops, operation, gather_rows<T, W>, grid_over(count, threads), threads, 0, arguments,
                             data_of<const T>(a->places), static_cast<T *>(w.memory.rows));
    });
}

template <class T>
enum status compress_pieces(const struct ops *ops, compress_work &w, const struct block_compress *a) {
    const bool packed = rows_packed<T>(w.a.x, w.a.width, {a->out, a->pre});
    return for_pieces(
        w, [&]() -> enum status {
            const int64_t rows = (w.a.end - w.a.place) * w.a.groups, width = w.a.width;
            TRY(gather<T>(ops, "block_compress", w, a));
            struct gemm up = {};
            up.a = tensor_2d(w.memory.rows, ops->real, rows, columns_of(a));
            up.b = a->w1;
            up.transpose_b = true;
            up.alpha = 1;
            up.c = tensor_2d(w.memory.hidden, ops->real, rows, 2 * width);
            up.bias = a->b1;
            up.pre = piece_of(w, a->pre);
            up.activation = ACTIVATION_GELU;
            TRY(cuda_gemm(ops, &up));
            struct gemm down = {};
            down.a = up.c;
            down.b = a->w2;
            down.transpose_b = true;
            down.alpha = 1;
            down.c = tensor_2d(w.memory.wide, DTYPE_F32, rows, width); /* rounded once, with the mean */
            TRY(cuda_gemm(ops, &down));
            return with_width<T>(packed, [&](auto pack) {
                constexpr int W = decltype(pack)::value;
                return device_launch(ops, "block_compress", add_means<T, W>, grid_over(rows * (width / W), threads),
                                     threads, 0, w.a, w.memory.wide, data_of<T>(a->out), data_of<T>(a->pre));
            });
        });
}

/* dw2 += d_outᵀ·gelu(pre); then hidden = (d_out·w2)·gelu'(pre). */
template <class T>
enum status through_hidden(const struct ops *ops, const compress_work &w, const struct block_compress_backward *g) {
    const char *operation = "block_compress_backward";
    const int64_t rows = (w.a.end - w.a.place) * w.a.groups, width = w.a.width;
    T *hidden = static_cast<T *>(w.memory.hidden), *d_rows = static_cast<T *>(w.memory.d_rows);
    TRY(device_launch(ops, operation, open_backward<T>, grid_over(rows * 2 * width, threads), threads, 0, w.a,
                      data_of<const T>(g->d_out), data_of<const T>(g->forward.pre), d_rows, hidden));
    struct gemm weights = {};
    weights.a = tensor_2d(d_rows, ops->real, rows, width);
    weights.b = tensor_2d(hidden, ops->real, rows, 2 * width);
    weights.c = g->dw2;
    weights.transpose_a = weights.accumulate = true;
    weights.alpha = 1;
    if (tensor_present(g->dw2)) TRY(cuda_gemm(ops, &weights));
    struct gemm back = {};
    back.a = weights.a;
    back.b = g->forward.w2;
    back.c = tensor_2d(w.memory.wide, DTYPE_F32, rows, 2 * width);
    back.alpha = 1;
    TRY(cuda_gemm(ops, &back));
    return device_launch(ops, operation, through_gelu<T>, grid_over(rows * 2 * width, threads), threads, 0,
                         w.memory.wide, data_of<const T>(piece_of(w, g->forward.pre)), hidden, rows * 2 * width);
}

/* dw1 += hiddenᵀ·rows; then the rows' memory holds their gradient. */
template <class T>
enum status through_rows(const struct ops *ops, const compress_work &w, const struct block_compress_backward *g) {
    const int64_t rows = (w.a.end - w.a.place) * w.a.groups;
    const struct tensor hidden = tensor_2d(w.memory.hidden, ops->real, rows, 2 * w.a.width),
                        gathered = tensor_2d(w.memory.rows, ops->real, rows, columns_of(&g->forward));
    if (tensor_present(g->dw1)) {
        TRY(gather<T>(ops, "block_compress_backward", w, &g->forward));
        struct gemm weights = {};
        weights.a = hidden;
        weights.b = gathered;
        weights.c = g->dw1;
        weights.transpose_a = weights.accumulate = true;
        weights.alpha = 1;
        TRY(cuda_gemm(ops, &weights));
    }
    struct gemm back = {};
    back.a = hidden;
    back.b = g->forward.w1;
    back.c = gathered;
    back.alpha = 1;
    return cuda_gemm(ops, &back);
}

template <class T>
enum status scatter(const struct ops *ops, const compress_work &w, const struct block_compress_backward *g) {
    const struct block_compress *f = &g->forward;
    return with_width<T>(w.a.x.vector, [&](auto pack) {
        constexpr int W = decltype(pack)::value;
        const int64_t places = w.a.end - w.a.place + f->compress / f->stride - 1;
        return device_launch(ops, "block_compress_backward", scatter_rows<T, W>,
                             grid_over(places * w.a.groups * (columns_of(f) / W), threads), threads, 0, w.a,
                             static_cast<const T *>(w.memory.rows), static_cast<const T *>(w.memory.d_rows));
    });
}

/* db1 and dplaces, from the partial sums of all pieces. */
template <class T>
enum status finish_columns(const struct ops *ops, const compress_work &w, const struct block_compress_backward *g,
                           int64_t chunks) {
    const int wide = 2 * w.a.width;
    const int64_t columns = columns_of(&g->forward);
    TRY(device_launch(ops, "block_compress_backward", join_columns, dim3(static_cast<unsigned>(wide)), threads, 0,
                      w.memory.partial, chunks, wide, w.memory.sums, data_of<float>(g->db1)));
    if (!tensor_present(g->dplaces)) return STATUS_OK;
    return device_launch(ops, "block_compress_backward", add_places<T>, grid_over(columns, threads), threads, 0,
                         w.memory.sums, data_of<const T>(g->forward.w1), wide, columns, data_of<float>(g->dplaces));
}

template <class T>
enum status compress_pieces_backward(const struct ops *ops, compress_work &w, const struct block_compress_backward *g) {
    const bool sums = tensor_present(g->db1) || tensor_present(g->dplaces);
    int64_t chunks = 0;
    TRY(for_pieces(
        w, [&]() -> enum status {
            const int64_t rows = (w.a.end - w.a.place) * w.a.groups, here = divide_up(rows, chunk);
            TRY(through_hidden<T>(ops, w, g));
            if (sums)
                TRY(device_launch(ops, "block_compress_backward", sum_columns<T>, grid_over(here, 1), threads, 0,
                                  static_cast<const T *>(w.memory.hidden), rows, 2 * w.a.width,
                                  w.memory.partial + chunks * 2 * w.a.width));
            chunks += here;
            TRY(through_rows<T>(ops, w, g));
            return scatter<T>(ops, w, g);
        }));
    return sums ? finish_columns<T>(ops, w, g, chunks) : STATUS_OK;
}

} // namespace

enum status cuda_block_compress(const struct ops *ops, const struct block_compress *a) {
    TRY(check_block_compress(ops, a));
    compress_work w;
    TRY(open_work(ops, "block_compress", a, false, &w));
    return with_real(ops, [&](auto real) { return compress_pieces<decltype(real)>(ops, w, a); });
}

enum status cuda_block_compress_backward(const struct ops *ops, const struct block_compress_backward *g) {
    TRY(check_block_compress_backward(ops, g));
    compress_work w;
    TRY(open_work(ops, "block_compress_backward", &g->forward, true, &w));
    w.a.x = attention_view_of(g->dx);
    return with_real(ops, [&](auto real) { return compress_pieces_backward<decltype(real)>(ops, w, g); });
}
