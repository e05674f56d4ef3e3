/* One rank without a launcher: no MPI, every collective is a copy or nothing. */
#include "comm/comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check_alone(struct comm *comm) {
    float x[3] = {1, 2, 3}, y[3] = {0}, z[3] = {0};
    int64_t value = 7;
    struct comm_request request;
    assert_int_equal(comm_size(comm), 1);
    assert_int_equal(comm_rank(comm), 0);
    assert_int_equal(comm_node_size(comm), 1);
    assert_int_equal(comm_all_reduce(comm, tensor_1d(x, DTYPE_F32, 3), COMM_SUM), STATUS_OK);
    assert_int_equal(comm_all_reduce_start(comm, tensor_1d(x, DTYPE_F32, 3), COMM_MAX, &request), STATUS_OK);
    assert_int_equal(comm_end(comm, &request), STATUS_OK);
    assert_int_equal(comm_all_gather(comm, tensor_1d(x, DTYPE_F32, 3), tensor_1d(y, DTYPE_F32, 3)), STATUS_OK);
    assert_int_equal(comm_reduce_scatter(comm, tensor_1d(y, DTYPE_F32, 3), tensor_1d(z, DTYPE_F32, 3), COMM_SUM),
                     STATUS_OK);
    assert_memory_equal(x, z, sizeof x);
    memset(y, 0, sizeof y);
    assert_int_equal(comm_send_receive(comm, tensor_1d(x, DTYPE_F32, 3), 0, tensor_1d(y, DTYPE_F32, 3), 0), STATUS_OK);
    assert_memory_equal(x, y, sizeof x);
    assert_int_equal(comm_broadcast(comm, tensor_1d(x, DTYPE_F32, 3), 0), STATUS_OK);
    assert_int_equal(comm_exclusive_scan(comm, &value), STATUS_OK);
    assert_int_equal(value, 0);
    assert_int_equal(comm_barrier(comm), STATUS_OK);
    assert_int_equal(comm_agree(comm, STATUS_STOPPED), STATUS_STOPPED);
}

static void test_open_without_launcher(void **state) {
    (void)state;
    struct comm *comm = NULL;
    assert_int_equal(comm_open(NULL, &comm), STATUS_OK);
    assert_string_equal(comm_describe(comm), "one rank, no MPI");
    check_alone(comm);
    assert_int_equal(comm_close(&comm), STATUS_OK);
    assert_null(comm);
    assert_int_equal(comm_close(&comm), STATUS_OK);
    assert_int_equal(comm_close(NULL), STATUS_OK);
}

static void test_open_single(void **state) {
    (void)state;
    struct comm *comm = NULL;
    assert_int_equal(comm_open_single(&comm), STATUS_OK);
    check_alone(comm);
    assert_int_equal(comm_close(&comm), STATUS_OK);
}

static void test_deadline_text(void **state) {
    (void)state;
    static const char *const bad[] = {"soon", "0", "-3", "12x", "inf", "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct comm *comm = NULL;
        setenv("SQUINT_DEADLINE_S", bad[i], 1);
        assert_int_equal(comm_open(NULL, &comm), STATUS_USAGE);
        assert_null(comm);
        assert_non_null(strstr(error_message(), bad[i]));
        error_clear();
    }
    unsetenv("SQUINT_DEADLINE_S");
}

int main(void) {
    static const char *const launcher[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof launcher / sizeof *launcher; i++) unsetenv(launcher[i]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_without_launcher),
        cmocka_unit_test(test_open_single),
        cmocka_unit_test(test_deadline_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
