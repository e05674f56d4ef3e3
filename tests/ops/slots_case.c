/* See slots_case.h. */
#include "tests/ops/slots_case.h"

#include "tests/ops/case_arrays.h"

#include <string.h>

struct slots_case {
    const char *name;
    int64_t position, block, sinks, window, lists, chosen; /* chosen: n, 0: none */
    int64_t keep;                                          /* every so-manieth token or block is chosen */
    int32_t places[2];
};

static const struct slots_case rows[] = {
    {"the first token", 0, 0, 4, 8, 1, 3, 1, {0, 0}},
    {"tokens", 99, 0, 3, 10, 2, 9, 7, {99, 40}},
    {"tokens, no sinks", 98, 0, 0, 1, 3, 40, 2, {98, 0}},
    {"tokens, more than threads", 1200, 0, 5, 33, 1, 700, 1, {1200, 1000}},
    {"tokens, the window over all", 30, 0, 2, 64, 1, 4, 3, {30, 12}},
    {"sinks and window alone", 77, 0, 6, 9, 1, 0, 1, {77, 10}},
    {"blocks", 199, 16, 0, 20, 2, 5, 3, {199, 130}},
    {"blocks of one", 60, 1, 1, 7, 1, 50, 2, {60, 9}},
    {"blocks, no window", 150, 7, 0, 0, 2, 30, 1, {150, 6}},
    {"blocks, sinks among them", 90, 8, 13, 5, 1, 4, 2, {90, 33}},
    {"blocks, more than threads", 1500, 2, 0, 64, 1, 600, 1, {1500, 1499}},
    {"nothing at all", 12, 4, 0, 0, 1, 0, 1, {12, 3}},
};

enum { BATCH = 2 };

struct slots_run {
    struct slot_lists a;
    int32_t *slots, *counts; /* on the host */
};

static struct tensor on_device(const struct ops *ops, struct tensor t, const int32_t *from) {
    CHECK_OK(ops->allocate(ops, tensor_bytes(t), &t.data));
    if (from) CHECK_OK(ops->upload(ops, t, from));
    return t;
}

static void run(const struct ops *ops, const struct slots_case *row, int64_t capacity, const int32_t *places,
                const int32_t *chosen, struct slots_run *r) {
    r->a =
        (struct slot_lists){.position = row->position, .block = row->block, .sinks = row->sinks, .window = row->window};
    r->a.places = on_device(ops, tensor_2d(NULL, DTYPE_I32, BATCH, 3), places);
    if (row->chosen) r->a.chosen = on_device(ops, tensor_3d(NULL, DTYPE_I32, BATCH, row->lists, row->chosen), chosen);
    r->a.slots = on_device(ops, tensor_3d(NULL, DTYPE_I32, BATCH, row->lists, capacity), NULL);
    r->a.slot_counts = on_device(ops, tensor_2d(NULL, DTYPE_I32, BATCH, row->lists), NULL);
    CHECK_OK(memory_new((size_t)tensor_count(r->a.slots), sizeof *r->slots, "slots", &r->slots));
    CHECK_OK(memory_new((size_t)tensor_count(r->a.slot_counts), sizeof *r->counts, "counts", &r->counts));
    CHECK_OK(ops->slot_lists(ops, &r->a));
    CHECK_OK(ops->download(ops, r->a.slots, r->slots));
    CHECK_OK(ops->download(ops, r->a.slot_counts, r->counts));
}

static void release(const struct ops *ops, struct slots_run *r) {
    const struct tensor own[] = {r->a.places, r->a.chosen, r->a.slots, r->a.slot_counts};
    for (int n = 0; n < 4; n++) ops->release(ops, own[n].data);
    free(r->slots);
    free(r->counts);
}

/* Ascending numbers, every keep-th, another share in every list, then −1. */
static int32_t *make_choice(const struct slots_case *row) {
    int32_t *chosen;
    CHECK_OK(memory_new((size_t)(BATCH * row->lists * row->chosen + 1), sizeof *chosen, "choices", &chosen));
    for (int64_t list = 0; list < BATCH * row->lists; list++) {
        const int32_t place = row->places[list / row->lists];
        const int64_t first = row->block ? 0 : row->position - place,
                      most = row->block ? place / row->block : row->position;
        for (int64_t n = 0; n < row->chosen; n++) {
            const int64_t number = first + n * row->keep + list % 2;
            chosen[list * row->chosen + n] = number <= most ? (int32_t)number : -1;
        }
    }
    return chosen;
}

