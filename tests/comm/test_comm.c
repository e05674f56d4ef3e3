/* Every collective, over 1 to 4 ranks: integer-valued numbers, so that every sum is exact. The same table serves any
 * backend: test_nccl.c compiles it for NCCL. Run one by hand: mpirun -np 3 --oversubscribe
 * build/release/tests/test_comm */
#include "base/bf16.h"
#include "comm/comm.h"
#include "comm/comm_internal.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct comm *comm;
static int rank, size;

#ifndef LIBRARY
#define LIBRARY "MPI"
static enum status open_ranks(void) {
    return comm_open(NULL, &comm);
}
static enum status close_ranks(void) {
    return comm_close(&comm);
}
#endif

/* Memory that the library works on, zeroed; a variant of this table has other. */
#ifndef TAKE_MEMORY
#define TAKE_MEMORY(bytes) calloc(1, bytes)
#define GIVE_MEMORY(data)  free(data)
#endif
/* How many of COMM_SUM, COMM_MAX, COMM_MIN keep a NaN. */
#ifndef NAN_KEEPERS
#define NAN_KEEPERS (COMM_MIN + 1)
#endif
/* Are sums taken in rank order, whatever the length? */
#ifndef RANK_ORDER
#define RANK_ORDER true
#endif
/* Of a variant, each with a comma behind it. */
#ifndef MORE_TESTS
#define MORE_TESTS
#endif

/* Awkward lengths: none, one, fewer than ranks, odd, just around the direct limit (4,096 bytes), several pieces. */
static const int64_t counts[] = {0, 1, 2, 3, 7, 129, 1023, 1024, 1025, 5000, 100003};
enum { COUNTS = sizeof counts / sizeof *counts };
static int rows = COUNTS; /* how many of them a test uses */

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F64, DTYPE_I32, DTYPE_I64, DTYPE_BF16};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

static double value_of(int r, int64_t i) {
    return (double)((i * 7 + r * 13) % 1009 - 500);
}

/* BF16 holds integers up to 256: also the sum over eight ranks. */
static double value_in(enum dtype dtype, int r, int64_t i) {
    return dtype == DTYPE_BF16 ? (double)((i * 7 + r * 13) % 61 - 30) : value_of(r, i);
}

static void set(void *data, enum dtype dtype, int64_t i, double value) {
    switch (dtype) {
    case DTYPE_F32:
        ((float *)data)[i] = (float)value;
        break;
    case DTYPE_F64:
        ((double *)data)[i] = value;
        break;
    case DTYPE_I32:
        ((int32_t *)data)[i] = (int32_t)value;
        break;
    case DTYPE_BF16:
        ((uint16_t *)data)[i] = bf16_from_float((float)value);
        break;
    default:
        ((int64_t *)data)[i] = (int64_t)value;
        break;
    }
}

static double get(const void *data, enum dtype dtype, int64_t i) {
    switch (dtype) {
    case DTYPE_F32:
        return ((const float *)data)[i];
    case DTYPE_F64:
        return ((const double *)data)[i];
    case DTYPE_I32:
        return ((const int32_t *)data)[i];
    case DTYPE_BF16:
        return bf16_to_float(((const uint16_t *)data)[i]);
    default:
        return (double)((const int64_t *)data)[i];
    }
}

static double expected_reduction(enum dtype dtype, enum comm_reduce reduce, int64_t i) {
    double result = value_in(dtype, 0, i);
    for (int r = 1; r < size; r++) {
        double x = value_in(dtype, r, i);
        result = reduce == COMM_SUM ? result + x : reduce == COMM_MAX ? fmax(result, x) : fmin(result, x);
    }
    return result;
}

static void check_value(const char *row, enum dtype dtype, int64_t count, int64_t i, double expected, double found) {
    if (expected == found) return;
    fail_msg("rank %d: %s, %s, count %lld, element %lld: expected %g, found %g", rank, row, dtype_name(dtype),
             (long long)count, (long long)i, expected, found);
}

static void *block(int64_t count) {
    void *data = TAKE_MEMORY((size_t)count * 8 + 8);
    assert_non_null(data);
    memset(data, 0xa5, (size_t)count * 8 + 8);
    return data;
}

