/* Learning to choose blocks: the teacher's attention summed over selection blocks, the importance that compressed
 * scores give them, and the loss of one against the other, a bounded chunk of queries at a time. */
#include "kernels/cuda/block_mass.cuh"

namespace {

constexpr int loss_threads = 128;
constexpr int sum_blocks = 256;              /* partial sums of the loss */
constexpr size_t budget = size_t{256} << 20; /* bytes of a chunk's rows */

struct mass_arguments {
    mass_problem p;
    mass_chunk chunk;
    int splits; /* thread blocks that divide the keys of a tile of queries among themselves */
};

/* The pieces of S::columns keys of selection blocks block … end − 1, one after the other. */
struct key_pieces {
    int block, end;
    int first, count, key; /* the block's first token, how many it has, the piece's first of these */
};
__device__ void open_block(const mass_problem &p, int64_t b, key_pieces &piece) {
    if (piece.block >= piece.end) return;
    piece.first = p.selection.first[b * p.selection.bound + piece.block];
    piece.count = min(p.block, p.selection.end[b * p.length + piece.first] - piece.first);
    piece.key = 0;
}
__device__ key_pieces next_piece(const mass_problem &p, int64_t b, key_pieces piece, int columns) {
    piece.key += columns;
    if (piece.key < piece.count) return piece;
    piece.block++;
    open_block(p, b, piece);
    return piece;
}

/* The teacher's weights of one head, summed over each selection block: += to masses. A thread block: a share of the
 * keys of a tile of queries of one list, head after head. Shared memory: queries [rows][stride], two stages of keys
 * [columns][stride]. */
template <class S> __global__ void __launch_bounds__(S::threads) add_masses(mass_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const mass_problem &p = g.p;
    const int64_t tiles_first = blockIdx.x / g.splits;
    const int split = static_cast<int>(blockIdx.x) % g.splits;
    const mass_place at = place_mass<S::rows>(p, g.chunk, 1, tiles_first);
    SHARED(mass_query, rows, [S::rows]);
    if (threadIdx.x < S::rows)
        rows[threadIdx.x] = find_query(p, at.b, at.first + static_cast<int>(threadIdx.x), at.end);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *tiles = cutter.take<T>(2 * S::columns * S::stride);
    __syncthreads(); /* the rows are there for all */
    const mass_query last = rows[at.end - 1 - at.first];
    const int64_t blocks = last.selection + (at.end - 1 - last.begin) / p.block + 1 - rows[0].selection;
    const int own = warp_number() * S::tiles * 16;
    for (int head = at.head; head < at.head + p.together; head++) {
        const int group = head / (p.heads / p.groups);
        const T *k = attention_rows<const T>(p.teacher_k, at.b, group);
        const auto load = [&](const key_pieces &piece, int stage) {
            load_rows<S::columns, S::width, S::stride, S::threads>(
                tiles + stage * S::columns * S::stride, k, p.teacher_k.token, piece.first + piece.key,
                piece.first + piece.count, p.width, p.teacher_k.vector);
        };
        load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.teacher_q, at.b, head),
                                                            p.teacher_q.token, at.first, at.end, p.width,
                                                            p.teacher_q.vector);
        const typename product::template left<S::tiles, S::width, S::stride, false> of_q(queries + own * S::stride);
        float z[S::tiles][2], sum[S::tiles][2];
#pragma unroll
        for (int n = 0; n < 2 * S::tiles; n++) {
            const int i = at.first + own + n * 8 + lane_row();
            z[n / 2][n % 2] = i < at.end ? log2_of_e * p.teacher_sums[(at.b * p.heads + head) * p.length + i] : 0.0f;
            sum[n / 2][n % 2] = 0.0f;
        }
        key_pieces piece = {rows[0].selection + static_cast<int>(blocks * split / g.splits),
                            rows[0].selection + static_cast<int>(blocks * (split + 1) / g.splits), 0, 0, 0};
        open_block(p, at.b, piece);
        if (piece.block < piece.end) load(piece, 0);
        copy_async_commit();
        for (int stage = 0; piece.block < piece.end; stage ^= 1) {
            const key_pieces after = next_piece(p, at.b, piece, S::columns);
            if (after.block < after.end) load(after, stage ^ 1);
            copy_async_commit();
            copy_async_wait<1>();
            __syncthreads(); /* this piece, and the queries, are there for all */
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(scores, of_q, tiles + stage * S::columns * S::stride);
#pragma unroll
            for (int n = 0; n < 2 * S::tiles; n++) {
                const int r = own + n * 8 + lane_row(), i = at.first + r;
                const mass_query row = rows[r];
                const bool reads = piece.first >= row.begin && piece.first <= i;
                /* of the piece's keys this row reads those before `keys` */
                const int keys = reads ? min(piece.count, i - piece.first + 1) - piece.key : 0;
                float part = 0.0f;
#pragma unroll
                for (int e = 0; e < 2 * S::groups; e++) {
                    const float weight =
                        exp2_quick(scores[n / 2][e / 2][n % 2 * 2 + e % 2] * p.scale_log2 - z[n / 2][n % 2]);
                    part += e / 2 * 8 + lane_column() + e % 2 < keys ? weight : 0.0f;
                }
                sum[n / 2][n % 2] += part;
                if (after.block == piece.block) continue;
                const float all = quad_sum(sum[n / 2][n % 2]);
                sum[n / 2][n % 2] = 0.0f;
                if (threadIdx.x % 4 == 0 && reads)
                    g.chunk.masses[(static_cast<int64_t>(at.pair) * g.chunk.rows + i - g.chunk.first) * p.pitch +
                                   piece.block - row.selection] += all;
            }
            __syncthreads(); /* nobody reads the piece any more */
            piece = after;
        }
        copy_async_wait<0>();
        __syncthreads(); /* nobody reads the queries any more */
    }
}

