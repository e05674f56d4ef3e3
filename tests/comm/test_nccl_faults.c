/* The states of a communicator over NCCL against a stand-in that fails or hangs where it is told to: every error of
 * every call, at every call; nothing is left over, nothing waits for ever, the first error is what is told. */
#include "comm/comm.h"
#include "comm/comm_internal.h"

#include "base/log.h"
#include "standin.h"
#include "support/check.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

static struct comm *host;
static cudaStream_t compute;

enum { N = 5, STEP = 7 };

/* A life of a communicator: opened, every collective, closed. The first failure; *where: after so many collectives. */
static enum status live(int *where) {
    struct comm *comm = NULL;
    float x[N] = {1, 2, 3, 4, 5}, y[N];
    const struct tensor a = tensor_1d(x, DTYPE_F32, N), b = tensor_1d(y, DTYPE_F32, N);
    struct comm_request requests[2] = {{NULL}, {NULL}};
    enum status status = STATUS_OK;
    *where = -1;
    TRY_GOTO(done, comm_open_nccl(host, compute, &comm));
    comm_set_step(comm, STEP);
    ++*where;
    TRY_GOTO(done, comm_all_reduce(comm, a, COMM_SUM));
    ++*where;
    TRY_GOTO(done, comm_reduce_scatter(comm, a, b, COMM_SUM));
    ++*where;
    TRY_GOTO(done, comm_all_gather(comm, a, b));
    ++*where;
    TRY_GOTO(done, comm_broadcast(comm, a, 0));
    ++*where;
    TRY_GOTO(done, comm_send_receive(comm, a, 0, b, 0));
    for (int n = 0; n < N; n++) assert_true(x[n] == (float)(n + 1) && (*where < 4 || y[n] == x[n]));
    ++*where;
    TRY_GOTO(done, comm_all_reduce_start(comm, a, COMM_SUM, &requests[0]));
    TRY_GOTO(done, comm_all_reduce_start(comm, b, COMM_MAX, &requests[1]));
    TRY_GOTO(done, comm_end(comm, &requests[1]));
    TRY_GOTO(done, comm_end(comm, &requests[0]));
    ++*where;
done:
    if (comm && status != STATUS_OK) {
        const enum status again = comm_all_reduce(comm, a, COMM_SUM);
        if (again != STATUS_COMM && again != STATUS_FAILED)
            fail_msg("after a fault: expected a refusal, found %s", status_name(again));
    }
    char first[256];
    snprintf(first, sizeof first, "%s", error_message());
    KEEP_FIRST(status, comm_close(&comm));
    if (first[0] && *where >= 0) assert_string_equal(first, error_message());
    return status;
}

static int set_up(void **state) {
    (void)state;
    CHECK_OK(comm_open_single(&host));
    host->deadline_s = 0.3;
    assert_int_equal(cudaStreamCreateWithFlags(&compute, 0), cudaSuccess);
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    cudaStreamDestroy(compute);
    CHECK_OK(comm_close(&host));
    assert_int_equal(standin_alive(), 0);
    return 0;
}

static void expect_clean(const char *what) {
    standin_fail(NULL, 0, 0);
    standin_hang(NULL);
    host->deadline_s = 0.3;
    error_clear();
    if (standin_alive() != 1) fail_msg("%s: %ld streams, events or communicators are left", what, standin_alive() - 1);
}

static void test_whole(void **state) {
    (void)state;
    int where;
    CHECK_OK(live(&where));
    assert_int_equal(where, 6);
    expect_clean("a whole life");
}

static void test_every_error(void **state) {
    (void)state;
    static const struct {
        const char *function;
        bool nccl;
    } rows[] = {{"ncclGetVersion", true},
                {"ncclGetUniqueId", true},
                {"ncclCommInitRankConfig", true},
                {"ncclCommGetAsyncError", true},
                {"async", true},
                {"ncclCommFinalize", true},
                {"ncclCommDestroy", true},
                {"ncclGroupStart", true},
                {"ncclGroupEnd", true},
                {"ncclAllReduce", true},
                {"ncclReduceScatter", true},
                {"ncclAllGather", true},
                {"ncclBroadcast", true},
                {"ncclSend", true},
                {"ncclRecv", true},
                {"cudaStreamCreateWithFlags", false},
                {"cudaStreamWaitEvent", false},
                {"cudaEventCreateWithFlags", false},
                {"cudaEventRecord", false},
                {"cudaEventQuery", false},
                {"cudaGetDevice", false},
                {"cudaDeviceGetPCIBusId", false}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        int failures = 0;
        for (int result = ncclUnhandledCudaError; result <= (rows[r].nccl ? ncclRemoteError : 2); result++)
            for (long n = 1; n <= 40; n++) {
                int where;
                char what[96];
                snprintf(what, sizeof what, "%s, call %ld, error %d", rows[r].function, n, result);
                standin_fail(rows[r].function, n, result);
                const enum status status = live(&where);
                if (status == STATUS_OK) {
                    expect_clean(what);
                    break; /* there are not so many calls, or it was one whose failure is no matter */
                }
                failures++;
                const char *expected = strcmp(rows[r].function, "ncclGetVersion") == 0 ? "does not tell"
                                       : rows[r].nccl ? ncclGetErrorString((ncclResult_t)result)
                                                      : cudaGetErrorString((cudaError_t)result);
                if (!strstr(error_message(), expected))
                    fail_msg("%s: expected \"%s\" in \"%s\"", what, expected, error_message());
                if (where >= 0 && where < 6 && !strstr(error_message(), rows[r].nccl ? "at step 7: NCCL" : "CUDA"))
                    fail_msg("%s: expected a step in \"%s\"", what, error_message());
                expect_clean(what);
            }
        if (failures == 0) fail_msg("%s: expected to be called", rows[r].function);
    }
}

