/* The memory that views cover, as lists of dense runs. */
#include "base/hash.h"
#include "base/memory.h"
#include "kernels/guard/internal.h"

#include <stdlib.h>

static enum status append(struct run_list *list, uintptr_t first, uintptr_t last) {
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        TRY(memory_grow(&list->runs, capacity, sizeof *list->runs, "the guard's runs"));
        list->capacity = capacity;
    }
    list->runs[list->count++] = (struct run){first, last};
    return STATUS_OK;
}

enum status runs_of(struct tensor t, struct run_list *list) {
    size_t size = dtype_size(t.dtype);
    if (tensor_count(t) == 0) return STATUS_OK;
    uintptr_t data = (uintptr_t)t.data;
    if (tensor_is_contiguous(t)) return append(list, data, data + tensor_bytes(t));
    int64_t rows = tensor_count(t) / t.shape[t.rank - 1];
    for (int64_t row = 0; row < rows; row++) {
        int64_t offset = 0, rest = row;
        for (int i = t.rank - 2; i >= 0; i--) {
            offset += rest % t.shape[i] * t.stride[i];
            rest /= t.shape[i];
        }
        uintptr_t first = data + (uintptr_t)(offset * (int64_t)size);
        TRY(append(list, first, first + (uintptr_t)t.shape[t.rank - 1] * size));
    }
    return STATUS_OK;
}

static int ascending(const void *a, const void *b) {
    const struct run *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

void runs_sort(struct run_list *list) {
    if (list->count) qsort(list->runs, list->count, sizeof *list->runs, ascending);
}

bool runs_overlap(const struct run_list *a, const struct run_list *b) {
    size_t i = 0, j = 0;
    while (i < a->count && j < b->count) {
        if (a->runs[i].last <= b->runs[j].first)
            i++;
        else if (b->runs[j].last <= a->runs[i].first)
            j++;
        else
            return true;
    }
    return false;
}

uint64_t runs_hash(const struct run_list *list) {
    uint64_t hash = 0;
    for (size_t i = 0; i < list->count; i++) {
        hash = hash_combine(
            hash, hash_bytes((const void *)list->runs[i].first, (size_t)(list->runs[i].last - list->runs[i].first)));
    }
    return hash;
}

uint64_t runs_hash_outside(const struct run_list *list, uintptr_t first, uintptr_t last) {
    uint64_t hash = 0;
    for (size_t i = 0; i <= list->count && first < last; i++) {
        uintptr_t stop = i < list->count && list->runs[i].first < last ? list->runs[i].first : last;
        if (stop > first) hash = hash_combine(hash, hash_bytes((const void *)first, (size_t)(stop - first)));
        if (i < list->count && list->runs[i].last > first) first = list->runs[i].last;
    }
    return hash;
}