/* importance += weights of a tile's compressed blocks, spread over the selection blocks that each covers. weights
 * [rows][columns + 1]: of compressed blocks first …; every pair of row and selection block has a thread. */
template <class S>
__device__ void spread_weights(const mass_problem &p, const mass_chunk &chunk, const mass_place &at,
                               const mass_query *rows, const float *weights, int first) {
    const int most = (S::columns + p.overlap - 2) / p.units + 2; /* selection blocks that a tile may touch */
    for (int n = static_cast<int>(threadIdx.x); n < S::rows * most; n += S::threads) {
        const int r = n / most;
        const mass_query row = rows[r];
        const int low = max(0, first - row.coarse), high = min(row.visible, first + S::columns - row.coarse);
        if (low >= high) continue;
        const int block = low / p.units + n % most, begin = block * p.units;
        if (begin > high - 1 + p.overlap - 1) continue;
        float sum = 0.0f;
        for (int u = max(low, begin - p.overlap + 1); u < min(high, begin + p.units); u++) {
            const int strides = min(u + p.overlap, begin + p.units) - max(u, begin);
            sum += static_cast<float>(strides) * weights[r * (S::columns + 1) + row.coarse + u - first];
        }
        chunk.importance[(static_cast<int64_t>(at.pair) * chunk.rows + at.first + r - chunk.first) * p.pitch + block] +=
            sum;
    }
}

/* Importance of a chunk. A thread block: a tile of queries of one list, head after head. Shared memory: queries
 * [rows][stride], compressed keys [columns][stride], weights [rows][columns + 1]. */
template <class S> __global__ void __launch_bounds__(S::threads) add_importance(mass_arguments g) {
    using T = typename S::real;
    using product = warp_product<T>;
    const mass_problem &p = g.p;
    const mass_place at = place_mass<S::rows>(p, g.chunk, 1, blockIdx.x);
    SHARED(mass_query, rows, [S::rows]);
    if (threadIdx.x < S::rows)
        rows[threadIdx.x] = find_query(p, at.b, at.first + static_cast<int>(threadIdx.x), at.end);
    shared_cutter cutter = {shared_memory()};
    T *queries = cutter.take<T>(S::rows * S::stride), *keys = cutter.take<T>(S::columns * S::stride);
    float *weights = cutter.take<float>(S::rows * (S::columns + 1));
    __syncthreads(); /* the rows are there for all */
    const mass_query last = rows[at.end - 1 - at.first];
    const int end = last.coarse + last.visible, own = warp_number() * S::tiles * 16;
    for (int head = at.head; head < at.head + p.together; head++) {
        load_rows<S::rows, S::width, S::stride, S::threads>(queries, attention_rows<const T>(p.own_q, at.b, head),
                                                            p.own_q.token, at.first, at.end, p.width, p.own_q.vector);
        for (int first = rows[0].coarse; first < end; first += S::columns) {
            load_rows<S::columns, S::width, S::stride, S::threads>(
                keys, attention_rows<const T>(p.compressed, at.b, head / (p.heads / p.groups)), p.compressed.token,
                first, end, p.width, p.compressed.vector);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads(); /* queries and keys are there for all, and the weights before are read */
            float scores[S::tiles][S::groups][4];
            clear_sums(scores);
            product::rows_by_rows(
                scores,
                typename product::template left<S::tiles, S::width, S::stride, false>(queries + own * S::stride), keys);
#pragma unroll
            for (int n = 0; n < 2 * S::tiles; n++) {
                const int r = own + n * 8 + lane_row(), i = at.first + r;
                const mass_query row = rows[r];
                const float z = i < at.end ? log2_of_e * p.log_sums[(at.b * p.heads + head) * p.length + i] : 0.0f;
#pragma unroll
                for (int e = 0; e < 2 * S::groups; e++) {
                    const int column = e / 2 * 8 + lane_column() + e % 2, u = first + column - row.coarse;
                    const float weight = exp2_quick(scores[n / 2][e / 2][n % 2 * 2 + e % 2] * p.scale_log2 - z);
                    weights[r * (S::columns + 1) + column] = u >= 0 && u < row.visible ? weight : 0.0f;
                }
            }
            __syncthreads(); /* the weights are there for all */
            spread_weights<S>(p, g.chunk, at, rows, weights, first);
        }
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads(); /* nobody reads the queries any more */
    }
}

