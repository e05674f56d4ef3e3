/* One query a sequence against cached compressed blocks: attention as attention_decode.cu has it, over a range of slots
 * that only the device knows, and the choice from the scores of this one pass, which are kept. */
#include "kernels/cuda/compressed.cuh"
#include "kernels/cuda/decode_rows.cuh"

namespace {

constexpr int part_slots = 256; /* a block takes this many slots at least */
constexpr int choice_threads = 256;

struct compressed_decode_arguments {
    attention_view q, k, v, o; /* of q and o `token` is not used; of k and v it is the slot's. o.data NULL: none */
    const int32_t *places;     /* [B,3] */
    int32_t *chosen;           /* [B,lists,select] */
    float *parts;              /* [B·H,splits,2 + width]: maximum (base 2), sum, sum of values */
    float *scores;             /* [B·H,slots] exponents (base 2) of the visible blocks; NULL: no choice */
    float *log_sums;           /* [B·H] in base 2 */
    unsigned *importances;     /* [B·lists,rivals] keys */
    choice_sizes sizes;
    int64_t cache, pairs /* B·H */, rivals; /* rivals: selection blocks that a cache can tell apart */
    int heads, share, lists, members, width, splits;
    float scale_log2;
};

/* What places says of a sequence, as far as it can be: what is not in the cache, or not visible, is left out. */
struct decode_place {
    int64_t first;
    int visible, index;
};
__device__ decode_place place_of(const compressed_decode_arguments &a, int64_t b) {
    const int first = __ldg(a.places + 3 * b), visible = __ldg(a.places + 3 * b + 1),
              index = max(0, min(__ldg(a.places + 3 * b + 2), INT_MAX - 1));
    const int64_t left = first < 0 ? 0 : max(int64_t{0}, a.cache - first);
    const int most = visible_blocks(index, a.sizes.compress, a.sizes.stride);
    return decode_place{first, static_cast<int>(min(static_cast<int64_t>(max(0, min(visible, most))), left)), index};
}

/* A block: split blockIdx.x % splits of one sequence's head; a team of LANES lanes takes a slot, LANES · 8 >= width. */
template <class T, int LANES>
__global__ void __launch_bounds__(decode_threads) read_blocks(compressed_decode_arguments a) {
    SHARED(running, shared, [decode_warps * LANES]);
    const int64_t pair = blockIdx.x / a.splits, b = pair / a.heads, h = pair % a.heads;
    const int split = static_cast<int>(blockIdx.x % a.splits), thread = static_cast<int>(threadIdx.x);
    const int team = thread / LANES, teams = decode_threads / LANES, column = thread % LANES * lane_width;
    const decode_place place = place_of(a, b);
    const slot_rows<T> rows = {attention_rows<const T>(a.k, b, h / a.share),
                               attention_rows<const T>(a.v, b, h / a.share),
                               a.k.token,
                               a.v.token,
                               a.cache,
                               a.k.vector,
                               a.v.vector,
                               a.width,
                               a.scale_log2};
    const int64_t each = (place.visible + a.splits - 1) / a.splits, first = split * each;
    const int64_t end = min(first + each, static_cast<int64_t>(place.visible));
    float q[lane_width], *scores = a.scores ? a.scores + pair * a.cache : nullptr;
    load_lane(attention_rows<const T>(a.q, b, h), column, a.width, a.q.vector, q);
    const running part =
        join_teams<LANES>(read_slots<T, LANES>(
                              rows, first + team, end, teams, q, column, [&](int64_t n) { return place.first + n; },
                              [&](int64_t n, float score) {
                                  if (scores && column == 0) scores[n] = score;
                              }),
                          shared);
    if (thread >= LANES) return;
    float *to = a.parts + (pair * a.splits + split) * (2 + a.width);
    if (thread == 0) {
        to[0] = part.most;
        to[1] = part.sum;
    }
    for (int d = 0; d < lane_width && column + d < a.width; d++) to[2 + column + d] = part.values[d];
}

/* o and log_sums from the parts of all splits. A block: one sequence's head; a thread: columns threadIdx.x, +
 * blockDim.x, … */
template <class T> __global__ void __launch_bounds__(64) combine_parts(compressed_decode_arguments a) {
    const int64_t pair = blockIdx.x, step = 2 + a.width;
    const float *parts = a.parts + pair * a.splits * step;
    float most = -INFINITY, sum = 0.0f;
    for (int s = 0; s < a.splits; s++) most = fmaxf(most, parts[s * step]);
    for (int s = 0; s < a.splits; s++) sum += rescale(parts[s * step], most) * parts[s * step + 1];
    if (threadIdx.x == 0 && a.log_sums) a.log_sums[pair] = sum == 0.0f ? INFINITY : most + log2f(sum);
    if (!a.o.data) return;
    T *o = attention_rows<T>(a.o, pair / a.heads, pair % a.heads);
    for (int d = static_cast<int>(threadIdx.x); d < a.width; d += 64) {
        float value = 0.0f;
        for (int s = 0; s < a.splits; s++) value += rescale(parts[s * step], most) * parts[s * step + 2 + d];
        o[d] = from_float<T>(sum == 0.0f ? 0.0f : value / sum);
    }
}

/* A block: one sequence's list. Its rivals are blocks 1 … of the document that some visible compressed block overlaps;
 * later ones have no importance, and only fill up. */
__global__ void __launch_bounds__(choice_threads) choose_cached(compressed_decode_arguments a) {
    const int64_t b = blockIdx.x / a.lists, list = blockIdx.x % a.lists;
    const decode_place place = place_of(a, b);
    const choice_sizes &sizes = a.sizes;
    const int own = place.index / sizes.block, select = sizes.select, competing = select - 3;
    const int known = place.visible > 0 ? (place.visible + sizes.overlap - 2) / sizes.units + 1 : 0;
    const int rivals = max(0, min(own - 2, known - 1)), thread = static_cast<int>(threadIdx.x);
    int32_t *chosen = a.chosen + blockIdx.x * static_cast<int64_t>(select);
    const bool chooses = own >= select && rivals > competing && competing > 0;
    for (int s = thread; s < select; s += choice_threads) {
        int number = s; /* all blocks, or those that nothing tells apart */
        if (own < select) {
            if (s > own) number = -1;
        } else if (s >= select - 2) {
            number = own - (select - 1 - s);
        }
        if (!chooses || s == 0 || s >= select - 2) chosen[s] = number;
    }
    if (!chooses) return;
    unsigned *keys = a.importances + blockIdx.x * a.rivals;
    const int64_t head = b * a.heads + list * a.members;
    for (int n = thread; n < rivals; n += choice_threads)
        keys[n] = importance_key(add_importance(sizes, n + 1, 0, place.visible, 0.0f, [&](int u) {
            float weight = 0.0f;
            for (int64_t h = head; h < head + a.members; h++)
                weight += exp2_quick(a.scores[h * a.cache + u] - a.log_sums[h]);
            return weight;
        }));
    __syncthreads(); /* the keys are there for all */
    const auto reaching = [&](unsigned bound) {
        int count = 0;
        for (int n = thread; n < rivals; n += choice_threads) count += keys[n] >= bound;
        return block_sum<choice_threads>(count);
    };
    const unsigned bound = find_bound(competing, reaching);
    const int ties = competing - reaching(bound + 1);
    if (thread < 32)
        keep_largest(
            rivals, bound, ties,
            [&](int n) {
                return choice_entry{keys[n], n + 1};
            },
            [&](int to, choice_entry entry) { chosen[1 + to] = entry.block; });
}

template <class T, int LANES> enum status run_decode(const struct ops *ops, const compressed_decode_arguments &a) {
    const dim3 grid(static_cast<unsigned>(a.pairs * a.splits)), heads(static_cast<unsigned>(a.pairs));
    TRY(device_launch(ops, "compressed_decode", read_blocks<T, LANES>, grid, decode_threads, 0, a));
    TRY(device_launch(ops, "compressed_decode", combine_parts<T>, heads, 64, 0, a));
    if (!a.chosen) return STATUS_OK;
    return device_launch(ops, "compressed_decode", choose_cached,
                         dim3(static_cast<unsigned>(a.pairs / a.heads * a.lists)), choice_threads, 0, a);
}

/* Cuts `memory` (NULL: only sizes); returns its bytes. */
size_t place_memory(compressed_decode_arguments *a, char *memory) {
    size_t used = 0;
    const auto take = [&](int64_t count) {
        char *at = memory ? memory + used : nullptr;
        used += (static_cast<size_t>(count) * sizeof(float) + 255) / 256 * 256;
        return reinterpret_cast<float *>(at);
    };
    a->parts = take(a->pairs * a->splits * (2 + a->width));
    if (!a->chosen) return used;
    a->scores = take(a->pairs * a->cache);
    a->log_sums = take(a->pairs);
    a->importances = reinterpret_cast<unsigned *>(take(a->pairs / a->members * a->rivals));
    return used;
}

} // namespace

