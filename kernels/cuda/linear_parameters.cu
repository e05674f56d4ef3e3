/* Gradients of linear attention's parameters: sums over all rows of a head, aᵀ · b, as partial sums over parts of every
 * slab's rows, added up in fixed order. fp32 throughout. */
#include "kernels/cuda/linear_gradients.cuh"

namespace {

constexpr int product_threads = 256, product_tile = 64, product_depth = 16, product_own = 4;

struct product_arguments {
    parameter_sums s;
    int64_t batch;
    int length, slab_first, slab, row_tiles, column_tiles;
};

/* sums [64 x 64] of one head += rows of one part. Thread t has 4 x 4 of them: rows t / 16 · 4, columns t % 16 · 4. */
template <class T> __global__ void __launch_bounds__(product_threads) add_products(product_arguments g) {
    const parameter_sums &s = g.s;
    SHARED(float, left, [product_depth][product_tile]);
    SHARED(float, right, [product_depth][product_tile]);
    const int column_tile = static_cast<int>(blockIdx.x % g.column_tiles);
    const int row_tile = static_cast<int>(blockIdx.x / g.column_tiles % g.row_tiles);
    const int64_t rest = blockIdx.x / g.column_tiles / g.row_tiles;
    const int head = static_cast<int>(rest % s.heads), part = static_cast<int>(rest / s.heads);
    const int thread = static_cast<int>(threadIdx.x), row = thread / 16 * product_own,
              column = thread % 16 * product_own;
    const int64_t all = g.batch * g.slab, each = (all + s.parts - 1) / s.parts, end = min((part + 1) * each, all);
    float sums[product_own][product_own] = {}, bias[product_own] = {};
    for (int64_t first = part * each; first < end; first += product_depth) {
        for (int n = thread; n < product_depth * product_tile; n += product_threads) {
            const int64_t at = first + n / product_tile, b = at / g.slab, r = at % g.slab;
            const int a_column = row_tile * product_tile + n % product_tile,
                      b_column = column_tile * product_tile + n % product_tile;
            const bool valid = at < end && g.slab_first + r < g.length;
            float x = 0.0f, y = 0.0f;
            if (valid && a_column < s.rows) x = s.a[((b * s.heads + head) * g.slab + r) * s.a_step + a_column];
            if (valid && b_column < s.columns)
                y = to_float(static_cast<const T *>(
                    s.b)[b * s.b_batch + (g.slab_first + r) * s.b_token + head / s.share * s.b_head + b_column]);
            left[n / product_tile][n % product_tile] = x;
            right[n / product_tile][n % product_tile] = y;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < product_depth; k++)
#pragma unroll
            for (int i = 0; i < product_own; i++) {
                const float x = left[k][row + i];
                bias[i] += x;
#pragma unroll
                for (int j = 0; j < product_own; j++) sums[i][j] += x * right[k][column + j];
            }
        __syncthreads(); /* nobody reads the rows any more */
    }
    const int64_t unit = static_cast<int64_t>(part) * s.heads + head;
    for (int i = 0; i < product_own; i++) {
        const int a_column = row_tile * product_tile + row + i;
        if (a_column >= s.rows) break;
        if (s.bias && column_tile == 0 && column == 0) s.bias[unit * s.rows + a_column] += bias[i];
        for (int j = 0; j < product_own; j++) {
            const int b_column = column_tile * product_tile + column + j;
            if (b_column < s.columns) s.sums[(unit * s.rows + a_column) * s.columns + b_column] += sums[i][j];
        }
    }
}

struct finish_arguments {
    parameter_sums s;
    const float *from; /* s.sums or s.bias */
    float *to;
    int64_t to_head, to_row, to_column;
    int targets, together /* heads of the sums in one target */, rows, columns;
    int part_rows,
        part_columns; /* feature row r of the sums is row r / part_rows · part_columns + r % part_rows of `to` */
};

/* A thread: one element of one target. */
__global__ void __launch_bounds__(256) finish_sums(finish_arguments f) {
    const int64_t size = static_cast<int64_t>(f.rows) * f.columns, all = size * f.targets;
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < all;
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t target = n / size, element = n % size, column = element % f.columns;
        int64_t row = element / f.columns;
        if (row % f.part_rows >= f.part_columns) continue; /* behind the map's last row */
        float sum = 0.0f;
        for (int head = 0; head < f.together; head++)
            for (int part = 0; part < f.s.parts; part++)
                sum += f.from[(static_cast<int64_t>(part) * f.s.heads + target * f.together + head) * size + element];
        row = row / f.part_rows * f.part_columns + row % f.part_rows;
        f.to[target * f.to_head + row * f.to_row + column * f.to_column] += sum;
    }
}

