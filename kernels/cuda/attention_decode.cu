/* Attention of one query a sequence against cached keys. o = Σ_m c_m softmax_m: every candidate has its own running
 * softmax over the slots it lists, so nothing needs to know which slots others list too. Where sequences and heads are
 * too few for the device the lists are divided among blocks, and a second kernel puts the parts together. */
#include "kernels/cuda/decode_rows.cuh"

namespace {

constexpr int part_slots = 256; /* a block takes this many of a list at least */

struct decode_arguments {
    attention_view q, k, v, o;  /* of q and o `token` is not used; of k and v it is the slot's */
    const int32_t *slots;       /* [B,lists·count,capacity] */
    const int32_t *slot_counts; /* [B,lists·count] */
    const float *coefficients;  /* NULL: 1 */
    int64_t coefficient_stride, capacity, cache, pairs /* B·H */;
    float *parts; /* [B·H,splits,count,2 + width]: maximum (base 2), sum, sum of values */
    int heads, share, lists, count, width, splits;
    float scale_log2;
};

template <class T>
__device__ void store_lane(const decode_arguments &a, int64_t b, int64_t h, int column,
                           const float (&values)[lane_width]) {
    T *o = attention_rows<T>(a.o, b, h);
    for (int n = 0; n < lane_width && column + n < a.width; n++) o[column + n] = from_float<T>(values[n]);
}

/* A block: split blockIdx.x % splits of one sequence's head; a team of LANES lanes takes a slot, LANES · 8 >= width. o,
 * when the only split. */
template <class T, int LANES> __global__ void __launch_bounds__(decode_threads) decode_head(decode_arguments a) {
    SHARED(running, shared, [decode_warps * LANES]);
    const int64_t pair = blockIdx.x / a.splits, b = pair / a.heads, h = pair % a.heads;
    const int split = static_cast<int>(blockIdx.x % a.splits), thread = static_cast<int>(threadIdx.x);
    const int team = thread / LANES, teams = decode_threads / LANES, column = thread % LANES * lane_width;
    const int64_t list = b * a.lists * a.count + h / (a.heads / a.lists) * a.count;
    const slot_rows<T> rows = {attention_rows<const T>(a.k, b, h / a.share),
                               attention_rows<const T>(a.v, b, h / a.share),
                               a.k.token,
                               a.v.token,
                               a.cache,
                               a.k.vector,
                               a.v.vector,
                               a.width,
                               a.scale_log2};
    float q[lane_width], o[lane_width] = {};
    load_lane(attention_rows<const T>(a.q, b, h), column, a.width, a.q.vector, q);
    for (int m = 0; m < a.count; m++) {
        const float c = a.coefficients ? __ldg(a.coefficients + h * a.coefficient_stride + m) : 1.0f;
        if (c == 0.0f) continue;
        const int64_t count =
            a.cache ? max(int64_t{0}, min(static_cast<int64_t>(__ldg(a.slot_counts + list + m)), a.capacity)) : 0;
        const int64_t each = (count + a.splits - 1) / a.splits, first = split * each, end = min(first + each, count);
        const int32_t *slots = a.slots + (list + m) * a.capacity;
        const running part =
            join_teams<LANES>(read_slots<T, LANES>(
                                  rows, first + team, end, teams, q, column,
                                  [slots](int64_t n) -> int64_t { return __ldg(slots + n); }, [](int64_t, float) {}),
                              shared);
        if (thread >= LANES) continue;
        if (a.splits == 1) {
            for (int d = 0; d < lane_width; d++)
                if (part.sum != 0.0f) o[d] += c / part.sum * part.values[d];
            continue;
        }
        float *to = a.parts + ((pair * a.splits + split) * a.count + m) * (2 + a.width);
        if (thread == 0) {
            to[0] = part.most;
            to[1] = part.sum;
        }
        for (int d = 0; d < lane_width && column + d < a.width; d++) to[2 + column + d] = part.values[d];
    }
    if (a.splits == 1 && thread < LANES) store_lane<T>(a, b, h, column, o);
}

/* o from the parts of all splits. A block: one sequence's head; a thread: columns threadIdx.x, + blockDim.x, … */
template <class T> __global__ void __launch_bounds__(64) combine_parts(decode_arguments a) {
    const int64_t pair = blockIdx.x, b = pair / a.heads, h = pair % a.heads;
    T *o = attention_rows<T>(a.o, b, h);
    for (int d = static_cast<int>(threadIdx.x); d < a.width; d += 64) {
        float out = 0.0f;
        for (int m = 0; m < a.count; m++) {
            const float c = a.coefficients ? __ldg(a.coefficients + h * a.coefficient_stride + m) : 1.0f;
            if (c == 0.0f) continue;
            const int64_t step = static_cast<int64_t>(a.count) * (2 + a.width);
            const float *parts = a.parts + (pair * a.splits * a.count + m) * (2 + a.width);
            float most = -INFINITY, sum = 0.0f, value = 0.0f;
            for (int s = 0; s < a.splits; s++) most = fmaxf(most, parts[s * step]);
            for (int s = 0; s < a.splits; s++) {
                const float factor = rescale(parts[s * step], most);
                sum += factor * parts[s * step + 1];
                value += factor * parts[s * step + 2 + d];
            }
            if (sum != 0.0f) out += c / sum * value;
        }
        o[d] = from_float<T>(out);
    }
}

template <class T, int LANES> enum status run_decode(const struct ops *ops, const decode_arguments &a) {
    const dim3 grid(static_cast<unsigned>(a.pairs * a.splits));
    TRY(device_launch(ops, "attention_decode", decode_head<T, LANES>, grid, decode_threads, 0, a));
    if (a.splits == 1) return STATUS_OK;
    return device_launch(ops, "attention_decode", combine_parts<T>, dim3(static_cast<unsigned>(a.pairs)), 64, 0, a);
}

} // namespace