/* Losses of a chunk; importance becomes its gradient. A warp: a query of a list. */
__global__ void __launch_bounds__(loss_threads) find_losses(mass_arguments g) {
    const mass_problem &p = g.p;
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int64_t count = static_cast<int64_t>(g.chunk.pairs) * g.chunk.rows;
    const float total = static_cast<float>(p.together) * static_cast<float>(p.overlap); /* of the importance */
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * (loss_threads / 32) + threadIdx.x / 32; n < count;
         n += static_cast<int64_t>(gridDim.x) * (loss_threads / 32)) {
        const int64_t pair = g.chunk.first_pair + n / g.chunk.rows;
        const int i = g.chunk.first + static_cast<int>(n % g.chunk.rows);
        const int known = known_blocks(p, find_query(p, pair / p.lists, i, p.length).visible);
        const float *masses = g.chunk.masses + n * p.pitch;
        float *importance = g.chunk.importance + n * p.pitch, sum = 0.0f, loss = 0.0f;
        for (int k = lane; k < known; k += 32) sum += masses[k];
        sum = warp_sum(sum);
        for (int k = lane; k < known; k += 32) {
            const float mass = sum > 0.0f ? masses[k] / sum : 0.0f, own = importance[k] / total + 1e-9f;
            if (mass > 0.0f) loss += mass * (logf(mass) - logf(own));
            importance[k] = -mass / (own * total);
        }
        loss = warp_sum(loss);
        if (lane == 0) p.losses[pair * p.length + i] = loss;
    }
}

/* partial[block] = the sum of its losses. */
__global__ void __launch_bounds__(256) sum_losses(const float *losses, int64_t count, double *partial) {
    double sum = 0;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < count; n += int64_t{sum_blocks} * 256)
        sum += static_cast<double>(losses[n]);
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
__global__ void __launch_bounds__(sum_blocks) add_loss(const double *partial, double weight, double *loss) {
    const double sum = block_sum<sum_blocks>(partial[threadIdx.x]);
    if (threadIdx.x == 0) loss[0] += weight * sum;
}

size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* The teacher's scores as a problem of attention: every earlier token of the document, and no coefficient that lives,
 * for the sums of dead candidates are what attention_sums gives. zeros [1] f32. */
struct attention teacher_of(const struct block_mass *a, void *zeros) {
    struct attention teacher = {};
    teacher.q = teacher.o = a->teacher_q;
    teacher.k = teacher.v = a->teacher_k;
    teacher.start = a->start;
    teacher.coefficients = tensor_2d(zeros, DTYPE_F32, a->teacher_q.shape[2], 1);
    teacher.coefficients.stride[0] = 0;
    teacher.candidates[0] = candidate{CANDIDATE_FULL, 0, 0};
    teacher.count = 1;
    teacher.causal = true;
    teacher.scale = a->scale;
    return teacher;
}

