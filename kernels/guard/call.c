/* What holds around every call: outputs overlap nothing, are written whole, and nothing else is. */
#include "kernels/guard/internal.h"

#include <string.h>

/* NaNs that no arithmetic makes by itself. */
static const uint32_t poison_f32 = 0x7fcdead5u;
static const uint64_t poison_f64 = 0x7ffcdead5cafe5adu;
static const uint16_t poison_bf16 = 0x7fd5u;

/* Bytes beside an output that are checked too, within its allocation. */
enum { MARGIN = 4096 };

void call_add(struct call *call, const char *argument, struct tensor t, enum access_kind kind, const char *may_be) {
    if (!tensor_present(t) || tensor_count(t) == 0) return;
    call->access[call->count++] = (struct access){argument, t, kind, may_be};
}

static bool same_view(struct tensor a, struct tensor b) {
    return a.data == b.data && a.dtype == b.dtype && tensor_same_shape(a, b) &&
           memcmp(a.stride, b.stride, sizeof a.stride[0] * (size_t)a.rank) == 0;
}

static enum status runs_of_one(struct tensor t, struct run_list *list) {
    list->count = 0;
    TRY(runs_of(t, list));
    runs_sort(list);
    return STATUS_OK;
}

static enum status check_pair(struct guard *guard, struct call *call, struct access *out, struct access *other) {
    TRY(runs_of_one(out->tensor, &guard->a));
    TRY(runs_of_one(other->tensor, &guard->b));
    if (!runs_overlap(&guard->a, &guard->b)) return STATUS_OK;
    bool allowed = (out->may_be && strcmp(out->may_be, other->argument) == 0) ||
                   (other->may_be && strcmp(other->may_be, out->argument) == 0);
    if (!allowed || !same_view(out->tensor, other->tensor)) {
        return error_set(STATUS_FAILED, "guard: %s: %s overlaps %s", call->operation, out->argument, other->argument);
    }
    out->kind = other->kind = ACCESS_UPDATE; /* in place: neither poisoned nor held unchanged */
    return STATUS_OK;
}

/* Every element set to the poison, or (check) *found = the index of the first that still is it, or −1. */
static void poison(struct tensor t, bool check, int64_t *found) {
    int64_t width = t.shape[t.rank - 1], rows = tensor_count(t) / width;
    *found = -1;
    for (int64_t row = 0; row < rows; row++) {
        int64_t offset = 0, rest = row;
        for (int i = t.rank - 2; i >= 0; i--) {
            offset += rest % t.shape[i] * t.stride[i];
            rest /= t.shape[i];
        }
        for (int64_t j = 0; j < width; j++) {
            char *at = (char *)t.data + (offset + j) * (int64_t)dtype_size(t.dtype);
            const void *value = t.dtype == DTYPE_F64 ? (const void *)&poison_f64 : (const void *)&poison_f32;
            if (t.dtype == DTYPE_BF16) value = &poison_bf16;
            if (!check) {
                memcpy(at, value, dtype_size(t.dtype));
            } else if (memcmp(at, value, dtype_size(t.dtype)) == 0) {
                *found = row * width + j;
                return;
            }
        }
    }
}

static bool can_hold_poison(struct tensor t) {
    return t.dtype == DTYPE_F32 || t.dtype == DTYPE_F64 || t.dtype == DTYPE_BF16;
}

/* guard->b = all outputs of the call, sorted. */
static enum status collect_outputs(struct guard *guard, const struct call *call) {
    guard->b.count = 0;
    for (int i = 0; i < call->count; i++) {
        if (call->access[i].kind != ACCESS_READ) TRY(runs_of(call->access[i].tensor, &guard->b));
    }
    runs_sort(&guard->b);
    return STATUS_OK;
}

/* Hash of what argument `i` must leave as it is. Needs collect_outputs. */
static enum status hash_of(struct guard *guard, const struct call *call, int i, uint64_t *hash) {
    const struct access *access = &call->access[i];
    TRY(runs_of_one(access->tensor, &guard->a));
    if (access->kind == ACCESS_READ) {
        *hash = runs_hash(&guard->a);
        return STATUS_OK;
    }
    uintptr_t first = guard->a.runs[0].first, last = guard->a.runs[0].last;
    for (size_t r = 0; r < guard->a.count; r++) {
        if (guard->a.runs[r].last > last) last = guard->a.runs[r].last;
    }
    const struct allocation *home = guard_find(guard, first);
    if (home) {
        uintptr_t start = (uintptr_t)home->block, stop = start + home->bytes;
        first = first - start > MARGIN ? first - MARGIN : start;
        if (last < stop) last = stop - last > MARGIN ? last + MARGIN : stop;
    }
    *hash = runs_hash_outside(&guard->b, first, last);
    return STATUS_OK;
}

/* A device works behind the caller's back: whoever looks at its memory first waits for it. */
static enum status wait_for_device(const struct guard *guard) {
    return guard->inner->synchronise(guard->inner);
}

enum status call_begin(struct guard *guard, struct call *call) {
    TRY(wait_for_device(guard));
    TRY(guard_check_canaries(guard, call->operation));
    for (int i = 0; i < call->count; i++) {
        for (int j = 0; j < call->count; j++) {
            bool once = call->access[j].kind == ACCESS_READ || j > i;
            if (i != j && call->access[i].kind != ACCESS_READ && once) {
                TRY(check_pair(guard, call, &call->access[i], &call->access[j]));
            }
        }
    }
    for (int i = 0; i < call->count; i++) {
        int64_t unused;
        const struct access *access = &call->access[i];
        if (access->kind == ACCESS_WRITE && can_hold_poison(access->tensor)) poison(access->tensor, false, &unused);
    }
    TRY(collect_outputs(guard, call));
    for (int i = 0; i < call->count; i++) TRY(hash_of(guard, call, i, &call->before[i]));
    return STATUS_OK;
}

enum status call_end(struct guard *guard, struct call *call, enum status status) {
    if (status != STATUS_OK) return status;
    TRY(wait_for_device(guard));
    TRY(guard_check_canaries(guard, call->operation));
    TRY(collect_outputs(guard, call));
    for (int i = 0; i < call->count; i++) {
        const struct access *access = &call->access[i];
        uint64_t now;
        TRY(hash_of(guard, call, i, &now));
        if (now != call->before[i]) {
            return error_set(STATUS_FAILED, "guard: %s wrote %s %s", call->operation,
                             access->kind == ACCESS_READ ? "its input" : "beside its output", access->argument);
        }
        if (access->kind != ACCESS_WRITE || !can_hold_poison(access->tensor)) continue;
        int64_t left;
        poison(access->tensor, true, &left);
        if (left >= 0) {
            return error_set(STATUS_FAILED, "guard: %s left element %lld of %s unwritten (or read it before)",
                             call->operation, (long long)left, access->argument);
        }
    }
    return STATUS_OK;
}
