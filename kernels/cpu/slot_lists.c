/* Which slots of a cache one query a sequence reads. */
#include "kernels/cpu/cpu.h"

static void list_slots(const struct slot_lists *a, int64_t b, int64_t list) {
    const int64_t row = b * a->slots.shape[1] + list, capacity = a->slots.shape[2];
    const int32_t place = ((const int32_t *)a->places.data)[3 * b + 2];
    const int64_t end = a->position + 1, start = place >= 0 && place < end ? a->position - place : a->position;
    const int64_t near = end - a->window > start ? end - a->window : start; /* the window's first */
    const int64_t sinks_end = start + a->sinks < near ? start + a->sinks : near;
    const int64_t n = tensor_present(a->chosen) ? a->chosen.shape[2] : 0, each = a->block > 0 ? a->block : 1;
    const int32_t *chosen = (const int32_t *)a->chosen.data + row * n;
    int32_t *slots = (int32_t *)a->slots.data + row * capacity;
    int64_t count = 0;
    for (int64_t t = start; t < sinks_end; t++) slots[count++] = (int32_t)t;
    for (int64_t c = 0; c < n; c++) {
        if (chosen[c] < 0) continue;
        const int64_t first = a->block > 0 ? start + chosen[c] * each : chosen[c];
        for (int64_t t = first > sinks_end ? first : sinks_end; t < first + each && t < near && count < capacity; t++)
            slots[count++] = (int32_t)t;
    }
    for (int64_t t = near; t < end && count < capacity; t++) slots[count++] = (int32_t)t;
    ((int32_t *)a->slot_counts.data)[row] = (int32_t)count;
    for (int64_t rest = count; rest < capacity; rest++) slots[rest] = -1;
}

enum status NAME(slot_lists)(const struct ops *ops, const struct slot_lists *a) {
    (void)ops;
    TRY(check_slot_lists(a));
    for (int64_t b = 0; b < a->slots.shape[0]; b++)
        for (int64_t list = 0; list < a->slots.shape[1]; list++) list_slots(a, b, list);
    return STATUS_OK;
}