enum status cuda_attention_decode(const struct ops *ops, const struct attention_decode *a) {
    TRY(check_attention_decode(ops, a));
    const int64_t heads = a->q.shape[1], width = a->q.shape[2], pairs = a->q.shape[0] * heads,
                  capacity = a->slots.shape[2];
    if (width > 256)
        return error_set(STATUS_SHAPE, "attention_decode: q: expected a head width up to 256, found %lld",
                         static_cast<long long>(width));
    decode_arguments g = {};
    g.q = view_of_heads(a->q);
    g.o = view_of_heads(a->o);
    g.k = attention_view_of(a->k);
    g.v = attention_view_of(a->v);
    g.slots = data_of<const int32_t>(a->slots);
    g.slot_counts = data_of<const int32_t>(a->slot_counts);
    g.coefficients = data_of<const float>(a->coefficients);
    g.coefficient_stride = a->coefficients.stride[0];
    g.capacity = capacity;
    g.cache = a->k.shape[1];
    g.pairs = pairs;
    g.heads = static_cast<int>(heads);
    g.share = static_cast<int>(heads / a->k.shape[2]);
    g.lists = a->lists;
    g.count = a->count;
    g.width = static_cast<int>(width);
    g.scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    /* About four blocks a multiprocessor, of lists that are worth dividing. */
    const int64_t wanted = pairs ? divide_up(4 * static_cast<int64_t>(ops->device->multiprocessors), pairs) : 1;
    const int64_t most = divide_up(capacity, part_slots);
    g.splits = static_cast<int>(wanted < most ? wanted : most < 1 ? 1 : most);
    if (pairs * g.splits > INT_MAX)
        return error_set(STATUS_SHAPE, "attention_decode: expected up to %d heads, found %lld", INT_MAX,
                         static_cast<long long>(pairs));
    if (g.splits > 1) {
        void *memory;
        TRY(device_scratch(ops, static_cast<size_t>(pairs * g.splits * g.count * (2 + width)) * sizeof(float),
                           &memory));
        g.parts = static_cast<float *>(memory);
    }
    return with_real(ops, [&](auto real) {
        using T = decltype(real);
        if (width <= 64) return run_decode<T, 8>(ops, g);
        if (width <= 128) return run_decode<T, 16>(ops, g);
        return run_decode<T, 32>(ops, g);
    });
}