static void ok(enum status status) {
    if (status != STATUS_OK) fail_msg("rank %d: %s", rank, error_message());
}

static void fill_own(void *data, enum dtype dtype, int64_t first, int64_t n, int64_t number) {
    for (int64_t i = 0; i < n; i++) set(data, dtype, first + i, value_in(dtype, rank, number + i));
}

static void test_all_reduce(void **state) {
    (void)state;
    for (int d = 0; d < DTYPES; d++) {
        for (int c = 0; c < rows; c++) {
            for (enum comm_reduce reduce = COMM_SUM; reduce <= COMM_MIN; reduce++) {
                int64_t n = counts[c];
                void *data = block(n);
                fill_own(data, dtypes[d], 0, n, 0);
                ok(comm_all_reduce(comm, tensor_1d(data, dtypes[d], n), reduce));
                for (int64_t i = 0; i < n; i++) {
                    check_value("all_reduce", dtypes[d], n, i, expected_reduction(dtypes[d], reduce, i),
                                get(data, dtypes[d], i));
                }
                GIVE_MEMORY(data);
            }
        }
    }
}

/* in_place: the output is the input's own part. */
static void reduce_scatter_case(enum dtype dtype, int64_t n, bool in_place) {
    void *input = block(n * size), *apart = block(n);
    struct tensor whole = tensor_1d(input, dtype, n * size);
    struct tensor output = in_place ? tensor_rows(whole, rank * n, n) : tensor_1d(apart, dtype, n);
    fill_own(input, dtype, 0, n * size, 0);
    ok(comm_reduce_scatter(comm, whole, output, COMM_SUM));
    for (int64_t i = 0; i < n; i++) {
        check_value("reduce_scatter", dtype, n, i, expected_reduction(dtype, COMM_SUM, rank * n + i),
                    get(output.data, dtype, i));
    }
    for (int64_t i = 0; i < n * size; i++) {
        if (in_place && i >= rank * n && i < (rank + 1) * n) continue;
        check_value("reduce_scatter's input", dtype, n, i, value_in(dtype, rank, i), get(input, dtype, i));
    }
    GIVE_MEMORY(input);
    GIVE_MEMORY(apart);
}

static void test_reduce_scatter(void **state) {
    (void)state;
    for (int d = 0; d < DTYPES; d++) {
        for (int c = 0; c < 2 * rows; c++) reduce_scatter_case(dtypes[d], counts[c / 2], c % 2 != 0);
    }
}

static void all_gather_case(enum dtype dtype, int64_t n, bool in_place) {
    void *apart = block(n), *output = block(n * size);
    struct tensor whole = tensor_1d(output, dtype, n * size);
    struct tensor input = in_place ? tensor_rows(whole, rank * n, n) : tensor_1d(apart, dtype, n);
    fill_own(input.data, dtype, 0, n, 0);
    ok(comm_all_gather(comm, input, whole));
    for (int64_t i = 0; i < n * size; i++) {
        check_value("all_gather", dtype, n, i, value_in(dtype, (int)(i / n), i % n), get(output, dtype, i));
    }
    GIVE_MEMORY(apart);
    GIVE_MEMORY(output);
}

static void test_all_gather(void **state) {
    (void)state;
    for (int d = 0; d < DTYPES; d++) {
        for (int c = 0; c < 2 * rows; c++) all_gather_case(dtypes[d], counts[c / 2], c % 2 != 0);
    }
}

static void test_broadcast(void **state) {
    (void)state;
    for (int root = 0; root < size; root++) {
        for (int c = 0; c < rows; c++) {
            int64_t n = counts[c];
            float *data = block(n);
            for (int64_t i = 0; i < n; i++) data[i] = (float)value_of(rank, i);
            ok(comm_broadcast(comm, tensor_1d(data, DTYPE_F32, n), root));
            for (int64_t i = 0; i < n; i++) check_value("broadcast", DTYPE_F32, n, i, value_of(root, i), data[i]);
            GIVE_MEMORY(data);
        }
    }
    uint8_t *bytes = block(1);
    bytes[0] = (uint8_t)rank;
    ok(comm_broadcast(comm, tensor_1d(bytes, DTYPE_U8, 5), size - 1));
    assert_int_equal(bytes[0], size - 1);
    GIVE_MEMORY(bytes);
}