struct beta_arguments {
    const float *rows;
    float *to;
    int64_t batch, length, to_head;
    int heads, together;
};

/* to of one target: its heads' rows of all sequences. */
__global__ void __launch_bounds__(256) finish_beta(beta_arguments a) {
    float sum = 0.0f;
    for (int member = 0; member < a.together; member++)
        for (int64_t n = threadIdx.x; n < a.batch * a.length; n += 256)
            sum += a.rows[(n / a.length * a.heads + static_cast<int64_t>(blockIdx.x) * a.together + member) * a.length +
                          n % a.length];
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) a.to[blockIdx.x * a.to_head] += sum;
}

enum status finish(const struct ops *ops, const char *operation, finish_arguments f) {
    return device_launch(ops, operation, finish_sums,
                         grid_over(static_cast<int64_t>(f.rows) * f.columns * f.targets, 256), 256, 0, f);
}

/* Heads of the sums are divided among the rows that `to` has: one where its stride is 0. */
void set_targets(const parameter_sums &s, struct tensor to, finish_arguments *f) {
    f->s = s;
    f->to = data_of<float>(to);
    f->to_head = to.stride[0];
    f->targets = to.stride[0] == 0 ? 1 : static_cast<int>(to.shape[0]);
    f->together = s.heads / f->targets;
    f->rows = f->part_rows = f->part_columns = s.rows;
}

enum status add(const struct ops *ops, const char *operation, const linear_gradient &g, const parameter_sums &s) {
    product_arguments a = {};
    if (!s.sums) return STATUS_OK;
    a.s = s;
    a.batch = g.f.batch;
    a.length = g.f.length;
    a.slab_first = g.slab_first;
    a.slab = g.slab;
    a.row_tiles = static_cast<int>(divide_up(s.rows, product_tile));
    a.column_tiles = static_cast<int>(divide_up(s.columns, product_tile));
    const int64_t blocks = static_cast<int64_t>(a.row_tiles) * a.column_tiles * s.heads * s.parts;
    if (blocks > INT_MAX)
        return error_set(STATUS_SHAPE, "%s: expected up to %d tiles of a parameter's gradient, found %lld", operation,
                         INT_MAX, static_cast<long long>(blocks));
    const dim3 grid(static_cast<unsigned>(blocks));
    if (s.b_real && ops->real == DTYPE_BF16)
        return device_launch(ops, operation, add_products<bf16>, grid, product_threads, 0, a);
    return device_launch(ops, operation, add_products<float>, grid, product_threads, 0, a);
}

/* Row r of the sums is row r of `to`, but with `features` feature r of the tiles; transposed: column r. */
enum status finish_products(const struct ops *ops, const char *operation, const linear_problem &p,
                            const parameter_sums &s, struct tensor to, bool features, bool transposed) {
    finish_arguments f = {};
    if (!tensor_present(to)) return STATUS_OK;
    set_targets(s, to, &f);
    f.from = s.sums;
    f.columns = s.columns;
    f.to_row = transposed ? to.stride[2] : to.stride[1];
    f.to_column = transposed ? to.stride[1] : to.stride[2];
    if (features) {
        f.part_rows = p.features / (p.tiles / p.part_tiles);
        f.part_columns = p.columns;
    }
    return finish(ops, operation, f);
}

enum status finish_bias(const struct ops *ops, const char *operation, const parameter_sums &s, struct tensor to) {
    finish_arguments f = {};
    if (!tensor_present(to)) return STATUS_OK;
    set_targets(s, to, &f);
    f.from = s.bias;
    f.columns = 1;
    f.to_row = to.stride[1];
    return finish(ops, operation, f);
}

parameter_sums place(linear_cutter &cutter, bool wanted, int heads, int rows, int columns, int parts) {
    parameter_sums s = {};
    if (!wanted) return s;
    s.heads = heads;
    s.share = 1;
    s.rows = rows;
    s.columns = columns;
    s.parts = parts;
    const int64_t count = static_cast<int64_t>(parts) * heads * rows;
    s.sums = cutter.take_array<float>(count * columns);
    s.bias = cutter.take_array<float>(count);
    return s;
}

