/* Lists of choices inverted (kernels/cuda/inverted.cu), executed on the host, against a walk over all of them:
 * ascending lists and garbage, keys that everybody or nobody chose, one and several passes of the sort, more pairs than
 * are sorted at a time; the same whatever the order of threads and blocks. */
#include "kernels/ops.h"
#include "simt/simt.h"
#include "support/check.h"

#include <stdlib.h>
#include <string.h>

enum status inverted_run(const struct ops *ops, struct tensor chosen, const int32_t *base, const int32_t *limit,
                         int64_t keys, int width, int32_t *offsets, int32_t *entries);

enum contents { ASCENDING, HOT /* everybody chooses key 1 and little else */, EMPTY, GARBAGE };
static const struct row {
    const char *name;
    int64_t batch, length, lists, select, keys;
    int width;
    bool base, limit;
    enum contents contents;
} rows[] = {
    {"one token", 1, 1, 1, 1, 1, 1, false, false, ASCENDING},
    {"no slots", 1, 5, 2, 0, 3, 1, false, false, EMPTY},
    {"no choices", 2, 70, 1, 3, 9, 1, false, false, EMPTY},
    {"tokens", 1, 300, 2, 9, 300, 1, false, false, ASCENDING},
    {"tokens in tiles of 64", 1, 300, 2, 9, 5, 64, false, false, ASCENDING},
    {"hot", 2, 500, 1, 7, 500, 1, false, false, HOT},
    {"one key", 1, 513, 1, 8, 1, 512, false, false, HOT},
    {"two tiles and one entry", 1, 4097, 1, 1, 256, 1, false, false, ASCENDING},
    {"two passes", 1, 60, 1, 5, 257, 1, false, false, GARBAGE},
    {"three passes", 1, 50, 1, 40, 70000, 1, false, false, GARBAGE},
    {"base and limit", 3, 40, 2, 5, 60, 1, true, true, ASCENDING},
    {"base, limit, garbage", 2, 64, 3, 6, 40, 4, true, true, GARBAGE},
    {"more pairs than at a time", 3, 3, 11, 2, 5, 1, false, false, ASCENDING},
};

static uint64_t drawn = 1;
static int32_t draw(int64_t below) {
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((drawn >> 33) % (uint64_t)below);
}

static int ascend(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void fill_list(const struct row *row, int32_t *list) {
    static const int32_t odd[] = {INT32_MIN, -2, INT32_MAX, INT32_MAX - 1, 1 << 30};
    const int64_t numbers = row->keys * row->width, n = row->select;
    int64_t used = row->contents == EMPTY ? 0 : row->contents == ASCENDING ? draw(n + 1) : n;
    for (int64_t u = 0; u < n; u++) {
        list[u] = u < used ? draw(numbers) : -1;
        if (row->contents == HOT && u > 0) list[u] = draw(8) ? -1 : draw(numbers);
        if (row->contents == HOT && u == 0) list[u] = numbers > 1;
        if (row->contents == GARBAGE && draw(3) == 0)
            list[u] = draw(2) ? odd[draw(5)] : (int32_t)(numbers + draw(3) - 1);
    }
    if (row->contents == ASCENDING) qsort(list, (size_t)used, sizeof *list, ascend);
}

/* The same by a walk over every pair's choices for every key. */
static void walk(const struct row *row, const int32_t *chosen, const int32_t *base, const int32_t *limit,
                 int32_t *offsets, int32_t *entries) {
    const int64_t room = row->length * row->select;
    for (int64_t p = 0; p < row->batch * row->lists; p++) {
        int32_t count = 0, *next = entries + p * room;
        for (int64_t key = 0; key <= row->keys; key++) {
            offsets[p * (row->keys + 1) + key] = count;
            for (int64_t at = 0; at < room && key < row->keys; at++) {
                const int64_t token = p / row->lists * row->length + at / row->select;
                const int32_t one = chosen[(token * row->lists + p % row->lists) * row->select + at % row->select];
                const int64_t number = (int64_t)one + (base ? base[token] : 0);
                if (one < 0 || number < 0 || (limit && number >= limit[token]) || number / row->width != key) continue;
                next[count++] = (int32_t)(at / row->select * row->width + number % row->width);
            }
        }
    }
}

static void expect(const struct row *row, const char *order, const char *what, const int32_t *wanted,
                   const int32_t *found, int64_t pair, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        if (wanted[n] != found[n])
            fail_msg("%s, %s order: %s %lld of pair %lld: expected %d, found %d", row->name, order, what, (long long)n,
                     (long long)pair, wanted[n], found[n]);
}

static void run_row(const struct ops *ops, const struct row *row) {
    const int64_t tokens = row->batch * row->length, pairs = row->batch * row->lists, room = row->length * row->select;
    const size_t size = sizeof(int32_t);
    int32_t *chosen = malloc((size_t)(pairs * room + 1) * size), *base = malloc((size_t)tokens * size);
    int32_t *limit = malloc((size_t)tokens * size);
    int32_t *offsets[2], *entries[2];
    for (int n = 0; n < 2; n++) {
        offsets[n] = calloc((size_t)(pairs * (row->keys + 1)), size);
        entries[n] = calloc((size_t)(pairs * room + 1), size);
    }
    for (int64_t n = 0; n < tokens * row->lists; n++) fill_list(row, chosen + n * row->select);
    for (int64_t n = 0; n < tokens; n++) {
        base[n] = draw(row->keys) - 2;
        limit[n] = draw(row->keys * row->width + 2) - 1;
    }
    struct tensor t = tensor_4d(chosen, DTYPE_I32, row->batch, row->length, row->lists, row->select);
    const int32_t *bases = row->base ? base : NULL, *limits = row->limit ? limit : NULL;
    walk(row, chosen, bases, limits, offsets[0], entries[0]);
    for (int order = SIMT_FORWARD; order <= SIMT_RANDOM; order++) {
        static const char *const names[] = {"forward", "reverse", "random"};
        simt_set_order((enum simt_order)order, 5);
        CHECK_OK(inverted_run(ops, t, bases, limits, row->keys, row->width, offsets[1], entries[1]));
        for (int64_t p = 0; p < pairs; p++) {
            const int64_t first = p * (row->keys + 1);
            expect(row, names[order], "offset", offsets[0] + first, offsets[1] + first, p, row->keys + 1);
            expect(row, names[order], "entry", entries[0] + p * room, entries[1] + p * room, p,
                   offsets[0][first + row->keys]);
        }
    }
    for (int n = 0; n < 2; n++) {
        free(offsets[n]);
        free(entries[n]);
    }
    free(limit);
    free(base);
    free(chosen);
}

static void rows_agree(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    CHECK_OK(ops_open("cuda", NULL, &ops));
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) run_row(ops, &rows[n]);
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_agree)};
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