static void test_send_receive(void **state) {
    (void)state;
    for (int shift = 0; shift < size; shift++) {
        for (int c = 0; c < rows; c++) {
            int64_t n = counts[c];
            int to = (rank + shift) % size, from = (rank + size - shift) % size;
            float *send = block(n), *receive = block(n);
            for (int64_t i = 0; i < n; i++) send[i] = (float)value_of(rank, i);
            ok(comm_send_receive(comm, tensor_1d(send, DTYPE_F32, n), to, tensor_1d(receive, DTYPE_F32, n), from));
            for (int64_t i = 0; i < n; i++) check_value("ring", DTYPE_F32, n, i, value_of(from, i), receive[i]);
            GIVE_MEMORY(send);
            GIVE_MEMORY(receive);
        }
    }
    /* A line instead of a ring: the ends have no neighbour. */
    int64_t *line = block(2);
    line[0] = rank;
    line[1] = -1;
    ok(comm_send_receive(comm, tensor_1d(line, DTYPE_I64, 1), rank + 1 < size ? rank + 1 : -1,
                         tensor_1d(line + 1, DTYPE_I64, 1), rank - 1));
    assert_int_equal(line[1], rank - 1);
    GIVE_MEMORY(line);
}

static void test_scan_and_barrier(void **state) {
    (void)state;
    int64_t value = 10 + rank, expected = 0;
    for (int r = 0; r < rank; r++) expected += 10 + r;
    ok(comm_exclusive_scan(comm, &value));
    assert_int_equal(value, expected);
    ok(comm_barrier(comm));
}

/* Several collectives at once, ended in another order than they were started in, some of the way behind the caller's
 * back. */
static void test_overlap(void **state) {
    (void)state;
    enum { N = 6 };
    float *data[N];
    struct comm_request requests[N + 1] = {{NULL}};
    for (int k = 0; k < N; k++) {
        int64_t n = counts[COUNTS - 1 - k / 2] * size;
        data[k] = block(n);
        struct tensor whole = tensor_1d(data[k], DTYPE_F32, n), own = tensor_rows(whole, rank * (n / size), n / size);
        for (int64_t i = 0; i < n; i++) data[k][i] = (float)value_of(rank + k, i);
        if (k % 3 == 0) ok(comm_all_reduce_start(comm, whole, COMM_SUM, &requests[k]));
        if (k % 3 == 1) ok(comm_reduce_scatter_start(comm, whole, own, COMM_SUM, &requests[k]));
        if (k % 3 == 2) ok(comm_all_gather_start(comm, own, whole, &requests[k]));
        if (k % 2 == 0) comm_progress(comm);
    }
    for (int step = 0; step < N; step++) {
        struct comm_request *request = &requests[(step * 5 + 1 + rank) % N];
        for (bool done = false; step % 2 == 0 && !done;) ok(comm_test(comm, request, &done));
        ok(comm_end(comm, request));
        comm_progress(comm);
    }
    for (int k = 0; k < N; k++) {
        int64_t n = counts[COUNTS - 1 - k / 2] * size, part = n / size;
        for (int64_t i = 0; i < n; i++) {
            double sum = 0, expected = value_of(rank + k, i);
            for (int r = 0; r < size; r++) sum += value_of(r + k, i);
            if (k % 3 == 0 || (k % 3 == 1 && i / part == rank)) expected = sum;
            if (k % 3 == 2) expected = value_of((int)(i / part) + k, i);
            check_value("overlapping collectives", DTYPE_F32, n, i, expected, data[k][i]);
        }
        GIVE_MEMORY(data[k]);
    }
    ok(comm_end(comm, &requests[0])); /* has ended */
    ok(comm_end(comm, &requests[N])); /* was never started */
}

