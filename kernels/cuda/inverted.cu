/* Choices inverted: entries (key, query) sorted by key, some pairs (b, s) at a time; offsets are then found by
 * bisection. */
#include "kernels/cuda/inverted.cuh"
#include "kernels/cuda/sort.cuh"

namespace {

/* Pairs that are sorted at a time: one of any size, and more while their entries are not more than this. */
constexpr int64_t group_pairs = 32, group_entries = int64_t{1} << 24;

/* The entries of pairs first_pair, first_pair + 1 … as they lie in `chosen`. */
struct chosen_source {
    const int32_t *chosen;
    inverted_rule rule;
    int64_t length, lists, select, first_pair;

    __device__ int64_t entries(int64_t) const { return length * select; }
    __device__ bool entry(int64_t list, int64_t at, int32_t *key, int32_t *value) const {
        const int64_t pair = first_pair + list, b = pair / lists, s = pair % lists;
        const int64_t query = at / select, slot = at % select, row = b * length + query;
        const int32_t chosen_number = chosen[(row * lists + s) * select + slot];
        if (chosen_number < 0) return false;
        const int64_t number = int64_t{chosen_number} + (rule.base ? rule.base[row] : 0);
        if (number < 0 || number >= rule.keys * rule.width || (rule.limit && number >= rule.limit[row])) return false;
        *key = static_cast<int32_t>(number / rule.width);
        *value = static_cast<int32_t>(rule.slots ? at : query * rule.width + number % rule.width);
        return true;
    }
};

/* offsets [lists, below + 1] of sorted keys [lists, count]. A thread an offset. */
__global__ void __launch_bounds__(256) find_offsets(const int32_t *keys, const int32_t *present, int64_t lists,
                                                    int64_t count, int64_t below, int32_t *offsets) {
    for (int64_t n = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; n < lists * (below + 1);
         n += static_cast<int64_t>(gridDim.x) * 256) {
        const int64_t list = n / (below + 1), key = n % (below + 1);
        const int32_t *sorted = keys + list * count;
        int32_t low = 0, high = present[list]; /* the first entry of this or a later key */
        while (low < high) {
            const int32_t middle = low + (high - low) / 2;
            if (sorted[middle] < key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        offsets[n] = low;
    }
}

size_t padded(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(int32_t) + 255) / 256 * 256;
}
int64_t pairs_at_a_time(int64_t pairs, int64_t room) {
    const int64_t most = room > 0 ? group_entries / room : pairs;
    return min(min(pairs, group_pairs), most > 1 ? most : int64_t{1});
}

} // namespace

size_t inverted_bytes(int64_t batch, int64_t length, int64_t lists, int64_t select, int64_t keys) {
    const int64_t pairs = batch * lists, room = length * select;
    return padded(pairs * (keys + 1)) + padded(pairs * room) +
           sort_bytes(pairs_at_a_time(pairs, room), room, keys, true);
}

enum status inverted_build(const struct ops *ops, const char *operation, struct tensor chosen,
                           const inverted_rule &rule, void *memory, inverted_lists *inverted) {
    const int64_t length = chosen.shape[1], lists = chosen.shape[2], select = chosen.shape[3];
    const int64_t pairs = chosen.shape[0] * lists, room = length * select, keys = rule.keys;
    if (room > INT32_MAX || length * rule.width > INT32_MAX || keys >= INT32_MAX) {
        return error_set(STATUS_SHAPE,
                         "%s: chosen: expected less than 2^31 numbers a sequence and list, found %lld queries with "
                         "%lld each",
                         operation, static_cast<long long>(length), static_cast<long long>(select));
    }
    int32_t *offsets = static_cast<int32_t *>(memory);
    int32_t *entries = reinterpret_cast<int32_t *>(static_cast<char *>(memory) + padded(pairs * (keys + 1)));
    char *rest = reinterpret_cast<char *>(entries) + padded(pairs * room);
    const int64_t group = pairs_at_a_time(pairs, room);
    for (int64_t first = 0; first < pairs; first += group) {
        const int64_t here = min(group, pairs - first);
        const sort_space space = sort_place(rest, here, room, keys, entries + first * room);
        const chosen_source source = {data_of<const int32_t>(chosen), rule, length, lists, select, first};
        TRY(sort_entries(ops, operation, source, here, room, keys, space));
        TRY(device_launch(ops, operation, find_offsets, grid_over(here * (keys + 1), 256), 256, 0, space.keys[0],
                          space.present, here, room, keys, offsets + first * (keys + 1)));
    }
    *inverted = inverted_lists{offsets, entries, keys, room, rule.width};
    return STATUS_OK;
}
