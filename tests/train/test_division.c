/* The owned blocks divided: buckets without gaps, of rows that train together, no larger than asked for, in order of
 * layers; every element kept by one rank. For sizes that nothing divides. */
#include "params/division.h"
#include "support/check.h"
#include "train/gradients.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 9 };
static const struct {
    const char *name;
    int64_t count;
    bool owned, added;
    int64_t layer;
} rows[ROWS] = {{"wte", 101, true, false, -1},
                {"h.0.attn.qkv.weight", 35, true, false, 0},
                {"h.0.mlp.up.weight", 9, false, false, 0},
                {"h.1.attn.qkv.weight", 35, true, false, 1},
                {"h.12.attn.out.weight", 1, true, false, 12},
                {"norm.weight", 7, true, false, PARAMS_TOP},
                {"h.0.attn.masks.coefficients", 3, true, true, 0},
                {"h.1.attn.masks.coefficients", 3, true, true, 1},
                {"shared.maps", 13, true, true, -1}};
enum { OWNED = 198 };

static char *of_first[] = {"new"}, *of_second[] = {"new", "attn.qkv", "norm"}, *of_third[] = {"all"};
static const struct params_patterns stages[] = {{of_first, 1}, {of_second, 3}, {of_third, 1}};

static void make(const struct ops *ops, int size, int rank, bool zero, int64_t most, struct params *params) {
    *params = (struct params){.ops = ops};
    for (int i = 0; i < ROWS; i++) {
        struct param row = {.rank = 1,
                            .shape = {rows[i].count},
                            .init = INIT_NORMAL,
                            .init_std = 1,
                            .owned = rows[i].owned,
                            .added = rows[i].added};
        snprintf(row.name, sizeof row.name, "%s", rows[i].name);
        CHECK_OK(params_add(params, &row, 0));
        params->rows[i].owned = rows[i].owned;
    }
    CHECK_OK(params_place(params, true));
    assert_int_equal(params->owned_elements, OWNED);
    CHECK_OK(params_initialise(params, 7, false));
    CHECK_OK(params_divide(
        params,
        &(struct division_options){
            .rank = rank, .size = size, .zero = zero, .bucket_elements = most, .stages = stages, .stage_count = 3}));
}

/* Which row an owned element is of. */
static int row_of(const struct params *params, int64_t element) {
    for (int i = 0; i < ROWS; i++) {
        const struct param *row = &params->rows[i];
        if (row->owned && element >= row->offset && element < row->offset + rows[i].count) return i;
    }
    return -1;
}

static bool trains(int row, int stage) {
    const struct param probe = {.added = rows[row].added};
    struct param named = probe;
    snprintf(named.name, sizeof named.name, "%s", rows[row].name);
    for (size_t p = 0; p < stages[stage].count; p++) {
        if (params_match(&named, stages[stage].patterns[p])) return true;
    }
    return false;
}

static void check_buckets(const struct params *params, int64_t most) {
    const struct division *d = &params->division;
    int64_t at = 0;
    for (int64_t b = 0; b < d->bucket_count; b++) {
        const struct bucket *bucket = &d->buckets[b];
        int64_t layer = PARAMS_TOP;
        assert_int_equal(bucket->first, at);
        assert_true(bucket->count > 0 && (most == 0 || bucket->count <= most));
        assert_int_equal(bucket->row, row_of(params, bucket->first));
        for (int64_t e = bucket->first; e < bucket->first + bucket->count; e++) {
            const int row = row_of(params, e);
            if (rows[row].layer < layer) layer = rows[row].layer;
            assert_int_equal(params_layer(&params->rows[row]), rows[row].layer);
            assert_int_equal(rows[row].added, rows[bucket->row].added);
            for (int s = 0; s < 3; s++) assert_int_equal(trains(row, s), trains((int)bucket->row, s));
        }
        assert_true(bucket->layer == layer);
        at += bucket->count;
    }
    assert_int_equal(at, OWNED);
}

static void test_division(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 3, 4, 7, 100};
    static const int64_t most[] = {0, 1, 5, 8, 64, 1000};
    const struct ops *ops = NULL;
    CHECK_OK(ops_open("guard:cpu", &(struct ops_options){.threads = 1}, &ops));
    for (size_t n = 0; n < 2 * sizeof sizes / sizeof *sizes * 6; n++) {
        const int size = sizes[n / 12];
        const bool zero = n % 2 == 1;
        int keepers[OWNED] = {0};
        for (int rank = 0; rank < size; rank++) {
            struct params params;
            int64_t state_elements = 0;
            make(ops, size, rank, zero, most[n / 2 % 6], &params);
            const struct division *d = &params.division;
            check_buckets(&params, most[n / 2 % 6]);
            for (int64_t s = 0; s < d->span_count; s++) {
                assert_int_equal(d->spans[s].state, state_elements);
                state_elements += d->spans[s].count;
                for (int64_t e = 0; e < d->spans[s].count; e++) keepers[d->spans[s].first + e]++;
            }
            assert_int_equal(d->state_elements, state_elements);
            assert_int_equal(tensor_count(params.m), state_elements > 0 ? state_elements : 1);
            assert_true(d->zero == (zero && size > 1));
            assert_true(!d->zero || state_elements <= OWNED / size + d->bucket_count * size);
            CHECK_STATUS(STATUS_FAILED, params_divide(&params, &(struct division_options){.size = 1}));
            params_free(&params);
        }
        for (int e = 0; e < OWNED; e++) assert_int_equal(keepers[e], zero && size > 1 ? 1 : size);
    }
    ops->close(ops);
}

/* Buckets come in the order in which the backward pass completes them; sizes are such that ranks get equal parts. */
static void test_order(void **state) {
    (void)state;
    struct config config = {.parallel = {.bucket_mib = 1}};
    assert_int_equal(gradients_bucket_elements(&config, DTYPE_F32, 4), 1 << 18);
    assert_int_equal(gradients_bucket_elements(&config, DTYPE_F64, 3), (1 << 17) / 192 * 192);
    config.parallel.bucket_mib = 1e-5; /* ten bytes */
    assert_int_equal(gradients_bucket_elements(&config, DTYPE_F32, 3), 3);
    config.parallel.bucket_mib = 1e-3;
    assert_int_equal(gradients_bucket_elements(&config, DTYPE_F32, 7), 259);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_division), cmocka_unit_test(test_order)};
    return cmocka_run_group_tests_name("division", tests, NULL, NULL);
}