enum status cuda_compressed_decode(const struct ops *ops, const struct compressed_decode *a) {
    TRY(check_compressed_decode(ops, a));
    const int64_t heads = a->q.shape[1], width = a->q.shape[2], cache = a->k.shape[1];
    if (width > 256 || cache > INT_MAX / 2)
        return error_set(STATUS_SHAPE,
                         "compressed_decode: k: expected a head width up to 256 and up to %d slots, found %lld, %lld",
                         INT_MAX / 2, static_cast<long long>(width), static_cast<long long>(cache));
    compressed_decode_arguments g = {};
    g.q = view_of_heads(a->q);
    if (tensor_present(a->o)) g.o = view_of_heads(a->o);
    g.k = attention_view_of(a->k);
    g.v = attention_view_of(a->v);
    g.places = data_of<const int32_t>(a->places);
    g.chosen = data_of<int32_t>(a->chosen);
    g.sizes = choice_sizes_of(a->compress, a->stride, a->block, a->select, cache);
    g.cache = cache;
    g.pairs = a->q.shape[0] * heads;
    g.heads = static_cast<int>(heads);
    g.share = static_cast<int>(heads / a->k.shape[2]);
    g.members = g.chosen ? a->select_group : 1;
    g.lists = g.heads / g.members;
    g.width = static_cast<int>(width);
    g.rivals = cache > 0 ? (cache + g.sizes.overlap - 2) / g.sizes.units + 1 : 0;
    g.scale_log2 = static_cast<float>(a->scale * 1.44269504088896340736);
    /* About four blocks a multiprocessor, of ranges that are worth dividing. */
    const int64_t wanted = g.pairs ? divide_up(4 * static_cast<int64_t>(ops->device->multiprocessors), g.pairs) : 1;
    const int64_t most = divide_up(cache, part_slots);
    g.splits = static_cast<int>(wanted < most ? wanted : most < 1 ? 1 : most);
    if (g.pairs * g.splits > INT_MAX)
        return error_set(STATUS_SHAPE, "compressed_decode: expected up to %d heads, found %lld", INT_MAX,
                         static_cast<long long>(g.pairs));
    void *memory;
    TRY(device_scratch(ops, place_memory(&g, nullptr), &memory));
    place_memory(&g, static_cast<char *>(memory));
    return with_real(ops, [&](auto real) {
        using T = decltype(real);
        if (width <= 64) return run_decode<T, 8>(ops, g);
        if (width <= 128) return run_decode<T, 16>(ops, g);
        return run_decode<T, 32>(ops, g);
    });
}