enum status describe(const struct block_mass *a, mass_problem *p) {
    const int64_t length = a->own_q.shape[1], width = a->own_q.shape[3], most = length > 1 ? length : 1;
    if (width > 256)
        return error_set(STATUS_SHAPE, "block_mass: own_q: expected a head width up to 256, found %lld",
                         static_cast<long long>(width));
    if (length > INT_MAX / 2)
        return error_set(STATUS_SHAPE, "block_mass: own_q: expected up to %d tokens, found %lld", INT_MAX / 2,
                         static_cast<long long>(length));
    *p = mass_problem{};
    p->teacher_q = attention_view_of(a->teacher_q);
    p->teacher_k = attention_view_of(a->teacher_k);
    p->own_q = attention_view_of(a->own_q);
    p->compressed = attention_view_of(a->compressed);
    if (tensor_present(a->d_own_q)) p->d_own_q = attention_view_of(a->d_own_q);
    p->log_sums = data_of<const float>(a->log_sums);
    p->losses = data_of<float>(a->losses);
    p->batch = a->own_q.shape[0];
    p->length = static_cast<int>(length);
    p->heads = static_cast<int>(a->own_q.shape[2]);
    p->groups = static_cast<int>(a->compressed.shape[2]);
    p->together = a->select_group;
    p->lists = p->heads / a->select_group;
    p->width = static_cast<int>(width);
    p->places = a->compressed.shape[1];
    p->compress = static_cast<int>(a->compress < most + 1 ? a->compress : most + 1); /* such are nowhere whole */
    p->stride = a->stride;
    p->block = static_cast<int>(a->block < most ? a->block : most); /* a longer block holds no more */
    p->overlap = p->compress / a->stride;
    p->units = a->block / a->stride;
    p->pitch = divide_up(most, p->block) + 1;
    p->scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    p->factor = static_cast<float>(a->scale * a->gradient_scale);
    return STATUS_OK;
}

mass_chunk chunk_most(const struct ops *ops, const mass_problem &p) {
    mass_chunk chunk = {};
    const int64_t row = 2 * p.pitch + p.together, room = static_cast<int64_t>(budget / sizeof(float)) / row;
    const int64_t busy = static_cast<int64_t>(ops->device->multiprocessors) * 4 * 64; /* tiles of 64 for all */
    const int64_t all = room < busy ? room : busy;
    const int64_t rows = all / 64 * 64, pairs = p.batch * p.lists, at_once = p.length > 0 ? all / p.length : 1;
    chunk.rows = static_cast<int>(rows < 64 ? 64 : rows);
    if (chunk.rows > p.length) chunk.rows = p.length;
    chunk.pairs = static_cast<int>(at_once < 1 ? 1 : at_once < pairs ? at_once : pairs);
    return chunk;
}

/* Scratch memory; NULL: only its size. */
struct mass_memory {
    char *plan, *selection, *coarse, *numbers, *inner;
    float *zeros, *teacher_sums, *d_compressed;
    double *partial;
};
size_t place_memory(const struct block_mass *a, const mass_problem &p, const mass_chunk &most, char *memory,
                    mass_memory *m) {
    size_t used = 0;
    const auto take = [&](size_t bytes) {
        char *at = memory + used;
        used += padded(bytes);
        return at;
    };
    const struct attention teacher = teacher_of(a, nullptr);
    const size_t rows = static_cast<size_t>(most.pairs) * static_cast<size_t>(most.rows);
    m->plan = take(attention_plan_bytes(&teacher));
    m->selection = take(document_blocks_bytes(p.batch, p.length, p.block, p.block, true));
    m->coarse = take(document_blocks_bytes(p.batch, p.length, p.compress, p.stride, false));
    m->zeros = reinterpret_cast<float *>(take(sizeof(float)));
    m->teacher_sums = reinterpret_cast<float *>(
        take(static_cast<size_t>(p.batch * p.heads) * static_cast<size_t>(p.length) * sizeof(float)));
    m->numbers = take(2 * rows * static_cast<size_t>(p.pitch) * sizeof(float));
    m->inner = take(rows * static_cast<size_t>(p.together) * sizeof(float));
    m->partial = reinterpret_cast<double *>(take(sum_blocks * sizeof(double)));
    m->d_compressed = reinterpret_cast<float *>(
        take(tensor_present(a->d_compressed) ? static_cast<size_t>(tensor_count(a->compressed)) * sizeof(float) : 0));
    return used;
}