/* Gradients by W x times x. */
parameter_sums with_x(parameter_sums s, const linear_gradient &g, const attention_view &x) {
    s.a = g.d_features;
    s.a_step = g.f.features;
    s.b = x.data;
    s.b_batch = x.batch;
    s.b_token = x.token;
    s.b_head = x.head;
    s.b_real = true;
    return s;
}
/* What the gates' sigmoid takes, or keys' features, times rows [B,G,T,R]. */
parameter_sums with_hidden(parameter_sums s, const linear_gradient &g, const float *rows, int share) {
    s.a = g.d_gates;
    s.a_step = g.f.features;
    s.b = rows;
    s.b_token = g.f.hidden_width;
    s.b_head = s.b_token * g.f.length;
    s.b_batch = s.b_head * g.f.groups;
    s.share = share;
    s.bias = nullptr;
    return s;
}

} // namespace

void linear_parameters_place(const struct ops *ops, const linear_problem &p, int64_t rows, const struct features *d,
                             linear_cutter &cutter, linear_parameters *all) {
    /* Parts: enough blocks for the device. */
    const int64_t blocks = p.heads * divide_up(p.columns, product_tile) * divide_up(p.width, product_tile);
    const int64_t wanted = divide_up(4 * static_cast<int64_t>(ops->device->multiprocessors), blocks),
                  most = divide_up(rows, 256);
    const int parts = static_cast<int>(wanted < most ? wanted : most);
    const size_t before = cutter.used;
    all->memory = cutter.memory ? cutter.memory + before : nullptr;
    all->q_map =
        place(cutter, tensor_present(d->q_map) || tensor_present(d->q_bias), p.heads, p.columns, p.width, parts);
    all->k_map =
        place(cutter, tensor_present(d->k_map) || tensor_present(d->k_bias), p.groups, p.columns, p.width, parts);
    all->excite = place(cutter, tensor_present(d->excite), p.heads, p.features, p.hidden_width, parts);
    all->squeeze = place(cutter, tensor_present(d->squeeze), p.groups, p.features, p.hidden_width, parts);
    all->size = cutter.used - before;
}

enum status linear_parameters_open(const struct ops *ops, const linear_parameters &all) {
    if (all.size) CUDA_TRY(cudaMemsetAsync(all.memory, 0, all.size, ops->device->stream));
    return STATUS_OK;
}

enum status linear_parameters_add(const struct ops *ops, const char *operation, const linear_gradient &g,
                                  const linear_parameters &all, bool of_keys) {
    if (of_keys) {
        TRY(add(ops, operation, g, with_x(all.k_map, g, g.f.k.x)));
        return add(ops, operation, g, with_hidden(all.squeeze, g, g.tails, 1));
    }
    TRY(add(ops, operation, g, with_x(all.q_map, g, g.f.q.x)));
    return add(ops, operation, g, with_hidden(all.excite, g, g.f.hidden, g.f.share));
}

enum status linear_parameters_finish(const struct ops *ops, const char *operation, const linear_gradient &g,
                                     const linear_parameters &all, const struct features *d) {
    const linear_problem &p = g.f;
    TRY(finish_products(ops, operation, p, all.q_map, d->q_map, false, false));
    TRY(finish_products(ops, operation, p, all.k_map, d->k_map, false, false));
    TRY(finish_bias(ops, operation, all.q_map, d->q_bias));
    TRY(finish_bias(ops, operation, all.k_map, d->k_bias));
    TRY(finish_products(ops, operation, p, all.excite, d->excite, true, false));
    TRY(finish_products(ops, operation, p, all.squeeze, d->squeeze, true, true));
    if (!tensor_present(d->beta)) return STATUS_OK;
    const int targets = d->beta.stride[0] == 0 ? 1 : p.heads;
    const beta_arguments a = {g.beta_rows, data_of<float>(d->beta), p.batch, p.length, d->beta.stride[0],
                              p.heads,     p.heads / targets};
    return device_launch(ops, operation, finish_beta, dim3(static_cast<unsigned>(targets)), 256, 0, a);
}