static bool is_chosen(const struct slots_case *row, const int32_t *chosen, int64_t slot, int64_t start) {
    const int64_t number = row->block ? (slot - start) / row->block : slot;
    for (int64_t n = 0; n < row->chosen; n++)
        if (chosen[n] == number) return true;
    return false;
}

/* The definition: every slot of the document that is a sink, chosen or in the window, ascending. */
static void check_list(const struct ops *ops, const struct slots_case *row, const int32_t *chosen, const int32_t *slots,
                       int32_t count, int64_t capacity, int64_t b) {
    const int64_t start = row->position - row->places[b];
    int64_t n = 0;
    for (int64_t slot = start; slot <= row->position; slot++) {
        const bool read =
            slot - start < row->sinks || row->position - slot < row->window || is_chosen(row, chosen, slot, start);
        if (!read) continue;
        if (n >= count || slots[n] != slot)
            fail_msg("%s, %s: sequence %lld: slots[%lld]: expected %lld, found %d of %d", row->name, ops->name,
                     (long long)b, (long long)n, (long long)slot, n < capacity ? slots[n] : -1, count);
        n++;
    }
    if (count != n)
        fail_msg("%s, %s: sequence %lld: expected %lld slots, found %d", row->name, ops->name, (long long)b,
                 (long long)n, count);
    for (; n < capacity; n++) assert_int_equal(slots[n], -1);
}

static int64_t room(const struct slots_case *row) {
    const int64_t all = row->sinks + row->chosen * (row->block ? row->block : 1) + row->window;
    return all < row->position + 1 ? all : row->position + 1;
}

void slot_lists_agree(const struct ops *ops) {
    for (size_t c = 0; c < 2 * (sizeof rows / sizeof *rows); c++) {
        const struct slots_case *row = &rows[c / 2];
        const int64_t capacity = room(row) + (c % 2 ? 5 : room(row) == 0);
        const int32_t places[BATCH * 3] = {-9, -9, row->places[0], -9, -9, row->places[1]};
        int32_t *chosen = make_choice(row);
        struct slots_run r = {0};
        run(ops, row, capacity, places, chosen, &r);
        for (int64_t list = 0; list < BATCH * row->lists; list++)
            check_list(ops, row, chosen + list * row->chosen, r.slots + list * capacity, r.counts[list], capacity,
                       list / row->lists);
        release(ops, &r);
        free(chosen);
    }
}

void slot_lists_survive(const struct ops *ops) {
    static const struct slots_case garbage[] = {{"slots", 300, 0, 4, 20, 2, 290, 1, {0, 0}},
                                                {"blocks", 300, 16, 4, 20, 2, 290, 1, {0, 0}}};
    static const int32_t places[][BATCH * 3] = {
        {0, 0, -1, 0, 0, INT32_MAX}, {0, 0, INT32_MIN, 0, 0, 301}, {0, 0, 300, 0, 0, 299}};
    static int32_t chosen[BATCH * 2 * 290];
    for (int c = 0; c < 6; c++) {
        const struct slots_case *row = &garbage[c % 2];
        const int64_t capacity = 301;
        struct slots_run r = {0};
        for (int n = 0; n < BATCH * 2 * 290; n++)
            chosen[n] = n % 5 == 0   ? INT32_MAX
                        : n % 5 == 1 ? INT32_MIN
                        : n % 5 == 2 ? 7
                                     : (int32_t)(300 * case_draw(n, c));
        run(ops, row, capacity, places[c / 2], chosen, &r);
        for (int64_t list = 0; list < BATCH * row->lists; list++) {
            assert_in_range(r.counts[list], 1, capacity);
            for (int64_t n = 0; n < capacity; n++) {
                const int32_t slot = r.slots[list * capacity + n];
                if (n < r.counts[list] ? slot < 0 || slot > row->position : slot != -1)
                    fail_msg("%s, %s: slots[%lld,%lld]: found %d among %d", row->name, ops->name, (long long)list,
                             (long long)n, slot, r.counts[list]);
            }
        }
        release(ops, &r);
    }
}