/* What never ends is given up at the deadline, with rank, step and collective, or while starting. */
static void test_hangs(void **state) {
    (void)state;
    static const struct {
        const char *function, *words;
    } rows[] = {{"run", "rank 0: all_reduce at step 7: waited 0.3 s for the other ranks"},
                {"ncclCommInitRankConfig", "rank 0: starting NCCL: waited 0.3 s"},
                {"ncclCommFinalize", "rank 0: ending NCCL at step 7: waited 0.3 s"}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        int where;
        const double begun_s = time_now_s();
        standin_hang(rows[r].function);
        assert_int_equal(live(&where), STATUS_COMM);
        if (!strstr(error_message(), rows[r].words))
            fail_msg("expected \"%s\", found \"%s\"", rows[r].words, error_message());
        assert_true(time_now_s() - begun_s < 2);
        expect_clean(rows[r].function);
    }
}

static void test_versions(void **state) {
    (void)state;
    int where;
    standin_set_version(21805);
    assert_int_equal(live(&where), STATUS_NOT_FOUND);
    assert_non_null(strstr(error_message(), "expected version 2.19 or later, found 2.18.5"));
    standin_set_version(22809);
    expect_clean("an old version");
}

/* Counts beyond 32 bits, in elements and in bytes, reach NCCL whole; no such memory is touched. */
static void test_long_counts(void **state) {
    (void)state;
    struct comm *comm = NULL;
    static float x[1];
    const int64_t counts[] = {((int64_t)1 << 29) + 1, ((int64_t)1 << 31) + 3, ((int64_t)1 << 33) + 5};
    CHECK_OK(comm_open_nccl(host, compute, &comm));
    standin_dry(1);
    for (int n = 0; n < 3; n++) {
        const struct tensor a = tensor_1d(x, DTYPE_F32, counts[n]), b = tensor_1d(x, DTYPE_BF16, counts[n]);
        size_t count = 0, width = 0;
        for (int which = 0; which < 5; which++) {
            if (which == 0) CHECK_OK(comm_all_reduce(comm, a, COMM_SUM));
            if (which == 1) CHECK_OK(comm_all_reduce(comm, b, COMM_SUM));
            if (which == 2) CHECK_OK(comm_reduce_scatter(comm, a, a, COMM_SUM));
            if (which == 3) CHECK_OK(comm_all_gather(comm, a, a));
            if (which == 4) CHECK_OK(comm_broadcast(comm, b, 0));
            standin_asked(&count, &width);
            const size_t bytes = (size_t)counts[n] * (which == 1 || which == 4 ? 2 : 4);
            if (count * width != bytes)
                fail_msg("collective %d: expected %zu bytes, found %zu times %zu", which, bytes, count, width);
        }
    }
    standin_dry(0);
    CHECK_OK(comm_close(&comm));
    expect_clean("long counts");
}

/* Last: what hangs in NCCL is left behind. */
static void test_abort_hangs(void **state) {
    (void)state;
    struct comm *comm = NULL;
    float x[N] = {0};
    CHECK_OK(comm_open_nccl(host, compute, &comm));
    standin_fail("ncclAllReduce", 1, ncclSystemError);
    standin_hang("ncclCommAbort");
    CHECK_STATUS(STATUS_COMM, comm_all_reduce(comm, tensor_1d(x, DTYPE_F32, N), COMM_SUM));
    const double begun_s = time_now_s();
    CHECK_OK(comm_close(&comm));
    const double took_s = time_now_s() - begun_s;
    if (took_s < 2 || took_s > 5) fail_msg("expected to leave after 3 s, found %.1f s", took_s);
    standin_hang(NULL);
    error_clear();
    while (standin_alive() > 4) sched_yield(); /* the thread that hung ends now; its stream and events were left */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_whole), cmocka_unit_test(test_every_error),
                                       cmocka_unit_test(test_hangs), cmocka_unit_test(test_versions),
                                       cmocka_unit_test(test_long_counts)};
    const struct CMUnitTest last[] = {cmocka_unit_test(test_abort_hangs)};
    int failures = cmocka_run_group_tests_name("nccl", tests, set_up, tear_down);
    return failures + cmocka_run_group_tests_name("nccl, abort", last, set_up, NULL);
}