/* Sums are taken in rank order: the bits are known beforehand, whatever the length and the pieces. */
static void test_rank_order(void **state) {
    (void)state;
    if (!RANK_ORDER) return;
    size_t pieces[] = {16 << 20, 64, 4};
    for (int p = 0; p < 3; p++) {
        comm->piece_bytes = pieces[p];
        int64_t n = 3000;
        float *data = block(n);
        for (int64_t i = 0; i < n; i++) data[i] = sinf((float)(i + 1) * (float)(rank + 1)) * 1e3f;
        ok(comm_all_reduce(comm, tensor_1d(data, DTYPE_F32, n), COMM_SUM));
        for (int64_t i = 0; i < n; i++) {
            float expected = sinf((float)(i + 1)) * 1e3f;
            for (int r = 1; r < size; r++) expected += sinf((float)(i + 1) * (float)(r + 1)) * 1e3f;
            check_value("rank order", DTYPE_F32, n, i, expected, data[i]);
        }
        GIVE_MEMORY(data);
    }
    comm->piece_bytes = 16 << 20;
}

/* Limits made small: every loop over pieces and over messages beyond MPI's int counts runs. */
static void test_small_limits(void **state) {
    rows = 6;
    comm->piece_bytes = 1000;
    comm->message_bytes = 37;
    comm->direct_bytes = 64;
    test_all_reduce(state);
    test_reduce_scatter(state);
    test_all_gather(state);
    test_broadcast(state);
    test_send_receive(state);
    comm->piece_bytes = 16 << 20;
    comm->message_bytes = 1 << 30;
    comm->direct_bytes = 4096;
    rows = COUNTS;
}

static void test_nan_wins(void **state) {
    (void)state;
    double *y = block(2);
    float *x = (float *)(y + 1);
    for (int reduce = COMM_SUM; reduce < NAN_KEEPERS; reduce++) {
        for (int who = 0; who < size; who++) {
            x[0] = rank == who ? NAN : (float)rank;
            x[1] = 1;
            y[0] = rank == who ? NAN : rank;
            ok(comm_all_reduce(comm, tensor_1d(x, DTYPE_F32, 2), (enum comm_reduce)reduce));
            ok(comm_all_reduce(comm, tensor_1d(y, DTYPE_F64, 1), (enum comm_reduce)reduce));
            assert_true(isnan(x[0]) && !isnan(x[1]) && isnan(y[0]));
        }
    }
    GIVE_MEMORY(y);
}

static void test_agree(void **state) {
    (void)state;
    char expected[64];
    error_clear();
    assert_int_equal(comm_agree(comm, STATUS_OK), STATUS_OK);
    assert_string_equal(error_message(), "");
    for (int bad = 0; bad < size; bad++) {
        enum status mine = rank == bad ? error_set(STATUS_IO, "disk %d is full", bad) : STATUS_OK;
        assert_int_equal(comm_agree(comm, mine), STATUS_IO);
        snprintf(expected, sizeof expected, rank == bad ? "disk %d is full" : "rank %d: disk %d is full", bad, bad);
        assert_string_equal(error_message(), expected);
        error_clear();
    }
    /* The worst wins; of several equal ones the lowest rank's message; a rank's own message stays. */
    enum status mine = error_set(rank == 0 ? STATUS_STOPPED : STATUS_MEMORY, "message of %d", rank);
    assert_int_equal(comm_agree(comm, mine), size == 1 ? STATUS_STOPPED : STATUS_MEMORY);
    snprintf(expected, sizeof expected, "message of %d", rank);
    assert_string_equal(error_message(), expected);
    error_clear();
    mine = rank == 0 ? STATUS_OK : error_set(STATUS_MEMORY, "message of %d", rank);
    assert_int_equal(comm_agree(comm, mine), size == 1 ? STATUS_OK : STATUS_MEMORY);
    if (rank == 0 && size > 1) assert_string_equal(error_message(), "rank 1: message of 1");
    error_clear();
}