template <class S> enum status run_chunk(const struct ops *ops, const mass_problem &p, const mass_chunk &chunk) {
    using T = typename S::real;
    const char *operation = "block_mass";
    mass_arguments g = {};
    g.p = p;
    g.chunk = chunk;
    const int64_t rows = static_cast<int64_t>(chunk.pairs) * chunk.rows;
    const int64_t tiles = static_cast<int64_t>(chunk.pairs) * divide_up(chunk.rows, S::rows);
    const int64_t wanted = divide_up(static_cast<int64_t>(ops->device->multiprocessors) * 8, tiles);
    g.splits = static_cast<int>(wanted < p.pitch ? wanted : p.pitch);
    CUDA_TRY(
        cudaMemsetAsync(chunk.masses, 0, static_cast<size_t>(2 * rows * p.pitch) * sizeof(float), ops->device->stream));
    constexpr size_t tile = S::columns * S::stride * sizeof(T), queries = S::rows * S::stride * sizeof(T);
    TRY(device_launch(ops, operation, add_masses<S>, grid_over(tiles * g.splits, 1), S::threads, queries + 2 * tile,
                      g));
    TRY(device_launch(ops, operation, add_importance<S>, grid_over(tiles, 1), S::threads,
                      queries + tile + S::rows * (S::columns + 1) * sizeof(float), g));
    TRY(device_launch(ops, operation, find_losses, grid_over(rows, loss_threads / 32), loss_threads, 0, g));
    return mass_gradients(ops, p, chunk);
}

enum status run_chunks(const struct ops *ops, const mass_problem &p, const mass_chunk &most) {
    for (int64_t pair = 0; pair < p.batch * p.lists; pair += most.pairs)
        for (int first = 0; first < p.length; first += most.rows) {
            mass_chunk chunk = most;
            chunk.first_pair = pair;
            chunk.first = first;
            if (chunk.pairs > p.batch * p.lists - pair) chunk.pairs = static_cast<int>(p.batch * p.lists - pair);
            if (chunk.rows > p.length - first) chunk.rows = p.length - first;
            chunk.importance = chunk.masses + static_cast<int64_t>(chunk.pairs) * chunk.rows * p.pitch;
            TRY(with_real(ops, [&](auto real) {
                return with_padded_width(p.width, [&](auto width) {
                    using S = typename mass_shape<decltype(real), decltype(width)::value>::shape;
                    return run_chunk<S>(ops, p, chunk);
                });
            }));
        }
    return STATUS_OK;
}

} // namespace

enum status cuda_block_mass(const struct ops *ops, const struct block_mass *a) {
    const char *operation = "block_mass";
    TRY(check_block_mass(ops, a));
    mass_problem p;
    TRY(describe(a, &p));
    mass_chunk most = chunk_most(ops, p);
    mass_memory m;
    void *block;
    TRY(device_scratch(ops, place_memory(a, p, most, nullptr, &m), &block));
    place_memory(a, p, most, static_cast<char *>(block), &m);
    const struct attention teacher = teacher_of(a, m.zeros);
    attention_problem of_teacher;
    CUDA_TRY(cudaMemsetAsync(m.zeros, 0, sizeof(float), ops->device->stream));
    TRY(attention_plan(ops, operation, &teacher, m.plan, &of_teacher));
    TRY(attention_sums(ops, of_teacher, p.batch, true, m.teacher_sums));
    TRY(document_blocks_find(ops, operation, a->start, p.block, p.block, true, m.selection, &p.selection));
    TRY(document_blocks_find(ops, operation, a->start, p.compress, p.stride, false, m.coarse, &p.coarse));
    p.teacher_sums = m.teacher_sums;
    if (tensor_present(a->d_compressed)) {
        p.d_compressed = m.d_compressed;
        CUDA_TRY(cudaMemsetAsync(m.d_compressed, 0, static_cast<size_t>(tensor_count(a->compressed)) * sizeof(float),
                                 ops->device->stream));
    }
    most.masses = reinterpret_cast<float *>(m.numbers);
    most.inner = reinterpret_cast<float *>(m.inner);
    TRY(run_chunks(ops, p, most));
    if (p.d_compressed) TRY(mass_finish(ops, p, a->d_compressed));
    if (!tensor_present(a->loss)) return STATUS_OK;
    TRY(device_launch(ops, operation, sum_losses, dim3(sum_blocks), 256, 0, p.losses, tensor_count(a->losses),
                      m.partial));
    return device_launch(ops, operation, add_loss, dim3(1), sum_blocks, 0, m.partial, a->weight,
                         data_of<double>(a->loss));
}
