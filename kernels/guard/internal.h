/* The guard's insides: what a call reads and writes, and the checks around it. */
#ifndef SQUINT_KERNELS_GUARD_INTERNAL_H
#define SQUINT_KERNELS_GUARD_INTERNAL_H

#include "kernels/ops.h"

enum access_kind {
    ACCESS_READ,   /* must not change */
    ACCESS_WRITE,  /* poisoned before, every element must be written */
    ACCESS_UPDATE, /* read and written */
};

struct access {
    const char *argument;
    struct tensor tensor;
    enum access_kind kind;
    const char *may_be; /* name of the argument that this output may be (in place), or NULL */
};

enum { ACCESSES_MAX = 32 };

/* One call: its arguments, then what must hold when it returns. */
struct call {
    const char *operation;
    struct access access[ACCESSES_MAX];
    int count;
    uint64_t before[ACCESSES_MAX]; /* hash of what is only read; of an output, hash of the bytes around it */
};

/* A dense piece of memory. */
struct run {
    uintptr_t first, last; /* bytes first … last−1 */
};

struct run_list {
    struct run *runs;
    size_t count, capacity;
};

struct allocation {
    char *block; /* canary, the caller's bytes, canary */
    size_t bytes;
    struct allocation *next;
};

struct guard {
    struct ops ops; /* first: a table's address is its guard's */
    const struct ops *inner;
    struct allocation *allocations;
    struct run_list a, b; /* work space of the checks */
    char name[64];
    char fault[256]; /* damage found where no status can be returned; the next call fails with it */
};

static inline struct guard *guard_of(const struct ops *ops) {
    return (struct guard *)(uintptr_t)ops;
}

/* memory.c: canaries. */
enum status guard_allocate(const struct ops *ops, size_t bytes, void **block);
void guard_release(const struct ops *ops, void *block);
enum status guard_check_canaries(struct guard *guard, const char *operation);
/* The allocation that holds `address`, or NULL. */
const struct allocation *guard_find(const struct guard *guard, uintptr_t address);

/* runs.c: the memory of views. */
enum status runs_of(struct tensor t, struct run_list *list); /* appends */
void runs_sort(struct run_list *list);
bool runs_overlap(const struct run_list *a, const struct run_list *b); /* both sorted */
uint64_t runs_hash(const struct run_list *list);
/* Hash of the bytes first … last−1 that no run of the sorted list covers. */
uint64_t runs_hash_outside(const struct run_list *list, uintptr_t first, uintptr_t last);

/* call.c: the checks around a call. */
void call_add(struct call *call, const char *argument, struct tensor t, enum access_kind kind, const char *may_be);
enum status call_begin(struct guard *guard, struct call *call);
/* `status`: the inner table's; returned when it is a failure and no canary is hurt. */
enum status call_end(struct guard *guard, struct call *call, enum status status);

/* Runs the inner table's function between the two halves of the checks. */
#define GUARDED(call_, function, ...)                                                                                  \
    do {                                                                                                               \
        struct guard *guard_ = guard_of(ops);                                                                          \
        TRY(call_begin(guard_, call_));                                                                                \
        return call_end(guard_, call_, guard_->inner->function(guard_->inner, __VA_ARGS__));                           \
    } while (0)

/* layers.c, linear.c, blocks.c, losses.c: fill in the guarded functions. */
void guard_layers(struct ops *ops);
void guard_linear(struct ops *ops);
void guard_blocks(struct ops *ops);
void guard_index(struct ops *ops);
void guard_losses(struct ops *ops);

#endif