/* Two groups, of even and of odd ranks, that work at once; within one of them a group of one. */
static void test_groups(void **state) {
    (void)state;
    struct comm *part = NULL, *alone = NULL, *whole = comm->host ? comm->host : comm;
    char expected[64];
    ok(comm_split(whole, rank % 2, &part));
    const int members = (size + 1 - rank % 2) / 2;
    assert_int_equal(comm_size(part), members);
    assert_int_equal(comm_rank(part), rank / 2);
    float x[2000];
    for (int round = 0; round < 2 + rank % 2; round++) { /* the groups need not keep step */
        for (int i = 0; i < 2000; i++) x[i] = (float)value_of(rank, i);
        ok(comm_all_reduce(part, tensor_1d(x, DTYPE_F32, 2000), COMM_SUM));
        for (int i = 0; i < 2000; i++) {
            double sum = 0;
            for (int r = rank % 2; r < size; r += 2) sum += value_of(r, i);
            check_value("a group's all_reduce", DTYPE_F32, 2000, i, sum, (double)x[i]);
        }
    }
    /* A group's fault names the rank among all. */
    const int last = rank % 2 + 2 * (members - 1);
    error_clear();
    enum status mine = rank == last ? error_set(STATUS_IO, "disk is full") : STATUS_OK;
    assert_int_equal(comm_agree(part, mine), STATUS_IO);
    snprintf(expected, sizeof expected, rank == last ? "disk is full" : "rank %d: disk is full", last);
    assert_string_equal(error_message(), expected);
    error_clear();
    ok(comm_split(part, comm_rank(part), &alone));
    ok(comm_all_reduce(alone, tensor_1d(x, DTYPE_F32, 2000), COMM_SUM));
    assert_int_equal(comm_size(alone), 1);
    ok(comm_close(&alone));
    ok(comm_close(&part));
    ok(comm_barrier(comm));
}

static void refused(enum status status, const char *part) {
    if (status == STATUS_OK || !strstr(error_message(), part)) {
        fail_msg("expected a message with \"%s\", found status %s: \"%s\"", part, status_name(status), error_message());
    }
    error_clear();
}

static void test_refused(void **state) {
    (void)state;
    float x[16] = {0};
    struct tensor t = tensor_1d(x, DTYPE_F32, 4), strided = tensor_columns(tensor_2d(x, DTYPE_F32, 4, 4), 1, 2);
    comm_set_step(comm, 12);
    refused(comm_all_reduce(comm, strided, COMM_SUM), "all_reduce at step 12");
    comm_set_step(comm, -1);
    refused(comm_all_reduce(comm, tensor_1d(x, DTYPE_U16, 4), COMM_SUM), "found [4] u16");
    refused(comm_all_gather(comm, t, tensor_1d(x, DTYPE_F32, 4 * size + 1)), "parts");
    refused(comm_reduce_scatter(comm, t, tensor_1d(x, DTYPE_F64, 4), COMM_SUM), "parts");
    refused(comm_broadcast(comm, t, size), "expected a rank below");
    refused(comm_send_receive(comm, t, size, t, -1), "expected a rank below");
    refused(comm_send_receive(comm, t, rank, t, -1), "to itself");
    assert_true(comm_node_size(comm) == size && comm_node_rank(comm) == rank);
    assert_non_null(strstr(comm_describe(comm), LIBRARY));
}

int main(void) {
    if (open_ranks() != STATUS_OK) {
        fprintf(stderr, "%s\n", error_message());
        return 1;
    }
    rank = comm_rank(comm);
    size = comm_size(comm);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_reduce),   cmocka_unit_test(test_reduce_scatter),
                                       cmocka_unit_test(test_all_gather),   cmocka_unit_test(test_broadcast),
                                       cmocka_unit_test(test_send_receive), cmocka_unit_test(test_scan_and_barrier),
                                       cmocka_unit_test(test_overlap),      cmocka_unit_test(test_rank_order),
                                       cmocka_unit_test(test_small_limits), cmocka_unit_test(test_nan_wins),
                                       cmocka_unit_test(test_agree),        cmocka_unit_test(test_groups),
                                       cmocka_unit_test(test_refused),      MORE_TESTS};
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    return close_ranks() != STATUS_OK || failures;
}
