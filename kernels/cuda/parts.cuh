/* Many parts of one block of parameters in few launches: a block of threads has one piece of one part; the parts travel
 * as an argument. */
#ifndef SQUINT_KERNELS_CUDA_PARTS_CUH
#define SQUINT_KERNELS_CUDA_PARTS_CUH

#include "kernels/cuda/device.cuh"

constexpr int parts_held = 64;       /* of one launch */
constexpr int64_t part_piece = 8192; /* elements of a block's piece */

struct part_list {
    int64_t first[parts_held], count[parts_held];
    int64_t blocks[parts_held + 1]; /* blocks before part p */
    float decay[parts_held], l1[parts_held];
    int parts;
};

/* Which part this block works on, and its piece there: elements *first … *first + result − 1 of the whole block of
 * parameters. */
__device__ inline int64_t find_piece(const part_list &list, int64_t block, int *part, int64_t *first) {
    int low = 0, high = list.parts; /* blocks[low] <= block < blocks[high] */
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (list.blocks[middle] <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int64_t begin = (block - list.blocks[low]) * part_piece, left = list.count[low] - begin;
    *part = low;
    *first = list.first[low] + begin;
    return left < part_piece ? left : part_piece;
}

/* visit(list, number of its first part) for every launch's worth of parts. */
template <class Visit> enum status for_parts(const struct param_part *parts, int64_t count, Visit visit) {
    for (int64_t from = 0; from < count; from += parts_held) {
        part_list list = {};
        list.parts = static_cast<int>(count - from < parts_held ? count - from : parts_held);
        for (int p = 0; p < list.parts; p++) {
            const struct param_part *part = &parts[from + p];
            list.first[p] = part->first;
            list.count[p] = part->count;
            list.decay[p] = static_cast<float>(part->decay);
            list.l1[p] = static_cast<float>(part->l1);
            list.blocks[p + 1] = list.blocks[p] + divide_up(part->count, part_piece);
        }
        TRY(visit(list, from));
    }
    return STATUS_OK;
}

#endif
